from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from gamax.data.builders import BUILDERS
from gamax.data.examples import join_views
from gamax.data.images import to_float, to_integers
from gamax.errors import UserError
from gamax.evaluation.alignment import MASKED_METRICS
from gamax.evaluation.metrics import METRICS, PLANES, SMALLEST_SIDE, psnr
from gamax.evaluation.protocols import PROTOCOLS, find_protocol, protocol_example, protocol_input

NAMES = (
    *("sidd-srgb", "gopro", "gopro-tlc", "hide", "realblur-ecc", "rain-y-matlab", "dpdd-single8", "dpdd-dual16"),
    *("sots", "reds-val300", "lir-crop32", "dnd-submit", "polyu", "paired-rgb", "reconstruction", "rain800-rgb"),
    "gauss-jpeg-color-25",
    *(f"gauss-{kind}-{sigma}" for kind in ("color", "gray") for sigma in (15, 25, 50)),
)


def image(seed: int, height: int = 6, width: int = 7, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)


def test_the_protocols_of_the_field_are_there():
    assert set(PROTOCOLS) == set(NAMES)


def test_the_guide_names_every_protocol_and_its_ssim():
    guide = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    rows = {}
    for line in guide.partition("## Protocols")[2].partition("\n- ")[0].splitlines():
        for name in re.findall("`([a-z0-9-]+)`", line.split("|")[1]) if line.startswith("| `") else ():
            rows[name] = line
    assert set(rows) == set(PROTOCOLS)
    for name, line in rows.items():
        protocol = PROTOCOLS[name]
        assert ("not rounded |" in line) == (protocol.quantization == "none")
        variants = {score.metric.removeprefix("ssim-") for score in protocol.scores if score.name.startswith("ssim")}
        assert set(re.findall("SSIM `([^`]+)`", line)) == variants
        assert ("local conversion of 384 pixels" in line) == (protocol.local_window == 384)


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_is_complete_and_consistent(name):
    protocol = find_protocol(name)
    assert protocol.name == name
    assert protocol.description
    assert protocol.source
    for part in protocol.datasets:
        builder = BUILDERS[part.dataset]
        assert builder.COUNTS[part.split] == part.images
        assert builder.CHANNELS in (1, 3)
    assert len({part.name for part in protocol.datasets}) == len(protocol.datasets)
    assert ("noise" in protocol.inputs) == (protocol.noise_sigma is not None) == (protocol.noise_seed is not None)
    names = [score.name for score in protocol.scores]
    assert names == list(dict.fromkeys(names))
    assert (names[:1] == ["psnr"]) == (protocol.inputs != "inputs only")
    for score in protocol.scores:
        assert score.metric in METRICS
        assert score.metric in SMALLEST_SIDE
        assert score.plane in PLANES
        assert score.plane == "gray" or protocol.channels == 3
        # Rounded images are scored by their levels; floats are never scaled to 255.
        assert score.peak == (255 if protocol.quantization == "uint8" and protocol.alignment == "none" else 1)
        if protocol.alignment == "ecc":
            # `align` works on RGB, and the masked metrics have no border of their own.
            assert (score.metric in MASKED_METRICS, score.plane, score.border) == (True, "rgb", 0)
    assert json.loads(json.dumps(dataclasses.asdict(protocol)))["name"] == name


@pytest.mark.parametrize(
    ("name", "variant", "plane", "peak", "quantization"),
    [
        ("sidd-srgb", "ssim-3d-rgb", "rgb", 1, "none"),
        ("gopro", "ssim-3d-rgb", "rgb", 255, "uint8"),
        ("gopro-tlc", "ssim-3d-rgb", "rgb", 255, "uint8"),
        ("hide", "ssim-3d-rgb", "rgb", 255, "uint8"),
        ("reds-val300", "ssim-3d-rgb", "rgb", 255, "uint8"),
        ("realblur-ecc", "ssim-2d-valid", "rgb", 1, "uint8"),
        ("rain-y-matlab", "ssim-2d-valid", "y-studio-rounded", 255, "uint8"),
        ("dpdd-single8", "ssim-uniform-7x7", "rgb", 1, "none"),
        ("dpdd-dual16", "ssim-uniform-7x7", "rgb", 1, "none"),
        ("sots", "ssim-wang-downsampled", "rgb", 1, "none"),
        ("lir-crop32", "ssim-2d-valid", "rgb", 255, "uint8"),
        ("gauss-color-25", "ssim-2d-valid", "rgb", 255, "uint8"),
        ("gauss-gray-25", "ssim-2d-valid", "gray", 255, "uint8"),
    ],
)
def test_each_field_has_its_own_scores(name, variant, plane, peak, quantization):
    protocol = find_protocol(name)
    first, second = protocol.scores[:2]
    assert (first.metric, first.plane, first.peak) == ("psnr", plane, peak)
    assert (second.metric, second.plane, second.peak) == (variant, plane, peak)
    assert protocol.quantization == quantization


def test_the_conversion_to_local_statistics_is_part_of_two_protocols():
    windows = {name: protocol.local_window for name, protocol in PROTOCOLS.items() if protocol.local_window}
    assert windows == {"gopro-tlc": 384, "reds-val300": 384, "paired-rgb": "as the network has it"}


def test_dpdd_has_37_scenes_indoors_and_39_outdoors():
    indoor = find_protocol("dpdd-single8").indoor_positions
    assert indoor == find_protocol("dpdd-dual16").indoor_positions
    assert (len(set(indoor)), 76 - len(set(indoor)), max(indoor)) == (37, 39, 75)


@pytest.mark.parametrize(
    ("sigma", "first_pixel", "unclipped", "rounded"),
    [
        (15, (0.7704345, 0.6588328, 0.66149443), 24.625360, 24.905096),
        (25, (0.839613, 0.67452526, 0.6998763), 20.188385, 20.641955),
        (50, (1.0125593, 0.7137563, 0.795831), 14.167785, 15.283892),
    ],
)
def test_the_noise_is_that_of_the_field(sigma, first_pixel, unclipped, rounded):
    crop = data.astronaut()[:256, 128:384]
    noisy = protocol_input(find_protocol(f"gauss-color-{sigma}"), crop)
    assert noisy.dtype == np.float32
    # The figures are printed with all the digits of a float32.
    np.testing.assert_array_equal(noisy[0, 0], np.array(first_pixel, np.float32))
    assert round(psnr(noisy, to_float(crop), 1), 6) == unclipped
    assert round(psnr(to_integers(noisy), crop, 255), 6) == rounded


def test_a_noisy_image_that_is_stored_as_jpeg_is_what_another_library_reads():
    crop = data.astronaut()[:96, 160:256]
    noisy = to_integers(protocol_input(PROTOCOLS["gauss-color-25"], crop))
    stored = protocol_input(PROTOCOLS["gauss-jpeg-color-25"], crop)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90, subsampling="4:2:0")
    # Two builds of libjpeg may round a few coefficients differently.
    difference = np.abs(stored * 255 - np.asarray(Image.open(file), np.float32))
    assert difference.mean() < 0.5
    assert np.abs(stored * 255 - noisy).mean() > 10


def test_every_image_has_the_same_noise():
    protocol, clean = PROTOCOLS["gauss-color-25"], np.full((4, 5, 3), 128, np.uint8)
    np.testing.assert_array_equal(protocol_input(protocol, clean), protocol_input(protocol, clean))


def test_16_bit_targets_get_the_noise_of_8_bit_ones():
    protocol, clean = PROTOCOLS["gauss-color-50"], np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    # 257 = 65535 / 255: the same values in both depths, up to a rounding of float32.
    deep = protocol_input(protocol, clean.astype(np.uint16) * 257)
    np.testing.assert_allclose(deep, protocol_input(protocol, clean), atol=2e-7)


def test_gray_images_get_the_first_draws_of_the_generator():
    clean = image(0)
    example = protocol_example(PROTOCOLS["gauss-gray-15"], {"name": "a", "target": clean})
    # As the published code reads it.
    file = cv2.imencode(".png", clean[..., ::-1])[1]
    gray = cv2.imdecode(file, cv2.IMREAD_GRAYSCALE)[..., np.newaxis]
    np.testing.assert_array_equal(example["target"], gray)
    noise = np.random.RandomState(0).normal(0, 15 / 255, (6, 7, 1))
    np.testing.assert_allclose(example["input"], gray / 255 + noise, atol=1e-7)


def test_lir_cuts_after_the_noise():
    protocol, clean = PROTOCOLS["lir-crop32"], image(0, 40, 70)
    example = protocol_example(protocol, {"name": "a", "target": clean})
    np.testing.assert_array_equal(example["target"], clean[:32, :64])
    np.testing.assert_array_equal(example["input"], protocol_input(protocol, clean)[:32, :64])
    # Cutting first would draw other noise.
    assert not np.array_equal(example["input"], protocol_input(protocol, clean[:32, :64]))


def test_lir_takes_inputs_that_the_data_brings():
    example = protocol_example(
        PROTOCOLS["lir-crop32"], {"name": "a", "input": image(1, 40, 70), "target": image(0, 40, 70)}
    )
    np.testing.assert_array_equal(example["input"], image(1, 40, 70)[:32, :64])


def test_dpdd_is_read_as_opencv_reads_it():
    deep = image(0, 64, 64, dtype=np.uint16)
    encoded = cv2.imencode(".png", deep[..., ::-1])[1]
    by_default = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
    example = protocol_example(PROTOCOLS["dpdd-single8"], {"name": "a", "input": deep, "target": deep})
    np.testing.assert_array_equal(example["target"], by_default)
    np.testing.assert_array_equal(example["input"], by_default)
    shallow = image(0)
    unchanged = protocol_example(PROTOCOLS["dpdd-single8"], {"name": "a", "input": shallow, "target": shallow})
    np.testing.assert_array_equal(unchanged["input"], shallow)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_prior_keeps_its_16_bits_where_photographs_are_read_with_8(dtype):
    protocol, photo, prior = PROTOCOLS["dpdd-single8"], image(0, dtype=dtype), image(1, dtype=np.uint16)
    plain = protocol_example(protocol, {"name": "a", "input": photo, "target": photo})
    joined = join_views({"name": "a", "input": photo, "target": photo, "prior": prior})
    example = protocol_example(protocol, joined, prior=True)
    np.testing.assert_array_equal(example["target"], plain["target"])
    np.testing.assert_array_equal(example["input"][..., 3:], prior)
    np.testing.assert_array_equal(example["input"][..., :3], 257 * plain["input"].astype(np.uint16))


def test_16_bit_images_stay_as_they_are_elsewhere():
    deep = image(0, dtype=np.uint16)
    views = np.concatenate([deep, deep[::-1]], axis=-1)
    example = protocol_example(PROTOCOLS["dpdd-dual16"], {"name": "a", "input": views, "target": deep})
    np.testing.assert_array_equal(example["input"], views)
    np.testing.assert_array_equal(example["target"], deep)


@pytest.mark.parametrize(
    ("name", "example", "sentence"),
    [
        ("paired-rgb", {"target": image(0)}, r"protocol paired-rgb needs pairs.*'a' has no input"),
        ("gauss-color-25", {"input": image(0)}, "protocol gauss-color-25 needs targets, but 'a' has none"),
        ("dpdd-dual16", {"input": image(0), "target": image(0)}, "needs inputs of 6 channels, but 'a' has 3"),
        ("gopro", {"input": image(0), "target": image(0, 5)}, r"'a' differ in size \(7x6 and 7x5 pixels\)"),
    ],
)
def test_an_example_that_does_not_fit_is_named(name, example, sentence):
    with pytest.raises(UserError, match=sentence):
        protocol_example(PROTOCOLS[name], {"name": "a", **example})


def test_an_input_without_the_prior_that_a_network_needs_is_named():
    with pytest.raises(UserError, match="needs inputs of 6 channels, the last 3 a diffusion prior, but 'a' has 3"):
        protocol_example(PROTOCOLS["gopro"], {"name": "a", "input": image(0), "target": image(0)}, prior=True)


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown protocol 'gauss-colour-25' \(did you mean 'gauss-color-25'\?\)"):
        find_protocol("gauss-colour-25")


def test_to_integers_clamps_and_rounds():
    values = np.array([[[-0.1, 0.0, 0.4 / 255, 0.6 / 255, 127.6 / 255, 254.4 / 255, 254.6 / 255, 1.0, 7.0]]])
    np.testing.assert_array_equal(to_integers(values), [[[0, 0, 0, 1, 128, 254, 255, 255, 255]]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_one_and_8_bits_survive_the_way_there_and_back(dtype):
    values = np.linspace(0, np.iinfo(dtype).max, 256).round().astype(dtype).reshape(16, 16, 1)
    floats = to_float(values)
    assert (floats.dtype, floats.min(), floats.max()) == (np.float32, 0, 1)
    np.testing.assert_array_equal(to_integers(floats).ravel(), np.arange(256))
