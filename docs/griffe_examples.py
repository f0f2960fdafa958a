"""Have mkdocstrings read a docstring's `Example:` as it reads `Examples:`, as code."""

from __future__ import annotations

import re
from typing import Any

try:
    from griffe import Extension
except ImportError:  # it is there where the site is built
    Extension = object


class ExampleSections(Extension):
    """Rename the sections before docstrings are parsed."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Rename those of one function or class."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
