"""The explicit table of named networks: what they are made of, where they come from, what they reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn

from gamax.diffusion.autoencoder import Autoencoder, Decoder
from gamax.diffusion.denoiser import Denoiser
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.models.adaptive_sampling import AdaptiveSampling
from gamax.models.dmphn import DMPHN
from gamax.models.gama_ir import GAMAIR
from gamax.models.lir import LIR
from gamax.models.nafnet import NAFNet
from gamax.models.restormer import Restormer
from gamax.models.saphn import SAPHN
from gamax.models.swintormer import Swintormer
from gamax.models.unet import UNet


@dataclass(frozen=True)
class Variant:
    """A named network: how to build it, where it comes from, what it can take."""

    network: type[nn.Module]
    options: Mapping[str, Any]
    paper: str
    """arXiv identifier."""
    fidelity: Literal["exact", "reconstruction"]
    """Whether the layout is that of the authors' published code."""
    source: str
    """Where the hyper-parameters come from."""
    parameters: int
    """Expected number of trained parameters."""
    published: str = "none"
    """Results that its authors state for it, `PSNR / SSIM`; gamax's own are in `docs/results/`."""
    recipe: str = "none published"
    """How its authors trained it."""


_GAMA_IR = "2404.00807"
_GAMA_IR_RECIPE = (
    "that of NAFNet (reconstruction): AdamW 1e-3 (0.9, 0.9), cosine to 1e-7, crops of 256, PSNR loss, clip 0.01"
)

_NAFNET = "2204.04676"
_SIDD = {"encoder_blocks": (2, 2, 4, 8), "middle_blocks": 12, "decoder_blocks": (2, 2, 2, 2)}
_GOPRO = {"encoder_blocks": (1, 1, 1, 28), "middle_blocks": 1, "decoder_blocks": (1, 1, 1, 1)}


def _nafnet(blocks: Mapping[str, Any], parameters: int, published: str, *, width: int, **options: Any) -> Variant:
    steps, batch = (200_000, 32) if width == 32 else (400_000, 64)
    task = "no augmentation, weight decay 0" if blocks is _SIDD else "eight-fold augmentation, weight decay 1e-3"
    return Variant(
        network=NAFNet,
        options={**blocks, "width": width, **options},
        paper=_NAFNET,
        fidelity="exact",
        source="the authors' configurations",
        parameters=parameters,
        published=published,
        recipe=f"AdamW 1e-3 (0.9, 0.9), cosine to 1e-7, {steps:,} steps, batch {batch}, crops of 256, PSNR loss, clip "
        f"0.01, {task}",
    )


_RESTORMER = "2111.09881"
_RESTORMER_RECIPE = (
    "AdamW 3e-4 (0.9, 0.999), weight decay 1e-4, 92,000 steps constant, cosine to 1e-6 over 208,000, L1, clip 0.01, "
    "crops from 128 to 384 with batches from 64 to 8, eight-fold augmentation"
)


def _restormer(
    parameters: int, source: str, published: str, recipe: str = _RESTORMER_RECIPE, **options: Any
) -> Variant:
    return Variant(Restormer, options, _RESTORMER, "exact", source, parameters, published, recipe)


_DMPHN = "1904.03468"
_DMPHN_RECIPE = "Adam 1e-4, x0.1 every 1,000 epochs, batch 6, crops of 256, MSE, no augmentation"

_PLAINNET_RECIPE = "Adam 1e-4 (0.9, 0.9), cosine to 1e-6, 200,000 steps, batch 32 (unstable at 1e-3)"


def _plainnet(blocks: Mapping[str, Any], parameters: int, published: str) -> Variant:
    return Variant(
        network=NAFNet,
        options={**blocks, "width": 32, "block": "plain"},
        paper=_NAFNET,
        fidelity="reconstruction",
        source="the paper's ablation; numbers of blocks as in NAFNet",
        parameters=parameters,
        published=published,
        recipe=_PLAINNET_RECIPE,
    )


_SAPHN = "2402.06117"
_SAPHN_RECIPE = "Adam 1e-4, halved every 200,000 of 1,000,000 steps, batch 6, crops of 256 (unconfirmed)"


def _saphn(parameters: int, source: str, published: str = "none", **options: Any) -> Variant:
    return Variant(SAPHN, options, _SAPHN, "reconstruction", source, parameters, published, _SAPHN_RECIPE)


_SWINTORMER_RECIPE = (
    "AdamW 3e-4 (0.9, 0.99), weight decay 1e-4, 12,000 steps constant, cosine to 1e-5 over 840,000, L1, clip 0.01, EMA "
    "0.999, batch 9 of crops of 256, eight-fold augmentation"
)


def _swintormer(parameters: int, published: str = "none", **options: Any) -> Variant:
    prior = options.get("prior", False)
    # What the authors released takes two views and nothing else.
    return Variant(
        network=Swintormer,
        options=options,
        paper="2401.05907",
        fidelity="exact" if options == {"dual_pixel": True} else "reconstruction",
        source="the authors' defaults" + ("; the prior as channels is gamax's" if prior else ""),
        parameters=parameters,
        published=published,
        recipe=_SWINTORMER_RECIPE,
    )


_DIFFUSION = "2112.10752"
_SMALL_AUTOENCODER = {
    "width": 32,
    "multipliers": (1, 2, 2),
    "blocks": 1,
    "codes": 4096,
    # For a loss in dB; the weights of the authors are for one in absolute differences.
    "commitment_weight": 5.0,
    "codebook_weight": 1.0,
}
_SMALL_DECODER = Decoder(width=32, multipliers=(1, 2, 2), blocks=1)


VARIANTS: dict[str, Variant] = {
    "gama_ir_tiny": Variant(
        network=GAMAIR,
        options={"width": 16, "depth": 8, "levels": 3, "blocks_per_level": 1},
        paper=_GAMA_IR,
        fidelity="reconstruction",
        source="gamax's own, for the quick start",
        parameters=324_739,
        recipe="configs/quickstart.py",
    ),
    "gama_ir_s": Variant(
        network=GAMAIR,
        options={"width": 42, "depth": 18},
        paper=_GAMA_IR,
        fidelity="reconstruction",
        source="published depth and width",
        parameters=10_423_500,
        published="SIDD 40.02 (unconfirmed)",
        recipe=f"{_GAMA_IR_RECIPE}, 200,000 steps of batch 32",
    ),
    "gama_ir_l": Variant(
        network=GAMAIR,
        options={"width": 80, "depth": 19},
        paper=_GAMA_IR,
        fidelity="reconstruction",
        source="published depth and width",
        parameters=47_460_276,
        published="SIDD 40.41 (consistent with the abstract)",
        recipe=f"{_GAMA_IR_RECIPE}, 400,000 steps of batch 64",
    ),
    "nafnet_sidd_w32": _nafnet(_SIDD, 29_159_715, "SIDD 39.9672 / 0.9599", width=32),
    "nafnet_sidd_w64": _nafnet(_SIDD, 115_982_915, "SIDD 40.3045 / 0.9614", width=64),
    "nafnet_gopro_w32": _nafnet(_GOPRO, 17_111_907, "GoPro 32.8705 / 0.9606 (TLC)", width=32),
    "nafnet_gopro_w64": _nafnet(
        _GOPRO, 67_888_835, "GoPro 33.7103 / 0.9668 (TLC; 33.08 without), REDS 29.0903 / 0.8671 (TLC)", width=64
    ),
    "baseline_sidd_w32": _nafnet(_SIDD, 29_056_227, "SIDD 39.8857 / 0.9596", width=32, block="baseline"),
    "baseline_sidd_w64": _nafnet(_SIDD, 194_419_779, "SIDD 40.2970 / 0.9617", width=64, block="baseline", expansion=2),
    "baseline_gopro_w32": _nafnet(_GOPRO, 17_023_875, "GoPro 32.4799 / 0.9575 (TLC)", width=32, block="baseline"),
    "baseline_gopro_w64": _nafnet(
        _GOPRO, 112_036_291, "GoPro 33.3960 / 0.9649 (TLC)", width=64, block="baseline", expansion=2
    ),
    "plainnet_sidd_w32": _plainnet(_SIDD, 25_082_147, "SIDD 39.29"),
    "plainnet_gopro_w32": _plainnet(_GOPRO, 14_772_067, "GoPro 28.51"),
    "restormer": _restormer(
        26_126_644,
        "the authors' deblurring and deraining",
        "GoPro 32.92 / 0.961, HIDE 31.22 / 0.942, DPDD single 25.98 / 0.811 (unconfirmed)",
    ),
    "restormer_denoising": _restormer(
        26_111_668,
        "the authors' denoising of colour images",
        "SIDD 40.02 / 0.960",
        f"{_RESTORMER_RECIPE}, mixup with Beta(1.2, 1.2) on every second batch",
        bias_free=True,
    ),
    "restormer_denoising_gray": _restormer(
        26_109_076,
        "the authors' denoising of grey images",
        "none at hand",
        f"{_RESTORMER_RECIPE}, mixup with Beta(1.2, 1.2) on every second batch",
        bias_free=True,
        image_channels=1,
    ),
    "restormer_dual_pixel": _restormer(
        26_132_548, "the authors' dual-pixel deblurring", "DPDD dual 26.66 / 0.833 (unconfirmed)", dual_pixel=True
    ),
    "unet": Variant(
        network=UNet,
        options={},
        paper="2106.03106",
        fidelity="exact",
        source="the plain UNet in Uformer's code",
        parameters=9_503_779,
    ),
    "dmphn_1_2_4": Variant(
        network=DMPHN,
        options={"levels": (1, 2, 4)},
        paper=_DMPHN,
        fidelity="exact",
        source="the authors' code",
        parameters=5_424_393,
        recipe=f"{_DMPHN_RECIPE}, 2,400 epochs",
    ),
    "dmphn_1_2_4_8": Variant(
        network=DMPHN,
        options={"levels": (1, 2, 4, 8)},
        paper=_DMPHN,
        fidelity="exact",
        source="the authors' code",
        parameters=7_232_524,
        published="GoPro 30.25 / 0.935 (unconfirmed)",
        recipe=f"{_DMPHN_RECIPE}, 4,000 epochs",
    ),
    "saphn": _saphn(14_463_583, "gamax's reconstruction", "GoPro 31.85 / 0.948, HIDE 29.98 / 0.930 (2004.05343)"),
    "saphn_1_2_4_8": _saphn(19_298_623, "the same with four levels", levels=(1, 2, 4, 8)),
    "saphn_lite": _saphn(9_171_871, "the same with 3x3 filters", kernel_size=3),
    "saphn_attention": _saphn(6_168_367, "the same without filters", branches="attention"),
    "saphn_sampling": Variant(
        network=AdaptiveSampling,
        options={"network": SAPHN()},
        paper=_SAPHN,
        fidelity="reconstruction",
        source="`saphn`, refined in two stages",
        parameters=14_544_611,
        recipe=f"{_SAPHN_RECIPE}, the last 40 % with sampling",
    ),
    "gama_ir_s_sampling": Variant(
        network=AdaptiveSampling,
        options={"network": GAMAIR(width=42, depth=18)},
        paper=_SAPHN,
        fidelity="reconstruction",
        source="`gama_ir_s` with the sampling of SAPHN, gamax's own",
        parameters=10_508_698,
        recipe="none published",
    ),
    "lir": Variant(
        network=LIR,
        options={},
        paper="2402.01368",
        fidelity="exact",
        source="the authors' network",
        parameters=7_310_915,
        recipe="AdamW 3e-4 (0.9, 0.999), weight decay 1e-4, 400,000 steps constant, 350,000 cosine to 1e-6 (denoising, "
        "deraining 450,000 and 300,000 of 450,000), L1, crops of 128, 160, 256 with batches of 16, 8, 4 a GPU for a "
        "third each, eight-fold augmentation, EMA 0.999",
    ),
    "swintormer": _swintormer(25_172_040),
    "swintormer_dual_pixel": _swintormer(25_177_224, "DPDD dual 27.07 (abstract)", dual_pixel=True),
    "swintormer_prior": _swintormer(25_177_224, prior=True),
    "swintormer_dual_pixel_prior": _swintormer(25_182_408, dual_pixel=True, prior=True),
    "swintormer_prior_decoder": _swintormer(25_846_807, prior=True, prior_decoder=_SMALL_DECODER),
    "vq_f4": Variant(
        network=Autoencoder,
        options={},
        paper=_DIFFUSION,
        fidelity="exact",
        source="the authors' first stage of the super-resolution model",
        parameters=55_322_782,
        recipe="L1, LPIPS and a discriminator on OpenImages; here the first alone",
    ),
    "vq_small": Variant(
        network=Autoencoder,
        options=_SMALL_AUTOENCODER,
        paper=_DIFFUSION,
        fidelity="reconstruction",
        source="gamax's own, for a laptop",
        parameters=963_326,
        recipe="configs/vq_small.py",
    ),
    "ldm_bsr": Variant(
        network=LatentDiffusion,
        options={},
        paper=_DIFFUSION,
        fidelity="exact",
        source="the authors' super-resolution model, which Swintormer takes its prior from",
        parameters=168_945_345,
        recipe="AdamW, base rate 1e-6, batch 64, crops of 256, mean squared error of the noise, OpenImages and BSRGAN",
    ),
    "ldm_small": Variant(
        network=LatentDiffusion,
        options={
            "first_stage": Autoencoder(**_SMALL_AUTOENCODER),
            "unet": Denoiser(width=32, multipliers=(1, 2, 4), blocks=1, attention_factors=(4,)),
        },
        paper=_DIFFUSION,
        fidelity="reconstruction",
        source="gamax's own, for a laptop",
        parameters=3_700_289,
        recipe="configs/ldm_small.py",
    ),
}
