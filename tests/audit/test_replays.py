"""From what a replay finds to what is said of it."""

import numpy as np
import pytest

from rlswarm_jax.audit import replays
from rlswarm_jax.audit.statistics import Judgement
from rlswarm_jax.game.effects import Claimed, Replay
from rlswarm_jax.qwen import verdict
from rlswarm_jax.qwen.verdict import Rounding

LOGPROBS = [[-1.5, -2.0, -3.0], [-1.0, -4.0]]
CLAIMED = Claimed([1, 2], [[5, 6, 0], [7, 0]], [[0, 1], [2, 3]])


def run(lead: float):
    """A replay in which every token leads by so much, with the log-probs of `LOGPROBS`."""

    def of(tensors, claimed):
        rounding = Rounding(1e-4, 1e-5)
        return [
            verdict.Replay(np.array(p, np.float32), np.full((len(p), 2), lead), np.full(len(p), 0.8), rounding)
            for _ in claimed
            for p in LOGPROBS
        ]

    return of


def own(lead=1.0, off=0.0):
    said = [[logprob + off for logprob in one] for one in LOGPROBS]
    return replays.own(run(lead), Replay([CLAIMED, CLAIMED], [said, said]))


def test_of_its_own_groups_a_node_counts_findings_tokens_and_bits():
    found = own()
    assert (found["audit/own_undecided"], found["audit/own_produced"], found["audit/own_not produced"]) == (
        2,
        0,
        0,
    )  # 16 bits each
    assert (
        found["audit/own_tokens"] == 10
        and found["audit/own_bits"] == pytest.approx(2 * 11.5 / np.log(2), rel=1e-3)
        and found["audit/own_gap"] == 0
    )
    assert own(lead=-1.0)["audit/own_not produced"] == 2


def test_log_probs_that_rounding_does_not_explain_are_an_alarm_before_any_token_is():
    assert (
        own(off=1e-6)["audit/own_gap"] < 1 < own(off=1e-3)["audit/own_gap"]
        and own(off=1e-3)["audit/own_not produced"] == 0
    )


@pytest.mark.parametrize(("statistic", "kept"), [(0.1, True), (2.9, True), (3.1, False), (5.9, False)])
def test_what_another_machine_may_find_otherwise_is_not_called_produced(statistic, kept):
    found = replays.doubted(Judgement(verdict.Verdict.PRODUCED, 9, 30.0, statistic))
    assert (found.verdict is verdict.Verdict.PRODUCED) == kept
    accused = Judgement(verdict.Verdict.NOT_PRODUCED, 9, 30.0, 7.0)
    assert replays.doubted(accused) == accused
