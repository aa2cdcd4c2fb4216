"""The page `docs/models.md`, made from the table of networks: `gamax models --output docs/models.md`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from gamax.benchmark.cost import model_multiply_adds
from gamax.diffusion.autoencoder import Autoencoder
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.interop.key_maps import find_key_map
from gamax.lab.receptive_field import receptive_field
from gamax.models import VARIANTS, Variant, abstract_params, count_parameters, create_model
from gamax.models.adaptive_sampling import AdaptiveSampling
from gamax.models.dmphn import DMPHN
from gamax.models.gama_ir import GAMAIR
from gamax.models.lir import LIR
from gamax.models.nafnet import NAFNet
from gamax.models.restormer import Restormer
from gamax.models.saphn import SAPHN
from gamax.models.swintormer import Swintormer
from gamax.models.unet import UNet

_NARROW: dict[type[nn.Module], dict[str, Any]] = {
    GAMAIR: {"width": 2},
    NAFNet: {"width": 1},
    Restormer: {"width": 2, "heads": (1, 1, 1, 1)},
    UNet: {"width": 1},
    DMPHN: {"widths": (1, 1, 1)},
    LIR: {"width": 16},
    Swintormer: {"width": 8, "heads": (1, 1, 1, 1)},
    SAPHN: {"widths": (1, 1, 1)},
    Autoencoder: {"width": 4},
    LatentDiffusion: {"steps": 1},
}
"""The receptive field does not depend on the width."""

_INTRODUCTION = [
    "# Networks",
    "",
    "Written by `gamax models --output docs/models.md`; a test fails where it no longer says what the code says.",
    "",
    "Every network is made by `gamax.create_model(NAME)`, takes float images `[B, H, W, C]` in [0, 1] of **any size** "
    "(it pads them to a multiple of the number given here, by reflection unless it says otherwise, and crops back) and "
    "does not clip its output. Any field of its module can be changed: `create_model('nafnet_gopro_w32', "
    "local_window=384, remat=True)`.",
    "",
    "- *Layout*: `exact` computes what the authors' code computes, checked against tensors recorded from it, the same "
    "network in PyTorch, or both (UNet: only against PyTorch written from the same description); `reconstruction` "
    "fills in what the paper or its code leaves out, and the module's docstring says what.",
    "- *Multiply-adds* of convolutions and matrix products for one 256x256 image; sums that are written as shifts and "
    "adds for every device (the blur of LIR) are not counted.",
    "- *Receptive field*: on how many pixels of a row a pixel of the output depends at most, by the layout alone. "
    "`image` means all: such a network gives other results for tiles than for the whole image ([tiling](tiling.md)).",
    "- *Convertible*: whether `gamax convert` reads and writes the state dicts of the authors' PyTorch code.",
    "- *Published* is what the authors state, PSNR / SSIM under their own protocols; gamax's own results are in "
    "[results](results/).",
    "",
    "All networks take `remat=True`, which stores less for the gradient and computes it again, and those with rows of "
    "equal blocks `scan=True`, which compiles them once ([figures](results/scanned_blocks.md)). Neither changes "
    "parameters or result.",
    "",
]

_REMARKS: dict[type[nn.Module], str] = {
    NAFNet: "Pads with zeros. `local_window=384` is the test-time local conversion behind the published GoPro results.",
    GAMAIR: "`local_window` is our reconstruction of the test-time local conversion for GAMA.",
    Restormer: "`local_window` is our reconstruction of the test-time local conversion for its attention.",
    LIR: "Pads to at least 128. `local_window` makes the channel attention local.",
    Swintormer: "Its masks weaken what they forbid by a factor of e^-100, so by layout it sees the whole image.",
    SAPHN: "Attention sees the whole image.",
    AdaptiveSampling: "Any network with a method `outputs` can be wrapped ([guide](adaptive_sampling.md)).",
    Autoencoder: "Restores nothing: it is the first stage of latent diffusion ([guide](prior.md)).",
    LatentDiffusion: "Its multiply-adds are those of sampling, 20 times the denoiser, and decoding.",
    DMPHN: "Patches of the image are cut where its size says, so tiles give other results than the whole image.",
}


def narrow_model(name: str) -> nn.Module:
    """A named network with few channels, and so the network inside it if it wraps one."""
    variant = VARIANTS[name]
    inner = variant.options.get("network")
    return create_model(name, **_NARROW[variant.network if inner is None else type(inner)])


def models_page(progress: Callable[[str], object] = lambda name: None) -> str:
    """The page as Markdown; `progress` is called with the name of every network before it is measured."""
    return "\n".join(_lines(progress))


def _lines(progress: Callable[[str], object]) -> Iterator[str]:
    yield from _INTRODUCTION
    fields: dict[nn.Module, int | None] = {}
    for network in dict.fromkeys(variant.network for variant in VARIANTS.values()):
        variants = {name: variant for name, variant in VARIANTS.items() if variant.network is network}
        yield f"## {network.__name__}"
        yield f"{_summary(network)} {_REMARKS.get(network, '')}".rstrip()
        yield ""
        columns = (
            "name",
            "parameters",
            "multiply-adds",
            "input",
            "multiple",
            "receptive field",
            "layout",
            "convertible",
        )
        yield f"| {' | '.join(columns)} |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"
        for name, variant in variants.items():
            progress(name)
            narrow = narrow_model(name)
            if narrow not in fields:
                fields[narrow] = receptive_field(narrow)
            yield _row(name, variant, fields[narrow])
        yield ""
        for name, variant in variants.items():
            yield (
                f"- **{name}** (arXiv {variant.paper}), {variant.source}. Published: {variant.published}. Recipe: "
                f"{variant.recipe}."
            )
        yield ""


def _summary(network: type[nn.Module]) -> str:
    """The first sentence of the module that defines a network."""
    described = inspect.getmodule(network)
    return (inspect.getdoc(described) or "").split("\n")[0]


def _row(name: str, variant: Variant, field: int | None) -> str:
    model = create_model(name)
    params = abstract_params(model)
    cells = (
        f"`{name}`",
        f"{count_parameters(params):,}",
        f"{model_multiply_adds(model, params, 256, 256) / 1e9:.2f} G",
        str(model.input_channels),
        str(model.size_multiple),
        f"{field} px" if field else "image",
        variant.fidelity,
        "yes" if find_key_map(model) else "no",
    )
    return f"| {' | '.join(cells)} |"
