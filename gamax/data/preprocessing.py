"""From the integers that the host delivers to what the network sees; runs on the device."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from gamax.config import DataConfig
from gamax.data.augmentations import dihedral
from gamax.data.degradations import gaussian_noise


def preprocess(
    batch: Mapping[str, UInt[Array, "b n n c"]], key: PRNGKeyArray, config: DataConfig
) -> tuple[Float[Array, "b n n c"], Float[Array, "b n n c"]]:
    """Turns a batch of `training_batches` into inputs and targets, float32 `[B, N, N, C]`, targets in [0, 1].

    Augments if `config.augment`. The input is `batch["input"]`, or the degraded target if `config.degradation` is set.
    Pure: call it inside the jitted training step, with a key of that step.
    """
    augment_key, degrade_key = jax.random.split(key)
    names = ["target"] if config.degradation else ["target", "input"]
    images = tuple(batch[name] for name in names)
    if config.augment:
        # On integers, which take a quarter of the memory traffic.
        images = dihedral(augment_key, *images)
    targets, *inputs = (image.astype(jnp.float32) / jnp.iinfo(image.dtype).max for image in images)
    if config.degradation:
        return gaussian_noise(degrade_key, targets, config.degradation.sigma), targets
    return inputs[0], targets
