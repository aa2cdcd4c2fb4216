"""The verbs of `gamax bench`."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gamax.cli_bench_compare import BenchCompare, Precision, cases_of
from gamax.cli_bench_studies import BenchCorrelation, BenchScaling
from gamax.console import print_table, say
from gamax.errors import UserError
from gamax.files import check_writable


@dataclasses.dataclass(frozen=True)
class BenchInfer:
    """Measures latency and memory of networks in JAX, each in a process of its own."""

    models: tuple[str, ...] = ("gama_ir_tiny", "gama_ir_s")
    """Names of networks; `gamax models` lists them."""
    sizes: tuple[str, ...] = ("256x256",)
    """Image sizes, HEIGHTxWIDTH."""
    batch: tuple[int, ...] = (1,)
    """Images in one call."""
    precision: tuple[Precision, ...] = ("fp32-strict",)
    """`fp32-strict`, `tf32` (where the device has it) or `bf16`; docs/benchmark.md says what they are."""
    overrides: tuple[str, ...] = ()
    """Fields of the networks that differ from the named ones, for example `width=24` or `blocks=1,1,1,2`."""
    repeats: int = 20
    """Timed calls; fewer where they take more than 6 seconds, but at least 3."""
    output: Path | None = None
    """Append the rows to this file as JSON lines."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.benchmark.latency import measure
        from gamax.benchmark.report import time_cells
        from gamax.benchmark.roofline import measure_roofline

        choices = (self.models, self.sizes, self.batch, self.precision)
        cases = cases_of(*choices, "infer", ("jax",), self.overrides, self.repeats)
        _check_lines(self.output)
        rooflines = {precision: measure_roofline(precision) for precision in self.precision}
        rows = []
        for (case,) in cases:
            rows += measure([case], rounds=1, roofline=rooflines[case.precision])
            _write_line(self.output, rows[-1])
        table = [
            {
                "model": row["model"],
                "size": f"{row['batch']}x{row['height']}x{row['width']}",
                "precision": row["precision"],
                **time_cells(row),
                "compile s": f"{row['compile_cold_seconds']:.1f}",
                "peak MB": f"{row['peak_memory_bytes'] / 1e6:.0f}",
                "of roofline": f"{row['roofline_fraction']:.0%}",
                "params": f"{row['parameters']:,}",
                "G multiply-adds": f"{row['multiply_adds'] / 1e9:.2f}",
            }
            for row in rows
        ]
        title = f"{rows[0]['device']}, jax {rows[0]['versions']['jax']}; memory: {rows[0]['peak_memory_method']}"
        print_table(title, list(table[0]), table)


def _check_lines(output: Path | None) -> None:
    if output:
        if output.is_dir():
            raise UserError(f"--output must be a file, not the folder '{output}'")
        check_writable(output.parent)
        output.parent.mkdir(parents=True, exist_ok=True)


def _write_line(output: Path | None, row: dict[str, Any]) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    if output:
        with output.open("a") as file:
            file.write(line + "\n")


@dataclasses.dataclass(frozen=True)
class BenchData:
    """Measures how fast training images are read: the input pipeline against a plain loop, each in its own process."""

    dataset: str = "sample_photographs"
    """Name of a dataset; `gamax data list` prints them."""
    source: str | None = None
    """Its folder."""
    prepared_dir: str | None = None
    """Where prepared datasets are stored; the set is prepared there in both encodings if it is not yet."""
    storages: tuple[Literal["files", "png", "raw"], ...] = ("files", "png", "raw")
    """Original whole images, and the prepared cuts in each encoding."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of reading threads."""
    cores: tuple[int, ...] = ()
    """Also bind the process to so many cores, for each number; none leaves it free."""
    patch_size: int = 256
    """Side of the crops."""
    batch: int = 8
    """Crops in a batch."""
    seconds: float = 5.0
    """How long each row is measured."""
    repeats: int = 3
    """Rounds over all rows, so that what disturbs the machine disturbs all of them; the table shows medians."""
    output: Path | None = None
    """Append the rows to this file as JSON lines."""

    def run(self) -> None:
        """Carries the verb out."""
        import numpy as np

        from gamax.benchmark.loading import Case, check_case, data_config, measure
        from gamax.data.datasets import prepare, training_channels

        counts = (*self.workers, *self.cores, self.batch, self.repeats, self.patch_size)
        if min(counts) < 1 or self.seconds <= 0 or not self.workers or not self.storages:
            raise UserError(
                "bench data needs a storage, seconds above 0, and workers, cores, batch, repeats and patch size of at "
                "least 1"
            )
        _check_lines(self.output)
        place = (self.dataset, self.source, self.prepared_dir)
        cases = [
            Case(*place, storage, reader, workers, cores, self.patch_size, self.batch, self.seconds)
            for storage in self.storages
            for cores in self.cores or (None,)
            for workers in self.workers
            for reader in ("loop", "pipeline")
        ]
        for case in cases:
            check_case(case)
        training_channels(data_config(cases[0]))
        # Here, where it shows its progress.
        for config in {case.storage: data_config(case) for case in cases if case.storage != "files"}.values():
            records = len(prepare(config, training=False).train)
            if records < 1000:
                say(f"note: with {records} records, shuffling takes a large part of the pipeline's time (docs/data.md)")
        measured: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
        for _ in range(self.repeats):
            for case in cases:
                row = measure(case)
                _write_line(self.output, row)
                measured[case].append(row)

        def median(case: Case, key: str) -> float:
            return float(np.median([row[key] for row in measured[case]]))

        stages = {"fetch ms": "fetch_ms", "decode ms": "decode_ms", "crop, batch": "crop_and_batch_ms"}
        rows = []
        for case in cases:
            loop = median(dataclasses.replace(case, reader="loop"), "examples_per_second")
            rate = median(case, "examples_per_second")
            rows.append(
                {
                    "stored as": case.storage,
                    "reader": case.reader,
                    "workers": str(case.workers),
                    "cores": str(case.cores or "free"),
                    "examples/s": f"{rate:.0f}",
                    "of the loop": f"{rate / loop:.0%}",
                    "cores used": f"{median(case, 'cores_used'):.2f}",
                    **{name: f"{median(case, key):.2f}" for name, key in stages.items() if key in measured[case][0]},
                }
            )
        images = measured[cases[0]][0]["images_per_example"]
        title = (
            f"{self.dataset}: {images} crop(s) of {self.patch_size} from an example; medians of {self.repeats} rounds"
        )
        columns = ["stored as", "reader", "workers", "cores", "examples/s", "of the loop", "cores used", *stages]
        print_table(title, columns, rows)


@dataclasses.dataclass(frozen=True)
class BenchTrain:
    """Measures training steps with the input pipeline in front of them, each row in a process of its own."""

    models: tuple[str, ...] = ("gama_ir_tiny", "gama_ir_s")
    """Names of networks; `gamax models` lists them."""
    patch_size: tuple[int, ...] = (256,)
    """Sides of the crops, in pixels."""
    batch_size: tuple[int, ...] = (2,)
    """Crops in one step over all devices."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Precisions of the computation."""
    remat: tuple[bool, ...] = (False, True)
    """Whether blocks are computed again for the gradient instead of being stored."""
    steps: int = 20
    """Measured steps of each row."""
    prepared_dir: str | None = None
    """Where prepared datasets are stored; the photographs of scikit-image are prepared there if they are not yet."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Append the rows to this file as JSON lines."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.benchmark.throughput import Case, experiment_of, measure
        from gamax.data.datasets import prepare
        from gamax.models import create_model

        choices = (self.models, self.patch_size, self.batch_size, self.dtypes, self.remat)
        if not all(choices) or min(*self.patch_size, *self.batch_size, self.steps) < 1:
            raise UserError(
                "bench train needs a model, a dtype and a choice of remat, and patch sizes, batch sizes and steps of "
                "at least 1"
            )
        cases = [Case(*choice, self.steps, self.prepared_dir) for choice in itertools.product(*choices)]
        for case in cases:
            if create_model(case.model).input_channels < 3:
                raise UserError(f"bench train is on RGB photographs; {case.model} takes gray ones")
        _check_lines(self.output)
        # Here, where it shows its progress; the largest crops must fit the photographs.
        prepare(experiment_of(max(cases, key=lambda case: case.patch_size)).data)
        for model, group in itertools.groupby(cases, key=lambda case: case.model):
            rows = []
            for case in group:
                row = measure(case)
                _write_line(self.output, row)
                rows.append(
                    {
                        "crops": f"{case.batch_size}x{case.patch_size}",
                        "dtype": case.dtype,
                        "remat": "yes" if case.remat else "no",
                        "images/s": f"{row['images_per_second_median']:.2f}",
                        "p10": f"{row['images_per_second_p10']:.2f}",
                        "p90": f"{row['images_per_second_p90']:.2f}",
                        "step ms": f"{row['step_ms_median']:.0f}",
                        "input wait": f"{row['input_wait']:.1%}",
                        "peak MB": f"{row['peak_memory_bytes'] / 1e6:.0f}",
                        "compile s": f"{row['compile_seconds']:.1f}",
                        "G multiply-adds": f"{row['multiply_adds'] / 1e9:.1f}",
                    }
                )
            devices, version = row["environment"]["devices"], row["versions"]["jax"]
            title = (
                f"{model}: medians of {self.steps} steps on {len(devices)} x {devices[0]}, jax {version}; peak memory: "
                f"{row['peak_memory_method']}"
            )
            print_table(title, list(rows[0]), rows)


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measures speed and memory."""

    verb: (
        Annotated[BenchInfer, tyro.conf.subcommand("infer", prefix_name=False)]
        | Annotated[BenchCompare, tyro.conf.subcommand("compare", prefix_name=False)]
        | Annotated[BenchData, tyro.conf.subcommand("data", prefix_name=False)]
        | Annotated[BenchTrain, tyro.conf.subcommand("train", prefix_name=False)]
        | Annotated[BenchCorrelation, tyro.conf.subcommand("correlation", prefix_name=False)]
        | Annotated[BenchScaling, tyro.conf.subcommand("scaling", prefix_name=False)]
    )

    def run(self) -> None:
        """Carries the verb out."""
        self.verb.run()
