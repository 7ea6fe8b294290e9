"""The report says what the files say, in one page that hostile names cannot break."""

import copy
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jprune import errors, report
from jprune.measure import Latency
from jprune.report import curves, figures, page
from jprune.report.read import Run
from tests import run_fixture

EMPTY = {"br", "meta", "link", "img", "input", "hr"}


class Reader(HTMLParser):
    """Text, elements and attributes of a page; fails on elements that do not close."""

    def __init__(self, source: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data.strip())

    def row(self, name):
        """The cells that follow a name."""
        return self.texts[self.texts.index(name) + 1 :]


def run_of(**changes) -> Run:
    files = {
        "result": run_fixture.result(),
        "records": run_fixture.records(),
        "plan": run_fixture.plan(),
        "config": run_fixture.config(),
    }
    return Run(**(files | changes))


# result.json


def paths_of(tree, prefix=()):
    """Paths of all keys that the schema names: not those of versions, wall_s and requested."""
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict) and key not in ("versions", "wall_s", "requested"):
            yield from paths_of(value, (*prefix, key))


@given(path=st.sampled_from(sorted(paths_of(run_fixture.result()))))
def test_check_names_the_key_that_is_missing(path):
    result = copy.deepcopy(run_fixture.result())
    report.check(result)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(errors.CheckpointError, match=rf"has no `{re.escape('.'.join(path))}`"):
        report.check(result)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema 2; this version of jprune reads 1"),
        (("seed",), None, "null at `seed`; a whole number was expected"),
        (
            ("dense", "accuracy"),
            "high",
            "'high' at `dense.accuracy`; a number or null was expected",
        ),
        (("dense", "params"), True, "true at `dense.params`; a whole number or null was expected"),
        (("dense",), None, "null at `dense`; an object .* was expected"),
        (("refs",), ["18"], r"'18' at `refs\[0\]`; a whole number was expected"),
        (("wall_s", "train"), None, "null at `wall_s.train`"),
    ],
)
def test_check_names_the_value_that_is_wrong(path, value, message):
    result = run_fixture.result()
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(errors.CheckpointError, match=message):
        report.check(result, "result.json")


def test_measured_leaves_null_where_nothing_was_measured():
    latency: Latency = {"median": 2.0, "p10": 1.0, "p90": 3.0}
    result = run_fixture.result()
    result["dense"] = report.measured(accuracy=0.5, xla_b1=latency)
    report.check(result)
    assert result["dense"]["latency_ms"] == {"xla_b1": latency, "xla_b128": None, "tflite_b1": None}
    assert [result["dense"][key] for key in ("loss", "params", "macs", "bytes")] == [None] * 4


# Reading a run


def test_read_run_leaves_a_torn_last_line_out(tmp_path):
    run_fixture.write(tmp_path)
    whole = report.read_run(tmp_path)
    assert whole.records == run_fixture.records()
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"run": "a", "sta')
    assert report.read_run(tmp_path).records == whole.records


def test_read_run_says_which_file_is_wrong(tmp_path):
    run_fixture.write(tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    (tmp_path / "records.jsonl").write_text("\n".join([lines[0], "torn", lines[1]]))
    with pytest.raises(errors.CheckpointError, match=r"records.jsonl, line 2, is no record"):
        report.read_run(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    run_fixture.write(tmp_path, config=[])
    with pytest.raises(errors.CheckpointError, match=r"config.json has a list .* an object"):
        report.read_run(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(errors.CheckpointError, match=r"plan.json has no `sha256`"):
        report.read_run(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(errors.CheckpointError, match=r"result.json cannot be read"):
        report.read_run(tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(errors.CheckpointError, match=r"result.json is missing"):
        report.html(tmp_path)


# The page


def test_html_writes_a_page_that_needs_nothing_else(tmp_path):
    path = report.html(run_fixture.write(tmp_path))
    assert path == tmp_path / "report.html"
    source = path.read_text()
    read = Reader(source)
    assert not {"script", "link", "img", "iframe"} & set(read.tags)
    addresses = [value for name, value in read.attributes if name in ("src", "href", "xlink:href")]
    assert all(address.startswith("#") for address in addresses)
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    assert Image.open(tmp_path / "report.png").size == (1800, 1050)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("result.json", "plan.json", "config.json", "records.jsonl"),
        *("report.html", "report.png"),
    }


def test_page_says_what_the_result_says():
    read = Reader(page.page(run_of()))
    assert "taylor on resnet8, digits" in read.texts
    assert "Asked to keep 50 % of the MACs. Seed 0." in read.texts
    assert read.row("Accuracy")[:4] == ["98.33 %", "76.67 %", "97.67 %", "−0.66 points"]
    assert read.row("Loss")[:4] == ["0.0612", "0.8431", "0.0794", "+0.0182"]
    assert read.row("Parameters")[:4] == ["75.0 k", "42.4 k", "42.4 k", "56.6 %"]
    assert read.row("MACs")[:5] == ["747 k", "not measured", "372 k", "49.7 %", "50.0 %"]
    assert read.row("File size")[:4] == ["306 kB", "not measured", "175 kB", "57.1 %"]
    assert read.row("XLA, batch 128")[:5] == [
        *("4.82 ms", "4.63 to 5.83", "3.09 ms", "2.97 to 3.74", "64.1 %")
    ]
    assert read.row("TFLite, batch 1")[:3] == ["not measured"] * 3
    assert run_fixture.COMMAND in read.texts
    assert read.row("Method")[0] == "taylor, after [18]"
    assert read.row("Device")[0] == "Some Processor @ 2.70GHz (cpu, 2 threads)"
    assert "ai-edge-litert" not in read.row("Versions")[0]
    assert read.row("Time")[0].startswith("train 1 min 2 s, prune 3.2 s, finetune 49 s")
    assert read.row("Time")[0].endswith("2 min 10 s in all")
    assert read.row("train.learning_rate")[0] == "0.1"


def test_page_says_how_the_run_is_made_again():
    again = page._again(run_of().result)
    versions = run_fixture.VERSIONS
    assert f"jprune=={versions['jprune']}" in again
    assert f"jax=={versions['jax']}" in again
    assert "ai-edge-litert" not in again  # it was not there
    assert again.splitlines()[-1] == run_fixture.COMMAND
    assert "prepare" not in again
    other = page._again({**run_of().result, "data": "cifar10", "command": ""})
    assert "jprune data prepare cifar10" in other
    assert "called from Python" in other


def test_page_shows_widths_before_and_after():
    read = Reader(page.page(run_of()))
    assert read.row("block2/conv1")[0] == "24 of 32"
    assert read.row("conv1")[:2] == ["with block1/conv2", "8 of 16"]
    assert read.row("block3/conv2")[0] == "all 32"
    bars = [value for _, value in read.attributes if value.startswith("width: ")]
    sizes = [16, 16, 32, 16, 64, 32]
    kept = [8, 8, 24, 8, 48, 32]
    expected = []
    for size, left in zip(sizes, kept):
        expected += [f"width: {100 * size / 64:.2f}%", f"width: {100 * left / size:.2f}%"]
    assert bars == expected


def test_page_gives_reasons_for_frozen_axes():
    read = Reader(page.page(run_of()))
    output = read.row("Tied to a network output")
    assert output[:4] == [
        *("params/fc/bias", ", axis 0: 10 positions", "params/fc/kernel", ", axis 1: 10 positions")
    ]
    assert ", resnet.py:128 (__call__)" in output


HOSTILE = '<script>alert("1")</script>&$body${x}\'$\\frac$'


def hostile(tree: Any) -> Any:
    """All strings replaced, keys of open dictionaries included."""
    if isinstance(tree, dict):
        return {key: hostile(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [hostile(value) for value in tree]
    return HOSTILE if isinstance(tree, str) else tree


def test_no_string_can_break_the_page(tmp_path):
    plan = hostile(run_fixture.plan())
    plan["groups"] = {HOSTILE: {"size": 4, "keep": [0], "exact": True, "places": []}}
    for place in plan["frozen"]:
        place["remedy"] = HOSTILE
    result = hostile(run_fixture.result())
    result["wall_s"] = {HOSTILE: 1.0}
    result["versions"] = {HOSTILE: HOSTILE}
    records = [
        record | {"stage": HOSTILE, "metrics": {HOSTILE + "loss": 1.0, "loss": 2.0}}
        for record in run_fixture.records()
    ]
    config = {**run_fixture.config(), HOSTILE: HOSTILE}
    run_fixture.write(tmp_path, plan=plan, result=result, records=records, config=config)
    read = Reader(report.html(tmp_path).read_text())
    assert "script" not in read.tags
    assert HOSTILE in read.texts  # the command, and others: shown as it is
    assert f"{HOSTILE} on {HOSTILE}, {HOSTILE}" in read.texts
    assert not any(HOSTILE in name for name, _ in read.attributes)


def test_page_of_a_run_that_measured_nothing(tmp_path):
    result = run_fixture.result()
    for name in ("dense", "before_finetune", "pruned"):
        result[name] = report.measured()
    result["achieved"] = dict.fromkeys(result["achieved"])
    result |= {"law_max_rel_err": None, "commit": None, "refs": []}
    plan = {**run_fixture.plan(), "groups": {}, "frozen": []}
    run_fixture.write(tmp_path, result=result, plan=plan, records=[])
    read = Reader(report.html(tmp_path).read_text())
    assert read.row("Accuracy")[:4] == ["not measured"] * 4
    assert read.row("Training")[0] == "not measured"
    assert read.row("Masked against slim")[0] == "not measured"
    assert read.row("Commit")[0] == "not a git checkout"
    assert "None: every axis can shrink." in read.texts


def test_the_same_run_gives_the_same_page():
    run = run_of()
    assert page.page(run) == page.page(run)
    assert figures.summary(run) == figures.summary(run)


def test_curve_takes_its_colours_from_the_page():
    svg = figures.curve(run_fixture.records(), "loss")
    assert svg is not None
    read = Reader(svg)
    assert {"train", "finetune", "loss", "validation loss"} <= set(read.texts)
    assert "stroke: var(--slim)" in svg
    assert "#00000" not in svg
    assert "DejaVu" not in svg
    names = [value for name, value in read.attributes if name == "id"]
    assert len(set(names)) == len(names)
    assert all(name.startswith("loss-") for name in names)
    assert figures.curve(run_fixture.records(), "perplexity") is None


def test_summary_draws_sixty_groups():
    groups = {f"params/block{n}/conv1/kernel": (8 + n, 1 + n, ()) for n in range(60)}
    picture = figures.summary(run_of(plan=run_fixture.plan(groups)))
    assert Image.open(io.BytesIO(picture)).size == (1800, 1050)


# Curves


def record(stage, step, **metrics):
    return {"stage": stage, "step": step, "metrics": metrics}


def test_series_puts_stages_one_after_the_other():
    records = [
        record("train", 0, loss=3.0, accuracy=0.1),
        record("train", 10, loss=1.0),
        record("slim", 0, seconds=1.0),
        record("finetune", 100, loss=2.0),
        record("finetune", 105, loss=0.5, validation_loss=0.7),
    ]
    assert curves.series(records, "loss") == [
        curves.Series("train", "loss", [0, 10], [3.0, 1.0]),
        curves.Series("finetune", "loss", [10, 15], [2.0, 0.5]),
        curves.Series("finetune", "validation_loss", [15], [0.7]),
    ]


def test_series_takes_what_was_recorded_last():
    records = [record("train", step, loss=loss) for step, loss in ((0, 3.0), (5, 9.0), (5, 2.0))]
    assert curves.series(records, "loss")[0].values == [3.0, 2.0]


@given(count=st.integers(1, 2000))
def test_series_is_thinned_and_keeps_both_ends(count):
    (series,) = curves.series([record("train", n, loss=float(n)) for n in range(count)], "loss")
    assert len(series.steps) <= curves.LONGEST + 1
    assert (series.steps[0], series.steps[-1]) == (0, count - 1)
    assert series.values == [float(step) for step in series.steps]
    assert series.steps == sorted(set(series.steps))


def test_fixture_is_what_other_programs_read(tmp_path):
    run_fixture.write(tmp_path)
    report.check(json.loads((tmp_path / "result.json").read_text()))
    first = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[0])
    assert {"run", "stage", "step", "metrics", "versions", "device"} <= set(first)
