"""A live node whose model is a table: real rounds, network, journal and checkpoints, and no compilation.

    python -m tests.table_node '{"folder": ..., "port": ..., "seed_index": 0, ...}'     runs one as a process

It plays until a file named `enough` lies beside its folder, or its rounds are over. `pause` makes it stand still in an
effect of a round and stage, and leave a file named `paused`, so that a test can kill it there.
"""

import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from rlswarm_jax.audit.archive import Archive
from rlswarm_jax.audit.auditor import Auditor
from rlswarm_jax.checkpoint import Checkpoints
from rlswarm_jax.game.effects import Gather, Learn, Sample
from rlswarm_jax.game.player import Player
from rlswarm_jax.grpo.learner import TrainState
from rlswarm_jax.identity import author_of, simulated
from rlswarm_jax.journal import Journal
from rlswarm_jax.metrics import MetricsLog, read_rows, whole_bytes
from rlswarm_jax.node import LiveConfig, Node
from rlswarm_jax.qwen.verdict import Replay, Rounding
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from rlswarm_jax.swarm.mailbox import Mailbox
from rlswarm_jax.tasks.verifier import Verifier
from tests.game.hand_driver import TASKS, Speaker, answer, mixture, three_stages

SEED = 23
FOREVER = 600.0


class TableEngine:
    """Says what `Speaker` does; its weights are a digest of everything that was ever learned, in order.

    Log-probs are random: a process that makes a record again, instead of taking it from the journal, makes another.
    """

    def __init__(self):
        self.player: Player | None = None
        self.verifier = Verifier(TASKS, mixture())
        self.digest, self.base, self.lies = np.zeros(32, np.uint8), None, False
        self.nonce = -1.0 - secrets.randbelow(2**20) / 2**20

    def base_of(self, node: int):
        return self.base

    def state(self, node: int):
        return TrainState({"digest": self.digest}, (), np.zeros((), np.int32))

    def tensors(self, node: int):
        return {"digest": self.digest.view("<f4")} | ({"liar": np.zeros(1, "<f4")} if self.lies else {})

    def set_states(self, states):
        self.digest = np.asarray(states[0].params["digest"])

    def sample(self, requests):
        groups = answer(self.player.game, self.player.state, requests[0], (), Speaker(), self.player.identity)
        return {0: [[msgspec.structs.replace(s, logprobs=[self.nonce] * len(s.tokens)) for s in g] for g in groups]}

    def learn(self, requests):
        raw = msgspec.msgpack.encode(requests[0].groups)
        self.digest = np.frombuffer(hashlib.sha256(self.digest.tobytes() + raw).digest(), np.uint8)
        return {0: {"loss": 0.25, "updates": 1.0}}

    def evaluate(self, nodes):
        return {0: {"accuracy": 0.5}}


def replay(tensors, claimed) -> list[Replay]:
    """A table is no model: who lies is known by its weights."""
    lead = -2.0 if "liar" in tensors else 9.0
    sizes = [len(one) for of in claimed for one in of.completions]
    return [Replay(np.full(n, -3.0), np.full((n, 2), lead), np.full(n, 0.5), Rounding(1e-4, 1e-5)) for n in sizes]


def auditor_of(folder: Path, transport) -> Auditor:
    keep = 10_000  # rounds: they take no time, and to fetch weights does
    return Auditor(Archive(folder / "weights", 1 << 24, keep), replay, transport, 0.05, 1 << 20)


class PausingNode(Node):
    """Stands still at the start of an effect of one round, or at "Send": journaled by then, but not sent.

    pause: the effect, the stage and the round; what follows the last stage belongs to none, "". From that round on,
    too: "Fetch" others' weights, "Replay" what they said, "Show" or "Read" own weights to others.
    """

    pause: tuple[str, str, int] | None = None
    gathered = (0, 0)  # the round, and how many of its stages are over
    sample_seconds = 0.0
    paused: Path

    def _fulfil(self, effect, should_stop):
        if isinstance(effect, Sample):
            time.sleep(self.sample_seconds)
        self._stand_still(type(effect).__name__)
        result = super()._fulfil(effect, should_stop)
        if isinstance(effect, Gather):
            self.gathered = (effect.round, self._stages_over() + 1)
        return result

    def _stages_over(self) -> int:
        return self.gathered[1] if self.gathered[0] == self.player.state.round else 0

    def _stand_still(self, name: str) -> None:
        stage = (*self.player.game.stages, "")[self._stages_over()]
        if self.pause == (name, stage, self.player.state.round):
            self.paused.touch()
            time.sleep(FOREVER)

    def stands_still(self, name: str, act: Callable) -> Callable:
        """The same act, but for the first time from the pause's round on."""

        def standing(*given):
            if self.pause and self.pause[0] == name and self.player.state.round >= self.pause[2]:
                self.paused.touch()
                time.sleep(FOREVER)
            return act(*given)

        return standing


class ShownShelf:
    """What a node shows, which stands still where it is told to."""

    def __init__(self, node: PausingNode, archive: Archive):
        self.path = node.stands_still("Show", archive.path)
        self.read = node.stands_still("Read", archive.read)


def build(told: dict) -> tuple[PausingNode, Gossip, Player, TableEngine]:
    """told: folder, index, rounds, port, bootnodes, peers, deadline, sample_seconds, pause; auditors, liar: or not."""
    folder, own = Path(told["folder"]), simulated(SEED, told["index"])
    folder.mkdir(parents=True, exist_ok=True)
    audits = {"auditors": told.get("auditors", 0)}
    game = three_stages(own, rounds=told["rounds"], swarm="tables", max_staleness=4, **audits)
    mailbox = Mailbox(
        Inbox(game.swarm, own.author, game.max_staleness, STAGES, game.rounds),
        [author_of(peer) for peer in told["peers"]],
        [author_of(address.rpartition("/")[2]) for address in told["bootnodes"]],
    )
    config = GossipConfig(swarm=game.swarm, port=told["port"], bootnodes=tuple(told["bootnodes"]))
    transport = Gossip(own, config, mailbox.on_record, mailbox.on_peers, trusts=mailbox.trusts)
    journal = Journal(folder / "journal.sqlite")
    player, engine = Player(0, game, own, journal, mailbox.inbox), TableEngine()
    engine.player, engine.lies = player, told.get("liar", False)
    log = MetricsLog(folder / "metrics.jsonl", whole_bytes(folder / "metrics.jsonl"))
    node = PausingNode(
        player,
        engine,
        transport,
        mailbox,
        journal,
        Checkpoints(folder / "checkpoints"),
        LiveConfig(deadline=told["deadline"], join=5.0, checkpoint_every=4),
        lambda report: log.write({"node": told["index"], "round": report.round, **report.metrics}),
        auditor_of(folder, transport),
    )
    node.paused, node.sample_seconds = folder / "paused", told["sample_seconds"]
    node.pause = tuple(told["pause"]) if told["pause"] else None
    auditor = node._auditor
    transport.shows(ShownShelf(node, auditor.archive))
    auditor._run = node.stands_still("Replay", auditor._run)
    transport.fetch_weights = node.stands_still("Fetch", transport.fetch_weights)
    if node.pause:
        send = transport.publish

        def publish(raw: bytes) -> None:
            node._stand_still("Send")
            send(raw)

        transport.publish = publish
    return node, transport, player, engine


def main(told: dict) -> None:
    node, transport, _, engine = build(told)
    folder = Path(told["folder"])
    transport.start()
    (folder / "listens").touch()
    node.restore({row["round"] for row in read_rows(folder / "metrics.jsonl")})
    node.run((folder.parent / "enough").exists)
    transport.close()
    (folder / "digest").write_bytes(engine.digest.tobytes())


def learned(journal: Journal, game) -> bytes:
    """The weights that a node must end with, from its journal alone."""
    engine, player = TableEngine(), Player(0, game, simulated(SEED, 0), journal)
    for entry in journal.read(0, 0):
        fed = player.feed(entry)
        if isinstance(fed.effect, Learn):
            engine.learn({0: fed.effect})
    return engine.digest.tobytes()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
