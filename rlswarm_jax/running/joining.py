"""The command by which others join a swarm: its address, its chain, and whatever is not as configs/node.py has it."""

import shlex
from collections.abc import Mapping
from typing import Any

import ml_collections

from rlswarm_jax.running import account

# what nodes must have in common (`Rules.terms`), and what makes them fit for each other's records
SHARED = (
    *("seed", "model", "tasks", "game", "swarm.name", "swarm.local_groups"),
    *("sampling.group_size", "sampling.max_new_tokens", "sampling.max_prompt_tokens"),
)


def command(config: ml_collections.ConfigDict, address: str) -> str:
    """config: of a node, with the chain that it plays under. address: of one that runs."""
    from configs import node

    usual, ours = node.get_config().to_dict(), config.to_dict()
    given = _chain(ours["chain"])
    for name in SHARED:
        here, there = (_fields(fields, name) for fields in (ours, usual))
        given |= {field: value for field, value in here.items() if there[field] != value}
    flags = [f"--config.{field}={shlex.quote(str(value))}" for field, value in given.items()]
    start = "python -m experiments.run --config configs/node.py --workdir runs/joined"
    return " ".join([start, through(address), *flags])


def through(address: str) -> str:
    """What a node is started with to join by a bootnode, which knows the rules of no swarm."""
    return f"--config.swarm.bootnodes=\"['{address}']\""


def _chain(chain: Mapping[str, Any]) -> dict[str, Any]:
    if chain["endpoint"] == "none":
        return {}
    fields = {name: chain[name] for name in ("contract", "id", "confirmations", "every")}
    return {f"chain.{name}": value for name, value in ({"endpoint": account.shown(chain["endpoint"])} | fields).items()}


def _at(fields: Any, path: str) -> Any:
    for name in path.split("."):
        fields = fields[name]
    return fields


def _fields(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A field, or those of a section; tasks are one, whole."""
    found = _at(config, name)
    if name == "tasks" or not isinstance(found, Mapping):
        return {name: found}
    return {f"{name}.{inner}": tuple(value) if isinstance(value, list) else value for inner, value in found.items()}
