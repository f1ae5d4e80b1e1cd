"""A node goes to another machine as one file: its folder, with the key in a keystore.

Key and journal go together, so that the node cannot contradict itself there, and the key is marked here before the file
is there, so that it cannot here: nobody uses a marked one.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from rlswarm_jax import identity, keystore
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CONFIG_FILE, JOURNAL_FILE, NODE_FILE, aside, cannot_write, partial_of, write_whole
from rlswarm_jax.identity import Identity
from rlswarm_jax.journal import Journal
from rlswarm_jax.launch import KEY_FILE
from rlswarm_jax.running import folder

MOST_FILES = 100_000


def key_of(place: Path) -> Path:
    """The key file that is meant by one, or by the folder of a node. Raises UsageError."""
    if not place.is_dir():
        return place
    stored = place / CONFIG_FILE
    elsewhere = folder.read_config(place).swarm.key if stored.exists() else ""
    return Path(elsewhere or place / KEY_FILE)


def export_key(key: Path, to: Path, new: str, passphrase: str | None = None) -> Identity:
    """Writes a wallet's keystore of a key, as a copy for when all else is lost. Raises UsageError, KeyFileError.

    passphrase: of the keystore that the key is in, which stays as it is; new: of one that is made.
    """
    own = identity.load(key, passphrase)
    _refuse_existing(to)
    text = identity.key_line(key)
    identity.write_key(to, text if keystore.is_keystore(text) else keystore.encrypt(own.expose_secret(), new))
    return own


def export_node(node: Path, to: Path, passphrase: str | None) -> None:
    """Writes the folder of a node that is stopped as one file, and marks its key: it is not used here any more.

    passphrase: of the keystore in that file; None where the key is in one already. Called again it writes the same
    again. Raises UsageError, KeyFileError.
    """
    config, key = folder.read_config(node), key_of(node)
    if config.driver != "node":
        raise UsageError(f"{node} is not the folder of a node of its own (configs/node.py): only such a one moves.")
    _refuse_existing(to)
    with folder.lock(node), folder.lock(key):
        signed, journal = identity.journal_of(key), node / JOURNAL_FILE
        if signed is not None and signed != journal_id(journal):
            raise UsageError(f"the key {key} has signed records that are not in the journal here: nothing is moved.")
        line = identity.key_line(key)
        if passphrase is not None:
            line = keystore.encrypt(identity.load(key).expose_secret(), passphrase)
        sealed = node / f"{KEY_FILE}.partial"  # what goes into the file in the place of the key
        sealed.unlink(missing_ok=True)
        before = identity.is_moved(key)
        identity.mark_moved(key)
        try:
            identity.write_key(sealed, line, *identity.kept_lines(key))
            fields = json.loads(config.to_json_best_effort())
            fields["swarm"]["key"] = ""
            with aside(to) as partial:
                _write(partial, node, sealed, json.dumps(fields, indent=2) + "\n")
        except BaseException:
            if not before and not to.exists():
                identity.mark_moved(key, False)
            raise
        finally:
            sealed.unlink(missing_ok=True)


def import_node(file: Path, to: Path, passphrase: str, keep_keystore: bool = True) -> Identity:
    """Makes the folder of a node of what `export_node` wrote. keep_keystore: else the key is kept as it is.

    Nothing is overwritten, and of a file that is anything else nothing is left. Raises UsageError, KeyFileError.
    """
    partial = _begin(to)
    try:
        _extract(file, partial)
        key, journal = partial / KEY_FILE, partial / JOURNAL_FILE
        if not key.is_file() or not (partial / CONFIG_FILE).is_file():
            raise UsageError(f"{file} is no node that was moved: it holds no key or no config.")
        key.chmod(0o600)
        own, signed = identity.load(key, passphrase), identity.journal_of(key)
        if signed is not None and signed != journal_id(journal):
            raise UsageError(f"{file} is no node that was moved: its journal is not that of its key.")
        if not keep_keystore:
            lines = identity.kept_lines(key)
            key.unlink()
            identity.write_key(key, own.expose_secret().hex(), *lines)
        _end(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return own


def import_key(file: Path, to: Path, passphrase: str, *, keep_keystore: bool = True, unused: bool = False) -> Identity:
    """Makes a folder with the key of a wallet's keystore. unused: nobody has ever signed a record with it.

    Raises UsageError, KeyFileError, as `import_node`.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(keystore.MOST_CHARACTERS + 1).decode("ascii")
        own = Identity(keystore.decrypt(text, passphrase))
        line = keystore.one_line(text) if keep_keystore else own.expose_secret().hex()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}.") from None
    except ValueError as error:  # what is in it is no key of this curve, or no text
        why = str(error) if isinstance(error, keystore.KeystoreError) else "it holds no secp256k1 key"
        raise UsageError(f"cannot open {file}: {why}.") from None
    partial = _begin(to)
    try:
        identity.write_key(partial / KEY_FILE, line)
        if not unused:
            identity.mark_restored(partial / KEY_FILE)
        _end(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return own


def is_archive(file: Path) -> bool:
    """Whether a file is of the kind that `export_node` writes. Raises UsageError if it cannot be read."""
    try:
        return tarfile.is_tarfile(file)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}.") from None


def journal_id(path: Path) -> int | None:
    """The id of a journal, by which a key knows it; None if there is none."""
    if not path.exists():
        return None
    with closing(Journal(path)) as journal:
        return journal.id


def _refuse_existing(to: Path) -> None:
    if to.exists():
        raise UsageError(f"{to} is there already, and nothing is overwritten: choose another.")


def _write(to: Path, node: Path, key: Path, config: str) -> None:
    """A tar file of a node's folder but for what is only for a process, with this key and config in it."""
    with tarfile.open(to, "w") as tar:
        to.chmod(0o600)
        tar.add(key, KEY_FILE)
        told = partial_of(node / CONFIG_FILE)
        write_whole(told, config)
        tar.add(told, CONFIG_FILE)
        told.unlink()
        for path in _files(node):
            if path not in (key, told):
                tar.add(path, str(path.relative_to(node)), recursive=False)
    with to.open("rb") as file:
        os.fsync(file.fileno())


def _files(node: Path) -> Iterator[Path]:
    left_out = {KEY_FILE, CONFIG_FILE, NODE_FILE, f"{JOURNAL_FILE}-shm"}
    for path in sorted(node.rglob("*")):
        if path.is_symlink() or (path.parent == node and path.name in left_out):
            continue
        if path.is_dir() or path.is_file():
            yield path


def _extract(file: Path, to: Path) -> None:
    """Files and folders of a tar file that anybody may have written. Raises UsageError."""
    room = shutil.disk_usage(to).free
    try:
        with tarfile.open(file, "r:") as tar:
            for number, member in enumerate(tar):
                room -= member.size
                if number >= MOST_FILES or room < 0:
                    raise UsageError(f"there is no room for what is in {file}.")
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                    raise UsageError(f"{file} is no node that was moved: it holds more than files and folders.")
                tar.extract(member, to, filter="data")
    except (tarfile.TarError, EOFError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{file} is no node that was moved: {error}.") from None
    except OSError as error:
        raise cannot_write(to, error) from None


def _begin(to: Path) -> Path:
    """An empty folder beside the one to make, which is nobody else's to read. Raises UsageError."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is there already, and nothing is overwritten: choose another.")
    partial = to.with_name(f"{to.name}.partial")
    try:
        partial.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise UsageError(f"{partial} is left of an earlier try: remove it.") from None
    except OSError as error:
        raise cannot_write(partial, error, "; choose another") from None
    return partial


def _end(partial: Path, to: Path) -> None:
    with suppress(OSError):
        to.rmdir()
    partial.rename(to)
