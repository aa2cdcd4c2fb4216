"""The verb `gamax compare`."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from gamax.console import print_table, say
from gamax.errors import UserError
from gamax.evaluation.compare import (
    LETTERS,
    SHOWN,
    Paired,
    check_comparable,
    compare_scores,
    differing,
    load_result,
    psnr_gains,
    save_gains,
)
from gamax.files import check_writable, write_json

LONGEST_NAME = 160
"""Bytes of the name of a comparison, which file systems limit to 255 with what is added to it."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compares evaluations of the same images under one protocol, image by image, with confidence intervals."""

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Result files of eval.py; each is compared with the first."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The JSON file to write, with a picture beside it; the default is in the folder `comparisons` beside the first
    result, named after what is compared."""

    def run(self) -> None:
        """Carries the verb out."""
        if not 2 <= len(self.results) <= len(LETTERS):
            raise UserError(f"give from two to {len(LETTERS)} result files to compare, not {len(self.results)}")
        output = self.output or _default_output(self.results)
        if output.suffix != ".json" or output.is_dir():
            raise UserError(f"--output must be a JSON file, not '{output}'")
        if output.resolve() in [path.resolve() for path in self.results]:
            raise UserError(f"--output would overwrite '{output}', which is compared; choose another")
        check_writable(output.parent)
        loaded = [load_result(path) for path in self.results]
        first = loaded[0]
        for path, result in zip(self.results[1:], loaded[1:], strict=True):
            check_comparable(first, result, (str(self.results[0]), str(path)))

        say(f"{first['protocol']}, {len(first['per_image'])} images")
        for letter, path, result in zip(LETTERS, self.results, loaded, strict=False):
            say(f"{letter}: {path} (weights {str(result.get('weights_sha256'))[:12]})")
        records, gains, means = [], {}, {}
        for letter, path, result in zip(LETTERS[1:], self.results[1:], loaded[1:], strict=False):
            title = f"{letter} against A"
            settings = differing(first["inference"], result["inference"])
            for line in settings:
                say(f"A and {letter} were restored differently: {line}")
            compared = compare_scores(first, result)
            for name, rows in compared.items():
                _print_scores(title if name == "all" else f"{title}, {name}", letter, rows)
            gains[title], means[title] = psnr_gains(first, result), compared["all"][0]
            _print_gains(gains[title])
            records.append(
                {
                    "first": str(self.results[0]),
                    "second": str(path),
                    "settings": settings,
                    "scores": {name: [_record(row) for row in rows] for name, rows in compared.items()},
                    "psnr_gains": [{"name": name, "gain": gain} for name, gain in gains[title]],
                }
            )
        weights = {str(path): result.get("weights_sha256") for path, result in zip(self.results, loaded, strict=True)}
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, {"protocol": first["protocol"], "weights_sha256": weights, "comparisons": records})
        picture = output.with_suffix(".png")
        save_gains(picture, gains, means)
        say(f"wrote {output} and {picture.name}")


def _default_output(results: Sequence[Path]) -> Path:
    """`comparisons/FIRST-against-SECOND.json` beside the first; another name for every other comparison."""
    paths = [path.resolve() for path in results]
    common = os.path.commonpath([path.parent for path in paths])
    labels = ["-".join(path.with_suffix("").relative_to(common).parts) for path in paths]
    name = f"{labels[0]}-against-{labels[1]}" + (f"-and-{len(paths) - 2}-more" if len(paths) > 2 else "")
    short = os.fsencode(name)[:LONGEST_NAME].decode(errors="ignore")
    # Only two stems of one folder say by themselves which files are meant.
    if len(paths) > 2 or short != name or paths[0].parent != paths[1].parent:
        short += "-" + hashlib.sha256(b"\n".join(map(os.fsencode, paths))).hexdigest()[:8]
    return results[0].parent / "comparisons" / f"{short}.json"


def _print_scores(title: str, letter: str, rows: Sequence[Paired]) -> None:
    table = []
    for row in rows:
        digits = 3 if row.score.startswith("psnr") else 5
        interval = "" if row.interval is None else "{:+.{d}f} to {:+.{d}f}".format(*row.interval, d=digits)
        table.append(
            {
                "score": row.score,
                "A": f"{row.mean_first:.{digits}f}",
                letter: f"{row.mean_second:.{digits}f}",
                f"{letter} - A": f"{row.difference:+.{digits}f}",
                "95 % interval": interval,
                "higher": "" if row.higher is None else str(row.higher),
                "lower": "" if row.lower is None else str(row.lower),
                "sign test p": "" if row.sign_p is None else f"{row.sign_p:.2g}",
            }
        )
    mean_of = "" if rows[0].sets is None else f"mean of {rows[0].sets} sets, "
    print_table(f"{title}, {mean_of}{rows[0].images + rows[0].left_out} images", list(table[0]), table)
    for row in rows:
        if row.left_out:
            # Of the scores of the protocols only the PSNR can be infinite.
            why = "whose restored image equals the target" if row.score.startswith("psnr") else "with no finite value"
            say(f"{row.score}: {row.left_out} image(s) left out, {why}")
        if row.interval is None:
            say(f"{row.score}: no interval{_why_none(row)}")
    # Usually the same of all scores.
    for scenes in dict.fromkeys(row.scenes for row in rows if row.scenes is not None and row.interval is not None):
        scores = ", ".join(row.score for row in rows if row.scenes == scenes)
        say(f"{scores}: interval from {scenes} scenes, and so the sign test")


def _why_none(row: Paired) -> str:
    if row.sets is not None:
        return " of the mean over sets, as one of them has none"
    if row.scenes is None:
        return f", which takes two images or more, not {row.images}"
    return f", which takes two scenes or more, not {row.scenes}: images of one scene are not independent"


def _print_gains(gains: Sequence[tuple[str, float]]) -> None:
    for what, shown in (
        ("largest gains", [gain for gain in gains if gain[1] > 0][:SHOWN]),
        ("largest losses", [gain for gain in reversed(gains) if gain[1] < 0][:SHOWN]),
    ):
        listed = ", ".join(f"{name} {gain:+.2f} dB" for name, gain in shown)
        say(f"{what} in PSNR: {listed or 'none'}")


def _record(row: Paired) -> dict[str, Any]:
    """Ready for JSON, which has no NaN: null is the mean of no image."""
    fields = dataclasses.asdict(row).items()
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields}
