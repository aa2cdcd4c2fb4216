"""The mixers that configurations name, and how a network fills the slot of `NAFBlock` with one of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
"""A name from `MIXERS`, a module class or function that makes a module, or None for an empty slot."""

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

_WITH_WINDOW = ("gama", "squeeze_excite", "sca")


def check_mixer_option(mixer: object, local_window: int | None, levels: int) -> None:
    """Raises `UserError` for options of a network with which `make_mixer` could not fill the slot on every level.

    Args:
        mixer: a name from `MIXERS`, what makes a module, or None.
        local_window: pixels of the window on the first level, halved on each of the `levels` below; None for none.
        levels: how often the network halves the image.

    """
    if not isinstance(mixer, str):
        check_mixer(mixer)
    elif mixer not in MIXERS:
        raise UserError(f"unknown mixer {nearest(mixer, MIXERS)}")
    if local_window is not None:
        if mixer not in _WITH_WINDOW:
            raise UserError(f"local_window is for the mixers gama, squeeze_excite and sca, by name, not for {mixer!r}")
        check_local_window(local_window, levels)


def make_mixer(
    mixer: Mixer, window: int | None, dtype: DTypeLike, param_dtype: DTypeLike
) -> Callable[[], nn.Module] | None:
    """What `NAFBlock` takes for its mixer.

    A named mixer gets the dtypes, and the window in pixels unless it is None; what a program passes decides itself.
    """
    if not isinstance(mixer, str):
        return mixer
    named = MIXERS[mixer]
    options = {} if window is None else {"window": window}
    return partial(named, **options, dtype=dtype, param_dtype=param_dtype) if named else None


def is_global(mixer: Mixer) -> bool:
    """Whether an output pixel may depend on the whole image: what a program passes is taken for such a mixer."""
    return mixer not in (None, "none", "pixel_dependent_filter")


def samples_pixels(mixer: Mixer) -> bool:
    """Whether features may be taken from places that depend on the image, so that devices exchange more than halos."""
    return not isinstance(mixer, str | None) or mixer in ("pixel_dependent_filter", "content_aware")
