"""Names of variables and attributes in generated source."""

from __future__ import annotations

import builtins
import keyword
import re

__all__ = ["Names"]

_TAKEN = {"self", "torch", "math", "F", "device", "dtype", "kernels", "operators", "attention", *dir(builtins)}


class Names:
    """Gives every value a readable name of its own."""

    def __init__(self) -> None:
        self._used = set(_TAKEN) | set(keyword.kwlist) | set(keyword.softkwlist)

    def make(self, wanted: str) -> str:
        """An identifier that resembles ``wanted`` and was not given yet."""
        name = re.sub(r"\W+", "_", wanted.split("::")[-1]).strip("_").lower() or "value"
        name = re.sub(r"_output_0$", "", name)
        name = f"v_{name}" if name[0].isdigit() else name
        return self.reserve(name)

    def reserve(self, name: str) -> str:
        """``name``, with a number where it is taken."""
        found, number = name, 1
        while found in self._used:
            found, number = f"{name}_{number}", number + 1
        self._used.add(found)
        return found
