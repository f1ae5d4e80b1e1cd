"""A page that is served by this process, and what whoever asks it without a browser needs."""

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from rlswarm_jax.page.server import Page, listen


class Served:
    def __init__(self, port: int):
        self.port, self.url = port, f"http://127.0.0.1:{port}/"

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Headers as they are given: `Host` too."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        for name, value in ({"Host": f"127.0.0.1:{self.port}"} | headers).items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def json(self, path: str):
        status, _, raw = self.ask(path)
        assert status == 200, raw
        return json.loads(raw)


@contextlib.contextmanager
def served(directory: Path) -> Iterator[Served]:
    listening, loop = listen(0), asyncio.new_event_loop()
    port = listening.getsockname()[1]

    async def start() -> web.AppRunner:
        runner = web.AppRunner(Page(directory, port).application(), access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        return runner

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield Served(port)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
