"""Puts a simulated swarm together from its config, runs it, and leaves a summary and a report."""

import collections
import dataclasses
import json
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from rich.console import Console

from experiments import report
from experiments.cli import Arguments, UsageError
from experiments.view import SwarmView
from rlswarm_jax import assets, identity, qwen, tasks
from rlswarm_jax.checkpoint import CheckpointError, Checkpoints
from rlswarm_jax.engine import Engine, EngineConfig
from rlswarm_jax.game.prompts import choose_format
from rlswarm_jax.game.round import Game
from rlswarm_jax.grpo.learner import LearnerConfig
from rlswarm_jax.journal import Journal, JournalError
from rlswarm_jax.metrics import MetricsError, MetricsLog, read_rows
from rlswarm_jax.qwen.sampling import PromptError
from rlswarm_jax.simulate import RoundReport, Simulation, Timing
from rlswarm_jax.swarm.virtual import Partition, VirtualNetwork

BUDGETS = {"compact-1": (16, 12), "chat-1": (512, 256)}  # prompt and completion tokens, where the config says 0
CONFIG_FILE, SUMMARY_FILE, METRICS_FILE = "config.json", "summary.json", "metrics.jsonl"


def run(arguments: Arguments) -> int:
    """Runs until done or Ctrl-C. Raises UsageError for whatever the user can mend."""
    config, workdir, console = arguments.config, arguments.workdir, Console()
    resumes = prepare_folder(config, workdir, arguments.resume)
    try:
        with _stop_on_signal() as stopping:
            return _run(config, workdir, resumes, console, stopping)
    except (CheckpointError, JournalError, MetricsError, PromptError, tasks.TaskError) as error:
        raise UsageError(str(error)) from error


def _run(config: ml_collections.ConfigDict, workdir: Path, resumes: bool, console: Console, stopping: list[int]) -> int:
    started = time.monotonic()
    try:
        pieces = build(config, console)
    except ValueError as error:
        raise UsageError(str(error)) from error
    journal = Journal(workdir / "journal.sqlite")
    checkpoints = Checkpoints(workdir / "checkpoints")
    log: MetricsLog | None = None
    view: SwarmView | None = None
    names = [identity.friendly_name(i.author) for i in pieces.identities]
    before = _earlier_seconds(workdir) if resumes else 0.0

    def on_round(found: RoundReport) -> None:
        assert log is not None and view is not None
        seconds = round(before + time.monotonic() - started, 3)
        row = {"node": found.node, "name": names[found.node], "round": found.round, "virtual_seconds": found.at}
        row |= {"wall_seconds": seconds} | found.metrics
        log.write(row)
        view.update(row)

    simulation = Simulation(
        pieces.games,
        pieces.identities,
        pieces.engine,
        pieces.network,
        pieces.timing,
        journal,
        on_round,
        checkpoints=checkpoints,
        checkpoint_every=config.checkpoint_every,
        metrics_offset=lambda: log.offset if log is not None else 0,
    )
    keep = 0
    if resumes:
        keep = simulation.restore() or 0
        console.print(f"resuming at round {min(node.state.round for node in simulation.nodes)} of {config.rounds}")
    log = MetricsLog(workdir / METRICS_FILE, keep)
    mode = log.start_wandb(
        config.wandb.mode,
        workdir=workdir,
        project=config.wandb.project,
        group=f"{config.name}-{config.seed}",
        config=config.to_dict(),
    )
    if mode != "disabled":
        console.print(f"wandb: {mode}")
    view = SwarmView(console, names, config.rounds, [node.state.round for node in simulation.nodes])
    with view:
        simulation.run(lambda: bool(stopping))
    journal.close()
    checkpoints.close()
    base = _base_accuracy(config, pieces)
    seconds = before + time.monotonic() - started
    summary = summarise(config, simulation, names, read_rows(workdir / METRICS_FILE), base, seconds)
    (workdir / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n")
    log.close({"held_out_accuracy": summary["held_out_accuracy"]})
    report.write_report(workdir)
    report.print_summary(workdir, console)
    if not simulation.finished:
        console.print(f"stopped; the same command with --resume goes on. Report: {workdir / 'report.md'}")
        return 130
    console.print(f"report: {workdir / 'report.md'}")
    return 0


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What a config describes, made real."""

    games: list[Game]
    identities: list[identity.Identity]
    engine: Engine
    network: VirtualNetwork
    timing: Timing


def build(config: ml_collections.ConfigDict, console: Console | None = None) -> Pieces:
    """Raises ValueError or TaskError that says which field of the config cannot be."""
    _check(config)
    path = assets.SPOILED if config.model.path == "embedded" else config.model.path
    policy = qwen.load(path)
    prompt_format = choose_format(config.model.prompts, policy.tokenizer)
    prompt_budget, completion_budget = BUDGETS[prompt_format.name]
    max_prompt_tokens = config.sampling.max_prompt_tokens or prompt_budget
    max_new_tokens = config.sampling.max_new_tokens or completion_budget
    if console is not None:
        console.print(
            f"{policy.config.model_type} with {policy.config.num_parameters:,} parameters from {path}, "
            f"{config.swarm.nodes} nodes on {jax.local_device_count()} {jax.default_backend()} device(s)"
        )
    mixture = tasks.make_mixture(config.tasks.to_dict())
    identities = [identity.simulated(config.seed, node) for node in range(config.swarm.nodes)]
    fingerprint = qwen.fingerprint(policy.params)
    games = [
        Game(
            swarm=config.name,
            seed=config.seed,
            author=node.author,
            mixture=mixture,
            tokenizer=policy.tokenizer,
            prompt_format=prompt_format,
            tokenizer_fingerprint=policy.tokenizer.fingerprint,
            weights_fingerprint=fingerprint,
            eos_token_ids=policy.config.eos_token_ids,
            rounds=config.rounds,
            local_groups=config.swarm.local_groups,
            external_groups=config.swarm.external_groups,
            group_size=config.sampling.group_size,
            temperature=config.sampling.temperature,
            max_new_tokens=max_new_tokens,
            max_staleness=config.swarm.max_staleness,
            evaluate_every=config.evaluation.every,
        )
        for node in identities
    ]
    engine_config = EngineConfig(
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        group_size=config.sampling.group_size,
        max_groups=config.swarm.local_groups + config.swarm.external_groups,
        temperature=config.sampling.temperature,
        exact=config.sampling.exact,
        exact_rows=config.sampling.exact_rows,
        held_out_problems=config.evaluation.problems,
        held_out_rows=min(config.evaluation.rows, config.evaluation.problems),
        positive_only_external=config.learn.positive_only_external,
        external_correction=config.learn.external_correction,
        advantage_scale=config.learn.advantage_scale,
        updates_per_round=config.learn.updates_per_round,
    )
    learner_config = LearnerConfig(
        learning_rate=config.learn.learning_rate,
        clip_low=config.learn.clip_low,
        clip_high=config.learn.clip_high,
        temperature=config.sampling.temperature,
        max_new_tokens=max_new_tokens,
        weight_decay=config.learn.weight_decay,
        max_grad_norm=config.learn.max_grad_norm,
        microbatch_rows=config.learn.microbatch_rows,
    )
    engine = Engine(policy, mixture, prompt_format, engine_config, learner_config, config.swarm.nodes)
    simulated = config.simulation
    network = VirtualNetwork(
        config.seed,
        config.swarm.nodes,
        simulated.latency,
        simulated.jitter,
        simulated.loss,
        [Partition(start, end, groups) for start, end, groups in simulated.partitions],
    )
    timing = Timing(
        simulated.sample, simulated.learn, simulated.evaluate, simulated.deadline, tuple(simulated.slowdown)
    )
    return Pieces(games, identities, engine, network, timing)


def _check(config: ml_collections.ConfigDict) -> None:
    limits = {
        "rounds": (config.rounds, 1),
        "swarm.nodes": (config.swarm.nodes, 1),
        "swarm.local_groups": (config.swarm.local_groups, 1),
        "swarm.external_groups": (config.swarm.external_groups, 0),
        "sampling.group_size": (config.sampling.group_size, 2),
        "sampling.exact_rows": (config.sampling.exact_rows, 1),
        "evaluation.problems": (config.evaluation.problems, 1),
        "evaluation.every": (config.evaluation.every, 1),
        "evaluation.rows": (config.evaluation.rows, 1),
        "learn.updates_per_round": (config.learn.updates_per_round, 1),
        "checkpoint_every": (config.checkpoint_every, 1),
    }
    for field, (value, least) in limits.items():
        if value < least:
            raise ValueError(f"config.{field} is {value}; it must be at least {least}.")
    if config.sampling.temperature <= 0:
        raise ValueError(f"config.sampling.temperature is {config.sampling.temperature}; it must be positive.")
    choices = {
        "learn.advantage_scale": (config.learn.advantage_scale, ("std", "none")),
        "learn.external_correction": (config.learn.external_correction, ("reencode", "behaviour")),
        "wandb.mode": (config.wandb.mode, ("auto", "online", "offline", "disabled")),
    }
    for field, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"config.{field} is {value!r}; expected one of {', '.join(allowed)}.")


def prepare_folder(config: ml_collections.ConfigDict, workdir: Path, resume: bool) -> bool:
    """Makes the folder ready; returns whether there is a run in it to go on with."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        stored = workdir / CONFIG_FILE
        wanted = json.loads(config.to_json_best_effort())
        earlier = json.loads(stored.read_text()) if stored.exists() else None
        finished = earlier is not None and _status(workdir) == "finished"
        if finished:
            aside = workdir.with_name(f"{workdir.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
            workdir.rename(aside)
            print(f"the finished run there was moved to {aside}")
            workdir.mkdir()
            earlier = None
        if earlier is None:
            if any(workdir.iterdir()):
                raise UsageError(f"{workdir} holds files but no run: choose another --workdir.")
            if not os.access(workdir, os.W_OK):
                raise PermissionError(13, "Permission denied")
            stored.write_text(json.dumps(wanted, indent=2) + "\n")
            return False
    except OSError as error:
        raise UsageError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UsageError(f"{workdir / CONFIG_FILE} is not JSON; choose another --workdir.") from None
    if not resume:
        raise UsageError(f"{workdir} holds an unfinished run: add --resume to go on, or choose another --workdir.")
    differing = _first_difference(earlier, wanted)
    if differing:
        raise UsageError(f"the run in {workdir} has another config.{differing}: choose another --workdir.")
    return True


def _status(workdir: Path) -> str | None:
    try:
        return json.loads((workdir / SUMMARY_FILE).read_text())["status"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _earlier_seconds(workdir: Path) -> float:
    rows = read_rows(workdir / METRICS_FILE) if (workdir / METRICS_FILE).exists() else []
    return max((row["wall_seconds"] for row in rows), default=0.0)


def _first_difference(ours: Any, theirs: Any, path: str = "") -> str | None:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            found = _first_difference(ours.get(name), theirs.get(name), f"{path}.{name}" if path else name)
            if found:
                return found
        return None
    return None if ours == theirs else path


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of the first; a second one stops at once."""
    received: list[int] = []

    def handler(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print("\nstopping after what is being computed ...", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _base_accuracy(config: ml_collections.ConfigDict, pieces: Pieces) -> dict[str, float] | None:
    """Held-out accuracy of the embedded model before it was spoiled; there is no such thing for other models."""
    if config.model.path != "embedded":
        return None
    return pieces.engine.evaluate_params(qwen.load(assets.BASE).params)


def summarise(
    config: ml_collections.ConfigDict,
    simulation: Simulation,
    names: list[str],
    rows: list[dict[str, Any]],
    base: dict[str, float] | None,
    seconds: float,
) -> dict[str, Any]:
    """The contents of summary.json."""
    per_node = [[row for row in rows if row["node"] == node] for node in range(len(names))]
    author_names = {n.game.author.hex(): name for n, name in zip(simulation.nodes, names, strict=True)}

    def total(name: str, of: list[dict[str, Any]] = rows) -> float:
        return sum(row.get(name, 0.0) for row in of)

    def by_suffix(prefix: str, of: list[dict[str, Any]] = rows) -> dict[str, int]:
        found: collections.Counter[str] = collections.Counter()
        for row in of:
            found.update({k.removeprefix(prefix): int(v) for k, v in row.items() if k.startswith(prefix)})
        return dict(sorted(found.items()))

    def first(name: str) -> dict[str, float | None]:
        found = (next((row[name] for row in own if name in row), None) for own in per_node)
        return dict(zip(names, found, strict=True))

    def mean(values: dict[str, float | None]) -> float | None:
        known = [v for v in values.values() if v is not None]
        return float(np.mean(known)) if known else None

    local, external = total("learn/rows_local"), total("learn/rows_external")
    task_names = sorted(config.tasks)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "name": config.name,
        "status": "finished" if simulation.finished else "stopped",
        "seed": config.seed,
        "nodes": config.swarm.nodes,
        "rounds": config.rounds,
        "rounds_done": {name: len(own) for name, own in zip(names, per_node, strict=True)},
        "wall_seconds": round(seconds, 1),
        "peak_memory_mb": round(usage / (1024 if sys.platform == "linux" else 1024**2)),
        "held_out_problems": config.evaluation.problems,
        "held_out_accuracy": {
            "before": first("held_out/accuracy"),
            "after": first("final/accuracy"),
            "base": base and base["accuracy"],
            "per_task": {
                "before": {t: mean(first(f"held_out/accuracy/{t}")) for t in task_names},
                "after": {t: mean(first(f"final/accuracy/{t}")) for t in task_names},
                "base": base and {t: base[f"accuracy/{t}"] for t in task_names if f"accuracy/{t}" in base},
            },
        },
        "weights": {name: qwen.fingerprint(simulation.weights(node)) for node, name in enumerate(names)},
        "external_fraction": round(external / max(local + external, 1.0), 4),
        "samples": {
            "generated": len(rows) * config.swarm.local_groups * config.sampling.group_size,
            "trained_local": int(local),
            "trained_external": int(external),
        },
        "records": {
            "published": int(total("records/published")),
            "received": int(total("records/received")),
            "rejected": by_suffix("records/rejected/"),
            "unused_groups": by_suffix("groups/unused/"),
        },
        "learned_from": {
            name: {author_names[a]: n for a, n in by_suffix("learned_from/", own).items()}
            for name, own in zip(names, per_node, strict=True)
        },
        "config": json.loads(config.to_json_best_effort()),
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in ("jax", "flax", "optax", "reasoning-gym")},
        "hardware": hardware(),
    }


def hardware() -> str:
    """Processor, cores and accelerator, in words."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    accelerator = "" if jax.default_backend() == "cpu" else f", {jax.devices()[0].device_kind}"
    return f"{model}, {os.cpu_count()} cores{accelerator}"
