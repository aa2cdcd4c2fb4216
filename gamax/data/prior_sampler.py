"""Sampling the diffusion prior of a photograph (arXiv 2401.05907)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, Shaped, UInt16

from gamax.data.images import to_float, to_integers
from gamax.data.prior import stored_settings
from gamax.diffusion.ddim import TRAINED_STEPS, ddim_schedule, ddim_step
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.diffusion.patchwise import predict_in_windows
from gamax.errors import UserError

STEPS_IN_FLIGHT = 4
SETTINGS = ("steps", "eta", "seed", "window", "stride", "limit")
"""The fields of a sampler that its result depends on."""


@dataclass(frozen=True)
class PriorSampler:
    """A latent diffusion model ready to draw latents for photographs: the prior of a restoration network.

    As the code of Swintormer does, the degraded photograph itself takes the place of the small image that the model was
    trained to enlarge: its latents are as large as it, one for every pixel, and are not decoded. The denoiser is
    applied in overlapping windows, at every step. The result depends on the photograph, the seed and the other fields
    alone. The defaults are those of the authors.

    Raises `UserError` for values that the model cannot have.
    """

    model: LatentDiffusion
    params: Any = field(repr=False)
    steps: int = 20
    """How often the denoiser is applied."""
    eta: float = 1.0
    """How random the way is: 0 adds no noise, 1 as much as the diffusion (DDPM)."""
    seed: int = 42
    """Of the noise, together with the content of the photograph."""
    window: int = 128
    """Side of the windows in pixels."""
    stride: int = 64
    """Pixels from one window to the next."""
    limit: float = 1.0
    """Latents are clamped to plus and minus this, and stored as a fraction of it. Those of VQ-f4 exceed 1, so the value
    of the authors loses what is beyond."""
    windows_at_once: int = 8
    """Windows that go through the denoiser together on each device."""

    def __post_init__(self) -> None:
        multiple = self.model.unet.size_multiple
        rules = {
            "steps": (1 <= self.steps < TRAINED_STEPS, f"be from 1 to {TRAINED_STEPS - 1}"),
            "eta": (0 <= self.eta <= 1, "be from 0 to 1"),
            "seed": (0 <= self.seed < 2**32, "be from 0 to below 2^32"),
            "window": (self.window >= 1 and self.window % multiple == 0, f"be a multiple of {multiple}"),
            "stride": (1 <= self.stride <= self.window, "be from 1 to the window"),
            "limit": (0 < self.limit < np.inf, "be above 0"),
            "windows_at_once": (self.windows_at_once >= 1, "be at least 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"{name} of a prior must {rule}, not {getattr(self, name)}")

    @classmethod
    def from_weights(cls, run_or_file: str | Path, **options: Any) -> PriorSampler:
        """A sampler from a run folder or a weight file of a latent diffusion model; `options` are the other fields."""
        from gamax.interop.weights import load_weights

        model, params = load_weights(run_or_file)
        if not isinstance(model, LatentDiffusion):
            raise UserError(
                f"'{run_or_file}' holds a {type(model).__name__}, but a prior is sampled from a latent diffusion model "
                "such as ldm_bsr or ldm_small"
            )
        return cls(model, params, **options)

    @classmethod
    def from_stored(cls, folder: Path, **options: Any) -> PriorSampler:
        """The sampler that has made the prior in a folder of `gamax data prior`; `options` may be `windows_at_once`."""
        from gamax.interop.weights import find_weights, sha256

        stored = stored_settings(folder)
        missing = [name for name in ("weights", "weights_sha256", *SETTINGS) if name not in stored]
        if missing:
            raise UserError(
                f"'{folder}' was not written by `gamax data prior`: its prior.json has no {missing[0]}; name the "
                "weights of the diffusion model instead"
            )
        try:
            weights = find_weights(stored["weights"])
        except UserError as error:
            raise UserError(
                f"the prior in '{folder}' was made of weights that are not there: {error}; put them back, or name "
                "their new place in its prior.json"
            ) from error
        if sha256(weights) != stored["weights_sha256"]:
            raise UserError(f"'{weights}' has changed since the prior in '{folder}' was made of it; put it back")
        return cls.from_weights(weights, **{name: stored[name] for name in SETTINGS}, **options)

    def settings(self) -> dict[str, Any]:
        """Everything beyond the weights and the photograph that the prior depends on."""
        flags: Any = jax.config
        return {
            **{name: getattr(self, name) for name in SETTINGS},
            "dtype": np.dtype(self.model.dtype).name,
            "matmul_precision": flags.jax_default_matmul_precision or "backend default",
        }

    def __call__(
        self, image: Shaped[np.ndarray, "h w c"], progress: Callable[[float], object] = lambda fraction: None
    ) -> UInt16[np.ndarray, "h w 3"]:
        """Samples the prior of a photograph: its latents from minus to plus `limit`, as integers from 0 to 65535.

        Args:
            image: uint8 or uint16 `[H, W, 3]`; of two views `[H, W, 6]` the mean is taken.
            progress: called with the finished fraction after every step.
        """
        latents = self.latents(image, progress)
        return to_integers((latents / self.limit + 1) / 2, np.uint16)

    def latents(
        self, image: Shaped[np.ndarray, "h w c"], progress: Callable[[float], object] = lambda fraction: None
    ) -> Float[np.ndarray, "h w d"]:
        """The latents themselves, float32, not clamped; the arguments are those of `__call__`."""
        if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] not in (3, 6):
            raise UserError(
                f"a prior is sampled for 8- or 16-bit images [H, W, 3] or [H, W, 6], not {image.dtype} of shape "
                f"{list(image.shape)}"
            )
        height, width, _ = image.shape
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(image.tobytes()))
        photograph = np.mean(np.split(to_float(image), image.shape[2] // 3, axis=2), axis=0)
        padding = ((0, -height % self.window), (0, -width % self.window), (0, 0))
        condition = 2 * np.pad(photograph, padding, "reflect" if min(height, width) > 1 else "edge") - 1
        noise = jax.random.normal(jax.random.fold_in(key, 0), (*condition.shape[:2], self.model.unet.latent_channels))
        mesh = self._mesh
        # Where the step will leave them, or it would be compiled twice.
        condition, latents = jax.device_put((condition, noise), NamedSharding(mesh, PartitionSpec()))
        try:
            for index, (time, signal, next_signal) in enumerate(zip(*ddim_schedule(self.steps), strict=True)):
                latents = _step(
                    self.model.unet,
                    self._denoiser_params,
                    latents,
                    condition,
                    jax.random.fold_in(key, index + 1),
                    time,
                    signal,
                    next_signal,
                    eta=self.eta,
                    window=self.window,
                    stride=self.stride,
                    at_once=self.windows_at_once * mesh.size,
                    mesh=mesh,
                )
                if index % STEPS_IN_FLIGHT == 0 or index == self.steps - 1:
                    # Not far ahead of the device, so that progress is true.
                    latents.block_until_ready()
                    progress((index + 1) / self.steps)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"sampling a prior of {width}x{height} pixels does not fit the memory of the device: take less than "
                f"{self.windows_at_once} windows at once (--windows-at-once)"
            ) from error
        if not jnp.isfinite(latents).all():
            raise UserError(
                "the latents are not finite: the diffusion model has diverged in training, or its weights are damaged"
            )
        return np.asarray(latents)[:height, :width]

    @cached_property
    def _mesh(self) -> Mesh:
        return jax.make_mesh((len(jax.local_devices()),), ("windows",), (AxisType.Auto,), devices=jax.local_devices())

    @cached_property
    def _denoiser_params(self) -> Any:
        return jax.device_put(self.params["denoiser"], NamedSharding(self._mesh, PartitionSpec()))


@partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("eta", "window", "stride", "at_once", "mesh"),
    donate_argnames="latents",
)
def _step(
    denoiser: nn.Module,
    params: Any,
    latents: Float[Array, "h w d"],
    condition: Float[Array, "h w 3"],
    key: Key[Array, ""],
    time: Float[Array, ""],
    signal: Float[Array, ""],
    next_signal: Float[Array, ""],
    *,
    eta: float,
    window: int,
    stride: int,
    at_once: int,
    mesh: Mesh,
) -> Float[Array, "h w d"]:
    """One step of sampling the latents of a photograph."""

    def predict(windows: Array) -> Any:
        return denoiser.apply({"params": params}, windows, jnp.full(len(windows), time))

    both = jnp.concatenate([latents, condition], axis=-1)
    predicted = predict_in_windows(predict, both, window=window, stride=stride, at_once=at_once, mesh=mesh)
    fresh = jax.random.normal(key, latents.shape)
    return ddim_step(latents, predicted, fresh, signal, next_signal, eta)
