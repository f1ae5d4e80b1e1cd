"""One node on several processes: the first one plays, and tells the others what to compute with it.

The leader, process 0, owns the network, the journal, the checkpoints and the metrics. Before its `Engine` computes
anything it says what, through jax's coordination service; each follower hears it and calls the same method of its own
`Engine` with the same arguments. So all run the same programs in the same order, on one mesh over all their devices.
A follower that waits, for a peer of the leader say, sits in no collective and keeps no device busy (and hears a round's
experience, 200 KB, in 3.5 ms: a broadcast over two CPU processes took 4.2). A process that dies takes the others with
it: jax ends them once they miss it (`HEARTBEAT`), or their next collective fails.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import msgspec
import numpy as np
from jax._src import distributed  # the client of the coordination service has no public name
from jax.experimental import multihost_utils

from rlswarm_jax import parallel, qwen
from rlswarm_jax.engine import Engine
from rlswarm_jax.game.effects import Claimed, Learn, Metrics, Sample, Sampled
from rlswarm_jax.grpo.learner import TrainState
from rlswarm_jax.qwen.sampling import PromptError
from rlswarm_jax.qwen.verdict import Replay
from rlswarm_jax.tasks.verifier import Verifier

JOIN = 300  # seconds for all processes of a node to come together
HEARTBEAT = 20  # seconds after which a silent process is dead
PART = 10  # seconds to part in
HEARD = 3600  # seconds for a follower to hear what is next: it may still be computing, or compiling
LOOK = 2  # seconds between looks at whether to stop, while a follower waits
# What is said, most of it a method of `Engine`, and the type of its argument; weights (None) follow as arrays.
ARGUMENTS: dict[str, Any] = {
    "compile": type(None),
    "sample": dict[int, Sample],
    "learn": dict[int, Learn],
    "evaluate": list[int],
    "state": int,
    "weights": int,
    "set_states": None,
    "evaluate_params": None,
    "config": str,  # first of all: what the leader was started with
    "stop": int,  # last of all: the exit code
}


class HostError(RuntimeError):
    """The processes of a node cannot go on together; all must be started again."""


def join(processes: int, process: int, coordinator: str) -> None:
    """Makes this process one of a node's, before it computes anything. processes: 0 is for the cluster to say it all.

    Raises HostError if they do not come together.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    who = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process} if processes else {}
    times = {"initialization_timeout": JOIN, "heartbeat_timeout_seconds": HEARTBEAT, "shutdown_timeout_seconds": PART}
    try:
        jax.distributed.initialize(**who, **times)
        jax.devices()  # a backend too is made by all together
    except (RuntimeError, ValueError) as error:
        raise HostError(f"the processes of this node did not come together: {_first_line(error)}") from error


class Channel:
    """What the leader says and the followers hear, in order."""

    def __init__(self) -> None:
        self._client, self._count = distributed.global_state.client, 0

    def say(self, what: str, argument: Any, seconds: float = HEARD) -> None:
        """Returns when all have heard it. Raises HostError if one does not."""
        body = None if ARGUMENTS[what] is None else argument
        message = what, msgspec.msgpack.encode(body, enc_hook=_pack)
        try:
            self._client.key_value_set_bytes(self._key, msgspec.msgpack.encode(message))
            self._client.wait_at_barrier("heard", int(seconds * 1000))
            self._client.key_value_delete(self._key)
        except jax.errors.JaxRuntimeError as error:
            raise HostError(f"a process of this node does not listen: {_first_line(error)}") from error
        self._count += 1

    def hear(self) -> tuple[str, Any]:
        """Waits for what is said next; if the leader is gone jax ends this process."""
        message = None
        while message is None:  # now and then, for a signal to come through
            with contextlib.suppress(TimeoutError):
                message = self._get()
        try:
            self._client.wait_at_barrier("heard", HEARD * 1000)
        except jax.errors.JaxRuntimeError as error:
            raise HostError(f"the first process of this node did not wait for all: {_first_line(error)}") from error
        self._count += 1
        what, body = msgspec.msgpack.decode(message, type=tuple[str, bytes])
        return what, msgspec.msgpack.decode(body, type=ARGUMENTS[what], dec_hook=_unpack)

    def _get(self) -> bytes:
        try:
            return self._client.blocking_key_value_get_bytes(self._key, LOOK * 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                raise TimeoutError from None
            raise HostError(f"the first process of this node says nothing: {_first_line(error)}") from error

    @property
    def _key(self) -> str:
        return f"rlswarm/{self._count}"


class Leader:
    """An `Engine` of one node, all of whose computations the followers join; its states are whole, in host memory."""

    def __init__(self, engine: Engine, channel: Channel):
        self._engine, self._channel = engine, channel

    @property
    def verifier(self) -> Verifier:
        return self._engine.verifier

    def compile(self) -> None:
        self._together("compile", None)

    def sample(self, requests: Mapping[int, Sample]) -> dict[int, list[list[Sampled]]]:
        return self._together("sample", dict(requests))

    def learn(self, requests: Mapping[int, Learn]) -> dict[int, Metrics]:
        return self._together("learn", dict(requests))

    def evaluate(self, nodes: Sequence[int]) -> dict[int, Metrics]:
        return self._together("evaluate", list(nodes))

    def evaluate_params(self, params: qwen.Params) -> Metrics:
        return self._together("evaluate_params", params)

    def state(self, node: int) -> TrainState:
        return self._together("state", node)

    def weights(self, node: int) -> qwen.Params:
        return self._together("weights", node)

    def tensors(self, node: int) -> qwen.Tensors:
        return self._engine.named(self.weights(node))

    def replay(self, node: int, tensors: qwen.Tensors | None, claimed: Sequence[Claimed]) -> list[Replay]:
        """On the leader alone, whose first device has to hold the whole model for it."""
        return self._engine.replay(node, self.tensors(node) if tensors is None else tensors, claimed)

    @property
    def base(self) -> bytes:
        return self._engine.base

    def set_states(self, states: Sequence[TrainState]) -> None:
        self._together("set_states", list(states))

    def _together(self, method: str, argument: Any) -> Any:
        self._channel.say(method, argument)
        return _call(self._engine, method, argument)


def lead(engine: Engine, channel: Channel) -> Engine:
    """The engine for whoever plays; it has all of an `Engine` that a live node asks for."""
    return cast(Engine, Leader(engine, channel))


def follow(engine: Engine, channel: Channel) -> int:
    """Computes what the leader says until it stops; returns the exit code that it wants. Raises HostError."""
    while True:
        what, argument = channel.hear()
        if what == "stop":
            return argument
        if what == "set_states":
            argument = [engine.state(0)]  # the shapes of what is coming
        elif what == "evaluate_params":
            argument = engine.weights(0)
        with contextlib.suppress(PromptError):  # the leader gets it too, and decides
            _call(engine, what, argument)


def _call(engine: Engine, method: str, argument: Any) -> Any:
    """On every process at once."""
    try:
        if ARGUMENTS[method] is None:
            argument = jax.tree.map(_from_the_leader, argument)
        found = getattr(engine, method)(*([] if argument is None else [argument]))
        return parallel.fetch(found) if method in ("state", "weights") else found
    except jax.errors.JaxRuntimeError as error:
        wrong = f"what the processes of this node compute together failed ({method})"
        raise HostError(f"{wrong}: {_first_line(error)}") from error


def _from_the_leader(x: Any) -> np.ndarray:
    """The leader's array on all processes, bit for bit (as numbers, -0 would come as 0)."""
    own = np.empty(x.size, x.dtype) if jax.process_index() else np.ascontiguousarray(x).reshape(-1)
    raw = multihost_utils.broadcast_one_to_all(own.view(np.uint8))
    return np.asarray(raw).view(x.dtype).reshape(x.shape)


def _pack(x: Any) -> Any:
    assert isinstance(x, np.ndarray)
    return x.dtype.str, x.shape, x.tobytes()


def _unpack(wanted: type, packed: Any) -> Any:
    assert wanted is np.ndarray
    dtype, shape, raw = packed
    return np.frombuffer(raw, dtype).reshape(shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
