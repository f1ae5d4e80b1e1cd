"""The command line that all experiments share: a config file, overrides of its fields, a folder to work in."""

import dataclasses
import ipaddress
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from rlswarm_jax.identity import author_of
from rlswarm_jax.records.schema import MAX_GROUP_SIZE, MAX_GROUPS, MAX_NAME, MAX_TOKENS, STAGES

LOCAL_CHAINS = ("devnet", "anvil", "none")


class UsageError(ValueError):
    """The user asked for something that cannot be done; the message is the one sentence they get (exit code 2)."""


class TransientError(UsageError):
    """The same command may succeed later: a port is taken, a disk full, a folder in use."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """config: locked, with the overrides applied. workdir: where the run writes. resume: go on with what is there.

    checkpoint: the folder of a run, for an experiment that looks at one. words: what was said of the config.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    resume: bool
    checkpoint: Path | None = None
    words: tuple[str, ...] = ()


def parse(argv: Sequence[str]) -> Arguments:
    """Reads `--config FILE[:variant] [--config.field=value ...] [--workdir DIR] [--resume] [--checkpoint DIR]`.

    Raises UsageError that names the wrong argument, and for an unknown config field its nearest neighbour.
    """
    values = flags.FlagValues()
    # the flag finds its overrides in `sys_argv` itself
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=["experiment", *argv])
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("resume", False, "", flag_values=values)
    flags.DEFINE_string("checkpoint", None, "", flag_values=values)
    try:
        rest = values(["experiment", *argv])
        if rest[1:]:
            raise UsageError(f"unexpected argument {rest[1]!r}; fields are set as --config.field=value.")
        if values.config is None:
            raise UsageError("which experiment? Give --config configs/quickstart.py (--help explains).")
        workdir = Path(values.workdir or Path("runs") / values.config.name)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(_sentence(error)) from None
    checkpoint = Path(values.checkpoint) if values.checkpoint else None
    return Arguments(values.config, workdir, values.resume, checkpoint, _of_config(argv))


def _of_config(argv: Sequence[str]) -> tuple[str, ...]:
    """The arguments but for those that say where a run writes: with these it can be started anew."""
    words, rest = [], iter(argv)
    for word in rest:
        name, _, value = word.lstrip("-").partition("=")
        if name in ("workdir", "checkpoint"):
            if not value:
                next(rest, None)
        elif name not in ("resume", "noresume"):
            words.append(word)
    return tuple(words)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UsageError that names the field which cannot be what it is."""
    limits = {
        "rounds": (config.rounds, 0 if config.driver == "node" else 1),
        "swarm.nodes": (config.swarm.nodes, 1),
        "swarm.local_groups": (config.swarm.local_groups, 1),
        "swarm.external_groups": (config.swarm.external_groups, 0),
        "game.stages": (config.game.stages, 1),
        "game.shared": (config.game.shared, 1 if config.game.stages > 1 else 0),
        "game.shown": (config.game.shown, 1),
        "game.critics": (config.game.critics, 0),
        "game.form_reward": (config.game.form_reward, 0),
        "game.improvement_reward": (config.game.improvement_reward, 0),
        "game.consensus_reward": (config.game.consensus_reward, 0),
        "game.answer_tokens": (config.game.answer_tokens, 0),
        "game.critique_tokens": (config.game.critique_tokens, 0),
        "scoring.workers": (config.scoring.workers, 1),
        "sampling.group_size": (config.sampling.group_size, 2),
        "sampling.exact_rows": (config.sampling.exact_rows, 1),
        "sampling.rows": (config.sampling.rows, 0),
        "evaluation.temperature": (config.evaluation.temperature, 0),
        "evaluation.problems": (config.evaluation.problems, 1),
        "evaluation.every": (config.evaluation.every, 1),
        "evaluation.rows": (config.evaluation.rows, 1),
        "learn.updates_per_round": (config.learn.updates_per_round, 1),
        "learn.decay_to": (config.learn.decay_to, 0),
        "checkpoint_every": (config.checkpoint_every, 1),
        "swarm.deadline": (config.swarm.deadline, 0),
        "swarm.port": (config.swarm.port, 0),
        "swarm.target_peers": (config.swarm.target_peers, 1),
        "devices.fsdp": (config.devices.fsdp, 1),
        "devices.tensor": (config.devices.tensor, 1),
        "devices.processes": (config.devices.processes, 0),
        "devices.process": (config.devices.process, 0),
        "chain.every": (config.chain.every, 1),
        "chain.confirmations": (config.chain.confirmations, 0),
        "chain.keep": (config.chain.keep, 0),
    }
    for field, (value, least) in limits.items():
        if value < least:
            raise UsageError(f"config.{field} is {value}; it must be at least {least}.")
    if config.sampling.temperature <= 0:
        raise UsageError(f"config.sampling.temperature is {config.sampling.temperature}; it must be positive.")
    choices = {
        "driver": (config.driver, ("live", "node", "simulate")),
        "swarm.devices": (config.swarm.devices, ("cpu", "gpu", "tpu")),
        "model.thinking": (config.model.thinking, ("", "on", "off")),
        "sampling.dtype": (config.sampling.dtype, ("float32", "bfloat16")),
        "sampling.kv_dtype": (config.sampling.kv_dtype, ("", "float32", "bfloat16", "int8")),
        "devices.backend": (config.devices.backend, ("shard_map", "pmap")),
        "learn.advantage_scale": (config.learn.advantage_scale, ("std", "none")),
        "learn.external_correction": (config.learn.external_correction, ("reencode", "behaviour")),
        "wandb.mode": (config.wandb.mode, ("auto", "online", "offline", "disabled")),
    }
    for field, (value, allowed) in choices.items():
        if value not in allowed:
            raise UsageError(f"config.{field} is {value!r}; expected one of {', '.join(allowed)}.")
    most = {
        "swarm.port": (config.swarm.port, 65535),
        "swarm.local_groups": (config.swarm.local_groups, MAX_GROUPS),
        "game.stages": (config.game.stages, len(STAGES)),
        "game.shown": (config.game.shown, MAX_GROUPS // 2 - 1),  # with the critics, the parents of a revision
        "game.critics": (config.game.critics, MAX_GROUPS // 2),
        "sampling.group_size": (config.sampling.group_size, MAX_GROUP_SIZE),
        "sampling.max_new_tokens": (config.sampling.max_new_tokens, MAX_TOKENS),
    }
    for field, (value, limit) in most.items():
        if value > limit:
            raise UsageError(f"config.{field} is {value}; it must be at most {limit}.")
    _check_devices(config)
    _check_chain(config)
    if config.game.stages > 1 and config.game.shared > config.swarm.local_groups:
        wrong = f"config.game.shared is {config.game.shared} of {config.swarm.local_groups} problems"
        raise UsageError(f"{wrong}: it must be at most config.swarm.local_groups.")
    if len(config.game.weights) != len(STAGES) or min(config.game.weights) < 0:
        raise UsageError(f"config.game.weights is {config.game.weights}; it must be three numbers, none negative.")
    if not 0 < len(config.swarm.name) <= MAX_NAME:
        raise UsageError(f"config.swarm.name is {config.swarm.name!r}; it must have 1 to {MAX_NAME} characters.")
    try:
        ipaddress.ip_address(config.swarm.host)
    except ValueError:
        wanted = "an address of this machine such as 127.0.0.1, or 0.0.0.0 for all of them"
        raise UsageError(f"config.swarm.host is {config.swarm.host!r}; expected {wanted}.") from None
    for peer in config.swarm.peers:
        if author_of(peer) is None:
            raise UsageError(f"config.swarm.peers names {peer!r}, which is not the peer id of a secp256k1 key.")
    for address in config.swarm.bootnodes:
        if not isinstance(address, str) or author_of(address.rpartition("/p2p/")[2]) is None:
            wanted = "/ip4/ADDRESS/tcp/PORT/p2p/PEER_ID, as a node prints it when it starts"
            raise UsageError(f"config.swarm.bootnodes holds {address!r}; expected {wanted}.")


def _check_devices(config: ml_collections.ConfigDict) -> None:
    devices = config.devices
    if devices.backend == "pmap" and (devices.fsdp, devices.tensor, devices.processes) != (1, 1, 1):
        raise UsageError("config.devices.backend pmap is for one process and whole parameters: choose shard_map.")
    if devices.processes != 1 and config.driver != "node":
        raise UsageError(f"config.devices.processes is {devices.processes}; driver {config.driver} takes 1.")
    if devices.processes and devices.process >= devices.processes:
        raise UsageError(f"config.devices.process is {devices.process} of {devices.processes}; the first one is 0.")
    if devices.processes > 1 and not re.fullmatch(r".+:\d+", devices.coordinator):
        wanted = "host:port of process 0, the same for all, such as 10.0.0.1:8476"
        raise UsageError(f"config.devices.coordinator is {devices.coordinator!r}; expected {wanted}.")


def _check_chain(config: ml_collections.ConfigDict) -> None:
    chain = config.chain
    if chain.endpoint in LOCAL_CHAINS:
        if config.driver == "node" and chain.endpoint != "none":
            other = "give the address of one, with config.chain.contract and config.chain.id, or choose none"
            raise UsageError(f"config.chain.endpoint {chain.endpoint} is started for a whole swarm: {other}.")
        return
    if not chain.endpoint.startswith(("http://", "https://", "$")):
        wanted = f"{', '.join(LOCAL_CHAINS)}, an http(s):// address, or $NAME of an environment variable that holds one"
        raise UsageError(f"config.chain.endpoint is none of {wanted}.")
    for field, value in (("contract", chain.contract), *([("payout", chain.payout)] if chain.payout else [])):
        if not re.fullmatch("0x[0-9a-fA-F]{40}", value):
            raise UsageError(f"config.chain.{field} is {value!r}; expected an address: 0x and 40 hexadecimal digits.")
    if chain.id < 1:
        raise UsageError(f"config.chain.id is {chain.id}; expected that of the endpoint's chain, such as 1.")


def main(run: Callable[[Arguments], int], help_text: str) -> None:
    """Runs an experiment as a program. What the user did wrong ends in one sentence and exit code 2."""
    if {"-h", "--help", "--helpfull"} & set(sys.argv[1:]):
        print(help_text.strip())
        sys.exit(0)
    try:
        sys.exit(run(parse(sys.argv[1:])))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before there was anything to report, or a second time
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _sentence(error: Exception) -> str:
    """What a person needs of the libraries' errors, which quote themselves and end in a traceback's last line."""
    text = str(error)
    if isinstance(error, AttributeError | KeyError):
        field, near = re.search(r"\w+", text), re.search(r'Did you mean "(\w+)"', text)
        hint = f"; did you mean {near[1]!r}?" if near else "."
        return f"the config has no field {field[0] if field else text!r}{hint}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, OSError):
        return f"cannot load the config: {lines[-1].split('] ', 1)[-1]}."
    if any("Traceback" in line for line in lines):
        return lines[-1].split("Error: ", 1)[-1]
    return " ".join(lines)
