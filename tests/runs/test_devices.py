"""Many devices: four on one host, and two processes, give the numbers of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import Budget, errors, recipes, train
from jprune.base import Pruned
from jprune.data.batches import Split, feed
from jprune.data.table import Spec
from jprune.recipes import Train
from jprune.runs import devices, execute, files
from jprune.runs import directory as run
from jprune.runs.progress import Silent
from jprune.train import step as training
from jprune.train.net import Net
from jprune.train.optimizers import Sgd
from tests.toys import CLASSES, SHAPE, drawn, tiny

ROOT = Path(__file__).parents[2]


def images():
    """Real batches of made-up images, augmented."""
    rng = np.random.default_rng(0)
    split = lambda size: Split(
        rng.integers(0, 256, (size, *SHAPE)).astype(np.uint8),
        (np.arange(size) % CLASSES).astype(np.int32),
    )
    spec = Spec("toy", SHAPE, CLASSES, {}, shift=1)
    return feed(spec, {"train": split(64), "validation": split(21), "test": split(13)})


def task_of():
    return train.task(tiny(CLASSES, SHAPE, jnp.float32), images())


FINETUNE = Train(2, 0.05, 16, name="finetune")


def work(path) -> Pruned:
    """Pruning that looks at data, and training of a net with norms."""
    options = {"schedule": "one_shot"}
    whole = recipes.find("taylor")(Budget(macs=0.6), None, FINETUNE, **options)
    recipe = [stage for stage in whole if stage.name in ("prune", "finetune")]
    task = task_of()
    directory = run.open_directory(path, {"seed": 0}, {"commit": None}, {})
    start = lambda: Pruned(drawn(task), None)
    key = jax.random.key(0)
    return execute(directory, recipe, task, key, start, Silent(), save_seconds=0.0)


def facts(pruned):
    """What is compared: the weights, the outputs of the slim net, the measured loss."""
    task = task_of()
    fn, small = Net(task).slim(pruned)
    (batch,) = task.data.batches("test", 13)
    found = {"loss": train.evaluate(task, pruned.variables, "validation")["loss"]}
    found["slim"] = np.asarray(fn(small, batch["image"])).tolist()
    found["masks"] = jax.tree.map(lambda mask: np.asarray(mask).tolist(), pruned.masks)
    found["sum"] = [float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(pruned.variables)]
    return found


def on_four_devices(path):
    """In a process of its own with four devices."""
    pruned, task = work(path), task_of()
    spread = devices.spread(task)
    learner = FINETUNE.learner(pruned, spread, jax.random.key(0))
    state = devices.everywhere(learner.init())
    batch = devices.place(next(learner.batches(0)))
    state, _ = learner.step(state, batch)
    settings = training.step_settings(Net(task), Sgd(0.05, "one_cycle", 8, 0.9, 5e-4))
    step = training.compiled_step(Net(task), settings, True)
    odd = next(spread.data.batches("validation", 6))
    with pytest.raises(errors.ArgumentError) as caught:
        devices.place(odd)
    platforms = ("cuda", "tpu")
    text = step.trace(state, batch, jax.random.key(0)).lower(lowering_platforms=platforms).as_text()
    return facts(pruned) | {
        "devices": jax.device_count(),
        "batch": [shard.data.shape[0] for shard in batch["image"].addressable_shards],
        "odd": [shard.data.shape[0] for shard in odd["image"].addressable_shards],
        "odd rows": np.asarray(odd["image"]).tolist(),
        "replicated": all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state)),
        "compiled": step._cache_size(),
        "error": str(caught.value),
        "lowered": "mhlo.num_partitions = 4" in text,
    }


def in_two_processes(path):
    """In one of two processes."""

    def refused():
        raise errors.CheckpointError("the disk is full")

    found = facts(work(path))
    with pytest.raises(errors.CheckpointError) as caught:
        devices.from_first(refused)
    called = []
    shared = devices.from_first(lambda: called.append(1) or "of the first")
    mine = next(devices.spread(task_of()).data.batches("train", 16, seed=3))["image"]
    return found | {
        "process": jax.process_index(),
        "devices": [jax.device_count(), jax.local_device_count()],
        "error": str(caught.value),
        "shared": [shared, len(called)],
        "rows": [np.asarray(shard.data).tolist() for shard in mine.addressable_shards],
    }


def begin(function, path, **variables):
    """Starts a function of this file in a process of its own; it prints what it found."""
    code = (
        "import sys, json\n"
        "from jprune.runs.devices import connect\n"
        "connect()\n"
        f"from tests.runs.test_devices import {function.__name__} as function\n"
        "print('FOUND', json.dumps(function(sys.argv[1])), flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def found_by(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.rpartition("FOUND")[2])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return facts(work(tmp_path_factory.mktemp("one") / "run"))


@pytest.fixture(scope="module")
def others(tmp_path_factory, reference):
    """What four devices found, and each of two processes, which run at the same time."""
    path = tmp_path_factory.mktemp("many")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    four = (
        "--xla_force_host_platform_device_count=4"
        " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # on a busy machine
    )
    started = [begin(on_four_devices, path / "four", XLA_FLAGS=four)]
    for index in (0, 1):
        variables = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
        variables["JAX_COORDINATOR_ADDRESS"] = address
        started.append(begin(in_two_processes, path / f"process{index}", **variables))
    return path, [found_by(process) for process in started]


def close(found, expected):
    assert found["masks"] == expected["masks"]
    for name in ("loss", "slim", "sum"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_one_device_changes_nothing():
    task, tree = task_of(), {"w": jnp.ones(2)}
    assert devices.spread(task) is task
    assert devices.everywhere(tree) is tree
    assert devices.gathered(tree) is tree
    assert devices.place(tree) is tree


def test_four_devices_give_the_numbers_of_one(others, reference):
    _, (found, _, _) = others
    assert found["devices"] == 4
    close(found, reference)


def test_batches_are_split_and_the_state_is_on_every_device(others):
    _, (found, _, _) = others
    assert found["batch"] == [4, 4, 4, 4]
    assert found["replicated"]
    assert found["compiled"] == 1
    assert found["lowered"]


def test_a_batch_that_devices_do_not_divide(others):
    _, (found, _, _) = others
    assert found["odd"] == [6, 6, 6, 6]  # measured whole on each
    expected = next(images().batches("validation", 6))["image"]
    np.testing.assert_array_equal(np.asarray(found["odd rows"], np.float32), expected)
    message = "training batch of 6 examples cannot be split over 4 devices. Write --batch-size 4 or"
    assert message in found["error"]


def test_two_processes_give_the_numbers_of_one_device(others, reference):
    _, (_, *processes) = others
    assert [found["process"] for found in processes] == [0, 1]
    for found in processes:
        assert found["devices"] == [2, 1]
        close(found, reference)


def test_the_first_process_alone_touches_files(others, reference):
    path, _ = others
    assert not (path / "process1").exists()
    assert sorted(f.name for f in (path / "process0").iterdir()) == [
        "config.json",
        "records.jsonl",
        "stages",
    ]
    close(facts(work(path / "process0")), reference)  # one process reads what two have left
    losses = [
        [record["metrics"].get("loss", 0.0) for record in files.read_lines(file).records]
        for file in (path / "process0" / "records.jsonl", path / "four" / "records.jsonl")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(losses[0]) == 1 + 2  # of pruning, and of two epochs


def test_an_error_of_the_first_process_is_raised_by_all(others):
    _, (_, first, second) = others
    assert first["error"] == second["error"] == "the disk is full"
    assert first["shared"] == ["of the first", 1]
    assert second["shared"] == ["of the first", 0]


def test_every_process_makes_its_own_rows_of_the_same_batch(others):
    _, (_, first, second) = others
    whole = next(images().batches("train", 16, seed=3))["image"]
    rows = np.concatenate([np.asarray(first["rows"][0]), np.asarray(second["rows"][0])])
    np.testing.assert_array_equal(rows.astype(np.float32), whole)


@pytest.mark.parametrize(("split", "seed"), [("train", 3), ("test", None)])
def test_shares_make_up_the_batches(split, seed):
    data = images()
    whole = list(data.batches(split, 8, seed=seed, epoch=1, start=1))
    shares = [
        list(data.batches(split, 8, seed=seed, epoch=1, start=1, rows=slice(begin, begin + 2)))
        for begin in (0, 2, 4, 6)
    ]
    for number, batch in enumerate(whole):
        for name, value in batch.items():
            parts = [share[number][name] for share in shares]
            np.testing.assert_array_equal(np.concatenate(parts), value)


@pytest.mark.parametrize(
    ("count", "index"), [("two", "0"), ("2", "5")], ids=["no number", "no such process"]
)
def test_variables_that_do_not_fit_are_explained(monkeypatch, count, index):
    for name, value in zip(devices.VARIABLES, ("127.0.0.1:1", count, index)):
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.ArgumentError, match=r"is '127.0.0.1:1', and .*HOST:PORT of process"):
        devices.connect()


def test_without_variables_this_process_is_the_first(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    assert devices.connect()
    assert jprune.__version__
