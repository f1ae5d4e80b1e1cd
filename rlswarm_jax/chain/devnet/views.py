"""Blocks, transactions, receipts and logs as the JSON that Ethereum's clients expect; a block's only transaction."""

from typing import Any

import msgspec
from eth.abc import BlockHeaderAPI, ComputationAPI, ReceiptAPI, SignedTransactionAPI

# of a header's fields, in their order
# fmt: off
_HEADER = (
    "parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom", "difficulty",
    "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce", "baseFeePerGas", "withdrawalsRoot",
    "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot", "requestsHash",
)
# fmt: on


def data(value: bytes) -> str:
    return "0x" + value.hex()


def word(value: int) -> str:
    return f"0x{value:064x}"


def first_row(header: BlockHeaderAPI) -> tuple:
    """Of the store, for a chain's first block, which has no transaction."""
    return 0, header.hash, None, msgspec.json.encode(_block(header, [])), None, None


def row(
    header: BlockHeaderAPI,
    transaction: SignedTransactionAPI,
    sent_hash: bytes,
    receipt: ReceiptAPI,
    computation: ComputationAPI,
) -> tuple:
    """Of the store."""
    where = {"blockHash": data(header.hash), "blockNumber": hex(header.block_number), "transactionIndex": "0x0"}
    sent = _transaction(transaction) | {"hash": data(sent_hash)} | where
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
        "effectiveGasPrice": "0x0",
        "contractAddress": data(computation.msg.storage_address) if created else None,
        "status": hex(not computation.is_error),
        "logsBloom": data(header.bloom.to_bytes(256)),
        "logs": logs,
    }
    answers = (msgspec.json.encode(one) for one in (_block(header, [data(sent_hash)]), sent, result | where))
    return header.block_number, header.hash, sent_hash, *answers


def _block(header: BlockHeaderAPI, hashes: list[str]) -> dict[str, Any]:
    fields = {name: _hex(value) for name, value in zip(_HEADER, header, strict=True)}
    fields |= {"hash": data(header.hash), "logsBloom": data(header.bloom.to_bytes(256))}
    return fields | {"withdrawals": [], "uncles": [], "transactions": hashes}


def _transaction(transaction: SignedTransactionAPI) -> dict[str, Any]:
    type_id = transaction.type_id or 0
    view: dict[str, Any] = {name: _hex(getattr(transaction, name)) for name in ("nonce", "gas", "value", "r", "s")}
    view |= {
        "type": hex(type_id),
        "chainId": hex(transaction.chain_id),
        "gasPrice": "0x0",  # who has nothing can pay nothing
        "from": data(transaction.sender),
        "to": data(transaction.to) if transaction.to else None,
        "input": data(transaction.data),
        "v": hex(transaction.y_parity if type_id else transaction.v),
    }
    if type_id >= 1:
        slots = [(data(address), [word(slot) for slot in slots]) for address, slots in transaction.access_list]
        view["accessList"] = [{"address": address, "storageKeys": keys} for address, keys in slots]
        view["yParity"] = view["v"]
    if type_id == 2:
        view |= {"maxFeePerGas": "0x0", "maxPriorityFeePerGas": "0x0"}
    return view


def _hex(value: int | bytes) -> str:
    return hex(value) if isinstance(value, int) else data(value)
