"""What the site is made of: a page for every method, and links that lead somewhere."""

import importlib.util
import posixpath
import re
from pathlib import Path

import pytest

from jprune import recipes
from jprune.recipes.options import options

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(hooks):
    return hooks.pages()


def test_every_method_has_a_page_with_all_its_options(pages):
    for name in recipes.METHODS:
        page = pages[f"methods/{name}.md"]
        assert page.startswith(f"# {name}\n")
        assert all(f"| `{option}` |" in page for option in options(name))
        assert f"[{name}]({name}.md)" in pages["methods/index.md"]


def test_links_of_made_pages_lead_somewhere(pages):
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*")}
    for name, text in pages.items():
        prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        for link in re.findall(r"(?<!\\)\]\(([^)#]+)", prose):
            place = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
            assert "://" in link or place in {*pages, *written}, f"{name}: {link}"


def test_text_of_docstrings_is_no_markdown(hooks):
    assert hooks.escaped("a*b_c [1] | `x*y`") == r"a\*b\_c \[1\] \| `x*y`"
    assert hooks.linked("claim E1: docs/results/e01.md") == "claim E1: [e01](../results/e01.md)"


def test_links_above_the_pages_stay_within_the_site(hooks):
    said = hooks.on_page_markdown("[a](../SECURITY.md) [b](../README.md)", None, None, None)
    assert said == "[a](security.md) [b](index.md)"
