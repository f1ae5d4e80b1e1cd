"""What the chain has of a swarm, for summary.json and the report.

Amounts are in millionths of a full mark: 1,000,000 is what one right answer earns.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from rlswarm_jax.chain.ledger import Ledger, Total
from rlswarm_jax.files import write_whole
from rlswarm_jax.game.chain import MARK
from rlswarm_jax.identity import author_of, friendly_name
from rlswarm_jax.reporting.blocks import Section, markdown_table

INDEX_FILE, JSON_FILE, TEXT_FILE = "ledger.sqlite", "ledger.json", "ledger.md"
CLAIMS_FILE, NOT_VERIFIED = "claims.json", "not verified"
_FIRST, _LAST, _PEERS = 3, 12, 32  # rounds and peers that a report shows


class _Standing(msgspec.Struct, frozen=True):
    account: str
    verified: int


class _Claims(msgspec.Struct, frozen=True):
    """What is needed of claims.json."""

    accounts: list[_Standing]


def read_verified(directory: Path) -> dict[str, int] | None:
    """Of each account's claims what `experiments.audit` found right, by its file in a folder; None without one."""
    try:
        found = msgspec.json.decode((directory / CLAIMS_FILE).read_bytes(), type=_Claims)
    except (OSError, msgspec.MsgspecError):
        return None
    sums = Counter[str]()
    for one in found.accounts:
        sums[one.account] += one.verified
    return dict(sums)


def ledger_sections(found: Ledger, verified: Mapping[str, int] | None = None) -> list[Section]:
    """The report's part: its peers with what they claim and what of it was verified, and its rounds.

    verified: by account, None where nobody has.
    """
    sums = {
        what: sum(len(getattr(one, f"{what}s")) for one in found.rounds) for what in ("commitment", "reward", "vote")
    }
    done = [_many(number, what) for what, number in sums.items()]
    who = _many(sum(peer.kind != "claimed" for peer in found.peers), "peer")
    text = (
        f"On chain {found.chain_id}, contract {found.contract}, up to block {found.block:,}: {done[0]}, {done[1]} and"
        f" {done[2]} of {who}, in {_many(len(found.rounds), 'round')} of the chain. What nodes claim is in full"
        f" marks; {_said_of(verified)}. {TEXT_FILE} and {JSON_FILE} have it all, with whole transaction hashes."
    )
    peers = Section("The ledger", text, _peers(found, verified), optional=("registered by", "kind", "commitments"))
    return [peers, Section("The ledger by round", "", _rounds(found))]


def write_ledger(workdir: Path, found: Ledger) -> None:
    """Writes ledger.json and ledger.md, with whole hashes. Raises UsageError if the disk does not take them."""
    write_whole(workdir / JSON_FILE, msgspec.json.format(msgspec.json.encode(found)).decode() + "\n")
    write_whole(workdir / TEXT_FILE, _text(found, read_verified(workdir)))


def _said_of(verified: Mapping[str, int] | None) -> str:
    if verified is None:
        return "nobody has verified it here (experiments.audit does)"
    return "what of it is right by the records was found by experiments.audit"


def _peers(found: Ledger, verified: Mapping[str, int] | None) -> list[list[str]]:
    committed = Counter(one.account for round_ in found.rounds for one in round_.commitments)
    rows = [["peer", "kind", "commitments", "claimed", "verified", "votes got", "registered by"]]
    # those that only claim an id may be as many as somebody likes
    ordered = sorted(found.peers, key=lambda peer: peer.kind == "claimed")
    for peer in ordered[:_PEERS]:
        total = found.totals.get(peer.account, Total(0, 0))
        counts = [f"{committed[peer.account]:,}", *_sums(found, verified, peer.account), f"{total.votes:,}"]
        shown = [""] * 4 if peer.kind == "claimed" else counts
        rows.append([_name(peer.peer_id), peer.kind, *shown, short(peer.hash)])
    if len(ordered) > _PEERS:
        rows.append([f"and {len(ordered) - _PEERS:,} more", *[""] * 6])
    return rows


def _sums(found: Ledger, verified: Mapping[str, int] | None, account: str) -> list[str]:
    """What an account claims, and what of it was verified."""
    claimed = found.totals.get(account, Total(0, 0)).reward
    return [marks(claimed), NOT_VERIFIED if verified is None else marks(verified.get(account, 0))]


def _rounds(found: Ledger) -> list[list[str]]:
    rows = [["round", "commitments", "claimed", "votes", "advanced by"]]
    for one in found.rounds:
        amount = marks(sum(reward.amount for reward in one.rewards))
        counts = [f"{len(one.commitments):,}", amount, f"{len(one.votes):,}"]
        rows.append([str(one.number), *counts, short(one.advanced)])
    left_out = len(found.rounds) - _FIRST - _LAST
    if left_out > 1:
        rows[1 + _FIRST : -_LAST] = [[f"... {left_out:,} more", *[""] * 4]]
    return rows


def _text(found: Ledger, verified: Mapping[str, int] | None) -> str:
    """The whole ledger in Markdown."""
    by_id = {peer.peer_id: _name(peer.peer_id) for peer in found.peers}
    by_account = {peer.account: by_id[peer.peer_id] for peer in found.peers if peer.kind != "claimed"}

    def who(account: str) -> str:
        return by_account.get(account, account)

    parts = [f"# The ledger of {found.contract} on chain {found.chain_id}, up to block {found.block:,}\n"]
    rows = [["peer", "kind", "account", "peer id", "earnings to", "transaction"]]
    for peer in found.peers:
        own = [by_id[peer.peer_id], peer.kind, peer.account, printable(peer.peer_id)]
        rows.append([*own, "itself" if peer.payout == peer.account else peer.payout, peer.hash])
    parts += ["## Peers\n", markdown_table(rows)]
    counted = [peer for peer in found.peers if peer.kind != "claimed"]
    sums = [[by_id[peer.peer_id], *_sums(found, verified, peer.account)] for peer in counted]
    parts += [
        "## Claims\n",
        f"{_said_of(verified).capitalize()}.\n",
        markdown_table([["peer", "claimed", "verified"], *sums]),
    ]
    for one in found.rounds:
        parts += [f"## Round {one.number}\n"]
        parts += [f"Beacon {one.beacon or 'not on record'}. Begun by {one.advanced or 'the deployment'}.\n"]
        rows = [["peer", "what", "transaction"]]
        for commitment in one.commitments:
            what = f"commits to {commitment.count} records from {commitment.first} to {commitment.last}"
            hashes = f"root {commitment.root}, state {commitment.state_before} -> {commitment.state_after}"
            rows.append([who(commitment.account), f"{what}, {hashes}, config {commitment.config}", commitment.hash])
        rows += [[who(r.account), f"stage {r.stage}: claims {marks(r.amount)}", r.hash] for r in one.rewards]
        for vote in one.votes:
            chosen = ", ".join(by_id.get(winner, printable(winner)) for winner in vote.winners)
            rows.append([who(vote.account), f"votes for {chosen}", vote.hash])
        rows += [[who(w.account), f"publishes {w.weights} at {printable(w.uri)}", w.hash] for w in one.weights]
        parts += [markdown_table(rows)] if rows[1:] else []
    return "\n".join(parts)


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _name(peer_id: str) -> str:
    author = author_of(peer_id)
    return friendly_name(author) if author else printable(peer_id)[:24]


def marks(amount: int) -> str:
    """An amount in full marks."""
    return f"{amount / MARK:,.3f}"


def short(hash_: str) -> str:
    """A hash or address for the eye."""
    return f"{hash_[:8]}…{hash_[-4:]}" if len(hash_) > 16 else hash_


def printable(text: str) -> str:
    """Text that anybody may have put on the chain, in one line."""
    return "".join(c if c.isprintable() else " " for c in text[:160])
