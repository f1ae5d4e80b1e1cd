"""A trace of some rounds, which TensorBoard and XProf open: what the devices and the threads did, and when."""

from collections.abc import Callable, Sequence
from pathlib import Path


class Profile:
    """rounds: the first that is traced, and the first that is not any more; none if it is empty."""

    def __init__(self, directory: Path, rounds: Sequence[int], say: Callable[[str], None]):
        self._directory, self._rounds, self._say, self._on = directory, tuple(rounds), say, False

    def at(self, round_: int) -> None:
        """To be called before each round; one that jumps over the first of them begins there."""
        if not self._rounds:
            return
        import jax  # here: the parent of a swarm of processes does without

        first, end = self._rounds
        if not self._on and first <= round_ < end:
            jax.profiler.start_trace(str(self._directory))
            self._on = True
        elif self._on and not first <= round_ < end:
            self._on, self._rounds = False, ()
            jax.profiler.stop_trace()
            self._say(f"profile: {self._directory}; open it with `tensorboard --logdir` or `xprof --logdir`")

    def close(self) -> None:
        """Ends a trace that is still being written."""
        if self._on:
            self.at(self._rounds[1])
