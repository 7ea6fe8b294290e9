"""What is wrong with a package that was built is found; one version, in one place."""

import io
import re
import tarfile
import zipfile
from pathlib import Path

import jprune
from experiments import release

ROOT = Path(release.__file__).parent.parent
METADATA = f"""Metadata-Version: 2.4
Name: jprune
Version: {jprune.__version__}
Requires-Python: >=3.11
License-Expression: Apache-2.0
Description-Content-Type: text/markdown
{"".join(f"Provides-Extra: {extra}" + chr(10) for extra in sorted(release.EXTRAS))}
## Ten lines
"""


def wheel(path, metadata=METADATA, without=()):
    names = {*release.NEEDED, "jprune-0.dist-info/licenses/LICENSE"} - {*without}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("jprune-0.dist-info/METADATA", metadata)
        for name in names:
            file.writestr(name, "")
    return path


def test_a_wheel_that_is_not_whole_is_found(tmp_path):
    path = tmp_path / "jprune.whl"
    assert release.of_wheel(wheel(path)) == []
    (said,) = release.of_wheel(wheel(path, without=["jprune/survey.bib"]))
    assert "survey.bib is missing" in said
    for old, new, fault in (
        ("Version: " + jprune.__version__, "Version: 9", "version is 9"),
        ("text/markdown", "text/plain", "no Markdown"),
        ("## Ten lines", "", "not the README"),
        ("Provides-Extra: ray\n", "", "extras are"),
        (">=3.11", ">=3.9", "not bounded"),
    ):
        assert any(
            fault in each for each in release.of_wheel(wheel(path, METADATA.replace(old, new)))
        )


def test_a_source_that_is_not_whole_is_found(tmp_path):
    path = tmp_path / "jprune.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.addfile(tarfile.TarInfo("jprune-0/README.md"), io.BytesIO())
    said = release.of_source(path)
    assert any("CITATION.cff" in each for each in said)
    assert not any("README.md" in each for each in said)


def test_the_version_stands_once_and_the_citation_has_it():
    (version,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version == jprune.__version__
    assert not re.search(r'^version = "', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    pages = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "CONTRIBUTING.md").read_text())
    assert all((ROOT / page).exists() for page in pages)
    assert "jprune.slim_params" in release.ten_lines()
