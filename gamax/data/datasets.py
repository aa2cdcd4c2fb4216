"""Datasets: prepared for training, or read straight from their sources."""

from __future__ import annotations

import contextlib
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from google.protobuf.message import DecodeError

from gamax.config import DataConfig
from gamax.console import say
from gamax.data.examples import PRIOR, Example, ExampleFiles, join_views, read_example
from gamax.data.images import decode_stored
from gamax.data.prior import check_prior_option
from gamax.errors import UserError, nearest
from gamax.files import lock

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from gamax.data.builders.core import ImageSetBuilder, ImageSetConfig


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset on disk, ready for random access."""

    folder: Path
    """Where it is stored."""
    splits: Mapping[str, Sequence[Example]]
    """`train` in cuts; every other split whole, in the order of its files."""
    fingerprint: str
    """Changes with the files and with the way they are cut and stored."""
    num_images: Mapping[str, int]
    """Images, or pairs, in each split before cutting."""
    psnr_input: Mapping[str, float | None]
    """Mean PSNR of the inputs against their targets in dB, by split; None where there are no pairs."""

    @property
    def train(self) -> Sequence[Example]:
        """Cuts of the training images; empty in sets that are for testing only."""
        return self.splits.get("train", ())

    @property
    def test(self) -> Sequence[Example] | None:
        """Whole images to evaluate on: the split `test`, else `validation`, else None."""
        return self.splits.get("test", self.splits.get("validation"))


def prepare(config: DataConfig, *, training: bool = True) -> PreparedDataset:
    """Cuts and stores the dataset unless that has been done before, and opens it.

    Everything that can be wrong with the images is found before anything is written. A set is absent until it is
    complete; after an interruption, what is missing is written. Processes of one machine may call this together; of
    several machines that share a disk, let one go first.

    Args:
        config: names the dataset, and how it is cut and stored.
        training: whether the set is to be trained on: then it must have training images, of at least
            `config.patch_size` unless smaller ones are padded, and `config.degradations` must fit it.

    Raises:
        UserError: when the dataset is unknown, a folder is missing or empty, a pair is incomplete or differs in size,
            an image cannot be read, bit depths are mixed, or the disk cannot be written.
    """
    with _quiet_tfds():
        from gamax.data.builders import find_builder

        builder_class = find_builder(config.dataset)
        image_set = _image_set(builder_class, config)
        if training:
            _check_trainable(config, image_set)
        patch_size = config.patch_size if training and config.small_images == "refuse" else 1
        data_dir = prepared_sets_folder(config.prepared_dir)
        folder = data_dir / builder_class.name / image_set.name / str(builder_class.VERSION)
        if not folder.exists():
            _note_missing(builder_class, image_set)
            _write(builder_class(config=image_set, data_dir=data_dir), patch_size)
        builder = open_prepared(folder)
        info = builder.info
        _check_size(info.metadata["smallest_train_image"], info.metadata["smallest_train_side"], patch_size)
        return PreparedDataset(
            folder=folder,
            splits={split: _records(builder, split) for split in info.splits},
            fingerprint=image_set.name.rpartition("_")[2],
            num_images=info.metadata["num_images"],
            psnr_input=info.metadata["psnr_input"],
        )


def prepared_sets_folder(prepared_dir: str | Path | None) -> Path:
    """Where prepared sets are: `prepared_dir`, else `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return Path(prepared_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_prepared(folder: Path) -> tfds.core.DatasetBuilder:
    """Opens a prepared set; `UserError` if its description is damaged or of another version."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        missing = {"num_images", "psnr_input", "encoding"} - set(builder.info.metadata or ())
    except PermissionError as error:
        raise UserError(f"cannot read the prepared set in '{folder}' ({error.strerror})") from error
    # Of its three JSON files, each read by another library.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the prepared set in '{folder}' cannot be opened ({reason}); delete that folder") from error
    if missing:
        raise UserError(f"'{folder}' was not prepared by this version of gamax; delete that folder")
    return builder


def training_channels(config: DataConfig) -> dict[str, int]:
    """The channels of the images that training on a dataset reads, `target` and perhaps `input`; reads no image.

    Those of a prior are at the end of the input. Raises `UserError` when files are missing or none is for training.
    """
    with _quiet_tfds():
        from gamax.data.builders import find_builder

        builder_class = find_builder(config.dataset)
        image_set = _image_set(builder_class, config)
    channels: dict[str, int] = {}
    for key in _training_files(config.dataset, image_set)[0].images:
        # The two views of a dual-pixel camera are one input.
        name = "target" if key == "target" else "input"
        channels[name] = channels.get(name, 0) + (3 if key == PRIOR else builder_class.CHANNELS)
    return channels


def check_channels(model: Any, config: DataConfig, channels: Mapping[str, int]) -> None:
    """Raises `UserError` unless a network takes the images that training on a dataset gives it.

    Args:
        model: the network.
        config: names the dataset and the prior.
        channels: those of `training_channels`.
    """
    check_prior_option(model, config.prior, "data.prior")
    found = channels["input"] if "input" in channels else channels["target"]
    if model.input_channels == found:
        return
    prior = 3 if config.prior else 0
    remedy = "choose another network or dataset"
    if model.input_channels == 6 + prior:
        remedy = "choose a dataset with two views, such as dpdd_dual, or a network for one"
    elif found == 6 + prior:
        remedy = "choose a network for two views, such as restormer_dual_pixel, or a dataset with one"
    raise UserError(
        f"this {type(model).__name__} takes {model.input_channels} channels, but data.dataset {config.dataset} gives "
        f"it {found}{', 3 of them the prior' if prior else ''}: {remedy}"
    )


def _training_files(name: str, image_set: ImageSetConfig) -> Sequence[ExampleFiles]:
    examples = image_set.splits.get("train")
    if not examples:
        raise UserError(f"data.dataset {name} has no training images here, only {', '.join(image_set.splits)}")
    return examples


def _image_set(builder_class: type[ImageSetBuilder], config: DataConfig) -> ImageSetConfig:
    from gamax.data.builders.core import image_set_config

    default = builder_class.default_source()
    if default is not None and config.source is not None:
        raise UserError(f"data.dataset {config.dataset} takes no data.source; for your own images choose clean_folder")
    source = config.source or default
    if source is None:
        raise UserError(f"dataset {config.dataset} needs data.source: {builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    return image_set_config(
        builder_class, source, config.cut_size, config.cut_stride, config.encoding, prior=config.prior
    )


def _check_trainable(config: DataConfig, image_set: ImageSetConfig) -> None:
    name = config.dataset
    is_paired = len(_training_files(name, image_set)[0].images) > 1
    if is_paired and config.degradations:
        raise UserError(f"data.dataset {name} has inputs of its own: remove data.degradations")
    if not is_paired and not config.degradations:
        raise UserError(
            f"data.dataset {name} has clean images only: set data.degradations=(GaussianNoise(),) or another "
            "degradation in the configuration file"
        )


def _note_missing(builder_class: type[ImageSetBuilder], image_set: ImageSetConfig) -> None:
    for split, published in builder_class.COUNTS.items():
        found = len(image_set.splits.get(split, ()))
        if found != published:
            say(f"note: {found:,} of the {published:,} published examples of {builder_class.name} {split} are here")


def _check_size(image: str | None, side: int | None, patch_size: int) -> None:
    if side is not None and side < patch_size:
        raise UserError(
            f"training image '{image}' is only {side} pixels wide or high, less than data.patch_size {patch_size}; "
            "remove it, choose a smaller patch, or set data.small_images to pad"
        )


def _write(builder: ImageSetBuilder, patch_size: int) -> None:
    from gamax.data.builders.core import incomplete_folder, read_facts, store_facts, stored_facts

    directory, folder = Path(builder.data_path), incomplete_folder(builder)
    config = builder.builder_config
    stored = stored_facts(folder)
    facts = stored or read_facts(config, builder.CHANNELS)
    _check_size(facts.smallest_train_image, facts.smallest_train_side, patch_size)
    try:
        with lock(directory.parent, wait=True):
            # Another process may have prepared the set while this one waited.
            if not directory.exists():
                if stored is None and stored_facts(folder) is None and folder.exists():
                    # Shards without the facts that say which images they hold.
                    shutil.rmtree(folder)
                store_facts(folder, facts)
                # `directory` is DATA_DIR/NAME/CONFIGURATION/VERSION.
                data_dir = directory.parents[2]
                type(builder)(config=replace(config, facts=facts), data_dir=data_dir).download_and_prepare()
    except OSError as error:
        raise UserError(
            f"cannot write the prepared dataset to '{directory.parent}' ({error.strerror or error}); "
            "set data.prepared_dir to a folder that has room"
        ) from error


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps tfds from warning of every custom configuration."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


class LazyExamples(Sequence[Example]):
    """Examples that are read when they are asked for."""

    def __init__(self, length: int, read: Callable[[int], Example]):
        self._length = length
        self._read = read

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        positions = range(self._length)[index]
        return (
            [self._read(position) for position in positions] if isinstance(positions, range) else self._read(positions)
        )


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[Example]:
    """The examples of a split; a record that cannot be read raises `UserError` with its shard and position there."""
    import tensorflow_datasets as tfds

    info = builder.info.splits[split]
    keys = [key for key in builder.info.features if key != "name"]
    source: Any = builder.as_data_source(split, decoders=dict.fromkeys(keys, tfds.decode.SkipDecoding()))
    ends = list(accumulate(info.shard_lengths))

    def read(index: int) -> Example:
        try:
            record = source[index]
            if record["name"] is None:
                raise ValueError("the file is cut short")
            return {"name": record["name"].decode(), **join_views({key: _decode(record[key]) for key in keys})}
        # Of the file, the record and the image in it.
        except (RuntimeError, OSError, DecodeError, ValueError) as error:
            shard = bisect_right(ends, index)
            position = index - (ends[shard - 1] if shard else 0)
            raise UserError(
                f"record {position} of '{info.filepaths[shard]}' cannot be read ({str(error).partition(';')[0]}); "
                "delete its folder and prepare the set again, or set data.skip_corrupt"
            ) from error

    return LazyExamples(len(source), read)


def _decode(data: bytes) -> np.ndarray:
    image = decode_stored(data)
    if image is None:
        raise ValueError("not an image")
    return image


def source_examples(config: DataConfig, split: str) -> Sequence[Example]:
    """The examples of a split as they lie in the source, whole, each read when it is asked for; nothing is prepared.

    Raises `UserError` when files are missing or there is no such split.
    """
    from gamax.data.builders import find_builder

    with _quiet_tfds():
        builder_class = find_builder(config.dataset)
        splits = _image_set(builder_class, config).splits
    if split not in splits:
        raise UserError(f"dataset {config.dataset} has no split {nearest(split, list(splits))} in its source")
    examples = splits[split]
    return LazyExamples(len(examples), lambda index: read_example(examples[index], builder_class.CHANNELS))
