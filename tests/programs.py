"""Programs that XLA compiles, counted; and two nets to count them on, all of whose sizes differ."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import monitoring

import jprune
from jprune import zoo
from jprune.base import Groups
from tests import nets

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """A list that grows with every program that XLA compiles."""
    programs = []

    def listen(event, duration, **more):
        del duration, more
        if event == COMPILED:
            programs.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        monitoring.unregister_event_duration_listener(listen)


class Traced(NamedTuple):
    """A net with its groups.

    Attributes:
        fn: `fn(variables, x)`, in inference mode.
        variables: {"params", "stats"}, random.
        x: an image.
        groups: of the net.
    """

    fn: Callable[..., Any]
    variables: Any
    x: Any
    groups: Groups


def residual() -> Traced:
    """Convolutions with norms, a residual sum and a head, in NHWC: a small ResNet."""
    widths = {"stem": (3, 10), "a": (10, 7), "b": (7, 10), "c": (10, 13), "d": (13, 11)}
    params = {name: {"kernel": (3, 3, *pair)} for name, pair in widths.items()}
    params |= {f"{name}_norm": {"scale": (w,), "shift": (w,)} for name, (_, w) in widths.items()}
    params |= {"head": {"kernel": (11, 5), "bias": (5,)}}
    stats = {f"{name}_norm": {"mean": (w,), "var": (w,)} for name, (_, w) in widths.items()}

    def fn(variables, x):
        v, s = variables["params"], variables["stats"]
        normed = lambda x, name: nets.norm(
            nets.conv(x, v[name]["kernel"]), v[f"{name}_norm"] | s[f"{name}_norm"]
        )
        x = jax.nn.relu(normed(x, "stem"))
        x = jax.nn.relu(x + normed(jax.nn.relu(normed(x, "a")), "b"))
        x = jax.nn.relu(normed(jax.nn.relu(normed(x, "c")), "d"))
        return nets.head(x, v)

    net = nets.Net("residual", fn, {"params": params, "stats": stats}, ((1, 8, 8, 3),), {})
    variables, (x,) = nets.draw(net)
    return Traced(fn, variables, x, jprune.trace(fn, variables, x))


def equinox() -> Traced:
    """Convolutions and dense layers of Equinox, in NCHW, with norms that hold state."""
    import equinox as eqx

    class Module(eqx.Module):
        layers: list
        norms: list
        head: eqx.nn.Linear

        def __init__(self, key):
            pairs, keys = ((3, 9), (9, 12), (12, 14)), jax.random.split(key, 4)
            self.layers = [eqx.nn.Conv2d(*p, 3, key=k) for p, k in zip(pairs, keys)]
            self.norms = [eqx.nn.BatchNorm(p[1], "batch", mode="batch") for p in pairs]
            self.head = eqx.nn.Linear(14, 5, key=keys[-1])

        def __call__(self, x, state):
            for layer, norm in zip(self.layers, self.norms):
                x, state = norm(layer(x), state)
                x = jax.nn.relu(x)
            return self.head(x.mean((1, 2))), state

    net = zoo.from_equinox(Module, (9, 9, 3))
    variables = net.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(1, 9, 9, 3)).astype(np.float32)
    return Traced(net.fn, variables, jax.device_put(x), jprune.trace(net.fn, variables, x))
