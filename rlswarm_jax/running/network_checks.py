"""What a run needs of its network, its chain and its key, each looked at by itself (see `doctor`)."""

import contextlib
import errno
import functools
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import ml_collections

from configs.common import LOCAL_CHAINS
from rlswarm_jax import identity, keystore
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import JOURNAL_FILE, NODE_FILE
from rlswarm_jax.identity import KeyFileError
from rlswarm_jax.launch import KEY_FILE
from rlswarm_jax.running import account, folder, moving
from rlswarm_jax.running.findings import FINE, LOOK, UNKNOWN, WAIT, WRONG, Finding
from rlswarm_jax.swarm import addresses
from rlswarm_jax.swarm.transport import NetworkError

CONNECT_SECONDS, ENDPOINT_SECONDS, DIALLED_SECONDS = 5.0, 8.0, 20.0
LISTENING = ("node", "bootnode")  # drivers by which one process is one peer
CLOCK_AHEAD, CLOCK_BEHIND = 15.0, 120.0  # seconds that the chain's newest block may differ by


def port(config: ml_collections.ConfigDict, workdir: Path) -> Finding:
    host, number = config.swarm.host, config.swarm.port
    if config.driver == "simulate":
        return Finding(FINE, "a simulation listens nowhere")
    if folder.in_use(workdir):
        return Finding(
            LOOK, f"a run is at work in {workdir}, and has its port", "look at its log.txt, or stop it first"
        )
    for address in ("0.0.0.0", "::") if host == addresses.ANY else (host,):
        try:
            _listen(address, number)
        except OSError as error:
            if number and error.errno == errno.EADDRINUSE:
                return Finding(
                    WAIT, f"port {number} of {address} is in use", "stop whoever has it, or set config.swarm.port"
                )
            if address == "::" and host == addresses.ANY:
                continue  # a machine without IPv6 listens on the other alone
            return Finding(WRONG, f"cannot listen on {address}, port {number}: {error.strerror or error}", _PORT)
    if not number:
        return Finding(FINE, f"a free port of {host} can be listened on")
    return Finding(FINE, f"port {number} of {host} is free, and listens")


def _listen(host: str, number: int) -> None:
    """Listens there, and connects to that. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, number))
        probe.listen()
        with socket.create_connection(_own(probe.getsockname()), CONNECT_SECONDS):
            pass


_PORT = "set config.swarm.host to an address of this machine, and config.swarm.port above 1023"


def _own(taken: Any) -> tuple[str, int]:
    """Where to reach a socket that listens, from here."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(taken[0], taken[0])
    return host, taken[1]


def reachable(config: ml_collections.ConfigDict, workdir: Path) -> Finding:
    """Asks a bootnode, which tells others only of addresses that it has dialled itself."""
    host = config.swarm.host
    if config.driver not in LISTENING:
        return Finding(FINE, "its nodes are all on this machine")
    if host.startswith("127.") or host in ("::1", "localhost"):
        return Finding(LOOK, f"only this machine reaches {host}", "for others: --config.swarm.host=any and a port")
    if not config.swarm.port:
        advice = "set config.swarm.port, and open it in the firewall or router"
        return Finding(LOOK, "a port that is free by chance is not open to others", advice)
    named = [read for one in config.swarm.bootnodes if (read := addresses.read(one))]
    peer = next((place for one in named if (place := _opens(one))), None)
    if peer is None:
        where = f"from elsewhere: nc -vz YOUR_ADDRESS {config.swarm.port}; docs/reach.md has the ways"
        return Finding(UNKNOWN, f"there is no bootnode to dial port {config.swarm.port} back", where)
    try:
        found = _dialled_back(config, workdir, peer)
    except NetworkError as error:
        return Finding(UNKNOWN, str(error))
    if found:
        return Finding(FINE, f"{peer} has dialled it: {' '.join(found)}")
    advice = "forward the port (TCP) and set config.swarm.announce, or do without: docs/reach.md"
    return Finding(LOOK, f"{peer} could not dial it: it can only dial out", advice)


def _dialled_back(config: ml_collections.ConfigDict, workdir: Path, peer: str) -> list[str]:
    """Where a peer found the node that runs in a folder, or one that is started for that."""
    from rlswarm_jax.swarm.dialled_back import where_it_sends, where_others_are_sent
    from rlswarm_jax.swarm.gossip import GossipConfig

    told = workdir / NODE_FILE
    if folder.in_use(workdir) and told.exists():
        return where_it_sends(config.swarm.name, peer, json.loads(told.read_text())["peer_id"], DIALLED_SECONDS)
    own = config.swarm
    network = GossipConfig(own.name, own.host, own.port, tuple(own.announce), bootnodes=(peer,))
    return where_others_are_sent(network, peer, DIALLED_SECONDS)


def bootnodes(config: ml_collections.ConfigDict) -> Finding:
    """Whether somebody opens at each of them; who that is, a node finds out."""
    named = [read for one in config.swarm.bootnodes if (read := addresses.read(one))]
    if not named:
        told = "the chain names them" if config.chain.contract else "others come to this one, or nobody does"
        return Finding(FINE, f"none is set: {told}")
    silent = [one for one in named if not _opens(one)]
    if not silent:
        return Finding(FINE, f"{len(named)} of {len(named)} answer")
    state = WAIT if len(silent) == len(named) else LOOK
    advice = f"no answer: {', '.join(one.text for one in silent[:2])}: is it running, is its port open?"
    return Finding(state, f"{len(named) - len(silent)} of {len(named)} answer", advice)


def _opens(one: addresses.NodeAddress) -> str | None:
    """As numbers, where somebody answers who may be that peer."""
    with contextlib.suppress(addresses.UnknownNameError):
        for text in addresses.resolve(one):
            _, _, host, _, number = text.split("/")
            with contextlib.suppress(OSError), socket.create_connection((host, int(number)), CONNECT_SECONDS):
                return f"{text}/p2p/{one.peer_id}"
    return None


# --- the chain


def _has_chain(config: ml_collections.ConfigDict) -> bool:
    return config.driver != "simulate" and config.chain.endpoint not in ("none", *LOCAL_CHAINS)


@functools.cache
def _endpoint(url: str, number: int) -> Any:
    """web3 at an endpoint. Raises ChainError."""
    from rlswarm_jax.chain import eth
    from rlswarm_jax.chain.rpc import Endpoint

    return eth.connect(Endpoint(url, seconds=ENDPOINT_SECONDS), number)


def clock(config: ml_collections.ConfigDict) -> Finding:
    """Against the chain's newest block: there is nobody else to ask without the wide world."""
    from rlswarm_jax.chain.errors import ChainError

    advice = "see to it that the clock is set (timedatectl, chronyc tracking)"
    if not _has_chain(config) or not config.chain.confirmations:
        return Finding(UNKNOWN, "there is nobody to compare it with: no public chain is set", advice)
    try:
        w3 = _endpoint(account.address(config.chain.endpoint), config.chain.id)
        ahead = w3.eth.get_block("latest")["timestamp"] - time.time()
    except (ChainError, UsageError) as error:
        return Finding(UNKNOWN, f"the chain cannot be asked: {error}")
    if ahead > CLOCK_AHEAD:
        return Finding(WRONG, f"it is {ahead:.0f} s behind the chain's newest block", advice)
    if ahead < -CLOCK_BEHIND:
        return Finding(
            LOOK, f"the chain's newest block is {-ahead:.0f} s old: it stands, or the clock is ahead", advice
        )
    return Finding(FINE, f"{-ahead:.0f} s after the chain's newest block")


def chain(config: ml_collections.ConfigDict, workdir: Path) -> Finding:
    """Endpoint, contract, and the account of this node there."""
    from rlswarm_jax.chain import calls, eth
    from rlswarm_jax.chain.errors import ChainError, EndpointDown

    if config.driver == "simulate":
        return Finding(FINE, "a simulation has its own")
    if not _has_chain(config):
        local = config.chain.endpoint in LOCAL_CHAINS
        return Finding(FINE, "the swarm starts its own" if local else "there is none (config.chain.endpoint)")
    try:
        w3 = _endpoint(account.address(config.chain.endpoint), config.chain.id)
        contract = eth.Contract(w3, config.chain.contract)
        if not w3.eth.get_code(contract.address):
            return Finding(WRONG, f"there is no contract at {contract.address}", "check config.chain.contract and id")
        interface = calls.probe(contract)
        now = calls.read_status(contract, interface.ours)
        said = f"round {now.round}, {now.peers} peers"
        try:
            own = identity.load(_key_file(config, workdir)) if _is_open(config, workdir) else None
        except KeyFileError:
            own = None
        if own is None or not interface.ours:
            return Finding(FINE, f"{said}; this node's account is not known here")
        mine = calls.account_of(own.author)
        coins = w3.eth.get_balance(mine) / 10**18
        registered = contract.view("peerOf", mine)[0]
    except EndpointDown as error:
        return Finding(WAIT, str(error), "a node begins without it, and tries again; check config.chain.endpoint")
    except (ChainError, UsageError, ValueError) as error:
        return Finding(WRONG, str(error), "check config.chain.endpoint, contract and id")
    said += f"; {mine} has {coins:.4f} coins and is {'' if registered else 'not '}registered"
    if not coins:
        return Finding(LOOK, said, "it pays for what the node sends: send it some, or have its registration relayed")
    return Finding(FINE, said)


# --- the key


def _key_file(config: ml_collections.ConfigDict, workdir: Path) -> Path:
    return Path(config.swarm.key or workdir / KEY_FILE)


def _is_open(config: ml_collections.ConfigDict, workdir: Path) -> bool:
    """Whether the key can be had without asking anybody."""
    path = _key_file(config, workdir)
    try:
        sealed = keystore.is_keystore(identity.key_line(path))
    except (FileNotFoundError, KeyFileError):
        return False
    return not sealed or any(name in os.environ for name in (keystore.VARIABLE, keystore.FILE_VARIABLE))


def key(config: ml_collections.ConfigDict, workdir: Path) -> Finding:
    path = _key_file(config, workdir)
    if config.driver not in LISTENING:
        return Finding(FINE, "its nodes get keys of their own")
    if not path.exists():
        return Finding(
            FINE, f"none yet: {path} is made at the first start", "keep a copy (experiments.identity export)"
        )
    try:
        sealed = keystore.is_keystore(identity.key_line(path))
        if sealed and not _is_open(config, workdir):
            return Finding(LOOK, f"{path} is under a passphrase", f"without a terminal, set {keystore.FILE_VARIABLE}")
        own = identity.load_or_create(path)
    except KeyFileError as error:
        return Finding(WRONG, str(error), "docs/identity.md has what to do about keys")
    if heir := identity.given_up_for(path):
        return Finding(WRONG, f"{path} was given up for {heir}", "play with that one, in the folder that it is in")
    if identity.is_restored(path):
        return Finding(WRONG, f"what {path} has signed is not known here", "play with another key, or rotate it")
    signed = None if folder.in_use(workdir) else identity.journal_of(path)
    if signed is not None and signed != moving.journal_id(workdir / JOURNAL_FILE):
        return Finding(WRONG, f"{path} has signed in another journal than {workdir}'s", "go on where that one is")
    return Finding(FINE, f"{identity.friendly_name(own.author)}, {own.peer_id}")
