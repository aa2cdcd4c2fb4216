"""Metrics that are not part of gamax's own: learned ones, and those of the user."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from gamax.errors import UserError

Metric = Callable[[np.ndarray, np.ndarray], float]


def find_metric(name: str) -> Metric:
    """A function of two images `[H, W, 3]`, RGB in [0, 1], the restored one and its target.

    Args:
        name: `lpips`, whose weights are read at once, or `module:function` for one that Python can import.

    Raises:
        UserError: if there is none, or weights are missing.
    """
    if name == "lpips":
        from gamax.evaluation.lpips import find_lpips_weights, lpips

        find_lpips_weights()
        return lpips
    module_name, _, function_name = name.partition(":")
    if not (all(part.isidentifier() for part in module_name.split(".")) and function_name):
        raise UserError(f"unknown metric '{name}'; name 'lpips', or one of yours as module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"the metric '{name}' cannot be imported ({error}); add the folder of '{module_name}' to PYTHONPATH, or "
            "install what it needs"
        ) from error
    metric = getattr(module, function_name, None)
    if not callable(metric):
        raise UserError(f"'{module_name}' has no function '{function_name}'; the metric '{name}' cannot be found")
    return metric
