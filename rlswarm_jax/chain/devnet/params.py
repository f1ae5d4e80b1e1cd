"""Parameters of JSON-RPC calls, checked: hexadecimal text to numbers, bytes and calls."""

import re
from typing import Any

from rlswarm_jax.chain.devnet.chain import Call
from rlswarm_jax.chain.devnet.errors import INVALID_PARAMS, RpcError

_QUANTITY, _DATA = re.compile(r"0x[0-9a-fA-F]{1,64}"), re.compile(r"0x([0-9a-fA-F]{2})*")
MAX_FILTER = 1000  # addresses, or topics of one position, in a filter of logs


def bad(message: str) -> RpcError:
    return RpcError(f"invalid argument: {message}", INVALID_PARAMS)


def quantity(value: Any, bits: int = 256) -> int:
    """Of hexadecimal text with 0x, or of a number. Raises RpcError if it is none below 2^bits."""
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        value = int(value, 16)
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad(f"{str(value)[:80]!r} is no number like '0x1f'")
    if not 0 <= value < 1 << bits:
        raise bad(f"a number is not below 2^{bits}")
    return value


def octets(value: Any, length: int | None = None) -> bytes:
    """Of hexadecimal text with 0x. Raises RpcError if it is none, or not of that many bytes."""
    if not isinstance(value, str) or not _DATA.fullmatch(value):
        raise bad(f"{str(value)[:80]!r} is no data like '0x1f2e'")
    found = bytes.fromhex(value[2:])
    if length is not None and len(found) != length:
        raise bad(f"{value[:80]!r} has {len(found)} bytes and not {length}")
    return found


def address(value: Any) -> bytes:
    return octets(value, 20)


def some(value: Any, length: int) -> list[bytes]:
    """The alternatives of a filter: one, or a list of them; empty if all will do."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    if len(found) > MAX_FILTER:
        raise bad(f"a filter has at most {MAX_FILTER} alternatives")
    return [octets(one, length) for one in found]


def call(value: Any, gas_limit: int) -> Call:
    """What is missing is zero, and its gas the most that a block has; a list of accesses is of no consequence."""
    if not isinstance(value, dict):
        raise bad("a call is an object with 'to', 'data' and so on")
    found = {name: one for name, one in value.items() if one is not None}
    fee = quantity(found.get("maxFeePerGas", found.get("gasPrice", 0)))
    return Call(
        sender=address(found.get("from", "0x" + "00" * 20)),
        to=address(found["to"]) if found.get("to", "0x") != "0x" else b"",
        gas=min(quantity(found.get("gas", gas_limit)), gas_limit),
        value=quantity(found.get("value", 0)),
        data=octets(found.get("input", found.get("data", "0x"))),
        max_fee_per_gas=fee,
        max_priority_fee_per_gas=fee if "gasPrice" in found else quantity(found.get("maxPriorityFeePerGas", 0)),
    )
