"""Runs a swarm whose nodes share this process, a virtual clock and a virtual network."""

import time

import ml_collections
from rich.console import Console

from rlswarm_jax import identity
from rlswarm_jax.chain.virtual import VirtualCoordinator, quorum
from rlswarm_jax.checkpoint import Best, CheckpointError, Checkpoints
from rlswarm_jax.engine import DivergedError
from rlswarm_jax.errors import DONE, INTERRUPTED, DiskError, UsageError
from rlswarm_jax.files import BEST_FOLDER, CHECKPOINT_FOLDER, JOURNAL_FILE
from rlswarm_jax.journal import Journal, JournalError
from rlswarm_jax.metrics import MetricsError
from rlswarm_jax.qwen.sampling import PromptError
from rlswarm_jax.records.schema import RecordError
from rlswarm_jax.reporting import report
from rlswarm_jax.running import build, folder
from rlswarm_jax.running.arguments import Arguments
from rlswarm_jax.running.publishing import Publishing
from rlswarm_jax.running.record import Recorder
from rlswarm_jax.simulate import Simulation
from rlswarm_jax.simulated_node import Timing
from rlswarm_jax.swarm.virtual import Partition, VirtualNetwork
from rlswarm_jax.tasks.verifier import VerifierError

JOURNAL_ROWS = 512  # written at a time: what a kill loses is computed again from the checkpoint, to the same bits


def run(arguments: Arguments) -> int:
    """Runs until done or Ctrl-C. Raises UsageError for whatever the user can mend."""
    config, workdir = arguments.config, arguments.workdir
    try:
        with folder.opened(config, workdir, arguments.resume) as resumes, folder.stop_on_signal() as stopping:
            return _run(arguments, resumes, Console(), stopping)
    except (CheckpointError, JournalError, MetricsError) as error:
        raise DiskError(str(error)) from error
    except (DivergedError, PromptError, RecordError, VerifierError) as error:
        raise UsageError(str(error)) from error


def make_simulation(config: ml_collections.ConfigDict, made: build.Pieces, journal: Journal, on_round, **options):
    """The simulation that a config describes. options: as `Simulation` takes them."""
    simulated, nodes = config.simulation, config.swarm.nodes
    network = VirtualNetwork(
        config.seed,
        nodes,
        simulated.latency,
        simulated.jitter,
        simulated.loss,
        [Partition(start, end, groups) for start, end, groups in simulated.partitions],
        simulated.bandwidth,
    )
    present = dict(simulated.present)
    timing = build.made_of(Timing, [simulated], slowdown=tuple(simulated.slowdown), present=present)
    ever = nodes - sum(not times for times in present.values())
    chain = VirtualCoordinator(config.seed, quorum(ever)) if config.chain.endpoint != "none" else None
    parts = made.games, identities(config), made.engine, network, timing, journal, on_round
    return Simulation(*parts, chain=chain, **options)


def identities(config: ml_collections.ConfigDict) -> list[identity.Identity]:
    """The keys of a study's nodes."""
    return [identity.simulated(config.seed, node) for node in range(config.swarm.nodes)]


def _run(arguments: Arguments, resumes: bool, console: Console, stopping: list[int]) -> int:
    started, config, workdir = time.monotonic(), arguments.config, arguments.workdir
    made = build.build(config, identities(config), console)
    journal = Journal(workdir / JOURNAL_FILE, together=JOURNAL_ROWS)
    checkpoints = Checkpoints(workdir / CHECKPOINT_FOLDER, config.checkpoints.keep)
    best = [Best(workdir / BEST_FOLDER / str(i)) for i in range(config.swarm.nodes) if config.checkpoints.best]
    recorder = Recorder(config, workdir, console, made, started, arguments.words)
    names = [identity.friendly_name(game.author) for game in made.games]
    publishing = Publishing(config, workdir, made.engine, names)
    simulation = make_simulation(
        config,
        made,
        journal,
        publishing.after(recorder.on_round),
        checkpoints=checkpoints,
        checkpoint_every=config.checkpoint_every,
        metrics_offset=lambda: recorder.offset,
        best=best,
    )
    keep = 0
    if resumes:
        keep = simulation.restore() or 0
        console.print(f"resuming at round {min(node.state.round for node in simulation.nodes)} of {config.rounds}")
    with recorder.open(keep, [node.state.round for node in simulation.nodes]):
        simulation.run(lambda: bool(stopping))
        simulation.save()
        if simulation.finished:
            publishing.finish(config.rounds, lambda: bool(stopping))
        publishing.close()
    journal.close()
    checkpoints.close()
    for one in best:
        one.close()
    recorder.finish(simulation.finished)
    report.write_report(workdir)
    report.print_summary(workdir, console)
    if not simulation.finished:
        console.print(f"stopped; the same command with --resume goes on. Report: {workdir / 'report.md'}")
        return INTERRUPTED
    console.print(f"report: {workdir / 'report.md'}")
    return DONE
