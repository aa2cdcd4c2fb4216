"""What a network costs by its layout, counted from the traced program: one counter for every network.

PyTorch twins compute the same function, so the counts of their rows are those of the Linen module, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


@dataclass(frozen=True)
class Cost:
    """Counts over the convolutions and matrix products of one call; nothing else is counted."""

    multiply_adds: int = 0
    activations: int = 0
    """Elements that they write."""
    product_bytes: int = 0
    """Bytes that they move if each reads its operands once and writes its result once."""
    depth: int = 0
    """How many of them run, side by side or one after the other."""

    def __add__(self, other: Cost) -> Cost:
        """The cost of both."""
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.activations + other.activations,
            self.product_bytes + other.product_bytes,
            self.depth + other.depth,
        )

    def __mul__(self, times: int) -> Cost:
        """The cost of so many calls."""
        return Cost(
            self.multiply_adds * times, self.activations * times, self.product_bytes * times, self.depth * times
        )


def cost(function: Callable[..., Any], *arguments: Any) -> Cost:
    """The cost of one call.

    `arguments` may be shapes (`jax.ShapeDtypeStruct`): nothing is computed. Norms, element-wise work, pooling and
    interpolation do not count; one multiply-add is two FLOPs. A loop counts as often as it runs (`scan`), a choice by
    its dearest branch. An operation with formulations for several kinds of device counts as that for the others, which
    is the convolution itself; one with a gradient of its own counts as what it computes forward.
    """
    return _total(jax.make_jaxpr(function)(*arguments).jaxpr)


def model_cost(model: Any, params: Any, height: int, width: int, batch: int = 1) -> Cost:
    """The cost of one forward pass over `[batch, height, width, C]`."""
    if hasattr(model, "scan"):
        # The same counts from a program that is traced faster.
        model = model.clone(scan=True)
    images = jax.ShapeDtypeStruct((batch, height, width, model.input_channels), jnp.float32)
    return cost(lambda params, images: model.apply({"params": params}, images), params, images)


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-adds of the convolutions and matrix products in one call, counted as `cost` does."""
    return cost(function, *arguments).multiply_adds


def model_multiply_adds(model: Any, params: Any, height: int, width: int, batch: int = 1) -> int:
    """Multiply-adds of one forward pass over `[batch, height, width, C]`."""
    return model_cost(model, params, height, width, batch).multiply_adds


def _total(jaxpr: core.Jaxpr) -> Cost:
    return sum(map(_equation_cost, jaxpr.eqns), start=Cost())


def _equation_cost(equation: core.JaxprEqn) -> Cost:
    name, parameters = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        arrays: list[Any] = [variable.aval for variable in (*equation.invars, *equation.outvars)]
        left, right, output = (array.shape for array in arrays)
        return Cost(
            multiply_adds=_products(name, parameters, left, right, output),
            activations=math.prod(output),
            product_bytes=sum(array.size * array.dtype.itemsize for array in arrays),
            depth=1,
        )
    inner = [_total(_jaxpr(value)) for value in _subprograms(parameters)]
    if name == "cond":
        platforms = parameters.get("branches_platforms")
        if platforms and None in platforms:
            return inner[platforms.index(None)]
        return max(inner, key=lambda branch: branch.multiply_adds)
    return sum(inner, start=Cost()) * (parameters["length"] if name == "scan" else 1)


def _products(
    name: str, parameters: dict[str, Any], left: tuple[int, ...], right: tuple[int, ...], output: tuple[int, ...]
) -> int:
    layout = parameters["dimension_numbers"]
    if name == "dot_general":
        (contracted, _), _ = layout
        return math.prod(output) * math.prod(left[axis] for axis in contracted)
    if math.prod(parameters["lhs_dilation"]) > 1:
        # A transposed convolution: most taps meet the zeros between the inputs, so price it by its inputs.
        return math.prod(left) // left[layout.lhs_spec[1]] * math.prod(right)
    return math.prod(output) * math.prod(right) // right[layout.rhs_spec[0]]


def _subprograms(parameters: dict[str, Any]) -> list[Any]:
    values = [item for value in parameters.values() for item in (value if isinstance(value, tuple | list) else [value])]
    return [value for value in values if isinstance(value, core.Jaxpr | core.ClosedJaxpr)]


def _jaxpr(value: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
