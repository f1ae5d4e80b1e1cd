"""Which weights of a run leave, when, and that what left comes to be on the chain, whatever was killed in between."""

import threading

import msgspec
import numpy as np
import pytest

from configs import common
from configs.fields import FieldError
from rlswarm_jax.game.player import RoundReport
from rlswarm_jax.publish.queue import Entry, Queue
from rlswarm_jax.running import publishing
from rlswarm_jax.running.publishing import Publishing


class Engine:
    """Whose weights say node and round."""

    round = -1

    def tensors(self, node):
        return {"w": np.array([node, self.round], np.float32)}


class Keeper:
    """An account that settles at some time."""

    def __init__(self):
        self.settled, self.told = False, []

    def publish(self, weights, uri):
        if len(uri) > 256:
            raise ValueError("a URI of at most 256 bytes.")
        self.told += [(weights.hex(), uri)] * self.settled
        return self.settled


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch):
    def stage(config, workdir, queue, offer, to, private, again=False):
        entry = Entry(offer.weights.hash.hex(), offer.node, offer.name, offer.round, to.replace("{node}", offer.name))
        queue.stage(entry, lambda directory: (directory / "w").write_bytes(offer.weights.tensors["w"].tobytes()))

    monkeypatch.setattr(publishing, "stage", stage)


def play(tmp_path, rounds=7, nodes=2, finished=True, keeper=None, **fields):
    config = common.swarm("test")
    config.rounds = 7
    for name, value in fields.items():
        config.publish[name] = value
    engine, rows = Engine(), []
    names = [f"node-{number}" for number in range(nodes)]
    made = Publishing(config, tmp_path, engine, names, keeper)
    then = made.after(rows.append)
    for engine.round in range(rounds):
        for node in range(nodes):
            then(RoundReport(node, engine.round, 0.0, {"x": 1.0}))
        if made._background:
            assert made._background.finish(lambda: False) == ""
    if finished:
        made.finish(rounds, lambda: False)
    made.close()
    return [(one.node, one.round) for one in Queue(tmp_path).sent()], rows


def test_it_is_off_unless_asked_for(tmp_path):
    sent, rows = play(tmp_path)
    assert not sent and all(row.metrics == {"x": 1.0} for row in rows) and not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name == "publish" and thread.is_alive()]


@pytest.mark.parametrize(
    ("every", "finished", "rounds"),
    [(3, True, [2, 5, 6]), (3, False, [2, 5]), (0, True, [6]), (0, False, []), (7, True, [6]), (1, True, [*range(7)])],
)
def test_every_so_many_rounds_and_at_the_end_the_first_node(tmp_path, every, finished, rounds):
    sent, rows = play(tmp_path, to=f"{tmp_path}/out", every=every, finished=finished)
    assert sent == [(0, round_) for round_ in rounds]
    counted = sum(row.metrics.get("publish/sent", 0) for row in rows)
    assert counted == sum(round_ < 6 for round_ in rounds) and all(
        row.node == 0 or row.metrics == {"x": 1.0} for row in rows
    )


def test_each_node_where_the_place_names_it(tmp_path):
    sent, _ = play(tmp_path, to=f"{tmp_path}/out/{{node}}", every=3)
    assert sorted(sent) == [(node, round_) for node in (0, 1) for round_ in (2, 5, 6)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["node-0", "node-1"]


def test_what_was_sent_before_a_kill_is_put_on_the_chain_once_it_can_be(tmp_path):
    queue = Queue(tmp_path)
    for number in (1, 2):
        queue.stage(Entry(f"{number:02x}" * 32, 0, "node-0", number, f"{tmp_path}/out"), lambda directory: None)
        queue.send(queue.waiting()[0])
    keeper = Keeper()
    play(tmp_path, rounds=2, finished=False, keeper=keeper)
    assert not keeper.told
    keeper.settled = True
    play(tmp_path, rounds=3, finished=False, keeper=keeper)
    assert keeper.told == [("02" * 32, queue.sent()[-1].uri)]  # the newest, said once
    play(tmp_path, to=f"{tmp_path}/out", every=2, keeper=keeper)  # another process says the same again
    later = [one.uri for one in queue.sent()[1:] if one.round != 5]  # which the last took the place of
    assert [uri for _, uri in keeper.told] == [queue.sent()[1].uri, *later]


def test_the_last_settlement_is_for_the_last_weights(tmp_path):
    """The chain takes one publication a settlement, and the last of these comes in the last round, before they are."""

    class Once(Keeper):
        def publish(self, weights, uri):
            found, self.settled = super().publish(weights, uri), False
            return found

    keeper = Once()

    class Reports(list):
        def append(self, report):
            keeper.settled = report.round == 6
            super().append(report)

    config = common.swarm("test")
    config.rounds, config.publish.to, config.publish.every = 7, f"{tmp_path}/out", 3
    engine, rows = Engine(), Reports()
    made = Publishing(config, tmp_path, engine, ["node-0"], keeper)
    then = made.after(rows.append)
    for engine.round in range(7):
        then(RoundReport(0, engine.round, 0.0, {}))
        assert made._background.finish(lambda: False) == ""
    assert not keeper.told and made.finish(7, lambda: False)
    made.close()
    assert keeper.told == [(Queue(tmp_path).sent()[-1].weights, Queue(tmp_path).sent()[-1].uri)]
    assert Queue(tmp_path).sent()[-1].round == 6


def test_a_place_that_does_not_fit_on_the_chain_ends_nothing(tmp_path, caplog):
    queue, keeper = Queue(tmp_path), Keeper()
    keeper.settled = True
    queue.stage(entry := Entry("01" * 32, 0, "node-0", 1, f"{tmp_path}/out"), lambda directory: None)
    queue._note(msgspec.structs.replace(entry, uri="x" * 300))
    play(tmp_path, rounds=3, finished=False, keeper=keeper)
    said = [record.getMessage() for record in caplog.records if "does not fit on the chain" in record.getMessage()]
    assert len(said) == 1 and not keeper.told


@pytest.mark.parametrize("to", ["sftp://ada:secret@host", "hf://secret", "https://host/?secret"])
def test_a_place_that_is_none_is_refused_and_not_repeated(to):
    config = common.swarm("test")
    config.publish.to = to
    with pytest.raises(
        FieldError, match=r"config.publish.to is not what it can be; expected '' or hf://USER"
    ) as caught:
        common.FIELDS["publish.to"].range.check("publish.to", to)
    assert "secret" not in str(caught.value)


def test_a_node_without_end_says_when():
    config = common.swarm("test")
    config.driver, config.rounds, config.publish.to = "node", 0, "out"
    config.chain.endpoint = "none"
    with pytest.raises(FieldError, match=r"config\.publish\.every is 0, but a node that plays until it is stopped"):
        common.check_together(config)
    config.publish.every = 10
    common.check_together(config)
