"""Restoring images of any size: whole, in overlapping tiles with constant device memory, or over several devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from gamax.data.images import to_float, to_integers
from gamax.errors import UserError, nearest

Image = Shaped[np.ndarray, "h w c"]
Restored = Shaped[np.ndarray, "h w d"]
AnySize = Shaped[np.ndarray, "_ _ _"]

LARGEST_FLOAT = 10.0

OVERLAP = 96
"""Default overlap of tiles in pixels; `docs/tiling.md` says what it leaves."""

BLENDINGS = ("feathered", "mean")
"""What can be done where tiles overlap; `Restorer` describes them."""

SLIDING_WINDOWS: dict[str, dict[str, Any]] = {"swintormer": {"tile": 256, "overlap": 36, "blending": "mean"}}
"""Tiles as the authors of a network restore with them, as fields of `Restorer`, by name.

That of Swintormer (arXiv 2401.05907): windows of 256 pixels every 220, the last ones moved back to end at the border.
"""


def tile_fields(tile: int | Literal["whole"] | None, overlap: int | None, sliding_window: str | None) -> dict[str, Any]:
    """The fields of `Restorer` that say how images are cut, from what a user has chosen.

    Args:
        tile: side of the tiles in pixels, `whole` for none, None if nothing is chosen, which is none, too.
        overlap: pixels that neighbouring tiles share; None for the default of `Restorer`.
        sliding_window: one of `SLIDING_WINDOWS`, instead of both.

    Raises:
        UserError: if there is no such sliding window, or a tile or an overlap is chosen beside it.
    """
    if sliding_window is None:
        return {"tile": None if tile == "whole" else tile, "overlap": overlap}
    if sliding_window not in SLIDING_WINDOWS:
        raise UserError(f"unknown sliding window {nearest(sliding_window, SLIDING_WINDOWS)}")
    if tile is not None or overlap is not None:
        raise UserError("--sliding-window says how images are cut: leave out --tile and --overlap")
    return SLIDING_WINDOWS[sliding_window]


@partial(jax.jit, static_argnums=0, static_argnames=("self_ensemble", "mesh"))
def apply_network(
    model: nn.Module, params: Any, images: Any, *, self_ensemble: bool = False, mesh: Mesh | None = None
) -> Any:
    """The network as one compiled program for each shape of `images` `[B, H, W, C]`, shared by all restorers.

    Args:
        model: the network.
        params: its parameters.
        images: float32 in [0, 1].
        self_ensemble: mean over the eight flips and turns of the images.
        mesh: devices along an axis `rows` that share the height; the images and the result are whole on each.
    """

    def network(images: Array) -> Any:
        if mesh is not None:
            images = lax.with_sharding_constraint(images, NamedSharding(mesh, PartitionSpec(None, "rows")))
        return model.apply({"params": params}, images)

    restored = mean_over_symmetries(network, images) if self_ensemble else network(images)
    if mesh is None:
        return restored
    return lax.with_sharding_constraint(restored, NamedSharding(mesh, PartitionSpec()))


def compiled_programs() -> int:
    """How many programs of networks this process has compiled, or fetched from a cache on disk, for restoring."""
    return apply_network._cache_size()  # pyrefly: ignore[missing-attribute]


def mean_over_symmetries(
    network: Callable[[Array], Array], images: Float[Array, "b h w c"]
) -> Float[Array, "b h w c2"]:
    """The mean of a network's results for the eight flips and turns of an image, each flipped and turned back.

    The x8 self-ensemble of EDSR (arXiv 1707.02921). The eight are computed one after the other, so it takes eight times
    as long and no more memory.
    """

    def mean_over_flips(images: Array) -> Array:
        axes = ((), (1,), (2,), (1, 2))
        restored = lax.map(network, jnp.stack([jnp.flip(images, axis) for axis in axes]))
        return jnp.stack([jnp.flip(image, axis) for image, axis in zip(restored, axes, strict=True)]).mean(0)

    turned = mean_over_flips(images.swapaxes(1, 2)).swapaxes(1, 2)
    return (mean_over_flips(images) + turned) / 2


@dataclass(frozen=True)
class Restorer:
    """A network with its parameters, ready for images.

    Whole images (`tile=None`) give the network's own result. Tiles bound the memory on the device, whatever the size of
    the image; for a network with global statistics (GAMA, channel attention) each tile then sees its own means, so the
    result differs. For any other network it does not, up to what leaks through the overlap. `rows` gives the network's
    own result for images that one device cannot hold.
    """

    model: nn.Module
    params: Any = field(repr=False)
    tile: int | None = None
    """Side of the square tiles in pixels, a multiple of the network's `size_multiple`; None for whole images."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share: the outer quarters are discarded, the inner half blended. None means 96, or
    a quarter of a smaller tile; for a network with a larger `size_multiple` that, or none in a tile of one."""
    blending: str = "feathered"
    """What is done where tiles overlap: `feathered` as `overlap` says, or the `mean` of all tiles with equal weights,
    for which they may overlap by any number of pixels and the last ones end at the border of the image."""
    self_ensemble: bool = False
    """Mean over the results for the eight flips and turns of an image, or tile: eight times as long."""
    rows: int = 1
    """Devices that share the height of an image, exchanging the rows at their borders and the sums of global means."""

    def __post_init__(self) -> None:
        if self.rows != 1:
            if self.tile is not None:
                raise UserError("tile and rows exclude each other: rows are for whole images on several devices")
            if not 1 <= self.rows <= len(jax.local_devices()):
                raise UserError(f"rows must be from 1 to the {len(jax.local_devices())} device(s), not {self.rows}")
        if self.blending not in BLENDINGS:
            raise UserError(f"blending must be {' or '.join(BLENDINGS)}, not '{self.blending}'")
        multiple = self.model.size_multiple
        if self.tile is None:
            return
        if self.tile < multiple or self.tile % multiple:
            raise UserError(f"tile must be a multiple of {multiple}, not {self.tile}")
        if not 0 <= self._overlap <= self.tile // 2 or self._overlap % self._overlap_multiple:
            pixels = "a number of pixels" if self.blending == "mean" else f"a multiple of {multiple}"
            raise UserError(f"overlap must be {pixels} from 0 to half the tile of {self.tile}, not {self.overlap}")

    @property
    def _overlap_multiple(self) -> int:
        # Feathered tiles stand for parts of the whole image, so each must see the network's resampling in its phase.
        # Tiles that are averaged are images of their own: wherever they start, the network restores them as such.
        return 1 if self.blending == "mean" else self.model.size_multiple

    @property
    def _overlap(self) -> int:
        if self.overlap is not None or self.tile is None:
            return self.overlap or 0
        multiple = self._overlap_multiple
        if multiple > OVERLAP:
            return multiple if self.tile >= 2 * multiple else 0
        return min(OVERLAP, self.tile // 4) // multiple * multiple

    @cached_property
    def _mesh(self) -> Mesh | None:
        if self.rows == 1:
            return None
        # The compiler propagates shardings (Auto); explicit ones reject the reshapes of pixel shuffle.
        return jax.make_mesh((self.rows,), ("rows",), (AxisType.Auto,), devices=jax.local_devices()[: self.rows])

    @cached_property
    def _placed_params(self) -> Any:
        return (
            self.params
            if self._mesh is None
            else jax.device_put(self.params, NamedSharding(self._mesh, PartitionSpec()))
        )

    @classmethod
    def from_weights(
        cls, run_or_file: str | Path, *, local_window: int | None = None, dtype: Any = None, **options: Any
    ) -> Restorer:
        """A restorer from a run folder or a weight file.

        Args:
            run_or_file: as `load_weights` takes it.
            local_window: pixels of the test-time local conversion (arXiv 2112.04491); 0 for means over whole images,
                None for the network as it was trained.
            dtype: that the network computes in, such as `"bfloat16"`; None for that of its training.
            **options: the other fields.
        """
        from gamax.interop.weights import load_weights

        model, params = load_weights(run_or_file, **({} if dtype is None else {"dtype": dtype}))
        if local_window and not hasattr(model, "local_window"):
            raise UserError(f"{type(model).__name__} has no local_window: it takes no means over the image")
        if local_window is not None and hasattr(model, "local_window"):
            model = model.clone(local_window=local_window or None)
        return cls(model, params, **options)

    def __call__(self, image: Image, progress: Callable[[float], object] = lambda fraction: None) -> Restored:
        """Restores one `[H, W, C]` image.

        C is the network's number of input channels, or 1 for an RGB network, which then is given the image three times
        and returns the mean of its channels. Floats in [0, 1] give float32, not clipped. 8- or 16-bit integers give the
        same type, clamped and rounded. `progress` is called with the finished fraction after every tile.

        Raises:
            UserError: if the image is of another type or shape, or a side is shorter than 2 pixels.
        """
        if self.tiles(image.shape[:2]):
            self.check(image)
            return self._restore_tiles(image, progress)
        (restored,) = self.start([image])()
        progress(1.0)
        return restored

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that the network pads an image of that height and width to."""
        return padded_size(self.model, size)

    def tiles(self, size: tuple[int, ...]) -> bool:
        """Whether an image of that height and width is restored in tiles."""
        return self.tile is not None and max(size) > self.tile

    def start(
        self, images: Sequence[AnySize], shape: tuple[int, int] | None = None, batch_size: int = 1
    ) -> Callable[[], list[AnySize]]:
        """Begins to restore whole images as one batch; the function that it returns waits for the results.

        Args:
            images: as `__call__` takes them, of one size unless a shape is given.
            shape: height and width that all are padded to on the right and at the bottom, and cut back from.
            batch_size: the batch is filled up to this with copies, so that one program serves all batches.
        """
        for image in images:
            self.check(image)
        shape = shape or images[0].shape[:2]
        batch = np.stack([pad_image(self._network_input(image), shape, self.model) for image in images])
        if len(images) < batch_size:
            batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(images), 0)])
        with _device_memory(shape):
            restored = self._apply(batch)

        def wait() -> list[AnySize]:
            with _device_memory(shape):
                results = np.asarray(restored)
            return [
                self._result(results[index, : image.shape[0], : image.shape[1]], image)
                for index, image in enumerate(images)
            ]

        return wait

    def settings(self) -> dict[str, Any]:
        """Everything beyond the weights that the result depends on, for result files."""
        flags: Any = jax.config
        sides = f"to a multiple of {self.model.size_multiple}"
        if hasattr(self.model, "padded_size"):
            sides = "as the network pads"
        padding = "reflected" if _padding_mode(self.model) == "reflect" else "with zeros"
        # Only where it is not the usual one: files restored before there was another remain finished.
        blending = {"blending": self.blending} if self.tile and self.blending == "mean" else {}
        return {
            "dtype": np.dtype(self.model.dtype).name,
            "matmul_precision": flags.jax_default_matmul_precision or "backend default",
            "padding": f"right and bottom {sides}, {padding}",
            "tile": self.tile,
            "overlap": self._overlap if self.tile else None,
            **blending,
            "local_window": getattr(self.model, "local_window", None),
            "self_ensemble": self.self_ensemble,
            "rows": self.rows,
        }

    def _apply(self, images: np.ndarray) -> Any:
        options = {"self_ensemble": self.self_ensemble, "mesh": self._mesh}
        return apply_network(self.model, self._placed_params, images, **options)

    def check(self, image: np.ndarray) -> None:
        """Raises `UserError` if `__call__` would."""
        channels, floating = self.model.input_channels, np.issubdtype(image.dtype, np.floating)
        allowed = (3, 1) if channels == 3 else (channels,)
        if image.ndim != 3 or image.shape[2] not in allowed or not (floating or image.dtype in (np.uint8, np.uint16)):
            wanted = " or ".join(f"[H, W, {count}]" for count in allowed)
            raise UserError(
                f"this {type(self.model).__name__} takes images {wanted}, floats in [0, 1] or 8- or 16-bit integers, "
                f"not {image.dtype} of shape {list(image.shape)}"
            )
        if min(image.shape[:2]) < 2:
            raise UserError(f"an image of {image.shape[1]}x{image.shape[0]} pixels is too small: sides need 2 or more")
        # Unclipped noise leaves [0, 1], but not by this much.
        if floating and not np.abs(image).max() <= LARGEST_FLOAT:
            raise UserError(f"a float image must be in [0, 1], but this one has values up to {np.abs(image).max():g}")

    def _network_input(self, image: np.ndarray) -> np.ndarray:
        floats = image.astype(np.float32) if np.issubdtype(image.dtype, np.floating) else to_float(image)
        return np.repeat(floats, self.model.input_channels, 2) if floats.shape[2] == 1 else floats

    def _result(self, restored: np.ndarray, image: np.ndarray) -> np.ndarray:
        """What the network has returned for the image, or a part of it, in the channels and type of the image."""
        if image.shape[2] == 1 and restored.shape[2] == 3:
            restored = restored.mean(2, keepdims=True)
        if np.issubdtype(image.dtype, np.floating):
            # A copy, as JAX's arrays share their memory with NumPy read-only.
            return np.array(restored)
        if not np.isfinite(restored).all():
            raise UserError("the network's output is not finite: its training has diverged, or its weights are damaged")
        return to_integers(restored, image.dtype)

    def _tiled_side(self, side: int) -> int:
        """How far tiles go along a side of an image: to where the network pads it, or to the border if averaged."""
        if self.blending == "mean" and side >= (self.tile or 0):
            return side
        return side + -side % self.model.size_multiple

    def _restore_tiles(self, image: Image, progress: Callable[[float], object]) -> Restored:
        """Restores one row of tiles after the other; beside image and result, one such row of floats is held."""
        height, width = image.shape[:2]
        tile = self.tile or 0
        padded_height, padded_width = self._tiled_side(height), self._tiled_side(width)
        rows = _tile_weights(padded_height, min(tile, padded_height), self._overlap, self.blending)
        columns = _tile_weights(padded_width, min(tile, padded_width), self._overlap, self.blending)
        grid = [(top, left) for top in rows for left in columns]
        zeros = _padding_mode(self.model) == "zeros"

        def start_tile(top: int, left: int) -> Any:
            # Padded as the network pads a whole image, so that the last tiles see what it would see.
            down, right = top + np.arange(len(rows[top])), left + np.arange(len(columns[left]))
            pixels = image[np.ix_(_reflect(down, height), _reflect(right, width))]
            if zeros:
                pixels[down >= height], pixels[:, right >= width] = 0, 0
            with _device_memory(pixels.shape[:2]):
                return self._apply(self._network_input(pixels)[None])

        # The rows of the image from `first_row` on, which the tiles in work cover.
        band: Any = None
        result: Any = None
        first_row = 0

        def finish_rows(end: int) -> None:
            nonlocal first_row
            count = end - first_row
            result[first_row:end] = self._result(band[:count, :width], image)
            band[: len(band) - count] = band[count:]
            band[len(band) - count :] = 0
            first_row = end

        def blend(top: int, left: int, restored: np.ndarray) -> None:
            nonlocal band, result
            if band is None:
                band = np.zeros((len(rows[0]), padded_width, restored.shape[2]), np.float32)
                channels = image.shape[2] if image.shape[2] == 1 else restored.shape[2]
                integer = np.issubdtype(image.dtype, np.integer)
                result = np.empty((height, width, channels), image.dtype if integer else np.float32)
            if top > first_row:
                finish_rows(top)
            weight = rows[top][:, None, None] * columns[left][None, :, None]
            band[:, left : left + weight.shape[1]] += weight * restored

        def fetch(restored: Any) -> np.ndarray:
            with _device_memory((len(rows[0]), len(columns[0]))):
                return np.asarray(restored[0])

        pending: tuple[int, int, Any] | None = None
        for index, (top, left) in enumerate(grid):
            restored = start_tile(top, left)
            # While the device computes this tile the host blends the one before; more would only take memory.
            if pending is not None:
                blend(*pending[:2], fetch(pending[2]))
                progress(index / len(grid))
            pending = top, left, restored
        if pending is not None:
            blend(*pending[:2], fetch(pending[2]))
        finish_rows(height)
        progress(1.0)
        return result


def pad_image(image: np.ndarray, shape: tuple[int, int], model: nn.Module) -> np.ndarray:
    """Pads `[H, W, C]` on the right and at the bottom to the height and width of `shape`.

    As far as the network pads by itself as it would, so that its result is the same; further by reflection.
    """
    own = padded_size(model, (image.shape[0], image.shape[1]))
    for axis in (0, 1):
        side, missing = image.shape[axis], shape[axis] - image.shape[axis]
        widths = [(0, missing if axis == other else 0) for other in range(3)]
        if shape[axis] > own[axis]:
            image = np.pad(image, widths, "reflect")
        elif missing and _padding_mode(model) == "zeros":
            image = np.pad(image, widths)
        elif missing:
            image = np.pad(image, widths, "reflect" if missing < side else "edge")
    return image


def padded_size(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that a network pads images of `size` to: what it says itself, or the next multiples."""
    if hasattr(model, "padded_size"):
        return model.padded_size(*size)
    height, width = (side + -side % model.size_multiple for side in size)
    return height, width


@contextmanager
def _device_memory(shape: tuple[int, ...]) -> Iterator[None]:
    """Turns the error of a device that has no memory left into a `UserError` with a remedy."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"{shape[1]}x{shape[0]} pixels at once do not fit the memory of the device: take (smaller) tiles or batches"
        ) from error


def _padding_mode(model: nn.Module) -> str:
    """How the network pads: `zeros`, or `reflect` if it does not say."""
    return getattr(model, "padding_mode", "reflect")


def _reflect(positions: np.ndarray, side: int) -> np.ndarray:
    """Where the pixels at these positions of an axis come from, padded as `gamax.blocks.pad_to_multiple` pads it."""
    missing = positions[-1] + 1 - side
    beyond = 2 * (side - 1) - positions if missing < side else np.full_like(positions, side - 1)
    return np.where(positions < side, positions, beyond)


def _tile_weights(size: int, tile: int, overlap: int, blending: str = "feathered") -> dict[int, np.ndarray]:
    """Start of every tile along one axis, and the weight of its pixels; the weights of all tiles add up to one."""
    # A side shorter than the overlap has one tile.
    starts = [*range(0, size - tile, max(tile - overlap, 1)), size - tile]
    trim = overlap // 4
    distance = np.arange(tile, dtype=np.float32)
    # Never quite zero, so that the weights can be normalised.
    rising = np.clip((distance - trim + 0.5) / max(overlap - 2 * trim, 1), 1e-6, 1)
    if blending == "mean":
        rising = np.ones(tile, np.float32)
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
