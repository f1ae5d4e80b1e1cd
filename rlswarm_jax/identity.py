"""A node's identity: one secp256k1 key signs its records, is its libp2p peer id, and its Ethereum account."""

import functools
import hashlib
import os
import re
import secrets
import stat
from pathlib import Path

import base58
import coincurve
from coincurve import ecdsa

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


_MARK = "journal "  # a line of a key file after the key: the journal of what it has signed


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
    """The identity whose key is in a file (64 hexadecimal digits); a new one, and the file, if there is none.

    Raises KeyFileError if the file can't be read or written, holds no key, or others may read it.
    """
    try:
        return Identity(_read_key(path))
    except FileNotFoundError:
        return create(path, Identity(secrets.token_bytes(32)))


def create(path: Path, identity: Identity) -> Identity:
    """Writes a key file that only its owner can read. Raises KeyFileError if there is one already.

    Of a full disk it raises OSError, and leaves no file.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise KeyFileError(f"cannot write the key file {path}: {error.strerror}.") from None
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(identity.expose_secret().hex() + "\n")
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
    return identity


def journal_of(path: Path) -> int | None:
    """The id of the journal that holds what the key in this file has signed; None if it has signed nothing yet.

    It stands in the file itself, so that it goes where the key goes.
    """
    found = re.search(rf"^{_MARK}(\d+)\n", path.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) if found else None


def mark(path: Path, journal: int) -> None:
    """Writes down, once, in which journal the key of this file signs. Raises KeyFileError if the file takes no more."""
    try:
        with path.open("a", encoding="ascii") as file:  # in place: whoever locked the file has it still
            file.write(f"{_MARK}{journal}\n")
    except OSError as error:
        what = "it must remember which journal its key has signed in"
        raise KeyFileError(f"cannot write the key file {path}: {error.strerror}; {what}.") from None


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise KeyFileError(f"the key file {path} can be read by others: chmod 600 it, or use a new key.")
            secret = bytes.fromhex(file.read(1024).decode("ascii").partition(_MARK)[0])
            if len(secret) != 32:
                raise ValueError
            coincurve.PrivateKey(secret)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}.") from None
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
