"""How much a lie shows: what an audit of so many tokens finds, by what was not as it is said.

    nice -n 10 python -m benchmarks.roc [--parts lies old honest] [--temperatures 1 2] [--dtypes float32 bfloat16]

Audits are `rlswarm_jax.audit.statistics.judge` over completions one after the other, the last one cut, of the embedded
model after 25 steps of GRPO alone on the quickstart's tasks (`benchmarks.replay`). At temperature 1 it is sure of most
tokens; at 2 there is more chance in them than in most texts of large models. Prints one JSON line a row.

*detected*: the share of audits that say "not produced". *honest*: the same with nothing wrong, which must be none: the
worst statistic (six accuses), and of what rounding may cost the largest share that it did, by the log-probs that the
sampler named (half the square of what they differ by has the divergence for its mean). *best of n, one group*: the
share of groups that are called "not produced", beside the share computed from how many completions of each are of
another key and how many such completions are found alone.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from benchmarks.replay import GROUP, NEW_TOKENS, SLOTS, UPDATES, Bench
from rlswarm_jax import assets, qwen, randomness
from rlswarm_jax.audit.statistics import allowance, judge, reach, spent
from rlswarm_jax.machine import hardware
from rlswarm_jax.qwen import model
from rlswarm_jax.qwen.draw import WHOLE, Draw
from rlswarm_jax.qwen.sampler import Sampler
from rlswarm_jax.qwen.verdict import Replay, Verdict, replay_completions, rounding

PROBLEMS = 256
SIZES = (8, 32, 128, 512, 2000)  # tokens of an audit
TEMPERATURES = (1.0, 2.0)
DTYPES = ("float32", "bfloat16")
SHAPES: dict[str, dict[str, Any]] = {"at once": {}, "96 rows": {"rows": 96}, "exact": {"exact_rows": 16}}
CACHES = {"float32": ("float32", "bfloat16", "int8"), "bfloat16": ("bfloat16", "int8")}
RATES = (2e-4, 1e-6)
OLD = (1, 10)  # updates
CANDIDATES = (2, 8)


@dataclasses.dataclass(frozen=True)
class Written:
    """Completions of every prompt, G each, one after the other, and the log-probs that their sampler named."""

    tokens: list[list[int]]
    logprobs: list[np.ndarray]


class Audits:
    """One temperature and dtype: samples, replays, and judges."""

    def __init__(self, bench: Bench, params: qwen.Params, temperature: float, dtype: str):
        self.bench, self.params, self.temperature, self.dtype = bench, params, temperature, dtype
        self.prompts = bench.prompts[:PROBLEMS]
        self.asked = [prompt for prompt in self.prompts for _ in range(GROUP)]
        self.keys_PGM = self.keys("honest")
        self.honest = self.sample()

    def keys(self, name: str) -> np.ndarray:
        return np.array([[randomness.key_data("sample", name, p, g) for g in range(GROUP)] for p in range(PROBLEMS)])

    def sample(self, params=None, name="honest", temperature=1.0, kv_dtype=None, how=None, **shape) -> Written:
        """temperature: times that which is claimed."""
        named = {"temperature": temperature * self.temperature, "kv_dtype": kv_dtype or self.dtype, "how": how or WHOLE}
        run = sampler(self.bench.config, **named, **shape)
        out = run(self.prepared(params), self.prompts, self.keys(name))
        tokens_RT, lengths_R = out.tokens_PGT.reshape(-1, NEW_TOKENS), out.lengths_PG.reshape(-1)
        cut = [slice(n) for n in lengths_R]
        logprobs_RT = out.logprobs_PGT.reshape(-1, NEW_TOKENS)
        return Written(
            [tokens_T[part].tolist() for tokens_T, part in zip(tokens_RT, cut, strict=True)],
            [logprobs_T[part] for logprobs_T, part in zip(logprobs_RT, cut, strict=True)],
        )

    def prepared(self, params: qwen.Params | None) -> qwen.Params:
        return model.prepare(self.params if params is None else params, self.dtype, GROUP)

    def replay(self, tokens: Sequence[Sequence[int]], params=None, kv_dtype=None) -> list[Replay]:
        error = rounding(self.dtype, kv_dtype or self.dtype, self.temperature)
        room = {"rows": 1024, "together": GROUP, "text_slots": SLOTS + GROUP * NEW_TOKENS, "whole": NEW_TOKENS}
        asked = (self.asked, tokens, self.keys_PGM.reshape(-1, 2))
        to = {"temperature": self.temperature, "rounding": error} | room
        return replay_completions(self.prepared(params), self.bench.config, *asked, **to)

    def lies(self) -> Iterator[tuple[str, list[list[int]]]]:
        """Of what was not as it is said, but for weights that are old and the best of several."""
        honest, game = self.honest, self.bench.game
        mixture, decode = game.mixture, game.tokenizer.decode
        problems = [mixture.problem(randomness.seed("problem", "replay", p)) for p in range(PROBLEMS)]
        ends = self.bench.config.eos_token_ids[0]
        yield "temperature × 1.1", self.sample(temperature=1.1).tokens
        yield "temperature × 0.9", self.sample(temperature=0.9).tokens
        yield "top-p 0.95", self.sample(how=Draw(top_p=0.95)).tokens
        shifted_PGT = [honest.tokens[p * GROUP + (g + 1) % GROUP] for p in range(PROBLEMS) for g in range(GROUP)]
        yield "key of another index", shifted_PGT
        yield "a peer's completion", self.sample(name="peer").tokens
        gold = [[*game.tokenizer.encode(problem.answers[0])[: NEW_TOKENS - 1], ends] for problem in problems]
        yield "the right answer, written in", [tokens for tokens in gold for _ in range(GROUP)]
        yield "another model's text", self.sample(params=qwen.load(assets.BASE).params).tokens
        yield "8-bit weights", self.sample(params=jax.tree.map(in_8_bits, jax.device_get(self.params))).tokens
        words = game.tokenizer.encode(" ok")
        yield "lengthened", [[*t[:-1], *words, ends][:NEW_TOKENS] if t[-1] == ends else t for t in honest.tokens]
        drawn = [honest.tokens, *(self.sample(name=f"candidate {n}").tokens for n in range(1, max(CANDIDATES)))]
        right = np.array(
            [
                [
                    mixture.score(problems[i // GROUP], game.prompt_format.answer(decode(t)))
                    for i, t in enumerate(tokens)
                ]
                for tokens in drawn
            ]
        )
        for count in CANDIDATES:
            best = right[:count].argmax(axis=0)
            yield f"best of {count}", [drawn[n][i] for i, n in enumerate(best)]


@functools.cache
def sampler(config: qwen.QwenConfig, **options: Any) -> Sampler:
    return Sampler(config, widths=[SLOTS], max_new_tokens=NEW_TOKENS, **options)


def in_8_bits(w: np.ndarray) -> np.ndarray:
    """A matrix with a scale for each column, as weights are quantised."""
    if w.ndim < 2:
        return w
    scale = np.abs(w).max(axis=0, keepdims=True) / 127
    return (np.round(w / scale) * scale).astype(w.dtype)


def audits(replays: Sequence[Replay], size: int) -> list[list[Replay]]:
    """One after the other, of `size` tokens each."""
    found: list[list[Replay]] = [[]]
    room = size
    for replay in replays:
        part = Replay(*(x[:room] for x in (replay.logprobs_T, replay.leads_T2, replay.open_T)), replay.rounding)
        found[-1].append(part)
        room -= len(part.logprobs_T)
        if not room:
            found, room = [*found, []], size
    return found[:-1]


def detected(about: dict[str, Any], replays: Sequence[Replay]) -> Iterator[dict[str, Any]]:
    bits = judge(replays).bits / sum(len(replay.logprobs_T) for replay in replays)
    for size in SIZES:
        found = [judge(audit).verdict is Verdict.NOT_PRODUCED for audit in audits(replays, size)]
        if found:
            of = {"audits": len(found), "bits_per_token": round(bits, 3)}
            yield row("detected", about | {"tokens": size}, 100 * np.mean(found), "%", of)


def honest_rows(of: Audits) -> Iterator[dict[str, Any]]:
    for kv_dtype, (shape, options) in itertools.product(CACHES[of.dtype], SHAPES.items()):
        written = of.sample(kv_dtype=kv_dtype, **options)
        replays = of.replay(written.tokens, kv_dtype=kv_dtype)
        named = [dataclasses.replace(r, logprobs_T=own_T) for r, own_T in zip(replays, written.logprobs, strict=True)]
        about = {"temperature": of.temperature, "weights": of.dtype, "cache": kv_dtype, "shape": shape}
        for size in SIZES:
            several, by_sampler = audits(replays, size), audits(named, size)
            if not several:
                continue
            judged = [judge(audit) for audit in several]
            wrong = [one.verdict is Verdict.NOT_PRODUCED for one in judged]
            shares = [spent([r.logprobs_T for r in a], b) for a, b in zip(by_sampler, several, strict=True)]
            found = {"audits": len(judged), "statistic": round(max(one.statistic for one in judged), 2)}
            found["allowance_share"] = float(f"{max(shares):.3g}")
            found["reach"] = float(f"{reach(allowance(several[0]), several[0][0].rounding.tau):.3g}")
            yield row("honest", about | {"tokens": size}, 100 * np.mean(wrong), "%", found)


def group_row(of: Audits, lie: str, honest: Sequence[Replay], replays: Sequence[Replay], about) -> dict[str, Any]:
    """Found in one group, and computed: 1 - (1 - d)^m, d of m completions of another key that are found alone."""
    other = [not np.array_equal(a.logprobs_T, b.logprobs_T) for a, b in zip(honest, replays, strict=True)]
    alone = [judge([replay]).verdict is Verdict.NOT_PRODUCED for replay in replays]
    rate = np.mean([found for found, wrong in zip(alone, other, strict=True) if wrong] or [0.0])
    groups = [slice(p, p + GROUP) for p in range(0, len(replays), GROUP)]
    computed = np.mean([1 - (1 - rate) ** sum(other[group]) for group in groups])
    measured = np.mean([judge(replays[group]).verdict is Verdict.NOT_PRODUCED for group in groups])
    found = {"computed": round(100 * computed, 1), "groups": len(groups), "found_alone": round(100 * rate, 1)}
    found["of_another_key"] = round(100 * np.mean(other), 1)
    return row(f"{lie}, one group", about, 100 * measured, "%", found)


def lie_rows(of: Audits) -> Iterator[dict[str, Any]]:
    about = {"temperature": of.temperature, "weights": of.dtype}
    honest = of.replay(of.honest.tokens)
    for lie, tokens in of.lies():
        replays = of.replay(tokens)
        yield from detected({"lie": lie} | about, replays)
        if lie.startswith("best of"):
            yield group_row(of, lie, honest, replays, about)


def old_rows(start: Bench, several: Sequence[Audits]) -> Iterator[dict[str, Any]]:
    """Sampled with weights before so many updates, and replayed with those after."""
    for rate in RATES:
        bench = Bench(rate)
        bench.made.engine.set_states([start.made.engine.state(0)])
        for old in OLD:
            claimed = bench.learn(UPDATES + old)
            for of in several:
                about = {"lie": f"weights {old} updates old, at {rate:g}", "temperature": of.temperature}
                yield from detected(about | {"weights": of.dtype}, of.replay(of.honest.tokens, params=claimed))


def row(name: str, config: dict[str, Any], value: float, unit: str, measured: dict[str, Any]) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "jax": metadata.version("jax")}
    about = {"versus": None, "ratio": None, "measured": measured, "hardware": hardware(), "versions": versions}
    return {"benchmark": name, "config": config, "value": float(f"{value:.3g}"), "unit": unit} | about


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["lies", "old", "honest"], choices=["lies", "old", "honest"])
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    given = parser.parse_args(arguments)
    bench = Bench()
    params = bench.learn(UPDATES)
    several = [
        Audits(bench, params, temperature, dtype) for temperature in given.temperatures for dtype in given.dtypes
    ]
    parts = {
        "lies": itertools.chain.from_iterable(map(lie_rows, several)),
        "old": old_rows(bench, several),
        "honest": itertools.chain.from_iterable(map(honest_rows, several)),
    }
    for found in itertools.chain.from_iterable(parts[name] for name in given.parts):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
