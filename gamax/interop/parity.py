"""Whether a converted network computes what PyTorch computes, block by block."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gamax.interop.key_maps import KeyMap, key_map
from gamax.interop.torch_files import import_torch

TOLERANCE = 1e-4
"""Differences of float32 sums in another order stay below it by a factor of ten or more."""


def torch_twin(state_dict: Mapping[str, np.ndarray]) -> Any | None:
    """The PyTorch network of the spandrel package that these tensors are for; None if it knows none.

    Raises:
        UserError: if PyTorch is not installed.

    """
    torch = import_torch("comparing with PyTorch")
    if not (importlib.util.find_spec("spandrel") and importlib.util.find_spec("torchvision")):
        return None
    _make_torchvision_importable(torch)
    spandrel = importlib.import_module("spandrel")
    # Networks under licences that forbid commercial use are in a package of their own, which is not required.
    if importlib.util.find_spec("spandrel_extra_arches"):
        importlib.import_module("spandrel_extra_arches").install(ignore_duplicates=True)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state_dict.items()}
    try:
        return spandrel.ModelLoader("cpu").load_from_state_dict(tensors).model.eval()
    except (spandrel.UnsupportedModelError, RuntimeError):
        # Or it takes them for another network that has layers of the same names: tensors do not load there.
        return None


def _make_torchvision_importable(torch: Any) -> None:
    """Declares what torchvision describes at import but lacks where it was built for CUDA and PyTorch for CPUs.

    spandrel imports it for the sake of another network; the operators themselves are never called.
    """
    if "torchvision" in sys.modules:
        return
    found = importlib.util.find_spec("torchvision")
    extension = Path(str(found and found.origin)).parent / "_C.so"
    try:
        torch.ops.load_library(extension)
    except OSError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(operators)


_KEPT: list[Any] = []
"""Declarations vanish with the object that made them."""


def parity(
    model: nn.Module, params: Any, twin: Any, size: int = 64, names: KeyMap | None = None
) -> list[tuple[str, float]]:
    """The largest difference between the outputs of each part of a network and of its PyTorch twin.

    Both restore one image of noise, `size` pixels a side, in float32 with exact products, without `local_window`. Parts
    are the direct children of the network in the order in which they run, and last `output`; differences are relative
    to the largest value. `names` says what the twin calls them, if not what the authors' code does.
    """
    torch = import_torch("comparing with PyTorch")
    # What the twin has no counterpart for; and modules inside loops have no outputs to see.
    plain: dict[str, Any] = {"local_window": None, "scan": False, "remat": False, "dtype": jnp.float32}
    model = model.clone(**{field: value for field, value in plain.items() if hasattr(model, field)})
    image = np.random.default_rng(0).random((1, size, size, model.input_channels), np.float32)

    @jax.jit
    def restore(params: Any, image: jax.Array) -> Any:
        own_parts = {"capture_intermediates": lambda module, _: len(module.path) == 1, "mutable": ["intermediates"]}
        return model.apply({"params": params}, image, **own_parts)

    with jax.default_matmul_precision("highest"):
        output, state = restore(params, image)
    parts: dict[str, Any] = state["intermediates"]
    ours: dict[str, np.ndarray] = {
        name: np.asarray(part["__call__"][0]) for name, part in parts.items() if name in params
    }

    names = names or key_map(model)
    theirs: dict[str, np.ndarray] = {}
    modules = dict(twin.named_modules())
    for name in ours:
        path = names.torch_name(f"{name}/").rstrip(".")
        modules[path].register_forward_hook(lambda *call, name=name: theirs.update({name: _channels_last(call[2])}))
    with torch.no_grad():
        expected = _channels_last(twin(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())))
    # In the order in which PyTorch ran them.
    rows = [(name, _difference(ours[name], value)) for name, value in theirs.items()]
    return [*rows, ("output", _difference(np.asarray(output), expected))]


def _channels_last(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1).copy()


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
