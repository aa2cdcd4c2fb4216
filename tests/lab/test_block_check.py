from __future__ import annotations

import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.errors import UserError
from gamax.lab.block_check import GRADIENT_TOLERANCE, check_block, directional_error


class NotAModule:
    def __call__(self, x):
        return x


class NeedsOptions(nn.Module):
    features: int

    def __call__(self, x):
        return x


class Raises(nn.Module):
    def __call__(self, x):
        raise KeyError("no such thing")


class HalfTheChannels(nn.Module):
    def __call__(self, x):
        return x[..., : x.shape[-1] // 2]


class EightChannels(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(x)


class EvenSizes(nn.Module):
    """Unshuffles and shuffles back, without padding."""

    def __call__(self, x):
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        return x.reshape(batch, height, width, channels)


class CutsOddSizes(nn.Module):
    def __call__(self, x):
        return x[:, : x.shape[1] // 2 * 2]


class Pair(nn.Module):
    def __call__(self, x):
        return x, x


class Integers(nn.Module):
    def __call__(self, x):
        return jnp.round(x).astype(jnp.int32)


class Complex(nn.Module):
    def __call__(self, x):
        return jnp.fft.fft2(x, axes=(1, 2))


class ComplexParameter(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("spectrum", lambda key: jnp.zeros(x.shape[-1], jnp.complex64)).real


class RowWeights(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("weights", nn.initializers.ones, (x.shape[1], 1, 1))


class LayersBySize(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1], name="dense" if x.shape[1] > 8 else "small")(x)


class BranchesOnValues(nn.Module):
    def __call__(self, x):
        return x if x.mean() > 0 else -x


class UsesNumpy(nn.Module):
    def __call__(self, x):
        return x - np.median(x)


class IndexesByMask(nn.Module):
    def __call__(self, x):
        return x - x[x > 0].mean()


class Drops(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(x)


class DrawsInPython(nn.Module):
    def __call__(self, x):
        return x * random.random()


class BatchNormed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(x)


class Logarithm(nn.Module):
    def __call__(self, x):
        return jnp.log(x)


class Standardised(nn.Module):
    """Not a number for constant features."""

    def __call__(self, x):
        return (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)


class Root(nn.Module):
    """Finite everywhere, with an infinite gradient at zero."""

    def __call__(self, x):
        return jnp.sign(x) * jnp.sqrt(jnp.abs(x))


class RootOfParameter(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + jnp.sqrt(jnp.abs(self.param("scale", nn.initializers.zeros, (x.shape[-1],))))


class MeanOfBatch(nn.Module):
    """Fresh, it is the identity: only a scale that has moved tells."""

    @nn.compact
    def __call__(self, x):
        return x + self.param("scale", nn.initializers.zeros, (x.shape[-1],)) * x.mean((0, 1, 2))


class Stops(nn.Module):
    def __call__(self, x):
        return jax.lax.stop_gradient(x)


FAULTS = [
    (NotAModule, "makes a NotAModule, not a module"),
    (lambda: nn.relu, "makes a"),
    (3, "is no class and no function"),
    (NeedsOptions, "cannot be made without arguments (TypeError"),
    (Raises, "fails on features of [2, 16, 24, 8] (KeyError: 'no such thing')"),
    (HalfTheChannels, "maps [2, 16, 24, 8] to [2, 16, 24, 4]; a mixer must keep the shape"),
    (EightChannels, "maps [2, 16, 24, 16] to [2, 16, 24, 8]"),
    (EvenSizes, "fails on features of [1, 7, 5, 8] (TypeError"),
    (CutsOddSizes, "maps [1, 7, 5, 8] to [1, 6, 5, 8]"),
    (Pair, "returns a tuple, not one array"),
    (Integers, "maps float32 to int32; a mixer must keep the type"),
    (Complex, "maps float32 to complex64"),
    (ComplexParameter, "the parameter 'spectrum' of ComplexParameter is complex64"),
    (RowWeights, "has the shape [16, 1, 1] for features of 16x24, but [24, 1, 1] for 24x16"),
    (LayersBySize, "the parameter 'dense/bias' of LayersBySize has the shape [8] for features of 16x24, but none"),
    (BranchesOnValues, "is not static: it depends on the values"),
    (UsesNumpy, "is not static"),
    (IndexesByMask, "is not static"),
    (Drops, "needs random numbers when it is applied"),
    (DrawsInPython, "gives another output for the same features each time"),
    (BatchNormed, "keeps state in 'batch_stats'"),
    (Logarithm, "makes numbers that are not finite of noise"),
    (Standardised, "makes numbers that are not finite of features that are all zeros"),
    (Root, "has a gradient to its input that is not finite for features that are all zeros"),
    (RootOfParameter, "has a gradient to the parameter 'scale' that is not finite for noise"),
    (MeanOfBatch, "mixes the images of a batch"),
    (Stops, "passes no gradient on to its input"),
]


@pytest.mark.parametrize(("block", "fault"), FAULTS)
def test_a_broken_block_gets_one_sentence_with_its_name_and_fault(block, fault):
    with pytest.raises(UserError) as caught:
        check_block(block)
    sentence = str(caught.value)
    assert fault in sentence
    assert getattr(block, "__name__", "int") in sentence
    assert "\n" not in sentence


def test_an_empty_slot_is_no_block():
    with pytest.raises(UserError, match="the mixer 'none' leaves the slot empty"):
        check_block("none")


@pytest.mark.parametrize(
    ("block", "parameters"),
    # 8 channels: one 8x8 kernel and its bias; four 1x1 kernels between 8 and 4 channels.
    [("sca", 8 * 8 + 8), ("gama(kernel_size=3)", 27), ("squeeze_excite(reduction=4)", 8 * 2 + 2 + 2 * 8 + 8)],
)
def test_the_mixers_of_gamax_have_no_fault(block, parameters):
    facts = check_block(block)
    assert (facts.name, facts.parameters, facts.without_gradient) == (block, parameters, ())
    assert facts.reaches_border
    assert not facts.identity_at_start
    assert facts.gradient_error < GRADIENT_TOLERANCE / 10


@pytest.mark.parametrize("block", ["non_local", "efficient_attention"])
def test_attention_has_no_fault(block):
    facts = check_block(block, channels=4)
    assert facts.without_gradient == ()
    assert facts.reaches_border


def test_a_filter_with_moving_taps_has_no_fault_and_stays_local():
    facts = check_block("pixel_dependent_filter", channels=4)
    assert facts.gradient_error < GRADIENT_TOLERANCE
    assert not facts.reaches_border


class Unused(nn.Module):
    """A 3x3 convolution, and a parameter that is there for nothing."""

    @nn.compact
    def __call__(self, x):
        self.param("forgotten", nn.initializers.ones, (3,))
        return x + nn.Conv(x.shape[-1], (3, 3), kernel_init=nn.initializers.zeros)(x)


def test_what_is_found_out_about_a_block():
    facts = check_block(lambda: Unused(), channels=4)
    assert facts.name == "Unused"
    assert facts.parameters == 4 * 4 * 9 + 4 + 3
    assert facts.without_gradient == ("forgotten",)
    assert facts.identity_at_start
    assert not facts.reaches_border


def test_a_name_of_the_callers_is_used():
    with pytest.raises(UserError, match=r"^the new block maps"):
        check_block(HalfTheChannels, name="the new block")


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, weights: (weights,))


def error_of(function, *arguments):
    return directional_error(
        lambda given: function(*given), lambda given, weights: jax.vjp(function, *given)[1](weights), arguments
    )


def test_the_error_of_a_gradient():
    first, second = np.random.default_rng(0).uniform(1, 2, (2, 6, 5)).astype(np.float32)
    assert error_of(lambda x, y: jnp.sin(x) * y, first, second) < 5e-3
    # The gradient says half of what the differences say.
    assert error_of(lambda x, y: doubled(x * y), first, second) > 0.4
    # Part of the function is missing in its gradient.
    assert error_of(lambda x, y: x + jax.lax.stop_gradient(y), first, second) > 0.4


def test_a_constant_has_no_error_of_its_gradient():
    assert error_of(lambda x: jnp.zeros(3) * x[:3], np.ones(4, np.float32)) == 0


def test_a_gradient_that_is_not_finite_is_not_hidden():
    assert np.isnan(error_of(lambda x: jnp.sqrt(jnp.abs(x)), np.zeros(4, np.float32)))
