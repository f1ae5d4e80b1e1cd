"""What an audit of a run goes by, where it is: its chain, and the weights that its records name."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_collections

from rlswarm_jax.audit import samples
from rlswarm_jax.audit.replays import Run
from rlswarm_jax.chain import eth
from rlswarm_jax.chain.calls import checksum, probe
from rlswarm_jax.chain.errors import Refused
from rlswarm_jax.chain.events import find_first_block
from rlswarm_jax.chain.ledger import PATIENCE
from rlswarm_jax.chain.rpc import Endpoint, Patient, Rpc
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import WEIGHTS_FOLDER
from rlswarm_jax.identity import simulated
from rlswarm_jax.running import build
from rlswarm_jax.running.account import reached


def engine(config: ml_collections.ConfigDict) -> tuple[Run, samples.Weights]:
    """What replays, and the weights that all nodes began with, by name."""
    from rlswarm_jax import qwen  # and with it jax

    made = build.build(config, [simulated(config.seed, 0)]).one_engine
    base = made.tensors(0)
    return functools.partial(made.replay, 0), {qwen.tensors_hash(base): lambda: base}


def kept_weights(nodes: Sequence[Path]) -> samples.Weights:
    """What nodes have kept of their latest weights, by name."""
    from rlswarm_jax.audit.archive import at_hand

    found: dict = {}
    for node in nodes:
        found |= at_hand(node / WEIGHTS_FOLDER)
    return found


@contextlib.contextmanager
def endpoint(
    config: ml_collections.ConfigDict,
    node: Path,
    rpc_url: str | None = None,
    contract: str | None = None,
    chain_id: int | None = None,
    from_block: int | None = None,
) -> Iterator[tuple[Rpc, str, int]]:
    """The chain, the coordinator's address and the first block of its events, while the `with` block lasts.

    node: a folder of the run. A local swarm's own chain is started for as long, where it does not run any more. What is
    None is the config's. Raises UsageError, ChainError or DevnetError.
    """
    contract, chain = contract or config.chain.contract, chain_id or config.chain.id
    with reached(config, node, rpc_url, contract) as url:
        try:
            rpc = Patient(Endpoint(url), PATIENCE)
            contract = checksum(contract)
        except ValueError as error:
            raise UsageError(str(error)) from error
        w3 = eth.connect(rpc)
        if (found := w3.eth.chain_id) != chain:
            raise UsageError(f"the endpoint serves chain {found}, not {chain}: check --rpc and --chain-id.")
        if not probe(eth.Contract(w3, contract)).ours:
            raise UsageError(f"the coordinator at {contract} takes no commitments, so its claims cannot be checked.")
        try:
            first = find_first_block(rpc, contract) if from_block is None else from_block
        except Refused as error:
            raise UsageError(f"the block of the deployment is not known: give --from-block ({error})") from None
        yield rpc, contract, first
