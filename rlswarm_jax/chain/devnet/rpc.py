"""Ethereum's JSON-RPC over a chain: a request's bytes to an answer's bytes."""

import importlib.metadata
import inspect
import re
from typing import Any

import msgspec
from eth.abc import BlockHeaderAPI, ComputationAPI
from eth.exceptions import Revert

from rlswarm_jax.chain.devnet import CHAIN_ID, errors
from rlswarm_jax.chain.devnet.chain import GAS_LIMIT, Chain
from rlswarm_jax.chain.devnet.errors import RpcError
from rlswarm_jax.chain.devnet.store import Store
from rlswarm_jax.chain.devnet.views import data
from rlswarm_jax.chain.nesting import is_deep

MAX_BATCH, MAX_ANSWER = 100, 32 * 2**20  # requests at once; bytes of their answers, and of one's logs
_SETTLED = {
    "eth_chainId": hex(CHAIN_ID),
    "net_version": str(CHAIN_ID),
    "web3_clientVersion": f"rlswarm_jax-devnet/py-evm-{importlib.metadata.version('py-evm')}",
    "eth_gasPrice": "0x0",
    "eth_maxPriorityFeePerGas": "0x0",
}
_NOTHING = inspect.Signature()
_NEWEST = ("latest", "pending", "safe", "finalized", None)
_QUANTITY, _DATA = re.compile(r"0x[0-9a-fA-F]{1,64}"), re.compile(r"0x([0-9a-fA-F]{2})*")


class Request(msgspec.Struct):
    method: str
    params: Any = None
    id: int | str | None = None


class Interface:
    """The methods are those whose names begin with eth_, and _SETTLED; a request without an id is answered, too."""

    def __init__(self, chain: Chain, store: Store):
        self._chain, self._store = chain, store
        self.methods = {name: getattr(self, name) for name in dir(self) if name.startswith("eth_")}
        self._takes = {name: inspect.signature(method) for name, method in self.methods.items()}

    def answer(self, body: bytes) -> bytes:
        """To one request or a batch."""
        try:
            if is_deep(body):
                raise RpcError("parse error: the body nests too deeply", errors.PARSE_ERROR)
            if body.lstrip()[:1] != b"[":
                return self._answer(body)
            requests = _decode(body, list[msgspec.Raw])
            if not 0 < len(requests) <= MAX_BATCH:
                raise RpcError(f"a batch has 1 to {MAX_BATCH} requests", errors.INVALID_REQUEST)
            answers, size = [], 0
            for one in requests:
                answers.append(self._answer(bytes(one)))
                size += len(answers[-1])
                if size > MAX_ANSWER:
                    raise _too_large()
            return b"[" + b",".join(answers) + b"]"
        except RpcError as error:
            return msgspec.json.encode({"jsonrpc": "2.0", "id": None, "error": error.answer()})

    def _answer(self, body: bytes) -> bytes:
        request = _decode(body, Request)
        said: dict[str, Any] = {"jsonrpc": "2.0", "id": request.id}
        try:
            return msgspec.json.encode(said | {"result": self._result(request.method, request.params)})
        except RpcError as error:
            return msgspec.json.encode(said | {"error": error.answer()})

    def _result(self, name: str, params: Any) -> Any:
        if (method := self.methods.get(name)) is None and name not in _SETTLED:
            raise RpcError(f"the method {name[:80]} does not exist or is not available", errors.METHOD_NOT_FOUND)
        if not isinstance(params, list | None):
            raise _bad("they come in a list, by position")
        try:
            self._takes.get(name, _NOTHING).bind(*(params or ()))
        except TypeError as error:
            raise _bad(str(error)) from None
        return method(*(params or ())) if method else _SETTLED[name]

    # about blocks and transactions

    def eth_blockNumber(self) -> str:
        return hex(self._chain.head.block_number)

    def eth_getBlockByNumber(self, number: Any, full: Any = False) -> Any:
        return self._block("number", self._number(number), full)

    def eth_getBlockByHash(self, block_hash: Any, full: Any = False) -> Any:
        return self._block("hash", _octets(block_hash, 32), full)

    def _block(self, name: str, value: Any, full: Any) -> Any:
        answer, sent = self._found("block", name, value), self._found("sent", name, value)
        if not full or answer is None or sent is None:
            return answer
        return msgspec.json.decode(answer) | {"transactions": [sent]}

    def eth_getTransactionByHash(self, sent_hash: Any) -> Any:
        return self._found("sent", "sent_hash", _octets(sent_hash, 32))

    def eth_getTransactionReceipt(self, sent_hash: Any) -> Any:
        return self._found("receipt", "sent_hash", _octets(sent_hash, 32))

    def _found(self, column: str, name: str, value: Any) -> msgspec.Raw | None:
        found = self._store.find(column, name, value)
        return None if found is None else msgspec.Raw(found)

    def eth_getLogs(self, wanted: Any) -> list[Any]:
        if not isinstance(wanted, dict):
            raise _bad("a filter is an object with 'fromBlock', 'toBlock', 'address' and 'topics'")
        first, last = self._number(wanted.get("fromBlock")), self._number(wanted.get("toBlock"))
        if (block_hash := wanted.get("blockHash")) is not None:
            first = last = self._store.find("number", "hash", _octets(block_hash, 32))
        topics = wanted.get("topics") or []
        if not isinstance(topics, list) or len(topics) > 4:
            raise _bad("topics are a list of at most 4")
        addresses, allowed = _some(wanted.get("address"), 20), [_some(one, 32) for one in topics]
        found, size = [], 0
        for receipt in self._store.receipts(first, last):
            for log in msgspec.json.decode(receipt)["logs"]:
                fits = len(log["topics"]) >= len(allowed) and (not addresses or log["address"] in addresses)
                if fits and all(not any_ or one in any_ for one, any_ in zip(log["topics"], allowed, strict=False)):
                    found.append(log)
                    size += 500 + len(log["data"])
                if size > MAX_ANSWER:
                    raise _too_large()
        return found

    def _number(self, value: Any) -> int:
        """Of a block: a tag or a number, which may be of no block yet."""
        if isinstance(value, str | None) and value in _NEWEST:
            return self._chain.head.block_number
        return 0 if value == "earliest" else _quantity(value, 63)

    def _header(self, value: Any) -> BlockHeaderAPI:
        return self._chain.header(self._number(value))

    # about accounts

    def eth_getBalance(self, address: Any, block: Any = None) -> str:
        return hex(self._chain.state(self._header(block)).get_balance(_octets(address, 20)))

    def eth_getTransactionCount(self, address: Any, block: Any = None) -> str:
        return hex(self._chain.state(self._header(block)).get_nonce(_octets(address, 20)))

    def eth_getCode(self, address: Any, block: Any = None) -> str:
        return data(self._chain.state(self._header(block)).get_code(_octets(address, 20)))

    # what would happen, and what does

    def eth_call(self, call: Any, block: Any = None) -> str:
        outcome = self._chain.call(self._header(block), *_call(call))
        _check(outcome)
        return data(outcome.output)

    def eth_estimateGas(self, call: Any, block: Any = None) -> str:
        gas, outcome = self._chain.estimate(self._header(block), *_call(call))
        _check(outcome)
        return hex(gas)

    def eth_sendRawTransaction(self, raw: Any) -> str:
        return data(self._chain.send(_octets(raw)))


def _check(outcome: ComputationAPI) -> None:
    """Raises RpcError if it failed, with what the contract said."""
    if outcome.is_error and isinstance(outcome.error, Revert):
        raise RpcError("execution reverted", errors.REVERTED, data(outcome.output))
    if outcome.is_error:
        raise RpcError(f"execution failed: {str(outcome.error)[:200] or type(outcome.error).__name__}")


# --- requests and their parameters


def _decode(body: bytes | msgspec.Raw, type_: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        raise RpcError(f"invalid request: {error}", errors.INVALID_REQUEST) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RpcError("parse error: the body is no JSON", errors.PARSE_ERROR) from None


def _bad(message: str) -> RpcError:
    return RpcError(f"invalid params: {message}", errors.INVALID_PARAMS)


def _too_large() -> RpcError:
    return RpcError(f"query returned more than {MAX_ANSWER} bytes: ask for less at a time", errors.LIMIT_EXCEEDED)


def _quantity(value: Any, bits: int = 256) -> int:
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value) or int(value, 16) >= 1 << bits:
        raise _bad(f"{str(value)[:80]!r} is no number like '0x1f' below 2^{bits}")
    return int(value, 16)


def _octets(value: Any, length: int | None = None) -> bytes:
    if not isinstance(value, str) or not _DATA.fullmatch(value):
        raise _bad(f"{str(value)[:80]!r} is no data like '0x1f2e'")
    if length is not None and len(value) != 2 + 2 * length:
        raise _bad(f"{value[:80]!r} is not of {length} bytes")
    return bytes.fromhex(value[2:])


def _some(value: Any, length: int) -> set[str]:
    """The alternatives of a filter: one, or a list of them; empty if all will do."""
    return {data(_octets(one, length)) for one in (value if isinstance(value, list) else [value]) if one is not None}


def _call(value: Any) -> tuple[bytes, dict[str, Any]]:
    """Sender and fields. What is missing is zero, and its gas the most that a block has; fees are of no consequence."""
    if not isinstance(value, dict):
        raise _bad("a call is an object with 'to', 'data' and so on")
    found = {name: one for name, one in value.items() if one is not None}
    return _octets(found.get("from", "0x" + "00" * 20), 20), {
        "to": _octets(found["to"], 20) if found.get("to", "0x") != "0x" else b"",
        "gas": min(_quantity(found.get("gas", hex(GAS_LIMIT))), GAS_LIMIT),
        "value": _quantity(found.get("value", "0x0")),
        "data": _octets(found.get("input", found.get("data", "0x"))),
    }
