"""One writer of metrics: a line of JSON for each node's round, and the same to Weights & Biases.

Names have one schema, `group/name`; docs/metrics.md has each with its unit and meaning.
"""

import json
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

WandbMode = Literal["auto", "online", "offline", "disabled"]
WANDB_HOST = "api.wandb.ai"
WANDB_WORDS = {"online": "online", "run": "online", "shared": "shared"} | {"offline": "offline", "dryrun": "offline"}
FALSE = ("", "0", "f", "false", "n", "no", "off")


class MetricsError(RuntimeError):
    """Metrics cannot be written; the message says where and why."""


class MetricsLog:
    """Appends rows to `metrics.jsonl`; `keep_bytes` cuts an earlier run's rows back to a checkpoint's offset."""

    def __init__(self, path: Path, keep_bytes: int = 0):
        try:
            self._file = path.open("ab", buffering=0)  # what the disk did not take is not tried again at the exit
            if self._file.tell() > keep_bytes:
                self._file.truncate(keep_bytes)
        except OSError as error:
            raise MetricsError(f"cannot write {path}: {error.strerror}.") from None
        self._path = path
        self._wandb: Any = None

    def start_wandb(
        self,
        mode: WandbMode,
        *,
        workdir: Path,
        project: str,
        group: str,
        config: dict[str, Any],
        name: str | None = None,
        tags: Sequence[str] = (),
        run_id: str | None = None,
    ) -> str:
        """Mirrors rows to wandb, those that are there already too; returns the mode in force, in words.

        "auto": as WANDB_MODE and WANDB_DISABLED say; else online where the user is logged in, unless wandb's own
        settings files (`wandb offline`) say otherwise, and nowhere else: wandb takes each process seconds. The run does
        not depend on wandb: what keeps it from starting is part of the answer.

        run_id: there; a run that goes on takes the place of what was there under it. None: a new one.
        """
        chosen = _from_environment() if mode == "auto" else mode
        if chosen is None and not _logged_in():
            chosen = "disabled"
        if chosen == "disabled":
            return chosen
        import wandb  # seconds of import: only where it is used

        named = dict(project=project, group=group, name=name or workdir.name, tags=tuple(tags), id=run_id)
        options: dict[str, Any] = dict(dir=str(workdir), config=config, **named)
        # online comes first, and offline if the service is out of reach
        for attempt in dict.fromkeys((chosen, "offline")):
            try:
                settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
                self._wandb = wandb.init(mode=attempt, settings=settings, **options)
                break
            # RuntimeError: there is no home; ValueError: the environment's settings are not wandb's
            except (wandb.Error, OSError, RuntimeError, ValueError) as error:
                reason = str(error).partition("\n")[0]
        else:
            return f"disabled, as it cannot start: {reason}"
        if self._wandb.disabled:
            self._wandb = None
            return "disabled"
        self._wandb.define_metric("round")
        self._wandb.define_metric("*", step_metric="round")
        for row in read_rows(self._path):  # a resumed run is a new one there, and whole
            self._mirror(row)
        return self._wandb.settings.mode

    def write(self, row: dict[str, Any]) -> None:
        """row: `node` (index), `round`, and the round's metrics. Raises MetricsError if the disk does not take it."""
        try:
            line = json.dumps(row).encode() + b"\n"
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise MetricsError(f"cannot write {self._path}: {error.strerror}.") from None
        if self._wandb is not None:
            self._mirror(row)

    def _mirror(self, row: dict[str, Any]) -> None:
        numbers = {f"node{row['node']}/{k}": v for k, v in row.items() if isinstance(v, float)}
        self._wandb.log({"round": row["round"], **numbers})

    def halve(self) -> None:
        """Forgets the older half of the rows, but for the first, which says where a run began. Raises MetricsError."""
        lines = self._path.read_bytes().splitlines(keepends=True)
        if len(lines) < 4:
            return
        try:
            partial = self._path.with_name(f"{self._path.name}.partial")
            partial.write_bytes(b"".join([lines[0], *lines[len(lines) // 2 :]]))
            partial.replace(self._path)
            self._file.close()
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise MetricsError(f"cannot write {self._path}: {error.strerror}.") from None

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def close(self, summary: dict[str, Any] | None = None) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.summary.update(summary or {})
            self._wandb.finish()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def whole_bytes(path: Path) -> int:
    """How much of a `metrics.jsonl` is whole lines: a kill can cut the last one off."""
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def _from_environment() -> str | None:
    """The mode that wandb's own variables ask for, if there are any. A word that it doesn't know sends nothing."""
    if os.environ.get("WANDB_DISABLED", "").strip().lower() not in FALSE:
        return "disabled"
    word = os.environ.get("WANDB_MODE", "").strip().lower()
    return WANDB_WORDS.get(word, "disabled") if word else None


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(WANDB_HOST) is not None
    except (OSError, KeyError, netrc.NetrcParseError):  # KeyError: the user is in no passwd
        return False
