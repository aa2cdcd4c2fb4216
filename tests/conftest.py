"""Set-up of every test: eight CPU devices, exact float32 products, run-time checks of the annotations of gamax."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before JAX is imported. The environment, unlike jax.config, also reaches the programs that tests start. Most of the
# time of the tests is compiling: without optimised machine code it takes half as long, without the emitters of fusions,
# too, a fifth; jaxlib 0.11 no longer knows that flag.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
        "--xla_force_host_platform_device_count=8",
    )
).strip()
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "gamax-test-compilation-cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# Every shape and type annotation is checked at every call, except where tests pass on purpose what it forbids: the rest
# of the data package (stand-ins for sequences and arrays), the configuration with its degradations and the metrics
# (which have errors of their own for values of the wrong type and shape). The hook imports the checker by its name;
# this one takes an int for a float, as PEP 484 does.
checker = types.ModuleType("gamax_test_checker")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules[checker.__name__] = checker
CHECKED = (
    "blocks",
    "models",
    "training",
    "benchmark",
    "interop",
    "cli",
    "cli_bench",
    "cli_bench_compare",
    "cli_bench_studies",
    "cli_compare",
    "cli_data",
    "cli_demo",
    "cli_export",
    "cli_lab",
    "cli_lab_studies",
    "cli_plan",
    "cli_prior",
    "lab",
    "errors",
    "console",
    "pretrained",
)
# Not `evaluate` and `protocol_data`: checking a sequence of examples would read one of them.
EVALUATION = (
    "alignment",
    "before_after",
    "buckets",
    "compare",
    "learned",
    "lpips",
    "network_inputs",
    "pictures",
    "protocols",
    "restore_files",
    "restored_log",
    "restorer",
    "submission",
)
DATA = ("augmentations", "blur", "checks", "contact_sheet", "jpeg", "metadata", "prior_sampler", "prior_writer")
modules = [f"gamax.{name}" for name in CHECKED]
modules += [f"gamax.evaluation.{name}" for name in EVALUATION] + [f"gamax.data.{name}" for name in DATA]
install_import_hook(modules, f"{checker.__name__}.check")

# The same examples in every run; what a machine is slow at is no failure.
settings.register_profile("gamax", deadline=None, derandomize=True, database=None)
settings.load_profile("gamax")

# Tracing makes very many objects that are no garbage: looking for some in them takes a sixth of the time.
gc.set_threshold(20_000, 20, 50)

# tensorflow_datasets reads absl flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what compares with PyTorch, before tests are chosen by their marks."""
    for item in items:
        if "torch" in getattr(item, "fixturenames", ()):
            item.add_marker("torch")


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Forgets what a module has compiled and traced: for all modules together that is many gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with reference fixtures and data that is kept outside the repository."""
    default = Path(__file__).parents[1] / ".." / "shared"
    folder = Path(os.environ.get("GAMAX_SHARED", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"the reference fixtures are not at '{folder}'; set GAMAX_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def torch() -> types.ModuleType:
    """PyTorch. Newcomers do without; where GAMAX_REQUIRE_ORACLES is set, its absence is a failure."""
    missing = [name for name in ("torch", "spandrel", "spandrel_extra_arches") if not importlib.util.find_spec(name)]
    if missing and not os.environ.get("GAMAX_REQUIRE_ORACLES"):
        pytest.skip(f"without {', '.join(missing)}: install the extra 'torch' and spandrel_extra_arches")
    return importlib.import_module("torch")


@pytest.fixture(scope="session")
def random_params() -> Callable[..., Any]:
    """Makes parameters for a module and an input shape in which nothing is zero; compiles nothing."""

    def draw(module: nn.Module, shape: tuple[int, ...], seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        abstract = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))["params"]

        def values(path: Any, leaf: Any) -> jax.Array:
            mean = 0.5 if path[-1].key.endswith("scale") else 0
            return jnp.asarray(rng.normal(mean, 0.3, leaf.shape), leaf.dtype)

        return jax.tree_util.tree_map_with_path(values, abstract)

    return draw
