"""The weights that come with gamax; a model card (NAME.md) lies beside each file (NAME.safetensors)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gamax.errors import UserError, nearest

PRETRAINED_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class PretrainedWeights:
    """One weight file of the package."""

    name: str
    """What `load_weights`, `Restorer.from_weights`, `gamax restore --weights` and `eval.py` take instead of a path."""
    task: str
    """What `gamax restore --task` calls it."""
    summary: str
    """What it restores, in a line."""
    licence: str
    """What the photographs that it was trained on allow, in a sentence."""

    @property
    def path(self) -> Path:
        """The weight file."""
        return PRETRAINED_FOLDER / f"{self.name}.safetensors"

    @property
    def card(self) -> Path:
        """The model card: training, figures, limits."""
        return PRETRAINED_FOLDER / f"{self.name}.md"


PRETRAINED: dict[str, PretrainedWeights] = {
    weights.name: weights
    for weights in (
        PretrainedWeights(
            "denoise-photo",
            "denoise",
            "noise of any strength up to sigma 50, also in photographs that were stored as JPEG",
            "trained on BSDS500: for research and non-commercial use only",
        ),
        PretrainedWeights(
            "denoise-gaussian",
            "denoise",
            "white noise of any strength up to sigma 50, before any JPEG: the noise of benchmarks",
            "trained on BSDS500: for research and non-commercial use only",
        ),
        PretrainedWeights(
            "denoise-real",
            "denoise",
            "the mild, coloured noise of cameras' own JPEG files",
            "trained on BSDS500 and PolyU: for research and non-commercial use only",
        ),
        PretrainedWeights(
            "derain",
            "derain",
            "rain streaks, as drawn on photographs (Rain800)",
            "trained on Rain800, which states no licence: for research only",
        ),
    )
}
"""By name; of several for one task the first is taken unless another one is named."""

TRAINING_EXAMPLES = {
    "deblur": "configs/gama_ir_s_gopro.py",
    "defocus": "configs/restormer_dpdd.py",
    "dehaze": "configs/lir_dehaze.py",
}
"""A configuration to train with, for the tasks of `gamax restore` that no weights come for."""


def weights_for(task: str) -> PretrainedWeights:
    """The weights that restore for a task, if none are named.

    Raises:
        UserError: if none come with gamax; says for which tasks some do, and how to train them.
    """
    for weights in PRETRAINED.values():
        if weights.task == task:
            return weights
    tasks = list(dict.fromkeys(weights.task for weights in PRETRAINED.values()))
    if task not in TRAINING_EXAMPLES:
        raise UserError(f"unknown task {nearest(task, [*tasks, *TRAINING_EXAMPLES])}")
    raise UserError(
        f"no weights for the task {task} come with gamax, only for {' and '.join(tasks)}: train some in a checkout of "
        f"gamax (python train.py {TRAINING_EXAMPLES[task]} --data.source DIR) and name the run folder with --weights"
    )
