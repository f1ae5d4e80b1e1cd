"""The HTTP server of a development network: one thread, so that whoever writes is alone."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from ipaddress import ip_address

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from rlswarm_jax.chain.devnet.errors import DevnetError
from rlswarm_jax.chain.devnet.rpc import Interface

BACKLOG = 1024


async def serve(interface: Interface, port: int, ready: Callable[[str], None], stop_on_eof: bool) -> None:
    """Answers on 127.0.0.1 until SIGINT or SIGTERM, or, if asked to, until standard input ends.

    port: 0 takes a free one. ready: is told the address. Raises DevnetError if the port is in use.
    """
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    logger = logging.getLogger("aiohttp.server")
    logger.addFilter(_not_the_client_s_mistake)
    server = web.Server(_handler(interface), access_log=None, keepalive_timeout=300.0)
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            why = "it is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else str(error)
            raise DevnetError(f"cannot serve on port {port} of 127.0.0.1: {why}; choose another, or 0.") from None
        ready(f"http://127.0.0.1:{runner.addresses[0][1]}")
        if stop_on_eof:
            loop.add_reader(sys.stdin.fileno(), _at_end_of_input(stopped))
        await stopped.wait()
    finally:
        await runner.cleanup()


def _not_the_client_s_mistake(record: logging.LogRecord) -> bool:
    """Bytes that are no HTTP are answered and not logged: the log would grow by them."""
    return not (record.exc_info and isinstance(record.exc_info[1], BadHttpMessage))


def _at_end_of_input(stopped: asyncio.Event) -> Callable[[], None]:
    def read() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            stopped.set()

    return read


def _handler(interface: Interface) -> Callable[[web.BaseRequest], asyncio.Future]:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        """A web page that a user looks at must not reach it: pages name their origin, or another host."""
        if "Origin" in request.headers or not _is_here(request.headers.get("Host", "")):
            return web.Response(status=403, text="web pages may not use this network\n")
        if request.method != "POST":
            return web.Response(status=405, text="send JSON-RPC with POST\n", headers={"Allow": "POST"})
        return web.Response(body=interface.answer(await request.read()), content_type="application/json")

    return handle  # type: ignore[return-value]


def _is_here(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    with contextlib.suppress(ValueError):
        return ip_address(name.strip("[]")).is_loopback
    return name in ("", "localhost")
