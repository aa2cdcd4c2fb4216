"""Tensors recorded from the authors' PyTorch networks, and checks against them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gamax.interop.key_maps import KeyMap, key_map
from gamax.interop.torch_weights import import_tensors

Tensors = dict[str, np.ndarray]


def load(path: Path) -> tuple[dict[str, Any], Tensors]:
    """The arguments of the authors' constructor, and all tensors."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def check(module: nn.Module, tensors: Tensors, tolerance: float, names: KeyMap | None = None) -> None:
    """Asserts that the module takes the recorded parameters, every one once, and gives the recorded output.

    `names` is the key map of the network that a block belongs to. The tolerance is relative to the largest value, as
    the fixtures state it.
    """
    x = tensors["input"].transpose(0, 2, 3, 1)
    x = jnp.asarray(x.astype(np.float32) / 255 if x.dtype == np.uint8 else x)
    recorded = {
        name.removeprefix("param."): value.astype(np.float32)
        for name, value in tensors.items()
        if name.startswith("param.")
    }
    expected_shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = import_tensors(expected_shapes, names or key_map(module), recorded, "the module")
    expected = tensors["output"].transpose(0, 2, 3, 1)
    result = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(result, expected, atol=tolerance * abs(expected).max(), rtol=0)
