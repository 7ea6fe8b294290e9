"""What all tests share: hypothesis without deadlines, double precision, workers that stay small."""

import ctypes
import ctypes.util
import gc
from pathlib import Path

import hypothesis
import jax
import pytest

# Machines are noisy: no test may fail for the time that it takes.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

jax.config.update("jax_numpy_rank_promotion", "allow")


@pytest.fixture
def float64():
    """Double precision, for tests of algebra."""
    with jax.enable_x64(True):
        yield


MOST, MORE = 2.2e9, 0.5e9
"""Bytes of a worker above which compiled functions are let go, and how many more until the next
time: two workers fit in 6 GB."""


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * 4096 if pages.exists() else 0


@pytest.fixture(scope="session")
def limit():
    """[bytes]: above which the next test lets go."""
    return [MOST]


@pytest.fixture(autouse=True)
def small_worker(limit):
    """Lets compiled functions go behind a test, once there are too many of them.

    What is used again is read from the persistent cache, which `make test` keeps.
    """
    yield
    if resident() > limit[0]:
        jax.clear_caches()
        gc.collect()
        if name := ctypes.util.find_library("c"):
            getattr(ctypes.CDLL(name), "malloc_trim", int)(0)
        limit[0] = max(MOST, resident() + MORE)
