"""Blocks, transactions, receipts and logs as the JSON that Ethereum's clients expect; a block's only transaction."""

from typing import Any, NamedTuple

import msgspec
import rlp
from eth.abc import BlockHeaderAPI, ComputationAPI, ReceiptAPI, SignedTransactionAPI

from rlswarm_jax.chain.devnet.journal import Row


def data(value: bytes) -> str:
    return "0x" + value.hex()


def word(value: int) -> str:
    return f"0x{value:064x}"


class Block(NamedTuple):
    """A block and its only transaction. encoded: its header. raw: the transaction's bytes."""

    header: BlockHeaderAPI
    hash: bytes
    encoded: bytes
    raw: bytes
    transaction: SignedTransactionAPI
    receipt: ReceiptAPI
    computation: ComputationAPI


def first_row(header: BlockHeaderAPI) -> Row:
    """Of a chain's first block, which has no transaction."""
    size = _framed(len(rlp.encode(header)) + 3)
    view = msgspec.json.encode(_block(header, header.hash, size, []))
    return Row(0, header.hash, header.timestamp, None, None, view, None, None)


def row(block: Block, sent_hash: bytes) -> Row:
    """sent_hash: of its transaction."""
    header, block_hash, encoded, raw, transaction, receipt, computation = block
    encode = msgspec.json.encode
    where = {"blockHash": data(block_hash), "blockNumber": hex(header.block_number), "transactionIndex": "0x0"}
    sent = _transaction(transaction) | {"hash": data(sent_hash)} | where
    sent["gasPrice"] = hex(_price(transaction, header.base_fee_per_gas))
    logs = [
        {
            "address": data(log.address),
            "topics": [word(topic) for topic in log.topics],
            "data": data(log.data),
            "blockTimestamp": hex(header.timestamp),
            "transactionHash": data(sent_hash),
            "logIndex": hex(position),
            "removed": False,
        }
        | where
        for position, log in enumerate(receipt.logs)
    ]
    created = not transaction.to and not computation.is_error
    result = {
        "transactionHash": data(sent_hash),
        "from": sent["from"],
        "to": sent["to"],
        "type": sent["type"],
        "cumulativeGasUsed": hex(header.gas_used),
        "gasUsed": hex(header.gas_used),
        "effectiveGasPrice": sent["gasPrice"],
        "contractAddress": data(computation.msg.storage_address) if created else None,
        "status": hex(not computation.is_error),
        "logsBloom": data(header.bloom.to_bytes(256)),
        "logs": logs,
    }
    found = [
        (log.address, tuple(topic.to_bytes(32) for topic in log.topics), encode(view))
        for log, view in zip(receipt.logs, logs, strict=True)
    ]
    body = len(raw) if raw[0] >= 0xC0 else _framed(len(raw))  # a typed transaction is a string in it
    view = _block(header, block_hash, _framed(len(encoded) + _framed(body) + 2), [data(sent_hash)])
    answers = encode(view), encode(sent), encode(result | where)
    return Row(header.block_number, block_hash, header.timestamp, raw, sent_hash, *answers, tuple(found))


def _framed(length: int) -> int:
    """Bytes of an RLP list, or of a string that is longer than a byte, with so many bytes in it."""
    return length + 1 + (0 if length < 56 else (length.bit_length() + 7) // 8)


def _price(transaction: SignedTransactionAPI, base_fee: int) -> int:
    return min(transaction.max_fee_per_gas, transaction.max_priority_fee_per_gas + base_fee)


def _block(header: BlockHeaderAPI, block_hash: bytes, size: int, hashes: list[str]) -> dict[str, Any]:
    return {
        "number": hex(header.block_number),
        "hash": data(block_hash),
        "parentHash": data(header.parent_hash),
        "sha3Uncles": data(header.uncles_hash),
        "logsBloom": data(header.bloom.to_bytes(256)),
        "transactionsRoot": data(header.transaction_root),
        "stateRoot": data(header.state_root),
        "receiptsRoot": data(header.receipt_root),
        "miner": data(header.coinbase),
        "difficulty": "0x0",
        "totalDifficulty": "0x0",
        "extraData": data(header.extra_data),
        "size": hex(size),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp),
        "mixHash": data(header.mix_hash),
        "nonce": data(header.nonce),
        "baseFeePerGas": hex(header.base_fee_per_gas),
        "withdrawalsRoot": data(header.withdrawals_root),
        "blobGasUsed": "0x0",
        "excessBlobGas": "0x0",
        "parentBeaconBlockRoot": data(header.parent_beacon_block_root),
        "requestsHash": data(header.requests_hash),
        "withdrawals": [],
        "uncles": [],
        "transactions": hashes,
    }


def _transaction(transaction: SignedTransactionAPI) -> dict[str, Any]:
    type_id = transaction.type_id or 0
    view: dict[str, Any] = {
        "type": hex(type_id),
        "chainId": hex(transaction.chain_id),
        "from": data(transaction.sender),
        "to": data(transaction.to) if transaction.to else None,
        "nonce": hex(transaction.nonce),
        "gas": hex(transaction.gas),
        "value": hex(transaction.value),
        "input": data(transaction.data),
        "v": hex(transaction.y_parity if type_id else transaction.v),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
    }
    if type_id >= 1:
        view["yParity"] = view["v"]
        view["accessList"] = [
            {"address": data(address), "storageKeys": [word(slot) for slot in slots]}
            for address, slots in transaction.access_list
        ]
    if type_id == 2:
        view["maxFeePerGas"] = hex(transaction.max_fee_per_gas)
        view["maxPriorityFeePerGas"] = hex(transaction.max_priority_fee_per_gas)
    return view
