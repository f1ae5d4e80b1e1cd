"""What a node's start costs, from its process's first instruction to the line of its first round.

    python -m benchmarks.startup        about two minutes on 2 CPU cores

A node alone (configs/node.py), and each of the four of configs/quickstart.py with their chain, after one run of each
that fills the compilation cache. Prints one JSON line a row: processor seconds of the node's own process, all threads,
median over repeats (and nodes), and wall seconds beside them; in parts, and in all. What it starts is not counted: no
task of these configs scores in processes, and wandb is off until a second row of lines turns it on.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ROUNDS, REPEATS = 2, 3
MARKS = "marks.json"
RUNS = {"alone": "configs/node.py", "one of four": "configs/quickstart.py"}


def node(folder: Path) -> int:
    """Plays as `rlswarm_jax.running.node` does, and writes down when each part of the start was done."""
    began, marks = time.time(), {}

    def mark(name: str) -> None:
        marks.setdefault(name, (time.process_time(), time.time() - began))

    def after(owner: Any, name: str, then: Callable[[], None]) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            found = original(*args, **options)
            then()
            return found

        setattr(owner, name, wrapped)

    from rlswarm_jax.metrics import MetricsLog
    from rlswarm_jax.running import node
    from rlswarm_jax.swarm.gossip import Gossip

    mark("imports of the network")

    def listening() -> None:
        mark("gossip")
        from rlswarm_jax.running import build
        from rlswarm_jax.running.record import Recorder

        mark("imports of the learner")
        after(build, "build", lambda: mark("build"))
        after(build.Pieces, "compile", lambda: mark("programs"))
        after(Recorder, "open", lambda: mark("metrics"))

    def played() -> None:
        if "first round" not in marks:
            mark("first round")
            (folder / MARKS).write_text(json.dumps(marks))

    after(Gossip, "start", listening)
    after(MetricsLog, "write", played)
    return node.main(folder)


def swarm(config: str, workdir: Path, *more: str) -> int:
    """A run whose nodes are started as `node`."""
    from experiments.run import run
    from rlswarm_jax.running import arguments, live

    live._command = lambda member: [sys.executable, "-m", "benchmarks.startup", "--node", str(member.folder)]
    words = [f"--config={config}", f"--config.rounds={ROUNDS}", f"--workdir={workdir}", *more]
    parsed = arguments.parse(words)
    if parsed.config.driver == "node":  # its own parent
        with parsed.config.unlocked():
            parsed.config.driver = "live"
    return run(parsed)


def measured(name: str, workdir: Path, wandb: str) -> list[dict[str, list[float]]]:
    """The marks of a run's nodes."""
    command = [sys.executable, "-m", "benchmarks.startup", "--swarm", RUNS[name], str(workdir)]
    done = subprocess.run([*command, f"--config.wandb.mode={wandb}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(path.read_text()) for path in sorted(workdir.glob(f"node-*/{MARKS}"))]


def main() -> None:
    about = {
        "hardware": _hardware(),
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in ("jax", "libp2p")},
    }

    def row(name: str, of: str, seconds: list[list[float]]) -> None:
        cpu, wall = (round(statistics.median(values), 2) for values in zip(*seconds, strict=True))
        config = {"run": of, "rounds": ROUNDS, "repeats": REPEATS}
        fields = {"benchmark": f"startup, {of}: {name}", "config": config, "value": cpu, "unit": "CPU s", "wall": wall}
        print(json.dumps(fields | {"versus": None, "ratio": None} | about), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            measured(name, Path(folder) / f"warm {name}", "disabled")
            found = [
                marks
                for repeat in range(REPEATS)
                for marks in measured(name, Path(folder) / f"{name} {repeat}", "disabled")
            ]
            parts = list(found[0])
            for before, part in zip([None, *parts], parts, strict=False):
                start = [marks[before] if before else [0.0, 0.0] for marks in found]
                end = [marks[part] for marks in found]
                row(part, name, [[e - s for e, s in zip(*both, strict=True)] for both in zip(end, start, strict=True)])
            row("to the first round's line", name, [marks[parts[-1]] for marks in found])
            kept = [measured(name, Path(folder) / f"{name} wandb {repeat}", "offline") for repeat in range(REPEATS)]
            row("the same with wandb offline", name, [marks[parts[-1]] for run in kept for marks in run])


def _hardware() -> str:
    from rlswarm_jax.machine import hardware

    return hardware()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--node"]:
        sys.exit(node(Path(sys.argv[2])))
    if sys.argv[1:2] == ["--swarm"]:
        sys.exit(swarm(sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]))
    main()
