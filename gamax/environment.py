"""What a figure depends on beyond the configuration: versions, devices, source."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("gamax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

FLAGS = (
    *("XLA_FLAGS", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_"),
    *("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD"),
    *("NPROC", "OMP_", "MKL_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_"),
    *("NVIDIA_TF32_OVERRIDE", "CUDA_", "CUBLAS_", "CUDNN_"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_"),
)
"""How variables of the environment begin that change how fast a network runs, or on what."""
NO_FLAGS = ("TORCHINDUCTOR_CACHE_DIR",)
"""Variables that begin so and change nothing: PyTorch sets this one itself, and the benchmark to an empty folder."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def environment() -> dict[str, Any]:
    """The command, the machine, its devices and the commit, ready for JSON."""
    return {
        "command": sys.argv,
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "cpu_count": os.cpu_count(),
        "gamax_commit": _commit(),
        "flags": flags(),
    }


def flags() -> dict[str, str]:
    """The variables that are set and begin as `FLAGS` says."""
    return {name: value for name, value in os.environ.items() if name.startswith(FLAGS) and name not in NO_FLAGS}


def nvidia_driver() -> str | None:
    """The version of NVIDIA's driver; None without its tool `nvidia-smi`, or where that finds no driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    # One line for each device, all alike; a failure is written there too.
    return asked.stdout.split()[0] if asked.returncode == 0 and asked.stdout.strip() else None


def _commit() -> str | None:
    """The commit of a checkout of gamax, with `-dirty` if it was changed; None for an installed package."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip() or None
