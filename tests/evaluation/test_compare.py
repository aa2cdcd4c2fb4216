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
    Paired,
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


OVER_SETS = "mean over images of each set, then over sets"


def result(
    psnr: list[float | None],
    sets: list[str] | None = None,
    scenes: list[str] | None = None,
    averaging: str = "mean over images",
    **inference: Any,
) -> dict[str, Any]:
    rows = [
        {"name": f"image{index}", "height": 8, "width": 9, "psnr_input": 20.0, "psnr": value, "ssim": 0.9, "error": 0.1}
        for index, value in enumerate(psnr)
    ]
    for label, names in (("set", sets), ("scene", scenes)):
        for row, name in zip(rows, names or [], strict=False):
            row[label] = name
    return {
        "protocol": "paired-rgb",
        "protocol_details": {"name": "paired-rgb", "scores": SCORES, "averaging": averaging},
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
    assert paired.standard_error == pytest.approx(1 / math.sqrt(3))
    assert paired.degrees_of_freedom == 2
    assert (paired.images, paired.higher, paired.lower, paired.left_out) == (3, 3, 0, 0)
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


def test_the_frames_of_one_scene_count_together_by_hand():
    # Mean difference 2; the scenes deviate from it by 3 * (1 - 2) = -3 and 5 - 2 = 3 in all, so the squared error is
    # 2 / 1 * (9 + 9) / 4^2 = 2.25. t = 12.706205 for one degree of freedom.
    paired = compare_paired("psnr", [10] * 4, [11, 11, 11, 15], ["x", "x", "x", "y"])
    assert (paired.difference, paired.standard_error, paired.degrees_of_freedom) == (2, 1.5, 1)
    assert paired.interval == pytest.approx((2 - 1.5 * 12.706205, 2 + 1.5 * 12.706205), abs=1e-5)
    assert (paired.images, paired.scenes, paired.higher) == (4, 2, 4)
    assert paired.sign_p == pytest.approx(2 / 4)


def test_scenes_of_equal_size_are_compared_by_their_means():
    first, second = np.random.default_rng(1).normal(30, 2, (2, 9, 5))
    scenes = [f"scene{index}" for index in range(9) for _ in range(5)]
    paired = compare_paired("psnr", list(first.ravel()), list(second.ravel()), scenes)
    expected = stats.ttest_rel(second.mean(1), first.mean(1)).confidence_interval(0.95)
    assert paired.interval == pytest.approx((expected.low, expected.high), rel=1e-10)
    assert paired.sign_p == stats.binomtest(int((second.mean(1) > first.mean(1)).sum()), 9).pvalue
    assert paired.higher == (second > first).sum()


def test_scenes_of_one_image_each_change_nothing():
    first, second = np.random.default_rng(2).normal(30, 2, (2, 6))
    alone = compare_paired("psnr", list(first), list(second))
    grouped = compare_paired("psnr", list(first), list(second), list("fbdace"))
    assert (grouped.scenes, alone.scenes) == (6, None)
    assert grouped.interval == pytest.approx(alone.interval, rel=1e-12)
    assert grouped.sign_p == alone.sign_p


def test_the_interval_holds_the_truth_for_frames_that_are_alike():
    # As GoPro: 11 sequences, here of 10 to 30 frames, which share half of the variance.
    rng = np.random.default_rng(0)
    frames = np.repeat(np.arange(11), 10 + 2 * np.arange(11))
    scenes = [str(scene) for scene in frames]
    differences = [0.1 + rng.normal(0, 0.2, 11)[frames] + rng.normal(0, 0.2, len(frames)) for _ in range(1000)]
    zero = [0.0] * len(frames)
    compared = [
        (compare_paired("psnr", zero, list(one), scenes), compare_paired("psnr", zero, list(one)))
        for one in differences
    ]
    by_scenes, by_images = np.mean([[p.interval[0] < 0.1 < p.interval[1] for p in pair] for pair in compared], axis=0)
    # Three standard errors of a share of 0.95 of 1000.
    assert abs(by_scenes - 0.95) < 0.021
    assert by_images < 0.6


def test_scenes_of_one_name_in_two_sets_are_two():
    sets, scenes = ["x", "x", "y", "y"], ["1", "1", "1", "2"]
    first, second = result([30] * 4, sets, scenes), result([31, 32, 33, 34], sets, scenes)
    compared = compare_scores(first, second)
    assert [compared[name][0].scenes for name in ("all", "x", "y")] == [3, 1, 2]
    assert [compared[name][0].interval is None for name in ("all", "x", "y")] == [False, True, False]
    # An older result has no scenes.
    assert compare_scores(first, result([31, 32, 33, 34], sets))["all"][0].scenes is None


def test_a_scene_whose_images_are_all_left_out_does_not_count():
    paired = compare_paired("psnr", [30, 31, None], [31, 33, 34], ["x", "y", "z"])
    assert (paired.scenes, paired.left_out, paired.degrees_of_freedom) == (2, 1, 1)


pair = st.tuples(*[st.none() | st.floats(0, 60)] * 2, st.sampled_from("xyz"))


@given(st.lists(pair, min_size=1, max_size=12), st.booleans())
def test_swapping_the_two_turns_everything_around(pairs, grouped):
    first, second, scenes = map(list, zip(*pairs, strict=True))
    scenes = scenes if grouped else None
    forth, back = compare_paired("s", first, second, scenes), compare_paired("s", second, first, scenes)
    np.testing.assert_array_equal([back.difference, back.mean_first], [-forth.difference, forth.mean_second])
    assert (back.higher, back.lower, back.left_out) == (forth.lower, forth.higher, forth.left_out)
    assert back.sign_p == pytest.approx(forth.sign_p)
    if forth.interval is None:
        assert back.interval is None
        assert (forth.scenes if grouped else forth.images) < 2
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


def test_higher_and_lower_are_counted_alike_for_every_score():
    other = copy.deepcopy(FIRST)
    for row in other["per_image"]:
        row["error"] = 0.05
    assert [(paired.higher, paired.lower) for paired in compare_scores(FIRST, other)["all"]] == [(0, 0), (0, 0), (0, 4)]


def test_sets_are_compared_each_and_averaged_as_the_protocol_says():
    sets = ["x", "x", "x", "y"]
    first, second = result([30, 31, 32, 33], sets), result([31, 32, 33, 37], sets)
    compared = compare_scores(first, second)
    assert list(compared) == ["all", "x", "y"]
    assert [compared[name][0].difference for name in compared] == [1.75, 1, 4]
    assert compared["all"][0].interval is not None
    for one in (first, second):
        one["protocol_details"]["averaging"] = OVER_SETS
    over_sets = compare_scores(first, second)["all"][0]
    assert (over_sets.mean_first, over_sets.mean_second, over_sets.difference) == (32, 34.5, 2.5)
    assert (over_sets.images, over_sets.sets) == (4, 2)
    # One image tells nothing of how its set varies.
    assert (over_sets.interval, over_sets.standard_error) == (None, None)
    assert list(compare_scores(result([30, 31], ["x", "x"]), result([30, 31], ["x", "x"]))) == ["all"]


def over_sets(*differences: Any, scenes: list[str] | None = None) -> Paired:
    """The PSNR under a mean over sets, of which each differs by what is given."""
    sets = [str(index) for index, part in enumerate(differences) for _ in part]
    joined = np.concatenate(differences)
    first = result([30.0] * len(sets), sets, scenes, OVER_SETS)
    return compare_scores(first, result(list(30 + joined), sets, scenes, OVER_SETS))["all"][0]


def test_the_interval_of_a_mean_over_two_sets_is_that_of_welch():
    rng = np.random.default_rng(0)
    large, small = rng.normal(0.3, 0.1, 40), rng.normal(0.5, 0.8, 4)
    # Of the sum of two means as of their difference, with one of them turned around.
    test = stats.ttest_ind(large, -small, equal_var=False)
    expected = test.confidence_interval(0.95)
    paired = over_sets(large, small)
    assert paired.interval == pytest.approx((expected.low / 2, expected.high / 2), rel=1e-9)
    assert paired.degrees_of_freedom == pytest.approx(test.df, rel=1e-9)
    assert (paired.sets, paired.higher, paired.lower, paired.sign_p) == (2, None, None, None)


def test_the_interval_of_a_mean_over_sets_takes_their_scenes():
    rng = np.random.default_rng(0)
    means = rng.normal(0.3, 0.2, 6), rng.normal(0.1, 0.4, 4)
    frames = [np.repeat(part, 5) for part in means]
    scenes = [str(index) for part in means for index in range(len(part)) for _ in range(5)]
    by_scenes = over_sets(*frames, scenes=scenes)
    assert by_scenes.interval == pytest.approx(over_sets(*means).interval, rel=1e-9)
    wide, narrow = (high - low for low, high in (by_scenes.interval, over_sets(*frames).interval))
    assert wide > 2 * narrow


def test_a_mean_over_sets_that_do_not_differ_is_certain():
    assert over_sets([0.5, 0.5], [1.0, 1.0, 1.0]).interval == (0.75, 0.75)


def test_the_interval_of_a_mean_over_sets_holds_the_truth():
    rng = np.random.default_rng(0)
    # As the sets of Gaussian noise, unequal in size and spread.
    compared = [
        over_sets(rng.normal(0.2, 0.1, 24), rng.normal(0.4, 0.5, 10), rng.normal(0, 0.2, 6)) for _ in range(300)
    ]
    held = np.mean([paired.interval[0] < 0.2 < paired.interval[1] for paired in compared])
    # Three standard errors of a share of 0.95 of 300.
    assert abs(held - 0.95) < 0.038


def test_learned_metrics_are_compared_where_both_have_them():
    first, second = copy.deepcopy((FIRST, SECOND))
    for one, value in ((first, 0.3), (second, 0.2)):
        one["extra_metrics"] = ["lpips"]
        for row in one["per_image"]:
            row["lpips"] = value
    assert [paired.score for paired in compare_scores(first, SECOND)["all"]] == ["psnr", "ssim", "error"]
    lpips = compare_scores(first, second)["all"][-1]
    assert (lpips.score, lpips.lower, lpips.difference) == ("lpips", 4, pytest.approx(-0.1))


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
    assert "psnr: 1 image(s) left out, whose restored image equals the target" in printed
    assert "largest losses in PSNR: none" in printed
    (path,) = (tmp_path / "comparisons").glob("a-against-b-and-1-more-*.json")
    written = json.loads(path.read_text())
    against_b, against_c = written["comparisons"]
    assert against_b["scores"]["all"][0]["difference"] == 0.375
    assert against_b["psnr_gains"][0] == {"name": "image3", "gain": 1.5}
    assert against_c["settings"] == ["tile: none against 512"]
    assert cv2.imread(str(path.with_suffix(".png"))).shape[2] == 3


def test_one_image_has_no_interval_and_no_image_no_mean(tmp_path, capsys):
    paths = write(tmp_path, result([None]), result([31.0]))
    Compare(paths, output=tmp_path / "new" / "c.json").run()
    assert "psnr: no interval, which takes two images or more, not 0" in capsys.readouterr().out
    written = json.loads((tmp_path / "new" / "c.json").read_text())
    assert written["comparisons"][0]["scores"]["all"][0]["difference"] is None
    assert (tmp_path / "new" / "c.png").exists()


def test_the_command_says_what_an_interval_is_from(tmp_path, capsys):
    psnr, higher = [30.0, 31.0, 32.0, 33.0], [31.0, 32.0, 34.0, 33.5]
    scenes = ["1", "1", "2", "2"]
    Compare(write(tmp_path, result(psnr, scenes=scenes), result(higher, scenes=scenes))).run()
    assert "psnr, ssim, error: interval from 2 scenes, and so the sign test" in capsys.readouterr().out
    Compare(write(tmp_path, result(psnr, scenes=["1"] * 4), result(higher, scenes=["1"] * 4))).run()
    printed = capsys.readouterr().out
    assert (
        "psnr: no interval, which takes two scenes or more, not 1: images of one scene are not independent" in printed
    )

    Compare(
        write(tmp_path, *(result(part, ["x", "x", "y", "y"], averaging=OVER_SETS) for part in (psnr, higher)))
    ).run()
    printed = capsys.readouterr().out
    assert "B against A, mean of 2 sets, 4 images" in printed
    assert "no interval" not in printed
    Compare(
        write(tmp_path, *(result(part, ["x", "x", "x", "y"], averaging=OVER_SETS) for part in (psnr, higher)))
    ).run()
    printed = capsys.readouterr().out
    assert "psnr: no interval of the mean over sets, as one of them has none" in printed
    assert "psnr: no interval, which takes two images or more, not 1" in printed
    written = json.loads((tmp_path / "comparisons" / "a-against-b.json").read_text())
    assert written["comparisons"][0]["scores"]["all"][0]["sign_p"] is None


def test_a_metric_of_ones_own_that_is_not_finite_is_no_equal_image(tmp_path, capsys):
    first, second = copy.deepcopy((FIRST, SECOND))
    for one in (first, second):
        one["extra_metrics"] = ["mine:dists"]
        for row in one["per_image"]:
            row["mine:dists"] = 0.25
    second["per_image"][0]["mine:dists"] = None
    Compare(write(tmp_path, first, second)).run()
    printed = capsys.readouterr().out
    assert "mine:dists: 1 image(s) left out, with no finite value" in printed
    assert "equals the target" not in printed


def test_every_comparison_has_a_file_of_its_own(tmp_path):
    def write_run(run: str, name: str = "gopro") -> Path:
        path = tmp_path / run / "evaluations" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(FIRST))
        return path

    def written(*paths: Path) -> str:
        before = set((tmp_path / "one" / "evaluations" / "comparisons").glob("*.json"))
        Compare(paths).run()
        (new,) = set((tmp_path / "one" / "evaluations" / "comparisons").glob("*.json")) - before
        return new.name

    first, other = write_run("one"), write_run("one", "gopro-tile512")
    assert written(first, other) == "gopro-against-gopro-tile512.json"
    assert written(first, write_run("two")).startswith("one-evaluations-gopro-against-two-evaluations-gopro-")
    assert written(first, write_run("three")).startswith("one-evaluations-gopro-against-three-evaluations-gopro-")
    assert written(first, other, write_run("two")) != written(first, other, write_run("three"))
    # Apart in the last letter alone, where the name is too long for that.
    assert written(first, write_run("one", "n" * 199 + "1")) != written(first, write_run("one", "n" * 199 + "2"))
    comparisons = first.parent / "comparisons"
    count = len(list(comparisons.iterdir()))
    # The same again replaces its own, and results are still found by a pattern.
    Compare((first, other)).run()
    assert len(list(comparisons.iterdir())) == count
    assert all(load_result(path) for path in first.parent.glob("*.json"))


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
