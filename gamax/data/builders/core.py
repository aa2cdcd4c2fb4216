"""What the builders of image datasets share: storage as ArrayRecord, cutting, encoding and naming."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gamax.data.examples import ExampleFacts, ExampleFiles, inspect_examples, list_examples, read_example, track
from gamax.data.images import encode_image
from gamax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageSetFacts:
    """What reading all images of a set has shown; stored beside the prepared set as its tfds metadata."""

    bit_depth: int
    num_train_images: int
    smallest_train_image: str
    smallest_train_side: int


@dataclasses.dataclass(eq=False)
class ImageSetConfig(tfds.core.BuilderConfig):
    """One set of images and how its training images are cut and stored.

    `name` ends in a fingerprint of the files and of these settings, so that another content is another dataset.
    """

    name: str
    train: Sequence[ExampleFiles] = ()
    test: Sequence[ExampleFiles] = ()
    cut_size: int = 512
    cut_stride: int = 384
    encoding: str = "png"
    # Needed to write the set, not to find it.
    facts: ImageSetFacts | None = None


class ImageSetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits `train` (overlapping cuts named `NAME_y_x`) and, if there are any test images, `test` (whole).

    Features: `input` (paired sets only), `target` (uint8 or uint16 `[H, W, 3]`) and `name`. Both encodings are image
    files inside the record, since the splits of a tfds dataset share their features: PNG, or PPM, which is a header
    and the raw pixels. Records are in the order of the files.
    """

    VERSION = tfds.core.Version("1.0.0")
    # tfds looks for checksums of downloads beside the code; there are none, and its search needs another package.
    code_path = None

    def download_and_prepare(self, *, file_format: str = "array_record", **options: Any) -> None:
        """Writes the set; `gamax.data.datasets.prepare` is the usual way here.

        Raises `UserError` if the configuration lacks its facts: without them nothing has checked the images.
        """
        if self.builder_config.facts is None:
            raise UserError(
                f"dataset {self.builder_config.name} has not been checked: use gamax.data.datasets.prepare, or give "
                "its configuration facts=read_facts(configuration)"
            )
        # The default of tfds, TFRecord, needs TensorFlow.
        super().download_and_prepare(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        facts = config.facts
        dtype = np.uint16 if facts and facts.bit_depth == 16 else np.uint8
        image = tfds.features.Image(shape=(None, None, 3), dtype=dtype)
        features = {"target": image, "name": tfds.features.Text()}
        if config.train[0].input is not None:
            features["input"] = image
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(dataclasses.asdict(facts)) if facts else None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
        config = self.builder_config
        splits = {"train": self._generate_examples(config.train, cut=True)}
        if config.test:
            splits["test"] = self._generate_examples(config.test, cut=False)
        return splits

    def _generate_examples(self, examples: Sequence[ExampleFiles], cut: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        suffix = ".ppm" if cut and config.encoding == "raw" else ".png"
        key = 0
        for files in track(examples, "Preparing training images" if cut else "Preparing test images", len(examples)):
            example = read_example(files)
            images = {name: example[name] for name in ("input", "target") if name in example}
            height, width, _ = example["target"].shape
            size = config.cut_size if cut else max(height, width)
            for y, x in cut_positions(height, width, size, config.cut_stride):
                cuts = {name: encode_image(image[y : y + size, x : x + size], suffix) for name, image in images.items()}
                yield key, {"name": f"{files.name}_{y}_{x}" if cut else files.name, **cuts}
                key += 1


def cut_positions(height: int, width: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Top left corners of the squares that cover an image; a side of at most `size` is not cut."""
    return [(y, x) for y in _cut_starts(height, size, stride) for x in _cut_starts(width, size, stride)]


def _cut_starts(length: int, size: int, stride: int) -> list[int]:
    return [*range(0, length - size, stride), max(length - size, 0)]


def folder_config(
    source: str | Path, paired: bool, cut_size: int = 512, cut_stride: int = 384, encoding: str = "png"
) -> ImageSetConfig:
    """The configuration of a folder dataset: `source/train` and `source/test`, or else `source` for training only.

    Reads no image. Raises `UserError` when a folder is missing or empty, or a partner is missing.
    """
    source = Path(source).expanduser().resolve()
    if (source / "train").is_dir():
        train = list_examples(source / "train", paired)
        test = list_examples(source / "test", paired) if (source / "test").is_dir() else []
    else:
        train, test = list_examples(source, paired), []
    paths = [path for files in (*train, *test) for path in (files.input, files.target) if path is not None]
    try:
        stats = [path.stat() for path in paths]
    except OSError as error:
        raise UserError(f"cannot read '{error.filename}' ({error.strerror})") from error
    entries = [
        (path.relative_to(source).as_posix(), stat.st_size, stat.st_mtime_ns)
        for path, stat in zip(paths, stats, strict=True)
    ]
    return image_set_config(source.name, train, test, cut_size, cut_stride, encoding, entries)


def image_set_config(
    label: str,
    train: Sequence[ExampleFiles],
    test: Sequence[ExampleFiles],
    cut_size: int,
    cut_stride: int,
    encoding: str,
    entries: Sequence[tuple[object, ...]],
) -> ImageSetConfig:
    """Names a set `LABEL_FINGERPRINT`, where `entries` stand for the content of its files in the fingerprint."""
    content = json.dumps([entries, cut_size, cut_stride, encoding])
    label = re.sub(r"[^A-Za-z0-9._-]+", "_", label)[:64]
    name = f"{label}_{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return ImageSetConfig(
        name=name, train=train, test=test, cut_size=cut_size, cut_stride=cut_stride, encoding=encoding
    )


def read_facts(config: ImageSetConfig) -> ImageSetFacts:
    """Reads every image of the set once.

    Raises `UserError` for the first image that cannot be read, differs in size from its partner, or differs in bit
    depth from the first one.
    """
    facts: dict[ExampleFiles, ExampleFacts] = {}
    for files, found in inspect_examples([*config.train, *config.test]):
        if isinstance(found, UserError):
            raise found
        facts[files] = found
        first = next(iter(facts))
        if found.bit_depth != facts[first].bit_depth:
            depths = f"{facts[first].bit_depth} and {found.bit_depth}"
            raise UserError(
                f"'{first.target}' and '{files.target}' differ in bit depth ({depths}); convert one of them"
            )
    sides = {files: min(facts[files].height, facts[files].width) for files in config.train}
    smallest = min(config.train, key=lambda files: sides[files])
    return ImageSetFacts(
        bit_depth=facts[smallest].bit_depth,
        num_train_images=len(config.train),
        smallest_train_image=str(smallest.target),
        smallest_train_side=sides[smallest],
    )
