"""A coordinator on a local chain, a node that is registered there, and another: what the client's tests begin with."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rlswarm_jax import identity
from rlswarm_jax.chain import calls
from rlswarm_jax.chain.contracts import coordinator
from rlswarm_jax.chain.coordinator import Coordinator
from rlswarm_jax.chain.settings import Settings
from tests.chain.local_chain import CHAIN_ID, LocalChain, encode_call

ME, OTHER = identity.simulated(0, 0), identity.simulated(0, 1)
ACCOUNT, OTHER_ACCOUNT = calls.account_of(ME.author), calls.account_of(OTHER.author)
SETTINGS = Settings(confirmations=2, retry_seconds=0.0)
NOBODY = "0x" + "00" * 20
RULES = {"min": 0, "max": 1, "quorum": 1, "window": 3, "most": 10**6}


class World(NamedTuple):
    """height: of the chain when all is ready, for tests that go back there. beacon: of the round `round`."""

    chain: LocalChain
    contract: str
    round: int
    beacon: bytes
    height: int

    def client(self, directory: Path, **options: Any) -> Coordinator:
        options = {"settings": SETTINGS, "chain_id": CHAIN_ID} | options
        return Coordinator(self.chain, self.contract, options.pop("identity", ME), directory, **options)

    def events(self, name: str, account: str = ACCOUNT) -> list[dict]:
        """Events of a name that are of an account."""
        return [one for one in self.chain.events(self.contract, name) if one["account"] == account.lower()]

    def at(self, round_: int) -> "World":
        """With the present round, and the beacon that the contract has for it."""
        status = self.chain.request("eth_call", [{"to": self.contract, "data": "0x200d2ed2"}, "latest"])
        return self._replace(round=round_, beacon=bytes.fromhex(status[2:])[160:192])

    def beacons(self) -> list[bytes]:
        """Of all rounds, by their numbers."""
        past = [one["beacon"] for one in self.chain.events(self.contract, "BeaconFinalized")]
        return [*past[: self.round], self.beacon]

    def call(self, key: identity.Identity, signature: str, *arguments: Any) -> None:
        """A transaction of somebody's, in a block at once."""
        self.chain.transact(key.expose_secret(), self.contract, encode_call(signature, arguments))
        self.chain.mine()


def deploy(chain: LocalChain, **rules: int) -> str:
    values = tuple((RULES | rules).values())
    types = ["address", "(uint32,uint32,uint32,uint32,uint64)"]
    return chain.deploy(coordinator()["bytecode"], types, (NOBODY, values))


def make_world(rounds: int = 1, **rules: int) -> World:
    """Both nodes are registered and funded; `rounds` have passed since, and the beacon can be read.

    The chain is taken back to that point if another test has been there.
    """
    world = _build(rounds, **rules)
    world.chain.reset(world.height)
    return world


@cache
def _build(rounds: int, **rules: int) -> World:
    chain = LocalChain()
    world = World(chain, deploy(chain, **rules), 0, b"", 0)
    for one in (ME, OTHER):
        chain.fund(calls.account_of(one.author))
        signature, arguments = "register(uint256,uint256)", calls.point(one.author)
        world.call(one, signature, *arguments)
    chain.mine(3)
    for _ in range(rounds):
        world.call(OTHER, "advanceRound()")
        chain.mine(3)
    return world._replace(height=chain.height).at(rounds)


@cache
def originals() -> dict[str, dict]:
    """Contracts with the original's interface, by name: `bytecode` and `selectors`."""
    return json.loads((Path(__file__).parent / "original" / "artifacts.json").read_text())


def original_world(world: World) -> World:
    """The same chain, with such a contract."""
    return world._replace(contract=world.chain.deploy(originals()["Original060"]["bytecode"]))


COMMITMENT = calls.Commitment(
    *(bytes([byte]) * 32 for byte in (1, 2, 3)), 9, *(bytes([byte]) * 32 for byte in (4, 5, 6))
)
CLAIMS = (12345, 0, -7)
SETTLE = "settle(uint256,bytes4,(bytes32,bytes32,bytes32,uint256,bytes32,bytes32,bytes32),int64[3],address[])"


def wish_settlement(client: Coordinator, world: World, *winners: identity.Identity) -> bool:
    return client.settle(world.round, world.beacon, COMMITMENT, CLAIMS, [one.peer_id for one in winners])


def wish_all(client: Coordinator, world: World) -> None:
    """A settlement, and the weights after it."""
    wish_settlement(client, world, OTHER)
    client.publish_weights(world.round, b"w" * 32, "ipfs://weights")


def settle_by_hand(world: World, one: identity.Identity, round_: int, beacon: bytes) -> None:
    """Without the client, in a block at once."""
    world.call(one, SETTLE, round_, beacon[:4], tuple(COMMITMENT), CLAIMS, [])


def settle(client: Coordinator, world: World, blocks: int = 12) -> None:
    """Steps, a block between each, until everything wished is done."""
    for _ in range(blocks):
        client.step()
        if set(client.counts()) <= {"done", "refused", "dropped"}:
            return
        world.chain.mine()
        world.chain.hook("after a block")
    raise AssertionError(
        f"not settled: {client.counts()} {client.problems} {client.wishes('waiting', 'signed', 'mined')}"
    )
