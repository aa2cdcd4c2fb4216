"""Datasets: prepared for training, or read straight from a folder for evaluation."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from gamax.config import DataConfig
from gamax.data.examples import (
    Example,
    ExampleFacts,
    ExampleFiles,
    inspect_examples,
    list_examples,
    read_example,
)
from gamax.data.images import describe_unpaired, match_images
from gamax.errors import UserError
from gamax.files import lock

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from gamax.data.builders.core import ImageSetConfig


@dataclass(frozen=True)
class PreparedDataset:
    """A training set on disk, ready for random access."""

    train: Sequence[Example]
    """Cuts of the training images."""
    test: Sequence[Example] | None
    """Whole test images in the order of their names, if the set has any."""
    fingerprint: str
    """Changes with the files and with the way they are cut and stored."""
    num_train_images: int
    """Training images before cutting."""


def prepare(config: DataConfig) -> PreparedDataset:
    """Cuts and stores the dataset unless that has been done before, and opens it.

    Everything that can be wrong with the images is found before anything is written, and a set that was interrupted
    while being written counts as absent. Processes of one machine may call this together; of several machines that
    share a disk, let one go first. Raises `UserError` when a folder is missing or empty, a pair is incomplete or
    differs in size, an image cannot be read, bit depths are mixed, a training image is smaller than
    `config.patch_size`, or the disk cannot be written.
    """
    with _quiet_tfds():
        import tensorflow_datasets as tfds

        builder_class, image_set = _image_set(config)
        data_dir = Path(config.prepared_dir).expanduser() if config.prepared_dir else None
        directory = builder_class(config=image_set, data_dir=data_dir).data_path
        if not directory.exists():
            from gamax.data.builders.core import read_facts

            facts = read_facts(image_set)
            _check_size(facts.smallest_train_image, facts.smallest_train_side, config.patch_size)
            _write(builder_class(config=replace(image_set, facts=facts), data_dir=data_dir))
        builder = tfds.builder_from_directory(directory)
        metadata = builder.info.metadata
        _check_size(metadata["smallest_train_image"], metadata["smallest_train_side"], config.patch_size)
        # Without a name, a dictionary of all splits.
        splits: Any = builder.as_data_source()
        return PreparedDataset(
            train=_Examples(splits["train"], _named),
            test=_Examples(splits["test"], _named) if "test" in splits else None,
            fingerprint=image_set.name.rpartition("_")[2],
            num_train_images=metadata["num_train_images"],
        )


def _image_set(config: DataConfig) -> tuple[type[tfds.core.GeneratorBasedBuilder], ImageSetConfig]:
    storage = (config.cut_size, config.cut_stride, config.encoding)
    if config.dataset == "sample_photographs":
        from gamax.data.builders.sample_photographs import SamplePhotographs, sample_photographs_config

        return SamplePhotographs, sample_photographs_config(*storage)
    from gamax.data.builders.clean_folder import CleanFolder
    from gamax.data.builders.core import folder_config
    from gamax.data.builders.paired_folder import PairedFolder

    if config.source is None:
        raise UserError(f"data.dataset {config.dataset} needs a folder: set data.source")
    paired = config.dataset == "paired_folder"
    return PairedFolder if paired else CleanFolder, folder_config(config.source, paired, *storage)


def _check_size(image: str, side: int, patch_size: int) -> None:
    if side < patch_size:
        raise UserError(
            f"training image '{image}' is only {side} pixels wide or high, less than data.patch_size {patch_size}; "
            "remove it or choose a smaller patch"
        )


def _write(builder: tfds.core.GeneratorBasedBuilder) -> None:
    directory = Path(builder.data_path)
    try:
        with lock(directory.parent, wait=True):
            # Only a killed process leaves these: the lock shows that nobody is writing them.
            for incomplete in directory.parent.glob("incomplete.*"):
                shutil.rmtree(incomplete)
            # Another process may have prepared the set while this one waited.
            if not directory.exists():
                builder.download_and_prepare()
    except OSError as error:
        raise UserError(
            f"cannot write the prepared dataset to '{directory.parent}' ({error.strerror or error}); "
            "set data.prepared_dir to a folder that has room"
        ) from error


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps tfds from printing, drawing nested progress bars and warning of every custom configuration."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


class _Examples(Sequence[Example]):
    """Examples that are made from stored items when they are asked for."""

    def __init__(self, items: Sequence[Any], read: Callable[[Any], Example]):
        self._items = items
        self._read = read

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        positions = range(len(self))[index]
        if isinstance(positions, range):
            return [self._read(self._items[position]) for position in positions]
        return self._read(self._items[positions])


def _named(record: Mapping[str, Any]) -> Example:
    """A record of a tfds data source, with its name as text."""
    return {**record, "name": record["name"].decode()}


def folder_examples(folder: str | Path, paired: bool) -> Sequence[Example]:
    """The images of a folder, or the pairs in its `input/` and `target/`, each read when it is asked for.

    The listing is checked at once: `UserError` when the folder is missing or empty or a partner is missing. Reading an
    example raises `UserError` when its file is no image; `check_folder` finds those beforehand.
    """
    return _Examples(list_examples(Path(folder).expanduser(), paired), read_example)


@dataclass(frozen=True)
class FolderSummary:
    """What `check_folder` has found."""

    num_examples: int
    """Images, or pairs."""
    sizes: dict[tuple[int, int], int]
    """How many examples have each (height, width)."""
    bit_depths: dict[int, int]
    """How many examples have each bit depth."""
    problems: list[str]
    """One sentence a problem; empty when the folder can be used."""


def check_folder(folder: str | Path, paired: bool) -> FolderSummary:
    """Reads every image of a folder that `folder_examples` would read and reports all problems, not only the first.

    Raises `UserError` only when there is nothing to check: no folder, or no images in it.
    """
    folder = Path(folder).expanduser()
    problems: list[str] = []
    if paired:
        pairs, unpaired = match_images(folder)
        examples = [ExampleFiles(target.stem, target, source) for source, target in pairs]
        if unpaired:
            problems.append(describe_unpaired(folder, unpaired))
    else:
        examples = list_examples(folder, paired=False)
    facts: list[ExampleFacts] = []
    for _, found in inspect_examples(examples):
        if isinstance(found, UserError):
            problems.append(str(found))
        else:
            facts.append(found)
    bit_depths = Counter(found.bit_depth for found in facts)
    if len(bit_depths) > 1:
        counts = " and ".join(f"{count} of {depth} bits" for depth, count in sorted(bit_depths.items()))
        problems.append(f"folder '{folder}' mixes bit depths ({counts}); convert one kind to train on it")
    return FolderSummary(
        num_examples=len(examples),
        sizes=dict(Counter((found.height, found.width) for found in facts)),
        bit_depths=dict(bit_depths),
        problems=problems,
    )
