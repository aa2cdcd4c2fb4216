"""Adaptive sampling on top of another network: a learned policy says which pixels are refined (arXiv 2402.06117).

Progressive refinement of non-uniformly sampled pixels is in the paper's abstract. State, action, reward, the number of
stages and of pixels, and the weights of the losses are a reconstruction; `docs/adaptive_sampling.md` has the reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from gamax.blocks.adaptive_sampling import (
    PixelRefiner,
    SamplingPolicy,
    gumbel_top_k,
    largest,
    normalized_entropy,
    policy_gradient_loss,
)
from gamax.errors import UserError, nearest

Policy = Literal["learned", "uniform"]
Baseline = Literal["mean", "uniform", "greedy"]
Loss = Callable[[Array, Array], Float[Array, ""]]
Metrics = dict[str, Float[Array, ""]]


class AdaptiveSampling(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] with `network`, then refines chosen pixels; the output is not clipped.

    `network` is any module with a method `outputs(images)` that returns restored images `[B, H, W, 3]`, coarse to fine,
    and features `[B, H, W, F]` of its last one. In each of `stages` a fraction `ratio` of the pixels is chosen, without
    repetition, and a small network adds corrections to their colours and features, knowing all of them. The policy is
    "learned", or "uniform": places that do not depend on the image, to compare with. A fresh one changes nothing.

    The policy is trained by REINFORCE: the reward of a draw is the drop of the mean absolute error of its pixel, less
    `baseline`, over the deviation of the rewards in the image. Baselines are the "mean" of the rewards, the mean reward
    of as many "uniform" places, or of the "greedy" choice (arXiv 1612.00563); the last two refine once more. A draw is
    credited with its own reward alone. That leaves out that a place which is drawn is gone for later draws, and that
    it is context for the others. Crediting it with all later rewards, too, would be exact for the former, but adds the
    noise of thousands of them. `policy_weight` and `entropy_weight` are those of `training_loss`, which trains the
    network alone until the fraction `start` of the training is done.

    `dtype` is that of policy and refiner, the network has its own. Raises `UserError` for fields that go with nothing.
    """

    network: nn.Module
    stages: int = 2
    ratio: float = 1 / 16
    policy: Policy = "learned"
    baseline: Baseline = "mean"
    policy_weight: float = 0.05
    entropy_weight: float = 1e-3
    start: float = 0.6
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if not hasattr(self.network, "outputs"):
            raise UserError(
                f"AdaptiveSampling needs a network with a method 'outputs', which {type(self.network).__name__} has not"
            )
        for name, value, known in (("policy", self.policy, Policy), ("baseline", self.baseline, Baseline)):
            if value not in get_args(known):
                raise UserError(f"unknown {name} {nearest(str(value), get_args(known))}")
        if self.stages < 1:
            raise UserError(f"AdaptiveSampling needs at least one stage, not {self.stages}")
        if not 0 < self.ratio <= 1:
            raise UserError(f"ratio must be a fraction of the pixels above 0 and at most 1, not {self.ratio}")
        if not 0 <= self.start < 1:
            raise UserError(f"start must be a fraction of the training from 0 to below 1, not {self.start}")
        if not (self.policy_weight >= 0 and self.entropy_weight >= 0):
            weights = f"{self.policy_weight} and {self.entropy_weight}"
            raise UserError(f"policy_weight and entropy_weight must be 0 or more, not {weights}")
        super().__post_init__()

    def setup(self) -> None:
        """Makes the policy head, unless the policy is uniform, and the refiner; all stages share them."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.policy == "learned":
            self.policy_head = SamplingPolicy(**dtypes)
        self.refiner = PixelRefiner(**dtypes)

    @property
    def size_multiple(self) -> int:
        """Tiles must start on a multiple of this: that of the network."""
        return self.network.size_multiple

    @property
    def input_channels(self) -> int:
        """Channels of the images it is initialised for."""
        return self.network.input_channels

    @property
    def global_statistics(self) -> bool:
        """Whether tiling changes the result: pixels are chosen among all of the image, so it does."""
        return True

    @property
    def rows_divisible(self) -> bool:
        """Whether several devices can share the rows of an image in training: if those of the network can."""
        return getattr(self.network, "rows_divisible", True)

    @property
    def samples_pixels(self) -> bool:
        """Whether features are taken from places that depend on the image, so devices exchange more than halos."""
        return True

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width up to which padding changes no result: none, as padding would be sampled, too."""
        return height, width

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Returns restored images of the same shape, float32; nothing is random."""
        return self.outputs(images)[0][-1]

    def outputs(self, images: Float[Array, "b h w 3"]) -> tuple[list[Float[Array, "b h w 3"]], Float[Array, "b h w f"]]:
        """Returns what the network restores, that after every stage, and the features after the last one.

        The pixels are those of the largest logits, or of the uniform policy a fixed draw for each stage. As
        intermediates it sows `logits` `[B, H, W]` and `chosen` `[B, N]`, indices of pixels row by row, of every stage.
        """
        restored, features = self.network.outputs(images)
        for stage in range(self.stages):
            logits = self._logits(features, restored[-1], images)
            if self.policy == "learned":
                # The same as `largest`, and faster.
                chosen = lax.top_k(_flat(logits), self._count(logits))[1]
            else:
                key = jax.random.fold_in(jax.random.key(0), stage)
                chosen = self._draw(jnp.broadcast_to(key, len(images)), logits)
            self.sow("intermediates", "logits", logits)
            self.sow("intermediates", "chosen", chosen)
            estimate, features = self._refine(features, restored[-1], images, chosen)
            restored = [*restored, estimate]
        return restored, features

    def training_loss(
        self,
        images: Float[Array, "b h w 3"],
        targets: Float[Array, "b h w 3"],
        keys: Key[Array, " b"],
        progress: Float[Array, ""] | float,
        loss: Loss,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of every estimate, from the network's to the last stage's, and that of the policy.

            mean_t loss(x_t, targets) + policy_weight * policy_loss
            policy_loss = -mean A_k log p(s_k | s_<k) - entropy_weight * entropy / log(H W)

        averaged over stages and images. The policy's part reaches only the policy, the rest only network and refiner.
        Before `start` it is the loss of the network alone. A network with a `level_weight` adds so much of the losses
        of its coarser outputs. Draws, rewards and baselines are those of one image, so that how a batch is divided
        changes nothing.

        Args:
            images: degraded, in [0, 1].
            targets: what they should be.
            keys: random keys, one for each image.
            progress: the fraction of the training that is done.
            loss: scalar loss of restored images and targets.

        Returns:
            the loss, and scalars to watch: `reward`, the mean drop of the absolute error at chosen pixels, and
            `reward_uniform` at uniform ones if that is the baseline; `precision`, the share of chosen pixels among as
            many with the largest errors; `entropy` of the policy, 1 if it is uniform. They are 0 before `start`.

        """
        restored, features = self.network.outputs(images)
        level_weight = getattr(self.network, "level_weight", 0.0)
        levels_loss = sum(level_weight * loss(coarse, targets) for coarse in restored[:-1]) if level_weight else 0.0

        def refined(module: AdaptiveSampling, estimate: Array, features: Array) -> tuple[Array, Metrics]:
            return module._loss_of_stages(features, estimate, images, targets, keys, loss)

        def alone(module: AdaptiveSampling, estimate: Array, features: Array) -> tuple[Array, Metrics]:
            return loss(estimate, targets), dict.fromkeys(module._metrics, jnp.zeros(()))

        total, metrics = nn.cond(progress >= self.start, refined, alone, self, restored[-1], features)
        return total + levels_loss, metrics

    def reward(self, before: Float[Array, "b n"], after: Float[Array, "b n"]) -> Float[Array, "b n"]:
        """What draws are credited with, in their order; a class derived from this one may credit something else."""
        return before - after

    @property
    def _metrics(self) -> tuple[str, ...]:
        uniform = ("reward_uniform",) if self.policy == "learned" and self.baseline == "uniform" else ()
        return "reward", "precision", "entropy", *uniform

    def _loss_of_stages(
        self, features: Array, estimate: Array, images: Array, targets: Array, keys: Array, loss: Loss
    ) -> tuple[Array, Metrics]:
        losses, policy_losses, metrics = [loss(estimate, targets)], [], []
        for stage in range(self.stages):
            draw_keys, baseline_keys = _split(keys, stage)
            logits = self._logits(features, estimate, images)
            drawn = self._draw(draw_keys, logits)
            refined, refined_features = self._refine(features, estimate, images, drawn)
            error = _colour_error(estimate, targets)
            rewards = self.reward(_at(error, drawn), _at(_colour_error(refined, targets), drawn))
            watched = {
                "reward": rewards.mean(),
                "precision": _precision(error, drawn),
                "entropy": jax.vmap(normalized_entropy)(_flat(logits)).mean(),
            }
            if self.policy == "learned":
                baseline = self._baseline(features, estimate, images, targets, logits, rewards, baseline_keys)
                if self.baseline == "uniform":
                    watched["reward_uniform"] = baseline.mean()
                advantages = (rewards - baseline[:, None]) / (rewards.std(1, keepdims=True) + 1e-6)
                policy_loss = jax.vmap(policy_gradient_loss)(_flat(logits), drawn, advantages).mean()
                policy_losses.append(policy_loss - self.entropy_weight * watched["entropy"])
            losses.append(loss(refined, targets))
            metrics.append(watched)
            features, estimate = refined_features, refined
        total = jnp.stack(losses).mean()
        if policy_losses:
            total += self.policy_weight * jnp.stack(policy_losses).mean()
        return total, jax.tree.map(lambda *values: jnp.stack(values).mean(), *metrics)

    def _baseline(
        self,
        features: Array,
        estimate: Array,
        images: Array,
        targets: Array,
        logits: Float[Array, "b h w"],
        rewards: Float[Array, "b n"],
        keys: Key[Array, " b"],
    ) -> Float[Array, " b"]:
        if self.baseline == "mean":
            return rewards.mean(1)
        uniform = self.baseline == "uniform"
        places = self._draw(keys, jnp.zeros_like(logits)) if uniform else _largest(logits, rewards.shape[1])
        refined, _ = self._refine(features, estimate, images, places)
        before, after = (_at(_colour_error(restored, targets), places) for restored in (estimate, refined))
        return self.reward(before, after).mean(1)

    def _logits(self, features: Array, estimate: Array, images: Array) -> Float[Array, "b h w"]:
        if self.policy == "uniform":
            return jnp.zeros(images.shape[:3], jnp.float32)
        return self.policy_head(features, estimate, images)

    def _count(self, logits: Float[Array, "b h w"]) -> int:
        return max(1, int(self.ratio * logits.shape[1] * logits.shape[2]))

    def _draw(self, keys: Key[Array, " b"], logits: Float[Array, "b h w"]) -> Int[Array, "b n"]:
        return jax.vmap(gumbel_top_k, (0, 0, None))(keys, _flat(logits), self._count(logits))

    def _refine(
        self, features: Array, estimate: Array, images: Array, chosen: Int[Array, "b n"]
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w f"]]:
        """The estimate and the features with the corrections at the chosen pixels."""
        colours = jnp.concatenate([_surroundings(estimate, chosen), _at(images, chosen)], axis=-1)
        colour_changes, feature_changes = self.refiner(_at(features, chosen), colours)
        return _add_at(estimate, chosen, colour_changes), _add_at(features, chosen, feature_changes)


def _split(keys: Key[Array, " b"], stage: int) -> tuple[Key[Array, " b"], Key[Array, " b"]]:
    """Two keys of a stage for each image."""
    pairs = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, stage)))(keys)
    return pairs[:, 0], pairs[:, 1]


def _colour_error(restored: Float[Array, "b h w 3"], targets: Float[Array, "b h w 3"]) -> Float[Array, "b h w"]:
    """What rewards are made of: the mean absolute error of the colours, without gradient."""
    return lax.stop_gradient(jnp.abs(restored - targets).mean(-1, dtype=jnp.float32))


def _precision(error: Float[Array, "b h w"], chosen: Int[Array, "b n"]) -> Float[Array, ""]:
    """The share of the chosen pixels whose error is among the n largest of their image."""
    smallest = _at(error, _largest(error, chosen.shape[1])[:, -1:])
    return (_at(error, chosen) >= smallest).mean(dtype=jnp.float32)


def _largest(x: Float[Array, "b h w"], count: int) -> Int[Array, "b n"]:
    return jax.vmap(largest, (0, None))(_flat(x), count)


def _flat(x: Float[Array, "b h w *c"]) -> Float[Array, "b p *c"]:
    return x.reshape(len(x), -1, *x.shape[3:])


def _at(x: Float[Array, "b h w *c"], chosen: Int[Array, "b n"]) -> Float[Array, "b n *c"]:
    # Each image by itself, so that a batch divided over devices needs not be moved.
    def take(x: Array, chosen: Array) -> Array:
        return x.at[chosen].get(mode="promise_in_bounds", unique_indices=True)

    return jax.vmap(take)(_flat(x), chosen)


def _add_at(x: Float[Array, "b h w c"], chosen: Int[Array, "b n"], values: Float[Array, "b n c"]) -> Array:
    def add(x: Array, chosen: Array, values: Array) -> Array:
        return x.at[chosen].add(values.astype(x.dtype), mode="promise_in_bounds", unique_indices=True)

    return jax.vmap(add)(_flat(x), chosen, values).reshape(x.shape)


def _surroundings(images: Float[Array, "b h w c"], chosen: Int[Array, "b n"]) -> Float[Array, "b n d"]:
    """The 3x3 pixels around each chosen one, `[B, N, 9 C]`; those outside the image are the nearest inside."""
    # Written out, as the compiler moves images between devices for the gradient of `jnp.pad`. With a border the indices
    # stay unique, as `_at` needs them.
    taller = jnp.concatenate([images[:, :1], images, images[:, -1:]], axis=1)
    padded = jnp.concatenate([taller[:, :, :1], taller, taller[:, :, -1:]], axis=2)
    width = padded.shape[2]
    rows, columns = jnp.divmod(chosen, images.shape[2])
    near = [_at(padded, (rows + down) * width + columns + right) for down in range(3) for right in range(3)]
    return jnp.concatenate(near, axis=-1)
