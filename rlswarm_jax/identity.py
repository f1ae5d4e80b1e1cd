"""A node's identity: one secp256k1 key signs its records (and is its peer id and Ethereum account)."""

import hashlib

import coincurve
from coincurve import ecdsa

# order of the secp256k1 group; a signature with s above half of it is the same statement malleated
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SIGNATURE_BYTES = 64
AUTHOR_BYTES = 33

_WORDS = (
    "amber bold calm deft eager fair glad hazy keen lucid mellow noble quick rosy sly vivid "
    "bee crow deer elk fox gull hare ibis jay koi lynx mole newt otter puma raven"
)
_ADJECTIVES, _ANIMALS = _WORDS.split()[:16], _WORDS.split()[16:]


class Identity:
    """Holds a private key; it is never printed, logged or pickled."""

    def __init__(self, secret: bytes):
        self._key = coincurve.PrivateKey(secret)
        self.author = self._key.public_key.format(compressed=True)

    def sign(self, message: bytes) -> bytes:
        """ECDSA over SHA-256(message), r || s, low s, deterministic (RFC 6979); 64 bytes."""
        return self._key.sign_recoverable(message)[:SIGNATURE_BYTES]

    def __reduce__(self):
        raise TypeError("an Identity is never pickled or copied: hand over its `author`, or the file of its key.")

    def __repr__(self) -> str:
        return f"Identity({friendly_name(self.author)})"


def verify(author: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `author` (33-byte compressed public key) made this low-s signature of `message`."""
    if len(signature) != SIGNATURE_BYTES or len(author) != AUTHOR_BYTES:
        return False
    if int.from_bytes(signature[32:]) > _ORDER // 2:
        return False
    try:
        der = ecdsa.cdata_to_der(ecdsa.deserialize_compact(signature))
        return coincurve.PublicKey(author).verify(der, message)
    except ValueError:  # not a point of the curve, or numbers beyond the group's order
        return False


def simulated(seed: int, node: int) -> Identity:
    """The key of a simulated node: derived, so that a simulation is a function of its seed. Never use it live."""
    return Identity(hashlib.sha256(f"rlswarm_jax simulated node {seed} {node}".encode()).digest())


def friendly_name(author: bytes) -> str:
    """A pronounceable name of an author, for people; not unique."""
    digest = hashlib.sha256(author).digest()
    return f"{_ADJECTIVES[digest[0] % 16]}-{_ANIMALS[digest[1] % 16]}-{digest[2:4].hex()}"
