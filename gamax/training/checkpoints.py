"""Checkpoints: the training state, written in the background and finished atomically by Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The latest checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path, kept: int) -> None:
        # Orbax insists on absolute paths.
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=kept, create=True)
        )

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Copies the state off the devices and writes it in the background, with a JSON-able record beside it."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._manager.save(step, args=items)

    def restore(self, like: Any, shardings: Any) -> tuple[Any, dict[str, Any]] | None:
        """The latest complete checkpoint as `(state, progress)`, laid out as `shardings` say, or None."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like, shardings
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["progress"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
