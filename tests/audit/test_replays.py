"""From what a replay finds to what is said of it."""

import numpy as np
import pytest

from rlswarm_jax.audit import replays
from rlswarm_jax.audit.statistics import Judgement
from rlswarm_jax.game.effects import Claimed, Replay
from rlswarm_jax.qwen import verdict
from rlswarm_jax.qwen.verdict import Rounding

LOGPROBS = [[-1.5, -2.0, -3.0], [-1.0, -4.0]]
CLAIMED = [Claimed([1, 2], [[5, 6, 0]], [[0, 1]]), Claimed([1, 3], [[7, 0]], [[2, 3]])]


def run(lead: float):
    """A replay in which every token leads by so much, with the log-probs of `LOGPROBS`."""

    def of(tensors, claimed):
        rounding = Rounding(1e-4, 1e-5)
        assert tensors is None and claimed == CLAIMED
        return [
            verdict.Replay(np.array(p, np.float32), np.full((len(p), 2), lead), np.full(len(p), 0.8), rounding)
            for p in LOGPROBS
        ]

    return of


def own(lead=1.0, off=0.0):
    found = replays.own(run(lead), Replay(CLAIMED, [[logprob + off for logprob in one] for one in LOGPROBS]))
    return {name.removeprefix("audit/own_"): value for name, value in found.items()}


def test_a_node_s_own_completions_are_judged_together():
    found = own()
    assert (found["undecided"], found["produced"], found["not produced"]) == (1, 0, 0)  # 16.6 bits
    assert found["tokens"] == 5 and found["bits"] == pytest.approx(11.5 / np.log(2), rel=1e-3) and found["gap"] == 0
    assert own(lead=-1.0)["not produced"] == 1


def test_log_probs_that_rounding_does_not_explain_are_an_alarm_before_any_token_is():
    assert own(off=1e-6)["gap"] < 1 < own(off=1e-3)["gap"] and own(off=1e-3)["not produced"] == 0


@pytest.mark.parametrize(("statistic", "kept"), [(0.1, True), (2.9, True), (3.1, False), (5.9, False)])
def test_what_another_machine_may_find_otherwise_is_not_called_produced(statistic, kept):
    found = replays.doubted(Judgement(verdict.Verdict.PRODUCED, 9, 30.0, statistic))
    assert (found.verdict is verdict.Verdict.PRODUCED) == kept
    accused = Judgement(verdict.Verdict.NOT_PRODUCED, 9, 30.0, 7.0)
    assert replays.doubted(accused) == accused
