"""The few Ethereum calls that the client makes; every answer is checked before it is believed to be of its type."""

import re
from typing import Any, NamedTuple

from eth_utils import to_checksum_address

from rlswarm_jax.chain.abi import error_name
from rlswarm_jax.chain.errors import MalformedAnswer, Refused, Reverted
from rlswarm_jax.chain.rpc import Rpc

MAX_CALL_BYTES = 1 << 16  # of a view's answer
MAX_LOG_BYTES = 1 << 13  # of an event's data: the longest is an attestation's, below 3 kB
MAX_LOGS = 10_000
_WORD = 1 << 63  # block numbers, gas: what SQLite holds
_TIME, _NONCE = 1 << 40, 1 << 48  # seconds since 1970, transactions of an account
_HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")


class Head(NamedTuple):
    """A block. base_fee: wei per gas; None where the chain has no fee market. timestamp: seconds since 1970."""

    number: int
    hash: str
    timestamp: int
    base_fee: int | None


class Receipt(NamedTuple):
    """gas: used. price: paid, in wei per gas."""

    block: int
    block_hash: str
    ok: bool
    gas: int = 0
    price: int = 0


class Log(NamedTuple):
    """block_hash, transaction: `0x` and 64 hexadecimal digits. log_index: within the block."""

    block: int
    block_hash: str
    log_index: int
    transaction: str
    topics: tuple[bytes, ...]
    data: bytes


def quantity(value: Any, below: int = _WORD) -> int:
    """A JSON-RPC number. Raises MalformedAnswer."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value) or int(value, 16) >= below:
        raise MalformedAnswer(f"the chain endpoint answered {_cut(value)} where a number below {below:#x} belongs.")
    return int(value, 16)


def data(value: Any, most: int, size: int | None = None) -> bytes:
    """JSON-RPC bytes, at most `most` or exactly `size`. Raises MalformedAnswer."""
    if not isinstance(value, str) or len(value) > 2 * most + 2 or not _HEX.fullmatch(value):
        raise MalformedAnswer(f"the chain endpoint answered {_cut(value)} where at most {most} bytes in hex belong.")
    raw = bytes.fromhex(value[2:])
    if size is not None and len(raw) != size:
        raise MalformedAnswer(f"the chain endpoint answered {len(raw)} bytes where {size} belong.")
    return raw


def hash32(value: Any) -> str:
    """A block's or transaction's hash, in lower case. Raises MalformedAnswer."""
    return "0x" + data(value, 32, 32).hex()


def chain_id(rpc: Rpc) -> int:
    return quantity(rpc.request("eth_chainId", []))


def block(rpc: Rpc, number: int | None = None) -> Head | None:
    """A block of the chain, the newest without a number; None if there is none of that number (yet)."""
    answer = rpc.request("eth_getBlockByNumber", ["latest" if number is None else hex(number), False])
    if answer is None and number is not None:
        return None
    fields = _object(answer, "a block")
    fee = fields.get("baseFeePerGas")
    found = Head(
        quantity(fields.get("number")),
        hash32(fields.get("hash")),
        quantity(fields.get("timestamp"), _TIME),
        None if fee is None else quantity(fee, 1 << 128),
    )
    if number is not None and found.number != number:
        raise MalformedAnswer(f"the chain endpoint answered block {found.number} where block {number} was asked for.")
    return found


def head(rpc: Rpc) -> Head:
    """The newest block."""
    found = block(rpc)
    if found is None:
        raise MalformedAnswer("the chain endpoint has no newest block.")
    return found


def nonce(rpc: Rpc, account: str, number: int | None = None) -> int:
    """How many transactions of an account the chain has, up to a block."""
    at = "latest" if number is None else hex(number)
    return quantity(rpc.request("eth_getTransactionCount", [account, at]), _NONCE)


def balance(rpc: Rpc, account: str) -> int:
    """In wei."""
    return quantity(rpc.request("eth_getBalance", [account, "latest"]), 1 << 256)


def has_code(rpc: Rpc, address: str, number: int | None = None) -> bool:
    """Whether there is a contract, as of a block (without a number, the newest)."""
    at = "latest" if number is None else hex(number)
    return len(data(rpc.request("eth_getCode", [address, at]), 1 << 16)) > 0


def receipt(rpc: Rpc, transaction: str) -> Receipt | None:
    """What became of a transaction; None while it is in no block."""
    answer = rpc.request("eth_getTransactionReceipt", [transaction])
    if answer is None:
        return None
    fields = _object(answer, "a receipt")
    if fields.get("blockNumber") is None:  # some servers give a receipt for what is still pending
        return None
    if hash32(fields.get("transactionHash")) != transaction:
        raise MalformedAnswer("the chain endpoint answered the receipt of another transaction.")
    number, block_hash = quantity(fields.get("blockNumber")), hash32(fields.get("blockHash"))
    gas, price = quantity(fields.get("gasUsed", "0x0")), quantity(fields.get("effectiveGasPrice", "0x0"), 1 << 128)
    return Receipt(number, block_hash, quantity(fields.get("status"), 2) == 1, gas, price)


def send(rpc: Rpc, raw: bytes) -> None:
    """Hands a signed transaction in. Raises Refused with the endpoint's own words, which prove nothing."""
    rpc.request("eth_sendRawTransaction", ["0x" + raw.hex()])


def call(rpc: Rpc, to: str, calldata: bytes, sender: str | None = None) -> bytes:
    """The answer of a view. Raises Reverted."""
    message = {"to": to, "data": "0x" + calldata.hex()} | ({"from": sender} if sender else {})
    try:
        return data(rpc.request("eth_call", [message, "latest"]), MAX_CALL_BYTES)
    except Refused as error:
        raise _reverted(error) from None


def estimate(rpc: Rpc, to: str | None, calldata: bytes, sender: str) -> int:
    """The gas that a transaction would take now; to None: of one that makes a contract. Raises Reverted."""
    message = {"from": sender, "data": "0x" + calldata.hex()} | ({"to": to} if to is not None else {})
    try:
        return quantity(rpc.request("eth_estimateGas", [message]))
    except Refused as error:
        raise _reverted(error) from None


def gas_price(rpc: Rpc) -> int:
    """Wei per gas."""
    return quantity(rpc.request("eth_gasPrice", []), 1 << 128)


def tip(rpc: Rpc) -> int:
    """Wei per gas above the base fee that the endpoint suggests."""
    return quantity(rpc.request("eth_maxPriorityFeePerGas", []), 1 << 128)


def logs(rpc: Rpc, address: str, first: int, last: int, topic: bytes | None = None) -> list[Log]:
    """A contract's events in blocks first to last, in their order; those of a first topic only, if one is given.

    Raises MalformedAnswer for any other.
    """
    question: dict[str, Any] = {"address": address, "fromBlock": hex(first), "toBlock": hex(last)}
    question |= {"topics": ["0x" + topic.hex()]} if topic else {}
    answer = rpc.request("eth_getLogs", [question])
    if not isinstance(answer, list) or len(answer) > MAX_LOGS:
        raise MalformedAnswer("the chain endpoint answered no list of events, or one too long.")
    found = sorted((_log(one, address) for one in answer), key=lambda log: (log.block, log.log_index))
    slots = {(log.block, log.log_index) for log in found}
    if len(slots) < len(found) or any(not first <= log.block <= last for log in found):
        raise MalformedAnswer("the chain endpoint answered events twice, or of other blocks than were asked for.")
    return found


def _log(answer: Any, address: str) -> Log:
    fields = _object(answer, "an event")
    topics = fields.get("topics")
    if not isinstance(topics, list) or len(topics) > 4:
        raise MalformedAnswer("the chain endpoint answered an event without topics.")
    if data(fields.get("address"), 20, 20).hex() != address[2:].lower() or fields.get("removed"):
        raise MalformedAnswer("the chain endpoint answered an event of another contract, or one undone.")
    return Log(
        quantity(fields.get("blockNumber")),
        hash32(fields.get("blockHash")),
        quantity(fields.get("logIndex")),
        hash32(fields.get("transactionHash")),
        tuple(data(topic, 32, 32) for topic in topics),
        data(fields.get("data"), MAX_LOG_BYTES),
    )


def checksum(address: str) -> str:
    """An address in its mixed-case form. Raises ValueError, in one sentence, if it is none."""
    if not isinstance(address, str) or not re.fullmatch(r"0x[0-9a-fA-F]{40}", address):
        raise ValueError(f"{_cut(address)} is no address: that is 0x and 40 hexadecimal digits.")
    return to_checksum_address(address)


def _reverted(error: Refused) -> Reverted | Refused:
    """The contract's refusal within an endpoint's; the endpoint's own if the contract never spoke."""
    if error.data:
        return Reverted(*error_name(error.data))
    if error.code == 3 or "revert" in error.words.lower():
        return Reverted("no reason given", error.words)
    return error


def _object(answer: Any, what: str) -> dict:
    if not isinstance(answer, dict):
        raise MalformedAnswer(f"the chain endpoint answered {_cut(answer)} where {what} belongs.")
    return answer


def _cut(value: Any) -> str:
    return repr(value)[:60]
