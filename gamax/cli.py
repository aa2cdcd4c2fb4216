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

from gamax.config import DataConfig, check_data
from gamax.console import print_table, say
from gamax.errors import UserError, exit_on_user_error
from gamax.files import check_writable


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

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.benchmark.cost import model_multiply_adds
        from gamax.models import VARIANTS, abstract_params, count_parameters, create_model

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
class Bench:
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
        if self.output:
            if self.output.is_dir():
                raise UserError(f"--output must be a file, not the folder '{self.output}'")
            check_writable(self.output.parent)
            self.output.parent.mkdir(parents=True, exist_ok=True)
        sizes = [_parse_size(size) for size in self.sizes]
        rows = []
        for model in self.models:
            for height, width in sizes:
                row = measure(Case(model, height, width, self.batch, self.precision, self.repeats))
                line = json.dumps(row)
                print(line, flush=True)
                if self.output:
                    with self.output.open("a") as file:
                        file.write(line + "\n")
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


def _parse_size(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)x([0-9]+)", size)
    height, width = map(int, match.groups()) if match else (0, 0)
    if min(height, width) < 2:
        raise UserError(f"'{size}' is not a size; write HEIGHTxWIDTH, for example 256x256")
    return height, width


@dataclasses.dataclass(frozen=True)
class DataCheck:
    """Reads every image of a folder and lists what is unreadable, unpaired or mixed in bit depth."""

    folder: tyro.conf.Positional[Path]
    """The images, or `input/` and `target/`, or `train/` and `test/` with either below them."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.data.datasets import check_folder

        parts = [part for name in ("train", "test") if (part := self.folder / name).is_dir()]
        problems, bit_depths = 0, set()
        for folder in parts or [self.folder]:
            paired = (folder / "input").is_dir() or (folder / "target").is_dir()
            summary = check_folder(folder, paired)
            kind = "pairs" if paired else "images"
            sizes = sorted(summary.sizes.items(), key=lambda item: -item[1])
            rows = [{"width x height": f"{width}x{height}", kind: str(count)} for (height, width), count in sizes[:10]]
            depths = ", ".join(f"{count} of {depth} bits" for depth, count in summary.bit_depths.items())
            title = f"{folder}: {summary.num_examples} {kind} ({depths}), {len(sizes)} sizes, the commonest:"
            print_table(title, ["width x height", kind], rows)
            for problem in summary.problems:
                say(f"problem: {problem}")
            problems += len(summary.problems)
            bit_depths |= set(summary.bit_depths)
        if len(bit_depths) > 1 and parts:
            say(f"problem: the parts differ in bit depth ({' and '.join(map(str, sorted(bit_depths)))}); convert one")
            problems += 1
        if problems:
            raise UserError(f"'{self.folder}' has {problems} problem(s), listed above")
        say("every image is readable")


@dataclasses.dataclass(frozen=True)
class DataPrepare:
    """Cuts and stores a training set now, as `train.py` would at its start."""

    data: tyro.conf.AvoidSubcommands[DataConfig] = dataclasses.field(default_factory=DataConfig)
    """The same fields as in a configuration file."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.data.datasets import prepare

        check_data(self.data)
        prepared = prepare(self.data)
        tests = f", {len(prepared.test)} test images" if prepared.test is not None else ""
        say(f"{prepared.num_train_images} training images in {len(prepared.train)} cuts{tests}: ready")


@dataclasses.dataclass(frozen=True)
class Data:
    """Checks and prepares images."""

    verb: (
        Annotated[DataCheck, tyro.conf.subcommand("check", prefix_name=False)]
        | Annotated[DataPrepare, tyro.conf.subcommand("prepare", prefix_name=False)]
    )

    def run(self) -> None:
        """Carries the verb out."""
        self.verb.run()


VERBS: dict[str, Callable[..., Any]] = {"restore": Restore, "models": Models, "bench": Bench, "data": Data}


def main() -> None:
    """Entry point of the `gamax` command."""
    with exit_on_user_error():
        tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="gamax", description="Image restoration in JAX.", config=(tyro.conf.OmitArgPrefixes,)
        ).run()


if __name__ == "__main__":
    main()
