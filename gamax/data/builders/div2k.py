"""DIV2K: large photographs of high quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles, ImageFile, list_examples
from gamax.data.images import decode_image
from gamax.errors import UserError


class DIV2K(ImageSetBuilder):
    """DIV2K: 900 colour photographs of 2K pixels on the longer side, for training with any synthetic degradation.

    800 for training, 100 for validation (0801 to 0900), on which one tests, since the 100 test images were never
    published. Only the high-resolution images are read. A flat folder of images is taken for training.

    The builder `div2k` of tensorflow_datasets downloads the set and checks it: `tfds build div2k
    --file_format=array_record`, which needs TensorFlow installed. `source` may then be the folder with its
    `dataset_info.json`, such as `div2k/bicubic_x2/2.0.0` (every configuration has the same high-resolution images).
    Reading it needs no TensorFlow. There the images have lost their names and are in another order.
    """

    name = "div2k"
    TASK = "any synthetic degradation"
    CITATION = tfds.builder_cls("div2k").get_metadata().citation or ""
    LICENSE = "for academic research only; the copyright belongs to the original owners of the images"
    HOMEPAGE = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download DIV2K_train_HR.zip and DIV2K_valid_HR.zip from the homepage and extract them, so that there are "
        "DIV2K_train_HR/0001.png and DIV2K_valid_HR/0801.png, or run `tfds build div2k --file_format=array_record` and "
        "name the folder with its dataset_info.json"
    )
    COUNTS = {"train": 800, "validation": 100}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images, or the records of the set that tensorflow_datasets has prepared."""
        if (source / "dataset_info.json").is_file():
            return _prepared(source)
        folders = {"train": "DIV2K_train_HR", "validation": "DIV2K_valid_HR"}
        for root in (source, source / "DIV2K"):
            found = {split: root / folder for split, folder in folders.items() if (root / folder).is_dir()}
            if found:
                return {split: list_examples(folder, paired=False) for split, folder in found.items()}
        return {"train": clean_images(source, ("DIV2K",), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}


def _prepared(folder: Path) -> dict[str, list[ExampleFiles]]:
    builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise UserError(
            f"'{folder}' was not prepared as array_record; run `tfds build` with --file_format=array_record"
        )
    if "hr" not in builder.info.features:
        raise UserError(f"'{folder}' is not the dataset div2k of tensorflow_datasets: it has no feature hr")
    return {split: _records(builder, split) for split in ("train", "validation") if split in builder.info.splits}


def _records(builder: tfds.core.DatasetBuilder, split: str) -> list[ExampleFiles]:
    info = builder.info.splits[split]
    decoders = dict.fromkeys(builder.info.features, tfds.decode.SkipDecoding())
    records: Any = builder.as_data_source(split, decoders=decoders)
    shards = [
        Path(path) for path, length in zip(info.filepaths, info.shard_lengths, strict=True) for _ in range(length)
    ]
    return [
        ExampleFiles(f"record_{index:04d}", {"target": ImageFile(path, partial(_read, records=records, index=index))})
        for index, path in enumerate(shards)
    ]


def _read(path: Path, records: Any, index: int) -> np.ndarray:
    try:
        image = decode_image(records[index]["hr"])
    except (RuntimeError, DecodeError, ValueError) as error:
        reason = str(error).partition(";")[0]
        raise UserError(f"record {index} of '{path}' cannot be read ({reason}); run `tfds build` again") from error
    if image is None:
        raise UserError(f"record {index} of '{path}' is not an image; run `tfds build` again")
    return image
