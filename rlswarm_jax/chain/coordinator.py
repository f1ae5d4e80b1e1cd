"""The client of a coordinator contract: rounds and beacons to read, an outbox for what a node wants on record.

    rpc = Endpoint("http://127.0.0.1:8545")
    chain = Coordinator(rpc, "0x5FbDB2315678afecb367f032d93F642f64180aa3", identity, Path("runs/node0"), chain_id=31337)
    chain.register()                                            # each writes one line to disk and returns at once
    threading.Thread(target=chain.run, args=(stop,)).start()    # or call chain.step() off the training thread
    now = chain.status()                                        # round and beacon: asked for once per block
    chain.settle(now.round, now.beacon, commitment, [1_000_000, 0, 0], [a_peer_id, another])
    print(chain.counts())                                       # {"done": 1, "waiting": 1}

What a node wants is written to the outbox when it happens, once however often it is wished, and sent by `step`, which
survives whatever the endpoint does: see `outbox` and `sender`. `events.EventIndex` reads what all peers did.
Everything is synchronous and knows no event loop; methods may be called from several threads.
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rlswarm_jax.chain import calls, eth
from rlswarm_jax.chain.calls import Status
from rlswarm_jax.chain.court import Court, Settlement, settlement
from rlswarm_jax.chain.errors import (
    Busy,
    ChainError,
    EndpointDown,
    FileDamaged,
    InsufficientFunds,
    MalformedAnswer,
    NoContract,
    PayoutFixed,
    Refused,
    Reverted,
    WrongChain,
)
from rlswarm_jax.chain.outbox import Outbox, Wish
from rlswarm_jax.chain.rpc import Backoff, Rpc
from rlswarm_jax.chain.sender import Sender
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.identity import Identity

if TYPE_CHECKING:
    from web3.types import BlockData

log = logging.getLogger("rlswarm_jax.chain")
_Answer = TypeVar("_Answer")

_BATCH = 64  # waiting wishes looked at in one step
_KEPT_ROUNDS = 1000
_ADVANCE_GAS = 150_000
_EVENT_BLOCKS = 1000  # that endpoints give the events of at once
_RACES = ("advance", "finalize", "challenge", "draw", "resolve")  # in which most come second
_UNDONE = ("refused", "dropped")  # states of wishes that came to nothing
_STATUS_SECONDS = 5.0  # that an answer holds, where no block comes


class Coordinator:
    """One node's side of one coordinator contract.

    directory: where `outbox.sqlite` lies; one per account and chain, used by one process at a time. court: the address
    of the one that judges what is committed to here, if any: it is spoken to through `court`.
    seed: of the jitter of waiting times. Raises ValueError for an address that is none, FileDamaged.
    """

    def __init__(
        self,
        rpc: Rpc,
        address: str,
        identity: Identity,
        directory: Path,
        *,
        chain_id: int,
        court: str = "",
        settings: Settings | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        settings = settings or Settings()
        self._w3 = eth.connect(rpc)
        self._contract = eth.Contract(self._w3, address)
        self.address, self.account = self._contract.address, calls.account_of(identity.author)
        self.court = Court(self._w3, court, self.address, self.account, self._want) if court else None
        self.problems: Counter[str] = Counter()  # failures by name: of this client's errors, or of the contract's
        self._chain_id, self._settings, self._clock = chain_id, settings, clock
        self._node = calls.Node(self.account, identity.author, identity.peer_id)
        self._outbox = Outbox(directory / "outbox.sqlite", self.account, chain_id)
        self._sender = Sender(self._w3, self._outbox, identity, self.account, chain_id, settings, clock)
        self._backoff, self._look_backoff = (Backoff(random.Random(f"{seed} {self.account}")) for _ in range(2))
        self._look_again = clock()
        self._stepping, self._reading, self._wished = threading.Lock(), threading.Lock(), threading.Event()
        self._interface: calls.Interface | None = None
        self._status: tuple[str, float, Status] | None = None  # by the hash of its block, and when it was asked for
        self._settled: tuple[str, float] | None = None  # head and second of the last look at everything
        self._unasked, self._trouble = -1, ""

    def __repr__(self) -> str:
        return f"Coordinator({self.address}, account {self.account})"

    # --- reading

    def connect(self) -> calls.Interface:
        """What the contract offers; asks the first time, and after the endpoint was away.

        Raises WrongChain, NoContract, EndpointDown, MalformedAnswer, each with what to do. Not needed: `step` does it.
        """
        if self._interface is None:
            found = self._w3.eth.chain_id
            if found != self._chain_id:
                raise WrongChain(
                    f"the endpoint serves chain {found}, but the swarm is on chain {self._chain_id}: check its address."
                )
            genesis = self._twice(lambda: eth.block_hash(self._w3, 0))
            if genesis is None or self._outbox.remember("genesis", genesis) != genesis:
                raise WrongChain(
                    f"chain {found} was begun anew since the outbox was written: give the node a new directory for it."
                )
            if not self._w3.eth.get_code(self.address):
                raise NoContract(f"there is no contract at {self.address} on chain {found}: check the address.")
            interface = self._twice(lambda: calls.probe(self._contract))
            if self.court:
                self.court.connect()
            self._interface = interface
        return self._interface

    def status(self) -> Status:
        """Round, stage and beacon as of the newest block; the contract is asked once per block, or a few seconds.

        Whatever is not the last answer's round or the next is asked for twice.

        Raises EndpointDown, MalformedAnswer, WrongChain, NoContract: the node goes on with what it has.
        """
        with self._reading:
            return self._read_status(self._w3.eth.get_block("latest"))

    def beacon(self, round: int) -> bytes:
        """Of a past round, 32 bytes. Raises as `status`, and Reverted for one that is still to come."""
        return self._contract.view("beacon", round)

    def registered(self, author: bytes) -> int | None:
        """In which round a node key (its 33 bytes) was registered; None if it does not count. Raises as `status`."""
        counts, since, *_ = self._contract.view("peerOf", calls.account_of(author))
        return since if counts else None

    def committers(self, now: Status) -> frozenset[str]:
        """Accounts that have settled in the present round, as far as its latest blocks tell.

        Raises as `status`, and Refused by an endpoint that gives no events.
        """
        first = max(now.anchor, now.block - _EVENT_BLOCKS)
        told = [one["args"] for one in self._contract.logs(first, max(first, now.block), "Settled")]
        return frozenset(has["account"] for has in told if has["round"] == now.round)

    def settlements(self, first: int, last: int) -> list[Settlement]:
        """All that the contract took in these blocks, in their order. Raises as `committers`."""
        return [settlement(one) for one in self._contract.logs(first, last, "Settled")]

    def check_payout(self, payout: str | None) -> None:
        """Whether earnings go, or can be made to go, where this node is told: None leaves them where they go.

        Raises PayoutFixed if only another address may change that, ValueError for what is no address; and as `status`.
        """
        wished = self._outbox.last(self.address, "payout")
        if payout is None and (wished is None or wished.state not in ("signed", "mined", "done")):
            return
        wanted = self.account if payout is None else calls.checksum(payout)
        if not self.connect().ours:
            raise PayoutFixed(
                "the coordinator pays to nobody but the node's own account: leave the payout address out."
            )
        there = self._contract.view("payoutOf", self.account)
        if there not in (wanted, calls.NOBODY, self.account):
            raise PayoutFixed(
                f"the earnings of {self.account} go to {there}, which alone can turn them to {wanted}: name it as the"
                " node's payout address, or let it call setPayout first."
            )

    def bootnodes(self) -> list[str]:
        """Addresses at which to enter the swarm, as its owner names them: unchecked text. Raises as `status`."""
        return list(self._contract.view("getBootnodes"))

    # --- wishing: on disk when the call returns, whatever the chain does; whether it is new

    def register(self, payout: str | None = None) -> bool:
        """Registers this node's key, and where its earnings go, if elsewhere. Harmless to repeat at each start.

        Another address than the last time's is wished anew; the contract takes it from the address in force alone.
        """
        new = self._want(self.address, "register", 0, 0, again=True)
        wanted = None if payout is None else {"payout": calls.checksum(payout)}
        last = self._outbox.last(self.address, "payout")
        if last and last.arguments != wanted and last.state == "waiting":
            self._outbox.end(last, "dropped", "another payout address was named")
        if wanted:
            number = 0 if last is None else last.stage + (last.arguments != wanted)
            self._want(self.address, "payout", 0, number, wanted, again=True)
        return new

    def settle(
        self,
        round: int,
        beacon: bytes,
        commitment: calls.Commitment | None,
        claims: Sequence[int],
        winners: Sequence[str],
    ) -> bool:
        """All that a node says of a round: what it commits to, what its stages earned, and up to 8 votes, by peer id.

        claims: of the three stages, in the swarm's fixed-point units. On the original's contracts, which have neither
        beacons nor commitments (`b""`, None), this becomes a reward for each stage that is not 0, and a vote.
        Raises ValueError for what no contract would take.
        """
        hashes = [] if commitment is None else [beacon, *(one for one in commitment if isinstance(one, bytes))]
        if any(len(one) != 32 for one in hashes) or (
            commitment and not (any(commitment.root) and 0 < commitment.count < 1 << 64)
        ):
            raise ValueError("a beacon and a commitment's hashes have 32 bytes each; its root and count are not zero.")
        if len(claims) != 3 or not all(-(1 << 63) <= one < 1 << 63 for one in claims):
            raise ValueError("claims are three whole numbers of at most 64 bits.")
        if len(winners) > 8 or len(set(winners)) < len(winners) or self._node.peer_id in winners:
            raise ValueError("a vote names at most 8 other peers, none twice.")
        made = commitment and [one.hex() if isinstance(one, bytes) else one for one in commitment]
        said = {"commitment": made, "claims": list(claims), "winners": sorted(winners)}
        return self._want(self.address, "settle", round, 0, {"tag": beacon[:4].hex()} | said)

    def advance(self, round: int, unasked: bool = False) -> bool:
        """Advances from a round to the next as soon as the rule allows; dropped if somebody else does it first.

        unasked: sends it whatever an estimate would say.
        """
        if unasked:
            self._unasked = round
        return self._want(self.address, "advance", round, 0, again=True)

    def finalize(self, round: int, block: int) -> bool:
        """Puts a round's beacon on record, or postpones one that was lost. block: the newest; one try for each."""
        if any(wish.kind == "finalize" for wish in self._outbox.wishes("waiting", "signed")):
            return False
        return self._want(self.address, "finalize", round, block)

    def publish_weights(self, round: int, weights_hash: bytes, uri: str) -> bool:
        """Puts published weights on record. ValueError for a hash of other than 32 bytes, a URI above 256 bytes."""
        if len(weights_hash) != 32 or not any(weights_hash) or len(uri.encode()) > 256:
            raise ValueError(
                "published weights have a hash of 32 bytes, not all zeros, and a URI of at most 256 bytes."
            )
        return self._want(self.address, "weights", round, 0, {"hash": weights_hash.hex(), "uri": uri})

    def record_weights(self, weights_hash: bytes, uri: str) -> int | None:
        """The same after the newest round that this node settled, if nothing later is on record: which one that is.

        None where there is none yet: ask again once it has settled. Harmless to repeat. ValueError as above.
        """
        wishes = [wish for wish in self._outbox.wishes() if wish.contract == self.address]
        said = [wish for wish in wishes if wish.kind == "weights"]
        for wish in said:
            if wish.state not in _UNDONE and wish.arguments == {"hash": weights_hash.hex(), "uri": uri}:
                return wish.round
        settled = [wish.round for wish in wishes if wish.kind == "settle" and wish.state not in _UNDONE]
        newest = max(settled, default=-1)
        if newest <= max((wish.round for wish in said), default=-1) or not self._takes_weights:
            return None
        self.publish_weights(newest, weights_hash, uri)
        return newest

    @property
    def _takes_weights(self) -> bool:
        """The original's contracts don't."""
        return self._interface is None or self._interface.ours

    def counts(self) -> dict[str, int]:
        """How many wishes for this contract and its court are waiting, signed, mined, done, refused, dropped."""
        counts = Counter(self._outbox.counts(self.address))
        return dict(counts + Counter(self._outbox.counts(self.court.address))) if self.court else dict(counts)

    def wishes(self, *states: str) -> list[Wish]:
        """This node's wishes with transaction hashes and reasons, in order; all, or those in these states."""
        return self._outbox.wishes(*states)

    def idle(self) -> bool:
        """Whether nothing waits and everything sent is at least in a block."""
        counts = self.counts()
        return not counts.get("waiting", 0) and not counts.get("signed", 0)

    # --- sending

    def step(self) -> float:
        """Does what can be done now; returns after how many seconds to call it again (sooner, if a wish comes).

        Failures of the chain are counted in `problems` and logged when they begin, never raised. Raises FileDamaged.
        """
        with self._stepping:
            try:
                self._advance_outbox()
            except FileDamaged:
                raise
            except ChainError as error:
                self._note(error)
                if isinstance(error, (EndpointDown, MalformedAnswer, NoContract)):
                    self._interface = None  # what comes back may be another server
                return _delay(self._backoff, error)
            self._backoff.succeeded()
            if self._trouble:
                log.info("the chain is well again.")
                self._trouble = ""
            return self._pause()

    def run(self, stop: threading.Event, look: Callable[[], None] = lambda: None) -> None:
        """Calls `step` until told to stop: for a thread of its own. look: called after each that found the chain well.

        Raises FileDamaged.
        """
        while not stop.is_set():
            delay = self.step()
            if not self._backoff.failures and self._clock() >= self._look_again:
                try:
                    look()
                    self._look_backoff.succeeded()
                except FileDamaged:
                    raise
                except ChainError as error:
                    self._note(error)
                    self._look_again = self._clock() + _delay(self._look_backoff, error)
            if not self._backoff.failures:
                self._wished.wait(delay)
                self._wished.clear()
            else:
                stop.wait(delay)

    def wake(self) -> None:
        """Ends the present wait of `run`."""
        self._wished.set()

    def close(self) -> None:
        """After the last `step` has returned."""
        self._outbox.close()

    # --- within

    def _want(
        self, contract: str, kind: str, round: int, stage: int, arguments: dict | None = None, again: bool = False
    ) -> bool:
        if not 0 <= round < 1 << 32 or not 0 <= stage < 1 << 32:
            raise ValueError(f"round {round}, stage {stage}: both are whole numbers from 0.")
        new = self._outbox.want(contract, kind, round, stage, arguments or {}, again)
        if new:
            self._wished.set()
        return new

    def _twice(self, ask: Callable[[], _Answer]) -> _Answer:
        """What is believed for long: one answer that does not hold contradicts the other. Raises MalformedAnswer."""
        first, second = ask(), ask()
        if first != second:
            raise MalformedAnswer("the chain endpoint contradicts itself: it gives two answers to one question.")
        return first

    def _read_status(self, head: "BlockData") -> Status:
        now, hash_ = self._clock(), head["hash"].to_0x_hex()
        if self._status is None or self._status[0] != hash_ or now - self._status[1] >= _STATUS_SECONDS:
            found = self._ask_status(head)
            if self._status is None or not _follows(found, self._status[2]):
                found, before = self._ask_status(head), found
                if not _follows(found, before):
                    raise MalformedAnswer(
                        f"the chain endpoint contradicts itself: round {before.round}, and then round {found.round}."
                    )
            self._status = (hash_, now, found)
        return self._status[2]

    def _ask_status(self, head: "BlockData") -> Status:
        return calls.read_status(self._contract, self.connect().ours, head["number"])

    def _advance_outbox(self) -> None:
        interface = self.connect()
        head = self._w3.eth.get_block("latest")
        hash_ = head["hash"].to_0x_hex()
        with self._reading:
            now = self._read_status(head)
        waiting = self._waiting()
        seen, at = self._settled or ("", 0.0)
        fresh = any(not wish.reason for wish in waiting)
        if seen == hash_ and not fresh and self._clock() - at < self._settings.retry_seconds:
            return
        self._sender.settle(head)
        self._settled = (hash_, self._clock())
        for wish in self._waiting():
            if not self._sender.has_room():
                break
            if self.court and wish.contract == self.court.address:
                self._bring(self.court, wish, now, head)
            else:
                self._take_up(wish, interface, now, head)
        if interface.ours and now.round > _KEPT_ROUNDS:
            self._outbox.prune(self.address, now.round - max(_KEPT_ROUNDS, 2 * interface.window))

    def _take_up(self, wish: Wish, interface: calls.Interface, now: Status, head: "BlockData") -> None:
        """Signs and sends a waiting wish, lets it wait, or ends it.

        Of what comes too late, the contract itself has the last word: an endpoint's false round must not end it.
        """
        reason = calls.obsolete(wish, interface, now.round)
        if reason and wish.kind in ("advance", "finalize"):
            return self._end(wish, "dropped", reason)
        if wish.kind == "settle" and not interface.ours:
            return self._split(wish)
        call = calls.call_for(wish, interface, self._node)
        if call is None:
            return self._end(wish, "dropped", f"a contract of the kind {interface.name} takes no {wish.kind}")
        if (needed := self._needed(wish)) is not None:
            if needed.state in ("waiting", "signed"):
                return self._explain(wish, f"for the {needed.kind}", head)
            if needed.kind == "settle" and needed.state in ("refused", "dropped"):
                return self._end(wish, "dropped", f"its settlement was {needed.state}: {needed.reason}")
        try:
            gas = _ADVANCE_GAS if wish.kind == "advance" and wish.round == self._unasked else None
            self._sender.submit(wish, wish.contract, self._contract.encode(call[0], *call[1]), head, gas)
        except Reverted as error:
            verdict = calls.verdict(self._contract, wish, interface, self._node, error, now.round)
            if reason and error.name in calls.OUT_OF_WINDOW:
                self._end(wish, "dropped", reason)
            elif verdict == "done":
                self._end(wish, "done", "the chain had it already")
            elif verdict == "refused" and self._stood(wish, error.name, head):
                self._end(wish, "refused", error.name)
                if error.name == "OnlyPayout":
                    log.warning("earnings still go to the address in force, which alone can name another (setPayout).")
            else:
                self._explain(wish, error.name, head)
        except Refused as error:
            self._explain(wish, str(error), head)
        return None

    def _waiting(self) -> list[Wish]:
        own = self._outbox.waiting(self.address, _BATCH)
        return own + (self._outbox.waiting(self.court.address, _BATCH) if self.court else [])

    def _bring(self, court: Court, wish: Wish, now: Status, head: "BlockData") -> None:
        """Signs and sends a wish of the court's, lets it wait, or ends it. Coins that lack hold up no other wish."""
        try:
            self._sender.submit(wish, wish.contract, court.encode(wish), head)
        except Reverted as error:
            fate = court.fate(wish, error.name, now.round)
            if fate in ("done", "dropped"):
                self._end(wish, fate, "the chain had it already" if fate == "done" else "another was first")
            elif fate == "refused" and self._stood(wish, error.name, head):
                self._end(wish, fate, error.name)
            else:
                self._explain(wish, error.name, head)
        except InsufficientFunds as error:
            if wish.reason != type(error).__name__:
                self.problems[type(error).__name__] += 1
                log.warning("%s The %s waits for it.", error, wish.kind)
            self._explain(wish, type(error).__name__, head)
        except Refused as error:
            self._explain(wish, str(error), head)

    def _split(self, wish: Wish) -> None:
        """A settlement as the original's contracts take it."""
        has = wish.arguments
        for stage, amount in enumerate(has["claims"]):
            if amount:
                self._want(self.address, "reward", wish.round, stage, {"amount": amount})
        if has["winners"]:
            self._want(self.address, "vote", wish.round, 0, {"winners": has["winners"]})
        self._end(wish, "done", "as rewards and a vote")

    def _needed(self, wish: Wish) -> Wish | None:
        """The wish that has to be in a block first; None if there is none, or nobody wished it."""
        need = calls.NEEDS[wish.kind]
        return self._outbox.find(wish.contract, need[0], wish.round if need[1] else 0, 0) if need else None

    def _stood(self, wish: Wish, reason: str, head: "BlockData") -> bool:
        """Whether a refusal is for good: as old as a block that no reorganisation undoes."""
        deep = self._settings.confirmations
        return deep == 0 or (wish.reason == reason and head["number"] - wish.since >= deep)

    def _explain(self, wish: Wish, reason: str, head: "BlockData") -> None:
        if wish.reason != reason or wish.since > head["number"]:
            self._outbox.explain(wish, reason, head["number"])
            log.debug("%s of round %d waits: %s.", wish.kind, wish.round, reason)

    def _end(self, wish: Wish, state: str, reason: str) -> None:
        self._outbox.end(wish, state, reason)
        lost_race = state == "dropped" and wish.kind in _RACES
        if state != "done" and not lost_race:
            self.problems[reason if state == "refused" else "Dropped"] += 1
            log.warning("%s of round %d was %s: %s.", wish.kind, wish.round, state, reason)

    def _note(self, error: ChainError) -> None:
        self.problems[error.name if isinstance(error, Reverted) else type(error).__name__] += 1
        # how much is missing changes from block to block
        trouble = type(error).__name__ if isinstance(error, InsufficientFunds) else str(error)
        if self._trouble != trouble:
            self._trouble = trouble
            log.warning("%s The node goes on, and tries again.", error)

    def _pause(self) -> float:
        """Seconds: little while a block that was just made may let more be sent."""
        counts = self.counts()
        busy = counts.get("signed", 0) and counts.get("waiting", 0)
        return min(0.1 if busy else 1.0, self._settings.retry_seconds)


def _follows(now: Status, before: Status) -> bool:
    """Whether one may be what an honest endpoint answers a moment after the other."""
    if now.round != before.round:
        return now.round == before.round + 1
    return not before.beacon or now.beacon == before.beacon


def _delay(backoff: Backoff, error: ChainError) -> float:
    """Seconds to wait after a failure: no less than the endpoint asks for."""
    return max(backoff.failed(), error.seconds if isinstance(error, Busy) else 0.0)
