"""Examples of docstrings as code: the section `Example:` is one that Griffe calls `Examples:`."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section, wherever a docstring has it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Is called with every function, class, module and attribute."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.M)
