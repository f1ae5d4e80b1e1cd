"""A chain in the test's own process (py-evm), with a mempool, reorganisations, and faults on request.

It is asked as an endpoint is (`request`), and answers in JSON-RPC's types. Blocks come when the test says so, or, with
`instant`, with each transaction.
"""

from collections.abc import Callable
from typing import Any

import rlp
from eth.abc import BlockAPI
from eth.exceptions import TransactionNotFound
from eth.vm.spoof import SpoofTransaction
from eth_abi import decode, encode
from eth_abi.grammar import parse
from eth_account import Account
from eth_tester import PyEVMBackend
from eth_utils import keccak, to_checksum_address
from eth_utils.abi import collapse_if_tuple, event_abi_to_log_topic, function_signature_to_4byte_selector

from rlswarm_jax.chain.contracts import interface
from rlswarm_jax.chain.errors import EndpointDown, Refused

CHAIN_ID = 131277322940537  # eth-tester's
GAS_LIMIT = 3_000_000


def encode_call(signature: str, arguments: tuple) -> bytes:
    """The bytes of a call by a function's full signature, without the client's own code."""
    inner = signature[signature.index("(") :]
    types = [one.to_type_str() for one in parse(inner).components] if arguments else []
    return function_signature_to_4byte_selector(signature) + encode(types, arguments)


class LocalChain:
    def __init__(self, instant: bool = False):
        self._backend = PyEVMBackend()
        self._pool: dict[tuple[bytes, int], bytes] = {}
        self._rich = [Account.from_key(key.to_bytes()) for key in self._backend.account_keys]
        self.instant, self.down = instant, False
        self.answers: dict[str, Callable[[list], Any]] = {}  # methods whose answers a test makes up
        self.fees = True  # whether blocks show a base fee
        self.hook: Callable[[str], None] = lambda name: None

    def reset(self, height: int) -> None:
        """As it was when it had that height and no faults."""
        self.instant, self.down, self.fees, self.hook = False, False, True, lambda name: None
        self.answers.clear()
        self.forget()
        self.rewind(height, keep=False)

    # --- what a test does to the chain

    @property
    def height(self) -> int:
        return self._backend.chain.get_canonical_head().block_number

    def block(self, number: int) -> BlockAPI:
        return self._backend.chain.get_canonical_block_by_number(number)

    def mine(self, count: int = 1) -> None:
        """Makes blocks; the first holds what the pool has in order of nonces."""
        for _ in range(count):
            for (sender, nonce), raw in sorted(self._pool.items()):
                if nonce == self._nonce(sender, pending=True):
                    self._backend.send_raw_transaction(raw)
                    del self._pool[sender, nonce]
            list(self._backend.mine_blocks())
            for slot in [slot for slot in self._pool if slot[1] < self._nonce(slot[0])]:
                del self._pool[slot]

    def rewind(self, height: int, keep: bool) -> None:
        """Takes the blocks above a height away; their transactions go back to the pool, or nowhere."""
        lost = [tx for number in range(height + 1, self.height + 1) for tx in self.block(number).transactions]
        self._backend.revert_to_snapshot(self.block(height).hash)
        if keep:
            self._pool |= {(tx.sender, tx.nonce): tx.encode() for tx in lost}

    def forget(self) -> None:
        """Loses what is in the pool."""
        self._pool.clear()

    def pending(self) -> list[bytes]:
        return list(self._pool.values())

    def fund(self, account: str, wei: int = 10**18) -> None:
        self._by_rich({"to": account, "value": wei, "gas": 21000})

    def deploy(self, bytecode: str, types: list[str] | None = None, values: tuple = ()) -> str:
        data = bytes.fromhex(bytecode[2:]) + encode(types or [], values)
        self._by_rich({"data": data, "gas": 8_000_000})
        (creation,) = self.block(self.height).transactions
        return to_checksum_address(keccak(rlp.encode([creation.sender, creation.nonce]))[12:])

    def transact(self, key: bytes, to: str, data: bytes = b"", nonce: int | None = None, fee: int = 5 * 10**9) -> bytes:
        """Somebody else's transaction: into the pool, and into a block if instant. Returns its raw bytes."""
        sender = Account.from_key(key).address
        taken = self._nonce(bytes.fromhex(sender[2:])) if nonce is None else nonce
        raw = self._signed(key, {"to": to, "data": data, "gas": GAS_LIMIT, "nonce": taken}, fee)
        self._send(["0x" + raw.hex()])
        return raw

    def count(self, account: str) -> int:
        """Transactions of an account that are in blocks."""
        return self._nonce(bytes.fromhex(account[2:]))

    def transactions(self, account: str) -> list[tuple[int, bool]]:
        """Nonce and success of an account's transactions that are in blocks, in order."""
        found = []
        for number in range(1, self.height + 1):
            block = self.block(number)
            receipts = block.get_receipts(self._backend.chain.chaindb)
            for tx, receipt in zip(block.transactions, receipts, strict=True):
                if tx.sender.hex() == account[2:].lower():
                    found.append((tx.nonce, receipt.state_root == b"\x01"))
        return found

    def events(self, contract: str, name: str) -> list[dict]:
        """All events of a name in the chain, in order, decoded: structs as tuples, addresses in lower case."""
        (event,) = [one for one in interface() if one["type"] == "event" and one["name"] == name]
        indexed, plain = ([one for one in event["inputs"] if one["indexed"] is wanted] for wanted in (True, False))
        names = [one["name"] for one in (*indexed, *plain)]
        found = []
        for entry in self._logs([{"address": [contract], "fromBlock": "0x0", "toBlock": hex(self.height)}]):
            first, *topics = (bytes.fromhex(topic[2:]) for topic in entry["topics"])
            if first == event_abi_to_log_topic(event):
                values = [decode([one["type"]], topic)[0] for one, topic in zip(indexed, topics, strict=True)]
                values += decode([collapse_if_tuple(one) for one in plain], bytes.fromhex(entry["data"][2:]))
                found.append(dict(zip(names, values, strict=True)))
        return found

    # --- what an endpoint does

    def request(self, method: str, params: list) -> Any:
        self.hook(f"before {method}")
        if self.down:
            raise EndpointDown("the chain endpoint does not answer (a test's doing).")
        handler = self.answers.get(method) or self._handlers()[method]
        answer = handler(params)
        self.hook(f"after {method}")
        return answer

    def _handlers(self) -> dict[str, Callable[[list], Any]]:
        chain = self._backend
        return {
            "eth_chainId": lambda params: hex(CHAIN_ID),
            "eth_getBlockByNumber": self._block,
            "eth_getCode": lambda params: "0x" + chain.get_code(_raw(params[0])).hex(),
            "eth_getBalance": lambda params: hex(chain.get_balance(_raw(params[0]))),
            "eth_getTransactionCount": self._count,
            "eth_gasPrice": lambda params: hex(2 * 10**9),
            "eth_maxPriorityFeePerGas": lambda params: hex(10**9),
            "eth_call": self._call,
            "eth_estimateGas": self._estimate,
            "eth_sendRawTransaction": self._send,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getLogs": self._logs,
        }

    def _block(self, params: list) -> dict | None:
        number = self.height if params[0] == "latest" else int(params[0], 16)
        if number > self.height:
            return None
        header = self.block(number).header
        fields = {"number": hex(number), "hash": "0x" + header.hash.hex(), "timestamp": hex(header.timestamp)}
        return fields | ({"baseFeePerGas": hex(header.base_fee_per_gas)} if self.fees else {})

    def _count(self, params: list) -> str:
        at = params[1] if params[1] == "latest" else int(params[1], 16)
        return hex(self._backend.get_nonce(_raw(params[0]), at))

    def _nonce(self, sender: bytes, pending: bool = False) -> int:
        return self._backend.get_nonce(sender, "pending" if pending else "latest")

    def _call(self, params: list) -> str:
        return "0x" + self._run(params[0]).output.hex()

    def _run(self, message: dict):
        sender = message.get("from", "0x" + "11" * 20)
        to = _raw(message["to"]) if "to" in message else b""
        fields = {"from": _raw(sender), "to": to, "data": bytes.fromhex(message["data"][2:])}
        chain = self._backend.chain
        vm = chain.get_vm(chain.get_block().header)
        unsigned = vm.create_unsigned_transaction(
            nonce=vm.state.get_nonce(fields["from"]),
            gas_price=chain.get_block().header.base_fee_per_gas or 0,
            gas=12_000_000,
            to=fields["to"],
            value=int(message.get("value", "0x0"), 16),
            data=fields["data"],
        )
        vm.state.set_balance(fields["from"], 10**30)
        computation = vm.state.apply_transaction(SpoofTransaction(unsigned, from_=fields["from"]))
        if computation.is_error:
            data = computation.error.args[0] if computation.error.args else b""
            raise Refused("eth_call", 3, "execution reverted", data if isinstance(data, bytes) else None)
        return computation

    def _estimate(self, params: list) -> str:
        computation = self._run(params[0])
        data = bytes.fromhex(params[0]["data"][2:])
        creation = 32_000 + len(data) // 16 if "to" not in params[0] else 0
        return hex(21_000 + creation + 16 * len(data) + computation.get_gas_used() * 65 // 64 + 5_000)

    def _send(self, params: list) -> str:
        raw = bytes.fromhex(params[0][2:])
        tx = self._backend.chain.get_transaction_builder().decode(raw)
        slot = (tx.sender, tx.nonce)
        if tx.nonce < self._nonce(tx.sender):
            raise Refused("eth_sendRawTransaction", -32000, "nonce too low: next nonce is higher")
        if self._pool.get(slot) == raw:
            raise Refused("eth_sendRawTransaction", -32000, "already known")
        if slot in self._pool and tx.max_fee_per_gas * 10 < self._fee(self._pool[slot]) * 11:
            raise Refused("eth_sendRawTransaction", -32000, "replacement transaction underpriced")
        if tx.max_fee_per_gas < (self.block(self.height).header.base_fee_per_gas or 0):
            raise Refused("eth_sendRawTransaction", -32000, "max fee per gas less than block base fee")
        if tx.gas * tx.max_fee_per_gas + tx.value > self._backend.get_balance(tx.sender):
            raise Refused("eth_sendRawTransaction", -32000, "insufficient funds for gas * price + value")
        self._pool[slot] = raw
        if self.instant:
            self.mine()
        return "0x" + tx.hash.hex()

    def _fee(self, raw: bytes) -> int:
        return self._backend.chain.get_transaction_builder().decode(raw).max_fee_per_gas

    def _receipt(self, params: list) -> dict | None:
        chaindb = self._backend.chain.chaindb
        try:
            number, at = chaindb.get_transaction_index(bytes.fromhex(params[0][2:]))
        except TransactionNotFound:
            return None
        if number > self.height or at >= len(self.block(number).transactions):
            return None
        block = self.block(number)
        if "0x" + block.transactions[at].hash.hex() != params[0]:  # of a block that is gone
            return None
        receipts, tx = block.get_receipts(chaindb), block.transactions[at]
        before = receipts[at - 1].gas_used if at else 0
        base = block.header.base_fee_per_gas
        return {
            "transactionHash": params[0],
            "blockNumber": hex(number),
            "blockHash": "0x" + block.hash.hex(),
            "status": hex(receipts[at].state_root == b"\x01"),
            "gasUsed": hex(receipts[at].gas_used - before),
            "effectiveGasPrice": hex(min(tx.max_fee_per_gas, base + tx.max_priority_fee_per_gas)),
        }

    def _logs(self, params: list) -> list[dict]:
        wanted, found = params[0], []
        for number in range(int(wanted["fromBlock"], 16), min(int(wanted["toBlock"], 16), self.height) + 1):
            block = self.block(number)
            index = 0
            for tx, receipt in zip(block.transactions, block.get_receipts(self._backend.chain.chaindb), strict=True):
                for entry in receipt.logs:
                    one = {
                        "address": to_checksum_address(entry.address),
                        "blockNumber": hex(number),
                        "blockHash": "0x" + block.hash.hex(),
                        "logIndex": hex(index),
                        "transactionHash": "0x" + tx.hash.hex(),
                        "topics": [f"0x{topic:064x}" for topic in entry.topics],
                        "data": "0x" + entry.data.hex(),
                    }
                    index += 1
                    if one["address"] in wanted["address"]:
                        found.append(one)
        return found

    # --- within

    def _by_rich(self, fields: dict) -> None:
        rich = self._rich[0]
        nonce = self._nonce(_raw(rich.address), pending=True)
        self._backend.send_raw_transaction(self._signed(rich.key, fields | {"nonce": nonce}, 5 * 10**9))
        list(self._backend.mine_blocks())

    def _signed(self, key: bytes, fields: dict, fee: int) -> bytes:
        price = {"type": 2, "chainId": CHAIN_ID, "maxFeePerGas": fee, "maxPriorityFeePerGas": fee}
        return bytes(Account.sign_transaction({"value": 0} | fields | price, key).raw_transaction)


def _raw(address: str) -> bytes:
    return bytes.fromhex(address[2:])
