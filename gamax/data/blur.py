"""Blur kernels and filtering with a kernel of its own for every image; pure functions that run on the device.

Filtering goes through the Fourier transform, and that through matrix products. On 2 CPU cores, 8 colour images of
64x64 with kernels of 41x41 take 2 ms; a fast Fourier transform takes 1 ms and a grouped convolution 39 ms. But for a
fast Fourier transform XLA gathers the whole batch on every device (and over several CPU devices fails at times),
while products stay divided.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

# Correlation times of the hand's velocity, and sudden kicks, in one exposure.
CORRELATIONS = 3.0
KICKS = 2.0
# Longest side of what is filtered at once, without its border: longer ones are cut, as products cost its third power.
TILE = 128


def trajectories(
    key: PRNGKeyArray,
    batch: int,
    steps: int,
    length: Float[Array, " b"],
    roughness: Float[Array, " b"],
    axes: int = 2,
) -> Float[Array, "b t axes"]:
    """Draws paths of a shaking camera, `steps` positions in pixels, equally spaced in time, with mean 0.

    The velocity is a constant in a random direction, weight `1 - roughness`, plus a first-order autoregressive process
    with a few sudden kicks, weight `roughness` (after Boracchi and Foi, "Modeling the performance of image restoration
    from motion blur", 2012; the process here is a simplification of theirs). The path is scaled so that its farthest
    point lies `length / 2` from the mean: a straight one has exactly this length, a crooked one fits in its circle.
    """
    drift_key, noise_key, when_key, kick_key = jax.random.split(key, 4)
    decay = math.exp(-CORRELATIONS / steps)
    # The first step starts the process in its stationary state, with variance 1.
    scale = np.where(np.arange(steps) == 0, 1, math.sqrt(1 - decay**2)).astype(np.float32)
    noise = scale[:, None] * jax.random.normal(noise_key, (batch, steps, axes))
    kicked = jax.random.bernoulli(when_key, KICKS / steps, (batch, steps, 1))
    noise = noise + kicked * jax.random.normal(kick_key, (batch, steps, axes))
    # The recursion v[t] = decay v[t-1] + noise[t] as one product, which needs no loop.
    lag = np.subtract.outer(np.arange(steps), np.arange(steps))
    recursion = np.where(lag >= 0, decay ** np.maximum(lag, 0), 0).astype(np.float32)
    wander = jnp.einsum("ts,bsa->bta", recursion, noise, precision="highest")
    drift = jax.random.normal(drift_key, (batch, 1, axes))
    drift = drift / jnp.linalg.norm(drift, axis=-1, keepdims=True)
    weight = roughness[:, None, None]
    path = jnp.cumsum((1 - weight) * drift + weight * wander, axis=1)
    path = path - path.mean(axis=1, keepdims=True)
    reach = jnp.linalg.norm(path, axis=-1).max(axis=1)
    return path * (length / 2 / reach)[:, None, None]


def splat(positions: Float[Array, "*n t 2"], size: int) -> Float[Array, "*n k k"]:
    """Turns paths into kernels of odd side `size`: each position shares its weight among the four nearest pixels.

    Positions are (row, column) from the centre, in pixels. Kernels are not negative, sum to 1, and have the same centre
    of mass as the path. What leaves the kernel is lost, so `size` must be at least `2 ceil(reach) + 1`.
    """
    taps = np.arange(size, dtype=np.float32) - size // 2
    weights = jnp.maximum(1 - jnp.abs(positions[..., None] - taps), 0)
    kernels = jnp.einsum("...ti,...tj->...ij", weights[..., 0, :], weights[..., 1, :], precision="highest")
    return kernels / kernels.sum(axis=(-2, -1), keepdims=True)


def motion_kernels(
    key: PRNGKeyArray, batch: int, size: int, length: Float[Array, " b"], roughness: Float[Array, " b"]
) -> Float[Array, "b k k"]:
    """Draws kernels of camera shake, odd side `size` at least `2 ceil(length / 2) + 1`; see `trajectories`, `splat`."""
    return splat(trajectories(key, batch, 4 * size, length, roughness), size)


def disc_kernels(radius: Float[Array, "*n"], size: int) -> Float[Array, "*n k k"]:
    """Anti-aliased discs with sum 1 on a grid of odd side `size`, at least `2 ceil(radius) + 1`; radius in pixels.

    The edge is a ramp one pixel wide, which stands for the exact overlap of disc and pixel. Radius 0 is the identity.
    """
    taps = np.arange(size, dtype=np.float32) - size // 2
    distance = np.hypot(taps[:, None], taps)
    kernels = jnp.clip(radius[..., None, None] + 0.5 - distance, 0, 1)
    return kernels / kernels.sum(axis=(-2, -1), keepdims=True)


def streak_kernels(
    angle: Float[Array, "*n"], length: Float[Array, "*n"], width: Float[Array, "*n"], size: int
) -> Float[Array, "*n k k"]:
    """Anti-aliased streaks with peak 1, soft towards both ends, on a grid of odd side `size`.

    `angle` is in degrees from the vertical, above 0 where the lower end lies to the right; `length` and `width` are in
    pixels. `size` must be at least `2 ceil(length / 2 + width) + 1`.
    """
    rows = np.arange(size, dtype=np.float32)[:, None] - size // 2
    columns = rows.T
    radians, length, width = (values[..., None, None] for values in (jnp.deg2rad(angle), length, width))
    along = jnp.abs(rows * jnp.cos(radians) + columns * jnp.sin(radians))
    across = jnp.abs(columns * jnp.cos(radians) - rows * jnp.sin(radians))
    # The ends fade over a quarter of the length each, but at least over a pixel.
    fade = jnp.clip((length / 2 + 0.5 - along) / jnp.maximum(length / 4, 1), 0, 1)
    return fade * jnp.clip(width / 2 + 0.5 - across, 0, 1)


def convolve(planes: Float[Array, "*n h w"], kernels: Float[Array, "*m k k"]) -> Float[Array, "*n p q"]:
    """Convolves planes with kernels of odd side, where they lie wholly inside: `p = h - k + 1`, `q = w - k + 1`.

    The leading axes of planes and kernels are broadcast. Costs the same for every side of kernel that leaves the sides
    of the planes as they are. Accurate to about 2e-6 of the largest value.
    """
    size = kernels.shape[-1]
    sides = [side - size + 1 for side in planes.shape[-2:]]
    counts = [math.ceil(side / TILE) for side in sides]
    if counts == [1, 1]:
        return _convolve(planes, kernels)
    steps = [math.ceil(side / count) for side, count in zip(sides, counts, strict=True)]
    # What is beyond the last pixel only reaches what is cut off.
    rows, columns = (
        np.minimum(_windows(count, step, size), side - 1)
        for count, step, side in zip(counts, steps, planes.shape[-2:], strict=True)
    )
    tiles = planes[..., rows, :][..., columns].swapaxes(-3, -2)
    tiles = _convolve(tiles, kernels[..., None, None, :, :]).swapaxes(-3, -2)
    joined = tiles.reshape(*tiles.shape[:-4], counts[0] * steps[0], counts[1] * steps[1])
    return joined[..., : sides[0], : sides[1]]


def blur(images: Float[Array, "b h w c"], kernels: Float[Array, "b k k"]) -> Float[Array, "b h w c"]:
    """Convolves each image with its own kernel, of odd side and any size; the border is reflected."""
    return convolve(_bordered(images, kernels.shape[-1]), kernels[:, None]).transpose(0, 2, 3, 1)


def blur_field(images: Float[Array, "b h w c"], kernels: Float[Array, "b m n k k"]) -> Float[Array, "b h w c"]:
    """Convolves each image with kernels that vary over it; the border is reflected.

    `kernels[:, i, j]` is the kernel at pixel `(i s, j t)` with `s = ceil(H / (M - 1))` and `t = ceil(W / (N - 1))`, M
    and N at least 2; between these nodes the four blurred images around a pixel are blended linearly ("efficient
    filter flow", Hirsch et al. 2010, in the form that keeps a constant image constant). A blend of two kernels is not
    the kernel half-way, so neighbouring kernels should be alike. Costs several times as much as `blur`.
    """
    batch, height, width, channels = images.shape
    size = kernels.shape[-1]
    counts = [nodes - 1 for nodes in kernels.shape[1:3]]
    steps = [math.ceil(side / count) for side, count in zip((height, width), counts, strict=True)]
    # The cells between nodes, each with the border that its convolution needs.
    rows, columns = (
        _reflected(side, size // 2, count * step - side)[_windows(count, step, size)]
        for side, count, step in zip((height, width), counts, steps, strict=True)
    )
    # [B, M-1, rows, N-1, columns, C] to [B, C, M-1, N-1, rows, columns]
    cells = images[:, rows][:, :, :, columns].transpose(0, 5, 1, 3, 2, 4)
    down, right = (np.arange(step, dtype=np.float32) / step for step in steps)
    result = jnp.zeros((*cells.shape[:-2], *steps), images.dtype)
    # The transform of the cells is the same for the four, and is compiled once.
    for i, j in itertools.product((0, 1), repeat=2):
        corner = kernels[:, None, i : counts[0] + i, j : counts[1] + j]
        weight = (down if i else 1 - down)[:, None] * (right if j else 1 - right)
        result = result + weight * convolve(cells, corner)
    result = result.transpose(0, 2, 4, 3, 5, 1)
    return result.reshape(batch, counts[0] * steps[0], counts[1] * steps[1], channels)[:, :height, :width]


def circle_of_confusion(
    depth: Float[Array, "b h w"], focus: float | Array, at_infinity: float
) -> Float[Array, "b h w"]:
    """Radius in pixels of the blur disc of a thin lens focused at depth `focus`, in the unit of `depth` (above 0).

    `at_infinity` is the radius for points infinitely far away, in pixels: focal length times aperture over twice the
    focus distance, for distances much larger than the focal length. Points nearer than the focus have no upper limit.
    """
    return at_infinity * jnp.abs(1 - focus / depth)


def defocus(
    images: Float[Array, "b h w c"], radius: Float[Array, "b h w"], largest: float, levels: int = 6
) -> Float[Array, "b h w c"]:
    """Blurs every pixel with a disc of its own radius, in pixels, limited to `largest`; the border is reflected.

    The image is blurred with `levels` radii from 0 to `largest`, evenly spaced, and each pixel blends the two next to
    its own; a spacing of up to 1.5 pixels looks continuous. A simplification: it gathers with the radius of the pixel
    that receives, so sharp things in front bleed into a blurred background and blurred things in front end sharply.
    """
    if largest == 0:
        return images
    kernels = disc_kernels(jnp.linspace(0, largest, levels, dtype=images.dtype), 2 * math.ceil(largest) + 1)
    planes = _bordered(images, kernels.shape[-1])
    level = jnp.clip(radius / largest, 0, 1)[..., None] * (levels - 1)
    result = images * jnp.maximum(1 - level, 0)
    for i, kernel in enumerate(kernels[1:], start=1):
        result = result + convolve(planes, kernel).transpose(0, 2, 3, 1) * jnp.maximum(1 - jnp.abs(level - i), 0)
    return result


def _bordered(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b c p q"]:
    """Planes with a reflected border, on which a kernel of this side gives the size of the images."""
    rows, columns = (_reflected(side, size // 2) for side in images.shape[1:3])
    return images[:, rows][:, :, columns].transpose(0, 3, 1, 2)


def _reflected(side: int, border: int, extra: int = 0) -> np.ndarray:
    """Indices that extend a side by `border` at both ends and `extra` at the last, reflected as often as needed."""
    return np.pad(np.arange(side), (border, border + extra), mode="reflect")


def _windows(count: int, step: int, size: int) -> np.ndarray:
    """Indices `[count, step + size - 1]` of the windows that give `step` pixels each under a kernel of this side."""
    return np.add.outer(step * np.arange(count), np.arange(step + size - 1))


def _convolve(planes: Array, kernels: Array) -> Array:
    """Circular convolution at once, by discrete Fourier transforms written as matrix products."""
    height, width = planes.shape[-2:]
    size = kernels.shape[-1]
    left_real, left_imaginary = spectrum(planes, height, width)
    right_real, right_imaginary = spectrum(kernels, height, width)
    real = left_real * right_real - left_imaginary * right_imaginary
    imaginary = left_real * right_imaginary + left_imaginary * right_real
    # Back, for the part in which nothing wrapped around.
    cosine, sine = _waves(np.arange(size - 1, height), height, height)
    real, imaginary = (
        _product(cosine, real) - _product(sine, imaginary),
        _product(sine, real) + _product(cosine, imaginary),
    )
    half = width // 2 + 1
    cosine, sine = _waves(np.arange(size - 1, width), half, width)
    # Frequencies that are left out are the conjugates of those that are there, but for the first and the middle one.
    twice = np.where(np.arange(half) % (width / 2) == 0, 1, 2).astype(np.float32) / (height * width)
    return _product(real, (cosine * twice).T) - _product(imaginary, (sine * twice).T)


def spectrum(planes: Array, height: int, width: int) -> tuple[Array, Array]:
    """Real and imaginary part of the transform of real planes, padded with zeros to this size; half the columns."""
    cosine, sine = _waves(np.arange(planes.shape[-1]), width // 2 + 1, width)
    real, imaginary = _product(planes, cosine), -_product(planes, sine)
    cosine, sine = _waves(np.arange(planes.shape[-2]), height, height)
    return (
        _product(cosine.T, real) + _product(sine.T, imaginary),
        _product(cosine.T, imaginary) - _product(sine.T, real),
    )


def _waves(positions: np.ndarray, frequencies: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine `[positions, frequencies]`."""
    angle = 2 * np.pi * (np.outer(positions, np.arange(frequencies)) % period) / period
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _product(left: Array | np.ndarray, right: Array | np.ndarray) -> Array:
    return jnp.matmul(left, right, precision="highest")
