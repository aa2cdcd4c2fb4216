"""Checkpoints: written in the background by Orbax, and checked when they are read.

A full disk does not end training. A disk that returns other bytes than were written is found out by checksums of our
own: TensorStore, which writes the arrays, takes most flipped bits for data.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped, UInt32

from gamax import hosts
from gamax.console import say
from gamax.errors import UserError

DAMAGED_FOLDER = "damaged_checkpoints"
"""Beside the folder of the checkpoints: where those go that cannot be used."""
FAILURES = (OSError, ValueError, jax.errors.JaxRuntimeError)
"""What may come from the storage: TensorStore raises ValueError, and JAX where one process waits for another in vain.

`_storage_reason` tells them from errors of ours.
"""


class Checkpoints:
    """The checkpoints of one run. Every process of a cluster makes one and calls it at the same steps.

    Args:
        folder: for the checkpoints alone, on a disk that all processes share.
        kept: how many of the latest are kept, beside the one with the highest score.
        kept_every: those of every multiple of so many steps are kept too.

    Raises:
        UserError: if the folder cannot be made or written to.

    """

    def __init__(self, folder: Path, *, kept: int, kept_every: int | None) -> None:
        # Orbax insists on absolute paths.
        self._folder = folder.absolute()
        # What these print of a failure, for pages, is raised too, and told of in a sentence.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_is_not_of_orbax)
        self._unraisable_hook = sys.unraisablehook
        sys.unraisablehook = self._print_unless_of_orbax
        self._policy = _Policy(kept, kept_every)
        self._in_flight: int | None = None
        self._failure = ""
        self.failed = 0
        """How many checkpoints in a row could not be written, up to the last one that is known of."""
        try:
            self._manager: ocp.CheckpointManager | None = self._open()
        except OSError as error:
            raise UserError(f"'{folder}' cannot hold checkpoints ({error.strerror}); choose another folder") from error

    def _print_unless_of_orbax(self, unraisable: Any) -> None:
        # After a failure TensorStore reports to a loop that Orbax has closed, and what Orbax began is thrown away.
        if not re.search("Event loop is closed|reading array index", str(unraisable.exc_value)):
            self._unraisable_hook(unraisable)

    def _open(self) -> ocp.CheckpointManager:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        # Folders that cannot be made in the background are waited for in vain.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        manager = ocp.CheckpointManager(self._folder, options=options)
        self._policy.scores.clear()
        for step in manager.all_steps():
            try:
                score = self._read_record(step)["score"]
            except _DamagedError:
                # Told of when it is to be restored.
                continue
            self._policy.add(step, score)
        return manager

    def _remove_unfinished(self) -> None:
        """Frees the space of what a kill or a full disk has cut off."""
        if hosts.is_first():
            for path in self._folder.glob(f"*{ocp.path.atomicity_types.TMP_DIR_SUFFIX}*"):
                # What does not go now goes the next time.
                shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, state: Any, progress: dict[str, Any], score: float | None = None) -> None:
        """Copies the state off the devices and writes it in the background; does nothing for a step that is saved.

        If the storage does not take a checkpoint, this one or the one before, a sentence says so, `failed` counts it,
        and the older ones stay; the next call tries again.

        Args:
            step: larger than those before.
            state: a pytree of arrays.
            progress: a record that JSON can hold.
            score: of an evaluation, higher is better; NaN is none.
        """
        self._settle()
        try:
            self._manager = self._manager or self._open()
            if step in self._manager.all_steps():
                return
            record = _seal({"progress": progress, "score": score, "arrays": _describe(state)})
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(record))
            self._policy.add(step, score)
            self._manager.save(step, args=items, force=True)
        except FAILURES as error:
            self._note_failure(step, error)
        else:
            self._in_flight = step

    def restore(self, like: Any, shardings: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that is complete and undamaged, as `(state, progress)`; None if there is none at all.

        Newer ones that are damaged are told of and moved to `damaged_checkpoints` beside the folder.

        Args:
            like: a pytree of arrays, or of their shapes and types.
            shardings: one for every leaf; not necessarily those that it was saved with.

        Raises:
            UserError: if the checkpoint is of another network, or there are checkpoints but all are damaged.

        """
        manager = self._manager or self._open()
        damaged: list[tuple[int, str]] = []
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                restored = self._read(step, like, shardings)
            except _DamagedError as error:
                damaged.append((step, str(error)))
                # What was begun is thrown away here, where nobody is told.
                gc.collect()
                continue
            for bad, reason in damaged:
                place = self._set_aside(bad)
                say(f"the checkpoint of step {bad} is damaged ({reason}), now '{place}'; that of step {step} is used")
            if damaged:
                manager.close()
                self._manager = self._open()
            return restored
        if damaged:
            step, reason = damaged[0]
            raise UserError(
                f"none of the {len(damaged)} checkpoint(s) in '{self._folder}' can be used (step {step}: {reason}); "
                "put an undamaged copy there, or start anew with another --logging.run-dir"
            )
        return None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # On the way out of an error of one process there is nobody to close them with.
        if kind is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Waits until everything is on disk; raises `UserError` if the last checkpoint could not be written."""
        self._settle()
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        if self._failure:
            # The hook stays: threads of the failure may still print.
            failure, self._failure = self._failure, ""
            raise UserError(f"{failure}; mend that, and the same command goes on from the last complete one")
        sys.unraisablehook = self._unraisable_hook

    def _settle(self) -> None:
        """Waits for the checkpoint that is being written."""
        if self._manager is None or self._in_flight is None:
            return
        step, self._in_flight = self._in_flight, None
        try:
            _together(self._manager.wait_until_finished, FAILURES)
        except FAILURES as error:
            self._note_failure(step, error)
        else:
            self.failed, self._failure = 0, ""

    def _note_failure(self, step: int, error: Exception) -> None:
        reason = _storage_reason(error)
        if reason is None:
            raise error
        # A manager that has failed no longer knows which checkpoints there are; `save` opens another.
        self._manager = None
        try:
            complete = [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]
            self._remove_unfinished()
        except OSError:
            complete = []
        if step in complete:
            say(f"a checkpoint before that of step {step} could not be removed ({reason})")
            self.failed, self._failure = 0, ""
            return
        self.failed += 1
        self._failure = f"the checkpoint of step {step} could not be written to '{self._folder}' ({reason})"
        last = f"the last complete one is of step {max(complete)}" if complete else "there is no complete one"
        say(f"{self._failure}; training goes on, {last}")

    def _read(self, step: int, like: Any, shardings: Any) -> tuple[Any, dict[str, Any]]:
        record = _together(lambda: self._read_record(step), (_DamagedError,))
        saved, wanted = {name: entry[:2] for name, entry in record["arrays"].items()}, _kinds(like)
        if saved != wanted:
            name = min(name for name in {*saved, *wanted} if saved.get(name) != wanted.get(name))
            raise UserError(
                f"the checkpoint of step {step} in '{self._folder}' is of another network or optimizer: '{name}' is "
                f"{saved.get(name)} there, {wanted.get(name)} here; choose another --logging.run-dir"
            )
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like, shardings
        )
        state = _together(lambda: self._read_item(step, "state", ocp.args.StandardRestore(abstract)), (_DamagedError,))
        for name, entry in _describe(state).items():
            if entry != record["arrays"][name]:
                raise _DamagedError(f"the checksum of {name} is wrong")
        return state, record["progress"]

    def _read_record(self, step: int) -> dict[str, Any]:
        sealed = self._read_item(step, "progress", ocp.args.JsonRestore())
        if not isinstance(sealed, dict) or sealed.get("sha256") != _seal(sealed.get("record"))["sha256"]:
            raise _DamagedError("the checksum of its record is wrong")
        return sealed["record"]

    def _read_item(self, step: int, name: str, args: ocp.args.CheckpointArgs) -> Any:
        # Each process by itself, or one that fails would leave the others waiting.
        process = jax.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process {process}"
        )
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=options) as reader:
                return reader.restore(self._folder / str(step), args=ocp.args.Composite(**{name: args}))[name]
        except jax.errors.JaxRuntimeError:
            # The devices, not the files.
            raise
        except Exception as error:
            # Damaged files raise whatever the parsers of Orbax come across, even a bare Exception.
            raise _DamagedError(_storage_reason(error) or f"{type(error).__name__}: {str(error)[:100]}") from error

    def _set_aside(self, step: int) -> Path:
        place = self._folder.parent / DAMAGED_FOLDER / str(step)
        if hosts.is_first():
            while place.exists():
                place = place.with_name(f"{place.name}_again")
            place.parent.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(place)
        hosts.wait_for_all(f"damaged checkpoint {step}")
        return place


@dataclass
class _Policy:
    """Which checkpoints Orbax keeps.

    Its own policy for the best ones reads scores from files in which a flipped bit would stop every start.
    """

    kept: int
    kept_every: int | None
    scores: dict[int, float] = field(default_factory=dict)

    def add(self, step: int, score: float | None) -> None:
        if score is not None and not math.isnan(score):
            self.scores[step] = score

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = max((step for step in steps if step in self.scores), key=self.scores.__getitem__, default=None)
        latest = steps[-self.kept :]
        return [step in latest or step == best or self._is_multiple(step) for step in steps]

    def _is_multiple(self, step: int) -> bool:
        return self.kept_every is not None and step % self.kept_every == 0


class _DamagedError(Exception):
    """A checkpoint that cannot be read, or holds something else than was saved; the message says why."""


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname + record.getMessage()


def _together(action: Callable[[], Any], failures: tuple[type[Exception], ...]) -> Any:
    """The result of `action`, which fails in all processes if it does in one."""
    result = problem = None
    try:
        result = action()
    except failures as error:
        problem = error
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.bool_(problem is not None)).any():
        problem = problem or failures[0]("another process failed")
    if problem is not None:
        raise problem
    return result


def _storage_reason(error: BaseException | None) -> str | None:
    """What the operating system said, if the error comes from there."""
    if isinstance(error, OSError):
        return error.strerror or str(error).rstrip(".")
    if isinstance(error, jax.errors.JaxRuntimeError):
        return _storage_reason(error.__context__)
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else None


def _seal(record: Any) -> dict[str, Any]:
    """A copy of a record as JSON returns it, with its hash."""
    text = json.dumps(record, sort_keys=True)
    return {"record": json.loads(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _kinds(tree: Any) -> dict[str, list[Any]]:
    """Type and shape of every leaf, by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [str(leaf.dtype), list(leaf.shape)]
        for path, leaf in leaves
    }


def _describe(state: Any) -> dict[str, list[Any]]:
    """Type, shape and checksum of every leaf, by its path."""
    checksums = jax.device_get([checksum(leaf) for leaf in jax.tree.leaves(state)])
    return {name: [*kind, int(value)] for (name, kind), value in zip(_kinds(state).items(), checksums, strict=True)}


@jax.jit
def checksum(leaf: Shaped[Array, "*shape"]) -> UInt32[Array, ""]:
    """A number that changes with any bit of an array of numbers or keys, and not with its sharding.

    The sum, modulo 2^32, of a hash of every element and its position. The hash is invertible, so a change of one
    element is always found; of several, all but one in 2^32.
    """
    numbers = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    words = lax.bitcast_convert_type(numbers, f"uint{8 * min(numbers.dtype.itemsize, 4)}").astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, length in enumerate(words.shape):
        position = position * np.uint32(length) + lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return _mix(words ^ _mix(position)).sum(dtype=jnp.uint32)


def _mix(words: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32-bit words that spreads every bit over all others: shifts and odd factors of MurmurHash3."""
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
