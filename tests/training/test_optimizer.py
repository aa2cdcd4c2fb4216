from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.config import CosinePeriod, OptimizerConfig
from gamax.training.optimizer import cosine_schedule, make_optimizer, make_schedule


@pytest.mark.parametrize("case", ["nafnet_true_cosine_200k", "nafnet_true_cosine_400k"])
def test_the_schedule_is_that_of_nafnet(case, shared_folder):
    cases = json.loads((shared_folder / "fixtures" / "schedule" / "learning_rates.json").read_text())["cases"]
    (fixture,) = (item for item in cases if item["name"] == case)
    options = fixture["config"]
    schedule = jax.jit(cosine_schedule(OptimizerConfig(options["base_lr"], options["eta_min"]), options["T_max"]))
    rates = [float(schedule(jnp.int32(step))) for step in fixture["steps"]]
    # Relative as the fixture suggests; absolute, half a unit in the last place of a float32 cosine near -1.
    np.testing.assert_allclose(rates, fixture["lr"], rtol=1e-6, atol=options["base_lr"] / 2 * 2**-24)


@pytest.mark.parametrize(
    "case", ["restormer_300k", "lir_derain_450k_450k", "lir_dehaze_400k_350k", "restart_cyclic_short"]
)
def test_the_schedule_is_that_of_restormer_and_lir(case, shared_folder):
    cases = json.loads((shared_folder / "fixtures" / "schedule" / "learning_rates.json").read_text())["cases"]
    (fixture,) = (item for item in cases if item["name"] == case)
    options = fixture["config"]
    periods = zip(options["periods"], options["eta_mins"], options["restart_weights"], strict=True)
    config = OptimizerConfig(options["base_lr"], periods=tuple(CosinePeriod(*period) for period in periods))
    schedule = jax.jit(make_schedule(config, sum(options["periods"])))
    rates = [float(schedule(jnp.int32(step))) for step in fixture["steps"]]
    np.testing.assert_allclose(rates, fixture["lr"], rtol=1e-6)


def test_after_the_last_period_the_learning_rate_stays():
    config = OptimizerConfig(1e-3, periods=(CosinePeriod(4, 1e-3), CosinePeriod(6, 1e-5, 0.5)))
    rates = jax.vmap(make_schedule(config, 20))(jnp.arange(20))
    np.testing.assert_allclose(rates[:5], 1e-3, rtol=1e-6)
    assert rates[5] == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi / 6)) / 2, rel=1e-5)
    np.testing.assert_allclose(rates[10:], 1e-5, rtol=1e-5)


def closed_form(step: int, config: OptimizerConfig, steps: int) -> float:
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    angle = math.pi * (step - config.warmup_steps) / (steps - config.warmup_steps)
    low, high = config.final_learning_rate, config.learning_rate
    return low + (high - low) / 2 * (1 + math.cos(min(angle, math.pi)))


@pytest.mark.parametrize("warmup", [0, 1, 30])
def test_the_schedule_is_linear_then_half_a_cosine_then_constant(warmup):
    config = OptimizerConfig(2e-3, 1e-5, warmup_steps=warmup)
    steps = np.arange(120)
    rates = jax.jit(jax.vmap(cosine_schedule(config, 100)))(steps)
    expected = [closed_form(step, config, 100) for step in range(120)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=2e-3 * 2**-23)
    assert rates.argmax() in (max(warmup - 1, 0), warmup)
    np.testing.assert_allclose(rates[100:], 1e-5, rtol=1e-6)


def adamw(config: OptimizerConfig, params: np.ndarray, gradients: list[np.ndarray], steps: int) -> np.ndarray:
    """AdamW as PyTorch has it: decay times learning rate, moments with bias correction, epsilon 1e-8."""
    first = second = np.zeros_like(params)
    for step, gradient in enumerate(gradients):
        norm = math.sqrt((gradient**2).sum())
        if config.gradient_clip is not None and norm > config.gradient_clip:
            gradient = gradient * config.gradient_clip / norm
        rate = closed_form(step, config, steps)
        first = config.beta1 * first + (1 - config.beta1) * gradient
        second = config.beta2 * second + (1 - config.beta2) * gradient**2
        corrected = first / (1 - config.beta1 ** (step + 1))
        scale = np.sqrt(second / (1 - config.beta2 ** (step + 1))) + 1e-8
        params = params - rate * config.weight_decay * params - rate * corrected / scale
    return params


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [None, 0.01, 100.0])
def test_updates_are_those_of_adamw_with_decoupled_decay_and_clipping(decay, clip):
    config = OptimizerConfig(1e-2, 1e-4, 2, beta1=0.9, beta2=0.95, weight_decay=decay, gradient_clip=clip)
    rng = np.random.default_rng(0)
    params, gradients = (
        rng.normal(size=(3, 4)),
        list(rng.normal(size=(6, 3, 4)) * np.array([1, 2, 0.1, 5, 1, 3])[:, None, None]),
    )
    optimizer = make_optimizer(config)

    @jax.jit
    def update(params, state, gradient, step):
        updates, state = optimizer.update(gradient, state, params)
        rate = cosine_schedule(config, 6)(step)
        return jax.tree.map(lambda param, update: param - rate * update, params, updates), state

    values = {"a": jnp.asarray(params[:1], jnp.float32), "b": jnp.asarray(params[1:], jnp.float32)}
    state = optimizer.init(values)
    for step, gradient in enumerate(gradients):
        # In two arrays: the norm that is clipped is that of all together.
        pieces = {"a": jnp.asarray(gradient[:1], jnp.float32), "b": jnp.asarray(gradient[1:], jnp.float32)}
        values, state = update(values, state, pieces, step)
    result = np.concatenate([values["a"], values["b"]])
    np.testing.assert_allclose(result, adamw(config, params, gradients, 6), atol=1e-6)
    assert abs(result - params).max() > 1e-2
