"""What is known to be wrong must fail: `KNOWN` of a module, {name of a test: what is wrong}."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks the tests that `KNOWN` names; a name that no test has is an error."""
    whole = not any("::" in arg for arg in config.args)
    modules = {getattr(item, "module", None) for item in items}  # doctests have none
    for module in {each for each in modules if hasattr(each, "KNOWN")}:
        tests = {item.name: item for item in items if getattr(item, "module", None) is module}
        if whole and (stale := module.KNOWN.keys() - tests.keys()):
            raise pytest.UsageError(f"KNOWN of {module.__name__} names no test: {sorted(stale)}")
        for name, reason in module.KNOWN.items():
            if name in tests:
                tests[name].add_marker(pytest.mark.xfail(strict=True, reason=reason))
