"""A node's key: make one, look at it, keep a copy, move a node to another machine, give a key up for another one.

    python -m experiments.identity new runs/node              a key under a passphrase, for a node to begin there
    python -m experiments.identity show runs/node             whose it is, and what it has signed
    python -m experiments.identity export runs/node --to node.tar     the whole node, to go on elsewhere; not here
    python -m experiments.identity export runs/node/node.key --to key.json    a copy of the key alone, for a safe
    python -m experiments.identity import node.tar --to runs/node     the node goes on here, with --resume
    python -m experiments.identity import key.json --to runs/node     the key alone
    python -m experiments.identity rotate runs/node --to runs/next    another key, in the place of this one

A key is in a file that only you can read: as it is, or in a keystore of version 3, as wallets have it, whose passphrase
is asked for on the terminal, and by a node at each start. Where there is none, RLSWARM_PASSPHRASE_FILE (or
--passphrase-file) names a file that only you can read and that holds it, or RLSWARM_PASSPHRASE does. A passphrase is
never an argument. Nothing is ever overwritten. What a copy can do and what it cannot: docs/identity.md.
"""

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from rlswarm_jax import identity, keystore
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import JOURNAL_FILE
from rlswarm_jax.identity import Identity, KeyFileError, friendly_name
from rlswarm_jax.journal import JournalError
from rlswarm_jax.keystore import KeystoreError
from rlswarm_jax.launch import KEY_FILE
from rlswarm_jax.running import moving, rotating
from rlswarm_jax.running.arguments import code_of


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("python -m experiments.identity", description=__doc__)
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = found.add_subparsers(metavar="COMMAND", required=True)
    wanted = {
        "new": (_new, "make a key", "DIR", "of the node that is to have it, or the key file to make"),
        "show": (_show, "show whose a key is", "PLACE", "a node's folder, or a key file"),
        "export": (_export, "move a node, or keep a copy of a key", "PLACE", "a node's folder, or a key file"),
        "import": (_import, "take what export wrote", "FILE", "a node or a key"),
        "rotate": (_rotate, "give a key up for a new one", "PLACE", "a node's folder, or a key file"),
    }
    for name, (run, about, metavar, what) in wanted.items():
        one = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        one.set_defaults(run=run)
        one.add_argument("place", type=Path, metavar=metavar, help=what)
        one.add_argument("--passphrase-file", type=Path, metavar="FILE", help="that holds it; yours alone to read")
        if name in ("export", "import", "rotate"):
            one.add_argument("--to", type=Path, required=True, metavar="PLACE", help="what to make; not there yet")
        if name in ("new", "import", "rotate"):
            one.add_argument("--plain", action="store_true", help="keep the key without a passphrase here")
        if name == "import":
            one.add_argument("--unused", action="store_true", help="no node has ever played with this key: it may here")
        if name == "rotate":
            one.add_argument("--swarm", default="", metavar="NAME", help="where (default: that of the node)")
    return found


def _new(given: argparse.Namespace) -> None:
    key = given.place if given.place.suffix == ".key" else given.place / KEY_FILE
    if key.exists():
        raise UsageError(f"{key} is there already, and nothing is overwritten: choose another.")
    passphrase = None if given.plain else keystore.passphrase(str(key), given.passphrase_file, new=True)
    key.parent.mkdir(parents=True, exist_ok=True)
    _say_who(identity.create(key, Identity(secrets.token_bytes(32)), passphrase))
    print(f"key file {key}: whoever has it is this node; keep a copy with export")


def _show(given: argparse.Namespace) -> None:
    key = moving.key_of(given.place)
    _say_who(_load(key, given))
    print(f"key file {key}, {'under a passphrase' if _is_sealed(key) else 'as it is'}")
    signed, beside = identity.journal_of(key), moving.journal_id(key.with_name(JOURNAL_FILE))
    if identity.is_moved(key):
        print("moved to another machine: nobody plays with it here")
    elif heir := identity.given_up_for(key):
        print(f"given up for {heir}: nobody plays with it")
    elif identity.is_restored(key):
        print("restored without the journal of what it signed: nobody plays with it")
    elif signed is None:
        print("it has signed nothing yet")
    else:
        print(f"what it has signed is in the journal {'beside it' if signed == beside else 'of another folder'}")


def _export(given: argparse.Namespace) -> None:
    key = moving.key_of(given.place)
    if not given.place.is_dir():
        passphrase = "" if _is_sealed(key) else keystore.passphrase(str(given.to), given.passphrase_file, new=True)
        _say_who(moving.export_key(_existing(key), given.to, passphrase, _passphrase(key, given)))
        print(f"wrote {given.to}: the key alone, in a keystore. It does not know what the key has signed: a node can't")
        print("play with it. It is for what else the key is: its account on the chain.")
        return
    new = None if _is_sealed(_existing(key)) else keystore.passphrase(str(given.to), given.passphrase_file, new=True)
    moving.export_node(given.place, given.to, new)
    print(f"wrote {given.to}: this node, with its key in a keystore. It can't be started here any more. Elsewhere:")
    print(f"python -m experiments.identity import {given.to.name} --to {given.place}")


def _import(given: argparse.Namespace) -> None:
    passphrase = keystore.passphrase(str(given.place), given.passphrase_file)
    kept = not given.plain
    if moving.is_archive(given.place):
        _say_who(moving.import_node(given.place, given.to, passphrase, keep_keystore=kept))
        print(f"the node is in {given.to}: start it with the same config, --workdir {given.to} and --resume")
        print(f"Remove {given.place} now: two nodes that are made of it would contradict each other.")
        return
    _say_who(moving.import_key(given.place, given.to, passphrase, keep_keystore=kept, unused=given.unused))
    if given.unused:
        print(f"the key is in {given.to / KEY_FILE}: a node can begin there, with --workdir {given.to}")
    else:
        print(f"the key is in {given.to / KEY_FILE}. What it has signed is not known, so no node plays with it.")


def _rotate(given: argparse.Namespace) -> None:
    key = _existing(moving.key_of(given.place))
    old = _passphrase(key, given)
    new = None if given.plain else old or keystore.passphrase(str(given.to), given.passphrase_file, new=True)
    own, round_ = rotating.rotate(given.place, given.to, given.swarm, old, new)
    _say_who(own)
    print(f"key file {given.to / KEY_FILE}: it speaks in the place of {key}, which does not from round {round_} on")
    print(f"Start it with --workdir {given.to}; what it had learned: docs/identity.md says how to take that along.")


def _existing(key: Path) -> Path:
    if not key.exists():
        raise KeyFileError(f"there is no key file {key}.")
    return key


def _is_sealed(key: Path) -> bool:
    return keystore.is_keystore(identity.key_line(_existing(key)))


def _passphrase(key: Path, given: argparse.Namespace) -> str | None:
    return keystore.passphrase(str(key), given.passphrase_file) if _is_sealed(key) else None


def _load(key: Path, given: argparse.Namespace) -> Identity:
    return identity.load(_existing(key), _passphrase(key, given))


def _say_who(own: Identity) -> None:
    print(f"{friendly_name(own.author)}\npeer id {own.peer_id}\naccount {account_of(own.author)}")


def _carry_out(given: argparse.Namespace) -> int:
    try:
        given.run(given)
    except KeystoreError as error:
        raise UsageError(f"{error}.") from None
    except (KeyFileError, JournalError) as error:
        raise UsageError(str(error)) from None
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    given = parser().parse_args(argv)
    return code_of(lambda: _carry_out(given))


if __name__ == "__main__":
    sys.exit(main())
