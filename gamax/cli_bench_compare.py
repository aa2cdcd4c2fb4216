"""`gamax bench compare`: JAX against PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gamax.console import print_table, say
from gamax.errors import UserError
from gamax.files import check_writable

if TYPE_CHECKING:
    from gamax.benchmark.case import Case

MODELS = ("gama_ir_s", "gama_ir_l", "nafnet_sidd_w32", "nafnet_sidd_w64", "restormer", "lir", "unet")

Precision = Literal["fp32-strict", "tf32", "bf16"]
Backend = Literal["jax", "torch-eager", "torch-eager-channels-last", "torch-compile", "torch-compile-max-autotune"]


@dataclasses.dataclass(frozen=True)
class BenchCompare:
    """Measures the same networks with the same weights in JAX and PyTorch, in turns, and compares what may be compared.

    Writes rows.jsonl, a CSV and plots; an interrupted run goes on. Refuses rows whose outputs, precisions, devices,
    code, versions or systems differ, and then exits with code 2.
    """

    models: tuple[str, ...] = MODELS
    """Names of networks; `gamax models` lists them."""
    sizes: tuple[str, ...] = ("256x256",)
    """Image sizes, HEIGHTxWIDTH."""
    batch: tuple[int, ...] = (1,)
    """Images in one call."""
    precision: tuple[Precision, ...] = ("fp32-strict",)
    """`fp32-strict`, `tf32` (where the device has it) or `bf16`; docs/benchmark.md says what they are."""
    task: Literal["infer", "train"] = "infer"
    """One forward pass, or a training step: loss, gradient and AdamW update."""
    backends: tuple[Backend, ...] = ("jax", "torch-eager", "torch-eager-channels-last", "torch-compile")
    """What to compare; the outputs of the first that runs are the reference for parity."""
    overrides: tuple[str, ...] = ()
    """Fields of the networks that differ from the named ones, for example `width=24` or `blocks=1,1,1,2`."""
    repeats: int = 20
    """Timed calls of each row; fewer where they take more than 6 seconds, but at least 3."""
    rounds: int = 3
    """In how many rounds they are made: each backend in its turn, again and again."""
    rows: tuple[Path, ...] = ()
    """Compare the rows of these files instead of measuring."""
    results: tuple[Path, ...] = ()
    """Result files of eval.py, all under one protocol, for the plot of PSNR against latency."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/benchmark")
    """The folder for rows, CSV files and plots."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.benchmark.comparison import measure_groups, read_rows

        if self.output.is_file():
            raise UserError(f"--output must be a folder, not the file '{self.output}'")
        check_writable(self.output)
        if self.rows:
            rows = read_rows(self.rows)
        else:
            if self.rounds < 1:
                raise UserError(f"bench compare needs at least one round, not {self.rounds}")
            choices = (self.models, self.sizes, self.batch, self.precision, self.task, self.backends)
            rows = measure_groups(cases_of(*choices, self.overrides, self.repeats), self.rounds, self.output)
        self.output.mkdir(parents=True, exist_ok=True)
        report_comparison(rows, self.output, self.results)


def cases_of(
    models: Sequence[str],
    sizes: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[Precision],
    task: Literal["infer", "train"],
    backends: Sequence[Backend],
    overrides: Sequence[str],
    repeats: int,
) -> list[list[Case]]:
    """A group of cases, one for each backend, for every choice of the other options; all are checked.

    Raises:
        UserError: for a choice that is empty or that no backend can measure.

    """
    from gamax.benchmark.case import Case, check_case, parse_size
    from gamax.config import parse_overrides

    if not (models and sizes and batches and precisions and backends):
        raise UserError("bench needs at least one model, size, batch, precision and backend")
    try:
        fields = parse_overrides(overrides)
    except ValueError as error:
        raise UserError(f"--overrides: {error}") from error
    groups = [
        [Case(model, *size, batch, task, precision, backend, fields, repeats) for backend in backends]
        for precision, size, batch, model in itertools.product(precisions, map(parse_size, sizes), batches, models)
    ]
    for group in groups:
        check_case(group[0])
    return groups


def report_comparison(rows: Sequence[Mapping[str, Any]], folder: Path, results: Sequence[Path]) -> None:
    """Prints tables of rows and writes CSV files and plots of those that may be compared.

    Raises:
        UserError: in the end, if any may not.

    """
    from gamax.benchmark.report import COLUMNS, check_comparable, comparisons, table, threads_note, write_csv

    tables: dict[tuple[Any, ...], list[dict[str, str]]] = {}
    titles, refused, kept = {}, [], []
    groups = comparisons(rows)
    for group in groups:
        try:
            check_comparable(group)
            kept += [row for row in group if "failure" not in row]
            comparable = True
        except UserError as error:
            refused.append(str(error))
            comparable = False
        for row in group:
            which = (row["task"], row["precision"], row["height"], row["width"], row["batch"])
            if "failure" not in row:
                titles[which] = f"{row['device']}; memory: {row['peak_memory_method']}"
        for precision in dict.fromkeys(row["precision"] for row in group):
            row = group[0]
            which = (row["task"], precision, row["height"], row["width"], row["batch"])
            same = [row for row in group if row["precision"] == precision]
            tables.setdefault(which, []).extend(table(same, comparable=comparable))
    for which, lines in tables.items():
        task, precision, height, width, batch = which
        print_table(f"{task}, {precision}, {batch}x{height}x{width}; {titles.get(which, '')}", COLUMNS, lines)
    for row in rows:
        if "failure" in row:
            say(row["failure"])
    for note in dict.fromkeys(map(threads_note, groups)):
        if note:
            say(f"note: {note}")
    paths = [*write_csv(kept, folder), *draw_comparison(kept, folder, results)]
    for path in paths:
        say(f"wrote {path}")
    if refused:
        raise UserError(f"{len(refused)} of {len(groups)} comparisons refused: {'; '.join(refused)}")


def draw_comparison(rows: Sequence[Mapping[str, Any]], folder: Path, results: Sequence[Path]) -> list[Path]:
    """Draws the plots of each task, precision, size and batch, and of all sizes where there are several."""
    from gamax.benchmark import plots
    from gamax.benchmark.report import file_stem

    paths = []

    def draw(plot: Callable[..., Any], group: list[Any], name: str, *arguments: Any) -> None:
        paths.append(folder / f"{file_stem(group)}-{name}.png")
        plot(group, paths[-1], *arguments)

    for group in _grouped(rows, "task", "precision", "height", "width", "batch"):
        size = "{batch}x{height}x{width}".format(**group[0])
        draw(plots.latency_against_multiply_adds, group, f"{size}-latency-multiply-adds")
        draw(plots.memory_against_parameters, group, f"{size}-memory-parameters")
        if results or any(row["model"] in plots.PUBLISHED_SIDD and not row["overrides"] for row in group):
            draw(plots.latency_against_psnr, group, f"{size}-latency-psnr", results)
    for group in _grouped(rows, "task", "precision", "batch"):
        if len({(row["height"], row["width"]) for row in group}) > 1:
            draw(plots.scaling_with_pixels, group, f"batch{group[0]['batch']}-scaling")
    return paths


def _grouped(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[list[Any]]:
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())
