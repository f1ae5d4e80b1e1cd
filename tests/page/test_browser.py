"""The page in a real browser: its numbers are those of the files, it is safe from what it shows, and anyone can use it.

Needs a Chromium ($CHROMIUM, or `chromium` of the system); axe-core ($AXE: its axe.min.js) for one test.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from rlswarm_jax import files
from rlswarm_jax.game.effects import Gather
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import Entry, Journal
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.page.export import ALL, export
from rlswarm_jax.page.folder import Folder
from rlswarm_jax.records.envelope import seal
from rlswarm_jax.records.schema import Completion
from tests.game.hand_driver import ALICE, MALLORY, ME, record_of
from tests.page.chromium import chromium, found
from tests.page.runs import play, write
from tests.page.served import served
from tests.small import SHAPES

pytestmark = pytest.mark.skipif(found() is None, reason="there is no Chromium here ($CHROMIUM names one)")
CUT = (  # what goes beyond the screen and is in no box that scrolls, or in a box that is itself beyond it
    "[...document.querySelectorAll('nav a, main *')].filter(e => !e.closest('[popover], .unseen')"
    " && !e.parentElement.closest('.scroll, .prompt, svg, .plot') && e.getBoundingClientRect().right > innerWidth + 1)"
    ".map(e => e.outerHTML.slice(0, 80))"
)
TABS = ("now", "learning", "lineage", "round", "ledger", "trust", "network")
HOSTILE = [
    "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'>",
    "'\"><svg onload='window.owned = 1'>",
    "abc\u202egnp.exe\u2066\u0000\u001b[31m",
    "x" * 60_000,
]


@pytest.fixture(scope="module")
def tab():
    with chromium(found()) as one:
        one.size(1180, 900)
        yield one


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A swarm's, in which ME has learned from somebody who says hostile things."""
    found = write(tmp_path_factory.mktemp("run"), play(), "swarm", _taught_by_mallory)
    record = record_of(MALLORY, 2)
    (first, *others) = record.groups
    said = [Completion(one.tokens, one.logprobs, text) for one, text in zip(first.completions, HOSTILE, strict=True)]
    first = msgspec.structs.replace(first, completions=said, index=0)
    hostile = seal(msgspec.structs.replace(record, groups=[first, *others]), MALLORY)
    journal = Journal(found / "node-0" / files.JOURNAL_FILE)
    journal.write(Entry(0, 2, 99, Gather.__name__, msgspec.msgpack.encode([hostile]), 300.0))
    journal.close()
    return found


def _taught_by_mallory(row):
    if row["name"] == friendly_name(ME.author) and row["round"] == 2:
        row[f"learned_from/{MALLORY.author.hex()}"] = 1.0
        row["lessons"] = [*row["lessons"], (MALLORY.author.hex(), 2, "answer", 0, [0, 1, 0, 0], True)]
        row[f"groups/unused/{HOSTILE[0]}"] = 1.0
    return row


@pytest.fixture(scope="module")
def page(directory):
    with served(directory) as one:
        yield one


def show(tab, page, where: str) -> None:
    tab.open("about:blank")
    tab.open(f"{page.url}#/{where}")
    tab.until(f"document.documentElement.dataset.ready === '{where.partition('?')[0]}'")


def test_numbers_of_the_matrix_are_those_of_the_files(tab, page, directory):
    show(tab, page, "lineage")
    cells = tab.run(
        "[...document.querySelectorAll('.matrix tbody tr')].map(r => [...r.children].map(c => c.innerText))"
    )
    authors = tab.run("[...document.querySelectorAll('.matrix thead th')].slice(1).map(c => c.innerText.trim())")
    for index, (name, *counts) in enumerate(cells):
        rows = read_rows(directory / f"node-{index}" / files.METRICS_FILE)
        assert name.strip() == rows[0]["name"]
        sums = {}
        for row in rows:
            for key, value in row.items():
                if key.startswith("learned_from/"):
                    author = friendly_name(bytes.fromhex(key.removeprefix("learned_from/")))
                    sums[author] = sums.get(author, 0) + value
        own = sum(row["groups/local"] for row in rows)
        shown = dict(zip(authors, counts, strict=True))
        assert shown.pop(name.strip()) == f"own {own:.0f}"
        assert {author: float(count) for author, count in shown.items() if float(count)} == sums
    assert not tab.logged


def test_a_cell_leads_to_completions_by_mouse_and_by_keyboard(tab, page, directory):
    rows = read_rows(directory / "node-0" / files.METRICS_FILE)
    wanted = [lesson for row in rows for lesson in row["lessons"] if lesson[0] == ALICE.author.hex() and lesson[5]]
    label = f"{len(wanted)}: groups of {friendly_name(ALICE.author)} that {friendly_name(ME.author)} learned from"
    button = f"document.querySelector('.matrix button[aria-label={json.dumps(label)}]')"
    for press in ("mouse", "keyboard"):
        show(tab, page, "lineage")
        if press == "mouse":
            tab.click(button)
        else:
            tab.until(f"!!{button}")
            tab.run(f"{button}.focus()")
            tab.key("Enter")
        tab.until("document.querySelectorAll('#lessons article').length > 0")
        assert tab.run("document.querySelector('#lessons h2').innerText").endswith(friendly_name(ALICE.author))
        first = tab.run("document.querySelector('#lessons article tbody').innerText")
        assert "1" in first and tab.run("location.hash").startswith("#/lineage?node=0&author=")
    asked = tab.until("document.querySelector('#lessons .asked .prompt')?.innerText")  # without a button
    assert asked and tab.run("document.querySelector('#lessons .asked').innerText.includes('Right is ')")
    above = "a.getBoundingClientRect().bottom <= a.nextSibling.querySelector('table').getBoundingClientRect().top"
    assert tab.run(f"[...document.querySelectorAll('#lessons .asked')].every(a => {above})")
    heads = tab.run("[...document.querySelectorAll('#lessons h4')].map(h => h.innerText)")
    order = [int(re.match(r"Learned in round (\d+), written ", head)[1]) for head in heads]
    assert order == sorted(order, reverse=True)
    assert not tab.logged


def test_the_first_sentence_prefers_nobody_where_shares_are_even_and_the_reason_comes_first(tab, page):
    show(tab, page, "now")
    assert tab.run("document.querySelector('#teachers').innerText").startswith("Shares are even: nobody was preferred.")
    assert tab.run("document.querySelector('#why').innerText").startswith(
        "Why? Authors take turns, and in a turn those come first whose groups have taught"
    )
    assert tab.run("document.querySelector('#sharing').innerText").startswith(
        "Did sharing help? Nodes alone have not been"
    )
    assert tab.run("document.querySelector('#trouble').innerText").startswith(
        "Trouble on the network: groups left unused: 1"
    )


def test_read_it_leads_to_the_very_group(tab, page):
    show(tab, page, "round?node=0&round=1")
    link = "[...document.querySelectorAll('main a')].find(a => a.innerText === 'read it')"
    slot = tab.until(f"new URLSearchParams({link}?.hash.split('?')[1]).get('group')")
    tab.click(link)
    tab.until(f"document.getElementById('{slot}')?.classList.contains('meant')")
    assert slot.startswith("slot-1-") and tab.run(f"document.getElementById('{slot}') !== null")
    box = tab.run(f"(r => [r.top, r.bottom])(document.getElementById('{slot}').getBoundingClientRect())")
    assert box[0] < 900 and box[1] > 0, "it is not to be seen"
    assert tab.run("document.querySelectorAll('.meant').length") == 1 and not tab.logged


def test_a_name_leads_to_what_there_is_to_show_of_it(tab, page):
    for where in ("now", "lineage", "round?node=0&round=1", "trust", "network"):
        show(tab, page, where)
        bare = "[...document.querySelectorAll('.who')].filter(e => !e.querySelector('a.name')).map(e => e.innerText)"
        assert not tab.run(bare), where
    show(tab, page, "lineage")
    tab.click("document.querySelector('.matrix tbody a.name')")
    tab.until("document.documentElement.dataset.ready === 'node'")
    text = tab.run("document.querySelector('main').innerText")
    assert friendly_name(ME.author) in text and ME.author.hex() in text and "Whom it taught" in text
    show(tab, page, "node?of=00")
    assert "There is nobody of that key here." in tab.run("document.querySelector('main').innerText")
    assert not tab.logged


def test_a_word_is_explained_by_keyboard_where_it_occurs_and_at_the_foot(tab, page):
    show(tab, page, "now")
    word = "[...document.querySelectorAll('main button.term')].find(b => b.innerText === 'groups')"
    tab.run(f"{word}.focus()")
    tab.key("Enter")
    said = tab.until("document.querySelector('.word:popover-open')?.innerText")
    assert said.startswith("group: All answers (or critiques, or revisions) that one node gives to one problem")
    listed = tab.run("[...document.querySelectorAll('#words dt')].map(e => e.textContent)")
    assert {"group", "bits", "margin", "beacon", "un-spoiled base", "held-out", "bootnode", "epoch"} <= {*listed}


def test_what_cannot_be_recomputed_is_said_below_its_row(tab, page):
    show(tab, page, "now")
    verdict = {"by": "a", "round": 1, "about": "", "of": None, "stage": "", "record": "0" * 64, "index": 0}
    verdict |= {"finding": "undecided", "tokens": 1, "bits": 0.0, "statistic": 0.0}
    tab.run(
        "(() => { const real = fetch; window.fetch = async (url, ...rest) => {"
        " if (url.startsWith('api/again')) return new Response(JSON.stringify({error: 'it is gone.'}), {status: 503});"
        " const answer = await real(url, ...rest); if (url !== 'api/trust') return answer;"
        f" const verdicts = [{json.dumps(verdict)}];"
        " return new Response(JSON.stringify({...await answer.json(), verdicts})); }; })()"
    )
    tab.run("location.hash = '#/trust'")
    tab.click("[...document.querySelectorAll('main button')].find(b => b.innerText === 'Recompute')")
    tab.until("document.querySelector('tr.found')?.innerText.trim() === 'Not checked: it is gone.'")
    assert tab.run(
        "(r => r.firstChild.colSpan === r.previousSibling.children.length)(document.querySelector('tr.found'))"
    )
    tab.run("location.hash = '#/round?node=0&round=1'")
    tab.click("document.querySelector('[data-key=reward]')")
    tab.until("document.querySelector('.verdict')?.innerText.trim() === 'Not checked: it is gone.'")


def test_what_peers_say_is_text_and_acts_on_nobody(tab, page):
    show(tab, page, f"lineage?node=0&author={MALLORY.author.hex()}")
    said = tab.until("[...document.querySelectorAll('#lessons .said')].map(e => e.textContent).join('\\n\\n')")
    assert HOSTILE[0] in said and HOSTILE[1] in said
    assert "abc\\u202egnp.exe\\u2066\\x00\\x1b[31m" in said and "\u202e" not in said
    assert "cut: 60,000 characters in all" in said and len(said) < 10_000
    show(tab, page, "network")
    assert HOSTILE[0][:60] in tab.run("document.body.innerText")
    assert tab.run("window.owned === undefined && !document.querySelector('main script, main img')")
    with pytest.raises(AssertionError, match="Trusted"):  # and where it tried to be markup, the policy would not let it
        tab.run("document.body.innerHTML = '<b>no</b>'")
    tab.logged.clear()


@pytest.mark.parametrize("where", TABS)
def test_every_view_is_drawn_on_a_phone_and_in_the_dark(tab, page, where):
    tab.size(390, 700)
    tab.scheme("dark")
    try:
        show(tab, page, where)
        assert len(tab.run("document.querySelector('main').innerText")) > 10
        for width in (390, 360):
            tab.size(width, 700)
            tab.until(f"document.documentElement.scrollWidth <= {width}")  # charts are drawn anew
            assert not tab.run(CUT)
        assert tab.run("getComputedStyle(document.documentElement).backgroundColor") == "rgb(19, 20, 22)"
        assert not tab.run("!!document.querySelector('main .error[role=alert]')")
        assert not tab.logged
    finally:
        tab.size(1180, 900)
        tab.scheme("light")


def test_axe_finds_nothing_serious(tab, page):
    axe = os.environ.get("AXE", "")
    if not os.path.isfile(axe):
        pytest.skip("there is no axe-core here ($AXE names its axe.min.js)")
    source = Path(axe).read_text()
    for scheme, rules in (("light", "{}"), ("dark", "{runOnly: ['color-contrast']}")):  # only colours are others then
        tab.scheme(scheme)
        for where in (*TABS, f"lineage?node=0&author={ALICE.author.hex()}", f"node?of={ME.author.hex()}"):
            show(tab, page, where)
            tab.run(source + "; 0")
            told = "v => [v.impact, v.id, v.nodes.map(n => n.html).slice(0, 3)]"
            wrong = f"axe.run({rules}).then(r => r.violations.map({told}))"
            assert not [one for one in tab.run(wrong) if one[0] in ("serious", "critical")], (where, scheme)
    tab.scheme("light")
    tab.logged.clear()


def test_the_first_paint_is_quick_and_small(tab, page):
    before = tab.bytes
    show(tab, page, "now")
    painted = tab.until("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    assert 50_000 < tab.bytes - before < 300_000 and painted < 5_000  # a busy machine; benchmarks/page.py measures it


def test_a_written_page_opens_from_disk(tab, directory, tmp_path):
    folder = Folder(directory)
    path = export(folder, tmp_path / "page.html", ALL)
    tab.open("about:blank")
    tab.open(f"{path.as_uri()}#/lineage?node=0&author={MALLORY.author.hex()}")
    said = tab.until("[...document.querySelectorAll('#lessons .said')].map(e => e.textContent).join('\\n\\n')")
    assert HOSTILE[0] in said and tab.run("window.owned === undefined")
    tab.run(f"location.hash = '#/lineage?node=0&author={ALICE.author.hex()}'")
    asked = tab.until("document.querySelector('#lessons .asked .prompt')?.innerText")
    assert asked and "Right is " in tab.run("document.querySelector('#lessons .asked').innerText")
    for where in TABS:
        tab.run(f"location.hash = '#/{where}'")
        tab.until(f"document.documentElement.dataset.ready === '{where}'")
        assert not tab.run("document.querySelector('main .error[role=alert]')?.innerText")
    assert not tab.logged


def test_lineage_is_there_while_a_swarm_runs(tab, tmp_path):
    """A simulated one, by its command: its page's address is printed at once, and ends with it."""
    words = [sys.executable, "-m", "experiments.run", "--config", "configs/quickstart.py:simulate-smoke"]
    words += [*SHAPES, "--config.rounds=400", "--config.checkpoint_every=1000"]  # all texts are kept
    words += ["--config.wandb.mode=disabled", "--workdir", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout
            url = next(line for line in process.stdout if line.startswith("page: ")).split()[1]
            tab.open("about:blank")
            tab.open(f"{url}#/lineage")
            end = time.monotonic() + 240
            while not tab.run("!!document.querySelector('.matrix td:not(.own) button')"):
                assert time.monotonic() < end and process.poll() is None, tab.run("document.body.innerText")
                time.sleep(0.2)
            tab.click("document.querySelector('.matrix td:not(.own) button')")
            tab.until("document.querySelectorAll('#lessons .said').length > 0", 240)  # written some rounds at a time
            assert process.poll() is None, "the swarm was over before it was looked at"
            tab.run("location.hash = '#/now'")
            first = tab.until("parseInt(document.querySelector('#state')?.innerText.match(/round (\\d+)/)?.[1]) || 0")
            tab.until(f"parseInt(document.querySelector('#state').innerText.match(/round (\\d+)/)[1]) > {first}", 120)
        finally:
            process.terminate()
            process.stdout.read()  # type: ignore[union-attr]
            process.wait(120)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "](page.html)" in report and (tmp_path / "run" / "page.html").stat().st_size < 3_000_000
