from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from matplotlib.patches import Circle, Rectangle

import gamax
import gamax.lab.study
from gamax.blocks import Conv, pixel_shuffle, pixel_unshuffle
from gamax.cli_lab import Lab
from gamax.errors import UserError
from gamax.lab import effective_field as module
from gamax.lab.effective_field import (
    common_size,
    effective_field,
    energy_within,
    find_subject,
    radius,
    seeded_parameters,
    split_centre,
    study,
)
from gamax.lab.effective_field_plots import field_sheet, within_curves
from gamax.lab.receptive_field import receptive_field
from gamax.models import create_model

TINY = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1}
IMAGE = np.random.default_rng(0).random((16, 16, 3), np.float32)


class Network(nn.Module):
    """`count` 3x3 filters after each other, and `halved` ones at half resolution."""

    count: int = 1
    halved: int = 0
    size_multiple: int = 2
    input_channels: int = 3

    @nn.compact
    def __call__(self, x):
        channels = self.input_channels
        for index in range(self.count):
            x = Conv(channels, 3, name=f"filter_{index}")(x)
        if self.halved:
            x = pixel_unshuffle(x, 2)
            for index in range(self.halved):
                x = Conv(4 * channels, 3, name=f"halved_{index}")(x)
            x = pixel_shuffle(x, 2)
        return x


class Mean(nn.Module):
    """The mean over the image everywhere, added to the image or not."""

    skip: bool = False

    def __call__(self, x):
        return self.skip * x + jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape)


class Shifted(nn.Module):
    """What is two rows up and three columns to the right."""

    def __call__(self, x):
        return jnp.roll(x, (2, -3), (1, 2))


class Pointwise(nn.Module):
    def __call__(self, x):
        return x**2


def test_of_one_filter_it_is_the_squares_of_its_taps(random_params):
    params = random_params(Network(), (1, 16, 16, 3))
    energy = effective_field(Network(), params, IMAGE)
    taps = np.square(params["filter_0"]["kernel"], dtype=np.float64).sum((2, 3))
    expected = np.zeros((16, 16))
    # A convolution of JAX is a correlation: the first tap sees the pixel before.
    expected[7:10, 7:10] = taps
    np.testing.assert_allclose(energy, expected, rtol=1e-6)
    others, centre = split_centre(energy)
    assert centre == pytest.approx(taps[1, 1] / taps.sum())
    assert others.sum() == pytest.approx(1)
    assert others[8, 8] == 0


def test_filters_after_each_other_are_their_correlation(random_params):
    model = Network(count=2, input_channels=1)
    params = random_params(model, (1, 16, 16, 1))
    first, second = (np.asarray(params[f"filter_{index}"]["kernel"], np.float64)[..., 0, 0] for index in (0, 1))
    both = np.zeros((5, 5))
    for row, column in np.ndindex(3, 3):
        both[row : row + 3, column : column + 3] += second[row, column] * first
    energy = effective_field(model, params, IMAGE[..., :1])
    np.testing.assert_allclose(energy[6:11, 6:11], both**2, rtol=1e-4)
    energy[6:11, 6:11] = 0
    assert not energy.any()


def test_a_mean_over_the_image_is_spread_evenly():
    energy = effective_field(Mean(), {}, IMAGE)
    # Three channels, each by itself.
    np.testing.assert_allclose(energy, 3 / 256**2, rtol=1e-6)
    others, centre = split_centre(energy)
    assert centre == pytest.approx(1 / 256)
    squared = np.sort(((np.indices((16, 16)) - 8) ** 2).sum(0).ravel())[1:]
    # Of the 255 other pixels the 128th and, of 95 %, the 243rd.
    assert radius(others, 0.5) == np.sqrt(squared[127])
    assert radius(others, 0.95) == np.sqrt(squared[242])


def test_an_added_image_shows_in_the_centre_only():
    plain, added = (effective_field(Mean(skip=skip), {}, IMAGE) for skip in (False, True))
    np.testing.assert_allclose(split_centre(added)[0], split_centre(plain)[0], rtol=1e-6)
    assert split_centre(added)[1] == pytest.approx((257 / 256) ** 2 / ((257 / 256) ** 2 + 255 / 256**2))


def test_a_shift_is_one_pixel_the_other_way():
    energy = effective_field(Shifted(), {}, IMAGE)
    assert np.argwhere(energy).tolist() == [[6, 11]]
    assert radius(split_centre(energy)[0], 0.5) == radius(split_centre(energy)[0], 0.95) == np.sqrt(13)


def test_the_radius_is_the_nearest_distance_that_holds_the_share():
    energy = np.zeros((6, 6))
    # At distances of 1, the root of 2, 2 and 3 from row 3 and column 3.
    energy[3, 4], energy[2, 2], energy[5, 3], energy[0, 3] = 0.4, 0.1, 0.3, 0.2
    assert [radius(energy, share) for share in (0.3, 0.4, 0.41, 0.5, 0.8, 0.95, 1.0)] == pytest.approx(
        [1, 1, np.sqrt(2), np.sqrt(2), 2, 3, 3]
    )
    distances, within = energy_within(energy)
    assert within[distances < 1].tolist() == [0]
    assert within[-1] == 1


def test_what_has_no_field_is_refused():
    with pytest.raises(UserError, match="its output depends on no pixel but the one at the same place"):
        split_centre(effective_field(Pointwise(), {}, IMAGE))
    with pytest.raises(UserError, match="its derivatives are not finite"):
        split_centre(effective_field(Pointwise(), {}, np.full_like(IMAGE, np.nan)))


@pytest.mark.parametrize("model", [Network(3), Network(1, 2), create_model("gama_ir_tiny", **TINY, mixer="none")])
def test_outside_of_the_theoretical_field_there_is_nothing(model):
    field = receptive_field(model, length=64)
    assert field is not None
    image = np.random.default_rng(0).random((48, 48, 3), np.float32)
    energy = effective_field(model, seeded_parameters(model, (0,)), image)
    for axis in (0, 1):
        seen = np.flatnonzero(energy.any(axis))
        assert 1 < seen[-1] - seen[0] + 1 <= field
    # The whole theoretical field of filters at full resolution has energy.
    if model == Network(3):
        assert np.count_nonzero(energy) == field**2


def test_random_parameters_follow_the_seed():
    model = create_model("gama_ir_tiny", **TINY)
    first, again, other = (seeded_parameters(model, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    for one, two, three in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(np.sort(one.ravel()), np.sort(three.ravel()))
        assert one.size < 9 or (one != three).any()


def test_the_size_is_one_that_no_network_pads():
    tiny, lir, dmphn = (create_model(name) for name in ("gama_ir_tiny", "lir", "dmphn_1_2_4"))
    assert common_size([tiny], 33) == 40
    assert common_size([tiny, lir], 33) == 128
    assert common_size([dmphn, lir], 130) == 160


@pytest.fixture
def run_study(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROW", 64)
    # As if nobody changed the code meanwhile.
    monkeypatch.setattr(gamax.lab.study, "source_sha256", lambda: "the same")

    def run(folder="study", **options):
        defaults: dict[str, Any] = {"networks": ("gama_ir_tiny",), "overrides": TINY, "size": 17, "images": 2}
        defaults |= {"content": "noise", "seed": 0, "folder": tmp_path / folder, "reproduce": "gamax lab"}
        return study(**{**defaults, **options})

    return run


def test_the_study_follows_its_seed_and_goes_on(run_study, tmp_path, monkeypatch):
    first, again, other = run_study("a"), run_study("b"), run_study("c", seed=1)
    (found,) = first.record["networks"]
    assert first.record == again.record
    assert found["radius_50"] != other.record["networks"][0]["radius_50"]
    assert len(found["radius_50"]) == len(found["centre"]) == 2
    assert found["theoretical"] is None
    (row,) = first.tables["Effective receptive fields"]
    assert row["theoretical field"] == "whole image"
    assert row["50 % within, px"].startswith(f"{np.mean(found['radius_50']):.1f} ± ")

    trial = json.loads((tmp_path / "a" / "trials.jsonl").read_text())["result"]
    energy = np.asarray(trial["energy"])
    # A multiple of what the network needs.
    assert energy.shape == (18, 18)
    assert energy.sum() == pytest.approx(1, abs=1e-4)
    distances, within = energy_within(energy)
    assert 1 - within[distances <= 4.5][-1] == pytest.approx(np.mean(found["beyond_quarter"]), abs=1e-4)

    monkeypatch.setattr(module, "effective_field", None)
    assert run_study("a").record == first.record


def test_trained_networks_keep_their_parameters(run_study, tmp_path):
    overrides = {**TINY, "mixer": "none"}
    params = seeded_parameters(create_model("gama_ir_tiny", **overrides), (5,))
    path = tmp_path / "weights.safetensors"
    gamax.save_weights(path, params, "gama_ir_tiny", overrides)
    subject = find_subject(str(path), {"width": 6})
    assert subject.model == create_model("gama_ir_tiny", **overrides)
    jax.tree.map(np.testing.assert_array_equal, subject.params, params)

    report = run_study(networks=(str(path),), images=1, size=48)
    image = np.random.default_rng((0, 0)).random((48, 48, 3), np.float32)
    energy, _ = split_centre(effective_field(subject.model, params, image))
    (found,) = report.record["networks"]
    assert found["radius_50"] == [radius(energy, 0.5)]
    assert found["theoretical"] == 14
    assert report.tables["Effective receptive fields"][0]["parameters"] == "trained"


def test_photographs_are_taken_in_turn(monkeypatch):
    photographs = [np.full((40, 50, 3), value, np.uint8) for value in (51, 102)]
    for number, value in ((0, 0.2), (1, 0.4), (2, 0.2)):
        for model in (Network(), Network(input_channels=1), Network(input_channels=6)):
            image = module._image(model, photographs, 32, (0, number))
            assert image.shape == (32, 32, model.input_channels)
            np.testing.assert_allclose(image, value, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 8}, "--size must be at least 16, --images at least 1 and --seed at least 0, not 8, 2 and"),
        ({"seed": -1}, "--seed at least 0"),
        ({"images": 0}, "--images at least 1"),
        ({"networks": ("gama_ir_tinny",)}, "no network, run folder or weight file 'gama_ir_tinny' .did you mean"),
        ({"networks": (".",)}, "holds no weights.safetensors"),
        ({"networks": ("unet",)}, "unet has no option 'depth'"),
        ({"networks": ("vq_small",), "overrides": {}}, "vq_small looks up codes in a table"),
        ({"networks": ("ldm_small",), "overrides": {}}, "ldm_small looks up codes in a table"),
        (
            {"networks": ("swintormer_prior",), "overrides": {}, "content": "photographs"},
            "swintormer_prior takes more than a photograph as its input; use --content noise",
        ),
        ({"content": "photographs", "size": 4096}, "--content photographs has images of 3.. pixels: 4096 are too many"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(run_study, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        run_study(**options)
    assert not (tmp_path / "study").exists()


def test_the_pictures_show_the_radii():
    energy = np.full((16, 16), 1 / 256)
    row = {"energy": energy.tolist(), "radius_50": [2.0, 4.0], "radius_95": [5.0, 6.0]}
    rows = [
        {**row, "name": "local", "theoretical": 9},
        {**row, "name": "long/" * 20 + "weights.safetensors", "theoretical": None},
    ]
    local, whole, *_ = field_sheet(rows, "2 images").axes
    assert [patch.radius for patch in local.patches if isinstance(patch, Circle)] == [3.0, 5.5]
    (square,) = (patch for patch in local.patches if isinstance(patch, Rectangle))
    assert (square.get_x(), square.get_width(), square.get_height()) == (-4.5, 9, 9)
    assert not [patch for patch in whole.patches if isinstance(patch, Rectangle)]
    assert whole.get_title().startswith("…")
    assert whole.get_title().split("\n")[1:] == ["50 %: 3.0 px, 95 %: 5.5 px", "theoretical: whole image"]
    # The middle of the centre pixel is at 0.
    assert tuple(local.images[0].get_extent()) == (-8.5, 7.5, 7.5, -8.5)

    curves = within_curves({"local": energy_within(energy)}, energy_within(energy), "2 images")
    assert [line.get_label() for line in curves.axes[0].lines][:2] == ["local", "spread evenly"]
    assert np.asarray(curves.axes[0].lines[0].get_ydata())[-1] == pytest.approx(1)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "ROW", 64)
    arguments = ["--networks", "gama_ir_tiny", "--overrides", *(f"{key}={value}" for key, value in TINY.items())]
    arguments += ["--size", "17", "--images", "1", "--content", "photographs", "--output", str(tmp_path)]
    tyro.cli(Lab, args=["receptive-field", *arguments], config=(tyro.conf.OmitArgPrefixes,)).run()
    names = {"receptive_field.json", "receptive_field.md", "fields.png", "energy_within.png", "trials.jsonl"}
    assert {path.name for path in Path(tmp_path).iterdir() if path.suffix != ".lock"} >= names
    assert "18 pixels instead of 17" in capsys.readouterr().out
    record = json.loads((tmp_path / "receptive_field.json").read_text())
    assert record["settings"]["size"] == 18
    assert record["networks"][0]["radius_50_spread"]["count"] == 1


def test_a_mixer_that_cannot_take_the_row_of_the_theoretical_field_is_refused_first(run_study, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROW", 2048)
    with pytest.raises(UserError, match=r"gama_ir_tiny cannot run on 16x2048 pixels \(NonLocal"):
        run_study(tmp_path, networks=("gama_ir_tiny",), overrides={"mixer": "non_local"})
