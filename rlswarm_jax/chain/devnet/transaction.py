"""A signed transaction as its bytes say it: legacy (EIP-155), type 1 (EIP-2930) and type 2 (EIP-1559)."""

from dataclasses import dataclass
from typing import Any

import coincurve
import rlp
from eth_hash.auto import keccak

from rlswarm_jax.chain.devnet.errors import INVALID_PARAMS, RpcError

MAX_BYTES = 131_072  # of a transaction, as in other nodes' pools
CREATE = b""  # the recipient of a transaction that creates a contract
_HALF_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 // 2
_FIELDS = {0: 9, 1: 11, 2: 12}
AccessList = tuple[tuple[bytes, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Transaction:
    """What py-evm's executor needs, under its names; of a call, too, which has no signature and no hash.

    to: 20 bytes, or CREATE. Fees: wei per gas, both the gas price before type 2. v: as signed, y parity from type 1 on.
    """

    sender: bytes
    nonce: int
    gas: int
    to: bytes
    value: int
    data: bytes
    max_fee_per_gas: int
    max_priority_fee_per_gas: int
    access_list: AccessList = ()
    type_id: int = 0
    chain_id: int = 0
    v: int = 0
    r: int = 0
    s: int = 0
    hash: bytes = b""

    @property
    def intrinsic_gas(self) -> int:
        """What it costs before its first instruction (EIP-2028, EIP-2930; of a creation less EIP-3860's words,
        which py-evm takes while it creates)."""
        zeros = self.data.count(0)
        gas = 21_000 + 4 * zeros + 16 * (len(self.data) - zeros)
        gas += 2400 * len(self.access_list) + 1900 * sum(len(slots) for _, slots in self.access_list)
        return gas + (32_000 if self.to == CREATE else 0)

    @property
    def least_gas(self) -> int:
        """The smallest limit with which it may be in a block: with EIP-3860's words, and EIP-7623's floor."""
        zeros = self.data.count(0)
        floor = 21_000 + 10 * (zeros + 4 * (len(self.data) - zeros))
        words = 2 * ((len(self.data) + 31) // 32) if self.to == CREATE else 0
        return max(self.intrinsic_gas + words, floor)

    def gas_price(self, base_fee: int) -> int:
        """What it pays a gas in a block of that base fee, in wei."""
        return min(self.max_fee_per_gas, self.max_priority_fee_per_gas + base_fee)


def decode(raw: bytes, chain_id: int) -> Transaction:
    """The transaction in these bytes, its sender recovered. Raises RpcError if it is none of this chain."""
    if len(raw) > MAX_BYTES:
        raise RpcError(f"oversized data: transaction size {len(raw)}, limit {MAX_BYTES}")
    if not raw:
        raise RpcError("typed transaction too short", INVALID_PARAMS)
    type_id = raw[0] if raw[0] < 0x80 else 0
    if type_id not in _FIELDS or raw[0] == 0:
        raise RpcError(f"transaction type not supported: {raw[0]}; this network takes legacy, 1 and 2", INVALID_PARAMS)
    try:
        return _parse(raw, type_id, chain_id)
    except (rlp.DecodingError, TypeError, ValueError, RecursionError) as error:  # coincurve raises ValueError
        raise RpcError(f"invalid transaction: {error or 'malformed'}", INVALID_PARAMS) from None


def _parse(raw: bytes, type_id: int, chain_id: int) -> Transaction:
    """Raises ValueError, TypeError or rlp.DecodingError if the bytes are malformed."""
    fields = rlp.decode(raw[1:] if type_id else raw)
    if not isinstance(fields, list | tuple) or len(fields) != _FIELDS[type_id]:
        raise ValueError(f"a transaction of type {type_id} is a list of {_FIELDS[type_id]} fields")
    v, r, s = (_integer(field) for field in fields[-3:])
    listed: AccessList = ()
    if type_id == 0:
        if v in (27, 28):
            raise RpcError("only replay-protected (EIP-155) transactions allowed over RPC")
        found, parity = divmod(v - 35, 2)
        nonce, price, gas, to, value, data = fields[:6]
        fee = tip = _integer(price)
        signed = rlp.encode([*fields[:6], _octets(found) if v >= 35 else b"", b"", b""])
    else:
        found, parity = _integer(fields[0]), v
        nonce, (gas, to, value, data, entries) = fields[1], fields[-8:-3]
        tip, fee = _integer(fields[2]), _integer(fields[-9])
        listed = tuple(_entry(entry) for entry in entries)
        signed = raw[:1] + rlp.encode(list(fields[:-3]))
    if found != chain_id:
        raise RpcError(f"invalid chain id for signer: have {found} want {chain_id}")
    if parity not in (0, 1) or s > _HALF_ORDER:
        raise RpcError("invalid sender: the signature's v or s is out of range")
    if not isinstance(to, bytes) or not isinstance(data, bytes) or len(to) not in (0, 20):
        raise ValueError("the recipient has 20 bytes or none, and the data is bytes")
    if tip > fee:
        raise RpcError(f"max priority fee per gas higher than max fee per gas: {tip} > {fee}")
    signature = r.to_bytes(32) + s.to_bytes(32) + bytes([parity])
    public_key = coincurve.PublicKey.from_signature_and_message(signature, keccak(signed), hasher=None)
    if _integer(nonce) >= 2**64 - 1:
        raise RpcError("nonce has max value")
    return Transaction(
        sender=keccak(public_key.format(compressed=False)[1:])[12:],
        nonce=_integer(nonce),
        gas=_integer(gas),
        to=to,
        value=_integer(value),
        data=data,
        max_fee_per_gas=fee,
        max_priority_fee_per_gas=tip,
        access_list=listed,
        type_id=type_id,
        chain_id=found,
        v=v,
        r=r,
        s=s,
        hash=keccak(raw),
    )


def _integer(field: Any) -> int:
    """Of the canonical bytes of a number below 2^256."""
    if not isinstance(field, bytes) or len(field) > 32 or field[:1] == b"\0":
        raise ValueError("a number is not in its shortest form of at most 32 bytes")
    return int.from_bytes(field)


def _octets(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def _entry(entry: Any) -> tuple[bytes, tuple[int, ...]]:
    address, slots = entry
    if not isinstance(address, bytes) or len(address) != 20 or isinstance(slots, bytes):
        raise ValueError("an access list holds addresses and lists of slots")
    if not all(isinstance(slot, bytes) and len(slot) == 32 for slot in slots):
        raise ValueError("an access list's slot has 32 bytes")
    return address, tuple(int.from_bytes(slot) for slot in slots)
