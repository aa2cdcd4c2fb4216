from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gamax.cli_compare import Compare
from gamax.errors import UserError
from gamax.evaluation.compare import (
    check_comparable,
    compare_paired,
    compare_scores,
    differing,
    load_result,
    psnr_gains,
    save_gains,
)

SCORES = [
    {"name": "psnr", "metric": "psnr", "plane": "rgb", "peak": 255, "border": 0},
    {"name": "ssim", "metric": "ssim-2d-valid", "plane": "rgb", "peak": 255, "border": 0},
    {"name": "error", "metric": "mae", "plane": "rgb", "peak": 1, "border": 0},
]


def result(psnr: list[float | None], sets: list[str] | None = None, **inference: Any) -> dict[str, Any]:
    rows = [
        {"name": f"image{index}", "height": 8, "width": 9, "psnr_input": 20.0, "psnr": value, "ssim": 0.9, "error": 0.1}
        for index, value in enumerate(psnr)
    ]
    for row, name in zip(rows, sets or [], strict=False):
        row["set"] = name
    return {
        "protocol": "paired-rgb",
        "protocol_details": {"name": "paired-rgb", "scores": SCORES, "averaging": "mean over images"},
        "inference": {"tile": None, "dtype": "float32", **inference},
        "weights_sha256": "0123456789abcdef",
        "per_image": rows,
    }


FIRST, SECOND = result([30.0, 31.0, 32.0, 33.0]), result([30.5, 31.5, 31.0, 34.5])


def write(folder: Path, *results: dict[str, Any]) -> tuple[Path, ...]:
    paths = tuple(folder / f"{letter}.json" for letter in "abcdef"[: len(results)])
    for path, content in zip(paths, results, strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_a_paired_comparison_by_hand():
    # Differences 1, 2, 3: deviation 1, and t = 4.302653 for two degrees of freedom.
    paired = compare_paired("psnr", [10, 20, 30], [11, 22, 33])
    assert (paired.mean_first, paired.mean_second, paired.difference) == (20, 22, 2)
    assert paired.interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)
    assert (paired.images, paired.better, paired.worse, paired.left_out) == (3, 3, 0, 0)
    # Three heads in three tosses, or three tails.
    assert paired.sign_p == pytest.approx(2 / 8)


def test_interval_and_sign_test_are_those_of_scipy():
    first, second = np.random.default_rng(0).normal(30, 2, (2, 17))
    paired = compare_paired("psnr", list(first), list(second))
    expected = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert paired.interval == pytest.approx((expected.low, expected.high), rel=1e-10)
    assert paired.sign_p == stats.binomtest(int((second > first).sum()), 17).pvalue


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    first = rng.normal(30, 3, (2000, 8))
    second = first + rng.normal(0.1, 0.5, first.shape)
    intervals = [compare_paired("psnr", list(a), list(b)).interval for a, b in zip(first, second, strict=True)]
    held = np.mean([low < 0.1 < high for low, high in intervals])
    # Three standard errors of a share of 0.95 of 2000.
    assert abs(held - 0.95) < 0.015


values = st.lists(st.tuples(*[st.none() | st.floats(0, 60)] * 2), min_size=1, max_size=12)


@given(values, st.booleans())
def test_swapping_the_two_turns_everything_around(pairs, lower):
    first, second = map(list, zip(*pairs, strict=True))
    forth, back = compare_paired("s", first, second, lower=lower), compare_paired("s", second, first, lower=lower)
    np.testing.assert_array_equal([back.difference, back.mean_first], [-forth.difference, forth.mean_second])
    assert (back.better, back.worse, back.left_out) == (forth.worse, forth.better, forth.left_out)
    assert back.sign_p == pytest.approx(forth.sign_p)
    if forth.interval is None:
        assert back.interval is None
        assert forth.images < 2
    else:
        assert back.interval == (-forth.interval[1], -forth.interval[0])
        assert forth.interval[0] <= forth.difference <= forth.interval[1]


def test_infinite_values_are_left_out_of_their_score_alone():
    psnr, ssim, _ = compare_scores(result([None, 31, 32]), result([40, 31.5, 33]))["all"]
    assert (psnr.images, psnr.left_out, psnr.difference) == (2, 1, 0.75)
    assert (ssim.images, ssim.left_out) == (3, 0)
    nothing = compare_paired("psnr", [None], [30.0])
    assert (nothing.images, nothing.interval, nothing.sign_p) == (0, None, 1)
    assert math.isnan(nothing.difference)


def test_less_of_an_error_is_better():
    other = copy.deepcopy(FIRST)
    for row in other["per_image"]:
        row["error"] = 0.05
    assert [(paired.better, paired.worse) for paired in compare_scores(FIRST, other)["all"]] == [(0, 0), (0, 0), (4, 0)]


def test_sets_are_compared_each_and_averaged_as_the_protocol_says():
    sets = ["x", "x", "x", "y"]
    first, second = result([30, 31, 32, 33], sets), result([31, 32, 33, 37], sets)
    compared = compare_scores(first, second)
    assert list(compared) == ["all", "x", "y"]
    assert [compared[name][0].difference for name in compared] == [1.75, 1, 4]
    assert compared["all"][0].interval is not None
    for one in (first, second):
        one["protocol_details"]["averaging"] = "mean over images of each set, then over sets"
    over_sets = compare_scores(first, second)["all"][0]
    assert (over_sets.mean_first, over_sets.mean_second, over_sets.difference) == (32, 34.5, 2.5)
    assert (over_sets.interval, over_sets.better) == (None, 4)
    assert list(compare_scores(result([30, 31], ["x", "x"]), result([30, 31], ["x", "x"]))) == ["all"]


def test_learned_metrics_are_compared_where_both_have_them():
    first, second = copy.deepcopy((FIRST, SECOND))
    for one, value in ((first, 0.3), (second, 0.2)):
        one["extra_metrics"] = ["lpips"]
        for row in one["per_image"]:
            row["lpips"] = value
    assert [paired.score for paired in compare_scores(first, SECOND)["all"]] == ["psnr", "ssim", "error"]
    lpips = compare_scores(first, second)["all"][-1]
    assert (lpips.score, lpips.better, lpips.difference) == ("lpips", 4, pytest.approx(-0.1))


def test_the_gains_are_sorted_and_named_with_their_set():
    assert psnr_gains(FIRST, SECOND) == [("image3", 1.5), ("image0", 0.5), ("image1", 0.5), ("image2", -1.0)]
    assert psnr_gains(result([1, None], ["x", "y"]), result([2, 3], ["x", "y"])) == [("x/image0", 1)]


def changed(**fields: Any) -> dict[str, Any]:
    other = copy.deepcopy(SECOND)
    for name, value in fields.items():
        place, *keys = name.split("__")
        target = other[place]
        for key in keys[:-1]:
            target = target[int(key) if key.isdecimal() else key]
        if keys:
            target[keys[-1]] = value
        else:
            other[place] = value
    return other


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (changed(protocol="sidd-srgb"), "'a' is under paired-rgb and 'b' under sidd-srgb: evaluate both under one"),
        (changed(protocol_details__border=4), r"rules of the same name, paired-rgb \(border: none against 4\)"),
        (
            changed(protocol_details__scores__1__metric="ssim-3d-rgb"),
            r"scores\[1\].metric: ssim-2d-valid against ssim-3",
        ),
        (changed(protocol_details__scores=SCORES[:1]), "scores: "),
        (changed(per_image=SECOND["per_image"][:3]), "1 are in one alone, first 'image3' of 'a'"),
        (changed(per_image__0__name="photo"), "2 are in one alone, first 'image0' of 'a'"),
        (changed(per_image__2__set="y"), "2 are in one alone"),
        (changed(per_image__2__width=10), r"'image2' is not the same image in 'a' and 'b'.*8x9, .*8x10"),
        (changed(per_image__1__psnr_input=20.5), "20.000 dB against 8x9, 20.500 dB"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_differs(other, message):
    with pytest.raises(UserError, match=message):
        check_comparable(FIRST, other, ("a", "b"))


def test_other_settings_and_another_order_are_no_reason_to_refuse():
    other = changed(inference__tile=512, per_image=SECOND["per_image"][::-1])
    check_comparable(FIRST, other, ("a", "b"))
    assert psnr_gains(FIRST, other) == psnr_gains(FIRST, SECOND)
    assert differing(FIRST["inference"], other["inference"]) == ["tile: none against 512"]
    infinite = result([30.0])
    infinite["per_image"][0]["psnr_input"] = None
    check_comparable(infinite, copy.deepcopy(infinite), ("a", "b"))


def test_differences_are_found_at_any_depth():
    assert differing({"a": [1, {"b": 2}], "c": 3}, {"a": [1, {"b": 4}], "d": 5}) == [
        "a[1].b: 2 against 4",
        "c: 3 against none",
        "d: none against 5",
    ]
    assert differing({"a": [1, 2]}, {"a": [1]}) == ["a: [1, 2] against [1]"]
    assert not differing(FIRST, copy.deepcopy(FIRST))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a result of eval.py"),
        (json.dumps({"protocol": "x"}), "is not a result of eval.py"),
        (json.dumps({**FIRST, "protocol_details": {"ssim": "2d-valid"}}), "older eval.py.*evaluate once more"),
        (
            json.dumps(changed(protocol_details__scores=[])),
            "holds no scores: under paired-rgb the images go to a server",
        ),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_other_files_are_told_apart(content, message, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        load_result(path)


def test_the_command_prints_tables_and_writes_json_and_a_picture(tmp_path, capsys):
    third = result([None, 31.0, 32.0, 33.0], tile=512)
    Compare(write(tmp_path, FIRST, SECOND, third)).run()
    printed = capsys.readouterr().out
    assert "paired-rgb, 4 images" in printed
    assert "A: " in printed
    assert "(weights 0123456789ab)" in printed
    assert "A and C were restored differently: tile: none against 512" in printed
    assert "largest gains in PSNR: image3 +1.50 dB, image0 +0.50 dB, image1 +0.50 dB" in printed
    assert "largest losses in PSNR: image2 -1.00 dB" in printed
    assert "psnr: 1 images left out, whose restored image equals the target" in printed
    assert "largest losses in PSNR: none" in printed
    written = json.loads((tmp_path / "comparison.json").read_text())
    against_b, against_c = written["comparisons"]
    assert against_b["scores"]["all"][0]["difference"] == 0.375
    assert against_b["psnr_gains"][0] == {"name": "image3", "gain": 1.5}
    assert against_c["settings"] == ["tile: none against 512"]
    assert cv2.imread(str(tmp_path / "comparison.png")).shape[2] == 3


def test_one_image_has_no_interval_and_no_image_no_mean(tmp_path, capsys):
    paths = write(tmp_path, result([None]), result([31.0]))
    Compare(paths, output=tmp_path / "new" / "c.json").run()
    assert "psnr: no interval, which takes two images or more, not 0" in capsys.readouterr().out
    written = json.loads((tmp_path / "new" / "c.json").read_text())
    assert written["comparisons"][0]["scores"]["all"][0]["difference"] is None
    assert (tmp_path / "new" / "c.png").exists()


def test_the_command_refuses_what_it_cannot_write(tmp_path):
    paths = write(tmp_path, FIRST, SECOND)
    with pytest.raises(UserError, match="from two to 26 result files to compare, not 1"):
        Compare(paths[:1]).run()
    with pytest.raises(UserError, match="would overwrite"):
        Compare(paths, output=paths[1]).run()
    with pytest.raises(UserError, match="--output must be a JSON file"):
        Compare(paths, output=tmp_path / "x.txt").run()
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_bars_above_and_below_zero_have_different_colours(tmp_path):
    gains, mean = psnr_gains(FIRST, SECOND), compare_scores(FIRST, SECOND)["all"][0]
    save_gains(tmp_path / "gains.png", {"B against A": gains}, {"B against A": mean})
    pixels = cv2.imread(str(tmp_path / "gains.png")).astype(int)
    blue, _, red = np.moveaxis(pixels, 2, 0)
    columns_blue = np.flatnonzero((blue > red + 80).any(0))
    columns_red = np.flatnonzero((red > blue + 80).any(0))
    # Gains left, losses right.
    assert columns_blue.size
    assert columns_blue.max() <= columns_red.min() + 1
