"""Whether the policy of adaptive sampling learns, for `docs/adaptive_sampling.md`: `python docs/measure_sampling.py`.

Random textures with one quarter blurred along its rows, another quarter in every image; a network of two convolutions.
Prints the table: by policy and baseline, the share of the draws that lie in the blurred quarter of new images, and
their error at the end.
"""

from __future__ import annotations

import statistics
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gamax.blocks import Conv
from gamax.blocks.adaptive_sampling import gumbel_top_k
from gamax.models.adaptive_sampling import AdaptiveSampling

SIZE, BATCH, NEW, SEEDS = 32, 8, 64, range(3)
DRAWS = SIZE * SIZE // 16
SHOWN = (50, 100, 200)
SHUFFLED = np.random.default_rng(0).permutation(DRAWS)


class TwoConvolutions(nn.Module):
    """A residual network with the method that `AdaptiveSampling` needs."""

    size_multiple, input_channels = 1, 3

    @nn.compact
    def outputs(self, images: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """The restored images and the features."""
        features = nn.relu(Conv(8, 3, name="intro")(images))
        return [images + 0.1 * Conv(3, 3, name="ending")(features)], features

    def __call__(self, images: jax.Array) -> jax.Array:
        """The restored images."""
        return self.outputs(images)[0][-1]


class ShuffledRewards(AdaptiveSampling):
    """Every draw gets the reward of another one."""

    def reward(self, before: jax.Array, after: jax.Array) -> jax.Array:
        """The drops of the error, shuffled."""
        return super().reward(before, after)[:, SHUFFLED]


ROWS = {
    ("learned", "`mean`"): AdaptiveSampling(TwoConvolutions(), start=0.0),
    ("learned", "`uniform`"): AdaptiveSampling(TwoConvolutions(), start=0.0, baseline="uniform"),
    ("learned", "`greedy`"): AdaptiveSampling(TwoConvolutions(), start=0.0, baseline="greedy"),
    ("rewards shuffled", "`mean`"): ShuffledRewards(TwoConvolutions(), start=0.0),
    ('`policy="uniform"`', ""): AdaptiveSampling(TwoConvolutions(), start=0.0, policy="uniform"),
}


def textures(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, targets, and which pixels are in the blurred quarter, `[B, H W]`."""
    texture_key, quarter_key = jax.random.split(key)
    targets = jax.random.uniform(texture_key, (count, SIZE, SIZE, 3))
    blurred = sum(jnp.roll(targets, shift, 2) for shift in range(-2, 3)) / 5
    half = jnp.arange(SIZE) // (SIZE // 2)
    inside = 2 * half[:, None] + half == jax.random.randint(quarter_key, (count, 1, 1), 0, 4)
    return jnp.where(inside[..., None], blurred, targets), targets, inside.reshape(count, -1)


def l1(restored: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean absolute difference."""
    return jnp.abs(restored - targets).mean()


def measure(model: nn.Module) -> list[list[float]]:
    """For every seed the shares after so many steps as are `SHOWN`, and the error of new images at the end."""
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        images, targets, _ = textures(key, BATCH)
        keys = jax.random.split(jax.random.fold_in(key, 1), BATCH)

        def loss(params: Any) -> Any:
            return model.apply({"params": params}, images, targets, keys, 1.0, l1, method="training_loss")

        updates, state = optimizer.update(jax.grad(loss, has_aux=True)(params)[0], state)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def judge(params: Any) -> tuple[jax.Array, jax.Array]:
        images, targets, inside = textures(jax.random.key(99), NEW)
        restored, sown = model.apply({"params": params}, images, mutable="intermediates")
        keys = jax.random.split(jax.random.key(7), NEW)
        drawn = [
            jax.vmap(gumbel_top_k, (0, 0, None))(keys, logits.reshape(NEW, -1), DRAWS)
            for logits in sown["intermediates"]["logits"]
        ]
        shares = jnp.stack([jnp.take_along_axis(inside, places, 1) for places in drawn]).mean()
        return shares, l1(restored, targets)

    rows = []
    for seed in SEEDS:
        key = jax.random.key(seed)
        params = jax.jit(model.init)(key, jnp.zeros((1, SIZE, SIZE, 3)))["params"]
        state, row = optimizer.init(params), []
        for index in range(SHOWN[-1]):
            params, state = step(params, state, jax.random.fold_in(key, index))
            if index + 1 in SHOWN:
                row.append(float(judge(params)[0]))
        rows.append([*row, float(judge(params)[1])])
    return rows


def main() -> None:
    """Prints the table, a row when it is measured."""
    print(f"| policy | baseline | {' | '.join(f'after {steps} steps' for steps in SHOWN)} | error |")
    print(f"| --- | --- |{' ---: |' * (len(SHOWN) + 1)}")
    for (policy, baseline), model in ROWS.items():
        *shares, errors = zip(*measure(model), strict=True)
        cells = [f"{statistics.mean(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in shares]
        cells.append(f"{statistics.mean(errors):.4f} ({min(errors):.4f} to {max(errors):.4f})")
        print(f"| {policy} | {baseline} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
