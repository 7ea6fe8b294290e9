"""`--execute sparse`: what it measures and writes, and what it refuses before anything runs."""

import json

import jax
import numpy as np
import pytest

from jprune import errors, kernels
from jprune.base import Budget, Pruned
from jprune.cost import Machine
from jprune.job.finish import ExecuteSparse
from jprune.job.main import Job, config_of, prune
from jprune.masks import apply_masks
from jprune.stages.train import Train
from jprune.train.net import Net
from tests.toys import drawn, toy_task

pytest.importorskip("numba")


def pruned_net():
    """The toy net with a tenth of the weights of its kernels."""
    task, rng = toy_task(), np.random.default_rng(0)
    variables = drawn(task)
    masks = jax.tree.map(
        lambda is_kernel, leaf: rng.random(leaf.shape) < 0.1 if is_kernel else None,
        Net(task).is_kernel,
        variables,
    )
    return task, Pruned(apply_masks(variables, masks), masks)


def test_it_measures_the_sparse_net_and_writes_the_verdicts(tmp_path, monkeypatch):
    machine = Machine(1e11, 1e12, 1.5)
    monkeypatch.setattr("jprune.execute.choice.this_machine", lambda: machine)
    task, pruned = pruned_net()
    same, (line,) = ExecuteSparse(task.fn, tmp_path, 0.0)(pruned, task, jax.random.key(0))
    assert same is pruned
    metrics = line["metrics"]
    assert metrics["max_rel_err"] < 1e-5
    assert metrics["kernels"] == 4
    assert all(metrics[name]["median"] > 0 for name in ("dense", "zeros", "sparse"))
    said = json.loads((tmp_path / "sparse.json").read_text())
    assert {one["form"] for one in said.values()} == {"csr"}


def test_methods_of_units_and_a_missing_numba_are_refused(tmp_path, monkeypatch):
    (task, pruned), budget = pruned_net(), Budget(density=0.1)
    with pytest.raises(errors.ArgumentError, match="--method gmp"):
        ExecuteSparse(task.fn, tmp_path)(pruned._replace(masks=None), task, jax.random.key(0))
    job = Job("tests.toys:tiny", "digits", "gmp", budget, execute="sprase")
    with pytest.raises(errors.ArgumentError, match="dense, sparse"):
        prune(job, tmp_path / "run", task=task)
    monkeypatch.setattr(kernels.call, "available", lambda: False)
    job = Job("tests.toys:tiny", "digits", "gmp", budget, execute="sparse")
    with pytest.raises(errors.MissingExtraError, match=r"jprune\[sparse\]"):
        prune(job, tmp_path / "run", task=task)
    assert not (tmp_path / "run").exists()


def test_the_settings_of_old_runs_do_not_change():
    job = Job("tests.toys:tiny", "digits", "gmp", Budget(density=0.1))
    assert "execute" not in config_of(job, None, Train(1, 0.1))
