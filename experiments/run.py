"""Runs a swarm: nodes that play reasoning rounds, exchange what they sampled, and learn from it by GRPO.

    python -m experiments.run --config configs/quickstart.py              four nodes, each a process with a tiny Qwen
    python -m experiments.run --config configs/quickstart.py:smoke        the same in a minute
    python -m experiments.run --config configs/quickstart.py:simulate     the same nodes in one process
    python -m experiments.run --config configs/node.py                    one node, which others can join
    python -m experiments.run --config configs/solo.py                    one node alone with the same training budget

  --config FILE[:variant]       what to run; each file in configs/ says what it is, and what to expect
  --config.FIELD=VALUE          changes one field, e.g. --config.seed=3 --config.learn.learning_rate=3e-4
                                --config.model.path=Qwen/Qwen2.5-0.5B-Instruct (a hub id or a checkpoint directory)
  --workdir DIR                 where the run writes (default runs/<config name>)
  --plan [--memory 16GB]        says what it would take of a device's memory, and exits with 1 if that is too much
  --doctor                      looks for a minute whether it can be run here: port, clock, chain, key, disk, device,
                                memory, weights, sandbox, with a line of advice each; 0, or 2 if something is to be
                                mended first, 75 if all of it may pass by itself
  --print-service [launchd]     prints a unit for systemd, or launchd's property list, that keeps this run running
  --resume                      go on with an unfinished run in that folder; a finished one is moved aside

While it runs, the address that it prints shows who learns what from whom (python -m experiments.page has more).
The folder holds summary.json, metrics.jsonl, report.md with plots, journals and checkpoints. Ctrl-C stops cleanly and
still writes the report; the same command with --resume goes on. A simulation then ends with the same weights as if it
had never been stopped; live nodes join the round in which the others are.
"""

from rlswarm_jax.running import start
from rlswarm_jax.running.arguments import Arguments, main


def run(arguments: Arguments) -> int:
    """As `start.run`, with a page of the run beside it."""
    return start.run(arguments, page=True)


if __name__ == "__main__":
    main(run, __doc__)
