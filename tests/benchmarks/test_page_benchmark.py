"""The page's cost beside a run is measured or not at all: what goes wrong there is said."""

import subprocess
import sys

import pytest

from benchmarks import page
from tests.page.runs import play, write
from tests.page.served import served


def program(text: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", text])


def test_a_run_that_is_over_before_its_page_answers_is_no_measurement(tmp_path):
    early = pytest.raises(AssertionError, match="before its page answered")
    with served(tmp_path) as one, program("") as run, early:  # a folder of no run, which the page refuses to show
        page.visit(one.url, run)


def test_a_page_that_is_not_the_run_s_is_no_measurement(tmp_path):
    with served(write(tmp_path, play())) as one, program("input()") as run:
        with pytest.raises(ValueError, match="unpack"):
            page.visit(one.url, run)
        run.kill()


def test_a_page_that_goes_before_its_run_is_no_measurement(tmp_path, monkeypatch):
    looked = []

    def look(url, run):
        looked.append(url)
        if len(looked) > 1:
            raise OSError("gone")
        return 1.0, 100.0

    monkeypatch.setattr(page, "look", look)
    monkeypatch.setattr(page.http.client, "HTTPConnection", Stream)
    with program("input()") as run:
        monkeypatch.setattr(run, "wait", lambda seconds=None: run.poll() or _over())
        with pytest.raises(AssertionError, match=r"after 1 looks, and the run goes on: OSError\('gone'\)"):
            page.visit("http://127.0.0.1:9/", run)
        monkeypatch.undo()
        run.kill()


def _over():
    raise subprocess.TimeoutExpired("run", 60)


class Stream:
    """A connection whose stream has one change, and then another, for ever."""

    status = 200

    def __init__(self, *args, **kwargs):
        pass

    def request(self, *args):
        pass

    def getresponse(self):
        return self

    def readline(self):
        return b"data: 1\n"
