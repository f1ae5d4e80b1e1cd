"""What an audit of claims has found: claims.json, and the same for the terminal."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from rlswarm_jax.audit import claims
from rlswarm_jax.audit.claims import Audit, Standing
from rlswarm_jax.game.chain import MARK
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.reporting.blocks import print_table

SHOWN = 50  # lines of what is wrong, in the terminal
_SAID = {
    claims.MISSING: "cannot be checked, {missing} of its records are not here",
    claims.WRONG_ROOT: "WRONG ROOT: all its records are here, and have another",
    claims.LEFT_OUT: "RECORDS LEFT OUT: its author has published more between the first and the last than it says",
    claims.TWICE: "COMMITTED TO TWICE: it begins before the end of the commitment before it",
    claims.ANOTHER_GAME: "cannot be checked, it plays another game than the config here says (other rules)",
}


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
    return {
        "round": account.round,
        "account": account.account,
        "author": account.author.hex() if account.author else None,
        "hash": account.hash,
        "verdict": account.verdict,
        "right": account.right,
        "claimed": account.claimed,
        "verified": account.verified,
        "records": [signed.hash.hex() for signed in account.records],
        "missing": account.missing,
        "gap": account.gap,
        "claims": [dataclasses.asdict(claim) for claim in account.claims],
    }


def print_audit(found: Audit, records: int, seconds: float, console: Console) -> None:
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
    fine = rulings[claims.RIGHT]
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
        if one.verdict in _SAID:
            yield f"{where}: {_SAID[one.verdict].format(missing=one.missing)} ({one.hash})"
        if one.gap:
            yield f"{where}: begins with another state than the commitment before it ended with ({one.hash})"
        for claim in one.claims:
            stage = STAGES[claim.stage]
            if claim.worth is None:
                continue
            if claim.verdict == claims.WRONG:
                said = f"claimed {_amount(claim.claimed)}, worth {_bounds(claim)}"
                yield f"{where}: {stage}: WRONG: {said} ({one.hash})"
            elif claim.verdict == claims.UNCHECKED:
                yield f"{where}: {stage}: claimed {_amount(claim.claimed)}, cannot be told: {_bounds(claim)}"
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
