"""Judges a trained latent diffusion model on photographs, for `docs/results/diffusion.md`.

    python docs/measure_diffusion.py RUN IMAGES OUTPUT

RUN is a run of `configs/ldm_small.py`, IMAGES a folder of sharp photographs that it was not trained on. Prints what the
autoencoder keeps, and how near what is sampled comes to the truth, beside noise in the place of the latents and the
enlarged condition; writes a picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gamax.config import load
from gamax.console import print_table
from gamax.data.degradations import degrade
from gamax.data.images import list_images, read_image, to_float, to_integers, write_image
from gamax.evaluation.metrics import psnr
from gamax.interop.weights import load_weights

SIDE, PROJECTIONS, PATCH, PICTURED = 128, 256, 4, 4


def sliced_wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """The sliced Wasserstein-1 distance between two sets of latents `[B, H, W, C]`, of their patches of 4x4.

    The mean over random directions of the mean distance between the sorted projections of the patches.
    """
    random = np.random.default_rng(0)
    directions = random.normal(size=(PATCH * PATCH * first.shape[-1], PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)

    def projections(latents: np.ndarray) -> np.ndarray:
        batch, height, width, channels = latents.shape
        cut = latents.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, channels).swapaxes(2, 3)
        return np.sort(cut.reshape(-1, PATCH * PATCH * channels) @ directions, axis=0)

    return float(np.abs(projections(first) - projections(second)).mean())


def main() -> None:
    """Judges and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=12)
    arguments = parser.parse_args()
    model, params = load_weights(arguments.run)
    experiment = load(arguments.run / "config.json")

    files = list_images(arguments.images)[: 2 * arguments.count]
    if len(files) < 2 * arguments.count:
        parser.error(f"{2 * arguments.count} images are needed, but '{arguments.images}' has {len(files)}")
    photographs = [to_float(read_image(path)) for path in files]
    tops = [[(side - SIDE) // 2 for side in image.shape[:2]] for image in photographs]
    crops = np.stack([image[y : y + SIDE, x : x + SIDE] for image, (y, x) in zip(photographs, tops, strict=True)])
    targets, others = jnp.asarray(crops[: arguments.count]), jnp.asarray(crops[arguments.count :])
    degraded = degrade(jax.random.key(0), targets, experiment.data.degradations)

    @partial(jax.jit, static_argnums=0)
    def run(method: Callable[..., Any], *arguments: Any) -> Any:
        return model.apply({"params": params}, *arguments, method=method)

    def decode(latents: Array) -> Array:
        return run(lambda diffusion, latents: diffusion.autoencoder.decode(latents), latents)

    truth, elsewhere = (
        run(lambda diffusion, images: diffusion.autoencoder.encode(images), images) for images in (targets, others)
    )
    condition = run(type(model).condition, degraded)
    sampled = run(type(model).sample, condition, jax.random.key(0))
    noise = jax.random.normal(jax.random.key(1), truth.shape)
    rescaled = noise * truth.std((0, 1, 2)) + truth.mean((0, 1, 2))
    enlarged = jax.image.resize((condition + 1) / 2, targets.shape, "bicubic")

    compared = {
        "of the photographs themselves (autoencoder)": (truth, decode(truth)),
        "sampled": (sampled, decode(sampled)),
        "noise with the mean and deviation of latents": (rescaled, decode(rescaled)),
        "standard normal noise": (noise, decode(noise)),
        "of other photographs": (elsewhere, others),
        "none: the condition, enlarged": (None, enlarged),
    }
    rows = []
    for name, (latents, images) in compared.items():
        pairs = zip(*(to_integers(np.asarray(batch)).astype(np.float64) for batch in (images, targets)), strict=True)
        row = {"latents": name, "PSNR": f"{np.mean([psnr(*pair, 255) for pair in pairs]):.2f} dB"}
        if latents is not None:
            row["squared error"] = f"{jnp.square(latents - truth).mean():.4f}"
            row["sliced Wasserstein"] = f"{sliced_wasserstein(np.asarray(latents), np.asarray(truth)):.4f}"
        rows.append({"squared error": "", "sliced Wasserstein": "", **row})
    print_table(
        f"{len(targets)} crops of {SIDE}x{SIDE}", ["latents", "PSNR", "squared error", "sliced Wasserstein"], rows
    )
    columns = [targets, enlarged, *(images for _, images in list(compared.values())[:3])]
    sheet = np.concatenate([np.concatenate(list(np.asarray(images[:PICTURED])), axis=0) for images in columns], axis=1)
    write_image(arguments.output, to_integers(sheet))


if __name__ == "__main__":
    main()
