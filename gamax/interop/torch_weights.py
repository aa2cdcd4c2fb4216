"""Parameters from and to state dicts of the authors' PyTorch networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gamax.errors import UserError
from gamax.interop.key_maps import KeyMap, key_map
from gamax.models import abstract_params, create_model


def from_torch(model_name: str, state_dict: Mapping[str, Any], **overrides: Any) -> Any:
    """Parameters for a network of ours from a state dict of its authors' code.

    Args:
        model_name: one of `list_models()`.
        state_dict: arrays by name, of NumPy or PyTorch, without wrappers.
        **overrides: fields of the network, as `create_model` takes them.

    Raises:
        UserError: if a tensor is missing, left over, or of another shape.

    """
    model = create_model(model_name, **overrides)
    return import_tensors(abstract_params(model), key_map(model), state_dict, model_name)


def to_torch(model_name: str, params: Any, **overrides: Any) -> dict[str, np.ndarray]:
    """The state dict, NumPy arrays by name, under which the authors' code takes the parameters of a network of ours."""
    model = create_model(model_name, **overrides)
    expected: dict[str, Any] = flatten_dict(abstract_params(model), sep="/")
    given = flatten_dict(params, sep="/")
    _refuse_differences(
        model_name,
        {path: leaf.shape for path, leaf in expected.items()},
        {path: np.shape(leaf) for path, leaf in given.items()},
    )
    return export_tensors(params, key_map(model))


def import_tensors(abstract: Any, names: KeyMap, tensors: Mapping[str, Any], what: str) -> Any:
    """Fills the tree of shapes `abstract` with `tensors`, each used exactly once; `what` names it in errors."""
    tensors = {name: value for name, value in tensors.items() if not re.search(names.ignored or r"(?!)", name)}
    leaves: dict[str, Any] = flatten_dict(abstract, sep="/")
    torch_names = {path: names.torch_name(path) for path in leaves}
    expected = {
        torch_names[path]: torch_layout(np.empty(leaf.shape, bool), torch_names[path], names).shape
        for path, leaf in leaves.items()
    }
    _refuse_differences(what, expected, {name: tuple(value.shape) for name, value in tensors.items()})
    flat = {
        path: our_layout(_numpy(tensors[torch_names[path]]), leaf.shape).astype(leaf.dtype)
        for path, leaf in leaves.items()
    }
    return jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="/"))


def export_tensors(params: Any, names: KeyMap) -> dict[str, np.ndarray]:
    """The arrays of `params` under the names and in the layout of PyTorch."""
    flat = {names.torch_name(path): np.asarray(value) for path, value in flatten_dict(params, sep="/").items()}
    return {name: np.ascontiguousarray(torch_layout(value, name, names)) for name, value in flat.items()}


def torch_layout(value: np.ndarray, name: str, names: KeyMap) -> np.ndarray:
    """An array of ours in PyTorch's layout: `[k, k, in, out]` becomes `[out, in, k, k]`, `[in, out]` `[out, in]`."""
    if value.ndim == 1:
        return value.reshape(names.torch_shape(name, len(value)))
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def our_layout(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `torch_layout`, for an array that is to have `shape`."""
    if len(shape) == 1:
        return value.reshape(shape)
    return value.transpose(2, 3, 1, 0) if len(shape) == 4 else value.T


def _numpy(tensor: Any) -> np.ndarray:
    """An array of NumPy, or a tensor of PyTorch wherever it is; bfloat16 becomes float32."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().numpy()
    return np.asarray(tensor)


def _refuse_differences(what: str, expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    different = [name for name in {**expected, **given} if expected.get(name) != given.get(name)]
    if different:
        first = different[0]
        raise UserError(
            f"the tensors do not fit {what}: {len(different)} of {len(expected)} differ, first '{first}' "
            f"(given {given.get(first)}, network {expected.get(first)})"
        )
