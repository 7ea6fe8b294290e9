"""Where numbers come from: the device, the versions, the commit."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import TypedDict

import jax

PACKAGES = (
    "jprune",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ai-edge-litert",
)


class Device(TypedDict):
    """The device on which numbers were measured.

    Attributes:
        platform: `cpu`, `gpu` or `tpu`.
        kind: model of the processor.
        threads: cores of the host that this process may use.
    """

    platform: str
    kind: str
    threads: int


def device() -> Device:
    """The first device that JAX computes on.

    Example:
        >>> sorted(device())
        ['kind', 'platform', 'threads']
    """
    first = jax.devices()[0]
    kind = _processor() if first.platform == "cpu" else first.device_kind
    return {"platform": first.platform, "kind": kind, "threads": usable_cores()}


def usable_cores() -> int:
    """Cores that this process may use: containers and `taskset` often leave fewer than there are.

    Example:
        >>> usable_cores() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    # JAX calls every processor "cpu", and Python's own answer is empty on most Linux systems.
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that numbers depend on; None where not installed.

    Example:
        >>> versions()["python"] == platform.python_version()
        True
    """
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit of the source tree; None for an installed copy, or without git.

    Changes that are not committed do not show in it.
    """
    package = pathlib.Path(__file__).parents[1]
    # An installed copy may lie in an environment inside another repository, whose commit says
    # nothing about jprune. So git has to track this package's own file.
    if _git(package, "ls-files", "--error-unmatch", "base.py") is None:
        return None
    return _git(package, "rev-parse", "HEAD")


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
