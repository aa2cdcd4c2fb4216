"""Files of PyTorch weights: reading them without running anything in them, and writing them."""

from __future__ import annotations

import importlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gamax.console import say
from gamax.errors import UserError
from gamax.files import replace_atomically
from gamax.interop.weights import read_safetensors

SUFFIXES = (".pth", ".pt", ".pkl", ".ckpt", ".safetensors")
"""Of the files that can be read and written; all but the last need PyTorch."""
WRAPPERS = ("params", "params_ema", "state_dict", "model", "model_state_dict")
"""Keys under which training programs keep the state dict; the raw weights before their average."""

StateDict = dict[str, np.ndarray]


def read_state_dict(path: Path, wrapper: str | None = None) -> StateDict:
    """The tensors of a PyTorch weight file, or of a folder with a file for each part of a network.

    A wrapping dictionary is opened (`wrapper` names its key; without it `params` is preferred, the weights as
    trained, to `params_ema`, their average), a `module.` in front of every name is dropped, and so are counters, which
    are single whole numbers. In a folder, names begin with that of the file: `encoder_lv1.pkl` gives
    `encoder_lv1.layer1.weight`.

    Raises:
        UserError: if there is no such file, it is damaged, it holds anything but tensors (which is not executed), or
            PyTorch is needed and not installed.

    """
    if path.is_dir():
        parts = sorted(part for part in path.iterdir() if part.suffix.lower() in SUFFIXES)
        if not parts:
            raise UserError(f"the folder '{path}' holds no {', '.join(SUFFIXES)} file")
        return {
            f"{part.stem}.{name}": value for part in parts for name, value in read_state_dict(part, wrapper).items()
        }
    if not path.is_file():
        raise UserError(f"no weights at '{path}'")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"'{path}' is none of {', '.join(SUFFIXES)}")
    is_safetensors = path.suffix.lower() == ".safetensors"
    content: Mapping[Any, Any] = read_safetensors(path)[0] if is_safetensors else _read_pickled(path)
    content = _unwrap(path, content, wrapper)
    other = [name for name, value in content.items() if not (isinstance(name, str) and hasattr(value, "shape"))]
    if other or not content:
        reason = f"'{other[0]}' is no named tensor" if other else "there is no tensor in it"
        raise UserError(f"'{path}' holds no state dict: {reason}")
    arrays = {name: _array(path, name, value) for name, value in content.items()}
    tensors = {name: _float32(path, name, array) for name, array in arrays.items() if not _is_counter(array)}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _unwrap(path: Path, content: Mapping[Any, Any], wrapper: str | None) -> Mapping[Any, Any]:
    named = [key for key, value in content.items() if isinstance(value, Mapping)]
    if wrapper is not None:
        if wrapper not in named:
            found = ", ".join(map(str, named)) or "no named one"
            raise UserError(f"'{path}' has no state dict '{wrapper}'; it has {found}")
        return content[wrapper]
    known = [key for key in WRAPPERS if key in named]
    if not known:
        return content
    others = f" of {', '.join(map(str, named))} (--wrapper takes another)" if len(named) > 1 else ""
    say(f"taking the state dict '{known[0]}'{others}")
    return content[known[0]]


class _Callback:
    """Stands for a class of PyTorch Lightning, never made: its name is a key in the files of latent diffusion."""


_CALLBACK_NAME = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


def _read_pickled(path: Path) -> Mapping[Any, Any]:
    torch = import_torch(f"reading '{path}'")
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([(_Callback, _CALLBACK_NAME)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged files make it raise nearly anything.
        # The words around it recommend to run the file.
        forbidden = re.search(r"(?i)unsupported (?:global:? )+([\w.]+)", str(error))
        if forbidden:
            raise UserError(
                f"'{path}' was not opened: besides tensors it asks for '{forbidden[1]}', which could run code"
            ) from error
        raise UserError(
            f"'{path}' was not opened: it is no complete PyTorch file of tensors alone; download it again, or save its "
            f"state dict alone"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"'{path}' holds no state dict but a {type(content).__name__}")
    return content


def write_state_dict(path: Path, tensors: StateDict) -> None:
    """Writes a `.safetensors` file; any other is one of PyTorch, with the tensors under `params` as the authors do."""
    if path.suffix.lower() == ".safetensors":
        from safetensors.numpy import save

        content = save(tensors)
    else:
        torch = import_torch(f"writing '{path}'")
        buffer = io.BytesIO()
        torch.save({"params": {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}}, buffer)
        content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, content)


def import_torch(purpose: str) -> Any:
    """The module `torch`; `UserError` that names the extra to install if there is none."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UserError(
            f"{purpose} needs PyTorch: pip install 'gamax[torch]', or convert the file to .safetensors elsewhere"
        ) from error


def _array(path: Path, name: str, tensor: Any) -> np.ndarray:
    """An array of NumPy, float32 of any floating type of PyTorch; `UserError` for what is none."""
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach()
            tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return np.asarray(tensor)
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"'{name}' in '{path}' is no plain tensor (it is sparse, quantised or without values)"
        ) from error


def _is_counter(array: np.ndarray) -> bool:
    return array.ndim == 0 and jnp.issubdtype(array.dtype, jnp.integer)


def _float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"'{name}' in '{path}' holds {array.dtype} numbers, which no network here has")
    return array.astype(np.float32)
