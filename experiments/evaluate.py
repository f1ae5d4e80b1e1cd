"""How good the nodes of a swarm are, stage by stage: the game played on held-out problems, without learning.

    python -m experiments.evaluate --config configs/game.py                         the weights it starts from
    python -m experiments.evaluate --config configs/game.py --checkpoint runs/game  and those that a run has learned

  --config FILE[:variant]       the game, its tasks and how many held-out problems (config.evaluation.problems)
  --config.FIELD=VALUE          changes one field; --config.seed chooses the noise too
  --checkpoint DIR              the folder of a run of that config, simulated or live
  --best                        of it what did best on held-out problems (config.checkpoints.best), not the newest
  --workdir DIR                 where evaluation.json is written (default: the run's folder, else runs/<config name>)

Every node answers each problem as often as a group has completions, at the sampling temperature; then they criticise
and revise as in the game. Printed, before and after training, with standard errors over problems: pass@k of first
answers (the unbiased estimator), majority@k of one node's samples, the swarm's majority, the critics' vote, the revised
answers, and those where the vote is wrong (recovery); then how often critics name a best answer, beside what is had
without reading: at random, always the first, the majority of those shown, always none. Of all problems first, then of
contested ones, where the answers shown differ in worth.
"""

import json

from rich.console import Console
from rich.progress import Progress

from rlswarm_jax import identity
from rlswarm_jax.checkpoint import CheckpointError
from rlswarm_jax.errors import UsageError
from rlswarm_jax.exam import make_exam, sit
from rlswarm_jax.files import write_whole
from rlswarm_jax.qwen.sampling import PromptError
from rlswarm_jax.reporting.blocks import print_table
from rlswarm_jax.reporting.measures import Measure, as_json, by_task, table
from rlswarm_jax.running import build
from rlswarm_jax.running.arguments import Arguments, main
from rlswarm_jax.running.trained import load_states
from rlswarm_jax.tasks.verifier import VerifierError

FILE = "evaluation.json"
PER_ROUND = 32  # problems played at once; their records must fit their bounds


def run(arguments: Arguments) -> int:
    config, console = arguments.config, Console()
    checkpoint = arguments.checkpoint
    nodes = config.swarm.nodes
    identities = [identity.simulated(config.seed, node) for node in range(nodes)]
    found: dict[str, dict[str, dict[str, Measure]]] = {}
    made = build.build(config, identities, console)
    with made.engine.verifier:
        problems = made.engine.mixture.held_out(config.evaluation.problems)
        exams = [make_exam(game, problems, PER_ROUND) for game in made.games]
        try:
            for name in ("before", "after") if checkpoint else ("before",):
                if checkpoint and name == "after":
                    made.engine.set_states(load_states(checkpoint, made.engine.state(0), nodes, arguments.best))
                with Progress(console=console, transient=True) as progress:
                    taken = sit(exams, identities, made.one_engine)
                    rounds = progress.track(taken, exams[0].num_rounds, description=name)
                    outcomes = [outcome for round_ in rounds for outcome in round_]
                found[name] = by_task(outcomes)
        except (CheckpointError, PromptError, VerifierError) as error:
            raise UsageError(str(error)) from error
    for task in found["before"]:
        console.print(f"\n[bold]{task}[/bold], {found['before'][task]['first answer'].problems} problems")
        print_table(table({name: tasks[task] for name, tasks in found.items()}), console)
    path = (checkpoint or arguments.workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(as_json(config, found), indent=2) + "\n")
    console.print(f"written to {path}")
    return 0


if __name__ == "__main__":
    main(run, __doc__)
