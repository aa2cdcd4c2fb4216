"""Parameters from and to state dicts of the authors' PyTorch networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gamax.console import say
from gamax.errors import UserError
from gamax.interop.key_maps import KeyMap, key_map
from gamax.models import abstract_params, create_model


def from_torch(model_name: str, state_dict: Mapping[str, Any], /, **overrides: Any) -> Any:
    """Parameters for a network of ours from a state dict of its authors' code.

    Args:
        model_name: one of `list_models()`.
        state_dict: arrays by name, of NumPy or PyTorch, without wrappers.
        **overrides: fields of the network, as `create_model` takes them.

    Raises:
        UserError: if a tensor is missing, left over, or of another shape, or if what goes with them (the noise schedule
            of a diffusion model) shows that the authors' network computed something else.

    """
    model = create_model(model_name, **overrides)
    return import_tensors(abstract_params(model), key_map(model), state_dict, model_name)


def to_torch(model_name: str, params: Any, /, **overrides: Any) -> dict[str, np.ndarray]:
    """The state dict (float32 NumPy arrays) under which the authors' code takes the parameters of a network of ours.

    Raises:
        UserError: if `params` are not those of the network.

    """
    model = create_model(model_name, **overrides)
    expected = {path: leaf.shape for path, leaf in _flat(abstract_params(model)).items()}
    _refuse_differences(expected, {path: np.shape(leaf) for path, leaf in _flat(params).items()}, model_name)
    return export_tensors(params, key_map(model))


def import_tensors(abstract: Any, names: KeyMap, tensors: Mapping[str, Any], what: str) -> Any:
    """Fills the tree of shapes `abstract` with `tensors`, each used exactly once; `what` names it in errors."""
    tensors = {name: _numpy(tensor) for name, tensor in tensors.items()}
    refusal = names.refusal(tensors)
    if refusal:
        raise UserError(f"the tensors do not fit {what}: {refusal}")
    trained = names.without_ignored(tensors)
    _refuse_differences(torch_shapes(abstract, names), {name: value.shape for name, value in trained.items()}, what)
    if names.averages(tensors):
        say("taking the averaged weights")
    flat = {}
    for path, leaf in _flat(abstract).items():
        name = names.torch_name(path)
        axes = names.torch_axes(name, len(leaf.shape))
        value = trained[name].reshape([leaf.shape[axis] for axis in axes])
        flat[path] = jnp.asarray(value.transpose(np.argsort(axes)), leaf.dtype)
    return unflatten_dict(flat, sep="/")


def export_tensors(params: Any, names: KeyMap) -> dict[str, np.ndarray]:
    """The arrays of `params`, float32, under the names and in the layout of PyTorch."""
    shapes = torch_shapes(params, names)
    tensors = {}
    for path, leaf in _flat(params).items():
        name, value = names.torch_name(path), np.asarray(leaf, np.float32)
        value = value.transpose(names.torch_axes(name, value.ndim))
        tensors[name] = np.array(value, order="C").reshape(shapes[name])
    return tensors


def torch_shapes(params: Any, names: KeyMap) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the state dict that holds `params`, which may be shapes themselves."""
    shapes = {}
    for path, leaf in _flat(params).items():
        name, shape = names.torch_name(path), np.shape(leaf)
        if name in shapes:
            raise ValueError(f"the key map gives two parameters the name '{name}'")
        shapes[name] = names.torch_shape(name, shape)
    return shapes


def _flat(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def _numpy(tensor: Any) -> np.ndarray:
    """An array of NumPy, or a tensor of PyTorch wherever it is and whatever its precision."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().numpy()
    return np.asarray(tensor)


def _refuse_differences(expected: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    different = [name for name in {**expected, **given} if expected.get(name) != given.get(name)]
    if different:
        first = different[0]
        raise UserError(
            f"the tensors do not fit {what}: {len(different)} are missing, left over or of another shape, first "
            f"'{first}' (given {given.get(first)}, network {expected.get(first)})"
        )
