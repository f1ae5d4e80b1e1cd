"""Where arrays live on several devices, and how one program runs on all of them.

A mesh has three axes, ("data", "fsdp", "tensor"), and is one of two kinds. *Replicated* (fsdp = tensor = 1): each
device holds all parameters and its own rows, runs the program by itself, and meets the others in `psum`. *Sharded*:
no device holds all parameters; they are laid out by `RULES`, and XLA partitions a program written for one device.
Rows are split over "data" and "fsdp" in both.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
ROWS = P((DATA, FSDP))

# Parameter -> what its dimensions are split over: "tensor" takes heads, the MLP's inner width and the vocabulary,
# "fsdp" the model's width. What is not here (norms, counters) is whole everywhere; moments follow their parameter.
RULES = {
    "embed": P(TENSOR, FSDP),
    "lm_head": P(FSDP, TENSOR),
    **dict.fromkeys(("q", "k", "v", "gate", "up"), P(FSDP, TENSOR)),
    **dict.fromkeys(("o", "down"), P(TENSOR, FSDP)),
    **dict.fromkeys(("q_bias", "k_bias", "v_bias"), P(TENSOR)),
}


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """How a node uses its devices. backend: for replicated parameters. fsdp, tensor: over how many they are split."""

    backend: Literal["shard_map", "pmap"] = "shard_map"
    fsdp: int = 1
    tensor: int = 1


def make_mesh(devices: Sequence[jax.Device], fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of all these devices, as many data-parallel as fsdp * tensor leave.

    The devices are one node's: to add those of a process that is another node would average the two.
    Raises ValueError if they cannot be arranged so.
    """
    size = fsdp * tensor
    if len(devices) % size:
        wanted = f"fsdp={fsdp} times tensor={tensor} takes a multiple of {size} devices"
        raise ValueError(f"{wanted}, and there are {len(devices)}.")
    shape = (len(devices) // size, fsdp, tensor)
    return Mesh(np.array(devices).reshape(shape), (DATA, FSDP, TENSOR), axis_types=(AxisType.Auto,) * 3)


def local_mesh(num_devices: int | None = None) -> Mesh:
    """A replicated mesh of this process's devices, all of them by default.

    Raises ValueError when more are asked for than there are.
    """
    devices = jax.local_devices()
    if num_devices is not None and num_devices > len(devices):
        raise ValueError(f"{num_devices} devices are asked for, this process has {len(devices)}.")
    return make_mesh(devices[:num_devices])


def is_sharded(mesh: Mesh) -> bool:
    return mesh.shape[FSDP] * mesh.shape[TENSOR] > 1


def row_shards(mesh: Mesh | None) -> int:
    """Into how many parts rows are split; their number must be a multiple of it."""
    return 1 if mesh is None else mesh.shape[DATA] * mesh.shape[FSDP]


# --- where arrays live


def spec(name: str, shape: Sequence[int], mesh: Mesh) -> P:
    """How a parameter is laid out. A dimension that an axis does not divide is not split over it."""
    rule = RULES.get(name, P())
    fits = [
        axis if mesh.shape[axis] > 1 and n % mesh.shape[axis] == 0 else None
        for axis, n in zip(rule, shape, strict=False)
    ]
    return P(*fits) if any(fits) else P()


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Of parameters, or of a state that holds trees of the same names, a `NamedSharding` for each leaf."""

    def of(path, x):
        names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        return NamedSharding(mesh, spec(names[-1] if names else "", np.shape(x), mesh))

    return jax.tree_util.tree_map_with_path(of, tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """Parameters or a state, laid out by `RULES`; no device is given more than its part. Every process has it whole."""
    return jax.tree.map(_put, tree, shardings(tree, mesh))


def placer(mesh: Mesh) -> Callable[[tuple, np.ndarray], Array]:
    """`place(path, array)` for a loader, which has one parameter in hand at a time; the path ends in its name."""
    return lambda path, array: _put(array, NamedSharding(mesh, spec(path[-1], array.shape, mesh)))


def place_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays split along their leading axis."""
    return jax.tree.map(lambda x: _put(x, NamedSharding(mesh, ROWS)), tree)


def fetch(tree: Any) -> Any:
    """The whole arrays in host memory; of arrays that several processes hold parts of, all of them must ask."""

    def whole(x):
        if isinstance(x, Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = _gather(x.sharding.mesh)(x)
        return np.asarray(x)

    return jax.tree.map(whole, tree)


@functools.cache
def _gather(mesh: Mesh) -> Callable[[Array], Array]:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


def _put(x: Any, sharding: NamedSharding) -> Array:
    if sharding.is_fully_addressable or (isinstance(x, Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


# --- how programs run


def data_parallel(fn: Callable[..., Any], mesh: Mesh, backend: str = "shard_map") -> Callable[..., Any]:
    """Jitted `fn(state, rows) -> state and whatever else comes out alike on all devices`.

    `fn` makes sums over rows whole with `total(sums, mesh)`. backend: of a replicated mesh, "shard_map" or "pmap".
    Replication is not tracked (`check_vma=False`): with it, the gradient of a replicated input is summed over devices
    once by the transpose and once more by `total`.
    """
    if is_sharded(mesh):
        run = jax.jit(lambda state, rows: laid_out(fn(state, rows), mesh))
    elif backend == "pmap":
        mapped = _pmap(fn, mesh, out_axes=None)
        return lambda state, rows: place(mapped(state, rows), mesh)
    else:
        run = jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=(P(), ROWS), out_specs=P(), check_vma=False))
    return lambda state, rows: run(state, place_rows(rows, mesh))


def laid_out(tree: Any, mesh: Mesh | None) -> Any:
    """What a program puts out, where `place` would put it."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What a program says of a sharded mesh, where it computes with what is split over it.

    Left to itself XLA may rather add up activations, or logits chunk by chunk, than gather a matrix once.
    """

    mesh: Mesh

    def weights(self, params: Any) -> Any:
        """Parameters as a layer is multiplied: whole but for what is split over "tensor"."""

        def of(path: Any, x: Array) -> Array:
            names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
            kept = [None if axis == FSDP else axis for axis in spec(names[-1] if names else "", x.shape, self.mesh)]
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*kept)))

        return jax.tree_util.tree_map_with_path(of, params)

    def rows(self, x: Array) -> Array:
        """Activations, split along their leading axis."""
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, ROWS))

    def by_rows(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn(whole, *rows) -> rows` by each device for as many rows as any other has; it holds all of `whole`.

        Gradients of that are added up once.
        """
        everywhere = P((DATA, FSDP, TENSOR))

        def run(whole: Any, *rows: Array) -> Any:
            count, fill = len(rows[0]), -len(rows[0]) % self.mesh.size
            filled = [jnp.pad(x, ((0, fill), *[(0, 0)] * (x.ndim - 1))) for x in rows]
            specs = (P(), *[everywhere] * len(rows))
            found = jax.shard_map(fn, mesh=self.mesh, in_specs=specs, out_specs=everywhere)(whole, *filled)
            return jax.tree.map(lambda x: x[:count], found)

        return run


def total(tree: Any, mesh: Mesh | None) -> Any:
    """Sums over all rows, of what a program under `data_parallel` has summed over those that it sees.

    Of what is called `..._max`, the largest.
    """
    if mesh is None or is_sharded(mesh):  # it sees all
        return tree

    def over_devices(path, x):
        return jax.lax.pmax(x, DATA) if _is_max(path) else jax.lax.psum(x, DATA)

    return jax.tree_util.tree_map_with_path(over_devices, tree)


def add(tree: Any, more: Any) -> Any:
    """The same of two parts of the rows."""

    def both(path, x, y):
        return jnp.maximum(x, y) if _is_max(path) else x + y

    return jax.tree_util.tree_map_with_path(both, tree, more)


def _is_max(path: tuple) -> bool:
    return bool(path) and str(getattr(path[-1], "key", "")).endswith("_max")


def split(fn: Callable[..., Any], mesh: Mesh, backend: str = "shard_map") -> Callable[..., Any]:
    """Jitted `fn(params, rows) -> rows`: each part of the rows goes through `fn` by itself.

    On a replicated mesh that is a program for each device, without a word between them: a loop that ends early on one
    does not wait for the others, and a device's bits are those of one device alone with as many rows.
    """
    if not is_sharded(mesh) and backend == "pmap":
        mapped = _pmap(fn, mesh, out_axes=0)
        return lambda params, rows: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mapped(params, rows))
    out = P()  # a process can read only what it holds
    if not is_sharded(mesh):
        fn = jax.shard_map(fn, mesh=mesh, in_specs=(P(), ROWS), out_specs=ROWS, check_vma=False)
        out = ROWS if len({device.process_index for device in mesh.devices.flat}) == 1 else P()
    run = jax.jit(fn, out_shardings=NamedSharding(mesh, out))
    return lambda params, rows: run(params, place_rows(rows, mesh))


def _pmap(fn: Callable[..., Any], mesh: Mesh, out_axes: int | None) -> Callable[..., Any]:
    """`jax.pmap` over the devices of a mesh, on rows that are not folded yet.

    Raises ValueError if they are of several processes, each of which would hand over rows of its own.
    """
    devices = list(mesh.devices.flat)
    if len({device.process_index for device in devices}) > 1:
        raise ValueError("the pmap backend is for the devices of one process: choose shard_map.")
    mapped = jax.pmap(fn, DATA, in_axes=(None, 0), out_axes=out_axes, devices=devices)
    return lambda whole, rows: mapped(whole, jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), rows))
