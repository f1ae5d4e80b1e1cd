"""What a node does at this moment, whom it waits for, and whether it goes on: for whoever asks, and in its folder.

Whether a node is stalled is decided by its own times: a step that its config bounds may take that, any other one
`TIMES` as long as the longest of its latest ones. By the monotonic clock, which no jump of the other one moves, and
which stands still while a machine sleeps.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from rlswarm_jax.files import partial_of
from rlswarm_jax.identity import AUTHOR_BYTES, author_of, friendly_name

log = logging.getLogger("rlswarm_jax.node")
STARTING, READY, BEHIND, STALLED = STATES = "starting", "ready", "behind", "stalled"
SLACK = 60.0  # seconds that a step may take beyond what it should
TIMES, LATEST = 10, 256  # as long as the longest of the latest so many, some ten a round
FEW, FIRST = 32, 3600.0  # before there were so many: seconds; a large model is loaded and compiled for long
DOWN = 120.0  # seconds without a network: it begins anew by itself within half a minute
BETWEEN = 0.5  # seconds between two lists of whom a stage waits for, in the file
MOST = 64  # peers that are listed
MAX_TEXT, MAX_BYTES = 300, 1 << 18  # characters of a warning, and bytes of a file


@dataclasses.dataclass(frozen=True)
class Peer:
    """One that is connected. mesh: records are passed on to it at once. since: on the monotonic clock."""

    peer_id: str
    mesh: bool
    since: float


@dataclasses.dataclass(frozen=True)
class Parting:
    """One that has left, or is refused. at: when it did, or until when it is, on the monotonic clock."""

    peer_id: str
    why: str
    at: float


@dataclasses.dataclass(frozen=True)
class Network:
    """As a node's thread of the network saw it last. down: since when there is none, on the monotonic clock."""

    peers: Sequence[Peer] = ()
    banned: Sequence[Parting] = ()
    left: Sequence[Parting] = ()  # lately, the latest last
    down: float | None = None


@dataclasses.dataclass(frozen=True)
class Awaited:
    """why: what is known of one that has not spoken, in words that go on after its name."""

    author: bytes
    why: str


@dataclasses.dataclass(frozen=True)
class _Step:
    """doing: in words that go on after "it". limit: seconds after which it counts as stalled; told: by a config."""

    doing: str
    round: int | None
    stage: str
    began: float
    limit: float
    told: bool
    waiting: tuple[Awaited, ...] = ()
    until: float | None = None  # when it goes on at the latest


# --- what is told of it; times are seconds of the unix clock


class Waited(msgspec.Struct, frozen=True):
    author: str
    why: str


class Connected(msgspec.Struct, frozen=True):
    peer: str
    mesh: bool
    since: float | None


class Parted(msgspec.Struct, frozen=True):
    peer: str
    why: str
    at: float | None


class Warned(msgspec.Struct, frozen=True):
    text: str
    at: float


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """status.json. at: when this was written. stalled_from: when the step will have taken too long; None: never.

    until: when a node that waits goes on at the latest. banned, left: `Parting`.
    """

    state: str
    reason: str
    peer_id: str
    pid: int
    at: float
    doing: str
    round: int | None
    stage: str
    since: float
    stalled_from: float | None
    until: float | None
    waiting: list[Waited]
    peers: list[Connected]
    banned: list[Parted]
    left: list[Parted]
    warning: Warned | None

    def seen(self, now: float) -> tuple[str, str]:
        """State and reason at a later time, by whom it does not answer."""
        if self.state != STALLED and self.stalled_from is not None and now > self.stalled_from:
            return STALLED, f"it {self.doing} for {now - self.since:.0f} s by now, far longer than it should take."
        return self.state, self.reason


def read(path: Path) -> Told | None:
    """What a node has written, if its process lives."""
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(MAX_BYTES), type=Told)
        os.kill(found.pid, 0)
    except PermissionError:
        return found
    except (OSError, OverflowError, msgspec.MsgspecError):
        return None
    return found


class Status:
    """One node's. `begins` and `waits_for` are its round's thread's; `read` is anybody's.

    path: of the file, written when a step begins; None: nowhere. network: how it stands with it. behind: how many
    rounds most peers are further.
    """

    def __init__(
        self,
        path: Path | None = None,
        peer_id: str = "",
        network: Callable[[], Network] = Network,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path, self._peer_id, self._clock, self.network = path, peer_id, clock, network
        self.behind: Callable[[], int] = lambda: 0
        self._playing = False
        self._took: deque[float] = deque(maxlen=LATEST)  # of steps that no config bounds
        self._written, self._news, self._failed = -math.inf, False, False  # news: not written yet
        self.warned = _LastWarning()
        self._step = self._made("starts", None, "", None)

    # --- the round's thread

    def begins(
        self, doing: str, round_: int | None = None, stage: str = "", at_most: float | None = None, brief: bool = False
    ) -> None:
        """That the step before is over and this one begins.

        at_most: seconds that it takes by the config, infinity for a wait without end. brief: not worth the file.
        """
        before = self._step
        if not before.told:
            self._took.append(self._clock() - before.began)
        self._playing = self._playing or round_ is not None
        self._step = self._made(doing, round_, stage, at_most)
        if not brief:
            self._write()

    def waits_for(self, awaited: Sequence[Awaited], until: float) -> None:
        """Whom the present step waits for, `MOST` at most; until: when it goes on anyway, on the monotonic clock.

        As cheap as it is to be called again and again: the file is written if something is new, now and then.
        """
        given = tuple(awaited)
        if given != self._step.waiting or until != self._step.until:
            self._step, self._news = dataclasses.replace(self._step, waiting=given, until=until), True
        if self._news and self._clock() - self._written >= BETWEEN:
            self._write()

    def _made(self, doing: str, round_: int | None, stage: str, at_most: float | None) -> _Step:
        limit = at_most
        if limit is None:
            limit = TIMES * max(self._took) if len(self._took) >= FEW else FIRST
        return _Step(doing, round_, stage, self._clock(), limit + SLACK, at_most is not None)

    def _write(self) -> None:
        """Whole, or not at all; a disk that won't take it is said once: nobody's end."""
        if self._path is None:
            return
        self._written, self._news, partial = self._clock(), False, partial_of(self._path)
        try:
            partial.write_bytes(msgspec.json.encode(self.read()))
            partial.replace(self._path)
        except OSError as error:
            if not self._failed:
                log.warning("cannot write %s (%s): the page will not say what this node does", self._path, error)
            self._failed = True
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Takes the file away: it is of a process that runs."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    # --- anybody

    def read(self) -> "Told":
        step, network, now, wall = self._step, self.network(), self._clock(), time.time()
        state, reason = self._state(step, network, now)

        def on_the_wall(at: float | None) -> float | None:
            return None if at is None or math.isinf(at) else round(wall + at - now, 1)

        def parted(found: Sequence[Parting]) -> list[Parted]:
            return [Parted(one.peer_id, one.why, on_the_wall(one.at)) for one in found[-MOST:]]

        return Told(
            state=state,
            reason=reason,
            peer_id=self._peer_id,
            pid=os.getpid(),
            at=round(wall, 1),
            doing=step.doing,
            round=step.round,
            stage=step.stage,
            since=round(wall + step.began - now, 1),
            stalled_from=on_the_wall(step.began + step.limit),
            until=on_the_wall(step.until),
            waiting=[Waited(one.author.hex(), one.why) for one in step.waiting],
            peers=[Connected(one.peer_id, one.mesh, on_the_wall(one.since)) for one in network.peers[:MOST]],
            banned=parted([one for one in network.banned if one.at > now]),
            left=parted(network.left),
            warning=self.warned.last,
        )

    def state(self) -> tuple[str, str]:
        """One of `STATES`, and why, in a sentence."""
        return self._state(self._step, self.network(), self._clock())

    def _state(self, step: _Step, network: Network, now: float) -> tuple[str, str]:
        took = now - step.began
        at = "" if step.round is None else f" in round {step.round}"
        if took > step.limit:
            bound = "by its config" if step.told else "by the times that its steps took before"
            most = f"{bound} {step.limit:.0f} s are the most"
            return STALLED, f"it {step.doing}{at} for {took:.0f} s by now: {most}."
        if network.down is not None and now - network.down > DOWN:
            return STALLED, f"its network has been down for {now - network.down:.0f} s; the log says why."
        if not self._playing:
            return STARTING, f"it {step.doing}, for {took:.0f} s by now."
        if behind := self.behind():
            return BEHIND, f"most of its peers are {behind} rounds further: it {step.doing}{at}, then goes there."
        alone = "" if network.peers else "; no peer is connected: it learns from itself alone"
        return READY, f"it {step.doing}{at}{alone}."


def plural(stage: str) -> str:
    """What a stage is made of: answers, critiques, revisions."""
    return {"revise": "revisions"}.get(stage, f"{stage}s")


def name_of(peer: str) -> str:
    """Of a peer id, or a public key in hexadecimal digits, for people; what is neither is shortened."""
    author = author_of(peer)
    with contextlib.suppress(ValueError):
        author = author or bytes.fromhex(peer)
    return friendly_name(author) if author and len(author) == AUTHOR_BYTES else peer[:24]


class _LastWarning(logging.Handler):
    """Remembers the last warning, without what could be a secret."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: Warned | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.last = Warned(harmless(record.getMessage())[:MAX_TEXT], round(record.created, 1))


def harmless(line: str) -> str:
    """Without what could be a key, and who it is that an address names."""
    return re.sub(r"(0x)?[0-9a-fA-F]{40,}", "…", re.sub(r"://[^/\s]*@", "://…@", line))
