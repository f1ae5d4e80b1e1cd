"""Looks, within a minute, at whether a config can be run here, and says of each thing in a line what to do about it.

Nothing is changed, and nobody is sent anything but questions: the chain, the bootnodes, the disk. A bootnode is asked
whether it can dial this machine, by a node that is there for that, for seconds, under a key of its own.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ml_collections
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlswarm_jax.errors import DONE, MAY_PASS, MEND
from rlswarm_jax.running import machine_checks, network_checks
from rlswarm_jax.running.findings import FINE, LOOK, UNKNOWN, WAIT, WRONG, Check, Finding

SECONDS = 55.0  # for all of it
_STYLE = {FINE: "green", LOOK: "yellow", UNKNOWN: "dim", WAIT: "yellow", WRONG: "bold red"}


def run(config: ml_collections.ConfigDict, workdir: Path) -> int:
    """Prints a table; returns 0 where nothing has to be mended, else 2, or 75 if all of it may pass by itself."""
    console = Console(soft_wrap=True)
    console.print("looking, for a minute at most ...", style="dim")
    with _quiet():
        found = carry_out(checks_of(config, workdir))
    console.print(table(found))
    states = [finding.state for finding in found.values()]
    wrong, waiting = states.count(WRONG), states.count(WAIT)
    if wrong:
        console.print(f"{wrong} to mend first", style="bold red")
    elif waiting:
        console.print(f"{waiting} that may pass by itself: try again later", style="yellow")
    else:
        console.print("nothing keeps this from running here", style="green")
    return MEND if wrong else MAY_PASS if waiting else DONE


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a log: what a node would say there is said here in other words."""
    loggers = [logging.getLogger(name) for name in ("rlswarm_jax", "libp2p")]
    before = [(logger, logger.propagate) for logger in loggers]
    nowhere = logging.NullHandler()
    try:
        for logger in loggers:
            logger.addHandler(nowhere)
            logger.propagate = False
        yield
    finally:
        for logger, propagated in before:
            logger.removeHandler(nowhere)
            logger.propagate = propagated


def checks_of(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Check]:
    """By name, in the order in which they are shown."""
    machine = machine_checks.Once(lambda: machine_checks.look_at_machine(config))
    port = machine_checks.Once(lambda: network_checks.port(config, workdir))

    def reachable() -> Finding:
        port()  # which needs it free
        return network_checks.reachable(config, workdir)

    found: dict[str, Check] = {
        "port": port,
        "reachable": reachable,
        "bootnodes": lambda: network_checks.bootnodes(config),
        "clock": lambda: network_checks.clock(config),
        "chain": lambda: network_checks.chain(config, workdir),
        "identity": lambda: network_checks.key(config, workdir),
        "disk": lambda: machine_checks.disk(config, workdir, machine),
        "device": lambda: machine_checks.device(config, machine),
        "memory": lambda: machine_checks.memory(machine),
        "weights": lambda: machine_checks.weights(config),
        "sandbox": lambda: machine_checks.sandbox(config),
    }
    if config.driver == "bootnode":  # it loads no model, and has no account
        found = {name: found[name] for name in ("port", "reachable", "bootnodes", "identity")}
    return found


def carry_out(checks: dict[str, Check], seconds: float = SECONDS) -> dict[str, Finding]:
    """All at the same time, in their order; what has not ended in time is unknown, and waited for no more."""
    found: dict[str, Finding] = {}

    def one(name: str, check: Check) -> None:
        try:
            found[name] = check()
        except Exception as error:  # one thing that cannot be looked at must not hide the others
            found[name] = Finding(UNKNOWN, f"{type(error).__name__}: {error}", "this check failed: please report it")

    threads = [threading.Thread(target=one, args=item, daemon=True) for item in checks.items()]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    late = Finding(UNKNOWN, f"no answer within {seconds:.0f} s", "the machine, or whom it asks, is busy: try again")
    return {name: found.get(name, late) for name in checks}


def table(found: dict[str, Finding]) -> Table:
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for name, one in found.items():
        words = [_readable(one.said), *([f"-> {_readable(one.advice)}"] if one.advice else [])]
        shown.add_row(Text(one.state, style=_STYLE[one.state]), Text(name), Text("  ".join(words)))
    return shown


def _readable(text: str) -> str:
    """On one line, and nothing that a terminal would obey: a part of it may be an endpoint's words."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]
