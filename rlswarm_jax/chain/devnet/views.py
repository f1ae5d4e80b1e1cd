"""Blocks, transactions, receipts and logs as the JSON that Ethereum's clients expect."""

from collections.abc import Sequence
from typing import Any

import rlp
from eth_hash.auto import keccak

from rlswarm_jax.chain.devnet.header import Header
from rlswarm_jax.chain.devnet.transaction import CREATE, Transaction

Log = tuple[bytes, tuple[int, ...], bytes]
BLOOM_BYTES = 256


def data(value: bytes) -> str:
    return "0x" + value.hex()


def word(value: int) -> str:
    return f"0x{value:064x}"


def bloom(logs: Sequence[Log]) -> bytes:
    """The 2048-bit filter of all addresses and topics (Yellow Paper, 4.3.1)."""
    bits = 0
    for address, topics, _ in logs:
        for item in (address, *(topic.to_bytes(32) for topic in topics)):
            digest = keccak(item)
            for start in (0, 2, 4):
                bits |= 1 << (int.from_bytes(digest[start : start + 2]) & 2047)
    return bits.to_bytes(BLOOM_BYTES)


def only_item_root(item: bytes) -> bytes:
    """Root of the trie that has just one item, at index 0: a leaf at the path of rlp(0) = 0x80."""
    return keccak(rlp.encode([b"\x20\x80", item]))


def encoded_receipt(transaction: Transaction, succeeded: bool, gas_used: int, logs: Sequence[Log]) -> bytes:
    listed = [[address, [topic.to_bytes(32) for topic in topics], found] for address, topics, found in logs]
    status, gas = b"\1" if succeeded else b"", gas_used.to_bytes((gas_used.bit_length() + 7) // 8)
    encoded = rlp.encode([status, gas, bloom(logs), listed])
    return bytes([transaction.type_id]) + encoded if transaction.type_id else encoded


def block_view(header: Header, size: int, transactions: Sequence[bytes]) -> dict[str, Any]:
    """transactions: their hashes. size: bytes of the encoded block."""
    return {
        "number": hex(header.number),
        "hash": data(header.hash),
        "parentHash": data(header.parent_hash),
        "sha3Uncles": data(header.uncles_hash),
        "logsBloom": data(header.bloom),
        "transactionsRoot": data(header.transactions_root),
        "stateRoot": data(header.state_root),
        "receiptsRoot": data(header.receipts_root),
        "miner": data(header.coinbase),
        "difficulty": "0x0",
        "totalDifficulty": "0x0",
        "extraData": data(header.extra_data),
        "size": hex(size),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp),
        "mixHash": data(header.randomness),
        "nonce": data(header.nonce),
        "baseFeePerGas": hex(header.base_fee),
        "withdrawalsRoot": data(header.withdrawals_root),
        "blobGasUsed": "0x0",
        "excessBlobGas": "0x0",
        "parentBeaconBlockRoot": data(header.parent_beacon_root),
        "requestsHash": data(header.requests_hash),
        "withdrawals": [],
        "uncles": [],
        "transactions": [data(one) for one in transactions],
    }


def transaction_view(transaction: Transaction, header: Header | None) -> dict[str, Any]:
    """header: of its block; None while it waits."""
    price = transaction.gas_price(header.base_fee) if header else transaction.max_fee_per_gas
    view: dict[str, Any] = {
        "hash": data(transaction.hash),
        "type": hex(transaction.type_id),
        "chainId": hex(transaction.chain_id),
        "from": data(transaction.sender),
        "to": data(transaction.to) if transaction.to != CREATE else None,
        "nonce": hex(transaction.nonce),
        "gas": hex(transaction.gas),
        "gasPrice": hex(price),
        "value": hex(transaction.value),
        "input": data(transaction.data),
        "v": hex(transaction.v),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "blockHash": data(header.hash) if header else None,
        "blockNumber": hex(header.number) if header else None,
        "transactionIndex": "0x0" if header else None,
    }
    if transaction.type_id >= 1:
        view["yParity"] = hex(transaction.v)
        view["accessList"] = [
            {"address": data(address), "storageKeys": [word(slot) for slot in slots]}
            for address, slots in transaction.access_list
        ]
    if transaction.type_id == 2:
        view["maxFeePerGas"] = hex(transaction.max_fee_per_gas)
        view["maxPriorityFeePerGas"] = hex(transaction.max_priority_fee_per_gas)
    return view


def log_view(log: Log, position: int, transaction_hash: bytes, header: Header) -> dict[str, Any]:
    address, topics, found = log
    return {
        "address": data(address),
        "topics": [word(topic) for topic in topics],
        "data": data(found),
        "blockNumber": hex(header.number),
        "blockHash": data(header.hash),
        "blockTimestamp": hex(header.timestamp),
        "transactionHash": data(transaction_hash),
        "transactionIndex": "0x0",
        "logIndex": hex(position),
        "removed": False,
    }


def receipt_view(
    transaction: Transaction, header: Header, succeeded: bool, created: bytes | None, logs: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "transactionHash": data(transaction.hash),
        "transactionIndex": "0x0",
        "blockHash": data(header.hash),
        "blockNumber": hex(header.number),
        "from": data(transaction.sender),
        "to": data(transaction.to) if transaction.to != CREATE else None,
        "cumulativeGasUsed": hex(header.gas_used),
        "gasUsed": hex(header.gas_used),
        "effectiveGasPrice": hex(transaction.gas_price(header.base_fee)),
        "contractAddress": data(created) if created else None,
        "status": hex(succeeded),
        "type": hex(transaction.type_id),
        "logsBloom": data(header.bloom),
        "logs": logs,
    }
