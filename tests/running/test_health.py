"""Whether a node says of itself over HTTP what is true, and to nobody else's page."""

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from configs import node
from configs.fields import FieldError
from rlswarm_jax.errors import TransientError
from rlswarm_jax.running import arguments, health
from rlswarm_jax.running.exporter import MOST_VALUES, SUMMED, Exporter, key_of
from rlswarm_jax.running.live import _health_of
from rlswarm_jax.status import STATES, Network, Parting, Peer, Status
from tests.metric_names import documented
from tests.test_node import Live, Wire, short_waits  # noqa: F401

DASHBOARD = Path(__file__).parent.parent.parent / "docs" / "grafana.json"


class Asked:
    def __init__(self, url: str):
        self.port = int(url.rpartition(":")[2])

    def ask(self, path: str, method: str = "GET", host: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def metrics(self) -> dict[str, dict[tuple, float]]:
        """By name of the sample and its labels, read by Prometheus's own parser."""
        found: dict[str, dict[tuple, float]] = {}
        for family in text_string_to_metric_families(self.ask("/metrics")[1].decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
        return found


@pytest.fixture
def told():
    return Status(peer_id="me", network=lambda: Network([Peer("a", True, 0.0), Peer("b", False, 0.0)]))


@pytest.fixture
def exporter(told):
    return Exporter(told, {"peer_id": "me", "name": "keen-fox", "swarm": "tests"})


@pytest.fixture
def asked(told, exporter):
    with health.served("127.0.0.1:0", health.Health(told, exporter)) as url:
        yield Asked(url)


def test_a_node_is_asked_through_its_whole_life(told, asked, monkeypatch):
    now = [time.monotonic()]
    told._clock = lambda: now[0]

    def codes() -> tuple[str, int, int]:
        well, raw = asked.ask("/healthz")
        ready, same = asked.ask("/readyz")
        found = json.loads(raw)
        assert found["state"] == json.loads(same)["state"] and found["reason"].endswith(".")
        states = {state: value for (state,), value in asked.metrics()["rlswarm_state"].items()}
        assert states == {state: float(state == found["state"]) for state in STATES}
        return found["state"], well, ready

    told.begins("compiles its model's programs")
    assert codes() == ("starting", 200, 503)
    told.begins("waits for its peers' answers", 0, "answer", at_most=30.0)
    assert codes() == ("ready", 200, 200)
    told.behind = lambda: 3
    assert codes() == ("behind", 200, 503)
    told.behind = lambda: 0
    now[0] += 91
    assert codes() == ("stalled", 503, 503)
    told.begins("learns", 0, "")
    assert codes() == ("ready", 200, 200)


def test_metrics_are_the_rows_of_the_rounds(told, exporter, asked):
    told.network = lambda: Network(
        [Peer("a", True, 0.0), Peer("b", False, 0.0)], [Parting("c", "why", time.monotonic() + 9)]
    )
    told.begins("learns", 2, "")
    rows = [
        {"records/received": 3.0, "records/rejected/bad signature": 1.0, "held_out/accuracy/chain_sum": 0.25},
        {"records/received": 4.0, "records/rejected/duplicate": 2.0, "reward/mean": 0.5, "received_from/02ab": 1.0},
        {"records/received": 5.0, "records/rejected/duplicate": 7.0, "seconds/learn": 0.5, "chain/EndpointDown": 2.0},
    ]
    for row in rows:
        exporter.on_round(row)
    found = asked.metrics()
    assert found["rlswarm_records_received_total"] == {(): 12.0}
    assert found["rlswarm_records_rejected_total"] == {("bad signature",): 1.0, ("duplicate",): 9.0}
    assert found["rlswarm_held_out_accuracy_of"] == {("chain_sum",): 0.25}
    assert found["rlswarm_reward_mean"] == {(): 0.5}, "the latest round that has one"
    assert found["rlswarm_seconds_total"] == {("learn",): 0.5}
    assert found["rlswarm_chain_problems_total"] == {("EndpointDown",): 2.0}
    assert found["rlswarm_rounds_total"] == {(): 3.0} and found["rlswarm_round"] == {(): 2.0}
    assert found["rlswarm_peers"] == {("connected",): 2.0, ("mesh",): 1.0, ("refused",): 1.0}
    assert abs(time.time() - found["rlswarm_last_round_timestamp_seconds"][()]) < 30
    assert found["process_resident_memory_bytes"][()] > 1e7 and found["rlswarm_threads"][()] >= 2
    assert not [name for name in found if "received_from" in name], "keys are free, and so would labels be"


def test_labels_are_bounded(exporter, asked):
    exporter.on_round({f"groups/unused/{number}": 1.0 for number in range(5000)})
    assert len(asked.metrics()["rlswarm_groups_unused_total"]) == MOST_VALUES


def filled() -> list[str]:
    return [re.sub(r"<[^>]*>", "x", name) for name in documented() if name not in ("node", "name", "round", "lessons")]


def test_what_adds_up_is_counted_and_nothing_else_by_the_units_of_the_documents():
    whole = {"completions", "groups", "tokens", "answers", "updates", "records", "peers", "bytes", "messages", "times"}
    whole |= {"announcements", "connections", "greetings", "tries", "s", "checkpoints", "publications", "challenges"}
    whole |= {"cases", "circuits", "files, versions"}
    for name, (unit, _) in documented().items():
        if SUMMED.fullmatch(re.sub(r"<[^>]*>", "x", name)):
            assert unit in whole, f"{name}, in {unit}, does not add up"
    shares = [name for name, (unit, _) in documented().items() if unit.startswith(("share", "mark", "nats", "ratio"))]
    assert shares and not [name for name in shares if SUMMED.fullmatch(name)]


def test_every_documented_name_has_one_of_its_own():
    made = [
        key_of(name) for name in filled() if not name.startswith(("received_from", "learned_from", "audit/distrusted/"))
    ]
    assert None not in made and len(set(made)) == len(made) > 100
    kinds: dict[str, set] = {}
    for name, key in zip(filled(), map(key_of, filled()), strict=True):
        if key:
            kinds.setdefault(key[0], set()).add((key[1], bool(SUMMED.fullmatch(name))))
    mixed = {name: of for name, of in kinds.items() if len(of) > 1}
    assert not mixed, "a family has one label, and is a counter or a gauge"


def queried() -> set[str]:
    board = json.loads(DASHBOARD.read_text())
    texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    texts += [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    assert len(texts) > 20
    return {name for text in texts for name in re.findall(r"\b(?:rlswarm|process)_\w+", text)}


def test_every_metric_that_the_dashboard_asks_for_is_exported(told, exporter, asked):
    told.begins("learns", 2, "")
    exporter.on_round(dict.fromkeys(filled(), 1.0))
    missing = queried() - asked.metrics().keys()
    assert not missing


def test_a_node_that_plays_exports_what_the_dashboard_shows_of_any_node(tmp_path):
    wire = Wire()
    nodes = [Live(tmp_path / str(i), wire, i, named=range(2), stages=3, rounds=3) for i in range(2)]
    exporter = Exporter(nodes[0].node.status, {})
    first = nodes[0].node._on_round
    nodes[0].node._on_round = lambda report: (first(report), exporter.on_round(report.metrics))
    threads = [one.start() for one in nodes]
    for thread in threads:
        thread.join(60)
    with health.served("127.0.0.1:0", health.Health(nodes[0].node.status, exporter)) as url:
        found = Asked(url).metrics()
    of_network = {"rlswarm_network_bytes_in_total", "rlswarm_network_bytes_out_total", "rlswarm_network_dropped_total"}
    of_model = {"rlswarm_learn_grad_norm", "rlswarm_learn_entropy"}
    sometimes = {"rlswarm_records_rejected_total", "rlswarm_groups_unused_total", "rlswarm_peers_given_up_total"}
    rest = {"rlswarm_chain_round", "rlswarm_chain_waiting", "rlswarm_audit_found_total"}
    assert not queried() - of_network - of_model - sometimes - rest - found.keys()
    assert found["rlswarm_rounds_total"] == {(): 3.0}
    assert found["rlswarm_records_received_total"][()] == nodes[0].total("records/received")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:1", ""])
def test_no_other_name_leads_to_it(asked, host):
    """A site whose name was made to lead here would be answered otherwise."""
    assert asked.ask("/healthz", host=host or " ")[0] == 421
    assert asked.ask("/healthz", host=f"localhost:{asked.port}")[0] == 200


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/healthz", "POST", 501), ("/readyz?x=1", "HEAD", 503)]
)
def test_what_there_is_not(asked, path, method, status):
    code, body = asked.ask(path, method)
    assert code == status and (method != "HEAD" or not body)


def test_those_that_say_nothing_keep_nobody_out_for_long_and_nothing_of_it_stays(asked, monkeypatch):
    monkeypatch.setattr(health._Handler, "timeout", 0.5)
    with contextlib.ExitStack() as stack:
        for _ in range(3 * health.MOST):
            stack.enter_context(socket.create_connection(("127.0.0.1", asked.port)))
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if asked.ask("/healthz")[0] == 200:
                    break
            assert time.monotonic() < deadline
    time.sleep(0.6)
    assert sum("process_request" in thread.name for thread in threading.enumerate()) <= health.MOST


@pytest.mark.parametrize(
    "raw", [b"\x16\x03\x01\x00\xff", b"GET\r\n\r\n", b"A" * 100_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500]
)
def test_what_is_no_http_ends_nothing(asked, raw, capfd):
    with socket.create_connection(("127.0.0.1", asked.port), timeout=10) as connection, contextlib.suppress(OSError):
        connection.sendall(raw + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass
    assert asked.ask("/healthz")[0] == 200 and capfd.readouterr().err == ""


def test_a_port_in_use_is_one_sentence(asked):
    taken, said = f"127.0.0.1:{asked.port}", rf"^cannot listen on 127.0.0.1:{asked.port}: .* in use; choose .*\.$"
    with pytest.raises(TransientError, match=said), health.served(taken, None):
        pass


def test_a_restarted_node_has_the_same_port_at_once(told, exporter):
    """The connections of the one before are not forgotten by the system for a minute."""
    address = "127.0.0.1:0"
    for _ in range(3):
        with health.served(address, health.Health(told, exporter)) as url:
            assert Asked(url).ask("/healthz")[0] == 200
            address = url.removeprefix("http://")


def test_nowhere_is_nowhere():
    with health.served("", None) as url:
        assert url == ""


@pytest.mark.parametrize(
    "address", ["localhost:1", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:-1", ":1", "http://127.0.0.1:1"]
)
def test_an_address_that_is_none_is_refused(address):
    config = node.get_config()
    config.swarm.health = address
    with pytest.raises((FieldError, ValueError), match=r"config\.swarm\.health"):
        arguments.check(config)


@pytest.mark.parametrize("address", ["", "127.0.0.1:0", "[::1]:9464", "0.0.0.0:9464"])
def test_an_address_that_is_one_is_taken(address):
    config = node.get_config()
    config.swarm.health = address
    arguments.check(config)


def test_nodes_of_a_swarm_have_ports_of_their_own():
    assert [_health_of("127.0.0.1:9464", index) for index in range(3)] == [
        f"127.0.0.1:{port}" for port in (9464, 9465, 9466)
    ]
    assert _health_of("127.0.0.1:0", 2) == "127.0.0.1:0" and _health_of("", 2) == ""
