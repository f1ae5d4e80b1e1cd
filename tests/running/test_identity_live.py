"""A node that moves and then gets another key, as a peer that plays on meets it: real processes, real connections."""

import contextlib
import json
import signal
from pathlib import Path

import pytest

from experiments.identity import main
from rlswarm_jax import identity, keystore
from rlswarm_jax.metrics import read_rows
from tests.running.test_single_node import start, wait_until

pytestmark = pytest.mark.slow


def played(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return read_rows(path) if path.exists() else []


@contextlib.contextmanager
def playing(workdir: Path, *arguments: str):
    """A node that plays without end, stopped at the end; once it has played a round more than before."""
    before = len(played(workdir))
    process = start(workdir, "--config.rounds=0", "--config.swarm.deadline=5", *arguments)
    try:
        wait_until(lambda: len(played(workdir)) > before or process.poll() is not None, 240)
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


def test_a_peer_hears_a_node_that_moved_as_ever_and_then_its_new_key_and_not_the_old_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(keystore, "KDF_WORK", 2)
    monkeypatch.setenv(keystore.VARIABLE, "correct horse")
    peer, here, there, later = (tmp_path / name for name in ("peer", "here", "there", "later"))
    with playing(peer):
        bootnodes = f"--config.swarm.bootnodes={json.loads((peer / 'node.json').read_text())['addresses']!r}"

        def heard(author: bytes, after: int = 0) -> bool:
            return any(row.get(f"received_from/{author.hex()}") for row in played(peer)[after:])

        with playing(here, bootnodes):
            own = identity.load(here / "node.key").author
            wait_until(lambda: heard(own), 240)
        assert main(["export", str(here), "--to", str(tmp_path / "node.tar")]) == 0
        stopped = start(here, "--resume", "--config.rounds=0", "--config.swarm.deadline=5", bootnodes)
        _, complained = stopped.communicate(timeout=120)
        assert stopped.returncode == 2 and "was moved to another machine" in complained
        assert main(["import", str(tmp_path / "node.tar"), "--to", str(there), "--plain"]) == 0
        last = played(there)[-1]["round"]
        before = len(played(peer))
        with playing(there, "--resume", bootnodes):
            wait_until(lambda: heard(own, before), 240)
        assert played(there)[-1]["round"] > last
        assert all(row["records/equivocations"] == 0 for row in played(peer))

        assert main(["rotate", str(there), "--to", str(later), "--plain"]) == 0
        new = identity.load(later / "node.key").author
        with playing(later, bootnodes):
            wait_until(lambda: heard(new), 240)
        assert played(peer)[-1]["peers/rotated"] == 1
        names = [identity.friendly_name(one) for one in (own, new)]
        assert f"{names[0]} speaks as {names[1]} from round" in (peer / "log.txt").read_text()
        stopped = start(there, "--resume", "--config.rounds=0", "--config.swarm.deadline=5", bootnodes)
        _, complained = stopped.communicate(timeout=120)
        assert stopped.returncode == 2 and "was given up for" in complained
