"""Big nets: shapes are enough, shards stay shards, and slim nets lower for devices not here."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import jaxprs
from tests.graph.test_law import random_masks
from tests.law import quick, relative_error
from tests.nets import FIRST_CUT, draw

SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import json, jax, jax.numpy as jnp, numpy as np, jprune
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
fn = lambda v, x: jax.nn.relu(x @ v["a"] + v["bias"]) @ v["b"]
shapes = {"a": (6, 32), "bias": (32,), "b": (32, 5)}
specs = {"a": PartitionSpec(None, "model"), "bias": PartitionSpec("model")}
specs["b"] = specs["bias"]
variables = {
    name: jax.device_put(jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape),
                         NamedSharding(mesh, specs[name]))
    for name, shape in shapes.items()
}
groups = jprune.trace(fn, variables, jnp.ones((1, 6)))
masks = {"a": np.arange(32) % 4 != 1}
small = jprune.slim_params(groups, masks, variables)
mask_and_expand = jax.jit(lambda v, m: jprune.apply_masks(v, jprune.expand(groups, {"a": m})))
applied = mask_and_expand(variables, masks["a"])
largest = lambda a: max(s.data.size for s in a.addressable_shards)
print(json.dumps({
    "devices": len(jax.devices()),
    "small": {k: [largest(a), a.size] for k, a in small.items()},
    "applied": {k: [largest(a), a.size] for k, a in applied.items()},
}))
"""


def test_sharded_variables_stay_sharded():
    run = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(run.stdout)
    assert result["devices"] == 4
    for kind in ("small", "applied"):
        for name, (largest, size) in result[kind].items():
            assert largest * 4 == size, (kind, name, largest, size)


def test_tracing_needs_shapes_only():
    net = FIRST_CUT[2]
    variables, inputs = draw(net)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (variables, inputs))
    groups = jprune.trace(net.fn, shapes[0], *shapes[1])
    assert groups.sizes == jprune.trace(net.fn, variables, *inputs).sizes
    model = jprune.cost_model(net.fn, shapes[0], *shapes[1], groups=groups)
    assert model({})[:2] == jprune.cost(net.fn, variables, *inputs)[:2]


def test_the_slim_net_lowers_for_cuda_and_tpu():
    net = FIRST_CUT[3]
    variables, (x,) = draw(net)
    groups = jprune.trace(net.fn, variables, x)
    masks = random_masks(groups)
    small_fn, small = (
        jprune.slim(net.fn, groups, masks),
        jprune.slim_params(groups, masks, variables),
    )
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    exported = jax.export.export(jax.jit(small_fn), platforms=("cpu", "cuda", "tpu"))(small, shape)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    again = jax.export.deserialize(exported.serialize(vjp_order=1))
    assert np.allclose(again.call(small, x[:1]), small_fn(small, x[:1]), atol=1e-5)
    kept = int(masks["stem"].sum())
    assert f"tensor<3x3x3x{kept}xf32>" in exported.mlir_module()


def normal(seed, *shape):
    return 0.3 * jax.random.normal(jax.random.key(seed), shape)


TOKENS = normal(0, 2, 7, 3)


def residual(v, x):
    """Blocks with a shortcut; then a table is looked up."""
    x = x @ v["embed"]
    for kernel in v["layers"]:
        x = x + jnp.tanh(x @ kernel)
    return (x + v["table"][jnp.argmax(x @ v["out"], -1)]).mean(1) @ v["out"]


def quantiser(v, x):
    """Every book is looked up with what the books before it left."""
    rest, total = x @ v["embed"], 0.0
    for book in v["layers"]:
        codes = book[jnp.argmax(rest @ book.T, -1)]
        rest, total = rest - codes, total + codes
    return jnp.tanh(total).mean(1) @ v["out"]


@pytest.mark.parametrize("net", [residual, quantiser])
def test_a_net_is_read_once_however_many_ways_lead_through_it(net):
    # 30 blocks have 2 ** 30 paths: a walk over paths would not come back.
    v = {"embed": normal(1, 3, 8), "table": normal(2, 4, 8), "out": normal(3, 8, 4)}
    v["layers"] = [normal(10 + layer, 8, 8) for layer in range(30)]
    groups = jprune.trace(net, v, TOKENS)
    masks = {name: np.arange(size) % 3 > 0 for name, size in groups.sizes.items()}
    assert masks
    small = jprune.slim_params(groups, masks, v)
    masked = jprune.apply_masks(v, jprune.expand(groups, masks, roles=("in",)))
    found = quick(jprune.slim(net, groups, masks), small, TOKENS)
    assert relative_error(quick(net, masked, TOKENS), found) < 1e-5


def test_depth_costs_no_levels_of_python():
    def net(v, x):
        x = x @ v["embed"]
        for scale in v["scales"]:
            x = x * scale
        for kernel in v["layers"]:
            x = jnp.tanh(x @ kernel)
        return (x + v["table"][jnp.argmax(x @ v["out"], -1)]).mean(1) @ v["out"]

    v = {"embed": normal(1, 3, 8), "table": normal(2, 4, 8), "out": normal(3, 8, 4)}
    v |= {"layers": [normal(4, 8, 8)] * 300, "scales": [jnp.ones(8)] * 1200}
    groups = jprune.trace(net, v, TOKENS)
    assert len(groups.layers["embed"].affine) == 1200
    masks = {name: np.arange(size) > 0 for name, size in groups.sizes.items()}
    small = jprune.slim_params(groups, masks, v)
    equations = jax.make_jaxpr(jprune.slim(net, groups, masks))(small, TOKENS).eqns
    assert len(equations) > 1500


def test_every_constant_is_computed_once(monkeypatch):
    def polynomials(degree):
        def net(v, x):
            grid = jnp.linspace(-1.0, 1.0, 3)
            before, last = jnp.ones_like(grid), grid
            for _ in range(degree):
                before, last = last, 2 * grid * last - before
            query, key = (x + last) @ v["query"], x @ v["key"]
            weights = jax.nn.softmax(jnp.einsum("nid,njd->nij", query, key))
            return weights @ x @ v["out"]

        return net

    v = {"query": normal(1, 3, 6), "key": normal(2, 3, 6), "out": normal(3, 3, 4)}
    bind, runs = jaxprs.bind, []
    monkeypatch.setattr(jaxprs, "bind", lambda *args: runs.append(args[0].name) or bind(*args))
    assert jprune.trace(polynomials(40), v, TOKENS).sizes == {"query": 6}
    assert runs.count("sub") <= 42
    program, _ = jaxprs.program_of(polynomials(40), v, TOKENS)
    runs.clear()
    assert all(program.known(value) is not None for value in [*program.fixed] * 2)
    assert 40 <= runs.count("sub") <= 42  # one a degree, and those of the grid
