"""A node's account, kept: what is heard, committed, claimed and voted, whatever the chain does meanwhile."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from eth_abi import decode, encode

from rlswarm_jax.audit import commit as merkle
from rlswarm_jax.chain import calls
from rlswarm_jax.chain.calls import Status
from rlswarm_jax.chain.coordinator import Coordinator
from rlswarm_jax.chain.errors import ChainError, FileDamaged, MalformedAnswer, Refused
from rlswarm_jax.game.chain import Moment, Work
from rlswarm_jax.game.effects import Commit
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.identity import Identity, simulated
from rlswarm_jax.keeper import LAST_BLOCKS, LEAST, MOST, TURNS, Keeper
from rlswarm_jax.records.schema import ANSWER, CRITIQUE, REVISE
from tests.chain.client_world import ME, OTHER, World, make_world, original_world, settle_by_hand
from tests.chain.local_chain import encode_call
from tests.game.hand_driver import make_game, play

STRANGER = simulated(0, 5)
BEFORE, AFTER, AGREEMENT = (bytes([byte]) * 32 for byte in (7, 8, 9))
MINUTES = {"min": 0, "max": 3600, "most": 10**9}


class Kept(NamedTuple):
    """A keeper whose thread is not running: `turn` does what that would do once."""

    keeper: Keeper
    client: Coordinator
    world: World
    now: list[float]

    def turn(self, count: int = 1, seconds: float = 1.0, failing: bool = False) -> None:
        """failing: whether the look may fail, which its thread notes and survives."""
        for _ in range(count):
            self.client.step()
            if not self.world.chain.down:
                with contextlib.suppress(*[ChainError] * failing):
                    self.keeper.look()
            self.world.chain.mine()
            self.now[0] += seconds

    def idle(self, seconds: float) -> None:
        """A turn without a block."""
        self.now[0] += seconds
        self.client.step()
        self.keeper.look()

    @property
    def moment(self) -> Moment:
        return self.keeper.moments()[-1]

    def states(self) -> dict[str, str]:
        return {f"{wish.kind} {wish.round} {wish.stage}": wish.state for wish in self.client.wishes()}


@contextlib.contextmanager
def kept(
    world: World, directory: Path, identity: Identity = ME, peers=(ME, OTHER, STRANGER), **options
) -> Iterator[Kept]:
    directory.mkdir(exist_ok=True)
    now = [0.0]
    clocks = {"clock": lambda: now[0], "wall_clock": lambda: now[0]}
    client = world.client(directory, identity=identity, clock=clocks["clock"])
    known = [one.author for one in peers if one is not identity]
    keeper = Keeper(client, identity.author, lambda: known, **clocks, **({"stagger": 1.0} | options))
    client.register()
    yield Kept(keeper, client, world, now)
    client.close()


def work(*records: bytes, peers=()) -> Work:
    """Content hashes are of 32 bytes."""
    return Work(
        [one.ljust(32) for one in records], {ANSWER: 5, CRITIQUE: 0, REVISE: 7}, {one.author: n for one, n in peers}
    )


@pytest.fixture
def world():
    """In round 1, so that votes count; it ends when both nodes have settled."""
    world = make_world(0, quorum=2, **MINUTES)
    for one in (ME, OTHER):
        settle_by_hand(world, one, 0, world.beacon)
    world.call(OTHER, "advanceRound()")
    world.chain.mine(3)
    return world.at(1)


def test_it_hears_the_present_round_and_the_one_before(world, tmp_path):
    with kept(world, tmp_path) as one:
        assert one.keeper.moments() == []
        one.turn()
        before = beacon_of(world, world.round - 1)
        assert one.keeper.moments() == [Moment(world.round - 1, before), Moment(world.round, world.beacon)]


def beacon_of(world: World, number: int) -> bytes:
    """By the event, as foreign readers get it."""
    (found,) = [e for e in world.chain.events(world.contract, "BeaconFinalized") if e["round"] == number]
    return found["beacon"]


def test_a_settlement_with_its_claims_and_votes_comes_to_the_chain(world, tmp_path):
    with kept(world, tmp_path) as one:
        one.turn()
        effect = Commit(one.moment, work(b"r1", b"r2", b"r3", peers=[(STRANGER, 9), (OTHER, 4)]), BEFORE)
        for _ in range(3):  # a node that was killed says it again
            one.keeper.commit(effect, AFTER, AGREEMENT)
        one.turn(6)
        *_, settled = world.events("Settled")
        records = [name.ljust(32) for name in (b"r1", b"r2", b"r3")]
        covered = (merkle.root(records), records[0], records[2], 3)
        assert settled["commitment"] == (*covered, BEFORE, AFTER, AGREEMENT)
        assert (settled["round"], settled["claims"]) == (world.round, (5, 0, 7))
        assert settled["winners"] == (calls.account_of(OTHER.author).lower(),)  # the stranger is not registered
        number = world.round
        assert one.states() == {"register 0 0": "done", f"settle {number} 0": "done"}
        assert one.client.committers(one.client.status()) == {one.client.account}
        settle_by_hand(world, OTHER, number, one.moment.beacon)
        assert one.client.committers(one.client.status()) == {one.client.account, calls.account_of(OTHER.author)}
        one.turn(9)  # which makes a quorum: this node ends the round
        assert one.moment.round == number + 1 and not one.client.committers(one.client.status())
        assert set(one.states().values()) == {"done"}


def test_a_round_is_ended_by_the_node_whose_turn_it_is_and_by_the_next_if_that_is_gone(world, tmp_path):
    with kept(world, tmp_path / "a", ME) as a, kept(world, tmp_path / "b", OTHER) as b:
        both = (a, b)
        for one in both:
            one.turn()
            one.keeper.commit(Commit(one.moment, work(b"r"), BEFORE), AFTER, AGREEMENT)
        number, height = a.moment.round, world.chain.height
        for _ in range(3):
            for one in both:
                one.turn(seconds=0.2)
        wished = [one for one in both if f"advance {number} 0" in one.states()]
        assert len(wished) == 1 and wished[0].client.status().round == number + 1
    world.chain.rewind(height, keep=False)
    with kept(world, tmp_path / "a2", ME) as a, kept(world, tmp_path / "b2", OTHER) as b:
        (alive,) = [one for one in (a, b) if one.client.account != wished[0].client.account]
        for one in (a, b):
            one.turn(2)
            one.keeper.commit(Commit(one.moment, work(b"r"), BEFORE), AFTER, AGREEMENT)
            one.client.step()
        world.chain.mine()
        alive.turn(1, seconds=0.5)
        assert f"advance {number} 0" not in alive.states()  # it may still come
        alive.turn(6, seconds=0.5)
        assert alive.client.status().round == number + 1


def test_members_are_those_that_the_coordinator_counts_of_those_heard_of(world, tmp_path):
    heard = [STRANGER]
    with kept(world, tmp_path, peers=heard) as one:
        assert one.keeper.members() is None  # the chain was not heard of yet
        one.turn()
        assert one.keeper.members() == {ME.author}
    with kept(world, tmp_path, peers=[STRANGER, OTHER]) as one:
        one.turn()
        assert one.keeper.members() == {ME.author, OTHER.author}


def test_nobody_votes_who_was_registered_too_late(tmp_path):
    world = make_world(0, quorum=2, **MINUTES)
    with kept(world, tmp_path) as one:
        one.turn(3)
        one.keeper.commit(Commit(one.moment, work(b"r", peers=[(OTHER, 4)]), BEFORE), AFTER, AGREEMENT)
        one.turn(3)
        assert one.moment.round == 0 and one.client.wishes()[-1].arguments["winners"] == []
        assert [e["winners"] for e in world.events("Settled")] == [()]


def test_a_node_whose_chain_is_away_for_five_minutes_catches_up_and_loses_nothing(world, tmp_path):
    """Sixty rounds of five seconds, the chain away in twenty to eighty of a hundred; every record is committed to."""
    game, state = make_game(ME, chain_every=5, rounds=0, evaluate_every=1000, state_hash=BEFORE), NodeState(round=0)
    published: list[bytes] = []
    commits: list[Commit] = []
    with kept(world, tmp_path) as one:
        one.turn(2)
        for number in range(110):
            world.chain.down = 20 <= number < 80
            if number == 19:
                world.chain.down = True  # and in the very moment in which it is to be told
            chain = [one.keeper.moments()]
            played = play(game, state, chain=chain, identity=ME)
            published += [signed.hash for signed in played.said.values()]
            for effect in played.all(Commit):
                one.keeper.commit(effect, AFTER, game.agreement)
                commits.append(effect)
            state = played.state
            one.turn(1, seconds=5.0)
            if not world.chain.down and one.moment.round not in {e["round"] for e in theirs(world)}:
                with contextlib.suppress(Exception):
                    settle_by_hand(world, OTHER, one.moment.round, one.moment.beacon)
        assert one.client.problems["EndpointDown"] >= 5
        one.turn(20)
    settled = {e["round"]: e for e in world.events("Settled") if e["round"] > 0}
    rounds = [effect.moment.round for effect in commits]
    assert rounds == sorted(set(rounds)) and len(rounds) >= 4
    assert {n: e["commitment"][0] for n, e in settled.items()} == {
        e.moment.round: merkle.root(e.work.records) for e in commits
    }
    covered = [record for effect in commits for record in effect.work.records]
    assert covered == published[: len(covered)] and len(covered) >= 100
    assert max(len(effect.work.records) for effect in commits) >= 60  # those of the time without a chain at once
    assert {n: e["claims"] for n, e in settled.items()} == {
        e.moment.round: (e.work.earned[ANSWER], 0, 0) for e in commits
    }


def theirs(world: World) -> list[dict]:
    return world.events("Settled", calls.account_of(OTHER.author))


def test_on_a_contract_of_the_original_s_it_claims_and_votes_without_commitments(world, tmp_path):
    original = original_world(world)
    with kept(original, tmp_path) as one:
        one.turn(4)
        assert one.keeper.moments() == [Moment(0, b"")] and one.keeper.members() is None
        one.keeper.commit(Commit(one.moment, work(b"r", peers=[(OTHER, 4)]), BEFORE), AFTER, AGREEMENT)
        one.turn(8)
        assert [e["reward"] for e in original.events("RewardSubmitted")] == [5]
        assert [e["winners"] for e in original.events("WinnerSubmitted")] == [(OTHER.peer_id,)]


def test_its_thread_does_the_same_by_itself_and_ends_when_it_is_told_to(world, tmp_path):
    client = world.client(tmp_path)
    world.chain.instant = True
    with Keeper(client, ME.author, lambda: [OTHER.author]) as keeper:
        assert keeper.wait(-1, 30.0, lambda: False) and keeper.moments()[-1] == Moment(world.round, world.beacon)
        assert keeper.finish(lambda: False) and not keeper.wait(world.round, 0.1, lambda: False)
        assert not keeper.wait(world.round, 30.0, lambda: True)
    with pytest.raises(Exception, match="outbox"):
        client.counts()  # it is closed


def test_trouble_is_counted_by_name_once(world, tmp_path):
    with kept(world, tmp_path) as one:
        world.chain.down = True
        one.turn(2)
        first = one.keeper.take_counts()
        assert first["chain/EndpointDown"] == 2 and first["chain/waiting"] == 1
        assert one.keeper.take_counts()["chain/EndpointDown"] == 0


def test_a_round_that_is_over_is_past_with_all_its_stages(world, tmp_path):
    with kept(world, tmp_path) as one:
        assert not one.keeper.is_past(0, 0)  # before it was heard of
        one.turn()
        assert not one.keeper.is_past(world.round, 0) and one.keeper.is_past(world.round - 1, 2)


def test_the_stage_of_an_original_s_contract_is_heard_with_its_round(world, tmp_path):
    original = original_world(world)
    with kept(original, tmp_path) as one:
        one.turn()
        assert not one.keeper.is_past(0, 0)
        original.call(OTHER, "updateStageAndRound()")
        one.turn()
        assert one.keeper.is_past(0, 0) and not one.keeper.is_past(0, 1)


# --- an endpoint that lies


STATUS = {name: "uint256" for name in ("round", "started", "settlements", "needed")}
STATUS |= {"advanceable": "bool", "beacon": "bytes32", "recorded": "bool", "anchor": "uint256", "peers": "uint256"}
STATUS_CALL = encode_call("status()", ())


def lie(world: World, **said) -> None:
    """The endpoint says other numbers of the moment."""
    honest = world.chain._handlers()["eth_call"]

    def answer(params: list) -> str:
        raw = honest(params)
        if params[0]["data"] != "0x" + STATUS_CALL.hex():
            return raw
        values = dict(zip(STATUS, decode(list(STATUS.values()), bytes.fromhex(raw[2:])), strict=True)) | said
        return "0x" + encode(list(STATUS.values()), list(values.values())).hex()

    world.chain.answers["eth_call"] = answer


@pytest.mark.parametrize(
    "said",
    [
        *[{"round": 2**33}, {"round": 2**64}, {"round": 2**255}],
        *[{"started": 2**70}, {"settlements": 2**64}, {"needed": 2**200}, {"anchor": 2**64}],
    ],
)
def test_a_number_that_the_contract_cannot_have_is_a_malformed_answer_counted(world, tmp_path, said):
    with kept(world, tmp_path) as one:
        one.turn()
        lie(world, **said)
        one.client.step()
        with pytest.raises(MalformedAnswer, match=f"coordinator's {next(iter(said))} is"):
            one.keeper.look()
        assert one.keeper.take_counts()["chain/MalformedAnswer"] == 1
        world.chain.answers.clear()
        one.turn()
        assert one.moment == Moment(world.round, world.beacon)


def test_a_far_round_that_is_said_once_is_not_believed(world, tmp_path):
    """It is asked for again at once; so is the first round that a node hears of."""
    for heard in (True, False):
        with kept(world, tmp_path / str(heard)) as one:
            if heard:
                one.turn()
            honest, lies = world.chain._handlers()["eth_call"], [encode_call("status()", ()).hex()]
            lie(world, round=10**9)
            lying = world.chain.answers["eth_call"]

            def once(params, lies=lies, lying=lying, honest=honest):
                is_lie = lies and params[0]["data"][2:] == lies[0]
                return (lies.clear() or lying(params)) if is_lie else honest(params)

            world.chain.mine()
            one.client.connect()
            world.chain.answers["eth_call"] = once
            one.client.step()
            assert not lies and one.client.problems["MalformedAnswer"] == 1
            one.turn()
            assert one.moment == Moment(world.round, world.beacon)
            world.chain.answers.clear()


def test_a_far_round_that_was_believed_is_corrected_by_what_the_chain_says_later(world, tmp_path):
    """Nor does what was wished under it stay, or what had been wished before get lost by it."""
    with kept(world, tmp_path) as one:
        one.turn(4)
        before = Commit(one.moment, work(b"before"), BEFORE)
        lie(world, round=10**9, beacon=b"x" * 32, settlements=9)
        one.turn(failing=True)  # the contract knows no beacon of the round before
        one.keeper.commit(before, AFTER, AGREEMENT)
        one.keeper.commit(Commit(Moment(10**9, b"x" * 32), work(b"lie"), BEFORE), AFTER, AGREEMENT)
        one.turn(failing=True)
        world.chain.answers.clear()
        one.turn(9, failing=True)
        assert one.moment == Moment(world.round, world.beacon) and not one.keeper.is_past(world.round, 0)
        states = one.states()
        assert states[f"settle {world.round} 0"] == "done" and states[f"settle {10**9} 0"] == "refused"
        assert not [name for name, state in states.items() if state in ("waiting", "signed") and str(10**9) in name]


def test_whatever_kills_the_chain_s_thread_is_counted_and_it_begins_anew(world, tmp_path, caplog):
    client = world.client(tmp_path)
    world.chain.instant, look, failures = True, client.status, [ZeroDivisionError("secret"), FileDamaged("full.")]

    def status():
        if failures:
            raise failures.pop()
        return look()

    client.status = status
    with Keeper(client, ME.author, lambda: [OTHER.author]) as keeper:
        assert keeper.wait(-1, 30.0, lambda: False) and keeper.moments()[-1] == Moment(world.round, world.beacon)
        assert keeper.take_counts()["chain/crashed"] == 2
    assert "ZeroDivisionError" in caplog.text and "begins anew" in caplog.text and "secret" not in caplog.text


def test_an_upgrade_that_the_coordinator_names_is_heard_of_in_each_round(world, tmp_path):
    client, asked = world.client(tmp_path), []
    listed = ["/ip4/1.2.3.4/tcp/5/p2p/x", "/rlswarm_jax/upgrade/5.1/from-round/12"]
    world.chain.instant, client.bootnodes = True, lambda: asked.append(1) or listed
    keeper, status = Keeper(client, ME.author, list), client.status()
    assert keeper.upgrade() == (None, -1)
    for round_ in (7, 7, 8):
        client.status = lambda round_=round_: status._replace(round=round_)
        client.beacon = lambda round_: b"a" * 32
        keeper.look()
        assert keeper.upgrade() == (("5.1", 12), round_)
    assert len(asked) == 2
    listed.clear()
    client.status = lambda: status._replace(round=9)
    keeper.look()
    assert keeper.upgrade() == (None, 9)


# --- ending a round, and what a beacon waits for


def end_round(world: World) -> None:
    for one in (ME, OTHER):
        settle_by_hand(world, one, world.round, world.beacon)
    world.call(OTHER, "advanceRound()")


def test_a_node_makes_the_block_that_a_beacon_waits_for_where_nobody_does(world, tmp_path):
    """On a chain that makes blocks only for transactions."""
    with kept(world, tmp_path, patience=10.0) as one:
        one.turn(4)
        world.chain.instant = True
        end_round(world)
        world.chain.rewind(world.chain.height - 1, keep=False)  # without the empty block that `call` made
        one.idle(0.0)
        one.idle(4.0)
        assert not [name for name in one.states() if "finalize" in name]  # somebody else may yet
        for _ in range(6):
            one.idle(16.0)
        assert one.moment.round == world.round + 1
        assert {wish.kind for wish in one.client.wishes()} == {"register", "finalize"}


def test_a_beacon_whose_block_was_forgotten_is_postponed(world, tmp_path):
    with kept(world, tmp_path, patience=10**6) as one:
        end_round(world)
        world.chain.mine(258)
        one.turn(6)
        assert one.moment.round == world.round + 1
        assert [wish.kind for wish in one.client.wishes()] == ["register", "finalize"]  # one at a time
    assert len(world.chain.events(world.contract, "BeaconPostponed")) == 1


def test_a_round_is_ended_by_this_machine_s_clock_where_the_chain_s_stands_still(tmp_path):
    """Where blocks come only with transactions, an estimate goes by a time that has long gone by."""
    world = make_world(rounds=0, min=5, max=500)
    with kept(world, tmp_path, peers=(), patience=10.0) as one:
        one.idle(one.client.status().started + 400.0)
        one.idle(90.0)
        assert not world.chain.pending()  # 490 seconds
        one.idle(30.0)
        one.client.step()
        assert len(world.chain.pending()) == 1


@pytest.mark.parametrize(("block", "seconds"), [(0.5, LEAST), (12.0, 12.0 * LAST_BLOCKS), (1000.0, MOST)])
def test_what_is_waited_for_at_the_end_goes_by_the_pace_of_blocks(block, seconds):
    swarm = Swarm(0, HONEST)
    node = swarm.node(swarm.honest[0])
    assert node.closing_seconds() == LAST_BLOCKS * 15.0  # a guess
    for blocks in (2, 3, 2, 25, 2, 3):  # between two looks; once the endpoint was away
        swarm.now, swarm.block = swarm.now + blocks * block, swarm.block + blocks
        node.look()
    assert node.closing_seconds() == pytest.approx(seconds)
    swarm.block -= 5  # a reorganisation
    node.look()
    assert node.closing_seconds() == LAST_BLOCKS * 15.0


class Swarm:
    """A coordinator of four honest nodes, and of keys that have registered once and left; all share one clock."""

    def __init__(self, gone: int, committed: frozenset[str], refuse: bool = False):
        self.honest = [simulated(3, node) for node in range(4)]
        self.registered = [one.author for one in self.honest] + [simulated(4, node).author for node in range(gone)]
        self.committed, self.refuse, self.now, self.over, self.block = committed, refuse, 0.0, False, 90

    def node(self, identity: Identity) -> Keeper:
        swarm = self

        class Client:
            account, court = calls.account_of(identity.author), None

            def connect(self):
                return calls.Interface("rlswarm_jax", True, min_seconds=30, max_seconds=600, window=4)

            def status(self):
                return Status(7, beacon=b"b" * 32, block=swarm.block, settlements=len(swarm.committed), needed=200)

            def beacon(self, round_):
                return b"a" * 32

            def bootnodes(self):
                return []

            def registered(self, author):
                return 0 if author in swarm.registered else None

            def committers(self, now):
                if swarm.refuse:
                    raise Refused("eth_getLogs", -32601, "no such method")
                return swarm.committed

            def advance(self, round_, unasked):
                swarm.over, swarm.unasked = True, unasked

        known = [author for author in self.registered if author != identity.author]
        clocks = {"clock": lambda: self.now, "wall_clock": lambda: self.now}
        return Keeper(Client(), identity.author, lambda: known, stagger=15.0, **clocks)

    def seconds(self) -> float:
        """Until one of the honest ends the round."""
        nodes, self.now = [self.node(one) for one in self.honest], 550.0
        while not self.over:
            for node in nodes:
                node.look()
            self.now += 1.0
            assert self.now < 3600
        return self.now


HONEST = frozenset(calls.account_of(simulated(3, node).author) for node in range(4))


def test_keys_that_registered_once_and_left_have_no_turn_at_ending_a_round():
    assert Swarm(300, HONEST).seconds() <= 600 + 2  # the first of the honest is there


@pytest.mark.parametrize("swarm", [Swarm(300, frozenset()), Swarm(300, HONEST, refuse=True)])
def test_where_nobody_knows_who_is_there_few_turns_pass_before_everybody_s(swarm):
    assert swarm.seconds() <= 600 + TURNS * 15 + 2


def test_of_four_that_are_there_one_ends_a_round_and_one_more_each_turn():
    swarm = Swarm(300, HONEST)
    nodes, turns = [swarm.node(one) for one in swarm.honest], []
    swarm.now = 601.0
    for node in nodes:
        node.look()
        turns.append(node._may_end[2])
    assert sorted(turns) == [0, 1, 2, 3]
    assert swarm.over and not swarm.unasked  # an estimate tells whether somebody was first
    swarm.now += 600.0  # without a block
    nodes[0].look()
    assert swarm.unasked
