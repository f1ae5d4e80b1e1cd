"""What each kind of wish calls on each contract it may meet, what must come before it, and what a refusal means."""

from typing import Any, NamedTuple

import coincurve
import eth_abi
from eth_utils import keccak

from rlswarm_jax.chain import abi, eth
from rlswarm_jax.chain.errors import MalformedAnswer, NoContract, Reverted
from rlswarm_jax.chain.outbox import Wish
from rlswarm_jax.chain.rpc import Rpc
from rlswarm_jax.identity import author_of

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


class Now(NamedTuple):
    """The contract's own account of the moment. started: seconds since 1970. needed: settlements that make a quorum.

    beacon: zeros if it is not there yet; recorded: whether it is on record; its block comes after the one at anchor.
    """

    round: int
    started: int
    settlements: int
    needed: int
    advanceable: bool
    beacon: bytes
    recorded: bool
    anchor: int
    peers: int


# what the contract's types, and sense, leave of each number
_BELOW = {
    "round": MAX_ROUND,
    "started": 1 << 40,
    "settlements": 1 << 24,
    "needed": 1 << 32,
    "anchor": 1 << 63,
    "peers": 1 << 32,
}
_BY_ACCOUNT = "hasSubmittedRoundStageReward(uint256,uint256,address)"
_BY_ID = "hasSubmittedRoundStageReward(uint256,uint256,string)"
STATUS = ["uint256"] * 4 + ["bool", "bytes32", "bool", "uint256", "uint256"]
PEER = ["bool", "uint32", "uint32", "uint32", "int112"]  # registered, since, wins, votes, total
_COMMITMENT = "(bytes32,bytes32,bytes32,uint256,bytes32,bytes32,bytes32)"
NOBODY = "0x" + 40 * "0"
RULES = ["uint32", "uint32", "uint32", "uint32", "uint64"]


def account_of(author: bytes) -> str:
    """The Ethereum account of a node key (33-byte public key): the last 20 bytes of keccak256(x, y)."""
    return eth.checksum("0x" + keccak(coincurve.PublicKey(author).format(compressed=False)[1:])[12:].hex())


def point(author: bytes) -> tuple[int, int]:
    """The coordinates x and y of a node key (33-byte public key)."""
    return coincurve.PublicKey(author).point()


def read_now(values: tuple) -> Now:
    """The values of `status()`. Raises MalformedAnswer for a number that the contract cannot have."""
    found = Now(*values)
    for name, limit in _BELOW.items():
        check_number(name, getattr(found, name), limit)
    return found


def check_number(name: str, value: int, below: int) -> int:
    """The number. Raises MalformedAnswer."""
    if not 0 <= value < below:
        raise MalformedAnswer(f"the chain endpoint says that the coordinator's {name} is {str(value)[:30]}.")
    return value


def payout_of(rpc: Rpc, contract: str, account: str) -> str:
    """Where an account's earnings go, as the contract has it: NOBODY where that is the account itself."""
    found = _view(rpc, contract, "payoutOf(address)", (account,), ["address"])
    if found is None:
        raise MalformedAnswer(f"the chain endpoint does not say where the earnings of {account} go.")
    return eth.checksum(found[0])


def probe(rpc: Rpc, contract: str) -> Interface:
    """Which interface a contract offers. Raises NoContract if it is none of the three."""
    if _view(rpc, contract, "status()", (), STATUS) is not None:
        rules = _view(rpc, contract, "rules()", (), RULES)
        if rules is not None:
            return Interface("rlswarm_jax", True, rules[0], rules[1], rules[3])
    if _view(rpc, contract, "currentRound()", (), ["uint256"]) is not None:
        if _view(rpc, contract, _BY_ID, (0, 0, ""), ["bool"]) is not None:
            return Interface("0.6.0", False)
        if _view(rpc, contract, _BY_ACCOUNT, (0, 0, contract), ["bool"]) is not None:
            return Interface("0.4.2", False)
    raise NoContract(f"the contract at {contract} is no swarm coordinator that this client knows: check the address.")


def call_for(wish: Wish, interface: Interface, node: Node) -> tuple[str, tuple] | None:
    """The function's full signature and arguments; None where the contract offers nothing of the kind."""
    has, n, stage = wish.arguments, wish.round, wish.stage
    match wish.kind:
        case "register" if interface.ours:
            return "register(uint256,uint256)", point(node.author)
        case "register":
            return "registerPeer(string)", (node.peer_id,)
        case "advance":
            return ("advanceRound()" if interface.ours else "updateStageAndRound()"), ()
        case "reward" if not interface.ours:  # of the two overloads, the one that both of the original's versions have
            return "submitReward(uint256,uint256,int256,string)", (n, stage, has["amount"], node.peer_id)
        case "vote" if not interface.ours:
            return "submitWinners(uint256,string[],string)", (n, has["winners"], node.peer_id)
        case "settle" if interface.ours and has["commitment"]:
            voted = {account_of(author) for author in map(author_of, has["winners"]) if author}
            arguments = n, bytes.fromhex(has["tag"]), *_settled(has), sorted(voted, key=str.lower)
            return f"settle(uint256,bytes4,{_COMMITMENT},int64[3],address[])", arguments
        case "settle" | "reward" | "vote":
            return None
        case _ if not interface.ours:
            return None
        case "payout":
            return "setPayout(address,address)", (node.account, has["payout"])
        case "weights":
            return "publishWeights(uint256,bytes32,string)", (n, bytes.fromhex(has["hash"]), has["uri"])
        case "finalize":
            return "finalizeBeacon()", ()
    raise ValueError(f"there is no wish of the kind {wish.kind!r}.")


def obsolete(wish: Wish, interface: Interface, current: int) -> str:
    """Why a wish has no point any more in round `current`; empty if it has."""
    if wish.kind in ("advance", "finalize") and current != wish.round:
        return "the round is over" if current > wish.round else "the chain took the round back"
    if interface.ours and wish.kind == "settle" and current > wish.round + interface.window:
        return f"the contract takes nothing for rounds more than {interface.window} back"
    return ""


def verdict(rpc: Rpc, wish: Wish, interface: Interface, node: Node, error: Reverted, current: int) -> str:
    """What a refusal does to a wish: "done" if the chain has the very thing, "later", or "refused".

    Later: BeaconNotReady, TooEarly, NotRegistered (somebody may relay the registration), and a round or stage that is
    still to come, unless the round is so far that it can only have been an endpoint's invention.
    """
    if error.name in _PRESENT:
        return "done" if _present(rpc, wish, interface, node) else "refused"
    to_come = current < wish.round <= current + _AHEAD and error.name in OUT_OF_WINDOW
    stage_to_come = wish.round >= current and wish.stage < 3 and error.name == "InvalidStageNumber"
    return "later" if error.name in _PASSING or to_come or stage_to_come else "refused"


def _present(rpc: Rpc, wish: Wish, interface: Interface, node: Node) -> bool:
    has, n = wish.arguments, wish.round
    if wish.kind == "register" and interface.ours:
        peer = _view(rpc, wish.contract, "peerOf(address)", (node.account,), PEER)
        return peer is not None and peer[0]
    if wish.kind == "register":
        accounts = _view(rpc, wish.contract, "getEoa(string[])", ([node.peer_id],), ["address[]"])
        return accounts is not None and [one.lower() for one in accounts[0]] == [node.account.lower()]
    if wish.kind == "payout":
        return payout_of(rpc, wish.contract, node.account) == wish.arguments["payout"]
    if wish.kind == "settle":
        found = _view(rpc, wish.contract, "settlementOf(uint256,address)", (n, node.account), ["bytes32"])
        return found == (keccak(eth_abi.encode([_COMMITMENT, "int64[3]"], _settled(has))),)
    if wish.kind == "reward":
        arguments = (n, wish.stage, [node.account])
        found = _view(rpc, wish.contract, "getRoundStageReward(uint256,uint256,address[])", arguments, ["int256[]"])
        return found == ((has["amount"],),)
    if wish.kind == "vote":
        found = _view(rpc, wish.contract, "getVoterVotes(uint256,string)", (n, node.peer_id), ["string[]"])
        return found is not None and sorted(found[0]) == sorted(has["winners"])
    found = _view(rpc, wish.contract, "weightsOf(uint256,address)", (n, node.account), ["bytes32"])
    return found == (bytes.fromhex(has["hash"]),)


def _settled(has: dict[str, Any]) -> tuple[tuple, list[int]]:
    """A settle wish's commitment and claims, as the contract takes them."""
    root, first, last, count, *hashes = has["commitment"]
    return (*map(bytes.fromhex, (root, first, last)), count, *map(bytes.fromhex, hashes)), has["claims"]


def _view(rpc: Rpc, contract: str, signature: str, arguments: tuple, types: list[str]) -> tuple[Any, ...] | None:
    """A view's values; None if the contract has no such view, which shows in a revert or in an answer of no bytes."""
    try:
        answer = eth.call(rpc, contract, abi.encode_call(signature, arguments))
    except Reverted:
        return None
    return abi.decode(types, answer) if answer else None
