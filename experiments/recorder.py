"""Where the rounds of a process go: metrics.jsonl, wandb and the view; in the end, summary.json."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from experiments import folder
from experiments.pieces import Pieces
from experiments.summary import hardware, peak_memory_mb, summarise, write_summary
from experiments.view import SwarmView
from rlswarm_jax import qwen
from rlswarm_jax.game.player import RoundReport
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.metrics import MetricsLog, read_rows


class Recorder:
    """`open` once it is known what is kept of an earlier process's rows; then `on_round`, and `finish`.

    started: when the process began, by `time.monotonic`. words: the arguments that it was started with.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        console: Console,
        made: Pieces,
        started: float,
        words: Sequence[str] = (),
    ):
        self._words = words
        self._config, self._workdir, self._console, self._made = config, workdir, console, made
        self._names = [friendly_name(game.author) for game in made.games]
        self._file = workdir / folder.METRICS_FILE
        self._before, self._started = folder.earlier_seconds(workdir), started
        self._log: MetricsLog | None = None
        self.view: SwarmView | None = None

    def open(self, keep_bytes: int, done: list[int], name: str | None = None) -> SwarmView:
        """done: rounds by node. name: of the wandb run. Returns the view, to be used as a context."""
        config, seed = self._config, self._config.seed
        self._log = MetricsLog(self._file, keep_bytes)
        mode = self._log.start_wandb(
            config.wandb.mode,
            workdir=self._workdir,
            project=config.wandb.project,
            group=f"{config.name}-{seed}",
            name=name,
            config=config.to_dict(),
        )
        if mode != "disabled":
            self._console.print(f"wandb: {mode}")
        self.view = SwarmView(self._console, self._names, config.rounds, done)
        return self.view

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl so far."""
        return self._log.offset if self._log is not None else 0

    def on_round(self, found: RoundReport) -> None:
        assert self._log is not None and self.view is not None
        row: dict[str, Any] = {"node": found.node, "name": self._names[found.node], "round": found.round}
        if self._config.driver == "simulate":
            row["virtual_seconds"] = found.at
        row["wall_seconds"] = round(self._before + time.monotonic() - self._started, 3)
        self._log.write(row | found.metrics)
        self.view.update(row | found.metrics)

    def finish(self, finished: bool) -> None:
        """Writes summary.json. finished: whether all rounds were played."""
        assert self._log is not None
        engine = self._made.engine
        summary = summarise(
            self._config,
            self._names,
            read_rows(self._file),
            finished=finished,
            weights={name: qwen.fingerprint(engine.state(i).params) for i, name in enumerate(self._names)},
            base=self._made.base_accuracy(self._config),
            seconds=self._before + time.monotonic() - self._started,
            memory_mb=peak_memory_mb(),
            hardware=hardware(),
            command=self._words,
        )
        write_summary(self._workdir, summary)
        self._log.close({"held_out_accuracy": summary["held_out_accuracy"]})
