"""Draws docs/images/front.jpg, the picture of the README: photographs before and after, halves of one another.

Run from the repository's root: python docs/draw_front.py
The photographs come with scikit-image: astronaut by NASA and rocket by SpaceX, both in the public domain.
"""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from skimage.data import astronaut, rocket

from gamax import Restorer
from gamax.data.degradations import Degradation, GaussianNoise, RainStreaks

matplotlib.use("agg")
import matplotlib.pyplot as plt

SIDE = 384
PANELS: list[tuple[str, str, np.ndarray, Degradation]] = [
    ("denoise-gaussian", "noise, sigma 50", astronaut()[:SIDE, 40 : 40 + SIDE], GaussianNoise((50.0, 50.0))),
    ("denoise-gaussian", "noise, sigma 25", rocket()[20 : 20 + SIDE, 140 : 140 + SIDE], GaussianNoise((25.0, 25.0))),
    (
        "derain",
        "streaks of rain",
        astronaut()[64 : 64 + SIDE, 100 : 100 + SIDE],
        RainStreaks((0.01, 0.01), (25.0, 25.0), (1.0, 1.0), (10.0, 10.0), (0.5, 0.5)),
    ),
]


def main() -> None:
    """Degrades, restores, draws."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12.6, 4.5), layout="constrained")
    for index, (axis, (weights, title, photograph, degradation)) in enumerate(zip(axes, PANELS, strict=True)):
        clean = jnp.asarray(photograph[None], jnp.float32) / 255
        degraded = np.clip(np.asarray(degradation(jax.random.key(index), clean))[0], 0, 1)
        restored = np.clip(Restorer.from_weights(weights)(degraded), 0, 1)
        middle = SIDE // 2
        axis.imshow(np.concatenate([degraded[:, :middle], restored[:, middle:]], axis=1), interpolation="lanczos")
        axis.axvline(middle - 0.5, color="white", linewidth=2)
        axis.set_title(f"{title}  |  {weights}", fontsize=11)
        axis.set_axis_off()
    figure.savefig("docs/images/front.jpg", dpi=110, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
