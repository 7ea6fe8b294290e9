"""TFLite: a net as a .tflite file, from StableHLO, without TensorFlow.

LiteRT's libraries are imported inside functions: the extra `tflite` may be missing, and they take a
second.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jprune import errors
from jprune.base import Variables
from jprune.export import quantize as quantization
from jprune.export.inputs import sample
from jprune.export.quiet import missing_extra, quiet
from jprune.export.runtime import run_tflite
from jprune.export.xla import source_locations_off
from jprune.kernels import portable

TOLERANCE = 1e-4
"""Largest max |a - b| / max |a| between JAX (a) and a float32 .tflite (b); 1e-6 is usual."""
_CHECKED_BATCH = 3  # of what has to work at any batch size; 1 and 2 are special too often


def tflite(
    fn: Callable[..., Any],
    variables: Variables,
    example: jax.ShapeDtypeStruct,
    quantize: str | None = None,
    calibration: Iterable[np.ndarray] = (),
) -> bytes:
    """A net as a .tflite model of built-in operations, with its variables compiled in.

    The model takes a batch of 1, and other sizes after the interpreter's `resize_tensor_input`
    (which `run_tflite` calls). Where a net does not allow that (a constant or a transposition
    involves the batch), the input's `shape_signature` begins with 1 instead of -1. Before the model
    is returned, its float32 outputs are compared with those of JAX, at batch 1 and 3.

    Args:
        fn: `fn(variables, x) -> out`, computing in float32.
        variables: the variables to compile in.
        example: shape and type of the input, the batch axis first; its size does not matter. A
            .tflite file has one input and one output here.
        quantize: None for float32; "dynamic" (int8 weights, float32 activations), "int8" (both, and
            int8 inputs and outputs) or "fp16" (float16 weights).
        calibration: for "int8", batches of inputs [batch, ...] that show the range of activations.

    Returns:
        What `model.tflite` holds.

    Raises:
        MissingExtraError: the extra `tflite` is not installed.
        ArgumentError: an unknown kind of quantisation, or "int8" without calibration.
        ExportError: several inputs or outputs, an operation without a built-in counterpart, or
            outputs that differ from those of JAX, NaN included.

    References:
        LiteRT (formerly TensorFlow Lite), https://ai.google.dev/edge/litert.
    """
    quantization.check(quantize)
    one = _one_input(example)
    fn = _one_output(fn, variables, one)
    model = converted(lambda x: fn(variables, x), one)
    _check_operations(model)
    _check_outputs(model, fn, variables, one)
    # Freeing the batch axis may break a net in ways that no signature shows: so it is run.
    resizable = _with_any_batch(model)
    if _error(resizable, fn, variables, one, _CHECKED_BATCH) <= TOLERANCE:
        model = resizable
    return quantization.quantized_model(model, quantize, calibration) if quantize else model


def _one_input(example: Any) -> jax.ShapeDtypeStruct:
    """The input at a batch of 1.

    Raises:
        ExportError: there are several.
    """
    if not hasattr(example, "shape"):
        raise errors.ExportError(
            f"the example has {len(jax.tree.leaves(example))} inputs in a "
            f"{type(example).__name__}; a .tflite file has one input here. Write a function of one "
            "array that takes it apart, or export StableHLO, which keeps the structure."
        )
    return jax.ShapeDtypeStruct((1, *example.shape[1:]), example.dtype)


def _one_output(fn: Callable[..., Any], variables: Variables, example: Any) -> Callable[..., Any]:
    """The net whose output is an array, also where it is the only one of a tuple or dictionary.

    Raises:
        ExportError: there are several.
    """
    leaves = jax.tree.leaves(jax.eval_shape(fn, variables, example))
    if len(leaves) != 1:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves) or "nothing"
        raise errors.ExportError(
            f"the net has {len(leaves)} outputs ({shapes}); a .tflite file has one output here. "
            "Return one of them, or their concatenation, or export StableHLO, which keeps the "
            "structure."
        )
    return lambda variables, x: jax.tree.leaves(fn(variables, x))[0]


def converted(fn: Callable[[Any], Any], example: jax.ShapeDtypeStruct) -> bytes:
    """A function of one array as a .tflite model, not checked: `tflite` is for models to keep.

    Args:
        fn: `fn(x) -> out`.
        example: shape and type of `x`, batch included.

    Raises:
        MissingExtraError: the extra `tflite` is not installed.
        ExportError: LiteRT's converter refuses it.
    """
    with missing_extra(), quiet():
        # Extension modules say nothing about their types, so they are imported as `Any`.
        converter: Any = importlib.import_module("litert_converter.converter_api_ext")
        ir: Any = importlib.import_module("litert_converter.mlir.ir")
        passes: Any = importlib.import_module("litert_converter.mlir.passmanager")
    with source_locations_off(), portable():
        exported = export.export(jax.jit(fn), platforms=["cpu"])(example)
    context = ir.Context()
    try:
        with quiet(), context, ir.Location.unknown():
            converter.prepare_mlir_context(context)
            module = ir.Module.parse(exported.mlir_module())
            converter.set_signature(module.operation, "serving_default", ["x"], ["out"])
            config = converter.ConvertToTFLConfig()
            config.model_origin_framework = "JAX"
            converter.run_convert_to_tfl_passes(module, passes.PassManager(), config)
            return converter.export_flatbuffer_to_bytes(module.operation)
    except Exception as error:  # the converter raises whatever MLIR does
        raise errors.ExportError(
            f"LiteRT's converter refused the net ({str(error)[:300]}). It takes convolutions, "
            "dense layers and elementwise functions in float32: replace the operation that it "
            "names, or export StableHLO."
        ) from error


def _check_operations(model: bytes) -> None:
    schema, tree = _parsed(model)
    custom = [
        (code.customCode or b"?").decode()
        for code in tree.operatorCodes
        if code.builtinCode == schema.BuiltinOperator.CUSTOM
    ]
    if custom:
        raise errors.ExportError(
            f"the .tflite model needs operations that are not built into LiteRT: {custom}. Replace "
            "them in the net, or export StableHLO."
        )


def _check_outputs(model: bytes, fn: Any, variables: Variables, example: Any) -> None:
    error = _error(model, fn, variables, example, 1)
    # Not `error > TOLERANCE`: NaN is neither above nor below.
    if not error <= TOLERANCE:
        what = "cannot be run" if error == np.inf else f"differs from JAX by {error:.1e}"
        if np.isnan(error):
            what = "gives NaN or infinity where JAX gives numbers, or the other way round"
        raise errors.ExportError(
            f"the .tflite model {what}; a relative error of at most {TOLERANCE:.0e} was expected. "
            "Export a net that computes in float32, without operations such as sort or top_k; "
            "or export StableHLO."
        )


def _error(model: bytes, fn: Any, variables: Variables, example: Any, batch: int) -> float:
    """Error max |a - b| / max |a| of the model (b) against JAX (a); infinite if it cannot run.

    NaN where one of the two is finite and the other is not. Inputs are looked at with both signs,
    since some functions are converted wrongly on one side of 0.
    """
    worst = 0.0
    for x in (sample(example, batch), sample(example, batch, sign=-1)):
        with jax.default_matmul_precision("highest"):  # GPUs and TPUs round float32 otherwise
            expected = np.asarray(jax.jit(fn)(variables, jnp.asarray(x)))
        try:
            out = run_tflite(model, x)
        except (RuntimeError, ValueError):  # what the interpreter raises about shapes, operations
            return np.inf
        if out.shape != expected.shape:
            return np.inf
        # Integers (classes) as numbers: their difference must not wrap around.
        a, b = expected.astype(np.float64), out.astype(np.float64)
        finite = np.isfinite(a)
        # The net itself may not be defined for all inputs (log).
        if not np.array_equal(finite, np.isfinite(b)):
            return np.nan
        a, b = a[finite], b[finite]
        largest = max(np.abs(a).max(initial=0), np.finfo(np.float32).tiny)
        worst = max(worst, float(np.abs(b - a).max(initial=0) / largest))
    return worst


def _with_any_batch(model: bytes) -> bytes:
    """Frees the batch axis: in every activation's signature, and where operators hold its size.

    A reshape [1, 4, 4, 8] -> [1, 128] holds its target shape as a constant, a slice its size: the
    first entry becomes -1, "any size". A strided slice gets the masks that ignore its first bounds.
    """
    import flatbuffers

    schema, tree = _parsed(model)
    graph = tree.subgraphs[0]
    sizes = {schema.BuiltinOperator.RESHAPE: 1, schema.BuiltinOperator.SLICE: 2}

    def data(index: int) -> bytes:
        content = tree.buffers[graph.tensors[index].buffer].data
        return b"" if content is None else bytes(content)

    def batched(index: int) -> bool:
        # An activation (no constant data) whose first axis is the batch of 1.
        shape = graph.tensors[index].shape
        return not data(index) and len(shape) > 1 and shape[0] == 1

    for operator in graph.operators:
        code = tree.operatorCodes[operator.opcodeIndex].builtinCode
        if not (batched(operator.inputs[0]) and batched(operator.outputs[0])):
            continue
        if code == schema.BuiltinOperator.STRIDED_SLICE:
            operator.builtinOptions.beginMask |= 1
            operator.builtinOptions.endMask |= 1
        elif code in sizes and data(operator.inputs[sizes[code]]):
            size = np.frombuffer(data(operator.inputs[sizes[code]]), np.int32).copy()
            size[0] = -1
            buffer = graph.tensors[operator.inputs[sizes[code]]].buffer
            tree.buffers[buffer].data = np.frombuffer(size.tobytes(), np.uint8)
    for index, tensor in enumerate(graph.tensors):
        if batched(index):
            tensor.shapeSignature = np.asarray([-1, *tensor.shape[1:]], np.int32)
    builder = flatbuffers.Builder(len(model))
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _parsed(model: bytes) -> tuple[Any, Any]:
    with missing_extra(), quiet():
        from ai_edge_litert import schema_py_generated as schema
    return schema, schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
