"""Evaluation protocols as data: a number without the name of its protocol does not exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from gamax.data.images import to_float
from gamax.errors import UserError, nearest


@dataclass(frozen=True)
class Protocol:
    """How images become one number: what the network is given, and how its output is scored.

    A field with a single allowed value states what `evaluate` does, so that result files say it.
    """

    name: str
    description: str
    source: str
    """Where the rules come from."""
    noise_sigma: float | None = None
    """White Gaussian noise in units of 1/255 that makes the input; None: the data brings its inputs."""
    noise_seed: int | None = None
    """Seed of NumPy's legacy generator, set anew before every image; the noise is neither clipped nor quantised."""
    rounding: Literal["uint8"] = "uint8"
    """The restored image is clamped to [0, 1] and rounded to 8 bits before it is scored."""
    plane: Literal["rgb"] = "rgb"
    peak: Literal[255] = 255
    border: Literal[0] = 0
    ssim: Literal["2d-valid"] = "2d-valid"
    """11x11 Gaussian window, each channel alone, border of 5 pixels dropped."""
    averaging: Literal["mean over images"] = "mean over images"

    @property
    def paired(self) -> bool:
        """Whether the data must bring degraded inputs."""
        return self.noise_sigma is None


_SEED_ZERO = "swz30/Restormer: Denoising/test_gaussian_color_denoising.py (noise drawn by RandomState(0) an image)"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        *(
            Protocol(
                f"gauss-color-{sigma}",
                f"Gaussian colour denoising, sigma {sigma}, noise of seed 0 for every image",
                _SEED_ZERO,
                noise_sigma=sigma,
                noise_seed=0,
            )
            for sigma in (15, 25, 50)
        ),
        Protocol("paired-rgb", "pairs of input and target, scored in RGB as 8-bit images", "gamax"),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name; an unknown one raises `UserError` with the nearest."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_input(protocol: Protocol, target: Shaped[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    """The noisy input that the protocol makes from a clean 8- or 16-bit image: float32, unclipped.

    The draws are float64 and added in place to the float32 image, as the field does.
    """
    if protocol.noise_sigma is None:
        raise ValueError(f"protocol {protocol.name} makes no input: the data brings it")
    noisy = to_float(target)
    noisy += np.random.RandomState(protocol.noise_seed).normal(0, protocol.noise_sigma / 255, noisy.shape)
    return noisy
