"""What all tests share: warnings of rank promotion are errors, and no test sees another's cache."""

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
