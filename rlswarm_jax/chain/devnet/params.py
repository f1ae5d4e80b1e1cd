"""Parameters of JSON-RPC calls, checked: hexadecimal text to numbers, bytes, blocks and calls."""

import re
from typing import Any

from rlswarm_jax.chain.devnet.chain import Chain
from rlswarm_jax.chain.devnet.errors import INVALID_PARAMS, RpcError
from rlswarm_jax.chain.devnet.header import Header
from rlswarm_jax.chain.devnet.transaction import CREATE, AccessList, Transaction

_QUANTITY, _DATA = re.compile(r"0x[0-9a-fA-F]{1,64}"), re.compile(r"0x([0-9a-fA-F]{2})*")
MAX_FILTER = 1000  # addresses, or topics of one position, in a filter of logs


def bad(message: str) -> RpcError:
    return RpcError(f"invalid argument: {message}", INVALID_PARAMS)


def quantity(value: Any, bits: int = 256) -> int:
    """Of hexadecimal text with 0x, or of a number. Raises RpcError if it is none below 2^bits."""
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        number = int(value, 16)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise bad(f"{str(value)[:80]!r} is no number like '0x1f'")
    if not 0 <= number < 1 << bits:
        raise bad(f"a number is not below 2^{bits}")
    return number


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


def number(chain: Chain, value: Any) -> int:
    """Of a block: a tag or a number, which may be of no block yet."""
    if value in ("latest", "pending", "safe", "finalized", None):
        return chain.head.number
    return 0 if value == "earliest" else quantity(value, 63)


def block(chain: Chain, value: Any = None) -> Header:
    """Of a tag, a number, or an object of EIP-1898. Raises RpcError if there is no such block."""
    if isinstance(value, dict):
        if "blockHash" in value:
            found = chain.number_of(octets(value["blockHash"], 32))
            if found is None:
                raise RpcError("header for hash not found")
            return chain.header(found)
        value = value.get("blockNumber")
    return chain.header(number(chain, value))


def call(chain: Chain, value: Any) -> Transaction:
    """An unsigned transaction; what is missing is zero, and its gas the most that a block has."""
    if not isinstance(value, dict):
        raise bad("a call is an object with 'to', 'data' and so on")
    found = {name: one for name, one in value.items() if one is not None}
    data = octets(found.get("input", found.get("data", "0x")))
    fee = quantity(found.get("maxFeePerGas", found.get("gasPrice", 0)))
    tip = quantity(found.get("maxPriorityFeePerGas", 0)) if "gasPrice" not in found else fee
    if tip > fee:
        raise RpcError(f"max priority fee per gas higher than max fee per gas: {tip} > {fee}")
    return Transaction(
        sender=address(found.get("from", "0x" + "00" * 20)),
        nonce=0,
        gas=min(quantity(found.get("gas", chain.head.gas_limit)), chain.head.gas_limit),
        to=address(found["to"]) if found.get("to", "0x") != "0x" else CREATE,
        value=quantity(found.get("value", 0)),
        data=data,
        max_fee_per_gas=fee,
        max_priority_fee_per_gas=tip,
        access_list=_access_list(found.get("accessList", [])),
    )


def _access_list(value: Any) -> AccessList:
    try:
        return tuple(
            (address(entry["address"]), tuple(quantity(slot) for slot in entry["storageKeys"])) for entry in value
        )
    except (TypeError, KeyError):
        raise bad("an access list is a list of {'address': ..., 'storageKeys': [...]}") from None


def log_filter(chain: Chain, value: Any) -> tuple[int, int, list[bytes], list[list[bytes]]]:
    """First and last block, addresses, topics by position; empty lists let all pass."""
    if not isinstance(value, dict):
        raise bad("a filter is an object with 'fromBlock', 'toBlock', 'address' and 'topics'")
    if value.get("blockHash") is not None:
        if value.get("fromBlock") is not None or value.get("toBlock") is not None:
            raise bad("a filter names either blockHash or fromBlock and toBlock")
        first = last = block(chain, {"blockHash": value["blockHash"]}).number
    else:
        first, last = number(chain, value.get("fromBlock")), number(chain, value.get("toBlock"))
    if first > last:
        raise bad(f"fromBlock {first} is after toBlock {last}")
    topics = value.get("topics") or []
    if not isinstance(topics, list) or len(topics) > 4:
        raise bad("topics are a list of at most 4")
    return first, last, _some(value.get("address"), 20), [_some(topic, 32) for topic in topics]


def _some(value: Any, length: int) -> list[bytes]:
    found = value if isinstance(value, list) else [] if value is None else [value]
    if len(found) > MAX_FILTER:
        raise bad(f"a filter has at most {MAX_FILTER} alternatives")
    return [octets(one, length) for one in found]
