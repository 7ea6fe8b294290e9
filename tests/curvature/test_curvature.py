"""Curvature against jax.hessian in float64, checks.md [1] P2, P3 and [2] P3, and its errors."""

import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jprune
from jprune import curvature, errors
from jprune.train.task import cross_entropy as softmax_loss
from tests.nets import FIRST_CUT, Net, conv, draw, norm

pytestmark = pytest.mark.usefixtures("float64")
KEY = jax.random.key(0)
ESTIMATORS = {
    "exact": curvature.exact(),
    "hutchinson": curvature.hutchinson(8),
    "gauss_newton": curvature.gauss_newton(),
    "sampled gauss_newton": curvature.gauss_newton(8),
    "fisher": curvature.fisher(),
    "sampled fisher": curvature.fisher(8),
    "true fisher": curvature.fisher(labels="model"),
    "sampled true fisher": curvature.fisher(8, labels="model"),
    "recursion": curvature.recursion(),
}


def mlp(v, x):
    return jnp.tanh(x @ v["a"] + v["shift"]) @ v["b"]


def squared(out, batch):
    return ((out - batch["label"]) ** 2).sum(axis=1)


def cross_entropy(out, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(out), batch["label"][:, None], axis=1)[:, 0]


@functools.cache
def case(classes=False):
    normal = lambda *shape: jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape))
    variables = {"a": normal(3, 4), "b": 0.5 + normal(4, 2), "shift": normal(4)}
    label = jnp.arange(10) % 2 if classes else normal(10, 2)
    return variables, {"image": normal(10, 3), "label": label}


@functools.cache
def hessian(classes=False):
    variables, batch = case(classes)
    flat, back = ravel_pytree(variables)
    loss = cross_entropy if classes else squared
    return jax.hessian(lambda w: curvature.mean_loss(mlp, loss, back(w), batch))(flat)


def diagonal(estimator, fn=mlp, loss=squared, variables=None, batches=None):
    known, batch = case(loss is cross_entropy)
    variables, batches = variables or known, batches or [batch]
    return jprune.run_criterion(
        curvature.mean_diagonal(fn, loss, estimator, KEY), variables, batches
    )


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


@pytest.mark.parametrize("classes", [False, True])
def test_products_are_those_of_the_hessian(classes):
    variables, batch = case(classes)
    direction = jax.tree.map(lambda leaf: jnp.cos(leaf), variables)
    loss = cross_entropy if classes else squared
    found = curvature.hessian_product(mlp, loss, variables, batch, direction)
    np.testing.assert_allclose(flat(found), hessian(classes) @ flat(direction), rtol=1e-10)


@pytest.mark.parametrize("name", ["exact", "recursion"])
def test_the_diagonal_of_two_layers_is_exact(name):
    """Checks [1] P2; with the squared error OBD's recursion drops nothing in two layers."""
    found = flat(diagonal(ESTIMATORS[name]))
    np.testing.assert_allclose(found, np.diagonal(hessian()), rtol=1e-10, atol=1e-12)


def test_all_probes_of_hutchinson_give_the_diagonal():
    """Checks [1] P2, with every vector of signs in the place of draws."""
    known = case()[0]
    variables = {"a": known["a"][:2, :2], "b": known["b"][:2], "shift": jnp.ones(2)}
    batch = {"image": case()[1]["image"][:, :2], "label": case()[1]["label"]}
    start, back = ravel_pytree(variables)
    product = lambda v: flat(curvature.hessian_product(mlp, squared, variables, batch, back(v)))
    vectors = 1.0 - 2 * ((np.arange(2**start.size)[:, None] >> np.arange(start.size)) & 1)
    columns = np.stack([product(jnp.eye(start.size)[i]) for i in range(start.size)], axis=1)
    mean = (vectors * (vectors @ columns.T)).mean(axis=0)
    found = flat(diagonal(curvature.exact(), variables=variables, batches=[batch]))
    np.testing.assert_allclose(mean, found, atol=1e-8)


def test_the_error_of_hutchinson_falls_with_the_square_root_of_its_probes():
    """Checks [1] P2: RMSE(64) / RMSE(1024) in [2.5, 6] over 20 seeds."""
    variables, batch = case()
    exact = np.diagonal(hessian())

    def error(probes):
        def one(key):
            parts = curvature.hutchinson().estimate(mlp, squared, variables, batch, key)
            return ravel_pytree(parts)[0]

        drawn = jax.jit(jax.vmap(one))(jax.random.split(KEY, 20 * probes))
        means = drawn.reshape(20, probes, -1).mean(axis=1)
        return np.sqrt(np.mean((means - exact) ** 2))

    assert 2.5 <= error(64) / error(1024) <= 6


@pytest.mark.parametrize(("simple", "expected"), [(False, 2.26083715), (True, 4.94800029)])
def test_the_recursion_of_a_chain_of_two_weights(simple, expected):
    """Checks [1] P3."""
    fn = lambda v, x: v["b"] * jnp.tanh(v["a"] * x)
    loss = lambda out, batch: (batch["label"] - out) ** 2
    variables = {"a": jnp.array(0.5), "b": jnp.array(2.0)}
    batches = [{"image": jnp.ones(1), "label": jnp.zeros(1)}]
    found = diagonal(curvature.recursion(simple), fn, loss, variables, batches)
    np.testing.assert_allclose([found["a"], found["b"]], [expected, 0.42710453], rtol=1e-7)


def test_the_recursion_takes_norms_and_nonlinearities_of_several_equations():
    """x * sigmoid(x) reads x twice, and where(x > 0, x, x / 10) reads it three times."""
    rng = np.random.default_rng(3)
    for function in (jax.nn.silu, jax.nn.leaky_relu, jax.nn.gelu):
        fn = lambda v, x, f=function: f(norm(x @ v["a"], v["norm"])) @ v["b"]
        positive = {"var": jnp.asarray(rng.uniform(0.5, 1, 4))}
        normal = {name: jnp.asarray(rng.normal(size=4)) for name in ("mean", "scale", "shift")}
        params = {"a": case()[0]["a"], "b": case()[0]["b"], "norm": {**normal, **positive}}
        batch = case()[1]
        found = diagonal(curvature.recursion(), fn, squared, params, [batch])
        exact = diagonal(curvature.exact(), fn, squared, params, [batch])
        np.testing.assert_allclose(flat(found), flat(exact), rtol=1e-9, atol=1e-12)


def test_the_recursion_sums_over_the_connections_of_a_shared_weight():
    """As if every position had a kernel of its own; the true second derivative has cross terms."""
    rng = np.random.default_rng(4)
    draws = {"conv": (3, 2, 2, 3), "bias": (3,), "dense": (3, 2)}
    variables = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in draws.items()}
    batch = {"image": jnp.asarray(rng.normal(size=(4, 5, 4, 2))), "label": case()[1]["label"][:4]}

    def after(y, v):
        y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        y = jnp.tanh(y + v["bias"])
        return y.mean((1, 2)) @ v["dense"]

    fn = lambda v, x: after(conv(x, v["conv"]), v)

    def unshared(v, x):
        patches = jax.lax.conv_general_dilated_patches(
            x, (3, 2), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )  # [batch, h, w, in * h * w]
        return after(jnp.einsum("nhwk,hwko->nhwo", patches, v["conv"]), v)

    kernel = jnp.moveaxis(variables["conv"], 2, 0).reshape(-1, 3)
    wide = {**variables, "conv": jnp.broadcast_to(kernel, (5, 4, *kernel.shape))}
    expected = diagonal(curvature.exact(), unshared, squared, wide, [batch])
    found = diagonal(curvature.recursion(), fn, squared, variables, [batch])
    summed = expected["conv"].sum((0, 1)).reshape(2, 3, 2, 3)
    np.testing.assert_allclose(found["conv"], jnp.moveaxis(summed, 0, 2), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["dense"], expected["dense"], rtol=1e-9)
    exact = diagonal(curvature.exact(), fn, squared, variables, [batch])
    assert not np.allclose(found["conv"], exact["conv"], rtol=0.05)


def test_gauss_newton_is_the_square_of_the_jacobian_in_the_metric_of_the_loss():
    variables, batch = case(classes=True)
    start, back = ravel_pytree(variables)
    jacobian = jax.jacobian(lambda w: mlp(back(w), batch["image"]))(start)
    p = jax.nn.softmax(mlp(variables, batch["image"]))
    of_loss = p[:, :, None] * jnp.eye(2) - p[:, :, None] * p[:, None, :]
    matrix = jnp.einsum("nck,ncd,ndl->kl", jacobian, of_loss, jacobian) / 10
    found = flat(diagonal(curvature.gauss_newton(), loss=cross_entropy))
    np.testing.assert_allclose(found, jnp.diagonal(matrix), rtol=1e-10, atol=1e-14)
    rows = curvature.gradient_rows(mlp, cross_entropy, variables, batch)
    assert rows.shape == (20, start.size)
    np.testing.assert_allclose(rows.T @ rows, matrix, rtol=1e-9, atol=1e-14)


def test_fisher_is_the_mean_of_squared_gradients():
    variables, batch = case(classes=True)
    one = lambda x, y: jax.grad(lambda v: cross_entropy(mlp(v, x[None]), {"label": y[None]})[0])(
        variables
    )
    gradients = np.stack([flat(one(x, y)) for x, y in zip(batch["image"], batch["label"])])
    found = flat(diagonal(curvature.fisher(), loss=cross_entropy))
    np.testing.assert_allclose(found, (gradients**2).mean(axis=0), rtol=1e-10, atol=1e-14)
    rows = curvature.gradient_rows(mlp, cross_entropy, variables, batch, "fisher")
    np.testing.assert_allclose(rows.T @ rows, gradients.T @ gradients / 10, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("drawn", "mean"),
    [
        (curvature.gauss_newton(3000), curvature.gauss_newton()),
        (curvature.fisher(3000), curvature.fisher()),
    ],
)
def test_sampled_diagonals_are_right_on_average(drawn, mean):
    found = [flat(diagonal(how, loss=cross_entropy)) for how in (drawn, mean)]
    np.testing.assert_allclose(*found, rtol=0.2)  # the error of a square over 3000 draws is 3 %


def test_drawn_labels_and_rows_are_right_on_average():
    variables, batch = case(classes=True)
    expected = flat(diagonal(curvature.gauss_newton(), loss=cross_entropy))
    repeated = {
        name: jnp.tile(array, (200, *[1] * (array.ndim - 1))) for name, array in batch.items()
    }
    drawn = curvature.fisher(labels="model")
    found = flat(diagonal(drawn, loss=cross_entropy, batches=[repeated]))
    np.testing.assert_allclose(found, expected, rtol=0.2)
    rows = curvature.gradient_rows(mlp, cross_entropy, variables, repeated, samples=1, key=KEY)
    assert rows.shape == (2000, expected.size)
    np.testing.assert_allclose((rows**2).sum(axis=0), expected, rtol=0.2)


@pytest.mark.parametrize("name", ["exact", "gauss_newton", "fisher", "recursion"])
def test_batches_count_by_their_examples_and_padding_counts_nothing(name):
    variables, batch = case()
    whole = flat(diagonal(ESTIMATORS[name]))
    cut = lambda first, last: {key: array[first:last] for key, array in batch.items()}
    padded = {key: jnp.concatenate([array[7:], array[:2]]) for key, array in batch.items()}
    parts = [cut(0, 7), {**padded, "weight": jnp.array([1.0, 1, 1, 0, 0])}]
    np.testing.assert_allclose(flat(diagonal(ESTIMATORS[name], batches=parts)), whole, rtol=1e-10)
    del variables


def small(v, x):
    """A convolution, its norm, and a dense layer."""
    x = jax.nn.relu(norm(conv(x, v["params"]["conv"]), {**v["params"]["norm"], **v["stats"]}))
    return x.mean((1, 2)) @ v["params"]["dense"]


@functools.cache
def drawn_small():
    shapes = {
        "params": {"conv": (3, 2, 1, 4), "norm": {"scale": (4,), "shift": (4,)}, "dense": (4, 3)},
        "stats": {"mean": (4,), "var": (4,)},
    }
    variables, (x,) = draw(Net("small", small, shapes, ((2, 5, 6, 1),), {}))
    return variables, {"image": x, "label": jnp.arange(2)}


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_statistics_have_no_curvature_and_convolutions_have(name):
    """In float32 as well, beside labels and weights of another type."""
    variables, batch = drawn_small()
    found = diagonal(ESTIMATORS[name], small, cross_entropy, variables, [batch])
    assert found["stats"] == {"mean": None, "var": None}
    jax.tree.map(lambda leaf, like: same_type(leaf, like), found["params"], variables["params"])
    if "gauss_newton" in name or "fisher" in name:
        assert all((leaf >= 0).all() for leaf in jax.tree.leaves(found))
        assert found["params"]["conv"].any()


def same_type(leaf, like):
    assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)


def contractions(jaxpr):
    """Contractions that a jaxpr runs, those of a loop as often as it turns."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name in ("dot_general", "conv_general_dilated")
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        turns = equation.params.get("length", 1)
        total += turns * sum(contractions(getattr(p, "jaxpr", p)) for p in inner)
    return total


def test_sixteen_probes_cost_at_most_sixty_four_gradients():
    variables, batch = drawn_small()
    criterion = curvature.mean_diagonal(small, cross_entropy, curvature.hutchinson(16), KEY)
    of = lambda v: criterion.update(criterion.init(variables), v, batch).total
    slope = jax.grad(lambda v: curvature.mean_loss(small, cross_entropy, v, batch))
    ours, gradient = (contractions(jax.make_jaxpr(f)(variables).jaxpr) for f in (of, slope))
    assert gradient >= 5  # two layers: forwards, to the weights, and to one input
    assert 16 * gradient < ours <= 16 * 4 * gradient


def loops(jaxpr):
    """Names of the loops in a jaxpr."""
    found = {e.primitive.name for e in jaxpr.eqns} & {"scan", "while"}
    inner = [p for e in jaxpr.eqns for p in e.params.values() if hasattr(p, "jaxpr")]
    return found.union(*(loops(p.jaxpr) for p in inner))


@pytest.mark.parametrize("make", [curvature.hutchinson, curvature.gauss_newton, curvature.fisher])
def test_probes_run_in_no_loop_of_xla(make):
    """Whose convolutions are ten times slower on a CPU."""
    variables, batch = drawn_small()
    criterion = curvature.mean_diagonal(small, cross_entropy, make(3), KEY)
    of = lambda v: criterion.update(criterion.init(variables), v, batch).total
    assert not loops(jax.make_jaxpr(of)(variables).jaxpr)


def test_rows_at_once_are_the_recursion_of_one_row_after_the_other():
    """Checks [2] P3."""
    rows = np.random.default_rng(5).normal(size=(20, 4)) / np.sqrt(20)
    expected = np.linalg.inv(1e-4 * np.eye(4) + rows.T @ rows)
    found = curvature.with_rows(curvature.identity(4, 1e-4), rows)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    inverse = np.eye(4) / 1e-4
    for row in rows:
        inverse = curvature.with_rows(inverse, row[None])
    np.testing.assert_allclose(inverse, expected, rtol=1e-8)


def test_the_inverse_of_many_weights_is_made_in_place():
    """8 n^2 bytes are the inverse itself; products take panels of it."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(70, 700)) / 30
    start = curvature.identity(700, 0.5)
    tracemalloc.start()
    inverse = curvature.with_rows(start, rows)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert inverse is start
    assert most < 4 * 700**2
    np.testing.assert_allclose(
        inverse, np.linalg.inv(0.5 * np.eye(700) + rows.T @ rows), rtol=0, atol=1e-12
    )
    np.testing.assert_array_equal(inverse, inverse.T)
    order = curvature.deletions(rng.normal(size=700), inverse)
    gone = [next(order).place for _ in range(130)]  # more than are applied together
    assert len({*gone}) == 130
    np.testing.assert_array_equal(inverse, inverse.T)


def test_softmax_needs_no_decomposition():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 7)))
    factors = curvature.softmax_factors(logits, {})
    batch = {"label": jnp.arange(3)}
    for row, factor in enumerate(factors):
        of = lambda z, row=row: softmax_loss(z[None], {"label": jnp.array([row])})[0]
        hessian = jax.hessian(of)(logits[row])
        np.testing.assert_allclose(factor @ factor.T, hessian, atol=1e-6)
    plain = lambda out, batch: softmax_loss(out, batch)
    variables = {"w": jnp.asarray(rng.normal(size=(5, 7)))}
    batch = {"image": jnp.asarray(rng.normal(size=(3, 5))), "label": jnp.arange(3)}
    fn = lambda v, x: x @ v["w"]
    diagonals = [
        jprune.run_criterion(
            curvature.mean_diagonal(fn, loss, curvature.gauss_newton()), variables, [batch]
        )["w"]
        for loss in (plain, softmax_loss)
    ]
    np.testing.assert_allclose(*diagonals, rtol=1e-4)
    step = lambda loss: str(
        jax.make_jaxpr(lambda v: curvature.gauss_newton(1).estimate(fn, loss, v, batch, KEY))(
            variables
        )
    )
    assert "eigh[" in step(plain)
    assert "eigh[" not in step(softmax_loss)


def test_the_recursion_refuses_functions_of_its_own_derivative_that_mix_channels():
    matrix = np.array([[1.0, 2], [3, 4]], np.float32)

    @jax.custom_jvp
    def mix(z):
        return z @ matrix

    mix.defjvp(lambda primals, tangents: (mix(*primals), tangents[0] @ matrix))
    batch = {"image": jnp.ones((4, 3)), "label": jnp.zeros((4, 2))}
    loss = lambda out, batch: 0.5 * ((out - batch["label"]) ** 2).sum(1)
    variables = {"w": jnp.ones((3, 2))}
    estimate = lambda fn: curvature.recursion().estimate(fn, loss, variables, batch, None)
    with pytest.raises(errors.TraceError, match="no rule for custom_jvp_call"):
        estimate(lambda v, x: mix(x @ v["w"]))
    # Elementwise ones of any depth are functions.
    assert estimate(lambda v, x: jax.nn.softplus(jax.nn.relu(x @ v["w"])))[0].shape == (3, 2)


def test_what_a_residual_net_needs_is_said():
    residual = FIRST_CUT[2]
    variables, (x,) = draw(residual)
    batch = {"image": x, "label": jnp.arange(len(x)) % 4}
    with pytest.raises(errors.TraceError, match=r"two activations meet: add .*Write gauss_newton"):
        diagonal(curvature.recursion(), residual.fn, cross_entropy, variables, [batch])


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda v, x: (x @ v["a"]) @ (v["a"].T @ v["a"]) @ v["b"], "combined before they meet"),
        (lambda v, x: jnp.cumsum(x @ v["a"], axis=1) @ v["b"], "no rule for cumsum"),
        (lambda v, x: jnp.exp(x @ v["a"])[:, :2] * (x @ v["a"])[:, :2], "read elsewhere|meet"),
    ],
)
def test_what_is_no_chain_is_refused(fn, says):
    with pytest.raises(errors.TraceError, match=says):
        diagonal(curvature.recursion(), fn)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: curvature.hutchinson(0), "write 1 or more"),
        (lambda: curvature.gauss_newton(0), "write 1 or more"),
        (lambda: curvature.fisher(-1), "write 1 or more"),
        (
            lambda: curvature.mean_diagonal(mlp, squared, curvature.hutchinson()),
            r"hutchinson draws; pass key=",
        ),
        (lambda: curvature.fisher(labels="net"), "write 'data' or 'model'"),
        (lambda: curvature.identity(3, 0.0), "must be above 0"),
        (lambda: curvature.gradient_rows(mlp, squared, *case(), how="hessian"), "gauss_newton"),
        (
            lambda: curvature.gradient_rows(mlp, squared, *case(), samples=2),
            "the key of their draws",
        ),
        (lambda: curvature.gradient_rows(mlp, squared, *case(), "fisher", 1), "samples=None"),
        (lambda: diagonal(ESTIMATORS["true fisher"]), "draws batch\\['label'\\] from logits"),
        (lambda: next(curvature.deletions(np.ones(2, np.float32), np.eye(2))), "must be float64"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(errors.ArgumentError, match=says):
        make()
