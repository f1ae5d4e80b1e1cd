"""What is true of a simulated swarm, whatever its nodes learn."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterator

import jax
import msgspec
import numpy as np
import pytest

from benchmarks.poison import hostile_record
from configs import common
from rlswarm_jax import assets, identity, qwen, tasks
from rlswarm_jax.adversaries import STRATEGIES
from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.engine import Engine, EngineConfig
from rlswarm_jax.game.effects import Publish, decode_result
from rlswarm_jax.game.player import RoundReport
from rlswarm_jax.game.prompts import FORMATS
from rlswarm_jax.game.readings import Readings
from rlswarm_jax.game.round import Game
from rlswarm_jax.grpo import learner
from rlswarm_jax.journal import Journal
from rlswarm_jax.records.envelope import open_envelope, seal
from rlswarm_jax.simulate import Simulation
from rlswarm_jax.simulated_node import Timing
from rlswarm_jax.swarm.virtual import Partition, VirtualNetwork
from rlswarm_jax.swarm.waiting import read_by
from rlswarm_jax.tasks.verifier import Verifier
from tests.grpo import tiny

NODES, ROUNDS, GROUP, LOCAL, EXTERNAL = 3, 4, 4, 3, 3
AUDITED = {"auditors": 1, "rechecks": 4}
TAU = 1e-4  # float32, across executables of different shapes


class World:
    """One policy, one mixture and the compiled engines, shared by the tests; `play` starts from fresh weights."""

    def __init__(self):
        # the model that knows its tasks, hot enough to be wrong now and then: there must be something to learn
        self.policy = qwen.load(assets.BASE)
        self.mixture = tasks.make_mixture(common.tiny_tasks().to_dict())
        self.temperature = 2.0
        self.learner_config = learner.LearnerConfig(
            learning_rate=3e-3,
            clip_low=0.2,
            clip_high=0.28,
            dual_clip=3.0,
            temperature=self.temperature,
        )
        self.engines: dict[bool, Engine] = {}

    def engine(self, nodes: int, exact: bool) -> Engine:
        if exact not in self.engines:
            config = EngineConfig(
                max_prompt_tokens=16,
                max_new_tokens=12,
                group_size=GROUP,
                stages=[(LOCAL, 0)],
                temperature=self.temperature,
                exact=exact,
                exact_rows=8,
                held_out_problems=8,
                held_out_rows=8,
                positive_only_external=False,
                positive_only_local=False,
                external_correction="behaviour",
                advantage="std",
                updates_per_round=1,
            )
            verifier = Verifier({}, self.mixture)
            made = Engine(self.policy, verifier, FORMATS["compact"], config, self.learner_config, nodes)
            self.engines[exact] = made
        engine = self.engines[exact]
        engine.set_states([learner.Learner(self.learner_config, self.policy.config).init(self.policy.params)] * nodes)
        return engine

    def games(self, nodes: int, seed: int, rounds: int) -> list[Game]:
        return [
            Game(
                swarm="test",
                seed=seed,
                author=identity.simulated(seed, node).author,
                mixture=self.mixture,
                tokenizer=self.policy.tokenizer,
                prompt_format=FORMATS["compact"],
                tokenizer_fingerprint="t",
                eos_token_ids=(0,),
                rounds=rounds,
                local_groups=LOCAL,
                external_groups=EXTERNAL,
                group_size=GROUP,
                temperature=self.temperature,
                max_new_tokens=12,
                max_staleness=2,
                evaluate_every=2,
            )
            for node in range(nodes)
        ]

    def simulation(
        self, path, *, nodes=NODES, rounds=ROUNDS, exact=False, seed=0, timing=None, checkpoints=None, own=(), **network
    ) -> "Played":
        """own: fields of some nodes' games, by node."""
        reports: list[RoundReport] = []
        journal = Journal(path)
        simulation = Simulation(
            [
                dataclasses.replace(game, **dict(own).get(i, {}))
                for i, game in enumerate(self.games(nodes, seed, rounds))
            ],
            [identity.simulated(seed, node) for node in range(nodes)],
            self.engine(nodes, exact),
            VirtualNetwork(seed, nodes, **network),
            timing or Timing(),
            journal,
            reports.append,
            checkpoints=checkpoints,
            checkpoint_every=1,
            metrics_offset=lambda: len(reports),
        )
        return Played(simulation, reports, journal)


class Played:
    def __init__(self, simulation, reports, journal):
        self.simulation, self.reports, self.journal = simulation, reports, journal

    def run(self) -> "Played":
        self.simulation.run()
        # now: the next run of the same engine starts from fresh weights
        self._weights = [
            jax.device_get(jax.tree.leaves(self.simulation.weights(n.index))) for n in self.simulation.nodes
        ]
        return self

    def weights(self, node: int) -> list[np.ndarray]:
        return self._weights[node]

    def metrics(self, node: int, name: str) -> list[float]:
        return [r.metrics.get(name, 0.0) for r in self.reports if r.node == node]

    def records(self, node: int):
        rows = [e for e in self.journal.read(node, 0) if e.kind == Publish.__name__]
        return [open_envelope(msgspec.msgpack.decode(row.result, type=bytes)).record for row in rows]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tiny.optimizations(not tiny.QUICK):  # else as users run it
        yield World()


@pytest.fixture
def paths(tmp_path):
    return (tmp_path / f"{n}.sqlite" for n in itertools.count())


def equal(ours, theirs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_one_seed_gives_one_result_and_nodes_learn_different_things(world, paths):
    first, second = world.simulation(next(paths)).run(), world.simulation(next(paths)).run()
    assert first.reports == second.reports
    for node in range(NODES):
        assert equal(first.weights(node), second.weights(node))
        assert not equal(first.weights(node), jax.tree.leaves(world.policy.params))
    assert not equal(first.weights(0), first.weights(1))
    other = world.simulation(next(paths), seed=1).run()
    assert not equal(first.weights(0), other.weights(0))


def test_every_record_reaches_every_peer_and_peers_are_learned_from(world, paths):
    played = world.simulation(next(paths)).run()
    for node in range(NODES):
        assert played.metrics(node, "records/published") == [1.0] * ROUNDS
        assert played.metrics(node, "records/received") == [float(NODES - 1)] * ROUNDS
        assert sum(played.metrics(node, "groups/external")) > 0
        assert sum(played.metrics(node, "learn/rows_external")) > 0


def test_exact_and_batched_runs_agree_to_rounding(world, paths):
    """Over one round: Adam's first step is nearly the gradient's sign, so rounding grows from there."""
    batched = world.simulation(next(paths), rounds=1).run()
    exact = world.simulation(next(paths), rounds=1, exact=True).run()
    start = jax.device_get(jax.tree.leaves(world.policy.params))
    for node in range(NODES):
        ours, theirs = batched.records(node)[0], exact.records(node)[0]
        for a, b in zip(ours.groups, theirs.groups, strict=True):
            for x, y in zip(a.completions, b.completions, strict=True):
                assert x.text == y.text
                np.testing.assert_allclose(x.logprobs_T, y.logprobs_T, atol=TAU)
        assert batched.metrics(node, "learn/updates") == [1.0]
        apart = np.concatenate(
            [(x - y).ravel() for x, y in zip(batched.weights(node), exact.weights(node), strict=True)]
        )
        moved = np.concatenate([(x - y).ravel() for x, y in zip(exact.weights(node), start, strict=True)])
        assert np.linalg.norm(apart) < 0.05 * np.linalg.norm(moved)


def test_a_node_is_the_same_bits_alone_and_beside_others_it_does_not_hear(world, paths):
    beside = world.simulation(next(paths), exact=True, loss=1.0).run()
    alone = world.simulation(next(paths), nodes=1, exact=True).run()
    assert equal(beside.weights(0), alone.weights(0))
    assert sum(alone.metrics(0, "learn/updates")) > 0


@tiny.as_users_run
def test_the_order_of_arrival_does_not_matter(world, paths):
    quick = world.simulation(next(paths), latency=0.01, jitter=0.0).run()
    patient = Timing(deadline=60.0)  # a deadline that is reached makes other sets of records
    shuffled = world.simulation(next(paths), timing=patient, latency=0.5, jitter=3.0).run()
    for node in range(NODES):
        assert equal(quick.weights(node), shuffled.weights(node))


def test_nobody_waits_longer_than_the_deadline(world, paths):
    timing = Timing(sample=1.0, learn=1.0, evaluate=0.5, deadline=2.0)
    played = world.simulation(next(paths), timing=timing, loss=1.0).run()
    assert played.simulation.finished
    for node in range(NODES):
        ends = [r.at for r in played.reports if r.node == node]
        # sample + deadline + learn, and an evaluation in every second round and at the end
        assert ends == pytest.approx([4.5, 8.5, 13.0, 17.5])
        assert played.metrics(node, "groups/external") == [0.0] * ROUNDS


def test_a_partition_cuts_only_what_it_separates_and_heals(world, paths):
    partition = Partition(0.0, 9.0, ((0, 1), (2,)))
    played = world.simulation(next(paths), partitions=[partition]).run()
    assert played.metrics(0, "records/received")[0] == 1.0
    assert played.metrics(2, "records/received")[0] == 0.0
    assert played.metrics(2, "records/received")[-1] == NODES - 1.0


def test_a_slow_node_joins_the_round_the_others_are_in(world, paths):
    timing = Timing(deadline=1.0, slowdown=(1.0, 1.0, 9.0))
    played = world.simulation(next(paths), timing=timing).run()
    rounds = [r.round for r in played.reports if r.node == 2]
    assert rounds[0] == 0 and rounds == sorted(set(rounds))
    assert len(rounds) < ROUNDS  # it skipped what it was too slow for
    assert [r.round for r in played.reports if r.node == 0] == list(range(ROUNDS))
    assert played.simulation.finished


ENDS = ["kill", "save", "damage"]


@pytest.mark.parametrize(
    ("step", "end"),
    [(37, "kill"), (37, "save"), (37, "damage"), *(pytest.param(5, e, marks=pytest.mark.slow) for e in ENDS)],
)
def test_a_simulation_stopped_at_any_event_and_restored_ends_with_the_same_bits(world, tmp_path, step, end):
    """With a slow node for which the others do not wait: at a checkpoint they have learned in a later round already.

    Killed; or stopped, with a checkpoint where it stands; or that, and the disk has changed it: the one before is used.
    """
    options = dict(
        timing=Timing(deadline=0.5, slowdown=(1.0, 1.0, 2.2)), loss=0.2, own=dict.fromkeys(range(3), AUDITED)
    )
    whole = world.simulation(tmp_path / "whole.sqlite", **options).run()
    learned_again = 0
    for events in itertools.count(4, step):
        folder = tmp_path / str(events)
        folder.mkdir()
        checkpoints = Checkpoints(folder / "checkpoints")
        stopped = world.simulation(folder / "journal.sqlite", checkpoints=checkpoints, **options)
        countdown = itertools.count(events, -1)
        stopped.simulation.run(lambda countdown=countdown: next(countdown) == 0)
        done = stopped.simulation.finished
        if end != "kill":
            stopped.simulation.save()
        stopped.journal.close()
        checkpoints.close()
        last = checkpoints.latest
        if end == "damage":
            shutil.rmtree(folder / "checkpoints" / str(last) / "extra")
            if not checkpoints.needed:  # there is but one
                continue

        checkpoints = Checkpoints(folder / "checkpoints")
        resumed = world.simulation(folder / "journal.sqlite", checkpoints=checkpoints, **options)
        kept = resumed.simulation.restore() or 0
        first = {node.index: min(node.boundaries, default=0) for node in resumed.simulation.nodes}
        learned_again += sum(e.kind == "Learn" for n in first for e in resumed.journal.read(n, first[n]))
        resumed.run()
        checkpoints.close()
        reports = stopped.reports[:kept] + resumed.reports
        damaged = sum(report.metrics.pop("checkpoints/damaged", 0) for report in reports)
        assert damaged == (end == "damage") and reports == whole.reports, events
        for node in range(NODES):
            assert equal(resumed.weights(node), whole.weights(node)), (events, node)
        if done:
            break
    assert learned_again > 0 or end == "save"


def test_hostile_bytes_change_nothing_and_are_counted(world, paths):
    honest = world.simulation(next(paths)).run()
    record = honest.records(1)[0]
    stranger = identity.Identity(b"\7" * 32)
    forged = bytearray(seal(record, identity.simulated(0, 1)))
    forged[-1] ^= 1
    copied = seal(msgspec.structs.replace(record, author=stranger.author), stranger)
    attacked = world.simulation(next(paths))
    for at, raw in ((0.1, b"\xc1garbage"), (0.2, bytes(forged)), (0.3, copied), (0.4, b"")):
        attacked.simulation.inject(raw, 0, at)
    attacked.run()
    assert equal(honest.weights(0), attacked.weights(0))
    assert sum(attacked.metrics(0, "records/rejected/undecodable")) == 2
    assert sum(attacked.metrics(0, "records/rejected/bad signature")) == 1
    # a validly signed copy of another's rollouts: a record, but its problems are not its author's
    assert sum(attacked.metrics(0, "groups/unused/foreign problem")) == LOCAL


@pytest.mark.parametrize("records", [2, 64])
def test_nodes_that_share_what_was_read_end_with_the_bits_of_those_that_do_not(world, paths, records):
    """Also when it is forgotten before all have read it."""
    alone = world.simulation(next(paths), loss=0.2).run()
    shared = Readings(records)
    together = world.simulation(next(paths), loss=0.2, own={n: {"readings": shared} for n in range(NODES)}).run()
    assert together.reports == alone.reports and sum(alone.metrics(0, "groups/external")) > 0
    assert all(equal(together.weights(node), alone.weights(node)) for node in range(NODES))


@pytest.mark.parametrize("name", ["wrong", "copy", "spam"])
def test_honest_nodes_learn_nothing_false_from_one_that_means_ill(world, paths, name):
    played = world.simulation(next(paths), own={2: {"strategy": STRATEGIES[name]}}).run()
    authors = [node.game.author.hex() for node in played.simulation.nodes]
    for node in (0, 1):
        assert played.metrics(node, f"received_from/{authors[2]}") == [1.0] * ROUNDS
        assert sum(played.metrics(node, f"learned_from/{authors[1 - node]}")) > 0
        taught = sum(played.metrics(node, f"learned_from/{authors[2]}"))
        assert taught == 0 if name != "copy" else taught < ROUNDS * LOCAL
    # in its records, what it said; in its weights, what it did sample
    assert sum(played.metrics(2, "learn/updates")) > 0 and sum(played.metrics(2, "groups/local")) > 0


LYING = ("other_key", "best_of", "wrong", "copy", "spam", "style", "withhold", "accuse", "vouch", "equivocate")
NOT_LYING = ("free_ride", "stale", "")  # what these publish, they did sample


@pytest.mark.parametrize("name", [*LYING, *NOT_LYING])
def test_who_does_not_sample_as_it_says_is_found_out_and_nobody_else(world, paths, name):
    """By all honest nodes, and it is not learned from any more; who vouches for others is where there is a liar."""
    own = {n: AUDITED | {"rechecks": LOCAL * GROUP} for n in range(4)}  # all together have the bits
    own[2]["strategy"] = STRATEGIES.get(name)
    if name == "vouch":  # where two look at the same group
        own[3]["strategy"] = STRATEGIES["other_key"]
        own = {n: fields | {"auditors": 2} for n, fields in own.items()}
    played = world.simulation(next(paths), nodes=4, rounds=6, own=own).run()
    authors = [node.game.author for node in played.simulation.nodes]
    expected = {authors[n] for n in ([2] if name in LYING else []) + ([3] if name == "vouch" else [])}
    for node in (0, 1):
        trust = played.simulation.nodes[node].state.trust
        assert trust.offenders.keys() <= expected and sum(played.metrics(node, "audit/own_not produced")) == 0
        assert sum(played.metrics(node, "audit/own_produced")) > 0
        for author in trust.offenders:
            since = next(n for n, of in enumerate(played.metrics(node, "audit/distrusted")) if of)
            if len(trust.offenders) == 1:
                assert played.metrics(node, f"audit/distrusted/{author.hex()}")[since] == 1
                assert sum(played.metrics(node, f"learned_from/{author.hex()}")[since + 1 :]) == 0
    found = [set(played.simulation.nodes[node].state.trust.offenders) for node in (0, 1)]
    assert found[0] | found[1] == expected


@pytest.mark.parametrize("keys", [1, 8])
def test_who_answers_right_in_capitals_and_spaces_is_learned_from_by_nobody(world, paths, keys):
    """Their records are well-formed and right by a scorer that folds both away; `benchmarks.poison` has the figures."""
    attackers = [identity.simulated(0, 100 + key) for key in range(keys)]
    attacked = world.simulation(next(paths))
    for who, round_, node in itertools.product(attackers, range(ROUNDS), range(NODES)):
        raw = hostile_record(attacked.simulation.nodes[0].game, who, round_)
        attacked.simulation.inject(raw, node, 0.01)
    attacked.run()
    for node in range(NODES):
        assert sum(attacked.metrics(node, "groups/received")) >= LOCAL * ROUNDS * keys  # they were read and scored
        assert not any(sum(attacked.metrics(node, f"learned_from/{who.author.hex()}")) for who in attackers)
        assert sum(attacked.metrics(node, "groups/external")) > 0  # the others were learned from


def test_an_equivocating_peer_is_evidence_and_is_not_learned_from_or_trusted_any_more(world, paths):
    honest = world.simulation(next(paths)).run()
    record = honest.records(1)[0]
    other = seal(msgspec.structs.replace(record, policy_version=99), identity.simulated(0, 1))
    # the second record arrives while the stage still waits for node 2
    attacked = world.simulation(next(paths), timing=Timing(slowdown=(1.0, 1.0, 2.0)))
    attacked.simulation.inject(other, 0, 2.0)
    attacked.run()
    assert attacked.metrics(0, "records/rejected/equivocation")[0] == 1
    assert attacked.metrics(0, "records/received")[0] == 1.0  # node 2's alone
    assert max(attacked.metrics(0, "records/equivocations")) == 1
    author = attacked.simulation.nodes[1].game.author
    assert attacked.metrics(0, "audit/equivocators") == [1.0] + [0.0] * (ROUNDS - 1)
    assert attacked.metrics(0, f"audit/distrusted/{author.hex()}") == [1.0] * ROUNDS
    assert sum(attacked.metrics(0, f"learned_from/{author.hex()}")) == 0
    assert sum(attacked.metrics(2, f"learned_from/{author.hex()}")) > 0  # which has not heard of it


def test_what_was_published_is_in_the_journal_as_the_bytes_that_were_sent(world, paths):
    played = world.simulation(next(paths)).run()
    for node in played.simulation.nodes:
        for record in played.records(node.index):
            assert open_envelope(seal(record, node.identity)).record == record
    entries = played.journal.read(0, 0)
    assert [e.kind for e in entries if e.round == 0] == [
        "begin",
        "Evaluate",
        "Pin",
        "Sample",
        "Publish",
        "Gather",
        "Score",
        "Learn",
    ]
    assert decode_result(Publish(played.records(0)[0]), entries[4].result) is None


# --- who is there when


FOR_EVER = 10**6


@tiny.as_users_run
def test_nodes_that_never_start_change_no_bit_of_the_others(world, paths):
    alone = world.simulation(next(paths), loss=0.2).run()
    idle = world.simulation(next(paths), nodes=NODES + 3, timing=Timing(present={3: (), 4: (), 5: ()}), loss=0.2).run()
    assert idle.reports == alone.reports and idle.simulation.finished
    assert all(equal(idle.weights(node), alone.weights(node)) for node in range(NODES))
    assert sum(alone.metrics(0, "groups/external")) > 0


@tiny.as_users_run
def test_a_late_joiner_plays_the_swarms_round_and_is_heard_from_there(world, paths):
    timing = Timing(deadline=60.0, present={2: ((2, FOR_EVER),)})
    played = world.simulation(next(paths), rounds=6, timing=timing).run()
    # as the first began round 2, most were still in the round before
    assert [r.round for r in played.reports if r.node == 2] == [1, 2, 3, 4, 5]
    joiner = played.simulation.nodes[2].game.author.hex()
    assert played.metrics(0, "records/received")[0] == 1.0
    assert sum(played.metrics(0, f"received_from/{joiner}")) >= 4 and played.metrics(0, "records/received")[-1] == 2.0
    assert sum(played.metrics(2, "learn/rows_external")) > 0 and played.simulation.finished
    assert max(r.at for r in played.reports) < 60.0  # nobody waited for who was still to come


@tiny.as_users_run
def test_a_crash_holds_up_nobody_and_who_comes_back_goes_to_the_others_without_contradicting_itself(world, paths):
    timing = Timing(deadline=60.0, present={2: ((0, 2), (4, FOR_EVER))}, slowdown=(1.0, 1.0, 1.5))
    played = world.simulation(next(paths), rounds=7, timing=timing).run()
    rounds = [r.round for r in played.reports if r.node == 2]
    assert rounds[0] == 0 and rounds[-2:] == [5, 6] and 2 not in rounds
    assert [r.round for r in played.reports if r.node == 0] == list(range(7))
    records = played.records(2)
    assert len({(r.round, r.stage) for r in records}) == len(records)
    assert max(played.metrics(0, "records/equivocations")) == 0
    assert max(r.at for r in played.reports) < 60.0 and played.simulation.finished
    steps = [(e.round, e.step) for e in played.journal.read(2, 0)]
    assert steps == sorted(set(steps))


@tiny.as_users_run
def test_who_is_killed_bound_to_its_round_finishes_it_when_it_comes_back(world, paths):
    """It has published the last stage: what it learns from is what it says it learned from."""
    timing = Timing(learn=4.0, deadline=60.0, present={2: ((0, 1), (3, FOR_EVER))}, slowdown=(1.0, 1.0, 1.2))
    played = world.simulation(next(paths), rounds=6, timing=timing).run()
    rounds = [r.round for r in played.reports if r.node == 2]
    assert rounds[0] == 0 and rounds[1] >= 3  # killed as the others began round 1, and it was learning
    kinds = [e.kind for e in played.journal.read(2, 0) if e.round == 0]
    assert kinds == ["begin", "Evaluate", "Pin", "Sample", "Publish", "Gather", "Score", "Learn"]


def test_a_swarm_goes_on_when_one_is_gone_for_good(world, paths):
    played = world.simulation(next(paths), timing=Timing(present={0: ((0, 2),)})).run()
    assert {r.round for r in played.reports if r.node == 0} <= {0, 1} and played.simulation.finished
    assert [r.round for r in played.reports if r.node == 1] == list(range(ROUNDS))


def test_who_can_send_little_is_heard_later(world, paths):
    at_once = world.simulation(next(paths), rounds=1, jitter=0.0).run()
    size = max(len(seal(r, identity.simulated(0, n))) for n in range(NODES) for r in at_once.records(n))
    slow = world.simulation(next(paths), rounds=1, jitter=0.0, bandwidth=size / 2.0).run()
    ends = [max(r.at for r in played.reports) for played in (at_once, slow)]
    assert ends[1] - ends[0] == pytest.approx(2.0, rel=0.1)
    assert all(equal(at_once.weights(n), slow.weights(n)) for n in range(NODES))


# --- a part of the swarm is read


def test_with_reads_a_node_hears_and_awaits_only_those_drawn_and_in_time_everybody(world, paths):
    own = {node: {"reads": 1} for node in range(4)}
    played = world.simulation(next(paths), nodes=4, rounds=6, own=own, timing=Timing(deadline=60.0)).run()
    authors = [node.game.author for node in played.simulation.nodes]
    for node, game in enumerate(n.game for n in played.simulation.nodes):
        assert played.metrics(node, "records/received") == [1.0] * 6
        for report in (r for r in played.reports if r.node == node):
            (drawn,) = read_by(game.author, authors, 1, game.beacon(report.round), report.round)
            assert report.metrics[f"received_from/{drawn.hex()}"] == 1.0
        for author, round_, _ in played.simulation.nodes[node].inbox.records:  # nothing is held of anybody else
            assert author in read_by(game.author, authors, 1, game.beacon(round_), round_)
    # whoever does not read the slow one does not wait for it
    timing = Timing(deadline=60.0, slowdown=(1.0, 1.0, 1.0, 2.0))
    slow = world.simulation(next(paths), nodes=4, rounds=1, own=own, timing=timing).run()
    first = {r.node: r.at for r in slow.reports if r.round == 0}
    pair = {authors.index(a) for a in read_by(authors[3], authors, 1, played.simulation.nodes[0].game.beacon(0), 0)}
    assert {node for node in range(3) if first[node] > min(first.values()) + 1.0} == pair


@pytest.mark.parametrize("end", ["kill", "save"])
def test_comings_goings_and_draws_are_the_same_bits_after_any_stop(world, tmp_path, end):
    present = {2: ((0, 2), (3, FOR_EVER)), 3: ((1, FOR_EVER),), 4: ()}
    timing = Timing(deadline=1.5, slowdown=(1.0, 1.2, 1.0, 2.2), present=present)
    own = {n: AUDITED | ({"reads": 2} if n in (0, 2) else {}) for n in range(5)}
    own[1] |= {"strategy": STRATEGIES["other_key"]}
    options = dict(nodes=5, timing=timing, loss=0.1, bandwidth=20_000.0, own=own)
    whole = world.simulation(tmp_path / "whole.sqlite", **options).run()
    assert any(sum(whole.metrics(node, "audit/distrusted")) for node in (0, 2, 3))
    assert {2, 3} <= {r.node for r in whole.reports} and not any(r.node == 4 for r in whole.reports)
    for events in (31, 52, 67, 90):
        folder = tmp_path / str(events)
        folder.mkdir()
        checkpoints = Checkpoints(folder / "checkpoints")
        stopped = world.simulation(folder / "journal.sqlite", checkpoints=checkpoints, **options)
        countdown = itertools.count(events, -1)
        stopped.simulation.run(lambda countdown=countdown: next(countdown) == 0)
        assert not stopped.simulation.finished
        if end == "save":
            stopped.simulation.save()
        stopped.journal.close()
        checkpoints.close()
        resumed = world.simulation(
            folder / "journal.sqlite", checkpoints=Checkpoints(folder / "checkpoints"), **options
        )
        kept = resumed.simulation.restore() or 0
        resumed.run()
        assert stopped.reports[:kept] + resumed.reports == whole.reports, events
        assert all(equal(resumed.weights(node), whole.weights(node)) for node in range(5)), events
