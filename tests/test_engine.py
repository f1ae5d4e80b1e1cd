import dataclasses
import functools
import itertools
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
import scipy.special

from rlswarm_jax import assets, qwen, randomness
from rlswarm_jax.engine import DivergedError, Engine, EngineConfig
from rlswarm_jax.game.effects import Learn, Sample
from rlswarm_jax.game.prompts import FORMATS
from rlswarm_jax.grpo.learner import LearnerConfig
from rlswarm_jax.parallel import DeviceConfig
from rlswarm_jax.qwen import model
from rlswarm_jax.records.pool import ScoredGroup
from rlswarm_jax.tasks import Mixture, Problem
from rlswarm_jax.tasks.verifier import Verifier
from tests import test_parallel
from tests.grpo import tiny

NODES, GROUP, TEMPERATURE, TAU = 3, 4, 0.8, 1e-4
CONFIG = EngineConfig(
    max_prompt_tokens=12,
    max_new_tokens=6,
    group_size=GROUP,
    stages=[(2, 0)],
    temperature=TEMPERATURE,
    exact=False,
    exact_rows=4,
    held_out_problems=20,
    held_out_rows=8,
    positive_only_external=True,
    positive_only_local=False,
    external_correction="behaviour",
    advantage="none",
    updates_per_round=1,
)
LEARNER = LearnerConfig(
    learning_rate=1e-3,
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=3.0,
    temperature=TEMPERATURE,
)


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    with tiny.optimizations(False):
        yield


class Reverse:
    """Three letters to be reversed, which the embedded model can; a share of the problems wants something else."""

    fingerprint, seconds = "reverse-1", 0.0

    def __init__(self, name, impossible_one_in):
        self.name, self.impossible_one_in = name, impossible_one_in

    def problem(self, seed, split="train"):
        word = "".join(chr(97 + (seed >> (8 * i)) % 26) for i in range(3))
        answer = word if seed % self.impossible_one_in == 0 else word[::-1]
        return Problem(self.name, seed, word, f"rev {word}=", (answer,))

    def score(self, problem, answer_text):
        return float(answer_text == problem.answers[0])

    def canonical(self, answer_text):
        return answer_text


@functools.cache
def policy(path=assets.SPOILED):
    return qwen.load(path)


def build(num_nodes=1, devices=None, learner=LEARNER, **changes):
    mixture = Mixture({"often": Reverse("often", 2), "rare": Reverse("rare", 9)}, {"often": 1.0, "rare": 1.0})
    config = dataclasses.replace(CONFIG, **changes)
    return Engine(policy(), Verifier({}, mixture), FORMATS["compact"], config, learner, num_nodes, devices)


engine = functools.cache(build)  # whose executables are compiled once


@functools.cache
def states():
    """Nodes that have parted: the embedded model, each weight off by a share of itself, and less sure of itself."""
    found = []
    for w in range(NODES):
        rng = np.random.default_rng(w)
        params = jax.tree.map(
            lambda x, r=rng: x * (1 + 0.1 * r.standard_normal(x.shape, np.float32)), jax.device_get(policy().params)
        )
        params["norm"] = 0.3 * params["norm"]
        found.append(engine().state(0).replace(params=params, opt_state=jax.device_get(engine().state(0).opt_state)))
    return found


def alone(w):
    """A node by itself."""
    engine().set_states([states()[w]])
    return engine()


def together():
    """All nodes together."""
    engine(NODES).set_states(states())
    return engine(NODES)


def request(w):
    prompts = [policy().tokenizer.encode(f"rev {word}=") for word in ("abc", "tiger", "xy", "dog")[w : w + 2]]
    keys_PGM = np.array([[randomness.key_data("sample", w, p, g) for g in range(GROUP)] for p in range(2)])
    return Sample(prompts, keys_PGM)


@functools.cache
def samples():
    return together().sample({w: request(w) for w in range(NODES)})


def group_of(w, p, *, external=False, rewards=(1.0, 0.0, 0.0, 1.0), logprobs=True):
    completions = samples()[w][p]
    return ScoredGroup(
        author=bytes([w]) * 33,
        round=0,
        index=p,
        external=external,
        prompt=request(w).prompts[p],
        tokens=[s.tokens for s in completions],
        logprobs=[s.logprobs for s in completions] if logprobs else None,
        rewards=list(rewards),
    )


def lesson(w, **options):
    return Learn([group_of(w, 0, **options), group_of(w, 1, rewards=(0.0, 1.0, 0.0, 0.0), **options)])


def dense_logprobs(params, group):
    """Log-probs of a group's completions by the full forward, at the sampling temperature, in float64."""
    found = []
    for completion in group.tokens:
        text = np.zeros((1, CONFIG.max_prompt_tokens + CONFIG.max_new_tokens), np.int32)
        text[0, : len(group.prompt) + len(completion)] = group.prompt + completion
        logits_TV = np.asarray(full_logits(params, policy().config, text), np.float64)[0] / TEMPERATURE
        table_TV = scipy.special.log_softmax(logits_TV, axis=-1)
        found.append([table_TV[len(group.prompt) - 1 + c, token] for c, token in enumerate(completion)])
    return found


full_logits = jax.jit(qwen.logits, static_argnums=1)


class TestRows:
    LOCAL = ScoredGroup(
        author=b"me",
        round=3,
        index=0,
        external=False,
        prompt=[7, 8, 9],
        tokens=[[11, 0], [12, 13, 14], [15, 0], [16]],
        logprobs=[[-0.1, -0.2], [-0.3, -0.4, -0.5], [-0.6, -0.7], [-0.8]],
        rewards=[1.0, 0.0, 0.0, 0.0],
    )
    EXTERNAL = ScoredGroup(
        author=b"peer",
        round=2,
        index=0,
        external=True,
        prompt=[5],
        tokens=[[21, 22, 0], [23, 0], [24], [25, 26, 27, 28, 29, 0]],
        logprobs=[[-1.0, -1.1, -1.2], [-1.3, -1.4], [-1.5], [-1.6] * 6],
        rewards=[0.0, 1.0, 0.0, 1.0],
    )

    def rows(self, *groups, **changes):
        return build(**changes).rows(groups)

    def test_a_row_is_a_completion_with_all_that_is_known_of_it(self):
        rows = self.rows(self.LOCAL, self.EXTERNAL, positive_only_external=False)
        groups = [group for group in (self.LOCAL, self.EXTERNAL) for _ in range(GROUP)]
        assert [row.prompt for row in rows] == [group.prompt for group in groups]
        assert [row.completion for row in rows] == [*self.LOCAL.tokens, *self.EXTERNAL.tokens]
        assert [row.logprobs for row in rows] == [*self.LOCAL.logprobs, *self.EXTERNAL.logprobs]
        advantages = [0.75, -0.25, -0.25, -0.25, -0.5, 0.5, -0.5, 0.5]
        np.testing.assert_allclose([row.advantage for row in rows], advantages, atol=1e-6)
        assert [row.external for row in rows] == [False] * 4 + [True] * 4

    def test_advantages_are_scaled_and_weighted_as_the_config_says(self):
        found = [row.advantage for row in self.rows(self.LOCAL, advantage="std")]
        np.testing.assert_allclose(found, np.array([0.75, -0.25, -0.25, -0.25]) / 0.1875**0.5, rtol=1e-4)
        heavy = msgspec.structs.replace(self.LOCAL, weight=2.0)
        np.testing.assert_allclose([row.advantage for row in self.rows(heavy)], [1.5, -0.5, -0.5, -0.5], atol=1e-6)

    def test_only_the_better_completions_of_others_count_and_all_of_ones_own(self):
        better = [self.EXTERNAL.tokens[1], self.EXTERNAL.tokens[3]]
        assert [row.completion for row in self.rows(self.EXTERNAL, self.LOCAL)] == [*better, *self.LOCAL.tokens]
        everything = self.rows(self.EXTERNAL, positive_only_external=False)
        assert [row.completion for row in everything] == self.EXTERNAL.tokens
        even = msgspec.structs.replace(self.LOCAL, rewards=[0.5, 0.0, 1.0, 0.5])  # those in the middle count as tokens
        assert [row.advantage for row in self.rows(even)] == [0.0, -0.5, 0.5, 0.0]

    @pytest.mark.parametrize(("correction", "known"), [("behaviour", True), ("reencode", False)])
    def test_others_log_probs_are_used_only_where_they_correct(self, correction, known):
        rows = self.rows(self.LOCAL, self.EXTERNAL, external_correction=correction)
        assert [row.logprobs is not None for row in rows] == [True] * 4 + [known] * 2

    def test_length_costs_reward_where_the_loss_says_so(self):
        """Of six tokens the last three cost, in tokens and not in characters."""
        found = [row.advantage for row in self.rows(self.EXTERNAL, overlong_buffer=0.5, positive_only_external=False)]
        shaped = np.array([0.0, 1.0, 0.0, 1.0]) - [0, 0, 0, 1]
        np.testing.assert_allclose(found, shaped - shaped.mean(), atol=1e-6)

    def test_what_was_cut_off_is_not_learned_from_where_the_config_says_so(self):
        """Its advantage counts among the others all the same. Of a text encoded anew only its length can tell."""
        found = self.rows(self.LOCAL, mask_truncated=True)
        assert [row.completion for row in found] == [[11, 0], [15, 0]]
        np.testing.assert_allclose([row.advantage for row in found], [0.75, -0.25], atol=1e-6)
        longest = msgspec.structs.replace(self.LOCAL, logprobs=None, tokens=[[1] * 6, [1] * 5, [1] * 5 + [0], [1]])
        assert [len(row.completion) for row in self.rows(longest, mask_truncated=True)] == [5, 6, 1]

    @pytest.mark.parametrize("correction", ["behaviour", "reencode"])
    def test_a_group_without_log_probs_is_taken_as_on_policy(self, correction):
        foreign = [msgspec.structs.replace(group, logprobs=None) for group in (self.LOCAL, self.EXTERNAL)]
        rows = self.rows(*foreign, external_correction=correction)
        assert [row.logprobs for row in rows] == [None] * 6


flat = itertools.chain.from_iterable


class TestSample:
    def test_nodes_together_sample_what_each_samples_alone(self):
        differing = 0
        for w in range(NODES):
            found = alone(w).sample({0: request(w)})[0]
            assert [len(group) for group in found] == [GROUP, GROUP]
            for one, other in zip(flat(found), flat(samples()[w]), strict=True):
                if one.tokens != other.tokens:
                    differing += 1  # a draw within tau of going the other way
                else:
                    np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=TAU)
                    assert (one.text, one.ended) == (other.text, other.ended)
        assert differing <= 1

    @pytest.mark.slow
    def test_the_exact_engine_samples_the_same_through_its_fixed_tiles(self):
        exact = build(NODES, exact=True)
        exact.set_states(states())
        found = exact.sample({1: request(1)})
        assert list(found) == [1] and [len(group) for group in found[1]] == [GROUP, GROUP]
        pairs = list(zip(flat(found[1]), flat(samples()[1]), strict=True))
        same = [(one, other) for one, other in pairs if one.tokens == other.tokens]
        assert len(same) >= len(pairs) - 1
        for one, other in same:
            np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=TAU)

    def test_log_probs_are_the_nodes_own_at_the_sampling_temperature(self):
        for w in range(NODES):
            group = group_of(w, 0)
            for found, expected in zip(group.logprobs, dense_logprobs(states()[w].params, group), strict=True):
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)

    def test_text_is_what_the_tokens_say_and_the_end_is_part_of_them(self):
        ended = 0
        for sampled in flat(flat(samples().values())):
            characters = "".join(chr(32 + token - 2) for token in sampled.tokens if token > 1)
            assert sampled.text == characters
            assert sampled.ended == (sampled.tokens[-1] == 0) and 0 not in sampled.tokens[:-1]
            ended += sampled.ended
        assert ended > 0


class TestDtypes:
    def test_weights_are_cast_once_for_each_policy(self, monkeypatch):
        narrow = build(dtype="bfloat16", kv_dtype="int8")
        narrow.set_states([states()[0]])
        made, prepare, ask, taught = [], model.prepare, {0: request(0)}, {0: lesson(0)}
        monkeypatch.setattr(model, "prepare", lambda *given: made.append(prepare(*given)) or made[-1])
        ours = narrow.sample(ask)
        assert narrow.sample(ask) == ours and len(made) == 1
        assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("bfloat16")}
        wide = alone(0).sample(ask)
        close = [
            abs(a.logprobs[0] - b.logprobs[0]) < 0.3
            for group, other in zip(ours[0], wide[0], strict=True)
            for a, b in zip(group, other, strict=True)
            if a.tokens[0] == b.tokens[0]
        ]
        assert len(close) > 4 and all(close) and ours != wide
        made.clear()
        narrow.learn(taught)
        narrow.sample(ask)
        assert len(made) == 1


class TestLearn:
    def test_sampler_and_trainer_agree_on_the_log_probs_of_what_a_node_sampled(self):
        for w, metrics in together().learn({w: lesson(w) for w in range(NODES)}).items():
            assert 0 < metrics["logprob_gap"] < 1e-5, w
            np.testing.assert_allclose((metrics["ratio_mean"], metrics["ess_fraction"]), 1, atol=1e-5)
            assert metrics["updates"] == 1 and metrics["clip_fraction"] == 0

    def test_nodes_together_learn_what_each_learns_alone(self):
        engine_ = together()
        metrics = engine_.learn({w: lesson(w) for w in range(NODES)})
        for w in range(NODES):
            single = alone(w)
            own = single.learn({0: lesson(w)})[0]
            assert own.keys() == metrics[w].keys()
            for name, value in own.items():
                np.testing.assert_allclose(metrics[w][name], value, rtol=1e-4, atol=TAU, err_msg=name)
            params = single.state(0).params
            for one, other, before in zip(
                *map(jax.tree.leaves, (params, engine_.state(w).params, states()[w].params)), strict=True
            ):
                assert np.abs(one - before).max() > 5e-4
                np.testing.assert_allclose(one, other, rtol=0, atol=TAU)
            for one, other in zip(
                *(dense_logprobs(p, group_of(w, 0)) for p in (params, engine_.state(w).params)), strict=True
            ):
                np.testing.assert_allclose(one, other, rtol=0, atol=TAU)

    def test_nothing_to_learn_changes_nothing(self):
        same = (0.5,) * GROUP
        engine_ = together()
        metrics = engine_.learn({0: Learn([]), 1: Learn([group_of(1, 0, rewards=same)]), 2: lesson(2)})
        assert [metrics[w]["updates"] for w in range(NODES)] == [0, 0, 1]
        for w in (0, 1):
            tiny.assert_bit_equal(engine_.state(w), states()[w])
        assert engine_.state(2).step == 1

    def test_compiling_ahead_changes_nothing_and_leaves_nothing_to_compile(self):
        to_learn, fresh, compiled = lesson(0), build(), []
        fresh.set_states([states()[0]])
        handler = logging.Handler()
        handler.emit = lambda said: compiled.append(said.getMessage())
        logging.getLogger("jax").addHandler(handler)
        jax.config.update("jax_log_compiles", True)  # in all threads
        try:
            fresh.compile()
            assert any("Finished XLA compilation" in said for said in compiled)
            tiny.assert_bit_equal(fresh.state(0), states()[0])
            compiled.clear()
            bound = jax.device_put(jax.device_get(states()[0]), jax.devices()[0])  # as a checkpoint's are
            fresh.set_states([bound])
            fresh.sample({0: request(0)})
            fresh.learn({0: to_learn})
            fresh.evaluate([0])
        finally:
            jax.config.update("jax_log_compiles", False)
            logging.getLogger("jax").removeHandler(handler)
        assert [said for said in compiled if "Finished XLA compilation" in said] == []

    def test_rows_are_counted_by_where_they_came_from(self):
        external = group_of(0, 1, external=True, rewards=(0.0, 1.0, 0.0, 0.0))
        metrics = together().learn({1: Learn([external, group_of(1, 0)])})[1]
        assert metrics["rows_external"] == 1 and metrics["rows_local"] == GROUP
        assert metrics["tokens"] == len(external.tokens[1]) + sum(map(len, group_of(1, 0).tokens))

    def test_a_node_whose_gradients_stay_not_finite_stops_with_the_reason(self):
        """One that comes back is forgiven; the weights stay as they were all the time."""
        engine_, broken = alone(0), Learn([group_of(0, 0, rewards=(float("nan"), 0.0, 0.0, 1.0))])
        for _ in range(2):
            metrics = engine_.learn({0: broken})[0]
            assert metrics["nonfinite"] == 1 and metrics["updates"] == 0
            assert all(np.isfinite(value) for value in metrics.values())
        tiny.assert_bit_equal(engine_.state(0), states()[0])
        assert engine_.learn({0: lesson(0)})[0]["updates"] == 1
        for _ in range(2):
            engine_.learn({0: broken})
        with pytest.raises(DivergedError, match=r"3 updates in a row .* not finite; rewards are not finite: look at"):
            engine_.learn({0: broken})

    def test_weights_that_are_not_finite_are_named_as_the_reason(self):
        engine_, state = alone(0), states()[0]
        ruined = state.params | {"norm": np.full_like(state.params["norm"], np.nan)}
        engine_.set_states([state.replace(params=ruined)])
        with pytest.raises(DivergedError, match="the weights themselves are not finite"):
            for _ in range(4):
                engine_.learn({0: lesson(0)})

    def test_learning_makes_the_rewarded_completions_likelier(self):
        engine_ = alone(0)
        group = group_of(0, 1, rewards=(0.0, 1.0, 0.0, 0.0), logprobs=False)
        for _ in range(3):
            engine_.learn({0: Learn([group])})
        before, after = (
            [sum(row) for row in dense_logprobs(state.params, group)] for state in (states()[0], engine_.state(0))
        )
        gains = np.array(after) - before
        assert gains[1] > 0 and gains[1] == gains.max()

    @pytest.mark.parametrize("external", [False, True])
    def test_a_second_update_is_off_policy_against_the_policy_before_the_first(self, monkeypatch, external):
        """Also for samples taken to be on-policy: their ratio is 1 at the first update, not at the second."""
        learn = lesson(0, external=external)
        config = dataclasses.replace(CONFIG, external_correction="reencode", positive_only_external=False)

        def after(updates):
            monkeypatch.setattr(engine(), "config", dataclasses.replace(config, updates_per_round=updates))
            metrics = alone(0).learn({0: learn})[0]
            return engine().state(0), metrics

        middle, _ = after(1)
        state, metrics = after(2)
        ratios = np.concatenate(
            [
                np.exp(np.subtract(new, old))
                for group in learn.groups
                for new, old in zip(
                    dense_logprobs(middle.params, group), dense_logprobs(states()[0].params, group), strict=True
                )
            ]
        )
        assert np.abs(ratios - 1).max() > 0.01
        np.testing.assert_allclose(metrics["ratio_mean"], (1 + ratios.mean()) / 2, rtol=1e-5)
        assert metrics["updates"] == 2 and state.step == 2


class TestCorrections:
    def test_a_sampler_of_another_dtype_is_corrected_by_default_and_shown(self):
        """bfloat16 weights and an int8 cache against float32: weights near 1, not 1; none where both are float32."""
        found = {}
        for dtype, cache in (("float32", "float32"), ("bfloat16", "int8")):
            there = build(dtype=dtype, kv_dtype=cache)
            there.set_states([states()[0]])
            sampled = there.sample({0: request(0)})[0]
            groups = [
                ScoredGroup(
                    **{"author": b"me", "round": 0, "index": p, "external": False, "prompt": request(0).prompts[p]},
                    tokens=[s.tokens for s in completions],
                    logprobs=[s.logprobs for s in completions],
                    rewards=[1.0, 0.0, 0.0, 0.0],
                )
                for p, completions in enumerate(sampled)
            ]
            found[dtype] = there.learn({0: Learn(groups)})[0]
            gaps = np.concatenate(
                [
                    np.subtract(now, one.logprobs)
                    for group, completions in zip(groups, sampled, strict=True)
                    for now, one in zip(dense_logprobs(states()[0].params, group), completions, strict=True)
                ]
            )
            weights = np.exp(gaps)
            np.testing.assert_allclose(found[dtype]["importance_mean"], weights.mean(), rtol=1e-4)
            np.testing.assert_allclose(found[dtype]["importance_max"], weights.max(), rtol=1e-4)
            np.testing.assert_allclose(found[dtype]["logprob_gap"], np.abs(gaps).mean(), rtol=1e-2, atol=1e-6)
            assert found[dtype]["ratio_mean"] == 1
        assert found["float32"]["importance_max"] - 1 < 1e-4 < 1e-3 < found["bfloat16"]["logprob_gap"]
        assert found["bfloat16"]["ess_fraction"] < found["float32"]["ess_fraction"]

    def test_a_peer_s_group_of_too_few_effective_samples_is_left_out_and_counted(self):
        honest = group_of(0, 0, external=True)
        lies = [[-0.01 if (g + t) % 5 else -15.0 for t in range(len(one))] for g, one in enumerate(honest.tokens)]
        liar = msgspec.structs.replace(honest, author=b"liar", logprobs=lies)
        strange = msgspec.structs.replace(honest, author=b"strange", logprobs=None)
        there = build(external_min_ess=0.25, positive_only_external=False)
        there.set_states([states()[0]])
        metrics = there.learn({0: Learn([honest, liar, strange])})[0]
        assert metrics["low_ess_groups"] == 1 and metrics["rows_external"] == 2 * GROUP
        for changes in ({"external_correction": "reencode"}, {"external_min_ess": 0.0}):
            there = build(**{"external_min_ess": 0.25, "positive_only_external": False} | changes)
            assert there._trusted(0, [honest, liar, strange]) == [honest, liar, strange]


def run_on_eight_devices(function, folder):
    """In a process of their own; what is found is there afterwards."""
    subprocess.run(
        [sys.executable, "-c", f"from tests import test_engine; test_engine.{function}({str(folder)!r})"],
        check=True,
        env=os.environ | test_parallel.ENVIRONMENT,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )


@pytest.mark.slow
def test_on_eight_devices_a_node_samples_and_learns_what_it_does_on_one(tmp_path):
    """However it uses them."""
    (tmp_path / "given").write_bytes(pickle.dumps((jax.device_get(states()[0]), request(0), lesson(0))))
    run_on_eight_devices("on_eight_devices", tmp_path)
    several, exact = pickle.loads((tmp_path / "found").read_bytes())
    own = alone(0)
    accuracy, own_sampled = own.evaluate([0]), own.sample({0: request(0)})[0]
    expected = own.learn({0: lesson(0)})[0]
    for sampled, found_accuracy, metrics, state, compiled in several:
        assert [s.tokens for s in flat(sampled)] == [s.tokens for s in flat(own_sampled)]
        assert found_accuracy == accuracy and metrics.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        moments, own_moments = (s.opt_state[1].mu for s in (state, own.state(0)))
        tiny.assert_close(moments, own_moments, 1e-5)
        tiny.assert_close(state.params, own.state(0).params, TAU)  # Adam blows up what rounding does to a tiny gradient
        assert compiled == []  # after the first round was compiled ahead
    fixed = build(exact=True)
    fixed.set_states([states()[0]])
    assert exact == (fixed.sample({0: request(0)}), fixed.evaluate([0]))  # log-probs and all, bit for bit


# a loss that asks for all that a loss can ask for
ANCHORED = dataclasses.replace(
    LEARNER, kl_weight=0.5, reference_every=2, entropy_top=0.5, ratio="sequence", aggregation="sequences"
)


def learn_anchored(params, learn, **options):
    """Two rounds of two updates each: the reference is the first policy, then the one that was."""
    there = build(learner=ANCHORED, updates_per_round=2, **options)
    there.set_states([dataclasses.replace(jax.device_get(there.state(0)), params=params)])
    metrics = [there.learn({0: Learn(learn.groups, round_)})[0] for round_ in (0, 2)]
    return metrics, jax.device_get(there.state(0))


def on_eight_devices(folder):
    state, asked, learn = pickle.loads((Path(folder) / "given").read_bytes())
    several = []
    for options in ({}, {"backend": "pmap"}, {"fsdp": 2, "tensor": 2}):
        there = build(devices=DeviceConfig(**options))
        there.compile()
        there.set_states([state])
        with test_parallel.compilations() as compiled:
            sampled, accuracy = there.sample({0: asked})[0], there.evaluate([0])
            metrics = there.learn({0: learn})[0]
        several.append((sampled, accuracy, metrics, jax.device_get(there.state(0)), compiled))
    fixed = build(exact=True)
    fixed.set_states([state])
    exact = fixed.sample({0: asked}), fixed.evaluate([0])
    (Path(folder) / "found").write_bytes(pickle.dumps((several, exact)))


@pytest.mark.slow
def test_on_eight_devices_a_loss_that_asks_for_other_policies_is_what_it_is_on_one(tmp_path):
    (tmp_path / "given").write_bytes(pickle.dumps((jax.device_get(states()[0]).params, lesson(0))))
    run_on_eight_devices("anchored_on_eight_devices", tmp_path)
    anchored = pickle.loads((tmp_path / "found").read_bytes())
    first = jax.device_get(states()[0]).params
    own_metrics, own_state = learn_anchored(first, lesson(0))
    assert own_metrics[0]["kl"] > 1e-3 and own_metrics[0]["updates"] == 2
    for metrics, state in anchored:
        for there, here in zip(metrics, own_metrics, strict=True):
            assert there.keys() == here.keys()
            for name, value in here.items():
                np.testing.assert_allclose(there[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
        tiny.assert_close(state.opt_state[1].mu, own_state.opt_state[1].mu, 1e-3)
        there, here, start = (flat_weights(one) for one in (state.reference.params, own_state.reference.params, first))
        # of single weights Adam blows up what rounding does to a tiny gradient
        assert np.linalg.norm(there - here) < 0.01 * np.linalg.norm(here - start)


def flat_weights(params):
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(params)])


def anchored_on_eight_devices(folder):
    given = pickle.loads((Path(folder) / "given").read_bytes())
    found = [learn_anchored(*given, devices=DeviceConfig(**options)) for options in ({}, {"fsdp": 2, "tensor": 2})]
    (Path(folder) / "found").write_bytes(pickle.dumps(found))


class TestCompany:
    """What a node gets does not depend, in any bit, on which other nodes asked at the same time."""

    def test_sampling(self):
        assert together().sample({0: request(0)}) == {0: samples()[0]}
        assert together().sample({2: request(2), 1: request(1)}) == {w: samples()[w] for w in (1, 2)}

    def test_learning_and_who_did_not_ask_stays_as_it_was(self):
        everybody = together()
        metrics = everybody.learn({w: lesson(w) for w in range(NODES)})
        after = [jax.device_get(everybody.state(w)) for w in range(NODES)]
        for w in (0, 2):
            one = together()
            assert one.learn({w: lesson(w)}) == {w: metrics[w]}
            for other in range(NODES):
                tiny.assert_bit_equal(one.state(other), after[w] if other == w else states()[other])

    def test_evaluation(self):
        everybody = together().evaluate(range(NODES))
        assert together().evaluate([1]) == {1: everybody[1]}


class TestEvaluate:
    def test_accuracy_is_the_share_of_held_out_problems_that_greedy_decoding_gets_right(self):
        engine_ = engine(NODES)
        problems = engine_.mixture.held_out(CONFIG.held_out_problems)
        base = policy(assets.BASE)
        unsure = base.params | {"norm": 0.2 * base.params["norm"]}  # its best token is the same, its draws are not
        out = qwen.generate(base, [p.compact for p in problems], max_new_tokens=CONFIG.max_new_tokens, temperature=0)
        right = np.array([text == p.answers[0] for p, (text,) in zip(problems, out.text, strict=True)])
        often = np.array([p.task == "often" for p in problems])
        assert right[often].mean() < right[~often].mean() and 0 < right[often].sum() < often.sum() < 20
        before = together().evaluate([0])[0]
        found = engine_.evaluate_params(unsure)
        assert found["problems"] == 20
        np.testing.assert_allclose(
            [found["accuracy"], found["accuracy/often"], found["accuracy/rare"]],
            [right.mean(), right[often].mean(), right[~often].mean()],
        )
        assert before["accuracy"] < found["accuracy"]
        for w in range(NODES):
            tiny.assert_bit_equal(engine_.state(w), states()[w])
