"""A run as its config says, by the driver that it names; as a program a run of a sweep, which ends with its parent."""

import contextlib
import functools
import importlib
import os
import signal

from rlswarm_jax import launch
from rlswarm_jax.errors import DONE
from rlswarm_jax.page.beside import beside
from rlswarm_jax.running import service
from rlswarm_jax.running.arguments import Arguments, check, main

DRIVERS = {"live": "live", "node": "node", "simulate": "simulated", "bootnode": "bootnode"}


def run(arguments: Arguments, page: bool = False) -> int:
    """Returns an exit code. page: whether one of the run is served beside it.

    Raises UsageError for whatever the user can mend.
    """
    if arguments.service:
        check(arguments.config)
        print(service.text(arguments.service, arguments), end="")
        return DONE
    if arguments.plan:
        check(arguments.config)
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        return importlib.import_module("rlswarm_jax.running.plan").run(arguments.config, arguments.memory)
    if arguments.doctor:
        check(arguments.config)
        return importlib.import_module("rlswarm_jax.running.doctor").run(arguments.config, arguments.workdir)
    print(f"run folder: {arguments.workdir}", flush=True)
    config = arguments.config
    check(config)
    driver = DRIVERS[config.driver]
    if driver == "node" and config.devices.processes != 1:
        driver = "processes"  # which it is, together
    shown = page and driver != "bootnode"  # there is nothing to be seen of one that plays no rounds
    with beside(arguments.workdir, functools.partial(print, flush=True)) if shown else contextlib.nullcontext():
        # only now: what a driver needs (jax and its friends) can take seconds
        return importlib.import_module(f"rlswarm_jax.running.{driver}").run(arguments)


if __name__ == "__main__":
    launch.follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    main(run, __doc__)
