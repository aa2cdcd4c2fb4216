"""Exact moves between resolution and channels, in PyTorch's channel order."""

from __future__ import annotations

from jaxtyping import Array, Shaped


def pixel_unshuffle(x: Shaped[Array, "b h w c"], factor: int) -> Shaped[Array, "b h2 w2 d"]:
    """Moves blocks of `factor` x `factor` pixels into channels: `[B, H, W, C]` to `[B, H/f, W/f, C f f]`.

    Output channel `(c * factor + row) * factor + column`, as `torch.nn.PixelUnshuffle` has it.
    """
    batch, height, width, channels = x.shape
    if height % factor or width % factor:
        raise ValueError(f"pixel_unshuffle by {factor} needs sides divisible by {factor}, not {height}x{width}")
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // factor, width // factor, -1)


def pixel_shuffle(x: Shaped[Array, "b h w d"], factor: int) -> Shaped[Array, "b h2 w2 c"]:
    """The inverse of `pixel_unshuffle`: `[B, H, W, C f f]` to `[B, H f, W f, C]`."""
    batch, height, width, channels = x.shape
    if channels % factor**2:
        raise ValueError(f"pixel_shuffle by {factor} needs channels divisible by {factor**2}, not {channels}")
    x = x.reshape(batch, height, width, channels // factor**2, factor, factor)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height * factor, width * factor, -1)
