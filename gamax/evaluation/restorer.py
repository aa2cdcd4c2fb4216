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

from gamax.data.images import to_float, to_integers
from gamax.errors import UserError

Image = Shaped[np.ndarray, "h w c"]

LARGEST_FLOAT = 10.0

OVERLAP = 96
"""Default overlap of tiles in pixels; `docs/tiling.md` says what it leaves."""


@partial(jax.jit, static_argnums=0)
def apply_network(model: nn.Module, params: Any, images: Any) -> Any:
    """The network as one compiled program for each shape of `images` `[B, H, W, C]`, shared by all restorers."""
    return model.apply({"params": params}, images)


@dataclass(frozen=True)
class Restorer:
    """A network with its parameters, ready for images.

    Whole images (`tile=None`) give the network's own result. Tiles bound the memory on the device, whatever the size of
    the image; for a network with global statistics (GAMA, channel attention) each tile then sees its own means, so the
    result differs. For any other network it does not, up to what leaks through the overlap.
    """

    model: nn.Module
    params: Any = field(repr=False)
    tile: int | None = None
    """Side of the square tiles in pixels, a multiple of the network's `size_multiple`; None for whole images."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share: the outer quarters are discarded, the inner half blended. None means 96, or
    a quarter of a smaller tile; for a network with a larger `size_multiple` that, or none in a tile of one."""

    def __post_init__(self) -> None:
        if self.model.input_channels != 3:
            raise UserError(
                f"only networks for RGB images can restore them, and {type(self.model).__name__} with these options "
                f"takes {self.model.input_channels} channels; call its `apply`"
            )
        # Then every tile sees the same phase of the network's resampling.
        multiple = self.model.size_multiple
        if self.tile is None:
            return
        if self.tile < multiple or self.tile % multiple:
            raise UserError(f"tile must be a multiple of {multiple}, not {self.tile}")
        if not 0 <= self._overlap <= self.tile // 2 or self._overlap % multiple:
            raise UserError(
                f"overlap must be a multiple of {multiple} from 0 to half the tile of {self.tile}, not {self.overlap}"
            )

    @property
    def _overlap(self) -> int:
        if self.overlap is not None or self.tile is None:
            return self.overlap or 0
        multiple = self.model.size_multiple
        if multiple > OVERLAP:
            return multiple if self.tile >= 2 * multiple else 0
        return min(OVERLAP, self.tile // 4) // multiple * multiple

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
            UserError: if the image is of another type or shape, or a side is shorter than 2 pixels.
        """
        floating = np.issubdtype(image.dtype, np.floating)
        if image.ndim != 3 or image.shape[2] != 3 or not (floating or image.dtype in (np.uint8, np.uint16)):
            raise UserError(
                f"an image must be RGB [H, W, 3], floats in [0, 1] or 8- or 16-bit integers, not {image.dtype} of "
                f"shape {list(image.shape)}"
            )
        if min(image.shape[:2]) < 2:
            raise UserError(f"an image of {image.shape[1]}x{image.shape[0]} pixels is too small: sides need 2 or more")
        if not floating:
            return to_integers(self._restore(to_float(image), progress), image.dtype)
        # Unclipped noise leaves [0, 1], but not by this much.
        if np.abs(image).max() > LARGEST_FLOAT:
            raise UserError(f"a float image must be in [0, 1], but this one has values up to {np.abs(image).max():g}")
        return self._restore(image.astype(np.float32), progress)

    def settings(self) -> dict[str, Any]:
        """Everything beyond the weights that the result depends on, for result files."""
        flags: Any = jax.config
        return {
            "dtype": np.dtype(self.model.dtype).name,
            "matmul_precision": flags.jax_default_matmul_precision or "backend default",
            "padding": f"right and bottom to a multiple of {self.model.size_multiple}, reflected",
            "tile": self.tile,
            "overlap": self._overlap if self.tile else None,
        }

    def _restore(self, image: np.ndarray, progress: Callable[[float], object]) -> np.ndarray:
        if self.tile is None or max(image.shape[:2]) <= self.tile:
            # A copy, as JAX's arrays share their memory with NumPy read-only.
            restored = np.array(apply_network(self.model, self.params, image[None])[0])
            progress(1.0)
            return restored
        return self._restore_tiles(image, self.tile, self._overlap, progress)

    def _restore_tiles(
        self, image: np.ndarray, tile: int, overlap: int, progress: Callable[[float], object]
    ) -> np.ndarray:
        padded = _pad_to_multiple(image, self.model.size_multiple)
        rows, columns = (_tile_weights(size, min(tile, size), overlap) for size in padded.shape[:2])
        result = np.zeros_like(padded)

        def blend(top: int, left: int, restored: jax.Array) -> None:
            weight = rows[top][:, None, None] * columns[left][None, :, None]
            result[top : top + tile, left : left + tile] += weight * np.asarray(restored[0])

        grid = [(top, left) for top in rows for left in columns]
        pending: partial[None] | None = None
        for index, (top, left) in enumerate(grid):
            restored = apply_network(self.model, self.params, padded[None, top : top + tile, left : left + tile])
            # While the device computes this tile the host blends the one before; more would only take memory.
            if pending is not None:
                pending()
                progress(index / len(grid))
            pending = partial(blend, top, left, restored)
        if pending is not None:
            pending()
        progress(1.0)
        return result[: image.shape[0], : image.shape[1]]


def _pad_to_multiple(image: np.ndarray, multiple: int) -> np.ndarray:
    """Pads as `gamax.blocks.pad_to_multiple` does, so that the last tiles see what the whole image would see."""
    for axis in (0, 1):
        missing = -image.shape[axis] % multiple
        widths = [(0, missing if axis == other else 0) for other in range(3)]
        image = np.pad(image, widths, mode="reflect" if missing < image.shape[axis] else "edge")
    return image


def _tile_weights(size: int, tile: int, overlap: int) -> dict[int, np.ndarray]:
    """Start of every tile along one axis, and the weight of its pixels; the weights of all tiles add up to one."""
    starts = [*range(0, size - tile, tile - overlap), size - tile]
    trim = overlap // 4
    distance = np.arange(tile, dtype=np.float32)
    # Never quite zero, so that the weights can be normalised.
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
