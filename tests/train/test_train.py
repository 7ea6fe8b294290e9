"""Training: files, the task, the step, checkpoints, the loop, and recipes in memory."""

import dataclasses
import gc
import io
import itertools
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import jprune
from jprune import Budget, errors, recipes, train, zoo
from jprune.base import Learner, Pruned
from jprune.recipes import Evaluate, Prune, Recalibrate, Repeat, Rewind, Save, Train, three_step
from jprune.runs import checkpoint, files, loop
from jprune.runs.progress import Bars, Lines, Silent
from jprune.stages.rounds import kept_after
from jprune.train import step as training
from jprune.train.net import Net
from jprune.train.optimizers import Sgd
from tests.toys import drawn, equal, toy_data, toy_task

KEY = jax.random.key(0)


# Files.


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    files.atomic_write(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(errors.CheckpointError, match=r"No space left on device.*--out DIR"):
        files.atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.CheckpointError, match=r"file/below cannot be written \(Not a dir"):
        files.make_folder(tmp_path / "file" / "below")
    with pytest.raises(errors.CheckpointError, match="Not a directory"):
        files.atomic_write(tmp_path / "file" / "a", b"")


def test_a_full_disk_while_appending_is_an_error(tmp_path, monkeypatch):
    # Half of a line is written.
    monkeypatch.setattr(files.os, "write", lambda descriptor, line: len(line) // 2)
    with pytest.raises(errors.CheckpointError, match="no space left"):
        files.append_line(tmp_path / "records.jsonl", {"a": 1})


def test_lines_survive_a_torn_end(tmp_path):
    path = tmp_path / "records.jsonl"
    assert files.read_lines(path) == ([], "")
    files.append_line(path, {"a": 1, "b": [float("nan"), {"c": float("inf")}]})
    files.append_line(path, {"a": 2})
    assert files.read_lines(path).records == [{"a": 1, "b": [None, {"c": None}]}, {"a": 2}]
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"a": 3')
    assert files.read_lines(path).dropped == '{"a": 3'
    path.write_bytes(whole + b'{"a": 3}')  # the beginning of a longer line, for all we know
    assert files.read_lines(path) == (files.read_lines(path).records[:2], '{"a": 3}')
    for strange in (b"3\n", b"[]\n", b'"\xff"\n'):
        path.write_bytes(strange + whole)
        with pytest.raises(errors.CheckpointError, match=r"records\.jsonl, line 1, is no record"):
            files.read_lines(path)
    path.write_bytes(b"{torn}\n" + whole)
    with pytest.raises(errors.CheckpointError, match=r"records\.jsonl, line 1, is no record"):
        files.read_lines(path)


def test_json_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(errors.CheckpointError, match=r"a\.json has a list \[\.\.\.\]; an object"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(errors.CheckpointError, match=r"missing\.json is missing\. The com"):
        files.read_json(tmp_path / "missing.json")


# The task.


def test_a_task_needs_a_net_for_its_images():
    images = toy_data()
    with pytest.raises(errors.ArgumentError, match=r"takes images of shape \(32, 32, 3\)"):
        train.task(zoo.build("resnet8", classes=3), images)
    with pytest.raises(errors.ArgumentError, match="has 10 outputs for the 3 classes of toy"):
        train.task(zoo.build("resnet8", shape=(8, 8, 1)), images)


def test_loss_and_accuracy_are_those_of_numpy():
    task = toy_task("lenet300")
    logits = np.array([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]], np.float32)
    label = np.array([0, 1])
    found = task.metrics(jnp.asarray(logits), {"label": jnp.asarray(label)})
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[[0, 1], label]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)
    assert found["accuracy"].tolist() == [1, 0]


def test_evaluation_leaves_the_padding_out():
    task = toy_task("lenet300", validation_size=10)  # one batch of 256, 246 of which are padding
    variables = drawn(task)
    (batch,) = task.data.batches("validation", 10)
    logits = np.asarray(task.fn(variables, batch["image"]))
    found = train.evaluate(task, variables, "validation")
    right = logits.argmax(axis=1) == batch["label"]
    assert found["accuracy"] == pytest.approx(right.mean(), abs=1e-7)
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(10), batch["label"]]
    assert found["loss"] == pytest.approx(loss.mean(), rel=1e-5)


# The step.


def test_steps_are_nesterov_with_decay_of_kernels_only():
    task, settings = toy_task("lenet300"), Train(2, 0.05, 16, weight_decay=0.1, schedule="cosine")
    start = Pruned(drawn(task), None)
    learner = settings.learner(start, task, KEY)
    assert (learner.steps, learner.epoch) == (6, 3)
    state, batches = learner.init(), list(itertools.islice(learner.batches(0), 6))

    params = jax.tree.map(np.asarray, start.variables["params"])
    trace = jax.tree.map(np.zeros_like, params)

    def mean_loss(params, batch):
        return task.loss(task.fn({"params": params, "stats": {}}, batch["image"]), batch).mean()

    for number, batch in enumerate(batches):
        gradient = jax.grad(mean_loss)(params, batch)
        gradient = jax.tree.map(lambda g, p: g + 0.1 * p * (p.ndim > 1), gradient, params)
        trace = jax.tree.map(lambda t, g: 0.9 * t + g, trace, gradient)
        rate = 0.05 * 0.5 * (1 + np.cos(np.pi * number / 6))
        moved = jax.tree.map(lambda t, g, r=rate: -r * (0.9 * t + g), trace, gradient)
        params = jax.tree.map(np.add, params, moved)
        state, _ = learner.step(state, batch)
    found = learner.finish(state).variables["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), found, params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_masked_weights_stay_zero_and_the_rest_learns(dtype):
    task = toy_task("tiny", dtype)
    groups = Net(task).groups
    masks = {name: np.arange(size) % 2 == 0 for name, size in groups.sizes.items()}
    pruned, _ = Train(1, 0.1, 16)(Pruned(drawn(task), masks), task, KEY)
    expanded = jprune.expand(groups, masks)["params"]
    for mask, leaf in zip(jax.tree.leaves(expanded), jax.tree.leaves(pruned.variables["params"])):
        assert leaf.dtype == jnp.float32
        assert (np.asarray(leaf)[~np.asarray(mask)] == 0).all()
    before = jprune.apply_masks(drawn(task), jprune.expand(groups, masks))
    assert not equal(before["params"]["fc"], pruned.variables["params"]["fc"])
    assert not equal(before["stats"], pruned.variables["stats"])


def test_training_copies_what_it_begins_with():
    task = toy_task("lenet300")
    start = Pruned(drawn(task), None)
    Train(1, 0.1, 16)(start, task, KEY)
    assert equal(start.variables, drawn(task))


def test_a_resumed_stream_goes_on_where_it_was():
    images = toy_data(train_size=20)  # two batches of 8 in an epoch
    whole = list(itertools.islice(training.stream(images, 8, KEY), 7))
    tail = list(itertools.islice(training.stream(images, 8, KEY, start=3), 4))
    assert all(equal(a, b) for a, b in zip(whole[3:], tail))
    other = next(training.stream(images, 8, jax.random.key(1)))
    assert not equal(whole[0], other)


@dataclasses.dataclass(frozen=True)
class Damped:
    """A `Wrap` that moves all weights towards 1, whether they are masked or not."""

    pull: float

    def __call__(self, net, rate, key):
        towards = lambda updates, params: jax.tree.map(
            lambda u, p: u + self.pull * (1 - p - u), updates, params
        )
        return lambda inner: optax.chain(inner, optax.stateless(towards))


def test_a_wrap_moves_weights_and_masked_ones_stay_zero():
    task = toy_task("lenet300")
    masks = {name: np.arange(size) % 2 == 0 for name, size in Net(task).groups.sizes.items()}
    stage = Train(1, 0.1, 16, wrap=Damped(1.0))
    trained = stage(Pruned(drawn(task), masks), task, KEY)[0].variables["params"]
    for mask, leaf in zip(
        *map(jax.tree.leaves, (Net(task).weight_masks(masks)["params"], trained))
    ):
        np.testing.assert_allclose(leaf, np.asarray(mask, float), atol=1e-6)


def test_a_wrap_gets_the_net_and_what_a_step_of_this_training_is_worth():
    task, got = toy_task("lenet300"), []

    def wrap(net, rate, key):
        got.append((net.groups.names, float(rate(0)), key))
        return lambda inner: inner

    stage = Train(2, 0.1, 16, schedule="cosine", begin=3, wrap=wrap)
    stage.learner(Pruned(drawn(task), None), task, KEY).init()
    assert {names for names, *_ in got} == {Net(task).groups.names}
    # Half of the six steps are over; momentum 0.9 makes a step worth ten times the learning rate.
    assert [rate for _, rate, _ in got] == pytest.approx([0.5] * len(got))
    assert got[-1][2] is KEY  # of the state: what is compiled has no key


def test_a_wrap_that_cannot_be_hashed_is_refused():
    with pytest.raises(errors.ArgumentError, match=r"cannot be hashed.*a frozen dataclass"):
        Train(1, 0.1, wrap=[])


def test_rounds_share_what_was_compiled():
    task, settings = toy_task("lenet300"), Train(1, 0.1, 16)
    wrap = Damped(0.5)

    def compiled(sgd, wrap=None):
        net = Net(task)
        return training.compiled_step(net, training.step_settings(net, sgd, wrap), False)

    sgd = Sgd(0.1, "one_cycle", 3, 0.9, 5e-4)
    assert compiled(sgd) is compiled(Sgd(*sgd))
    assert compiled(sgd, wrap) is compiled(sgd, Damped(0.5))
    assert compiled(sgd, wrap) is not compiled(sgd, Damped(0.4))
    assert compiled(sgd, wrap) is not compiled(sgd)
    assert settings.learner(Pruned(drawn(task), None), task, KEY).steps == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "stairs"}, "one of one_cycle, cosine, constant, step"),
        ({"epochs": 0}, "all three are above 0"),
        ({"learning_rate": -1.0}, "all three are above 0"),
        ({"max_steps": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(errors.ArgumentError, match=message):
        Train(**{"epochs": 1, "learning_rate": 0.1, **change})


def test_a_batch_larger_than_the_split_is_refused():
    task = toy_task("lenet300")
    with pytest.raises(errors.ArgumentError, match=r"batch_size=49 for the 48 training .*1 to 48"):
        Train(1, 0.1, 49).learner(Pruned(drawn(task), None), task, KEY)


# Checkpoints.


def adam_state():
    params = {"a/b": jnp.arange(6.0).reshape(2, 3), "none": None}
    tx = optax.chain(optax.adam(0.1), jprune.hold({"a/b": jnp.ones((2, 3), bool), "none": None}))
    return {"params": params, "opt": tx.init(params), "step": jnp.asarray(7)}


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    state = adam_state()
    assert checkpoint.load(tmp_path / "steps", state) is None
    for step in (3, 5, 5):
        checkpoint.save(tmp_path / "steps", step, state, {"epoch": 1})
    found = checkpoint.load(tmp_path / "steps", jax.eval_shape(lambda: state))
    assert found is not None
    assert (found.step, found.meta) == (5, {"epoch": 1})
    assert equal(found.state, state)
    checkpoint.save(tmp_path / "steps", 7, state, {"epoch": 1})
    assert sorted(f.name for f in (tmp_path / "steps").iterdir()) == ["5", "7"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    for step in (3, 5):
        checkpoint.save(tmp_path / "steps", step, {"w": jnp.arange(float(step))}, {})
    template = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    (array,) = (tmp_path / "steps" / "5" / "state" / "d").iterdir()
    content = bytearray(array.read_bytes())
    content[len(content) // 2] ^= 4
    array.write_bytes(content)
    found = checkpoint.load(tmp_path / "steps", template)
    assert found is not None
    assert (found.step, found.damaged) == (3, (f"5/state/d/{array.name}",))
    assert found.state["w"].tolist() == [0, 1, 2]
    # The next save of that step, or of an earlier one, takes the place of the damaged one.
    checkpoint.save(tmp_path / "steps", 4, found.state, {})
    found = checkpoint.load(tmp_path / "steps", template)
    assert found is not None
    assert (found.step, found.damaged) == (4, ())


def test_without_a_template_trees_come_back_as_they_were(tmp_path):
    state = Pruned({"w": jnp.ones(2)}, {"params/a/kernel": np.array([True, False])})._asdict()
    checkpoint.save(tmp_path / "state", 0, state, {})
    found = checkpoint.load(tmp_path / "state")
    assert found is not None
    assert equal(found.state, state)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("other", ["shape", "structure", "version"])
def test_a_foreign_checkpoint_says_what_to_delete(tmp_path, other, monkeypatch):
    folder, template = tmp_path / "01-train" / "steps", {"w": jnp.ones(3), "b": jnp.ones(1)}
    if other == "version":
        monkeypatch.setattr(checkpoint, "SCHEMA", 0)
    checkpoint.save(folder, 2, template, {})
    monkeypatch.undo()
    if other == "shape":
        template = {**template, "w": jnp.ones(4)}
    if other == "structure":
        template = {"w": jnp.ones(3)}
    said = r"Delete the folder .*01-train: the same com"
    with pytest.raises(errors.CheckpointError, match=said), loop.advised(folder.parent):
        checkpoint.load(folder, template)
    gc.collect()  # Orbax leaves the failed read to the collector, which complains


def test_a_checkpoint_of_which_nothing_is_whole_is_not_parsed(tmp_path):
    checkpoint.save(tmp_path / "steps", 2, {"w": jnp.ones(3)}, {})
    for file in (tmp_path / "steps").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:8])
    with pytest.raises(errors.DamagedError, match=r"steps has no checkpoint that is whole: 2/DIG"):
        checkpoint.load(tmp_path / "steps")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    state = {"w": jax.random.normal(KEY, (300, 300))}
    checkpoint.save(tmp_path / "steps", 1, state, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # Python ignores the signal
    try:
        with pytest.raises(errors.CheckpointError, match="step 2 cannot be written"):
            checkpoint.save(tmp_path / "steps", 2, state, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gc.collect()  # Orbax leaves the failed write to the collector, which complains
    found = checkpoint.load(tmp_path / "steps", state)
    assert found is not None
    assert found.step == 1
    assert equal(found.state, state)


def test_trees_for_others(tmp_path):
    tree = {"params": {"fc": {"kernel": jnp.arange(6.0)}}, "stats": {}}
    for _ in range(2):
        checkpoint.save_tree(tmp_path / "params", tree)
    assert equal(checkpoint.load_tree(tmp_path / "params"), tree)
    with pytest.raises(errors.CheckpointError, match=r"nothing cannot be read"):
        checkpoint.load_tree(tmp_path / "nothing")


# The loop.


def poisoned(task, at):
    """The task with images that are not finite from a training step on."""

    def batches(split, batch_size, seed=None, epoch=0, start=0):
        made = task.data.batches(split, batch_size, seed=seed, epoch=epoch, start=start)
        per_epoch = task.data.sizes["train"] // batch_size
        for number, batch in enumerate(made, start=epoch * per_epoch + start + 1):
            bad = seed is not None and number >= at
            yield {**batch, "image": batch["image"] * (np.nan if bad else 1)}

    return task._replace(data=task.data._replace(batches=batches))


def hooks(records=None, save_seconds=0.0):
    keep = [] if records is None else records
    return loop.Hooks(
        lambda step, seconds, metrics: keep.append((step, metrics)),
        lambda variables: {"loss": 0.0},
        Silent(),
        save_seconds,
    )


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 2)
    task = poisoned(toy_task("lenet300"), at=8)
    start = Pruned(drawn(task), None)
    learner = Train(4, 0.05, 16).learner(start, task, KEY)
    nothing = loop.Restored(0, None, 0.0)
    with pytest.raises(errors.DivergenceError, match=r"loss was nan in step 8; .*steps/6\. Write"):
        loop.fit(learner, nothing, tmp_path / "steps", KEY, hooks())
    kept = loop.restore(tmp_path / "steps", learner, KEY)
    assert kept.step == 6
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(kept.state))


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 1)
    task = toy_task("lenet300")
    learner = Train(1, 0.05, 16).learner(Pruned(drawn(task), None), task, KEY)

    def step(state, batch):  # the loss is that before the update
        state, seen = learner.step(state, batch)
        return state._replace(params=jax.tree.map(lambda p: p * jnp.inf, state.params)), seen

    broken = learner._replace(step=step)
    with pytest.raises(errors.DivergenceError, match="weight is not finite after step 1; none was"):
        loop.fit(broken, loop.Restored(0, None, 0.0), tmp_path / "steps", KEY, hooks())
    assert not (tmp_path / "steps").exists()


def test_infinite_scores_are_no_divergence_and_a_nan_is(tmp_path):
    learner = Learner(
        steps=2,
        epoch=2,
        init=lambda: {"w": jnp.zeros(2), "scores": jnp.array([1.0, jnp.inf])},
        batches=lambda start: itertools.repeat({"image": np.zeros(2)}),
        step=lambda state, batch: (state, {"reward": jnp.ones(())}),
        variables=lambda state: {"w": state["w"]},
        finish=lambda state: Pruned({"w": state["w"]}, None),
    )
    nothing = loop.Restored(0, None, 0.0)
    records = []
    loop.fit(learner, nothing, tmp_path / "steps", KEY, hooks(records))
    assert records == [(2, {"reward": 1.0, "validation_loss": 0.0})]
    broken = learner._replace(init=lambda: {"w": jnp.zeros(2), "scores": jnp.array([jnp.nan])})
    with pytest.raises(errors.DivergenceError, match="the state has a NaN after step 2"):
        loop.fit(broken, nothing, tmp_path / "steps", KEY, hooks())


def test_records_come_every_so_often_and_at_the_end_of_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 2)
    task, records = toy_task("lenet300"), []
    learner = Train(2, 0.05, 16, max_steps=5).learner(Pruned(drawn(task), None), task, KEY)
    nothing = loop.Restored(0, None, 0.0)
    loop.fit(learner, nothing, tmp_path / "steps", KEY, hooks(records, 99.0))
    assert [step for step, _ in records] == [2, 3, 4, 5]
    assert ["validation_loss" in metrics for _, metrics in records] == [False, True, False, True]
    assert not (tmp_path / "steps").exists()


def test_a_checkpoint_of_another_seed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 1)
    task = toy_task("lenet300")
    learner = Train(1, 0.05, 16).learner(Pruned(drawn(task), None), task, KEY)
    loop.fit(learner, loop.Restored(0, None, 0.0), tmp_path / "steps", KEY, hooks())
    with pytest.raises(errors.CheckpointError, match="of a run with another seed"):
        loop.restore(tmp_path / "steps", learner, jax.random.key(1))


# Recipes.


def test_a_run_in_memory_shows_what_it_does_and_is_the_same_run():
    task = toy_task("tiny")
    recipe = recipes.find("l1")(
        Budget(macs=0.5), Train(2, 0.05, 16), Train(1, 0.05, 16, name="tune")
    )
    stream, start = io.StringIO(), Pruned(drawn(task), None)
    told, records = recipes.run(recipe, start, task, KEY, progress=Lines(stream))
    silent, others = recipes.run(recipe, start, task, KEY)
    assert equal(told.variables, silent.variables)
    assert records == others
    lines = stream.getvalue().splitlines()
    count = len(recipe)
    epochs = [line.partition(",")[0] for line in lines if "epoch" in line]
    assert epochs[:2] == [f"[1/{count}] train: epoch {number} of 2" for number in (1, 2)]
    assert all("loss" in line and "accuracy" in line for line in lines if "epoch" in line)
    assert sum("epoch" in line for line in lines) == 3
    done = [line.split(":")[0] for line in lines if ": done in " in line]
    assert done == [f"[{n}/{count}] {stage.name}" for n, stage in enumerate(recipe, 1)]


def test_progress_is_closed_when_a_stage_fails():
    calls = []

    class Told(Silent):
        def begin(self, *given):
            calls.append(given)

        def close(self):
            calls.append("closed")

    task = toy_task("lenet300")
    stages = (Train(1, 0.1, 16, max_steps=2), Rewind("dense"))
    with pytest.raises(errors.ArgumentError, match="saved are none"):
        recipes.run(stages, Pruned(drawn(task), None), task, KEY, progress=Told())
    assert calls == [("train", 1, 2, 2, 0), ("rewind", 2, 2, 0, 0), "closed"]


def test_every_method_prunes_to_its_budget_and_the_slim_net_is_the_masked_one():
    task = toy_task("tiny")
    train_stage, finetune = Train(1, 0.05, 16), Train(1, 0.05, 16, name="finetune")
    for name, factory in three_step.METHODS.items():
        recipe = factory(Budget(macs=0.5, multiple_of=4), train_stage, finetune, recalibrate=1)
        pruned, records = recipes.run(recipe, Pruned(drawn(task), None), task, KEY)
        kept = [r["metrics"]["macs"] for r in records if r["stage"] == "prune"][-1]
        assert 0.3 < kept <= 0.5, name
        for mask in pruned.masks.values():
            assert mask.sum() % 4 == 0
        fn, variables = Net(task).slim(pruned)
        (batch,) = task.data.batches("test", 12)
        a = jax.jit(task.fn)(pruned.variables, batch["image"])
        b = jax.jit(fn)(variables, batch["image"])
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert set(pruned.saved) == {"dense"}


def test_rounds_prune_more_and_more_and_nothing_comes_back():
    task, seen = toy_task("tiny"), []
    tune = Train(2, 0.05, 16, name="finetune")
    recipe = recipes.find("taylor")(Budget(params=0.3), None, tune, rounds=3)
    pruned = Pruned(drawn(task), None)
    for number, stage in enumerate(recipe):
        pruned, _ = stage(pruned, task, jax.random.fold_in(KEY, number))
        if isinstance(stage, Prune):
            seen.append(np.concatenate(list(pruned.masks.values())))
    assert all((after <= before).all() for before, after in itertools.pairwise(seen))
    assert seen[0].sum() > seen[1].sum() > seen[2].sum()


def test_all_schedules_train_equally_long():
    tune = Train(8, 0.05, name="finetune")
    for schedule in ("one_shot", "iterative", "cubic"):
        recipe = recipes.find("l1")(Budget(macs=0.5), None, tune, schedule=schedule)
        trained = [stage for stage in recipe if isinstance(stage, Train)]
        assert sum(stage.epochs for stage in trained) == pytest.approx(8)


def test_kept_after_each_round():
    np.testing.assert_allclose(kept_after(0.125, "iterative", 3), [0.5, 0.25, 0.125])
    cubic = [0.2 + 0.8 * (1 - t) ** 3 for t in (0.25, 0.5, 0.75, 1)]
    np.testing.assert_allclose(kept_after(0.2, "cubic", 4), cubic, rtol=1e-6)
    with pytest.raises(errors.ArgumentError, match=r"one_shot with rounds=2.*--schedule iterative"):
        kept_after(0.5, "one_shot", 2)
    with pytest.raises(errors.ArgumentError, match="one of one_shot, iterative, cubic"):
        kept_after(0.5, "linear", 2)


def test_random_draws_a_number_for_a_unit_and_not_for_its_weights():
    task = toy_task("tiny")
    prune = next(
        stage
        for stage in recipes.find("random")(Budget(density=0.5), None, Train(1, 0.1))
        if isinstance(stage, Prune)
    )
    scores = np.concatenate(list(prune.scores(drawn(task), task, KEY).values()))
    assert 0 <= scores.min() < 0.2
    assert 0.8 < scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.2


def test_unknown_methods_and_allocators_are_told_what_there_is():
    with pytest.raises(errors.ArgumentError, match="did you mean taylor"):
        recipes.find("tailor")
    with pytest.raises(errors.ArgumentError, match="one of uniform, global_topk"):
        recipes.find("l1")(Budget(macs=0.5), None, Train(1, 0.1), allocator="unifrom")


def test_rewinding_brings_the_saved_weights_back_under_the_masks():
    task = toy_task("lenet300")
    start = Pruned(drawn(task), None)
    masks = {"params/fc1/kernel": np.arange(300) < 100}
    saved, _ = Save("init")(start, task, KEY)
    trained, _ = Train(1, 0.1, 16)(saved, task, KEY)
    back, _ = Rewind("init")(trained._replace(masks=masks), task, KEY)
    expected = jprune.apply_masks(start.variables, Net(task).weight_masks(masks))
    assert equal(back.variables, expected)
    with pytest.raises(errors.ArgumentError, match=r"saved are init. Put Save\('rewind'\) before"):
        Rewind("rewind")(trained, task, KEY)


@pytest.mark.parametrize("momentum", [0.5, 0.99])
def test_recalibrated_statistics_are_means_over_the_batches(momentum):
    """Whatever the momentum: at 0.99, Flax's default, fifty running means keep 60 % of the old."""
    images = 5 + 2 * np.random.default_rng(0).normal(size=(48, 4))
    toys = toy_task("lenet300")

    def batches(split, size, seed=None, epoch=0, start=0):
        for number in range(start, 3):
            part = images[number * 16 :][:16].astype(np.float32)
            yield {"image": part, "label": np.zeros(16, int), "weight": np.ones(16)}

    def train_fn(variables, x, key):
        old = variables["stats"]
        running = lambda name, new: momentum * old[name] + (1 - momentum) * new
        moved = {"mean": running("mean", x.mean(0)), "var": running("var", x.var(0))}
        return x, {**moved, "steps": old["steps"] + 1, "rate": old["rate"]}

    stats = {"mean": np.zeros(4), "var": np.ones(4), "steps": np.int32(7), "rate": np.float32(0.1)}
    start = jax.tree.map(jnp.asarray, {"params": {"w": np.ones(3)}, "stats": stats})
    task = toys._replace(
        fn=lambda variables, x: x,
        train_fn=train_fn,
        example=jax.ShapeDtypeStruct((1, 4), jnp.float32),
        init=lambda key: start,
        data=toys.data._replace(batches=batches, shape=(4,)),
    )
    after, _ = Recalibrate(batches=3, batch_size=16)(Pruned(start, None), task, KEY)
    parts = images.astype(np.float32).reshape(3, 16, 4)
    assert equal(after.variables["params"], start["params"])
    found = after.variables["stats"]
    np.testing.assert_allclose(found["mean"], parts.mean(1).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found["var"], parts.var(1).mean(0), rtol=1e-3)
    assert found["rate"] == np.float32(0.1)


def test_statistics_that_are_no_running_means_move_as_in_training():
    """Such as the direction of a spectral norm: a rule of its own, which no mean stands for."""
    task = toy_task("tiny")
    start = Pruned(drawn(task), None)
    odd = lambda variables, x, key: (x, jax.tree.map(jnp.tanh, variables["stats"]))
    after, _ = Recalibrate(batches=2, batch_size=16)(start, task._replace(train_fn=odd), KEY)
    twice = jax.tree.map(lambda leaf: jnp.tanh(jnp.tanh(leaf)), start.variables["stats"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.variables["stats"], twice
    )


def test_repetitions_are_written_out_with_keys_of_their_own():
    train_stage = Train(1, 0.1, 16)
    recipe = (Repeat((train_stage, Save("a")), times=2), Evaluate())
    names = [stage.name for stage in recipes.unrolled(recipe)]
    assert names == ["train", "save", "train", "save", "evaluate"]
    task = toy_task("lenet300")
    start = Pruned(drawn(task), None)
    repeated, _ = Repeat((train_stage,), times=2)(start, task, KEY)
    first, _ = train_stage(start, task, jax.random.fold_in(KEY, 0))
    second, _ = train_stage(first, task, jax.random.fold_in(KEY, 1))
    assert equal(repeated.variables, second.variables)


def test_evaluation_counts_what_is_not_zero():
    task = toy_task("lenet300")
    masks = {"params/fc1/kernel": np.arange(300) < 100}
    variables = jprune.apply_masks(drawn(task), Net(task).weight_masks(masks))
    _, (masked,) = Evaluate("test")(Pruned(variables, masks), task, KEY)
    _, (slim,) = Evaluate("test", slim=True)(Pruned(variables, masks), task, KEY)
    kernels = 64 * 100 + 100 * 100 + 100 * 3  # biases are 0 before training
    assert masked["metrics"]["params"] == slim["metrics"]["params"] == kernels
    assert masked["metrics"]["macs"] == slim["metrics"]["macs"] == kernels
    assert slim["metrics"]["loss"] == pytest.approx(masked["metrics"]["loss"], rel=1e-5)


def test_masks_of_another_net_are_refused():
    task = toy_task("lenet300")
    masks = {"params/fc1/kernel": np.ones(299, bool)}
    with pytest.raises(errors.StructureError, match=r"299.*300 units"):
        Train(1, 0.1, 16).learner(Pruned(drawn(task), masks), task, KEY)


def test_stages_are_settings():
    for stage in (Train(1, 0.1), Evaluate(), Recalibrate(), Save("a"), Rewind("a")):
        assert dataclasses.is_dataclass(stage)
        assert hash(stage) == hash(dataclasses.replace(stage))


# Progress.


def test_lines_say_what_happened(capsys):
    lines = Lines()
    lines.begin("train", 1, 4, 10, 5)
    lines.epoch(1, 2, {"loss": 0.25, "validation_accuracy": 0.5})
    lines.end()
    found = capsys.readouterr().err.splitlines()
    assert found[0] == "[1/4] train: goes on after step 5 of 10"
    assert found[1] == "[1/4] train: epoch 1 of 2, loss 0.25, validation accuracy 0.5"
    assert found[2].startswith("[1/4] train: done in 0.0 s")


def test_bars_know_no_time_before_the_first_step():
    stream = io.StringIO()
    bars = Bars(Console(file=stream, force_terminal=True, width=80))
    bars.begin("train", 1, 2, 10, 0)
    (shown,) = bars._bars.tasks
    assert not shown.started
    bars.advance(1, {})
    assert shown.started
    bars.epoch(1, 2, {"loss": 0.25, "accuracy": 0.9, "validation_accuracy": 0.8})
    bars.note("a note")
    bars.end()
    bars.close()
    text = stream.getvalue()
    for said in ("1/2 train", "loss 0.25, validation 0.8", "100%", "a note"):
        assert said in text
