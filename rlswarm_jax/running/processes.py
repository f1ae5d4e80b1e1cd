"""A node that is several processes: process 0 plays as any node does, the others compute with it.

    python -m experiments.run --config configs/node.py --config.devices.processes=2 \\
        --config.devices.coordinator=10.0.0.1:8476 --config.devices.process=0      and 1 on the second machine

They get the same config otherwise; only process 0 has a folder. On a TPU pod: --config.devices.processes=0 on all.
The coordinator's port trusts whoever reaches it: keep it inside your network. If one process dies all end, with another
exit code than 0; start all of them again, process 0 with --resume.
"""

import contextlib
import json
import os
import sys
from typing import NoReturn

import jax
import ml_collections
from rich.console import Console

from rlswarm_jax import identity, multihost
from rlswarm_jax.engine import DivergedError
from rlswarm_jax.errors import MEND, TransientError, UsageError
from rlswarm_jax.running import build, folder, node
from rlswarm_jax.running.arguments import Arguments

OWN = ("devices.process",)  # what the configs of a node's processes may differ in


def run(arguments: Arguments) -> int:
    """Raises UsageError for whatever the user can mend."""
    devices = arguments.config.devices
    if devices.processes:  # said before, as jax ends a process that waits in vain
        others = f"the other {devices.processes - 1} process(es) of this node at {devices.coordinator}"
        print(f"process {devices.process} waits up to {multihost.JOIN} s for {others}", flush=True)
    try:
        multihost.join(devices.processes, devices.process, devices.coordinator)
    except multihost.HostError as error:
        raise TransientError(str(error)) from error
    try:
        channel = multihost.Channel()
        code = _follow(arguments.config, channel) if jax.process_index() else _lead(arguments, channel)
    except multihost.HostError as error:
        _leave(f"{str(error).rstrip('.')}. Start all of them again, the first one with --resume.", 1)
    jax.distributed.shutdown()
    return code


def _lead(arguments: Arguments, channel: multihost.Channel) -> int:
    try:
        opened = folder.opened(arguments.config, arguments.workdir, arguments.resume)
        with opened as resumes, node.logged(arguments.workdir):
            channel.say("config", arguments.config.to_json_best_effort())
            code = node.play(arguments.config, arguments.workdir, resumes, channel, arguments.words)
    except multihost.HostError:
        raise
    except BaseException:
        with contextlib.suppress(multihost.HostError):
            channel.say("stop", 1, multihost.PART)
        raise
    channel.say("stop", code, multihost.PART)
    return code


def _follow(config: ml_collections.ConfigDict, channel: multihost.Channel) -> int:
    with folder.stop_on_signal("process 0 decides when this node stops"):
        what, told = channel.hear()
        if what == "stop":
            return told
        try:
            ours, theirs = json.loads(config.to_json_best_effort()), json.loads(told)
            if differing := folder.first_difference(ours, theirs, but=OWN):
                raise UsageError(f"process 0 of this node was started with another config.{differing}.")
            made = build.build(config, [identity.simulated(config.seed, 0)], Console())
        except UsageError as error:
            _leave(str(error), MEND)
        try:
            return multihost.follow(made.one_engine, channel)
        except DivergedError as error:
            _leave(str(error), MEND)


def _leave(why: str, code: int) -> NoReturn:
    """At once: jax's own farewell waits for all processes, and they don't come any more."""
    print(f"error: {why}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
