from __future__ import annotations

import json
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from gamax.data.images import to_integers
from gamax.errors import UserError
from gamax.evaluation.evaluate import PICTURED, TABLE_COLUMNS, check_examples, evaluate
from gamax.evaluation.metrics import ssim_valid
from gamax.evaluation.protocols import find_protocol, protocol_input
from gamax.evaluation.restorer import Restorer


class Darken(nn.Module):
    """A network whose result is known."""

    factor: float = 0.9
    dtype: Any = np.float32
    size_multiple: int = 1
    input_channels: int = 3

    def __call__(self, images):
        return self.factor * images


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
    assert record["protocol_details"]["peak"] == 255
    assert (record["images"], record["per_image"]) == (4, evaluation.rows)
    assert json.loads(json.dumps(record)) == record


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
    assert all(tuple(row) == TABLE_COLUMNS for row in table)
    assert [row["image"] for row in table] == ["image0", "image1", "image2", "image3", "mean of 4"]


def test_progress_counts_finished_images(examples):
    done: list[int] = []
    evaluate(DARKEN, examples, PAIRED, done.append)
    assert done == [1, 2, 3, 4]


def test_16_bit_pairs_are_scored_as_8_bit_images(examples):
    deep = [{**item, **{key: item[key].astype(np.uint16) * 257 for key in ("input", "target")}} for item in examples]
    for row, expected in zip(evaluate(DARKEN, deep, PAIRED).rows, evaluate(DARKEN, examples, PAIRED).rows, strict=True):
        assert row["psnr_input"] == pytest.approx(expected["psnr_input"], abs=1e-5)
        assert row["psnr"] == pytest.approx(expected["psnr"], abs=0.05)


def test_a_protocol_on_pairs_needs_inputs(examples):
    with pytest.raises(UserError, match=r"protocol paired-rgb needs pairs.*'lonely' has no input"):
        check_examples([{"name": "lonely", "target": examples[0]["target"]}], PAIRED, DARKEN.model, {})


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(UserError, match="no image"):
        check_examples([], PAIRED, DARKEN.model, {})


def test_an_image_too_small_for_ssim_is_named():
    with pytest.raises(UserError, match="'stamp' has 30x10 pixels; SSIM needs at least 11 a side"):
        check_examples([{"name": "stamp", "target": np.zeros((10, 30, 3), np.uint8)}], NOISE, DARKEN.model, {})


def test_a_pair_of_different_sizes_is_named(examples):
    target = examples[0]["target"]
    with pytest.raises(UserError, match="odd"):
        check_examples([{"name": "odd", "input": target[:-1], "target": target}], PAIRED, DARKEN.model, {})


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
