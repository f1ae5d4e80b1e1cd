"""Nodes alone, played beside a local swarm: what the same rounds come to without peers.

    python -m rlswarm_jax.running.alone DIR        those whose folders a swarm's process has prepared in DIR

Each is a run of its own, simulated, in a folder of its own.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ml_collections

from rlswarm_jax import launch
from rlswarm_jax.errors import DONE
from rlswarm_jax.files import ALONE_FOLDER, CONFIG_FILE, SAMPLED, TOGETHER, write_whole
from rlswarm_jax.records.schema import MAX_GROUPS
from rlswarm_jax.running import folder
from rlswarm_jax.running.arguments import Arguments, code_of

STOP_SECONDS = 10.0


def groups(config: ml_collections.ConfigDict) -> dict[str, int]:
    """By kind, the groups that a node alone answers in a round: as many as one of the swarm's samples, and as all of
    them do, as far as a record has room for. (All of them update their weights as often.)
    """
    sampled = config.swarm.local_groups + config.game.shared * (config.game.stages - 1)
    return {SAMPLED: sampled, TOGETHER: min(MAX_GROUPS, sampled * config.swarm.nodes)}


def configs(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """By kind, of a node alone that differs from those of the swarm in nothing else; what it samples nobody checks."""
    found = {}
    for kind, count in groups(config).items():
        own = ml_collections.ConfigDict(json.loads(config.to_json_best_effort()))
        own.driver, own.name = "simulate", f"{config.name}-alone-{kind}"
        own.swarm.nodes = own.game.stages = 1
        own.swarm.local_groups, own.swarm.external_groups = count, 0
        own.audit.auditors = own.audit.rechecks = 0
        own.swarm.alone, own.chain.endpoint, own.wandb.mode = False, "none", "disabled"
        found[kind] = own.lock()
    return found


def command(directory: Path) -> list[str]:
    return [sys.executable, "-m", "rlswarm_jax.running.alone", str(directory)]


@contextmanager
def beside(
    config: ml_collections.ConfigDict, workdir: Path, environment: Mapping[str, str]
) -> Iterator[Callable[[], bool]]:
    """While the swarm plays they do, with what it leaves of the processor. Yields what says whether they are done."""
    if not config.swarm.alone:
        yield lambda: True
        return
    directory = workdir / ALONE_FOLDER
    for kind, own in configs(config).items():
        (directory / kind).mkdir(parents=True, exist_ok=True)
        write_whole(directory / kind / CONFIG_FILE, json.dumps(json.loads(own.to_json_best_effort()), indent=2) + "\n")
    with (directory / launch.LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            command(directory),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield lambda: process.poll() is not None
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(directory: Path) -> int:
    """Plays them one after the other, those that are not done, and ends with the parent."""
    launch.follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    os.nice(10)
    from rlswarm_jax.running import simulated

    def play() -> int:
        for path in sorted(directory.glob(f"*/{CONFIG_FILE}")):
            if folder.status(path.parent) != "finished":
                config = folder.read_config(path.parent)
                if code := simulated.run(Arguments(config, path.parent, resume=True)):
                    return code
        return DONE

    return code_of(play)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
