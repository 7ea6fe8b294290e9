"""The run directory and the main job: done once, whatever kills it."""

import errno
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jprune
from jprune import Budget, errors, recipes, report
from jprune.base import Pruned
from jprune.cli import main
from jprune.export import load_stablehlo, run_tflite, stablehlo_text
from jprune.graph.shrink.plans import replay
from jprune.job import finish
from jprune.job import main as job
from jprune.job.nets import net_for
from jprune.recipes import Train
from jprune.runs import checkpoint, execution, files, loop
from jprune.runs import directory as run
from jprune.runs.progress import Silent
from jprune.train.net import Net
from tests.toys import drawn, equal, toy_task

KEY = jax.random.key(0)
ROOT = Path(__file__).parents[2]


# The directory.


def opened(path, config=None, **options):
    about = {"data": "toy", "model": "tiny", "commit": None}
    provenance = {"versions": {"jax": "1"}, "device": {"platform": "cpu"}}
    return run.open_directory(path, config or {"seed": 0}, about, provenance, **options)


def test_other_settings_are_refused_by_name(tmp_path):
    opened(tmp_path / "a", {"seed": 0, "budget": {"macs": 0.5}})
    opened(tmp_path / "a", {"seed": 0, "budget": {"macs": 0.5}})
    with pytest.raises(errors.CheckpointError) as caught:
        opened(tmp_path / "a", {"seed": 1, "budget": {"params": 0.5}})
    message = str(caught.value)
    assert "seed is 0 there and 1 here" in message
    assert "budget.params is None there and 0.5 here; and 1 more" in message
    assert "--overwrite to start anew" in message


def test_overwriting_removes_what_runs_write_and_nothing_else(tmp_path):
    directory = opened(tmp_path / "a")
    directory.append({"stage": "train", "step": 1, "metrics": {}}, 0.0)
    (directory.path / "stages" / "01-train").mkdir(parents=True)
    (directory.path / "notes.txt").write_text("mine")
    opened(tmp_path / "a", {"seed": 1}, overwrite=True)
    assert sorted(f.name for f in directory.path.iterdir()) == ["config.json", "notes.txt"]


def test_what_a_kill_left_half_written_is_swept_away(tmp_path):
    opened(tmp_path / "a")
    (tmp_path / "a" / ".result.json.x1.tmp").write_text("{")
    (tmp_path / "a" / "params.orbax-checkpoint-tmp-0").mkdir()
    opened(tmp_path / "a")
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["config.json"]


def test_somebody_elses_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(errors.CheckpointError, match=r"not empty .*has thesis\.tex and no"):
            opened(tmp_path, overwrite=overwrite)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.CheckpointError, match=r"Not a directory.*--out DIR"):
        opened(tmp_path / "file" / "a")


def test_a_full_disk_leaves_no_half_of_a_configuration(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(errors.CheckpointError, match="No space left"):
        opened(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


# Stages.


class Killed(BaseException):
    """Stands for a SIGKILL where one process has to do."""


class KillAt(Silent):
    """Kills the run in a stage, when so many steps are done (0: when it begins)."""

    def __init__(self, stage, step):
        self.where, self.step = stage, step
        self.stage = ""

    def begin(self, stage, number, of, steps, done):
        self.stage = stage
        self.advance(0, {})

    def advance(self, step, metrics):
        if self.stage == self.where and step >= self.step:
            raise Killed


class Notes(Silent):
    """Collects what people are told."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


RECIPE = recipes.find("l1")(
    Budget(macs=0.5),
    Train(2, 0.05, 16),
    Train(1, 0.05, 16, name="finetune"),
    schedule="iterative",
    rounds=2,
)


AVERAGED = recipes.find("l1")(
    Budget(macs=0.5),
    Train(2, 0.01, 16, optimizer="adamw", ema=0.9, accumulate=2, clip=1.0),
    Train(1, 0.01, 16, name="finetune", optimizer="lamb", ema=0.9),
)


def executed(path, task, progress=None, save_seconds=0.0, recipe=RECIPE):
    directory = opened(path)
    start = lambda: Pruned(drawn(task), None)
    progress = Silent() if progress is None else progress
    return execution.execute(directory, recipe, task, KEY, start, progress, save_seconds), directory


@pytest.mark.parametrize(("stage", "step"), [("train", 5), ("finetune", 2)])
def test_an_average_and_the_state_of_its_optimizer_are_resumed_bit_for_bit(tmp_path, stage, step):
    task = toy_task("tiny")
    whole, _ = executed(tmp_path / "whole", task, recipe=AVERAGED)
    with pytest.raises(Killed):
        executed(tmp_path / "a", task, KillAt(stage, step), recipe=AVERAGED)
    again, directory = executed(tmp_path / "a", task, recipe=AVERAGED)
    assert equal(again.variables, whole.variables)
    masks = Net(task).leaves(Net(task).weight_masks(whole.masks))
    for path, leaf in Net(task).leaves(whole.variables).items():
        assert not np.asarray(leaf)[~np.asarray(masks.get(path, np.ones(leaf.shape, bool)))].any()
    assert {"train", "finetune"} <= {*directory.outcomes()}


def timeless(records):
    return [{**record, "wall_s": None, "run": None} for record in records]


@pytest.fixture(scope="module", autouse=True)
def often():
    """Looks, and with save_seconds=0 checkpoints, at every second step; compiles a net once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "EVERY", 2)
        patch.setattr(job, "net_for", functools.lru_cache(net_for))
        patch.setattr("jprune.measure.commit", lambda: None)  # it may change while tests run
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, often):
    task = toy_task("tiny")
    return task, *executed(tmp_path_factory.mktemp("undisturbed"), task)


@pytest.mark.parametrize(
    ("stage", "step", "save_seconds"),
    [
        ("train", 0, 0.0),
        ("train", 3, 0.0),
        ("train", 5, 99.0),
        ("prune-2", 0, 0.0),
        ("finetune", 1, 0.0),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, undisturbed, stage, step, save_seconds):
    task, expected, whole = undisturbed
    with pytest.raises(Killed):
        executed(tmp_path / "a", task, KillAt(stage, step), save_seconds)
    with (tmp_path / "a" / "records.jsonl").open("ab") as records:
        records.write(b'{"strange": 1}\n{"stage": "train", "st')  # torn
    pruned, directory = executed(tmp_path / "a", task)
    assert equal(pruned._asdict(), expected._asdict())
    found = files.read_lines(directory.records).records
    assert timeless(found) == timeless(files.read_lines(whole.records).records)
    assert found[0]["versions"] == {"jax": "1"}
    assert all("versions" not in record for record in found[1:])


def shoot(call, out, appears, before=lambda process: None):
    """Runs a call in a process of its own, and kills it as soon as a file appears."""
    code = f"import sys\nfrom tests.job.test_run import *\nloop.EVERY = 2\n{call}"
    # Nothing shared with this process: a cache could be torn by the kill.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    arguments = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(arguments, cwd=ROOT, env=environment) as process:
        try:
            while not list(out.glob(appears)):
                assert process.poll() is None, f"the process ended, and {appears} never appeared"
                time.sleep(0.0005)
            before(process)
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    "appears",
    [
        "stages/01-train/steps/4",  # between two checkpoints
        "stages/01-train/steps/4.*tmp*",  # inside the write of one
    ],
)
def test_a_run_that_is_shot_goes_on_bit_for_bit(tmp_path, undisturbed, appears):
    task, expected, whole = undisturbed
    shoot('executed(sys.argv[1], toy_task("tiny"))', tmp_path / "a", appears)
    assert not list((tmp_path / "a").glob("stages/*/DONE"))
    pruned, directory = executed(tmp_path / "a", task)
    assert equal(pruned._asdict(), expected._asdict())
    found = [files.read_lines(d.records).records for d in (directory, whole)]
    assert timeless(found[0]) == timeless(found[1])


def test_a_second_run_leaves_at_once_and_a_shot_one_keeps_nobody_out(tmp_path, capsys):
    out = tmp_path / "a"
    words = "prune --model tests.toys:tiny --data digits --method l1 --macs 0.5".split()
    words += ["--multiple-of", "4", "--out"]

    def second(process):
        for more in ([], ["--overwrite"]):
            assert main([*words, str(out), *more]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            holder = rf"a is in use by another run: process {process.pid} on {socket.gethostname()}"
            assert re.search(rf"{holder}, since 20\d\d-.*Wait until.*choose another --out", line)

    hold = "with files.locked(sys.argv[1]): (Path(sys.argv[1]) / 'held').touch(); signal.pause()"
    shoot(hold, out, "held", second)
    assert (out / ".lock").exists()  # the file is left, the lock is not
    with files.locked(out):
        pass
    assert [f.name for f in out.iterdir()] == ["held"]


def test_a_folder_is_kept_while_it_is_held(tmp_path):
    with run.held(tmp_path / "a", {"seed": 0}, {}, {}):
        again = run.held(tmp_path / "a", {"seed": 1}, {}, {}, overwrite=True)
        message = f"in use by another .*{os.getpid()}"
        with pytest.raises(errors.CheckpointError, match=message), again:
            pass
        (tmp_path / "a" / ".lock").write_text("{")  # as while it is written
        message = "by another run: a process that has only just begun"
        with pytest.raises(errors.CheckpointError, match=message), files.locked(tmp_path / "a"):
            pass
    with run.held(tmp_path / "a", {"seed": 0}, {}, {}) as directory:
        assert directory.path == tmp_path / "a"


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", without)
    with files.locked(tmp_path), files.locked(tmp_path):
        pass


def test_a_lock_that_was_removed_under_its_hands_is_taken_anew(tmp_path, monkeypatch):
    taken = files.fcntl.flock

    def slow(*arguments):
        taken(*arguments)
        if not seen:  # whoever had it lets go between our opening of the file and our lock
            seen.append((tmp_path / ".lock").unlink())

    seen = []
    monkeypatch.setattr(files.fcntl, "flock", slow)
    with files.locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_what_is_done_is_not_done_again(tmp_path, undisturbed):
    task, expected, whole = undisturbed
    before = whole.records.read_bytes()
    steps = [f.name for f in (whole.path / "stages").glob("*/steps")]
    again, _ = executed(whole.path, task, KillAt("", 0))
    assert equal(again._asdict(), expected._asdict())
    assert (whole.records.read_bytes(), steps) == (before, [])
    names = "train save dense prune between prune-2 before_finetune finetune"
    assert [*whole.outcomes()] == names.split()


def test_a_stage_that_was_deleted_is_done_again_with_all_behind_it(tmp_path, undisturbed):
    task, expected, whole = undisturbed
    shutil.copytree(whole.path, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "stages" / "04-prune")
    with pytest.raises(Killed):
        executed(tmp_path / "a", task, KillAt("prune", 0))
    left = sorted(f.parent.name for f in (tmp_path / "a").glob("stages/*/DONE"))
    assert left == ["01-train", "02-save", "03-dense"]
    again, _ = executed(tmp_path / "a", task)
    assert equal(again._asdict(), expected._asdict())


def test_a_net_that_is_missing_is_not_replaced_by_an_older_one(tmp_path, undisturbed):
    task, expected, whole = undisturbed
    shutil.copytree(whole.path, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "stages" / "08-finetune" / "state")
    progress = Notes()
    again, _ = executed(tmp_path / "a", task, progress)
    assert equal(again._asdict(), expected._asdict())
    (note,) = progress.notes
    assert "08-finetune/state is missing. This stage and those behind it are done again." in note


def test_what_another_recipe_has_left_is_removed(tmp_path, undisturbed):
    task, expected, whole = undisturbed
    shutil.copytree(whole.path, tmp_path / "a")
    (tmp_path / "a" / "stages" / "09-finetune-2").mkdir()
    files.write_json(tmp_path / "a" / "stages" / "09-finetune-2" / "DONE", {"wall_s": 1})
    again, directory = executed(tmp_path / "a", task)
    assert equal(again._asdict(), expected._asdict())
    assert [*directory.outcomes()][-1] == "finetune"


def test_settings_compare_as_json_has_them(tmp_path):
    settings = {"options": {"widths": ((8, 16), (32,))}, "rate": float("inf")}
    for _ in range(2):
        opened(tmp_path / "a", settings)


def test_a_checkpoint_of_another_net_is_refused(tmp_path, undisturbed):
    _, _, whole = undisturbed
    shutil.copytree(whole.path, tmp_path / "a")
    with pytest.raises(errors.CheckpointError, match=r"08-finetune/state is not lenet300: .*--ov"):
        executed(tmp_path / "a", toy_task("lenet300"))


def test_stages_of_one_name_are_numbered():
    assert execution.numbered(["a", "b", "a", "a", "a-2"]) == ["a", "b", "a-2", "a-3", "a-2-2"]


# The main job.

JOB = job.Job(
    model="tests.toys:tiny",
    data="digits",
    method="taylor",
    budget=Budget(macs=0.5),
    epochs=1,
    finetune_epochs=1,
    batch_size=128,
    options={"rounds": 2},
)
FILES = (
    "config.json model.stablehlo model.tflite net.stablehlo params plan.json records.jsonl "
    "report.html report.png result.json stages"
)


def pruned_job(out):
    return job.prune(JOB, out, "command", save_seconds=0.0, measure_seconds=0.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, often):
    path = tmp_path_factory.mktemp("job") / "run"
    return path, pruned_job(path)


def test_the_main_job_leaves_what_other_programs_read(finished):
    path, result = finished
    assert sorted(f.name for f in path.iterdir()) == FILES.split()
    report.check(result)
    assert result["requested"] == {"macs": 0.5}
    assert result["achieved"]["macs"] == result["pruned"]["macs"] / result["dense"]["macs"] <= 0.5
    assert result["law_max_rel_err"] <= 1e-5
    assert result["pruned"]["bytes"] == (path / "model.tflite").stat().st_size
    assert result["dense"]["params"] > result["before_finetune"]["params"]
    first = files.read_lines(path / "records.jsonl").records[0]
    keys = "run data model method budget seed stage step wall_s metrics commit versions device"
    assert set(first) == set(keys.split())


def test_exports_are_the_slim_net(finished):
    path, result = finished
    net = net_for(JOB.model, JOB.data)
    groups, masks = replay(
        json.loads((path / "plan.json").read_text()),
        net.fn,
        jax.eval_shape(net.init, KEY),
        net.example,
    )
    variables = checkpoint.load_tree(path / "params")
    fn = jprune.slim(net.fn, groups, masks)
    x = jax.random.normal(KEY, (5, *net.example.shape[1:]))
    expected = fn(variables, x)
    exported = load_stablehlo(path / "model.stablehlo")
    np.testing.assert_allclose(exported.call(x), expected, rtol=1e-5, atol=1e-6)
    tflite = run_tflite((path / "model.tflite").read_bytes(), np.asarray(x))
    np.testing.assert_allclose(tflite, expected, rtol=1e-4, atol=1e-5)
    inner = masks["params/conv2/kernel"].sum()
    stream = masks["params/conv1/kernel"].sum()
    text = stablehlo_text((path / "model.stablehlo").read_bytes())
    assert f"tensor<3x3x{stream}x{inner}xf32>" in text
    assert result["achieved"]["density"] == pytest.approx((stream + inner) / 20)


def test_the_plan_of_another_net_is_refused(tmp_path, finished, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    config = files.read_json(tmp_path / "run" / "config.json")
    files.write_json(tmp_path / "run" / "config.json", {**config, "model": "lenet300"})
    before = (tmp_path / "run" / "model.stablehlo").read_bytes()
    assert main(["export", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the plan is of another net: params/" in line
    assert (tmp_path / "run" / "model.stablehlo").read_bytes() == before


def before_export(path, out):
    """A copy of a finished run as it was before its export."""
    shutil.copytree(path, out, ignore=shutil.ignore_patterns("model.*", "params", "r*.html"))
    for name in ("result.json", "plan.json", "report.png"):
        (out / name).unlink()
    for stage in ("export", "measure"):
        shutil.rmtree(next((out / "stages").glob(f"*-{stage}")))


def test_a_job_that_is_shot_in_export_goes_on_bit_for_bit(tmp_path, finished):
    path, out = finished[0], tmp_path / "run"
    before_export(path, out)
    shoot("pruned_job(sys.argv[1])", out, "model.stablehlo")
    assert sorted(f.name for f in out.iterdir() if not f.name.startswith(".")) == [
        "config.json",
        "model.stablehlo",
        "net.stablehlo",
        "params",
        "records.jsonl",
        "stages",
    ]
    result = pruned_job(out)
    assert without_times(result) == without_times(finished[1])
    for name in ("plan.json", "config.json", "model.stablehlo", "net.stablehlo", "model.tflite"):
        assert (out / name).read_bytes() == (path / name).read_bytes(), name
    trees = [checkpoint.load_tree(folder / "params") for folder in (out, path)]
    assert equal(*trees)
    assert sorted(f.name for f in out.iterdir()) == FILES.split()
    records = [files.read_lines(folder / "records.jsonl").records for folder in (out, path)]
    shown = [[r for r in timeless(lines) if r["stage"] != "measure"] for lines in records]
    assert shown[0] == shown[1]


def without_times(result):
    kept = {**result, "wall_s": [*result["wall_s"]], "achieved": {**result["achieved"]}}
    kept["achieved"].pop("latency")
    for name in ("dense", "before_finetune", "pruned"):
        kept[name] = {**result[name], "latency_ms": None}
    return kept


def test_without_the_extra_there_is_a_note_and_null(tmp_path, finished, monkeypatch):
    progress = Notes()

    def missing(*_, **__):
        raise errors.MissingExtraError("install the extra: pip install 'jprune[tflite]'")

    monkeypatch.setattr("jprune.job.finish.export.tflite", missing)
    before_export(finished[0], tmp_path / "run")
    result = job.prune(JOB, tmp_path / "run", "command", progress, measure_seconds=0.0)
    assert result["pruned"]["bytes"] is None
    assert result["dense"]["latency_ms"]["tflite_b1"] is None
    assert result["achieved"]["bytes"] is None
    (note,) = progress.notes
    assert note == "model.tflite was not written: install the extra: pip install 'jprune[tflite]'"


def test_a_budget_that_cannot_be_met_is_refused_before_training(tmp_path):
    impossible = Budget(macs=0.001, multiple_of=8)
    with pytest.raises(errors.BudgetError, match=r"smallest net allowed costs 0\.\d+"):
        job.prune(job.Job("resnet8", "digits", "l1", impossible), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_that_would_do_nothing_are_refused():
    task = toy_task("tiny")
    strange = job.Job("a", "digits", "l1", Budget(macs=0.5), options={"keep_all": 1})
    with pytest.raises(errors.ArgumentError, match="has no option --keep-all; it has --allocator"):
        job.recipe_of(strange, None, Train(1, 0.1))
    reading = job.Job(
        "a", "digits", "l1", Budget(macs=0.5), weights="a.pth", epochs=3, batch_size=16
    )
    with pytest.raises(errors.ArgumentError, match="which is read and not trained here"):
        job.trainings(reading, task)
    with pytest.raises(errors.ArgumentError, match="dtype 'float16'; write one of float32, bf"):
        net_for("resnet8", "digits", "float16")


def test_loaded_weights_are_not_trained():
    task = toy_task("tiny")
    dense, finetune = job.trainings(
        job.Job("a", "digits", "l1", Budget(macs=0.5), weights="a.pth", batch_size=16), task
    )
    assert dense is None
    names = [stage.name for stage in recipes.find("l1")(Budget(macs=0.5), dense, finetune)]
    assert names == ["save", "dense", "prune", "before_finetune", "finetune"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_small_net_that_gives_no_numbers_breaks_the_law(monkeypatch, value):
    task = toy_task()
    pruned = Pruned(drawn(task), {})
    law = finish.Law(task.fn)
    error = lambda: law(pruned, task, KEY)[1][0]["metrics"]["max_rel_err"]
    assert error() < 1e-6
    broken = lambda fn, *_: lambda v, x: fn(v, x).at[0, 0].set(value)
    monkeypatch.setattr(finish, "slim", broken)
    assert 1e30 < error() < np.inf
    # Where both nets give none, they agree.
    law = finish.Law(broken(task.fn))
    monkeypatch.setattr(finish, "slim", lambda fn, *_: fn)
    assert error() < 1e-6
