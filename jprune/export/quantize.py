"""Quantisation of .tflite models: smaller weights, and integer arithmetic if wanted."""

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jprune import errors
from jprune.export.quiet import missing_extra, quiet
from jprune.export.runtime import interpreter

QUANTIZATIONS = ("dynamic", "fp16", "int8")


def check(kind: str | None) -> None:
    """Refuses a kind of quantisation that does not exist.

    Raises:
        ArgumentError: it is neither None nor one of `QUANTIZATIONS`.
    """
    if kind is not None and kind not in QUANTIZATIONS:
        raise errors.ArgumentError(
            f"tflite got quantize={kind!r}; it takes None or one of {', '.join(QUANTIZATIONS)}. "
            'Write quantize="dynamic" for int8 weights without calibration.'
        )


def quantized_model(model: bytes, kind: str, calibration: Iterable[np.ndarray]) -> bytes:
    """A float32 .tflite model, quantised by ai-edge-quantizer.

    Args:
        model: the float32 model, with one input `x`.
        kind: one of `QUANTIZATIONS`.
        calibration: for "int8", batches of inputs [batch, ...] float32.

    Returns:
        The quantised .tflite model.

    Raises:
        MissingExtraError: the extra `tflite` is not installed.
        ArgumentError: "int8" without calibration data.
    """
    with missing_extra(), quiet():
        from ai_edge_quantizer import qtyping, quantizer, recipe
        from ai_edge_quantizer.algorithm_manager import AlgorithmName
    with quiet(), _python_quiet():
        tool = quantizer.Quantizer(bytearray(model))
        if kind == "fp16":
            tool.update_quantization_recipe(
                regex=".*",
                operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
                op_config=qtyping.OpQuantizationConfig(
                    weight_tensor_config=qtyping.TensorQuantizationConfig(
                        num_bits=16, dtype=qtyping.TensorDataType.FLOAT
                    ),
                    compute_precision=qtyping.ComputePrecision.FLOAT,
                ),
                algorithm_key=AlgorithmName.FLOAT_CASTING,
            )
        elif kind == "dynamic":
            tool.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        else:
            tool.load_quantization_recipe(recipe.static_wi8_ai8())
        # Weights are quantised by their own range; only int8 activations need data to know theirs.
        ranges = _ranges(tool, model, calibration) if tool.need_calibration else None
        result: Any = tool.quantize(ranges, enable_progress_report=False)
        return bytes(result.quantized_model)


def _ranges(tool: Any, model: bytes, calibration: Iterable[np.ndarray]) -> dict[str, Any]:
    """{tensor: {"min", "max"}} over all examples.

    The tool takes a moving average over its examples, which cuts off values that few of them reach
    (a tenth of the logits' range after 64 examples). So it is given one batch at a time, and the
    extremes over all batches are taken here.
    """
    resizable = interpreter(model).get_input_details()[0]["shape_signature"][0] == -1
    ranges: dict[str, Any] = {}
    for batch in calibration:
        # A model whose batch is fixed to 1 takes its examples one by one.
        for x in [batch] if resizable else np.split(batch, len(batch)):
            data = {"serving_default": [{"x": np.asarray(x, np.float32)}]}
            for name, extremes in tool.calibrate(data, num_threads=1).items():
                total = ranges.setdefault(name, extremes)
                total["min"] = np.minimum(total["min"], extremes["min"])
                total["max"] = np.maximum(total["max"], extremes["max"])
    if not ranges:
        raise errors.ArgumentError(
            'tflite got quantize="int8" and no calibration batch; int8 activations need to know '
            "their range. Pass calibration=[x], x being float32 [batch, ...] of training data."
        )
    return ranges


@contextlib.contextmanager
def _python_quiet() -> Iterator[None]:
    """Suppresses the tool's progress bars and warnings."""
    silence = contextlib.redirect_stderr(io.StringIO())
    with silence, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
