"""How surely replay tells who did not sample what he says, and how far apart two honest computations are.

    python -m benchmarks.replay          about two minutes on 2 CPU cores

The policy is the embedded model after 25 steps of GRPO alone, on the quickstart's tasks, when it is neither
spoiled nor sure any more. Prints one JSON line a row.

*tokens to expose*: tokens that are replayed until one is "not produced", on average (a lower bound if none was), where
the sampler used another temperature, key or model than it says; for an honest one none must be found. *undecided*: the
share of its tokens that replay cannot decide. *largest turned margin*: of all tokens that an honest computation drew
otherwise than the replay would, the largest margin; tau must be above it. *differing completions*: share of
completions that are not the same in another shape (fewer rows at a time, and the exact mode's tiles).
"""

import dataclasses
import itertools
import json
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import numpy as np

from configs import quickstart
from rlswarm_jax import assets, identity, qwen, randomness
from rlswarm_jax.game.effects import Learn
from rlswarm_jax.machine import hardware
from rlswarm_jax.qwen import model, sampling
from rlswarm_jax.qwen.packed import Packed, pack
from rlswarm_jax.qwen.verdict import TAU, make_replay, verdicts
from rlswarm_jax.records.pool import ScoredGroup
from rlswarm_jax.running import build

UPDATES, LATER = 25, 100  # GRPO steps before the policy is sampled, and until it has become another
PROBLEMS, GROUP, ROWS, EXACT_ROWS = 2048, 8, 96, 16
SLOTS, NEW_TOKENS = 16, 12
DTYPES = (("float32", "float32"), ("float32", "bfloat16"), ("float32", "int8"), ("bfloat16", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Completions as a peer would send them, each behind a prompt of its own: `[B, C]` tokens, lengths, log-probs."""

    packed: Packed
    tokens_BC: np.ndarray
    lengths_B: np.ndarray
    logprobs_BC: np.ndarray


class Bench:
    """The policies, the problems and the compiled samplers."""

    def __init__(self, learning_rate: float | None = None):
        config = quickstart.get_config("spoiled-simulate")
        config.learn.learning_rate = learning_rate or config.learn.learning_rate
        config.evaluation.problems = config.evaluation.rows = 8
        made = build.build(config, [identity.simulated(0, 0)])
        self.made, self.game, self.config = made, made.games[0], qwen.load(assets.SPOILED).config
        problems = [self.game.mixture.problem(randomness.seed("problem", "replay", p)) for p in range(PROBLEMS)]
        self.prompts = [self.encode(problem) for problem in problems]
        self.keys_PGM = self.keys("honest")
        self.rounds_played = 0

    def encode(self, problem) -> list[int]:
        return self.game.prompt_format.encode(problem, self.game.tokenizer)

    def keys(self, name: str) -> np.ndarray:
        return np.array(
            [[randomness.key_data("sample", name, p, g) for g in range(GROUP)] for p in range(PROBLEMS)], np.uint32
        )

    def learn(self, updates: int) -> qwen.Params:
        """Plays rounds alone until the weights have been updated so many times in all; the policy then."""
        engine, game = self.made.engine, self.game
        sample = sampling.make_sampler(self.config, max_new_tokens=NEW_TOKENS, temperature=1.0)
        for number in itertools.count(self.rounds_played):
            if int(engine.state(0).step) >= updates:
                self.rounds_played = number
                return jax.device_get(engine.state(0).params)
            seeds = [randomness.seed("problem", "learn", number, p) for p in range(game.local_groups)]
            problems = [game.mixture.problem(seed) for seed in seeds]
            prompts = [self.encode(problem) for problem in problems]
            keys_PGM = np.array(
                [[randomness.key_data("sample", number, p, g) for g in range(GROUP)] for p in range(len(prompts))]
            )
            tile = sampling.make_tile(prompts, keys_PGM, prompt_slots=SLOTS)
            out = jax.device_get(sample(engine.state(0).params, tile))
            groups = []
            for p, problem in enumerate(problems):
                tokens = [out.tokens_PGT[p, g, : out.lengths_PG[p, g]].tolist() for g in range(GROUP)]
                answers = [game.prompt_format.answer(game.tokenizer.decode(ids)) for ids in tokens]
                rewards = [game.mixture.score(problem, answer) for answer in answers]
                groups.append(ScoredGroup(game.author, number, p, False, prompts[p], tokens, None, rewards))
            engine.learn({0: Learn([group for group in groups if group.has_advantage])})
        raise AssertionError("unreachable")

    def sample(self, params, dtype="float32", kv_dtype=None, temperature=1.0, keys_PGM=None, rows=0, exact=False):
        keys_PGM = self.keys_PGM if keys_PGM is None else keys_PGM
        run = sampling.make_sampler(
            self.config,
            max_new_tokens=NEW_TOKENS,
            temperature=temperature,
            rows=rows,
            kv_dtype=kv_dtype or dtype,
        )
        params = model.prepare(params, dtype, GROUP)
        if exact:
            out = sampling.sample_exact(run, params, self.prompts, keys_PGM, prompt_slots=SLOTS, rows=EXACT_ROWS)
        else:
            out = jax.device_get(run(params, sampling.make_tile(self.prompts, keys_PGM, prompt_slots=SLOTS)))
        tokens_BC = out.tokens_PGT.reshape(-1, NEW_TOKENS)
        numbers = [[row] for row in range(len(tokens_BC))]
        own = [self.prompts[row // GROUP] for (row,) in numbers]
        packed = pack(own, tokens_BC, numbers, width=SLOTS + NEW_TOKENS, together=1, new_tokens=NEW_TOKENS)
        return Sampled(packed, tokens_BC, out.lengths_PG.reshape(-1), out.logprobs_PGT.reshape(tokens_BC.shape))

    def replay(self, params, sampled: Sampled, dtype="float32") -> tuple[np.ndarray, np.ndarray]:
        """Log-probs and margins of all tokens that were written, `[X]` each, for temperature 1 and the honest keys."""
        run = make_replay(self.config, max_new_tokens=NEW_TOKENS, temperature=1.0)
        keys_BM = self.keys_PGM.reshape(-1, 2)
        found = run(model.prepare(params, dtype, GROUP), sampled.packed, keys_BM)
        written_BC = np.arange(NEW_TOKENS) < sampled.lengths_B[:, None]
        logprobs_X, leads_X2 = (np.asarray(x)[written_BC] for x in found[:2])
        return np.abs(logprobs_X - sampled.logprobs_BC[written_BC]), leads_X2.min(axis=1)


def honest_rows(bench: Bench, params: qwen.Params) -> Iterator[dict[str, Any]]:
    """Of two honest computations, in each pair of dtypes."""
    for dtype, kv_dtype in DTYPES:
        about = {"weights": dtype, "cache": kv_dtype}
        whole = bench.sample(params, dtype, kv_dtype)
        gaps_X, margins_X = bench.replay(params, whole, dtype)
        yield row("largest log-prob difference", about, gaps_X.max(), "nats")
        yield row("largest turned margin", about, max(0.0, -margins_X.min()), "nats")
        tau = TAU[dtype, kv_dtype]
        found = verdicts(margins_X, tau)
        if (found < 0).any():
            raise AssertionError(f"an honest token was called not produced: {about}")
        yield row("undecided", about | {"tau": tau}, 100 * (found == 0).mean(), "% of tokens")
        for name, other in (
            ("refilled", bench.sample(params, dtype, kv_dtype, rows=ROWS)),
            ("exact", bench.sample(params, dtype, kv_dtype, exact=True)),
        ):
            differ = (other.tokens_BC != whole.tokens_BC).any(axis=1).mean()
            yield row("differing completions", about | {"shape": name}, 100 * differ, "% of completions")


def exposed_rows(bench: Bench, params: qwen.Params, dtypes=("float32", "bfloat16")) -> Iterator[dict[str, Any]]:
    """Of samplers that did not do what they say."""
    one, many = bench.learn(UPDATES + 1), bench.learn(UPDATES + LATER)
    for dtype in dtypes:
        cheats = {
            "nothing": bench.sample(params, dtype),
            "temperature 1.1": bench.sample(params, dtype, temperature=1.1),
            "key": bench.sample(params, dtype, keys_PGM=bench.keys("other")),
            "model, one step later": bench.sample(one, dtype),
            f"model, {LATER} steps later": bench.sample(many, dtype),
        }
        for wrong, sampled in cheats.items():
            _, margins_X = bench.replay(params, sampled, dtype)
            exposed = (verdicts(margins_X, TAU[dtype, dtype]) < 0).sum()
            about = {"wrong": wrong, "weights": dtype, "replayed": len(margins_X), "exposing": int(exposed)}
            yield row("tokens to expose", about, len(margins_X) / max(1, exposed), "tokens")


def row(name: str, config: dict[str, Any], value: float, unit: str) -> dict[str, Any]:
    return {
        "benchmark": name,
        "config": config,
        "value": float(f"{value:.3g}"),
        "unit": unit,
        "versus": None,
        "ratio": None,
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "jax": metadata.version("jax")},
    }


def main() -> None:
    bench = Bench()
    params = bench.learn(UPDATES)
    for rows in (honest_rows, exposed_rows):
        for found in rows(bench, params):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
