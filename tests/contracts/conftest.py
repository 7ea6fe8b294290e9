"""What is known to be wrong must fail: `KNOWN` of a module, {name of a test: what is wrong}."""

import jax
import pytest

METHODS = 8
"""As many methods share what was compiled; then it is let go, so that a worker stays small."""


@pytest.fixture(autouse=True, scope="session")
def compiled_methods():
    """The methods since caches were cleared."""
    return set()


@pytest.fixture(autouse=True)
def small_caches(request, compiled_methods):
    """Clears what JAX has compiled before the ninth method of a worker."""
    parameters = getattr(request.node, "callspec", None)
    method = parameters and parameters.params.get("method")
    if method and method not in compiled_methods:
        if len(compiled_methods) == METHODS:
            jax.clear_caches()
            compiled_methods.clear()
        compiled_methods.add(method)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks the tests that `KNOWN` names; a name that no test has is an error."""
    whole = not any("::" in arg for arg in config.args)
    for module in {item.module for item in items if hasattr(item.module, "KNOWN")}:
        tests = {item.name: item for item in items if item.module is module}
        if whole and (stale := module.KNOWN.keys() - tests.keys()):
            raise pytest.UsageError(f"KNOWN of {module.__name__} names no test: {sorted(stale)}")
        for name, reason in module.KNOWN.items():
            if name in tests:
                tests[name].add_marker(pytest.mark.xfail(strict=True, reason=reason))
