"""A side of a benchmark, alone in a process under an interpreter of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    """A side did not answer; the message is its reason."""


class Worker:
    """It computes only while `ask` waits for it: a line there, a line of JSON back."""

    def __init__(self, python: str, script: str, *words: str):
        # by its path: as a part of this package it would ask for all that the package needs
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / script), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def hear(self) -> dict[str, Any]:
        """Raises Failed."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"unavailable": f"exit code {self._process.wait()}"}
        if "unavailable" in answer:
            raise Failed(answer["unavailable"])
        return answer

    def ask(self, request: Any) -> dict[str, Any]:
        """Raises Failed."""
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self.hear()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
