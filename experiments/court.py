"""A court beside a swarm's coordinator: make one, and get a stake back from it.

    python -m experiments.court deploy --rpc URL --chain-id N --contract 0x... --key owner.key --stake 10
                                           a court of which nobody is owner; says what to give to the swarm's nodes
    python -m experiments.court show --rpc URL --chain-id N --contract 0x... --court 0x... --key node.key
                                           the stake of a node, and what it has to collect
    python -m experiments.court quit ...   asks for the stake; withdraw ... takes it out, rounds later; collect ... has
                                           what is owed sent to where the node's earnings go

A node stakes by itself (config.chain.court, config.chain.stake), and its key must not be used here while it runs: both
would count its transactions. What a court is, and what it can't do: docs/chain.md. URL is as in experiments.chain.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlswarm_jax.chain import calls, eth
from rlswarm_jax.chain.court import Court, Terms
from rlswarm_jax.chain.deployment import deploy_court
from rlswarm_jax.chain.transact import Payer, transact
from rlswarm_jax.running.account import wei
from rlswarm_jax.running.by_hand import carried_out, coins, existing_key, patient

_ABOUT = {
    "claims": "rounds after its own in which a settlement can be challenged; above the coordinator's --window",
    "voting": "rounds that a committee has",
    "delay": "rounds from asking for a stake to its return; above --claims",
    "size": "of a committee",
    "quorum": "votes that decide",
}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m experiments.court", description=__doc__)
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = found.add_subparsers(metavar="COMMAND", required=True, dest="what")
    for name, about in {
        "deploy": "put a court beside a coordinator",
        "show": "show a node's stake",
        "quit": "ask for it",
        "withdraw": "take it out, rounds later",
        "collect": "have what is owed sent",
    }.items():
        one = commands.add_parser(name, help=about, description=about)
        one.add_argument("--rpc", required=True, metavar="URL", help="of the endpoint, or '$NAME' of a variable")
        one.add_argument("--chain-id", required=True, type=int, metavar="N", help="of the chain, to be sure")
        one.add_argument("--contract", required=True, metavar="0x...", help="the coordinator's address")
        one.add_argument("--key", required=True, type=Path, metavar="FILE", help="of the account that acts")
        if name != "deploy":
            one.add_argument("--court", required=True, metavar="0x...", help="the court's address")
            continue
        one.add_argument("--stake", required=True, type=float, metavar="COINS", help="that a peer stakes at least")
        one.add_argument("--bond", type=float, metavar="COINS", help="of a challenge (default: half the stake)")
        for term, what in _ABOUT.items():
            value = Terms._field_defaults[term]
            one.add_argument(f"--{term}", type=int, default=value, metavar="N", help=f"{what} (default {value})")
    return found


def _deploy(given: argparse.Namespace) -> None:
    stake = wei(given.stake)
    bond = stake // 2 if given.bond is None else wei(given.bond)
    rounds = (getattr(given, name) for name in _ABOUT)
    terms = Terms(stake, bond, min(stake, bond) // (4 * max(1, given.size)), *rounds)
    made = deploy_court(patient(given.rpc), existing_key(given.key), given.chain_id, given.contract, terms)
    print(f"court {made.address} of the coordinator {given.contract}, owned by nobody")
    print(f"transaction {made.hash} in block {made.block}: {made.gas:,} gas, {coins(made.paid)}")
    print("give this to every node, beside the coordinator's:")
    print(f"  --config.chain.court={made.address} --config.chain.stake={given.stake:g}")


def _stake(given: argparse.Namespace) -> None:
    own, w3 = existing_key(given.key), eth.connect(patient(given.rpc), given.chain_id)
    account = calls.account_of(own.author)
    court = Court(w3, given.court, calls.checksum(given.contract), account)
    terms = court.connect()
    if given.what != "show":
        call = court.encode_call(given.what, *([account] if given.what == "collect" else []))
        sent = transact(Payer(w3, own, given.chain_id), court.address, call, given.what)
        print(f"transaction {sent.hash} in block {sent.block}: {sent.gas:,} gas, {coins(sent.paid)}")
    peer = court.peer(account)
    print(f"account {account} has a stake of {coins(peer.stake)}, and {coins(court.credit(account))} to collect")
    if peer.leaving:
        back = peer.leaving + terms.delay
        print(f"it asked for its stake in round {peer.leaving - 1}: it can be withdrawn from round {back} on")
    if peer.held:
        print(f"{peer.held} open cases hold it")


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    given = parser().parse_args(argv)
    return carried_out(lambda: (_deploy if given.what == "deploy" else _stake)(given))


if __name__ == "__main__":
    sys.exit(main())
