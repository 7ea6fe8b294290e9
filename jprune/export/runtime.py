"""Running .tflite models, for checks and measurements."""

from typing import Any

import numpy as np

from jprune import errors
from jprune.export.quiet import missing_extra, quiet


def run_tflite(model: bytes, x: Any, threads: int = 1) -> np.ndarray:
    """Runs a .tflite model.

    Args:
        model: what `tflite` returned.
        x: [batch, ...]; quantised first where the model takes quantised integers.
        threads: threads of the interpreter.

    Returns:
        [batch, ...] float32, or the integers of a model that returns some (classes).

    Raises:
        MissingExtraError: the extra `tflite` is not installed.
        ArgumentError: the model does not take inputs of that shape.
    """
    x = np.asarray(x)
    runner = interpreter(model, threads, x.shape)
    source, target = runner.get_input_details()[0], runner.get_output_details()[0]
    with quiet():
        runner.set_tensor(source["index"], quantized(x, source))
        runner.invoke()
    return _dequantized(runner.get_tensor(target["index"]), target)


def interpreter(model: bytes, threads: int = 1, shape: tuple[int, ...] | None = None) -> Any:
    """LiteRT's interpreter with a model in it, ready for inputs of a shape.

    Raises:
        MissingExtraError: the extra `tflite` is not installed.
        ArgumentError: the model does not take inputs of that shape.
    """
    with missing_extra(), quiet():
        from ai_edge_litert.interpreter import Interpreter
    with quiet():
        runner = Interpreter(model_content=bytes(model), num_threads=threads)
        details: dict[str, Any] = runner.get_input_details()[0]
        if shape is not None and shape != tuple(details["shape"]):
            _check_shape(shape, tuple(details["shape_signature"]))
            runner.resize_tensor_input(details["index"], shape)
        runner.allocate_tensors()
    return runner


def _check_shape(shape: tuple[int, ...], signature: tuple[int, ...]) -> None:
    # LiteRT itself would resize an axis of fixed size too, and compute wrong numbers for it.
    if len(shape) != len(signature) or any(
        wanted not in (-1, length) for length, wanted in zip(shape, signature)
    ):
        raise errors.ArgumentError(
            f"the .tflite model got an input of shape {shape}; it takes "
            f"{tuple(int(size) for size in signature)}, -1 being any size. Pass examples of that "
            "shape, one by one where the first entry is 1."
        )


def quantized(x: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Values in the type of a tensor's `details`: round(x / scale) + zero point if quantised."""
    if not _is_quantized(details):
        return x.astype(details["dtype"])
    scale, zero_point = details["quantization"]
    limits = np.iinfo(details["dtype"])
    # q = clip(round(x / S) + Z)
    return np.clip(np.round(x / scale) + zero_point, limits.min, limits.max).astype(
        details["dtype"]
    )


def _is_quantized(details: dict[str, Any]) -> bool:
    # Integers that are none (indices, classes) have a scale of 0.
    return bool(np.issubdtype(details["dtype"], np.integer) and details["quantization"][0])


def _dequantized(y: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    if not _is_quantized(details):
        return y
    scale, zero_point = details["quantization"]
    # x = S (q - Z)
    return (y.astype(np.float32) - zero_point) * np.float32(scale)
