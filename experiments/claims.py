"""Checks what nodes have claimed on their chain by the records they committed to: anybody can do it.

    python -m experiments.claims runs/quickstart                  a swarm that ran on this machine, its own chain too
    python -m experiments.claims runs/mine runs/theirs ...        a node's folder, and more that hold records
    python -m experiments.claims DIR --rpc URL --contract 0x... --chain-id N

Each DIR is a node's folder, or a swarm's with all its node-*; nothing in it is changed but for the chain's lock. Nodes
may be running. The first one says what is played: its config may name modules of tasks, which are imported, so let it
be your own. Of the others only records are read, and these prove by their signatures who wrote them.

For each commitment it takes the records that it says it covers, compares their Merkle root, derives their problems from
the chain's beacons, scores them anew, and compares the sums with the claims. Only what is found right so counts as
verified.
Written to claims.json in --out, the first DIR by default. Exit code 0 if all that is claimed was verified, 1 if
something is wrong or could not be verified, 2 if nothing could be found out. On a public chain the events are read from
the contract's deployment on, whose block is searched for; where the endpoint has no old state, give --from-block.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_collections
from rich.console import Console

from configs import fields
from configs.common import LOCAL_CHAINS
from rlswarm_jax.audit import claims
from rlswarm_jax.audit.evidence import make_judge, read_chain, read_journals
from rlswarm_jax.chain import devnet, eth
from rlswarm_jax.chain.calls import checksum, probe
from rlswarm_jax.chain.devnet import DevnetError
from rlswarm_jax.chain.errors import ChainError, EndpointDown, Refused
from rlswarm_jax.chain.events import find_first_block
from rlswarm_jax.chain.ledger import PATIENCE
from rlswarm_jax.chain.local import CONTRACT_FILE
from rlswarm_jax.chain.rpc import Endpoint, Patient, Rpc
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CHAIN_FOLDER, CONFIG_FILE, JOURNAL_FILE, node_folders, write_whole
from rlswarm_jax.journal import JournalError
from rlswarm_jax.reporting.claims import as_json, print_audit
from rlswarm_jax.reporting.ledger import CLAIMS_FILE
from rlswarm_jax.running import build
from rlswarm_jax.running.account import address
from rlswarm_jax.running.folder import read_config
from rlswarm_jax.tasks.verifier import VerifierError


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return run(arguments, Console())
    except (UsageError, JournalError, ChainError, DevnetError, VerifierError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace, console: Console) -> int:
    began = time.monotonic()
    nodes = [node for directory in arguments.folders for node in homes(directory)]
    config = read_config(nodes[0])
    if not fields.has(config, "chain.endpoint"):
        raise UsageError(f"{nodes[0] / CONFIG_FILE} is not the config of a node.")
    if config.chain.endpoint == "none":
        raise UsageError(f"the run in {nodes[0]} has no chain, so nobody has claimed anything.")
    try:
        game = build.observed(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"{nodes[0] / CONFIG_FILE} is the config of another version: {error}") from None
    records = read_journals(nodes)
    with _endpoint(arguments, config, nodes[0]) as (rpc, contract, first):
        rounds = read_chain(rpc, contract, first)
        game = dataclasses.replace(game, contract=contract, chain_id=arguments.chain_id or config.chain.id)
    with build.make_verifier(config, game) as verifier:
        found = claims.audit(game, rounds, records.values(), make_judge(verifier))
    seconds = time.monotonic() - began
    out = arguments.out or arguments.folders[0]
    write_whole(out / CLAIMS_FILE, json.dumps(as_json(found), indent=2) + "\n")
    print_audit(found, len(records), seconds, console)
    console.print(f"written to {out / CLAIMS_FILE}", soft_wrap=True)
    return int(not found.sound)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments.claims", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", metavar="DIR", type=Path, nargs="+", help="of a node, or of a swarm")
    parser.add_argument("--rpc", metavar="URL", help="the chain's endpoint, or $NAME of a variable that holds it")
    parser.add_argument("--contract", metavar="0x...", help="the coordinator's address, if not the config's")
    parser.add_argument("--chain-id", metavar="N", type=int, help="the chain's, if not the config's")
    parser.add_argument("--from-block", metavar="N", type=int, help="the contract's deployment's, or any before it")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where claims.json is written")
    return parser


def homes(directory: Path) -> list[Path]:
    """A node's own folder, or those of a swarm's nodes. Raises UsageError if it is neither."""
    found = node_folders(directory)
    if not found and (directory / JOURNAL_FILE).is_file():
        return [directory]
    if not found:
        raise UsageError(f"{directory} is the folder of no node and of no live swarm.")
    return found


@contextlib.contextmanager
def _endpoint(
    arguments: argparse.Namespace, config: ml_collections.ConfigDict, node: Path
) -> Iterator[tuple[Rpc, str, int]]:
    """The chain, the coordinator's address and the first block of its events, while the `with` block lasts."""
    contract, chain = arguments.contract or config.chain.contract, arguments.chain_id or config.chain.id
    with contextlib.ExitStack() as held:
        url = address(arguments.rpc or config.chain.endpoint)
        kept = node.parent / CHAIN_FOLDER
        if not arguments.rpc and (kept / CONTRACT_FILE).is_file() and not _answers(url, contract):
            url = held.enter_context(devnet.running(kept)).url
        elif url in LOCAL_CHAINS:
            raise UsageError(f"the chain of {node} is not here: give --rpc, --contract and --chain-id.")
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
            first = find_first_block(rpc, contract) if arguments.from_block is None else arguments.from_block
        except Refused as error:
            raise UsageError(f"the block of the deployment is not known: give --from-block ({error})") from None
        yield rpc, contract, first


def _answers(url: str, contract: str) -> bool:
    """Whether a swarm's own chain is still running."""
    if url in LOCAL_CHAINS:
        return False
    try:
        return bool(eth.connect(Endpoint(url, seconds=2.0)).eth.get_code(checksum(contract)))
    except EndpointDown:
        return False


if __name__ == "__main__":
    sys.exit(main())
