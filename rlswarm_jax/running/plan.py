"""What a run takes of a device's memory, part by part, before anything is allocated: from shapes alone."""

import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import AbstractMesh
from rich.console import Console

from rlswarm_jax import parallel
from rlswarm_jax.errors import UsageError
from rlswarm_jax.grpo import losses, tiles
from rlswarm_jax.grpo.learner import Learner, LearnerConfig
from rlswarm_jax.grpo.residuals import residuals, size
from rlswarm_jax.qwen import model, sizes
from rlswarm_jax.qwen.config import QwenConfig, read_config
from rlswarm_jax.qwen.sampler import WAITING
from rlswarm_jax.qwen.sampling import PREFILL_TOKENS
from rlswarm_jax.qwen.weights import resolve
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.reporting.blocks import Table, print_table
from rlswarm_jax.running import build

ALWAYS, LEARNING, SAMPLING = "all the time", "while learning", "while sampling"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30}
RESERVED = 0.06  # of a device: the runtime's own, compiled programs, and what fragments are lost


@dataclasses.dataclass(frozen=True)
class Part:
    """name: of what is held; when: one of the above; bytes: on each device, of one node."""

    name: str
    when: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Work:
    """Shapes of the arrays that a node works on, on each device.

    tile: of texts learned from; several: whether a round has more than one. rows: completions sampled at a time, with
    prompts kept beside them, each of `prompt_tokens` at most. dtype, kv_dtype: of sampling. merge: as in the config.
    """

    tile: tiles.Shape
    several: bool
    rows: int
    prompts: int
    prompt_tokens: int
    new_tokens: int
    dtype: str
    kv_dtype: str
    merge: bool


def parts(config: QwenConfig, learner_config: LearnerConfig, work: Work, devices: parallel.DeviceConfig) -> list[Part]:
    """Of a node of that model."""
    mesh = AbstractMesh((1, devices.fsdp, devices.tensor), (parallel.DATA, parallel.FSDP, parallel.TENSOR))
    held = functools.partial(_held, mesh=mesh)
    lora, computed = learner_config.lora, jnp.dtype(learner_config.dtype)
    learner = Learner(learner_config, config)
    master = jnp.dtype("float32") if lora is None else computed
    weights = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, master),
        model.param_shapes(config),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    state = jax.eval_shape(learner.init, weights)
    trained = held(state.params)
    found = [Part(f"weights ({master.name})", ALWAYS, held(weights))]
    if lora is not None:
        found.append(Part(f"adapter of rank {lora.rank}", ALWAYS, trained))
    found.append(Part(f"optimiser ({learner_config.optimizer})", ALWAYS, held(state.opt_state)))
    if state.reference is not None:
        found.append(Part("reference policy", ALWAYS, held(state.reference.params)))
    found += [
        Part("gradients" + " of a tile, and their sum" * work.several, LEARNING, trained * (1 + work.several)),
        *_activations(config, learner_config, weights, work.tile),
    ]
    if parallel.is_sharded(mesh):
        layer = weights["layers"][0]
        whole = size(layer) + config.vocab_size * config.hidden_size * master.itemsize
        found.append(Part("a layer and the head, gathered", LEARNING, whole))
    found += _sampling(config, work, held(weights), master, lora is not None)
    return found


def _held(tree: Any, mesh: Any) -> int:
    """Bytes of a tree on each device of the mesh."""

    def of(path: Any, x: Any) -> int:
        names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        split = parallel.spec(names[-1] if names else "", x.shape, mesh)
        return size(x) // math.prod(mesh.shape[axis] for axis in split if axis is not None)

    return sum(of(path, x) for path, x in jax.tree_util.tree_leaves_with_path(tree))


def _activations(config: QwenConfig, learner_config: LearnerConfig, weights: Any, shape: tiles.Shape) -> list[Part]:
    """What the backward pass of a tile needs. Each layer keeps as much as the second of two does."""
    computed = jnp.dtype(learner_config.dtype)
    of_tile = (shape.sequences, shape.width, config.hidden_size)
    remat = model.remat_of(config, of_tile, computed, learner_config.remat)
    batch = tiles.fillers([shape])[-1]

    def kept(layers: int, remat: model.Remat) -> int:
        lora = learner_config.lora and dataclasses.replace(learner_config.lora, layers=(), path="")
        shallow = dataclasses.replace(config, num_layers=layers)
        learner = Learner(dataclasses.replace(learner_config, remat=remat, lora=lora), shallow)
        base = weights | {"layers": weights["layers"][:layers]}
        state = jax.eval_shape(learner.init, base)
        frozen = None if lora is None else (base, jax.ShapeDtypeStruct((), jnp.int32))
        return size(residuals(lambda params, *rest: learner.loss(params, *rest)[0], state.params, frozen, batch))

    head = config.vocab_size * config.hidden_size * computed.itemsize * (computed != weights["embed"].dtype)
    one, two = kept(1, remat) - head, kept(2, remat) - head
    found = [Part(f"activations kept (remat {remat})", LEARNING, one + (config.num_layers - 1) * (two - one))]
    if remat != "none":
        found.append(Part("a layer's, computed again", LEARNING, kept(2, "none") - kept(1, "none")))
    texts = shape.sequences * shape.width
    if head:
        found.append(Part(f"head ({computed.name})", LEARNING, head))
    logits = min(texts, max(1, losses.MAX_CHUNK_LOGITS // config.vocab_size)) * config.vocab_size
    found.append(Part("logits of a chunk, and their gradient", LEARNING, 3 * 4 * logits))
    return found


def _sampling(config: QwenConfig, work: Work, weights: int, master: Any, adapted: bool) -> list[Part]:
    dtype = jnp.dtype(work.dtype)
    found = []
    if dtype != master or (adapted and work.merge):
        name = f"copy of the weights to sample with ({dtype.name})"
        found.append(Part(name, SAMPLING, weights * dtype.itemsize // master.itemsize))
    kv = jnp.dtype(work.kv_dtype)
    per_slot = config.num_layers * 2 * config.num_kv_heads * (config.head_dim * kv.itemsize + 4 * (kv.itemsize == 1))
    slots = work.prompts * work.prompt_tokens + work.rows * work.new_tokens
    found.append(Part(f"key/value cache ({kv.name})", SAMPLING, per_slot * slots))
    at_once = max(1, min(work.prompts, PREFILL_TOKENS // work.prompt_tokens)) * work.prompt_tokens
    scores = 0 if dtype.itemsize == 2 else 2 * 4 * config.num_heads * at_once * work.prompt_tokens
    states = at_once * (4 * config.hidden_size + 3 * config.intermediate_size) * dtype.itemsize
    found.append(Part("reading prompts", SAMPLING, scores + states))
    found.append(Part("logits of the next tokens", SAMPLING, 3 * 4 * work.rows * config.vocab_size))
    return found


def peak(found: list[Part]) -> int:
    """Of a node on a device: what is held all the time, and the larger of what comes and goes."""
    of = {when: sum(part.bytes for part in found if part.when == when) for when in (ALWAYS, LEARNING, SAMPLING)}
    return of[ALWAYS] + max(of[LEARNING], of[SAMPLING])


# --- of a config


def model_of(config: ml_collections.ConfigDict) -> QwenConfig:
    """From its `config.json`, or by a published size's name where it is not on this machine. Raises UsageError."""
    path = build.model_path(config)
    known = None if Path(path).is_dir() else sizes.of_name(path)
    try:
        return known or read_config(resolve(path))
    except ValueError as error:
        raise UsageError(str(error)) from error


def work_of(config: ml_collections.ConfigDict, model: QwenConfig) -> Work:
    """What a round of that config asks for at most; the platform's tiles are those of this machine."""
    compact = config.model.prompts == "compact" or config.model.path in build.EMBEDDED
    prompt, completion = build.BUDGETS["compact" if compact else "chat"][config.game.stages > 1]
    prompt, new = config.sampling.max_prompt_tokens or prompt, config.sampling.max_new_tokens or completion
    shape = tiles.shapes(prompt + new, new, config.learn.microbatch_rows, hidden_size=model.hidden_size)[-1]
    group, problems = config.sampling.group_size, config.swarm.local_groups
    learned = (len(STAGES[: config.game.stages]) * problems + config.swarm.external_groups) * group
    rows = min(config.sampling.rows or group * problems, group * problems)
    prompts = min(problems, -(-WAITING * rows // group))
    held_out = min(config.evaluation.rows, config.evaluation.problems)
    waiting = min(config.evaluation.problems, WAITING * held_out)
    if held_out * new + waiting * prompt > rows * new + prompts * prompt:
        rows, prompts = held_out, waiting
    return Work(
        tile=shape,
        several=learned * (prompt + new) > shape.sequences * shape.width,
        rows=rows,
        prompts=prompts,
        prompt_tokens=prompt,
        new_tokens=new,
        dtype=config.sampling.dtype,
        kv_dtype=config.sampling.kv_dtype or config.sampling.dtype,
        merge=config.lora.merge,
    )


def of_config(config: ml_collections.ConfigDict) -> list[Part]:
    """Raises UsageError for a model or an adapter that cannot be."""
    known = model_of(config)
    work = work_of(config, known)
    try:
        learner_config = build.make_learner_config(config, work.new_tokens)
        return parts(known, learner_config, work, build.made_of(parallel.DeviceConfig, [config.devices]))
    except ValueError as error:
        raise UsageError(str(error)) from error


def memory(asked: str) -> int:
    """Bytes, of such as "16GB"; of this machine where that is "". Raises UsageError."""
    if not asked:
        return _of_this_machine()
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", asked)
    if match is None or match[2].upper() not in UNITS or not float(match[1]):
        raise UsageError(f"--memory is {asked!r}; expected a size such as 16GB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _of_this_machine() -> int:
    """Of the first device, or what is available of the machine's where that is a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    match = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    if match is None:
        raise UsageError("this machine does not say how much memory it has: give --memory 16GB.")
    return 1024 * int(match[1])


def nodes_of(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """How many nodes' states one device holds, and how many of these work at a time."""
    nodes = config.swarm.nodes
    if config.driver == "node":
        return 1, 1
    if config.driver == "simulate":
        return nodes, 1
    devices = jax.local_device_count() if config.swarm.devices != "cpu" else 1
    return -(-nodes // devices), -(-nodes // devices)


def run(config: ml_collections.ConfigDict, asked: str) -> int:
    """Prints the plan; returns 0 where it fits, else 1."""
    console, found = Console(soft_wrap=True), of_config(config)
    states, working = nodes_of(config)
    always = sum(part.bytes for part in found if part.when == ALWAYS)
    one = peak(found)
    total = states * always + working * (one - always)
    limit = memory(asked)
    usable = int(limit * (1 - RESERVED))
    print_table(table(found), console)
    if states > 1:
        console.print(f"{one / 1e9:.2f} GB a node; {states} nodes share the device")
    verdict = "it fits" if total <= usable else "it does not fit"
    console.print(
        f"{total / 1e9:.2f} GB at the peak, of {limit / 1e9:.2f} GB less {RESERVED:.0%} for the runtime: {verdict}"
    )
    return 0 if total <= usable else 1


def table(found: list[Part]) -> Table:
    rows = [("part", "held", "GB")]
    return [*rows, *((part.name, part.when, f"{part.bytes / 1e9:.3f}") for part in found)]
