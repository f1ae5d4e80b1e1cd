"""Foundry's anvil in the place of our own development network, where it is installed: same chain id, same rules.

`npm install @foundry-rs/anvil` puts it into node_modules, where it is found; the variable ANVIL may name another.
In CI: `npm install --prefix DIR @foundry-rs/anvil` and ANVIL=DIR/node_modules/.bin/anvil. It keeps nothing, and it
lives on if the process that started it is killed.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rlswarm_jax.chain.devnet import CHAIN_ID, Devnet, stop
from rlswarm_jax.chain.devnet.errors import DevnetError

_START = 30.0  # seconds


def find() -> str | None:
    """Path of the program: $ANVIL, else on the PATH, else in node_modules of this folder; None if there is none."""
    candidates = (os.environ.get("ANVIL"), "anvil", str(Path("node_modules/.bin/anvil").absolute()))
    found = next((found for one in candidates if one and (found := shutil.which(one))), None)
    if found and (script := Path(found).resolve()).suffix == ".mjs":  # npm's: it starts the program as its child
        return next(map(str, script.parents[1].glob("anvil-*/bin/anvil")), found)
    return found


@contextlib.contextmanager
def running(*, port: int = 0, base_fee: int = 0) -> Iterator[Devnet]:
    """Starts it on 127.0.0.1 and stops it at the end. port: 0 takes a free one. base_fee: of the first block, in wei
    per gas. Raises DevnetError if it isn't there or does not come up.
    """
    program = find()
    if program is None:
        raise DevnetError("anvil was not found: npm install @foundry-rs/anvil, or set ANVIL to its path.")
    port = port or _free_port()
    command = [program, "--quiet", "--port", str(port), "--chain-id", str(CHAIN_ID), "--hardfork", "prague"]
    command += ["--base-fee", str(base_fee), "--gas-price", "0", "--accounts", "1"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    anvil = Devnet(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + _START
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DevnetError(f"{program} did not come up on port {port}: start it by hand to see why.")
            time.sleep(0.02)
        yield anvil
    finally:
        stop(anvil)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False
