"""Answers whether a node is well, to supervisors and Prometheus: /healthz, /readyz, /metrics.

    /healthz    200, or 503 if it is stalled: a supervisor may restart it
    /readyz     200 if it is ready, else 503: it starts, is behind or stalled
    /metrics    for Prometheus

The first two have all of status.json as JSON. It reads only, and says nothing that is not public; on loopback it
answers to its own names alone, so that no site in a browser of this machine can read it.
"""

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from rlswarm_jax.errors import TransientError
from rlswarm_jax.running.exporter import Exporter
from rlswarm_jax.status import READY, STALLED, Status

MOST, PATIENCE = 8, 5.0  # connections at a time, and seconds that one may take to say what it wants
OWN_NAMES = {"127.0.0.1", "localhost", "[::1]"}


class Health:
    """What a node answers with. path -> status, type, body."""

    def __init__(self, status: Status, exporter: Exporter):
        self._status, self._exporter = status, exporter
        self._registry: Any = None

    def answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", self._metrics()
        if path not in ("/healthz", "/readyz"):
            return 404, "application/json", b'{"error":"there are /healthz, /readyz and /metrics."}'
        told = self._status.read()
        well = told.state == READY if path == "/readyz" else told.state != STALLED
        return 200 if well else 503, "application/json", msgspec.json.encode(told) + b"\n"

    def _metrics(self) -> bytes:
        import prometheus_client  # only where it is asked for

        if self._registry is None:
            self._registry = prometheus_client.CollectorRegistry()
            self._registry.register(self._exporter)
            prometheus_client.ProcessCollector(registry=self._registry)
        return prometheus_client.generate_latest(self._registry)


class _Server(ThreadingHTTPServer):
    """Bounded: a connection beyond `MOST` is closed at once."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], health: Health):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.health, self._free = health, threading.BoundedSemaphore(MOST)
        self.names = OWN_NAMES if ipaddress.ip_address(address[0]).is_loopback else None
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # without asking a name server for its own name; and a restarted node has the port of the one before at once
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone, or said what is no HTTP: nobody's end."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version, timeout = "rlswarm_jax", "", PATIENCE

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")
        name = host[0] if host[2].isdigit() else "".join(host)
        if self.server.names is not None and name not in self.server.names:
            found = 421, "application/json", b'{"error":"this server answers to its own address only."}'
        else:
            found = self.server.health.answer(self.path.partition("?")[0])
        self.send_response(found[0])
        self.send_header("Content-Type", found[1])
        self.send_header("Content-Length", str(len(found[2])))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found[2])

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a probe comes every few seconds."""


@contextlib.contextmanager
def served(address: str, health: Health) -> Iterator[str]:
    """Answers for as long as the `with` block lasts; yields where, "" for nowhere. address: host:port, or "".

    Raises TransientError if that cannot be listened on.
    """
    if not address:
        yield ""
        return
    host, _, port = address.rpartition(":")
    try:
        server = _Server((host.strip("[]"), int(port)), health)
    except OSError as error:
        raise TransientError(
            f"cannot listen on {address}: {error.strerror}; choose another config.swarm.health, or '' for none."
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(0.5,), name="health", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
