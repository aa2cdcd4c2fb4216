"""The networks: one a file; their named variants are in `variants.py`."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

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
        **overrides: fields of the module to change, for example `mixer="sca"` or `dtype=jnp.bfloat16`. Where it wraps
            another one, its field `network`, what it has no field for changes that one. The dtypes change all modules
            that are fields of it.

    Raises:
        UserError: for an unknown name or field, or a value that the field cannot have.

    """
    chosen = variant(name)
    modules = {key: value for key, value in chosen.options.items() if isinstance(value, nn.Module)}
    wrapped = modules.get("network")
    types = _field_types(chosen.network)
    inner_types = {} if wrapped is None else _field_types(type(wrapped))
    valid = {**inner_types, **types}
    for key in overrides:
        if key not in valid:
            raise UserError(f"{name} has no option {nearest(key, valid)}")
    checked = {key: _check_option(name, key, valid[key], value) for key, value in overrides.items()}
    dtypes = {key: value for key, value in checked.items() if key in ("dtype", "param_dtype")}
    options = {**chosen.options, **{key: value for key, value in checked.items() if key in types}}
    options |= {key: module.clone(**dtypes) for key, module in modules.items()}
    if wrapped is not None:
        inner = inner_types.keys() - types.keys()
        options["network"] = options["network"].clone(**{key: checked[key] for key in inner & checked.keys()})
    return chosen.network(**options)


def _field_types(network: type[nn.Module]) -> dict[str, Any]:
    """The types of the fields that an override can change."""
    hints = get_type_hints(network)
    names = [field.name for field in fields(network) if field.name not in ("parent", "name")]
    return {name: hints[name] for name in names if not _is_module(hints[name])}


def _is_module(hint: Any) -> bool:
    """Whether a type, or one of a union of them, is that of a module."""
    return any(isinstance(option, type) and issubclass(option, nn.Module) for option in get_args(hint) or (hint,))


def _check_option(model: str, key: str, hint: Any, value: Any) -> Any:
    """The value as the field of the module wants it."""
    if hint == tuple[int, ...]:
        items = value if isinstance(value, list | tuple) else [value]
        if all(type(item) is int for item in items):
            return tuple(items)
        raise UserError(f"option '{key}' of {model} must be several whole numbers such as 1,2, not {value!r}")
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise UserError(f"unknown {key} {nearest(str(value), get_args(hint))}")
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
