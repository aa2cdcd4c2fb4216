"""Building blocks: every module maps `[B, H, W, C]` features and works alone."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from gamax.blocks.adaptive_attention import AttentionBlock, EAABlock, ResBlock, ResidualGate
from gamax.blocks.adaptive_filter import AdaptiveFilter, gaussian_blur
from gamax.blocks.attention import NonLocal, SimplifiedChannelAttention, SqueezeExcite
from gamax.blocks.convolution import Conv, ConvTranspose, depthwise_conv
from gamax.blocks.gama import GAMA
from gamax.blocks.naf import BaselineBlock, NAFBlock, PlainBlock, check_mixer, simple_gate
from gamax.blocks.normalization import LayerNorm
from gamax.blocks.padding import pad_to_multiple
from gamax.blocks.patch_attention import PatchAttention
from gamax.blocks.pooling import box_mean, window_mean
from gamax.blocks.repetition import repeat
from gamax.blocks.resampling import pixel_shuffle, pixel_unshuffle
from gamax.blocks.residual import ProjectedResidualBlock, ResidualBlock, ResidualDecoder, ResidualEncoder
from gamax.blocks.transposed_attention import GatedFeedForward, TransposedAttention, TransposedAttentionBlock
from gamax.blocks.window_attention import PointwiseFeedForward, WindowAttention, WindowAttentionBlock, softmax_plus_one

MIXERS: dict[str, Callable[..., nn.Module] | None] = {
    "none": None,
    "gama": GAMA,
    "squeeze_excite": SqueezeExcite,
    "sca": SimplifiedChannelAttention,
    "non_local": NonLocal,
}
"""Mixers by the names that configurations use; a Python program can pass any module class instead."""

__all__ = [
    "GAMA",
    "MIXERS",
    "AdaptiveFilter",
    "AttentionBlock",
    "BaselineBlock",
    "Conv",
    "ConvTranspose",
    "EAABlock",
    "GatedFeedForward",
    "LayerNorm",
    "NAFBlock",
    "NonLocal",
    "PatchAttention",
    "PlainBlock",
    "PointwiseFeedForward",
    "ProjectedResidualBlock",
    "ResBlock",
    "ResidualBlock",
    "ResidualDecoder",
    "ResidualEncoder",
    "ResidualGate",
    "SimplifiedChannelAttention",
    "SqueezeExcite",
    "TransposedAttention",
    "TransposedAttentionBlock",
    "WindowAttention",
    "WindowAttentionBlock",
    "box_mean",
    "check_mixer",
    "depthwise_conv",
    "gaussian_blur",
    "pad_to_multiple",
    "pixel_shuffle",
    "pixel_unshuffle",
    "repeat",
    "simple_gate",
    "softmax_plus_one",
    "window_mean",
]
