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
def original() -> list[dict[str, Any]]:
    """The ABI of what a node calls and reads on the original's SwarmCoordinator: functions of versions 0.4.2 and 0.6.0,
    events, and errors.
    """
    return json.loads(resources.files(__package__).joinpath("original.json").read_text("utf-8"))
