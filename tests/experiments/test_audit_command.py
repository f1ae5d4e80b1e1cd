"""The check of claims as a user runs it: on what is in folders, and on a real run."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from experiments import audit as command
from rlswarm_jax import files, identity
from rlswarm_jax.audit.evidence import read_journals
from rlswarm_jax.journal import Entry, Journal, JournalError
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import build, simulated
from rlswarm_jax.tasks.verifier import Verifier
from tests.audit.chained import World, play
from tests.game.hand_driver import ALICE, BOB, TASKS, mixture
from tests.small import LOCAL, SHAPES, SHARED

CHECKOUT = Path(__file__).parent.parent.parent
CONFIG = {"chain": {"endpoint": "devnet", "id": 0}}


def leave(world: World, directory: Path, heard: bool = True) -> Path:
    """The folders of a swarm's nodes, with their journals."""
    for number, (who, said) in enumerate(world.said.items()):
        node = directory / f"node-{number}"
        node.mkdir(parents=True)
        (node / files.CONFIG_FILE).write_text(json.dumps(CONFIG))
        journal = Journal(node / files.JOURNAL_FILE)
        others = [signed.raw for other, theirs in world.said.items() if other is not who for signed in theirs]
        for step, signed in enumerate(said):
            raw = msgspec.msgpack.encode(signed.raw)
            journal.write(Entry(0, signed.record.round, 2 * step, "Publish", raw, 0.0))
            gathered = [*others[step :: len(said)], b"no record"] if heard else []
            journal.write(Entry(0, signed.record.round, 2 * step + 1, "Gather", msgspec.msgpack.encode(gathered), 0.0))
        journal.close()
    return directory


def check(monkeypatch, world: World, *arguments: Path | str) -> int:
    """The command, where the chain says what is in `world`."""
    monkeypatch.setattr(build, "observed", lambda config: world.game)
    monkeypatch.setattr(build, "make_verifier", lambda config, game: Verifier(TASKS, mixture(), 1))
    monkeypatch.setattr(command.evidence, "endpoint", lambda *_: contextlib.nullcontext((None, "", 0)))
    monkeypatch.setattr(command, "read_chain", lambda *_: world.rounds())
    return command.main([*map(str, arguments), "--groups", "0"])


def total(world: World) -> int:
    """All that is claimed, in millionths."""
    return sum(sum(put.claims.values()) for put in world.puts)


def marks(world: World) -> str:
    return f"{total(world) / 1e6:.6f}".rstrip("0").rstrip(".")


@pytest.fixture(scope="module")
def world() -> World:
    return play(rounds=4)


def test_a_swarm_s_folder_is_enough_and_so_is_one_of_its_nodes(world, tmp_path, monkeypatch, capsys):
    swarm = leave(world, tmp_path / "swarm")
    for arguments in ([swarm], [swarm / "node-1"], [swarm / "node-0", "--out", tmp_path]):
        assert check(monkeypatch, world, *arguments) == 0
        printed = capsys.readouterr().out
        assert "18 claims of 6 commitments by 36 records" in printed and "12 of 12 votes count" in printed
        assert (
            "nothing was found wrong" in printed and f"claimed {marks(world)}, verified {marks(world)} of it" in printed
        )
    for written in (swarm, swarm / "node-1", tmp_path):
        found = json.loads((written / "claims.json").read_text())
        assert not found["wrong"] and all(account["right"] for account in found["accounts"])
        assert {len(account["records"]) for account in found["accounts"]} == {6}


def test_what_is_wrong_is_printed_with_its_transaction(world, tmp_path, monkeypatch, capsys):
    put = world.put(ALICE, 1)
    false = world.replace(put, claims=put.claims | {1: put.claims[1] + 500_000})
    assert check(monkeypatch, false, leave(world, tmp_path)) == 1
    printed = capsys.readouterr().out
    worth = put.claims[1] / 1e6
    assert (
        f"critique: WRONG: claimed {worth + 0.5:g}, worth {worth:g} ({put.hash})" in printed
        and "something is wrong" in printed
    )
    (wrong,) = [a for a in json.loads((tmp_path / "claims.json").read_text())["accounts"] if not a["right"]]
    assert (wrong["author"], wrong["hash"]) == (ALICE.author.hex(), put.hash)
    assert [claim["verdict"] for claim in wrong["claims"]] == ["right", "wrong", "right"]


def test_more_folders_bring_the_records_that_one_has_not(world, tmp_path, monkeypatch, capsys):
    """A node that heard nobody can check its own answers only: the rest answers to what is not here."""
    swarm = leave(world, tmp_path, heard=False)
    nodes = sorted(swarm.glob("node-*"))
    assert check(monkeypatch, world, nodes[0]) == 1  # nobody is called wrong, but not all was verified
    printed = capsys.readouterr().out
    assert "cannot be checked" in printed and "cannot be judged: unknown parent" in printed
    assert "nothing was found wrong; 16 claims could not be verified" in printed
    assert "0 of 12 votes count" in printed
    assert check(monkeypatch, world, *nodes) == 0
    assert "12 of 12 votes count" in capsys.readouterr().out


@pytest.mark.parametrize("config", [b"n" * 32, bytes(32)])
def test_six_million_marks_by_nonsense_are_claimed_and_not_verified(world, tmp_path, monkeypatch, capsys, config):
    put = world.put(ALICE, 1)
    false = world.replace(put, config=config, claims={0: 6_000_000_000_000})
    honest = dataclasses.replace(world, puts=[one for one in world.puts if one is not put])
    assert check(monkeypatch, false, leave(world, tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "plays another game" in printed and f"claimed {marks(false)}, verified {marks(honest)} of it" in printed
    found = json.loads((tmp_path / "claims.json").read_text())
    assert (found["claimed"], found["verified"]) == (total(false), total(honest))
    assert not found["wrong"] and not found["sound"]


def test_a_folder_of_somebody_else_s_proves_nothing_by_what_it_lacks(world, tmp_path, monkeypatch, capsys):
    """A journal poses as Bob's, whole but for a round: what he committed to cannot be verified, but he is honest."""
    swarm = leave(world, tmp_path / "swarm", heard=False)
    forged = tmp_path / "forged"
    forged.mkdir()
    journal, last = Journal(forged / files.JOURNAL_FILE), max(signed.record.round for signed in world.said[BOB])
    for step, signed in enumerate(s for s in world.said[BOB] if s.record.round != last):
        journal.write(Entry(0, signed.record.round, step, "Publish", msgspec.msgpack.encode(signed.raw), 0.0))
    journal.close()
    nodes = sorted(swarm.glob("node-*"))
    assert check(monkeypatch, world, nodes[0], nodes[1], forged) == 1
    printed = capsys.readouterr().out
    assert "nothing was found wrong" in printed and "WRONG ROOT" not in printed
    assert "are not here" in printed


def test_what_cannot_be_checked_is_one_sentence(world, tmp_path, capsys):
    def says(*arguments: Path | str) -> str:
        assert command.main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        return said

    assert "is the folder of no node" in says(tmp_path / "nowhere")
    swarm = leave(world, tmp_path / "swarm")
    assert "give --rpc, --contract and --chain-id" in says(swarm)
    (swarm / "node-0" / files.CONFIG_FILE).write_text("{")
    assert "is not the config of a node" in says(swarm)
    (swarm / "node-1" / files.JOURNAL_FILE).write_bytes(b"nonsense" * 99)
    with pytest.raises(JournalError, match="cannot read the journal"):
        read_journals(files.node_folders(swarm))


def test_samples_are_replayed_with_the_weights_at_hand_and_a_liar_is_named(tmp_path, capsys):
    """A simulated run without a chain keeps none but the weights that it began with: those of round 0."""
    words = [*SHAPES, "--config.swarm.nodes=3", "--config.rounds=2", "--config.chain.endpoint=none"]
    ill = '--config.simulation.adversaries=((2,"other_key"),)'
    config = ["--config=configs/quickstart.py:spoiled-simulate", *words, ill, "--config.wandb.mode=disabled"]
    assert simulated.run(cli.parse([*config, f"--workdir={tmp_path / 'run'}"])) == 0
    capsys.readouterr()
    assert command.main([str(tmp_path / "run"), "--groups", "3"]) == 1
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "samples.json").read_text())
    liar, *honest = (identity.simulated(0, node).author.hex() for node in (2, 0, 1))
    counts = {author: found["authors"][author] for author in (liar, *honest)}
    assert counts[liar]["not produced"] == 3 and counts[liar]["produced"] == 0
    assert all(counts[author]["not produced"] == 0 < counts[author]["produced"] for author in honest)
    assert sum(counts[author]["produced"] + counts[author]["undecided"] for author in honest) == 6
    assert {one["round"] for one in found["groups"]} == {0} and found["wrong"]
    of_stages = LOCAL + 2 * SHARED
    assert all(sum(one["left"].values()) == of_stages for one in counts.values())  # those of round 1
    name = identity.friendly_name(bytes.fromhex(liar))
    assert "9 groups replayed" in printed and f"{name}, " in printed and "NOT SAMPLED" in printed
    assert f"{3 * of_stages} (weights are not here)" in printed
    assert command.main([str(tmp_path / "run"), "--groups", "0"]) == 0


@pytest.mark.slow
def test_every_claim_of_a_real_run_is_right(tmp_path):
    """Also once the chain of that run is gone and somebody else serves it, with one node's records alone."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        words = [sys.executable, "-m", *map(str, arguments)]
        return subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=500)

    swarm = tmp_path / "swarm"
    smoke = ("--config=configs/quickstart.py:smoke", "--config.wandb.mode=disabled", "--workdir", swarm)
    assert run("experiments.run", *smoke).returncode == 0
    for arguments in ([swarm], [swarm / "node-1", "--out", tmp_path]):
        done = run("experiments.audit", *arguments)
        assert done.returncode == 0, done.stderr
        found = json.loads(((tmp_path if len(arguments) > 1 else swarm) / "claims.json").read_text())
        rulings = [claim["verdict"] for account in found["accounts"] for claim in account["claims"]]
        sampled = json.loads(((tmp_path if len(arguments) > 1 else swarm) / "samples.json").read_text())
        assert not sampled["wrong"] and {one["round"] for one in sampled["groups"]} > {0}
        assert rulings and set(rulings) == {"right"} and all(account["right"] for account in found["accounts"])
        assert not any(vote["why"] for vote in found["votes"])
    contract = json.loads((swarm / "chain" / "coordinator.json").read_text())["contract"]
    nowhere = run("experiments.audit", swarm, "--rpc", "http://127.0.0.1:9", "--contract", contract)
    assert nowhere.returncode == 2 and "does not answer" in nowhere.stderr
