"""A private key under a passphrase: the keystore of Ethereum's wallets (Web3 Secret Storage, version 3).

A passphrase is asked for on the terminal, or taken from a file or the environment; never from the command line, which
others can see.
"""

import getpass
import json
import os
import stat
import sys
import types
from pathlib import Path

VARIABLE, FILE_VARIABLE = "RLSWARM_PASSPHRASE", "RLSWARM_PASSPHRASE_FILE"
KDF_WORK: int | None = None  # of a new keystore; None: what wallets take, 2^18 of scrypt, a second and 256 MiB
MOST_MEMORY, MOST_ROUNDS, MOST_CHARACTERS = 1 << 30, 1 << 24, 4096  # bytes of scrypt, of PBKDF2, and of a keystore
LEAST_PASSPHRASE, MOST_PASSPHRASE = 8, 1024  # characters of a new one; bytes of any


class KeystoreError(ValueError):
    """A keystore is none, or is not opened, or there is no passphrase; the message ends in what to do, if anything."""


def encrypt(secret: bytes, passphrase: str) -> str:
    """The keystore of a key, on one line. Takes a second."""
    return json.dumps(_library().create_keyfile_json(secret, passphrase.encode(), kdf="scrypt", iterations=KDF_WORK))


def decrypt(keystore: str, passphrase: str) -> bytes:
    """The key in a keystore that anybody may have written. Raises KeystoreError; what it says holds no key."""
    found = _read(keystore)
    try:
        return bytes(_library().decode_keyfile_json(found, passphrase.encode()))
    except ValueError as error:
        if "MAC mismatch" in str(error):
            raise KeystoreError("this passphrase does not open it") from None
        raise KeystoreError("it is no keystore of version 3") from None
    except (KeyError, TypeError, AttributeError):
        raise KeystoreError("it is no keystore of version 3") from None


def _library() -> types.ModuleType:
    """Takes half a second; and it raises Python's limit on recursion, on which decoders of others' bytes rely."""
    limit = sys.getrecursionlimit()
    try:
        import eth_keyfile
    finally:
        sys.setrecursionlimit(limit)
    return eth_keyfile


def is_keystore(text: str) -> bool:
    return text.lstrip().startswith("{")


def one_line(keystore: str) -> str:
    """The same on one line, as in a key file, where others follow it. Raises KeystoreError."""
    return json.dumps(_read(keystore))


def _read(keystore: str) -> dict:
    """Raises KeystoreError for what is none, or would take more than a moment to open."""
    try:
        if len(keystore) > MOST_CHARACTERS:
            raise ValueError
        found = json.loads(keystore)
        kdf, params = found["crypto"]["kdf"], found["crypto"]["kdfparams"]
        numbers = [params[name] for name in (("n", "r", "p") if kdf == "scrypt" else ("c",))]
        if found["version"] != 3 or params["dklen"] != 32 or not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KeystoreError("it is no keystore of version 3") from None
    cost = 128 * numbers[0] * numbers[1] * numbers[2] if kdf == "scrypt" else numbers[0]
    if cost > (MOST_MEMORY if kdf == "scrypt" else MOST_ROUNDS):
        raise KeystoreError("to open it would take more time or memory than any wallet asks for")
    return found


def passphrase(what: str, file: Path | None = None, new: bool = False) -> str:
    """That of `what`: a file's first line, else the environment's, else asked for; of a new one twice.

    Raises KeystoreError if there is none, or a new one is too short to keep anybody out.
    """
    named = file or (Path(os.environ[FILE_VARIABLE]) if os.environ.get(FILE_VARIABLE) else None)
    if named is not None:
        found = _of_file(named)
    elif VARIABLE in os.environ:
        found = os.environ[VARIABLE]
    elif sys.stdin is not None and sys.stdin.isatty():
        found = getpass.getpass(f"passphrase of {what}: ")
        if new and getpass.getpass("the same again: ") != found:
            raise KeystoreError("the two passphrases differ: try again")
    else:
        raise KeystoreError(f"it needs a passphrase: set {FILE_VARIABLE} to a file that holds it, or {VARIABLE}")
    if new and len(found) < LEAST_PASSPHRASE:
        raise KeystoreError(f"a passphrase has at least {LEAST_PASSPHRASE} characters")
    return found


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise KeystoreError(f"the passphrase's file {path} can be read by others: chmod 600 it")
            return file.read(MOST_PASSPHRASE).decode().partition("\n")[0].rstrip("\r")
    except OSError as error:
        raise KeystoreError(f"cannot read the passphrase's file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeystoreError(f"the passphrase's file {path} is not text") from None


def forget() -> None:
    """Takes the passphrase out of the environment, which processes that run others' code would inherit."""
    for name in (VARIABLE, FILE_VARIABLE):
        os.environ.pop(name, None)
