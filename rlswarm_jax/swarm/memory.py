"""What a node's folder keeps of its network: its port, and peers it was connected with, for the next start."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlswarm_jax.swarm.addresses import read

log = logging.getLogger("rlswarm_jax.network")

FILE = "peers.json"
MAX_KEPT, MAX_KEPT_ADDRESSES = 32, 4  # peers, and addresses of one
MAX_KEPT_OF_RANGE = 4  # peers, of a range of addresses across the internet
_MAX_BYTES = 1 << 20


class Memory:
    """port: that the node had last, 0 if none. peers: addresses by peer id, whoever was there last at the end."""

    def __init__(self, path: Path | None):
        self._path, self._failed = path, False
        self.port, self.peers = 0, dict[str, list[str]]()
        if path is None:
            return
        try:
            with path.open("rb") as file:
                self._read(json.loads(file.read(_MAX_BYTES)))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            log.warning("%s cannot be read (%s): this node finds its peers through its bootnodes", path, error)

    def _read(self, said: dict) -> None:
        port, told = said.get("port", 0), said.get("peers", [])
        if not (isinstance(port, int) and 0 <= port <= 65_535 and isinstance(told, list)):
            raise ValueError("not what a node has written")
        self.port = port
        for text in told[-MAX_KEPT * MAX_KEPT_ADDRESSES :]:
            if found := read(text):
                self.peers.setdefault(found.peer_id, []).append(text)

    def save(self, port: int, peers: Mapping[str, Sequence[str]]) -> None:
        """Writes them, whole, if they are news. A disk that won't take it is said once: this is nobody's end."""
        kept = {peer: list(addresses) for peer, addresses in peers.items()}
        if self._path is None or (port, list(kept.items())) == (self.port, list(self.peers.items())):
            return
        self.port, self.peers = port, kept
        told = {"port": port, "peers": [text for addresses in kept.values() for text in addresses]}
        partial = self._path.with_name(f"{self._path.name}.partial")
        try:
            partial.write_text(json.dumps(told, indent=2) + "\n")
            partial.replace(self._path)
        except OSError as error:
            if not self._failed:
                log.warning("cannot write %s (%s): a restart will know the bootnodes only", self._path, error.strerror)
            self._failed = True
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
