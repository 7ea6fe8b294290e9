"""What all tests share: warnings of rank promotion are errors, and no test sees another's cache."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "allow")


@pytest.fixture
def float64():
    """Double precision, for tests of algebra."""
    with jax.enable_x64(True):
        yield
