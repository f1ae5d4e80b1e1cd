"""Checks what nodes have published: whether it was sampled as they say, and earned what they claim. Anybody can do it.

    python -m experiments.audit runs/quickstart                  a swarm that ran on this machine, its own chain too
    python -m experiments.audit runs/mine runs/theirs ...        a node's folder, and more that hold records
    python -m experiments.audit DIR --rpc URL --contract 0x... --chain-id N

Each DIR is a node's folder, or a swarm's with all its node-*; nothing in it is changed but for the chain's lock. Nodes
may be running. The first one says what is played: its config may name modules of tasks, which are imported, so let it
be your own. Of the others only records are read, and these prove by their signatures who wrote them.

Samples: groups of completions are replayed with the weights that their records name, as far as those are here: the
model that the first DIR's config starts from, and what its nodes kept of their latest weights to be checked.
Claims, where there is a chain: for each commitment it takes the records that it says it covers, compares their Merkle
root, derives their problems from the chain's beacons, scores them anew, and compares the sums with the claims. Only
what is found right so counts as verified.
Written to samples.json and claims.json in --out, the first DIR by default. Exit code 0 if nothing was found that was
not sampled as it is said to be, and all that is claimed was verified; 1 otherwise; 2 if nothing could be found out. On
a public chain the events are read from the contract's deployment on, whose block is searched for; where the endpoint
has no old state, give --from-block.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from configs import fields
from rlswarm_jax.audit import claims, samples
from rlswarm_jax.audit.evidence import make_judge, read_chain, read_journals
from rlswarm_jax.chain.devnet import DevnetError
from rlswarm_jax.chain.errors import ChainError
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CONFIG_FILE, JOURNAL_FILE, node_folders, write_whole
from rlswarm_jax.game.chain import by_tag
from rlswarm_jax.journal import JournalError
from rlswarm_jax.reporting.claims import as_json, print_audit
from rlswarm_jax.reporting.ledger import CLAIMS_FILE
from rlswarm_jax.reporting.samples import SAMPLES_FILE, print_samples, samples_json
from rlswarm_jax.running import build, evidence
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
    try:
        game = build.observed(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"{nodes[0] / CONFIG_FILE} is the config of another version: {error}") from None
    records, out = read_journals(nodes), arguments.out or arguments.folders[0]
    out.mkdir(parents=True, exist_ok=True)
    beacons, sound = {b"": b""}, True
    if config.chain.endpoint != "none":
        with evidence.endpoint(
            config, nodes[0], arguments.rpc, arguments.contract, arguments.chain_id, arguments.from_block
        ) as (rpc, contract, first):
            rounds = read_chain(rpc, contract, first)
            game = dataclasses.replace(game, contract=contract, chain_id=arguments.chain_id or config.chain.id)
        with build.make_verifier(config, game) as verifier:
            found = claims.audit(game, rounds, records.values(), make_judge(verifier))
        beacons |= by_tag(claims.moments(rounds))
        write_whole(out / CLAIMS_FILE, json.dumps(as_json(found), indent=2) + "\n")
        print_audit(found, len(records), time.monotonic() - began, console)
        console.print(f"written to {out / CLAIMS_FILE}\n", soft_wrap=True)
        sound = found.sound
    if arguments.groups:
        began, (run_, weights) = time.monotonic(), evidence.engine(config)
        weights = {**weights, **evidence.kept_weights(nodes)}
        sampled = samples.replay(game, records.values(), beacons, weights, run_, arguments.groups)
        write_whole(out / SAMPLES_FILE, json.dumps(samples_json(sampled), indent=2) + "\n")
        print_samples(sampled, time.monotonic() - began, console)
        console.print(f"written to {out / SAMPLES_FILE}", soft_wrap=True)
        sound &= not sampled.wrong
    return int(not sound)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments.audit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", metavar="DIR", type=Path, nargs="+", help="of a node, or of a swarm")
    parser.add_argument("--rpc", metavar="URL", help="the chain's endpoint, or $NAME of a variable that holds it")
    parser.add_argument("--contract", metavar="0x...", help="the coordinator's address, if not the config's")
    parser.add_argument("--chain-id", metavar="N", type=int, help="the chain's, if not the config's")
    parser.add_argument("--from-block", metavar="N", type=int, help="the contract's deployment's, or any before it")
    parser.add_argument("--groups", metavar="N", type=int, default=8, help="of each author and its weights (0: none)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the files are written")
    return parser


def homes(directory: Path) -> list[Path]:
    """A node's own folder, or those of a swarm's nodes. Raises UsageError if it is neither."""
    found = node_folders(directory)
    if not found and (directory / JOURNAL_FILE).is_file():
        return [directory]
    if not found:
        raise UsageError(f"{directory} is the folder of no node and of no live swarm.")
    return found


if __name__ == "__main__":
    sys.exit(main())
