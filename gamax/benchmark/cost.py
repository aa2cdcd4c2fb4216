"""Multiply-adds, counted from the traced program: one counter for every network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-adds of the convolutions and matrix products in one call.

    `arguments` may be shapes (`jax.ShapeDtypeStruct`): nothing is computed. Norms, element-wise work, pooling and
    interpolation do not count; one multiply-add is two FLOPs. A loop counts as often as it runs (`scan`), a choice by
    its dearest branch. An operation with formulations for several kinds of device counts as that for the others, which
    is the convolution itself.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def model_multiply_adds(model: Any, params: Any, height: int, width: int, batch: int = 1) -> int:
    """Multiply-adds of one forward pass over `[batch, height, width, C]`."""
    if hasattr(model, "scan"):
        # The same count from a program that is traced faster.
        model = model.clone(scan=True)
    images = jax.ShapeDtypeStruct((batch, height, width, model.input_channels), jnp.float32)
    return multiply_adds(lambda params, images: model.apply({"params": params}, images), params, images)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        left, right, output = (_shape(variable) for variable in (*equation.invars, *equation.outvars))
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            return math.prod(output) * math.prod(left[axis] for axis in contracted)
        layout = parameters["dimension_numbers"]
        features = right[layout.rhs_spec[0]]
        if math.prod(parameters["lhs_dilation"]) > 1:
            # A transposed convolution: most taps meet the zeros between the inputs, so price it by its inputs.
            channels = left[layout.lhs_spec[1]]
            return math.prod(left) // channels * math.prod(right)
        return math.prod(output) * math.prod(right) // features
    inner = [_count(_jaxpr(value)) for value in _subprograms(parameters)]
    if name == "cond":
        platforms = parameters.get("branches_platforms")
        return inner[platforms.index(None)] if platforms and None in platforms else max(inner)
    return sum(inner) * (parameters["length"] if name == "scan" else 1)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _subprograms(parameters: dict[str, Any]) -> list[Any]:
    values = [item for value in parameters.values() for item in (value if isinstance(value, tuple | list) else [value])]
    return [value for value in values if isinstance(value, core.Jaxpr | core.ClosedJaxpr)]


def _jaxpr(value: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
