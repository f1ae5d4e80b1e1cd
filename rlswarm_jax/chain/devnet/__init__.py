"""A development network of one's own: Ethereum's JSON-RPC on 127.0.0.1, served by a process on py-evm.

`running` starts that process and stops it; nothing else is imported here, so that this is cheap to import.

Its rules: chain id 7498867; py-evm's Prague; one block per transaction, as it comes, so a nonce that is not next is
refused; the base fee is 0, so that nobody needs funds, and nobody has any but who is given some for stakes at its
beginning. Block times follow the wall clock.
"""

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rlswarm_jax.chain.devnet.errors import DevnetError

CHAIN_ID = 0x726C73  # "rls"
FUNDS = 10**24  # wei of an account that is given some: a million coins
LOG = "devnet.log"  # in its folder: what the process says of errors
_START = 60.0  # seconds until it must have said its address
_STOP = 10.0  # seconds until it is killed


class Devnet(NamedTuple):
    """url: of its JSON-RPC. process: for whoever wants to kill it."""

    url: str
    process: subprocess.Popen


def start(directory: Path, *, port: int = 0, funded: Sequence[str] = ()) -> Devnet:
    """A process that serves the chain of a folder; it ends with this process, or by `stop`.

    funded: accounts that have coins, where the chain begins now.
    Raises DevnetError, with the process's own words, if it does not come up.
    """
    command = [sys.executable, "-m", __name__, "--dir", str(directory), "--port", str(port), "--stop-on-eof"]
    command += [f"--fund={account}" for account in funded]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / LOG).open("ab") as errors:
            before = errors.tell()
            pipe = subprocess.PIPE  # a session of its own: Ctrl-C is for this process alone
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True)
    except OSError as error:
        raise DevnetError(f"cannot start a development network in {directory}: {error.strerror}.") from None
    assert process.stdout
    readable, _, _ = select.select([process.stdout], [], [], _START)
    said = process.stdout.readline() if readable else b""
    if not said:
        process.kill()
        process.communicate()
        why = (directory / LOG).read_bytes()[before:].decode(errors="replace").strip().split("\n")[-1]
        why = why.removeprefix("error: ") or f"it did not start within {_START:.0f} s"
        raise DevnetError(f"no development network in {directory}: {why.rstrip('.')}.")
    return Devnet(said.decode().split()[-1], process)


def stop(devnet: Devnet) -> None:
    """Ends the process; all it answered is on disk already."""
    process = devnet.process
    process.terminate()
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()


@contextlib.contextmanager
def running(directory: Path, *, port: int = 0, funded: Sequence[str] = ()) -> Iterator[Devnet]:
    """`start`, and `stop` at the end."""
    devnet = start(directory, port=port, funded=funded)
    try:
        yield devnet
    finally:
        stop(devnet)
