"""The pages on the engine: their code runs from top to bottom and gives what they say it gives."""

import ast
import importlib.util
import os
import pathlib
import re
import shlex

import pytest

from jprune import cli
from jprune.graph.couple import rules as graph_rules
from jprune.graph.shrink import rules as shrink

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported, here or elsewhere

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PROMISE = re.compile(r"# => (.*)$")


def sections(page: str) -> dict[str, str]:
    """{heading: code} of a page; line numbers are those of the page."""
    found, heading, inside = {}, "", False
    for number, line in enumerate((DOCS / page).read_text().splitlines(), 1):
        if line.startswith("#") and not inside:
            heading = line.strip("# ")
        elif line.startswith("```"):
            inside = line == "```python"
        elif inside:
            code = found.setdefault(heading, "")
            found[heading] = code + "\n" * (number - 1 - code.count("\n")) + line + "\n"
    return found


def run(page: str, code: str, names: dict):
    """Runs the code of a section; an expression with `# => text` behind it has that text."""
    lines = code.splitlines()
    for statement in ast.parse(code, page).body:
        promise = PROMISE.search(lines[(statement.end_lineno or 1) - 1])
        if promise is None or not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), page, "exec"), names)
            continue
        value = eval(compile(ast.Expression(statement.value), page, "eval"), names)
        assert repr(value) == promise[1], f"{page}:{statement.lineno}"


def missing(code: str) -> list[str]:
    """Libraries that a section imports and that are not installed."""
    tops = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            tops.add((node.module or "jax").split(".")[0])
    return [top for top in sorted(tops) if importlib.util.find_spec(top) is None]


def skip_without(code: str):
    """Skips a section whose library is not installed."""
    if tops := missing(code):
        pytest.skip(f"{', '.join(tops)} is not installed")


LIBRARIES = "libraries.md"
LIBRARY_SECTIONS = list(sections(LIBRARIES).items())


@pytest.mark.parametrize("section", LIBRARY_SECTIONS[1:], ids=lambda section: section[0])
def test_a_net_of_every_library(section):
    names = {}
    run(LIBRARIES, LIBRARY_SECTIONS[0][1], names)
    skip_without(section[1])
    run(LIBRARIES, section[1], names)


def test_every_library_has_a_section():
    assert [heading for heading, _ in LIBRARY_SECTIONS[1:]] == [
        "Plain JAX",
        "Flax NNX",
        "Flax Linen",
        "Equinox",
        "Haiku",
        "Keras 3",
    ]


OWN_LOOP = "own_loop.md"
OWN_LOOP_SECTIONS = list(sections(OWN_LOOP).items())


def test_methods_in_a_loop_of_ones_own():
    """In one go, since a section may go on from the one before it."""
    names = {}
    for _, code in OWN_LOOP_SECTIONS:
        if not missing(code):
            run(OWN_LOOP, code, names)


def test_a_method_in_a_loop_of_ones_own_has_ten_lines_at_most():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / OWN_LOOP).read_text(), re.DOTALL)
    used = [block for block in blocks if "sparsify." in block]
    assert len(used) == 7
    assert max(len(block.splitlines()) for block in used) <= 10


YOUR_OWN = "your_own.md"
YOUR_OWN_SECTIONS = list(sections(YOUR_OWN).items())
TO_TFLITE = "Equinox and Keras nets to .tflite"


def test_tasks_of_a_new_user(tmp_path, monkeypatch):
    """In one go: files of the page are written, its commands are called, its code is run."""
    monkeypatch.chdir(tmp_path)
    page = (DOCS / YOUR_OWN).read_text()
    for name, text in re.findall(r"```python (\w+\.py)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    names = {}
    for heading, code in YOUR_OWN_SECTIONS:
        if heading != TO_TFLITE:
            run(YOUR_OWN, code, names)
    commands = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    assert [cli.main(shlex.split(command)[1:]) for command in commands] == [0]
    assert (tmp_path / "small" / "model.stablehlo").exists()


def test_nets_of_other_libraries_to_tflite():
    code = dict(YOUR_OWN_SECTIONS)[TO_TFLITE]
    skip_without(code)
    pytest.importorskip("ai_edge_litert", reason="the extra tflite is not installed")
    run(YOUR_OWN, code, {})


def test_a_task_of_a_new_user_has_25_lines_at_most_and_no_private_name():
    page = (DOCS / YOUR_OWN).read_text()
    tasks = re.findall(r"^```(?:python|bash).*?\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    lines = [[line for line in task.splitlines() if line.strip()] for task in tasks]
    assert max(map(len, lines)) <= 25, [len(task) for task in lines]
    assert not re.search(r"(jprune|\b\w+)\._[a-z]", "".join(tasks))


@pytest.mark.parametrize("page", ["budgets.md", "coming_from.md"])
def test_the_pages_on_budgets_and_on_other_libraries(page):
    names = {}
    for _, code in sections(page).items():
        run(page, code, names)


def test_jaxpruners_users_need_one_line():
    (_, code) = list(sections("coming_from.md").items())[-1]
    (tx,) = (node for node in ast.parse(code).body if "scheduled_prune" in ast.unparse(node))
    assert ast.unparse(tx).startswith("tx = optax.chain(optax.sgd(0.1), jprune.scheduled_prune(")


def test_the_page_on_using_a_pruned_net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names = {}
    for _, code in sections("using.md").items():
        run("using.md", code, names)


@pytest.fixture
def rules():
    """The tables of rules, put back afterwards."""
    tables = [(module.RULES, dict(module.RULES)) for module in (graph_rules, shrink)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


def test_the_page_on_the_engine(rules):
    names = {}
    for _, code in sections("engine.md").items():
        run("engine.md", code, names)
    assert "fft" in graph_rules.RULES


def test_the_page_on_comparisons(monkeypatch, capsys):
    if not (DOCS.parent / "experiments/results/first_comparison").exists():
        pytest.skip("the rows of experiments/configs/first_comparison are not measured yet")
    monkeypatch.chdir(DOCS.parent)
    for _, code in sections("compare.md").items():
        run("compare.md", code, {})
    assert "lenet5 on mnist []" in capsys.readouterr().out  # no rule is broken


def test_every_page_is_in_the_index_and_no_link_is_broken():
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    index = (DOCS / "README.md").read_text()
    assert pages <= set(re.findall(r"\]\(([^)#]+)\)", index))
    for page in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"
