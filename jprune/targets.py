"""Code of the user's own, written as `module:callable`: nets, data sets, optimizers."""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from jprune import errors


def find(target: str, returns: str, more: str = "") -> Callable[..., Any]:
    """The function behind `module:callable`.

    The module is looked for on `sys.path`, then in the current directory.

    Args:
        target: `package.module:callable`; `module:Class.method` is allowed too.
        returns: what the function returns, for the messages: "a jprune.zoo.Net".
        more: a last sentence of the messages.

    Raises:
        ArgumentError: the target is not of this form, or does not exist; an import that fails is
            quoted.

    Example:
        >>> find("math:sqrt", "a number")(4.0)
        2.0
        >>> find("math:root", "a number")
        Traceback (most recent call last):
        jprune.errors.ArgumentError: math has no callable 'root'; write the name of a function ...
    """
    module_name, _, attribute = target.partition(":")
    if not (module_name and attribute):
        raise errors.ArgumentError(
            f"{target!r} is not written as module:callable, such as mynet:build."
        )
    with current_directory():
        function = attempt(f"import {module_name}", more, importlib.import_module, module_name)
    for part in attribute.split("."):
        # `module:Class.method` is allowed too. A missing part gives None, which cannot be called.
        function = getattr(function, part, None)
    if not callable(function):
        raise errors.ArgumentError(
            f"{module_name} has no callable {attribute!r}; write the name of a function that "
            f"returns {returns}. {more}".rstrip()
        )
    return function


def attempt(what: str, more: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls the user's code; an exception becomes an ArgumentError that quotes it.

    Args:
        what: is done, for the message.
        more: a last sentence of the message.
        call: the function.
        args: of the function.
        kwargs: of the function.
    """
    try:
        return call(*args, **kwargs)
    # Already said in our words: functions of jprune may be called in there.
    except errors.JpruneError:
        raise
    except Exception as error:
        said = f"{what} failed: {type(error).__name__}: {error}. {more}"
        raise errors.ArgumentError(said.rstrip()) from error


@contextlib.contextmanager
def current_directory() -> Iterator[None]:
    """Appends the current directory to `sys.path`: a console script does not have it there."""
    folder = os.getcwd()
    # Last, so that a file of the user's does not hide an installed package of the same name.
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
