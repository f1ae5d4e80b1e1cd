"""The game on given problems: what an observer reads from its records, against what every node was made to say."""

import numpy as np
import pytest

from rlswarm_jax.exam import make_exam, observe, play_together, sit
from rlswarm_jax.game.effects import Sample
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.tasks.verifier import Verifier
from tests.game.hand_driver import ALICE, BOB, ME, make_game, mixture, sampled

NODES = (ME, ALICE, BOB)
PROBLEMS = mixture().held_out(5)


class Scripted:
    """An engine whose nodes answer by rule: node 0 is always right, node 1 with its even completions, node 2 never.

    Critics name the first answer they are shown that is right, else none; revisions are right.
    """

    def __init__(self, exams):
        self.exams, self.verifier, self.asked = exams, Verifier({}, mixture()), []

    def sample(self, requests: dict[int, Sample]):
        return {node: [self._group(node, prompt, r) for prompt in r.prompts] for node, r in requests.items()}

    def _group(self, node, prompt, request):
        exam, text = self.exams[node], self.exams[node].tokenizer.decode(prompt)
        problem = next(p for p in PROBLEMS if text.startswith(p.compact))
        right = problem.answers[0]
        size = request.keys_PGM.shape[1]
        if text.endswith("~"):
            shown = text.removeprefix(problem.compact)[1:-1].split("|")
            number = next((n for n, answer in enumerate(shown, 1) if answer == right[-9:]), 0)
            said = [f"x#{number}"] * size
        elif text.endswith("!"):
            said = [right] * size
        else:
            said = [right if node == 0 or (node == 1 and g % 2 == 0) else f"w{node}" for g in range(size)]
        self.asked.append((node, problem.compact))
        return [sampled(exam, one) for one in said]


@pytest.fixture
def exams():
    return [make_exam(make_game(i, stages=STAGES, shared=1), PROBLEMS, 2) for i in NODES]


def test_every_problem_is_played_once_by_every_node_and_its_outcome_is_what_was_said(exams):
    outcomes = [outcome for round_ in sit(exams, NODES, Scripted(exams)) for outcome in round_]
    assert [o.problem for o in outcomes] == list(PROBLEMS)
    order = np.argsort([identity.author for identity in NODES])
    for outcome in outcomes:
        rows = {tuple(row) for row in outcome.first.scores}
        assert rows == {(1.0,) * 4, (1.0, 0.0, 1.0, 0.0), (0.0,) * 4} and len(order) == len(outcome.first.scores)
        assert outcome.revised is not None and outcome.majority_revised
        assert all(score == 1.0 for row in outcome.revised.scores for score in row)


def test_votes_and_majorities_are_counted_over_what_stands_for_a_node(exams):
    for round_ in range(exams[0].num_rounds):
        records = play_together(exams, NODES, round_, Scripted(exams))
        assert [s.record.stage for s in records] == [stage for stage in STAGES for _ in NODES]
        for outcome in observe(exams[0], records, Scripted(exams).verifier):
            assert outcome.critique is not None
            assert all(score == 1.0 for row in outcome.critique.scores for score in row)  # true, whether paid or not
            assert outcome.critics is not None and outcome.critics.critic == 1.0
            right_ones = sum(outcome.first.spoken_right)
            assert right_ones in (1, 2)
            if right_ones == 2:
                assert outcome.majority and outcome.vote
            # a critic who is shown no right answer names none; the others, all but one of three, name the right one
            assert outcome.vote == (right_ones == 2 or _two_critics_see_it(outcome))
            assert 0 < outcome.critics.chance < 1
            # by hand: each of three critics is shown the other two's word; with one right one, its author sees two
            # wrong ones, which are not contested; with two, the one who is wrong sees two right ones
            assert outcome.contested is not None and outcome.contested.none == 0.0
            assert outcome.critics.none == (1 / 3 if right_ones == 1 else 0)
            assert outcome.contested.chance == pytest.approx(1 / 3) and outcome.contested.critic == 1.0
            assert outcome.critics.chance == pytest.approx((1 / 3 + 1 / 3 + (1 / 3 if right_ones == 1 else 2 / 3)) / 3)
            # of two answers that differ the first is the first of what most say; where both are right it is, too
            assert outcome.contested.first == outcome.contested.majority in (0.0, 0.5, 1.0)
            assert outcome.critics.first == pytest.approx((2 * outcome.contested.first + (right_ones == 2)) / 3)


def _two_critics_see_it(outcome) -> bool:
    """With one right answer, its author alone does not see it."""
    return sum(outcome.first.spoken_right) == 1


def test_nobody_learns_and_the_same_exam_ends_the_same(exams):
    first = [o for part in sit(exams, NODES, Scripted(exams)) for o in part]
    again = [o for part in sit(exams, NODES, Scripted(exams)) for o in part]
    assert first == again
