"""web3.py over an endpoint that nobody vouches for: an answer is checked, by its method, before web3 reads it.

It costs a fifth of a second to import, so modules that every node loads at its start import this one where they use it.

No middleware is installed: nonces, prices, gas, retries and signatures are the sender's. What a refused call says is
read here: on an unknown panic, or text that is none, web3's reader fails; and it fetches what a contract asks it to
(EIP-3668).
"""

import re
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from eth_abi.codec import ABICodec
from eth_abi.decoding import StringDecoder
from eth_abi.exceptions import DecodingError
from eth_abi.registry import BaseEquals, registry
from eth_utils import abi_to_signature, function_signature_to_4byte_selector, keccak
from eth_utils.abi import get_abi_input_types

from rlswarm_jax.chain import contracts
from rlswarm_jax.chain.calls import checksum
from rlswarm_jax.chain.errors import MalformedAnswer, NoContract, Refused, Reverted, WrongChain
from rlswarm_jax.chain.library import web3
from rlswarm_jax.chain.rpc import MAX_ANSWER_BYTES, Rpc

if TYPE_CHECKING:
    from web3.types import EventData, LogReceipt, TxReceipt

MAX_CALL_BYTES = 1 << 16  # of a view's answer, of a contract
MAX_LOG_BYTES = 1 << 14  # of an event's data: those of 32 bootnodes have less than 11 kB
MAX_LOGS = 10_000
_WORD = 1 << 63  # block numbers, gas: what SQLite holds
_TIME, _NONCE, _PRICE = 1 << 40, 1 << 48, 1 << 128  # seconds since 1970, transactions of an account, wei per gas
_Field = Callable[[Any], Any]  # what checks one
_HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")


def connect(rpc: Rpc, chain_id: int | None = None) -> web3.Web3:
    """Asks nothing, unless a chain is named: raises WrongChain if the endpoint serves another, and as `Rpc.request`."""
    found = web3.Web3(_Provider(rpc), middleware=[])
    found.codec = _codec()
    if chain_id is not None and (served := found.eth.chain_id) != chain_id:
        raise WrongChain(f"the endpoint serves chain {served}, not {chain_id}: check its address, or the chain id.")
    return found


def block_hash(w3: web3.Web3, number: int) -> str | None:
    """0x and hex; None if there is no block of that number (yet)."""
    try:
        return w3.eth.get_block(number)["hash"].to_0x_hex()
    except web3.exceptions.BlockNotFound:
        return None


def receipt(w3: web3.Web3, transaction: str) -> "TxReceipt | None":
    """What became of a transaction; None while it is in no block."""
    try:
        return w3.eth.get_transaction_receipt(transaction)
    except web3.exceptions.TransactionNotFound:
        return None


class Contract:
    """A coordinator, ours or one of the original's, or what another `abi` says. Views, calls and events go by name,
    overloads by full signature.
    """

    def __init__(self, w3: web3.Web3, address: str, abi: list[Any] | None = None):
        self.address = checksum(address)
        self._abi = contracts.interface() if abi is None else abi
        self._w3, self._made = w3, cache(self._make)
        named = w3.eth.contract(self.address, abi=[one for one in self._abi if one["type"] == "event"])
        self._events = {bytes.fromhex(event.topic[2:]): event for event in named.events}

    def _make(self, name: str) -> Any:
        """web3's, of that function alone: it goes through all that it has at each call."""
        only = [one for one in self._abi if one.get("name") == name.partition("(")[0]]
        return self._w3.eth.contract(self.address, abi=only)

    def view(self, name: str, *arguments: Any) -> Any:
        """Its value, or a tuple of them. Raises Reverted, NoContract where nothing answers, and as `Rpc.request`."""
        try:
            return self._made(name).functions[name](*arguments).call()
        except (web3.exceptions.BadFunctionCallOutput, OverflowError):
            raise MalformedAnswer(f"the chain endpoint's answer is not of the type that {name} has.") from None

    def encode(self, name: str, *arguments: Any) -> bytes:
        """The bytes of a call."""
        return bytes.fromhex(self._made(name).encode_abi(name, arguments)[2:])

    def logs(self, first: int, last: int, name: str | None = None) -> "list[EventData]":
        """Its events in blocks first to last, in their order; those of a name only, if one is given.

        Raises MalformedAnswer for any other, or one that is cut.
        """
        asked: Any = {"address": self.address, "fromBlock": first, "toBlock": last}
        if name:
            asked["topics"] = [event.topic for event in self._events.values() if event.event_name == name]
        found = map(self._read, self._w3.eth.get_logs(asked))
        return [one for one in found if one and name in (None, one["event"])]

    def _read(self, log: "LogReceipt") -> "EventData | None":
        """None for what a node has no use for: on the original's contracts anybody may make an event of any length."""
        event = self._events.get(bytes(log["topics"][0])) if log["topics"] else None
        if event is None or len(log["data"]) > MAX_LOG_BYTES:
            return None
        try:
            return event.process_log(log)
        except (DecodingError, OverflowError, web3.exceptions.LogTopicError):
            raise MalformedAnswer(f"the chain endpoint's event {event.event_name} is cut or padded.") from None


class _Provider(web3.BaseProvider):
    def __init__(self, rpc: Rpc):
        super().__init__()
        self._rpc = rpc

    def make_request(self, method: Any, params: Any) -> Any:
        """Raises as `Rpc.request`; Reverted if the contract refuses, NoContract if nothing answers a call."""
        try:
            answer = self._rpc.request(method, list(params))
        except Refused as error:
            raise (_reverted(error) if method in ("eth_call", "eth_estimateGas") else error) from None
        return {"jsonrpc": "2.0", "id": 0, "result": _CHECKS[method](answer, params)}


class _Text(StringDecoder):
    """Anybody may have written the text that a contract hands out: what is no UTF-8 gets replacement characters."""

    def __init__(self) -> None:
        super().__init__(handle_string_errors="replace")


@cache
def _codec() -> ABICodec:
    own = registry.copy()
    own.unregister_decoder("string")
    own.register_decoder(BaseEquals("string"), _Text, label="string")
    return ABICodec(own)


# --- answers: what is right, as it came; all else raises MalformedAnswer


def _quantity(value: Any, below: int = _WORD) -> str:
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value) or int(value, 16) >= below:
        raise MalformedAnswer(f"the chain endpoint answered {_cut(value)} where a number below {below:#x} belongs.")
    return value


def _data(value: Any, most: int, size: int | None = None) -> str:
    """At most `most` bytes, or exactly `size`."""
    if not isinstance(value, str) or len(value) > 2 * most + 2 or not _HEX.fullmatch(value):
        raise MalformedAnswer(f"the chain endpoint answered {_cut(value)} where at most {most} bytes in hex belong.")
    if size is not None and len(value) != 2 * size + 2:
        raise MalformedAnswer(f"the chain endpoint answered {len(value) // 2 - 1} bytes where {size} belong.")
    return value.lower()


_hash = partial(_data, most=32, size=32)


def _fields(answer: Any, what: str, checks: dict[str, _Field]) -> dict[str, Any]:
    """These fields alone."""
    if not isinstance(answer, dict):
        raise MalformedAnswer(f"the chain endpoint answered {_cut(answer)} where {what} belongs.")
    return {name: check(answer.get(name)) for name, check in checks.items()}


_BLOCK: dict[str, _Field] = {"number": _quantity, "hash": _hash, "timestamp": partial(_quantity, below=_TIME)}
_RECEIPT: dict[str, _Field] = {
    "blockNumber": _quantity,
    "transactionHash": _hash,
    "status": partial(_quantity, below=2),
    "gasUsed": _quantity,
    "effectiveGasPrice": lambda value: _quantity("0x0" if value is None else value, _PRICE),  # not every server has it
}


def _topics(value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) > 4:
        raise MalformedAnswer("the chain endpoint answered an event without topics.")
    return [_hash(topic) for topic in value]


_LOG: dict[str, _Field] = {
    "address": partial(_data, most=20, size=20),
    "blockNumber": _quantity,
    "blockHash": _hash,
    "logIndex": _quantity,
    "transactionIndex": lambda value: "0x0",  # nobody asks for it
    "transactionHash": _hash,
    "topics": _topics,
    "data": partial(_data, most=MAX_ANSWER_BYTES),
}


def _block(answer: Any, params: Any) -> dict | None:
    asked = None if params[0] == "latest" else int(params[0], 16)
    if answer is None and asked is not None:
        return None
    found = _fields(answer, "a block", _BLOCK)
    if answer.get("baseFeePerGas") is not None:
        found["baseFeePerGas"] = _quantity(answer["baseFeePerGas"], _PRICE)
    number = int(found["number"], 16)
    if asked not in (None, number):
        raise MalformedAnswer(f"the chain endpoint answered block {number} where block {asked} was asked for.")
    return found


def _mined(answer: Any, params: Any) -> dict | None:
    if answer is None or (isinstance(answer, dict) and answer.get("blockNumber") is None):  # some tell what is pending
        return None
    found = _fields(answer, "a receipt", _RECEIPT)
    if found["transactionHash"] != params[0]:
        raise MalformedAnswer("the chain endpoint answered the receipt of another transaction.")
    return found


def _logs(answer: Any, params: Any) -> list[dict]:
    asked, (address,) = params[0], params[0]["address"]
    if not isinstance(answer, list) or len(answer) > MAX_LOGS:
        raise MalformedAnswer("the chain endpoint answered no list of events, or one too long.")
    found = {}
    for one in answer:
        log = _fields(one, "an event", _LOG)
        if log["address"] != address.lower() or one.get("removed"):
            raise MalformedAnswer("the chain endpoint answered an event of another contract, or one undone.")
        found[int(log["blockNumber"], 16), int(log["logIndex"], 16)] = log
    first, last = int(asked["fromBlock"], 16), int(asked["toBlock"], 16)
    if len(found) < len(answer) or any(not first <= number <= last for number, _ in found):
        raise MalformedAnswer("the chain endpoint answered events twice, or of other blocks than were asked for.")
    return [log for _, log in sorted(found.items())]


def _called(answer: Any, params: Any) -> str:
    """Whoever has no such view may answer with no bytes."""
    found = _data(answer, MAX_CALL_BYTES)
    if found == "0x":
        raise NoContract(f"there is no coordinator at {params[0]['to']} on this chain: check the address.")
    return found


_CHECKS: dict[str, Callable[[Any, Any], Any]] = {
    "eth_call": _called,
    "eth_chainId": lambda answer, _: _quantity(answer),
    "eth_estimateGas": lambda answer, _: _quantity(answer),
    "eth_gasPrice": lambda answer, _: _quantity(answer, _PRICE),
    "eth_getBalance": lambda answer, _: _quantity(answer, 1 << 256),
    "eth_getBlockByNumber": _block,
    "eth_getCode": lambda answer, _: _data(answer, MAX_CALL_BYTES),
    "eth_getLogs": _logs,
    "eth_getTransactionCount": lambda answer, _: _quantity(answer, _NONCE),
    "eth_getTransactionReceipt": _mined,
    "eth_maxPriorityFeePerGas": lambda answer, _: _quantity(answer, _PRICE),
    # what an endpoint says of what it is handed proves nothing: a receipt will
    "eth_sendRawTransaction": lambda answer, params: "0x" + keccak(hexstr=params[0]).hex(),
}


def _cut(value: Any) -> str:
    return repr(value)[:60]


# --- refusals


def _reverted(error: Refused) -> Reverted | Refused:
    """The contract's refusal within an endpoint's; the endpoint's own if the contract never spoke."""
    if error.data:
        return Reverted(*error_name(error.data))
    if error.code == 3 or "revert" in error.words.lower():
        return Reverted("no reason given", error.words)
    return error


def error_name(data: bytes) -> tuple[str, str]:
    """The name of the error in a revert's data, and its arguments as text."""
    known = _errors().get(data[:4])
    if known is None:
        return "unknown error", "0x" + data[:4].hex()
    try:
        values = _codec().decode(known[1], data[4:])
    except (DecodingError, OverflowError):
        values = ()
    return known[0], ", ".join(str(value)[:200] for value in values)


@cache
def _errors() -> dict[bytes, tuple[str, list[str]]]:
    """Name and types by selector; the last two are Solidity's own."""
    named = [one for one in (*contracts.interface(), *contracts.court()["abi"]) if one["type"] == "error"]
    found = {abi_to_signature(one): (one["name"], get_abi_input_types(one)) for one in named}
    found |= {"Error(string)": ("Error", ["string"]), "Panic(uint256)": ("Panic", ["uint256"])}
    return {function_signature_to_4byte_selector(signature): one for signature, one in found.items()}
