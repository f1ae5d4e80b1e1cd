"""Runs a local swarm: starts a process for each node, shows all of them, and puts their results together.

This process loads neither jax nor libp2p, so it says who is who at once.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import msgspec
from rich.console import Console

from rlswarm_jax import identity, launch
from rlswarm_jax.chain.calls import account_of
from rlswarm_jax.chain.devnet import CHAIN_ID, DevnetError
from rlswarm_jax.chain.errors import ChainError, EndpointDown
from rlswarm_jax.chain.ledger import read_ledger
from rlswarm_jax.chain.local import LocalChain
from rlswarm_jax.errors import DONE, INTERRUPTED, MAY_PASS, MEND, TransientError, UsageError
from rlswarm_jax.files import CHAIN_FOLDER, CONFIG_FILE, METRICS_FILE, NODE_FILE, SUMMARY_FILE, write_whole
from rlswarm_jax.launch import Exit, Launcher, LaunchError, Member
from rlswarm_jax.machine import peak_memory_mb
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.reporting import report
from rlswarm_jax.reporting.ledger import INDEX_FILE
from rlswarm_jax.running import account, alone, folder, joining
from rlswarm_jax.running.arguments import Arguments
from rlswarm_jax.running.record import summarise, write_summary
from rlswarm_jax.running.view import SwarmView

POLL = 0.2  # seconds


def run(arguments: Arguments) -> int:
    """Runs until done or Ctrl-C. Raises UsageError for whatever the user can mend."""
    config, workdir = arguments.config, arguments.workdir
    try:
        with folder.opened(config, workdir, arguments.resume) as resumes, folder.stop_on_signal() as stopping:
            return _run(arguments, resumes, Console(), stopping)
    except EndpointDown as error:
        raise TransientError(str(error)) from error
    except (LaunchError, identity.KeyFileError, DevnetError, ChainError) as error:
        raise UsageError(str(error)) from error


def _run(arguments: Arguments, resumes: bool, console: Console, stopping: list[int]) -> int:
    started, config, workdir = time.monotonic(), arguments.config, arguments.workdir
    before = folder.earlier_seconds(workdir) if resumes else 0.0
    members = launch.assign(workdir, config.swarm.nodes, seed=config.seed, host=config.swarm.host)
    for member in members:
        console.print(f"node {member.index}  {member.name:20} {member.address}", highlight=False, soft_wrap=True)
    with _chain(config, workdir, members) as chain:
        for member in members:
            own = _write_config(config, member, members, chain)
        console.print(f"others join with: {joining.command(own, members[0].address)}", highlight=False, soft_wrap=True)
        names = [member.name for member in members]
        view = SwarmView(console, names, config.rounds, [len(_rows(member)) for member in members])
        tails = {member: _Tail(member.folder / METRICS_FILE) for member in members}
        for member, tail in tails.items():
            view.catch_up(row | {"node": member.index} for row in tail.new_rows())
            tail.start = tail.offset

        codes: dict[int, int] = {}

        def show(exits: list[Exit]) -> None:
            for exit in exits:
                codes[exit.member.index] = exit.code
                if exit.code not in (DONE, INTERRUPTED):
                    view.say(f"node {exit.member.index} {exit.reason}{'; it is restarted' if exit.restarted else ''}")
            states = launcher.states()
            for member, tail in tails.items():
                for row in tail.new_rows():
                    view.update(row | {"node": member.index})
                view.state(member.index, _state(states[member.index], member, tail))
            if chain and (said := chain.tend()):
                view.say(said)

        environment = _environment(config)
        with Launcher(members, _command, environment) as launcher, view:
            launcher.start()
            with alone.beside(config, workdir, environment(members[0])) as compared:
                while launcher.running and not stopping:
                    time.sleep(POLL)
                    show(launcher.poll())
                show(launcher.stop())
                while not stopping and not compared():
                    time.sleep(POLL)
        ledger, of_chain_mb = _ledger(chain, console), peak_memory_mb(chain.pid) if chain else 0
    summary = _summarise(arguments, members, before + time.monotonic() - started, ledger, of_chain_mb)
    report.write_report(workdir)
    report.print_summary(workdir, console)
    console.print(f"report: {workdir / 'report.md'}; each node's log: {workdir / 'node-*' / launch.LOG_FILE}")
    if summary["status"] == "finished":
        return DONE
    console.print(f"{'stopped' if stopping else 'not all nodes finished'}; the same command with --resume goes on.")
    if stopping:
        return INTERRUPTED
    failed = {code for code in codes.values() if code not in (DONE, INTERRUPTED)}
    return next((code for code in (MEND, MAY_PASS) if failed == {code}), 1)


def _chain(
    config: ml_collections.ConfigDict, workdir: Path, members: list[Member]
) -> contextlib.AbstractContextManager:
    """The swarm's own chain, if the config asks for one."""
    kind = config.chain.endpoint
    if kind not in ("devnet", "anvil"):
        return contextlib.nullcontext()
    stake = account.wei(config.chain.stake)
    funded = [account_of(author) for one in members if stake and (author := identity.author_of(one.peer_id))]
    return LocalChain(kind, workdir / CHAIN_FOLDER, len(members), [members[0].address], stake, funded)


def _ledger(chain: LocalChain | None, console: Console) -> dict[str, Any] | None:
    """What the swarm's own chain has of it."""
    if chain is None:
        return None
    try:
        return msgspec.to_builtins(read_ledger(chain.url, chain.contract, CHAIN_ID, chain.directory / INDEX_FILE))
    except ChainError as error:
        console.print(f"the report has no ledger: {error}")
        return None


def _command(member: Member) -> list[str]:
    return [sys.executable, "-m", "rlswarm_jax.running.node", str(member.folder)]


def _environment(config: ml_collections.ConfigDict) -> Callable[[Member], dict[str, str]]:
    nodes, devices = config.swarm.nodes, config.swarm.devices
    visible = launch.visible_gpus() if devices == "gpu" else None
    return lambda member: launch.environment(member.index, nodes, devices, visible, os.environ)


def _write_config(
    config: ml_collections.ConfigDict, member: Member, members: list[Member], chain: LocalChain | None
) -> ml_collections.ConfigDict:
    """Writes a node's own config: the swarm's, with its port, peers, the first of them as bootnode, and the chain."""
    fields = json.loads(config.to_json_best_effort())
    fields["swarm"] |= {
        "port": member.port,
        "peers": [peer.peer_id for peer in members if peer is not member],
        "bootnodes": [*fields["swarm"]["bootnodes"], *([members[0].address] if member.index else [])],
        "key": "",
        "health": _health_of(fields["swarm"]["health"], member.index),
        "adversary": dict(config.simulation.adversaries).get(member.index, config.swarm.adversary),
    }
    if member.index:
        fields["profile"]["rounds"] = []
        fields["publish"]["to"] *= "{node}" in fields["publish"]["to"]  # or all would publish to one place
    if chain:
        fields["chain"] |= {"endpoint": chain.url, "contract": chain.contract, "id": CHAIN_ID, "confirmations": 0}
        fields["chain"]["court"] = chain.court
    write_whole(member.folder / CONFIG_FILE, json.dumps(fields, indent=2) + "\n")
    (member.folder / NODE_FILE).unlink(missing_ok=True)  # of a process that was killed
    return ml_collections.ConfigDict(fields)


def _health_of(address: str, index: int) -> str:
    """Where a node of a swarm says whether it is well: at the port that was given, and those after it."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + index}" if port not in ("", "0") else address


class _Tail:
    """The rows that a node adds to its metrics.jsonl. start: where those of an earlier process end."""

    def __init__(self, path: Path):
        self._path, self.offset, self.start, self._file = path, 0, 0, 0

    def new_rows(self) -> list[dict[str, Any]]:
        """Whole lines since the last call."""
        try:
            with self._path.open("rb") as file:
                told = os.fstat(file.fileno())
                if self._file not in (0, told.st_ino):  # its older rows were let go of: these are known
                    self.offset = told.st_size
                self._file = told.st_ino
                file.seek(self.offset)
                whole = file.read()
        except FileNotFoundError:
            return []
        whole = whole[: whole.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _state(state: str, member: Member, tail: _Tail) -> str:
    """A node's state in a word: the launcher's, or how far one that runs has come."""
    if state != "running":
        return state
    if tail.offset > tail.start:
        return "playing"
    return "compiling" if (member.folder / NODE_FILE).exists() else "starting"


def _rows(member: Member) -> list[dict[str, Any]]:
    path = member.folder / METRICS_FILE
    return [row | {"node": member.index} for row in read_rows(path)] if path.exists() else []


def _summarise(
    arguments: Arguments,
    members: list[Member],
    seconds: float,
    ledger: dict[str, Any] | None,
    of_chain_mb: int,
) -> dict:
    """The swarm's summary.json and metrics.jsonl, from its nodes'."""
    config, workdir = arguments.config, arguments.workdir
    rows = sorted((row for member in members for row in _rows(member)), key=lambda row: (row["round"], row["node"]))
    write_whole(workdir / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for member in members:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found[member] = json.loads((member.folder / SUMMARY_FILE).read_text())
    summary = summarise(
        config,
        [member.name for member in members],
        rows,
        finished=len(found) == len(members) and all(own["status"] == "finished" for own in found.values()),
        weights={name: weights for own in found.values() for name, weights in own["weights"].items()},
        base=_base(next(iter(found.values()), None)),
        seconds=seconds,
        memory_mb=peak_memory_mb() + of_chain_mb + sum(own["peak_memory_mb"] for own in found.values()),
        hardware=next((own["hardware"] for own in found.values()), "unknown"),
        command=arguments.words,
    )
    summary |= {"ledger": ledger} if ledger else {}
    write_summary(workdir, summary)
    return summary


def _base(own: dict[str, Any] | None) -> dict[str, float] | None:
    """The un-spoiled model's accuracy, as a node measured it and `summarise` takes it."""
    accuracy = own and own["held_out_accuracy"]
    if not accuracy or accuracy["base"] is None:
        return None
    return {"accuracy": accuracy["base"]} | {f"accuracy/{t}": a for t, a in accuracy["per_task"]["base"].items()}
