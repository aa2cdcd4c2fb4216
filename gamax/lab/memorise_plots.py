"""The curves and the pictures of `gamax lab memorise`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from gamax.benchmark.plots import COLOURS

Line = Mapping[str, Any]


def curves_figure(rows: Sequence[Line], summary: Sequence[Line], title: str) -> Figure:
    """PSNR against steps, a panel for each image and a line for each mixer: the mean, and from lowest to highest seed.

    Args:
        rows: one for each training, with `image`, `mixer` and a `curve` of pairs.
        summary: one for each image and mixer, in the order of the legend.
        title: above all panels.

    """
    images = list(dict.fromkeys(row["image"] for row in rows))
    figure = Figure((1.6 + 4.6 * len(images), 4.4), dpi=110, layout="constrained")
    figure.suptitle(f"One image, memorised by networks with equal numbers of parameters\n{title}", fontsize=9)
    panels = np.ravel(figure.subplots(1, len(images), sharex=True, squeeze=False))
    for axes, image in zip(panels, images, strict=True):
        mixers = [line["mixer"] for line in summary if line["image"] == image]
        for colour, mixer in zip(cycle(COLOURS), mixers, strict=False):
            curves = [row["curve"] for row in rows if (row["image"], row["mixer"]) == (image, mixer)]
            steps = [step for step, _ in curves[0]]
            values = np.array([[value for _, value in curve] for curve in curves], float)
            axes.plot(steps, values.mean(0), color=colour, lw=1.4, label=_two_lines(mixer))
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
        axes.set_title(image, fontsize=9)
        axes.set_xlabel("step")
        axes.set_ylabel("PSNR, dB (mean; band: all seeds)")
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return figure


def pictures_figure(
    targets: Mapping[str, Float[np.ndarray, "n n 3"]],
    pictures: Mapping[tuple[str, str], UInt8[np.ndarray, "n n 3"]],
    summary: Sequence[Line],
    title: str,
) -> Figure:
    """What the networks made of the images: a row for each image, the target first.

    Args:
        targets: the images by name.
        pictures: results of one seed, by image and mixer.
        summary: one for each image and mixer.
        title: above all.

    """
    mixers = list(dict.fromkeys(line["mixer"] for line in summary))
    figure = Figure((2.2 * (len(mixers) + 1), 0.6 + 2.5 * len(targets)), dpi=110, layout="constrained")
    figure.suptitle(f"What is memorised by the first seed; PSNR: mean of all\n{title}", fontsize=9)
    rows = figure.subplots(len(targets), len(mixers) + 1, squeeze=False)
    for axes, (image, target) in zip(rows, targets.items(), strict=True):
        axes[0].imshow(target, interpolation="nearest", vmin=0, vmax=1)
        axes[0].set_title(image, fontsize=8)
        for axis, mixer in zip(axes[1:], mixers, strict=True):
            psnr = next(line["psnr"] for line in summary if (line["image"], line["mixer"]) == (image, mixer))
            axis.imshow(pictures[image, mixer], interpolation="nearest")
            axis.set_title(_two_lines(mixer), fontsize=8)
            axis.set_xlabel(f"{psnr['mean']:.2f} dB" if psnr else "not finite", fontsize=8)
        for axis in axes:
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def shown(mixer: str) -> str:
    """What a mixer is called in tables: without one the network is plain."""
    return "plain" if mixer == "none" else mixer


def _two_lines(mixer: str) -> str:
    return shown(mixer).replace("(", "\n(") if len(mixer) > 18 else shown(mixer)
