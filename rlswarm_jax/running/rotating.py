"""A node gets another key, and the one before it says so, once: it does not speak any more."""

import secrets
from pathlib import Path

from rlswarm_jax import identity, journal
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CHECKPOINT_FOLDER, CONFIG_FILE, JOURNAL_FILE
from rlswarm_jax.identity import Identity, KeyFileError
from rlswarm_jax.launch import KEY_FILE
from rlswarm_jax.records import rotations
from rlswarm_jax.records.schema import MAX_ROTATIONS, Rotation
from rlswarm_jax.running import folder, moving


def rotate(place: Path, to: Path, swarm: str, passphrase: str | None, new: str | None) -> tuple[Identity, int]:
    """Makes a folder with a new key that speaks in the place of a node's or a key file's: who, and from which round.

    swarm: where; that of the node, if it is empty. passphrase: of the key there; new: of the one to make. Done again
    after it was cut off, it ends what was begun. Raises UsageError, KeyFileError, JournalError.
    """
    key, here = moving.key_of(place), place if place.is_dir() else place.parent
    if not swarm and not (place.is_dir() and (place / CONFIG_FILE).exists()):
        raise UsageError("in which swarm? Give --swarm NAME, or the folder of a node that has played there.")
    swarm = swarm or folder.read_config(place).swarm.name
    with folder.lock(here), folder.lock(key):
        old = identity.load(key, passphrase)
        if identity.is_moved(key):
            raise KeyFileError(f"the key {key} was moved to another machine: go on there, or bring it back from there.")
        heir = to / KEY_FILE
        if heir.exists():
            own = identity.load(heir, new)
            before = earlier_keys(heir, own.author, swarm)
            if not before or before[-1].old != old.author:
                raise UsageError(f"{heir} is there already, and nothing is overwritten: choose another.")
        elif given := identity.given_up_for(key):
            raise UsageError(f"the key {key} was given up already, for {given}: a second time would contradict that.")
        else:
            own = Identity(secrets.token_bytes(32))
            said = rotations.announce(old, own.author, swarm, _first_silent_round(here))
            before = (*earlier_keys(key, old.author, swarm), said)[-MAX_ROTATIONS:]
            line = own.expose_secret().hex() if new is None else identity.sealed(own, new)
            to.mkdir(parents=True, exist_ok=True)
            lines = identity.lines_of_heir([rotations.to_text(one) for one in before])
            identity.write_key(heir, line, *lines)
        identity.mark_given_up(key, own.peer_id)
    return own, before[-1].from_round


def earlier_keys(key: Path, author: bytes, swarm: str) -> tuple[Rotation, ...]:
    """In whose place the author of a key file speaks in a swarm. Raises KeyFileError for what nobody wrote there."""
    try:
        found = [rotations.from_text(text) for text in identity.rotations_of(key)]
    except ValueError:
        raise KeyFileError(f"the key file {key} says of its key what nobody has signed.") from None
    return rotations.usable(found, author, swarm)


def _first_silent_round(node: Path) -> int:
    """The first one in which a node has said nothing, as far as that is known here."""
    rounds = [0]
    if (node / JOURNAL_FILE).exists():
        rounds += [entry.round + 1 for entry in journal.newest(node / JOURNAL_FILE)]
    return max(rounds + [int(path.name) for path in (node / CHECKPOINT_FOLDER).glob("*") if path.name.isdecimal()])
