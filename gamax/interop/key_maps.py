"""How the authors' PyTorch code names and shapes the parameters of each network: data, used in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from gamax.errors import UserError
from gamax.models.nafnet import NAFNet
from gamax.models.restormer import Restormer


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

    def torch_shape(self, name: str, length: int) -> tuple[int, ...]:
        """The shape that a vector of `length` numbers has in PyTorch under this name."""
        found = (shape for pattern, shape in self.shapes if re.search(pattern, name))
        return tuple(length if side == -1 else side for side in next(found, (length,)))


def key_map(model: nn.Module) -> KeyMap:
    """The map of a network; `UserError` if no PyTorch code for it is known."""
    if type(model) not in KEY_MAPS:
        raise UserError(
            f"there is no published PyTorch code for {type(model).__name__}, so nothing to convert to or from"
        )
    return KEY_MAPS[type(model)](model)


_CHANNEL_SCALE = (1, -1, 1, 1)


def _nafnet(model: NAFNet) -> KeyMap:
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


KEY_MAPS: dict[type[nn.Module], Callable[[Any], KeyMap]] = {
    NAFNet: _nafnet,
    Restormer: _restormer,
}
