"""What the page computes again: equal where records say the truth, not equal where somebody does not."""

import contextlib
import dataclasses
import json
import shlex
from pathlib import Path

import msgspec
import pytest

from rlswarm_jax import files
from rlswarm_jax.audit.evidence import read_journals
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.chain.ledger import Ledger, Total
from rlswarm_jax.game.rewards import Rewards
from rlswarm_jax.game.stages import Reading, Said
from rlswarm_jax.game.turns import Turn
from rlswarm_jax.page.accounts import PAGE, accounts
from rlswarm_jax.page.folder import Folder
from rlswarm_jax.page.trust import trust
from rlswarm_jax.records.schema import NOT_PRODUCED, PRODUCED
from rlswarm_jax.running import again, build, evidence, simulated
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running.again import Again
from rlswarm_jax.tasks.verifier import Verifier
from tests.audit.chained import play
from tests.documents import takes
from tests.experiments.test_audit_command import leave
from tests.game.hand_driver import ME, TASKS, make_game, mixture
from tests.page.parts import assert_parts_are_the_loss
from tests.small import SHAPES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three nodes who check each other, the last of whom samples with other keys than it should."""
    directory = tmp_path_factory.mktemp("simulated") / "run"
    words = [*SHAPES, "--config.swarm.nodes=3", "--config.rounds=3", "--config.chain.endpoint=none"]
    words += ["--config.audit.auditors=1", '--config.simulation.adversaries=((2,"other_key"),)']
    words += ["--config.learn.external_min_prob=0"]  # no token is left out of a loss
    config = ["--config=configs/quickstart.py:simulate", *words, "--config.wandb.mode=disabled"]
    assert simulated.run(cli.parse([*config, f"--workdir={directory}"])) == 0
    return directory


@pytest.mark.slow
def test_verdicts_are_there_with_their_figures_and_are_found_again_and_a_lie_is_not_equal(run, monkeypatch):
    folder = Folder(run)
    folder.refresh()
    shown, records = trust(folder), read_journals([run])
    said = [v for signed in records.values() for v in signed.record.verdicts]
    assert len(shown["verdicts"]) == len(said) > 0 and shown["audits"]
    figures = {(v.record.hex(), v.index): (v.finding, v.tokens, round(v.bits, 1)) for v in said}
    for one in shown["verdicts"]:
        assert figures[one["record"], one["index"]] == (one["finding"], one["tokens"], one["bits"])
    of_first_round = [one for one in shown["verdicts"] if one["of"] == 0 and one["finding"] in (PRODUCED, NOT_PRODUCED)]
    assert of_first_round, "none is of the weights that the run began with, and those alone are here"
    asked = {"what": "verdict", **of_first_round[0]}
    found = Again(run).answer(asked)
    assert found["equal"] is True and of_first_round[0]["finding"] in found["what"]

    def turned(verdict):
        same = (verdict.record.hex(), verdict.index) == (asked["record"], asked["index"])
        other = {PRODUCED: NOT_PRODUCED, NOT_PRODUCED: PRODUCED}.get(verdict.finding, verdict.finding)
        return msgspec.structs.replace(verdict, finding=other) if same else verdict

    lies = {
        h: dataclasses.replace(
            s, record=msgspec.structs.replace(s.record, verdicts=[turned(v) for v in s.record.verdicts])
        )
        for h, s in records.items()
    }
    monkeypatch.setattr(again, "read_journals", lambda _: lies)
    found = Again(run).answer(asked)
    assert found["equal"] is False and f"it is {of_first_round[0]['finding']}" in found["differs"][0]


def test_what_a_text_earned_is_explained_by_what_was_read_out_of_it():
    """ "?" stands by a first answer; "17#1" answers 17, and names the first of the answers that are shown."""
    game = make_game(stages=("answer", "critique", "revise"), shared=1, stand_by=True, rewards=Rewards(derivation=1.0))
    problem = game.problem(ME.author, 0, 0)
    right, shown = problem.answers[0], [Said("12", "12"), Said(problem.answers[0], problem.answers[0])]
    scores = {(problem, text): float(text == right) for text in (right, "12", "0", "?", f"{right}#1")}

    def says(stage, text, answers):
        turn = Turn(ME.author, 0, stage, 0, problem, [], Reading([], answers, [], [1, 2]), [])
        return Again(Path("."))._says(game, scores, turn, text)

    assert says("answer", right, []) == "right" and says("answer", f"{right}#1", []) == "not right"
    assert says("answer", "", []) == "no answer is found in it"
    assert says("revise", "?", shown[::-1]) == f"stands by its first answer, {right!r}: right"
    assert says("revise", "?", shown) == "stands by its first answer, '12': not right"
    assert says("critique", "0", shown) == "names no answer, and earns nothing"
    own = "; its own answer '0' is not right"
    assert says("critique", "0#1", shown) == "names answer 1, '12': that is not so" + own
    assert says("critique", "0#2", shown) == f"names answer 2, {right!r}: that is so, which earns 1" + own
    assert says("critique", "0#0", shown) == "says that none of the answers is right: that is not so" + own
    alike = "names answer 1, '12': earns nothing by that, as all that it was shown are worth the same"
    assert says("critique", f"{right}#1", shown[:1]) == f"{alike}; its own answer {right!r} is right, which earns 1"


@pytest.mark.slow
def test_parts_of_a_loss_add_up_to_it(run):
    assert_parts_are_the_loss(run)


def test_a_claim_is_found_again_and_a_wrong_one_is_not_equal(tmp_path, monkeypatch):
    world = play(rounds=4)
    swarm, rounds = leave(world, tmp_path / "swarm"), world.rounds()
    monkeypatch.setattr(build, "observed", lambda config: world.game)
    monkeypatch.setattr(build, "make_verifier", lambda config, game: Verifier(TASKS, mixture(), 1))
    monkeypatch.setattr(evidence, "endpoint", lambda *_: contextlib.nullcontext((None, "", 0)))
    monkeypatch.setattr(again, "read_chain", lambda *_: rounds)
    number = next(one.number for one in rounds if one.commitments)
    who = account_of(next(iter(world.said)).author)
    asked = {"what": "claim", "round": number, "account": who}
    found = Again(swarm).answer(asked)
    assert found["equal"] is True and not found["differs"]
    takes_audit(found["command"])
    (place,) = [i for i, one in enumerate(rounds) if one.number == number]

    lie = [
        msgspec.structs.replace(r, amount=r.amount + 10**6) if r.account == who else r for r in rounds[place].rewards
    ]
    rounds[place] = msgspec.structs.replace(rounds[place], rewards=lie)
    found = Again(swarm).answer(asked)
    assert found["equal"] is False and "wrong" in found["differs"][0]
    with pytest.raises(again.CANNOT, match="no such commitment"):
        Again(swarm).answer(asked | {"round": 99})


def takes_audit(command: str) -> None:
    """What is said to type works."""
    from experiments import audit

    program, *words = shlex.split(command)
    assert program == "python" and words[:2] == ["-m", "experiments.audit"]
    takes(audit.main, "experiments.audit", words[2:], whole=True)


def test_the_ledger_is_shown_page_by_page_with_what_an_audit_found(tmp_path):
    world = play(rounds=12)
    swarm, rounds = leave(world, tmp_path / "swarm"), world.rounds()
    config = json.loads((swarm / "node-0" / files.CONFIG_FILE).read_text()) | {"swarm": {}}
    (swarm / files.CONFIG_FILE).write_text(json.dumps(config))
    found = Ledger("0xC", 7, 9, [], rounds, {"0xA": Total(1, 2)})
    folder = Folder(swarm)
    seen, before = [], None
    while True:
        page = accounts(folder, found, before)
        assert len(page["rounds"]) <= PAGE
        seen += page["rounds"]
        before = page["next"]
        if before is None:
            break
    assert [one["number"] for one in seen] == sorted((one.number for one in rounds), reverse=True)
    claimed = sum(claim["amount"] for one in seen for c in one["commitments"] for claim in c["claims"])
    assert claimed == pytest.approx(sum(r.amount for one in rounds for r in one.rewards) / 1e6)
    first = next(one for one in rounds if one.commitments)
    account = first.commitments[0].account
    ruled = {"round": first.number, "account": account, "right": True, "verdict": "right", "verified": 5, "claims": []}
    (swarm / "claims.json").write_text(json.dumps({"accounts": [ruled]}))
    (again_seen,) = [
        c
        for one in accounts(folder, found, first.number + 1)["rounds"]
        if one["number"] == first.number
        for c in one["commitments"]
        if c["account"] == account
    ]
    assert again_seen["verdict"] == "right"
    assert accounts(folder, None, None)["why"]
