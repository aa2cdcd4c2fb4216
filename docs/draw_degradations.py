"""Draws docs/images/degradations.jpg: every degradation and pair augmentation on one photograph.

Run from the repository's root: python docs/draw_degradations.py
The photograph is skimage.data.astronaut(), by NASA, in the public domain.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from skimage.data import astronaut

from gamax.data.augmentations import cutblur, mixup
from gamax.data.blur import motion_kernels
from gamax.data.degradations import (
    JPEG,
    DefocusBlur,
    Degradation,
    Downscale,
    GaussianNoise,
    Haze,
    MotionBlur,
    PoissonGaussianNoise,
    RainStreaks,
    degrade,
    random_depth,
)

matplotlib.use("agg")
import matplotlib.pyplot as plt

SIZE = 256
COLUMNS = 5
CLEAN = jnp.asarray(astronaut()[None, :SIZE, 100 : 100 + SIZE], jnp.float32) / 255
OTHER = jnp.asarray(astronaut()[None, SIZE:, 200 : 200 + SIZE], jnp.float32) / 255

PANELS: list[tuple[str, int, tuple[Degradation, ...]]] = [
    ("GaussianNoise\nsigma=(25, 25)", 0, (GaussianNoise(),)),
    ("GaussianNoise\nsigma=(0, 50), per_channel", 5, (GaussianNoise((0.0, 50.0), per_channel=True),)),
    ("PoissonGaussianNoise\nshot=(0.012, 0.012)", 0, (PoissonGaussianNoise((0.012, 0.012)),)),
    (
        "PoissonGaussianNoise\nshot=(0.012, 0.012), linear_light=False",
        0,
        (PoissonGaussianNoise((0.012, 0.012), linear_light=False),),
    ),
    ("MotionBlur, straight\nlength=(15, 15), roughness=(0, 0)", 1, (MotionBlur((15.0, 15.0), (0.0, 0.0)),)),
    ("MotionBlur, shaky\nlength=(25, 25), roughness=(1, 1)", 3, (MotionBlur((25.0, 25.0), (1.0, 1.0)),)),
    (
        "MotionBlur, rolling\nlength=(3, 3), roll=(25, 25)",
        2,
        (MotionBlur((3.0, 3.0), (0.3, 0.3), spatially_varying=True, roll=(25.0, 25.0)),),
    ),
    ("DefocusBlur\nradius=(5, 5)", 0, (DefocusBlur((5.0, 5.0)),)),
    ("DefocusBlur\nradius=(8, 8), depth_varying", 1, (DefocusBlur((8.0, 8.0), depth_varying=True),)),
    (
        "RainStreaks, drizzle\ndensity=(0.003, 0.003), angle=(10, 10)",
        0,
        (RainStreaks((0.003, 0.003), (15.0, 15.0), (1.0, 1.0), (10.0, 10.0), (0.5, 0.5)),),
    ),
    (
        "RainStreaks, heavy\ndensity=(0.006, 0.006), angle=(-20, -20)",
        0,
        (RainStreaks((0.006, 0.006), (30.0, 30.0), (2.0, 2.0), (-20.0, -20.0)),),
    ),
    ("RainStreaks, added\nblend='add', brightness=(0.5, 0.5)", 1, (RainStreaks(brightness=(0.5, 0.5), blend="add"),)),
    ("Haze, thin\nbeta=(0.6, 0.6)", 0, (Haze((0.6, 0.6)),)),
    ("Haze, dense\nbeta=(1.8, 1.8)", 0, (Haze((1.8, 1.8)),)),
    ("JPEG\nquality=(10, 10)", 0, (JPEG((10, 10)),)),
    ("JPEG\nquality=(10, 10), subsample=False", 0, (JPEG((10, 10), subsample=False),)),
    ("Downscale\nfactor=(2, 2)", 0, (Downscale((2, 2)),)),
    ("Downscale\nfactor=(4, 4)", 0, (Downscale((4, 4)),)),
    (
        "Chain: rain, haze, noise, JPEG",
        4,
        (RainStreaks((0.004, 0.004)), Haze((0.8, 0.8)), GaussianNoise((5.0, 5.0)), JPEG((40, 40))),
    ),
]


def draw_kernels() -> np.ndarray:
    """Sixteen motion kernels, straight at the top and shaky at the bottom, each scaled to its peak."""
    size = 33
    roughness = jnp.repeat(jnp.array([0.0, 0.3, 0.7, 1.0]), 4)
    kernels = np.asarray(motion_kernels(jax.random.key(3), 16, size, jnp.full(16, 28.0), roughness))
    kernels = kernels / kernels.max(axis=(1, 2), keepdims=True)
    return kernels.reshape(4, 4, size, size).swapaxes(1, 2).reshape(4 * size, 4 * size)


def main() -> None:
    """Writes the picture."""
    pictures = [("Clean", CLEAN[0])]
    for title, seed, degradations in PANELS:
        pictures.append((title, degrade(jax.random.key(seed), CLEAN, degradations)[0]))
    pictures.append(("motion_kernels, length 28\nroughness 0, 0.3, 0.7, 1 (rows)", draw_kernels()))
    pictures.append(("random_depth, four draws", _mosaic(random_depth(jax.random.key(1), 4, 128, 128))))
    pair = jnp.concatenate([CLEAN, OTHER])
    noisy = GaussianNoise()(jax.random.key(0), pair)
    mixed = mixup(jax.random.key(9), noisy, pair, probability=1.0)
    pictures += [("mixup of noisy pairs, input", mixed[0][0]), ("mixup of noisy pairs, target", mixed[1][0])]
    pictures.append(("CutBlur of a noisy pair", cutblur(jax.random.key(7), noisy, pair, probability=1.0)[0][0]))

    rows = -(-len(pictures) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(COLUMNS * 2.1, rows * 2.4), dpi=84, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, pictures, strict=False):
        axis.imshow(np.clip(picture, 0, 1), cmap="gray", interpolation="antialiased")
        axis.set_title(title, fontsize=6)
    path = Path(__file__).parent / "images" / "degradations.jpg"
    figure.savefig(path, pil_kwargs={"quality": 92})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def _mosaic(images: jax.Array) -> np.ndarray:
    return np.block([[np.asarray(images[0]), np.asarray(images[1])], [np.asarray(images[2]), np.asarray(images[3])]])


if __name__ == "__main__":
    main()
