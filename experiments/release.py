"""What `make release-check` looks at: the built files, and the ten lines in an empty environment.

    python -m experiments.release dist

Checks the metadata of the wheel and what is in both files; makes a virtual environment, installs
the wheel there with what it depends on, and runs the ten lines of the README and the command line.
Packages come from wherever pip is set up to find them.
"""

import email.parser
import email.policy
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

import tyro

from jprune import __version__

ROOT = Path(__file__).parent.parent
NEEDED = (
    "jprune/py.typed",
    "jprune/survey.bib",
    "jprune/report/template.html",
    "jprune/compare/sorting.js",
)
EXTRAS = {"cuda", "tpu", "tflite", "keras", "sparse", "tf", "ray", "docs", "bench", "dev"}


def main(
    dist: tyro.conf.Positional[Path], *, install: bool = True, python: Path = Path(sys.executable)
) -> None:
    """Checks what was built.

    Args:
        dist: folder of the wheel and the source.
        install: False leaves out the environment, which takes minutes.
        python: whose environment it is.
    """
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    faults = [*of_wheel(wheel), *of_source(source)]
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        sys.exit(1)
    print(f"{wheel.name} and {source.name} are whole")
    # No fault: there is no address to write before there is a repository.
    if "[project.urls]" not in (ROOT / "pyproject.toml").read_text():
        print("no [project.urls] yet: write the repository's address there before an upload")
    if install:
        with tempfile.TemporaryDirectory() as folder:
            tried(wheel, Path(folder), python)


def of_wheel(wheel: Path) -> list[str]:
    """What is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = files.read(metadata).decode()
    said = email.parser.Parser(policy=email.policy.compat32).parsestr(text)
    tops = {name.split("/")[0] for name in names}
    checks = {
        f"the version is {said['Version']}, the package's {__version__}": (
            said["Version"] == __version__
        ),
        "the long description is not the README": "## Ten lines" in text,
        "the README is no Markdown": said["Description-Content-Type"] == "text/markdown",
        "there is no licence": said["License-Expression"] == "Apache-2.0"
        and any(name.endswith("LICENSE") for name in names),
        "Python is not bounded": said["Requires-Python"] == ">=3.11",
        f"extras are {said.get_all('Provides-Extra')}": (
            set(said.get_all("Provides-Extra") or ()) == EXTRAS
        ),
        f"it holds {sorted(tops)}": {t for t in tops if not t.endswith(".dist-info")} == {"jprune"},
        **{f"{name} is missing": name in names for name in NEEDED},
    }
    return [f"{wheel.name}: {fault}" for fault, holds in checks.items() if not holds]


def of_source(source: Path) -> list[str]:
    """What is missing in the archive of sources."""
    with tarfile.open(source) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    wanted = (*NEEDED, "README.md", "LICENSE", "pyproject.toml", "CHANGELOG.md", "CITATION.cff")
    return [f"{source.name}: {name} is missing" for name in wanted if name not in names]


def ten_lines() -> str:
    """The code of the README."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return code


def tried(wheel: Path, folder: Path, python: Path) -> None:
    """Installs a wheel into an environment of its own, and runs what a newcomer does."""
    if python == Path(sys.executable):
        venv.create(folder / "venv", with_pip=True)
    else:
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    inside = folder / "venv" / "bin"
    run = lambda *words: subprocess.run(list(map(str, words)), check=True, cwd=folder)
    run(inside / "python", "-m", "pip", "install", "--quiet", wheel.resolve())
    run(inside / "python", "-m", "pip", "check")
    run(inside / "python", "-c", ten_lines() + "\nprint(float(model(masks).macs))")
    run(inside / "jprune", "--version")
    run(inside / "jprune", "methods", "taylor")
    command = "prune --model resnet8 --data digits --method l1 --macs 0.5 --steps 2 --out run"
    run(inside / "jprune", *command.split())
    assert (folder / "run" / "report.html").exists()
    print("the ten lines and the command line run in an empty environment")


if __name__ == "__main__":
    tyro.cli(main)
