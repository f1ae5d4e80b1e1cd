"""Asks another process for what takes the game and jax, which this one goes without: started when first asked."""

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from rlswarm_jax.chain.ledger import Ledger

PATIENCE = 300.0  # seconds for one answer: a verdict compiles a model's program first
IDLE = 180.0  # seconds without a question, after which the process is ended: it holds the memory of jax
FRESH = 5.0  # seconds for which a ledger that was read counts as the present one
MOST_BYTES = 1 << 25
MODULE = "rlswarm_jax.running.again"


class HelperError(RuntimeError):
    """It could not be found out; the message says why."""


class Helper:
    """One process at most; questions wait for each other."""

    def __init__(self, directory: Path):
        self._directory, self._turn = directory, asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._used = 0.0
        self._ledger: tuple[float, Ledger] | None = None

    async def ask(self, question: dict[str, Any]) -> Any:
        """Raises HelperError."""
        async with self._turn:
            process = await self._running()
            assert process.stdin and process.stdout
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                async with asyncio.timeout(PATIENCE):
                    line = await process.stdout.readline()
                found = json.loads(line)
            except TimeoutError:
                await self._end()
                raise HelperError(f"it took longer than {PATIENCE:.0f} s, and was given up.") from None
            except (OSError, ValueError) as error:
                await self._end()
                raise HelperError(f"what computes it has ended ({type(error).__name__}).") from None
            self._used = time.monotonic()
        if "error" in found:
            raise HelperError(str(found["error"]))
        return found

    async def ledger(self) -> Ledger | None:
        """As the chain has it now; None where it cannot be read."""
        if self._ledger is None or time.monotonic() - self._ledger[0] > FRESH:
            try:
                found = await self.ask({"what": "ledger"})
                self._ledger = time.monotonic(), msgspec.convert(found, Ledger)
            except (HelperError, msgspec.MsgspecError):
                return self._ledger[1] if self._ledger else None
        return self._ledger[1]

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "disabled"}
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", MODULE, str(self._directory)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=MOST_BYTES,
                env=environment,
            )
            self._used = time.monotonic()
        return self._process

    async def rest(self) -> None:
        """Ends a process that nobody has asked for a while."""
        if self._process is not None and not self._turn.locked() and time.monotonic() - self._used > IDLE:
            await self._end()

    async def close(self) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._process = None
