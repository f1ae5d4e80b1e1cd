"""The coordinator contract as the pinned compiler made it, its source beside this file (`make contracts`); and of the
original's two versions the part of the interface that a client needs.
"""

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def coordinator() -> dict[str, Any]:
    """The artifact: `abi`, `bytecode` and `runtime_bytecode` (hexadecimal), `compiler`, `settings`, and the `sha256` of
    each source.

    The immutables of `runtime_bytecode` are zero, so it differs there from the code of a deployed contract.
    """
    return json.loads(resources.files(__package__).joinpath("coordinator.json").read_text("utf-8"))


@cache
def interface() -> list[Any]:
    """The ABI of all that a client may meet: our coordinator's, and where it has nothing of the same signature, what a
    node needs of the original's SwarmCoordinator, versions 0.4.2 and 0.6.0.
    """
    original = json.loads(resources.files(__package__).joinpath("original.json").read_text("utf-8"))
    return list({_signature(one): one for one in (*original, *coordinator()["abi"])}.values())


def _signature(entry: dict[str, Any]) -> tuple:
    return entry["type"], entry.get("name"), *(one["type"] for one in entry["inputs"])
