"""Tells systemd that a node has started, what it does, and, as long as it is not stalled, that it lives.

The protocol is sd_notify(3): datagrams to the socket that the environment names. Without one nothing is told.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

from rlswarm_jax.status import STALLED, Status

MOST = 30.0  # seconds between two words on what it does


@contextlib.contextmanager
def told(status: Status) -> Iterator[None]:
    """Says so for as long as the `with` block lasts, if systemd has asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        yield
        return
    over = threading.Event()
    every = min(MOST, int(os.environ.get("WATCHDOG_USEC") or 0) / 3e6 or MOST)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(1.0)

        def say(*lines: str) -> None:
            with contextlib.suppress(OSError):  # systemd itself is being restarted, say: the next word will do
                channel.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)

        def run() -> None:
            while True:
                state, reason = status.state()
                say(f"STATUS={state}: {reason}", *([] if state == STALLED else ["WATCHDOG=1"]))
                if over.wait(every):
                    return

        say("READY=1")
        thread = threading.Thread(target=run, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            say("STOPPING=1")
