"""What a network is given of a photograph: its pixels, the right view of a dual-pixel camera, a diffusion prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Shaped, UInt16

from gamax.console import say
from gamax.data.examples import PRIOR, join_views, order_views, takes_prior
from gamax.data.images import read_image, to_float, to_integers, to_rgb
from gamax.data.prior import SETTINGS_NAME, stored_settings
from gamax.errors import UserError
from gamax.interop.weights import find_weights, sha256

Progress = Callable[[float], object]
"""Called with the finished fraction."""
SamplePrior = Callable[[Shaped[np.ndarray, "h w c"], Progress], UInt16[np.ndarray, "h w 3"]]
"""Makes the prior of an image, as `gamax.data.prior_sampler.PriorSampler` does."""


def right_views(sources: Sequence[Path], right: Path | None) -> Sequence[Path | UserError | None]:
    """The right view of every source, why it has none, or None where no right views are named.

    Args:
        sources: the left views.
        right: the right view of a single source, or a folder in which each has the name of the left one, or ends in
            `_R` where that ends in `_L`.

    Raises:
        UserError: if `right` does not exist, is one file for several sources, or is the left view.
    """
    if right is None:
        return [None] * len(sources)
    if right.is_dir():
        return [_right_view(source, right) for source in sources]
    if not right.is_file():
        raise UserError(f"no right view '{right}'")
    if len(sources) > 1:
        raise UserError(f"there are {len(sources)} left views: --right must be the folder of the right ones")
    if right.resolve() == sources[0].resolve():
        raise UserError(f"--right '{right}' is the left view itself; name the right one")
    return [right]


def _right_view(source: Path, folder: Path) -> Path | UserError:
    names = [source.name]
    if source.stem.endswith("_L"):
        names.insert(0, f"{source.stem.removesuffix('_L')}_R{source.suffix}")
    for path in (folder / name for name in names):
        if path.is_file() and path.resolve() != source.resolve():
            return path
    missing = folder / names[0]
    if missing.is_file():
        return UserError(
            f"'{missing}' is the left view itself: let --right name another folder, or end the names of left views in "
            "_L and those of right ones in _R"
        )
    return UserError(f"'{source}' has no right view '{missing}': copy it there, or name another --right")


def check_inputs(weights: Path, model: nn.Module, prior: Path | None, right: Path | None) -> None:
    """Raises `UserError` if the network of these weights is given too much or too little by `--prior` and `--right`."""
    takes_views = model.input_channels - 3 * takes_prior(model) > 3
    if takes_prior(model) and prior is None:
        raise UserError(f"'{weights}' takes a diffusion prior of the image: name the diffusion model with --prior")
    if prior is not None and not takes_prior(model):
        raise UserError(f"'{weights}' takes no diffusion prior: leave out --prior, or choose a network with one")
    if takes_views and right is None:
        raise UserError(f"'{weights}' takes the two views of a dual-pixel camera: name the right one with --right")
    if right is not None and not takes_views:
        raise UserError(f"'{weights}' takes one view: leave out --right, or choose a dual-pixel network")


def load_sampler(prior: Path, windows_at_once: int) -> tuple[SamplePrior, dict[str, Any]]:
    """What samples priors, and for JSON all that they depend on beside the image.

    Args:
        prior: a folder of `gamax data prior`, whose model and settings are taken, or a run folder or weight file of a
            latent diffusion model.
        windows_at_once: windows that go through the denoiser together on each device.

    Raises:
        UserError: if there is no such model, or it is not the one that the stored prior was made with.
    """
    from gamax.data.prior_sampler import PriorSampler

    if (prior / SETTINGS_NAME).is_file():
        sampler = PriorSampler.from_stored(prior, windows_at_once=windows_at_once)
        digest = stored_settings(prior)["weights_sha256"]
    else:
        sampler = PriorSampler.from_weights(prior, windows_at_once=windows_at_once)
        digest = sha256(find_weights(prior))
        say("priors are sampled with the settings of the authors; a folder of `gamax data prior` brings its own")
    return sampler, {"weights_sha256": digest, **sampler.settings()}


def network_input(
    image: Shaped[np.ndarray, "h w c"],
    model: nn.Module,
    gray: bool = False,
    right: Path | None = None,
    sample_prior: SamplePrior | None = None,
    progress: Progress = lambda fraction: None,
) -> Shaped[np.ndarray, "h w d"]:
    """What a network is given of a photograph, `[H, W, D]` of 8 or 16 bits, 16 with a prior.

    Args:
        image: the photograph `[H, W, C]`, uint8 or uint16, with 1, 3 or 4 channels; alpha is left out.
        model: the network, which says in which order it takes two views.
        gray: whether the photograph is gray; D is then 1, unless something goes beside it.
        right: the right view, if the photograph is the left one.
        sample_prior: makes the prior, for a network that takes one.
        progress: that of sampling the prior.

    Raises:
        UserError: if the right view cannot be read, or differs from the left one in size or depth.
    """
    if right is None and sample_prior is None:
        return image[:, :, :1] if gray else image[:, :, :3]
    given = to_rgb(image)
    if right is not None:
        given = np.concatenate([given, _load_right(right, image)], axis=2)
    if sample_prior is not None:
        given = join_views({"input": given, PRIOR: sample_prior(given, progress)})["input"]
    return order_views(given, model)


def _load_right(path: Path, left: np.ndarray) -> np.ndarray:
    """The right view, RGB; raises `UserError` unless it is of the size and depth of the left one."""
    right = read_image(path)
    if (right.shape[:2], right.dtype) != (left.shape[:2], left.dtype):
        kinds = [f"{view.shape[1]}x{view.shape[0]} pixels of {view.dtype}" for view in (right, left)]
        raise UserError(f"the right view '{path}' has {kinds[0]}, but the left one {kinds[1]}: they must be alike")
    return to_rgb(right)


def in_kind_of(
    image: Shaped[np.ndarray, "h w c"], restored: Shaped[np.ndarray, "h w d"], gray: bool
) -> Shaped[np.ndarray, "h w e"]:
    """The restored image in the depth of the photograph, and gray if that is: with a prior or two views it is RGB."""
    if restored.dtype == image.dtype and not (gray and restored.shape[2] == 3):
        return restored
    floats = to_float(restored)
    return to_integers(floats.mean(2, keepdims=True) if gray else floats, image.dtype)
