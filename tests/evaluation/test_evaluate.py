from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gamax.blocks.padding import pad_to_multiple
from gamax.data.images import to_integers
from gamax.errors import UserError
from gamax.evaluation.alignment import align, masked_psnr, masked_ssim
from gamax.evaluation.evaluate import (
    PICTURED,
    Evaluation,
    check_examples,
    check_network,
    check_scored,
    evaluate,
    restore_inputs,
)
from gamax.evaluation.metrics import METRICS, ssim_valid
from gamax.evaluation.pictures import save_comparison
from gamax.evaluation.protocol_data import protocol_examples
from gamax.evaluation.protocols import PROTOCOLS, Protocol, find_protocol, protocol_example, protocol_input
from gamax.evaluation.restorer import Restorer
from gamax.models.restormer import Restormer
from gamax.models.swintormer import Swintormer


class Darken(nn.Module):
    """A network whose result is known: of several views it darkens the first."""

    factor: float = 0.9
    dtype: Any = np.float32
    size_multiple: int = 1
    input_channels: int = 3
    view_order: str = "left-right"
    local_window: int | None = None
    prior: bool = False

    def __call__(self, images):
        return self.factor * images[..., :3]


class AddMean(Darken):
    """Pads as networks do; its result depends on every pixel that it is given."""

    size_multiple: int = 8

    def __call__(self, images):
        mean = pad_to_multiple(images, self.size_multiple).mean((1, 2), keepdims=True)
        return images + mean - 0.5


PAIRED, NOISE = find_protocol("paired-rgb"), find_protocol("gauss-color-25")
DARKEN = Restorer(Darken(), {})


@pytest.fixture(scope="module")
def examples() -> list[dict[str, object]]:
    target, rng = data.astronaut()[::4, ::4], np.random.default_rng(0)
    noisy = [np.clip(target + rng.normal(0, sigma, target.shape), 0, 255).astype(np.uint8) for sigma in (4, 40, 9, 20)]
    return [{"name": f"image{index}", "input": image, "target": target} for index, image in enumerate(noisy)]


def test_pairs_are_scored_as_8_bit_images(examples):
    evaluation = evaluate(DARKEN, examples, PAIRED)
    assert [row["name"] for row in evaluation.rows] == ["image0", "image1", "image2", "image3"]
    for row, example in zip(evaluation.rows, examples, strict=True):
        restored = np.rint(example["input"] * 0.9).astype(np.uint8)
        target = example["target"]
        assert row["psnr_input"] == pytest.approx(peak_signal_noise_ratio(target, example["input"]), abs=1e-5)
        # 0.9 times a multiple of 5 may fall on either side of a half.
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(target, restored), abs=0.05)
        assert row["ssim"] == pytest.approx(ssim_valid(restored, target, 255), abs=1e-3)


def test_the_means_are_those_of_the_rows(examples):
    evaluation = evaluate(DARKEN, examples, PAIRED)
    record = evaluation.record()
    for metric in ("psnr_input", "psnr", "ssim"):
        assert evaluation.mean(metric) == record[metric] == np.mean([row[metric] for row in evaluation.rows])
    assert record["protocol"] == "paired-rgb"
    assert (record["images"], record["per_image"]) == (4, evaluation.rows)
    assert json.loads(json.dumps(record))["protocol_details"]["scores"][1]["metric"] == "ssim-2d-valid"


def test_a_noise_protocol_makes_its_input_from_the_target(examples):
    target = examples[0]["target"]
    (row,) = evaluate(DARKEN, [{"name": "clean", "target": target}], NOISE).rows
    noisy = protocol_input(NOISE, target)
    expected = 10 * np.log10(1 / np.mean((noisy.astype(np.float64) - target / 255) ** 2))
    assert row["psnr_input"] == pytest.approx(expected, abs=1e-5)
    restored = to_integers(np.float32(0.9) * noisy)
    assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(target, restored), abs=1e-3)


def test_a_noise_protocol_ignores_an_input_that_the_data_brings(examples):
    example = examples[1]
    alone = {"name": example["name"], "target": example["target"]}
    assert evaluate(DARKEN, [example], NOISE).rows == evaluate(DARKEN, [alone], NOISE).rows


def test_the_worst_are_kept_for_the_picture_worst_first(examples):
    evaluation = evaluate(DARKEN, examples, PAIRED)
    worst = sorted(evaluation.rows, key=lambda row: row["psnr"])[:PICTURED]
    assert [item.name for item in evaluation.worst] == [row["name"] for row in worst]
    assert evaluation.worst[0].degraded.dtype == np.uint8
    np.testing.assert_array_equal(evaluation.worst[0].degraded, examples[1]["input"])


def test_the_table_ends_with_the_mean(examples):
    table = evaluate(DARKEN, examples, PAIRED).table()
    assert all(tuple(row) == ("image", "input PSNR", "PSNR", "SSIM") for row in table)
    assert [row["image"] for row in table] == ["image0", "image1", "image2", "image3", "mean of 4"]


def test_progress_counts_finished_images(examples):
    done: list[int] = []
    evaluate(DARKEN, examples, PAIRED, progress=done.append)
    assert done == [1, 2, 3, 4]


def test_16_bit_pairs_are_scored_as_8_bit_images(examples):
    deep = [{**item, **{key: item[key].astype(np.uint16) * 257 for key in ("input", "target")}} for item in examples]
    for row, expected in zip(evaluate(DARKEN, deep, PAIRED).rows, evaluate(DARKEN, examples, PAIRED).rows, strict=True):
        assert row["psnr_input"] == pytest.approx(expected["psnr_input"], abs=1e-5)
        assert row["psnr"] == pytest.approx(expected["psnr"], abs=0.05)


def test_a_protocol_on_pairs_needs_inputs(examples):
    with pytest.raises(UserError, match=r"protocol paired-rgb needs pairs.*'lonely' has no input"):
        check_examples([{"name": "lonely", "target": examples[0]["target"]}], PAIRED, DARKEN)


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(UserError, match="no image"):
        check_examples([], PAIRED, DARKEN)


def test_an_image_too_small_for_ssim_is_named():
    with pytest.raises(UserError, match="'stamp' has 30x10 pixels; SSIM needs at least 11 a side"):
        check_examples([{"name": "stamp", "target": np.zeros((10, 30, 3), np.uint8)}], NOISE, DARKEN)


def test_a_pair_of_different_sizes_is_named(examples):
    target = examples[0]["target"]
    with pytest.raises(UserError, match="odd"):
        check_examples([{"name": "odd", "input": target[:-1], "target": target}], PAIRED, DARKEN)


def test_the_record_is_json_also_when_an_image_is_restored_perfectly(examples):
    target = examples[0]["target"]
    perfect = Restorer(Darken(1.0), {})
    record = evaluate(perfect, [{"name": "equal", "input": target, "target": target}], PAIRED).record()
    # JSON has no infinity; Python's writer makes one up unless told not to.
    json.dumps(record, allow_nan=False)


def test_the_input_of_an_equal_pair_has_no_error(examples):
    target = examples[0]["target"]
    row = evaluate(DARKEN, [{"name": "equal", "input": target, "target": target}], PAIRED).rows[0]
    assert row["psnr_input"] == np.inf


def test_an_output_that_is_not_finite_has_no_score(examples):
    with pytest.raises(UserError, match="output for 'image0' is not finite"):
        evaluate(Restorer(Darken(np.nan), {}), examples, PAIRED)


def network(protocol: Protocol, factor: float = 0.9, **fields: Any) -> Restorer:
    """The network that a protocol asks for."""
    channels = protocol.channels * protocol.views
    return Restorer(Darken(factor, input_channels=channels, local_window=protocol.local_window, **fields), {})


def pair(protocol: Protocol, height: int = 33, width: int = 34, dtype: type = np.uint8) -> dict[str, Any]:
    """A photograph and a noisy copy of it, in one or two views."""
    white = np.iinfo(dtype).max
    target = cv2.resize(data.astronaut()[100:300, 100:300], (width, height)).astype(np.float64) / 255
    rng = np.random.default_rng(0)
    source = [np.clip(target + rng.normal(0, 0.1, target.shape), 0, 1) for _ in range(protocol.views)]
    stored = [np.rint(image * white).astype(dtype) for image in (np.concatenate(source, -1), target)]
    return {"name": "a", "input": stored[0], "target": stored[1]}


def luma(image: np.ndarray) -> np.ndarray:
    """Of an 8-bit image, in 16 to 235."""
    return 16 + image @ np.array([65.481, 128.553, 24.966])[:, np.newaxis] / 255


FACTOR = 0.907
"""Times a level of 8 bits, this is never near a half, which could be rounded to either side."""
FLOATS = ("sidd-srgb", "sots", "dpdd-single8", "dpdd-dual16")
SSIM = {
    **dict.fromkeys(("sidd-srgb", "gopro", "gopro-tlc", "hide", "reds-val300"), "ssim-3d-rgb"),
    **dict.fromkeys(("dpdd-single8", "dpdd-dual16"), "ssim-uniform-7x7"),
    "sots": "ssim-wang-downsampled",
}


def psnr_by_hand(first: np.ndarray, second: np.ndarray, peak: float) -> float:
    return 10 * np.log10(peak**2 / np.mean((first - second) ** 2))


def by_hand(name: str, views: list[np.ndarray], target: np.ndarray) -> dict[str, float]:
    """The scores of a network that darkens the first view; images are float64 with white at 1."""
    restored, peak, scores = np.clip(FACTOR * views[0], 0, 1), 1, {}
    if name not in FLOATS:
        peak = 255
        restored, target, *views = (255 * image for image in (restored, target, *views))
        restored = np.rint(restored)
    if name == "lir-crop32":
        planes = luma(restored), luma(target)
        scores = {"psnr_y": psnr_by_hand(*planes, 255), "ssim_y": METRICS["ssim-2d-valid"](*planes, 255)}
    if name == "rain-y-matlab":
        restored, target, *views = (np.round(luma(image)) for image in (restored, target, *views))
    if name.startswith("dpdd"):
        scores = {"mae": np.abs(restored - target).mean()}
    return {
        "psnr_input": float(np.mean([psnr_by_hand(view, target, peak) for view in views])),
        "psnr": psnr_by_hand(restored, target, peak),
        "ssim": METRICS[SSIM.get(name, "ssim-2d-valid")](restored, target, peak),
        **scores,
    }


@pytest.mark.parametrize("name", sorted(set(PROTOCOLS) - {"dnd-submit", "realblur-ecc"}))
def test_every_protocol_scores_as_written_out_by_hand(name):
    protocol = find_protocol(name)
    example = pair(protocol, dtype=np.uint16 if name == "dpdd-dual16" else np.uint8)
    if name == "lir-crop32":
        del example["input"]
    (row,) = evaluate(network(protocol, FACTOR), [example], protocol).rows
    prepared = protocol_example(protocol, example)
    source, target = (
        image.astype(np.float64) if image.dtype == np.float32 else image / np.iinfo(image.dtype).max
        for image in (prepared["input"], prepared["target"])
    )
    expected = by_hand(name, np.split(source, protocol.views, axis=-1), target)
    assert set(row) == {"name", "height", "width", *expected}
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, abs=1e-5), key


def test_realblur_is_aligned_before_it_is_scored():
    protocol = find_protocol("realblur-ecc")
    target = data.astronaut()[100:180, 150:230]
    moved = np.roll(target, 1, axis=1)
    (row,) = evaluate(network(protocol, 0.5), [{"name": "a", "input": moved, "target": target}], protocol).rows
    darker = np.rint(moved * np.float32(0.5)).astype(np.float32) / 255
    aligned = align(darker, target.astype(np.float32) / 255)
    # Of the input as of the restored image: brightness and position are no part of the error.
    assert row["psnr"] == pytest.approx(masked_psnr(aligned), abs=0.05)
    assert row["ssim"] == pytest.approx(masked_ssim(aligned), abs=1e-3)
    assert row["psnr_input"] == pytest.approx(row["psnr"], abs=2)
    assert row["psnr"] > peak_signal_noise_ratio(target, moved) + 5


def realblur_by_hand(restored: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """The published procedure with the metrics of scikit-image."""
    size = target.shape[1::-1]
    restored = restored * (np.sum(target * restored) / np.sum(restored * restored))
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (target, restored)]
    motion, criteria = cv2.MOTION_HOMOGRAPHY, (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 0)
    warp = np.eye(3, dtype=np.float32)
    warp = cv2.findTransformECC(*gray, warp, motion, criteria, inputMask=None, gaussFiltSize=5)[1]
    flags = (cv2.INTER_CUBIC + cv2.WARP_INVERSE_MAP, cv2.INTER_NEAREST + cv2.WARP_INVERSE_MAP)
    moved = cv2.warpPerspective(restored, warp, size, flags=flags[0], borderMode=cv2.BORDER_REFLECT)
    mask = cv2.warpPerspective(np.ones_like(target), warp, size, flags=flags[1])
    first, second = moved * mask, target * mask
    error = np.sum((first - second) ** 2, dtype=np.float64) / mask.sum()
    options = {"channel_axis": 2, "gaussian_weights": True, "use_sample_covariance": False, "data_range": 1.0}
    _, similarity = structural_similarity(second, first, full=True, **options)
    inside = np.s_[5:-5, 5:-5]
    ssim = (similarity * mask)[inside].sum((0, 1)) / mask[inside].sum((0, 1))
    return float(-10 * np.log10(error)), float(ssim.mean())


def test_realblur_is_scored_as_its_authors_do():
    target = data.coffee()[:160, 100:300]
    warp = np.array([[1.001, 0.002, 1.3], [-0.001, 0.999, -0.8], [1e-6, 0, 1]], np.float32)
    moved = cv2.warpPerspective(target, warp, target.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    noisy = np.clip(0.9 * moved + np.random.default_rng(0).normal(0, 3, moved.shape), 0, 255).astype(np.uint8)
    protocol = find_protocol("realblur-ecc")
    (row,) = evaluate(network(protocol, 1.0), [{"name": "a", "input": noisy, "target": target}], protocol).rows
    psnr, ssim = realblur_by_hand(*(image.astype(np.float32) / 255 for image in (noisy, target)))
    assert row["psnr"] == pytest.approx(psnr, abs=1e-4)
    assert row["ssim"] == pytest.approx(ssim, abs=1e-6)
    assert psnr > peak_signal_noise_ratio(target, noisy) + 5


def test_an_image_that_cannot_be_aligned_is_named():
    black = np.zeros((20, 20, 3), np.uint8)
    protocol = find_protocol("realblur-ecc")
    with pytest.raises(UserError, match="'night' cannot be scored: the restored image has too little in common"):
        evaluate(network(protocol), [{"name": "night", "input": black, "target": black}], protocol)


@pytest.mark.parametrize("name", sorted(set(PROTOCOLS) - {"dnd-submit", "realblur-ecc"}))
def test_a_perfect_network_scores_infinity(name):
    protocol = find_protocol(name)
    target = pair(protocol, 40, 70)["target"]
    if protocol.inputs == "noise":
        # There is nothing perfect under noise but without it.
        protocol = dataclasses.replace(protocol, noise_sigma=1e-9, jpeg_quality=None)
    example = {"name": "a", "input": np.concatenate([target] * protocol.views, -1), "target": target}
    (row,) = evaluate(network(protocol, 1.0), [example], protocol).rows
    assert row["psnr"] == np.inf
    assert row["ssim"] == 1


def test_without_rounding_a_score_sees_less_than_a_grey_level():
    target = np.full((20, 20, 3), 100, np.uint8)
    example = {"name": "a", "input": target, "target": target}
    scores = {
        name: evaluate(network(find_protocol(name), 0.999), [example], find_protocol(name)).rows[0]["psnr"]
        for name in ("gopro", "sidd-srgb")
    }
    assert scores["gopro"] == np.inf
    assert scores["sidd-srgb"] == pytest.approx(20 * np.log10(255 / 0.1), abs=0.01)


def rain(*counts: int) -> list[dict[str, Any]]:
    """Sets of flat images, each set with errors of its own."""
    return [
        {
            "name": str(index),
            "set": f"set{number}",
            "input": np.full((12, 12, 3), 100 + 10 * number, np.uint8),
            "target": np.full((12, 12, 3), 100 + index, np.uint8),
        }
        for number, count in enumerate(counts, 1)
        for index in range(count)
    ]


def test_sets_are_averaged_as_the_protocol_says():
    examples = rain(1, 3)
    by_sets = find_protocol("rain-y-matlab")
    evaluation = evaluate(network(by_sets, 1.0), examples, by_sets)
    psnrs = [row["psnr"] for row in evaluation.rows]
    record = evaluation.record()
    assert [record["sets"][name]["images"] for name in ("set1", "set2")] == [1, 3]
    assert record["sets"]["set1"]["psnr"] == psnrs[0]
    assert record["sets"]["set2"]["psnr"] == pytest.approx(np.mean(psnrs[1:]))
    assert record["psnr"] == evaluation.mean("psnr") == pytest.approx((psnrs[0] + np.mean(psnrs[1:])) / 2)
    weighted = dataclasses.replace(by_sets, averaging="mean over images")
    assert evaluate(network(weighted, 1.0), examples, weighted).mean("psnr") == pytest.approx(np.mean(psnrs))
    assert record["psnr"] != pytest.approx(np.mean(psnrs), abs=0.1)
    assert [row["image"] for row in evaluation.table()] == [
        *("set1/0", "set2/0", "set2/1", "set2/2", "mean of set1 (1)", "mean of set2 (3)", "mean of 2 sets")
    ]


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(10, 50)), min_size=1, max_size=12)


@given(ROWS)
def test_a_set_counts_alike_however_large_it_is(scores):
    rows = [{"name": "", "set": name, "psnr_input": psnr, "psnr": psnr, "ssim": 1.0} for name, psnr in scores]
    by_sets, over_images = (find_protocol(name) for name in ("rain-y-matlab", "gopro"))

    def mean(protocol: Protocol, rows: list[dict[str, Any]]) -> float:
        return Evaluation(protocol, {}, rows, [], sizes=1, programs=1).mean("psnr")

    first = [row for row in rows if row["set"] == rows[0]["set"]]
    assert mean(by_sets, rows + 2 * first) == pytest.approx(mean(by_sets, rows))
    groups = {name: [psnr for other, psnr in scores if other == name] for name, _ in scores}
    assert mean(by_sets, rows) == pytest.approx(sum(sum(part) / len(part) for part in groups.values()) / len(groups))
    assert mean(over_images, rows) == pytest.approx(sum(psnr for _, psnr in scores) / len(scores))


def test_images_without_sets_have_no_means_of_sets(examples):
    assert "sets" not in evaluate(DARKEN, examples, PAIRED).record()


def test_the_table_of_many_images_shows_the_worst(examples):
    many = [{**examples[index % 4], "name": f"image{index}"} for index in range(41)]
    evaluation = evaluate(DARKEN, many, PAIRED)
    table = evaluation.table()
    assert table[-1]["image"] == "mean of 41; above, the worst 10 of 41"
    worst = sorted(evaluation.rows, key=lambda row: row["psnr"])[:10]
    assert [row["image"] for row in table[:-1]] == [row["name"] for row in worst]
    assert len(evaluation.record()["per_image"]) == 41


def test_the_views_are_given_in_the_order_that_the_network_takes():
    protocol = find_protocol("dpdd-dual16")
    example = pair(protocol, dtype=np.uint16)
    target, (left, right) = example["target"], np.split(example["input"], 2, axis=-1)
    inference = {}
    for order, view in (("left-right", left), ("right-left", right)):
        evaluation = evaluate(network(protocol, 1.0, view_order=order), [example], protocol)
        expected = 10 * np.log10(65535**2 / np.mean((view.astype(np.float64) - target) ** 2))
        assert evaluation.rows[0]["psnr"] == pytest.approx(expected, abs=1e-4)
        inference[order] = evaluation.record()["inference"]["channels"]
    assert (Restormer.view_order, Swintormer.view_order) == ("left-right", "right-left")
    assert inference == {"left-right": "left view, right view", "right-left": "right view, left view"}


@pytest.mark.parametrize("name", ["paired-rgb", "dpdd-single8", "dpdd-dual16"])
def test_a_prior_is_given_to_the_network_and_neither_scored_nor_shown(name):
    protocol = find_protocol(name)
    example = pair(protocol, dtype=np.uint16)
    prior = np.random.default_rng(1).integers(0, 65536, example["target"].shape, np.uint16)
    joined = {**example, "input": np.concatenate([example["input"], prior], axis=-1)}
    channels = 3 * protocol.views
    network = partial(Darken, view_order="right-left")
    alone, beside = (
        evaluate(Restorer(network(input_channels=channels + 3 * added, prior=added), {}), [given], protocol)
        for added, given in ((False, example), (True, joined))
    )
    for score, value in alone.rows[0].items():
        assert beside.rows[0][score] == pytest.approx(value, abs=1e-5), score
    np.testing.assert_array_equal(beside.worst[0].degraded, alone.worst[0].degraded)
    assert beside.inference["channels"] == f"{alone.inference['channels']}, and a diffusion prior"


class ShowPrior(Darken):
    """Its result is the prior."""

    def __call__(self, images):
        return images[..., -3:]


def test_the_prior_comes_last():
    protocol = find_protocol("dpdd-dual16")
    example = pair(protocol, dtype=np.uint16)
    joined = {**example, "input": np.concatenate([example["input"], example["target"]], axis=-1)}
    restorer = Restorer(ShowPrior(input_channels=9, prior=True, view_order="right-left"), {})
    assert evaluate(restorer, [joined], protocol).mean("mae") == 0


@pytest.mark.parametrize(
    ("name", "channels", "sentence"),
    [
        ("gauss-color-25", 6, "makes its inputs itself, and this Darken needs a diffusion prior of them"),
        ("dpdd-dual16", 6, "is for networks that take 9 channels with a prior, and this Darken takes 6"),
        ("gopro", 9, "is for networks that take 6 channels with a prior, and this Darken takes 9"),
    ],
)
def test_a_network_with_a_prior_under_a_protocol_for_others(name, channels, sentence):
    with pytest.raises(UserError, match=sentence):
        check_network(find_protocol(name), Darken(input_channels=channels, prior=True))


def test_a_network_for_colours_restores_gray_images(examples):
    protocol = find_protocol("gauss-gray-25")
    example = {"name": "a", "target": examples[0]["target"][..., :1]}
    in_colour, in_gray = (
        evaluate(Restorer(Darken(input_channels=channels), {}), [example], protocol) for channels in (3, 1)
    )
    assert in_colour.mean("psnr") == pytest.approx(in_gray.mean("psnr"), abs=0.02)
    assert in_colour.inference["channels"] == "gray, given three times, and the mean of the network's three outputs"
    assert in_gray.inference["channels"] == "gray"
    assert in_colour.worst[0].restored.shape[-1] == 1
    shapes = {"shape": lambda restored, target: restored.shape[-1] + target.shape[-1]}
    assert evaluate(DARKEN, [example], protocol, extra_metrics=shapes).mean("shape") == 6


@pytest.mark.parametrize(("name", "channels"), [("gopro", 6), ("gauss-color-25", 1), ("dpdd-dual16", 3)])
def test_a_network_for_other_channels_is_refused(name, channels):
    restorer = Restorer(Darken(input_channels=channels), {})
    for attempt in (
        lambda: check_examples([], PROTOCOLS[name], restorer),
        lambda: evaluate(restorer, [], PROTOCOLS[name]),
    ):
        with pytest.raises(
            UserError, match=f"{name} is for networks that take . channels, and this Darken takes {channels}"
        ):
            attempt()


def test_a_protocol_with_local_statistics_needs_them_in_the_network():
    protocol = find_protocol("gopro-tlc")
    with pytest.raises(UserError, match="gopro-tlc is for the network with local_window=384, not None"):
        check_network(protocol, Darken())
    check_network(protocol, Darken(local_window=384))
    with pytest.raises(UserError, match="gopro is for the network with local_window=None, not 384"):
        check_network(find_protocol("gopro"), Darken(local_window=384))
    check_network(PAIRED, Darken())
    check_network(PAIRED, Darken(local_window=384))


def test_many_sizes_are_scored_with_few_programs():
    jax.clear_caches()
    rng = np.random.default_rng(0)
    targets = [rng.integers(0, 256, (20 + 3 * index, 90 - 5 * index, 3), np.uint8) for index in range(12)]
    examples = [{"name": str(index), "input": target, "target": target} for index, target in enumerate(targets)]
    restorer = Restorer(AddMean(), {})
    bucketed = evaluate(restorer, examples, PAIRED)
    assert (bucketed.sizes, bucketed.programs) == (12, 8)
    assert bucketed.record()["programs"] == 8
    exact = evaluate(restorer, examples, PAIRED, exact_sizes=True)
    # Some of the eight shapes are sizes of images.
    assert 12 - 8 <= exact.programs <= 12
    assert exact.inference["padded_further"] == 0
    for row, other, target in zip(bucketed.rows, exact.rows, targets, strict=True):
        assert {row["height"], row["width"]} == {other["height"], other["width"]} == set(target.shape[:2])
        expected = peak_signal_noise_ratio(target, restorer(target))
        assert other["psnr"] == pytest.approx(expected, abs=1e-6)
    # Padding to the multiple of the network, as it does itself, changes nothing.
    changed = [abs(row["psnr"] - other["psnr"]) > 1e-3 for row, other in zip(bucketed.rows, exact.rows, strict=True)]
    assert 0 < sum(changed) == bucketed.inference["padded_further"]


def test_sizes_that_are_given_are_not_read_again(examples):
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    counted = Counted(examples)
    done: list[int] = []
    sizes = check_examples(counted, PAIRED, DARKEN, done.append)
    assert (sizes, counted.reads, done) == ([(128, 128)] * 4, 4, [1, 2, 3, 4])
    evaluate(DARKEN, counted, PAIRED, sizes)
    assert counted.reads == 8


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"exact_sizes": True}])
def test_batches_and_exact_sizes_change_no_score_of_equal_images(examples, options):
    assert evaluate(DARKEN, examples, PAIRED, **options).rows == evaluate(DARKEN, examples, PAIRED).rows


def test_tiles_are_recorded(examples):
    evaluation = evaluate(Restorer(Darken(), {}, tile=64, overlap=16), examples, PAIRED)
    assert evaluation.inference["tile"] == 64
    for row, whole in zip(evaluation.rows, evaluate(DARKEN, examples, PAIRED).rows, strict=True):
        assert row["psnr"] == pytest.approx(whole["psnr"], abs=0.01)


def test_metrics_of_the_user_are_added(examples):
    def largest(restored: np.ndarray, target: np.ndarray) -> float:
        assert restored.dtype == target.dtype == np.float32
        return float(np.abs(restored - target).max())

    evaluation = evaluate(DARKEN, examples, PAIRED, extra_metrics={"mine:largest": largest})
    restored = np.rint(examples[0]["input"] * np.float32(0.9)).astype(float)
    expected = np.abs(restored - examples[0]["target"]).max() / 255
    assert evaluation.rows[0]["mine:largest"] == pytest.approx(expected, abs=1e-6)
    record = evaluation.record()
    assert record["extra_metrics"] == ["mine:largest"]
    assert record["mine:largest"] == evaluation.mean("mine:largest")
    assert tuple(evaluation.table()[0])[-1] == "mine:largest"
    assert set(evaluation.means()) == {"psnr", "ssim", "mine:largest"}


def test_an_image_that_becomes_too_small_by_cutting_is_named():
    example = {"name": "strip", "target": np.zeros((31, 64, 3), np.uint8)}
    with pytest.raises(UserError, match="'strip' has 64x0 pixels after cutting to multiples of 32"):
        check_examples([example], find_protocol("lir-crop32"), DARKEN)


def test_a_protocol_without_scores_cannot_be_evaluated():
    with pytest.raises(UserError, match="protocol dnd-submit scores nothing"):
        evaluate(DARKEN, [], find_protocol("dnd-submit"))
    check_scored(PAIRED)


def test_inputs_alone_are_restored_in_order():
    protocol = find_protocol("dnd-submit")
    rng = np.random.default_rng(0)
    crops = [
        {"name": f"{index:04d}_01", "input": rng.integers(0, 65536, (12, 12, 3), np.uint16)} for index in range(23)
    ]
    restorer = Restorer(Darken(1.5), {})
    sizes = check_examples(crops, protocol, restorer)
    done: list[int] = []
    restored = list(restore_inputs(restorer, crops, protocol, sizes, done.append, batch_size=2))
    assert done == [20, 23]
    assert [name for name, _ in restored] == [crop["name"] for crop in crops]
    for (_, image), crop in zip(restored, crops, strict=True):
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, np.clip(1.5 * crop["input"] / 65535, 0, 1), atol=1e-6)


def test_the_picture_shows_where_the_error_is(tmp_path):
    target = np.full((300, 400, 1), 90, np.uint8)
    source = target.copy()
    source[250:290, 350:390] = 190
    protocol = find_protocol("gauss-gray-15")
    quiet = dataclasses.replace(protocol, inputs="pairs", noise_sigma=None)
    evaluation = evaluate(
        Restorer(Darken(1.0, input_channels=1), {}), [{"name": "a", "input": source, "target": target}], quiet
    )
    save_comparison(tmp_path / "worst.png", evaluation.worst, size=64)
    picture = cv2.imread(str(tmp_path / "worst.png"))
    assert picture is not None
    # The square of the error, eight times 100 levels, is white in the panel on the right; the flat rest of it is black.
    panel = picture[:, 3 * picture.shape[1] // 4 :].mean(2)
    assert (panel < 5).mean() > 0.2


@pytest.mark.parametrize(
    ("folder", "name", "psnr"),
    [
        ("rain800/test", "paired-rgb", 21.21),
        ("gopro_sample", "gopro", 22.68),
        ("sots_indoor_sample", "sots", 12.48),
        ("polyu", "polyu", 35.97),
    ],
)
def test_the_inputs_of_published_sets_have_their_known_psnr(shared_folder, tmp_path, folder, name, psnr):
    source = shared_folder / "data" / folder
    if not source.is_dir():
        pytest.skip(f"no {folder} there")
    if name == "sots":
        Path(tmp_path / "indoor").symlink_to(source)
        source = tmp_path
    protocol = find_protocol(name)
    # SSIM would take most of the time.
    protocol = dataclasses.replace(protocol, scores=protocol.scores[:1])
    evaluation = evaluate(network(protocol, 1.0), protocol_examples(protocol, source), protocol)
    assert round(evaluation.mean("psnr_input"), 2) == psnr
    assert round(evaluation.mean("psnr"), 2) == psnr
