"""Ethereum's JSON-RPC over a chain: a request's bytes to an answer's bytes."""

import importlib.metadata
import inspect
import math
from typing import Any

import msgspec
from eth.abc import BlockHeaderAPI, ComputationAPI
from eth.exceptions import Revert
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
from rlswarm_jax.chain.devnet.journal import Journal
from rlswarm_jax.chain.devnet.views import data, word
from rlswarm_jax.chain.nesting import is_deep

MAX_BATCH, MAX_BATCH_BYTES = 1000, 64 * 2**20  # requests, and bytes of their answers
MAX_FEE_HISTORY = 1024  # blocks
_NEWEST = ("latest", "pending", "safe", "finalized", None)
_ERROR, _PANIC = bytes.fromhex("08c379a0"), bytes.fromhex("4e487b71")  # Error(string), Panic(uint256)


class Request(msgspec.Struct):
    method: str
    params: msgspec.Raw = msgspec.Raw(b"[]")
    id: int | float | str | msgspec.UnsetType | None = msgspec.UNSET


class Interface:
    """The methods are those whose names begin with an underscore and eth_, net_ or web3_."""

    def __init__(self, chain: Chain, journal: Journal):
        self._chain, self._journal = chain, journal
        names = [name for name in dir(self) if name.startswith(("_eth_", "_net_", "_web3_"))]
        self.methods = {name[1:]: getattr(self, name) for name in names}
        self._takes = {name: inspect.signature(method) for name, method in self.methods.items()}

    def answer(self, body: bytes) -> bytes:
        """To one request or a batch. Empty if nothing in it wants an answer."""
        if is_deep(body):
            return _failure(None, RpcError("parse error: the body nests too deeply", PARSE_ERROR))
        if body.lstrip()[:1] != b"[":
            return self._answer(body)
        try:
            requests = msgspec.json.decode(body, type=list[msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _failure(None, RpcError("parse error: the body is no JSON", PARSE_ERROR))
        if not 0 < len(requests) <= MAX_BATCH:
            return _failure(None, RpcError(f"a batch has 1 to {MAX_BATCH} requests", INVALID_REQUEST))
        answers, size = [], 0
        for one in requests:
            if size > MAX_BATCH_BYTES:
                answers.append(_failure(None, RpcError("the answers of this batch are too large", LIMIT_EXCEEDED)))
                break
            if found := self._answer(bytes(one)):
                answers.append(found)
                size += len(found)
        return b"[" + b",".join(answers) + b"]" if answers else b""

    def _answer(self, body: bytes) -> bytes:
        """Empty to a notification, which is a request without an id."""
        try:
            request = msgspec.json.decode(body, type=Request)
        except msgspec.ValidationError as error:
            return _failure(None, RpcError(f"invalid request: {error}", INVALID_REQUEST))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _failure(None, RpcError("parse error: the body is no JSON", PARSE_ERROR))
        quiet = request.id is msgspec.UNSET
        try:
            result = msgspec.json.encode(self._result(request.method, bytes(request.params)))
        except RpcError as error:
            return _failure(None if quiet else request.id, error)
        return b"" if quiet else b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (msgspec.json.encode(request.id), result)

    def _result(self, method: str, raw: bytes) -> Any:
        if method not in self.methods:
            raise RpcError(f"the method {method[:80]} does not exist or is not available", METHOD_NOT_FOUND)
        try:
            params = msgspec.json.decode(raw, type=list | None) or []
            self._takes[method].bind(*params)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as error:
            raise RpcError(f"invalid params: {error}, in a list, by position", INVALID_PARAMS) from None
        return self.methods[method](*params)

    # about the network and its fees

    def _eth_chainId(self) -> str:
        return hex(CHAIN_ID)

    def _net_version(self) -> str:
        return str(CHAIN_ID)

    def _web3_clientVersion(self) -> str:
        return f"rlswarm_jax-devnet/{__version__}/py-evm-{importlib.metadata.version('py-evm')}"

    def _eth_syncing(self) -> bool:
        return False

    def _eth_accounts(self) -> list[str]:
        return []

    def _eth_gasPrice(self) -> str:
        return hex(self._chain.head.base_fee_per_gas)

    def _eth_maxPriorityFeePerGas(self) -> str:
        return "0x0"

    def _eth_feeHistory(self, count: Any, newest: Any, percentiles: Any = None) -> dict[str, Any]:
        last, wanted = self._header(newest).block_number, read.quantity(count)
        if not 1 <= wanted <= MAX_FEE_HISTORY:
            raise RpcError(f"a fee history is of 1 to {MAX_FEE_HISTORY} blocks", LIMIT_EXCEEDED)
        if percentiles is not None and not (isinstance(percentiles, list) and len(percentiles) <= 100):
            raise read.bad("percentiles are a list of at most 100 numbers")
        headers = [self._chain.header(number) for number in range(max(0, last + 1 - wanted), last + 1)]
        history = {
            "oldestBlock": hex(headers[0].block_number),
            "baseFeePerGas": [hex(header.base_fee_per_gas) for header in (*headers, headers[-1])],
            "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
        }
        return history if not percentiles else history | {"reward": [["0x0"] * len(percentiles) for _ in headers]}

    # about blocks and transactions

    def _eth_blockNumber(self) -> str:
        return hex(self._chain.head.block_number)

    def _eth_getBlockByNumber(self, number: Any, full: Any = False) -> Any:
        return self._block("number", self._number(number), full)

    def _eth_getBlockByHash(self, block_hash: Any, full: Any = False) -> Any:
        return self._block("hash", read.octets(block_hash, 32), full)

    def _block(self, name: str, value: Any, full: Any) -> Any:
        if not isinstance(full, bool):
            raise read.bad("whether to give whole transactions is true or false")
        answer, sent = self._found("block", name, value), self._found("sent", name, value) if full else None
        return answer if sent is None or answer is None else msgspec.json.decode(answer) | {"transactions": [sent]}

    def _eth_getTransactionByHash(self, sent_hash: Any) -> Any:
        return self._found("sent", "sent_hash", read.octets(sent_hash, 32))

    def _eth_getTransactionReceipt(self, sent_hash: Any) -> Any:
        return self._found("receipt", "sent_hash", read.octets(sent_hash, 32))

    def _found(self, column: str, name: str, value: Any) -> msgspec.Raw | None:
        found = self._journal.find(column, name, value)
        return None if found is None else msgspec.Raw(found)

    def _eth_getLogs(self, wanted: Any) -> list[msgspec.Raw]:
        if not isinstance(wanted, dict):
            raise read.bad("a filter is an object with 'fromBlock', 'toBlock', 'address' and 'topics'")
        first, last = wanted.get("fromBlock"), wanted.get("toBlock")
        if (block_hash := wanted.get("blockHash")) is not None:
            if first is not None or last is not None:
                raise read.bad("a filter names either blockHash or fromBlock and toBlock")
            first = last = self._header({"blockHash": block_hash}).block_number
        first, last = self._number(first), self._number(last)
        if first > last:
            raise read.bad(f"fromBlock {first} is after toBlock {last}")
        topics = wanted.get("topics") or []
        if not isinstance(topics, list) or len(topics) > 4:
            raise read.bad("topics are a list of at most 4")
        addresses = read.some(wanted.get("address"), 20)
        return [*map(msgspec.Raw, self._journal.logs(first, last, addresses, [read.some(one, 32) for one in topics]))]

    def _number(self, value: Any) -> int:
        """Of a block: a tag or a number, which may be of no block yet."""
        if value in _NEWEST:
            return self._chain.head.block_number
        return 0 if value == "earliest" else read.quantity(value, 63)

    def _header(self, value: Any) -> BlockHeaderAPI:
        """Of a tag, a number, or an object of EIP-1898. Raises RpcError if there is no such block."""
        if not isinstance(value, dict):
            return self._chain.header(self._number(value))
        if "blockHash" not in value:
            return self._chain.header(self._number(value.get("blockNumber")))
        found = self._journal.find("number", "hash", read.octets(value["blockHash"], 32))
        if found is None:
            raise RpcError("header for hash not found")
        return self._chain.header(found)

    # about accounts

    def _eth_getBalance(self, address: Any, block: Any = None) -> str:
        return hex(self._chain.state(self._header(block)).get_balance(read.address(address)))

    def _eth_getTransactionCount(self, address: Any, block: Any = None) -> str:
        return hex(self._chain.state(self._header(block)).get_nonce(read.address(address)))

    def _eth_getCode(self, address: Any, block: Any = None) -> str:
        return data(self._chain.state(self._header(block)).get_code(read.address(address)))

    def _eth_getStorageAt(self, address: Any, slot: Any, block: Any = None) -> str:
        state = self._chain.state(self._header(block))
        return word(state.get_storage(read.address(address), read.quantity(slot)))

    # what would happen, and what does

    def _eth_call(self, call: Any, block: Any = None) -> str:
        outcome = self._chain.call(self._header(block), read.call(call, self._chain.head.gas_limit))
        _check(outcome)
        return data(outcome.output)

    def _eth_estimateGas(self, call: Any, block: Any = None) -> str:
        gas, outcome = self._chain.estimate(self._header(block), read.call(call, self._chain.head.gas_limit))
        _check(outcome)
        return hex(gas)

    def _eth_sendRawTransaction(self, raw: Any) -> str:
        return data(self._chain.send(read.octets(raw)))


def _failure(request_id: Any, error: RpcError) -> bytes:
    if isinstance(request_id, float) and not math.isfinite(request_id):
        request_id = None
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "error": error.answer()})


def _check(outcome: ComputationAPI) -> None:
    """Raises RpcError if it failed, with what the contract said."""
    if not outcome.is_error:
        return
    if not isinstance(outcome.error, Revert):
        raise RpcError(f"execution failed: {str(outcome.error)[:200] or type(outcome.error).__name__}")
    output, reason = outcome.output, ""
    try:  # of Solidity's require and assert, in words; a contract's own errors its clients know
        if output[:4] == _ERROR:
            reason = ": " + decode_abi(["string"], output[4:])[0]
        elif output[:4] == _PANIC:
            reason = f": panic code 0x{decode_abi(['uint256'], output[4:])[0]:02x}"
    except (DecodingError, UnicodeDecodeError, OverflowError):
        pass
    raise RpcError(f"execution reverted{reason}", REVERTED, data(output))
