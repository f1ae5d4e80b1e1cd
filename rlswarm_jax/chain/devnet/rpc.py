"""Ethereum's JSON-RPC over a chain: a request's bytes to an answer's bytes.

Answers that depend on nothing but the chain are kept until it changes, so that many who poll cost little.
"""

import importlib.metadata
import math
from collections.abc import Callable
from typing import Any

import msgspec
from eth_abi import decode as decode_abi
from eth_abi.exceptions import DecodingError

from rlswarm_jax import __version__
from rlswarm_jax.chain.devnet import CHAIN_ID
from rlswarm_jax.chain.devnet import params as read
from rlswarm_jax.chain.devnet.chain import Chain
from rlswarm_jax.chain.devnet.errors import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    LIMIT_EXCEEDED,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    REVERTED,
    RpcError,
)
from rlswarm_jax.chain.devnet.execution import Outcome
from rlswarm_jax.chain.devnet.store import Store
from rlswarm_jax.chain.devnet.views import data, transaction_view, word
from rlswarm_jax.chain.nesting import is_deep

MAX_BATCH, MAX_BATCH_BYTES = 1000, 64 * 2**20  # requests, and bytes of their answers
MAX_FEE_HISTORY = 1024  # blocks
MAX_EMPTY_BLOCKS = 1000  # of one evm_mine
_MAX_CACHED = 16 * 2**20  # bytes of answers, and of the questions
_ERROR_SIGNATURE, _PANIC_SIGNATURE = (
    bytes.fromhex("08c379a0"),
    bytes.fromhex("4e487b71"),
)  # Error(string), Panic(uint256)


class Request(msgspec.Struct):
    method: str
    params: msgspec.Raw = msgspec.Raw(b"[]")
    id: int | float | str | None = None


class Id(msgspec.Struct):
    id: int | float | str | msgspec.UnsetType | None = msgspec.UNSET


class Interface:
    """The methods, and the answers that still hold."""

    def __init__(self, chain: Chain, store: Store):
        self._chain, self._store = chain, store
        self._cached: dict[tuple[str, bytes], bytes] = {}
        self._cached_bytes, self._cached_version = 0, chain.version
        self._methods: dict[str, Callable[..., Any]] = {
            name: getattr(self, f"_{name}") for name in (*_OF_THE_CHAIN, *_ACTING)
        }

    def answer(self, body: bytes) -> bytes:
        """To one request or a batch. Empty if nothing in it wants an answer."""
        if is_deep(body):
            return _failure(None, RpcError("parse error: the body nests too deeply", PARSE_ERROR))
        if body.lstrip()[:1] != b"[":
            return self._answer(body) or b""
        try:
            requests = msgspec.json.decode(body, type=list[msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _failure(None, RpcError("parse error: the body is no JSON", PARSE_ERROR))
        if not 0 < len(requests) <= MAX_BATCH:
            return _failure(None, RpcError(f"a batch has 1 to {MAX_BATCH} requests", INVALID_REQUEST))
        answers, size = [], 0
        for one in requests:
            if size > MAX_BATCH_BYTES:
                answers.append(_failure(None, RpcError("the answers of this batch are too large", LIMIT_EXCEEDED)))
                break
            if (found := self._answer(bytes(one))) is not None:
                answers.append(found)
                size += len(found)
        return b"[" + b",".join(answers) + b"]" if answers else b""

    def _answer(self, body: bytes) -> bytes | None:
        """None to a notification, which is a request without an id."""
        try:
            request = msgspec.json.decode(body, type=Request)
        except msgspec.ValidationError as error:
            return _failure(None, RpcError(f"invalid request: {error}", INVALID_REQUEST))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _failure(None, RpcError("parse error: the body is no JSON", PARSE_ERROR))
        try:
            result = self._result(request.method, bytes(request.params))
        except RpcError as error:
            return _failure(request.id, error)
        if request.id is None and msgspec.json.decode(body, type=Id).id is msgspec.UNSET:
            return None
        return b'{"jsonrpc":"2.0","id":' + msgspec.json.encode(request.id) + b',"result":' + result + b"}"

    def _result(self, method: str, raw_params: bytes) -> bytes:
        if self._cached_version != self._chain.version:
            self._cached, self._cached_bytes, self._cached_version = {}, 0, self._chain.version
        key = (method, raw_params)
        if found := self._cached.get(key):
            return found
        act = self._methods.get(method)
        if act is None:
            raise RpcError(f"the method {method[:80]} does not exist or is not available", METHOD_NOT_FOUND)
        params = self._params(method, raw_params)
        result = msgspec.json.encode(act(*params))
        if method in _OF_THE_CHAIN:
            self._cached_bytes += len(result) + len(raw_params) + 200
            if self._cached_bytes < _MAX_CACHED:
                self._cached[key] = result
            else:
                self._cached, self._cached_bytes = {}, 0
        return result

    def _params(self, method: str, raw: bytes) -> list[Any]:
        try:
            params = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RpcError("parse error: the parameters are no JSON", PARSE_ERROR) from None
        least, most = {**_OF_THE_CHAIN, **_ACTING}[method]
        if params is None:
            params = []
        if not isinstance(params, list):
            raise RpcError("invalid params: they are given by position, in a list", INVALID_PARAMS)
        if len(params) < least:
            raise RpcError(f"missing value for required argument {len(params)} of {method}", INVALID_PARAMS)
        if len(params) > most:
            raise RpcError(f"too many arguments, want at most {most}", INVALID_PARAMS)
        return params

    # about the network

    def _eth_chainId(self) -> str:
        return hex(CHAIN_ID)

    def _net_version(self) -> str:
        return str(CHAIN_ID)

    def _net_listening(self) -> bool:
        return True

    def _eth_syncing(self) -> bool:
        return False

    def _eth_accounts(self) -> list[str]:
        return []

    def _web3_clientVersion(self) -> str:
        return f"rlswarm_jax-devnet/{__version__}/py-evm-{importlib.metadata.version('py-evm')}"

    # about blocks and transactions

    def _eth_blockNumber(self) -> str:
        return hex(self._chain.head.number)

    def _eth_getBlockByNumber(self, number: Any, full: Any = False) -> Any:
        return self._block(read.number(self._chain, number), full)

    def _eth_getBlockByHash(self, block_hash: Any, full: Any = False) -> Any:
        return self._block(self._store.number_of(read.octets(block_hash, 32)), full)

    def _block(self, number: int | None, full: Any) -> Any:
        if not isinstance(full, bool):
            raise read.bad("whether to give whole transactions is true or false")
        answer = None if number is None else self._store.block(number)
        if answer is None or number is None or not full:
            return answer and msgspec.Raw(answer)
        return msgspec.json.decode(answer) | {"transactions": _raws(self._store.transactions(number))}

    def _eth_getBlockTransactionCountByNumber(self, number: Any) -> str | None:
        at = read.number(self._chain, number)
        return hex(len(self._store.receipts(at))) if at <= self._chain.head.number else None

    def _eth_getBlockReceipts(self, number: Any) -> list[msgspec.Raw]:
        return _raws(self._store.receipts(read.block(self._chain, number).number))

    def _eth_getTransactionByHash(self, transaction_hash: Any) -> Any:
        key = read.octets(transaction_hash, 32)
        if waiting := self._chain.waiting(key):
            return transaction_view(waiting, None)
        answer = self._store.transaction(key)
        return answer and msgspec.Raw(answer)

    def _eth_getTransactionReceipt(self, transaction_hash: Any) -> Any:
        answer = self._store.receipt(read.octets(transaction_hash, 32))
        return answer and msgspec.Raw(answer)

    def _eth_getLogs(self, wanted: Any) -> list[msgspec.Raw]:
        return _raws(self._store.logs(*read.log_filter(self._chain, wanted)))

    # about accounts

    def _eth_getBalance(self, address: Any, block: Any = None) -> str:
        return hex(self._chain.state(read.block(self._chain, block)).get_balance(read.address(address)))

    def _eth_getTransactionCount(self, address: Any, block: Any = None) -> str:
        return hex(self._chain.state(read.block(self._chain, block)).get_nonce(read.address(address)))

    def _eth_getCode(self, address: Any, block: Any = None) -> str:
        return data(self._chain.state(read.block(self._chain, block)).get_code(read.address(address)))

    def _eth_getStorageAt(self, address: Any, slot: Any, block: Any = None) -> str:
        state = self._chain.state(read.block(self._chain, block))
        return word(state.get_storage(read.address(address), read.quantity(slot)))

    # what would happen

    def _eth_call(self, call: Any, block: Any = None) -> str:
        outcome = self._chain.call(read.block(self._chain, block), read.call(self._chain, call))
        _check(outcome)
        return data(outcome.output)

    def _eth_estimateGas(self, call: Any, block: Any = None) -> str:
        gas, outcome = self._chain.estimate(read.block(self._chain, block), read.call(self._chain, call))
        _check(outcome)
        return hex(gas)

    def _eth_gasPrice(self) -> str:
        return hex(self._chain.head.base_fee)

    def _eth_maxPriorityFeePerGas(self) -> str:
        return "0x0"

    def _eth_feeHistory(self, count: Any, newest: Any, percentiles: Any = None) -> dict[str, Any]:
        wanted, last = read.quantity(count), read.block(self._chain, newest).number
        if not 1 <= wanted <= MAX_FEE_HISTORY:
            raise RpcError(f"a fee history is of 1 to {MAX_FEE_HISTORY} blocks", LIMIT_EXCEEDED)
        if percentiles is not None and not (isinstance(percentiles, list) and len(percentiles) <= 100):
            raise read.bad("percentiles are a list of at most 100 numbers")
        headers = self._chain.headers(max(0, last + 1 - wanted), last)
        history = {
            "oldestBlock": hex(headers[0].number),
            "baseFeePerGas": [hex(header.base_fee) for header in (*headers, headers[-1])],
            "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
        }
        return history if not percentiles else history | {"reward": [["0x0"] * len(percentiles) for _ in headers]}

    # what acts

    def _eth_sendRawTransaction(self, raw: Any) -> str:
        return data(self._chain.send(read.octets(raw)))

    def _anvil_setBalance(self, address: Any, balance: Any) -> None:
        self._chain.set_balance(read.address(address), read.quantity(balance, 200))

    def _evm_mine(self, options: Any = None) -> str:
        wanted = options if isinstance(options, dict) else {"timestamp": options}
        if wanted.get("timestamp") is not None:
            self._chain.set_next_timestamp(read.quantity(wanted["timestamp"]))
        blocks = read.quantity(1 if wanted.get("blocks") is None else wanted["blocks"])
        if blocks > MAX_EMPTY_BLOCKS:
            raise RpcError(f"mine at most {MAX_EMPTY_BLOCKS} blocks at a time", LIMIT_EXCEEDED)
        for _ in range(blocks):
            self._chain.mine()
        return "0x0"

    def _evm_increaseTime(self, seconds: Any) -> int:
        return self._chain.increase_time(read.quantity(seconds, 40))

    def _evm_setNextBlockTimestamp(self, timestamp: Any) -> None:
        self._chain.set_next_timestamp(read.quantity(timestamp))

    def _evm_snapshot(self) -> str:
        return hex(self._chain.snapshot())

    def _evm_revert(self, snapshot: Any) -> bool:
        return self._chain.revert(read.quantity(snapshot))


# Least and most arguments. An answer to the first holds until the chain changes.
_OF_THE_CHAIN = {
    "eth_chainId": (0, 0),
    "net_version": (0, 0),
    "net_listening": (0, 0),
    "eth_syncing": (0, 0),
    "eth_accounts": (0, 0),
    "web3_clientVersion": (0, 0),
    "eth_blockNumber": (0, 0),
    "eth_getBlockByNumber": (1, 2),
    "eth_getBlockByHash": (1, 2),
    "eth_getBlockTransactionCountByNumber": (1, 1),
    "eth_getBlockReceipts": (1, 1),
    "eth_getTransactionByHash": (1, 1),
    "eth_getTransactionReceipt": (1, 1),
    "eth_getLogs": (1, 1),
    "eth_getBalance": (1, 2),
    "eth_getTransactionCount": (1, 2),
    "eth_getCode": (1, 2),
    "eth_getStorageAt": (2, 3),
    "eth_call": (1, 2),
    "eth_estimateGas": (1, 2),
    "eth_gasPrice": (0, 0),
    "eth_maxPriorityFeePerGas": (0, 0),
    "eth_feeHistory": (2, 3),
}
_ACTING = {
    "eth_sendRawTransaction": (1, 1),
    "anvil_setBalance": (2, 2),
    "evm_mine": (0, 1),
    "evm_increaseTime": (1, 1),
    "evm_setNextBlockTimestamp": (1, 1),
    "evm_snapshot": (0, 0),
    "evm_revert": (1, 1),
}


def _raws(answers: list[bytes]) -> list[msgspec.Raw]:
    return [msgspec.Raw(answer) for answer in answers]


def _failure(request_id: int | float | str | None, error: RpcError) -> bytes:
    if isinstance(request_id, float) and not math.isfinite(request_id):
        request_id = None
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "error": error.answer()})


def _check(outcome: Outcome) -> None:
    """Raises RpcError if it failed, with what the contract said."""
    if outcome.reverted:
        reason = _reason(outcome.output)
        raise RpcError("execution reverted" + (f": {reason}" if reason else ""), REVERTED, data(outcome.output))
    if outcome.error:
        raise RpcError(f"execution failed: {outcome.error[:200]}")


def _reason(output: bytes) -> str:
    """In words, of Solidity's require and assert; nothing of a contract's own errors: clients know those."""
    try:
        if output[:4] == _ERROR_SIGNATURE:
            return decode_abi(["string"], output[4:])[0]
        if output[:4] == _PANIC_SIGNATURE:
            return f"panic code 0x{decode_abi(['uint256'], output[4:])[0]:02x}"
    except (DecodingError, UnicodeDecodeError, OverflowError):
        pass
    return ""
