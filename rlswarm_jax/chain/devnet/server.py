"""The HTTP server of a development network: one thread, so that whoever writes is alone."""

import asyncio
import errno
import logging
import signal
import sys
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from rlswarm_jax.chain.devnet.errors import DevnetError
from rlswarm_jax.chain.devnet.rpc import Interface

BACKLOG = 1024
HOSTS = ("127.0.0.1", "localhost", "")


async def serve(interface: Interface, port: int, ready: Callable[[str], None], stop_on_eof: bool) -> None:
    """Answers on 127.0.0.1 until SIGINT or SIGTERM, or, if asked to, until standard input ends.

    port: 0 takes a free one. ready: is told the address. Raises DevnetError if the port is in use.
    """
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    # bytes that are no HTTP are answered, whoever hangs up is not, and neither is logged: the log would grow by them
    logging.getLogger("aiohttp.server").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], BadHttpMessage | ConnectionError))
    )

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        """A web page that a user looks at must not reach it: pages name their origin, or another host."""
        if "Origin" in request.headers or request.headers.get("Host", "").partition(":")[0] not in HOSTS:
            return web.Response(status=403, text="web pages may not use this network\n")
        if request.method != "POST":
            return web.Response(status=405, text="send JSON-RPC with POST\n", headers={"Allow": "POST"})
        return web.Response(body=interface.answer(await request.read()), content_type="application/json")

    runner = web.ServerRunner(web.Server(handle, access_log=None, keepalive_timeout=300.0))
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG).start()
        except (OSError, OverflowError) as error:
            why = "it is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else str(error)
            raise DevnetError(f"cannot serve on port {port} of 127.0.0.1: {why}; choose another, or 0.") from None
        ready(f"http://127.0.0.1:{runner.addresses[0][1]}")
        if stop_on_eof:  # nobody writes to it
            loop.add_reader(sys.stdin.fileno(), stopped.set)
        await stopped.wait()
    finally:
        await runner.cleanup()
