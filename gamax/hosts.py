"""Several processes that work together: joining them, and what one may do alone."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from gamax.config import DistributedConfig
from gamax.console import console
from gamax.errors import RESTART_EXIT_CODE, UserError

MOST_SECONDS_TO_JOIN = 300


def join(config: DistributedConfig) -> None:
    """Connects the processes of a cluster; does nothing where there is one process.

    Call it before anything asks for devices. Only the first process prints from then on.

    Raises:
        UserError: if the addresses are incomplete, the others do not come, or a cluster was found but cannot be used.

    """
    given = (config.coordinator_address, config.num_processes, config.process_id)
    explicit = None not in given
    if not explicit and given != (None, None, None):
        raise UserError(
            "several processes need all of --distributed.coordinator-address, --distributed.num-processes and "
            "--distributed.process-id"
        )
    if not explicit and not config.detect:
        return
    # With addresses nothing is detected: SLURM, for one, would give each process one device.
    method = "deactivate" if explicit else None
    try:
        jax.distributed.initialize(*given, cluster_detection_method=method, initialization_timeout=MOST_SECONDS_TO_JOIN)
    except ValueError as error:
        if explicit:
            raise UserError(f"the processes cannot be joined ({error}); check the --distributed flags") from error
        if "JAX_COORDINATOR_ADDRESS" in os.environ:
            raise UserError(f"JAX_COORDINATOR_ADDRESS is set, but {error}; set the others too, or unset it") from error
        # JAX has found no cluster.
        return
    except RuntimeError as error:
        if not explicit and "must be called before" in str(error):
            # A program that has used its devices already works alone.
            return
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the processes of this cluster cannot be joined ({reason}); give the addresses with "
            "--distributed.coordinator-address and its neighbours, or train alone with --distributed.detect False"
        ) from error
    console.quiet = jax.process_index() > 0
    # The processes connect to each other now: at their first exchange they would wait half a minute at most, and one
    # may prepare a dataset before that.
    wait_for_all("joined")


@contextlib.contextmanager
def end_at_once_on_errors() -> Iterator[None]:
    """Ends one of several processes without waiting for the others, who wait for it in a step: JAX then ends them too.

    To be put around the whole program.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if jax.distributed.is_initialized() and code not in (0, None, RESTART_EXIT_CODE):
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
        raise


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_alike(facts: Mapping[str, Any]) -> None:
    """Raises `UserError` in all processes if they differ in one of the facts, which must fit into JSON."""
    records = gather_records([dict(facts)])
    for name in facts:
        values = [record[name] for record in records]
        other = next((index for index, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise UserError(
                f"the processes do not agree on {name}: it is {values[0]!r} in the first and {values[other]!r} in "
                f"number {other}; start all with the same command, code and files"
            )


def least(value: int) -> int:
    """The smallest of what the processes give, for decisions that all must take alike."""
    return min(record["value"] for record in gather_records([{"value": value}]))


def gather_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of all processes, of the first process first; their values must fit into JSON."""
    if jax.process_count() == 1:
        return records
    text = np.frombuffer(json.dumps(records).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    parts = [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths, strict=True)]
    return [record for part in parts for record in part]


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """The places in a global batch that the devices of this process hold, in order."""
    places = np.arange(batch_size).reshape(-1, 1, 1, 1)
    held = sharding.addressable_devices_indices_map(places.shape).values()
    return sorted({int(row) for index in held for row in places[index].flat})


def global_batch(
    batch: Mapping[str, np.ndarray], sharding: NamedSharding, batch_size: int, rows: list[int]
) -> dict[str, jax.Array]:
    """Puts the `rows` of this process on its devices, as parts of arrays over all devices.

    Args:
        batch: images `[len(rows), H, W, C]` by name.
        sharding: of the whole batch.
        batch_size: its images.
        rows: the places in it that `batch` has, as `local_rows` gives them.
    """
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    position = {row: index for index, row in enumerate(rows)}

    def whole(images: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return images[position[start] : position[stop - 1] + 1]

        return jax.make_array_from_callback((batch_size, *images.shape[1:]), sharding, part)

    return {name: whole(images) for name, images in batch.items()}


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays that every process has alike on the devices, as parts of arrays over all of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def spread(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.jit(jax.random.wrap_key_data)(spread(jax.random.key_data(leaf), sharding))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(spread, tree, shardings)


def fetch(arrays: Any) -> Any:
    """Whole copies in the memory of every process, as NumPy arrays, of arrays that may be divided among all."""
    whole = jax.tree.map(lambda leaf: NamedSharding(leaf.sharding.mesh, PartitionSpec()), arrays)
    divided = any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(arrays))
    return jax.tree.map(np.asarray, jax.jit(lambda leaves: leaves, out_shardings=whole)(arrays) if divided else arrays)
