"""The command line: exit codes, one-line complaints, help texts, and every verb."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import jprune
from jprune import cli, report, survey
from jprune.cli import options, show, verbs
from jprune.cli.parse import sentence
from jprune.export import load_stablehlo, run_tflite
from jprune.graph.couple.rules import RULES
from jprune.runs import files
from jprune.runs.progress import Lines

PRUNE = "prune --model tests.toys:tiny --data digits --method l1 --macs 0.5 --multiple-of 4"
# What `import jprune` brings is allowed; these take seconds.
SLOW = "flax orbax tensorflow_datasets matplotlib sklearn grain ai_edge_litert".split()


def complaint(capsys, command, code=2):
    """The one line on the error stream of a command that fails."""
    assert cli.main(command.split()) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jprune: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "no verb came; write one of prune, compare, inspect, report, export, check, bench"),
        ("prun", "no verb 'prun'; did you mean prune?"),
        ("prune --modle resnet8", "no option --modle; did you mean --model?"),
        ("prune --model resnet8", "arguments are required: --data, --method"),
        (f"{PRUNE} --params 0.5", "--energy and --bytes; --params and --macs"),
        ("prune --model a --data b --method c", "none came. To keep half"),
        (PRUNE.replace("0.5", "1.5"), "1.5 is outside (0, 1]: it is the fraction that is kept."),
        (PRUNE.replace("0.5", "half"), "'half' is no number. Write one such as 0.5."),
        (f"{PRUNE} --macs", "--macs: expected 1 argument"),
        (f"{PRUNE} --epochs 0", "0 is outside (0, 1000000]."),
        (f"{PRUNE} --batch-size 1.5", "'1.5' is no count. Write a whole number from 1 to 1048576."),
        (f"{PRUNE} --seed -1", "'-1' is no seed."),
        (f"{PRUNE} --log-level loud", "invalid choice: 'loud'"),
        (f"{PRUNE} extra", "Unrecognized arguments: extra"),
        ("prune --model resnet9 --data digits --method l1 --macs 0.5", "did you mean resnet8?"),
        ("prune --model resnet8 --data digit --method l1 --macs 0.5", "did you mean digits?"),
        ("prune --model resnet8 --data digits --method tailor --macs 0.5", "did you mean taylor?"),
        (
            "prune --model resnet8 --data digits --method l1 --macs 0.01 --multiple-of 8",
            "Ask for 0.158 or more",
        ),
        (f"{PRUNE} --allocator even", "no allocator 'even'; write one of uniform, global_topk."),
        (f"{PRUNE} --schedule linear", "no schedule 'linear'; write one of one_shot, iterative"),
        (f"{PRUNE} --rounds 3", "Write --schedule iterative for several."),
        (f"{PRUNE} --dtype float16", "dtype 'float16'; write one of float32, bfloat16."),
        (f"{PRUNE} --weights pretrained --epochs 3", "which is read and not trained here"),
        (f"{PRUNE} --batch-size 5000", "batch_size=5000 for the 1197 training examples"),
        ("inspect --model nothing:here", "nothing"),
        ("data prepare mnst", "did you mean mnist?"),
        ("data prepair mnist", "invalid choice: 'prepair'"),
        ("report", "arguments are required: DIR"),
    ],
)
def test_bad_arguments_end_in_2_and_one_line(capsys, tmp_path, monkeypatch, command, says):
    monkeypatch.setattr(verbs, "_folder_name", lambda given, budget: tmp_path / "run")
    assert says in complaint(capsys, command)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("report {}/none", "none/result.json is missing"),
        ("export {}/none", "none/config.json is missing"),
        ("data prepare mnist --from {}/none --data-dir {}", "none"),
        (PRUNE + " --quiet --out {}", "is not empty and no run of jprune"),
        (PRUNE + " --quiet --out {}/thesis.tex/a", "Not a directory"),
        ("prune --model resnet20 --data cifar10 --method l1 --macs 0.5 --data-dir {}", "prepare"),
    ],
)
def test_failures_end_in_1_and_one_line(capsys, tmp_path, command, says):
    (tmp_path / "thesis.tex").write_text("")
    assert says in complaint(capsys, command.replace("{}", str(tmp_path)), code=1)


def test_interrupting_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(given, words):
        raise KeyboardInterrupt

    monkeypatch.setitem(verbs.TABLE, "methods", interrupted)
    assert cli.main(["methods"]) == 130
    assert capsys.readouterr().err == "jprune: interrupted; the same command goes on.\n"


@pytest.mark.parametrize("verb", ["", *options.VERBS])
def test_help_explains_every_option_in_80_columns(capsys, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    if verb:
        flags = [name.replace("_", "-") for name in options.VERBS[verb].__annotations__]
        for flag in flags:
            if flag not in ("directory", "action", "name", "source", "rows", "first", "second"):
                assert f"--{flag}" in text
    else:
        assert all(name in text for name in options.VERBS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jprune {jprune.__version__}\n"


def test_a_box_becomes_a_sentence():
    box = "╭─ Parsing error ─╮\n│ Argument --macs: no │\n│ number │\n│ ───── │\n│ For help │\n╰───╯"
    assert sentence(box) == "Argument --macs: no number."
    assert sentence("") == "the arguments cannot be read."


def test_help_and_methods_import_nothing_slow():
    code = (
        "import json, sys\nfrom jprune import cli\n"
        "cli.main(['prune', '--help']); cli.main(['methods', '--json'])\n"
        f"print('LOADED', json.dumps([name for name in {SLOW!r} if name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "LOADED []"


def test_methods(capsys):
    assert cli.main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(json.dumps(survey.rows()))
    assert cli.main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines[0].index("paper")
    papers = {row["name"]: row["paper"] for row in rows}
    named = {
        line.split()[0]: line for line in lines if line.split()[:1] and line.split()[0] in papers
    }
    assert named.keys() == papers.keys()
    assert all(papers[name].startswith(line[start : start + 9]) for name, line in named.items())


def test_inspect(capsys):
    assert cli.main("inspect --model resnet8 --data digits --json".split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost"]["params"] == 75_002
    assert found["cost"]["macs"] == 747_136
    assert found["groups"]["params/block3/conv1/kernel"]["size"] == 64
    assert {"reason", "source", "remedy"} <= set(found["frozen"][0])
    assert cli.main("inspect --model resnet8 --data digits".split()) == 0
    text = capsys.readouterr().out
    for word in ("747,136", "params/block3/conv1/kernel", "norm", "tied to a network output"):
        assert word in text


# A run of two steps, and what can be done with it.


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.getbasetemp())
        arguments = f"{PRUNE} --steps 2 --seed 3 --quiet --out {out}".split()
        assert cli.main(arguments) == 0
    return out, arguments


def test_prune_keeps_to_what_was_asked(smoke, capsys):
    out, arguments = smoke
    result = files.read_json(out / "result.json")
    report.check(result)
    assert result["command"] == " ".join(["jprune", *arguments])
    assert (result["seed"], result["method"], result["requested"]) == (3, "l1", {"macs": 0.5})
    records = files.read_lines(out / "records.jsonl").records
    assert {r["step"] for r in records if r["stage"] in ("train", "finetune")} == {2}
    assert json.loads((out / "config.json").read_text())["train"]["max_steps"] == 2
    # Again: nothing is left to do, and --json prints what there is.
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result


def test_other_settings_in_the_same_directory_are_refused(smoke, capsys):
    _, arguments = smoke
    said = complaint(capsys, " ".join([*arguments, "--seed", "4"]), code=1)
    assert "seed is 3 there and 4 here" in said


def test_the_summary_is_for_people(smoke, capsys):
    _, arguments = smoke
    assert cli.main([word for word in arguments if word != "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "l1 on tests.toys:tiny, digits, seed 3" in text
    assert "report.html" in text


def test_report_and_export_do_it_again(smoke, capsys, tmp_path):
    out, _ = smoke
    before = {name: (out / name).read_bytes() for name in ("model.stablehlo", "model.tflite")}
    for name in (*before, "report.html"):
        (out / name).unlink()
    assert cli.main(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    # The net is a module of the user's own: only the command line can name it.
    assert cli.main(["export", str(out), "--json", "--model", "tests.toys:tiny"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": [str(out / name) for name in before]}
    assert before == {name: (out / name).read_bytes() for name in before}
    assert cli.main(["export", str(out), "--to", str(tmp_path / "a.tflite"), "--quiet"]) == 0
    x = np.ones((2, 8, 8, 1), np.float32)
    expected = load_stablehlo(out / "model.stablehlo").call(x)
    found = run_tflite((tmp_path / "a.tflite").read_bytes(), x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    said = complaint(capsys, f"export {out} --to a.onnx")
    assert "a.onnx is neither .stablehlo nor .tflite. Write --to a.tflite." in said


def test_a_plan_of_another_net_is_refused(smoke, capsys, tmp_path):
    out, _ = smoke
    plan = json.loads((out / "plan.json").read_text())
    copy = tmp_path / "run"
    copy.mkdir()
    shutil.copytree(out / "params", copy / "params")
    (copy / "config.json").write_bytes((out / "config.json").read_bytes())
    del plan["digest"]  # a plan of another net, and not a damaged one
    (copy / "plan.json").write_text(json.dumps({**plan, "sha256": "0"}))
    assert "the plan is of another net" in complaint(
        capsys, f"export {copy} --model tests.toys:tiny", code=1
    )
    said = complaint(capsys, f"export {copy}", code=1)
    assert "imported only if you name it, and its net.stablehlo does not do: it is missing" in said


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch):
    made = []

    def stop(job, out, command, progress, overwrite):
        made.append(type(progress))
        raise jprune.errors.CheckpointError("stop here")

    monkeypatch.setattr("jprune.job.main.prune", stop)
    assert cli.main(PRUNE.split()) == 1
    assert made == [Lines]
    assert os.isatty(2) is False or not sys.stderr.isatty()


def test_a_small_net_that_is_another_net_is_no_success(monkeypatch, capsys, tmp_path):
    # A rule of one's own that is wrong: a running sum hands its channels on.
    monkeypatch.setitem(RULES, "cumsum", lambda context, operands: list(operands))
    command = "prune --model tests.toys:running --data digits --method l2 --density 0.5 --steps 2"
    words = [*command.split(), "--quiet", "--out", str(tmp_path / "run")]
    for _ in range(2):  # a run that is finished already says it again
        assert cli.main(words) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("jprune: warning: the slim net is not the net that was trained")
        assert "\x1b" not in err  # no terminal
    result = files.read_json(tmp_path / "run/result.json")
    assert result["law_max_rel_err"] > 0.1
    assert len(result["warnings"]) == 1
    assert result["warnings"][0] in err
    report.check(result)
    assert "slim net is not the net that was trained" in (tmp_path / "run/report.html").read_text()
    assert {"params", "model.stablehlo"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(("no_color", "colored"), [(None, True), ("1", False)])
def test_warnings_are_red_on_a_terminal(monkeypatch, capsys, no_color, colored):
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes the stream for a terminal
    monkeypatch.setenv("TERM", "xterm")
    if no_color is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", no_color)
    show.warnings(["careful [a]"])
    err = capsys.readouterr().err
    assert "careful [a]" in err
    assert ("\x1b[31m" in err) == colored
