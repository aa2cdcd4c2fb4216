"""How well a network with fewer parameters than pixels fits one image, block by block: `gamax lab memorise`.

Figure 5 of GAMA-IR (arXiv 2404.00807). Established: one image, fewer parameters than pixels, equal numbers of
parameters, a chessboard against a photograph, blocks plain, squeeze-and-excite and GAMA. Reconstruction: all else, such
as that the network is given noise which stays the same, its layout, and the training.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from gamax.blocks import Conv, find_mixer
from gamax.blocks.mixers import import_path
from gamax.data.images import decode_image, encode_image, read_image, to_float, to_integers, to_rgb
from gamax.errors import UserError, first_line
from gamax.lab.block_check import check_block
from gamax.lab.memorise_plots import curves_figure, pictures_figure, shown
from gamax.lab.study import Report, Trial, run_trials, spread, with_spread
from gamax.models import count_parameters

NOISE_CHANNELS, NOISE_HEIGHT = 16, 0.1
"""The input: uniform noise from 0 to this height, so many channels."""
DARK, LIGHT = 0.1, 0.9
"""Of the chessboard."""
PARAMETERS_PER_PIXEL = 0.95
LARGEST_MISMATCH = 0.02
"""How far numbers of parameters may be from those asked for, relatively."""
LOGGED_EVERY = 25
"""Steps between the points of a curve."""
MILESTONES = (20, 25, 30)
"""PSNR in dB; the table says how many steps a network takes to get there."""

RGB = Float[np.ndarray, "n n 3"]


class ResidualMixerBlock(nn.Module):
    """Two convolutions, C to `hidden` channels and back, with ReLU and the mixer between them, added to the input."""

    hidden: int
    mixer: str = "none"
    kernel_size: int = 3
    padding: Literal["zeros", "circular"] = "zeros"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        _, make, options = find_mixer(self.mixer)
        conv = partial(_conv, kernel_size=self.kernel_size, padding=self.padding)
        y = nn.relu(conv(x, self.hidden, name="first"))
        if make is not None:
            y = make(**options, name="mixing")(y)
        return x + conv(y, x.shape[-1], name="second")


class MemoryNetwork(nn.Module):
    """Turns noise `[B, H, W, C]` into images `[B, H, W, 3]`, all at full resolution: a block for each of `hidden`."""

    width: int
    hidden: tuple[int, ...]
    mixer: str = "none"
    kernel_size: int = 3
    padding: Literal["zeros", "circular"] = "zeros"

    @nn.compact
    def __call__(self, noise: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        """The images, not clipped."""
        options = {"kernel_size": self.kernel_size, "padding": self.padding}
        x = _conv(noise, self.width, name="intro", **options)
        for index, hidden in enumerate(self.hidden):
            x = ResidualMixerBlock(hidden, self.mixer, **options, name=f"block_{index}")(x)
        return _conv(x, 3, name="ending", **options)

    @property
    def receptive_field(self) -> int:
        """Pixels of a side of the square that the convolutions alone see."""
        return 1 + (self.kernel_size - 1) * (2 + 2 * len(self.hidden))


def _conv(x: Array, features: int, kernel_size: int, padding: str, name: str) -> Array:
    reach = kernel_size // 2 if padding == "circular" else 0
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="wrap")
    return Conv(features, kernel_size, name=name)(x)[:, reach : reach + height, reach : reach + width]


def matched_network(parameters: int, width: int, depth: int, mixer: str, **options: Any) -> MemoryNetwork:
    """The network whose blocks have so many hidden channels that it has as nearly as possible that many parameters.

    Hidden channels of its blocks differ by at most one, the first ones having more.

    Raises:
        UserError: if the nearest number is further away than `LARGEST_MISMATCH`, or the mixer fails with some number of
            channels.

    """

    def hidden(total: int) -> tuple[int, ...]:
        return tuple(total // depth + (index < total % depth) for index in range(depth))

    @cache
    def of_block(channels: int) -> int:
        try:
            return parameters_of(ResidualMixerBlock(channels, mixer, **options), width)
        except Exception as error:  # A block of the user's can fail in any way.
            raise UserError(
                f"'{mixer}' fails with {channels} channels ({first_line(error)}); to match parameters, memorise needs "
                "a mixer that takes any number of channels"
            ) from error

    ends = parameters_of(MemoryNetwork(width, (), mixer, **options))
    # More channels never take fewer parameters.
    totals = range(depth, 64 * depth * width)
    above = bisect.bisect_left(totals, parameters, key=lambda total: ends + sum(map(of_block, hidden(total))))
    candidates = [hidden(totals[index]) for index in (above - 1, above) if 0 <= index < len(totals)]
    nearest = min(candidates, key=lambda widths: abs(ends + sum(map(of_block, widths)) - parameters))
    best = MemoryNetwork(width, nearest, mixer, **options)
    if abs(parameters_of(best) - parameters) > LARGEST_MISMATCH * parameters:
        raise UserError(
            f"no network of width {width} and depth {depth} with the mixer '{mixer}' has about {parameters:,} "
            f"parameters (nearest: {parameters_of(best):,}); change --width, --depth or --size"
        )
    return best


def parameters_of(module: nn.Module, channels: int = NOISE_CHANNELS) -> int:
    """The number of parameters of a module that takes images of so many channels."""
    images = jax.ShapeDtypeStruct((1, 16, 16, channels), jnp.float32)
    return count_parameters(jax.eval_shape(module.init, jax.random.key(0), images))


def chessboard(size: int, squares: int) -> RGB:
    """`squares` times `squares` squares, the first one dark."""
    parity = np.arange(size) * squares // size % 2
    board = np.where(parity[:, None] == parity, np.float32(DARK), np.float32(LIGHT))
    return np.repeat(board[..., None], 3, axis=-1)


def load_image(name: str, size: int, squares: int) -> RGB:
    """`chessboard`, `photograph` (scikit-image's cat), or a file: its largest square from the middle, scaled to `size`.

    Raises:
        UserError: if there is no such file, or it is smaller than `size`.

    """
    from skimage.data import chelsea
    from skimage.transform import resize

    if name == "chessboard":
        return chessboard(size, squares)
    image = to_float(to_rgb(chelsea() if name == "photograph" else read_image(Path(name))))
    side = min(image.shape[:2])
    if side < size:
        raise UserError(f"'{name}' has {image.shape[1]}x{image.shape[0]} pixels; choose a --size of at most {side}")
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = image[top : top + side, left : left + side]
    return np.clip(resize(square, (size, size), anti_aliasing=True), 0, 1).astype(np.float32)


def study(
    *,
    images: Sequence[str],
    mixers: Sequence[str],
    size: int,
    squares: int,
    width: int,
    depth: int,
    kernel_size: int,
    padding: Literal["zeros", "circular"],
    steps: int,
    learning_rate: float,
    seeds: Sequence[int],
    folder: Path,
    reproduce: str,
) -> Report:
    """Trains every network on every image with every seed; see `LabMemorise` for the options.

    Raises:
        UserError: for options that make no study, before any training.

    """
    if min(size, squares, width, depth, steps) < 1 or squares > size or learning_rate <= 0 or kernel_size % 2 == 0:
        raise UserError(
            "memorise needs a size, squares (at most as many as pixels), width, depth, steps and a learning rate above "
            "0, and an odd kernel_size"
        )
    targets = {name: load_image(name, size, squares) for name in images}
    parameters = int(PARAMETERS_PER_PIXEL * size * size)
    networks = {}
    for mixer in mixers:
        find_mixer(mixer)
        if import_path(mixer)[0]:
            check_block(mixer)
        networks[mixer] = matched_network(parameters, width, depth, mixer, kernel_size=kernel_size, padding=padding)
        noise = jax.ShapeDtypeStruct((1, size, size, NOISE_CHANNELS), jnp.float32)
        # Some mixers refuse images that they are too large for.
        jax.eval_shape(networks[mixer].init, jax.random.key(0), noise)
    trials = [
        {
            "name": f"{image} {mixer}",
            "image": image,
            "image_sha256": _sha256(targets[image]),
            "mixer": mixer,
            "seed": seed,
            "hidden": list(networks[mixer].hidden),
            "width": width,
            "kernel_size": kernel_size,
            "padding": padding,
            "size": size,
            "steps": steps,
            "learning_rate": learning_rate,
        }
        # All images of a mixer share its compiled program.
        for mixer in mixers
        for image in images
        for seed in seeds
    ]

    def run(trial: Trial, update: Callable[[float, str], object]) -> dict[str, Any]:
        network = networks[trial["mixer"]]
        return memorise(network, targets[trial["image"]], steps, learning_rate, trial["seed"], update)

    rows = run_trials(trials, run, folder)
    summary = [_summary(image, mixer, networks[mixer], rows) for image in images for mixer in mixers]
    notes = _notes(summary, networks, size, squares, images)
    board = f"{squares}x{squares} squares, " if "chessboard" in images else ""
    title = f"{size}x{size} pixels, {board}{steps} steps, {len(seeds)} seed(s)"
    restored = {
        (row["image"], row["mixer"]): np.asarray(decode_image(base64.b64decode(row["picture"])))
        for row in rows
        if row["seed"] == seeds[0]
    }
    return Report(
        name="memorise",
        settings={
            **{"images": images, "mixers": mixers, "size": size, "squares": squares, "width": width, "depth": depth},
            **{"kernel_size": kernel_size, "padding": padding, "steps": steps, "learning_rate": learning_rate},
            "seeds": seeds,
        },
        reproduce=reproduce,
        tables={f"PSNR in dB of one image that was memorised; {title}": [_cells(line) for line in summary]},
        notes=notes,
        figures={
            "memorise_curves.png": curves_figure(rows, summary, title),
            "memorise_pictures.png": pictures_figure(targets, restored, summary, title),
        },
        record={"summary": summary, "rows": [{k: v for k, v in row.items() if k != "picture"} for row in rows]},
    )


def memorise(
    network: nn.Module,
    target: RGB,
    steps: int,
    learning_rate: float,
    seed: int,
    update: Callable[[float, str], object] = lambda part, note: None,
) -> dict[str, Any]:
    """Fits noise to one image in [0, 1] by Adam and the mean squared error, along half a cosine to a hundredth.

    Returns:
        `psnr` in dB of the clipped image at the end, `curve` of pairs of step and PSNR (of the training, not clipped),
        and `picture`, the image as PNG in base 64. PSNR is None where it is not finite.

    """
    noise_key, key = jax.random.split(jax.random.key(seed))
    noise = jax.random.uniform(noise_key, (1, *target.shape[:2], NOISE_CHANNELS), maxval=NOISE_HEIGHT)
    step, optimizer, restore = _program(network, steps, learning_rate)
    params = network.init(key, noise)
    state = (params, optimizer.init(params))
    wanted = jnp.asarray(target)[None]
    curve = []
    for number in range(1, steps + 1):
        state, loss = step(state, noise, wanted)
        if number % LOGGED_EVERY == 0 or number == steps:
            curve.append([number, _psnr(float(loss))])
            update(number / steps, f"seed {seed}, {curve[-1][1]} dB")
    clipped = np.clip(np.asarray(restore(state[0], noise)[0]), 0, 1)
    picture = base64.b64encode(encode_image(to_integers(np.nan_to_num(clipped)), ".png")).decode()
    return {"psnr": _psnr(float(np.mean((clipped - target) ** 2))), "curve": curve, "picture": picture}


# Seeds and images share one compiled program; those of earlier networks are let go.
@lru_cache(maxsize=1)
def _program(network: nn.Module, steps: int, learning_rate: float) -> tuple[Any, Any, Any]:
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps, alpha=0.01))

    # Not a loop of the program: XLA's convolutions take four times as long inside of one on CPU.
    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, noise: Array, target: Array) -> tuple[Any, Array]:
        def loss_of(params: Any) -> Array:
            restored: Any = network.apply(params, noise)
            return jnp.mean(jnp.square(restored - target))

        loss, gradient = jax.value_and_grad(loss_of)(state[0])
        updates, moments = optimizer.update(gradient, state[1])
        return (optax.apply_updates(state[0], updates), moments), loss

    return step, optimizer, jax.jit(network.apply)


def _psnr(squared_error: float) -> float | None:
    value = -10 * math.log10(max(squared_error, 1e-12)) if math.isfinite(squared_error) else None
    return None if value is None else round(value, 4)


def _sha256(image: RGB) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def _summary(image: str, mixer: str, network: MemoryNetwork, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [row for row in rows if (row["image"], row["mixer"]) == (image, mixer)]
    finite = [row["psnr"] for row in own if row["psnr"] is not None]
    reached = {
        str(level): [next((step for step, psnr in row["curve"] if psnr and psnr >= level), None) for row in own]
        for level in MILESTONES
    }
    return {
        "image": image,
        "mixer": mixer,
        "parameters": parameters_of(network),
        "hidden": list(network.hidden),
        "psnr": spread(finite) if finite else None,
        "not_finite": [row["seed"] for row in own if row["psnr"] is None],
        "steps_to": reached,
    }


def _cells(line: Mapping[str, Any]) -> dict[str, str]:
    def steps_to(values: Sequence[int | None]) -> str:
        reached = [value for value in values if value is not None]
        missed = len(values) - len(reached)
        text = f"{np.mean(reached):.0f}" if reached else "-"
        return f"{text} ({missed} not)" if missed and reached else text

    return {
        "mixer": shown(line["mixer"]),
        "image": line["image"],
        "parameters": f"{line['parameters']:,}",
        "hidden": " ".join(map(str, line["hidden"])),
        "PSNR, dB": with_spread(line["psnr"]) if line["psnr"] else "not finite",
        "seeds": f"{line['psnr']['low']:.2f} to {line['psnr']['high']:.2f}" if line["psnr"] else "",
        **{f"to {level} dB": steps_to(values) for level, values in line["steps_to"].items()},
    }


def _notes(
    summary: Sequence[Mapping[str, Any]],
    networks: Mapping[str, MemoryNetwork],
    size: int,
    squares: int,
    images: Sequence[str],
) -> list[str]:
    counts = [parameters_of(network) for network in networks.values()]
    field = next(iter(networks.values())).receptive_field
    notes = [
        f"parameters: {min(counts):,} to {max(counts):,}, for {size * size:,} pixels",
        f"the convolutions see {field} pixels"
        + (f"; a square of the chessboard has {size / squares:.4g}" if "chessboard" in images else ""),
        f"±: sample standard deviation over seeds; to {MILESTONES[0]} dB: steps to the first of the logged points, one "
        f"every {LOGGED_EVERY} steps, that is so high; hidden: channels of the blocks",
    ]
    for image in images:
        lines = [line for line in summary if line["image"] == image and line["psnr"]]
        if len(lines) > 1:
            lines.sort(key=lambda line: -line["psnr"]["mean"])
            notes.append(f"{image}: {_verdict(lines)}")
    return notes + [
        f"{line['image']}, {shown(line['mixer'])}: not finite for the seeds {line['not_finite']}, which no mean has in "
        "it; --learning-rate may be too high"
        for line in summary
        if line["not_finite"]
    ]


def _verdict(lines: Sequence[Mapping[str, Any]]) -> str:
    """What the seeds say about lines that are sorted from the best to the worst."""
    best, second, worst = lines[0], lines[1], lines[-1]
    if max(line["psnr"]["count"] for line in lines) == 1:
        return "one seed alone says nothing about which differences are more than chance; take three or more --seeds"
    gap = best["psnr"]["mean"] - second["psnr"]["mean"]
    highest_other = max(line["psnr"]["high"] for line in lines[1:])
    clear = best["psnr"]["low"] > highest_other
    return (
        f"{shown(best['mixer'])} is best by {gap:.2f} dB, and its worst seed is {'above' if clear else 'not above'} "
        f"all seeds of the others; from best to worst the means differ by "
        f"{best['psnr']['mean'] - worst['psnr']['mean']:.2f} dB"
    )
