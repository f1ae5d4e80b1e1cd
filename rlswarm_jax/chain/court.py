"""The client of a court: what is staked, asked and judged about what a coordinator's peers committed to.

    chain = Coordinator(rpc, address, identity, directory, chain_id=31337, court="0xe7f1725E7734CE288F8367e1Bb14...")
    chain.court.stake(10**18)                  # each writes one line to the outbox of `chain`, whose `step` sends it
    chain.court.challenge(settlement, record, position, proof, index=2, bond=10**17)
    for case in chain.court.open_cases():
        chain.court.vote(case, GUILTY)

One account has one outbox and one sender, so the court's wishes go through its coordinator's. Who may do what, and
when: `contracts/Court.sol`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eth_utils import keccak

from rlswarm_jax.chain import calls, eth
from rlswarm_jax.chain.contracts import court
from rlswarm_jax.chain.errors import MalformedAnswer, NoContract, Reverted
from rlswarm_jax.chain.library import web3
from rlswarm_jax.chain.outbox import Wish

if TYPE_CHECKING:
    from web3.types import EventData

ABSTAIN, GUILTY, NOT_GUILTY = 1, 2, 3  # votes
OPEN, FOUND_GUILTY, FOUND_NOT_GUILTY, UNDECIDED = 1, 2, 3, 4  # states of a case
MAX_SIZE = 15  # of a committee, the contract's
RECENT = 256  # cases looked at by a node that begins
_ASKED = 16  # cases asked for the first time in one look
# refusals that a later block lifts
_PASSING = {"BeaconNotReady", "TooEarly", "NotRegistered", "OneAtATime", "NotStaked", "TooFewStakers"}
_BEATEN = {"draw": {"AlreadyDrawn", "NoSuchCase"}, "resolve": {"NoSuchCase"}, "challenge": {"AlreadyChallenged"}}


class Terms(NamedTuple):
    """What a court was deployed with; nobody can change it. stake, bond, fee: wei. claims, voting, delay: rounds of its
    coordinator: in which a settlement can be challenged, in which a committee votes, until a stake comes back. size,
    quorum: of a committee.
    """

    stake: int
    bond: int
    fee: int
    claims: int = 128
    voting: int = 4
    delay: int = 160
    size: int = 5
    quorum: int = 3


class Peer(NamedTuple):
    """What the court has of an account. stake: wei. since: the round in which it came to good standing. leaving: that
    in which it asked for its stake, and one; 0: it didn't. held: open cases that it is part of.
    """

    stake: int
    since: int
    leaving: int
    held: int
    slot: int
    accusing: bool


class Case(NamedTuple):
    """accused, challenger, members: accounts. round: of the settlement; opened: in which it was asked; until: the last
    in which members may vote (0: they are not drawn). index: of the group within the record. votes: of each member; 0:
    none.
    """

    number: int
    accused: str
    round: int
    opened: int
    until: int
    challenger: str
    stakers: int
    index: int  # type: ignore[assignment] # hides tuple's method
    state: int
    record: bytes
    members: tuple[str, ...]
    votes: tuple[int, ...]


class Settlement(NamedTuple):
    """What an account settled, as the coordinator's event tells it."""

    account: str
    round: int
    commitment: calls.Commitment
    claims: tuple[int, ...]


class Court:
    """One account's side of one court. To wish, use that of a `Coordinator`, whose outbox it has.

    Raises ValueError for an address that is none.
    """

    def __init__(
        self,
        w3: web3.Web3,
        address: str,
        coordinator: str,
        account: str,
        want: Callable[..., bool] = lambda *wish, **how: False,
    ):
        self._w3, self._contract = w3, eth.Contract(w3, address, court()["abi"])
        self.address, self.account = self._contract.address, account
        self._coordinator, self._want = coordinator, want
        self._terms: Terms | None = None
        self._next: int | None = None  # number of the first case that was not looked at
        self._watched: list[int] = []

    # --- reading; all raise as `Coordinator.status`

    def connect(self) -> Terms:
        """Its terms; asks the first time. Raises NoContract where there is no court, or one of another coordinator."""
        if self._terms is None:
            if not self._w3.eth.get_code(self.address):
                raise NoContract(f"there is no court at {self.address} on this chain: check its address.")
            try:
                of, terms = self._contract.view("coordinator"), Terms(*self._contract.view("rules"))
            except Reverted:
                raise NoContract(f"there is no court at {self.address} on this chain: check its address.") from None
            if of != self._coordinator:
                raise NoContract(
                    f"the court at {self.address} is that of the coordinator at {of}, not of {self._coordinator}:"
                    " name the two that belong together."
                )
            self._terms = terms
        return self._terms

    def peer(self, account: str) -> Peer:
        return Peer(*self._contract.view("peerOf", account))

    def credit(self, account: str) -> int:
        """Wei that wait to be collected."""
        return self._contract.view("creditOf", account)

    def payable(self, account: str, round: int) -> bool:
        """Whether what an account claims for a round may be paid by now."""
        return self._contract.view("isPayable", account, round)

    def case(self, number: int) -> Case:
        """Raises Reverted for a number that no case has."""
        found = Case(number, *self._contract.view("caseAt", number))
        members, votes = tuple(found.members), tuple(found.votes)
        known = all(vote <= NOT_GUILTY for vote in votes) and OPEN <= found.state <= UNDECIDED
        if not known or len(members) != len(votes) or len(votes) > MAX_SIZE:
            raise MalformedAnswer(f"the chain endpoint says of case {number} what no case can be.")
        return found._replace(members=members, votes=votes)

    def open_cases(self) -> list[Case]:
        """Those that are not closed; of those before this process began, the latest."""
        count = calls.check_number("cases", self._contract.view("counts")[0], 1 << 32)
        if self._next is None or self._next > count + 1:  # or a reorganisation took some away
            self._next, self._watched = max(1, count - RECENT + 1), []
        until = min(count + 1, self._next + _ASKED)
        self._watched += range(self._next, until)
        self._next = until
        found = [one for one in map(self.case, self._watched) if one.state == OPEN]
        self._watched = [one.number for one in found]
        return found

    # --- wishing: on disk when the call returns, whatever the chain does; whether it is new

    def stake(self, wei: int) -> bool:
        """Stakes this much, once in the life of an outbox: who lost its stake does not pay again by itself."""
        return self._want(self.address, "stake", 0, 0, {"value": wei})

    def challenge(
        self, settlement: Settlement, record: bytes, position: int, proof: Sequence[bytes], index: int, bond: int
    ) -> bool:
        """Says with a bond, in wei, that a group of a record was not sampled as its author says.

        record: its content hash; position, proof: where beneath the settlement's commitment it is, and RFC 6962's path.
        index: of the group. Once for each question, of which a court takes one from whoever is first.
        """
        if not 0 <= index < 1 << 32:
            raise ValueError(f"a group's index is a whole number below 2^32, not {index}.")
        made = [one.hex() if isinstance(one, bytes) else one for one in settlement.commitment]
        said = {"accused": settlement.account, "commitment": made, "claims": list(settlement.claims), "index": index}
        said |= {"record": record.hex(), "position": position, "proof": [one.hex() for one in proof], "value": bond}
        name = keccak(f"{settlement.account} {record.hex()} {index}".encode())
        return self._want(self.address, "challenge", settlement.round, int.from_bytes(name[:4]), said, again=True)

    def draw(self, number: int) -> bool:
        """Draws a case's committee; nothing is lost if somebody else does it first."""
        return self._want(self.address, "draw", number, 0)

    def vote(self, case: Case, vote: int) -> bool:
        """This node's vote as a member, once. Raises ValueError where it is none."""
        return self._want(self.address, "vote", case.number, case.members.index(self.account), {"vote": vote})

    def resolve(self, number: int) -> bool:
        """Closes a case whose time is over; nothing is lost if somebody else does it first."""
        return self._want(self.address, "resolve", number, 0)

    # --- for whoever sends

    def encode_call(self, name: str, *arguments: str) -> bytes:
        """The bytes of a call that is no node's wish: quit, withdraw, collect."""
        return self._contract.encode(name, *arguments)

    def encode(self, wish: Wish) -> bytes:
        """The bytes of a wish's call."""
        has = wish.arguments
        match wish.kind:
            case "stake":
                return self._contract.encode("deposit")
            case "challenge":
                made, claims = calls.settled(has)
                proof = [bytes.fromhex(one) for one in has["proof"]]
                which = bytes.fromhex(has["record"]), has["position"], proof, has["index"]
                return self._contract.encode("challenge", has["accused"], wish.round, made, claims, *which)
            case "draw" | "resolve":
                return self._contract.encode(wish.kind, wish.round)
            case "vote":
                return self._contract.encode("vote", wish.round, wish.stage, has["vote"])
        raise ValueError(f"there is no wish of the kind {wish.kind!r} at a court.")

    def fate(self, wish: Wish, refusal: str, current: int) -> str:
        """What a refusal does to a wish: "done", "later", "refused", or "dropped" where somebody else was first."""
        if refusal in _BEATEN.get(wish.kind, ()):
            return "dropped"
        if wish.kind == "vote" and refusal == "AlreadyVoted":
            return "done" if self.case(wish.round).votes[wish.stage] == wish.arguments["vote"] else "refused"
        if wish.kind == "challenge" and current > wish.round + self.connect().claims:
            return "refused"
        if wish.kind == "challenge" and refusal == "NotStaked" and not self.peer(wish.arguments["accused"]).stake:
            return "dropped"  # by another case
        return "later" if refusal in _PASSING else "refused"


def settlement(event: "EventData") -> Settlement:
    """Of a coordinator's Settled event."""
    has: Any = event["args"]
    return Settlement(has["account"], has["round"], calls.Commitment(*has["commitment"].values()), tuple(has["claims"]))
