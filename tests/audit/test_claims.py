"""Who is honest is found right, whatever was lost on the way; who is not is found out, as what they are."""

import dataclasses
import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rlswarm_jax.audit.claims import (
    ANOTHER_GAME,
    LEFT_OUT,
    MISSING,
    RIGHT,
    TWICE,
    UNCHECKED,
    WRONG,
    WRONG_ROOT,
)
from rlswarm_jax.game.rewards import Rewards
from rlswarm_jax.game.stages import speaks
from rlswarm_jax.records.envelope import open_envelope, seal
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, STAGES
from rlswarm_jax.tasks import Mixture
from tests.audit.chained import HEADS, World, make_judge, of, play
from tests.game.hand_driver import ALICE, BOB, MALLORY, ME, Speaker, all_right, all_wrong, mixture, tokenizer
from tests.game.test_three_stages import OpenTask

MILLION = 1_000_000
EVERYBODY = {**HEADS, MALLORY: Speaker()}


@functools.cache
def honest() -> World:
    return play()


def verdicts(found) -> set[str]:
    return {claim.verdict for account in found.standings for claim in account.claims}


def rulings(found, put) -> dict[int, str]:
    return {claim.stage: claim.verdict for claim in of(found, put).claims}


# --- the honest


def disputes(hash_: bytes) -> int:
    """How many problems a critic was shown of which one answer is right and one is wrong, by hand: critics are paid
    for those. Of a node's four completions, the first of which is right, a drawn one stands for it.
    """
    records = {signed.hash: signed.record for said in honest().said.values() for signed in said}
    record = records[hash_]
    beacons = {beacon[:8]: honest().game.beacon(record.round, beacon) for beacon in honest().beacons}
    of = [[records[h] for h in group.parents] if record.stage == CRITIQUE else [] for group in record.groups]
    right = [
        [speaks(beacons[answer.beacon], answer.author, ANSWER, group.index, 4) == 0 for answer in answers]
        for group, answers in zip(record.groups, of, strict=True)
    ]
    return sum(sorted(shown) == [False, True] for shown in right)


def test_honest_claims_are_right_and_their_votes_count():
    found, by_author = honest().check(), {who.author: who for who in HEADS}
    assert len(found.standings) == 3 * 4 and not found.wrong
    assert all(account.right and account.verdict == RIGHT for account in found.standings)
    assert len(found.votes) == 3 * 4 * 2 and all(vote.why == "" for vote in found.votes)
    for account in found.standings:  # by hand: 3 and 2 problems in 2 rounds; 1, 3 and 1 of 4 completions are right
        disputed = sum(map(disputes, honest().put(by_author[account.author], account.round).records))
        worth = [3 * 2 * MILLION // 4, disputed * MILLION * 3 // 4, 2 * 2 * MILLION // 4]
        assert [(claim.claimed, claim.worth.amount) for claim in account.claims] == [(w, w) for w in worth]
        put = honest().put(by_author[account.author], account.round)
        assert [signed.hash for signed in account.records] == put.records and len(put.records) == 6
        assert not account.missing and not account.gap


def test_who_is_always_wrong_claims_nothing_and_is_right_to():
    found = play({ME: Speaker(answer=all_wrong), ALICE: Speaker(answer=all_right)}, rounds=2, stages=(ANSWER,)).check()
    claims = {account.author: [(c.claimed, c.worth.amount) for c in account.claims] for account in found.standings}
    assert claims == {ME.author: [], ALICE.author: [(6 * MILLION, 6 * MILLION)]}
    assert all(account.right for account in found.standings)


nodes = st.sampled_from([*HEADS])
lost = st.sets(st.tuples(st.integers(0, 3), st.sampled_from(STAGES), nodes, nodes))


left = st.sets(st.tuples(nodes, st.integers(0, 5), st.sampled_from(["", *STAGES[:-1]])), max_size=4)


@settings(deadline=None, max_examples=15)
@given(lost, left)
def test_honest_claims_are_right_whatever_the_nodes_had_heard_of_each_other(lost, left):
    """An observer who has all records finds what each author has found, who had but some of them, or left a round."""
    found = play(rounds=6, heard=lambda *at: at not in lost, leaves=left).check()
    assert all(standing.right for standing in found.standings) and verdicts(found) <= {RIGHT}


@settings(deadline=None, max_examples=60)
@given(st.sets(st.tuples(nodes, st.integers(0, 23)), min_size=1))
def test_nothing_is_said_against_anybody_where_records_are_missing(at):
    missing = [honest().said[who][number] for who, number in at]
    found = honest().check(without=missing)
    assert not found.wrong
    gone = {signed.hash for signed in missing}
    for account, put in ((of(found, put), put) for put in honest().puts):
        assert (account.verdict == MISSING) == bool(gone & set(put.records))
        ends = gone & {put.records[0], put.records[-1]}  # without which nobody knows what else is covered
        assert account.missing == (6 if ends else len(gone & set(put.records)))
        if account.right:
            assert {claim.stage: claim.worth.amount for claim in account.claims} == put.claims


def test_of_missing_records_it_is_said_how_many():
    put = honest().put(ALICE, 1)
    missing = [signed for signed in honest().said[ALICE] if signed.hash in put.records[1:3]]
    account = of(honest().check(without=missing), put)
    assert (account.verdict, account.missing) == (MISSING, 2)
    assert {claim.verdict for claim in account.claims} == {MISSING}


def test_what_answers_to_a_missing_record_is_not_judged_nor_what_answers_to_that():
    """Without my answers nobody knows what Alice's critiques read, and without those, what Bob's revisions did."""
    mine = [signed for signed in honest().said[ME] if signed.record.stage == ANSWER]
    found = honest().check(without=mine)
    assert rulings(found, honest().put(ALICE, 1)) == {0: RIGHT, 1: UNCHECKED, 2: UNCHECKED}
    claim = of(found, put := honest().put(BOB, 1)).claims[2]
    assert claim.worth.open == {"unknown parent": 4} and claim.worth.low <= claim.claimed <= claim.worth.high
    assert claim.worth.amount == 0
    found = honest().replace(put, claims=put.claims | {2: 0}).check(without=mine)
    assert rulings(found, put)[2] == UNCHECKED  # nothing more is known to be earned, but who knows


def test_what_answers_to_what_cannot_be_read_is_not_judged():
    """Each reads one answer, so some revise by a critique that read another's: where that one is missing, who knows."""
    world = play(EVERYBODY, rounds=8, shown=1, critics=2)
    mine = [signed for signed in world.said[ME] if signed.record.stage == ANSWER]
    found = world.check(without=mine)
    assert not world.check().wrong and not found.wrong
    causes = {
        cause for account in found.standings for claim in account.claims if claim.worth for cause in claim.worth.open
    }
    assert causes == {"unknown parent", "wrong parents"}


@pytest.mark.parametrize("stage", STAGES[:-1])
@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("at", [2, 3])
def test_a_round_that_was_left_is_committed_to_and_earns_nothing(stage, jumps, at):
    """In any stage; the node goes on to the next round, as after a restart, or to a later one."""
    leaves = {(ALICE, at, stage), *([(ALICE, at + 1, "")] if jumps else [])}
    found = play(leaves=leaves, rounds=10).check()
    assert not found.wrong and all(standing.right for standing in found.standings)
    (covering,) = [s for s in found.standings if s.author == ALICE.author and at in {r.record.round for r in s.records}]
    said = [signed.record.stage for signed in covering.records if signed.record.round == at]
    assert said == list(STAGES[: STAGES.index(stage) + 1])
    assert {"unfinished round"} == {cause for claim in covering.claims for cause in claim.worth.flaws}


def test_what_was_played_under_a_later_beacon_earns_nothing_for_an_earlier_round():
    """A whole round so is not what an honest node commits to, who would have taken the later one."""
    put, after = honest().put(ALICE, 1), honest().put(ALICE, 2)
    both = honest().replace(put, records=[*put.records, *after.records[:3]])
    claims = {s: a // 2 for s, a in after.claims.items()}  # of one of two rounds
    claims[STAGES.index(CRITIQUE)] = sum(map(disputes, after.records[3:])) * MILLION * 3 // 4
    late = both.replace(both.put(ALICE, 2), records=after.records[3:], claims=claims)
    standings = late.check()
    assert of(standings, put).right and of(standings, after).right
    assert of(standings, put).claims[0].worth.flaws == {"later beacon": 3}


def test_a_commitment_that_the_chain_never_took_leaves_its_records_to_nobody_and_a_gap_in_the_states():
    put = honest().put(ALICE, 1)
    world = dataclasses.replace(honest(), puts=[one for one in honest().puts if one is not put])
    found, after = world.check(), world.put(ALICE, 2)
    assert not found.wrong and of(found, after).right
    assert [one for one in found.standings if one.gap] == [of(found, after)]


def test_what_was_played_before_the_chain_was_heard_of_is_nowhere_claimed():
    world = play(rounds=6, silent=3)
    found, puts = world.check(), [put for put in world.puts if put.who is ME]
    assert not found.wrong and all(of(found, put).right for put in puts)
    covered = [h for put in puts for h in put.records]
    assert covered == [signed.hash for signed in world.said[ME] if signed.record.round >= 3]


# --- the others


@pytest.mark.parametrize(("stage", "more"), [(0, 1), (1, 250_000), (2, -1), (2, 10**9)])
def test_a_claim_for_more_or_less_is_wrong_and_votes_by_and_for_it_do_not_count(stage, more):
    put = honest().put(ALICE, 2)
    world = honest().replace(put, claims=put.claims | {stage: put.claims[stage] + more})
    found = world.check()
    assert found.wrong and [account.author for account in found.standings if account.against] == [ALICE.author]
    claim = of(found, put).claims[stage]
    assert (claim.verdict, claim.claimed - claim.worth.amount) == (WRONG, more)
    assert (of(found, put).verdict, of(found, put).hash) == (RIGHT, put.hash) and verdicts(found) == {RIGHT, WRONG}
    uncounted = [vote for vote in found.votes if vote.why]
    assert {vote.round for vote in uncounted} == {2} and len(uncounted) == 4  # 2 by her, and 1 for her by each other
    assert sum("winner" in vote.why for vote in uncounted) == 2 == sum("voter" in vote.why for vote in uncounted)


def test_a_claim_for_a_stage_that_nobody_plays_is_wrong():
    world = play(rounds=2, stages=STAGES[:2])
    put = world.put(ALICE, 0)
    assert rulings(world.replace(put, claims=put.claims | {2: 5}).check(), put)[2] == WRONG


def test_another_root_is_wrong_where_all_records_are_here_and_unknown_where_one_is_missing():
    put = honest().put(BOB, 1)
    inner = put.records[1:-1]
    world = honest().replace(put, records=[put.records[0], *reversed(inner), put.records[-1]])
    found = world.check()
    assert [account.author for account in found.standings if account.against] == [BOB.author]
    assert of(found, put).verdict == WRONG_ROOT and set(rulings(found, put).values()) == {WRONG_ROOT}
    assert all(vote.why for vote in found.votes if (vote.round, vote.hash) == (1, put.hash))
    assert of(found, honest().put(BOB, 2)).right
    for gone in (signed for signed in honest().said[BOB] if signed.hash in put.records):
        found = world.check(without=[gone])
        assert not found.wrong and of(found, put).verdict == MISSING


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda put: {"count": 5}, LEFT_OUT),
        (lambda put: {"count": 7}, MISSING),
        (lambda put: {"count": 2**256 - 1}, MISSING),
        (lambda put: {"records": put.records[::-1]}, WRONG_ROOT),
        (lambda put: {"records": [*put.records[:-1], bytes(32)]}, MISSING),
        (lambda put: {"records": [bytes(32), *put.records[1:]]}, MISSING),
    ],
)
def test_what_a_commitment_says_of_its_records_is_held_against_them(change, verdict):
    put = honest().put(BOB, 1)
    standing = of(honest().replace(put, **change(put)).check(), put)
    assert standing.verdict == verdict and standing.records == [] and not standing.right
    assert standing.against == (verdict != MISSING)


def test_records_are_committed_to_once():
    put, after = honest().put(ALICE, 1), honest().put(ALICE, 2)
    found = honest().replace(put, records=after.records).check()
    assert set(rulings(found, put).values()) == {WRONG}  # played under a later beacon
    assert of(found, after).verdict == TWICE and of(found, after).verified == 0
    again = honest().replace(after, records=put.records, claims=put.claims).check()
    assert of(again, put).right and of(again, after).verdict == TWICE and of(again, honest().put(ALICE, 3)).right
    overlapping = honest().replace(after, records=[put.records[-1], *after.records]).check()
    assert of(overlapping, after).verdict == TWICE


@pytest.mark.parametrize("gone", range(1, 5))
def test_a_record_that_a_commitment_leaves_out_is_found(gone):
    put = honest().put(BOB, 1)
    records = [h for i, h in enumerate(put.records) if i != gone]
    standing = of(honest().replace(put, records=records).check(), put)
    assert standing.verdict == LEFT_OUT and standing.against and standing.verified == 0


@pytest.mark.parametrize("shared", [0, 1])
def test_copied_rollouts_fail_by_their_seeds(shared):
    """Mallory says what Alice says. Of problems that all share she could have said it: the seed is hers, too."""

    def copy(record, said):
        return replace(said[ALICE][-1].record, author=MALLORY.author)

    world = play(EVERYBODY, rounds=2, tamper={MALLORY: copy}, stages=(ANSWER,), shared=shared)
    found = world.check()
    (claim,) = of(found, world.put(MALLORY, 0)).claims
    assert claim.verdict == WRONG and claim.worth.flaws == {"foreign problem": 2 * (3 - shared)}
    assert claim.worth.amount == 2 * shared * MILLION // 4
    assert [account.author for account in found.standings if account.against] == [MALLORY.author]


def test_a_copied_critique_and_revision_answer_to_what_nobody_showed_their_author():
    def copy(record, said):
        return record if record.stage == ANSWER else replace(said[ALICE][-1].record, author=MALLORY.author)

    world = play(EVERYBODY, rounds=2, tamper={MALLORY: copy})
    claims = of(world.check(), world.put(MALLORY, 0)).claims
    assert [claim.verdict for claim in claims] == [RIGHT, WRONG, WRONG]
    assert claims[1].worth.flaws == claims[2].worth.flaws == {"wrong parents": 4}


def test_a_false_vote_earns_nothing():
    def lie(record, said):
        groups = [replace(group, vote=None) for group in record.groups]
        return replace(record, groups=groups) if record.stage == CRITIQUE else record

    world = play(EVERYBODY, rounds=2, tamper={MALLORY: lie})
    found = world.check()
    claims = of(found, world.put(MALLORY, 0)).claims
    assert claims[1].verdict == WRONG and claims[1].worth.flaws == {"false vote": 4}
    assert [account.author for account in found.standings if account.against] == [MALLORY.author]


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"beacon": b"tomorrow"}, "unknown beacon"), ({"swarm": "another"}, "wrong swarm")],
)
def test_records_of_another_beacon_or_swarm_earn_nothing(change, cause):
    world = play(EVERYBODY, rounds=2, tamper={MALLORY: lambda record, said: replace(record, **change)})
    claim = of(world.check(), world.put(MALLORY, 0)).claims[0]
    assert (claim.verdict, claim.worth.amount, claim.worth.flaws) == (WRONG, 0, {cause: 6})


def test_text_that_is_not_what_the_ids_say_is_wrong_but_not_where_nobody_here_can_read_them():
    def retell(record, said):
        groups = [
            replace(g, completions=[replace(c, text=c.text.replace("x", "é")) for c in g.completions])
            for g in record.groups
        ]
        return replace(record, groups=groups)

    for fingerprint, verdict in ((tokenizer().fingerprint, WRONG), ("another", UNCHECKED)):
        tamper = {MALLORY: lambda record, said, f=fingerprint: replace(retell(record, said), tokenizer_fingerprint=f)}
        world = play(EVERYBODY, rounds=2, tamper=tamper, stages=(ANSWER,))
        found = world.check()
        claim = of(found, world.put(MALLORY, 0)).claims[0]
        assert claim.verdict == verdict
        assert (claim.worth.flaws or claim.worth.open) == {"text mismatch": 6}
        assert found.wrong == (verdict == WRONG)


def test_whose_end_tokens_are_others_plays_another_game_and_is_not_called_wrong():
    """The same checkpoint, of which the auditor's has one more end token: text behind it would be "behind its end"."""
    more = sorted(honest().game.tokenizer.encode("x"))  # which the heads' wrong answers hold
    found = honest().check(eos_token_ids=(*honest().game.eos_token_ids, *more))
    assert {one.verdict for one in found.standings} == {ANOTHER_GAME} and not found.wrong
    assert all(claim.worth is None for one in found.standings for claim in one.claims)
    strangers = play(EVERYBODY, rounds=2, tokenizer_fingerprint="another")  # have others anyway: the text says all
    found = strangers.check(eos_token_ids=(1, 2), tokenizer_fingerprint=honest().game.tokenizer_fingerprint)
    assert {one.verdict for one in found.standings} == {RIGHT} and not found.wrong


def test_who_reads_by_the_text_alone_is_not_to_blame_for_what_they_answer_to():
    """Mallory's text is not what her ids say, which Bob, who has another tokenizer, cannot know."""

    def retell(record, said):
        groups = [
            replace(g, completions=[replace(c, text=c.text.replace("x", "z")) for c in g.completions])
            for g in record.groups
        ]
        return replace(record, groups=groups) if record.stage == ANSWER else record

    lying = {MALLORY: Speaker(answer=all_wrong), BOB: Speaker()}
    for fingerprint in ("another", tokenizer().fingerprint):
        world = play(lying, rounds=2, tamper={MALLORY: retell}, own={BOB: {"tokenizer_fingerprint": fingerprint}})
        found = world.check()
        critique = next((claim for claim in of(found, world.put(BOB, 0)).claims if claim.stage == 1), None)
        if fingerprint == "another":
            assert critique.verdict == UNCHECKED and critique.worth.open == {"wrong parents": 4}
        else:
            assert critique is None  # he has heard nothing to criticise
        assert not of(found, world.put(BOB, 0)).against


@pytest.mark.parametrize("fingerprint", ["another", tokenizer().fingerprint])
def test_a_group_of_another_size_is_wrong_in_any_tokens(fingerprint):
    def crowd(record, said):
        first, *others = record.groups
        crowded = replace(first, completions=[replace(c, text="é") for c in [*first.completions, first.completions[0]]])
        return replace(record, groups=[crowded, *others], tokenizer_fingerprint=fingerprint)

    world = play(EVERYBODY, rounds=2, tamper={MALLORY: crowd}, stages=(ANSWER,))
    claim = of(world.check(), world.put(MALLORY, 0)).claims[0]
    assert claim.verdict == WRONG and claim.worth.flaws == {"misshapen group": 2}


def test_two_records_for_one_stage_are_shown_whichever_of_them_was_committed_to():
    first = honest().said[BOB][7]  # round 2, critique
    second = open_envelope(seal(replace(first.record, policy_version=99), BOB))
    said = {**honest().said, BOB: [*honest().said[BOB], second]}
    put = honest().put(BOB, 1)
    for records in (put.records, [second.hash if h == first.hash else h for h in put.records]):
        found = dataclasses.replace(honest().replace(put, records=records), said=said).check()
        assert found.equivocations == [(BOB.author, 2, CRITIQUE)] and found.wrong
        assert of(found, put).verdict == RIGHT


def test_those_who_agreed_on_another_game_are_not_judged_by_this_one():
    put = honest().put(BOB, 1)
    account = of(honest().replace(put, config=bytes(32)).check(), put)
    assert account.verdict == ANOTHER_GAME and not account.against and not account.right


# --- what cannot be told exactly


def test_what_depends_on_the_votes_that_were_heard_is_wrong_only_where_no_votes_could_make_it_right():
    open_questions = Mixture({"open": OpenTask()}, {"open": 1.0})
    speaker = Speaker(
        lambda p, g, right: "7",
        lambda p, g, right, view: f"#{view.answers.index('7') + 1}",
        lambda p, g, right, view: "7" if g else "8",
    )
    fields = {"mixture": open_questions, "rewards": Rewards(consensus=0.5), "rounds": 2}
    world = play(dict.fromkeys(HEADS, speaker), **fields)
    put = world.put(ALICE, 0)
    earned = 2 * 2 * MILLION * 3 // 8  # half for 3 of 4 completions, of 2 problems in 2 rounds
    assert put.claims == {2: earned} and all(account.right for account in world.check().standings)
    for claimed, verdict in ((earned - 1, UNCHECKED), (earned + 1, UNCHECKED), (6 * MILLION + 1, WRONG), (-1, WRONG)):
        assert rulings(world.replace(put, claims={2: claimed}).check(), put)[2] == verdict
    doubter = dataclasses.replace(speaker, critique=lambda p, g, right, view: "#0")
    speakers = {ME: speaker, ALICE: doubter, BOB: speaker}
    fields["rewards"] = Rewards(form=0.25, consensus=0.5)
    deaf = play(speakers, heard=lambda r, stage, s, to: (stage, to) != (CRITIQUE, ALICE), **fields)
    assert deaf.put(ALICE, 0).claims[2] == MILLION  # a quarter of 4 groups: she has heard nobody vote for what she says
    assert rulings(deaf.check(), deaf.put(ALICE, 0)) == {0: RIGHT, 1: RIGHT, 2: UNCHECKED}


def test_where_scoring_fails_here_nothing_is_said_against_its_author():
    put = honest().put(ALICE, 1)
    judge = make_judge(honest().game)
    found = honest().check(judge=lambda items: [None if i == 0 else s for i, s in enumerate(judge(items))])
    assert not found.wrong and verdicts(found) == {RIGHT, UNCHECKED}
    assert {cause for a in found.standings for c in a.claims for cause in c.worth.open} == {"failed scores"}
    high = honest().replace(put, claims=put.claims | {0: 7 * MILLION})  # of 6 groups
    assert of(high.check(judge=lambda items: [None] * len(items)), put).claims[0].verdict == WRONG


def test_a_slow_scorer_may_have_found_less_in_time_but_never_more():
    class Slow:
        def __init__(self, task):
            self.task, self.seconds = task, 1.0

        def __getattr__(self, name):
            return getattr(self.task, name)

    slow = Mixture({name: Slow(task) for name, task in mixture().tasks.items()}, dict.fromkeys(mixture().tasks, 1.0))
    put = honest().put(ALICE, 1)
    assert all(account.right for account in honest().check(mixture=slow).standings)
    for stage, more, verdict in ((0, -250_000, UNCHECKED), (0, 1, WRONG), (1, 1, UNCHECKED), (2, 10 * MILLION, WRONG)):
        claims = put.claims | {stage: put.claims[stage] + more}
        assert rulings(honest().replace(put, claims=claims).check(mixture=slow), put)[stage] == verdict


def test_only_what_was_found_right_counts_as_verified():
    found = honest().check()
    assert found.sound and found.claimed == found.verified == sum(sum(put.claims.values()) for put in honest().puts)
    mine = [signed for signed in honest().said[ME] if signed.record.stage == ANSWER]
    unread = honest().check(without=mine)
    right = sum(c.claimed for s in unread.standings for c in s.claims if s.verdict == c.verdict == RIGHT)
    assert not unread.wrong and not unread.sound and unread.claimed == found.claimed > unread.verified == right > 0
    assert not dataclasses.replace(honest(), puts=[]).check().standings
