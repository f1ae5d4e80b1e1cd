"""What it costs to be checked and to check: naming weights, keeping them to be shown, and replaying a peer's group.

    python -m benchmarks.audit           about a minute on 2 CPU cores

A node of the quickstart plays rounds of one stage by itself (sampling, learning), and beside each round names and keeps
its weights, and replays one of its groups with weights that it has to take from tensors, as an auditor does. All are
timed by processor time, interleaved; medians. Prints one JSON line a row:

- replay: of a token, over what sampling it took; bytes: of the parts that lead to the weights of a round;
- share: of naming and keeping, and of one replay a round, over a round (goal: 3 % together);
- computed: the same for Qwen2.5-0.5B at the setting of SAPO (4 own groups of 8 completions and 4 of peers', 512 tokens
  a text): products of a replay of one group over those of sampling and learning in a round (goal: 5 %).
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from configs import quickstart
from rlswarm_jax import identity, speed
from rlswarm_jax.audit.archive import Archive
from rlswarm_jax.audit.shown import Shown, assemble
from rlswarm_jax.game import turns
from rlswarm_jax.game.effects import Learn
from rlswarm_jax.game.round import _sample
from rlswarm_jax.machine import hardware
from rlswarm_jax.qwen.config import QwenConfig, from_hf
from rlswarm_jax.qwen.sizes import SIZES
from rlswarm_jax.running import build

WARM, ROUNDS = 5, 40
BIG, TEXT, OWN, PEERS, GROUP = "Qwen2.5-0.5B", 512, 4, 4, 8  # tokens of a text, groups in a round, completions of each


def main() -> None:
    config = quickstart.get_config("spoiled-simulate")
    config.audit.auditors = 1
    made = build.build(config, [identity.simulated(0, 0)])
    game, engine = made.games[0], made.one_engine
    spent: dict[str, list[float]] = {}
    sizes: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder), 1 << 30, 8)

        def timed(name: str, act: Callable[[], Any]) -> Any:
            began = time.process_time()
            result = jax.block_until_ready(act())
            spent.setdefault(name, []).append(time.process_time() - began)
            return result

        tokens = []
        for round_ in range(WARM + ROUNDS):
            name = timed("keep", lambda round_=round_: archive.add(engine.tensors(0), round_))
            sizes.append(sum(part.size for part in archive.path(name, [])))
            asked = turns.ask(game, {}, round_, "answer")
            sampled = timed("sample", lambda asked=asked: engine.sample({0: _sample(game, asked)}))[0]
            played = [turns.sampled(game, turn, group) for turn, group in zip(asked, sampled, strict=True)]
            parts = [archive.read(part.hash, 0, part.size) for part in archive.path(name, [])]
            claimed, tensors = turns.claimed(game, played[0]), assemble(parts, Shown(1 << 30), name)
            timed("replay", lambda claimed=claimed, tensors=tensors: engine.replay(0, tensors, [claimed]))
            tokens.append((sum(len(s.tokens) for group in sampled for s in group), sum(map(len, claimed.completions))))
            scores = {item: game.mixture.score(*item) for turn in played for item in turns.to_score(game, turn)}
            groups = [turns.to_scored(game, t, turns.rewards(game, {}, t, scores)) for t in played]
            timed("learn", lambda groups=groups: engine.learn({0: Learn([g for g in groups if g.has_advantage])}))
    median = {name: statistics.median(seconds[WARM:]) for name, seconds in spent.items()}
    in_all, replayed = (sum(counts) for counts in zip(*tokens[WARM:], strict=True))
    a_round = median["sample"] + median["learn"]
    each = median["replay"] / (replayed / ROUNDS)
    report("replay of a token", 1e6 * each, "CPU-us", "sampling it", each / (median["sample"] / (in_all / ROUNDS)))
    report("parts that lead to a round's weights", statistics.median(sizes[WARM:]) / 1e6, "MB")
    report("naming and keeping weights", 1e3 * median["keep"], "CPU-ms", "a round", median["keep"] / a_round)
    report("checking one group of a peer", 1e3 * median["replay"], "CPU-ms", "a round", median["replay"] / a_round)
    share = computed(from_hf(SIZES[BIG]))
    report(f"checking one group of a peer, {BIG}, computed", 100 * share, "% of a round's products", "a round", share)


def computed(model: QwenConfig) -> float:
    """Forward passes of a replay over those of sampling, and the forward and backward passes of learning."""
    texts = [TEXT] * GROUP
    learning = speed.train_flops(model, texts * (OWN + PEERS))
    sampling, replay = speed.train_flops(model, texts * OWN) / 3, speed.train_flops(model, texts) / 3
    return replay / (sampling + learning)


def report(name: str, value: float, unit: str, versus: str | None = None, ratio: float | None = None) -> None:
    line = {
        "benchmark": f"audit: {name}",
        "config": {"model": "the quickstart's", "groups": 4, "group_size": 8},
        "value": float(f"{value:.3g}"),
        "unit": unit,
        "versus": versus,
        "ratio": None if ratio is None else float(f"{ratio:.3g}"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "jax": metadata.version("jax")},
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
