"""The nodes of the state's tries, as py-evm's databases want them, over the store."""

from eth.db.backends.base import BaseAtomicDB
from eth_hash.auto import keccak
from lru import LRU

from rlswarm_jax.chain.devnet.errors import INTERNAL_ERROR, RpcError
from rlswarm_jax.chain.devnet.store import Store

_CACHED = 1 << 15  # nodes in memory, about 10 MB


class Nodes(BaseAtomicDB):
    """The nodes of the tries by their hash: what a block adds waits in `added`, the rest is on disk."""

    def __init__(self, store: Store):
        self._store = store
        self._cache: LRU[bytes, bytes] = LRU(_CACHED)
        self.added: dict[bytes, bytes] = {}

    def __getitem__(self, key: bytes) -> bytes:
        found = self.added.get(key) or self._cache.get(key)
        if found is None:
            found = self._store.node(key)
            if found is None:
                raise KeyError(key)
            if keccak(found) != key:
                raise RpcError(f"{self._store.path} is damaged: start again with an empty folder", INTERNAL_ERROR)
            self._cache[key] = found
        return found

    def _exists(self, key: bytes) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.added[key] = value

    def __delitem__(self, key: bytes) -> None:
        self.added.pop(key, None)

    def atomic_batch(self) -> "_Batch":
        return _Batch(self)

    def settle(self, written: bool) -> None:
        """Ends a block: what it added is on disk, or is forgotten."""
        if written:
            self._cache.update(self.added)
        self.added = {}


class _Batch:
    """A context manager, as py-evm wants one; a block's writes are atomic by themselves."""

    def __init__(self, nodes: Nodes):
        self._nodes = nodes

    def __enter__(self) -> Nodes:
        return self._nodes

    def __exit__(self, *_: object) -> None:
        pass
