"""The networks: one a file; their named variants are in `variants.py`."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, get_type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp

from gamax.errors import UserError, nearest
from gamax.models.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "Variant", "abstract_params", "count_parameters", "create_model", "list_models", "variant"]


def list_models() -> list[str]:
    """The names that `create_model` takes."""
    return list(VARIANTS)


def variant(name: str) -> Variant:
    """The description of a named network; an unknown name raises `UserError` with the nearest one."""
    if name not in VARIANTS:
        raise UserError(f"unknown model {nearest(name, VARIANTS)}")
    return VARIANTS[name]


def create_model(name: str, /, **overrides: Any) -> nn.Module:
    """The Linen module of a named network: a pure function of parameters and images `[B, H, W, C]` in [0, 1].

    Args:
        name: one of `list_models()`.
        **overrides: fields of the module to change, for example `mixer="sca"` or `dtype=jnp.bfloat16`.

    Raises:
        UserError: for an unknown name or field.

    """
    chosen = variant(name)
    hints = get_type_hints(chosen.network)
    valid = {field.name for field in fields(chosen.network)} - {"parent", "name"}
    for key in overrides:
        if key not in valid:
            raise UserError(f"{name} has no option {nearest(key, valid)}")
    checked = {key: _check_option(name, key, hints[key], value) for key, value in overrides.items()}
    return chosen.network(**{**chosen.options, **checked})


def _check_option(model: str, key: str, hint: Any, value: Any) -> Any:
    """The value as the field of the module wants it."""
    if hint == tuple[int, ...]:
        if isinstance(value, list | tuple) and all(type(item) is int for item in value):
            return tuple(value)
        raise UserError(f"option '{key}' of {model} must be several whole numbers, set in Python, not {value!r}")
    if key in ("dtype", "param_dtype"):
        try:
            return jnp.dtype(value)
        except TypeError as error:
            raise UserError(f"option '{key}' of {model} must be a type such as bfloat16, not {value!r}") from error
    if hint is float and type(value) is int:
        return float(value)
    expected = {int: "int", float: "float", bool: "bool", int | None: "int or None"}
    allowed = (int, type(None)) if hint == int | None else (hint,)
    if hint in expected and type(value) not in allowed:
        raise UserError(f"option '{key}' of {model} must be of type {expected[hint]}, not {value!r}")
    return value


def abstract_params(model: nn.Module, size: int = 64) -> Any:
    """The parameters as shapes and dtypes, without computing or allocating them."""
    images = jax.ShapeDtypeStruct((1, size, size, model.input_channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def count_parameters(params: Any) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
