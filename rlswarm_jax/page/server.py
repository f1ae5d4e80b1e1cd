"""Serves a run's page on this machine: it answers its own page alone, and takes nothing.

    python -m rlswarm_jax.page.server DIR --fd N     as whoever runs a swarm starts it: N is a socket that listens

Reads only. A Host or Origin that is not this server's own is refused, so that no other site, nor a name that was made
to lead here, can read a run through a visitor's browser. Every answer is bounded, and says that no script or style but
the page's own may run.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web

from rlswarm_jax.errors import UsageError
from rlswarm_jax.launch import follow_parent
from rlswarm_jax.page import accounts
from rlswarm_jax.page.asking import Helper, HelperError
from rlswarm_jax.page.folder import Folder
from rlswarm_jax.page.views import STATIC, AskedWrongError, Given, answer, bounded, member

FILES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "uplot.css": "text/css",
    "uplot.js": "text/javascript",
    "page.js": "text/javascript",
    "views.js": "text/javascript",
    "words.js": "text/javascript",
    "draw.js": "text/javascript",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
LOOK, HEARTBEAT = 1.0, 15.0  # seconds between looks at the files, and between signs of life in a stream
MOST_STREAMS = 16
NICE = 5  # beside the swarm, which comes first
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Page:
    """One run's. Everything that reads its folder does so in one thread, one after the other."""

    def __init__(self, directory: Path, port: int):
        self.directory, self._hosts = directory, {f"{name}:{port}" for name in OWN_NAMES}
        if port == 80:
            self._hosts |= set(OWN_NAMES)
        self._folder: Folder | None = None
        self._reader = ThreadPoolExecutor(1, "reader")
        self._helper = Helper(directory)
        self._streams, self._version = 0, 0
        self._signature: tuple = ()  # of the files, when they were looked at last
        self._changed = asyncio.Condition()

    def application(self) -> web.Application:
        made = web.Application(middlewares=[self._guard], client_max_size=1024)
        made.router.add_get("/", self._static)
        made.router.add_get("/api/events", self._events)
        made.router.add_get("/api/again", self._again)
        made.router.add_get("/api/prompts", self._again)
        made.router.add_get("/api/{view}", self._view)
        made.router.add_get("/{file}", self._static)
        made.cleanup_ctx.append(self._watched)
        return made

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whose request it is; and what every answer carries."""
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
        stranger = origin is not None and origin.removeprefix("http://") not in self._hosts
        stranger |= site not in ("same-origin", "none") and request.path != "/"  # a link may lead here
        if request.headers.get("Host", "") not in self._hosts:
            found: web.StreamResponse = _refused(421, "this server answers to its own address only.")
        elif stranger:
            found = _refused(403, "this server answers its own page only.")
        elif request.method not in ("GET", "HEAD"):
            found = _refused(405, "this server takes nothing.")
        else:
            found = await self._answered(request, handler)
        if not found.prepared:
            found.headers.update(HEADERS)
        return found

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _refused(error.status, error.reason.lower() + ".")
        except AskedWrongError as error:
            return _refused(404, str(error))
        except (UsageError, HelperError) as error:
            return _refused(503, str(error))

    async def _static(self, request: web.Request) -> web.Response:
        name = request.match_info.get("file", "index.html")
        if name not in FILES:
            raise web.HTTPNotFound
        return web.Response(body=(STATIC / name).read_bytes(), content_type=FILES[name], charset="utf-8")

    async def _view(self, request: web.Request) -> web.Response:
        name, given = request.match_info["view"], dict(request.query)
        ledger = await self._ledger() if name == "ledger" else None
        return _json(await self._read(lambda folder: answer(folder, name, given, ledger)))

    async def _read(self, look: Callable[[Folder], bytes]) -> bytes:
        def run() -> bytes:
            if self._folder is None:
                self._folder = Folder(self.directory)
                self._signature = self._folder.signature()
            self._folder.refresh()
            return look(self._folder)

        return await asyncio.get_running_loop().run_in_executor(self._reader, run)

    async def _ledger(self) -> Any:
        """Of a run that goes on, as its chain has it now."""
        found = json.loads(await self._read(lambda folder: bounded(accounts.has_chain(folder) and not folder.summary)))
        return await self._helper.ledger() if found else None

    async def _again(self, request: web.Request) -> web.Response:
        """What takes the game: prompts, and whatever is computed again. It changes nothing."""
        given: Given = dict(request.query)
        if sum(map(len, given.values())) > 400:
            raise AskedWrongError("that is too much to ask for at once.")
        what = "prompts" if request.path.endswith("prompts") else given.get("what", "")
        asked = {"what": what, **{key: given[key] for key in WANTS.get(what, ()) if key in given}}
        if what not in WANTS:
            raise AskedWrongError(f"{what[:40]!r} cannot be computed again; {', '.join(WANTS)} can.")
        if "node" in asked:
            await self._read(lambda folder: str(member(folder, asked).index).encode())
        return _json(bounded(await self._helper.ask(asked)))

    # --- changes

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: one whenever there is something new to be fetched."""
        if self._streams >= MOST_STREAMS:
            return _refused(503, f"{MOST_STREAMS} pages are open already.")
        stream = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        self._streams += 1
        seen = self._version
        try:
            await stream.prepare(request)
            quiet = HEARTBEAT
            while request.transport is not None:  # until the visitor leaves
                if self._version != seen:
                    seen, quiet = self._version, 0.0
                    await stream.write(f"event: change\ndata: {seen}\n\n".encode())
                elif quiet >= HEARTBEAT:
                    quiet = 0.0
                    await stream.write(b": \n\n")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK), self._changed:
                        await self._changed.wait()
                quiet += LOOK
        except ConnectionError:
            pass
        finally:
            self._streams -= 1
        return stream

    async def _watched(self, application: web.Application) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch())
        yield
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await self._helper.close()
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def _watch(self) -> None:
        """Looks whether files have changed, while anybody wants to know."""
        while True:
            await asyncio.sleep(LOOK)
            await self._helper.rest()
            if not self._streams or self._folder is None:
                continue
            now = self._folder.signature()
            if now != self._signature:
                self._signature = now
                async with self._changed:
                    self._version += 1
                    self._changed.notify_all()


WANTS = {  # what can be computed again, and what says of which
    "prompts": ("node", "round", "author"),
    "reward": ("node", "round"),
    "vote": ("node", "round"),
    "claim": ("round", "account"),
    "verdict": ("record", "index"),
}


def _refused(status: int, why: str) -> web.Response:
    return web.Response(status=status, body=json.dumps({"error": why}).encode(), content_type="application/json")


def _json(raw: bytes) -> web.Response:
    return web.Response(body=raw, content_type="application/json", charset="utf-8")


def listen(port: int) -> socket.socket:
    """On this machine alone. Raises UsageError where the port is not to be had."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"port {port} of 127.0.0.1 cannot be listened on ({why}): choose another --port.") from None


def serve(directory: Path, listening: socket.socket) -> None:
    """Until the process is told to stop."""

    async def run() -> None:
        page = Page(directory, listening.getsockname()[1])
        runner = web.AppRunner(page.application(), access_log=None, handle_signals=True, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.SockSite(runner, listening).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    with contextlib.suppress(KeyboardInterrupt, web.GracefulExit):
        asyncio.run(run())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m rlswarm_jax.page.server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fd", type=int, required=True)
    given = parser.parse_args(argv)
    follow_parent(lambda: os._exit(0))
    with contextlib.suppress(OSError):
        os.nice(NICE)
    serve(given.folder, socket.socket(fileno=given.fd))
    return 0


if __name__ == "__main__":
    sys.exit(main())
