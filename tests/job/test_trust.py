"""Damage, another machine, and signals: what a run says, and that it ends as it would have."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.trust import flips, kills
from experiments.trust.compared import differences
from jprune import Budget, errors, interrupts, recipes
from jprune.cli import main
from jprune.job import main as jobs
from jprune.job.export import export_again
from jprune.job.nets import net_for
from jprune.runs import checkpoint, digests, files, inside, loop
from jprune.runs.directory import machines_of, outcomes_in
from jprune.runs.progress import Silent
from jprune.runs.whole import verdicts
from tests.contracts import own

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def task():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "EVERY", 4)
        patch.setattr(jobs, "net_for", functools.lru_cache(net_for))
        patch.setattr("jprune.measure.commit", lambda: None)  # it may change while tests run
        yield jobs.task_for(flips.JOB)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, task):
    path = tmp_path_factory.mktemp("trust") / "finished"
    flips.go_on(path, task, Silent())
    return path


def stage_of(path, name):
    (folder,) = (path / "stages").glob(f"[0-9][0-9]-{name}")
    return folder


def flipped(path):
    """Turns one bit in the middle over."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def copied(path, to):
    shutil.copytree(path, to)
    return to


# Damage.


def test_what_can_be_made_again_is_and_the_run_says_so(tmp_path, finished, task, capsys):
    path = copied(finished, tmp_path / "run")
    assert main(["check", str(path)]) == 0
    times = files.read_json(path / "result.json")["wall_s"]
    shutil.rmtree(path / "params" / "d")
    (path / "model.tflite").unlink()
    flipped(path / "model.stablehlo")
    (path / "plan.json").unlink()
    (path / "result.json").write_text("{}")
    (path / "report.html").unlink()
    lines = (path / "records.jsonl").read_bytes()
    (path / "records.jsonl").write_bytes(lines[: len(lines) // 2])
    flipped(path / "config.json")
    wrong = {verdict.name.split("/")[0] for verdict in verdicts(path) if not verdict.stands}
    named = {"model.stablehlo", "model.tflite", "plan.json", "params", "records.jsonl"}
    assert wrong == named | {"config.json", "report.html"}
    capsys.readouterr()
    assert main(["check", str(path), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "are not whole. Run the command of the run again" in line
    for call in (lambda: export_again(path), lambda: main(["report", str(path)]) and 1 / 0):
        with pytest.raises((errors.DamagedError, ZeroDivisionError)):
            call()
    told = flips.Told()
    flips.go_on(path, task, told)
    text = "\n".join(told.notes)
    for name in named - {"params", "model.stablehlo", "model.tflite"} | {"config.json"}:
        assert f"{name} " in text, name
    assert "written by 11-export. This stage is done again" in text
    assert (path / "records.jsonl").read_bytes() == lines
    assert differences(path, finished) == []
    # What was measured is not measured again.
    assert files.read_json(path / "result.json")["wall_s"] == times
    assert all(verdict.stands for verdict in verdicts(path))


@pytest.mark.parametrize("part", ["DONE", "state", "missing state"])
def test_a_stage_that_is_damaged_is_done_again(tmp_path, finished, task, part):
    path = copied(finished, tmp_path / "run")
    stage = stage_of(path, "finetune")
    if part == "DONE":
        flipped(stage / "DONE")
    elif part == "state":
        flipped(max((stage / "state").rglob("d/*"), key=lambda file: file.stat().st_size))
    else:
        shutil.rmtree(stage / "state")
    assert [v for v in verdicts(path) if not v.stands and "finetune" in v.name]
    told = flips.Told()
    flips.go_on(path, task, told)
    assert "08-finetune" in told.notes[0]
    assert "This stage and those behind it are done again." in told.notes[0]
    assert differences(path, finished) == []


@pytest.mark.parametrize("damage", ["newest", "both", "no digests"])
def test_a_damaged_checkpoint_falls_back(tmp_path, finished, task, damage):
    path = tmp_path / "run"
    with pytest.raises(flips.Stop):
        flips.go_on(path, task, flips.StopAt("train", 9))
    steps = stage_of(path, "train") / "steps"
    assert inside.steps_of(steps) == [4, 8]
    for step in (8, 4) if damage == "both" else (8,):
        if damage == "no digests":
            (steps / str(step) / "DIGESTS").unlink()
        else:
            flipped(steps / str(step) / "state" / "manifest.ocdbt")
    told = flips.Told()
    flips.go_on(path, task, told)
    (note,) = told.notes
    assert ("begins again" if damage == "both" else "checkpoint before, of step 4") in note
    assert differences(path, finished) == []


def test_a_run_whose_configuration_is_gone_goes_on_with_its_settings_alone(
    tmp_path, finished, task
):
    path = tmp_path / "run"
    with pytest.raises(flips.Stop):
        flips.go_on(path, task, flips.StopAt("train", 9))
    (path / "config.json").unlink()
    other = jobs.dataclasses.replace(flips.JOB, seed=3)
    with pytest.raises(errors.CheckpointError, match="seed is 0 there and 3 here"):
        jobs.prune(other, path, task=task)
    told = flips.Told()
    flips.go_on(path, task, told)
    (note,) = told.notes
    assert "config.json is missing. It is written again, with the settings of this command." in note
    assert differences(path, finished) == []


def test_folders_of_older_versions_are_read(tmp_path, finished, task):
    path = copied(finished, tmp_path / "run")
    for file in path.rglob("DIGESTS"):
        file.unlink()
    for file in [*path.rglob("DONE"), *path.glob("*.json")]:
        old = files.read_json(file)
        keys = {"wall_s", "records", "net"} if file.name == "DONE" else {*old}
        files.write_json(file, {key: old[key] for key in keys})
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert {v.state for v in verdicts(path)} == {"unchecked"}
    told = flips.Told()
    flips.go_on(path, task, told)
    assert told.notes == []
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


# Another machine.


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, task, monkeypatch):
    path = tmp_path / "run"
    here = jobs.measure.device()
    with pytest.raises(flips.Stop):
        flips.go_on(path, task, flips.StopAt("train", 9))
    there = {**here, "threads": here["threads"] + 1}
    monkeypatch.setattr("jprune.measure.device", lambda: there)
    told = flips.Told()
    flips.go_on(path, task, told)
    (note,) = told.notes
    assert f"threads was {here['threads']} and is {there['threads']}" in note
    result = files.read_json(path / "result.json")
    assert result["device"] == there
    (earlier,) = result["earlier_machines"]
    assert (earlier["from"], earlier["device"]) == ("train", here)
    assert [name for name, _ in machines_of(outcomes_in(path))] == ["train", "train"]


# Signals.


class AskAt(flips.StopAt):
    """As Ctrl-C at a step of a stage."""

    def advance(self, step, metrics):
        if self._stage == self._where and step >= self._step:
            interrupts._State.asked = signal.SIGINT


@pytest.mark.parametrize(("stage", "step"), [("train", 5), ("prune", 0), ("finetune", 2)])
def test_a_run_that_is_asked_to_end_saves_the_step_that_it_is_at(
    tmp_path, finished, task, monkeypatch, stage, step
):
    path = tmp_path / "run"
    monkeypatch.setattr(interrupts._State, "asked", None)
    asking = AskAt(stage, step)
    if not step:
        asking.begin = lambda name, *_: (
            name == stage and setattr(interrupts._State, "asked", signal.SIGINT)
        )
    with pytest.raises(interrupts.Interrupted) as caught:
        jobs.prune(flips.JOB, path, "command", asking, measure_seconds=0.0, task=task)
    assert caught.value.code == 130
    if step:
        # `advance` is called one step behind.
        assert inside.steps_of(stage_of(path, stage) / "steps") == [step + 1]
        assert f"{stage} is saved up to step {step + 1} of" in str(caught.value)
    else:
        assert "3 of 12 stages are saved" in str(caught.value)
    interrupts._State.asked = None
    flips.go_on(path, task, Silent())
    assert differences(path, finished) == []


def test_the_command_line_says_what_is_saved(capsys, monkeypatch):
    def stopped(settings, words):
        raise interrupts.Interrupted(signal.SIGTERM, "02-train is saved up to step 3 of 9")

    monkeypatch.setitem(main.__globals__["verbs"].TABLE, "methods", stopped)
    assert main(["methods"]) == 143
    line = "jprune: interrupted, 02-train is saved up to step 3 of 9; the same command goes on.\n"
    assert capsys.readouterr().err == line


def test_a_signal_while_a_checkpoint_is_written_is_one_line(tmp_path, task, monkeypatch, capsys):
    folders = []

    def save(folder, *rest, saved=checkpoint.save):
        folders.append(folder)
        with monkeypatch.context() as patch:  # in the middle: when digests are written
            write = lambda path, write=digests.write: (os.kill(os.getpid(), number), write(path))
            # Once: a second signal ends the process, and the tests with it.
            if len(folders) == 1:
                patch.setattr(digests, "write", write)
            saved(folder, *rest)

    number, handler = signal.SIGINT, signal.signal(signal.SIGINT, interrupts._handle)
    monkeypatch.setattr(interrupts._State, "asked", None)
    monkeypatch.setattr(interrupts._State, "word", threading.Lock())  # a test may have spoken
    monkeypatch.setattr(checkpoint, "save", save)
    with interrupts.deferred():
        run = lambda *_: jobs.prune(flips.JOB, tmp_path / "run", save_seconds=0.0, task=task)
        monkeypatch.setitem(main.__globals__["verbs"].TABLE, "methods", run)
        try:
            assert main(["methods"]) == 130
        finally:
            signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr() == (
        "",
        "jprune: interrupted, 01-train is saved up to step 5 of 9; the same command goes on.\n",
    )
    assert len(folders) == 2  # the one that was interrupted, and the one after the next step
    assert checkpoint.load(folders[0], None) is not None


def process(*arguments):
    return subprocess.Popen(
        [*kills.HEARING, sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_imports_ends_the_command_in_one_line(number):
    # Verbose imports say when jprune's own begin.
    with process("-v", "-m", "jprune.cli", "methods") as run:
        for line in run.stderr:
            if "jprune.interrupts" in line and line.startswith("import"):
                break
        run.send_signal(number)
        rest = run.stderr.read()
    assert run.returncode == 128 + number
    said = [line for line in rest.splitlines() if not line.startswith(("import", "#"))]
    assert said == ["jprune: interrupted; the same command goes on."]


BUSY = """
import sys, time
from jprune import interrupts
interrupts.install()
with interrupts.deferred():
    print("busy", flush=True)
    while not interrupts.asked():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(60)
"""


def test_a_second_signal_ends_a_run_at_once():
    with process("-c", BUSY) as run:
        assert run.stdout.readline() == "busy\n"
        run.send_signal(signal.SIGINT)
        assert run.stdout.readline() == "asked\n"
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
        assert time.monotonic() - began < 20
        assert run.stderr.read() == "jprune: interrupted; the same command goes on.\n"


def test_other_programs_keep_their_handlers():
    code = "import signal, jprune; print(signal.getsignal(signal.SIGINT).__name__)"
    with process("-c", code) as run:
        assert run.stdout.read() == "default_int_handler\n"


def test_the_kills_by_hand_meet_every_stage():
    def stages_of(method):
        budget = own.OF_ITS_OWN.get(method, Budget(macs=0.5))
        return {type(stage) for stage in own.recipe_of(method, budget)}

    every = set().union(*map(stages_of, recipes.METHODS))
    assert every == set().union(*map(stages_of, kills.METHODS))


@pytest.mark.slow
def test_six_kills_change_no_bit(tmp_path):
    reference = tmp_path / "whole"
    span = kills.undisturbed("taylor", reference)
    draw = np.random.default_rng(0)
    done, wrong = kills.chain("taylor", tmp_path / "killed", reference, span, 6, draw)
    assert not any(each.fault for each in done), done
    assert wrong == []
