from __future__ import annotations

import numpy as np
import pytest

from gamax.data.images import to_float, to_integers
from gamax.errors import UserError
from gamax.evaluation.evaluate import PICTURED, evaluate_function
from gamax.evaluation.metrics import psnr
from gamax.evaluation.protocols import find_protocol, protocol_input

NOISE = find_protocol("gauss-color-25")


def examples(count: int = 5) -> list[dict[str, object]]:
    draws = np.random.default_rng(0)
    return [
        {"name": str(index), "target": draws.integers(0, 256, (20 + index, 24, 3), np.uint8)} for index in range(count)
    ]


def test_the_input_as_it_is_scores_as_the_rounded_input():
    done: list[int] = []
    evaluation = evaluate_function(lambda image: image, examples(), NOISE, {"function": "none"}, done.append)
    assert done == [1, 2, 3, 4, 5]
    for example, row in zip(examples(), evaluation.rows, strict=True):
        noisy, target = protocol_input(NOISE, example["target"]), example["target"]
        assert row["psnr_input"] == pytest.approx(psnr(255 * noisy.astype(np.float64), target.astype(np.float64), 255))
        assert row["psnr"] == pytest.approx(psnr(to_integers(noisy).astype(float), target.astype(float), 255))
        assert row["psnr"] > row["psnr_input"] + 0.1
    record = evaluation.record()
    assert (record["protocol"], record["images"], record["sizes"], record["programs"]) == ("gauss-color-25", 5, 5, 0)
    assert record["inference"] == {"function": "none"}
    assert record["psnr"] == pytest.approx(np.mean([row["psnr"] for row in evaluation.rows]))
    lowest = sorted(row["psnr"] for row in evaluation.rows)[:PICTURED]
    assert [picture.scores["psnr"] for picture in evaluation.worst] == lowest


def test_the_function_gets_the_noise_unclipped_and_its_result_is_clamped_and_rounded():
    seen: list[np.ndarray] = []
    clean = {example["target"].shape: example["target"] for example in examples()}

    def restore(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return to_float(clean[image.shape]) + np.float32(0.4 / 255)

    rows = evaluate_function(restore, examples(), NOISE, {}).rows
    assert [row["psnr"] for row in rows] == [np.inf] * 5
    assert all(image.dtype == np.float32 for image in seen)
    assert min(image.min() for image in seen) < 0
    assert max(image.max() for image in seen) > 1


@pytest.mark.parametrize(
    ("protocol", "count", "message"),
    [
        ("dpdd-dual16", 1, "dpdd-dual16 is for networks alone"),
        ("gopro-tlc", 1, "gopro-tlc is for networks alone"),
        ("dnd-submit", 1, "scores nothing"),
        ("gauss-color-25", 0, "no image to evaluate on"),
    ],
)
def test_what_cannot_be_scored_is_refused(protocol, count, message):
    with pytest.raises(UserError, match=message):
        evaluate_function(lambda image: image, examples(count), find_protocol(protocol), {})


def test_a_result_that_is_not_finite_is_refused():
    with pytest.raises(UserError, match="'0' is not finite"):
        evaluate_function(lambda image: image * np.nan, examples(1), NOISE, {})
