"""Evaluation protocols as data: a number without the name of its protocol does not exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from gamax.data.examples import Example
from gamax.data.images import to_float, to_integers
from gamax.errors import UserError, nearest


@dataclass(frozen=True)
class Score:
    """One figure of a protocol: a metric of a plane of both images."""

    name: str
    """In tables and result files."""
    metric: str
    """A name in `gamax.evaluation.metrics.METRICS`."""
    plane: str = "rgb"
    """A name in `gamax.evaluation.metrics.PLANES`."""
    peak: Literal[1, 255] = 255
    """The value of white: 1 for floats, 255 for 8-bit images."""
    border: int = 0
    """Pixels that are left out on each side."""


@dataclass(frozen=True)
class BenchmarkSet:
    """A published set of images that a protocol is for."""

    name: str
    """As its authors call it; the rows of its images carry it."""
    dataset: str
    """The builder in `gamax.data.builders` that reads its layouts."""
    split: str
    images: int
    """How many are published."""
    scene: str | None = None
    """Where several images show one scene: a regular expression whose group is that scene, at the start of a name."""


@dataclass(frozen=True)
class Protocol:
    """How images become one number: what the network is given, and how its output is scored.

    A field with a single allowed value states what `evaluate` does, so that result files say it.
    """

    name: str
    description: str
    source: str
    """Where the rules come from."""
    scores: tuple[Score, ...]
    """What is computed; the first is the PSNR. Empty where only a server can score."""
    datasets: tuple[BenchmarkSet, ...] = ()
    """The sets whose layouts are read, besides folders of one's own."""
    inputs: Literal["pairs", "noise", "pairs, or noise on clean images", "inputs only"] = "pairs"
    """What the data brings: pairs of input and target, clean images, either, or inputs whose target is secret."""
    noise_sigma: float | None = None
    """White Gaussian noise in units of 1/255 that makes the input of a clean image."""
    noise_seed: int | None = None
    """Seed of NumPy's legacy generator, set anew before every image; the noise is neither clipped nor quantised."""
    jpeg_quality: int | None = None
    """After the noise the image is rounded to 8 bits and stored as JPEG of this quality by OpenCV, colour at half the
    resolution (4:2:0); None: it is not."""
    channels: Literal[1, 3] = 3
    """3 for RGB; 1 for gray, to which images in colour are turned as by the PNG reader of OpenCV."""
    views: Literal[1, 2] = 1
    """2 for the left and right view of a dual-pixel camera, which the input has in 6 channels."""
    bits: Literal["as stored", 8] = "as stored"
    """8: of 16-bit images the upper byte is read, as OpenCV does with PNG files by default."""
    crop_multiple: int | None = None
    """After the noise, right and bottom are cut off down to a multiple of this; None: whole images."""
    local_window: int | Literal["as the network has it"] | None = None
    """Pixels of the test-time local conversion (arXiv 2112.04491); None for means over whole images."""
    clamp: Literal["[0, 1]"] = "[0, 1]"
    """The restored image is clamped to this."""
    quantization: Literal["uint8", "none"] = "uint8"
    """Then it is rounded to 8 bits, as the target is if it has more, or both are scored as float32."""
    alignment: Literal["none", "ecc"] = "none"
    """ecc: brightness and position of the restored image are matched to the target, see `gamax.evaluation.alignment`;
    what lies outside is masked."""
    averaging: Literal["mean over images", "mean over images of each set, then over sets"] = "mean over images"
    indoor_positions: tuple[int, ...] = ()
    """Of a complete set, counted from 0: these images form the set indoor, the others outdoor."""


_PSNR_SSIM = (Score("psnr", "psnr"), Score("ssim", "ssim-2d-valid"))
_PSNR_SSIM_3D = (Score("psnr", "psnr"), Score("ssim", "ssim-3d-rgb"))
_DPDD_SCORES = (
    Score("psnr", "psnr", peak=1),
    Score("ssim", "ssim-uniform-7x7", peak=1),
    Score("mae", "mae", peak=1),
)
# 37 of the 76 scenes, as the authors' indoor_labels.npy lists them.
_DPDD_INDOOR = (*range(8, 14), 16, 32, *range(39, 57), *range(59, 68), 74, 75)
_BY_SETS = "mean over images of each set, then over sets"

_CBSD68 = BenchmarkSet("CBSD68", "cbsd68", "test", 68)
_URBAN100 = BenchmarkSet("Urban100", "urban100", "test", 100)
_GROUP_AND_NUMBER = r"(.*)[_-]\d+$"
_GOPRO = BenchmarkSet("GoPro", "gopro", "test", 1111, _GROUP_AND_NUMBER)
_HIDE = BenchmarkSet("HIDE", "hide", "test", 2025, r"\d+from(.*)")
_RAIN100L = BenchmarkSet("Rain100L", "rain100l", "test", 100)
_SOTS = (
    BenchmarkSet("indoor", "reside_indoor", "test", 500, "([^_]*)_"),
    BenchmarkSet("outdoor", "reside_outdoor", "test", 500, "([^_]*)_"),
)
_COLOUR_SETS = (
    _CBSD68,
    BenchmarkSet("Kodak24", "kodak24", "test", 24),
    BenchmarkSet("McMaster", "mcmaster", "test", 18),
    _URBAN100,
)
_GRAY_SETS = (BenchmarkSet("Set12", "set12", "test", 12), BenchmarkSet("BSD68", "bsd68", "test", 68), _URBAN100)


def _gaussian(sigma: int, channels: Literal[1, 3]) -> Protocol:
    kind = "color" if channels == 3 else "gray"
    return Protocol(
        f"gauss-{kind}-{sigma}",
        f"Gaussian noise of sigma {sigma} in {'colour' if channels == 3 else 'gray'}, that of seed 0 for every image",
        f"swz30/Restormer: Denoising/test_gaussian_{kind}_denoising.py, evaluate_gaussian_{kind}_denoising.py; "
        "the SSIM is ours",
        _PSNR_SSIM if channels == 3 else tuple(Score(score.name, score.metric, "gray") for score in _PSNR_SSIM),
        datasets=_COLOUR_SETS if channels == 3 else _GRAY_SETS,
        inputs="noise",
        noise_sigma=sigma,
        noise_seed=0,
        channels=channels,
        averaging=_BY_SETS,
    )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        *(_gaussian(sigma, 3) for sigma in (15, 25, 50)),
        *(_gaussian(sigma, 1) for sigma in (15, 25, 50)),
        replace(
            _gaussian(25, 3),
            name="gauss-jpeg-color-25",
            description="the noise of gauss-color-25 in an image that is then stored as JPEG, as photographs are",
            source="gamax",
            datasets=_COLOUR_SETS[:2],
            jpeg_quality=90,
        ),
        Protocol(
            "sidd-srgb",
            "real noise of smartphones: the validation blocks of SIDD, scored without rounding",
            "swz30/Restormer: Denoising/test_real_denoising_sidd.py, evaluate_sidd.m",
            (Score("psnr", "psnr", peak=1), Score("ssim", "ssim-3d-rgb", peak=1)),
            datasets=(BenchmarkSet("SIDD", "sidd", "validation", 1280, _GROUP_AND_NUMBER),),
            quantization="none",
        ),
        Protocol(
            "dnd-submit",
            "real noise: the 1,000 crops of DND, restored and written for the authors' server, which alone can score",
            "swz30/Restormer: Denoising/test_real_denoising_dnd.py",
            (),
            datasets=(BenchmarkSet("DND", "dnd", "benchmark", 1000),),
            inputs="inputs only",
            quantization="none",
        ),
        Protocol(
            "polyu",
            "real noise: the 100 crops of PolyU",
            "gamax; csjunxu/PolyU-Real-World-Noisy-Images-Dataset: CroppedImages",
            _PSNR_SSIM,
            datasets=(BenchmarkSet("PolyU", "polyu", "test", 100),),
        ),
        Protocol(
            "gopro",
            "motion blur: the test images of GoPro",
            "swz30/Restormer: Motion_Deblurring/test.py, evaluate_gopro_hide.m",
            _PSNR_SSIM_3D,
            datasets=(_GOPRO,),
        ),
        Protocol(
            "gopro-tlc",
            "gopro with the test-time local conversion of 384 pixels",
            "megvii-research/NAFNet: options/test/GoPro/*.yml",
            _PSNR_SSIM_3D,
            datasets=(_GOPRO,),
            local_window=384,
        ),
        Protocol(
            "hide",
            "motion blur: the test images of HIDE, usually with a network that was trained on GoPro",
            "swz30/Restormer: Motion_Deblurring/test.py, evaluate_gopro_hide.m",
            _PSNR_SSIM_3D,
            datasets=(_HIDE,),
        ),
        Protocol(
            "realblur-ecc",
            "motion blur of a real camera: RealBlur, aligned to the target before it is scored",
            "rimchang/RealBlur: evaluation_RealBlur_ecc.py",
            (Score("psnr", "psnr", peak=1), Score("ssim", "ssim-2d-valid", peak=1)),
            datasets=(
                BenchmarkSet("RealBlur-J", "realblur_j", "test", 980, _GROUP_AND_NUMBER),
                BenchmarkSet("RealBlur-R", "realblur_r", "test", 980, _GROUP_AND_NUMBER),
            ),
            alignment="ecc",
            averaging=_BY_SETS,
        ),
        Protocol(
            "reds-val300",
            "motion blur with JPEG artefacts: 300 validation frames of REDS, local conversion of 384 pixels",
            "megvii-research/NAFNet: docs/REDS.md",
            _PSNR_SSIM_3D,
            datasets=(BenchmarkSet("REDS", "reds", "validation", 300, _GROUP_AND_NUMBER),),
            local_window=384,
        ),
        Protocol(
            "rain-y-matlab",
            "rain: luma of five test sets, rounded as MATLAB does; the mean of the sets",
            "swz30/Restormer: Deraining/evaluate_PSNR_SSIM.m",
            (Score("psnr", "psnr", "y-studio-rounded"), Score("ssim", "ssim-2d-valid", "y-studio-rounded")),
            datasets=(
                BenchmarkSet("Test100", "test100", "test", 98),
                BenchmarkSet("Rain100H", "rain100h", "test", 100),
                _RAIN100L,
                BenchmarkSet("Test2800", "test2800", "test", 2800, _GROUP_AND_NUMBER),
                BenchmarkSet("Test1200", "test1200", "test", 1200),
            ),
            averaging=_BY_SETS,
        ),
        Protocol(
            "rain800-rgb",
            "rain: the 100 synthetic test pairs of Rain800 in RGB; most papers score 98 of them, Test100, on luma",
            "gamax; hezhangsprinter/ID-CGAN: the test set",
            _PSNR_SSIM,
            datasets=(BenchmarkSet("Rain800", "rain800", "test", 100),),
        ),
        Protocol(
            "dpdd-single8",
            "defocus blur: the combined views of DPDD, both sides read with 8 bits and scored without rounding",
            "swz30/Restormer: Defocus_Deblurring/test_single_image_defocus_deblur.py, utils.py",
            _DPDD_SCORES,
            datasets=(BenchmarkSet("DPDD", "dpdd", "test", 76),),
            bits=8,
            quantization="none",
            indoor_positions=_DPDD_INDOOR,
        ),
        Protocol(
            "dpdd-dual16",
            "defocus blur: the left and right views of DPDD with 16 bits, scored without rounding",
            "swz30/Restormer: Defocus_Deblurring/test_dual_pixel_defocus_deblur.py, utils.py",
            _DPDD_SCORES,
            datasets=(BenchmarkSet("DPDD", "dpdd_dual", "test", 76),),
            views=2,
            quantization="none",
            indoor_positions=_DPDD_INDOOR,
        ),
        Protocol(
            "sots",
            "haze: SOTS of RESIDE, indoor and outdoor, scored without rounding; the SSIM is that of reduced images",
            "IDKiro/DehazeFormer: test.py",
            (Score("psnr", "psnr", peak=1), Score("ssim", "ssim-wang-downsampled", peak=1)),
            datasets=_SOTS,
            quantization="none",
            averaging=_BY_SETS,
        ),
        Protocol(
            "lir-crop32",
            "the sets of LIR, cut down to multiples of 32; clean images get noise of sigma 50 and seed 0 before",
            "Dongqi-Fan/LIR: options/test_LIR_*.yml, data/image_datasets.py",
            (*_PSNR_SSIM, Score("psnr_y", "psnr", "y-studio"), Score("ssim_y", "ssim-2d-valid", "y-studio")),
            datasets=(_CBSD68, _URBAN100, _RAIN100L, _GOPRO, _HIDE, *_SOTS),
            inputs="pairs, or noise on clean images",
            noise_sigma=50,
            noise_seed=0,
            crop_multiple=32,
            averaging=_BY_SETS,
        ),
        Protocol(
            "reconstruction",
            "clean images, given as they are: what an autoencoder keeps of them",
            "gamax",
            _PSNR_SSIM,
            inputs="noise",
            noise_sigma=0,
            noise_seed=0,
        ),
        Protocol(
            "paired-rgb",
            "pairs of input and target, scored in RGB as 8-bit images",
            "gamax",
            _PSNR_SSIM,
            local_window="as the network has it",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name; an unknown one raises `UserError` with the nearest."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_example(protocol: Protocol, example: Mapping[str, object], *, prior: bool = False) -> Example:
    """An example as the protocol has it: gray or in colour, of 8 bits, with its noise, cut to size.

    Args:
        protocol: the rules.
        example: a `gamax.data.examples.Example`.
        prior: whether the input must have a diffusion prior in its last 3 channels, which stays as it is.

    Returns:
        The example with `target`, an 8- or 16-bit image `[H, W, C]` (none where it is secret), and `input`, such an
        image or a float32 one that has got noise.

    Raises:
        UserError: if the example lacks what the protocol needs, or its images are of the wrong shape.
    """
    images = {key: value for key in ("input", "target") if isinstance(value := example.get(key), np.ndarray)}
    name = example["name"]
    if protocol.inputs != "inputs only" and "target" not in images:
        raise UserError(f"protocol {protocol.name} needs targets, but '{name}' has none")
    if protocol.inputs == "noise":
        images.pop("input", None)
    elif protocol.inputs != "pairs, or noise on clean images" and "input" not in images:
        raise UserError(f"protocol {protocol.name} needs pairs (input/ and target/), but '{name}' has no input")
    if protocol.channels == 1:
        images = {key: _gray(image) for key, image in images.items()}
    if protocol.bits == 8:
        # The rule is about photographs: a prior keeps its 16 bits.
        read = {"input": _upper_byte_beside_prior if prior else _upper_byte, "target": _upper_byte}
        images = {key: read[key](image) for key, image in images.items()}
    if "input" not in images:
        images["input"] = protocol_input(protocol, images["target"])
    _check_shapes(protocol, name, images, prior)
    if protocol.crop_multiple:
        images = {key: _crop(image, protocol.crop_multiple) for key, image in images.items()}
    return {**example, **images}


def protocol_input(protocol: Protocol, target: Shaped[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    """The noisy input that the protocol makes from a clean 8- or 16-bit image: float32, unclipped unless it is coded.

    The draws are float64 and added in place to the float32 image, as the field does.
    """
    if protocol.noise_sigma is None:
        raise ValueError(f"protocol {protocol.name} makes no input: the data brings it")
    noisy = to_float(target)
    noisy += np.random.RandomState(protocol.noise_seed).normal(0, protocol.noise_sigma / 255, noisy.shape)
    return noisy if protocol.jpeg_quality is None else to_float(_through_jpeg(noisy, protocol.jpeg_quality))


def _through_jpeg(image: Float[np.ndarray, "h w 3"], quality: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image as a JPEG file holds it."""
    import cv2

    subsampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)
    _, file = cv2.imencode(".jpg", to_integers(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *subsampling])
    return np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))[..., ::-1]


def _gray(image: np.ndarray) -> np.ndarray:
    """Luma of an RGB image as libpng computes it for OpenCV, rounded down; gray images as they are."""
    if image.shape[2] == 1:
        return image
    luma = image.astype(np.uint32) @ np.array([9797, 19234, 3737], np.uint32) >> 15
    is_gray = (image == image[:, :, :1]).all(2)
    return np.where(is_gray, image[:, :, 0], luma).astype(image.dtype)[:, :, np.newaxis]


def _upper_byte(image: np.ndarray) -> np.ndarray:
    return (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image


def _upper_byte_beside_prior(image: np.ndarray) -> np.ndarray:
    """The same of all channels but the last three; they stay 16-bit images, which stand for the 8-bit values."""
    views = _upper_byte(image[..., :-3]) * np.uint16(257)
    return np.concatenate([views, image[..., -3:]], axis=-1)


def _crop(image: np.ndarray, multiple: int) -> np.ndarray:
    height, width = (side // multiple * multiple for side in image.shape[:2])
    return image[:height, :width]


def _check_shapes(protocol: Protocol, name: object, images: Mapping[str, np.ndarray], prior: bool) -> None:
    source, channels = images["input"], protocol.channels * protocol.views + 3 * prior
    if source.shape[2] != channels:
        with_prior = ", the last 3 a diffusion prior" if prior else ""
        raise UserError(
            f"protocol {protocol.name} needs inputs of {channels} channels{with_prior}, but '{name}' has "
            f"{source.shape[2]}"
        )
    if "target" in images and source.shape[:2] != images["target"].shape[:2]:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (source, images["target"]))
        raise UserError(f"input and target of '{name}' differ in size ({sizes} pixels); cut both to the same window")
