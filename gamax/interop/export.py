"""Networks as files that run without gamax: StableHLO for JAX, ONNX for other runtimes (`docs/export.md`)."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.errors import InconclusiveDimensionOperation
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Float

from gamax.errors import UserError

Images = Float[np.ndarray, "b h w c"]

PLATFORMS = ("cpu", "cuda", "tpu")

OPSET = 18
"""The oldest operators of ONNX that are enough, which the most runtimes have."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""How far an exported network may be from the original, with white at 1, by the precision that it computes in."""

_WIDE = 128
"""The longest side up to which a network treats images in a way of its own, windows that are asked for aside."""


@dataclass(frozen=True)
class Signature:
    """What an exported network takes: `images [batch, height, width, channels]`, float32 in [0, 1]."""

    batch: int | None
    """None: any number."""
    size: tuple[int, int] | None
    """Height and width; None: any multiples of `multiple` that are at least `smallest`."""
    channels: int
    multiple: int
    smallest: int

    def shape(self) -> tuple[Any, ...]:
        """The four sizes, symbols of `jax.export` where they are open."""
        if self.size is None:
            sides, least = f"{self.multiple}*rows, {self.multiple}*columns", self.smallest // self.multiple
            constraints = (f"rows >= {least}", f"columns >= {least}")
        else:
            sides, constraints = "{}, {}".format(*self.size), ()
        shape = f"{self.batch or 'batch'}, {sides}, {self.channels}"
        return tuple(export.symbolic_shape(shape, constraints=constraints))

    def description(self) -> str:
        """The shape and what else a caller must know, in a sentence."""
        sides = "height, width" if self.size is None else "{}, {}".format(*self.size)
        sentence = f"images [{self.batch or 'batch'}, {sides}, {self.channels}] float32 in [0, 1]"
        if self.size is None:
            sentence += f", height and width multiples of {self.multiple} and at least {self.smallest}"
        return sentence

    def trials(self) -> list[tuple[int, int, int, int]]:
        """Shapes to try the network on: the one that it takes, or two that differ in everything."""
        batch = self.batch or 2
        if self.size is not None:
            return [(batch, *self.size, self.channels)]
        side = max(self.smallest, -(-64 // self.multiple) * self.multiple)
        wider = side + self.multiple
        return [(batch, side, wider, self.channels), (self.batch or 1, wider + self.multiple, side, self.channels)]


def find_signature(model: nn.Module, params: Any, size: tuple[int, int] | None, batch: int | None) -> Signature:
    """What the network can be exported for: as much as is left open.

    Args:
        model: the network.
        params: its parameters, or their shapes; nothing is computed.
        size: height and width in pixels, any that the network takes; None for all multiples of its `size_multiple`.
        batch: images in one call; None for any number.

    Raises:
        UserError: if the network cannot leave open what is None, or does not take the size.
    """
    channels, multiple = model.input_channels, model.size_multiple
    if size is not None:
        candidates = [Signature(batch, size, channels, 1, 1)]
    else:
        # Some networks do one thing below a size and another above: larger images only, if it must be.
        window = getattr(model, "local_window", None) or 0
        limits = sorted({0, window, max(window, _WIDE)})
        candidates = [
            Signature(batch, None, channels, multiple, (limit // multiple + 1) * multiple) for limit in limits
        ]
    problem = None
    for signature in candidates:
        problem = _problem_with_symbols(model, params, signature)
        if problem is None:
            return signature
    needed = ["--size HEIGHTxWIDTH"] if size is None else []
    side = candidates[-1].smallest
    of_any_batch = Signature(None, size or (side, side), channels, 1, 1)
    if batch is None and _problem_with_symbols(model, params, of_any_batch):
        needed.append("--batch NUMBER")
    raise UserError(
        f"{type(model).__name__} with these options needs a fixed shape: add {' and '.join(needed)}"
    ) from problem


def _problem_with_symbols(model: nn.Module, params: Any, signature: Signature) -> Exception | None:
    """Why the network cannot be traced for every shape of the signature; None if it can."""
    images = jax.ShapeDtypeStruct(signature.shape(), jnp.float32)
    try:
        jax.eval_shape(model.apply, {"params": params}, images)
    except (InconclusiveDimensionOperation, TypeError) as error:
        if all(isinstance(side, int) for side in images.shape):
            raise
        return error
    return None


def to_stablehlo(
    model: nn.Module, params: Any, signature: Signature, platforms: Sequence[str] = PLATFORMS, name: str = "restore"
) -> bytes:
    """The network with its parameters as one file for `jax.export.deserialize`.

    Args:
        model: the network.
        params: its parameters.
        signature: what it is to take.
        platforms: where it is to run, of `cpu`, `cuda`, `rocm` and `tpu`; one file serves several.
        name: of the function in the file.
    """
    restoring = _restoring(model, params)
    restoring.__name__ = name
    images = jax.ShapeDtypeStruct(signature.shape(), jnp.float32)
    return bytes(export.export(jax.jit(restoring), platforms=tuple(platforms))(images).serialize())


def run_stablehlo(content: bytes, images: Images) -> Images:
    """Runs a file of `to_stablehlo` on the default device."""
    return np.asarray(export.deserialize(bytearray(content)).call(images))


def check_onnx(model: nn.Module) -> None:
    """Raises `UserError` if packages for ONNX are missing, or the network does what they or the runtimes cannot."""
    missing = [name for name in ("jax2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export to ONNX needs {' and '.join(missing)}: pip install 'gamax[onnx]'")
    if np.dtype(model.dtype) != np.float32:
        raise UserError(f"ONNX Runtime has no convolution in {np.dtype(model.dtype).name}: export with --dtype float32")
    if getattr(model, "samples_pixels", False):
        raise UserError(
            f"jax2onnx cannot convert how {type(model).__name__} takes pixels from places that depend on the image: "
            "export to stablehlo"
        )


def to_onnx(
    model: nn.Module,
    params: Any,
    signature: Signature,
    name: str = "restore",
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """The network with its parameters as one ONNX file, input `images` and output `restored`.

    Args:
        model: the network, computing in float32.
        params: its parameters.
        signature: what it is to take.
        name: of the graph in the file.
        metadata: stored in the file as JSON, under `gamax`.

    Raises:
        UserError: as `check_onnx` does, or if the converter cannot take the network with the shapes left open.
    """
    check_onnx(model)
    jax2onnx, onnx = importlib.import_module("jax2onnx"), importlib.import_module("onnx")
    restoring, shape = _restoring(model, params), signature.shape()
    taken, traced = shape, restoring
    if signature.size is None:
        # The converter wants every symbol as a side of the input, and does not divide: it gets the sides in factors.
        batch, height, width, channels = shape
        multiple = signature.multiple
        taken = (batch, height // multiple, multiple, width // multiple, multiple, channels)

        def traced(blocks: jax.Array) -> jax.Array:
            return restoring(blocks.reshape(shape))

    images = jax.ShapeDtypeStruct(taken, jnp.float32)
    program = jax.make_jaxpr(traced)(images)
    # It warns of every symbolic shape that it has not followed, which runtimes do by themselves.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        network = jax2onnx.to_onnx(
            lambda images: _run_everywhere(program, images)[0],
            [images],
            model_name=name,
            opset=OPSET,
            input_names=["images" if signature.size else "blocks"],
            output_names=["restored"],
        )
    except (InconclusiveDimensionOperation, NotImplementedError) as error:
        raise UserError(
            f"jax2onnx cannot convert {type(model).__name__} with these options and shapes "
            f"({str(error).splitlines()[0]}): fix --size and --batch, or export to stablehlo"
        ) from error
    if signature.size is None:
        _take_whole_sides(network.graph, signature)
    onnx.helper.set_model_props(network, {"gamax": json.dumps(metadata or {}, sort_keys=True)})
    return network.SerializeToString()


def run_onnx(content: bytes, images: Images) -> Images:
    """Runs an ONNX file on the CPU."""
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (restored,) = session.run(["restored"], {"images": images})
    return np.asarray(restored)


def differences(
    run: Callable[[Images], Images], model: nn.Module, params: Any, signature: Signature
) -> dict[tuple[int, ...], float]:
    """The largest difference between an exported network and the original, on noise, for every shape that is tried.

    In units of white, or of the largest value of the output where that is larger. The noise is darker to the left, so
    that means over windows are not those over the image.
    """
    largest, rng = {}, np.random.default_rng(0)
    for shape in signature.trials():
        images = rng.random(shape, np.float32) * np.linspace(0, 1, shape[2], dtype=np.float32)[:, np.newaxis]
        expected = np.asarray(jax.jit(_restoring(model, params))(images))
        largest[shape] = float(np.abs(run(images) - expected).max() / max(1, np.abs(expected).max()))
    return largest


def _restoring(model: nn.Module, params: Any) -> Callable[[Any], Any]:
    def restore(images: Any) -> Any:
        return model.apply({"params": params}, images)

    return restore


def _run_everywhere(program: ClosedJaxpr, *arguments: Any) -> list[Any]:
    """Evaluates a traced function, its calls in place, by the formulation that is not for any one platform.

    What the converter to ONNX knows: neither `jax.lax.platform_dependent` nor functions with gradients of their own.
    """
    jaxpr = program.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs, settings, name = (
            [read(variable) for variable in equation.invars],
            equation.params,
            equation.primitive.name,
        )
        if name == "platform_index":
            # None marks the choice for what asks for it, a `cond` with the default as its last branch.
            outputs = [None]
        elif name == "cond" and inputs[0] is None:
            outputs = _run_everywhere(settings["branches"][-1], *inputs[1:])
        elif name == "jit":
            outputs = _run_everywhere(settings["jaxpr"], *inputs)
        elif name in ("custom_vjp_call", "custom_jvp_call"):
            outputs = _run_everywhere(settings["call_jaxpr"], *inputs)
        elif name == "concatenate":
            # Without what `jnp.pad` repeats no times: in the shape of an array, ONNX takes 0 for "as it was".
            parts = [part for part in inputs if part.shape[settings["dimension"]] != 0]
            outputs = [equation.primitive.bind(*parts, **settings)]
        else:
            outputs = equation.primitive.bind(*inputs, **settings)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _take_whole_sides(graph: Any, signature: Signature) -> None:
    """Makes an ONNX graph of `blocks [B, H / m, m, W / m, m, C]` take `images [B, H, W, C]`."""
    batch, multiple, channels = signature.batch or "batch", signature.multiple, signature.channels
    before = importlib.import_module("onnx.parser").parse_graph(f"""
        split_sides (float[{batch}, height, width, {channels}] images)
            => (float[{batch}, rows, {multiple}, columns, {multiple}, {channels}] blocks)
        {{
            split_divisors = Constant<value_ints = [1, {multiple}, {multiple}, 1]>()
            split_multiple = Constant<value_ints = [{multiple}]>()
            split_sides = Shape(images)
            split_quotients = Div(split_sides, split_divisors)
            split_batch, split_rows, split_columns, split_channels = Split<num_outputs = 4>(split_quotients)
            split_shape = Concat<axis = 0>
                (split_batch, split_rows, split_multiple, split_columns, split_multiple, split_channels)
            blocks = Reshape(images, split_shape)
        }}
    """)
    nodes = [*before.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input[0].CopyFrom(before.input[0])
    _, height, width, _ = graph.output[0].type.tensor_type.shape.dim
    height.dim_param, width.dim_param = "height", "width"
