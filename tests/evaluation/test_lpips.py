from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file
from skimage import data

from gamax.errors import UserError
from gamax.evaluation.learned import find_metric
from gamax.evaluation.lpips import FOLDER_VARIABLE, LAYERS, LINEAR_NAMES, lpips, lpips_distance
from gamax.interop.parity import _make_torchvision_importable


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """Drawn at random, and large enough to see each layer in the sum."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for layer, linear_name in zip(LAYERS, LINEAR_NAMES, strict=True):
        scale = np.sqrt(2 / np.prod(layer.shape[1:]))
        tensors[f"{layer.name}.weight"] = rng.normal(0, scale, layer.shape).astype(np.float32)
        tensors[f"{layer.name}.bias"] = rng.normal(0, 0.1, layer.shape[0]).astype(np.float32)
        tensors[linear_name] = rng.random((1, layer.shape[0], 1, 1), np.float32)
    return tensors


@pytest.fixture
def folder(weights, tmp_path, monkeypatch) -> Path:
    # torchvision's file also holds what classifies.
    alexnet = {name: value for name, value in weights.items() if name not in LINEAR_NAMES}
    save_file(alexnet | {"classifier.1.weight": np.zeros((2, 2), np.float32)}, tmp_path / "alexnet-owt.safetensors")
    save_file({name: weights[name] for name in LINEAR_NAMES}, tmp_path / "alex.safetensors")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    target = data.astronaut()[80:127, 200:263] / np.float32(255)
    noise = np.random.default_rng(0).normal(0, 0.1, target.shape)
    return np.clip(target + noise, 0, 1).astype(np.float32), target


def on_device(weights: dict[str, np.ndarray], restored: np.ndarray, target: np.ndarray) -> jax.Array:
    return lpips_distance(jax.tree.map(jnp.asarray, weights), jnp.asarray(restored), jnp.asarray(target))


def distances_in_numpy(weights: dict[str, np.ndarray], restored: np.ndarray, target: np.ndarray) -> list[float]:
    """What each layer adds, in float64, from the description in arXiv 1801.03924."""
    strides, pads = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
    mean, deviation = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    features = [(image.astype(np.float64) * 2 - 1 - mean) / deviation for image in (restored, target)]
    distances = []
    for index, number in enumerate((0, 3, 6, 8, 10)):
        kernel, bias = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
        for image in range(2):
            maps = features[image]
            if index in (1, 2):
                maps = sliding_window_view(maps, (3, 3), (0, 1))[::2, ::2].max((-1, -2))
            padded = np.pad(maps, [(pads[index], pads[index])] * 2 + [(0, 0)])
            patches = sliding_window_view(padded, kernel.shape[2:], (0, 1))[:: strides[index], :: strides[index]]
            features[image] = np.maximum(
                np.tensordot(patches, kernel.astype(np.float64), ((2, 3, 4), (1, 2, 3))) + bias, 0
            )
        first, second = (maps / (np.linalg.norm(maps, axis=-1, keepdims=True) + 1e-10) for maps in features)
        weighted = (first - second) ** 2 * weights[f"lin{index}.model.1.weight"].ravel()
        distances.append(weighted.sum(-1).mean())
    return distances


def test_numpy_computes_the_same(weights, pair):
    restored, target = pair
    distances = distances_in_numpy(weights, restored, target)
    assert min(distances) > 0.01 * sum(distances)
    # Two pairs at a time, the second one turned upside down.
    pairs = [np.stack([image, image[::-1]]) for image in pair]
    expected = [sum(distances), sum(distances_in_numpy(weights, restored[::-1], target[::-1]))]
    np.testing.assert_allclose(on_device(weights, *pairs), expected, rtol=1e-5)


def test_the_weights_are_found(weights, folder, pair):
    value = lpips(*pair)
    assert isinstance(value, float)
    assert value == pytest.approx(sum(distances_in_numpy(weights, *pair)), rel=1e-5)
    assert value == pytest.approx(lpips(*reversed(pair)), rel=1e-6)
    assert lpips(pair[1].astype(np.float64), pair[1]) == pytest.approx(0, abs=1e-12)
    assert find_metric("lpips") is lpips


def test_files_of_pytorch_are_read(weights, folder, pair, torch, monkeypatch):
    before = lpips(*pair)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    files = folder / "pth"
    files.mkdir()
    torch.save(
        {name: tensors[name] for name in tensors if name not in LINEAR_NAMES}, files / "alexnet-owt-4df8aa71.pth"
    )
    torch.save({name: tensors[name] for name in LINEAR_NAMES}, files / "alex.pth")
    monkeypatch.setenv(FOLDER_VARIABLE, str(files))
    assert lpips(*pair) == pytest.approx(before, rel=1e-6)


def test_the_authors_package_agrees(pair, torch):
    if not importlib.util.find_spec("lpips"):
        pytest.skip("without the package lpips (its comparison with AlexNet of random weights)")
    _make_torchvision_importable(torch)
    official = importlib.import_module("lpips").LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    # Under `net.` with a `sliceN.` that torchvision does not have.
    tensors = {name: value.numpy() for name, value in official.state_dict().items()}
    ours = {f"features.{name.split('.', 2)[2]}": tensors[name] for name in tensors if name.startswith("net.slice")}
    ours |= {name: tensors[name] for name in LINEAR_NAMES}
    for images in (pair, [image[:31, :31] for image in pair]):
        planes = [torch.from_numpy(image.transpose(2, 0, 1)[np.newaxis].copy()) for image in images]
        with torch.no_grad():
            expected = official(*planes, normalize=True).item()
        value = on_device(ours, *(image[np.newaxis] for image in images))[0]
        assert value == pytest.approx(expected, rel=1e-5)


def test_images_that_cannot_be_compared_are_refused(folder, pair):
    restored, target = pair
    for images, reason in (
        ((restored, target[:40]), r"not \(47, 63, 3\) and \(40, 63, 3\)"),
        ((restored[..., :1], target[..., :1]), r"two RGB images \[H, W, 3\]"),
        ((restored[:30], target[:30]), "at least 31 pixels a side, not 30x63"),
        ((restored, (255 * target).astype(np.uint8)), r"floats in \[0, 1\], not float32 and uint8"),
    ):
        with pytest.raises(UserError, match=reason):
            lpips(*images)


def test_missing_and_wrong_weights_are_named(folder, pair, monkeypatch):
    def refused(reason: str) -> None:
        with pytest.raises(UserError, match=reason):
            find_metric("lpips")

    (folder / "alexnet-b.safetensors").write_bytes(b"")
    refused("one file like 'alexnet-owt-7be5be79.pth' .* there is 'alexnet-b.safetensors', 'alexnet-owt.safetensors'")
    (folder / "alexnet-b.safetensors").unlink()
    (folder / "alexnet-owt.safetensors").rename(folder / "kept")
    (folder / "alex.safetensors").rename(folder / "alexnet.safetensors")
    refused(r"is not the file 'alexnet-owt-7be5be79.pth': its tensor 'features.0.weight' .* is missing")
    (folder / "kept").rename(folder / "alexnet.safetensors")
    refused("one file like 'alex.pth' .* there is none")
    save_file({name: np.zeros((1, 64, 1, 1), np.float32) for name in LINEAR_NAMES}, folder / "alex.safetensors")
    refused(r"'lin1.model.1.weight' \(1, 192, 1, 1\) is of shape \(1, 64, 1, 1\)")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder / "nowhere"))
    refused(f"{FOLDER_VARIABLE} names '.*nowhere', which is no folder")
    monkeypatch.delenv(FOLDER_VARIABLE)
    refused(f"set {FOLDER_VARIABLE} to a folder with torchvision's")


def test_metrics_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "my_own_metrics.py").write_text(
        "def largest(restored, target):\n    return abs(restored - target).max()\n"
    )
    (tmp_path / "my_broken_metrics.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_metric("my_own_metrics:largest")(np.zeros((2, 2, 3)), np.full((2, 2, 3), 0.25)) == 0.25
    for name, reason in (
        ("ssim", "unknown metric 'ssim'; name 'lpips', or one of yours as module:function"),
        (":largest", "unknown metric ':largest'"),
        ("my_own_metrics:", "unknown metric 'my_own_metrics:'"),
        ("my_own_metrics.py:largest", "'my_own_metrics' is not a package.*PYTHONPATH"),
        ("their_metrics:largest", "No module named 'their_metrics'.*PYTHONPATH"),
        ("my_broken_metrics:largest", "No module named 'no_such_package'.*install what it needs"),
        ("my_own_metrics:smallest", "'my_own_metrics' has no function 'smallest'"),
    ):
        with pytest.raises(UserError, match=reason):
            find_metric(name)
