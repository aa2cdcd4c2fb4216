"""The verbs of `gamax lab`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import tyro

from gamax.cli_lab_studies import LabAblation, LabLandscape, LabMemorise, LabReceptiveField, LabSwap
from gamax.console import print_table, say
from gamax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LabExplain:
    """Shows what a network did on a photograph: attention, filters, samples, levels and error, as pictures."""

    weights: tyro.conf.Positional[Path]
    """A run folder or a weight file."""
    photo: tyro.conf.Positional[Path]
    """The photograph."""
    target: Path | None = None
    """Its sharp or clean version, of the same size; without one there is no error to draw."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The folder; the default is NAME_explained beside the photograph."""
    at: Annotated[str | None, tyro.conf.arg(metavar="ROW,COLUMN")] = None
    """The pixel that is looked at, from 0; the default is the centre, and nine places for the filters."""
    size: int = 512
    """Sides above this many pixels are cropped around that pixel, as all maps are held in memory."""
    overwrite: bool = False
    """Replace the files of an earlier run."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.lab.explain import explain_photo

        at = None if self.at is None else parse_point(self.at)
        options = {"target": self.target, "output": self.output, "size": self.size, "overwrite": self.overwrite}
        record, written = explain_photo(self.weights, self.photo, at=at, **options)
        for title, rows in _tables(record):
            print_table(title, list(dict.fromkeys(column for row in rows for column in row)), rows)
        if self.target is None:
            say("no --target: error.png and all PSNR are left out")
        for path in written:
            say(f"wrote {path}")


@dataclasses.dataclass(frozen=True)
class Lab:
    """Looks into networks, and tries blocks."""

    verb: (
        Annotated[LabExplain, tyro.conf.subcommand("explain", prefix_name=False)]
        | Annotated[LabMemorise, tyro.conf.subcommand("memorise", prefix_name=False)]
        | Annotated[LabAblation, tyro.conf.subcommand("ablation", prefix_name=False)]
        | Annotated[LabReceptiveField, tyro.conf.subcommand("receptive-field", prefix_name=False)]
        | Annotated[LabSwap, tyro.conf.subcommand("swap", prefix_name=False)]
        | Annotated[LabLandscape, tyro.conf.subcommand("landscape", prefix_name=False)]
    )
    """What to look at, or to try."""

    def run(self) -> None:
        """Carries the verb out."""
        self.verb.run()


def parse_point(text: str) -> tuple[int, int]:
    """Row and column of `ROW,COLUMN`."""
    match = re.fullmatch(r"([0-9]+),([0-9]+)", text)
    if not match:
        raise UserError(f"--at '{text}' is not a pixel; write ROW,COLUMN, for example 120,80")
    return int(match[1]), int(match[2])


def _tables(record: dict[str, Any]) -> list[tuple[str, list[dict[str, str]]]]:
    """Title and rows of each table that there is something for."""
    tables = []
    if record["modules"]:
        rows = [{"module": path, **_cells(values)} for path, values in record["modules"].items()]
        tables.append(("modules, in the order in which they run", rows))
    if record["stages"]:
        rows = [{"stage": str(index), **_cells(values)} for index, values in enumerate(record["stages"], 1)]
        tables.append(("stages of the adaptive sampling; PSNR in dB", rows))
    if "psnr" in record:
        names = ["input", *(f"output {index}" for index in range(1, len(record["psnr"]["outputs"]) + 1))]
        values = [record["psnr"]["input"], *record["psnr"]["outputs"]]
        rows = [{"image": name, **_cells({"psnr": value})} for name, value in zip(names, values, strict=True)]
        tables.append(("PSNR in dB", rows))
    if "error" in record:
        rows = [{"mean absolute error": name, **_cells(values)} for name, values in record["error"].items()]
        tables.append(("error at the pixels that were refined and elsewhere; white is 1", rows))
    return tables


def _cells(values: dict[str, Any]) -> dict[str, str]:
    def text(name: str, value: Any) -> str:
        if value is None:
            return "equal"
        return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if "psnr" in name else f"{value:.4g}"

    return {name.replace("_", " "): text(name, value) for name, value in values.items()}
