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
    *("XLA_FLAGS", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR"),
    *("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "LD_PRELOAD"),
    *("NPROC", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "OMP_PROC_BIND"),
    *("NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_VISIBLE_DEVICES"),
)
"""Variables of the environment that change how fast a network runs, or on what."""


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
    """Those of `FLAGS` that are set."""
    return {name: os.environ[name] for name in FLAGS if name in os.environ}


def _commit() -> str | None:
    """The commit of a checkout of gamax, with `-dirty` if it was changed; None for an installed package."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip() or None
