"""The coordinator contract as the pinned compiler made it; its sources are beside this file (`make contracts`)."""

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
