"""A block's header of the Prague fork, and its hash."""

from dataclasses import dataclass
from functools import cached_property

import rlp
from eth_hash.auto import keccak

EMPTY_ROOT = keccak(b"\x80")  # of a trie with nothing in it
EMPTY_LIST_HASH = keccak(b"\xc0")
EMPTY_REQUESTS_HASH = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")  # SHA-256 of ""


@dataclass(frozen=True)
class Header:
    """timestamp: seconds since 1970. base_fee: wei per gas. Hashes and roots: 32 bytes."""

    number: int
    parent_hash: bytes
    state_root: bytes
    transactions_root: bytes
    receipts_root: bytes
    bloom: bytes
    gas_limit: int
    gas_used: int
    timestamp: int
    randomness: bytes
    base_fee: int
    coinbase: bytes = bytes(20)
    extra_data: bytes = b"rlswarm_jax devnet"
    nonce: bytes = bytes(8)
    uncles_hash: bytes = EMPTY_LIST_HASH
    withdrawals_root: bytes = EMPTY_ROOT
    parent_beacon_root: bytes = bytes(32)
    requests_hash: bytes = EMPTY_REQUESTS_HASH

    def fields(self) -> list[bytes]:
        """In the order of EIP-7685; difficulty, gas and excess of blobs are 0."""
        numbers = (self.number, self.gas_limit, self.gas_used, self.timestamp, self.base_fee)
        number, gas_limit, gas_used, timestamp, base_fee = (
            one.to_bytes((one.bit_length() + 7) // 8) for one in numbers
        )
        roots = [self.state_root, self.transactions_root, self.receipts_root, self.bloom]
        start = [self.parent_hash, self.uncles_hash, self.coinbase, *roots, b"", number, gas_limit, gas_used, timestamp]
        merged = [self.extra_data, self.randomness, self.nonce, base_fee, self.withdrawals_root]
        return [*start, *merged, b"", b"", self.parent_beacon_root, self.requests_hash]

    @cached_property
    def encoded(self) -> bytes:
        return rlp.encode(self.fields())

    @cached_property
    def hash(self) -> bytes:
        return keccak(self.encoded)


def parse(encoded: bytes) -> Header:
    """Of the bytes that `Header.encoded` gives. Raises ValueError or rlp.DecodingError if they are not such."""
    fields = rlp.decode(encoded)
    if not isinstance(fields, list | tuple) or len(fields) != 21:
        raise ValueError("a header is a list of 21 fields")
    return Header(
        parent_hash=fields[0],
        uncles_hash=fields[1],
        coinbase=fields[2],
        state_root=fields[3],
        transactions_root=fields[4],
        receipts_root=fields[5],
        bloom=fields[6],
        number=int.from_bytes(fields[8]),
        gas_limit=int.from_bytes(fields[9]),
        gas_used=int.from_bytes(fields[10]),
        timestamp=int.from_bytes(fields[11]),
        extra_data=fields[12],
        randomness=fields[13],
        nonce=fields[14],
        base_fee=int.from_bytes(fields[15]),
        withdrawals_root=fields[16],
        parent_beacon_root=fields[19],
        requests_hash=fields[20],
    )
