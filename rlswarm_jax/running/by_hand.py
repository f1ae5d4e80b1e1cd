"""What the commands by which a person deals with a chain have in common."""

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

from rlswarm_jax.chain.errors import ChainError
from rlswarm_jax.chain.ledger import PATIENCE
from rlswarm_jax.chain.rpc import Endpoint, Patient
from rlswarm_jax.errors import UsageError
from rlswarm_jax.identity import Identity, KeyFileError, load_or_create
from rlswarm_jax.running.account import address


def existing_key(path: Path) -> Identity:
    """An existing one: a mistyped path must not make another identity."""
    if not path.exists():
        raise UsageError(f"there is no key file {path}; python -m experiments.chain account --key {path} makes one.")
    return load_or_create(path)


def patient(given: str) -> Patient:
    return Patient(Endpoint(address(given)), PATIENCE)


def coins(wei: int) -> str:
    return f"{wei / 10**18:.6f} coins"


def sentence(error: Exception) -> str:
    """One line, without whatever an endpoint may have put into it."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(error))).rstrip(".") + "."


def carried_out(act: Callable[[], None]) -> int:
    """Does what a person asked of a chain; returns the program's exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("rlswarm_jax.chain").setLevel(logging.INFO)  # what was sent, while it waits
    try:
        act()
    except (UsageError, ChainError, KeyFileError, ValueError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was sent may still get into a block", file=sys.stderr)
        return 130
    return 0
