"""How the authors' PyTorch code names and shapes the parameters of each network: data, used in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from gamax.errors import UserError
from gamax.models.dmphn import DMPHN
from gamax.models.lir import LIR
from gamax.models.nafnet import NAFNet
from gamax.models.restormer import Restormer
from gamax.models.swintormer import Swintormer
from gamax.models.unet import UNet


@dataclass(frozen=True)
class KeyMap:
    """The way from a parameter of ours to its tensor in a state dict of PyTorch.

    Kernels of convolutions and matrices change their layout by their rank alone, so only names and the shapes of
    vectors need saying.
    """

    renamings: tuple[tuple[str, str], ...]
    """Regular expressions and replacements, applied in turn to paths such as `encoder_0_1/expand/kernel`. What they
    leave is finished by the names that PyTorch's own layers have (`weight`, `bias`) and dots for slashes."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """For vectors of ours: regular expressions on the name in PyTorch, and the shape there."""
    ignored: str | None = None
    """A regular expression on names of tensors that hold no trained parameters."""

    def torch_name(self, path: str) -> str:
        """The name in PyTorch of a parameter of ours, for example `encoders.0.1.conv1.weight`."""
        for pattern, replacement in (*self.renamings, (r"/(kernel|scale)$", "/weight"), ("/", ".")):
            path = re.sub(pattern, replacement, path)
        return path

    def without_ignored(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors that hold trained parameters."""
        return {name: value for name, value in tensors.items() if not (self.ignored and re.search(self.ignored, name))}

    def torch_shape(self, name: str, length: int) -> tuple[int, ...]:
        """The shape that a vector of `length` numbers has in PyTorch under this name."""
        found = (shape for pattern, shape in self.shapes if re.search(pattern, name))
        return tuple(length if side == -1 else side for side in next(found, (length,)))


def find_key_map(model: nn.Module) -> KeyMap | None:
    """The map of a network; None if no PyTorch code for it is published."""
    return KEY_MAPS[type(model)](model) if type(model) in KEY_MAPS else None


def key_map(model: nn.Module) -> KeyMap:
    """The map of a network; `UserError` if no PyTorch code for it is published."""
    found = find_key_map(model)
    if found is None:
        raise UserError(
            f"there is no published PyTorch code for {type(model).__name__} with these options, so nothing to convert"
        )
    return found


_CHANNEL_SCALE = (1, -1, 1, 1)


def _nafnet(model: NAFNet) -> KeyMap | None:
    if model.block == "plain" or model.mixer != "sca":
        return None
    levels = len(model.encoder_blocks)
    return KeyMap(
        renamings=(
            (r"^encoder_(\d+)_(\d+)/", r"encoders.\1.\2/"),
            (r"^middle_(\d+)/", r"middle_blks.\1/"),
            # The authors count the way up from the bottom.
            *((rf"^decoder_{level}_(\d+)/", rf"decoders.{levels - 1 - level}.\1/") for level in range(levels)),
            *((rf"^up_{level}/", f"ups.{levels - 1 - level}.0/") for level in range(levels)),
            (r"^down_(\d+)/", r"downs.\1/"),
            (r"\bexpand/", "conv1/"),
            (r"\bspatial/", "conv2/"),
            (r"\bproject/", "conv3/"),
            (r"\bchannel_expand/", "conv4/"),
            (r"\bchannel_project/", "conv5/"),
            (r"\bspatial_norm/", "norm1/"),
            (r"\bchannel_norm/", "norm2/"),
            (r"\bspatial_scale$", "beta"),
            (r"\bchannel_scale$", "gamma"),
            (r"\bmixing/weight/", "sca.1/"),
            (r"\bmixing/squeeze/", "se.1/"),
            (r"\bmixing/excite/", "se.3/"),
        ),
        shapes=((r"\b(beta|gamma)$", _CHANNEL_SCALE),),
    )


def _restormer(model: Restormer) -> KeyMap:
    return KeyMap(
        renamings=(
            (r"^embed/", "patch_embed.proj/"),
            *(
                (rf"^{way}_{level}_(\d+)/", rf"{way}_level{level + 1}.\1/")
                for way in ("encoder", "decoder")
                for level in range(3)
            ),
            (r"^bottom_(\d+)/", r"latent.\1/"),
            (r"^refinement_(\d+)/", r"refinement.\1/"),
            *((rf"^down_{level}/", f"down{level + 1}_{level + 2}.body.0/") for level in range(3)),
            *((rf"^up_{level}/", f"up{level + 2}_{level + 1}.body.0/") for level in range(3)),
            *((rf"^reduce_{level}/", f"reduce_chan_level{level + 1}/") for level in (1, 2)),
            (r"^skip/", "skip_conv/"),
            (r"\battention/qkv_spatial/", "attn/qkv_dwconv/"),
            (r"\battention/project/", "attn/project_out/"),
            (r"\battention/", "attn/"),
            (r"\bfeed_forward/expand/", "ffn/project_in/"),
            (r"\bfeed_forward/spatial/", "ffn/dwconv/"),
            (r"\bfeed_forward/project/", "ffn/project_out/"),
            (r"\battention_norm/", "norm1/body/"),
            (r"\bfeed_forward_norm/", "norm2/body/"),
        ),
        shapes=((r"\btemperature$", (-1, 1, 1)),),
    )


def _swintormer(_: Swintormer) -> KeyMap:
    return KeyMap(
        # Restormer's names for levels and norms, other ones inside the blocks.
        renamings=(
            (r"^embed/", "patch_embed/proj2/"),
            (r"^output/", "output/0/"),
            (r"\bposition_bias/hidden/", "cpb_mlp/0/"),
            (r"\bposition_bias/output/", "cpb_mlp/2/"),
            (r"\bqkv_spatial/", "qkv_dwconv/"),
            (r"\bexpand/", "project_in/"),
            (r"\bproject/", "project_out/"),
            (r"\bfeed_forward/", "ffn/"),
            *_restormer(Restormer()).renamings,
        ),
        shapes=((r"\blogit_scale$", (-1, 1, 1)),),
    )


def _lir(_: LIR) -> KeyMap:
    return KeyMap(
        renamings=(
            # Inside an EAA block, first: its stages have numbers like the levels of the network.
            (r"\bfilter_(\d)/", r"stage\1.0/"),
            (r"\battention_1/", "stage1.0/"),
            (r"\battention_(\d)/", r"stage\1.1/"),
            (r"\bdownsample_1/", "stage1.1/"),
            (r"\b(?:down|up)sample_(\d)/", r"stage\1.2/"),
            (r"\bdegradation/", "transpose/"),
            (r"\bconvolutions/", "resblock/"),
            (r"\bpatch_attention/", "pa/"),
            (r"\bgate/", "sg/"),
            (r"\bchannel_attention/", "rescablock/"),
            (r"\bsg/expand/", "sg/conv/"),
            (r"\bexpand/", "conv_1/"),
            (r"\bspatial/", "conv_2/"),
            (r"\bproject/", "conv_3/"),
            (r"block/norm/", "block/layernorm/"),
            (r"\battention/squeeze/", "ca/attention.1/"),
            (r"\battention/excite/", "ca/attention.3/"),
            (r"\bsg/residual_scale$", "sg/gamma"),
            (r"\bresidual_scale$", "alpha"),
            (r"\breduce/", "down/"),
            (r"\bhidden/", "mlp.0/"),
            (r"\bhidden_norm/", "mlp.1/"),
            (r"\bweight/", "mlp.3/"),
            (r"\bskip_scale$", "beta"),
            (r"\bfilter_weights$", "alpha"),
            (r"\bidentity_weight$", "beta"),
            (r"^encoder_0_(\d+)/", r"EAA1.\1/"),
            (r"^encoder_1_(\d+)/", r"EAA2.\1/"),
            (r"^middle_(\d+)/", r"EAA3.\1/"),
            (r"^decoder_1_(\d+)/", r"EAA4.\1/"),
            (r"^decoder_0_(\d+)/", r"EAA5.\1/"),
            *((rf"^{way}_{level}/", f"{way}sample{level + 1}.0/") for way in ("down", "up") for level in (0, 1)),
            (r"^(head|tail)/", r"Conv_\1/"),
            (r"^fuse/", "down/"),
            (r"/slope$", "/act/weight"),
            (r"^feature_degradation/", "transpose1/"),
            (r"^image_degradation/", "transpose2/"),
        ),
        shapes=((r"\b(resblock\.alpha|rescablock\.alpha|pa\.beta|sg\.gamma)$", _CHANNEL_SCALE),),
        # The fixed kernels of the filters, which are there or not depending on where the network was built.
        ignored=r"\b(Sobel_x|Laplation|Edge|Roberts_x|Roberts_y|Sobel_xy|Sobel_yx)$",
    )


def _dmphn(_: DMPHN) -> KeyMap:
    return KeyMap(
        renamings=(
            # The authors' files are `encoder_lv1.pkl`, `decoder_lv1.pkl` and so on; layers are numbered through both.
            (r"^(encoder|decoder)_(\d+)/", r"\1_lv\2/"),
            *(
                (rf"^({part}_lv\d+)/blocks_{level}_{index}/", rf"\1/layer{first + index}/")
                for level in range(3)
                for part, first in (("encoder", 2 + 4 * level), ("decoder", 21 - 4 * level))
                for index in (0, 1)
            ),
            (r"/intro/", "/layer1/"),
            *((rf"/down_{level}/", f"/layer{5 + 4 * level}/") for level in (0, 1)),
            *((rf"/up_{level}/", f"/layer{20 - 4 * level}/") for level in (0, 1)),
            (r"/ending/", "/layer24/"),
            (r"\bfirst/", "0/"),
            (r"\bsecond/", "2/"),
        ),
    )


def _unet(_: UNet) -> KeyMap:
    return KeyMap(
        renamings=(
            # Blocks are numbered from the encoder through the middle to the end.
            *((rf"^encoder_{level}/", f"ConvBlock{level + 1}/") for level in range(4)),
            (r"^middle/", "ConvBlock5/"),
            *((rf"^decoder_{level}/", f"ConvBlock{9 - level}/") for level in range(4)),
            *((rf"^down_{level}/", f"pool{level + 1}/") for level in range(4)),
            *((rf"^up_{level}/", f"upv{9 - level}/") for level in range(4)),
            (r"^ending/", "conv10/"),
            (r"\bfirst/", "block/0/"),
            (r"\bsecond/", "block/2/"),
            (r"\bshortcut/", "conv11/"),
        ),
    )


KEY_MAPS: dict[type[nn.Module], Callable[[Any], KeyMap | None]] = {
    DMPHN: _dmphn,
    LIR: _lir,
    NAFNet: _nafnet,
    Restormer: _restormer,
    Swintormer: _swintormer,
    UNet: _unet,
}
