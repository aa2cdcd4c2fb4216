"""How the authors' PyTorch code names and shapes the parameters of each network: data, used in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from gamax.diffusion.autoencoder import Autoencoder
from gamax.diffusion.ddim import signal_powers
from gamax.diffusion.denoiser import Denoiser
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.diffusion.layers import MOST_GROUPS, number_of_groups
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

    Kernels of convolutions and matrices change their layout by their rank alone, so only names, the shapes of vectors
    and exceptions need saying.
    """

    renamings: tuple[tuple[str, str], ...]
    """Regular expressions and replacements, applied in turn to paths such as `encoder_0_1/expand/kernel`. What they
    leave is finished by the names that PyTorch's own layers have (`weight`, `bias`) and dots for slashes."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """For vectors of ours: regular expressions on the name in PyTorch, and the shape there."""
    ignored: str | None = None
    """A regular expression on names of tensors that hold no trained parameters."""
    tables: str | None = None
    """A regular expression on names of matrices whose rows are entries of a table; they are not transposed."""
    sequences: str | None = None
    """A regular expression on names of 1x1 kernels that belong to convolutions along a sequence, `[out, in, 1]`."""
    average: Callable[[str], str] | None = None
    """From the name of a tensor to that of its average over training, or to itself where there is none."""
    objection: Callable[[Mapping[str, Any]], str | None] | None = None
    """Why arrays that go with the parameters show another computation than ours, as a sentence; None if they do not."""

    def torch_name(self, path: str) -> str:
        """The name in PyTorch of a parameter of ours, for example `encoders.0.1.conv1.weight`."""
        for pattern, replacement in (*self.renamings, (r"/(kernel|scale)$", "/weight"), ("/", ".")):
            path = re.sub(pattern, replacement, path)
        return path

    def without_ignored(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors that hold trained parameters; where a file holds averages of them, these in their place."""
        averages = self.averages(tensors)
        used = set(averages.values())
        return {
            name: tensors[averages.get(name, name)]
            for name in tensors
            if name not in used and not (self.ignored and re.search(self.ignored, name))
        }

    def averages(self, tensors: Mapping[str, Any]) -> dict[str, str]:
        """The names of the tensors that have an average among them, and the names of the averages."""
        named = {name: self.average(name) for name in tensors} if self.average else {}
        return {name: average for name, average in named.items() if average != name and average in tensors}

    def refusal(self, tensors: Mapping[str, Any]) -> str | None:
        """Why these tensors, though they may have the right names and shapes, are not to be taken; None if they are."""
        lacking = [name for name in tensors if self.average and self.average(name) not in tensors]
        # The tensor itself would not make up for it.
        if lacking and self.averages(tensors):
            return f"'{lacking[0]}' has no average among the tensors, though others have: the file is not complete"
        return self.objection(tensors) if self.objection else None

    def torch_axes(self, name: str, rank: int) -> tuple[int, ...]:
        """The axes of a parameter of ours in the order that PyTorch has them."""
        if self.tables and re.search(self.tables, name):
            return tuple(range(rank))
        # `[k, k, in, out]` becomes `[out, in, k, k]`, and `[in, out]` `[out, in]`.
        return {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[rank]

    def torch_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in PyTorch, under this name, of a parameter of ours of this shape."""
        if len(shape) == 1:
            found = (sides for pattern, sides in self.shapes if re.search(pattern, name))
            return tuple(shape[0] if side == -1 else side for side in next(found, shape))
        transposed = tuple(shape[axis] for axis in self.torch_axes(name, len(shape)))
        return transposed[:-1] if self.sequences and re.search(self.sequences, name) else transposed


def find_key_map(model: nn.Module) -> KeyMap | None:
    """The map of a network; None if no PyTorch code that computes the same is published."""
    return KEY_MAPS[type(model)](model) if type(model) in KEY_MAPS else None


def key_map(model: nn.Module) -> KeyMap:
    """The map of a network; `UserError` if no PyTorch code that computes the same is published."""
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


def _swintormer(model: Swintormer) -> KeyMap | None:
    if model.prior_decoder is not None:
        return None
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


def _has_published_norms(model: Autoencoder | Denoiser) -> bool:
    """The authors' norms have 32 groups at any width; no layer is narrower than the first one, of `width` channels."""
    return number_of_groups(model.width) == MOST_GROUPS


def _autoencoder(model: Autoencoder) -> KeyMap | None:
    if not _has_published_norms(model):
        return None
    return KeyMap(
        renamings=(
            (r"\bfirst_norm/", "norm1/"),
            (r"\bfirst/", "conv1/"),
            (r"\bsecond_norm/", "norm2/"),
            (r"\bsecond/", "conv2/"),
            (r"\bshortcut/", "nin_shortcut/"),
            (r"\bmiddle_attention/project/", "middle_attention/proj_out/"),
            (r"\b(q)uery/|\b(k)ey/|\b(v)alue/", r"\1\2\3/"),
            (r"\bmiddle_attention/", "mid/attn_1/"),
            (r"\bmiddle_0/", "mid/block_1/"),
            (r"\bmiddle_1/", "mid/block_2/"),
            (r"\bencoder/project/", "quant_conv/"),
            (r"\bdecoder/project/", "post_quant_conv/"),
            (r"\bquantizer/codes$", "quantize/embedding/weight"),
            (r"\bencoder/level_(\d+)_(\d+)/", r"encoder/down.\1/block.\2/"),
            (r"\bencoder/downsample_(\d+)/", r"encoder/down.\1/downsample.conv/"),
            (r"\bdecoder/level_(\d+)_(\d+)/", r"decoder/up.\1/block.\2/"),
            (r"\bdecoder/upsample_(\d+)/", r"decoder/up.\1/upsample.conv/"),
            (r"coder/input/", "coder/conv_in/"),
            (r"coder/output_norm/", "coder/norm_out/"),
            (r"coder/output/", "coder/conv_out/"),
        ),
        # The networks of the losses, which the authors keep in the same file.
        ignored=r"^loss\.",
        tables=r"\bquantize\.embedding\.",
    )


def _other_schedule(tensors: Mapping[str, Any]) -> str | None:
    """A denoiser computes something else under another noise schedule, which only these arrays show."""
    powers, published = tensors.get("alphas_cumprod"), signal_powers()
    if powers is None or (np.shape(powers) == published.shape and np.allclose(powers, published, rtol=1e-4, atol=0)):
        return None
    return (
        "their noise schedule 'alphas_cumprod' is not that of the published super-resolution model, 1000 steps from "
        "0.0015 to 0.0155, and only models trained with that one can be taken"
    )


def _latent_diffusion(model: LatentDiffusion) -> KeyMap | None:
    first_stage, unet = _autoencoder(model.first_stage), model.unet
    if first_stage is None or not _has_published_norms(unet):
        return None
    levels = len(unet.multipliers)
    # The authors number blocks, and the layers between levels with them, through all levels on each way.
    on_level = unet.blocks + 1

    def upsampling(level: int) -> str:
        behind = 2 if 2**level in unet.attention_factors else 1
        return f"output_blocks.{(levels - level) * on_level - 1}.{behind}.conv"

    within_blocks = {
        "first_norm": "in_layers.0",
        "first": "in_layers.2",
        "time": "emb_layers.1",
        "second_norm": "out_layers.0",
        "second": "out_layers.3",
        "shortcut": "skip_connection",
        "project": "proj_out",
    }
    layers = {
        "time_first": "time_embed.0",
        "time_second": "time_embed.2",
        "input": "input_blocks.0.0",
        **{
            f"down_{part}{level}_{index}": f"input_blocks.{1 + level * on_level + index}.{place}"
            for level in range(levels)
            for index in range(unet.blocks)
            for place, part in enumerate(("", "attention_"))
        },
        **{f"downsample_{level}": f"input_blocks.{(level + 1) * on_level}.0.op" for level in range(levels)},
        "middle_0": "middle_block.0",
        "middle_attention": "middle_block.1",
        "middle_1": "middle_block.2",
        **{
            f"up_{part}{level}_{index}": f"output_blocks.{(levels - 1 - level) * on_level + index}.{place}"
            for level in range(levels)
            for index in range(on_level)
            for place, part in enumerate(("", "attention_"))
        },
        **{f"upsample_{level}": upsampling(level) for level in range(levels)},
        "output_norm": "out.0",
        "output": "out.2",
    }
    return KeyMap(
        renamings=(
            *((rf"^denoiser/(\w+)/{ours}/", rf"denoiser/\1/{theirs}/") for ours, theirs in within_blocks.items()),
            *((f"^denoiser/{ours}/", f"model.diffusion_model/{theirs}/") for ours, theirs in layers.items()),
            *first_stage.renamings,
            (r"^autoencoder/", "first_stage_model/"),
        ),
        # How averages are made, what follows from the noise schedule, and the losses of the first stage.
        ignored=r"^model_ema\.(decay|num_updates)$|^(betas|lvlb_weights|posterior_\w+|\w*alphas_cumprod\w*)$"
        r"|^first_stage_model\.loss\.",
        tables=r"\bquantize\.embedding\.",
        sequences=r"^model\.diffusion_model\..*\.(qkv|proj_out)\.weight$",
        average=lambda name: re.sub(r"^model\.(.*)", lambda found: "model_ema." + found[1].replace(".", ""), name),
        objection=_other_schedule,
    )


KEY_MAPS: dict[type[nn.Module], Callable[[Any], KeyMap | None]] = {
    Autoencoder: _autoencoder,
    DMPHN: _dmphn,
    LatentDiffusion: _latent_diffusion,
    LIR: _lir,
    NAFNet: _nafnet,
    Restormer: _restormer,
    Swintormer: _swintormer,
    UNet: _unet,
}
