"""What a loss keeps for its backward pass, without computing or allocating anything."""

from collections.abc import Callable
from typing import Any

import jax
from jax import ShapeDtypeStruct


def residuals(loss: Callable[..., Any], params: Any, *args: Any) -> list[ShapeDtypeStruct]:
    """The arrays that the gradient of `loss(params, *args)` needs and the forward pass makes: none that is given.

    params, args: arrays, or shapes and dtypes.
    """
    traced = jax.make_jaxpr(lambda params, *args: jax.tree.leaves(jax.vjp(lambda p: loss(p, *args), params)[1]))(
        params, *args
    )
    given = set(map(id, [*traced.jaxpr.invars, *traced.jaxpr.constvars]))
    made = {id(var): var.aval for var in traced.jaxpr.outvars}
    return [ShapeDtypeStruct(aval.shape, aval.dtype) for name, aval in made.items() if name not in given]


def size(arrays: Any) -> int:
    """Of a pytree of arrays, or of their shapes and dtypes, in bytes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
