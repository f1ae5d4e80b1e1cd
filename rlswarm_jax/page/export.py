"""A run's page as one file, complete in itself: it opens from a disk, out of a mail or on any static host."""

import base64
import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlswarm_jax.files import cannot_write, write_whole
from rlswarm_jax.page.accounts import accounts, kept
from rlswarm_jax.page.folder import Folder, Member
from rlswarm_jax.page.lineage import authors_of, lessons
from rlswarm_jax.page.problems import Problems, make_problems
from rlswarm_jax.page.rounds import kept_rounds
from rlswarm_jax.page.views import STATIC, AskedWrongError, answer, bounded

STYLES, SCRIPTS = ("uplot.css", "page.css"), ("uplot.js", "draw.js", "words.js", "views.js", "page.js")
FIRST = ("now", "lineage", "learning", "network", "trust")  # what the views need that are opened first
CHUNK = 256 << 10  # bytes of JSON that are packed together
MISSING = (
    "This file has not got that. python -m experiments.page DIR, where the run is, shows all that its journals have."
)
FOOT = "Written from the run's folder, all in one file. There, python -m experiments.page DIR computes things again."


@dataclass(frozen=True)
class Share:
    """How much a file may have. rounds: the latest ones of each node, with their texts. size: of JSON, in bytes.

    pages: of an author's groups, for each learner.
    """

    rounds: int
    pages: int
    size: int


Prompts = Callable[[int, int], Any]


def no_prompts(node: int, round_: int) -> None:
    return None


LATEST, ALL = Share(12, 1, 4 << 20), Share(100_000, 4, 24 << 20)


def export(folder: Folder, path: Path, share: Share = LATEST, prompts: Prompts = no_prompts) -> Path:
    """Writes the page; returns its path. prompts: of a node's round, by its index and the round's number; None where
    they cannot be made. What was asked, and what is right, is made by the config's tasks, whose modules are imported.
    Raises UsageError if the disk does not take it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    folder.refresh()
    write_whole(path, page(folder, share, prompts))
    return path


def page(folder: Folder, share: Share, prompts: Prompts = no_prompts) -> str:
    """The whole file, of a run that is over as far as it says. Of equal folders it is the same."""
    folder.over = True
    where: dict[str, int] = {}
    chunks: list[dict[str, Any]] = []
    sizes: list[int] = []
    for name, raw in _answers(folder, share, prompts):
        if not chunks or (sizes[-1] + len(raw) > CHUNK and sizes[-1]):
            chunks.append({})
            sizes.append(0)
        where[name] = len(chunks) - 1
        chunks[-1][name] = json.loads(raw)
        sizes[-1] += len(raw)
    manifest = {"where": where, "missing": MISSING, "foot": FOOT}
    blocks = [f'<script type="application/json" id="manifest">{_inert(manifest)}</script>']
    blocks += [_chunk(number, chunk) for number, chunk in enumerate(chunks)]
    return _assembled("\n".join(blocks))


def _assembled(data: str) -> str:
    """The served page's own files, inlined, under a policy that runs these alone."""
    html = (STATIC / "index.html").read_text()
    sources = {name: (STATIC / name).read_text() for name in (*STYLES, *SCRIPTS)}
    hashes = {name: _hash(text) for name, text in sources.items()}
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes[name] for name in SCRIPTS)}; "
        f"style-src {' '.join(hashes[name] for name in STYLES)}; img-src data:; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    told = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<meta name="referrer" content="no-referrer">'
    )
    html = html.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{told}')
    for name in STYLES:
        html = html.replace(f'<link rel="stylesheet" href="{name}">', f"<style>{sources[name]}</style>")
    for name in SCRIPTS:
        html = html.replace(f'<script src="{name}"></script>', f"<script>{sources[name]}</script>")
    return html.replace("<!-- data -->", data)


def _answers(folder: Folder, share: Share, prompts: Prompts) -> Iterator[tuple[str, bytes]]:
    """Every view by the address under which the page asks for it, the most important first, up to the share."""
    left = share.size
    problems = make_problems(folder.config)
    for name, given in _asked(folder, share):
        with contextlib.suppress(AskedWrongError):
            raw = answer(folder, name, given)
            if name in ("round", "lessons"):
                raw = bounded(_with_questions(json.loads(raw), problems))
            left -= len(raw)
            if left < 0:
                return
            yield _address(name, given), raw
            if name == "round" and (found := prompts(int(given["node"]), int(given["round"]))) is not None:
                yield _address("prompts", given), bounded(found)


def _with_questions(found: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """A round, or lessons, with what was asked in each group whose texts are there."""
    stages = found.get("stages", [found])
    for group in [group for stage in stages for group in stage["groups"] if "seed" in group]:
        group["asked"] = problems(group["task"], group["seed"])
    return found


def _address(name: str, given: dict[str, str]) -> str:
    return name + ("?" + "&".join(f"{key}={value}" for key, value in given.items()) if given else "")


def _asked(folder: Folder, share: Share) -> Iterator[tuple[str, dict[str, str]]]:
    for name in FIRST:
        yield name, {}
    yield from _pages_of_ledger(folder)
    authors = authors_of(folder)
    for member in folder.members:
        for author in ["", *authors]:
            if author != member.author.hex():
                yield from _pages_of_lessons(folder, member, author, share.pages)
    kept_by = {member.index: kept_rounds(folder, member)[-share.rounds :] for member in folder.members}
    for round_ in sorted({r for rounds in kept_by.values() for r in rounds}, reverse=True):
        for member in folder.members:
            if round_ in kept_by[member.index]:
                yield "round", {"node": str(member.index), "round": str(round_)}


def _pages_of_ledger(folder: Folder) -> Iterator[tuple[str, dict[str, str]]]:
    found, before = kept(folder), None
    while True:
        yield "ledger", {} if before is None else {"before": str(before)}
        before = accounts(folder, found, before)["next"]
        if before is None:
            return


def _pages_of_lessons(folder: Folder, member: Member, author: str, pages: int) -> Iterator[tuple[str, dict[str, str]]]:
    before: int | None = None
    for _ in range(pages):
        asked = {"node": str(member.index)} | ({"author": author} if author else {})
        yield "lessons", asked | ({} if before is None else {"before": str(before)})
        if pages == 1:
            return
        before = lessons(folder, member, author, before)["next"]
        if before is None:
            return


def _chunk(number: int, chunk: dict[str, Any]) -> str:
    raw = json.dumps(chunk, separators=(",", ":")).encode()
    packed = base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()
    return f'<script type="application/octet-stream" id="chunk-{number}">{packed}</script>'


def _inert(found: Any) -> str:
    """JSON in which nothing ends the element that it is in."""
    text = json.dumps(found, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    """As a content-security policy names a script or a style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
