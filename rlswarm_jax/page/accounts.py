"""The ledger: what the chain has of a swarm, a page of rounds at a time, with what an audit found of it."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from rlswarm_jax.chain.ledger import Ledger, Round
from rlswarm_jax.files import CHAIN_FOLDER
from rlswarm_jax.identity import author_of, friendly_name
from rlswarm_jax.page.folder import Folder
from rlswarm_jax.page.texts import named
from rlswarm_jax.page.trust import CLAIMS_FILE, MOST_FILE
from rlswarm_jax.records.schema import STAGES

PAGE, MOST_PEERS, MOST_LINES = 8, 64, 256
MARK = 1_000_000


def kept(folder: Folder) -> Ledger | None:
    """What a run's summary has of it: of one that is over."""
    with contextlib.suppress(msgspec.MsgspecError, TypeError):
        found = (folder.summary or {}).get("ledger")
        return msgspec.convert(found, Ledger) if found else None
    return None


def has_chain(folder: Folder) -> bool:
    return folder.kind != "simulated" and str(folder.config.get("chain", {}).get("endpoint", "none")) != "none"


def local_contract(folder: Folder) -> Mapping[str, Any]:
    """Of a swarm's own chain, what its folder says; empty if it has none."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder.directory / CHAIN_FOLDER / "coordinator.json").read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def accounts(folder: Folder, found: Ledger | None, before: int | None) -> dict[str, Any]:
    """before: rounds of the chain from there on are left out."""
    if found is None:
        why = "There is no chain." if not has_chain(folder) else "The chain has not been read yet."
        if folder.kind == "simulated" and str(folder.config.get("chain", {}).get("endpoint", "none")) != "none":
            why = "The chain of a simulation is a virtual one: it has rounds and beacons, and keeps no ledger."
        return {"why": why, "rounds": [], "peers": [], "next": None}
    verdicts = _verdicts(folder)
    names = {peer.account: _name(peer.peer_id) for peer in found.peers if peer.kind != "claimed"}
    ids = {peer.peer_id: _name(peer.peer_id) for peer in found.peers}
    rounds = [one for one in reversed(found.rounds) if before is None or one.number < before]
    return {
        "contract": found.contract,
        "chain": found.chain_id,
        "block": found.block,
        "audited": bool(verdicts),
        "peers": [
            {
                "name": _name(peer.peer_id),
                "account": peer.account,
                "kind": peer.kind,
                "claimed": found.totals[peer.account].reward / MARK if peer.account in found.totals else 0,
                "votes": found.totals[peer.account].votes if peer.account in found.totals else 0,
                "verified": sum(v["verified"] for (_, who), v in verdicts.items() if who == peer.account) / MARK
                if verdicts
                else None,
                "hash": peer.hash,
            }
            for peer in found.peers[:MOST_PEERS]
        ],
        "rounds": [_round(one, names, ids, verdicts) for one in rounds[:PAGE]],
        "next": rounds[PAGE - 1].number if len(rounds) > PAGE else None,
        "count": len(found.rounds),
    }


def _round(
    one: Round, names: Mapping[str, str], ids: Mapping[str, str], verdicts: Mapping[tuple[int, str], Any]
) -> dict[str, Any]:
    claims: dict[str, list[dict[str, Any]]] = {}
    for reward in one.rewards[:MOST_LINES]:
        stage = STAGES[reward.stage] if reward.stage < len(STAGES) else str(reward.stage)
        claims.setdefault(reward.account, []).append({"stage": stage, "amount": reward.amount / MARK})
    commitments = [
        {
            "who": names.get(c.account, c.account),
            "account": c.account,
            "records": c.count,
            "root": c.root,
            "before": c.state_before,
            "after": c.state_after,
            "claims": claims.get(c.account, []),
            "verdict": named(verdicts.get((one.number, c.account), {}).get("said", "")),
            "hash": c.hash,
        }
        for c in one.commitments[:MOST_LINES]
    ]
    votes = [
        {"who": names.get(v.account, v.account), "for": [ids.get(w, named(w)) for w in v.winners[:8]], "hash": v.hash}
        for v in one.votes[:MOST_LINES]
    ]
    weights = [
        {"who": names.get(w.account, w.account), "uri": named(w.uri), "weights": w.weights, "hash": w.hash}
        for w in one.weights[:MOST_LINES]
    ]
    begun = {"number": one.number, "beacon": one.beacon, "advanced": one.advanced}
    return begun | {"commitments": commitments, "votes": votes, "weights": weights}


def _verdicts(folder: Folder) -> dict[tuple[int, str], dict[str, Any]]:
    """By the chain's round and account, what experiments.audit found; empty where it was not run."""
    path, found = folder.directory / CLAIMS_FILE, {}
    try:
        every = json.loads(path.read_bytes())["accounts"] if path.stat().st_size < MOST_FILE else []
        for one in every:
            said = "right" if one["right"] else one["verdict"] if one["verdict"] != "right" else _of_claims(one)
            found[int(one["round"]), str(one["account"])] = {"verified": int(one["verified"]), "said": said}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found


def _of_claims(one: Mapping[str, Any]) -> str:
    return "wrong" if any(claim["verdict"] == "wrong" for claim in one["claims"]) else "unchecked"


def _name(peer_id: str) -> str:
    author = author_of(peer_id)
    return friendly_name(author) if author else named(peer_id[:24])
