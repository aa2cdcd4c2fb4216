"""Degradations: frozen settings that are pure functions `(key, images) -> images`, to run on the device in the step.

Images are float32 `[B, H, W, C]` in [0, 1], of any size. Each image of a batch draws its own parameters, uniformly from
the ranges of the settings unless a field says otherwise. Every degradation can be jitted and mapped over keys; the same
key gives the same result. Settings that cannot be met raise `UserError`. Blur kernels and filtering are in
`blur.py`, the JPEG codec is in `jpeg.py`.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gamax.data.blur import (
    blur,
    blur_field,
    convolve,
    defocus,
    disc_kernels,
    motion_kernels,
    splat,
    streak_kernels,
    trajectories,
)
from gamax.data.jpeg import jpeg
from gamax.errors import UserError

Images = Float[Array, "b h w c"]


@dataclass(frozen=True)
class GaussianNoise:
    """White Gaussian noise; the result is not clipped."""

    sigma: tuple[float, float] = (25.0, 25.0)
    """Lowest and highest standard deviation, drawn uniformly an image, in units of 1/255."""
    per_channel: bool = False
    """Each channel of an image draws a standard deviation of its own."""
    kind: ClassVar[str] = "gaussian_noise"

    def __post_init__(self) -> None:
        _check_range(self, "sigma", 0)

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        """Adds the noise."""
        sigma_key, noise_key = jax.random.split(key)
        shape = (images.shape[0], 1, 1, images.shape[3] if self.per_channel else 1)
        scale = jax.random.uniform(sigma_key, shape, images.dtype, *self.sigma) / 255
        return images + scale * jax.random.normal(noise_key, images.shape, images.dtype)


@dataclass(frozen=True)
class PoissonGaussianNoise:
    """Signal-dependent noise of a camera: white, with variance `shot * x + read` at intensity x; not clipped.

    The Gaussian approximation of Foi et al. 2008 ("Practical Poissonian-Gaussian noise modeling"), with the ranges of
    Brooks et al. 2019 (arXiv:1811.11127). Theirs hold for raw sensor values. Here the image is taken back to linear
    light by the sRGB curve alone, without the mosaic, white balance and colour matrix of a camera, so the noise of
    neighbouring pixels and of channels is independent, which that of a developed photograph is not.
    """

    shot: tuple[float, float] = (1e-4, 0.012)
    """Variance that grows with the light, drawn uniformly in its logarithm; above 0, in units of [0, 1]."""
    read: tuple[float, float] | None = None
    """Variance without light, drawn likewise; None draws it from `shot` by the regression of Brooks et al."""
    linear_light: bool = True
    """Add the noise in linear light and return to sRGB; False takes the values of the image for linear ones."""
    kind: ClassVar[str] = "poisson_gaussian_noise"

    def __post_init__(self) -> None:
        _check_range(self, "shot", 0, above=True)
        _check_range(self, "read", 0, above=True)

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        """Adds the noise."""
        shot_key, read_key, noise_key = jax.random.split(key, 3)
        count = images.shape[0]
        log_shot = _draw(shot_key, count, (math.log(self.shot[0]), math.log(self.shot[1])))
        if self.read is None:
            log_read = 2.18 * log_shot + 1.20 + 0.26 * jax.random.normal(read_key, (count,))
        else:
            log_read = _draw(read_key, count, (math.log(self.read[0]), math.log(self.read[1])))
        shot, read = (jnp.exp(values)[:, None, None, None] for values in (log_shot, log_read))
        light = srgb_to_linear(images) if self.linear_light else images
        deviation = jnp.sqrt(shot * jnp.maximum(light, 0) + read)
        noisy = light + deviation * jax.random.normal(noise_key, images.shape, images.dtype)
        return linear_to_srgb(noisy) if self.linear_light else noisy


@dataclass(frozen=True)
class MotionBlur:
    """Blur of a camera that shakes during the exposure; the border is reflected.

    The blur mixes the values of the image as they are (sRGB, as the usual synthetic datasets do), not linear light, so
    bright points do not grow into bright lines as they would in a photograph.
    """

    length: tuple[float, float] = (5.0, 25.0)
    """Extent of the path in pixels: the length if straight, else the diameter of the circle around its mean."""
    roughness: tuple[float, float] = (0.0, 1.0)
    """How crooked the path is: 0 is straight and uniform, 1 wanders without a direction."""
    spatially_varying: bool = False
    """The camera also rolls about the image's centre, so the blur differs from place to place."""
    roll: tuple[float, float] = (5.0, 20.0)
    """Extent of the path that the roll adds at the image's corners, in pixels; only if `spatially_varying`."""
    kind: ClassVar[str] = "motion_blur"

    def __post_init__(self) -> None:
        _check_range(self, "length", 0)
        _check_range(self, "roughness", 0, 1)
        _check_range(self, "roll", 0)

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        """Blurs the images."""
        length_key, roughness_key, path_key, roll_key = jax.random.split(key, 4)
        count, height, width, _ = images.shape
        length = _draw(length_key, count, self.length)
        roughness = _draw(roughness_key, count, self.roughness)
        if not self.spatially_varying:
            size = 2 * math.ceil(self.length[1] / 2) + 1
            return blur(images, motion_kernels(path_key, count, size, length, roughness))
        size = 2 * math.ceil((self.length[1] + self.roll[1]) / 2) + 1
        steps = 4 * size
        shift = trajectories(path_key, count, steps, length, roughness)
        extent_key, turn_key = jax.random.split(roll_key)
        turn = trajectories(turn_key, count, steps, _draw(extent_key, count, self.roll), roughness, axes=1)
        # At least 32 pixels a cell, at most 6x6 cells: 44 to 46 dB from the exact blur for a roll of 20 pixels.
        cells = [min(max(side // 32, 1), 6) for side in (height, width)]
        rows, columns = (
            np.arange(number + 1, dtype=np.float32) * math.ceil(side / number) - (side - 1) / 2
            for number, side in zip(cells, (height, width), strict=True)
        )
        radius = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
        # A small turn moves a point at right angles to its radius. The outermost nodes may lie a little beyond the
        # image's corners; it is their paths that have the full extent, so that all fit in the kernel.
        radius = radius / np.linalg.norm(radius, axis=-1).max()
        tangent = np.stack([-radius[..., 1], radius[..., 0]], axis=-1)
        paths = shift[:, None, None] + tangent[:, :, None] * turn[:, None, None]
        return blur_field(images, splat(paths, size))


@dataclass(frozen=True)
class DefocusBlur:
    """Blur of a lens out of focus, with the disc of a round aperture; the border is reflected.

    As in `MotionBlur`, values are mixed as they are and not in linear light. For a depth map of your own see
    `gamax.data.blur.defocus` and `circle_of_confusion`.
    """

    radius: tuple[float, float] = (1.0, 6.0)
    """Radius of the disc in pixels; if `depth_varying`, that of the pixel farthest from the focus."""
    depth_varying: bool = False
    """The radius follows a random smooth depth (of `random_depth`, without edges), with the focus somewhere in it."""
    kind: ClassVar[str] = "defocus_blur"

    def __post_init__(self) -> None:
        _check_range(self, "radius", 0)

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        """Blurs the images."""
        radius_key, depth_key, focus_key = jax.random.split(key, 3)
        count, height, width, _ = images.shape
        radius = _draw(radius_key, count, self.radius)
        if not self.depth_varying:
            return blur(images, disc_kernels(radius, 2 * math.ceil(self.radius[1]) + 1))
        # The radius is linear in the inverse of the depth (thin lens), which is what the random field stands for.
        inverse = random_depth(depth_key, count, height, width)
        focus = jax.random.uniform(focus_key, (count, 1, 1))
        distance = jnp.abs(inverse - focus) / jnp.maximum(focus, 1 - focus)
        return defocus(images, radius[:, None, None] * distance, self.radius[1])


@dataclass(frozen=True)
class RainStreaks:
    """Falling drops, drawn out to streaks by the exposure; only brightens, and does not clip.

    The streaks of an image share their direction. A third each is near, farther (two thirds of length, width and
    brightness) and far (one third). Rain also veils what is far and wets the lens: chain `Haze` for the veil.
    """

    density: tuple[float, float] = (0.001, 0.006)
    """Expected number of streaks a pixel."""
    length: tuple[float, float] = (10.0, 30.0)
    """Length of the nearest streaks in pixels."""
    width: tuple[float, float] = (1.0, 2.0)
    """Width of the nearest streaks in pixels."""
    angle: tuple[float, float] = (-20.0, 20.0)
    """Direction in degrees from the vertical, from -90 to 90; above 0 the drops fall to the right."""
    brightness: tuple[float, float] = (0.3, 0.8)
    """Opacity (screen) or added intensity (add) of the brightest streaks, from 0 to 1."""
    blend: Literal["screen", "add"] = "screen"
    """`screen`: x + s (1 - x), a white streak that covers what is behind; `add`: x + s, as Rain100 has it."""
    kind: ClassVar[str] = "rain_streaks"

    def __post_init__(self) -> None:
        _check_range(self, "density", 0, 1)
        _check_range(self, "length", 0)
        _check_range(self, "width", 0)
        _check_range(self, "angle", -90, 90)
        _check_range(self, "brightness", 0, 1)
        _check_option(self, "blend", ("screen", "add"))

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        """Lays streaks over the images."""
        *keys, drop_key = jax.random.split(key, 6)
        count, height, width, _ = images.shape
        ranges = (self.density, self.length, self.width, self.angle, self.brightness)
        density, length, thickness, angle, brightness = (
            _draw(key, count, bounds) for key, bounds in zip(keys, ranges, strict=True)
        )
        size = 2 * math.ceil(self.length[1] / 2 + self.width[1]) + 1
        distances = np.array([1, 2 / 3, 1 / 3], np.float32)
        # A streak thinner than a pixel is drawn a pixel wide, and dimmer.
        thin = jnp.minimum(thickness[:, None] * distances, 1)
        kernels = streak_kernels(
            jnp.broadcast_to(angle[:, None], (count, 3)),
            length[:, None] * distances,
            jnp.maximum(thickness[:, None] * distances, 1),
            size,
        )
        kernels = kernels * (brightness[:, None] * distances * thin)[..., None, None]
        # One number a pixel decides whether a drop is there, how far away, and how bright. The canvas is larger than
        # the image, so that streaks enter from outside.
        canvas = (height + size - 1, width + size - 1)
        lot = 3 * jax.random.uniform(drop_key, (count, 1, *canvas)) / density[:, None, None, None]
        lot = lot - np.arange(3, dtype=np.float32)[:, None, None]
        drops = jnp.where((lot >= 0) & (lot < 1), 0.5 + 0.5 * lot, 0)
        streaks = convolve(drops, kernels).sum(axis=1)[..., None]
        if self.blend == "add":
            return images + jnp.maximum(streaks, 0)
        return images + jnp.clip(streaks, 0, 1) * (1 - images)


@dataclass(frozen=True)
class Haze:
    """Haze by the scattering model `I = J t + A (1 - t)`, `t = exp(-beta d)`, over a random smooth depth d in [0, 1].

    The default ranges are those of the indoor part of RESIDE (arXiv:1712.04143). The depth has no edges, unlike a
    scene; for a depth map of your own see `haze`. Stays in [0, 1] and needs no clipping.
    """

    beta: tuple[float, float] = (0.6, 1.8)
    """Scattering coefficient: the farthest point keeps `exp(-beta)` of its light."""
    airlight: tuple[float, float] = (0.7, 1.0)
    """Intensity of the haze, the same in every channel."""
    kind: ClassVar[str] = "haze"

    def __post_init__(self) -> None:
        _check_range(self, "beta", 0)
        _check_range(self, "airlight", 0, 1)

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        """Veils the images."""
        beta_key, airlight_key, depth_key = jax.random.split(key, 3)
        count, height, width, _ = images.shape
        beta, airlight = _draw(beta_key, count, self.beta), _draw(airlight_key, count, self.airlight)
        return haze(images, random_depth(depth_key, count, height, width), beta, airlight[:, None])


@dataclass(frozen=True)
class JPEG:
    """Baseline JPEG, coded and decoded with 8-bit values in between; what is coded lies in [0, 1], in steps of 1/255.

    See `gamax.data.jpeg.jpeg`. Its gradient is zero almost everywhere.
    """

    quality: tuple[int, int] = (10, 60)
    """Lowest and highest quality, from 1 to 100, as in libjpeg; both may be drawn."""
    subsample: bool = True
    """Store colour at half the resolution (4:2:0), as most files do."""
    probability: float = 1.0
    """Of an image to be coded; the others stay as they are."""
    kind: ClassVar[str] = "jpeg"

    def __post_init__(self) -> None:
        _check_range(self, "quality", 1, 100)
        # The configuration reports wrong types.
        if isinstance(self.probability, int | float) and not 0 < self.probability <= 1:
            raise UserError(f"JPEG.probability must be above 0 and at most 1, not {self.probability}")

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        """Codes and decodes the images."""
        quality = jax.random.randint(key, (images.shape[0],), self.quality[0], self.quality[1] + 1)
        coded = jpeg(images, quality, self.subsample)
        if self.probability == 1:
            return coded
        chosen = jax.random.bernoulli(jax.random.fold_in(key, 1), self.probability, (images.shape[0], 1, 1, 1))
        return jnp.where(chosen, coded, images)


@dataclass(frozen=True)
class Downscale:
    """Loss of resolution: down by an integer factor and back up to the same size, both bicubic; not clipped.

    Down with antialiasing, as MATLAB, Pillow and `jax.image.resize` do. What overshoots at edges is neither clipped nor
    rounded to 8 bits in between. The small image has `ceil(side / factor)` pixels. The cost grows with the third power
    of the side: meant for training crops.
    """

    factor: tuple[int, int] = (2, 4)
    """Lowest and highest factor; each image draws one of them or of those between."""
    kind: ClassVar[str] = "downscale"

    def __post_init__(self) -> None:
        _check_range(self, "factor", 1, 32)

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        """Scales the images down and up."""
        factors = range(self.factor[0], self.factor[1] + 1)
        chosen = jax.random.randint(key, (images.shape[0],), 0, len(factors))
        # Down and up along one axis is one square matrix, made when traced; each image takes that of its factor.
        rows, columns = (
            jnp.asarray(np.stack([_down_and_up(side, factor) for factor in factors]))[chosen]
            for side in images.shape[1:3]
        )
        images = jnp.einsum("bij,bjwc->biwc", rows, images, precision="highest")
        return jnp.einsum("bij,bhjc->bhic", columns, images, precision="highest")


Degradation = GaussianNoise | PoissonGaussianNoise | MotionBlur | DefocusBlur | RainStreaks | Haze | JPEG | Downscale
DEGRADATIONS: dict[str, type[Degradation]] = {kind.kind: kind for kind in typing.get_args(Degradation)}
"""By the name that a configuration file knows them by."""


def degrade(key: PRNGKeyArray, images: Images, degradations: Sequence[Degradation]) -> Images:
    """Applies the degradations in their order, each with randomness of its own."""
    if len(degradations) == 1:
        # The key as it is: runs with one degradation keep the numbers they had before there could be several.
        return degradations[0](key, images)
    for index, degradation in enumerate(degradations):
        images = degradation(jax.random.fold_in(key, index), images)
    return images


def srgb_to_linear(images: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """From sRGB values to linear light (IEC 61966-2-1), 0 and 1 unchanged; below 0 it stays linear."""
    return jnp.where(images <= 0.04045, images / 12.92, ((jnp.maximum(images, 0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The inverse of `srgb_to_linear`."""
    return jnp.where(light <= 0.0031308, 12.92 * light, 1.055 * jnp.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055)


def random_depth(key: PRNGKeyArray, batch: int, height: int, width: int) -> Float[Array, "b h w"]:
    """Draws smooth fields from 0 to 1, both reached in each: a ground plane, 1 at the top, with hills of random height.

    Cubic B-splines over a 4x4 grid of random heights, so curvature is continuous and the shape does not depend on the
    resolution.
    """
    hill_key, share_key = jax.random.split(key)
    rows, columns = (_spline_basis(side, 4) for side in (height, width))
    hills = jnp.einsum("hi,bij,wj->bhw", rows, jax.random.normal(hill_key, (batch, 7, 7)), columns, precision="highest")
    plane = np.linspace(1, -1, height, dtype=np.float32)[:, None]
    depth = plane + jax.random.uniform(share_key, (batch, 1, 1), maxval=2.0) * hills
    low, high = depth.min(axis=(1, 2), keepdims=True), depth.max(axis=(1, 2), keepdims=True)
    # A single pixel has no range.
    return (depth - low) / jnp.maximum(high - low, 1e-6)


def haze(
    images: Images, depth: Float[Array, "b h w"], beta: Float[Array, " b"], airlight: Float[Array, "b _"]
) -> Images:
    """The scattering model `I = J t + A (1 - t)`, `t = exp(-beta d)` (Koschmieder; McCartney 1976).

    `depth` is at least 0, in the unit of 1 / `beta`; `airlight` is A, one value an image or one a channel.
    """
    transmission = jnp.exp(-beta[:, None, None] * depth)[..., None]
    return images * transmission + airlight[:, None, None] * (1 - transmission)


def _down_and_up(side: int, factor: int) -> np.ndarray:
    """Bicubic reduction of one axis by `factor` with antialiasing and enlargement back, as one square matrix."""
    small = math.ceil(side / factor)
    down = _bicubic((np.arange(small) + 0.5) * factor - 0.5, side, factor)
    up = _bicubic((np.arange(side) + 0.5) / factor - 0.5, small, 1)
    return (up @ down).astype(np.float32)


def _bicubic(centres: np.ndarray, side: int, stretch: int) -> np.ndarray:
    """Weights `[len(centres), side]` of Keys' cubic (a = -0.5), widened by `stretch`; rows sum to 1."""
    distance = np.abs(centres[:, None] - np.arange(side)) / stretch
    near, far = 1 - 2.5 * distance**2 + 1.5 * distance**3, 2 - 4 * distance + 2.5 * distance**2 - 0.5 * distance**3
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


def _spline_basis(side: int, cells: int) -> np.ndarray:
    """Values `[side, cells + 3]` of the cubic B-splines of a side divided into cells."""
    position = np.linspace(0, cells, side) if side > 1 else np.zeros(1)
    distance = np.abs(position[:, None] - np.arange(-1, cells + 2))
    inner, outer = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6
    return np.where(distance <= 1, inner, np.where(distance < 2, outer, 0)).astype(np.float32)


def _draw(key: PRNGKeyArray, count: int, bounds: tuple[float, float]) -> Float[Array, " b"]:
    return jax.random.uniform(key, (count,), jnp.float32, *bounds)


def _check_range(degradation: Any, name: str, low: float, high: float = math.inf, above: bool = False) -> None:
    """Raises `UserError` unless the field is ascending and within limits. The configuration reports wrong types."""
    value = getattr(degradation, name)
    if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(item, int | float) for item in value)):
        return
    first, last = value
    if not (low <= first <= last <= high and last < math.inf) or (above and first == low):
        limits = f"above {low}" if above else f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise UserError(f"{type(degradation).__name__}.{name} must be two ascending values {limits}, not {value}")


def _check_option(degradation: Any, name: str, options: Sequence[str]) -> None:
    value = getattr(degradation, name)
    if isinstance(value, str) and value not in options:
        valid = " or ".join(map(repr, options))
        raise UserError(f"{type(degradation).__name__}.{name} must be {valid}, not {value!r}")
