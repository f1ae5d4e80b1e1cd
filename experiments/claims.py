"""Checks what nodes have claimed on their chain by the records they committed to: anybody can do it.

    python -m experiments.claims runs/quickstart                  a swarm that ran on this machine, its own chain too
    python -m experiments.claims runs/mine runs/theirs ...        a node's folder, and more that hold records
    python -m experiments.claims DIR --rpc URL --contract 0x... --chain-id N

Each DIR is a node's folder, or a swarm's with all its node-*; nothing in it is changed but for the chain's lock. Nodes
may be running. The first one says what is played: its config may name modules of tasks, which are imported, so let it
be your own; that nothing is missing in it is believed, too. Of the others only records are read, and these prove by
their signatures who wrote them: whoever hands a folder over may have left out what they like.

For each commitment it finds the records that it covers by their Merkle root, derives their problems from the chain's
beacons, scores them anew, and compares the sums with the claims. Only what is found right so counts as verified.
Written to claims.json in --out, the first DIR by default. Exit code 0 if all that is claimed was verified, 1 if
something is wrong or could not be verified, 2 if nothing could be found out. On a public chain the events are read from
the contract's deployment on, whose block is searched for; where the endpoint has no old state, give --from-block.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from configs.common import LOCAL_CHAINS
from rlswarm_jax.audit import claims
from rlswarm_jax.audit.claims import Audit, Standing
from rlswarm_jax.audit.played import records as kept_records
from rlswarm_jax.audit.worth import Item, Judge
from rlswarm_jax.chain import devnet, eth, ledger
from rlswarm_jax.chain.calls import probe
from rlswarm_jax.chain.deployment import first_block
from rlswarm_jax.chain.devnet import DevnetError
from rlswarm_jax.chain.errors import ChainError, EndpointDown, Refused
from rlswarm_jax.chain.events import EventIndex
from rlswarm_jax.chain.local import CONTRACT_FILE
from rlswarm_jax.chain.rpc import Endpoint, Patient, Rpc
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CHAIN_FOLDER, CONFIG_FILE, JOURNAL_FILE, write_whole
from rlswarm_jax.game.chain import MARK
from rlswarm_jax.game.effects import Gather, Publish
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import JournalError, look
from rlswarm_jax.records.envelope import SignedRecord, open_envelope
from rlswarm_jax.records.schema import STAGES, RecordError
from rlswarm_jax.reporting.blocks import print_table
from rlswarm_jax.reporting.ledger import CLAIMS_FILE, PATIENCE
from rlswarm_jax.running import build
from rlswarm_jax.running.account import address
from rlswarm_jax.tasks.verifier import Verifier, VerifierError

SHOWN = 50  # lines of what is wrong, in the terminal


@dataclasses.dataclass(frozen=True)
class Shelf:
    """Signed records by content hash. since: of those whose journal it is, the round from which on it is whole."""

    records: dict[bytes, SignedRecord]
    since: dict[bytes, int]


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
    nodes = [node for directory in arguments.folders for node in node_folders(directory)]
    config = read_config(nodes[0])
    try:
        game = build.observed(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"{nodes[0] / CONFIG_FILE} is the config of another version: {error}") from None
    shelf = read_journals(nodes)
    whole = read_journals(node_folders(arguments.folders[0])).since
    with _endpoint(arguments, config, nodes[0]) as (rpc, contract):
        rounds = read_chain(rpc, contract, arguments.from_block)
        game = dataclasses.replace(game, contract=contract, chain_id=arguments.chain_id or config.chain.id)
    with build.make_verifier(config, game) as verifier:
        found = claims.audit(game, rounds, shelf.records.values(), whole, make_judge(verifier))
    seconds = time.monotonic() - began
    out = arguments.out or arguments.folders[0]
    write_whole(out / CLAIMS_FILE, json.dumps(as_json(found), indent=2) + "\n")
    _print(found, len(shelf.records), seconds, console)
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


# --- what is in the folders


def node_folders(directory: Path) -> list[Path]:
    """A node's own folder, or those of a swarm's nodes. Raises UsageError if it is neither."""
    found = sorted(path for path in directory.glob("node-*") if path.is_dir())
    if not found and (directory / JOURNAL_FILE).is_file():
        return [directory]
    if not found:
        raise UsageError(f"{directory} is the folder of no node and of no live swarm.")
    return found


def read_config(node: Path) -> ml_collections.ConfigDict:
    """Raises UsageError if there is none, or it names no chain."""
    path = node / CONFIG_FILE
    try:
        config = ml_collections.ConfigDict(json.loads(path.read_text())).lock()
        endpoint = config.chain.endpoint
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: name the folder of a node that has run.") from None
    except (ValueError, AttributeError, TypeError):
        raise UsageError(f"{path} is not the config of a node.") from None
    if endpoint == "none":
        raise UsageError(f"the run in {node} has no chain, so nobody has claimed anything.")
    return config


def read_journals(nodes: Sequence[Path]) -> Shelf:
    """All records that these nodes published or heard. What is no signed record is left out.

    Raises JournalError if a journal is not there, locked or damaged.
    """
    records: dict[bytes, SignedRecord] = {}
    since: dict[bytes, int] = {}
    for node in nodes:
        path = node / JOURNAL_FILE
        entries, first = look(path, [Publish.__name__, Gather.__name__])
        try:
            published = {raw for entry in entries if entry.kind == Publish.__name__ for raw in kept_records(entry)}
            gathered = {raw for entry in entries if entry.kind == Gather.__name__ for raw in kept_records(entry)}
        except JournalError as error:
            raise JournalError(f"{path}: {error}") from None
        for raw in [*published, *gathered]:
            with contextlib.suppress(RecordError):
                signed = open_envelope(raw)
                records[signed.hash] = signed
                if raw not in gathered:
                    since[signed.record.author] = min(first, since.get(signed.record.author, first))
    return Shelf(records, since)


# --- what is on the chain


@contextlib.contextmanager
def _endpoint(
    arguments: argparse.Namespace, config: ml_collections.ConfigDict, node: Path
) -> Iterator[tuple[Rpc, str]]:
    """The chain and the coordinator's address, for as long as the `with` block lasts."""
    contract, chain = arguments.contract or config.chain.contract, arguments.chain_id or config.chain.id
    with contextlib.ExitStack() as held:
        url = address(arguments.rpc or config.chain.endpoint)
        kept = node.parent / CHAIN_FOLDER
        if not arguments.rpc and (kept / CONTRACT_FILE).is_file() and not _answers(url, contract):
            url = held.enter_context(devnet.running(kept, options=["--tick", "0"])).url
        elif url in LOCAL_CHAINS:
            raise UsageError(f"the chain of {node} is not here: give --rpc, --contract and --chain-id.")
        try:
            rpc = Patient(Endpoint(url), PATIENCE)
            eth.checksum(contract)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if (found := eth.chain_id(rpc)) != chain:
            raise UsageError(f"the endpoint serves chain {found}, not {chain}: check --rpc and --chain-id.")
        if not probe(rpc, contract).ours:
            raise UsageError(f"the coordinator at {contract} takes no commitments, so its claims cannot be checked.")
        yield rpc, contract


def _answers(url: str, contract: str) -> bool:
    """Whether a swarm's own chain is still running."""
    if url in LOCAL_CHAINS:
        return False
    try:
        return eth.has_code(Endpoint(url, seconds=2.0), contract)
    except EndpointDown:
        return False


def read_chain(rpc: Rpc, contract: str, from_block: int | None) -> list[ledger.Round]:
    """All rounds of a coordinator, from its events since its deployment. Raises ChainError, UsageError."""
    try:
        first = first_block(rpc, contract) if from_block is None else from_block
    except Refused as error:
        raise UsageError(f"the block of the deployment is not known: give --from-block ({error})") from None
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as held:
        index = EventIndex(rpc, contract, Path(directory) / "events.sqlite", first)
        held.callback(index.close)
        while not index.pull():
            pass
        return ledger.rounds(index)


def make_judge(verifier: Verifier) -> Judge:
    """Scores one by one, so that it is known which failed; what takes workers has all of them at once."""

    def judge(items: Sequence[Item]) -> list[float | None]:
        verifier.begin(items)
        scored = [verifier.score([item]) for item in items]
        return [None if found.failures else found.scores[0] for found in scored]

    return judge


# --- what is said of it


def as_json(found: Audit) -> dict[str, Any]:
    """claims.json. Amounts are millionths of a full reward."""
    return {
        "accounts": [_account_json(account) for account in found.standings],
        "votes": [dataclasses.asdict(vote) for vote in found.votes],
        "equivocations": [
            {"author": author.hex(), "round": round_, "stage": stage} for author, round_, stage in found.equivocations
        ],
        "claimed": found.claimed,
        "verified": found.verified,
        "unverified_claims": sum(account.unverified for account in found.standings),
        "wrong": found.wrong,
        "sound": found.sound,
    }


def _account_json(account: Standing) -> dict[str, Any]:
    covered, claimed = account.cover, [dataclasses.asdict(claim) for claim in account.claims]
    return {
        "round": account.round,
        "account": account.account,
        "author": account.author.hex() if account.author else None,
        "hash": account.hash,
        "verdict": account.verdict,
        "right": account.right,
        "claimed": account.claimed,
        "verified": account.verified,
        "records": [signed.hash.hex() for signed in covered.records] if covered else None,
        "left_out": [f"round {s.record.round} {s.record.stage}" for s in covered.left_out] if covered else None,
        "missing": account.missing,
        "left": account.left,
        "claims": claimed,
    }


def _print(found: Audit, records: int, seconds: float, console: Console) -> None:
    by_account = collections.defaultdict[str, list[Standing]](list)
    for account in found.standings:
        by_account[account.account].append(account)
    names = {name: _name(accounts) for name, accounts in by_account.items()}
    header = ["", "rounds", "right", "wrong", "unsure", "claimed", "verified", "votes"]
    rows = [_row(found, name, names[name], accounts) for name, accounts in sorted(by_account.items())]
    print_table([header, *rows], console)
    counted = sum(not vote.why for vote in found.votes)
    checked = sum(len(account.claims) for account in found.standings)
    console.print(
        f"{checked} claims of {len(found.standings)} commitments by {records} records in {seconds:.1f} s; "
        f"{counted} of {len(found.votes)} votes count",
        highlight=False,
        soft_wrap=True,
    )
    lines = list(remarks(found, names))
    for line in lines[:SHOWN]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if len(lines) > SHOWN:
        console.print(f"... and {len(lines) - SHOWN} more")
    unverified = sum(one.unverified for one in found.standings)
    console.print(f"claimed {_amount(found.claimed)}, verified {_amount(found.verified)} of it", highlight=False)
    verdict = "[red]something is wrong[/red]" if found.wrong else "nothing was found wrong"
    console.print(f"{verdict}; {unverified} claims could not be verified" if unverified else verdict)


def _name(accounts: Sequence[Standing]) -> str:
    author = next((account.author for account in accounts if account.author), None)
    return friendly_name(author) if author else accounts[0].account


def _row(found: Audit, account: str, name: str, accounts: Sequence[Standing]) -> list[str]:
    rulings = collections.Counter(claim.verdict for one in accounts for claim in one.claims)
    against = sum(count for verdict, count in rulings.items() if verdict in claims.AGAINST)
    fine = rulings[claims.RIGHT] + rulings[claims.UNCLAIMED]
    votes = [vote for vote in found.votes if vote.voter == account]
    return [
        name,
        f"{sum(one.verdict == claims.RIGHT for one in accounts)} of {len(accounts)}",
        f"{fine} of {rulings.total()}",
        str(against),
        str(rulings.total() - fine - against),
        _amount(sum(one.claimed for one in accounts)),
        _amount(sum(one.verified for one in accounts)),
        f"{sum(not vote.why for vote in votes)} of {len(votes)}",
    ]


def remarks(found: Audit, names: dict[str, str]) -> Iterator[str]:
    """What is not right, and what earned nothing, in a line each."""
    for one in found.standings:
        where = f"round {one.round}, {names[one.account]}"
        at = f" ({one.hash})" if one.hash else ""
        if one.verdict == claims.MISSING:
            yield f"{where}: cannot be checked, about {one.missing} of the records it may cover are not here{at}"
        elif one.verdict == claims.WRONG_ROOT:
            yield f"{where}: WRONG ROOT: all its records are here, and have another{at}"
        elif one.verdict == claims.ANOTHER_GAME:
            yield f"{where}: cannot be checked, it plays another game than the config here says (other rules){at}"
        elif one.verdict == claims.NO_COMMITMENT:
            yield f"{where}: cannot be checked, it committed to nothing"
        if one.cover and one.cover.left_out:
            slots = ", ".join(f"{s.record.round} {s.record.stage}" for s in one.cover.left_out)
            loud = "RECORDS LEFT OUT" if one.cover.holes else "in no commitment (the chain may have undone a beacon)"
            yield f"{where}: {loud}: {slots}{at}"
        if one.left:
            yield f"{where}: nothing claimed for {', '.join(map(str, one.left))}, which it may have left{at}"
        for claim in one.claims:
            stage = dict(enumerate(STAGES)).get(claim.stage, str(claim.stage))
            if claim.worth is None:
                continue
            if claim.verdict == claims.WRONG:
                said = f"claimed {_amount(claim.claimed or 0)}, worth {_bounds(claim)}"
                yield f"{where}: {stage}: WRONG: {said} ({claim.hash})"
            elif claim.verdict == claims.UNCLAIMED:
                yield f"{where}: {stage}: worth {_bounds(claim)}, nothing claimed"
            elif claim.verdict == claims.UNCHECKED:
                yield f"{where}: {stage}: claimed {_amount(claim.claimed or 0)}, cannot be told: {_bounds(claim)}"
            for what, causes in (("earn nothing", claim.worth.flaws), ("cannot be judged", claim.worth.open)):
                for cause, count in causes.items():
                    yield f"{where}: {stage}: {count} groups {what}: {cause}"
    for author, round_, stage in found.equivocations:
        yield f"{friendly_name(author)}: TWO RECORDS for round {round_}, stage {stage}, both signed"


def _bounds(claim: claims.Claim) -> str:
    worth = claim.worth
    assert worth
    if worth.low == worth.high:
        return _amount(worth.amount)
    return f"{_amount(worth.low)} to {_amount(worth.high)}"


def _amount(millionths: int) -> str:
    """In full rewards."""
    return f"{millionths / MARK:.6f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
