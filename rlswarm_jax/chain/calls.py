"""What each kind of wish calls on each contract it may meet, what must come before it, and what a refusal means."""

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import coincurve
from eth_utils import keccak, to_checksum_address

from rlswarm_jax.chain.errors import MalformedAnswer, NoContract, Reverted
from rlswarm_jax.chain.outbox import Wish
from rlswarm_jax.identity import author_of

if TYPE_CHECKING:
    from rlswarm_jax.chain.eth import Contract

# kinds of wishes, and what has to be in a block before one is signed: (kind, of the same round)
NEEDS = {
    "register": None,
    "payout": ("register", False),
    "settle": ("register", False),
    "weights": ("settle", True),
    "reward": ("register", False),  # these two: what a settlement becomes on the original's contracts
    "vote": ("register", False),
    "advance": None,
    "finalize": None,
}
MAX_ROUND = 1 << 31  # rounds of a coordinator are below: they are seconds at least
_AHEAD = 2  # rounds that a reorganisation may take back for a moment
# refusals that another block may lift; all others end a wish
_PASSING = {"BeaconNotReady", "TooEarly", "NotRegistered"}
# refusals that say that the chain has something for the wish already: is it the same?
_PRESENT = {
    "AlreadyRegistered",
    "AlreadySettled",
    "AlreadyPublished",
    "OnlyPayout",
    "PeerIdAlreadyRegistered",  # from here on the original's
    "RewardAlreadySubmitted",
    "WinnerAlreadyVoted",
}
OUT_OF_WINDOW = {"InvalidRound", "InvalidRoundNumber"}


class Interface(NamedTuple):
    """What a contract offers. name: "rlswarm_jax", or the original's "0.6.0" or "0.4.2".

    ours: whether it takes commitments and has beacons. min_seconds, max_seconds: of a round; window: past rounds that
    it takes settlements for (0: unknown).
    """

    name: str
    ours: bool
    min_seconds: int = 0
    max_seconds: int = 0
    window: int = 0


class Node(NamedTuple):
    """Who wishes. author: the 33-byte public key; peer_id: base58."""

    account: str
    author: bytes
    peer_id: str


class Commitment(NamedTuple):
    """To the records since the last one: the Merkle root over their content hashes, the first and the last of these,
    and their number; hashes of the model's state before and after, and of what the swarm agreed on. 32 bytes each.
    """

    root: bytes
    first: bytes
    last: bytes
    count: int  # type: ignore[assignment] # hides tuple's method
    before: bytes
    after: bytes
    config: bytes


class Status(NamedTuple):
    """The moment, as the contract tells it. started: seconds since 1970. needed: settlements that make a quorum.

    beacon: 32 bytes; empty until its block is there, if it was lost, and on contracts that have none. recorded: whether
    it is on record; its block comes after the one at anchor. advanceable: by anyone, in that block. stage: of an
    original's contract. block: number of the newest. What a contract lacks is 0.
    """

    round: int
    started: int = 0
    settlements: int = 0
    needed: int = 0
    advanceable: bool = False
    beacon: bytes = b""
    recorded: bool = False
    anchor: int = 0
    peers: int = 0
    stage: int = 0
    block: int = 0


# what the contract's types, and sense, leave of each number
_BELOW = {
    "round": MAX_ROUND,
    "started": 1 << 40,
    "settlements": 1 << 24,
    "needed": 1 << 32,
    "anchor": 1 << 63,
    "peers": 1 << 32,
    "stage": 1 << 16,  # what an original's owner chose, below
}
_BY_ACCOUNT = "hasSubmittedRoundStageReward(uint256,uint256,address)"
_BY_ID = "hasSubmittedRoundStageReward(uint256,uint256,string)"
NOBODY = "0x" + 40 * "0"


def checksum(address: str) -> str:
    """An address in its mixed-case form. Raises ValueError, in one sentence, if it is none."""
    if not isinstance(address, str) or not re.fullmatch(r"0x[0-9a-fA-F]{40}", address):
        raise ValueError(f"{repr(address)[:60]} is no address: that is 0x and 40 hexadecimal digits.")
    return to_checksum_address(address)


def account_of(author: bytes) -> str:
    """The Ethereum account of a node key (33-byte public key): the last 20 bytes of keccak256(x, y)."""
    return to_checksum_address(keccak(coincurve.PublicKey(author).format(compressed=False)[1:])[12:])


def point(author: bytes) -> tuple[int, int]:
    """The coordinates x and y of a node key (33-byte public key)."""
    return coincurve.PublicKey(author).point()


def read_status(contract: "Contract", ours: bool = True, block: int = 0) -> Status:
    """Raises MalformedAnswer for a number that the contract cannot have, and as `Contract.view`."""
    if ours:
        found = Status(*contract.view("status"))._replace(block=block)
    else:
        found = Status(contract.view("currentRound"), stage=contract.view("currentStage"), block=block)
    for name, limit in _BELOW.items():
        check_number(name, getattr(found, name), limit)
    return found if any(found.beacon) else found._replace(beacon=b"")


def check_number(name: str, value: int, below: int) -> int:
    """The number. Raises MalformedAnswer."""
    if not 0 <= value < below:
        raise MalformedAnswer(f"the chain endpoint says that the coordinator's {name} is {str(value)[:30]}.")
    return value


def probe(contract: "Contract") -> Interface:
    """Which interface a contract offers. Raises NoContract if it is none of the three."""
    if _view(contract, "status") is not None and (rules := _view(contract, "rules")) is not None:
        return Interface("rlswarm_jax", True, rules[0], rules[1], rules[3])
    if _view(contract, "currentRound") is not None:
        if _view(contract, _BY_ID, 0, 0, "") is not None:
            return Interface("0.6.0", False)
        if _view(contract, _BY_ACCOUNT, 0, 0, contract.address) is not None:
            return Interface("0.4.2", False)
    raise NoContract(
        f"the contract at {contract.address} is no swarm coordinator that this client knows: check the address."
    )


def call_for(wish: Wish, interface: Interface, node: Node) -> tuple[str, tuple] | None:
    """The function's name and arguments; None where the contract offers nothing of the kind."""
    has, n, stage = wish.arguments, wish.round, wish.stage
    match wish.kind:
        case "register" if interface.ours:
            return "register", point(node.author)
        case "register":
            return "registerPeer", (node.peer_id,)
        case "advance":
            return ("advanceRound" if interface.ours else "updateStageAndRound"), ()
        case "reward" if not interface.ours:
            return "submitReward", (n, stage, has["amount"], node.peer_id)
        case "vote" if not interface.ours:
            return "submitWinners", (n, has["winners"], node.peer_id)
        case "settle" if interface.ours and has["commitment"]:
            voted = {account_of(author) for author in map(author_of, has["winners"]) if author}
            return "settle", (n, bytes.fromhex(has["tag"]), *settled(has), sorted(voted, key=str.lower))
        case "settle" | "reward" | "vote":
            return None
        case _ if not interface.ours:
            return None
        case "payout":
            return "setPayout", (node.account, has["payout"])
        case "weights":
            return "publishWeights", (n, bytes.fromhex(has["hash"]), has["uri"])
        case "finalize":
            return "finalizeBeacon", ()
    raise ValueError(f"there is no wish of the kind {wish.kind!r}.")


def obsolete(wish: Wish, interface: Interface, current: int) -> str:
    """Why a wish has no point any more in round `current`; empty if it has."""
    if wish.kind in ("advance", "finalize") and current != wish.round:
        return "the round is over" if current > wish.round else "the chain took the round back"
    if interface.ours and wish.kind == "settle" and current > wish.round + interface.window:
        return f"the contract takes nothing for rounds more than {interface.window} back"
    return ""


def verdict(contract: "Contract", wish: Wish, interface: Interface, node: Node, error: Reverted, current: int) -> str:
    """What a refusal does to a wish: "done" if the chain has the very thing, "later", or "refused".

    Later: BeaconNotReady, TooEarly, NotRegistered (somebody may relay the registration), and a round or stage that is
    still to come, unless the round is so far that it can only have been an endpoint's invention.
    """
    if error.name in _PRESENT:
        return "done" if _present(contract, wish, interface, node) else "refused"
    to_come = current < wish.round <= current + _AHEAD and error.name in OUT_OF_WINDOW
    stage_to_come = wish.round >= current and wish.stage < 3 and error.name == "InvalidStageNumber"
    return "later" if error.name in _PASSING or to_come or stage_to_come else "refused"


def _present(contract: "Contract", wish: Wish, interface: Interface, node: Node) -> bool:
    has, n, account = wish.arguments, wish.round, node.account
    match wish.kind:
        case "register" if interface.ours:
            peer = _view(contract, "peerOf", account)
            return peer is not None and peer[0]
        case "register":
            return _view(contract, "getEoa", [node.peer_id]) == [account]
        case "payout":
            return _view(contract, "payoutOf", account) == has["payout"]
        case "settle":
            commitment, claims = settled(has)
            words = [one if isinstance(one, bytes) else one.to_bytes(32) for one in commitment]
            words += [one.to_bytes(32, signed=True) for one in claims]
            return _view(contract, "settlementOf", n, account) == keccak(b"".join(words))
        case "reward":
            return _view(contract, "getRoundStageReward", n, wish.stage, [account]) == [has["amount"]]
        case "vote":
            return sorted(_view(contract, "getVoterVotes", n, node.peer_id) or []) == sorted(has["winners"])
        case "weights":
            return _view(contract, "weightsOf", n, account) == bytes.fromhex(has["hash"])
    return False


def settled(has: dict[str, Any]) -> tuple[tuple, list[int]]:
    """A settle wish's commitment and claims, as the contract takes them."""
    root, first, last, count, *hashes = has["commitment"]
    return (*map(bytes.fromhex, (root, first, last)), count, *map(bytes.fromhex, hashes)), has["claims"]


def _view(contract: "Contract", name: str, *arguments: Any) -> Any:
    """None if the contract has no such view, which shows in a revert or in an answer of no bytes."""
    try:
        return contract.view(name, *arguments)
    except (Reverted, NoContract):
        return None
