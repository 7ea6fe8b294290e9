"""EigenDamage and the four filter methods: as recipes, and as a run directory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from experiments.claims import e28
from experiments.claims.claim import run as run_claim
from jprune import data, errors, recipes, train
from jprune.base import Budget, Pruned
from jprune.cost import cost
from jprune.curvature import Factors, KroneckerLayer, rotated
from jprune.export import load_stablehlo, run_tflite, stablehlo_text
from jprune.forms.factored import Factored
from jprune.forms.leaf_type import is_leaf_type
from jprune.forms.opened import dense_of, opened, read_back, written_out
from jprune.job.export import export_again
from jprune.job.main import Job, prune
from jprune.job.nets import net_for
from jprune.recipes.eigendamage import eigendamage
from jprune.recipes.kronecker import METHODS
from jprune.runs import loop
from jprune.runs.checkpoint import load_tree
from jprune.runs.directory import open_directory
from jprune.runs.execution import execute
from jprune.runs.progress import Silent
from jprune.stages.eigenbasis import Form, Rotate
from jprune.stages.kronecker import PruneFilters
from jprune.train.net import Net
from tests.toys import drawn, equal, toy_task

KEY = jax.random.key(0)
KERNELS = ("conv1", "conv2", "conv3", "fc")


@pytest.fixture(scope="module")
def task():
    return toy_task()


@pytest.fixture(scope="module")
def start(task):
    return Pruned(drawn(task), None)


@pytest.fixture(scope="module")
def halved(task, start):
    return Rotate(Budget(macs=0.5), batches=2, batch_size=16)(start, task, KEY)


def shapes(pruned):
    """{layer: (columns, rows)} of the factored kernels."""
    kernels = {name: pruned.variables["params"][name]["kernel"] for name in KERNELS}
    return {
        name: (kernel.left.shape[1], kernel.right.shape[0])
        for name, kernel in kernels.items()
        if isinstance(kernel, Factored)
    }


def test_the_budget_is_met_and_the_last_layer_stays(task, start, halved):
    pruned, (record,) = halved
    assert 0.48 < record["metrics"]["macs"] <= 0.5
    assert shapes(pruned)
    assert "fc" not in shapes(pruned)
    kept = Net(task).cost_as_held(pruned, {})
    assert float(kept.macs) / float(Net(task).cost_as_held(start, {}).macs) == pytest.approx(
        record["metrics"]["macs"]
    )


def test_costs_are_those_of_the_three_parts():
    turned = rotated(np.ones((3, 3, 4, 5)), Factors(np.eye(4), np.eye(5)))
    form = Form(KroneckerLayer(4, 9, 5, ("a",), 64, 16), None, turned)
    assert form.now().tolist() == [180, 16 * 180]
    left, core, right = 4 * 2, 9 * 2 * 3, 3 * 5
    assert form.cost(2, 3).tolist() == [left + core + right, 64 * left + 16 * (core + right)]
    assert form.each("params") == (4 + 9 * 5, 9 * 4 + 5)
    assert form.each("macs") == (64 * 4 + 16 * 9 * 5, 16 * (9 * 4 + 5))
    plain = Rotate(Budget(macs=0.5)).scores({"a": form})
    divided = Rotate(Budget(macs=0.5), per_cost=True).scores({"a": form})
    for name, cost_of_one in zip(plain, form.each("macs"), strict=True):
        np.testing.assert_allclose(divided[name] * cost_of_one, plain[name], rtol=1e-12)

    def fn(v, x):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, v["a"], (2, 2), "SAME", dimension_numbers=dims)

    variables, x = {"a": jnp.ones((3, 3, 4, 5))}, jnp.ones((1, 8, 8, 4))
    small = jprune.slim(fn, jprune.trace(fn, variables, x), {})
    held = {"a": form.part(np.arange(4) < 2, np.arange(5) < 3, jnp.float32)}
    found = cost(*opened(small, held), x)
    assert [float(found.params), float(found.macs)] == form.cost(2, 3).tolist()


def test_without_pruning_the_rotated_net_is_the_net(task, start):
    whole = {}
    for name in KERNELS:
        kernel = start.variables["params"][name]["kernel"]
        *_, inputs, outputs = kernel.shape
        rng = np.random.default_rng(0)
        spd = lambda size, rng=rng: (lambda r: r @ r.T)(rng.normal(size=(size, size)))
        turned = rotated(kernel, Factors(spd(inputs), spd(outputs)))
        whole[name] = turned.part(np.ones(inputs, bool), np.ones(outputs, bool), kernel.dtype)
    held = jax.tree.map(lambda leaf: leaf, start.variables)
    for name, kernel in whole.items():
        held["params"][name]["kernel"] = kernel
    x = next(task.data.batches("test", 4))["image"]
    expected = task.fn(start.variables, x)
    np.testing.assert_allclose(Net(task).fn(held, x), expected, atol=1e-5 * np.abs(expected).max())


def test_a_layer_whose_parts_are_larger_stays_as_it_is(task, start):
    pruned, (record,) = Rotate(Budget(density=0.9), batches=2)(start, task, KEY)
    for name in KERNELS:
        kernel = pruned.variables["params"][name]["kernel"]
        dense = start.variables["params"][name]["kernel"]
        assert sum(p.size for p in jax.tree.leaves(kernel)) <= dense.size
        if not isinstance(kernel, Factored):
            assert kernel is dense
    # Of rows and columns, those of layers that stay whole are held.
    assert record["metrics"]["density"] == pytest.approx(held(task, pruned))
    assert record["metrics"]["density"] > 0.9


def held(task, pruned):
    """The fraction of the rows and columns of all layers but the last one that are held."""
    found, whole = 0, 0
    for name in KERNELS[:-1]:
        kernel = pruned.variables["params"][name]["kernel"]
        inputs, outputs = Net(task).shapes["params"][name]["kernel"].shape[-2:]
        core = kernel.core if isinstance(kernel, Factored) else np.zeros((inputs, outputs))
        found, whole = found + sum(core.shape[-2:]), whole + inputs + outputs
    return found / whole


@pytest.mark.parametrize("density", [0.8, 0.5, 0.35])
def test_the_density_on_record_is_what_is_held(task, start, density, caplog):
    pruned, (record,) = Rotate(Budget(density=density), batches=2)(start, task, KEY)
    found = record["metrics"]["density"]
    assert found == pytest.approx(held(task, pruned))
    said = "asked for less" in caplog.text
    assert said == (found > density + 0.02)
    again, (record,) = Rotate(Budget(density=0.3), batches=2, first=False)(pruned, task, KEY)
    assert record["metrics"]["density"] == pytest.approx(held(task, again))


def test_a_budget_out_of_reach_of_the_limit_is_refused_by_the_check(task):
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        Rotate(Budget(macs=0.3), limit=0.1).check(task)
    Rotate(Budget(macs=0.5)).check(task)


def test_a_layer_never_loses_more_than_the_limit(task, start):
    pruned, _ = Rotate(Budget(params=0.45), limit=0.5, last=True, batches=2)(start, task, KEY)
    for name, (columns, rows) in shapes(pruned).items():
        *_, inputs, outputs = start.variables["params"][name]["kernel"].shape
        assert columns >= inputs / 2
        assert rows >= outputs / 2


def test_what_was_rotated_is_rotated_again(task, halved):
    pruned, _ = halved
    again, (record,) = Rotate(Budget(macs=0.3), limit=0.9, batches=2)(pruned, task, KEY)
    assert 0.27 < record["metrics"]["macs"] <= 0.3
    before = shapes(pruned)
    for name, (columns, rows) in shapes(again).items():
        if name in before:
            assert (columns, rows) <= before[name]
    full, (record,) = Rotate(Budget(macs=0.6), batches=2)(pruned, task, KEY)
    assert record["metrics"]["damage"] == pytest.approx(0, abs=1e-9)
    x = next(task.data.batches("test", 4))["image"]
    run = Net(task).fn
    np.testing.assert_allclose(run(full.variables, x), run(pruned.variables, x), atol=1e-4)


def test_fine_tuning_trains_the_parts(task, halved):
    pruned, _ = halved
    stage = recipes.Train(1, 0.05, batch_size=16, name="finetune")
    tuned, _ = stage(pruned, task, KEY)
    fixed = eigendamage(Budget(macs=0.5), None, stage, fix_rotation=True)
    (cores,) = [s for s in fixed if getattr(s, "name", "") == "finetune"]
    still, _ = cores(pruned, task, KEY)
    for name in shapes(pruned):
        old, new, kept = (p.variables["params"][name]["kernel"] for p in (pruned, tuned, still))
        assert all((a != b).any() for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new)))
        assert (old.left == kept.left).all()
        assert (old.right == kept.right).all()
        assert (old.core != kept.core).any()


def test_frozen_groups_are_not_rotated(task, start):
    floors = {"params/conv2/kernel": 12}
    pruned, _ = Rotate(Budget(macs=0.6, floors=floors), batches=2)(start, task, KEY)
    assert "conv2" not in shapes(pruned)
    everything = dict(Net(task).groups.sizes)
    with pytest.raises(errors.ArgumentError, match="finds no layer to rotate in tiny"):
        Rotate(Budget(macs=0.6, floors=everything))(start, task, KEY)


def test_equal_scores_fall_by_their_index(task, start):
    """Zero factors (a net without gradients): nothing costs anything, and counts are exact."""
    flat = task._replace(loss=lambda out, batch: 0 * out[:, 0])
    pruned, (record,) = Rotate(Budget(density=0.5), batches=1)(start, flat, KEY)
    assert record["metrics"]["damage"] == 0
    assert record["metrics"]["density"] == pytest.approx(0.5, abs=0.02)
    assert shapes(pruned)


def test_bad_input_is_refused(task, start):
    with pytest.raises(errors.ArgumentError, match=r"Budget\(density=1.5\) is outside"):
        Budget(density=1.5)
    stage = recipes.Train(1, 0.05, batch_size=16, name="finetune")
    with pytest.raises(errors.ArgumentError, match="limit=0 is outside"):
        eigendamage(Budget(macs=0.5), None, stage, limit=0)
    with pytest.raises(errors.ArgumentError, match="rounds=0"):
        eigendamage(Budget(macs=0.5), None, stage, rounds=0)
    with pytest.raises(errors.ArgumentError, match="batches=0"):
        Rotate(Budget(macs=0.5), batches=0)(start, task, KEY)
    with pytest.raises(errors.ArgumentError, match="does not count latency"):
        Rotate(Budget(latency=0.5), batches=1)(start, task, KEY)
    with pytest.raises(errors.BudgetError, match="cannot be met"):
        Rotate(Budget(macs=0.01), batches=1)(start, task, KEY)
    with pytest.raises(errors.ArgumentError, match="came with masks"):
        Rotate(Budget(macs=0.5))(start._replace(masks={}), task, KEY)
    nan = jax.tree.map(lambda leaf: leaf * jnp.nan, start.variables)
    with pytest.raises(errors.ArgumentError, match="curvature at params/conv1/kernel is NaN"):
        Rotate(Budget(macs=0.5), batches=1)(start._replace(variables=nan), task, KEY)
    with pytest.raises(errors.ArgumentError, match="allocator='topk'"):
        METHODS["c_obd"](Budget(macs=0.5), None, stage, allocator="topk")
    with pytest.raises(errors.ArgumentError, match="repo_variant=True"):
        METHODS["c_obs"](Budget(macs=0.5), None, stage, repo_variant=True)


@pytest.mark.parametrize("form", METHODS)
def test_filters_are_pruned_under_the_budget(task, start, form):
    pruned, (record,) = PruneFilters(Budget(macs=0.5), form, batches=2)(start, task, KEY)
    assert 0.4 < record["metrics"]["macs"] <= 0.5
    weights = Net(task).weight_masks(pruned.masks)
    gone = jax.tree.map(
        lambda mask, leaf: bool((leaf[~mask] == 0).all()), weights, pruned.variables
    )
    assert all(jax.tree.leaves(gone))
    conv2 = start.variables["params"]["conv2"]["kernel"]
    kept = pruned.masks["params/conv2/kernel"]
    moved = pruned.variables["params"]["conv2"]["kernel"] != conv2
    moved = np.asarray(moved)[..., kept][..., pruned.masks["params/conv1/kernel"], :]
    assert moved.any() == form.endswith("obs")


def test_trees_with_leaf_types_are_written_and_read_back(halved):
    variables = halved[0].variables
    plain = written_out(variables)
    assert not any(isinstance(leaf, Factored) for leaf in jax.tree.leaves(plain))
    assert equal(read_back(plain), variables)
    assert all(leaf.ndim <= 4 for leaf in jax.tree.leaves(dense_of(variables)))


class Killed(BaseException):
    """Stands for a SIGKILL."""


class KillAt(Silent):
    """Kills a run when a stage has taken so many steps."""

    def __init__(self, stage, step):
        self.where, self.step, self.stage = stage, step, ""

    def begin(self, stage, number, of, steps, done):
        self.stage = stage

    def advance(self, step, metrics):
        if (self.stage, step) == (self.where, self.step):
            raise Killed


def test_a_run_that_was_killed_goes_on_with_its_factored_kernels(
    task, start, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "EVERY", 2)
    finetune = recipes.Train(2, 0.05, batch_size=16, name="finetune")
    recipe = eigendamage(Budget(macs=0.5), None, finetune, batches=2, recalibrate=1)

    def executed(folder, progress):
        directory = open_directory(folder, {"seed": 0}, {}, {})
        return execute(directory, recipe, task, KEY, lambda: start, progress, save_seconds=0.0)

    whole = executed(tmp_path / "whole", Silent())
    with pytest.raises(Killed):
        executed(tmp_path / "killed", KillAt("finetune", 4))
    assert list((tmp_path / "killed").glob("stages/*finetune/steps/3"))
    resumed = executed(tmp_path / "killed", Silent())
    assert equal(whole.variables, resumed.variables)
    assert isinstance(resumed.variables["params"]["conv2"]["kernel"], Factored)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A job whole: digits, two steps a training."""
    settings = Job(
        "tests.toys:tiny",
        "digits",
        "eigendamage",
        Budget(macs=0.5),
        max_steps=2,
        options={"batches": 2, "recalibrate": 1},
    )
    out = tmp_path_factory.mktemp("eigendamage") / "run"
    return settings, out, prune(settings, out)


def test_a_job_counts_checks_and_plans_the_factored_net(run):
    _, out, result = run
    assert result["method"] == "eigendamage"
    assert result["refs"] == [28]
    assert result["law_max_rel_err"] < 1e-5
    assert 0.45 < result["achieved"]["macs"] <= 0.5
    assert result["pruned"]["macs"] < result["dense"]["macs"]
    assert result["pruned"]["params"] < result["dense"]["params"]
    plan = json.loads((out / "plan.json").read_text())
    assert {entry["form"] for entry in plan["leaf_types"].values()} == {"factored"}
    assert "Layers in another form" in (out / "report.html").read_text()


def test_the_exported_net_is_the_factored_one(run):
    settings, out, _ = run
    variables = load_tree(out / "params")
    factored = [k for k in jax.tree.leaves(variables, is_leaf=is_leaf_type) if is_leaf_type(k)]
    assert factored
    model = (out / "model.stablehlo").read_bytes()
    for kernel in factored:
        window, *ends = "x".join(map(str, kernel.core.shape)), *kernel.left.shape
        assert f"tensor<{window}xf32>" in stablehlo_text(model)
        assert f"tensor<{ends[0]}x{ends[1]}xf32>" in stablehlo_text(model)
    task = train.task(net_for(settings.model, settings.data), data.load(settings.data))
    x = next(task.data.batches("test", 5))["image"]
    expected = np.asarray(Net(task).fn(variables, x))
    found = load_stablehlo(out / "model.stablehlo").call(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        run_tflite((out / "model.tflite").read_bytes(), np.asarray(x)),
        expected,
        rtol=1e-3,
        atol=1e-4,
    )
    # Opened again: as a program, and as equations, at the dense shapes too.
    net = net_for(settings.model, settings.data)
    for how in ({}, {"net": net}, {"net": net, "masked": True}):
        small = jprune.load(out, **how)
        again = small.fn(small.variables, x)
        np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-4)
    before = {name: (out / name).read_bytes() for name in ("model.stablehlo", "model.tflite")}
    export_again(out, model=settings.model)
    assert before == {name: (out / name).read_bytes() for name in before}


def test_the_claim_runs_and_compares_nets_of_one_size():
    found = run_claim(e28.CLAIM, smoke=True)
    assert {row["part"] for row in found} == {"dense", "macs", "size", "layer"}
    size = {row["arm"]: row["params"] for row in found if row["part"] == "size"}
    assert set(size) == {"eigendamage", *METHODS}
    assert all(size["c_obd"] - 0.02 < each <= size["c_obd"] + 1e-9 for each in size.values())
    assert all(0.45 < row["macs"] <= 0.5 for row in found if row["part"] == "macs")
    # Another net's name, so that the findings see it.
    half = lambda row: row["density"] and 0.5
    renamed = [
        {**row, "net": "lenet5", "density": half(row), "finetuned": row["accuracy"]}
        for row in found
    ]
    claims = e28.CLAIM.findings(renamed)
    assert [finding.claim.partition(":")[0] for finding in claims][2:5] == [
        "lenet5, size of C-OBD at 0.5",
        "lenet5, there",
        "lenet5, there",
    ]
