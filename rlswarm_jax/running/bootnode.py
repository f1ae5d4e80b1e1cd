"""A node without a model, at which the others of a swarm find each other: it plays no rounds and loads no jax.

It passes on signed records of its swarm, each checked as any node checks it, between peers that cannot reach each
other, and tells them where those are that it has dialled. Its folder holds its key, the peers it knows and a log.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path

from rlswarm_jax import identity, launch
from rlswarm_jax.errors import TransientError, UsageError
from rlswarm_jax.files import CONFIG_FILE, JOURNAL_FILE, NODE_FILE, cannot_write, write_whole
from rlswarm_jax.running import folder, joining
from rlswarm_jax.running.arguments import Arguments
from rlswarm_jax.running.node import logged
from rlswarm_jax.swarm.gossip import Gossip, GossipConfig
from rlswarm_jax.swarm.greeting import NO_PLAYER
from rlswarm_jax.swarm.memory import FILE, Memory
from rlswarm_jax.swarm.transport import NetworkError

log = logging.getLogger("rlswarm_jax.bootnode")

MAX_CONNECTIONS = 256
POLL = 0.2  # seconds


def run(arguments: Arguments) -> int:
    """Runs until it is stopped. Raises UsageError for whatever the user can mend."""
    config, workdir = arguments.config, arguments.workdir
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(workdir, error, "; choose another --workdir") from None
    if (workdir / JOURNAL_FILE).exists():
        raise UsageError(f"{workdir} is the folder of a node that plays: choose another --workdir for the bootnode.")
    key = Path(config.swarm.key or workdir / launch.KEY_FILE)
    with folder.lock(workdir):
        try:
            own = identity.load_or_create(key)
        except identity.KeyFileError as error:
            raise UsageError(str(error)) from error
        write_whole(workdir / CONFIG_FILE, json.dumps(json.loads(config.to_json_best_effort()), indent=2) + "\n")
        said = logging.StreamHandler(sys.stdout)
        said.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger("rlswarm_jax").addHandler(said)
        logging.getLogger("rlswarm_jax").setLevel(logging.INFO)
        with logged(workdir), folder.lock(key), folder.stop_on_signal("stopping ...") as stopping:
            _serve(arguments, own, stopping)
    return 130


def _serve(arguments: Arguments, own: identity.Identity, stopping: list[int]) -> None:
    config, workdir = arguments.config, arguments.workdir
    network = GossipConfig(
        swarm=config.swarm.name,
        host=config.swarm.host,
        port=config.swarm.port,
        announce=tuple(config.swarm.announce),
        bootnodes=tuple(config.swarm.bootnodes),
        target_peers=config.swarm.target_peers,
        max_connections=MAX_CONNECTIONS,
    )
    transport = Gossip(own, network, lambda signed: True, memory=Memory(workdir / FILE))
    transport.tell_rules(NO_PLAYER)
    name = identity.friendly_name(own.author)
    try:
        addresses = transport.start()
        told = {"peer_id": own.peer_id, "name": name, "pid": os.getpid(), "swarm": config.swarm.name}
        write_whole(workdir / NODE_FILE, json.dumps(told | {"addresses": addresses}, indent=2) + "\n")
        log.info("%s, a bootnode of the swarm %s, listens on %s", name, config.swarm.name, " ".join(addresses))
        log.info("others join through it with: %s", joining.through(addresses[0]))
        while not stopping:
            time.sleep(POLL)
    except NetworkError as error:
        raise TransientError(str(error)) from error
    finally:
        (workdir / NODE_FILE).unlink(missing_ok=True)
        transport.close()
