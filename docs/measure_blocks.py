"""Measures how the blocks of SAPHN grow with the image, for `docs/results/content_aware.md`.

`python docs/measure_blocks.py` prints the table and writes `docs/images/content_aware_scaling.png`. Sizes take turns,
so that what disturbs the machine disturbs all of them, and the time is that of the processor, whoever else uses it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from gamax.benchmark.plots import COLOURS, MARKERS
from gamax.blocks.content_aware import ContentAwareModule
from gamax.blocks.convolution import Conv
from gamax.blocks.efficient_attention import EfficientAttention
from gamax.blocks.pixel_dependent_filter import PixelDependentFilter

CHANNELS, SIDES, RUNS = 32, (64, 128, 256, 512), 5
BLOCKS: dict[str, nn.Module] = {
    "5x5 convolution": Conv(CHANNELS, 5),
    "EfficientAttention": EfficientAttention(),
    "PixelDependentFilter, K = 3": PixelDependentFilter(3),
    "PixelDependentFilter, K = 5": PixelDependentFilter(5),
    "ContentAwareModule, K = 5": ContentAwareModule(),
}


def program(block: nn.Module, side: int, *, gradient: bool) -> tuple[Any, tuple[Any, jax.Array]]:
    """The compiled block, or its gradient by parameters and features, and its arguments: random, so offsets spread."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, side, side, CHANNELS)), jnp.float32)
    abstract = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.05, leaf.shape), leaf.dtype), abstract)

    def apply(params: Any, x: jax.Array) -> Any:
        return block.apply({"params": params}, x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.square(apply(params, x)).mean()

    function = jax.jit(jax.grad(loss, (0, 1)) if gradient else apply)
    return function.lower(params, x).compile(), (params, x)


def measure(block: nn.Module, *, gradient: bool) -> tuple[list[float], list[float]]:
    """The least milliseconds of CPU time of a few runs, and the temporary memory in MB, for each side."""
    programs = [program(block, side, gradient=gradient) for side in SIDES]
    runs: list[list[float]] = [[] for _ in SIDES]
    for _ in range(RUNS + 1):
        for times, (compiled, arguments) in zip(runs, programs, strict=True):
            started = time.process_time()
            jax.block_until_ready(compiled(*arguments))
            times.append(1e3 * (time.process_time() - started))
    # The first run of each warms up.
    least = [min(times[1:]) for times in runs]
    return least, [compiled.memory_analysis().temp_size_in_bytes / 1e6 for compiled, _ in programs]


def exponent(values: list[float]) -> str:
    """The power of the number of pixels that the values grow with, by least squares over their logarithms."""
    return f"{np.polyfit(2 * np.log(SIDES), np.log(values), 1)[0]:.2f}" if all(values) else "-"


def main() -> None:
    """Prints a row for each block and program, and draws the gradients."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), dpi=100, layout="constrained")
    pixels = np.square(SIDES)
    sides = ", ".join(f"{side}²" for side in SIDES)
    print(f"| block | program | CPU ms at {sides} | exponent | temporary MB | exponent |")
    print("| --- | --- | --- | ---: | --- | ---: |")
    for (name, block), colour, marker in zip(BLOCKS.items(), COLOURS, MARKERS, strict=False):
        for gradient in (False, True):
            times, memory = measure(block, gradient=gradient)
            cells = [
                f"{' / '.join(f'{value:.3g}' for value in values)} | {exponent(values)}" for values in (times, memory)
            ]
            print(f"| {name} | {'gradient' if gradient else 'forward'} | {' | '.join(cells)} |", flush=True)
        for panel, values in zip(panels, (times, memory), strict=True):
            panel.loglog(pixels, values, color=colour, marker=marker, label=name)
    for panel, label in zip(panels, ("CPU time, ms", "temporary memory, MB"), strict=True):
        bottom = panel.get_ylim()[0]
        panel.loglog(pixels, bottom * pixels / pixels[0], "--", color="grey", label="proportional to the pixels")
        panel.set(xlabel="pixels", ylabel=label, title=f"Gradient, {CHANNELS} channels")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(Path(__file__).parent / "images" / "content_aware_scaling.png")


if __name__ == "__main__":
    main()
