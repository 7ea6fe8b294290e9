"""The runner: every run once, whoever comes and whatever kills it."""

import dataclasses
import doctest
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import configs, perform, rows, run, seeds, show, sweep, work
from experiments.sweep import Net, Sweep
from jprune import compare, errors
from jprune.base import Pruned
from jprune.job import main as jobs
from jprune.recipes import Train
from jprune.runs.files import read_json, write_json
from jprune.runs.progress import Silent
from jprune.stages.frame import record
from tests.toys import drawn, toy_task

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("JPRUNE_KILLS", "1"))
"""Of a process. Five take a minute, so an ordinary test makes do with one."""
SMALL = Net("lenet300", "digits", train_images=200)
SHORT = Sweep((SMALL,), ("dense", "l1", "scratch_b"), macs=(0.5,), seeds=(3,), steps=5)
COMMAND = "python -m experiments.run short"


# What is to be run.


def named(planned):
    return {each.id: (each.kind, each.job.method, each.job.seed) for each in planned}


def test_the_plan_is_seed_by_seed_behind_what_is_needed():
    net = dataclasses.replace(SMALL, rates=(0.01, 0.1))
    planned = sweep.runs(dataclasses.replace(SHORT, nets=(net,), seeds=(3, 4), macs=(0.5, 0.25)))
    assert [each.kind for each in planned] == [
        *("dense", "rate", "rate", "method", "method", "method", "method"),
        *("dense", "method", "method", "method", "method"),
    ]
    places = {each.id: place for place, each in enumerate(planned)}
    for each in planned:
        assert all(places[need] < places[each.id] for need in each.needs)
        assert each.kept == (each.kind != "rate")
    last = planned[-1]
    assert [planned[places[need]].title for need in last.needs] == [
        "lenet300 digits dense seed 4",
        "lenet300 digits l1 macs0.5 seed 3 at 0.01",
        "lenet300 digits l1 macs0.5 seed 3 at 0.1",
    ]


def test_ids_change_with_settings_and_code_and_with_nothing_else(monkeypatch):
    ids = named(sweep.runs(SHORT))
    assert len(ids) == 3
    # How a sweep is called, and what else is in it, is no setting of a run.
    wider = dataclasses.replace(SHORT, seeds=(0, 3), methods=(*SHORT.methods, "l2"), family="x")
    assert ids.items() <= named(sweep.runs(wider)).items()
    longer = named(sweep.runs(dataclasses.replace(SHORT, steps=6)))
    assert not set(ids) & set(longer)
    finetuned = dataclasses.replace(SMALL, finetune_epochs=2.0)
    again = named(sweep.runs(dataclasses.replace(SHORT, nets=(finetuned,))))
    shared = [kind for id, (kind, _, _) in again.items() if id in ids]
    assert shared == ["dense"]  # it is not fine-tuned
    monkeypatch.setattr(sweep, "code_of", lambda method: "another")
    assert not set(ids) & set(named(sweep.runs(SHORT)))


def test_the_code_version_is_that_of_the_source(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    for name in ("__init__.py", "a.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(sweep.jprune, "__file__", str(package / "__init__.py"))
    first = sweep.code_version.__wrapped__()
    (package / "note.txt").write_text("no code")
    assert sweep.code_version.__wrapped__() == first
    (package / "a.py").write_text("x = 2\n")
    assert sweep.code_version.__wrapped__() != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, r"there are no seeds; write at least one, such as --seeds 0 1 2"),
        ({"seeds": (0, 1, 0)}, r"0 is there twice among the seeds: two runs would have one id"),
        ({"seeds": (-1,)}, r"seeds=\(-1,\); a seed is 0 or more"),
        ({"methods": ("l1", "tailor")}, r"no method 'tailor'; did you mean taylor\?"),
        ({"methods": ("l1:round=2",)}, r"l1 has no option 'round=2'; did you mean rounds\?"),
        ({"methods": ("l1", "l1:")}, r"have one id, .*they have the same settings"),
        ({"macs": ()}, r"there are no budgets for dense, l1, scratch_b"),
        ({"macs": (1.5,)}, r"outside \(0, 1\]"),
        ({"nets": ()}, r"there are no nets"),
    ],
)
def test_sweeps_that_cannot_be(changes, message):
    with pytest.raises(errors.ArgumentError, match=message):
        sweep.runs(dataclasses.replace(SHORT, **changes))


def test_a_rate_is_given_or_chosen():
    with pytest.raises(errors.ArgumentError, match="either it is given or it is chosen"):
        Net("lenet5", "mnist", finetune_learning_rate=0.1, rates=(0.1,))


def test_configurations_say_what_to_expect_and_how_to_run_them():
    for name in run.names():
        config = run.find(name)
        assert sweep.runs(config)
        header = sys.modules[f"experiments.configs.{name}"].__doc__ or ""
        assert "xpected" in header
        assert f"python -m experiments.run {name}" in header
    assert configs.__doc__


def test_the_first_comparison_is_fair_by_its_plan():
    planned = [each for each in sweep.runs(run.find("first_comparison")) if each.kept]
    assert len(planned) == 2 * 3 * (1 + 2 * 6)
    for net in ("lenet5", "resnet8"):
        methods = {each.job.method for each in planned if each.job.model == net}
        assert methods >= {*compare.BASELINES, "l2", "taylor"}


# Who does it. The runs themselves do nothing here.


class Fake:
    """Stands for what a run does: writes down its end, and whatever a test wants in between."""

    def __init__(self):
        self.done = []
        self.before = {}

    def __call__(self, each, needs, place, progress):
        assert {need.id for need in needs.values()} == set(each.needs)
        self.before.get((each.kind, each.job.seed), lambda: None)()
        self.done.append((each.kind, each.job.method, each.job.seed))
        place.of(each).mkdir(parents=True, exist_ok=True)
        (place.of(each) / "result.json").write_text("{}")
        return {"schema": 1, "id": each.id, "wall_s": {}, **each.identity}


@pytest.fixture
def fake(monkeypatch):
    made = Fake()
    monkeypatch.setattr(work, "perform", made)
    return made


def given(folder, of=SHORT, **changes):
    options = {"runs": folder / "runs", "results": folder / "results", "quiet": True, **changes}
    return run.Given(of, **options)


def place_of(folder):
    return perform.Place("short", "short", folder / "runs", folder / "results", COMMAND)


def result(folder):
    return rows.read(place_of(folder).rows)


def test_every_run_is_done_once(tmp_path, fake):
    of = dataclasses.replace(SHORT, seeds=(0, 1))
    assert run.run(given(tmp_path, of), "short", COMMAND) == 0
    methods = ("dense", "l1", "scratch_b")
    expected = [("dense" if m == "dense" else "method", m, s) for s in (0, 1) for m in methods]
    assert fake.done == expected
    assert [row["method"] for row in result(tmp_path)] == [*methods, *methods]
    assert run.run(given(tmp_path, of), "short", COMMAND) == 0
    assert fake.done == expected
    # Another scratch folder, and other seeds: rows are found, nets that are needed made again.
    wider = given(tmp_path, dataclasses.replace(of, seeds=(1, 2)), runs=tmp_path / "others")
    assert run.run(wider, "other", COMMAND) == 0
    assert fake.done[6:] == [("dense", "dense", 2), ("method", "l1", 2), ("method", "scratch_b", 2)]
    assert list(tmp_path.rglob(".claims/*")) == []
    # Every sweep has all of its rows, those of another one once.
    other = rows.read(tmp_path / "results" / "other" / "other.jsonl")
    assert run.run(wider, "other", COMMAND) == 0
    assert other == rows.read(tmp_path / "results" / "other" / "other.jsonl")
    assert [row["seed"] for row in other] == [1, 1, 1, 2, 2, 2]
    assert other[:3] == result(tmp_path)[3:]


def test_one_net_of_a_sweep(tmp_path, fake, capsys):
    other = dataclasses.replace(SMALL, model="resnet8")
    of = dataclasses.replace(SHORT, nets=(SMALL, other))
    assert run.run(given(tmp_path, of, only=("resnet8",)), "short", COMMAND) == 0
    assert {row["model"] for row in result(tmp_path)} == {"resnet8"}
    assert run.run(given(tmp_path, of), "short", COMMAND) == 0
    assert {row["model"] for row in result(tmp_path)} == {"resnet8", SMALL.model}
    words = ("smoke", "--only", "lenet30", "--results", str(tmp_path / "none"))
    assert run.main(words) == 2
    assert "only='lenet30'; did you mean" in capsys.readouterr().err


def test_a_net_whose_row_is_there_is_made_again_where_it_is_needed(tmp_path, fake):
    first = dataclasses.replace(SHORT, methods=("dense",))
    assert run.run(given(tmp_path, first), "short", COMMAND) == 0
    shutil.rmtree(tmp_path / "runs")
    assert run.run(given(tmp_path), "short", COMMAND) == 0
    assert [kind for kind, _, _ in fake.done] == ["dense", "dense", "method", "method"]
    assert [row["method"] for row in result(tmp_path)] == ["dense", "l1", "scratch_b"]


def test_a_row_with_the_id_of_another_run_is_refused(tmp_path, fake):
    run.run(given(tmp_path), "short", COMMAND)
    file = place_of(tmp_path).rows
    found = [{**row, "seed": 4, "settings": {"steps": 6}} for row in rows.read(file)]
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    message = r"a row has the id \S+ and other settings: seed is 4 there and 3 here; settings is"
    with pytest.raises(errors.CheckpointError, match=message):
        run.run(given(tmp_path), "short", COMMAND)


def test_results_of_a_newer_schema_are_refused_before_anything_runs(tmp_path, fake):
    rows.append(tmp_path / "results" / "other" / "a.jsonl", {"schema": 2, "id": "a"})
    with pytest.raises(errors.CheckpointError, match="has schema 2; this version reads up to 1"):
        run.run(given(tmp_path), "short", COMMAND)
    assert fake.done == []


def test_a_run_in_other_hands_is_left_alone(tmp_path, fake, capfd):
    l1 = sweep.runs(SHORT)[1]
    with work.claimed(l1, place_of(tmp_path)):
        assert run.run(given(tmp_path, quiet=False), "short", COMMAND) == 1
    assert fake.done == [("dense", "dense", 3), ("method", "scratch_b", 3)]
    said = capfd.readouterr().err
    assert "2 of 3 runs have their rows" in said
    assert f"left alone: {l1.title} is in use by another run: process {os.getpid()} on" in said
    assert run.run(given(tmp_path), "short", COMMAND) == 0
    assert fake.done[2:] == [("method", "l1", 3)]


def test_what_others_need_is_waited_for_and_taken_over(tmp_path, fake, capfd, monkeypatch):
    dense = sweep.runs(SHORT)[0]
    held, let_go = threading.Event(), threading.Event()

    def hold():
        with work.claimed(dense, place_of(tmp_path)):
            held.set()
            let_go.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    monkeypatch.setattr(work.time, "sleep", lambda seconds: let_go.set())
    # It dies without having done anything: then we do.
    assert run.run(given(tmp_path, quiet=False), "short", COMMAND) == 0
    holder.join()
    assert [kind for kind, _, _ in fake.done] == ["dense", "method", "method"]
    assert capfd.readouterr().err.count("waiting for lenet300 digits dense seed 3") == 1


def test_processes_share_a_sweep(tmp_path, fake):
    """Two at once, each in its turn: no run is done twice, none is left."""
    of = dataclasses.replace(SHORT, seeds=tuple(range(6)))
    for seed in of.seeds:
        fake.before["dense", seed] = fake.before["method", seed] = lambda: time.sleep(0.005)
    results = []
    call = lambda: results.append(run.run(given(tmp_path, of), "short", COMMAND))
    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake.done) == len({*fake.done}) == 18
    assert len(result(tmp_path)) == 18
    assert 0 in results


def test_one_failure_stops_only_what_needs_it(tmp_path, fake, capfd):
    def diverge():
        raise errors.DivergenceError("the loss was inf")

    fake.before["dense", 0] = diverge
    of = dataclasses.replace(SHORT, seeds=(0, 1))
    assert run.run(given(tmp_path, of, quiet=False), "short", COMMAND) == 1
    assert [seed for _, _, seed in fake.done] == [1, 1, 1]
    said = capfd.readouterr().err
    assert "3 of 6 runs have their rows" in said
    assert "failed: lenet300 digits dense seed 0: the loss was inf" in said
    assert "failed: lenet300 digits l1 macs0.5 seed 0: it needs lenet300-digits" in said
    fake.before.clear()
    assert run.run(given(tmp_path, of), "short", COMMAND) == 0


def test_a_rate_may_diverge(tmp_path, fake):
    def diverge():
        raise errors.DivergenceError("the loss was inf")

    fake.before["rate", 3] = diverge
    net = dataclasses.replace(SMALL, rates=(0.01, 0.1))
    run.run(given(tmp_path, dataclasses.replace(SHORT, nets=(net,))), "short", COMMAND)
    assert [kind for kind, _, _ in fake.done] == ["dense", "method", "method"]


def test_words_that_cannot_be(tmp_path, capsys):
    there = "filter_methods, filters, filters_smoke, first_comparison, smoke, weight_methods"
    for words, message in {
        ("first_comparision",): f"did you mean first_comparison? experiments/configs has {there}",
        ("smoke", "--workers", "0"): "workers=0 for",
        ("smoke", "--nets.0.model", "lenet6", "--results", str(tmp_path)): "lenet5",
    }.items():
        assert run.main(words) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):  # tyro says so itself
        run.main(["smoke", "--seeds", "1", "1"])
    assert "1 is there twice among the seeds" in capsys.readouterr().err
    assert run.main(["--help"]) == 0
    assert f"Configurations: {there}" in capsys.readouterr().out


def test_settings_are_written_over_on_the_command_line(monkeypatch):
    seen = []
    monkeypatch.setattr(run, "run", lambda *arguments: seen.append(arguments) or 0)
    words = "first_comparison --nets.1.epochs 5 --seeds 7 --macs 0.1 --workers 2".split()
    assert run.main(words) == 0
    ((found, name, command),) = seen
    assert (found.workers, name) == (2, "first_comparison")
    assert command == f"python -m experiments.run {' '.join(words)}"
    usual = run.find("first_comparison")
    nets = (usual.nets[0], dataclasses.replace(usual.nets[1], epochs=5.0))
    assert found.sweep == dataclasses.replace(usual, nets=nets, seeds=(7,), macs=(0.1,))


def test_time_left_is_from_runs_of_the_same_kind():
    planned = sweep.runs(dataclasses.replace(SHORT, seeds=(0, 1)))
    shown = show.Show(planned, planned, {}, workers=2, quiet=True)
    assert shown.left() == ""
    teller = shown.teller(0)
    for each, seconds in zip(planned[:3], (30.0, 10.0, 50.0)):
        teller.started(each)
        teller.finished(each, seconds)
    assert shown.left() == "about 45 s left"  # (30 + 10 + 50) / 2
    row = {"method": "l1", "wall_s": {"train": 30.0, "prune": 1.0, "finetune": 5.0}}
    resumed = show.Show(planned, planned[4:5], {planned[1].id: row}, workers=1, quiet=True)
    assert resumed.left() == "about 6.0 s left"


def test_a_net_that_is_done_tells_how_long_another_one_takes():
    nets = (Net("lenet300", "digits"), Net("resnet8", "digits"))
    planned = sweep.runs(Sweep(nets, ("l1",), macs=(0.5,), seeds=(0,)))
    row = {"method": "l1", "wall_s": {"train": 30.0, "prune": 1.0, "finetune": 5.0}}
    shown = show.Show(planned, planned[-1:], {planned[1].id: row}, workers=1, quiet=True)
    assert shown.left().endswith("left")


# The runs themselves, short: what is not about numbers is left out.


@dataclasses.dataclass(frozen=True)
class Nothing:
    name: str

    def __call__(self, pruned, task, key):
        nets = {"dense": {"bytes": 8}, "pruned": {"bytes": 4}}
        return pruned, [record(self.name, nets if self.name == "measure" else {})]


def shortened(patch):
    for module in (perform, jobs):
        patch.setattr(module, "Export", lambda *arguments: Nothing("export"))
        patch.setattr(module, "Measure", lambda *arguments: Nothing("measure"))
    patch.setattr("jprune.report.html", lambda folder: None)
    patch.setattr("jprune.measure.commit", lambda: None)  # it may change while tests run
    patch.setattr(sweep, "code_version", lambda: "of these tests")


@pytest.fixture(scope="module")
def short():
    with pytest.MonkeyPatch.context() as patch:
        shortened(patch)
        yield patch


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, short):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run.run(given(folder), "short", COMMAND) == 0
    return folder


def timeless(found):
    """Rows without times, in the order of their ids."""
    return sorted(
        (
            {name: row[name] for name in row if name not in ("wall_s", "date", "prune_s")}
            for row in found
        ),
        key=lambda row: row["id"],
    )


def test_rows_are_as_the_comparison_reads_them(undisturbed):
    found, notes = compare.read([undisturbed / "results"])
    assert (found, notes) == (result(undisturbed), [])
    dense, l1, scratch = found
    assert [row["config"] for row in found] == ["short"] * 3
    assert {row["command"] for row in found} == {COMMAND}
    assert all(row["settings"] == {"steps": 5} for row in found)
    assert all((row["train_images"], row["seed"]) == (200, 3) for row in found)
    assert dense["budget"] is None
    assert dense["finetune"] is dense["before_finetune"] is dense["prune_s"] is None
    assert dense["achieved"]["macs"] == dense["achieved"]["params"] == 1
    assert l1["dense"]["accuracy"] == dense["pruned"]["accuracy"] == scratch["dense"]["accuracy"]
    assert l1["budget"] == {"macs": 0.5}
    assert l1["achieved"]["macs"] == pytest.approx(0.5, abs=0.05)
    assert l1["achieved"]["bytes"] == 0.5
    assert l1["finetune"] == {"epochs": 1.6667, "learning_rate": 0.025, "steps": 5, "tried": None}
    assert l1["validation"]["dense"] == dense["validation"]["pruned"] > 0
    assert scratch["refs"] == [49]
    (comparison,) = compare.summarize(found)
    assert comparison.cells[0].method == "dense"
    assert len(comparison.cells) == 3
    assert not {breach.rule for breach in comparison.breaches} & {"dense", "finetuning"}


def test_the_dense_net_is_trained_once(undisturbed):
    times = {
        json.loads(file.read_text())["wall_s"]
        for file in undisturbed.glob("runs/*/stages/01-train/DONE")
    }
    assert len(times) == 1
    for folder in (undisturbed / "runs").glob("lenet*"):
        trained = [line for line in rows.read(folder / "records.jsonl") if line["stage"] == "train"]
        assert {line["run"] for line in trained} == {folder.name}


class Killed(BaseException):
    """Stands for a SIGKILL where one process has to do."""


def test_five_kills_change_no_number(tmp_path, undisturbed, monkeypatch):
    """At random moments, between two messages of a worker."""
    rng = random.Random(0)
    told = 0

    def receive(self, worker, message):
        nonlocal told
        told -= 1
        if told == 0:
            raise Killed

    monkeypatch.setattr(show.Show, "receive", receive)
    for _ in range(5):
        told = rng.randint(1, 6)
        with pytest.raises(Killed):
            run.run(given(tmp_path), "short", COMMAND)
    assert run.run(given(tmp_path), "short", COMMAND) == 0
    assert timeless(result(tmp_path)) == timeless(result(undisturbed))


def child(folder):
    """What a process that will be shot does."""
    shortened(pytest.MonkeyPatch())
    run.run(given(Path(folder)), "short", COMMAND)


def test_a_process_that_is_shot_changes_no_number(tmp_path, undisturbed):
    """JPRUNE_KILLS=5 shoots five, one after the other; the last one is whoever runs this test."""
    code = "import sys\nfrom tests.runs.test_runner import child\nchild(sys.argv[1])"
    # Nothing shared with this process: a cache could be torn by the kill.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    moment = random.Random(1)
    for _ in range(KILLS):
        arguments = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(arguments, cwd=ROOT, env=environment) as process:
            while process.poll() is None and not list(tmp_path.glob("runs/.claims/*")):
                time.sleep(0.01)
            time.sleep(4 * moment.random())
            process.send_signal(signal.SIGKILL)
    assert run.run(given(tmp_path), "short", COMMAND) == 0
    assert timeless(result(tmp_path)) == timeless(result(undisturbed))


def test_a_row_that_was_torn_is_written_again(tmp_path, undisturbed, short):
    shutil.copytree(undisturbed, tmp_path / "a")
    file = place_of(tmp_path / "a").rows
    content = file.read_bytes()
    file.write_bytes(content[:-40])
    assert run.run(given(tmp_path / "a"), "short", COMMAND) == 0
    assert file.read_bytes() == content  # from its directory, which was complete
    assert file.with_name("short.jsonl.torn").exists()


def test_a_directory_of_other_settings_is_refused(tmp_path, undisturbed, short, capfd):
    shutil.copytree(undisturbed / "runs", tmp_path / "runs")
    l1 = sweep.runs(SHORT)[1]
    file = tmp_path / "runs" / l1.id / "config.json"
    write_json(file, {**read_json(file), "seed": 9})
    assert run.run(given(tmp_path, quiet=False), "short", COMMAND) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert f"failed: {l1.title}:" in said
    assert "holds a run with other settings: seed is 9 there and 3 here" in said


def test_the_best_rate_is_that_of_all(tmp_path, monkeypatch):
    net = dataclasses.replace(SMALL, rates=(0.01, 0.1, 1.0))
    of = dataclasses.replace(SHORT, nets=(net,), methods=("l1", "scratch_e", "lottery_ticket"))
    planned = sweep.runs(of)
    by_id = {each.id: each for each in planned}
    rates = []

    def prune(job, path, *arguments, **options):
        path.mkdir(parents=True)
        if job.finetune_learning_rate != 1.0:  # it diverges
            (path / "result.json").write_text("{}")
        rates.append((job.method, job.finetune_learning_rate))

    def row_of(path, *arguments):
        rate = next((r.job.finetune_learning_rate for r in planned if r.id == path.name), None)
        return {"validation": {"pruned": {0.01: 0.7, 0.1: 0.8}.get(rate)}, "finetune": {}}

    for name, stand_in in {"task_of": lambda job: None, "share_training": lambda *a: True}.items():
        monkeypatch.setattr(perform, name, stand_in)
    monkeypatch.setattr(perform, "row_of", row_of)
    monkeypatch.setattr(perform.jobs, "prune", prune)
    found = [
        perform.perform(
            each, {need: by_id[need] for need in each.needs}, place_of(tmp_path), Silent()
        )
        for each in planned
        if each.kind != "dense"
    ]
    tried = [("l1", 0.01), ("l1", 0.1), ("l1", 1.0)]
    assert rates == [*tried, ("l1", 0.1), ("scratch_e", 0.1), ("lottery_ticket", None)]
    assert found[-1]["finetune"] == {"tried": {"0.01": 0.7, "0.1": 0.8}}
    assert found[-1]["settings"] == {"steps": 5, "rates": [0.01, 0.1, 1.0]}


# Seeds together.


def test_seeds_together_are_what_each_is_alone():
    task, stage = toy_task("lenet300"), Train(2, 0.05, 16)
    keys = [jax.random.key(seed) for seed in (1, 2)]
    start = drawn(task)
    starts = [Pruned(jax.tree.map(lambda x, f=f: f * x, start), None) for f in (1.0, 0.9)]
    together, seconds = seeds.train_together(stage, starts, task, keys, Silent())
    assert seconds > 0
    for begun, key, found in zip(starts, keys, together):
        alone, (last,) = stage(begun, task, key)
        for a, b in zip(*map(jax.tree.leaves, (alone.variables, found.pruned.variables))):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert [entry["step"] for entry in found.records] == [3, 6]
        assert found.records[-1]["metrics"]["validation_accuracy"] >= 0
        assert last["step"] == 6


def test_seeds_that_diverge_together():
    window = [{"loss": np.array([1.0, np.inf])}, {"loss": np.array([1.0, 2.0])}]
    with pytest.raises(errors.DivergenceError, match=r"diverged before step 20: .*\[1.0, inf\]"):
        seeds.means(window, 20)


def test_a_sweep_may_train_its_seeds_together(tmp_path, short, undisturbed):
    of = dataclasses.replace(SHORT, seeds=(3, 4), vmap_seeds=True, methods=("dense",))
    planned = sweep.runs(dataclasses.replace(of, methods=("dense", "l1")))
    assert [each.kind for each in planned] == ["seeds", "dense", "method", "dense", "method"]
    assert run.run(given(tmp_path, of), "short", COMMAND) == 0
    alone, together = result(undisturbed)[0], result(tmp_path)[0]
    assert together["pruned"]["loss"] == pytest.approx(alone["pruned"]["loss"], rel=1e-3)
    assert together["settings"] == {"steps": 5, "vmap_seeds": True}
    assert [row["seed"] for row in result(tmp_path)] == [3, 4]


@pytest.mark.parametrize("module", [rows, show, sweep])
def test_examples(module):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, optionflags=flags).failed == 0
