"""Comparisons: numbers by hand, every rule of the protocol, labels everywhere, one real sweep."""

import json
import re

import pytest

from jprune import cli, compare, errors
from jprune.base import Budget
from jprune.compare import figures, page, rows, sweep
from jprune.job.main import Job
from jprune.runs import files
from jprune.runs.progress import Silent
from tests import compare_rows
from tests.compare_rows import row

HALF = ("macs", 0.5)
FINETUNE = {"epochs": 10, "learning_rate": 0.05, "steps": 4210}


def one(made, metric="accuracy"):
    (comparison,) = compare.summarize(made, metric)
    return comparison


def cell(comparison, method, budget=HALF):
    (found,) = [c for c in comparison.cells if (c.method, c.budget) == (method, budget)]
    return found


# Numbers by hand.


def test_mean_and_deviation_are_those_of_a_sample():
    values = {0: 0.90, 1: 0.92, 2: 0.97}
    made = [row("l1", seed, accuracy=value) for seed, value in values.items()]
    found = cell(one(made), "l1").spreads
    # Deviations -0.03, -0.01, 0.04: squares sum to 0.0026, over two is 0.0013.
    assert found["accuracy"] == pytest.approx((0.93, 0.0013**0.5, 3))
    assert found["before"] == pytest.approx((0.63, 0.0013**0.5, 3))
    assert found["latency"] == pytest.approx((0.6, 0, 3))
    assert found["tflite_b1"] == pytest.approx((0.03, 0, 3))
    assert found["bytes"] == pytest.approx((4 * 215_540, 0, 3))
    assert cell(one(made[:1]), "l1").spreads["accuracy"] == (0.90, None, 1)


def test_what_was_not_measured_does_not_count():
    made = [row("l1", 0, accuracy=0.9), row("l1", 1, accuracy=0.8, prune_s=None)]
    made[1]["pruned"]["bytes"] = None
    made[1]["before_finetune"] = None
    found = cell(one(made), "l1").spreads
    assert [found[name].n for name in ("accuracy", "prune_s", "bytes", "before")] == [2, 1, 1, 1]


def test_the_front_has_what_no_other_beats():
    points = {"a": (1.0, 0.99), "b": (0.5, 0.97), "c": (0.5, 0.98), "d": (0.25, 0.97)}
    points |= {"e": (0.2, 0.9), "f": (0.2, 0.9), "g": (0.3, 0.96)}
    assert compare.pareto(points) == {"a", "c", "d", "e", "f"}
    assert compare.pareto({}) == set()


def test_fronts_of_a_comparison():
    made = [row("l1", macs=0.5, accuracy=0.95), row("l2", macs=0.5, accuracy=0.96)]
    made += [row("l1", macs=0.25, accuracy=0.955), row("l2", macs=0.25, accuracy=0.97)]
    made[0]["achieved"]["latency"] = 0.1
    fronts = {(c.method, c.budget and c.budget[1]): c.fronts for c in one(made).cells}
    assert fronts == {
        ("dense", None): ("macs", "latency"),
        ("l2", 0.5): (),
        ("l1", 0.5): ("latency",),
        ("l2", 0.25): ("macs", "latency"),
        ("l1", 0.25): (),
    }
    # The other way round where less is better: the dense net has the smallest loss, 0.04.
    assert cell(one(made, "loss"), "l2", ("macs", 0.25)).fronts == ("macs", "latency")


def test_how_often_the_order_changes():
    values = {
        "a": {0: 7, 1: 5, 2: 7, 3: 1},
        "b": {0: 6, 1: 6, 2: 7},
        "c": {0: 8, 1: 6, 2: 3},
        "d": {7: 9},
    }
    # a - b: 1, -1, 0, even in the mean. a - c: -1, -1, 4. b - c: -2, 0, 4. Of d no seed is shared.
    changes = {(one, other): counts for one, other, *counts in compare.rank_changes(values)}
    assert changes == {("a", "b"): [1, 3], ("a", "c"): [2, 3], ("b", "c"): [1, 3]}
    turned = {(one, other): counts for one, other, *counts in compare.rank_changes(values, False)}
    assert turned == {("a", "b"): [1, 3], ("c", "a"): [2, 3], ("c", "b"): [1, 3]}


def test_orders_of_a_comparison_go_by_the_metric():
    made = [row("l1", seed, accuracy=0.9 + 0.01 * seed, prune_s=1.0) for seed in range(3)]
    made += [row("l2", seed, accuracy=0.915, prune_s=2.0) for seed in range(3)]
    assert one(made).orders == [(HALF, "l2", "l1", 1, 3)]
    assert one(made, "prune_s").orders == [(HALF, "l1", "l2", 0, 3)]
    assert [c.method for c in one(made).cells] == ["dense", "l2", "l1"]


def test_random_is_named_where_it_wins():
    assert one(compare_rows.rows()).findings == [
        "At 25 % of the MACs random is as good as or better than l2."
    ]


# Rows into arms.


def test_the_dense_net_is_an_arm():
    made = [row("l1", seed) for seed in (0, 1)]
    made[1]["dense"] = compare_rows.net(0.97, 1.0)
    found = cell(one(made), "dense", None)
    assert found.spreads["accuracy"] == pytest.approx((0.98, 0.0002**0.5, 2))
    assert found.spreads["macs"].mean == 1
    assert found.spreads["before"] is None
    assert found.spreads["validation"].mean == 0.985
    own = row("dense", 0, None, 0.95)
    assert cell(one([*made, own]), "dense", None).spreads["accuracy"].mean == pytest.approx(0.96)
    own |= {"pruned": None, "achieved": None}
    found = cell(one([own]), "dense", None)
    assert (found.spreads["accuracy"].mean, found.spreads["latency"].mean) == (0.99, 1)


def test_settings_tell_arms_of_one_method_apart():
    made = [row("taylor", 0, settings={"options": {"rounds": n}, "epochs": 3}) for n in (1, 5)]
    made += [row("l1", 0, settings={"epochs": 3})]
    assert {c.method for c in one(made).cells if c.budget} == {
        "taylor options.rounds=1",
        "taylor options.rounds=5",
        "l1",
    }


def test_of_a_seed_that_was_run_again_the_last_row_counts():
    found = one([row("l1", 0, accuracy=0.5), row("l1", 0, accuracy=0.9)])
    assert cell(found, "l1").spreads["accuracy"] == (0.9, None, 1)
    assert found.notes == ["1 of the rows were run again later: of one seed, the last row counts."]


def test_rows_of_several_tasks_are_compared_apart():
    made = [row(), row(model="resnet8", data="cifar10", train_images=5000), row(seed=1)]
    titles = [(c.title, c.seeds) for c in compare.summarize(made)]
    assert titles == [
        ("lenet5 on mnist", 2),
        ("resnet8 on cifar10 (5,000 training images)", 1),
    ]


# The protocol.


def test_a_fair_comparison_has_no_label():
    assert one(compare_rows.rows()).breaches == []


def without(method, macs=None):
    return [
        made
        for made in compare_rows.rows()
        if made["method"] != method or (macs and made["budget"] != {"macs": macs})
    ]


def with_first(**changes):
    first, *others = compare_rows.rows()
    return [first | changes, *others]


@pytest.mark.parametrize(
    ("made", "rule", "says"),
    [
        (without("scratch_e"), "baselines", "baselines missing: scratch_e"),
        (without("l1", 0.5), "baselines", "baselines missing at 50 % of the MACs: l1"),
        (with_first()[1:], "seeds", "fewer than 3 seeds: random 2"),
        (
            with_first(finetune={**FINETUNE, "learning_rate": 0.1}),
            "finetuning",
            "unequal fine-tuning: taylor, l1, l2 and 1 more 4210 steps at 0.05; "
            "random 4210 steps at 0.1",
        ),
        (
            with_first(finetune={**FINETUNE, "steps": 8420}),
            "finetuning",
            "; random 8420 steps at 0.05",
        ),
        (
            with_first(finetune={**FINETUNE, "epochs": 5}),
            "finetuning",
            "4210 steps (10 epochs) at 0.05; random 4210 steps (5 epochs) at 0.05",
        ),
        (with_first(dense=compare_rows.net(0.98, 1.0)), "dense", "for all methods: seeds 0"),
        (
            with_first(achieved={"macs": 0.44, "latency": 0.5}),
            "budgets",
            "budgets missed by more than 5 %: random keeps 48.0 % for 50.0 % on average, missed in "
            "1 of 3 seeds",
        ),
        (
            with_first(versions={**row()["versions"], "jax": "0.11.0"}),
            "versions",
            "mixed versions: jax 0.10.2 and 0.11.0",
        ),
        (
            with_first(device={"platform": "gpu", "kind": "H100", "threads": 1}),
            "devices",
            "mixed devices: H100 (gpu, 1 thread), Some Processor @ 2.70GHz (cpu, 2 threads)",
        ),
        (with_first(commit="abcdef0123"), "commits", "mixed commits: 2f02d7d, abcdef0"),
    ],
)
def test_what_breaks_the_protocol_is_labelled(made, rule, says):
    breaches = one(made).breaches
    assert rule in {breach.rule for breach in breaches}
    assert any(says in breach.says for breach in breaches)
    assert len(breaches) <= 2  # a seed that is missing breaks two rules


def test_other_seeds_are_no_comparison():
    made = [
        found | {"seed": found["seed"] + 1} if found["method"] == "l2" else found
        for found in compare_rows.rows()
    ]
    assert [b.says for b in one(made).breaches] == [
        "not the same seeds for all: some are missing for taylor, scratch_b, l1 and 3 more"
    ]


def test_rounding_of_steps_and_of_widths_breaks_nothing():
    made = with_first(finetune={**FINETUNE, "steps": 4200}, achieved={"macs": 0.48})
    assert one(made).breaches == []


def test_training_from_scratch_is_no_fine_tuning():
    longer = {"epochs": 20, "learning_rate": 0.1, "steps": 9000}
    made = [
        found | {"finetune": longer} if found["method"].startswith("scratch") else found
        for found in compare_rows.rows()
    ]
    assert one(made).breaches == []


def test_a_loaded_net_is_noted():
    made = [found | {"settings": {"weights": "pretrained"}} for found in compare_rows.rows()]
    assert "nothing was chosen on them" in one(made).notes[0]


# What is shown.

SAYS = "fewer than 3 seeds: taylor 2, scratch_b 2, l1 2 and 3 more"


@pytest.fixture(scope="module")
def unfair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return compare_rows.write(folder / "family/made_up.jsonl", compare_rows.rows(seeds=2)).parent


def test_every_output_has_the_label(unfair, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    drawn = []
    monkeypatch.setattr(
        figures,
        "_labels",
        lambda given, real=figures._labels: drawn.append(real(given)) or drawn[-1],
    )
    assert cli.main(["compare", str(unfair), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[:-2])) <= 80
    assert SAYS in shown
    assert "  taylor" in shown
    assert SAYS in (tmp_path / "comparison.html").read_text()
    found = json.loads((tmp_path / "comparison.json").read_text())["comparisons"][0]
    assert (found["fair"], found["breaches"]) == (False, [{"rule": "seeds", "says": SAYS}])
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert [SAYS in " ".join(lines) for lines in drawn] == [True] * len(drawn) != []
    assert f"Not a fair comparison: {SAYS}" in figures.svg(compare.summarize(compare_rows.rows(2)))


def test_a_fair_one_says_so_in_the_page():
    text = page.html(compare.summarize(compare_rows.rows()))
    assert "It keeps to the protocol" in text
    assert "Not a fair comparison" not in text
    assert "97.37\N{NO-BREAK SPACE}%" in text  # taylor at half the MACs
    assert "https://" not in text
    assert not re.search(r'(src|href)="(?!#)', text)


def test_json_and_quiet(unfair, capsys):
    assert cli.main(["compare", str(unfair), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(compare.plain(compare.summarize(compare_rows.rows(2)))))
    assert set(found["comparisons"][0]["cells"][0]["metrics"]) == set(compare.METRICS)
    assert cli.main(["compare", str(unfair / "made_up.jsonl"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_equal_rows_give_equal_pictures():
    made = compare_rows.rows()
    assert figures.png(compare.summarize(made)) == figures.png(compare.summarize(made))


# Bad input.


def complaint(capsys, *words, code=2):
    assert cli.main(["compare", *map(str, words)]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


RUNS = ("--model", "lenet300", "--data", "digits", "--methods", "l1", "--macs", "0.5")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("{}", "--metric", "acuracy"), "no metric 'acuracy'; did you mean accuracy?"),
        (("{}", "--seeds", "0"), "--seeds is for runs that are still to be done, and"),
        (("{}/none",), "none is not there. Write a file of rows (.jsonl)"),
        ((), "--model is missing. Write finished runs or a folder of rows, or --model"),
        (RUNS[:4], "--methods is missing."),
        (RUNS[:6], "exactly one of --macs, --params and --density; none came."),
        ((*RUNS, "--params", "0.5"), "--macs and --params came."),
        ((*RUNS, "--seeds", "1,1"), "'1,1' are no different seeds. Write some, such as 0,1,2."),
        ((*RUNS[:-1], "0.5,2"), "2 is outside (0, 1]"),
        ((*RUNS[:5], "l1,tailor", *RUNS[6:]), "did you mean taylor?"),
        ((*RUNS[:-1], "0.5,0.0001"), "Ask for"),
        ((*RUNS, "--set", "rounds=3"), "--set rounds=3: write METHOD.OPTION=VALUE with one of l1"),
        ((*RUNS, "--set", "l1.round=3"), "no option 'round=3'; did you mean rounds?"),
    ],
)
def test_bad_arguments(unfair, tmp_path, capsys, words, says):
    out = () if words and "{}" in words[0] else ("--out", tmp_path)
    assert says in complaint(capsys, *(str(word).format(unfair) for word in words), *out)


def test_no_rows(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("")
    assert "there are no rows in" in complaint(capsys, tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": 2}, "a.jsonl, line 2, has schema 2; this version of jprune reads 1. Update"),
        ({"schema": None}, "has schema None; this version of jprune reads 1. Run its command"),
        ({"seed": None}, "a.jsonl, line 2, has null at `seed`; a whole number"),
        ({"versions": {}}, "has an empty `versions`"),
        ({"budget": {"macs": 0.5, "params": 0.5}}, "at `budget`; one fraction that is kept was"),
        ({"budget": None}, "has no budget, but its method is l1. Only `dense` has none."),
    ],
)
def test_rows_that_cannot_be_compared(tmp_path, capsys, changes, says):
    compare_rows.write(tmp_path / "a.jsonl", [row(), {**row(seed=1), **changes}])
    assert says in complaint(capsys, tmp_path, code=1)


def test_rows_without_a_key_and_lines_that_are_no_rows():
    lacking = row()
    del lacking["prune_s"]
    with pytest.raises(errors.CheckpointError, match="a, has no `prune_s`"):
        rows.check(lacking, "a")
    with pytest.raises(errors.CheckpointError, match="is no row: it has no `schema`"):
        rows.check({"net": "VGG16"}, "a")


def test_a_torn_line_is_left_out_and_said(tmp_path):
    file = compare_rows.write(tmp_path / "a.jsonl", [row(), row(seed=1)])
    file.write_text(file.read_text()[:-20])
    found = compare.read([file])
    assert len(found.rows) == 1
    assert found.notes == ["The last line of a.jsonl is torn and was left out."]


def test_a_digit_that_is_not_as_it_was_written_is_seen(tmp_path):
    file = tmp_path / "rows.jsonl"
    files.write_lines(file, [row(seed=7), row(seed=1)], digest=True)
    assert [each["seed"] for each in compare.read([file]).rows] == [7, 1]
    file.write_text(file.read_text().replace('"seed": 7', '"seed": 3'))
    with pytest.raises(errors.CheckpointError, match=r"line 1, is damaged: it is not what was wri"):
        compare.read([file])


# Runs.


def test_baselines_are_added():
    assert sweep.with_baselines(["l1", "taylor"])[:3] == ("l1", "taylor", "random")
    with pytest.raises(errors.ArgumentError, match="did you mean taylor"):
        sweep.with_baselines(["tailor"])


def test_the_learning_rate_with_the_best_validation_accuracy_is_chosen():
    rate, note = sweep.best_rate({0.015: 0.97, 0.05: 0.981, 0.15: 0.981}, "l1")
    assert rate == 0.05
    assert "chosen among 0.015 (97.0 %), 0.05 (98.1 %) and 0.15 (98.1 %) with l1, seed 0" in note
    with pytest.raises(errors.DivergenceError, match="diverged at every learning rate"):
        sweep.best_rate({}, "l1")


class Notes(Silent):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "two"
    budget = Budget(macs=0.5)
    job = Job("lenet300", "digits", "l1", budget, finetune_learning_rate=0.02, max_steps=2)
    plan = sweep.Sweep(job, ("l1", "random"), (budget,), (3,), "jprune compare")
    notes = Notes()
    return out, plan, notes, sweep.run(plan, out, notes)


def test_a_sweep_leaves_rows(swept):
    out, _, notes, found = swept
    assert [made["id"] for made in found.rows] == ["l1-macs0.5-seed3", "random-macs0.5-seed3"]
    for made in found.rows:
        rows.check(made, "row")
        result = json.loads((out / "runs" / made["id"] / "result.json").read_text())
        assert made["pruned"] == result["pruned"]
        assert made["finetune"] == {"epochs": 0.1111, "learning_rate": 0.02, "steps": 2}
        assert made["prune_s"] == pytest.approx(result["wall_s"]["prune"], abs=1e-3)
        assert 0 < made["validation"]["pruned"] < 1
        assert (made["config"], made["seed"], made["budget"]) == ("two", 3, {"macs": 0.5})
    assert files.read_lines(out / "rows.jsonl").records == found.rows
    assert notes.said[0] == "run 1 of 2: l1, 50 % of the MACs, seed 3"
    assert notes.said[1].startswith("run 2 of 2: random, 50 % of the MACs, seed 3, about ")
    assert found.notes == ["The learning rate of fine-tuning, 0.02, was given, not chosen."]
    (comparison,) = compare.summarize(found.rows)
    rules = {breach.rule for breach in comparison.breaches}
    assert rules >= {"baselines", "seeds"}
    assert not rules & {"finetuning", "dense", "versions", "devices"}
    assert {c.method for c in comparison.cells} == {"dense", "l1", "random"}


def test_a_folder_in_which_another_process_compares_is_left_alone(swept):
    out, plan, notes, _ = swept
    message = "in use by another run"
    with files.locked(out), pytest.raises(errors.InUseError, match=message):
        sweep.run(plan, out, notes)


def test_the_dense_net_of_a_seed_is_trained_once(swept):
    out, _, _, found = swept
    folders = [out / "runs" / made["id"] for made in found.rows]
    done = [files.read_json(folder / "stages/01-train/DONE")["wall_s"] for folder in folders]
    assert done[0] == done[1]
    one, other = (
        [r for r in files.read_lines(f / "records.jsonl").records if r["stage"] == "train"]
        for f in folders
    )
    assert [r["metrics"] for r in one] == [r["metrics"] for r in other]
    assert [other[0][key] for key in ("run", "method")] == ["random-macs0.5-seed3", "random"]
    assert found.rows[0]["dense"]["loss"] == found.rows[1]["dense"]["loss"]


def test_a_shared_training_changes_no_number(swept, tmp_path):
    out, plan, _, found = swept
    job = sweep._job(plan, "random", plan.budgets[0], 3)
    sweep.jobs.prune(job, tmp_path / "alone")
    alone = rows.row_of(tmp_path / "alone")
    for name in ("dense", "before_finetune", "pruned"):
        timeless = ({**made[name], "latency_ms": None} for made in (alone, found.rows[1]))
        assert next(timeless) == next(timeless)
    assert alone["validation"] == found.rows[1]["validation"]
    for file in ("plan.json", "model.tflite", "config.json"):
        shared = out / "runs" / found.rows[1]["id"] / file
        assert (tmp_path / "alone" / file).read_bytes() == shared.read_bytes()


def test_options_of_methods_and_settings_of_all(tmp_path, capsys):
    words = "compare --model lenet300 --data digits --methods l2 --macs 0.5 --seeds 3 --steps 2"
    more = "--finetune-learning-rate 0.02 --set l2.allocator=global_topk --freeze params/fc1/*"
    given = [*words.split(), *more.split(), "--distill", "0.5", "--out", str(tmp_path), "--json"]
    assert cli.main(given) == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert "l2 was run with allocator=global_topk." in found["notes"]
    assert "params/fc1/* stayed whole." in found["notes"]
    settings = {
        name: json.loads((tmp_path / "runs" / f"{name}-macs0.5-seed3" / "config.json").read_text())
        for name in ("l1", "l2")
    }
    assert (settings["l1"]["options"], settings["l2"]["options"]) == (
        {}, {"allocator": "global_topk"}
    )  # fmt: skip
    assert all(each["budget"]["floors"] == {"params/fc1/kernel": 300} for each in settings.values())
    assert all(each["finetune"]["distill"] == 0.5 for each in settings.values())


def test_a_sweep_goes_on_where_it_stopped(swept):
    out, plan, _, found = swept
    before = {file: file.stat().st_mtime_ns for file in out.rglob("DONE")}
    (out / "rows.jsonl").unlink()
    assert sweep.run(plan, out, Silent()).rows == found.rows
    assert {file: file.stat().st_mtime_ns for file in out.rglob("DONE")} == before
    changed = plan._replace(job=plan.job.__class__(**{**vars(plan.job), "batch_size": 32}))
    with pytest.raises(errors.CheckpointError, match=r"finetune\.batch_size is 64 there and 32"):
        sweep.run(changed, out, Silent())


def test_a_run_that_diverges_is_noted(swept, tmp_path, monkeypatch):
    _, plan, _, _ = swept

    def diverge(*_, **__):
        raise errors.DivergenceError("the loss was inf")

    monkeypatch.setattr(sweep.jobs, "prune", diverge)
    found = sweep.run(plan._replace(methods=("l1",)), tmp_path, Silent())
    assert found.rows == []
    assert found.notes[1:] == ["l1 at 50 % of the MACs diverged with seed 3."]


def test_three_rates_are_tried_with_l1(swept, tmp_path, monkeypatch):
    _, plan, _, _ = swept
    tried = []

    def one(job, path, first, *_):
        tried.append((job.method, job.seed, job.finetune_learning_rate, path.parent.name))
        better = job.finetune_learning_rate < 0.01
        return row("l1", job.seed, validation={"dense": 0.9, "pruned": 0.8 + 0.1 * better})

    monkeypatch.setattr(sweep, "_one", one)
    job = Job(**{**vars(plan.job), "finetune_learning_rate": None})
    sweep.run(plan._replace(job=job, methods=("random",)), tmp_path, Silent())
    assert tried == [
        ("l1", 0, 0.0075, "rates"),
        ("l1", 0, 0.025, "rates"),
        ("l1", 0, 0.075, "rates"),
        ("random", 3, 0.0075, "runs"),
    ]


def test_the_table_of_the_page_sorts_by_what_is_measured():
    comparison = one(compare_rows.rows())
    text = page.html([comparison])
    (table,) = re.findall(r'<table class="sorts">.*?</table>', text)
    lines = re.findall(r"<tr>.*?</tr>", table)[1:]
    assert len(lines) == len(comparison.cells)
    for line, cell in zip(lines, comparison.cells):
        (first, *_) = re.findall(r'data-key="([^"]+)"', line)
        assert float(first) == cell.spreads["accuracy"].mean
        unmeasured = [part for part in re.findall(r"<td.*?</td>", line) if "data-key" not in part]
        assert all("unknown" in part or re.search(r"><", part) for part in unmeasured)
    assert text.count("<script>") == 1
    assert "src=" not in text
