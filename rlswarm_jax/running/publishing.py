"""A run's publishing: whose weights leave, when, and how they come to be on the chain."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections

from rlswarm_jax import parallel
from rlswarm_jax.errors import UsageError
from rlswarm_jax.publish import card
from rlswarm_jax.publish.background import Background, Offer
from rlswarm_jax.publish.model import Weights, save
from rlswarm_jax.publish.queue import Entry, Queue
from rlswarm_jax.qwen import peft
from rlswarm_jax.qwen.weights import read_model, resolve
from rlswarm_jax.running import build, folder

if TYPE_CHECKING:
    from rlswarm_jax.engine import Engine
    from rlswarm_jax.engines import Engines
    from rlswarm_jax.game.player import RoundReport
    from rlswarm_jax.keeper import Keeper

log = logging.getLogger("rlswarm_jax.publish")
NODE = "{node}"  # in an address: the node's name


def of_node(config: ml_collections.ConfigDict, node: int) -> ml_collections.ConfigDict:
    """A node's own, in a simulation of nodes that differ."""
    return build.with_own(config, build.own_fields(config, node))


def weights_of(config: ml_collections.ConfigDict, engine: "Engine | Engines", node: int) -> Weights:
    """As they are now, in memory of their own: an adapter alone where one is trained."""
    adapter = build.make_lora_config(of_node(config, node))
    if adapter is None:
        return Weights(engine.tensors(node))
    return Weights(peft.to_tensors(parallel.fetch(engine.state(node)).params), adapter)


def stage(
    config: ml_collections.ConfigDict, workdir: Path, queue: Queue, offer: Offer, to: str, private: bool, again=False
) -> Entry:
    """Puts weights into a queue, with their model card. config: of the folder in which they were trained.

    Raises UsageError, ValueError, SaveError, JournalError, RecordError, OSError if that cannot be.
    """
    own, weights = of_node(config, offer.node), offer.weights
    entry = Entry(weights.hash.hex(), offer.node, offer.name, offer.round, to.replace(NODE, offer.name), private)

    def write(directory: Path) -> None:
        told = json.loads(own.to_json_best_effort())
        (directory / "README.md").write_text(card.render(workdir, told, entry, weights.adapter is not None))
        model, tokenizer = read_model(resolve(build.model_path(own)))
        save(directory, weights, model, tokenizer, card.base_of(own.model.path))

    queue.stage(entry, write, again)
    return entry


class Publishing:
    """Of a process: what its rounds' reports bring about. names: its nodes', by index.

    Where the address does not name the node, only the first of a swarm publishes. keeper: of the live node's account.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        engine: "Engine | Engines",
        names: Sequence[str],
        keeper: "Keeper | None" = None,
    ):
        self._config, self._engine, self._names, self._keeper = config, engine, names, keeper
        self._queue, self._to = Queue(workdir), config.publish.to
        self._nodes = range(len(names) if NODE in self._to else 1)
        self._recorded: Entry | None = None
        self._background: Background | None = None
        if self._to:
            put = functools.partial(stage, config, workdir, self._queue, to=self._to, private=config.publish.private)
            self._background = Background(self._queue, put, self._alone, config.seed)

    def after(self, on_round: Callable[["RoundReport"], None]) -> Callable[["RoundReport"], None]:
        """What to do with a round's report: that, with what there is to tell of publishing, and then publish."""

        def then(report: "RoundReport") -> None:
            if self._background and report.node in self._nodes:
                counts = self._background.take_counts(report.node)
                report = dataclasses.replace(report, metrics=report.metrics | counts)
            on_round(report)
            every, played = self._config.publish.every, report.round + 1
            if every and played % every == 0 and played != self._config.rounds:
                self._offer(report.node, report.round)
            if played != self._config.rounds:  # the last settlement is for the last weights
                self._record()

        return then

    def finish(self, rounds: int, should_stop: Callable[[], bool]) -> bool:
        """After all rounds: publishes what came of them, and says what is left if that does not work out.

        Returns whether there is something of it for the chain.
        """
        if self._background:
            for node in self._nodes:
                self._offer(node, rounds - 1)
            if why := self._background.finish(should_stop):
                command = f"python -m experiments.publish {self._queue.root.parent}"
                log.warning("the last weights are not published: %s They wait; this sends them: %s", why, command)
        self._record()
        if self._keeper and self._background and self._recorded is None:
            log.warning("published weights are not on the chain: this node has settled nothing since those before")
        return self._recorded is not None

    def close(self) -> None:
        if self._background:
            self._background.close()

    def _offer(self, node: int, round_: int) -> None:
        if self._background and node in self._nodes:
            weights = weights_of(self._config, self._engine, node)
            self._background.offer(Offer(node, self._names[node], round_, weights))

    def _alone(self):
        self._queue.root.mkdir(exist_ok=True)
        return folder.lock(self._queue.root)

    def _record(self) -> None:
        """Puts the newest publication on the chain, also one that a command made or a kill left; once it can be."""
        if self._keeper is None:
            return
        try:
            newest = next(reversed([one for one in self._queue.sent() if one.node == 0]), None)
        except UsageError as error:
            log.warning("%s", error)
            return
        if newest is None or newest == self._recorded:
            return
        self._recorded = None
        try:
            if self._keeper.publish(bytes.fromhex(newest.weights), newest.uri):
                self._recorded = newest
        except ValueError as error:  # of a place whose name is too long, say
            log.warning("where the weights are does not fit on the chain: %s", error)
            self._recorded = newest
