"""From the integers that the host delivers to what the network sees; runs on the device."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from gamax.config import DataConfig
from gamax.data.augmentations import cutblur, dihedral, mixup
from gamax.data.degradations import degrade


def preprocess(
    batch: Mapping[str, UInt[Array, "b n n _"]], key: PRNGKeyArray, config: DataConfig
) -> tuple[Float[Array, "b n n _"], Float[Array, "b n n c"]]:
    """Turns a batch of `training_batches` into inputs and targets, float32 `[B, N, N, C]`, targets in [0, 1].

    Flips and turns if `config.augment`. The input is `batch["input"]`, or the degraded target where
    `config.degradations` are set. `config.mixup` and `config.cutblur` come last, on pairs of input and target.
    Pure: call it inside the jitted training step, with a key of that step.
    """
    augment_key, degrade_key = jax.random.split(key)
    names = ["target"] if config.degradations else ["target", "input"]
    images = tuple(batch[name] for name in names)
    if config.augment:
        # On integers, which take a quarter of the memory traffic.
        images = dihedral(augment_key, *images)
    targets, *given = (image.astype(jnp.float32) / jnp.iinfo(image.dtype).max for image in images)
    inputs = given[0] if given else degrade(degrade_key, targets, config.degradations)
    mixup_key, cutblur_key = jax.random.split(jax.random.fold_in(key, 2))
    if config.mixup:
        inputs, targets = mixup(mixup_key, inputs, targets, config.mixup)
    if config.cutblur:
        inputs, targets = cutblur(cutblur_key, inputs, targets, config.cutblur)
    return inputs, targets
