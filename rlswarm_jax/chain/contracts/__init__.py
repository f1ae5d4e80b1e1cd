"""The coordinator and the court as the pinned compiler made them, their sources beside this file (`make contracts`);
and of the original's two versions the part of the interface that a client needs.
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
    return _read("coordinator.json")


@cache
def court() -> dict[str, Any]:
    """The same of the court, which judges what a coordinator's peers committed to."""
    return _read("court.json")


@cache
def interface() -> list[Any]:
    """The ABI of all that a client may meet: our coordinator's, and where it has nothing of the same signature, what a
    node needs of the original's SwarmCoordinator, versions 0.4.2 and 0.6.0.
    """
    return list({_signature(one): one for one in (*_read("original.json"), *coordinator()["abi"])}.values())


def _read(name: str) -> Any:
    return json.loads(resources.files(__package__).joinpath(name).read_text("utf-8"))


def _signature(entry: dict[str, Any]) -> tuple:
    return entry["type"], entry.get("name"), *(one["type"] for one in entry["inputs"])
