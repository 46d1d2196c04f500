"""How files become arrays that are none yet: the tokenizer of a text, the preprocessing of images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import InputError

__all__ = ["Reading", "read_config"]


@dataclass(frozen=True)
class Reading:
    """Facts about files that data is read from, which they do not say themselves.

    Args:
        tokenizer: the folder of the tokenizer of a text, or its ``tokenizer.json``.
        window: tokens in each row of a text, where the graph leaves that open.
        preprocessing: the folder of the preprocessing of images, or its ``preprocessor_config.json``; by default it is
            looked for beside them.
    """

    tokenizer: str | Path | None = None
    window: int | None = None
    preprocessing: str | Path | None = None


def read_config(path: Path, name: str) -> Mapping[str, Any]:
    """The content of a JSON file, or of the one of that name in a folder.

    Raises:
        InputError: if there is none, or it is not readable.
    """
    file = path / name if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"there is no readable {name} at '{path}'") from error
    if not isinstance(found, dict):
        raise InputError(f"'{file}' holds no settings by name")
    return found
