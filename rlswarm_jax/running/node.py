"""Runs one live node: it joins the peers it was told of, plays rounds, and leaves the same files as any run.

    python -m rlswarm_jax.running.node DIR        the node whose folder the launcher of a local swarm has prepared

The network starts first, so that peers can find the node while jax loads.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ml_collections
from rich.console import Console
from rich.logging import RichHandler

from rlswarm_jax import disk, identity, keystore, launch
from rlswarm_jax.errors import DiskError, TransientError, UsageError
from rlswarm_jax.files import (
    BEST_FOLDER,
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    EVIDENCE_FOLDER,
    JOURNAL_FILE,
    METRICS_FILE,
    NODE_FILE,
    STATUS_FILE,
    WEIGHTS_FOLDER,
    write_whole,
)
from rlswarm_jax.journal import Journal, JournalError
from rlswarm_jax.metrics import MetricsError, read_rows, whole_bytes
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import STAGES, RecordError
from rlswarm_jax.running import account, folder, health, joining, moving, notify, rotating
from rlswarm_jax.running.arguments import Arguments, code_of
from rlswarm_jax.running.exporter import Exporter
from rlswarm_jax.status import Status
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from rlswarm_jax.swarm.mailbox import Mailbox
from rlswarm_jax.swarm.memory import FILE, Memory
from rlswarm_jax.swarm.transport import NetworkError
from rlswarm_jax.tasks.verifier import NoWorkerError, VerifierError

if TYPE_CHECKING:
    from rlswarm_jax.game.player import RoundReport
    from rlswarm_jax.keeper import Keeper  # and with it the chain's libraries
    from rlswarm_jax.multihost import Channel  # and with it jax
    from rlswarm_jax.running.upgrading import Upgrades

log = logging.getLogger("rlswarm_jax.node")
SAID = logging.getLogger("rlswarm_jax.running.node.said")  # what is printed anyway; only a log file has it
JOIN_SECONDS = 10.0  # to find a peer through the bootnodes, before going on without


def run(arguments: Arguments) -> int:
    """A node started by hand. Raises UsageError for whatever the user can mend."""
    config, workdir = arguments.config, arguments.workdir
    with folder.opened(config, workdir, arguments.resume) as resumes, logged(workdir):
        return play(config, workdir, resumes, words=arguments.words)


def main(workdir: Path) -> int:
    """A node started by a launcher: it stops when its parent is gone."""
    launch.follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    config = ml_collections.ConfigDict(json.loads((workdir / CONFIG_FILE).read_text())).lock()

    def launched() -> int:
        with folder.lock(workdir):
            return play(config, workdir, (workdir / JOURNAL_FILE).exists())

    return code_of(launched)


@dataclasses.dataclass(frozen=True)
class Present:
    """A node that others can reach already."""

    identity: identity.Identity
    key: Path
    mailbox: Mailbox
    transport: Gossip
    chain: "Keeper | None"
    status: Status
    exporter: Exporter

    @property
    def name(self) -> str:
        return identity.friendly_name(self.identity.author)


def play(
    config: ml_collections.ConfigDict,
    workdir: Path,
    resumes: bool,
    channel: "Channel | None" = None,
    words: Sequence[str] = (),
) -> int:
    """Plays until done or told to stop. Raises UsageError for whatever the user can mend.

    channel: to the other processes of this node, if there are any. words: the arguments that it was started with.
    """
    console = Console()
    _log_to(console)
    key = Path(config.swarm.key or workdir / launch.KEY_FILE)
    try:
        own = identity.load_or_create(key)
    except identity.KeyFileError as error:
        raise UsageError(str(error)) from error
    keystore.forget()
    stages = STAGES[: config.game.stages]
    inbox = Inbox(config.swarm.name, own.author, config.swarm.max_staleness, stages, config.rounds)
    coordinator = account.connect(config, own, workdir)
    bootnodes = [*config.swarm.bootnodes]
    if config.driver == "node":  # a swarm's launcher has named them already
        bootnodes += [one for one in account.bootnodes(coordinator) if not one.endswith(own.peer_id)]
    memory = Memory(workdir / FILE)
    told = [address.rpartition("/p2p/")[2] for address in bootnodes] or memory.peers
    mailbox = Mailbox(inbox, _authors(config.swarm.peers), _authors(told), config.swarm.reads)
    parts = own, _network_config(config, bootnodes), mailbox.on_record, mailbox.on_peers, memory, mailbox.trusts
    transport = Gossip(*parts)
    status = Status(workdir / STATUS_FILE, own.peer_id, lambda: transport.network)
    names = {"peer_id": own.peer_id, "name": identity.friendly_name(own.author), "swarm": config.swarm.name}
    exporter = Exporter(status, names)
    claimed = _claimed(key, workdir / JOURNAL_FILE)
    with (
        claimed,
        _shown(status),
        notify.told(status),
        folder.stop_on_signal() as stopping,
        health.served(config.swarm.health, health.Health(status, exporter)) as healthy,
        account.kept(config, coordinator, mailbox) as keeper,
    ):
        present = Present(own, key, mailbox, transport, keeper, status, exporter)
        try:
            addresses = transport.start()
            _write_node_file(workdir, present, addresses, config.swarm.name, healthy)
            _say(console, f"{present.name} listens on {' '.join(addresses)}")
            if config.driver == "node":
                _say(console, f"whether it is well: {healthy}/healthz" if healthy else "it serves no /healthz")
                _say(console, f"others join it with: {joining.command(config, addresses[0])}")
            upgrades = _upgrades(config, keeper)
            should_stop = lambda: bool(stopping) or (upgrades is not None and upgrades.stop())  # noqa: E731
            finished = _play(config, workdir, resumes, console, present, should_stop, channel, words)
            if upgrades is not None and not finished and not stopping:
                upgrades.check()
        except (NetworkError, NoWorkerError) as error:
            raise TransientError(str(error)) from error
        except (JournalError, MetricsError) as error:
            raise DiskError(str(error)) from error
        except VerifierError as error:
            raise UsageError(str(error)) from error
        except RecordError as error:
            what = "what this node has to say does not fit into a record"
            fewer = "lower sampling.max_new_tokens, sampling.group_size or swarm.local_groups"
            raise UsageError(f"{what} ({error}): {fewer}.") from error
        finally:
            (workdir / NODE_FILE).unlink(missing_ok=True)
            transport.close()
    return 0 if finished else 130


def _play(
    config: ml_collections.ConfigDict,
    workdir: Path,
    resumes: bool,
    console: Console,
    present: Present,
    should_stop: Callable[[], bool],
    channel: "Channel | None",
    words: Sequence[str],
) -> bool:
    """Whether all rounds were played."""
    started = time.monotonic()
    from rlswarm_jax import multihost  # and with it jax
    from rlswarm_jax.audit.archive import Archive, Shelves
    from rlswarm_jax.audit.auditor import Auditor
    from rlswarm_jax.checkpoint import Best, CheckpointError, Checkpoints
    from rlswarm_jax.engine import DivergedError
    from rlswarm_jax.game.effects import Publish
    from rlswarm_jax.game.player import Player
    from rlswarm_jax.node import LiveConfig, Node
    from rlswarm_jax.qwen.sampling import PromptError
    from rlswarm_jax.records.audits import shown_for
    from rlswarm_jax.reporting import report
    from rlswarm_jax.running import build
    from rlswarm_jax.running.publishing import Publishing
    from rlswarm_jax.running.record import Recorder
    from rlswarm_jax.running.view import compiling

    kept_bytes = config.audit.megabytes << 20
    archive = Archive(workdir / WEIGHTS_FOLDER, kept_bytes, shown_for(config.swarm.max_staleness))
    evidence = None
    if present.chain and present.chain.has_court:
        evidence = Archive(workdir / EVIDENCE_FOLDER, kept_bytes, config.chain.keep)
    # before all that takes long: what an earlier process said may be checked now
    present.transport.shows(Shelves(archive, *filter(None, [evidence])))
    present.status.begins("loads its model")
    made = build.build(config, [present.identity], console)
    if channel is not None:
        made = dataclasses.replace(made, engine=multihost.lead(made.one_engine, channel))
    try:
        before = rotating.earlier_keys(present.key, present.identity.author, config.swarm.name)
    except identity.KeyFileError as error:
        raise UsageError(str(error)) from error
    game = dataclasses.replace(made.games[0], rotations=before)
    present.transport.tell_rules(game.terms)
    present.status.begins("compiles its model's programs")
    with compiling(console):
        made.compile()
    journal = Journal(workdir / JOURNAL_FILE, durable=[Publish.__name__])
    try:
        _claim(present.key, journal)
    except identity.KeyFileError as error:
        raise UsageError(str(error)) from error
    recorder = Recorder(config, workdir, console, made, started, words)
    metrics_file = workdir / METRICS_FILE
    reported = {row["round"] for row in read_rows(metrics_file)} if resumes and metrics_file.exists() else set()
    view = recorder.open(whole_bytes(metrics_file), [len(reported)], f"{config.name}-{config.seed}-{present.name}")
    view.begin()
    keep = config.chain.keep if present.chain else 0
    follow = config.chain.every == 1
    live = LiveConfig(config.swarm.deadline, JOIN_SECONDS, config.checkpoint_every, keep, follow)
    player = Player(0, game, present.identity, journal, present.mailbox.inbox)
    try:
        checkpoints = Checkpoints(workdir / CHECKPOINT_FOLDER, config.checkpoints.keep)
        best = Best(workdir / BEST_FOLDER / "0") if config.checkpoints.best else None
        parts = player, made.one_engine, present.transport, present.mailbox, journal, checkpoints
        run = functools.partial(made.one_engine.replay, 0)
        auditor = Auditor(archive, run, present.transport, config.audit.share, kept_bytes, evidence)
        publishing = Publishing(config, workdir, made.one_engine, [present.name], present.chain)

        def on_round(ended: "RoundReport") -> None:
            if ended.round % config.checkpoint_every == 0:
                ended = dataclasses.replace(ended, metrics=ended.metrics | quota.keep())
                if config.driver != "node":  # whose log its launcher made
                    disk.rotate(workdir / disk.LOG_FILE)
            recorder.on_round(ended)
            present.exporter.on_round(ended.metrics)

        watched = present.chain, best, present.status
        node = Node(*parts, live, publishing.after(on_round), auditor, *watched)
        goes = {
            "older logs": lambda: disk.drop_log(workdir),
            "traces": lambda: disk.drop_traces(workdir),
            "earlier runs of Weights & Biases": lambda: disk.drop_wandb(workdir),
            "records that are kept for others": node.let_go_of_records,
            "older metrics": lambda: recorder.halve() if metrics_file.stat().st_size > disk.MB else None,
            "older weights that are shown": archive.halve,
        }
        quota = disk.Quota(workdir, config.disk.megabytes, goes)
        with view:
            present.status.begins("plays its journal again")
            node.restore(reported)
            node.run(should_stop)
            present.status.begins("writes its checkpoint, and what a run leaves")
            node.save()
            if player.finished:
                told = publishing.finish(player.state.round, should_stop)
                if told and present.chain and not present.chain.finish(should_stop):
                    log.warning("the chain has not taken all that was to be told of published weights")
            publishing.close()
        present.transport.close()  # what is left needs no peers
        checkpoints.close()
        if best is not None:
            best.close()
    except CheckpointError as error:
        raise DiskError(str(error)) from error
    except (DivergedError, PromptError) as error:
        raise UsageError(str(error)) from error
    journal.close()
    recorder.finish(player.finished)
    if config.driver == "node":  # a swarm's launcher writes one report of all its nodes
        report.write_report(workdir)
        report.print_summary(workdir, console)
        console.print(f"report: {workdir / 'report.md'}; the same command with --resume goes on")
    return player.finished


@contextlib.contextmanager
def _claimed(key: Path, journal: Path) -> Iterator[None]:
    """Keeps others from using a key, and a key from signing for two journals: a node could contradict itself.

    The key file names its journal from the first time on that it signs, so a copy of the key alone is known for what it
    is. A node moves with its whole folder. One that nobody has used is anybody's to use. Raises UsageError.
    """
    with folder.lock(key):
        signed = identity.journal_of(key)
        beside = key.with_name(f"{key.name}.journal")  # where versions before wrote it
        if signed is None and beside.exists():
            signed = int(beside.read_text())
        if heir := identity.given_up_for(key):
            raise UsageError(f"the key {key} was given up for {heir}: play with that one, in the folder that it is in.")
        if identity.is_restored(key):
            raise UsageError(f"what the key {key} has signed is not known here: play with another key.")
        if signed is not None and signed != moving.journal_id(journal):
            wrong = f"the key {key} has signed records that are not in the journal here"
            move = "to move a node, stop it and take its whole folder (experiments.identity export)"
            raise UsageError(f"{wrong}: go on in the folder where it did, or use a new key; {move}.")
        yield


def _claim(key: Path, journal: Journal) -> None:
    """Ties a key that has signed nothing yet to the journal of what it will."""
    if identity.journal_of(key) is None:
        identity.mark(key, journal.id)


def _upgrades(config: ml_collections.ConfigDict, keeper: "Keeper | None") -> "Upgrades | None":
    if keeper is None:
        return None
    from rlswarm_jax.game.rules import RECORDS_VERSION
    from rlswarm_jax.running.upgrading import Upgrades

    return Upgrades(RECORDS_VERSION, keeper.upgrade, config.chain.upgrades == "follow")


def _authors(peers: Iterable[str]) -> list[bytes]:
    return [author for peer in peers if (author := identity.author_of(peer))]


def _network_config(config: ml_collections.ConfigDict, bootnodes: Sequence[str]) -> GossipConfig:
    return GossipConfig(
        swarm=config.swarm.name,
        host=config.swarm.host,
        port=config.swarm.port,
        announce=tuple(config.swarm.announce),
        bootnodes=tuple(bootnodes),
        target_peers=config.swarm.target_peers,
    )


def _write_node_file(workdir: Path, present: Present, addresses: list[str], swarm: str, healthy: str) -> None:
    """Tells scripts and other nodes who runs here; written whole, as soon as the node listens."""
    told = {
        "peer_id": present.identity.peer_id,
        "name": present.name,
        "pid": os.getpid(),
        "swarm": swarm,
        "addresses": addresses,
        "health": healthy,
    }
    write_whole(workdir / NODE_FILE, json.dumps(told, indent=2) + "\n")


@contextlib.contextmanager
def _shown(status: Status) -> Iterator[None]:
    """Says in the node's folder what it does, with its last warning, for as long as the `with` block lasts."""
    logger = logging.getLogger("rlswarm_jax")
    logger.addHandler(status.warned)
    try:
        yield
    finally:
        logger.removeHandler(status.warned)
        status.close()


class _Log(logging.handlers.RotatingFileHandler):
    """A node's log.txt and the one before it, bounded."""

    def __init__(self, path: Path):
        super().__init__(path, maxBytes=disk.LOG_BYTES, backupCount=1, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        """A disk that takes no log ends nothing, and need not be said for each line."""


@contextlib.contextmanager
def logged(workdir: Path) -> Iterator[None]:
    """Keeps what a node started by hand has to say in its folder, too; a launcher does that for its own."""
    kept, loggers = _Log(workdir / launch.LOG_FILE), (logging.getLogger("rlswarm_jax"), SAID)
    SAID.setLevel(logging.INFO)
    SAID.propagate = False
    for logger in loggers:
        logger.addHandler(kept)
    SAID.info("process %d began", os.getpid())
    try:
        yield
    except BaseException as error:
        SAID.error("ended by %s", "Ctrl-C" if isinstance(error, KeyboardInterrupt) else repr(error))
        raise
    finally:
        SAID.info("process %d ended", os.getpid())
        for logger in loggers:
            logger.removeHandler(kept)
        kept.close()


def _say(console: Console, sentence: str) -> None:
    """On the terminal, and in the log."""
    console.print(sentence, soft_wrap=True)
    SAID.info(sentence)


def _log_to(console: Console) -> None:
    """What a node has to say goes where its progress is shown."""
    logger = logging.getLogger("rlswarm_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library that sets up the root logger would say everything twice
    if console.is_terminal:
        logger.addHandler(RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S"))
    else:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
