"""Restoring images of any size: whole, or in overlapping tiles with constant device memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Shaped

from gamax.errors import UserError

Image = Shaped[np.ndarray, "h w c"]


@dataclass(frozen=True)
class Restorer:
    """A network with its parameters, ready for images.

    Whole images (`tile=None`) give the network's own result. Tiles bound the memory on the device, whatever the size of
    the image; for a network with global statistics (GAMA, channel attention) each tile then sees its own means, so the
    result differs. For any other network it does not, up to what leaks through the overlap.
    """

    model: nn.Module
    params: Any
    tile: int | None = None
    """Side of the square tiles in pixels, a multiple of the network's `size_multiple`; None for whole images."""
    overlap: int = 96
    """Pixels that neighbouring tiles share: the outer quarter of it is discarded, the inner half blended."""
    _apply: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tile is not None:
            # Then every tile sees the same phase of the network's resampling.
            multiple = self.model.size_multiple
            if self.tile % multiple or self.overlap % multiple:
                raise UserError(f"tile and overlap must be multiples of {multiple}, not {self.tile} and {self.overlap}")
            if not 0 <= self.overlap <= self.tile // 2:
                raise UserError(f"overlap must be from 0 to half the tile of {self.tile}, not {self.overlap}")
        # Compiled once for every shape of tile or image; the parameters are an argument, not constants in the program.
        object.__setattr__(self, "_apply", jax.jit(lambda params, images: self.model.apply({"params": params}, images)))

    @classmethod
    def from_weights(cls, run_or_file: str | Path, **options: Any) -> Restorer:
        """A restorer from a run folder or a weight file; `options` are the other fields."""
        from gamax.interop.weights import load_weights

        return cls(*load_weights(run_or_file), **options)

    def __call__(self, image: Image, progress: Callable[[float], object] = lambda fraction: None) -> Image:
        """Restores one `[H, W, C]` image.

        Floats in [0, 1] give float32, not clipped. 8- or 16-bit integers give the same type, clamped and rounded.
        `progress` is called with the finished fraction after every tile.

        Raises:
            UserError: if a side is shorter than 2 pixels.
        """
        if image.size == 0 or min(image.shape[:2]) < 2:
            raise UserError(f"an image of {image.shape[1]}x{image.shape[0]} pixels is too small: sides need 2 or more")
        if np.issubdtype(image.dtype, np.floating):
            return self._restore(image.astype(np.float32), progress)
        white = np.iinfo(image.dtype).max
        restored = self._restore(image.astype(np.float32) / np.float32(white), progress)
        np.clip(restored, 0, 1, out=restored)
        restored *= white
        return np.rint(restored, out=restored).astype(image.dtype)

    @property
    def compilations(self) -> int:
        """How many shapes have been compiled so far."""
        return self._apply._cache_size()

    def _restore(self, image: np.ndarray, progress: Callable[[float], object]) -> np.ndarray:
        tile = self.tile
        if tile is None or max(image.shape[:2]) <= tile:
            # A copy, as JAX's arrays share their memory with NumPy read-only.
            restored = np.array(self._apply(self.params, image[None])[0])
            progress(1.0)
            return restored
        return self._restore_tiles(image, tile, progress)

    def _restore_tiles(self, image: np.ndarray, tile: int, progress: Callable[[float], object]) -> np.ndarray:
        padding = [(0, _tiled_length(size, tile, self.model.size_multiple) - size) for size in image.shape[:2]]
        # The network pads in the same way, so the last tiles see what it would see in the whole image.
        fits = all(after < size for (_, after), size in zip(padding, image.shape[:2], strict=True))
        padded = np.pad(image, [*padding, (0, 0)], mode="reflect" if fits else "edge")
        rows, columns = (_tile_weights(size, tile, self.overlap) for size in padded.shape[:2])
        result = np.zeros_like(padded)

        def finish(top: int, left: int, restored: jax.Array) -> None:
            weight = rows[top][:, None, None] * columns[left][None, :, None]
            result[top : top + tile, left : left + tile] += weight * np.asarray(restored[0])

        grid = [(top, left) for top in rows for left in columns]
        previous: partial[None] | None = None
        for index, (top, left) in enumerate(grid):
            window = padded[None, top : top + tile, left : left + tile]
            current = partial(finish, top, left, self._apply(self.params, window))
            # While the device computes this tile the host blends the one before; more would only take memory.
            if previous is not None:
                previous()
                progress(index / len(grid))
            previous = current
        if previous is not None:
            previous()
        progress(1.0)
        return result[: image.shape[0], : image.shape[1]]


def _tiled_length(size: int, tile: int, multiple: int) -> int:
    """The side that tiles cover: at least a tile, and a multiple of `multiple`."""
    return max(tile, -(-size // multiple) * multiple)


def _tile_weights(size: int, tile: int, overlap: int) -> dict[int, np.ndarray]:
    """Start of every tile along one axis, and the weight of its pixels; the weights of all tiles add up to one."""
    starts = [*range(0, size - tile, tile - overlap), size - tile]
    trim = overlap // 4
    distance = np.arange(tile, dtype=np.float32)
    rising = np.clip((distance - trim + 0.5) / max(overlap - 2 * trim, 1), 1e-6, 1)
    weights = {}
    for start in starts:
        weight = np.ones(tile, np.float32)
        if start > 0:
            weight *= rising
        if start < size - tile:
            weight *= rising[::-1]
        weights[start] = weight
    total = np.zeros(size, np.float32)
    for start, weight in weights.items():
        total[start : start + tile] += weight
    return {start: weight / total[start : start + tile] for start, weight in weights.items()}
