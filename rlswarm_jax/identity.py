"""A node's identity: one secp256k1 key signs its records, is its libp2p peer id, and its Ethereum account."""

import functools
import hashlib
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

import base58
import coincurve
from coincurve import ecdsa

from rlswarm_jax import keystore
from rlswarm_jax.keystore import KeystoreError

SIGNATURE_BYTES = 64
AUTHOR_BYTES = 33
# a peer id of such a key is the key itself: identity multihash (0x00, length) of the protobuf {Type: Secp256k1, Data}
_PEER_ID_PREFIX = bytes.fromhex("002508021221")
LONGEST_PEER_ID = 64  # in bytes or characters; one of a secp256k1 key has fewer

_WORDS = (
    "amber bold calm deft eager fair glad hazy keen lucid mellow noble quick rosy sly vivid "
    "bee crow deer elk fox gull hare ibis jay koi lynx mole newt otter puma raven"
)
_ADJECTIVES, _ANIMALS = _WORDS.split()[:16], _WORDS.split()[16:]


# a key file's first line is the key; then what is known of it, a line each
_JOURNAL = "journal"  # of what it has signed, by its id
_MOVED = "moved"  # it was given to another machine
_RESTORED = "restored"  # from a copy that does not know what it has signed
_GIVEN_UP = "given-up"  # for whom, by peer id
_ROTATION = "rotation"  # in whose place it speaks, as text that `records.rotations` reads; a line for each
_MOST_FILE = 8192  # bytes


class KeyFileError(RuntimeError):
    """A key file cannot be read or written, or is not fit to be used; the message says what to do. It holds no key."""


class Identity:
    """Holds a private key; it is never printed, logged or pickled."""

    def __init__(self, secret: bytes):
        self._key = coincurve.PrivateKey(secret)
        self.author = self._key.public_key.format(compressed=True)

    @property
    def peer_id(self) -> str:
        return peer_id(self.author)

    def expose_secret(self) -> bytes:
        """The 32 bytes of the key, for a library that must hold it itself. Never log or send them."""
        return self._key.secret

    def sign(self, message: bytes) -> bytes:
        """ECDSA over SHA-256(message), r || s, low s, deterministic (RFC 6979); 64 bytes."""
        return self._key.sign_recoverable(message)[:SIGNATURE_BYTES]

    def __reduce__(self):
        raise TypeError("an Identity is never pickled or copied: hand over its `author`, or the file of its key.")

    def __repr__(self) -> str:
        return f"Identity({friendly_name(self.author)})"


def verify(author: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `author` (33-byte compressed public key) made this signature of `message`.

    One with a high s, the same statement malleated, is none to libsecp256k1.
    """
    if len(signature) != SIGNATURE_BYTES or len(author) != AUTHOR_BYTES:
        return False
    try:
        der = ecdsa.cdata_to_der(ecdsa.deserialize_compact(signature))
        return coincurve.PublicKey(author).verify(der, message)
    except ValueError:  # not a point of the curve, or numbers beyond the group's order
        return False


def peer_id(author: bytes) -> str:
    """The libp2p peer id of an author, in base58: it holds the whole public key (libp2p spec, "Peer IDs")."""
    return base58.b58encode(_PEER_ID_PREFIX + author).decode()


def author_of(peer: str | bytes) -> bytes | None:
    """The author behind a peer id (base58 text or its bytes); None if it is not one of a secp256k1 key."""
    return _author_of(peer) if len(peer) <= LONGEST_PEER_ID else None


@functools.lru_cache(maxsize=1024)  # a message asks several times, and the point on the curve is computed each time
def _author_of(peer: str | bytes) -> bytes | None:
    try:
        raw = base58.b58decode(peer) if isinstance(peer, str) else peer
        author = raw.removeprefix(_PEER_ID_PREFIX)
        if len(raw) != len(_PEER_ID_PREFIX) + AUTHOR_BYTES or len(author) != AUTHOR_BYTES:
            return None
        coincurve.PublicKey(author)
    except ValueError:
        return None
    return author


def load_or_create(path: Path) -> Identity:
    """The identity whose key is in a file; a new one, and the file, if there is none.

    The key is there as 64 hexadecimal digits, or as a keystore whose passphrase is asked for. Raises KeyFileError if
    the file can't be read or written, holds no key, others may read it, or the key is on another machine now.
    """
    try:
        found = Identity(_read_key(path))
    except FileNotFoundError:
        return create(path, Identity(secrets.token_bytes(32)))
    if is_moved(path):
        raise KeyFileError(f"the key {path} was moved to another machine: go on there, or bring it back from there.")
    return found


def load(path: Path, passphrase: str | None = None) -> Identity:
    """That of a file that is there, be it moved. passphrase: of a keystore; None: it is asked for.

    Raises KeyFileError.
    """
    try:
        return Identity(_read_key(path, passphrase))
    except FileNotFoundError:
        raise KeyFileError(f"there is no key file {path}.") from None


def create(path: Path, identity: Identity, passphrase: str | None = None) -> Identity:
    """Writes a key file that only its owner can read. Raises KeyFileError if there is one already.

    passphrase: of the keystore to write; None: the key is written as it is. Of a full disk it raises OSError, and
    leaves no file.
    """
    write_key(path, identity.expose_secret().hex() if passphrase is None else sealed(identity, passphrase))
    return identity


def sealed(identity: Identity, passphrase: str) -> str:
    """A key as a key file's first line, under a passphrase."""
    return keystore.encrypt(identity.expose_secret(), passphrase)


def write_key(path: Path, *lines: str) -> None:
    """Writes a key file of these lines; else as `create`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise KeyFileError(f"cannot write the key file {path}: {error.strerror}.") from None
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def journal_of(path: Path) -> int | None:
    """The id of the journal that holds what the key in this file has signed; None if it has signed nothing yet.

    It stands in the file itself, so that it goes where the key goes.
    """
    found = _marks(path, _JOURNAL)
    return int(found[-1]) if found else None


def is_moved(path: Path) -> bool:
    return bool(_marks(path, _MOVED))


def is_restored(path: Path) -> bool:
    """Whether nobody here knows what the key in this file has signed."""
    return bool(_marks(path, _RESTORED))


def given_up_for(path: Path) -> str | None:
    """The peer id of who speaks in the place of the key in this file; None if it speaks itself."""
    found = _marks(path, _GIVEN_UP)
    return found[-1] if found else None


def rotations_of(path: Path) -> list[str]:
    """What the keys have signed in whose place the one in this file speaks, oldest first."""
    return _marks(path, _ROTATION)


def lines_of_heir(rotations: Sequence[str]) -> list[str]:
    """What a key file says, after the key, of one that speaks in the place of others."""
    return [f"{_ROTATION} {text}" for text in rotations]


def kept_lines(path: Path) -> list[str]:
    """What a key file says of its key wherever that goes."""
    lines = path.read_text(encoding="ascii").split("\n")[1:-1]
    return [line for line in lines if line.partition(" ")[0] != _MOVED]


def mark_given_up(path: Path, peer: str) -> None:
    """Writes down, once, that another key speaks in the place of the one in this file from here on."""
    if given_up_for(path) is None:
        _append(path, f"{_GIVEN_UP} {peer}", "it must remember that its key was given up")


def mark(path: Path, journal: int) -> None:
    """Writes down, once, in which journal the key of this file signs. Raises KeyFileError if the file takes no more."""
    _append(path, f"{_JOURNAL} {journal}", "it must remember which journal its key has signed in")


def mark_moved(path: Path, moved: bool = True) -> None:
    """Writes down that the key of this file is used elsewhere from here on, or that it is not after all."""
    if moved and not is_moved(path):
        _append(path, _MOVED, "it must remember that its key was moved")
    elif not moved and is_moved(path):
        with path.open("r+b") as file:  # in place: whoever locked it has it still
            text = file.read(_MOST_FILE)
            file.truncate(text.rindex(f"{_MOVED}\n".encode()))


def mark_restored(path: Path) -> None:
    """Writes down that what the key of this file has signed is not known here."""
    _append(path, _RESTORED, "it must remember that what its key has signed is not known")


def _append(path: Path, line: str, why: str) -> None:
    try:
        with path.open("a+b") as file:  # in place: whoever locked the file has it still
            file.seek(max(0, file.tell() - 1))
            ends = file.read() == b"\n"  # a line that was written by hand, or cut off by a kill, may not
            file.write(f"{'' if ends else chr(10)}{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise KeyFileError(f"cannot write the key file {path}: {error.strerror}; {why}.") from None


def _marks(path: Path, name: str) -> list[str]:
    """What a key file's lines of one name say."""
    lines = path.read_text(encoding="ascii").split("\n")[1:-1]  # a line that a kill cut off says nothing
    return [line[len(name) + 1 :] for line in lines if line.partition(" ")[0] == name]


def key_line(path: Path) -> str:
    """A key file's first line: a key, or a keystore that holds it. Raises KeyFileError, FileNotFoundError."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise KeyFileError(f"the key file {path} can be read by others: chmod 600 it, or use a new key.")
            return file.read(_MOST_FILE).decode("ascii").partition("\n")[0]
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        return ""


def _read_key(path: Path, passphrase: str | None = None) -> bytes:
    text = key_line(path)
    try:
        if keystore.is_keystore(text):
            given = keystore.passphrase(str(path)) if passphrase is None else passphrase
            secret = keystore.decrypt(text, given)
        else:
            secret = bytes.fromhex(text)
        if len(secret) != 32:
            raise ValueError
        coincurve.PrivateKey(secret)
    except KeystoreError as error:
        raise KeyFileError(f"cannot open the key file {path}: {error}.") from None
    except ValueError:
        raise KeyFileError(f"the key file {path} holds no secp256k1 key of 64 hexadecimal digits.") from None
    return secret


def simulated(seed: int, node: int) -> Identity:
    """The key of a node of a study: derived, so that the study is a function of its seed, and anyone can have it.

    For simulated nodes, and for swarms that stay on one machine.
    """
    return Identity(hashlib.sha256(f"rlswarm_jax simulated node {seed} {node}".encode()).digest())


def friendly_name(author: bytes) -> str:
    """A pronounceable name of an author, for people; not unique."""
    digest = hashlib.sha256(author).digest()
    return f"{_ADJECTIVES[digest[0] % 16]}-{_ANIMALS[digest[1] % 16]}-{digest[2:4].hex()}"
