"""The command by which others join a swarm: its address, its chain, and whatever is not as configs/node.py has it."""

import shlex
from collections.abc import Iterator, Mapping
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
    apart = ""
    for name in SHARED:
        here, there = (dict(_leaves({name: _at(fields, name)})) for fields in (ours, usual))
        given |= {field: value for field, value in here.items() if there.get(field, here) != value and field in there}
        apart = " and its config.tasks" if name == "tasks" and here.keys() != there.keys() else apart
    flags = [f"--config.{field}={shlex.quote(str(value))}" for field, value in given.items()]
    start = "python -m experiments.run --config configs/node.py --workdir runs/joined"
    return " ".join([start, through(address), *flags]) + apart


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


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value
