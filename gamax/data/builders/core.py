"""What the builders of image datasets share: cutting, encoding, naming, and writing that survives being killed."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import inspect
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from gamax.console import progress_bar
from gamax.data.examples import PRIOR, ExampleFacts, ExampleFiles, check_agreement, inspect_examples, read_images
from gamax.data.images import encode_image
from gamax.data.prior import with_prior
from gamax.errors import UserError
from gamax.files import write_json

SHARD_BYTES = 2**27
"""A shard is closed when its images are that many bytes of pixels: what a killed preparation loses is a shard."""

# One record a group, so that reading one record reads no other. PNG is compressed already; raw pixels are stored raw in
# order not to be: decompressing them would take four times as long as reading.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class ImageSetFacts:
    """What reading all images of a set has shown; stored beside the prepared set in its tfds metadata."""

    bit_depth: int
    num_images: Mapping[str, int]
    """Images, or pairs, in each split before cutting."""
    psnr_input: Mapping[str, float | None]
    """Mean PSNR of the inputs in dB, by split, equal pairs left out; None where there are no others."""
    shard_sizes: Mapping[str, Sequence[int]]
    """How many images each shard is made from, by split."""
    smallest_train_image: str | None
    smallest_train_side: int | None


@dataclasses.dataclass(eq=False)
class ImageSetConfig(tfds.core.BuilderConfig):
    """One set of images and how its training images are cut and stored; `image_set_config` makes it.

    `name` ends in a fingerprint of the files and of these settings, so that another content is another dataset.
    """

    name: str
    source: str = ""
    splits: Mapping[str, Sequence[ExampleFiles]] = dataclasses.field(default_factory=dict)
    cut_size: int = 512
    cut_stride: int = 384
    encoding: str = "png"
    prior: str | None = None
    # Needed to write the set, not to find it.
    facts: ImageSetFacts | None = None


class _LocalInfo(tfds.core.DatasetInfo):
    """What is known of a prepared dataset, from its own folder alone."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: tfds would look in its own bucket and leave an empty temporary folder behind each time."""


class ImageSetBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base of all builders: a subclass says what its dataset is and where its files are.

    The split `train` is stored as overlapping cuts named `NAME_y_x`, every other split whole. Features: `target` and
    `input` (`input_left` and `input_right` for dual-pixel cameras), uint8 or uint16 `[H, W, C]`, `prior`, uint16
    `[H, W, 3]`, where there is one, and `name`. Both encodings are image files inside the record, since the splits of a
    tfds dataset share their features: PNG, or PPM, which is a header and the raw pixels. Records are in the order of
    the files.

    The docstring of a subclass is the description that users read.
    """

    VERSION = tfds.core.Version("2.0.0")
    # tfds looks for checksums of downloads beside the code; there are none, and its search needs another package.
    code_path = None

    TASK: ClassVar[str] = ""
    """What the set is for, in a word or two."""
    CITATION: ClassVar[str] = ""
    """BibTeX."""
    LICENSE: ClassVar[str] = ""
    """The terms of use, or that none are stated."""
    HOMEPAGE: ClassVar[str] = ""
    MANUAL_DOWNLOAD_INSTRUCTIONS = ""
    """What to download, and the layout that `source` must have: one sentence, shown where files are missing."""
    COUNTS: ClassVar[Mapping[str, int]] = {}
    """Images, or pairs, that the published set has in each split; empty for anyone's own files."""
    CHANNELS: ClassVar[int] = 3
    """3, or 1 for gray images."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Keeps a builder out of the registry of tfds, which has sets of the same names."""
        super().__init_subclass__(skip_registration=True, **options)  # pyrefly: ignore[unexpected-keyword]

    @classmethod
    def default_source(cls) -> Path | None:
        """Where the files are if they come with another package; None if the user has to say."""
        return None

    @classmethod
    @abc.abstractmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the examples of every split that is present in `source`; reads no image.

        Raises `UserError` when files are missing.
        """

    def download_and_prepare(self, **options: Any) -> None:
        """Writes the set, with one thread a processor, or finishes writing it; `options` of tfds are ignored.

        `gamax.data.datasets.prepare` is the usual way here: it reads the facts first and keeps other processes out.
        A shard is written beside its place and renamed, and so is the set: whenever the process is killed, it is absent
        or complete. Raises `UserError` if the configuration lacks its facts, without which nothing has checked the
        images, or if files have changed in the meantime; `OSError` if the disk cannot be written.
        """
        if self.builder_config.facts is None:
            raise UserError(
                f"dataset {self.builder_config.name} has not been checked: use gamax.data.datasets.prepare, or give "
                "its configuration facts=read_facts(configuration, channels)"
            )
        folder = incomplete_folder(self)
        folder.mkdir(parents=True, exist_ok=True)
        # The default of tfds, TFRecord, needs TensorFlow.
        self.info.set_file_format("array_record", override=True)
        self.info.set_splits(tfds.core.splits.SplitDict(self._write_splits(folder)))
        self.info.write_to_directory(folder)
        self._check_unchanged(folder)
        folder.rename(self.data_path)
        # Last, so that a kill before it leaves nothing to do again.
        _facts_path(Path(self.data_path)).unlink(missing_ok=True)

    def _check_unchanged(self, folder: Path) -> None:
        config = self.builder_config
        cutting = (config.cut_size, config.cut_stride, config.encoding)
        again = image_set_config(type(self), config.source, *cutting, config.prior)
        if again.name != config.name:
            shutil.rmtree(folder)
            raise UserError(f"files in '{config.source}' have changed while they were prepared; prepare them again")

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        facts = config.facts
        dtype = np.uint16 if facts and facts.bit_depth == 16 else np.uint8
        image = tfds.features.Image(shape=(None, None, self.CHANNELS), dtype=dtype)
        prior = tfds.features.Image(shape=(None, None, 3), dtype=np.uint16)
        first = next(iter(config.splits.values()))[0]
        images = {key: prior if key == PRIOR else image for key in first.images}
        return _LocalInfo(
            builder=self,
            description=inspect.cleandoc(type(self).__doc__ or ""),
            features=tfds.features.FeaturesDict({"name": tfds.features.Text(), **images}),
            citation=self.CITATION or None,
            homepage=self.HOMEPAGE or None,
            license=self.LICENSE or None,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                **dataclasses.asdict(facts),
                source=config.source,
                cut_size=config.cut_size,
                cut_stride=config.cut_stride,
                encoding=config.encoding,
                prior=config.prior,
            )
            if facts
            else None,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Any]]:
        config = self.builder_config
        shards = {}
        for split, examples in config.splits.items():
            ends = list(accumulate(config.facts.shard_sizes[split], initial=0))
            parts = [examples[start:end] for start, end in pairwise(ends)]
            shards[split] = [partial(self._generate_examples, part, split == "train") for part in parts]
        return shards

    def _generate_examples(self, examples: Sequence[ExampleFiles], cut: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        raw = cut and config.encoding == "raw"
        for files in examples:
            images = read_images(files, self.CHANNELS)
            # Again, since the images may have changed after they were checked.
            check_agreement(files, images)
            height, width, _ = next(iter(images.values())).shape
            size = config.cut_size if cut else max(height, width)
            for y, x in cut_positions(height, width, size, config.cut_stride):
                name = f"{files.name}_{y}_{x}" if cut else files.name
                cuts = {key: _encode(image[y : y + size, x : x + size], raw) for key, image in images.items()}
                yield name, {"name": name, **cuts}

    def _write_splits(self, folder: Path) -> list[tfds.core.SplitInfo]:
        jobs = []
        infos = []
        for split, shards in self._shard_iterators_per_split(None).items():
            template = self._get_filename_template(split).replace(data_dir=folder)
            paths = [Path(template.sharded_filepath(shard_index=i, num_shards=len(shards))) for i in range(len(shards))]
            jobs += zip(paths, shards, self.builder_config.facts.shard_sizes[split], strict=True)
            infos.append((split, paths, self._get_filename_template(split)))
        missing = [job for job in jobs if _num_records(job[0]) is None]
        total, to_do = (sum(size for _, _, size in part) for part in (jobs, missing))
        counter, finished = threading.Lock(), total - to_do
        with progress_bar("cutting and storing", total, "images", finished) as update:

            def write(path: Path, shard: Any, size: int) -> None:
                nonlocal finished
                self._write_shard(path, shard())
                with counter:
                    finished += size
                    update(finished)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                futures = [pool.submit(write, *job) for job in missing]
                try:
                    for future in futures:
                        future.result()
                finally:
                    pool.shutdown(cancel_futures=True)
        return [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[_num_records(path) for path in paths],
                num_bytes=sum(path.stat().st_size for path in paths),
                filename_template=template,
            )
            for split, paths, template in infos
        ]

    def _write_shard(self, path: Path, examples: Iterator[tuple[str, dict[str, Any]]]) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        temporary, writer = path.with_name(f".{path.name}.partial"), None
        try:
            writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
            count = 0
            for _, example in examples:
                writer.write(self.info.features.serialize_example(example))
                count += 1
            writer.close()
            arrived = _num_records(temporary)
            if arrived != count:
                raise OSError(f"{arrived} of {count} records have arrived in '{path.name}'")
            temporary.rename(path)
        # A full disk is a RuntimeError of ArrayRecord.
        except RuntimeError as error:
            raise OSError(str(error).partition(";")[0]) from error
        finally:
            # Its threads end with it, and may write the file until then.
            del writer
            temporary.unlink(missing_ok=True)


def _encode(image: np.ndarray, raw: bool) -> bytes:
    raw_suffix = ".pgm" if image.shape[-1] == 1 else ".ppm"
    return encode_image(image, raw_suffix if raw else ".png")


def incomplete_folder(builder: tfds.core.DatasetBuilder) -> Path:
    """Where a set is before it is complete."""
    folder = Path(builder.data_path)
    return folder.with_name(f"incomplete.{folder.name}")


def _num_records(path: Path) -> int | None:
    """The number of records in a file; None if there is no such file or it is damaged."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.exists():
        return None
    try:
        reader = ArrayRecordReader(str(path))
        try:
            return reader.num_records()
        finally:
            reader.close()
    except RuntimeError:
        return None


def cut_positions(height: int, width: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Top left corners of the squares that cover an image; a side of at most `size` is not cut."""
    return [(y, x) for y in _cut_starts(height, size, stride) for x in _cut_starts(width, size, stride)]


def _cut_starts(length: int, size: int, stride: int) -> list[int]:
    return [*range(0, length - size, stride), max(length - size, 0)]


def image_set_config(
    builder_class: type[ImageSetBuilder],
    source: str | Path,
    cut_size: int = 512,
    cut_stride: int = 384,
    encoding: str = "png",
    prior: str | Path | None = None,
) -> ImageSetConfig:
    """The configuration of the set in `source`, for `builder_class(config=...)`, with that folder of priors if any.

    Reads no image. Raises `UserError` when files are missing.
    """
    source = Path(source).expanduser().resolve()
    splits = builder_class.examples(source)
    # When a package was installed says nothing about the content of its files.
    timed = builder_class.default_source() is None
    content: list[Any] = [_entries(_paths(splits), source, timed), cut_size, cut_stride, encoding]
    if prior is not None:
        prior, pairs = Path(prior).expanduser().resolve(), _paths(splits)
        splits = with_prior(splits, prior, builder_class.name)
        content.append(_entries([path for path in _paths(splits) if path not in pairs], prior))
    label = re.sub(r"[^A-Za-z0-9._-]+", "_", source.name)[:64]
    name = f"{label}_{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}"
    return ImageSetConfig(
        name=name,
        source=str(source),
        splits=splits,
        cut_size=cut_size,
        cut_stride=cut_stride,
        encoding=encoding,
        prior=None if prior is None else str(prior),
    )


def _paths(splits: Mapping[str, Sequence[ExampleFiles]]) -> dict[Path, None]:
    """The files of all examples, each once, in their order."""
    return dict.fromkeys(
        image.path for examples in splits.values() for files in examples for image in files.images.values()
    )


def _entries(paths: Iterable[Path], root: Path, timed: bool = True) -> list[tuple[str, int, int]]:
    """What the fingerprint of a set knows of files below `root`: their places, sizes and, if `timed`, times."""
    try:
        stats = [(path, path.stat()) for path in paths]
    except OSError as error:
        raise UserError(f"cannot read '{error.filename}' ({error.strerror})") from error
    return [(os.path.relpath(path, root), stat.st_size, stat.st_mtime_ns if timed else 0) for path, stat in stats]


def read_facts(config: ImageSetConfig, channels: int) -> ImageSetFacts:
    """Reads every image of the set once.

    Raises `UserError` for the first image that cannot be read, differs in size from its partner, or differs in bit
    depth from the first one.
    """
    flat = [(split, files) for split, examples in config.splits.items() for files in examples]
    facts: dict[str, list[ExampleFacts]] = {split: [] for split in config.splits}
    first: tuple[ExampleFiles, int] | None = None
    inspected = inspect_examples([files for _, files in flat], channels, "checking")
    with closing(inspected):
        for (split, _), (files, found) in zip(flat, inspected, strict=True):
            if isinstance(found, UserError):
                raise found
            first = first or (files, found.bit_depth)
            if found.bit_depth != first[1]:
                raise UserError(
                    f"'{first[0].path}' and '{files.path}' differ in bit depth ({first[1]} and {found.bit_depth}); "
                    "convert one of them"
                )
            facts[split].append(found)
    assert first is not None
    train = config.splits.get("train", ())
    sides = [min(found.height, found.width) for found in facts.get("train", ())]
    smallest = int(np.argmin(sides)) if sides else None
    return ImageSetFacts(
        bit_depth=first[1],
        num_images={split: len(found) for split, found in facts.items()},
        psnr_input={split: _mean_psnr(found) for split, found in facts.items()},
        shard_sizes={split: _plan_shards(config, split, found, channels) for split, found in facts.items()},
        smallest_train_image=None if smallest is None else str(train[smallest].path),
        smallest_train_side=None if smallest is None else sides[smallest],
    )


def _mean_psnr(facts: Sequence[ExampleFacts]) -> float | None:
    scores = [found.psnr_input for found in facts if found.psnr_input is not None and math.isfinite(found.psnr_input)]
    return float(np.mean(scores)) if scores else None


def _plan_shards(config: ImageSetConfig, split: str, facts: Sequence[ExampleFacts], channels: int) -> list[int]:
    sizes, stored_bytes = [0], 0
    for files, found in zip(config.splits[split], facts, strict=True):
        if stored_bytes >= SHARD_BYTES:
            sizes, stored_bytes = [*sizes, 0], 0
        size = config.cut_size if split == "train" else max(found.height, found.width)
        cuts = len(cut_positions(found.height, found.width, size, config.cut_stride))
        pixels = cuts * min(size, found.height) * min(size, found.width)
        image, prior = channels * found.bit_depth // 8, 3 * 2
        stored_bytes += pixels * sum(prior if key == PRIOR else image for key in files.images)
        sizes[-1] += 1
    return sizes


def stored_facts(folder: Path) -> ImageSetFacts | None:
    """The facts that an interrupted preparation has left in its incomplete folder, if it came so far."""
    try:
        return ImageSetFacts(**json.loads(_facts_path(folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def store_facts(folder: Path, facts: ImageSetFacts) -> None:
    """Keeps the facts for a preparation that finishes what is interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(_facts_path(folder), dataclasses.asdict(facts))


def _facts_path(folder: Path) -> Path:
    return folder / "facts.json"
