"""A headless Chromium, by its own tools' protocol: what a browser makes of the page, and what a user does there."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0  # seconds
FLAGS = (
    *("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--mute-audio"),
)


def found() -> str | None:
    """The program, as $CHROMIUM names it or as it is called; None where there is none."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class BrowserError(AssertionError):
    """The page did not do what was waited for; the message has what it said."""


class Tab:
    """One page. logged: what its scripts complained of."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse):
        self._loop, self._socket, self._ids = loop, socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self.logged: list[str] = []
        self.bytes = 0  # that came, headers and all, of what has come whole
        asyncio.run_coroutine_threadsafe(self._listen(), loop)

    async def _listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if said.get("id") in self._answers:
                self._answers.pop(said["id"]).set_result(said)
            elif said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.logged.append(json.dumps(said["params"]))
            elif said.get("method") == "Network.loadingFinished":
                self.bytes += int(said["params"]["encodedDataLength"])

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            number = next(self._ids)
            self._answers[number] = self._loop.create_future()
            await self._socket.send_json({"id": number, "method": method, "params": params})
            return await self._answers[number]

        said = asyncio.run_coroutine_threadsafe(ask(), self._loop).result(PATIENCE)
        if "error" in said:
            raise BrowserError(f"{method}: {said['error']}")
        return said["result"]

    def run(self, script: str) -> Any:
        """What an expression is there, promises waited for."""
        said = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in said:
            raise BrowserError(json.dumps(said["exceptionDetails"])[:2000])
        return said["result"].get("value")

    def until(self, script: str, seconds: float = PATIENCE) -> Any:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > end:
                shown = self.run("document.body.innerText.slice(0, 1500)")
                raise BrowserError(f"never true: {script}\n{shown}\n{self.logged}")
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def click(self, script: str) -> None:
        """An element, where a mouse would."""
        where = self.until(
            f"(() => {{ const e = {script}; if (!e) return null; e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def key(self, name: str) -> None:
        code = {"Tab": 9, "Enter": 13}[name]
        text = {"text": "\r"} if name == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, windowsVirtualKeyCode=code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=name, code=name, windowsVirtualKeyCode=code)

    def size(self, width: int, height: int = 900, scale: float = 1.0) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def scheme(self, name: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self, path: Path, **options: Any) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **options)["data"]))


@contextlib.contextmanager
def chromium(program: str) -> Iterator[Tab]:
    """A tab in a browser of its own, which is gone after the `with` block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox takes another user
        words = [program, *FLAGS, *as_root, f"--user-data-dir={home}", "about:blank"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                assert process.stderr
                line = next(line for line in process.stderr if "DevTools listening" in line)
                port = int(re.search(r":(\d+)/", line)[1])  # type: ignore[index]
                threading.Thread(target=process.stderr.read, daemon=True).start()

                async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
                    session = aiohttp.ClientSession()
                    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                        (tab,) = [one for one in await answer.json() if one["type"] == "page"]
                    return session, await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)

                session, socket = wait(connect())
                tab = Tab(loop, socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    tab.send(f"{domain}.enable")
                yield tab
                wait(socket.close())
                wait(session.close())
            finally:
                process.kill()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
