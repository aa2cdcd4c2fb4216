"""Two evaluations of the same images side by side: is one network better, or were the images lucky?"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gamax.errors import UserError
from gamax.files import replace_atomically

SHOWN = 5
"""Images with the largest gains and losses that are named."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What result files are called in tables and pictures, in the order in which they were given."""

Result = Mapping[str, Any]
"""A result file of eval.py."""


@dataclass(frozen=True)
class Paired:
    """One score of the same images in two evaluations, `first` and `second`; the differences are second - first.

    `interval` is the 95 % confidence interval of the mean difference by Student's t: what the mean would be on more
    images like these. It trusts that means of so many images or scenes are normal, which they are not of a few among
    which one stands out. `sign_p` does without: the two-sided sign test, how likely so many or more would agree in
    sign by the toss of a coin. It is exact for any number and any distribution, where a bootstrap of few images is too
    narrow.
    """

    score: str
    images: int
    """That are compared."""
    left_out: int
    """Images for which the score is not finite in one of the two."""
    mean_first: float
    mean_second: float
    difference: float
    scenes: int | None
    """Groups that are independent of each other, as the frames of one are not; None where all images are taken so."""
    sets: int | None
    """Of which the mean of their means is taken; None for a mean over images."""
    standard_error: float | None
    """Of `difference`, from the spread of the images, scenes or sets; None as `interval`."""
    degrees_of_freedom: float | None
    interval: tuple[float, float] | None
    """None for fewer than two images, or scenes, and for a mean over sets one of which has none."""
    higher: int | None
    """Images whose score is higher in the second, which is no gain where less is better; None for a mean over sets."""
    lower: int | None
    sign_p: float | None
    """Of the images, or of the mean differences of the scenes; None for a mean over sets."""


def load_result(path: Path) -> dict[str, Any]:
    """Reads a result file of eval.py; `UserError` if it is none, or has no scores."""
    try:
        result = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); give a JSON file that eval.py has written") from error
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is not JSON ({error}); give a file that eval.py has written") from error
    if not isinstance(result, dict) or not {"protocol", "protocol_details", "inference", "per_image"} <= set(result):
        raise UserError(f"'{path}' is not a result of eval.py; give a JSON file that it has written")
    if "scores" not in result["protocol_details"]:
        raise UserError(f"'{path}' was written by an older eval.py, which did not name its scores: evaluate once more")
    if not result["protocol_details"]["scores"] or not result["per_image"]:
        raise UserError(f"'{path}' holds no scores: under {result['protocol']} the images go to a server")
    return result


def check_comparable(first: Result, second: Result, names: tuple[str, str]) -> None:
    """Raises `UserError` unless both results are of one protocol and the same images.

    Args:
        first: a result.
        second: another.
        names: what the sentence calls them.
    """
    left, right = names
    protocols = first["protocol"], second["protocol"]
    if protocols[0] != protocols[1]:
        raise UserError(f"'{left}' is under {protocols[0]} and '{right}' under {protocols[1]}: evaluate both under one")
    fields = differing(first["protocol_details"], second["protocol_details"])
    if fields:
        raise UserError(
            f"'{left}' and '{right}' are under different rules of the same name, {protocols[0]} ({'; '.join(fields)}): "
            "evaluate both with one version of gamax"
        )
    rows = _by_image(first), _by_image(second)
    if rows[0].keys() != rows[1].keys():
        missing = sorted(set(rows[0]) ^ set(rows[1]))
        holder = left if missing[0] in rows[0] else right
        raise UserError(
            f"'{left}' and '{right}' are of different images: {len(missing)} are in one alone, first '{missing[0][1]}' "
            f"of '{holder}'"
        )
    for key, row in rows[0].items():
        other = rows[1][key]
        size, other_size = (row["height"], row["width"]), (other["height"], other["width"])
        # Of unrounded noise the sum may differ in its last digits from machine to machine.
        inputs = [math.inf if one["psnr_input"] is None else one["psnr_input"] for one in (row, other)]
        if size != other_size or not math.isclose(*inputs, abs_tol=1e-3):
            raise UserError(
                f"'{key[1]}' is not the same image in '{left}' and '{right}': size or PSNR of the input differ "
                f"({size[0]}x{size[1]}, {inputs[0]:.3f} dB against {other_size[0]}x{other_size[1]}, {inputs[1]:.3f} dB)"
            )


def differing(first: Any, second: Any, name: str = "") -> list[str]:
    """A line for every entry of nested dictionaries and lists that differs: `tile: none against 512`."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = list(dict.fromkeys((*first, *second)))
        parts = [(f"{name}.{key}".lstrip("."), first.get(key), second.get(key)) for key in keys]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        parts = [(f"{name}[{index}]", *pair) for index, pair in enumerate(zip(first, second, strict=True))]
    else:
        return [] if first == second else [f"{name}: {_plain(first)} against {_plain(second)}"]
    return [line for key, one, other in parts for line in differing(one, other, key)]


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


def score_names(*results: Result) -> list[str]:
    """The scores of a protocol, and learned metrics that all results hold."""
    extra = [name for name in results[0].get("extra_metrics", ()) if all(name in r["per_image"][0] for r in results)]
    return [score["name"] for score in results[0]["protocol_details"]["scores"]] + extra


def compare_scores(first: Result, second: Result) -> dict[str, list[Paired]]:
    """Every score of two comparable results, over all images under the key `all`, and for every set under its name.

    Where the protocol takes the mean over sets, so do the means and the difference under `all`.
    """
    rows = _by_image(first), _by_image(second)
    sets = list(dict.fromkeys(image_set for image_set, _ in rows[0]))
    compared: dict[str, list[Paired]] = {"all": []}
    for score in score_names(first, second):

        def paired(keys: Collection[tuple[str, str]], score: str = score) -> Paired:
            left, right = ([part[key] for key in keys] for part in rows)
            grouped = any("scene" in row for row in left) and any("scene" in row for row in right)
            # Two sets may have scenes of one name.
            scenes = (
                [f"{image_set}/{rows[0][image_set, name].get('scene', name)}" for image_set, name in keys]
                if grouped
                else None
            )
            return compare_paired(score, [row[score] for row in left], [row[score] for row in right], scenes)

        everything = paired(rows[0])
        # One set is all there is.
        if len(sets) > 1:
            parts = {name: paired([key for key in rows[0] if key[0] == name]) for name in sets}
            for name, part in parts.items():
                compared.setdefault(name, []).append(part)
            if "over sets" in str(first["protocol_details"].get("averaging")):
                everything = _mean_over_sets(everything, list(parts.values()))
        compared["all"].append(everything)
    return compared


def _mean_over_sets(everything: Paired, parts: Sequence[Paired]) -> Paired:
    """The sets are fixed and independent of each other: their squared standard errors add up, over their number."""
    first, second = (float(np.mean([getattr(part, side) for part in parts])) for side in ("mean_first", "mean_second"))
    known = [
        (part.standard_error**2, part.degrees_of_freedom)
        for part in parts
        if part.standard_error is not None and part.degrees_of_freedom is not None
    ]
    error, degrees = None, None
    if len(known) == len(parts):
        variances, own_degrees = np.array(known, np.float64).T
        total = variances.sum()
        error = math.sqrt(total) / len(parts)
        # Welch and Satterthwaite. Where nothing varies any number will do.
        shares = variances / total if total else np.full(len(parts), 1 / len(parts))
        degrees = float(1 / (shares**2 / own_degrees).sum())
    return replace(
        everything,
        mean_first=first,
        mean_second=second,
        difference=second - first,
        scenes=None,
        sets=len(parts),
        standard_error=error,
        degrees_of_freedom=degrees,
        interval=_interval(second - first, error, degrees),
        # A set of many images would outvote the others, which count as much in the mean.
        higher=None,
        lower=None,
        sign_p=None,
    )


def _interval(difference: float, error: float | None, degrees: float | None) -> tuple[float, float] | None:
    from scipy import stats

    if error is None or degrees is None:
        return None
    reach = float(stats.t.ppf(0.975, degrees)) * error
    return difference - reach, difference + reach


def compare_paired(
    score: str, first: Sequence[float | None], second: Sequence[float | None], scenes: Sequence[str] | None = None
) -> Paired:
    """One score of the same images in two evaluations.

    With scenes, the standard error is the cluster-robust one of the mean over images: the differences of a scene from
    that mean are added up before they are squared, with the factor scenes / (scenes - 1).

    Args:
        score: its name.
        first: a value for each image; None where it is not finite, and the image is left out.
        second: the values of the same images in the other evaluation.
        scenes: the scene of each image; None where all images are independent.
    """
    from scipy import stats

    kept = [index for index, pair in enumerate(zip(first, second, strict=True)) if None not in pair]
    values = np.array([(first[index], second[index]) for index in kept], np.float64).reshape(-1, 2)
    differences, count = values[:, 1] - values[:, 0], len(kept)
    mean_first, mean_second, difference = (
        (float(part.mean()) if count else math.nan) for part in (*values.T, differences)
    )
    groups = np.arange(count) if scenes is None else np.unique([scenes[i] for i in kept], return_inverse=True)[1]
    group_sums = np.bincount(groups, differences)
    group_count = len(group_sums)
    error, degrees = None, None
    if group_count >= 2:
        spread = np.bincount(groups, differences - difference)
        error = math.sqrt(group_count / (group_count - 1) * float((spread**2).sum())) / count
        degrees = float(group_count - 1)
    up, down = int((group_sums > 0).sum()), int((group_sums < 0).sum())
    return Paired(
        score=score,
        images=count,
        left_out=len(first) - count,
        mean_first=mean_first,
        mean_second=mean_second,
        difference=difference,
        scenes=None if scenes is None else group_count,
        sets=None,
        standard_error=error,
        degrees_of_freedom=degrees,
        interval=_interval(difference, error, degrees),
        higher=int((differences > 0).sum()),
        lower=int((differences < 0).sum()),
        sign_p=float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0,
    )


def psnr_gains(first: Result, second: Result) -> list[tuple[str, float]]:
    """Name and gain in PSNR, second - first in dB, of every image with a finite one, largest first."""
    rows, others = _by_image(first), _by_image(second)
    gains = [
        ("/".join(part for part in key if part), others[key]["psnr"] - row["psnr"])
        for key, row in rows.items()
        if row["psnr"] is not None and others[key]["psnr"] is not None
    ]
    return sorted(gains, key=lambda gain: -gain[1])


def _by_image(result: Result) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows by set and name; a name that comes back has its count appended."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in result["per_image"]:
        image_set, name, count = row.get("set") or "", row["name"], 1
        while (image_set, name) in rows:
            count += 1
            name = f"{row['name']} ({count})"
        rows[image_set, name] = row
    return rows


def save_gains(path: Path, gains: Mapping[str, Sequence[tuple[str, float]]], mean: Mapping[str, Paired]) -> None:
    """Writes a PNG with a panel for each comparison: the gain in PSNR of every image, sorted.

    Args:
        path: the file.
        gains: for every title, the result of `psnr_gains`.
        mean: for every title, the comparison of the PSNR over all images.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((9, 3.6 * len(gains)), dpi=110, layout="constrained")
    panels = figure.subplots(len(gains), 1, squeeze=False)[:, 0]
    for (title, sorted_gains), axis in zip(gains.items(), panels, strict=True):
        values, paired = np.array([gain for _, gain in sorted_gains]), mean[title]
        places = np.arange(1, len(values) + 1)
        # Blue and orange are told apart by everybody.
        axis.bar(places, values, 1.0, color=np.where(values >= 0, "tab:blue", "tab:orange"))
        axis.axhline(0, color="black", linewidth=0.8)
        axis.axhline(paired.difference, color="black", linestyle="--", linewidth=1)
        if paired.interval is not None:
            axis.axhspan(*paired.interval, color="black", alpha=0.15, linewidth=0)
        interval = "" if paired.interval is None else " (95 %: {:+.3f} to {:+.3f}, grey)".format(*paired.interval)
        mean_of = "mean" if paired.sets is None else f"mean of {paired.sets} sets"
        axis.set_title(
            f"{title}: higher for {(values > 0).sum()}, lower for {(values < 0).sum()} of {len(values)} images; "
            f"{mean_of} {paired.difference:+.3f} dB{interval}",
            fontsize="medium",
            loc="left",
        )
        axis.set_ylabel("gain in PSNR, dB")
        axis.set_xlabel("images, largest gain first")
        axis.set_xlim(0.5, max(len(values), 1) + 0.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    content = io.BytesIO()
    figure.savefig(content, format="png")
    replace_atomically(path, content.getvalue())
