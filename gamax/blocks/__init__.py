"""Building blocks: every module maps `[B, H, W, C]` features and works alone."""

from __future__ import annotations

from gamax.blocks.adaptive_attention import AttentionBlock, EAABlock, ResBlock, ResidualGate
from gamax.blocks.adaptive_filter import AdaptiveFilter, gaussian_blur
from gamax.blocks.attention import NonLocal, SimplifiedChannelAttention, SqueezeExcite
from gamax.blocks.content_aware import ContentAwareModule
from gamax.blocks.convolution import Conv, ConvTranspose, depthwise_conv
from gamax.blocks.efficient_attention import EfficientAttention
from gamax.blocks.gama import GAMA
from gamax.blocks.mixers import MIXERS, Mixer, check_mixer_option, find_mixer, is_global, make_mixer, samples_pixels
from gamax.blocks.naf import BaselineBlock, NAFBlock, PlainBlock, check_mixer, simple_gate
from gamax.blocks.normalization import LayerNorm
from gamax.blocks.padding import pad_to_multiple
from gamax.blocks.patch_attention import PatchAttention
from gamax.blocks.pixel_dependent_filter import PixelDependentFilter
from gamax.blocks.pooling import box_mean, window_mean
from gamax.blocks.repetition import repeat
from gamax.blocks.resampling import pixel_shuffle, pixel_unshuffle
from gamax.blocks.residual import ProjectedResidualBlock, ResidualBlock, ResidualDecoder, ResidualEncoder
from gamax.blocks.transposed_attention import GatedFeedForward, TransposedAttention, TransposedAttentionBlock
from gamax.blocks.window_attention import PointwiseFeedForward, WindowAttention, WindowAttentionBlock, softmax_plus_one

__all__ = [
    "GAMA",
    "MIXERS",
    "AdaptiveFilter",
    "AttentionBlock",
    "BaselineBlock",
    "ContentAwareModule",
    "Conv",
    "ConvTranspose",
    "EAABlock",
    "EfficientAttention",
    "GatedFeedForward",
    "LayerNorm",
    "Mixer",
    "NAFBlock",
    "NonLocal",
    "PatchAttention",
    "PixelDependentFilter",
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
    "check_mixer_option",
    "depthwise_conv",
    "find_mixer",
    "gaussian_blur",
    "is_global",
    "make_mixer",
    "pad_to_multiple",
    "pixel_shuffle",
    "pixel_unshuffle",
    "repeat",
    "samples_pixels",
    "simple_gate",
    "softmax_plus_one",
    "window_mean",
]
