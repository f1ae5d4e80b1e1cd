"""A model hub on loopback: as much of its documented HTTP API as publishing and fetching take, and faults on request.

Files above a few bytes that are named like weights go through LFS; commits are newline-delimited JSON; a repository's
history is kept, so that a test can ask what each commit held.
"""

import asyncio
import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "hf_" + "s3cr3t" * 5


@dataclass
class Repo:
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        if revision == "main":
            return self.commits[-1]
        return next((one for one in self.commits if one[0] == revision), ("", {}))


class Hub:
    """requests: (method, path) of all that came. faults: of a request's method and path, a status to answer once each
    time it is asked, or None. stored: LFS objects by SHA-256. slow: seconds between pieces of an upload that are read.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.headers: list[str] = []
        self.faults: Callable[[str, str], int | None] = lambda method, path: None
        self.token, self.slow, self.uploading = TOKEN, 0.0, threading.Event()
        self.committed: Callable[[], object] = lambda: None  # called when a commit is made, before it is answered
        self.verified: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "Hub":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def count(self, method: str, pattern: str) -> int:
        return sum(one == method and re.search(pattern, path) is not None for one, path in self.requests)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 28)
        repo = "{owner}/{name}"
        app.add_routes(
            [
                web.get("/api/whoami-v2", self._whoami),
                web.post("/api/repos/create", self._create),
                web.post("/api/validate-yaml", self._validate),
                web.get(f"/api/models/{repo}", self._info),
                web.get(f"/api/models/{repo}/revision/{{revision}}", self._info),
                web.get(f"/api/models/{repo}/tree/{{revision}}", self._tree),
                web.post(f"/api/models/{repo}/preupload/{{revision}}", self._preupload),
                web.post(f"/api/models/{repo}/commit/{{revision}}", self._commit),
                web.post("/{owner}/{name}.git/info/lfs/objects/batch", self._batch),
                web.put("/storage/{oid}", self._put),
                web.post("/storage/verify", self._verify),
                web.get(f"/{repo}/resolve/{{revision}}/{{path}}", self._resolve),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self.url = f"http://127.0.0.1:{port}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        self.headers.append(request.headers.get("Authorization", ""))
        if (status := self.faults(request.method, request.path)) is not None:
            return web.json_response({"error": f"fault {status}"}, status=status)
        open_to_all = request.path.startswith("/storage/") or "/resolve/" in request.path
        named = "/".join(request.match_info.get(key, "") for key in ("owner", "name"))
        public = named in self.repos and not self.repos[named].private
        reads = request.method in ("GET", "HEAD") and public
        if not (open_to_all or reads) and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": "Invalid username or password."}, status=401)
        if named.strip("/") and named not in self.repos:
            headers = {"X-Error-Code": "RepoNotFound"}
            return web.json_response({"error": "Repository not found"}, status=404, headers=headers)
        return await handler(request)

    def _repo(self, request: web.Request) -> Repo:
        return self.repos[f"{request.match_info['owner']}/{request.match_info['name']}"]

    async def _whoami(self, request: web.Request) -> web.Response:
        return web.json_response({"type": "user", "name": "ada", "auth": {"type": "access_token"}})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repos:
            return web.json_response(answer | {"error": "You already created this model repo"}, status=409)
        self.repos[name] = Repo(asked.get("visibility") == "private")
        self._add(self.repos[name], {".gitattributes": b"*.safetensors filter=lfs\n"})
        return web.json_response(answer)

    async def _validate(self, request: web.Request) -> web.Response:
        return web.json_response({"errors": [], "warnings": []})

    async def _info(self, request: web.Request) -> web.Response:
        repo, name = self._repo(request), f"{request.match_info['owner']}/{request.match_info['name']}"
        oid, files = repo.at(request.match_info.get("revision", "main"))
        if not oid:
            return web.json_response({"error": "no"}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": path} for path in files]
        fields = {"_id": "1", "id": name, "modelId": name, "private": repo.private, "sha": oid, "siblings": siblings}
        return web.json_response(fields | {"tags": [], "downloads": 0, "likes": 0})

    async def _tree(self, request: web.Request) -> web.Response:
        _, files = self._repo(request).at(request.match_info["revision"])
        return web.json_response([self._entry(path, raw) for path, raw in sorted(files.items())])

    def _entry(self, path: str, raw: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(raw), "oid": _blob(raw)}
        if _large(path):
            entry["lfs"] = {"oid": _sha256(raw), "size": len(raw), "pointerSize": 130}
        return entry

    async def _preupload(self, request: web.Request) -> web.Response:
        _, there = self._repo(request).at(request.match_info["revision"])
        found = []
        for one in (await request.json())["files"]:
            path, large = one["path"], _large(one["path"])
            known = {"oid": (_sha256 if large else _blob)(there[path])} if path in there else {}
            mode = "lfs" if large else "regular"
            found.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | known)
        return web.json_response({"files": found})

    async def _batch(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256"
        found = []
        for one in asked["objects"]:
            if one["oid"] not in self.stored:
                places = {"upload": f"{self.url}/storage/{one['oid']}", "verify": f"{self.url}/storage/verify"}
                one["actions"] = {what: {"href": href} for what, href in places.items()}
            found.append(one)
        return web.json_response({"transfer": "basic", "objects": found})

    async def _put(self, request: web.Request) -> web.Response:
        raw = b""
        async for piece in request.content.iter_chunked(1 << 14):
            raw += piece
            self.uploading.set()
            if self.slow:
                await asyncio.sleep(self.slow)
        if _sha256(raw) != request.match_info["oid"]:
            return web.Response(status=400)
        self.stored[request.match_info["oid"]] = raw
        return web.Response()

    async def _verify(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.verified.append(asked["oid"])
        return web.json_response({}, status=200 if len(self.stored[asked["oid"]]) == asked["size"] else 422)

    async def _commit(self, request: web.Request) -> web.Response:
        files, said = dict(self._repo(request).at(request.match_info["revision"])[1]), await request.text()
        for line in filter(None, said.split("\n")):
            one = json.loads(line)
            key, value = one["key"], one["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.stored:
                    return web.json_response({"error": "LFS pointer to nothing"}, status=400)
                files[value["path"]] = self.stored[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid, name = self._add(self._repo(request), files), f"{request.match_info['owner']}/{request.match_info['name']}"
        await asyncio.to_thread(self.committed)
        return web.json_response({"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"})

    async def _resolve(self, request: web.Request) -> web.Response:
        oid, files = self._repo(request).at(request.match_info["revision"])
        path = request.match_info["path"]
        if path not in files:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        raw = files[path]
        etag = _sha256(raw) if _large(path) else _blob(raw)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "X-Linked-Size": str(len(raw))}
        return web.Response(body=raw, headers=headers)

    def _add(self, repo: Repo, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(repo.commits)} {sorted(map(_sha256, files.values()))}".encode()).hexdigest()
        repo.commits.append((oid, files))
        return oid


def _large(path: str) -> bool:
    return path.endswith(".safetensors")


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _blob(raw: bytes) -> str:
    """As git names it."""
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
