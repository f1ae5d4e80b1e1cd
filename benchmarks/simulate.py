"""What a node of a simulated swarm costs, by the size of the swarm; and fast against exact simulation.

    python -m benchmarks.simulate                      rows for 8, 64, 256 and 1,000 nodes; an hour on a busy machine
    python -m benchmarks.simulate --nodes 8 64         for these; --processes: 8 nodes as processes, too
    python -m benchmarks.simulate --modes              fast against exact, about three minutes on 2 CPU cores

Sizes: configs/solo.py with so many nodes, one stage, 4 local and 4 external groups, each reading 7 authors a round
(`swarm.reads`), without checkpoints, each size in a process of its own. Printed is one JSON line a row: processor time
of a node's round, from the end of the first round on, so that it hardly matters who else has the machine; `host` is the
share of it that Python's thread spends outside of compiled programs; and memory, beside the weights and optimiser of a
node. Evaluations are of 8 problems, at the start and the end. Processes: the same by the difference of two lengths of
the run, so that the start does not count.

Modes: fast samples a node's request as one tile; exact through fixed tiles, so that a completion's bits depend on
nothing else that is asked for. Rounds/s of both, interleaved, and the largest difference of a sampled log-prob and the
share of differing completions in the first round, where both start from the same weights. (Later rounds differ more:
Adam's first steps are nearly the gradient's sign, so rounding grows.)
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from configs import quickstart, solo
from rlswarm_jax import compilation, machine
from rlswarm_jax.game.effects import Sampled
from rlswarm_jax.game.player import RoundReport
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.grpo import learner
from rlswarm_jax.journal import Journal
from rlswarm_jax.machine import hardware
from rlswarm_jax.running import build, simulated

ROUNDS, REPEATS = 20, 3
NODES, READS = (8, 64, 256, 1000), 7
NODE_ROUNDS = 512  # that are measured, about: two rounds at least
SHORT, LONG = 10, 40  # rounds of the runs as processes


def sized(nodes: int, rounds: int) -> ml_collections.ConfigDict:
    config = solo.get_config()
    config.swarm.nodes, config.swarm.reads, config.rounds = nodes, READS, rounds
    config.swarm.local_groups = config.swarm.external_groups = 4
    config.learn.learning_rate = 1e-4
    config.evaluation.every, config.evaluation.problems, config.evaluation.rows = rounds, 8, 8
    return config


def size(nodes: int) -> dict[str, float]:
    """Measures one size in this process. Milliseconds of a node's round, and bytes of a node."""
    rounds = max(3, 1 + -(-NODE_ROUNDS // nodes))
    config, before = sized(nodes, rounds), resident()
    spent, made_of = [0.0], compilation._Kept._program

    def timed(self: Any, args: tuple, leaves: list, tree: Any) -> Any:
        program = made_of(self, args, leaves, tree)

        def run(*args: Any) -> Any:
            began = time.thread_time()
            found = jax.block_until_ready(program(*args))
            spent[0] += time.thread_time() - began
            return found

        return run

    compilation._Kept._program = timed  # type: ignore[method-assign]
    made = build.build(config, simulated.identities(config))
    ends: list[tuple[float, float, float]] = []

    def on_round(report: RoundReport) -> None:
        if report.round < rounds - 1:  # the last one is evaluated
            ends.append((time.process_time(), time.thread_time() - spent[0], time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.sqlite", together=simulated.JOURNAL_ROWS)
        simulated.make_simulation(config, made, journal, on_round).run()
        journal.close()
    first, last, played = ends[nodes - 1], ends[-1], len(ends) - nodes
    total, host, wall = ((b - a) / played for a, b in zip(first, last, strict=True))
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(made.engine.state(0)))
    memory = machine.peak_memory_mb() * 1e6 - before
    found = {"cpu_ms": 1e3 * total, "host": host / total, "rounds_per_s": 1 / wall, "state_bytes": state}
    return found | {"bytes": memory / nodes, "peak_mb": machine.peak_memory_mb(), "rounds": rounds}


def resident() -> float:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sizes(nodes: Sequence[int]) -> Iterator[dict]:
    smallest = None
    for count in nodes:
        command = [sys.executable, "-m", "benchmarks.simulate", "--one", str(count)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
        smallest = smallest or found["cpu_ms"]
        config = {"nodes": count, "reads": READS, "rounds": found["rounds"], "clock": "process"}
        measured = {name: round(found[name], 3) for name in ("host", "rounds_per_s", "peak_mb", "state_bytes")}
        ratio = round(found["cpu_ms"] / smallest, 2)
        versus = f"{nodes[0]} nodes"
        row = {"benchmark": "simulate: a node's round", "config": config, "value": round(found["cpu_ms"], 1)}
        yield row | {"unit": "CPU ms", "versus": versus, "ratio": ratio, "measured": measured}
        row = {"benchmark": "simulate: memory of a node", "config": config, "value": round(found["bytes"] / 1e6, 2)}
        yield row | {"unit": "MB", "versus": "its state", "ratio": round(found["bytes"] / found["state_bytes"], 1)}


def processes() -> Iterator[dict]:
    """8 nodes as processes against simulated ones: processor time of a node's round."""
    costs = {driver: _length(driver, LONG) - _length(driver, SHORT) for driver in ("simulate", "live")}
    each = {driver: 1e3 * cost / (8 * (LONG - SHORT)) for driver, cost in costs.items()}
    config = {"nodes": 8, "reads": READS, "rounds": LONG - SHORT, "clock": "process"}
    row = {"benchmark": "simulate: a node's round as a process", "config": config, "value": round(each["live"], 1)}
    yield row | {"unit": "CPU ms", "versus": "simulated", "ratio": round(each["live"] / each["simulate"], 2)}


def _length(driver: str, rounds: int) -> float:
    """Processor seconds of a run."""
    config, before = sized(8, rounds), resource.getrusage(resource.RUSAGE_CHILDREN)
    changed = {"driver": driver, "rounds": rounds, "swarm.nodes": 8, "swarm.reads": READS, "wandb.mode": "disabled"}
    changed |= {"swarm.local_groups": 4, "swarm.external_groups": 4, "learn.learning_rate": 1e-4}
    changed |= {f"evaluation.{name}": config.evaluation[name] for name in ("every", "problems", "rows")}
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--config.{name}={value}" for name, value in changed.items()]
        command = [sys.executable, "-m", "experiments.run", "--config", "configs/solo.py", f"--workdir={folder}/run"]
        subprocess.run([*command, *flags], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make(exact: bool) -> tuple[ml_collections.ConfigDict, build.Pieces]:
    config = quickstart.get_config("spoiled-simulate")
    config.rounds, config.sampling.exact = ROUNDS, exact
    config.evaluation.every = ROUNDS  # one evaluation at the start, one at the end: rounds are what is timed
    config.evaluation.problems = config.evaluation.rows = 8
    return config, build.build(config, simulated.identities(config))


def seconds(config: ml_collections.ConfigDict, made: build.Pieces, start: list[learner.TrainState]) -> float:
    """Of one run of all rounds from the start."""
    made.engine.set_states(start)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.sqlite")
        simulation = simulated.make_simulation(config, made, journal, lambda _: None)
        started = time.perf_counter()
        simulation.run()
        journal.close()
        return time.perf_counter() - started


def first_samples(made: build.Pieces) -> list[Sampled]:
    """All nodes' completions of the first round."""
    requests = {}
    for node, game in enumerate(made.games):
        round_ = play_round(game, NodeState())
        round_.send(None)  # Evaluate
        requests[node] = round_.send({})  # Sample
    found = made.engine.sample(requests)
    return [s for node in sorted(found) for group in found[node] for s in group]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--modes", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(size(given.one)))
    elif given.modes:
        modes()
    else:
        about = {
            "hardware": hardware(),
            "versions": {"python": platform.python_version(), "jax": metadata.version("jax")},
        }
        for row in sizes(given.nodes):
            print(json.dumps(row | about), flush=True)
        for row in processes() if given.processes else ():
            print(json.dumps(row | about), flush=True)


def modes() -> None:
    fast, exact = make(False), make(True)
    starts = [[jax.device_get(made.engine.state(n)) for n in range(len(made.games))] for _, made in (fast, exact)]
    pairs = list(zip(first_samples(fast[1]), first_samples(exact[1]), strict=True))
    differing = float(np.mean([a.tokens != b.tokens for a, b in pairs]))
    gaps = [np.abs(np.subtract(a.logprobs, b.logprobs)).max() for a, b in pairs if a.tokens == b.tokens]
    seconds(*fast, starts[0]), seconds(*exact, starts[1])  # compile
    times = [(seconds(*fast, starts[0]), seconds(*exact, starts[1])) for _ in range(REPEATS)]
    about = {
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "jax": metadata.version("jax")},
    }
    config = {"nodes": len(fast[1].games), "rounds": ROUNDS, "repeats": REPEATS}

    def row(name: str, value: float, unit: str, versus: str | None = None, ratio: float | None = None) -> None:
        fields = {"benchmark": name, "config": config, "value": value, "unit": unit, "versus": versus, "ratio": ratio}
        print(json.dumps(fields | about))

    ratio = statistics.median(b / a for a, b in times)
    rate = ROUNDS / statistics.median(a for a, _ in times)
    row("simulate: fast rounds of the quickstart swarm", round(rate, 2), "rounds/s", "exact", round(ratio, 2))
    row("simulate: largest log-prob difference of fast and exact", float(f"{max(gaps):.2e}"), "nats")
    row("simulate: differing completions of fast and exact", differing, "share")


if __name__ == "__main__":
    main()
