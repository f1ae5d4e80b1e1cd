"""Fast against exact simulation: how much faster, and how far apart.

    python -m benchmarks.simulate        about three minutes on 2 CPU cores

Fast samples a node's request as one tile; exact through fixed tiles, so that a completion's bits depend on nothing else
that is asked for. Both go node by node. Prints one JSON line a row: rounds/s of both, interleaved, and the largest
difference of a sampled log-prob and the share of differing completions in the first round, where both start from the
same weights. (Later rounds differ more: Adam's first steps are nearly the gradient's sign, so rounding grows.)
"""

import json
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import jax
import ml_collections
import numpy as np

from configs import quickstart
from rlswarm_jax.game.effects import Sampled
from rlswarm_jax.game.round import NodeState, play_round
from rlswarm_jax.grpo import learner
from rlswarm_jax.journal import Journal
from rlswarm_jax.machine import hardware
from rlswarm_jax.running import build, simulated

ROUNDS, REPEATS = 20, 3


def make(exact: bool) -> tuple[ml_collections.ConfigDict, build.Pieces]:
    config = quickstart.get_config("simulate")
    config.rounds, config.sampling.exact = ROUNDS, exact
    config.evaluation.every = ROUNDS  # one evaluation at the start, one at the end: rounds are what is timed
    config.evaluation.problems = config.evaluation.rows = 8
    return config, build.build(config, simulated.identities(config))


def seconds(config: ml_collections.ConfigDict, made: build.Pieces, start: list[learner.TrainState]) -> float:
    """Of one run of all rounds from the start."""
    made.engine.set_states(start)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.sqlite")
        simulation = simulated.make_simulation(config, made, journal, lambda _: None)
        started = time.perf_counter()
        simulation.run()
        journal.close()
        return time.perf_counter() - started


def first_samples(made: build.Pieces) -> list[Sampled]:
    """All nodes' completions of the first round."""
    requests = {}
    for node, game in enumerate(made.games):
        round_ = play_round(game, NodeState())
        round_.send(None)  # Evaluate
        requests[node] = round_.send({})  # Sample
    found = made.engine.sample(requests)
    return [s for node in sorted(found) for group in found[node] for s in group]


def main() -> None:
    fast, exact = make(False), make(True)
    starts = [[jax.device_get(made.engine.state(n)) for n in range(len(made.games))] for _, made in (fast, exact)]
    pairs = list(zip(first_samples(fast[1]), first_samples(exact[1]), strict=True))
    differing = float(np.mean([a.tokens != b.tokens for a, b in pairs]))
    gaps = [np.abs(np.subtract(a.logprobs, b.logprobs)).max() for a, b in pairs if a.tokens == b.tokens]
    seconds(*fast, starts[0]), seconds(*exact, starts[1])  # compile
    times = [(seconds(*fast, starts[0]), seconds(*exact, starts[1])) for _ in range(REPEATS)]
    about = {
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "jax": metadata.version("jax")},
    }
    config = {"nodes": len(fast[1].games), "rounds": ROUNDS, "repeats": REPEATS}

    def row(name: str, value: float, unit: str, versus: str | None = None, ratio: float | None = None) -> None:
        fields = {"benchmark": name, "config": config, "value": value, "unit": unit, "versus": versus, "ratio": ratio}
        print(json.dumps(fields | about))

    ratio = statistics.median(b / a for a, b in times)
    rate = ROUNDS / statistics.median(a for a, _ in times)
    row("simulate: fast rounds of the quickstart swarm", round(rate, 2), "rounds/s", "exact", round(ratio, 2))
    row("simulate: largest log-prob difference of fast and exact", float(f"{max(gaps):.2e}"), "nats")
    row("simulate: differing completions of fast and exact", differing, "share")


if __name__ == "__main__":
    main()
