"""The studies of `gamax bench`: correlation and scaling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from gamax.cli_bench_compare import Precision
from gamax.console import print_table, say
from gamax.errors import UserError
from gamax.files import check_writable

_TITLES = {"latency_ms_median": "latency", "program_bytes": "memory of the program"}


@dataclasses.dataclass(frozen=True)
class BenchCorrelation:
    """Measures how well multiply-adds, parameters and other counts predict latency and memory, over 51 networks.

    Families of GAMA-IR, NAFNet, Restormer and UNet over widths and depths, as in Figure 2 of the paper of GAMA-IR.
    Writes rows.jsonl, correlations.json, a CSV and plots; an interrupted study goes on.
    """

    size: str = "256x256"
    """Image size, HEIGHTxWIDTH."""
    networks: int | None = None
    """So many networks, spread over the families and their shapes; the default is all."""
    precision: Precision = "fp32-strict"
    """`fp32-strict`, `tf32` (where the device has it) or `bf16`."""
    repeats: int = 10
    """Timed calls of each network; fewer where they take more than 6 seconds, but at least 3."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/correlation")
    """The folder for rows, tables and plots."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.benchmark.case import parse_size
        from gamax.benchmark.correlation import FEWEST_SHAPES, TARGETS, population, spread, study
        from gamax.benchmark.plots import PROGRAM_MEMORY

        _check_folder(self.output)
        height, width = parse_size(self.size)
        cases = population(height, width, self.precision, self.repeats)
        if self.networks is not None:
            cases = spread(cases, self.networks)
        rows, missing, correlations, paths = study(cases, self.output)
        for target in TARGETS:
            lines = [_correlation_line(line) for line in correlations if line["target"] == target]
            print_table(
                f"{_TITLES[target]} on {rows[0]['device']}, {self.precision}, {self.size}: correlations, with 95 % "
                f"intervals from {FEWEST_SHAPES} shapes up",
                ["family", "predictor", "Pearson", "of logarithms", "Spearman"],
                lines,
            )
        say(f"memory: {PROGRAM_MEMORY}")
        _finish(missing, paths)


def _correlation_line(line: Mapping[str, Any]) -> dict[str, str]:
    return {
        "family": f"{line['family']} ({line['networks']} of {line['shapes']} shapes)",
        "predictor": line["predictor"].replace("_", " "),
        "Pearson": _with_interval(line["pearson"], line["pearson_low"], line["pearson_high"]),
        "of logarithms": _with_interval(line["pearson_log"], line["pearson_log_low"], line["pearson_log_high"]),
        "Spearman": _with_interval(line["spearman"], line["spearman_low"], line["spearman_high"]),
    }


@dataclasses.dataclass(frozen=True)
class BenchScaling:
    """Measures how latency and memory grow with pixels, width, batch and simulated devices.

    A choice without values leaves its sweep out. Writes rows.jsonl, devices.jsonl, scaling.json and a plot; an
    interrupted study goes on. What would not fit into memory is left out, which is said.
    """

    models: tuple[str, ...] = ("gama_ir_s", "nafnet_sidd_w32", "unet")
    """Names of networks; `gamax models` lists them."""
    sides: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    """Sides of square images, in pixels."""
    widths: tuple[int, ...] = (16, 32, 48, 64)
    """Channels at full resolution, for 256x256."""
    batches: tuple[int, ...] = (1, 2, 4, 8)
    """Images in a call, of 256x256."""
    devices: tuple[int, ...] = (1, 2, 4)
    """Simulated devices that share the rows of a 512x512 image, and the cores of this machine."""
    precision: Precision = "fp32-strict"
    """`fp32-strict`, `tf32` (where the device has it) or `bf16`."""
    repeats: int = 5
    """Timed calls of each point; fewer where they take more than 6 seconds, but at least 3."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/scaling")
    """The folder for rows and plot."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.benchmark.case import check_case
        from gamax.benchmark.plots import PROGRAM_MEMORY
        from gamax.benchmark.report import time_cells
        from gamax.benchmark.scaling import CAVEAT, points, study

        choices = (self.sides, self.widths, self.batches, self.devices)
        if not self.models or not any(choices) or min((*choices[0], *choices[1], *choices[2], *choices[3])) < 1:
            raise UserError("bench scaling needs a model and a sweep, and values of at least 1")
        planned = [
            point
            for model in self.models
            for point in points(model, *choices, precision=self.precision, repeats=self.repeats)
        ]
        for point in planned:
            check_case(point.case)
        _check_folder(self.output)
        rows, missing, fits, paths = study(planned, self.output)
        table = [
            {
                "sweep": row["sweep"],
                "model": row["model"],
                "at": f"{row['along']:.4g}",
                **time_cells(row),
                "program MB": f"{row['program_bytes'] / 1e6:.3g}",
                "G multiply-adds": f"{row['multiply_adds'] / 1e9:.2f}",
            }
            for row in rows
        ]
        # The split image is always measured on the processor.
        measured_on = "; ".join(dict.fromkeys(row["device"] for row in rows))
        print_table(
            f"{measured_on}, {self.precision}; pixels in millions; memory: {PROGRAM_MEMORY}, of one device",
            [*table[0]],
            table,
        )
        slopes = [
            {
                "sweep": fit["sweep"],
                "model": fit["model"],
                "points": str(fit["points"]),
                **{name: _with_interval(*fit[name].values()) for name in ("latency", "memory")},
            }
            for fit in fits
        ]
        columns = ["sweep", "model", "points", "latency", "memory"]
        print_table("exponents of power laws, with 95 % intervals: 1 is proportional", columns, slopes)
        if self.devices:
            say(f"note: {CAVEAT}")
        _finish(missing, paths)


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"--output must be a folder, not the file '{folder}'")
    check_writable(folder)


def _finish(missing: Sequence[str], paths: Sequence[Path]) -> None:
    for reason in missing:
        say(reason)
    for path in paths:
        say(f"wrote {path}")
