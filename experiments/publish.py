"""Publishes what a node has learned, with a model card of its run; or checks what somebody has published.

    python -m experiments.publish runs/quickstart --repo ada/my-model      to a model hub, as a public repository
    python -m experiments.publish runs/quickstart --repo ada/my-model --private --node bold-otter-1f
    python -m experiments.publish runs/quickstart --to published     to a directory, or a URL: s3://bucket/folder
    python -m experiments.publish runs/quickstart                    to where the run's config.publish.to says
    python -m experiments.publish --verify hf://ada/my-model runs/quickstart      by the chain of a run that is here
    python -m experiments.publish --verify URI --rpc URL --contract 0x... --chain-id N

DIR is the folder of a run of any driver, or of one of its nodes, also while it goes on; its newest checkpoint is taken.
All weights go in the dtype that samples, so that their hash is what the node's records call them; of a run that trains
an adapter that alone, as PEFT has it. Where the run has a chain, hash and URI go on record there. A hub's token is that
of `hf auth login` or HF_TOKEN; it is never given here. --verify downloads, hashes the tensors, and asks the chain who
published them: exit code 0 if somebody did, 1 if nobody did or others were published there.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from experiments.export import read_config
from rlswarm_jax import identity
from rlswarm_jax.chain.devnet import DevnetError
from rlswarm_jax.chain.errors import ChainError
from rlswarm_jax.chain.ledger import Ledger, read_ledger
from rlswarm_jax.errors import MEND, UsageError
from rlswarm_jax.files import CHECKPOINT_FOLDER, CONFIG_FILE, METRICS_FILE
from rlswarm_jax.identity import author_of, friendly_name
from rlswarm_jax.journal import JournalError
from rlswarm_jax.launch import KEY_FILE
from rlswarm_jax.metrics import read_rows
from rlswarm_jax.publish import targets
from rlswarm_jax.publish.queue import Entry, Queue
from rlswarm_jax.records.schema import RecordError
from rlswarm_jax.reporting.ledger import printable
from rlswarm_jax.running import account, folder
from rlswarm_jax.running.trained import Trained, choose, load_states, nodes_of

PATIENCE = 60.0  # seconds for the chain to take a record
FAILURES = (UsageError, JournalError, RecordError, ChainError, DevnetError, identity.KeyFileError, OSError)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    given = _parser().parse_args(argv)
    try:
        return verify(given) if given.verify else publish(given)
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code if isinstance(error, UsageError) else MEND


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments.publish", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", metavar="DIR", type=Path, nargs="?", help="the folder of a run, or of a node")
    parser.add_argument(
        "--node", metavar="NAME", help="whose weights, as the report calls it or by number; the first's"
    )
    parser.add_argument("--best", action="store_true", help="what did best on held-out problems (checkpoints.best)")
    parser.add_argument("--repo", metavar="USER/NAME", help="of a model hub; made if it is not there")
    parser.add_argument("--to", metavar="PLACE", help="a directory, or a URL that fsspec can write to")
    parser.add_argument("--private", action="store_true", help="as a repository that only its owner sees")
    parser.add_argument("--verify", metavar="URI", help="of published weights, as the chain or --to has it")
    parser.add_argument("--rpc", metavar="URL", help="the chain's endpoint, or '$NAME' of a variable that holds it")
    parser.add_argument("--contract", metavar="0x...", help="the coordinator's address, if not the run's")
    parser.add_argument("--chain-id", metavar="N", type=int, help="the chain's, if not the run's")
    parser.add_argument(
        "--from-block", metavar="N", type=int, help="of the deployment, or any before (else searched for)"
    )
    return parser


def publish(given: argparse.Namespace) -> int:
    """Raises one of `FAILURES`."""
    if given.run is None:
        raise UsageError("whose weights? Give the folder of a run (--help explains).")
    config = read_config(given.run)
    nodes = nodes_of(given.run, config)
    node = choose(nodes, given.node, given.run)
    own = read_config(node.folder) if (node.folder / CONFIG_FILE).exists() else config  # a swarm's node has its own
    to = f"{targets.HUB}{given.repo}" if given.repo else given.to or config.publish.to
    if not to:
        raise UsageError("where to? Give --repo USER/NAME of a model hub, or --to with a directory or a URL.")
    if (target := targets.read(to.replace("{node}", node.name))) is None:
        raise UsageError(f"that is no place for weights: expected {targets.WANTED}.")
    target.check()
    if not (node.folder / CHECKPOINT_FOLDER).is_dir():
        every = config.get("checkpoint_every", "config.checkpoint_every")
        raise UsageError(f"{node.folder} has no checkpoint yet: a run writes one every {every} rounds, and at its end.")
    together = sum(other.folder == node.folder for other in nodes)
    queue = Queue(node.folder)
    queue.root.mkdir(exist_ok=True)
    with folder.lock(queue.root):
        _stage(own, node, together, queue, to, given)
        for entry in queue.waiting():  # also what the run has left
            done = queue.send(entry)
            print(f"{done.name} after round {done.round}: {done.uri}\nhash 0x{done.weights}")
    if own.driver != "simulate" and own.chain.endpoint != "none":
        _record(own, node, done, given)
    return 0


def _stage(
    config: ml_collections.ConfigDict, node: Trained, together: int, queue: Queue, to: str, given: argparse.Namespace
) -> None:
    """The checkpoint's weights. together: nodes in the folder."""
    from rlswarm_jax import qwen
    from rlswarm_jax.checkpoint import CheckpointError
    from rlswarm_jax.publish.background import Offer
    from rlswarm_jax.publish.model import Weights
    from rlswarm_jax.qwen import peft
    from rlswarm_jax.running import build
    from rlswarm_jax.running.publishing import stage

    try:
        policy, adapter = build.load_policy(config), build.make_lora_config(config)
        state = load_states(node.folder, build.first_state(config, policy), together, given.best)[node.index]
        if adapter is None:
            weights = Weights(qwen.to_tensors(state.params, policy.config, config.sampling.dtype))
        else:
            weights = Weights(peft.to_tensors(state.params), adapter)
        rows = [row for row in read_rows(node.folder / METRICS_FILE) if row.get("node") == node.index]
        round_ = max((row["round"] for row in rows if row.get("learn/step", 0) <= int(state.step)), default=-1)
        private = given.private or config.publish.private
        stage(config, node.folder, queue, Offer(node.index, node.name, round_, weights), to, private, again=True)
    except UsageError:
        raise
    except (CheckpointError, qwen.SaveError, ValueError) as error:
        raise UsageError(str(error)) from error


def _record(config: ml_collections.ConfigDict, node: Trained, done: Entry, given: argparse.Namespace) -> None:
    """Puts it on the node's chain, by its own outbox; a node that is running does that itself."""
    if folder.in_use(node.folder):
        print(f"{node.name} is running: it puts this on its chain itself, after its next round.")
        return
    key = Path(config.swarm.key or node.folder / KEY_FILE)
    if not key.exists():
        raise UsageError(f"the key {key} is not here: only who has it can put this on the chain.")
    with account.reached(config, node.folder, given.rpc, given.contract or "") as url:
        fields = {"endpoint": url, "contract": given.contract, "id": given.chain_id}
        with (copy := ml_collections.ConfigDict(config)).unlocked():
            copy.chain.update({name: value for name, value in fields.items() if value})
        client = account.connect(copy, identity.load_or_create(key), node.folder)
        assert client is not None, "its endpoint is a URL"
        try:
            round_ = client.record_weights(bytes.fromhex(done.weights), done.uri)
            until = time.monotonic() + PATIENCE
            while not client.idle() and time.monotonic() < until:
                time.sleep(min(1.0, client.step()))
            idle = client.idle()
        finally:
            client.close()
    if round_ is None:
        print("it is not on the chain: the node has settled no round since it last put weights there.")
    elif idle:
        print(f"on record after round {round_} of the chain")
    else:
        print("the chain has not taken it yet: the node's outbox keeps it for its next start, or this command.")


def verify(given: argparse.Namespace) -> int:
    """Whether the chain has weights of that hash. Raises one of `FAILURES`."""
    from rlswarm_jax.publish.model import hash_of

    if (target := targets.read(given.verify)) is None:
        raise UsageError(f"that is no place for weights: expected {targets.WANTED}.")
    chain = _chain(given)
    with targets.fetched(target) as there:
        found = f"0x{hash_of(there).hex()}"
    print(f"hash {found}")
    with chain as (url, contract, number), tempfile.TemporaryDirectory() as directory:
        try:
            index = Path(directory) / "events.sqlite"
            told = read_ledger(url, contract, number, index, first_block=given.from_block)
        except ValueError as error:
            raise UsageError(str(error)) from error
    of, every = _whose(told), [(one.number, weights) for one in told.rounds for weights in one.weights]
    same = [(number, one) for number, one in every if one.weights == found]
    for number, one in same:
        print(f"published by {of(one.account)} after round {number} of the chain: {printable(one.uri)} ({one.hash})")
    if same:
        return 0
    for number, one in reversed(every):
        if one.uri == given.verify or one.uri.rpartition("@")[0] == given.verify:
            other = f"{of(one.account)} put {one.weights} on record for it after round {number} ({one.hash})"
            print(f"NOT WHAT WAS PUBLISHED: the weights at {given.verify} have another hash than {other}.")
            return 1
    print(f"nobody has put weights of this hash on record at {told.contract} on chain {told.chain_id}.")
    return 1


def _chain(given: argparse.Namespace) -> contextlib.AbstractContextManager[tuple[str, str, int]]:
    """What to ask: an endpoint's URL, the coordinator's address and the chain's id. Raises UsageError at once."""
    if given.run is None:
        if not (given.rpc and given.contract and given.chain_id):
            raise UsageError("by which chain? Give --rpc, --contract and --chain-id, or the folder of a run.")
        return contextlib.nullcontext((account.address(given.rpc), given.contract, given.chain_id))
    config = read_config(given.run)
    node = choose(nodes_of(given.run, config), given.node, given.run)
    own = read_config(node.folder) if (node.folder / CONFIG_FILE).exists() else config
    contract, chain = given.contract or own.chain.contract, given.chain_id or own.chain.id
    if own.driver == "simulate" or not contract:
        raise UsageError(f"{given.run} has no chain: give --rpc, --contract and --chain-id of one.")

    @contextlib.contextmanager
    def of_run() -> Iterator[tuple[str, str, int]]:
        with account.reached(own, node.folder, given.rpc, contract) as url:
            yield url, contract, chain

    return of_run()


def _whose(told: Ledger) -> Any:
    """What an account is called: its node's name, where its key is known, and itself."""
    authors = {peer.account: author_of(peer.peer_id) for peer in told.peers if peer.kind == "proven"}
    covered = {one.account: 0 for one in told.peers}
    for round_ in told.rounds:
        for made in round_.commitments:
            covered[made.account] = covered.get(made.account, 0) + made.count

    def name(account_: str) -> str:
        author = authors.get(account_)
        known = f"{friendly_name(author)}, " if author else ""
        return f"{known}account {account_}, which committed to {covered.get(account_, 0):,} records,"

    return name


if __name__ == "__main__":
    sys.exit(main())
