"""A tiny HTTP server in the test's process: a JSON-RPC endpoint over a local chain, or whatever a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rlswarm_jax.chain.errors import EndpointDown, Refused
from rlswarm_jax.chain.rpc import Rpc


@contextmanager
def serve(respond: Callable[[BaseHTTPRequestHandler, bytes], None], host: str = "127.0.0.1") -> Iterator[str]:
    """The address of a server that hands each POST to `respond`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet per answer
        disable_nagle_algorithm = True

        def handle(self) -> None:
            with suppress(ConnectionError):  # a client was killed
                super().handle()

        def do_POST(self) -> None:
            respond(self, self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def speak(rpc: Rpc, lock: threading.Lock) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """JSON-RPC over HTTP of what answers in this process."""

    def respond(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked = json.loads(body)
        said: dict[str, Any] = {"jsonrpc": "2.0", "id": asked["id"]}
        try:
            with lock:
                said["result"] = rpc.request(asked["method"], asked["params"])
        except Refused as error:
            data = None if error.data is None else "0x" + error.data.hex()
            said["error"] = {"code": error.code, "message": error.words, "data": data}
        except EndpointDown:
            return answer(handler, b"", 503)
        return answer(handler, json.dumps(said).encode())

    return respond
