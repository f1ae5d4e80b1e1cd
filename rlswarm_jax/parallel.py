"""Data parallelism over the local devices: one program per device and `psum` between them (`pmap` semantics)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

AXIS = "data"


def local_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh with one axis over this process's devices, all of them by default.

    Raises ValueError when more are asked for than there are.
    """
    devices = jax.local_devices()
    if num_devices is not None and num_devices > len(devices):
        raise ValueError(f"{num_devices} devices are asked for, this process has {len(devices)}.")
    chosen = np.array(devices[:num_devices])
    return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def data_parallel(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`fn(replicated, sharded) -> replicated` on every device of the mesh, `sharded` split on its leading axis.

    `fn` reduces with `jax.lax.psum(x, AXIS)` itself. Replication is not tracked (`check_vma=False`): with it, the
    gradient of a replicated input is summed over devices once by the transpose and once more by the `psum`.
    """
    return jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
