"""Tensors recorded from the authors' PyTorch networks, and their parameters under the names and layouts of gamax."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

Tensors = dict[str, np.ndarray]


def load(path: Path) -> tuple[dict[str, Any], Tensors]:
    """The arguments of the authors' constructor, and all tensors."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def convert(tensors: Tensors, renamings: Sequence[tuple[str, str]]) -> Any:
    """Parameters for a module of ours: `renamings` are patterns and replacements, applied to every name in turn.

    A name then ends in `.weight` or `.bias` of a convolution or, where it contains `norm`, of a norm; anything else is
    a vector.
    """
    params = {}
    for key, value in tensors.items():
        if not key.startswith("param."):
            continue
        name = key.removeprefix("param.")
        for pattern, replacement in renamings:
            name = re.sub(pattern, replacement, name)
        value = value.astype(np.float32)
        if name.endswith("norm.weight"):
            name = name.replace(".weight", "/scale")
        elif name.endswith(".bias"):
            name = name.replace(".bias", "/bias")
        elif name.endswith(".weight"):
            # A 2x2 kernel with stride 2 is a matrix on the unshuffled pixels, channels before rows before columns.
            value = value.reshape(len(value), -1, 1, 1) if value.shape[-1] == 2 else value
            name, value = name.replace(".weight", "/kernel"), value.transpose(2, 3, 1, 0)
        else:
            value = value.ravel()
        assert name not in params
        params[name] = jnp.asarray(value)
    return unflatten_dict({tuple(name.split("/")): value for name, value in params.items()})


def check(module: Any, params: Any, tensors: Tensors, tolerance: float) -> None:
    """Asserts that the parameters are those of the module, and its output the recorded one.

    The tolerance is relative to the largest value, as the fixtures state it.
    """
    x = jnp.asarray(tensors["input"].transpose(0, 2, 3, 1))
    expected_shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected_shapes)
    expected = tensors["output"].transpose(0, 2, 3, 1)
    result = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(result, expected, atol=tolerance * abs(expected).max())
