"""Weights in and out: files of our own, and PyTorch's."""

from __future__ import annotations

from gamax.interop.torch_weights import from_torch, to_torch
from gamax.interop.weights import load_weights, save_weights

__all__ = ["from_torch", "load_weights", "save_weights", "to_torch"]
