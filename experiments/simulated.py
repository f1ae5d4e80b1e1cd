"""Runs a swarm whose nodes share this process, a virtual clock and a virtual network."""

import time
from pathlib import Path

import ml_collections
from rich.console import Console

from experiments import folder, pieces, report
from experiments.cli import Arguments, UsageError
from experiments.summary import hardware, peak_memory_mb, summarise, write_summary
from experiments.view import SwarmView
from rlswarm_jax import identity, qwen
from rlswarm_jax.checkpoint import CheckpointError, Checkpoints
from rlswarm_jax.game.player import RoundReport
from rlswarm_jax.journal import Journal, JournalError
from rlswarm_jax.metrics import MetricsError, MetricsLog, read_rows
from rlswarm_jax.qwen.sampling import PromptError
from rlswarm_jax.simulate import Simulation, Timing
from rlswarm_jax.swarm.virtual import Partition, VirtualNetwork


def run(arguments: Arguments) -> int:
    """Runs until done or Ctrl-C. Raises UsageError for whatever the user can mend."""
    config, workdir, console = arguments.config, arguments.workdir, Console()
    resumes = folder.prepare_folder(config, workdir, arguments.resume)
    try:
        with folder.lock(workdir), folder.stop_on_signal() as stopping:
            return _run(config, workdir, resumes, console, stopping)
    except (CheckpointError, JournalError, MetricsError, PromptError) as error:
        raise UsageError(str(error)) from error


def make_simulation(config: ml_collections.ConfigDict, made: pieces.Pieces, journal: Journal, on_round, **options):
    """The simulation that a config describes. options: as `Simulation` takes them."""
    simulated, nodes = config.simulation, config.swarm.nodes
    network = VirtualNetwork(
        config.seed,
        nodes,
        simulated.latency,
        simulated.jitter,
        simulated.loss,
        [Partition(start, end, groups) for start, end, groups in simulated.partitions],
    )
    timing = Timing(
        simulated.sample, simulated.learn, simulated.evaluate, simulated.deadline, tuple(simulated.slowdown)
    )
    return Simulation(made.games, identities(config), made.engine, network, timing, journal, on_round, **options)


def identities(config: ml_collections.ConfigDict) -> list[identity.Identity]:
    """The keys of a study's nodes."""
    return [identity.simulated(config.seed, node) for node in range(config.swarm.nodes)]


def _run(config: ml_collections.ConfigDict, workdir: Path, resumes: bool, console: Console, stopping: list[int]) -> int:
    started = time.monotonic()
    made = pieces.build(config, identities(config), console)
    journal = Journal(workdir / folder.JOURNAL_FILE)
    checkpoints = Checkpoints(workdir / folder.CHECKPOINT_FOLDER)
    log: MetricsLog | None = None
    view: SwarmView | None = None
    names = [identity.friendly_name(game.author) for game in made.games]
    before = folder.earlier_seconds(workdir) if resumes else 0.0

    def on_round(found: RoundReport) -> None:
        assert log is not None and view is not None
        seconds = round(before + time.monotonic() - started, 3)
        row = {"node": found.node, "name": names[found.node], "round": found.round, "virtual_seconds": found.at}
        row |= {"wall_seconds": seconds} | found.metrics
        log.write(row)
        view.update(row)

    simulation = make_simulation(
        config,
        made,
        journal,
        on_round,
        checkpoints=checkpoints,
        checkpoint_every=config.checkpoint_every,
        metrics_offset=lambda: log.offset if log is not None else 0,
    )
    keep = 0
    if resumes:
        keep = simulation.restore() or 0
        console.print(f"resuming at round {min(node.state.round for node in simulation.nodes)} of {config.rounds}")
    log = MetricsLog(workdir / folder.METRICS_FILE, keep)
    mode = log.start_wandb(
        config.wandb.mode,
        workdir=workdir,
        project=config.wandb.project,
        group=f"{config.name}-{config.seed}",
        config=config.to_dict(),
    )
    if mode != "disabled":
        console.print(f"wandb: {mode}")
    view = SwarmView(console, names, config.rounds, [node.state.round for node in simulation.nodes])
    with view:
        simulation.run(lambda: bool(stopping))
    journal.close()
    checkpoints.close()
    summary = summarise(
        config,
        names,
        read_rows(workdir / folder.METRICS_FILE),
        finished=simulation.finished,
        weights={name: qwen.fingerprint(simulation.weights(node)) for node, name in enumerate(names)},
        base=made.base_accuracy(config),
        seconds=before + time.monotonic() - started,
        memory_mb=peak_memory_mb(),
        hardware=hardware(),
    )
    write_summary(workdir, summary)
    log.close({"held_out_accuracy": summary["held_out_accuracy"]})
    report.write_report(workdir)
    report.print_summary(workdir, console)
    if not simulation.finished:
        console.print(f"stopped; the same command with --resume goes on. Report: {workdir / 'report.md'}")
        return 130
    console.print(f"report: {workdir / 'report.md'}")
    return 0
