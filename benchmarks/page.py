"""What the page of a run costs: to whoever opens it, and to the swarm beside which it is served. And its pictures.

    python -m benchmarks.page > results/benchmarks/page.jsonl           5 minutes; needs a Chromium for the first rows
    python -m benchmarks.page --pictures runs/quickstart                writes docs/page-*.png from a run

*first paint*: ms until a browser without a cache has drawn the first text (first contentful paint), the median of five,
of made-up runs of 8 nodes; *whole* until the view is drawn; *kB*, all that came until then. *views*: processor ms
of the slowest answer, when the run was read; *read*, of reading it. *beside a run*: the share of a whole quickstart's
processor time, nodes alone and chain included, that the page's process takes while one browser's stream is open from
first to last, and fetches what three views show whenever there is something new, as the page does.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from rlswarm_jax import files
from rlswarm_jax.identity import friendly_name, simulated
from rlswarm_jax.machine import hardware
from rlswarm_jax.page.beside import SERVER
from rlswarm_jax.page.folder import Folder
from rlswarm_jax.page.views import VIEWS, answer
from tests.experiments.test_show import config
from tests.page import chromium

NODES = 8
REST, SHARE, LONGEST = 2.5, 50, 60.0  # seconds between two looks, times as long as a look takes: as page.js rests
PICTURES = {  # name: the view, width, height, colours
    "lineage": ("lineage", 1000, 640, "light"),
    "lessons": ("lineage?node=0&author={author}", 1000, 760, "light"),
    "round": ("round?node=0&round={round}", 1000, 800, "dark"),
}


def row(node: int, round_: int, authors: Sequence[str]) -> dict[str, Any]:
    """As long as a quickstart's."""
    others = [author for place, author in enumerate(authors) if place != node]
    taught = [others[(round_ + place) % len(others)] for place in range(4)]
    lessons = [["", round_, "answer", place, [0, 1, 0, 0, 1, 0, 1, 0], place < 2] for place in range(8)]
    lessons += [[author, round_, "answer", 2, [0, 1, 0, 0, 1, 0, 1, 0], True] for author in taught]
    measured = {"held_out/accuracy": 0.01 * (round_ % 90)} if round_ % 20 == 0 else {}
    named = ("learn/x", "sample/x", "seconds/x", "network/bytes_in", "network/bytes_out", "groups/external")
    return {
        "node": node,
        "name": friendly_name(bytes.fromhex(authors[node])),
        "round": round_,
        "wall_seconds": round_ + 0.5,
        "reward/mean": (round_ % 50) / 50,
        **{f"learned_from/{author}": 1.0 for author in taught},
        **{f"received_from/{author}": 3.0 for author in others},
        **{f"{name}{place or ''}": 0.12345 + place for name in named for place in range(8)},
        **measured,
        "lessons": lessons,
    }


@contextlib.contextmanager
def made(rounds: int, nodes: int = NODES) -> Iterator[Path]:
    """A run's folder, without journals."""
    authors = [simulated(0, node).author.hex() for node in range(nodes)]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        (folder / files.CONFIG_FILE).write_text(config().to_json_best_effort())
        with (folder / files.METRICS_FILE).open("w") as log:
            for round_ in range(rounds):
                log.writelines(json.dumps(row(node, round_, authors)) + "\n" for node in range(nodes))
        yield folder


@contextlib.contextmanager
def process(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The command that serves it, in a process of its own."""
    words = [sys.executable, "-m", "experiments.page", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout
            yield served.stdout.readline().split()[1], psutil.Process(served.pid)
        finally:
            served.terminate()


def cpu(of: psutil.Process) -> float:
    return sum(of.cpu_times()[:2])


def line(benchmark: str, of: dict[str, Any], value: float, unit: str, measured: dict[str, float]) -> None:
    versions = {"python": platform.python_version(), "aiohttp": metadata.version("aiohttp")}
    found = {"benchmark": benchmark, "config": of, "value": round(value, 3), "unit": unit}
    measured = {name: round(number, 3) for name, number in measured.items()}
    print(json.dumps(found | {"measured": measured, "hardware": hardware(), "versions": versions}), flush=True)


def first_paint(program: str, rounds: int) -> None:
    paints, wholes, sizes = [], [], []
    with made(rounds) as folder, process(folder) as (url, _):
        for _ in range(5):
            with chromium.chromium(program) as tab:
                tab.size(1180)
                tab.open(f"{url}#/now")
                tab.until("document.documentElement.dataset.ready === 'now'")
                wholes.append(tab.run("performance.now()"))
                paints.append(tab.until("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
                sizes.append(tab.bytes / 1000)
    measured = {"whole": statistics.median(wholes), "kB": statistics.median(sizes)}
    line("first paint", {"nodes": NODES, "rounds": rounds}, statistics.median(paints), "ms", measured)


def views(rounds: int) -> None:
    with made(rounds) as directory:
        began, folder = time.process_time(), Folder(directory)
        folder.refresh()
        read = time.process_time() - began
        taken, sizes = [], []
        for name in VIEWS:
            began = time.process_time()
            sizes.append(len(answer(folder, name, {})) / 1000)
            taken.append(1000 * (time.process_time() - began))
    line("views", {"nodes": NODES, "rounds": rounds}, max(taken), "ms", {"read": 1000 * read, "kB": max(sizes)})


def beside_a_run() -> None:
    """A whole quickstart, with one visitor from its first line to its last."""
    with tempfile.TemporaryDirectory() as directory:
        words = ["--config", "configs/quickstart.py", "--workdir", f"{directory}/run", "--config.wandb.mode=disabled"]
        command = [sys.executable, "-m", "experiments.run", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
            assert run.stdout
            url = next(line.split()[1] for line in run.stdout if line.startswith("page: "))
            threading.Thread(target=run.stdout.read, daemon=True).start()
            spent, total, looks = visit(url, run)
            assert run.wait() == 0
    found = {"looks": looks, "page_s": spent, "run_s": total}
    line("beside a run", {"nodes": 4, "streams": 1}, 100 * spent / total, "% of its processor time", found)


def visit(url: str, run: subprocess.Popen) -> tuple[float, float, int]:
    """Processor seconds of the page and of all of a run, and how often its visitor looked: as the page does.

    First at what the views show, which the page refuses until the run has a folder; then whenever the stream says that
    there is something new, to the end of the run. Raises where the page fails before that.
    """
    process, found, looks = psutil.Process(run.pid), None, 1
    while found is None:
        assert run.poll() is None, "the run was over before its page answered"
        try:
            found = look(url, process)
        except urllib.error.HTTPError:  # there is no run yet
            time.sleep(0.5)
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=30)
    connection.request("GET", "/api/events")
    stream = connection.getresponse()
    assert stream.status == 200, stream.read()
    try:
        while line := stream.readline():
            if line.startswith(b"data:"):
                found, looks = look(url, process), looks + 1
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException, psutil.Error, ValueError) as error:
        ended: Exception | None = error  # as the run does, or else it did not go well
    else:
        ended = None
    try:
        run.wait(60)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the page was gone after {looks} looks, and the run goes on: {ended!r}") from ended
    return *found, looks


def look(url: str, run: psutil.Process) -> tuple[float, float]:
    """Fetches what three views show, and rests; the processor seconds of the page and of the whole run by then."""
    began = time.monotonic()
    for name in ("now", "lineage", "learning"):
        urllib.request.urlopen(f"{url}api/{name}", timeout=30).read()
    tree = [run, *run.children(recursive=True)]
    (page,) = (one for one in tree if one.status() != psutil.STATUS_ZOMBIE and SERVER in one.cmdline())
    found = cpu(page), sum(map(cpu, tree)) + sum(run.cpu_times()[2:4])
    time.sleep(min(LONGEST, max(REST, SHARE * (time.monotonic() - began))))
    return found


def pictures(directory: Path, out: Path) -> None:
    """Of a run that has ended, by a browser."""
    program = chromium.found()
    assert program, "there is no Chromium here ($CHROMIUM names one)"
    folder = Folder(directory)
    folder.refresh()
    learned = folder.members[0].course.totals("learned_from/")
    given = {"author": max(learned, key=lambda author: learned[author]), "round": folder.members[0].course.rounds[-1]}
    with process(directory) as (url, _), chromium.chromium(program) as tab:
        for name, (view, width, height, scheme) in PICTURES.items():
            tab.size(width, height, 1.25)
            tab.scheme(scheme)
            tab.open("about:blank")
            tab.open(f"{url}#/{view.format(**given)}")
            tab.until(f"document.documentElement.dataset.ready === '{view.partition('?')[0]}'")
            if name == "lessons":
                tab.until("document.querySelectorAll('#lessons .asked .prompt').length > 5")
                tab.run("scrollTo(0, 250)")
            if name == "round":
                tab.until("!!document.querySelector('.asked .prompt')")
                tab.run("document.querySelector('.asked details').open = true")
            time.sleep(0.5)
            tab.picture(out / f"page-{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.page", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--pictures", metavar="RUN", type=Path)
    given = parser.parse_args()
    if given.pictures:
        pictures(given.pictures, Path("docs"))
        return
    if program := chromium.found():
        for rounds in (150, 5000):
            first_paint(program, rounds)
    for rounds in (150, 5000):
        views(rounds)
    beside_a_run()


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
