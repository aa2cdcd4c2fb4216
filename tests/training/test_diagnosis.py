from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.config import DataConfig, Experiment, ModelConfig, TrainingConfig
from gamax.data.preprocessing import preprocess
from gamax.diffusion.autoencoder import Autoencoder
from gamax.diffusion.denoiser import Denoiser
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.errors import UserError
from gamax.models import create_model
from gamax.models.gama_ir import GAMAIR
from gamax.training.diagnosis import Case, diagnose, load, replay, save

EXPERIMENT = Experiment(
    data=DataConfig(dataset="paired_folder", source="pairs", patch_size=4, augment=False),
    training=TrainingConfig(loss="l1"),
)
KEY = jax.random.key(0)


class Scaled(nn.Module):
    """Multiplies by a parameter; `power` lets large values overflow, or the gradient at zero."""

    power: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x**self.power * self.param("scale", nn.initializers.ones, (3,))


class Toy(nn.Module):
    """Three modules in a row, the middle one inside another."""

    power: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Scaled(name="first")(x)
        x = Middle(self.power, name="middle")(x)
        return Scaled(name="last")(x)


class Middle(nn.Module):
    power: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Scaled(self.power, name="inner")(x)


def images(*inputs: int) -> dict[str, np.ndarray]:
    """A batch with one image of each value."""
    filled = np.stack([np.full((4, 4, 3), value, np.uint8) for value in inputs])
    return {"input": filled, "target": np.full_like(filled, 7)}


def scales(first: float = 1.0, inner: float = 1.0, last: float = 1.0) -> Any:
    def of(value: float) -> dict[str, jax.Array]:
        return {"scale": jnp.full(3, value)}

    return {"first": of(first), "middle": {"inner": of(inner)}, "last": of(last)}


def test_a_finite_step_has_no_origin_and_names_its_largest_numbers():
    found = diagnose(Toy(), EXPERIMENT, Case(5, KEY, scales(inner=-3.0), images(255, 51)))
    assert (found.step, found.images, found.origin, found.parameters, found.gradients) == (5, [], "", [], [])
    assert found.largest_parameter == ("middle/inner/scale", 3.0)
    assert found.largest_activation == ("module middle/inner", pytest.approx(3.0))
    assert found.loss == pytest.approx((3 + 0.6) / 2 + 7 / 255)
    assert "each image by itself has a finite gradient" in found.sentence()


def test_the_image_and_the_module_that_overflow_are_named():
    # (1e20 * 255/255)^2 is too large, (1e20 * 0)^2 is not.
    found = diagnose(Toy(power=2.0), EXPERIMENT, Case(5, KEY, scales(first=1e20), images(0, 0, 255, 255)))
    assert found.images == [2, 3]
    assert found.sentence() == "module middle/inner gave inf for image 2 and 1 other(s) of the batch"
    assert found.parameters == []
    assert found.largest_activation[1] == np.inf


def test_parameters_that_are_not_finite_are_named_with_the_first_module_that_uses_them():
    found = diagnose(Toy(), EXPERIMENT, Case(5, KEY, scales(first=2.0, inner=np.nan, last=np.inf), images(1, 2)))
    assert found.sentence() == "module middle/inner gave nan for image 0 and 1 other(s) of the batch"
    assert found.parameters == ["last/scale", "middle/inner/scale"]


class Wrapper(nn.Module):
    network: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.network(x)


def test_blocks_that_are_computed_again_inside_a_wrapper_are_watched(random_params):
    model = Wrapper(GAMAIR(width=2, depth=3, levels=1, blocks_per_level=1, mixer="none", scan=True, remat=True))
    params = random_params(model, (1, 4, 4, 3))
    params["network"]["bottom_0"]["project"]["bias"] *= jnp.nan
    found = diagnose(model, EXPERIMENT, Case(5, KEY, params, images(255)))
    assert found.origin == "module network/bottom_0/project"


def test_the_denoiser_of_latent_diffusion_is_watched_as_it_is_trained(random_params):
    stage, unet = Autoencoder(4, (1,), blocks=1, codes=2), Denoiser(3, 4, (1,), 1, (), head_channels=4)
    model = LatentDiffusion(stage, unet)
    params = random_params(model, (1, 4, 4, 3))
    params["denoiser"]["middle_0"]["first"]["bias"] *= jnp.nan
    found = diagnose(model, EXPERIMENT, Case(5, KEY, params, images(255)))
    assert found.origin == "module denoiser/middle_0/first"


def test_a_gradient_that_is_not_finite_though_the_loss_is():
    # The square root of 0.
    found = diagnose(Toy(power=0.5), EXPERIMENT, Case(5, KEY, scales(), images(255, 0)))
    assert np.isfinite(found.loss)
    assert found.images == [1]
    assert found.gradients == ["first/scale"]
    assert found.sentence() == "the gradient of first/scale gave nan for image 1 of the batch"


def test_input_that_is_not_finite_is_no_fault_of_the_network(monkeypatch):
    def broken(*arguments: Any) -> Any:
        inputs, targets = preprocess(*arguments)
        return inputs.at[1, 0, 0, 0].set(jnp.inf), targets

    monkeypatch.setattr("gamax.training.diagnosis.preprocess", broken)
    found = diagnose(Toy(), EXPERIMENT, Case(5, KEY, scales(), images(1, 2)))
    assert found.sentence() == "the input gave inf for image 1 of the batch"


def test_a_saved_step_gives_the_same_diagnosis_again(tmp_path, random_params):
    overrides = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1, "remat": True, "scan": True}
    chosen = ModelConfig("gama_ir_tiny", overrides)
    experiment = replace(EXPERIMENT, model=chosen, data=replace(EXPERIMENT.data, augment=True))
    model = create_model(chosen.name, **overrides)
    params = random_params(model, (1, 8, 8, 3))
    params["bottom_0"] = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), params["bottom_0"])
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 256, (2, 8, 8, 3), np.uint8) for name in ("input", "target")}
    case = Case(41, jax.random.key(3), params, batch)

    diagnosis = diagnose(model, experiment, case)
    assert diagnosis.origin.startswith("module bottom_0/")
    report = save(tmp_path / "nonfinite", experiment, case, diagnosis, "mine.py")
    assert str(replay(tmp_path / "nonfinite")) == str(diagnosis)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(report.read_text(), parse_constant=refuse)
    assert (record["found"], record["configuration"], record["step"]) == (diagnosis.sentence(), "mine.py", 41)
    assert record["loss"] == "nan"
    _, restored_experiment, restored = load(tmp_path / "nonfinite")
    assert restored_experiment == experiment
    np.testing.assert_array_equal(jax.random.key_data(restored.key), jax.random.key_data(case.key))


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no report.json; give the folder nonfinite of a run"):
        replay(tmp_path)
