"""The networks in PyTorch, with the parameters carried over, so that both frameworks compute the same function.

GAMA-IR, LIR and UNet are gamax's own, one a file; NAFNet and Restormer are those of the spandrel packages, which keep
the authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from gamax.errors import UserError
from gamax.interop.key_maps import KeyMap, key_map
from gamax.interop.parity import torch_twin
from gamax.interop.torch_files import import_torch
from gamax.interop.torch_weights import export_tensors
from gamax.models.gama_ir import GAMAIR
from gamax.models.lir import LIR
from gamax.models.nafnet import NAFNet
from gamax.models.restormer import Restormer
from gamax.models.unet import UNet

OPTIONS: Mapping[type[nn.Module], tuple[str, ...]] = {
    GAMAIR: ("width", "depth", "levels", "blocks_per_level", "mixer", "spatial_conv"),
    LIR: ("width", "encoder_blocks", "middle_blocks", "decoder_blocks"),
    UNet: ("width",),
    NAFNet: ("width", "encoder_blocks", "middle_blocks", "decoder_blocks"),
    Restormer: (
        "width",
        "blocks",
        "heads",
        "refinement_blocks",
        "expansion",
        "bias_free",
        "dual_pixel",
        "image_channels",
    ),
}
"""The networks that have a counterpart in PyTorch, and their options that it knows."""

_JAX_ONLY = ("scan", "dtype", "param_dtype", "parent", "name")
"""Fields of modules that change how JAX computes, not what."""

_MIXERS = ("gama", "squeeze_excite", "sca", "none", None)


def torch_names(model: nn.Module) -> KeyMap:
    """How parameters of a network are named in its PyTorch counterpart; GAMA-IR's are the paths in JAX, with dots.

    Raises:
        UserError: if there is no counterpart of the network, or of one of its options.

    """
    _check(model)
    return KeyMap(renamings=()) if isinstance(model, GAMAIR) else key_map(model)


def torch_network(model: nn.Module, params: Any) -> Any:
    """The `torch.nn.Module` in evaluation mode that computes what `model` does with `params`.

    It maps `[B, C, H, W]` to the same shape. On a CPU, in float32; move it where it is to run. spandrel's networks are
    the authors' code, unchanged.

    Raises:
        UserError: if PyTorch or spandrel is not installed, or there is no counterpart of the network or of one of its
            options.

    """
    torch = import_torch("a network in PyTorch")
    tensors = export_tensors(params, torch_names(model))
    if isinstance(model, NAFNet | Restormer):
        network = torch_twin(tensors)
        if network is None:
            raise UserError(
                f"spandrel has no {type(model).__name__} with these options; pip install spandrel spandrel_extra_arches"
            )
        return network
    network = _own(model)
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=True)
    return network.eval()


def make_compilable(network: Any) -> None:
    """Replaces the layer norm of the authors' NAFNet, in place, by one that `torch.compile` can differentiate.

    Theirs has a backward pass of its own that reads `saved_variables`, a name that the compiler does not know. The
    function and its parameters stay the same.
    """
    from gamax.benchmark.torch_networks.layers import LayerNorm

    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if type(child).__name__ == "LayerNorm2d":
                norm = LayerNorm(len(child.weight), child.eps)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(part, name, norm)


def _own(model: nn.Module) -> Any:
    # PyTorch is an extra: these import it.
    from gamax.benchmark.torch_networks import gama_ir, lir, unet

    constructors: dict[type[nn.Module], Any] = {GAMAIR: gama_ir.GAMAIR, LIR: lir.LIR, UNet: unet.UNet}
    return constructors[type(model)](**{option: getattr(model, option) for option in OPTIONS[type(model)]})


def _check(model: nn.Module) -> None:
    network = type(model)
    if network not in OPTIONS:
        known = ", ".join(each.__name__ for each in OPTIONS)
        raise UserError(f"{network.__name__} has no counterpart in PyTorch; these have one: {known}")
    for field in dataclasses.fields(network):
        if field.name in (*OPTIONS[network], *_JAX_ONLY):
            continue
        if getattr(model, field.name) != field.default:
            raise UserError(
                f"{network.__name__} in PyTorch has no option '{field.name}'; leave it at {field.default!r}"
            )
    if isinstance(model, GAMAIR) and model.mixer not in _MIXERS:
        raise UserError(f"GAMAIR in PyTorch takes the mixer gama, squeeze_excite, sca or none, not {model.mixer!r}")
