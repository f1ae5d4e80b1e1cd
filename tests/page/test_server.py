"""The server answers its own page alone, takes nothing, tells no secret, and bounds what it says."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import msgspec
import pytest

from experiments import page as command
from rlswarm_jax import files
from rlswarm_jax.game.effects import Gather
from rlswarm_jax.game.player import BEGIN
from rlswarm_jax.identity import friendly_name
from rlswarm_jax.journal import Entry, Journal
from rlswarm_jax.page import views
from rlswarm_jax.page.beside import beside
from rlswarm_jax.page.export import ALL, export
from rlswarm_jax.page.folder import Folder
from rlswarm_jax.page.server import FILES, MOST_STREAMS
from rlswarm_jax.records.envelope import open_envelope, seal
from tests.game.hand_driver import ALICE, BOB, ME
from tests.page.runs import play, write
from tests.page.served import served

SECRET = "5ec4e7" * 10 + "beef"  # 64 hexadecimal digits, as a key's
VIEWS = ("now", "learning", "lineage", "trust", "network", "ledger", "round?node=0&round=1")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A swarm's, with private things wherever such are, and in the config the address of an endpoint of one's own."""
    found = write(tmp_path_factory.mktemp("run"), play(), "swarm")
    for home in (found, *(found / f"node-{i}" for i in range(3))):
        (home / "chain").mkdir()
        for name in ("node.key", "chain/owner.key", "chain/outbox.sqlite", "peers.json", ".netrc", "wandb.key"):
            (home / name).write_text(SECRET)
        config = json.loads((home / files.CONFIG_FILE).read_text())
        config["chain"]["endpoint"] = f"https://me:{SECRET}@chain.example/"
        (home / files.CONFIG_FILE).write_text(json.dumps(config))
        (home / "log.txt").write_text(f"WARNING the endpoint https://me:{SECRET}@chain.example/ is away\n")
    return found


@pytest.fixture(scope="module")
def page(directory):
    with served(directory) as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/api/now", "/page.js", "/nothing", "/api/nothing"])
def test_every_answer_has_its_policy(page, path):
    _, headers, _ = page.ask(path)
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::]:{port}"])
def test_a_name_that_was_made_to_lead_here_is_refused(page, host):
    for path in ("/", "/api/lineage", "/api/events"):
        status, _, raw = page.ask(path, Host=host.format(port=page.port))
        assert status in (400, 421) and b"keen" not in raw


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}"])
def test_its_own_names_are_answered(page, host):
    assert page.ask("/api/now", Host=host.format(port=page.port))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_sites_get_nothing(page, headers):
    given = {name: value.format(port=page.port) for name, value in headers.items()}
    status, _, raw = page.ask("/api/lineage", **given)
    assert status == 403 and json.loads(raw)["error"]
    assert page.ask("/page.js", **given)[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_takes_nothing(page, method):
    for path in ("/", "/api/now", "/api/again"):
        assert page.ask(path, method)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/node-0/node.key",
        "/../config.json",
        "/%2e%2e/config.json",
        "/..%2fnode.key",
        "/api/..%2f..%2fnode.key",
        "/package.json",
    ],
)
def test_no_file_but_the_page_s_own_is_to_be_had(page, path):
    status, _, raw = page.ask(path)
    assert status in (403, 404) and SECRET.encode() not in raw


def test_no_answer_and_no_export_has_a_secret(page, directory, tmp_path):
    """Nor a part of it that would be of use."""
    asked = [f"/api/{name}" for name in VIEWS]
    asked += [
        f"/api/lessons?node=0&author={ALICE.author.hex()}",
        "/api/lessons?node=0",
        *(f"/{name}" for name in FILES),
    ]
    for path in asked:
        raw = page.ask(path)[2]
        assert raw and SECRET[:40].encode() not in raw, path
    folder = Folder(directory)
    folder.refresh()
    every = [views.answer(folder, name, given) for name, given in [("now", {}), ("trust", {}), ("network", {})]]
    assert SECRET[:40] not in export(folder, tmp_path / "page.html", ALL).read_text()
    assert not any(SECRET[:40].encode() in raw for raw in every)
    assert "me:" not in json.dumps(page.json("/api/now"))


def test_what_cannot_be_computed_again_is_not_tried(page):
    for query in ("", "what=shell", "what=reward&node=77", f"what={'x' * 500}"):
        status, _, raw = page.ask(f"/api/again?{query}")
        assert status == 404 and json.loads(raw)["error"].endswith(".")


def test_an_answer_that_is_too_long_is_not_sent(page, monkeypatch):
    monkeypatch.setattr(views, "MAX_ANSWER", 100)
    status, _, raw = page.ask("/api/lineage")
    assert status == 404 and "at most 100 are sent" in json.loads(raw)["error"]


def test_a_change_is_told_and_streams_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("rlswarm_jax.page.server.HEARTBEAT", 1e6)  # so that no write shows who has left
    directory = write(tmp_path, play(), "swarm")
    with served(directory) as page:
        assert page.json("/api/now")["nodes"]
        connections = [http.client.HTTPConnection("127.0.0.1", page.port, timeout=20) for _ in range(MOST_STREAMS)]
        streams = []
        for connection in connections:
            connection.request("GET", "/api/events", headers={"Host": f"127.0.0.1:{page.port}"})
            streams.append(connection.getresponse())
        assert all(stream.status == 200 for stream in streams)
        assert streams[0].getheader("Content-Type") == "text/event-stream"
        assert page.ask("/api/events")[0] == 503
        journal = Journal(directory / "node-0" / files.JOURNAL_FILE)
        journal.write(Entry(0, 7, 0, BEGIN, b"", time.time()))
        first = _event(streams[0])
        journal.write(Entry(0, 7, 1, "Pin", b"", time.time()))
        assert _event(streams[0]) > first
        journal.close()
        for connection in connections:
            connection.close()
        for stream in streams:
            stream.close()
        end = time.monotonic() + 60  # a place is free again soon after its visitor has left
        while _stream_status(page.port) != 200:
            assert time.monotonic() < end
            time.sleep(0.1)


def _stream_status(port: int) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/api/events", headers={"Host": f"127.0.0.1:{port}"})
        return connection.getresponse().status


def _event(stream) -> int:
    """The number of the next one."""
    while not (line := stream.readline()).startswith(b"data: "):
        assert line
    return int(line.removeprefix(b"data: "))


def test_rewards_votes_and_prompts_are_computed_again(tmp_path):
    """By a process with the game; of a row that says otherwise it says so."""

    def lie(row):
        if (row["node"], row["round"]) == (1, 1):
            row["lessons"] = [(*lesson[:4], [1 - r for r in lesson[4]], lesson[5]) for lesson in row["lessons"]]
        return row

    with served(write(tmp_path, play(), "simulated", lie)) as page:
        found = page.json("/api/again?what=reward&node=0&round=1")
        assert found["equal"] is True and found["command"].startswith("python -m experiments.show ")
        assert page.json("/api/again?what=reward&node=1&round=1")["equal"] is False
        votes = page.json("/api/again?what=vote&node=0&round=1")
        assert votes["equal"] is True and "6 votes" in votes["what"]
        turns = page.json("/api/prompts?node=0&round=1")["turns"]
        by_stage = {turn["stage"]: turn for turn in turns}
        assert by_stage.keys() == {"answer", "critique", "revise"}
        assert by_stage["answer"]["right"] and by_stage["answer"]["prompt"]["text"]
        assert by_stage["answer"]["says"] == ["right", "not right", "not right", "not right"]
        of_alice = page.json(f"/api/prompts?node=0&round=1&author={ALICE.author.hex()}")["turns"]
        assert of_alice and of_alice != turns
        assert page.ask("/api/again?what=reward&node=0&round=9")[0] == 503


def test_a_vote_that_does_not_follow_is_not_equal(tmp_path):
    found = play()
    mine = found[1][ME]

    def lie(signed):
        record = signed.record
        if (record.author, record.stage) != (BOB.author, "critique"):
            return signed
        group = record.groups[0]
        false = msgspec.structs.replace(group, vote=2 if group.vote == 1 else 1)
        return open_envelope(seal(msgspec.structs.replace(record, groups=[false, *record.groups[1:]]), BOB))

    mine.results[:] = [
        [*map(lie, result)] if isinstance(effect, Gather) else result
        for effect, result in zip(mine.effects, mine.results, strict=True)
    ]
    with served(write(tmp_path, found, "simulated")) as page:
        votes = page.json("/api/again?what=vote&node=0&round=1")
        assert votes["equal"] is False and "1 groups of peers had votes that do not follow" in votes["differs"][0]
        assert page.json("/api/again?what=vote&node=1&round=1")["equal"] is True


# --- the command, and the page beside a run


def test_a_port_in_use_is_a_sentence(directory, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command.main([str(directory), "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 cannot be listened on" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["{tmp}"], [], ["{tmp}", "--config", "configs/quickstart.py"]])
def test_what_is_no_run_is_a_sentence(tmp_path, capsys, words):
    assert command.main([word.format(tmp=tmp_path) for word in words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_goes_on_where_there_can_be_no_page(directory):
    said = []
    with socket.create_server(("127.0.0.1", 0)) as taken, beside(directory, said.append, taken.getsockname()[1]):
        said.append("the run")
    assert said[0].startswith("there is no page of this run") and said[1] == "the run"


def test_a_page_beside_a_run_begins_with_its_first_visitor_and_ends_with_the_run(directory):
    said: list[str] = []
    with beside(directory, said.append):
        assert not _children()
        url = said[0].split()[1]
        with urllib.request.urlopen(f"{url}api/now", timeout=60) as answer:
            assert len(json.load(answer)["nodes"]) == 3
        (child,) = _children()
    assert not _children()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=5)


def test_a_page_nobody_comes_to_leaves_nothing(directory):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with beside(directory, lambda line: None):
        pass
    assert before is None or len(os.listdir("/proc/self/fd")) == before


def _children() -> list[int]:
    import psutil

    return [p.pid for p in psutil.Process().children() if "rlswarm_jax.page.server" in p.cmdline()]


def test_the_page_s_processes_load_no_jax():
    code = (
        "import sys, rlswarm_jax.page.server, rlswarm_jax.page.export, experiments.run; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_the_command_serves_a_run(directory):
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.page", str(directory)], stdout=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline().split()[1]
        with urllib.request.urlopen(f"{url}api/lineage", timeout=60) as answer:
            learners = json.load(answer)["learners"]
        assert learners[0]["name"] == friendly_name(ME.author)
    finally:
        process.terminate()
        assert process.wait(20) in (0, -15)
