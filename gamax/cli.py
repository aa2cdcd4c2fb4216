"""The `gamax` command: every verb calls one function."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gamax.cli_bench import Bench
from gamax.cli_compare import Compare
from gamax.cli_data import Data
from gamax.cli_demo import Demo
from gamax.cli_export import Export
from gamax.cli_lab import Lab
from gamax.cli_plan import TrainPlan
from gamax.console import print_table, progress_bar, say
from gamax.errors import UserError, exit_on_user_error
from gamax.files import check_writable, replace_atomically


@dataclasses.dataclass(frozen=True)
class Restore:
    """Restores photographs; without further options it removes noise with weights that come with gamax."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or quoted patterns."""
    weights: Path | None = None
    """A run folder, a weight file, or the name of weights that come with gamax (`gamax models` lists them); the default
    is those for the task."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """A file for one image, or a folder, where names are kept and finished files skipped; else NAME_restored."""
    task: Literal["denoise", "deblur", "defocus", "derain", "dehaze"] | None = None
    """Chooses the weights, those for denoise by default; with --weights, what the field does at test time for this
    task: for deblur a local window of 384, where the network has one."""
    tile: str = "auto"
    """`whole` for the network's exact result, pixels a side for tiles, or `auto`: tiles above a megapixel."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share; the default is 96, or a quarter of a smaller tile."""
    sliding_window: Literal["swintormer"] | None = None
    """Cut images as the authors of this network do to score it, instead of --tile and --overlap."""
    local_window: int | None = None
    """Replace the network's means over the image by means over so many pixels (TLC); 0 for none, whatever the task."""
    self_ensemble: bool = False
    """Mean over the eight flips and turns of each image: eight times as long."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the network computes in; the default is that of its training."""
    rows: int = 1
    """Devices that share the rows of an image which is too large for one."""
    prior: Path | None = None
    """For a network that takes a prior of the image: the one that it was trained with, a folder of `gamax data prior`,
    whose model and settings are taken, or a run folder or weight file of a latent diffusion model."""
    windows_at_once: int = 8
    """Windows of a prior that go through its model together on each device; fewer take less memory."""
    right: Path | None = None
    """The right view, for a dual-pixel network; of several images their folder: same names, or _R for _L."""
    batch_size: int = 1
    """Images of one size that go through the network together, such as frames of a video."""
    exact_sizes: bool = False
    """Compile a program for every size of image instead of padding them to few sizes."""
    compare: bool = False
    """Also write a picture before and after: NAME_compare.png, or compare/NAME.png in the folder."""
    compare_tiling: bool = False
    """Also restore each image whole, if memory allows, and print by how much tiling changes it; not with --prior."""
    overwrite: bool = False
    """Replace outputs that exist."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.evaluation.restore_files import restore_files

        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del options["images"]
        restore_files([path for pattern in self.images for path in _expand(pattern)], **options)


def _expand(pattern: str) -> list[Path]:
    """The files that a command-line argument stands for; in a folder also images that cannot be read, to be named."""
    from gamax.data.images import SUFFIXES, UNREAD_SUFFIXES, list_images, natural_order

    path = Path(pattern)
    if path.is_dir():
        return list_images(path, SUFFIXES + UNREAD_SUFFIXES)
    if path.exists() or not glob.has_magic(pattern):
        return [path]
    matches = natural_order(Path(match) for match in glob.glob(pattern, recursive=True))
    if not matches:
        raise UserError(f"no file matches '{pattern}'")
    return matches


@dataclasses.dataclass(frozen=True)
class Models:
    """Lists the networks, and the weights that come with gamax."""

    output: Path | None = None
    """Write the page with everything about them, `docs/models.md`, multiply-adds and more, to this file instead."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.models import VARIANTS
        from gamax.pretrained import PRETRAINED

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
        rows = [
            {
                "name": name,
                "arXiv": variant.paper,
                "parameters": f"{variant.parameters:,}",
                "layout": variant.fidelity,
                "source": variant.source,
            }
            for name, variant in VARIANTS.items()
        ]
        print_table("networks", list(rows[0]), rows)
        weights = [
            {"name": name, "task": item.task, "restores": item.summary, "licence": item.licence}
            for name, item in PRETRAINED.items()
        ]
        print_table("weights that come with gamax", list(weights[0]), weights)


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
    """Fields of the network that differ from the named one, for example `width=24` or `blocks=1,1,1,2`."""
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


VERBS: dict[str, Callable[..., Any]] = {
    "restore": Restore,
    "models": Models,
    "compare": Compare,
    "convert": Convert,
    "export": Export,
    "bench": Bench,
    "data": Data,
    "lab": Lab,
    "train-plan": TrainPlan,
    "demo": Demo,
}


def main() -> None:
    """Entry point of the `gamax` command."""
    with exit_on_user_error():
        tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="gamax", description="Image restoration in JAX.", config=(tyro.conf.OmitArgPrefixes,)
        ).run()


if __name__ == "__main__":
    main()
