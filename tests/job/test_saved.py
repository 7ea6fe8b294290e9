"""Pruned nets in folders: saved from a script or left by a run, opened in another process."""

import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import cli, errors, export
from jprune.base import Budget
from jprune.job import main as job
from jprune.job import saved
from jprune.runs import files
from tests import nets
from tests.law import relative_error

X = jnp.cos(jnp.arange(2 * 7 * 5 * 3.0)).reshape(2, 7, 5, 3)


def net():
    """A residual net whose branch ends in sigmoid, so that zeros do not remove it."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 3, 6), "b": (3, 3, 6, 4), "c": (3, 3, 4, 6), "out": (6, 2)}
    draw = lambda shape: jnp.asarray(
        rng.normal(size=shape) / np.prod(shape[:-1]) ** 0.5, np.float32
    )
    params = {name: draw(shape) for name, shape in shapes.items()}
    return fn, {"params": params, "stats": {"shift": draw((6,))}, "more": (draw((2,)), [])}


def fn(variables, x):
    params = variables["params"]
    x = jax.nn.relu(nets.conv(x, params["a"]) + variables["stats"]["shift"])
    x = x + jax.nn.sigmoid(nets.conv(jax.nn.relu(nets.conv(x, params["b"])), params["c"]))
    return x.mean((1, 2)) @ params["out"] * variables["more"][0]


def pruned(branch=False):
    fn, variables = net()
    groups = jprune.trace(fn, variables, X)
    masks = {name: np.arange(size) % 3 > 0 for name, size in groups.sizes.items()}
    gone = {groups.branches[0].name: np.array([False])} if branch else {}
    return fn, variables, groups, {**masks, **gone}


def small_output(fn, variables, groups, masks):
    return jprune.slim(fn, groups, masks)(jprune.slim_params(groups, masks, variables), X)


@pytest.mark.parametrize("branch", [False, True])
def test_what_is_saved_is_what_is_opened(tmp_path, branch):
    fn, variables, groups, masks = pruned(branch)
    jprune.save(tmp_path / "net", fn, variables, X, groups=groups, masks=masks)
    expected = small_output(fn, variables, groups, masks)
    small_fn, small = jprune.load(tmp_path / "net")
    cut = jprune.slim_params(groups, masks, variables)
    assert jax.tree.structure(small) == jax.tree.structure(cut)
    assert relative_error(expected, small_fn(small, X)) < 1e-5
    # The same equations, for whoever has the function.
    traced, small = jprune.load(tmp_path / "net", fn=fn)
    assert relative_error(expected, traced(small, X)) < 1e-5
    opened = jprune.load(tmp_path / "net", fn=fn, masked=True)
    assert opened.groups.sizes == groups.sizes
    assert all(np.array_equal(opened.masks[name], mask) for name, mask in masks.items())
    assert relative_error(expected, opened.fn(opened.variables, X)) < 1e-5
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(opened.variables) == shapes(variables)


def test_what_is_opened_can_be_trained(tmp_path):
    fn, variables, groups, masks = pruned()
    jprune.save(tmp_path / "net", fn, variables, X, groups=groups, masks=masks)
    opened, small = jprune.load(tmp_path / "net")
    loss = lambda fn: lambda v: ((fn(v, X) - 1) ** 2).mean()
    traced = jprune.load(tmp_path / "net", fn=fn).fn
    found, expected = jax.grad(loss(opened))(small), jax.grad(loss(traced))(small)
    assert relative_error(expected, found) < 1e-4
    step = optax.apply_updates(small, jax.tree.map(lambda g: -0.1 * g, found))
    assert loss(opened)(step) < loss(opened)(small)


def test_masks_of_weights_are_zeros_in_the_small_net(tmp_path):
    fn, variables, groups, _ = pruned()
    masks = jax.tree.map(lambda leaf: None, variables)
    masks["params"]["c"] = np.arange(3 * 3 * 4 * 6).reshape(3, 3, 4, 6) // 6 % 4 > 0
    sparse = jprune.apply_masks(variables, masks)
    jprune.save(tmp_path / "net", fn, sparse, X, groups=groups, masks=masks)
    small_fn, small = jprune.load(tmp_path / "net")
    assert small["params"]["b"].shape == (3, 3, 6, 3)  # nothing reads the first unit
    assert relative_error(fn(sparse, X), small_fn(small, X)) < 1e-5


def test_another_process_opens_it(tmp_path):
    fn, variables, groups, masks = pruned()
    jprune.save(tmp_path / "net", fn, variables, X, groups=groups, masks=masks)
    np.save(tmp_path / "x.npy", X)
    code = """
        import sys, numpy as np, jax, jprune
        fn, variables = jprune.load("net")
        np.save("out.npy", jax.jit(fn)(variables, np.load("x.npy")))
        assert "tests" not in sys.modules
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(
        words, cwd=tmp_path, check=True, env={"PYTHONPATH": str(jprune.__path__[0])[:-6]}
    )
    expected = small_output(fn, variables, groups, masks)
    assert relative_error(expected, np.load(tmp_path / "out.npy")) < 1e-5


OWN = """
    from jprune import zoo
    from tests.toys import Tiny

    def build(classes, shape, dtype):
        return zoo.from_nnx(lambda rngs: Tiny(classes, shape[2], dtype, rngs), shape)
"""


@pytest.fixture(autouse=True)
def not_imported():
    yield
    sys.modules.pop("own_of_saved", None)


@pytest.fixture(scope="module", params=["lenet300", "own_of_saved:build"])
def run(request, tmp_path_factory):
    """The folder of a finished run, on a net of the zoo and on one of one's own."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "own_of_saved.py").write_text(textwrap.dedent(OWN))
    given = job.Job(request.param, "digits", "l1", Budget(density=0.5), max_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        job.prune(given, folder / "run", measure_seconds=0.0)
        net = job.net_for(given.model, given.data)
    sys.modules.pop("own_of_saved", None)
    return folder / "run", net


def test_a_finished_run_is_opened(run, tmp_path, monkeypatch):
    folder, net = run
    monkeypatch.chdir(tmp_path)
    x = jnp.sin(jnp.arange(3 * 8 * 8.0)).reshape(3, 8, 8, 1)
    expected = export.load_stablehlo(folder / "model.stablehlo").call(x)
    fn, variables = jprune.load(folder)
    assert relative_error(expected, fn(variables, x)) < 1e-5
    for given in ({"net": net}, {"fn": net.fn}):
        opened = jprune.load(folder, masked=True, **given)
        assert relative_error(expected, opened.fn(opened.variables, x)) < 1e-5
    assert "own_of_saved" not in sys.modules


def test_a_run_does_not_import_what_its_files_name(run, tmp_path, monkeypatch):
    folder, net = run
    monkeypatch.chdir(folder.parent)
    if net.name == "lenet300":
        opened = jprune.load(folder, masked=True)
        assert opened.groups.sizes == {"params/fc1/kernel": 300, "params/fc2/kernel": 100}
        return
    with pytest.raises(errors.ArgumentError, match=r"masked=True, fn=fn\)"):
        jprune.load(folder, masked=True)
    assert "own_of_saved" not in sys.modules
    # The person may name it.
    assert jprune.load(folder, masked=True, net="own_of_saved:build").groups.sizes


@pytest.mark.parametrize("suffix", [".stablehlo", ".tflite"])
def test_a_run_is_exported_again_from_another_folder(run, tmp_path, monkeypatch, suffix):
    folder, net = run
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(folder), "--to", f"small{suffix}", "--quiet"]) == 0
    x = jnp.sin(jnp.arange(8 * 8.0)).reshape(1, 8, 8, 1)
    expected = export.load_stablehlo(folder / "model.stablehlo").call(x)
    if suffix == ".tflite":
        found = export.run_tflite((tmp_path / "small.tflite").read_bytes(), x)
    else:
        found = export.load_stablehlo(tmp_path / "small.stablehlo").call(x)
    assert relative_error(expected, found) < 1e-5
    assert "own_of_saved" not in sys.modules
    if net.name != "lenet300":
        monkeypatch.chdir(folder.parent)
        words = ["--to", str(tmp_path / f"again{suffix}"), "--model", "own_of_saved:build"]
        assert cli.main(["export", str(folder), *words, "--quiet"]) == 0


def test_a_program_that_does_not_do_says_what_to_write(run, tmp_path, capsys):
    folder, net = run
    if net.name == "lenet300":
        return
    config = files.read_json(folder / "config.json")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    files.write_json(tmp_path / "config.json", {**config, "dtype": "bfloat16"})
    assert cli.main(["export", str(tmp_path), "--to", str(tmp_path / "a.tflite")]) == 1
    assert "float32 is needed. Write --model own_of_saved:build" in capsys.readouterr().err


def test_another_jax_opens_the_program(tmp_path, run):
    """Equations of another version differ from the plan's: then the program is what counts."""
    folder, net = run
    plan, copy = files.read_json(folder / "plan.json"), tmp_path / "copy"
    shutil.copytree(folder, copy)
    files.write_json(copy / "plan.json", {**plan, "sha256": "0" * 64})
    x = jnp.ones((2, 8, 8, 1))
    fn, variables = jprune.load(copy)
    assert relative_error(jprune.load(folder).fn(variables, x), fn(variables, x)) < 1e-5
    with pytest.raises(errors.StructureError, match="another net"):
        jprune.load(copy, net=net)


def test_what_cannot_be_opened_says_so(tmp_path):
    fn, variables, groups, masks = pruned()
    with pytest.raises(errors.CheckpointError, match=r"plan\.json is missing"):
        jprune.load(tmp_path)
    jprune.save(tmp_path / "net", fn, variables, X, groups=groups, masks=masks)
    with pytest.raises(errors.StructureError, match="another net"):
        jprune.load(tmp_path / "net", fn=lambda v, x: 2 * fn(v, x))
    with pytest.raises(errors.ArgumentError, match="either of them"):
        jprune.load(tmp_path / "net", fn=fn, net="resnet8")
    with pytest.raises(errors.ArgumentError, match=r"write a zoo\.Net"):
        jprune.load(tmp_path / "net", net=fn)
    (tmp_path / "net" / saved.NET).unlink()
    with pytest.raises(errors.CheckpointError, match=r"has no net\.stablehlo.*net=net"):
        jprune.load(tmp_path / "net")


def test_what_cannot_be_saved_says_so(tmp_path):
    fn, variables, groups, masks = pruned()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(errors.CheckpointError, match=r"thesis\.tex"):
        jprune.save(tmp_path, fn, variables, X, groups=groups, masks=masks)
    named = lambda v, x: fn(v._asdict(), x)
    odd = saved.Loaded(variables["params"], variables["params"])
    with pytest.raises(errors.ArgumentError, match=r"a Loaded stands.*from_equinox"):
        jprune.save(tmp_path / "a", named, odd, X, groups=groups, masks=masks)


def test_a_net_of_two_inputs(tmp_path):
    pair = lambda v, x: nets.conv(x["left"], v["a"]).mean((1, 2)) @ v["b"] + x["right"]
    variables = {"a": jnp.ones((3, 3, 3, 5)), "b": jnp.ones((5, 2))}
    x = {"left": X, "right": jnp.ones((2, 2))}
    groups = jprune.trace(pair, variables, x)
    masks = {name: np.arange(size) % 2 == 0 for name, size in groups.sizes.items()}
    with pytest.warns(UserWarning, match=r"model\.tflite was not written: .*2 inputs"):
        jprune.save(tmp_path / "net", pair, variables, x, groups=groups, masks=masks)
    fn, small = jprune.load(tmp_path / "net")
    assert fn(small, x).shape == (2, 2)


def test_a_damaged_folder_is_not_parsed(tmp_path):
    fn, variables, groups, masks = pruned()
    saved.save(tmp_path / "net", fn, variables, X, groups=groups, masks=masks)
    assert cli.main(["check", str(tmp_path / "net"), "--quiet"]) == 0
    (array,) = (tmp_path / "net" / "params" / "d").iterdir()
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    with pytest.raises(errors.DamagedError, match=f"{array.name} is missing or damaged"):
        saved.load(tmp_path / "net", fn=fn)
    assert cli.main(["check", str(tmp_path / "net"), "--quiet"]) == 1
