"""gamax: image restoration in JAX. Networks are pure functions of parameters and images."""

from __future__ import annotations

from gamax.errors import UserError
from gamax.evaluation.metrics import psnr
from gamax.evaluation.metrics import ssim_valid as ssim
from gamax.evaluation.restorer import Restorer
from gamax.interop import from_torch, load_weights, save_weights, to_torch
from gamax.models import create_model, list_models

__version__ = "0.1.0"

__all__ = [
    "Restorer",
    "UserError",
    "create_model",
    "from_torch",
    "list_models",
    "load_weights",
    "psnr",
    "save_weights",
    "ssim",
    "to_torch",
]
