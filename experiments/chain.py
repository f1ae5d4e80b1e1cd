"""The coordinator contract from the command line: deploy it, look at it, register nodes with it.

    python -m experiments.chain account --key owner.key       makes a key, and says which account to fund
    python -m experiments.chain deploy --rpc URL --chain-id N --key owner.key
                                                              a contract for a swarm; says what to give to its nodes
    python -m experiments.chain bootnodes --rpc URL --chain-id N --contract 0x... --key owner.key ADDRESS ...
                                                              where new nodes enter the swarm
    python -m experiments.chain upgrade --rpc URL --chain-id N --contract 0x... --key owner.key --records 5.1 --round N
                                                              from which round on the swarm plays another version
    python -m experiments.chain status --rpc URL --chain-id N --contract 0x...
    python -m experiments.chain ledger --rpc URL --chain-id N --contract 0x... --dir DIR
                                                              who did what, by the chain's events
    python -m experiments.chain sign-registration --chain-id N --contract 0x... --key node.key > node.json
    python -m experiments.chain relay --rpc URL --chain-id N --contract 0x... --key payer.key node.json ...
                                                              registers nodes that have no funds

URL is that of an Ethereum JSON-RPC endpoint. As it often holds a password, it may also be '$NAME', quoted: then it is
read from the environment variable NAME. No more of it than its host is ever shown. Keys are files that only you can
read (64 hexadecimal digits); a node's is in its folder. Do not use the key of a node that is running to deploy or to
relay: both would count its transactions. A chain to try it on: python -m rlswarm_jax.chain.devnet --dir DIR --port 8545
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from rlswarm_jax.chain import calls, eth, relay, upgrade
from rlswarm_jax.chain.deployment import Rules, deploy, set_bootnodes, set_upgrade
from rlswarm_jax.chain.ledger import read_ledger
from rlswarm_jax.chain.transact import Mined
from rlswarm_jax.chain.upgrade import Upgrade
from rlswarm_jax.errors import UsageError
from rlswarm_jax.identity import friendly_name, load_or_create
from rlswarm_jax.reporting.blocks import print_table
from rlswarm_jax.reporting.ledger import (
    INDEX_FILE,
    JSON_FILE,
    TEXT_FILE,
    ledger_sections,
    read_verified,
    write_ledger,
)
from rlswarm_jax.running.account import address, shown
from rlswarm_jax.running.by_hand import carried_out, coins, existing_key, patient
from rlswarm_jax.swarm import addresses

MAX_FILE = 1 << 16  # bytes of a signed registration
_HELP = {
    "min_seconds": "of a round with a quorum; a brake, not the clock",
    "max_seconds": "after which anyone may end a round",
    "quorum": "settlements that a round takes at least",
    "window": "past rounds that nodes can still catch up with",
    "max_reward": "of a peer for one stage, in millionths of a full mark",
}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m experiments.chain", description=__doc__)
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = found.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], None], about: str, *wants: str
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=about)
        one.set_defaults(run=run)
        if "rpc" in wants:
            one.add_argument("--rpc", required=True, metavar="URL", help="of the endpoint, or '$NAME' of a variable")
        if "chain-id" in wants:
            one.add_argument("--chain-id", required=True, type=int, metavar="N", help="of the chain, to be sure")
        if "contract" in wants:
            one.add_argument("--contract", required=True, metavar="0x...", help="the coordinator's address")
        if "key" in wants:
            one.add_argument("--key", required=True, type=Path, metavar="FILE", help="of the account that acts")
        return one

    command("account", _account, "make a key file if there is none, and show its account and peer id", "key")

    one = command(
        "deploy", _deploy, "put a coordinator on a chain; the key's account owns it", "rpc", "chain-id", "key"
    )
    for name, value in Rules()._asdict().items():
        flag = f"--{name.replace('_', '-')}"
        one.add_argument(flag, type=int, default=value, metavar="N", help=f"{_HELP[name]} (default {value})")
    one.add_argument("--bootnodes", nargs="*", default=[], metavar="ADDRESS", help="/ip4/.../p2p/...")

    online = ("rpc", "chain-id", "contract")
    one = command("bootnodes", _bootnodes, "replace the list of bootnodes", *online, "key")
    one.add_argument("addresses", nargs="*", metavar="ADDRESS", help="/ip4/.../p2p/...; none at all clears the list")

    one = command("upgrade", _upgrade, "say from which round on another version is played", *online, "key")
    one.add_argument(
        "--records", default="", metavar="N.N", help="the version's, as its nodes tell; none at all: cancel"
    )
    one.add_argument("--round", type=int, default=0, metavar="N", help="the coordinator's")

    command("status", _status, "show round, beacon, quorum, rules and bootnodes", *online)

    one = command("ledger", _ledger, "read all events, and show peers and rounds", *online)
    one.add_argument("--dir", required=True, type=Path, help=f"for {INDEX_FILE}, {JSON_FILE} and {TEXT_FILE}")
    one.add_argument("--from-block", type=int, metavar="N", help="of the deployment, or any before (else searched for)")

    one = command(
        "sign-registration",
        _sign,
        "sign a node's registration, for somebody else to relay",
        "chain-id",
        "contract",
        "key",
    )
    one.add_argument("--payout", metavar="0x...", help="where its earnings go (default: its own account)")
    one.add_argument("--hours", type=float, default=24.0, metavar="N", help="that the signature holds (default 24)")

    one = command("relay", _relay, "register nodes by what they signed, and pay for it", *online, "key")
    one.add_argument("files", nargs="+", type=Path, metavar="FILE", help="from sign-registration")
    return found


# --- the commands


def _account(given: argparse.Namespace) -> None:
    one = load_or_create(given.key)
    print(f"account {calls.account_of(one.author)}")
    print(f"peer id {one.peer_id} ({friendly_name(one.author)})")


def _deploy(given: argparse.Namespace) -> None:
    owner, rules = existing_key(given.key), Rules(*(getattr(given, name) for name in Rules._fields))
    _check_addresses(given.bootnodes)
    endpoint = patient(given.rpc)
    made = deploy(endpoint, owner, given.chain_id, rules, given.bootnodes)
    print(f"contract {made.address} on chain {given.chain_id}, owned by {calls.account_of(owner.author)}")
    print(f"transaction {made.hash} in block {made.block}")
    print(f"cost {coins(made.paid)}; of it, {made.gas:,} gas for the contract itself")
    print("give this to every node:")
    print(
        f"  --config.chain.endpoint={shlex.quote(shown(given.rpc))} --config.chain.contract={made.address}"
        f" --config.chain.id={given.chain_id}"
    )


def _bootnodes(given: argparse.Namespace) -> None:
    owner = existing_key(given.key)
    _check_addresses(given.addresses)
    sent = set_bootnodes(patient(given.rpc), owner, given.chain_id, given.contract, given.addresses)
    _say_sent(sent)
    print(f"{len(given.addresses)} bootnodes" if sent else "the list was this one already")


def _upgrade(given: argparse.Namespace) -> None:
    owner, wanted = existing_key(given.key), Upgrade(given.records, given.round)
    if given.records and (upgrade.read([wanted.text]) is None or given.round < 1):
        raise UsageError("name the version as its nodes tell it, such as --records 5.1, and a --round of at least 1.")
    named = wanted if given.records else None
    _say_sent(set_upgrade(patient(given.rpc), owner, given.chain_id, given.contract, named))
    print(f"records {wanted.version} from round {wanted.round} on" if given.records else "no upgrade is named")


def _say_sent(sent: Mined | None) -> None:
    if sent:
        print(f"transaction {sent.hash} in block {sent.block}: {sent.gas:,} gas, {coins(sent.paid)}")


def _status(given: argparse.Namespace) -> None:
    w3 = eth.connect(patient(given.rpc), given.chain_id)
    contract = eth.Contract(w3, given.contract)
    now, rules = calls.read_status(contract), Rules(*contract.view("rules"))
    age = max(0, int(time.time()) - now.started)
    print(f"contract {contract.address} on chain {given.chain_id}, block {w3.eth.get_block('latest')['number']:,}")
    print(f"round {now.round} began {age:,} s ago; anyone may end it now: {_yes(now.advanceable)}")
    print(f"{now.settlements} of {now.needed} settlements that make a quorum; {now.peers} peers")
    print(f"beacon {'0x' + now.beacon.hex() if now.beacon else 'not there yet'}")
    print("rules " + ", ".join(f"{name} {value:,}" for name, value in rules._asdict().items()))
    listed = list(contract.view("getBootnodes"))
    if coming := upgrade.read(listed):
        print(f"records {coming.version} from round {coming.round} on")
    for one in upgrade.without(listed):
        print(f"bootnode {''.join(c if c.isprintable() else ' ' for c in one)}")


def _ledger(given: argparse.Namespace) -> None:
    given.dir.mkdir(parents=True, exist_ok=True)
    index = given.dir / INDEX_FILE
    found = read_ledger(address(given.rpc), given.contract, given.chain_id, index, first_block=given.from_block)
    write_ledger(given.dir, found)
    console = Console()
    for section in ledger_sections(found, read_verified(given.dir)):
        console.print(f"\n{section.title}", style="bold cyan", markup=False)
        console.print(section.text, markup=False, highlight=False)
        print_table(section.table, console)
    console.print(f"wrote {given.dir / TEXT_FILE} and {given.dir / JSON_FILE}", markup=False, soft_wrap=True)


def _sign(given: argparse.Namespace) -> None:
    if not 0 < given.hours <= 24 * 366:
        raise UsageError(f"--hours is {given.hours:g}; it must be above 0 and at most a year's.")
    deadline = int(time.time() + 3600 * given.hours)
    signed = relay.sign_registration(existing_key(given.key), given.chain_id, given.contract, given.payout, deadline)
    print(msgspec.json.encode(signed).decode())


def _relay(given: argparse.Namespace) -> None:
    payer, signed = existing_key(given.key), [_registration(path) for path in given.files]
    done = relay.relay(patient(given.rpc), payer, given.chain_id, given.contract, signed)
    for account in done.skipped:
        print(f"{account} was registered already")
    for account in done.sent:
        print(f"{account} is registered")
    for one in done.transactions:
        print(f"transaction {one.hash} in block {one.block}: {one.gas:,} gas, {coins(one.paid)}")


# --- what they are given


def _check_addresses(given: Sequence[str]) -> None:
    for one in given:
        if addresses.read(one) is None:
            raise UsageError(f"the bootnode {one!r} is no address of a node; expected {addresses.WANTED}.")


def _registration(path: Path) -> relay.SignedRegistration:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_FILE), type=relay.SignedRegistration)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError:
        raise UsageError(f"{path} is no signed registration: python -m experiments.chain sign-registration.") from None


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    given = parser().parse_args(argv)
    return carried_out(lambda: given.run(given))


if __name__ == "__main__":
    sys.exit(main())
