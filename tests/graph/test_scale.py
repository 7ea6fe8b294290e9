"""Big nets: shapes are enough, shards stay shards, and slim nets lower for devices not here."""

import json
import subprocess
import sys

import jax
import numpy as np

import jprune
from tests.graph.test_law import random_masks
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
