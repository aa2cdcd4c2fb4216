"""Whether a block of one's own can fill the slot of a network, told before anything is trained: `check_block`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from gamax.blocks.mixers import find_mixer
from gamax.errors import UserError, first_line
from gamax.models import count_parameters

BATCH, HEIGHT, WIDTH = 2, 16, 24
OTHER_SIZES = ((3, 24, 16), (1, 7, 5), (1, 1, 1))
"""Batch, height and width: wider than high, odd, and the single pixel that is left of a small image at the bottom."""

GRADIENT_TOLERANCE = 0.05
"""Gradients and differences that are further apart, relative to the derivative in a typical direction, disagree. Kinks
of sampled pixels need that much: blocks of gamax that move their taps come to 0.015, the others to 0.002."""
DIFFERENCE_STEP = 1e-4
"""Of the differences, in multiples of the root mean square of each array."""
DIRECTIONS = 3

NOT_STATIC = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@dataclass(frozen=True)
class BlockFacts:
    """What `check_block` has found out about a block without fault."""

    name: str
    parameters: int
    """Numbers in them, for the channels that were tried."""
    without_gradient: tuple[str, ...]
    """Names of parameters that the output does not depend on."""
    identity_at_start: bool
    """Whether a fresh block changes nothing."""
    reaches_border: bool
    """Whether the middle of features of 16x24 depends on their border: it may then see the whole image."""
    gradient_error: float | None
    """Of `directional_error`, None if it is not finite; above `GRADIENT_TOLERANCE` the block has a gradient that is not
    its derivative, which may be meant, as in a straight-through estimator."""


def check_block(block: object, name: str | None = None, channels: int = 8) -> BlockFacts:
    """Tries a block as a network uses it: features `[B, H, W, C]` of several sizes in, the same shape out.

    What can be told from shapes is told first; then the block runs, fresh and with parameters that have moved a little,
    on noise, zeros and ones.

    Args:
        block: a module class, a function that makes a module, or the text of a mixer such as `gama(kernel_size=5)` or
            `my_blocks:MyBlock`.
        name: what errors call it; the default is that text, or the name of the class.
        channels: C; twice as many are tried, too, as networks have more of them at lower resolutions.

    Raises:
        UserError: for the first fault, in one sentence that names the block, the fault and the remedy.

    """
    module, name = _make(block, name)
    _check_shapes(module, name, channels, OTHER_SIZES)
    _check_shapes(module, name, 2 * channels, ())
    with jax.default_matmul_precision("highest"):
        return _check_numbers(module, name, channels)


def directional_error(
    run: Callable[[Any], Any], gradients: Callable[[Any, Any], Any], arguments: Any, seed: int = 0
) -> float:
    """How far the gradients of a function are from its differences, in directions drawn at random.

    Args:
        run: the function, of `arguments`; gives one array.
        gradients: of `arguments` and weights in the shape of that array: those of the weighted sum of its numbers.
        arguments: a tree of arrays, each of which moves by a part of its root mean square, zeros by a small number.
        seed: of the directions and of the weights.

    Returns:
        The largest distance of the derivative by gradients from that by central differences, relative to the derivative
        in a typical direction; not a number if a gradient or a value is not finite.

    """
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(run(arguments).shape).astype(np.float32)
    found = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradients(arguments, weights))]
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, arguments))
    # Zeros, such as fresh biases, move like parameters that have been trained a little.
    sizes = [np.sqrt(np.mean(np.square(leaf, dtype=np.float64))) or 0.1 for leaf in leaves]

    def value(direction: list[np.ndarray], step: float) -> np.float64:
        pairs = zip(leaves, direction, strict=True)
        moved = structure.unflatten([(leaf + step * change).astype(leaf.dtype) for leaf, change in pairs])
        # In float64, so that the sum does not round more than the function itself.
        return np.sum(np.asarray(run(moved), np.float64) * weights)

    errors = []
    for _ in range(DIRECTIONS):
        direction = [size * rng.standard_normal(leaf.shape) for size, leaf in zip(sizes, leaves, strict=True)]
        difference = (value(direction, DIFFERENCE_STEP) - value(direction, -DIFFERENCE_STEP)) / (2 * DIFFERENCE_STEP)
        terms = np.concatenate([(leaf * change).ravel() for leaf, change in zip(found, direction, strict=True)])
        # What their sum would be were the signs of the direction others; its own may be zero by chance.
        with np.errstate(invalid="ignore"):
            scale = max(np.linalg.norm(terms), abs(difference))
            errors.append(abs(terms.sum() - difference) / scale if scale else 0.0)
    return float(np.max(errors))


def _make(block: object, name: str | None) -> tuple[nn.Module, str]:
    """The module and what errors call it."""
    if isinstance(block, str):
        name = name or block
        _, found, options = find_mixer(block)
        if found is None:
            raise UserError(f"the mixer '{block}' leaves the slot empty; name a block")
        make: Any = partial(found, **options)
    else:
        make = block
        name = name or getattr(block, "__name__", type(block).__name__)
    if isinstance(make, nn.Module) or not callable(make):
        raise UserError(f"{name} is no class and no function; give the module class, or lambda: MyBlock(option=1)")
    try:
        module = make()
    except Exception as error:  # Code of the user's can fail in any way.
        raise UserError(
            f"{name} cannot be made without arguments ({first_line(error)}); give its fields defaults, or options in "
            "brackets behind its name"
        ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{name} makes a {type(module).__name__}, not a module; derive it from flax.linen.Module")
    return module, type(module).__name__ if name == "<lambda>" else name


def _check_shapes(module: nn.Module, name: str, channels: int, other_sizes: tuple[tuple[int, int, int], ...]) -> None:
    """All that needs no numbers: nothing is computed."""
    key, features = jax.random.key(0), _features((BATCH, HEIGHT, WIDTH), channels)
    output, variables = _traced(name, module.init_with_output, key, features)
    state = sorted(variables.keys() - {"params"})
    if state:
        raise UserError(
            f"{name} keeps state in '{state[0]}', as BatchNorm does; a mixer has parameters alone, so use LayerNorm or "
            "GroupNorm instead, or sow what you want to look at"
        )
    expected = _leaves(variables)
    for path, leaf in expected.items():
        if leaf.dtype != jnp.float32:
            raise UserError(f"the parameter '{path}' of {name} is {leaf.dtype}; make it float32, so that it can learn")
    _check_output(name, output, features)
    # Without the key: only now does Dropout miss its own.
    _check_output(name, _traced(name, module.apply, {"params": variables.get("params", {})}, features), features)
    for size in other_sizes:
        features = _features(size, channels)
        output, variables = _traced(name, module.init_with_output, key, features)
        found = _leaves(variables)
        for path in dict.fromkeys((*expected, *found)):
            first, second = (_shape(tree.get(path)) for tree in (expected, found))
            if first != second:
                raise UserError(
                    f"the parameter '{path}' of {name} has the shape {first} for features of {HEIGHT}x{WIDTH}, but "
                    f"{second} for {size[1]}x{size[2]}; its shape must not follow from the image's"
                )
        _check_output(name, output, features)


def _check_output(name: str, output: Any, features: jax.ShapeDtypeStruct) -> None:
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise UserError(f"{name} returns a {type(output).__name__}, not one array; return the features alone")
    if output.shape != features.shape:
        raise UserError(
            f"{name} maps {list(features.shape)} to {list(output.shape)}; a mixer must keep the shape [B, H, W, C], "
            "whatever it is"
        )
    if output.dtype != features.dtype:
        raise UserError(
            f"{name} maps {features.dtype} to {output.dtype}; a mixer must keep the type: end it with "
            ".astype(x.dtype), or correct what made the other type"
        )


def _check_numbers(module: nn.Module, name: str, channels: int) -> BlockFacts:
    shape = (BATCH, HEIGHT, WIDTH, channels)
    noise, weights = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    centre = np.zeros(shape, np.float32)
    centre[:, HEIGHT // 2, WIDTH // 2] = 1

    @jax.jit
    def apply(both: tuple[Any, Any]) -> Any:
        return module.apply({"params": both[0]}, both[1])

    @jax.jit
    def forward_and_back(params: Any, x: Any, weights: Any) -> Any:
        output, back = jax.vjp(lambda *both: module.apply({"params": both[0]}, both[1]), params, x)
        return output, *back(weights)

    def run(params: Any, x: np.ndarray, weights: np.ndarray = weights) -> tuple[np.ndarray, Any, np.ndarray]:
        """Output, gradients to the parameters by their paths, and gradient to the features."""
        output, to_params, to_features = jax.tree.map(np.asarray, forward_and_back(params, x, weights))
        return output, flatten_dict(to_params, sep="/"), to_features

    try:
        fresh = jax.tree.map(np.asarray, jax.jit(module.init)(jax.random.key(0), noise).get("params", {}))
        moved = _moved(fresh)
        learning: set[str] = set()
        for what, features in {"noise": noise, "zeros": np.zeros_like(noise), "ones": np.ones_like(noise)}.items():
            for params in (fresh, moved):
                results = run(params, features)
                _check_finite(name, what, *results)
                learning |= {path for path, gradient in results[1].items() if gradient.any()}
        output, _, to_features = run(moved, noise)
        # Traced for the second time: what Python drew in the first trace has become a constant of that program.
        if not _close(output, np.asarray(apply((moved, noise)))):
            raise UserError(
                f"{name} gives another output for the same features each time; let it depend on features and "
                "parameters alone, not on NumPy's random numbers or the clock"
            )
        another = np.concatenate([noise[:1], 2 * noise[1:, ::-1] + 1])
        if not _close(output[0], run(moved, another)[0][0]):
            raise UserError(
                f"{name} mixes the images of a batch: what it makes of the first depends on the second; take means "
                "and norms over the axes of one image, (1, 2) or 3, alone"
            )
        if not to_features.any():
            raise UserError(
                f"{name} passes no gradient on to its input, so what comes before it learns nothing from it"
            )
        seen = np.any([run(moved, features, centre)[2].any((0, 3)) for features in (noise, np.ones_like(noise))], 0)
        error = directional_error(apply, lambda both, weights: forward_and_back(*both, weights)[1:], (moved, noise))
        identity = np.allclose(run(fresh, noise)[0], noise, rtol=1e-5, atol=1e-6)
    except UserError:
        raise
    except Exception as error:  # Code of the user's can fail in any way.
        raise _fault(name, error) from error
    return BlockFacts(
        name=name,
        parameters=count_parameters(fresh),
        without_gradient=tuple(sorted(flatten_dict(fresh, sep="/").keys() - learning)),
        identity_at_start=identity,
        reaches_border=bool(seen[[0, -1]].any() or seen[:, [0, -1]].any()),
        gradient_error=error if np.isfinite(error) else None,
    )


def _check_finite(
    name: str, what: str, output: np.ndarray, to_params: Mapping[str, np.ndarray], to_features: np.ndarray
) -> None:
    described = "noise" if what == "noise" else f"features that are all {what}"
    remedy = "add a small number to what a division, a root or a logarithm takes, before it takes it"
    if not np.isfinite(output).all():
        raise UserError(f"{name} makes numbers that are not finite of {described}; {remedy}")
    for path, gradient in {"its input": to_features, **to_params}.items():
        if not np.isfinite(gradient).all():
            where = f"the parameter '{path}'" if path in to_params else path
            raise UserError(f"{name} has a gradient to {where} that is not finite for {described}; {remedy}")


def _close(first: np.ndarray, second: np.ndarray) -> bool:
    return np.allclose(first, second, rtol=1e-3, atol=1e-4 * np.abs(first).max())


def _moved(params: Any) -> Any:
    """Parameters as after some training: what starts at zero, such as the scale of a residual, hides the rest."""
    rng = np.random.default_rng(1)

    def move(leaf: np.ndarray) -> np.ndarray:
        change = 0.1 * rng.standard_normal(leaf.shape, leaf.dtype)
        return np.where(leaf == 0, change, leaf * (1 + change))

    return jax.tree.map(move, params)


def _features(size: tuple[int, int, int], channels: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*size, channels), jnp.float32)


def _traced(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Shapes and types of what a method of the module gives."""
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # Code of the user's can fail in any way.
        features = arguments[-1]
        raise _fault(name, error, f" of {list(features.shape)}") from error


def _fault(name: str, error: Exception, features: str = "") -> UserError:
    """The sentence for what a block has raised."""
    if isinstance(error, NOT_STATIC):
        return UserError(
            f"{name} is not static: it depends on the values of its features or parameters while it is compiled "
            f"({type(error).__name__}); use jnp.where or lax.cond for `if`, jnp for np, and shapes for sizes"
        )
    if isinstance(error, flax.errors.InvalidRngError):
        return UserError(
            f"{name} needs random numbers when it is applied, as Dropout does, and a network gives it none "
            f"({first_line(error)}); leave them out, or set deterministic=True"
        )
    return UserError(f"{name} fails on features{features} ({first_line(error)}); it must take any [B, H, W, C]")


def _leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters by their paths."""
    return flatten_dict(dict(variables.get("params", {})), sep="/")


def _shape(leaf: Any) -> str:
    return "none, as it is not there," if leaf is None else str(list(leaf.shape))
