"""The `gamax` command: every verb calls one function."""

from __future__ import annotations

import dataclasses
import glob
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gamax.cli_data import Data
from gamax.console import print_table, progress_bar, say
from gamax.errors import UserError, exit_on_user_error
from gamax.files import check_writable, replace_atomically


@dataclasses.dataclass(frozen=True)
class Restore:
    """Restores photographs with trained weights."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or quoted patterns."""
    weights: Path
    """A run folder or a weight file."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """A file for one image, or a folder, where the names are kept; the default for one image is NAME_restored."""
    tile: str = "auto"
    """`whole` for the network's exact result, pixels a side for tiles, or `auto`: tiles above a megapixel."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share; the default is 96, or a quarter of a smaller tile."""
    compare_tiling: bool = False
    """Also restore each image whole and print by how much tiling changes it (takes the memory of the whole image)."""
    overwrite: bool = False
    """Replace outputs that exist."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.evaluation.restore_files import restore_files

        sources = [path for pattern in self.images for path in _expand(pattern)]
        restore_files(
            sources,
            self.output,
            self.weights,
            tile=self.tile,
            overlap=self.overlap,
            compare_tiling=self.compare_tiling,
            overwrite=self.overwrite,
        )


def _expand(pattern: str) -> list[Path]:
    """The files that a command-line argument stands for."""
    from gamax.data.images import list_images

    path = Path(pattern)
    if path.is_dir():
        return list_images(path)
    if path.exists() or not glob.has_magic(pattern):
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if not matches:
        raise UserError(f"no file matches '{pattern}'")
    return matches


@dataclasses.dataclass(frozen=True)
class Models:
    """Lists the networks."""

    output: Path | None = None
    """Write the page with everything about them, `docs/models.md`, to this file instead."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.benchmark.cost import model_multiply_adds
        from gamax.models import VARIANTS, abstract_params, count_parameters, create_model

        if self.output:
            from gamax.benchmark.models_page import models_page

            if self.output.is_dir():
                raise UserError(f"--output must be a file, not the folder '{self.output}'")
            check_writable(self.output.parent)
            with progress_bar("measuring", len(VARIANTS), "networks") as update:
                measured = iter(range(len(VARIANTS)))
                page = models_page(lambda name: update(next(measured), name))
                update(len(VARIANTS))
            self.output.parent.mkdir(parents=True, exist_ok=True)
            replace_atomically(self.output, page.encode())
            say(f"wrote {self.output}")
            return
        rows = []
        for name, variant in VARIANTS.items():
            model = create_model(name)
            params = abstract_params(model)
            rows.append(
                {
                    "name": name,
                    "arXiv": variant.paper,
                    "parameters": f"{count_parameters(params):,}",
                    "multiply-adds (256x256)": f"{model_multiply_adds(model, params, 256, 256) / 1e9:.3f} G",
                    "layout": variant.fidelity,
                    "source": variant.source,
                }
            )
        print_table("networks", list(rows[0]), rows)


@dataclasses.dataclass(frozen=True)
class Convert:
    """Converts PyTorch weights into a weight file of gamax, and such a file back."""

    file: tyro.conf.Positional[Path]
    """A `.pth`, `.pt` or `.safetensors` file, or a folder with a file for each part of a network."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """`.safetensors`; from a weight file of gamax also `.pth`."""
    model: str | None = None
    """Name of the network; `gamax models` lists them. A weight file of gamax knows it."""
    overrides: tuple[str, ...] = ()
    """Fields of the network that differ from the named one, for example `width=24`."""
    wrapper: str | None = None
    """Key of the state dict in the file, for example `params_ema`; the default is `params` before `params_ema`."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.config import parse_overrides
        from gamax.interop.convert import convert_file
        from gamax.models import count_parameters

        try:
            overrides = parse_overrides(self.overrides)
        except ValueError as error:
            raise UserError(f"--overrides: {error}") from error
        converted = convert_file(self.file, self.output, self.model, overrides, self.wrapper)
        say(
            f"{converted.model_name}: {len(converted.state_dict)} tensors, {count_parameters(converted.params):,} "
            f"parameters, every one used; wrote {self.output}"
        )
        _compare_with_torch(converted)


def _compare_with_torch(converted: Any) -> None:
    """Prints how far the network is from PyTorch's, part by part, if PyTorch and the network are there to be run."""
    import importlib.util

    from gamax.interop.parity import TOLERANCE, parity, torch_twin

    if importlib.util.find_spec("torch") is None:
        say("not compared with PyTorch, which is not installed: pip install 'gamax[torch]'")
        return
    twin = torch_twin(converted.state_dict)
    if twin is None:
        say("not compared with PyTorch: no installed package has this network (spandrel, spandrel_extra_arches)")
        return
    rows = parity(converted.model, converted.params, twin)
    table = [{"part": name, "largest difference": f"{difference:.1e}"} for name, difference in rows]
    print_table("compared with PyTorch on noise, relative to the largest value of each part", list(table[0]), table)
    agree = [difference < TOLERANCE for _, difference in rows]
    say("they agree" if all(agree) else f"WARNING: {agree.count(False)} parts differ by more than {TOLERANCE:g}")


@dataclasses.dataclass(frozen=True)
class BenchInfer:
    """Measures latency and memory of networks, each in a process of its own."""

    models: tuple[str, ...] = ("gama_ir_tiny", "gama_ir_s")
    """Names of networks; `gamax models` lists them."""
    sizes: tuple[str, ...] = ("256x256",)
    """Image sizes, HEIGHTxWIDTH."""
    batch: int = 1
    """Images in one call."""
    precision: Literal["fp32-strict", "tf32", "bf16"] = "fp32-strict"
    """See `gamax.benchmark.latency.Case`."""
    repeats: int = 20
    """Timed calls."""
    output: Path | None = None
    """Append the rows to this file as JSON lines."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.benchmark.latency import Case, measure
        from gamax.models import variant

        if self.batch < 1 or self.repeats < 1 or not self.models or not self.sizes:
            raise UserError("bench needs at least one model and size, and a batch and repeats of at least 1")
        for model in self.models:
            variant(model)
        _check_lines(self.output)
        sizes = [_parse_size(size) for size in self.sizes]
        rows = []
        for model in self.models:
            for height, width in sizes:
                row = measure(Case(model, height, width, self.batch, self.precision, self.repeats))
                _write_line(self.output, row)
                rows.append(
                    {
                        "model": model,
                        "device": row["environment"]["devices"][0],
                        "size": f"{self.batch}x{height}x{width}",
                        "median ms": f"{row['latency_ms_median']:.1f}",
                        "p10": f"{row['latency_ms_p10']:.1f}",
                        "p90": f"{row['latency_ms_p90']:.1f}",
                        "compile s": f"{row['compile_seconds']:.1f}",
                        "peak MB": f"{row['peak_memory_bytes'] / 1e6:.0f}",
                        "params": f"{row['parameters']:,}",
                        "G multiply-adds": f"{row['multiply_adds'] / 1e9:.2f}",
                    }
                )
        print_table(f"precision {self.precision}", list(rows[0]), rows)


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


def _parse_size(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)x([0-9]+)", size)
    height, width = map(int, match.groups()) if match else (0, 0)
    if min(height, width) < 2:
        raise UserError(f"'{size}' is not a size; write HEIGHTxWIDTH, for example 256x256")
    return height, width


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
class Bench:
    """Measures speed and memory."""

    verb: (
        Annotated[BenchInfer, tyro.conf.subcommand("infer", prefix_name=False)]
        | Annotated[BenchData, tyro.conf.subcommand("data", prefix_name=False)]
    )

    def run(self) -> None:
        """Carries the verb out."""
        self.verb.run()


VERBS: dict[str, Callable[..., Any]] = {
    "restore": Restore,
    "models": Models,
    "convert": Convert,
    "bench": Bench,
    "data": Data,
}


def main() -> None:
    """Entry point of the `gamax` command."""
    with exit_on_user_error():
        tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="gamax", description="Image restoration in JAX.", config=(tyro.conf.OmitArgPrefixes,)
        ).run()


if __name__ == "__main__":
    main()
