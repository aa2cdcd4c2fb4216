"""Scores classical filters of other libraries under the protocols of `eval.py`, for docs/results/restoration.md.

    python docs/measure_baselines.py tune gauss-color-25 --data SCRATCH/bsds500/images/train
    python docs/measure_baselines.py score gauss-color-25 --data CBSD68 --set cbsd68
    python docs/measure_baselines.py seconds

`score` writes METHOD.PROTOCOL.SET.json, in the form of the files of `eval.py`. `tune` prints the PSNR of each filter on
20 training images for the strengths that it may have; the best ones stand in `METHODS`. `seconds` times every filter
and the weights that come with gamax on one photograph. DATA is what `eval.py --data` takes.

Where the protocol adds noise, the filters are given its sigma. For real noise those that take one get the same sigma
for all images, the best on training pairs: `skimage.restoration.estimate_sigma` finds less than 1/255 where inputs and
targets differ by about 4/255, as the noise of these JPEG files is coarse. Wavelets need PyWavelets. BM3D needs the
package `bm3d`, whose licence allows no commercial use; nothing else of gamax uses it.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gamax.console import print_table, progress_bar, say
from gamax.environment import environment, versions
from gamax.errors import UserError, exit_on_user_error
from gamax.evaluation.evaluate import evaluate_function
from gamax.evaluation.protocol_data import protocol_examples
from gamax.evaluation.protocols import Protocol, find_protocol
from gamax.files import check_writable, write_json

RESULTS = Path(__file__).resolve().parent / "results/restoration"
TUNED_ON = 20
"""Training images, at even distances."""
REPEATS = 3

Filter = Callable[[np.ndarray, float, float], np.ndarray]
"""Of an image float32 `[H, W, 3]` with white at 1, the sigma of its noise in the same unit, and the strength."""


@dataclass(frozen=True)
class Method:
    """A filter of a library, and how strong it is."""

    function: str
    packages: tuple[str, ...]
    run: Filter
    kinds: tuple[str, ...]
    """Of protocols that it is scored under, as `kind_of` has them."""
    fixed: Mapping[str, Any]
    """Parameters that were not tuned."""
    strength: str = "none"
    """What the tuned parameter is."""
    value: float = 0.0
    """Its value, the best of the grid on training images: with noise of sigma 25, or of rain."""
    grid: tuple[float, ...] = ()
    level: float | None = None
    """The sigma that it is given for real noise, in units of 1/255: the best of `LEVELS` on training images; None for a
    filter that takes no sigma."""


LEVELS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
NOISE = ("gauss", "polyu")
RAIN = ("rain800",)
NLM = {"patch_size": 5, "patch_distance": 6, "fast_mode": True}
WAVELET = {"method": "BayesShrink", "mode": "soft", "convert2ycbcr": True, "rescale_sigma": True}
TV = {"max_num_iter": 200}
BILATERAL_SPACE = 2.0


def keep(image: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """The input as it is."""
    return image


def nl_means(image: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """Non-local means."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(image, h=strength * sigma, sigma=sigma, channel_axis=-1, **NLM)


def wavelet(image: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """Soft thresholds of wavelet coefficients."""
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(image, sigma=strength * sigma, channel_axis=-1, **WAVELET)


def wiener(image: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """Adaptive local Wiener filter, channel by channel."""
    from scipy.signal import wiener

    filtered = np.empty(image.shape, np.float64)
    for channel in range(image.shape[-1]):
        plane = image[..., channel].astype(np.float64)
        # Windows of a single value give zero by zero, and are restored as they are.
        with np.errstate(divide="ignore", invalid="ignore"):
            found = wiener(plane, int(strength), noise=sigma**2)
        filtered[..., channel] = np.where(np.isfinite(found), found, plane)
    return filtered


def total_variation(image: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """Total variation by Chambolle's algorithm."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(image, weight=strength * sigma, channel_axis=-1, **TV)


def total_variation_of_rain(image: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """The same without a sigma: there is no noise."""
    return total_variation(image, 1.0, strength)


def bm3d(image: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """CBM3D."""
    from bm3d import bm3d_rgb

    return bm3d_rgb(image.astype(np.float64), strength * sigma)


def median(image: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """Median, channel by channel."""
    import cv2

    return cv2.medianBlur(image, int(strength))


def bilateral(image: np.ndarray, sigma: float, strength: float) -> np.ndarray:
    """Bilateral filter."""
    import cv2

    return cv2.bilateralFilter(image, d=-1, sigmaColor=strength, sigmaSpace=BILATERAL_SPACE)


METHODS = {
    "input": Method("none", (), keep, (*NOISE, *RAIN), {}),
    "wiener": Method(
        *("scipy.signal.wiener", ("scipy",), wiener, NOISE, {}),
        *("sides of the window", 7.0, (3.0, 5.0, 7.0, 9.0), 4.0),
    ),
    "total-variation": Method(
        *("skimage.restoration.denoise_tv_chambolle", ("scikit-image",), total_variation, NOISE, TV),
        *("weight over sigma", 0.75, (0.5, 0.75, 1.0, 1.25, 1.5, 2.0), 6.0),
    ),
    "wavelet": Method(
        *("skimage.restoration.denoise_wavelet", ("scikit-image", "PyWavelets"), wavelet, NOISE, WAVELET),
        *("factor of sigma", 1.0, (0.5, 0.75, 1.0, 1.25, 1.5, 2.0), 4.0),
    ),
    "nl-means": Method(
        *("skimage.restoration.denoise_nl_means", ("scikit-image",), nl_means, NOISE, NLM),
        *("h over sigma", 0.6, (0.4, 0.6, 0.8, 1.0, 1.5, 2.0), 4.0),
    ),
    "bm3d": Method(
        *("bm3d.bm3d_rgb", ("bm3d", "bm4d"), bm3d, NOISE, {"profile": "np", "colorspace": "opp"}),
        *("factor of sigma", 1.0, (1.0,), 4.0),
    ),
    "median": Method(
        *("cv2.medianBlur", ("opencv-python-headless",), median, RAIN, {}),
        *("sides of the window", 3.0, (3.0, 5.0)),
    ),
    "bilateral": Method(
        *("cv2.bilateralFilter", ("opencv-python-headless",), bilateral, RAIN, {"sigmaSpace": BILATERAL_SPACE}),
        *("sigmaColor", 0.4, (0.1, 0.2, 0.4, 0.8)),
    ),
    "total-variation-rain": Method(
        *("skimage.restoration.denoise_tv_chambolle", ("scikit-image",), total_variation_of_rain, RAIN, TV),
        *("weight", 0.03, (0.02, 0.03, 0.05, 0.1)),
    ),
}
"""What can be scored, by the name in the result files."""


def kind_of(protocol: Protocol) -> str:
    """The kind of degradation of a protocol, as `Method.kinds` has them."""
    return protocol.name.partition("-")[0]


def settings_of(protocol: Protocol, method: Method) -> dict[str, float]:
    """Strength of the method, and the sigma that it is given, in units of 1/255."""
    sigma = method.level if protocol.noise_sigma is None else protocol.noise_sigma
    return {"strength": method.value, "sigma": 0.0 if method.level is None or sigma is None else sigma}


def restorer(method: Method, strength: float, sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    """A function of one image."""
    return lambda image: method.run(image, sigma / 255, strength)


def describe(method: Method, protocol: Protocol, strength: float, sigma: float) -> dict[str, Any]:
    """What a result depends on beyond the protocol."""
    given = {}
    if method.level is not None:
        given = {
            "sigma": sigma,
            "sigma_from": "training images" if protocol.noise_sigma is None else "the protocol",
        }
    return {
        "function": method.function,
        "parameters": {**method.fixed, **({method.strength: strength} if method.grid else {})},
        **given,
    }


def chosen(names: list[str] | None, protocol: Protocol) -> dict[str, Method]:
    """The methods of these names, or all that there are for a protocol; each must be installed."""
    kind = kind_of(protocol)
    found = {name: method for name, method in METHODS.items() if kind in method.kinds}
    if not found:
        raise UserError(f"no filter is set up for the protocol {protocol.name}; choose gauss-color-*, polyu or rain*")
    if unknown := [name for name in names or () if name not in found]:
        raise UserError(f"no method '{unknown[0]}' for the protocol {protocol.name}; there are {', '.join(found)}")
    found = {name: method for name, method in found.items() if not names or name in names}
    for name, method in found.items():
        if missing := missing_packages(method):
            raise UserError(f"the method '{name}' needs the package {missing[0]}: install it, or name others")
    return found


def missing_packages(method: Method) -> list[str]:
    """Packages of a method that are not installed, of those that gamax does not bring."""
    modules = {"bm3d": "bm3d", "PyWavelets": "pywt"}
    return [name for name in method.packages if name in modules and importlib.util.find_spec(modules[name]) is None]


def score(arguments: argparse.Namespace) -> None:
    """Scores every method on a test set, and writes a file each; files that are there are left alone."""
    protocol = find_protocol(arguments.protocol)
    methods = chosen(arguments.methods, protocol)
    check_writable(arguments.output)
    examples = protocol_examples(protocol, arguments.data)
    for name, method in methods.items():
        path = arguments.output / f"{name}.{protocol.name}.{arguments.set}.json"
        if path.exists():
            say(f"{path} is there already")
            continue
        settings = settings_of(protocol, method)
        restore, inference = restorer(method, **settings), describe(method, protocol, **settings)
        with progress_bar(f"{name}, {protocol.name}", len(examples), "images") as update:
            evaluation = evaluate_function(restore, examples, protocol, inference, update)
        command = f"python docs/measure_baselines.py score {protocol.name} --set {arguments.set} --methods {name}"
        record = {
            **evaluation.record(),
            "method": name,
            "data": arguments.set,
            "versions": {**versions(), **package_versions(method)},
            "environment": surroundings(command),
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        say(f"{path.name}: {record['psnr']:.2f} dB, SSIM {record['ssim']:.4f}")


def surroundings(command: str) -> dict[str, Any]:
    """The environment, without folders and the name of the kernel, which mean nothing elsewhere."""
    return {**environment(), "command": command, "platform": f"{platform.system()} {platform.machine()}"}


def package_versions(method: Method) -> dict[str, str]:
    """Versions of the packages that a method is from."""
    return {package: version(package) for package in method.packages}


def tune(arguments: argparse.Namespace) -> None:
    """Prints the PSNR of every strength of every method on training images."""
    protocol = find_protocol(arguments.protocol)
    methods = chosen(arguments.methods, protocol)
    examples = protocol_examples(protocol, arguments.data)
    places = np.unique(np.linspace(0, len(examples) - 1, min(TUNED_ON, len(examples))).round().astype(int))
    some = [examples[int(place)] for place in places]
    for name, method in methods.items():
        settings, rows = settings_of(protocol, method), []
        # What the sigma is not known for is tuned by it.
        tuned = "sigma" if protocol.noise_sigma is None and method.level is not None else "strength"
        for value in LEVELS if tuned == "sigma" else method.grid:
            restore = restorer(method, **{**settings, tuned: value})
            psnr = evaluate_function(restore, some, protocol, {}).mean("psnr")
            rows.append({tuned if tuned == "sigma" else method.strength: f"{value:g}", "PSNR": f"{psnr:.3f}"})
        if rows:
            print_table(f"{name}, {protocol.name}, {len(some)} images", list(rows[0]), rows)


def seconds(arguments: argparse.Namespace) -> None:
    """Times every method, and networks, on one photograph of 512x512 pixels with noise of sigma 25."""
    from skimage.data import astronaut

    from gamax.evaluation.protocols import protocol_input
    from gamax.evaluation.restorer import Restorer
    from gamax.interop.weights import sha256
    from gamax.pretrained import PRETRAINED

    protocol = find_protocol("gauss-color-25")
    image = protocol_input(protocol, astronaut())
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        if name == "input":
            continue
        if missing := missing_packages(method):
            say(f"{name} is not timed: it needs {missing[0]}")
            continue
        functions[name] = restorer(method, **settings_of(protocol, method))
        described[name] = {"versions": package_versions(method)}
    for name, weights in PRETRAINED.items():
        functions[name] = Restorer.from_weights(weights.path)
        described[name] = {"weights_sha256": sha256(weights.path)}
    check_writable(arguments.output)
    megapixels = math.prod(image.shape[:2]) / 1e6
    rows = {}
    for name, function in functions.items():
        # The first call compiles a network's program.
        function(image)
        taken = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            np.asarray(function(image))
            taken.append(time.perf_counter() - start)
        rows[name] = {"seconds_per_megapixel": statistics.median(taken) / megapixels, **described[name]}
        say(f"{name}: {rows[name]['seconds_per_megapixel']:.3g} s a megapixel")
    record = {
        "image": "skimage.data.astronaut(), 512x512, noise of sigma 25 as gauss-color-25 draws it",
        "repeats": REPEATS,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "methods": rows,
        "versions": versions(),
        "environment": surroundings("python docs/measure_baselines.py seconds"),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "seconds.json", record)


def main() -> None:
    """Runs one of the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for function in (score, tune, seconds):
        part = parts.add_parser(function.__name__, help=(function.__doc__ or "").partition("\n")[0])
        part.set_defaults(function=function)
        if function is not seconds:
            part.add_argument("--methods", nargs="+", help=f"of {', '.join(METHODS)}; the default is all that fit")
            part.add_argument("protocol")
            part.add_argument("--data", type=Path, required=True, help="as for eval.py")
        if function is score:
            part.add_argument("--set", required=True, help="name of the test set in the names of the files")
        if function is not tune:
            part.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
