"""Pages of the site that are made and not written: the front page, methods, the API.

MkDocs calls the functions of this file (`mkdocs.yml`, `hooks`). Nothing is said here: the front
page is the README, a method's page is what `jprune methods NAME` prints, the API is its docstrings.
"""

import pathlib
import re

from mkdocs.structure.files import File

import jprune
from jprune import recipes, survey
from jprune.compare.measured import measured
from jprune.report.method import Description, describe

ROOT = pathlib.Path(__file__).parents[2]
ABOVE = {"README.md": "index.md", "SECURITY.md": "security.md"}
ROOMS = (
    "base criteria allocate sparsify schedules blocks learners reconstruct search stages".split()
)
"""Modules that have a page of their own, beside the public names of `jprune`."""


def on_files(files, config):
    """Adds the pages that are made."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links from pages to files above `docs` go to what the site has of them."""
    del page, config, files
    for above, inside in ABOVE.items():
        markdown = markdown.replace(f"](../{above})", f"]({inside})")
    return markdown


def pages() -> dict[str, str]:
    """{path in the site: Markdown}."""
    described = [describe(name) for name in recipes.METHODS]
    made = {"index.md": front(), "methods/index.md": table(described)}
    made["security.md"] = above("SECURITY.md")
    made |= {f"methods/{each.name}.md": method(each) for each in described}
    return made | api()


def front() -> str:
    """The README, with the pages that are made."""
    text = above("README.md")
    methods, api = "[methods](methods/index.md)", "[API](api/index.md)"
    more = f"| see all methods | {methods} |\n| look a name up | {api} |\n"
    return text.replace("| find your way about", more + "| find your way about", 1)


def above(name: str) -> str:
    """A file that stands above `docs`, its links as they are within the site."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def table(described: list[Description]) -> str:
    """All methods, as the survey orders them, with those that are not there yet."""
    by_name = {each.name: each for each in described}
    lines = ["# Methods", "", "| method | in one line | place in the survey | data | labels |"]
    lines.append("|---|---|---|---|---|")
    absent = []
    for row in survey.rows():
        each = by_name.get(row["name"])
        if each is None:
            absent.append(f"`{row['name']}` ({row['paper']})")
            continue
        needs = [each.needs[name].partition(":")[0] for name in ("data", "labels")]
        place = " / ".join(each.place)
        cells = (f"[{each.name}]({each.name}.md)", escaped(each.does), place, *needs)
        lines.append(f"| {' | '.join(cells)} |")
    if absent:
        lines += ["", f"Not here yet: {'; '.join(absent)}."]
    return "\n".join(lines) + "\n"


def method(each: Description) -> str:
    """The page of a method."""
    parts = [f"# {each.name}", *(escaped(line) for line in (each.does, *each.idea))]
    parts += [f"```sh\n{each.command}\n```", "## What it needs"]
    needs = [f"- {name}: {escaped(words)}" for name, words in each.needs.items()]
    parts += ["\n".join(needs), "## Options", "As `--set NAME=VALUE`, or by name in Python."]
    options = [f"| `{o.name}` | `{o.usual}` | {escaped(o.meaning)} |" for o in each.options]
    parts.append("\n".join(["| option | usual | meaning |", "|---|---|---|", *options]))
    lines = [f"- {linked(line)}" for line in measured(each.name)]
    parts += ["## What was measured", "\n".join(lines) or "Nothing yet, beyond the tests."]
    papers = [f"- {escaped(paper)}" for paper in each.papers]
    parts += ["## Papers", "\n".join(papers), f"`{each.file}`; {' / '.join(each.place)}."]
    return "\n\n".join(parts) + "\n"


def linked(line: str) -> str:
    """A line on a claim, its page as a link."""
    return re.sub(r"docs/results/(\w+)\.md", r"[\1](../results/\1.md)", escaped(line))


def escaped(text: str) -> str:
    """Text in which nothing is Markdown but code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    marks = lambda words: re.sub(r"([*_\[\]<>|\\])", r"\\\1", words)
    return "".join(
        part.replace("|", r"\|") if n % 2 else marks(part) for n, part in enumerate(parts)
    )


def api() -> dict[str, str]:
    """The public names of `jprune`, and the modules that hold the parts of methods."""
    names = [name for name in jprune.__all__ if name != "errors"]
    public = "\n\n".join(f"::: jprune.{name}" for name in names)
    rooms = "\n".join(f"- [jprune.{room}]({room}.md)" for room in ROOMS)
    made = {"api/index.md": f"# API\n\nThe parts of methods:\n\n{rooms}\n\n{public}\n"}
    for room in ROOMS:
        module = __import__(f"jprune.{room}", fromlist=["jprune"])
        members = getattr(module, "__all__", None)
        text = f"# jprune.{room}\n\n"
        if members:
            text += "\n\n".join(f"::: jprune.{room}.{name}" for name in sorted(set(members)))
        else:
            text += f"::: jprune.{room}"
        made[f"api/{room}.md"] = text + "\n"
    return made
