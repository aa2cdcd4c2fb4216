"""gamax's own weight files: safetensors that say which network they are for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from gamax.blocks.mixers import check_trusted
from gamax.errors import UserError
from gamax.files import replace_atomically
from gamax.models import abstract_params, create_model
from gamax.pretrained import PRETRAINED

WEIGHTS_NAME = "weights.safetensors"
BEST_WEIGHTS_NAME = "weights_best.safetensors"


def save_weights(
    path: str | Path,
    params: Any,
    model_name: str,
    overrides: Mapping[str, Any],
    dtype: str = "float32",
    stored_as: Literal["float16"] | None = None,
) -> str:
    """Writes parameters and the description of their network, atomically; returns the SHA-256 of the file.

    `dtype` is the precision that the network computes in, not that of the parameters. `stored_as` halves the file by
    rounding the parameters; `load_weights` makes them float32 again.
    """
    from safetensors.flax import save

    tensors = {name: jnp.asarray(value, stored_as) for name, value in flatten_dict(params, sep="/").items()}
    if stored_as and not all(bool(jnp.isfinite(value).all()) for value in tensors.values()):
        raise UserError(f"'{path}': parameters beyond the range of {stored_as} cannot be stored as such")
    _check_fit("the tree of parameters", model_name, create_model(model_name, **overrides), tensors)
    # How a program runs, not what it computes, and loops over blocks only cost time when images are restored.
    overrides = {key: value for key, value in overrides.items() if key not in ("scan", "remat")}
    try:
        description = {"model": model_name, "overrides": overrides, "dtype": dtype}
        text = json.dumps({**description, **({"stored_as": stored_as} if stored_as else {})}, sort_keys=True)
    except TypeError as error:
        raise UserError(f"overrides that JSON cannot hold cannot be saved ({error}); use names and numbers") from error
    content = save(tensors, metadata={"gamax": text})
    replace_atomically(Path(path), content)
    return hashlib.sha256(content).hexdigest()


def find_weights(run_or_file: str | Path) -> Path:
    """The weight file of a run folder, the file itself, or, where no such path exists, weights that come with gamax.

    Raises:
        UserError: if there is none.
    """
    path = Path(run_or_file)
    if str(run_or_file) in PRETRAINED and not path.exists():
        return PRETRAINED[str(run_or_file)].path
    if path.is_dir():
        path /= WEIGHTS_NAME
        if not path.is_file():
            raise UserError(
                f"'{run_or_file}' holds no {WEIGHTS_NAME}: the run is not finished, or it is not a run folder"
            )
    if not path.is_file():
        names = ", ".join(PRETRAINED)
        raise UserError(
            f"no weights at '{run_or_file}'; give a run folder, a .safetensors file or weights of gamax ({names})"
        )
    return path


def load_weights(run_or_file: str | Path, **overrides: Any) -> tuple[nn.Module, Any]:
    """Reads a weight file of gamax.

    Args:
        run_or_file: a run folder, a `.safetensors` file, or the name of weights that come with gamax.
        **overrides: fields of the network to change, such as `dtype=jnp.bfloat16`; the default is as it was trained.

    Returns:
        The network and its parameters, a nested dictionary of arrays.

    Raises:
        UserError: if the file is missing, damaged, not gamax's own, does not fit the network, or names a block by an
            import path whose module the variable `GAMAX_TRUSTED_MODULES` does not name; `mixer="my_blocks:MyBlock"`
            among the overrides says the same for this call.

    """
    path = find_weights(run_or_file)
    tensors, metadata = read_safetensors(path)
    try:
        description = json.loads(metadata["gamax"])
        name, dtype = str(description["model"]), description.get("dtype", "float32")
        options = {**description["overrides"], "dtype": dtype}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"'{path}' does not say which network it is for: it was not written by gamax") from error
    if "mixer" not in overrides:
        check_trusted(f"'{path}'", options.get("mixer"))
    model = create_model(name, **{**options, **overrides})
    _check_fit(f"'{path}'", name, model, tensors)
    if description.get("stored_as"):
        tensors = {key: value.astype(jnp.float32) for key, value in tensors.items()}
    return model, unflatten_dict(tensors, sep="/")


def read_safetensors(path: Path) -> tuple[dict[str, jax.Array], dict[str, str]]:
    """The arrays and the metadata of a file; `UserError` if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="flax") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
            return tensors, file.metadata() or {}
    except (SafetensorError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"'{path}' is not a complete safetensors file of types that JAX has ({error}); copy or download it again"
        ) from error


def _check_fit(what: str, name: str, model: nn.Module, tensors: Mapping[str, Any]) -> None:
    abstract: dict[str, Any] = flatten_dict(abstract_params(model), sep="/")
    expected = {key: leaf.shape for key, leaf in abstract.items()}
    found = {key: value.shape for key, value in tensors.items()}
    if found != expected:
        different = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        raise UserError(
            f"{what} does not fit {name}: {len(different)} of {len(expected)} arrays differ, first '{different[0]}' "
            f"(given {found.get(different[0])}, network {expected.get(different[0])})"
        )


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
