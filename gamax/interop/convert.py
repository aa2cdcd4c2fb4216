"""Converting weight files: PyTorch's into ours and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn

from gamax.errors import UserError
from gamax.files import check_writable
from gamax.interop.key_maps import find_key_map, key_map
from gamax.interop.torch_files import SUFFIXES, StateDict, read_state_dict, write_state_dict
from gamax.interop.torch_weights import export_tensors, import_tensors, torch_shapes
from gamax.interop.weights import WEIGHTS_NAME, load_weights, save_weights
from gamax.models import VARIANTS, abstract_params, create_model


@dataclass(frozen=True)
class Conversion:
    """The same numbers twice: as parameters of one of our networks, and as a state dict of PyTorch."""

    model_name: str
    model: nn.Module
    params: Any
    state_dict: StateDict


def convert_file(
    source: Path,
    output: Path,
    model_name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    wrapper: str | None = None,
) -> Conversion:
    """Converts PyTorch weights (`.pth`, `.pt`, `.safetensors`, a folder) into a weight file of gamax, or back.

    A weight file of gamax says itself which network it is for and becomes a state dict, `.safetensors` or `.pth`;
    anything else becomes a weight file of gamax for `model_name` with `overrides`. `wrapper` is that of
    `read_state_dict`. Nothing is written unless every tensor fits.

    Raises:
        UserError: if the source cannot be read, or does not fit; the sentence says which network it would fit.

    """
    if (source / WEIGHTS_NAME).is_file():
        source /= WEIGHTS_NAME
    if source.exists() and output.exists() and source.samefile(output):
        raise UserError(f"'{output}' would replace its own source; choose another output")
    described = _description(source)
    if described is None:
        return _import(source, output, model_name, overrides or {}, wrapper)
    if overrides or wrapper:
        raise UserError(
            f"'{source}' was written by gamax and says itself what it holds: leave out overrides and wrapper"
        )
    return _export(source, output, described, model_name)


def _description(source: Path) -> str | None:
    """What a weight file of gamax says of itself; None for any other file."""
    if not source.is_file() or source.suffix.lower() != ".safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="numpy") as file:
            return (file.metadata() or {}).get("gamax")
    except SafetensorError:
        # Reading it will say so.
        return None


def _export(source: Path, output: Path, described: str, model_name: str | None) -> Conversion:
    _check_writable_as(output, SUFFIXES)
    model, params = load_weights(source)
    name = json.loads(described)["model"]
    if model_name not in (None, name):
        raise UserError(f"'{source}' holds weights of {name}, not of {model_name}")
    state_dict = export_tensors(params, key_map(model))
    write_state_dict(output, state_dict)
    return Conversion(name, model, params, state_dict)


def _import(
    source: Path, output: Path, model_name: str | None, overrides: Mapping[str, Any], wrapper: str | None
) -> Conversion:
    if model_name is None:
        raise UserError(f"'{source}' does not say which network it is for: name it with --model")
    model = create_model(model_name, **overrides)
    names = key_map(model)
    _check_writable_as(output, (".safetensors",))
    state_dict = read_state_dict(source, wrapper)
    try:
        params = import_tensors(abstract_params(model), names, state_dict, model_name)
    except UserError as error:
        fitting = _fitting_variants(state_dict)
        hint = f"; they fit {' and '.join(fitting)}" if fitting else ""
        raise UserError(f"'{source}': {error}{hint}") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    save_weights(output, params, model_name, overrides)
    return Conversion(model_name, model, params, names.without_ignored(state_dict))


def _check_writable_as(output: Path, suffixes: tuple[str, ...]) -> None:
    """Raises `UserError` unless a file of that name can be written."""
    if output.suffix.lower() not in suffixes:
        raise UserError(f"the output must be a {' or '.join(suffixes)} file, not '{output}'")
    if output.is_dir():
        raise UserError(f"the output '{output}' is a folder")
    check_writable(output.parent)


def _fitting_variants(state_dict: StateDict) -> list[str]:
    """The named networks that have exactly these tensors."""
    fitting = []
    for name, variant in VARIANTS.items():
        model = create_model(name)
        names = find_key_map(model)
        if names is None or names.refusal(state_dict):
            continue
        given = {key: value.shape for key, value in names.without_ignored(state_dict).items()}
        # Counting is quick, tracing a network is not.
        same_size = sum(map(math.prod, given.values())) == variant.parameters
        if same_size and torch_shapes(abstract_params(model), names) == given:
            fitting.append(name)
    return fitting
