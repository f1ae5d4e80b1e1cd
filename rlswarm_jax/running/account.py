"""A node's account on the chain that its config names."""

import contextlib
import logging
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import ml_collections

from configs.common import LOCAL_CHAINS
from rlswarm_jax.chain.errors import ChainError, EndpointDown, FileDamaged, NoContract, PayoutFixed, WrongChain
from rlswarm_jax.chain.local import CONTRACT_FILE
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.errors import TransientError, UsageError
from rlswarm_jax.files import CHAIN_FOLDER
from rlswarm_jax.identity import Identity
from rlswarm_jax.swarm import addresses
from rlswarm_jax.swarm.mailbox import Mailbox

if TYPE_CHECKING:
    from rlswarm_jax.chain.coordinator import Coordinator
    from rlswarm_jax.keeper import Keeper

log = logging.getLogger("rlswarm_jax.chain")
MAX_BOOTNODES = 16  # of those a coordinator names
PATIENCE = 20.0  # seconds that a call waits for an endpoint that is asked too much
# seconds between nodes' turns to end a round, and without a block until a node makes one; on a chain of a swarm's own,
# which makes one for each transaction, and on a public one
LOCAL_PACE, PACE = (0.5, 0.5), (15.0, 60.0)


def connect(config: ml_collections.ConfigDict, own: Identity, workdir: Path) -> "Coordinator | None":
    """The client, if the config names a chain. An endpoint that is down, or busy for long, is waited for later.

    Raises UsageError for another chain than the config says, no coordinator there, or a payout address that this node
    cannot change.
    """
    chain = config.chain
    if chain.endpoint == "none":
        return None
    from rlswarm_jax.chain.coordinator import Coordinator  # and with it web3
    from rlswarm_jax.chain.local import SETTINGS
    from rlswarm_jax.chain.rpc import Endpoint, Patient

    local = chain.confirmations == 0
    settings = SETTINGS if local else Settings(confirmations=chain.confirmations)
    try:
        (workdir / CHAIN_FOLDER).mkdir(exist_ok=True)
        rpc = Patient(Endpoint(address(chain.endpoint)), PATIENCE)
        which: dict[str, Any] = {"chain_id": chain.id, "court": chain.court, "settings": settings}
        found = Coordinator(rpc, chain.contract, own, workdir / CHAIN_FOLDER, **which)
    except (FileDamaged, OSError) as error:
        raise TransientError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        found.connect()
        found.check_payout(chain.payout or None)
    except (WrongChain, NoContract, PayoutFixed, ValueError) as error:
        found.close()
        raise UsageError(str(error)) from error
    except FileDamaged as error:
        found.close()
        raise TransientError(str(error)) from error
    except ChainError as error:
        log.warning("%s The node begins without it, and tries again.", error)
    return found


def address(endpoint: str) -> str:
    """A URL, or what the environment holds under $NAME: it may have a password. Raises UsageError if it isn't there."""
    if not endpoint.startswith("$"):
        return endpoint
    if url := os.environ.get(endpoint[1:]):
        return url
    raise UsageError(f"the environment has no {endpoint[1:]}, which is to hold the address of the chain's endpoint.")


@contextlib.contextmanager
def reached(config: ml_collections.ConfigDict, node: Path, rpc: str | None = None, contract: str = "") -> Iterator[str]:
    """The URL of a node's chain, while the `with` block lasts: `rpc`, or its config's.

    A local swarm's own, in the folder above the node's, is started again if it does not answer. Raises UsageError if
    there is none to be had, DevnetError.
    """
    from rlswarm_jax.chain import devnet

    url, kept = address(rpc or config.chain.endpoint), node.absolute().parent / CHAIN_FOLDER
    if not rpc and (kept / CONTRACT_FILE).is_file() and not _answers(url, contract or config.chain.contract):
        with devnet.running(kept) as network:
            yield network.url
    elif url in LOCAL_CHAINS:
        raise UsageError(f"the chain of {node} is not here: give --rpc, --contract and --chain-id.")
    else:
        yield url


def _answers(url: str, contract: str) -> bool:
    """Whether a swarm's own chain is still running."""
    from rlswarm_jax.chain import eth
    from rlswarm_jax.chain.calls import checksum
    from rlswarm_jax.chain.rpc import Endpoint

    if url in LOCAL_CHAINS:
        return False
    try:
        return bool(eth.connect(Endpoint(url, seconds=2.0)).eth.get_code(checksum(contract)))
    except EndpointDown:
        return False


def wei(coins: float) -> int:
    """Of an amount as people write it: 0.1 coins are 10^17, not what binary fractions make of it."""
    return int(Decimal(repr(coins)) * 10**18)


def shown(endpoint: str) -> str:
    """What may be shown of an endpoint to others: a path or a user may be a secret."""
    if endpoint.startswith("$"):
        return endpoint
    parts = urlsplit(endpoint)
    bare = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    return bare if endpoint.rstrip("/") == bare else "URL"


def bootnodes(coordinator: "Coordinator | None") -> list[str]:
    """Those that the coordinator names, as far as they are addresses; none if it can't be asked."""
    if coordinator is None:
        return []
    try:
        named = coordinator.bootnodes()
    except ChainError as error:
        log.warning("the coordinator names no bootnodes: %s", error)
        return []
    return [one for one in named if addresses.read(one)][:MAX_BOOTNODES]


@contextlib.contextmanager
def kept(
    config: ml_collections.ConfigDict, coordinator: "Coordinator | None", mailbox: Mailbox
) -> "Iterator[Keeper | None]":
    """Keeps the account, in a thread of its own, for as long as the `with` block lasts. Raises TransientError."""
    if coordinator is None:
        yield None
        return
    from rlswarm_jax.keeper import Keeper

    stagger, patience = LOCAL_PACE if config.chain.confirmations == 0 else PACE
    parts = coordinator, mailbox.inbox.owner, mailbox.authors
    more: dict[str, Any] = {
        "stake": wei(config.chain.stake),
        "stagger": stagger,
        "patience": patience,
    }
    try:
        with Keeper(*parts, payout=config.chain.payout, **more) as keeper:
            yield keeper
    except FileDamaged as error:  # a full disk, say, in whatever the node does
        raise TransientError(str(error)) from error
