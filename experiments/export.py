"""Writes what a run has learned as a Hugging Face folder, which `transformers` and `qwen.load` open.

    python -m experiments.export runs/quickstart my-model                      the swarm's first node
    python -m experiments.export runs/quickstart --node bold-otter-1f my-model    or the one of that name
    python -m experiments.export runs/quickstart --best my-model           its best on held-out problems, not its newest

RUN is the folder of a run of any driver: a swarm of processes, a simulation, or a single node; also while it goes on.
Its newest whole checkpoint is taken, in the precision it was trained in. DIR is made; if it is there it must be empty.
It gets the weights (safetensors), and from the model that the run began with config.json, the tokenizer with its chat
template, and generation_config.json with the end tokens.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from configs import common
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CHECKPOINT_FOLDER, CONFIG_FILE
from rlswarm_jax.running.trained import choose, load_states, nodes_of


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser("python -m experiments.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the model is written")
    parser.add_argument(
        "--node", metavar="NAME", help="whose weights, as the report calls it or by number; the first's"
    )
    parser.add_argument(
        "--adapter", action="store_true", help="only what was trained beside the weights, as PEFT has it"
    )
    parser.add_argument("--best", action="store_true", help="what did best on held-out problems (checkpoints.best)")
    arguments = parser.parse_args(argv)
    try:
        return export(arguments.run, arguments.node, arguments.directory, arguments.best, arguments.adapter)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def export(run: Path, name: str | None, directory: Path, best: bool = False, adapter: bool = False) -> int:
    """Raises UsageError for a run, a node or a directory that cannot be."""
    config = read_config(run)
    nodes = nodes_of(run, config)
    node = choose(nodes, name, run)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is there already, and not an empty directory: choose another.")
    if not (node.folder / CHECKPOINT_FOLDER).is_dir():
        every = config.get("checkpoint_every", "config.checkpoint_every")
        raise UsageError(f"{node.folder} has no checkpoint yet: a run writes one every {every} rounds, and at its end.")
    from rlswarm_jax import qwen
    from rlswarm_jax.checkpoint import CheckpointError
    from rlswarm_jax.grpo.learner import Learner
    from rlswarm_jax.qwen import peft
    from rlswarm_jax.running import build

    together = sum(other.folder == node.folder for other in nodes)
    try:
        policy = build.load_policy(config)
        learner_config = build.make_learner_config(config)
        state = load_states(node.folder, build.first_state(config, policy), together, best)[node.index]
        if adapter:
            if learner_config.lora is None:
                raise UsageError(f"{run} trained the weights themselves (config.lora.rank is 0): leave out --adapter.")
            peft.save(directory, state.params, learner_config.lora, build.model_path(config))
        else:
            learner = Learner(learner_config, policy.config, base=policy.params)
            qwen.save(dataclasses.replace(policy, params=learner.policy(state.params)), directory)
    except (CheckpointError, qwen.SaveError, ValueError) as error:
        raise UsageError(str(error)) from error
    others = [other.name for other in nodes if other != node]
    print(f"{node.name} after {int(state.step)} updates: {directory}")
    if name is None and others:
        print(f"others of this run, with --node: {', '.join(others)}")
    return 0


def read_config(run: Path) -> ml_collections.ConfigDict:
    """What the run was started with, and defaults for fields that came later. Raises UsageError where there is none."""
    path = run / CONFIG_FILE
    try:
        stored = json.loads(path.read_text())
        _ = stored["driver"], stored["swarm"]["nodes"], stored["model"]["path"]
        defaults = json.loads(common.swarm("").to_json_best_effort())
        config = ml_collections.ConfigDict(_over(defaults, stored)).lock()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run} is the folder of no run: it has no {CONFIG_FILE}.") from None
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UsageError(f"{path} is not the config of a run: {error}.") from None
    return config


def _over(defaults: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    missing = {name: value for name, value in defaults.items() if name not in stored}
    return missing | {
        name: _over(defaults[name], value)
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
        else value
        for name, value in stored.items()
    }


if __name__ == "__main__":
    sys.exit(main())
