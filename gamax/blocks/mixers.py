"""The mixers that configurations name, and how a network fills the slot of `NAFBlock` with one of them."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import flax.linen as nn
from jax.typing import DTypeLike

from gamax.blocks.attention import NonLocal, SimplifiedChannelAttention, SqueezeExcite
from gamax.blocks.content_aware import ContentAwareModule
from gamax.blocks.efficient_attention import EfficientAttention
from gamax.blocks.gama import GAMA
from gamax.blocks.naf import check_mixer
from gamax.blocks.pixel_dependent_filter import PixelDependentFilter
from gamax.blocks.pooling import check_local_window
from gamax.errors import UserError, nearest

Mixer = str | Callable[[], nn.Module] | None
"""What `find_mixer` reads, a module class or function that makes a module, or None for an empty slot."""

MIXERS: dict[str, Callable[..., nn.Module] | None] = {
    "none": None,
    "gama": GAMA,
    "squeeze_excite": SqueezeExcite,
    "sca": SimplifiedChannelAttention,
    "non_local": NonLocal,
    "efficient_attention": EfficientAttention,
    "pixel_dependent_filter": PixelDependentFilter,
    "content_aware": ContentAwareModule,
}
"""Mixers by the names that configurations use; a Python program can pass any module class instead."""

TRUSTED_MODULES = "GAMAX_TRUSTED_MODULES"
"""The variable of the environment with the modules, separated by commas, that files may name blocks of."""

_WITH_WINDOW = ("gama", "squeeze_excite", "sca")


def find_mixer(text: str) -> tuple[str, Callable[..., nn.Module] | None, dict[str, Any]]:
    """What makes the mixer that a configuration describes.

    Args:
        text: `sca`, a name from `MIXERS`, or `my_blocks:MyBlock`, a module class (or a function that makes a module) by
            its import path, which is looked for in the working folder too; either with options in brackets:
            `gama(kernel_size=5)`. Options are numbers, strings, booleans, None, or tuples of them.

    Returns:
        The name or import path, the class (None for an empty slot), and the options.

    Raises:
        UserError: if there is no such mixer, or the text is none of these.

    """
    path, bracket, rest = text.partition("(")
    options = _options(text, bracket + rest) if bracket else {}
    if ":" in path:
        return path, _import(path), options
    if path not in MIXERS:
        raise UserError(f"unknown mixer {nearest(path, MIXERS)}; code of your own is given as my_blocks:MyBlock")
    named = MIXERS[path]
    types = {} if named is None else get_type_hints(named)
    fields: dict[str, Any] = getattr(named, "__dataclass_fields__", {})
    valid = fields.keys() - {"parent", "name", "dtype", "param_dtype"}
    for option, value in options.items():
        if option not in valid:
            raise UserError(f"the mixer {path} has no option {nearest(option, valid)}")
        _check_value(path, option, value, types[option])
    return path, named, options


def _check_value(mixer: str, option: str, value: object, hint: Any) -> None:
    """Raises `UserError` for a value that a field of that type cannot have; all whole numbers are counts."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        fits, wanted = value in choices, f"one of {', '.join(map(str, choices))}"
    elif hint is int or int in choices:
        fits = (type(value) is int and value > 0) or (value is None and type(None) in choices)
        wanted = "a whole number of at least 1"
    elif hint in (bool, float):
        fits, wanted = type(value) is hint, f"of type {hint.__name__}"
    else:
        fits, wanted = isinstance(value, tuple), "several values in brackets, such as ('height','width')"
    if not fits:
        raise UserError(f"option '{option}' of the mixer {mixer} must be {wanted}, not {value!r}")


def _options(text: str, call: str) -> dict[str, Any]:
    try:
        parsed = ast.parse("mixer" + call, mode="eval").body
        if not isinstance(parsed, ast.Call) or not isinstance(parsed.func, ast.Name) or parsed.args:
            raise ValueError("no call with named options")
        if any(option.arg is None for option in parsed.keywords):
            raise ValueError("options without names")
        return {str(option.arg): ast.literal_eval(option.value) for option in parsed.keywords}
    except (ValueError, SyntaxError) as error:
        raise UserError(f"the mixer '{text}' is not of the form gama(kernel_size=5)") from error


def _import(path: str) -> Callable[..., nn.Module]:
    module_name, _, name = path.partition(":")
    # A program that was installed, unlike `python -m`, does not look there by itself.
    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # A module of the user's can fail in any way.
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot import the mixer '{path}' ({reason}); write MODULE:CLASS, as in Python") from error
    finally:
        if added:
            sys.path.remove(folder)
    check_mixer(found)
    return found


def import_path(mixer: object) -> tuple[str | None, str]:
    """Module and name of a mixer's text that is an import path; None and nothing for any other mixer."""
    module, colon, name = mixer.partition("(")[0].partition(":") if isinstance(mixer, str) else ("", "", "")
    return (module, name) if colon else (None, "")


def check_trusted(what: str, mixer: object) -> None:
    """Raises `UserError` where a file, as `what` calls it, names a block by an import path that nobody has vouched for.

    That a module is imported already is not enough: Python's own always are, with functions that run commands, and
    gamax's networks would import what their options name.
    """
    module, _ = import_path(mixer)
    if module is not None and module not in os.environ.get(TRUSTED_MODULES, "").split(","):
        raise UserError(
            f"{what} needs the block '{mixer}', and gamax runs no code because a file says so: if you trust the module "
            f"'{module}', set {TRUSTED_MODULES}={module}"
        )


def check_mixer_option(mixer: object, local_window: int | None, levels: int) -> None:
    """Raises `UserError` for options of a network with which `make_mixer` could not fill the slot on every level.

    Args:
        mixer: what `find_mixer` reads, what makes a module, or None.
        local_window: pixels of the window on the first level, halved on each of the `levels` below; None for none.
        levels: how often the network halves the image.

    """
    name = find_mixer(mixer)[0] if isinstance(mixer, str) else None
    if not isinstance(mixer, str):
        check_mixer(mixer)
    if local_window is not None:
        if name is not None and "window" in find_mixer(str(mixer))[2]:
            raise UserError(f"the window of the mixer {mixer!r} and local_window are two answers to one question")
        if name not in _WITH_WINDOW:
            raise UserError(f"local_window is for the mixers gama, squeeze_excite and sca, by name, not for {mixer!r}")
        check_local_window(local_window, levels)


def make_mixer(
    mixer: Mixer, window: int | None, dtype: DTypeLike, param_dtype: DTypeLike
) -> Callable[[], nn.Module] | None:
    """What `NAFBlock` takes for its mixer.

    A mixer of `MIXERS` gets the dtypes, and the window in pixels unless it is None; one that a program passes, or that
    is imported, decides itself.
    """
    if not isinstance(mixer, str):
        return mixer
    name, found, options = find_mixer(mixer)
    if found is None:
        return None
    if name in MIXERS:
        options |= {"dtype": dtype, "param_dtype": param_dtype} | ({} if window is None else {"window": window})
    return partial(found, **options)


def is_global(mixer: Mixer) -> bool:
    """Whether an output pixel may depend on the whole image: what a program passes is taken for such a mixer."""
    return _name(mixer) not in (None, "none", "pixel_dependent_filter")


def samples_pixels(mixer: Mixer) -> bool:
    """Whether features may be taken from places that depend on the image, so that devices exchange more than halos."""
    name = _name(mixer)
    return name is not None and (name not in MIXERS or name in ("pixel_dependent_filter", "content_aware"))


def _name(mixer: Mixer) -> str | None:
    """The name of a mixer from `MIXERS`, or anything else but None."""
    return mixer.partition("(")[0] if isinstance(mixer, str) else None if mixer is None else "a program's own"
