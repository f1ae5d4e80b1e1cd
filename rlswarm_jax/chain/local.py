"""A chain of a local swarm's own: the embedded development network or anvil, with a coordinator on it, and a court."""

import contextlib
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from rlswarm_jax import identity
from rlswarm_jax.chain import anvil, devnet
from rlswarm_jax.chain.devnet import CHAIN_ID, Devnet, DevnetError
from rlswarm_jax.chain.rpc import Endpoint
from rlswarm_jax.chain.settings import Settings
from rlswarm_jax.chain.virtual import quorum

CONTRACT_FILE, OWNER_FILE = "coordinator.json", "owner.key"
MAX_SECONDS = 600  # of a round of the coordinator, should too many nodes be gone to end it
RESTART = 1.0  # seconds until the network is started again after it died
# a block is made for each transaction, and none is undone: no node has to wait for others on top
SETTINGS = Settings(confirmations=0, retry_seconds=0.5)


class LocalChain:
    """url, contract and court: where nodes find their coordinator, while the `with` block lasts.

    kind: "devnet", which goes on with what is in its folder, or "anvil", which keeps nothing. stake: in wei, of a court
    beside the coordinator (court is "" where it is 0), and funded: who is given coins for it. Raises DevnetError,
    ChainError.
    """

    def __init__(
        self,
        kind: str,
        directory: Path,
        nodes: int,
        bootnodes: list[str],
        stake: int = 0,
        funded: Sequence[str] = (),
    ):
        self._kind, self.directory, self._nodes, self._bootnodes = kind, directory, nodes, bootnodes
        self._stake, self._funded = stake, funded
        self._held, self._died = contextlib.ExitStack(), 0.0
        self._process: subprocess.Popen | None = None
        self.url, self.contract, self.court = "", "", ""

    def __enter__(self) -> Self:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DevnetError(f"cannot keep a chain in {self.directory}: {error.strerror}.") from None
        known = self.directory / CONTRACT_FILE
        if self._kind == "anvil":
            if known.exists():
                raise DevnetError("anvil keeps no chain, so this run cannot go on: begin another one.")
            running = self._held.enter_context(anvil.running())
        else:
            running = self._start(0)
            self._held.callback(self._stop)
        self._process, self.url = running.process, running.url
        try:
            if not known.exists():
                self._deploy(known)
            said = json.loads(known.read_text())
            self.contract, self.court = said["contract"], said.get("court", "")
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def tend(self) -> str | None:
        """Starts a network again that has died, where it was; what there is to say of that. Call it now and then."""
        assert self._process
        if self._process.poll() is None:
            return None
        if not self._died:
            self._died = time.monotonic()
            return f"the chain's process ended with code {self._process.returncode}; nodes go on without it"
        if self._kind == "anvil" or time.monotonic() - self._died < RESTART:
            return None
        self._died = time.monotonic()
        try:
            self._process = self._start(urlsplit(self.url).port or 0).process
        except DevnetError as error:
            return f"the chain did not start again: {error}"
        self._died = 0.0
        return "the chain is there again"

    def _start(self, port: int) -> Devnet:
        return devnet.start(self.directory, port=port, funded=self._funded)

    def _stop(self) -> None:
        assert self._process
        devnet.stop(Devnet(self.url, self._process))

    def _deploy(self, known: Path) -> None:
        from rlswarm_jax.chain.deployment import Rules, deploy, deploy_court, terms  # and with it web3

        owner = identity.load_or_create(self.directory / OWNER_FILE)
        rules = Rules(min_seconds=0, max_seconds=MAX_SECONDS, quorum=quorum(self._nodes))
        rpc = Endpoint(self.url)
        made = deploy(rpc, owner, CHAIN_ID, rules, self._bootnodes)
        said = {"contract": made.address, "chain": CHAIN_ID, "hash": made.hash}
        if self._stake:
            if self._kind == "anvil":
                for account in self._funded:
                    rpc.request("anvil_setBalance", [account, hex(devnet.FUNDS)])
            said["court"] = deploy_court(rpc, owner, CHAIN_ID, made.address, terms(self._stake, self._nodes)).address
        partial = known.with_name(f"{known.name}.partial")
        partial.write_text(json.dumps(said) + "\n")
        partial.replace(known)
