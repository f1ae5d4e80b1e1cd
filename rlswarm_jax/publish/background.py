"""Publishes in a thread of its own, of low priority: a round hands over its weights and goes on."""

import contextlib
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from rlswarm_jax.chain.rpc import Backoff
from rlswarm_jax.errors import UsageError
from rlswarm_jax.journal import JournalError
from rlswarm_jax.publish.model import Weights
from rlswarm_jax.publish.queue import Queue
from rlswarm_jax.publish.targets import PublishError, quiet
from rlswarm_jax.qwen.weights import SaveError
from rlswarm_jax.records.schema import RecordError

log = logging.getLogger("rlswarm_jax.publish")
# a place, a disk or a file of the run that is away for now
PASSING = (PublishError, SaveError, UsageError, JournalError, RecordError, OSError, ValueError)
FIRST, MOST = 2.0, 600.0  # seconds until the next try, doubling
NICE = 10  # of the thread, where threads have a priority of their own
TRIES = 3  # in vain, at the end of a run, after which it is left for later
POLL = 0.05


class Offer(NamedTuple):
    """A node's weights after a round."""

    node: int
    name: str
    round: int
    weights: Weights


class Background:
    """What is offered is staged and sent; what an earlier process left is sent, too.

    stage: puts an offer into the queue. alone: keeps other processes from sending, as a context. Both raise one of
    `PASSING`, as sending may: that is said when it begins, counted, and tried again ever later. Meanwhile newer weights
    of a node take the place of those that wait.
    """

    def __init__(
        self,
        queue: Queue,
        stage: Callable[[Offer], object],
        alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        seed: int = 0,
    ):
        self._queue, self._stage, self._alone = queue, stage, alone
        self._rng = random.Random(f"{seed} publish")
        self._backoff = Backoff(self._rng, FIRST, MOST)
        self._offers: dict[int, Offer] = {}
        self._counts: Counter[tuple[int, str]] = Counter()
        self._changed, self._at, self._trouble = threading.Condition(), 0, ""
        self._left, self._busy, self._stopped, self._failures = bool(queue.waiting()), False, False, 0
        self._hurry = False  # whoever waits for a next try need not
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)
        self._thread.start()

    def offer(self, one: Offer) -> None:
        with self._changed:
            self._offers[one.node] = one
            self._changed.notify_all()

    def take_counts(self, node: int) -> dict[str, float]:
        """Of a node: what happened since the last call, and how many publications wait."""
        with self._changed:
            found = {name: float(self._counts.pop((node, name), 0)) for name in ("publish/sent", "publish/failed")}
            found["publish/waiting"] = float(node in self._offers)
        found["publish/waiting"] += sum(one.node == node for one in self._queue.waiting())
        return {name: n for name, n in found.items() if n}

    def finish(self, should_stop: Callable[[], bool]) -> str:
        """Sends what is left, now; what is in the way, if some is still left. An upload under way is waited for."""
        with self._changed:
            self._backoff, failed, self._left = Backoff(self._rng, POLL, FIRST), self._failures, True
            self._hurry = True
            self._changed.notify_all()
        while self._thread.is_alive() and not should_stop():
            with self._changed:
                if not (self._offers or self._busy or self._left):
                    return ""
                if self._failures - failed >= TRIES:
                    break
            time.sleep(POLL)
        return self._trouble or "it was stopped."

    def close(self) -> None:
        """Ends the thread, but for an upload that is under way: that ends with the process, and is begun again."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # --- within

    def _run(self) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        quiet()
        while True:
            with self._changed:
                while not (self._offers or self._left or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    return
                offers, self._offers, self._left, self._busy = self._offers, {}, False, True
            delay = self._try(offers)
            with self._changed:
                self._busy = False
                if delay:
                    self._offers, self._left = offers | self._offers, True
                    self._hurry = False
                    self._changed.wait_for(lambda: self._stopped or self._hurry, delay)

    def _try(self, offers: dict[int, Offer]) -> float:
        """Seconds to wait after a failure, else 0. What is staged is taken out of the offers."""
        try:
            with self._alone():
                for node, one in sorted(offers.items()):
                    self._at = node
                    self._stage(one)
                    del offers[node]
                for entry in self._queue.waiting():
                    self._at = entry.node
                    done = self._queue.send(entry)
                    self._count("publish/sent")
                    log.info("%s after round %d is published: %s", done.name, done.round, done.uri)
        except PASSING as error:
            self._count("publish/failed")
            self._failures += 1
            if self._trouble != str(error):
                log.warning("weights are not published: %s The node goes on, and tries again.", error)
            self._trouble = str(error)
            return max(self._backoff.failed(), POLL)
        self._backoff.succeeded()
        self._trouble = ""
        return 0.0

    def _count(self, name: str) -> None:
        with self._changed:
            self._counts[self._at, name] += 1
