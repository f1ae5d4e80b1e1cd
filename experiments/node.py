"""Runs one live node: it joins the peers it was told of, plays rounds, and leaves the same files as any run.

    python -m experiments.node DIR        the node whose folder the launcher of a local swarm has prepared

The network starts first, so that peers can find the node while jax loads.
"""

import dataclasses
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console
from rich.logging import RichHandler

from experiments import cli, folder
from experiments.cli import Arguments, UsageError
from rlswarm_jax import identity, launch
from rlswarm_jax.records.inbox import Inbox
from rlswarm_jax.records.schema import STAGES
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from rlswarm_jax.swarm.mailbox import Mailbox
from rlswarm_jax.swarm.transport import NetworkError, Transport

JOIN_SECONDS = 10.0  # to find a peer through the bootnodes, before going on without


def run(arguments: Arguments) -> int:
    """A node started by hand. Raises UsageError for whatever the user can mend."""
    config, workdir = arguments.config, arguments.workdir
    cli.check(config)
    resumes = folder.prepare_folder(config, workdir, arguments.resume)
    try:
        return play(config, workdir, resumes)
    except NetworkError as error:
        raise UsageError(str(error)) from error


def main(workdir: Path) -> int:
    """A node started by a launcher: it stops when its parent is gone."""
    launch.follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    config = ml_collections.ConfigDict(json.loads((workdir / folder.CONFIG_FILE).read_text())).lock()
    try:
        return play(config, workdir, (workdir / folder.JOURNAL_FILE).exists())
    except (UsageError, NetworkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1  # a port that is taken now may be free at the next try


@dataclasses.dataclass(frozen=True)
class Present:
    """A node that others can reach already."""

    identity: identity.Identity
    mailbox: Mailbox
    transport: Transport

    @property
    def name(self) -> str:
        return identity.friendly_name(self.identity.author)


def play(config: ml_collections.ConfigDict, workdir: Path, resumes: bool) -> int:
    """Plays until done or told to stop. Raises NetworkError, and UsageError for whatever the user can mend."""
    console = Console()
    _log_to(console)
    with folder.lock(workdir), folder.stop_on_signal() as stopping:
        try:
            own = identity.load_or_create(Path(config.swarm.key or workdir / launch.KEY_FILE))
        except identity.KeyFileError as error:
            raise UsageError(str(error)) from error
        named = [author for peer in config.swarm.peers if (author := identity.author_of(peer))]
        inbox = Inbox(config.swarm.name, own.author, config.swarm.max_staleness, STAGES)
        mailbox = Mailbox(inbox, named, expects_peers=bool(config.swarm.bootnodes))
        transport = Gossip(own, _network_config(config), mailbox.on_record, mailbox.on_peers)
        present = Present(own, mailbox, transport)
        try:
            addresses = transport.start()
            _write_node_file(workdir, present, addresses, config.swarm.name)
            console.print(f"{present.name} listens on {' '.join(addresses)}", soft_wrap=True)
            if config.driver == "node":
                console.print(f"others join it with --config.swarm.bootnodes=\"['{addresses[0]}']\"", soft_wrap=True)
            return _play(config, workdir, resumes, console, present, lambda: bool(stopping))
        finally:
            (workdir / folder.NODE_FILE).unlink(missing_ok=True)
            transport.close()


def _play(
    config: ml_collections.ConfigDict,
    workdir: Path,
    resumes: bool,
    console: Console,
    present: Present,
    should_stop: Callable[[], bool],
) -> int:
    started = time.monotonic()
    from experiments import pieces, report  # and with them jax
    from experiments.summary import hardware, peak_memory_mb, summarise, write_summary
    from experiments.view import SwarmView
    from rlswarm_jax import qwen
    from rlswarm_jax.checkpoint import CheckpointError, Checkpoints
    from rlswarm_jax.game.player import Player, RoundReport
    from rlswarm_jax.journal import Journal, JournalError
    from rlswarm_jax.metrics import MetricsError, MetricsLog, read_rows, whole_bytes
    from rlswarm_jax.node import LiveConfig, Node
    from rlswarm_jax.qwen.sampling import PromptError

    made = pieces.build(config, [present.identity], console)
    made.compile()
    name, metrics_file = present.name, workdir / folder.METRICS_FILE
    before = folder.earlier_seconds(workdir) if resumes else 0.0
    reported = {row["round"] for row in read_rows(metrics_file)} if metrics_file.exists() else set()
    try:
        journal = Journal(workdir / folder.JOURNAL_FILE)
        checkpoints = Checkpoints(workdir / folder.CHECKPOINT_FOLDER)
        log = MetricsLog(metrics_file, whole_bytes(metrics_file))
        mode = log.start_wandb(
            config.wandb.mode,
            workdir=workdir,
            project=config.wandb.project,
            group=f"{config.name}-{config.seed}",
            name=f"{config.name}-{config.seed}-{name}",
            config=config.to_dict(),
        )
        if mode != "disabled":
            console.print(f"wandb: {mode}")
        view = SwarmView(console, [name], config.rounds, [len(reported)])

        def on_round(found: RoundReport) -> None:
            row: dict[str, Any] = {"node": found.node, "name": name, "round": found.round}
            row |= {"wall_seconds": round(before + time.monotonic() - started, 3)} | found.metrics
            log.write(row)
            view.update(row)

        live = LiveConfig(config.swarm.deadline, JOIN_SECONDS, config.checkpoint_every)
        player = Player(0, made.games[0], present.identity, journal, present.mailbox.inbox)
        node = Node(player, made.engine, present.transport, present.mailbox, journal, checkpoints, live, on_round)
        with view:
            node.restore(reported)
            node.run(should_stop)
        present.transport.close()  # what is left needs no peers
        journal.close()
        checkpoints.close()
    except (CheckpointError, JournalError, MetricsError, PromptError) as error:
        raise UsageError(str(error)) from error
    summary = summarise(
        config,
        [name],
        read_rows(metrics_file),
        finished=player.finished,
        weights={name: qwen.fingerprint(made.engine.state(0).params)},
        base=made.base_accuracy(config),
        seconds=before + time.monotonic() - started,
        memory_mb=peak_memory_mb(),
        hardware=hardware(),
    )
    write_summary(workdir, summary)
    log.close({"held_out_accuracy": summary["held_out_accuracy"]})
    if config.driver == "node":  # a swarm's launcher writes one report of all its nodes
        report.write_report(workdir)
        report.print_summary(workdir, console)
        console.print(f"report: {workdir / 'report.md'}; the same command with --resume goes on")
    return 0 if player.finished else 130


def _network_config(config: ml_collections.ConfigDict) -> GossipConfig:
    return GossipConfig(
        swarm=config.swarm.name,
        host=config.swarm.host,
        port=config.swarm.port,
        bootnodes=tuple(config.swarm.bootnodes),
        target_peers=config.swarm.target_peers,
    )


def _write_node_file(workdir: Path, present: Present, addresses: list[str], swarm: str) -> None:
    """Tells scripts and other nodes who runs here; written whole, as soon as the node listens."""
    told = {
        "peer_id": present.identity.peer_id,
        "name": present.name,
        "pid": os.getpid(),
        "swarm": swarm,
        "addresses": addresses,
    }
    partial = workdir / f"{folder.NODE_FILE}.partial"
    partial.write_text(json.dumps(told, indent=2) + "\n")
    partial.replace(workdir / folder.NODE_FILE)


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
