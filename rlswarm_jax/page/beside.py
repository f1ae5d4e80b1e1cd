"""A page beside a run: its address is there at once, and its process only when somebody comes."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

SERVER = "rlswarm_jax.page.server"
PATIENCE = 2.0  # seconds for the process to end with the run


@contextlib.contextmanager
def beside(directory: Path, say: Callable[[str], object], port: int = 0) -> Iterator[None]:
    """A page of a run while the `with` block lasts. Where it cannot be, the run goes on, and that is said."""
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        say(f"there is no page of this run ({error.strerror}); python -m experiments.page {directory} shows it")
        yield
        return
    say(f"page: http://127.0.0.1:{listening.getsockname()[1]}/ (while it runs)")
    over, stop = os.pipe()
    started: list[subprocess.Popen] = []

    def wait() -> None:
        """For the first visitor, who waits in the socket's queue until the process takes over."""
        came, _, _ = select.select([listening.fileno(), over], [], [])
        if over in came:
            return
        command = [sys.executable, "-m", SERVER, str(directory), "--fd", str(listening.fileno())]
        with contextlib.suppress(OSError):
            quiet = subprocess.DEVNULL
            started.append(
                subprocess.Popen(
                    command,
                    pass_fds=[listening.fileno()],
                    stdin=subprocess.PIPE,
                    stdout=quiet,
                    stderr=quiet,
                    start_new_session=True,
                )
            )

    waiting = threading.Thread(target=wait, name="page", daemon=True)
    waiting.start()
    try:
        yield
    finally:
        os.write(stop, b".")
        waiting.join()
        listening.close()
        for end in (over, stop):
            os.close(end)
        for process in started:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
