"""What eight devices compute is compared here; they compute it in a process of their own, `on_eight_devices`."""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlswarm_jax import parallel
from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.grpo import learner, objective
from rlswarm_jax.grpo import losses as chunks
from rlswarm_jax.grpo.objective import PRESETS
from rlswarm_jax.qwen import model, naming, sampling
from tests.grpo import test_objective, tiny

STEPS = 3
ENVIRONMENT = tiny.devices(8) | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # it compiles in half the time
BACKENDS = ("shard_map", "pmap")
MESHES = ((4, 2), (1, 8), (1, 1), None)  # fsdp, tensor; None: one device
# every kind of parameter, each divisible by 8
WIDE = dataclasses.replace(
    tiny.CONFIG, vocab_size=24, num_kv_heads=2, qkv_bias=True, qk_norm=True, tie_word_embeddings=False
)


@functools.cache
def wide_params():
    rng = np.random.default_rng(0)
    drawn = model.init_params(WIDE, jax.random.key(0), scale=0.3)
    return jax.tree.map(lambda w: np.asarray(w) + 0.1 * rng.standard_normal(w.shape).astype(np.float32), drawn)


def batches():
    """Eight rows, the last two without a token: of eight devices two have nothing to do."""
    for seed in range(STEPS):
        batch = tiny.make_batch(seed=seed, rows=8, known="mixed", behaviour="mixed")
        batch.completion_lengths_B[-2:] = 0
        yield batch


@functools.cache
def wide_batches():
    """Those, sampled by `wide_params`: where old log-probs are another model's, clipping leaves few tokens to learn.

    In this draw no weight's first gradient is of the size of its rounding (1e-7 of the largest one): Adam divides a
    gradient by its size, and would make of such a one a step of a size and sign of its own on every mesh.
    """
    scores, rng = learner.Learner(tiny.LEARNER, WIDE).logprobs, np.random.default_rng(4)
    return tuple(
        dataclasses.replace(
            batch,
            behaviour_known_B=np.zeros(8, bool),
            old_logprobs_BC=scores(wide_params(), batch)[0]
            + rng.uniform(-0.5, 0.5, batch.old_logprobs_BC.shape).astype(np.float32),
        )
        for batch in batches()
    )


def train(learns, params=tiny.params, batches=batches):
    """Three steps, each waited for: forced host devices abort when many collectives queue up."""
    state, found = learns.init(params()), []
    for batch in batches():
        state, metrics = jax.block_until_ready(learns.step(state, batch, tiny.LEARNER.learning_rate))
        found.append(jax.device_get(metrics))
    return jax.device_get(state), found


def train_on(mesh, parts=1, **options):
    """parts: into which each batch is cut."""
    size = 8 // parts

    def cut():
        for batch in batches():
            yield [tiny.rows_of(batch, slice(at, at + size)) for at in range(0, 8, size)]

    return train(learner.Learner(tiny.LEARNER, tiny.CONFIG, mesh, **options), batches=cut)


def on_eight_devices(path):
    found = {
        "one": train(learner.Learner(tiny.LEARNER, tiny.CONFIG)),
        "two, in parts": train_on(parallel.local_mesh(2), parts=2),
        "sizes": [parallel.local_mesh(n).size for n in (None, 1, 3, 8)],
        "gradients": [gradient_of_a_sum(n, b) for n in (1, 8) for b in BACKENDS],
        "walks": {n: {b: walks(n, b) for b in BACKENDS} for n in (None, 1, 8)},
        "whole": sharded(None),
        (4, 2): sharded((4, 2)),
        "moved": move_a_checkpoint(Path(path).parent),
        "losses": [losses(1), losses(8)],
    }
    for backend in BACKENDS:
        with compilations() as found[backend, "compiled"]:
            found[backend] = train_on(parallel.local_mesh(), backend=backend)
    Path(path).write_bytes(pickle.dumps(found))


def losses(num_devices):
    """Of every preset, all kinds of rows on each device: the loss, its gradient in a replicated weight, the metrics."""
    mesh, found = parallel.local_mesh(num_devices) if num_devices > 1 else None, {}
    for name, (o, rows) in preset_rows().items():

        def loss(weight, rows, o=o):
            now_BC, entropy_BC, batch = rows
            return objective.loss_sums(weight * now_BC, weight * entropy_BC, batch, o)

        def fn(weight, rows, loss=loss):
            return parallel.total(jax.value_and_grad(loss, has_aux=True)(weight, rows), mesh)

        run = jax.jit(fn) if mesh is None else parallel.data_parallel(fn, mesh)
        (loss, sums), slope = jax.device_get(run(jnp.float32(1.05), rows))
        found[name] = {"slope": slope / sums["divisor"], **jax.device_get(objective.means(loss, sums))}
    return found


def preset_rows():
    """Sixteen rows for eight devices, from the nine that the losses are tested with; some devices have no token."""
    at = np.arange(16) * 5 % 9
    found = {}
    for name in PRESETS:
        o = test_objective.preset(name, entropy_bonus=0.1)
        rows = jax.tree.map(
            lambda x: np.asarray(x, np.float32 if x.dtype == np.float64 else x.dtype)[at], test_objective.of(o)
        )
        rows[-1].completion_lengths_B[4:8] = 0
        found[name] = o, rows
    return found


def on_other_meshes(path):
    mesh = parallel.make_mesh(jax.devices(), 2, 2)
    found = {sizes: sharded(sizes) for sizes in ((8, 1), (1, 8))}
    Path(path).write_bytes(pickle.dumps(found | {"sharded, in parts": train_on(mesh, parts=2)}))


def collectives(path):
    """How many numbers each collective of a step's sums moves, by mesh, and without a word on where to gather."""
    chunks.MAX_CHUNK_LOGITS = 64 * LARGE.vocab_size  # several chunks on each device
    found = {sizes: moved_by(parallel.make_mesh(jax.devices(), *sizes)) for sizes in ((8, 1), (4, 2))}
    found["left alone"] = moved_by(parallel.make_mesh(jax.devices(), 8, 1), left_alone=True)
    Path(path).write_bytes(pickle.dumps(found))


LARGE = dataclasses.replace(WIDE, vocab_size=256, hidden_size=32)


def moved_by(mesh, left_alone=False):
    learns = learner.Learner(tiny.LEARNER, LARGE, mesh)
    if left_alone:
        vars(learns)["_forward"] = tiny.LEARNER.forward
    params = jax.eval_shape(lambda: model.init_params(LARGE, jax.random.key(0)))
    batch = jax.tree.map(np.asarray, tiny.make_batch(rows=128))

    def placed(tree, layout):
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)

    rows = jax.tree.map(lambda _: NamedSharding(mesh, parallel.ROWS), batch)
    run = jax.jit(lambda params, rows: parallel.laid_out(learns.gradient(params, rows), mesh))
    text = run.lower(placed(params, parallel.shardings(params, mesh)), placed(batch, rows)).compile().as_text()
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    results = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", text)
    shapes = [shape for result in results for shape in re.findall(r"\w+\[([\d,]*)\]", result)]
    return [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]


@contextlib.contextmanager
def compilations():
    """What XLA compiles, but for the copies and the optimiser's first filling that make a state."""
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("jax").addHandler(handler)
    with jax.log_compiles():
        yield said
    logging.getLogger("jax").removeHandler(handler)
    said[:] = [
        each for each in said if "Finished XLA compilation" in each and not re.search(r"init_fn|jit\(copy\)", each)
    ]


def gradient_of_a_sum(num_devices, backend):
    """Of `sum(w * x)` with respect to the replicated `w`, which is `sum(x)`."""
    mesh = parallel.local_mesh(num_devices)

    def fn(w, x_B):
        return parallel.total(jax.grad(lambda w: (w * x_B).sum())(w), mesh)

    return float(parallel.data_parallel(fn, mesh, backend)(jnp.float32(2), np.arange(8.0)))


def walks(num_devices, backend):
    """Random walks of eight tiles of three rows, each tile until its last row is out; one tile a call and device."""
    rng = np.random.default_rng(1)
    weights_DD = rng.standard_normal((16, 16)).astype(np.float32) / 4
    starts_RD = rng.standard_normal((24, 16)).astype(np.float32)
    limits_R = np.repeat(np.arange(8), 3).astype(np.int32) * 5 + 1

    def walk(weights_DD, tile):
        x_RD, limits_R = tile

        def step(carry):
            t, x_RD = carry
            noise_RD = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(jax.random.key(3), n), (16,)))(limits_R)
            return t + 1, jnp.where((t < limits_R)[:, None], jnp.tanh(x_RD @ weights_DD + noise_RD / 4), x_RD)

        t, x_RD = jax.lax.while_loop(lambda carry: (carry[0] < limits_R).any(), step, (0, x_RD))
        return x_RD, jnp.full_like(limits_R, t)

    run = parallel.split(walk, parallel.local_mesh(num_devices), backend) if num_devices else jax.jit(walk)
    size = 3 * (num_devices or 1)
    parts = [run(weights_DD, (starts_RD[r : r + size], limits_R[r : r + size])) for r in range(0, 24, size)]
    return [np.concatenate(arrays) for arrays in zip(*jax.device_get(parts), strict=True)]


def sharded(sizes):
    """What a larger Qwen samples and learns, and how many bytes of its state each device holds."""
    mesh = sizes and parallel.make_mesh(jax.devices(), *sizes)
    params = wide_params()
    if mesh:  # as a loader does it, one after the other
        place = parallel.placer(mesh)
        params = jax.tree_util.tree_map_with_path(lambda path, x: place((path[-1].key,), x), params)
    name = naming.tensors_hash(naming.to_tensors(params, WIDE, "bfloat16"))
    sample = sampling.make_sampler(WIDE, max_new_tokens=tiny.NEW_TOKENS, temperature=0.7)
    keys_PGM = np.arange(32, dtype=np.uint32).reshape(4, 4, 2)
    out = sample(params, sampling.make_tile([[3], [4, 5], [6, 7, 8], [9]], keys_PGM, prompt_slots=4))
    learns = learner.Learner(tiny.LEARNER, WIDE, mesh)
    logprobs = learns.logprobs(params, next(batches()))[0]
    after, metrics = train(learns, lambda: params, wide_batches)
    state, _ = learns.step(learns.init(params), wide_batches()[0], tiny.LEARNER.learning_rate)
    held = [[shard.data.nbytes for shard in leaf.addressable_shards] for leaf in jax.tree.leaves(state)]
    learned = {"logprobs": np.asarray(logprobs), "after": (after, metrics), "held": held}
    return {"name": name, "out": jax.device_get(out)} | learned


def move_a_checkpoint(folder):
    """A state that was saved on one mesh, as it comes back on others, and whether it is laid out as it is there."""
    state = learner.Learner(tiny.LEARNER, WIDE, parallel.make_mesh(jax.devices(), 4, 2)).init(wide_params())
    checkpoints, found = Checkpoints(folder / "checkpoints"), {"saved": jax.device_get(state)}
    checkpoints.save(1, [state], b"extra")
    for sizes in MESHES:
        mesh = sizes and parallel.make_mesh(jax.devices(), *sizes)
        like = learner.Learner(tiny.LEARNER, WIDE, mesh).init(wide_params())
        (back,), extra = checkpoints.restore(1, [like])
        assert extra == b"extra"
        same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), back, like)
        found[sizes] = jax.device_get(back), all(jax.tree.leaves(same))
    checkpoints.close()
    return found


def computed(function, folder):
    path = folder / "found.pickle"
    subprocess.run(
        [sys.executable, "-c", f"from tests import test_parallel; test_parallel.{function}({str(path)!r})"],
        check=True,
        env=os.environ | ENVIRONMENT,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return computed("on_eight_devices", tmp_path_factory.mktemp("devices"))


def assert_same_lessons(found, expected, start):
    (state, metrics), (wanted, wanted_metrics) = found, expected
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (wanted.params, start)), strict=True)]
    assert max(moved) > 2e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), state, wanted)
    for moment in ("mu", "nu"):  # linear and quadratic in the gradients, which are much smaller than the weights
        tiny.assert_close(getattr(state.opt_state[1], moment), getattr(wanted.opt_state[1], moment), 1e-5)
    for there, here in zip(metrics, wanted_metrics, strict=True):
        assert there.keys() == here.keys()
        for name, value in there.items():
            np.testing.assert_allclose(value, here[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("several", ["two, in parts", *BACKENDS])
def test_several_devices_learn_what_one_learns(found, several):
    assert_same_lessons(found[several], found["one"], tiny.params())


def test_both_backends_are_one_program(found):
    """`shard_map` and `jax.pmap` agree in every bit."""
    tiny.assert_bit_equal(found["shard_map"], found["pmap"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_program_of_a_step_is_compiled_once(found, backend):
    """Its sums, and what is made of them."""
    names = [said.partition("compilation of ")[2].split()[0] for said in found[backend, "compiled"]]
    assert len(names) == len(set(names)) == 2, names


def test_one_device_learns_what_the_definition_says(found):
    """So that the above cannot agree on a wrong thing: the first step's loss and gradient, from NumPy."""
    with tiny.optimizations(False):
        batch = next(batches())
        expected = tiny.grpo(tiny.params(), batch)
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(tiny.gradients(tiny.params(), batch))))
    for name, value in (expected | {"grad_norm": norm}).items():
        np.testing.assert_allclose(found["one"][1][0][name], value, rtol=1e-5, err_msg=name)


def test_the_gradient_of_a_replicated_value_is_summed_over_devices_once(found):
    assert found["gradients"] == [28.0] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_split_rows_are_in_every_bit_those_of_one_device_and_no_device_waits_for_another(found, backend):
    wanted, _ = found["walks"][None][backend]
    x_RD, steps_R = found["walks"][8][backend]
    assert len(np.unique(wanted[:, 0])) == 24
    np.testing.assert_array_equal(x_RD, wanted)
    np.testing.assert_array_equal(found["walks"][1][backend][0], wanted)
    np.testing.assert_array_equal(steps_R, np.repeat(np.arange(8), 3) * 5 + 1)  # its own last row's, not everybody's


def assert_sharded(there, whole):
    """It learns and samples what one device does, by the same name; no device holds more of a matrix than its part."""
    assert there["name"] == whole["name"]
    assert_same_lessons(there["after"], whole["after"], wide_params())
    np.testing.assert_allclose(there["logprobs"], whole["logprobs"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(there["out"].tokens_PGT, whole["out"].tokens_PGT)
    np.testing.assert_allclose(there["out"].logprobs_PGT, whole["out"].logprobs_PGT, rtol=0, atol=1e-5)
    state, _ = whole["after"]
    leaves = jax.tree.leaves(state)
    for leaf, held in zip(leaves, there["held"], strict=True):
        assert len(held) == 8 and (leaf.ndim < 2 or set(held) == {leaf.nbytes // 8})
    assert max(map(sum, zip(*there["held"], strict=True))) < 0.16 * sum(leaf.nbytes for leaf in leaves)


def test_split_parameters_learn_and_sample_what_whole_ones_do(found):
    assert_sharded(found[4, 2], found["whole"])


def test_on_eight_devices_every_preset_is_what_it_is_on_one(found):
    """Means over completions and maxima too: a device has more of them than another, or none."""
    one, eight = found["losses"]
    assert one.keys() == PRESETS.keys()
    for name, metrics in one.items():
        assert metrics["slope"] != 0 and metrics["importance_max"] > 1, name
        assert eight[name].keys() == metrics.keys()
        for key, value in metrics.items():
            np.testing.assert_allclose(eight[name][key], value, rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}")


def test_the_head_is_gathered_once_and_no_logits_are_added_up(tmp_path):
    """Of its size are two collectives, the head itself and its gradient, and none is larger."""
    found, head = computed("collectives", tmp_path), LARGE.vocab_size * LARGE.hidden_size
    assert max(found[8, 1]) == head and found[8, 1].count(head) == 2
    states = 128 // 4 * (tiny.PROMPT_SLOTS + tiny.NEW_TOKENS) * LARGE.hidden_size  # that a tensor's halves add up to
    assert max(found[4, 2]) == states and found[4, 2].count(head) == 2
    assert max(found["left alone"]) > 2 * head  # what all texts make of a layer is moved to weights, not these to texts


@pytest.mark.slow
def test_so_they_do_however_they_are_split(found, tmp_path):
    there = computed("on_other_meshes", tmp_path)
    for sizes in ((8, 1), (1, 8)):
        assert_sharded(there[sizes], found["whole"])
    assert_same_lessons(there["sharded, in parts"], found["one"], tiny.params())


@pytest.mark.parametrize("sizes", MESHES)
def test_a_checkpoint_of_one_mesh_is_restored_on_another(found, sizes):
    state, laid_out = found["moved"][sizes]
    tiny.assert_bit_equal(state, found["moved"]["saved"])
    assert laid_out


def test_every_parameter_has_a_rule_or_is_small():
    for config in (WIDE, tiny.CONFIG):
        for path, shape in jax.tree_util.tree_leaves_with_path(
            model.param_shapes(config), is_leaf=lambda x: isinstance(x, tuple)
        ):
            name = path[-1].key
            assert name in parallel.RULES or name.endswith("norm")
            assert len(parallel.RULES.get(name, ())) <= len(shape)
            if len(shape) == 2:
                assert set(parallel.RULES[name]) == {parallel.FSDP, parallel.TENSOR}


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = jax.sharding.AbstractMesh((2, 2, 4), (parallel.DATA, parallel.FSDP, parallel.TENSOR))
    assert parallel.spec("embed", (21, 16), mesh) == P(None, "fsdp")
    assert parallel.spec("embed", (24, 15), mesh) == P("tensor", None)
    assert parallel.spec("q_bias", (6,), mesh) == P() and parallel.spec("norm", (16,), mesh) == P()


def test_a_mesh_has_as_many_devices_as_asked_for(found):
    assert found["sizes"] == [8, 1, 3, 8]
    here = jax.local_device_count()
    with pytest.raises(ValueError, match=rf"{here + 1} devices are asked for, this process has {here}"):
        parallel.local_mesh(here + 1)
    with pytest.raises(ValueError, match=r"fsdp=3 times tensor=2 takes a multiple of 6 devices, and there are 8"):
        parallel.make_mesh([None] * 8, 3, 2)
