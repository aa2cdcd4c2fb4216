"""How fast training images reach the network: reading, decoding, cropping and batching, each row in its own process.

`python -m gamax.benchmark.loading '{"dataset": "gopro", ...}'` prints one JSON line; `measure` starts it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gamax.config import DataConfig, check_data
from gamax.data.datasets import PreparedDataset, prepare, source_examples
from gamax.errors import UserError

LOOP_FILES = 200
"""How many stored images the plain loop reads as files of their own."""


@dataclass(frozen=True)
class Case:
    """One row of the benchmark."""

    dataset: str
    source: str | None
    prepared_dir: str | None
    storage: Literal["files", "png", "raw"]
    """`files`: the original whole images; `png` and `raw`: the prepared cuts in that encoding."""
    reader: Literal["loop", "pipeline"]
    """`loop`: files read, decoded, cropped and stacked by hand with the same decoder, the upper bound; `pipeline`: the
    input pipeline of training, from prepared records (from the files themselves for `files`)."""
    workers: int = 1
    """Threads that read."""
    cores: int | None = None
    """Processor cores that the whole process may use; None for all."""
    patch_size: int = 256
    batch_size: int = 8
    seconds: float = 5.0


def measure(case: Case) -> dict[str, Any]:
    """Runs one case in a fresh process on `case.cores` cores and returns its row."""
    command = [sys.executable, "-m", "gamax.benchmark.loading", json.dumps(dataclasses.asdict(case))]
    pin = (
        None if case.cores is None else partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[: case.cores])
    )
    finished = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=pin)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("gamax.errors.UserError: ")
        raise UserError(f"the benchmark of {case.storage} ({case.reader}) failed: {reason}")
    return json.loads(finished.stdout.splitlines()[-1])


def check_case(case: Case) -> None:
    """Raises `UserError` for what this machine or the stored cuts cannot give, before anything is prepared."""
    check_data(data_config(case))
    if case.cores is not None:
        if not hasattr(os, "sched_setaffinity"):
            raise UserError("this system cannot bind a process to cores; leave out --cores")
        if case.cores > len(os.sched_getaffinity(0)):
            raise UserError(f"--cores {case.cores} is more than the {len(os.sched_getaffinity(0))} of this machine")


def data_config(case: Case) -> DataConfig:
    """The dataset of a case, as it is to be prepared."""
    encoding: Literal["png", "raw"] = "raw" if case.storage == "raw" else "png"
    place = (case.dataset, case.source, case.prepared_dir)
    return DataConfig(*place, encoding=encoding, patch_size=case.patch_size)


def run_case(case: Case) -> dict[str, Any]:
    """Measures in this process: examples a second, processor time, and for one worker the time of each stage."""
    from gamax.data.pipeline import keep_freed_memory
    from gamax.environment import environment, versions

    # For the plain loop as well, which would be three to eight times slower otherwise.
    keep_freed_memory()
    config = data_config(case)
    prepared = prepare(config, training=False) if case.storage != "files" else None
    examples = prepared.train if prepared else source_examples(config, "train")
    with tempfile.TemporaryDirectory() as folder:
        if case.reader == "pipeline":
            batches = _pipeline(examples, case)
        else:
            readers = _original_readers(examples) if case.storage == "files" else _file_readers(examples, case, folder)
            batches = _loop(readers, case)
        rate, cores_used = _rate(batches, case)
    alone = case.reader == "pipeline" and case.workers == 1
    stages = _stages(prepared, 1e3 / rate, case) if prepared and alone else {}
    return {
        **dataclasses.asdict(case),
        "images_per_example": sum(key in ("input", "target") for key in examples[0]),
        "examples_per_second": rate,
        "cores_used": cores_used,
        **stages,
        "versions": versions(),
        "environment": environment(),
    }


def _rate(batches: Iterator[Any], case: Case) -> tuple[float, float]:
    """Examples a second and cores used, once as long a time as is measured has passed."""
    for _ in ("warm-up", "measurement"):
        count, started, processor = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - started < case.seconds:
            next(batches)
            count += case.batch_size
        wall = time.perf_counter() - started
    return count / wall, (time.process_time() - processor) / wall


def _pipeline(examples: Sequence[Any], case: Case) -> Iterator[Any]:
    from gamax.data.pipeline import training_batches

    return training_batches(
        examples, patch_size=case.patch_size, batch_size=case.batch_size, seed=0, threads=case.workers
    )


def _loop(readers: Sequence[Callable[[], list[np.ndarray]]], case: Case) -> Iterator[list[np.ndarray]]:
    """Batches as a hand-written loop makes them; with several workers each thread makes whole batches."""

    def batch(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        crops = []
        for index in rng.integers(len(readers), size=case.batch_size):
            images = readers[index]()
            if min(images[0].shape[:2]) < case.patch_size:
                raise UserError(f"an image has {images[0].shape[1]}x{images[0].shape[0]} pixels, less than the patch")
            y, x = (rng.integers(side - case.patch_size + 1) for side in images[0].shape[:2])
            crops.append([image[y : y + case.patch_size, x : x + case.patch_size] for image in images])
        return [np.stack(images) for images in zip(*crops, strict=True)]

    if case.workers == 1:
        yield from map(batch, range(sys.maxsize))
    with ThreadPoolExecutor(case.workers) as pool:
        ahead = [pool.submit(batch, seed) for seed in range(2 * case.workers)]
        try:
            for seed in range(2 * case.workers, sys.maxsize):
                yield ahead.pop(0).result()
                ahead.append(pool.submit(batch, seed))
        finally:
            pool.shutdown(cancel_futures=True)


def _original_readers(examples: Sequence[Any]) -> list[Callable[[], list[np.ndarray]]]:
    return [partial(lambda index: _images(examples[index]), index) for index in range(len(examples))]


def _images(example: Mapping[str, Any]) -> list[np.ndarray]:
    return [example[key] for key in ("input", "target") if key in example]


def _file_readers(examples: Sequence[Any], case: Case, folder: str) -> list[Callable[[], list[np.ndarray]]]:
    """Writes stored images as one file each; returns functions that read one example as the loop does."""
    from gamax.data.images import decode_stored, encode_image

    suffix = ".ppm" if case.storage == "raw" else ".png"

    def read(paths: list[Path]) -> list[np.ndarray]:
        images = [decode_stored(path.read_bytes()) for path in paths]
        return [image for image in images if image is not None]

    readers = []
    for index in np.linspace(0, len(examples) - 1, min(LOOP_FILES, len(examples))).astype(int):
        paths = []
        for key in ("input", "target"):
            if key in examples[index]:
                path = Path(folder, f"{index}_{key}{suffix}")
                path.write_bytes(encode_image(examples[index][key], suffix))
                paths.append(path)
        readers.append(partial(read, paths))
    return readers


def _stages(prepared: PreparedDataset, milliseconds: float, case: Case) -> dict[str, float]:
    """Where one thread's milliseconds an example go: fetching its record, decoding it, and the rest of the pipeline."""
    import tensorflow_datasets as tfds

    keys = [key for key in ("input", "target") if key in prepared.train[0]]
    skip = dict.fromkeys(keys, tfds.decode.SkipDecoding())
    builder: Any = tfds.builder_from_directory(prepared.folder)
    records = builder.as_data_source("train", decoders=skip)
    fetch, fetch_and_decode = (_milliseconds(items, case.seconds / 4) for items in (records, prepared.train))
    return {
        "fetch_ms": fetch,
        "decode_ms": fetch_and_decode - fetch,
        "crop_and_batch_ms": milliseconds - fetch_and_decode,
    }


def _milliseconds(items: Any, seconds: float) -> float:
    order = np.random.default_rng(0).permutation(len(items))
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        items[int(order[count % len(order)])]
        count += 1
    return 1e3 * (time.perf_counter() - started) / count


if __name__ == "__main__":
    print(json.dumps(run_case(Case(**json.loads(sys.argv[1])))))
