"""The networks: one a file, and the explicit table of their named variants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp

from gamax.errors import UserError, nearest
from gamax.models.gama_ir import GAMAIR
from gamax.models.nafnet import NAFNet
from gamax.models.restormer import Restormer


@dataclass(frozen=True)
class Variant:
    """A named network: how to build it, where it comes from, what it can take."""

    network: type[nn.Module]
    options: Mapping[str, Any]
    paper: str
    """arXiv identifier."""
    fidelity: Literal["exact", "reconstruction"]
    """Whether the layout is that of the authors' published code."""
    source: str
    """Where the hyper-parameters come from."""
    parameters: int
    """Expected number of trained parameters."""


_GAMA_IR, _PUBLISHED = "2404.00807", "published depth and width"

_RESTORMER = "2111.09881"
_SIDD = {"encoder_blocks": (2, 2, 4, 8), "middle_blocks": 12, "decoder_blocks": (2, 2, 2, 2)}
_GOPRO = {"encoder_blocks": (1, 1, 1, 28), "middle_blocks": 1, "decoder_blocks": (1, 1, 1, 1)}


def _nafnet(blocks: Mapping[str, Any], parameters: int, **options: Any) -> Variant:
    return Variant(NAFNet, {**blocks, **options}, "2204.04676", "exact", "the authors' configurations", parameters)


VARIANTS: dict[str, Variant] = {
    "gama_ir_tiny": Variant(
        network=GAMAIR,
        options={"width": 16, "depth": 8, "levels": 3, "blocks_per_level": 1},
        paper=_GAMA_IR,
        fidelity="reconstruction",
        source="gamax's own, for the quick start",
        parameters=324_739,
    ),
    "gama_ir_s": Variant(
        network=GAMAIR,
        options={"width": 42, "depth": 18},
        paper=_GAMA_IR,
        fidelity="reconstruction",
        source=_PUBLISHED,
        parameters=10_423_500,
    ),
    "gama_ir_l": Variant(
        network=GAMAIR,
        options={"width": 80, "depth": 19},
        paper=_GAMA_IR,
        fidelity="reconstruction",
        source=_PUBLISHED,
        parameters=47_460_276,
    ),
    "nafnet_sidd_w32": _nafnet(_SIDD, 29_159_715, width=32),
    "nafnet_sidd_w64": _nafnet(_SIDD, 115_982_915, width=64),
    "nafnet_gopro_w32": _nafnet(_GOPRO, 17_111_907, width=32),
    "nafnet_gopro_w64": _nafnet(_GOPRO, 67_888_835, width=64),
    "baseline_sidd_w32": _nafnet(_SIDD, 29_056_227, width=32, block="baseline"),
    "baseline_sidd_w64": _nafnet(_SIDD, 194_419_779, width=64, block="baseline", expansion=2),
    "baseline_gopro_w32": _nafnet(_GOPRO, 17_023_875, width=32, block="baseline"),
    "baseline_gopro_w64": _nafnet(_GOPRO, 112_036_291, width=64, block="baseline", expansion=2),
    "restormer": Variant(
        network=Restormer,
        options={},
        paper=_RESTORMER,
        fidelity="exact",
        source="the authors' deblurring and deraining",
        parameters=26_126_644,
    ),
    "restormer_denoising": Variant(
        network=Restormer,
        options={"bias_free": True},
        paper=_RESTORMER,
        fidelity="exact",
        source="the authors' denoising",
        parameters=26_111_668,
    ),
}


def list_models() -> list[str]:
    """The names that `create_model` takes."""
    return list(VARIANTS)


def variant(name: str) -> Variant:
    """The description of a named network; an unknown name raises `UserError` with the nearest one."""
    if name not in VARIANTS:
        raise UserError(f"unknown model {nearest(name, VARIANTS)}")
    return VARIANTS[name]


def create_model(name: str, **overrides: Any) -> nn.Module:
    """The Linen module of a named network: a pure function of parameters and images `[B, H, W, 3]` in [0, 1].

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
    if hint is float and type(value) is int:
        return float(value)
    expected = {int: "int", float: "float", bool: "bool", int | None: "int or None"}
    allowed = (int, type(None)) if hint == int | None else (hint,)
    if hint in expected and type(value) not in allowed:
        raise UserError(f"option '{key}' of {model} must be of type {expected[hint]}, not {value!r}")
    return value


def abstract_params(model: nn.Module, size: int = 64) -> Any:
    """The parameters as shapes and dtypes, without computing or allocating them."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def count_parameters(params: Any) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
