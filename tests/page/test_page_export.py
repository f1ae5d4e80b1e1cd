"""The written page: one file, complete in itself, that says what the server says."""

import base64
import gzip
import hashlib
import json
import re

import pytest

from experiments import page as command
from rlswarm_jax.page import views
from rlswarm_jax.page.export import ALL, LATEST, Share, export, page
from rlswarm_jax.page.folder import Folder
from tests.page.runs import play, write

HOSTILE = "</script><script>alert(1)</script><!--"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = Folder(write(tmp_path_factory.mktemp("run"), play(), "swarm"))
    found.refresh()
    return found


def contents(html: str) -> dict[str, dict]:
    """Views by address, taken out of the file."""
    where = json.loads(re.search(r'id="manifest">(.*?)</script>', html)[1])["where"]
    chunks = {
        int(number): json.loads(gzip.decompress(base64.b64decode(packed)))
        for number, packed in re.findall(r'id="chunk-(\d+)">([^<]*)</script>', html)
    }
    return {name: chunks[number][name] for name, number in where.items()}


def test_it_says_what_the_server_says(folder):
    found = contents(page(folder, ALL))
    for name in ("now", "learning", "lineage", "trust", "network"):
        assert found[name] == json.loads(views.answer(folder, name, {}))
    assert {f"round?node={node}&round={round_}" for node in range(3) for round_ in range(3)} <= found.keys()
    asked = [name for name in found if name.startswith("lessons?node=0&author=")]
    assert asked and found[asked[0]]["groups"]


def test_the_same_folder_gives_the_same_bytes(folder):
    assert page(folder, ALL) == page(folder, ALL)


def test_it_needs_no_other_file_and_runs_only_its_own_scripts(folder):
    html = page(folder, LATEST)
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(scripts) == 5 and len(styles) == 2 and "unsafe" not in policy
    for text in (*scripts, *styles):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


def test_no_text_of_a_run_ends_an_element(tmp_path):
    def hostile(row):
        return row | {f"groups/unused/{HOSTILE}": 1.0, "name": HOSTILE}

    found = Folder(write(tmp_path, play(), "swarm", hostile))
    found.refresh()
    html = page(found, ALL)
    assert HOSTILE not in html and "alert(1)" not in html
    assert contents(html)["now"]["nodes"][0]["name"] == HOSTILE


def test_a_file_has_as_much_as_its_share(folder):
    small = page(folder, Share(rounds=1, pages=1, size=1 << 20))
    kept = [name for name in contents(small) if name.startswith("round?")]
    assert sorted(kept) == [f"round?node={node}&round=2" for node in range(3)]
    cut = contents(page(folder, Share(rounds=99, pages=9, size=4000)))
    assert "now" in cut and not any(name.startswith("round?") for name in cut)


def test_the_command_writes_it(folder, tmp_path, capsys):
    assert command.main([str(folder.directory), "--export", str(tmp_path / "out")]) == 0
    written = tmp_path / "out" / "index.html"
    assert str(written) in capsys.readouterr().out
    found = contents(written.read_text())
    assert found["prompts?node=0&round=1"]["turns"][0]["prompt"]["text"]


def test_a_disk_that_takes_nothing_is_a_sentence(folder, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert command.main([str(folder.directory), "--export", str(tmp_path / "taken")]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write ")


def test_an_export_is_made_where_the_disk_allows(folder, tmp_path):
    assert export(folder, tmp_path / "a" / "b.html").read_text().startswith("<!doctype html>")
