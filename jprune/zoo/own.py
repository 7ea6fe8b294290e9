"""Nets of the user's own, written as `module:callable` where a name of the zoo would stand."""

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from jprune import errors, jaxprs, targets
from jprune.zoo.net import Net
from jprune.zoo.table import check_dtype, check_shape

HELP = "help(jprune.zoo.load) has an example."


def load(target: str, classes: int, shape: tuple[int, int, int], dtype: Any = jnp.float32) -> Net:
    """Builds a net with the user's own function, and checks it.

    The function is called with the three keywords `classes`, `shape`, `dtype` and returns a `Net`,
    whatever library the network is written in. A file `mynet.py` for the target `mynet:linear`::

        import math
        import jax, jax.numpy as jnp
        from jprune import zoo

        def linear(classes, shape, dtype):
            features = math.prod(shape)

            def init(key):
                kernel = jax.random.normal(key, (features, classes)) / features**0.5
                return {"params": {"fc": {"kernel": kernel}}, "stats": {}}

            def fn(variables, x):
                return x.reshape(len(x), -1) @ variables["params"]["fc"]["kernel"]

            def train_fn(variables, x, key):
                return fn(variables, x), variables["stats"]

            example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
            return zoo.Net("linear", init, fn, train_fn, example)

    A module of a library is one line instead: `return zoo.from_nnx(MyModule, shape)`, or
    `from_linen`, `from_equinox`, `from_haiku`, `from_keras` (docs/libraries.md).
    What comes back is traced once, on shapes alone, and compared with what `Net` promises.

    Args:
        target: `package.module:callable`. The module is looked for on `sys.path`, then in the
            current directory.
        classes: number of outputs.
        shape: (height, width, channels) of one image.
        dtype: compute type, float32 or bfloat16.

    Returns:
        The net that the function returned.

    Raises:
        ArgumentError: the target is not of this form, does not exist or fails, or what it returns
            is no `Net` or does not behave like one, or computes in another type. The message says
            which.
    """
    shape, dtype = check_shape(shape), check_dtype(dtype)
    with targets.current_directory():
        function = targets.find(target, "a jprune.zoo.Net", HELP)
        net = _attempt(target, function, classes=classes, shape=shape, dtype=dtype)
    check(net, target, classes, shape)
    if dtype != jnp.float32:
        _check_dtype(net, target, dtype)
    return net


def check(net: Any, target: str, classes: int, shape: tuple[int, int, int]) -> None:
    """Compares a net with what `Net` promises, on shapes alone.

    Args:
        net: what the user's function returned.
        target: how the messages call it.
        classes: number of outputs that it should have.
        shape: (height, width, channels) of one image.

    Raises:
        ArgumentError: it differs; the message says what came and what was expected.
    """
    if not isinstance(net, Net):
        _refuse(target, f"returned {type(net).__name__}", "a jprune.zoo.Net")
    for field in ("init", "fn", "train_fn"):
        if not callable(getattr(net, field)):
            _refuse(target, f"has a Net.{field} that cannot be called", "a function")
    came = getattr(net.example, "shape", net.example)
    if came != (1, *shape):
        _refuse(target, f"has Net.example {came}", f"jax.ShapeDtypeStruct({(1, *shape)}, ...)")
    key = jax.eval_shape(lambda: jax.random.key(0))
    # Whatever comes out is compared before it is used, or the next call fails inside the user's
    # code with a message about something else.
    variables = _attempt(f"{target}, init(key)", jax.eval_shape, net.init, key)
    if not isinstance(variables, dict) or set(variables) != {"params", "stats"}:
        came = sorted(variables) if isinstance(variables, dict) else type(variables).__name__
        _refuse(target, f"has an init that returns {came}", 'a dict of "params" and "stats"')
    if not jax.tree.leaves(variables["params"]):
        _refuse(target, "has no parameters", 'at least one array under "params"')
    # Two batch sizes: a net that is written for one of them (a reshape to a constant) fails at the
    # other.
    for batch in (1, 2):
        images = jax.ShapeDtypeStruct((batch, *shape), net.example.dtype)
        _check_calls(net, target, variables, images, key, (batch, classes))


def _check_dtype(net: Net, target: str, dtype: Any) -> None:
    """Refuses a net that contracts nothing in the compute type: it was asked for and ignored."""
    variables = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
    program, _ = jaxprs.program_of(net.fn, variables, net.example)
    types = {
        program.avals[value].dtype
        for equation in program.equations
        for value in equation.inputs
        if equation.name in ("conv_general_dilated", "dot_general")
    }
    if types and dtype not in types:
        came = ", ".join(sorted(map(str, types)))
        _refuse(target, f"computes in {came}", f"{dtype.name}: give the dtype to its layers")


def _check_calls(
    net: Net, target: str, variables: Any, images: Any, key: Any, expected: tuple[int, int]
) -> None:
    """Traces both functions for one batch."""
    logits = _attempt(f"{target}, fn(variables, x)", jax.eval_shape, net.fn, variables, images)
    _check_logits(target, "fn", logits, expected)
    what = f"{target}, train_fn(variables, x, key)"
    out = _attempt(what, jax.eval_shape, net.train_fn, variables, images, key)
    if not isinstance(out, tuple) or len(out) != 2:
        _refuse(target, f"has a train_fn that returns {type(out).__name__}", "(logits, stats)")
    _check_logits(target, "train_fn", out[0], expected)
    _check_stats(target, out[1], variables["stats"])


def _check_logits(target: str, field: str, logits: Any, expected: tuple[int, int]) -> None:
    """Refuses logits of another shape or type."""
    came = getattr(logits, "shape", type(logits).__name__)
    if came != expected:
        _refuse(target, f"has a {field} that gives {came} for {expected[0]} images", str(expected))
    if logits.dtype != jnp.float32:
        _refuse(target, f"has a {field} that gives {logits.dtype}", "float32 logits")


def _check_stats(target: str, new: Any, old: Any) -> None:
    """Refuses statistics of another structure, shape or type than `init` gave."""
    if jax.tree.structure(new) != jax.tree.structure(old):
        _refuse(
            target,
            f"has a train_fn whose statistics are {jax.tree.structure(new)}",
            f'the structure of variables["stats"], {jax.tree.structure(old)}',
        )
    for (path, after), before in zip(jax.tree.leaves_with_path(new), jax.tree.leaves(old)):
        if (after.shape, after.dtype) != (before.shape, before.dtype):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            _refuse(
                target,
                f"has a train_fn whose {name} is {after.dtype}{list(after.shape)}",
                f"{before.dtype}{list(before.shape)}, as init gives it",
            )


def _attempt(what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls the user's code; an exception becomes an ArgumentError that quotes it."""
    return targets.attempt(what, HELP, call, *args, **kwargs)


def _refuse(target: str, came: str, expected: str) -> NoReturn:
    """Raises with what came and what was expected."""
    raise errors.ArgumentError(f"{target} {came}; expected {expected}. {HELP}")
