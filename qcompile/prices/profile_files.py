"""Where profiles are: those that come with the package, that of this machine in the user's cache, and any file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from qcompile.errors import InputError
from qcompile.prices.machine import machine, word_of
from qcompile.prices.profile import Profile

if TYPE_CHECKING:
    from qcompile.targets.target import Target

__all__ = ["MACHINE", "NONE", "SHIPPED", "THREADS", "cached_file", "profile_of", "save_profile"]

#: The words of ``--profile`` that are no file: the target's own, the same everywhere; this machine's; and none.
SHIPPED, MACHINE, NONE = "shipped", "machine", "none"

#: On so many threads is measured.
THREADS = 1


def profile_of(target: Target, word: str = SHIPPED) -> Profile | None:
    """The profile that prices a target's artifacts; ``None`` where none is wanted, or nobody measured its times.

    Raises:
        InputError: if this machine was not measured, there is no such file, or it is of another target.
    """
    if target.profile is None:
        if word not in (SHIPPED, NONE):
            raise InputError(f"target '{target.name}' has no profile: --profile means nothing for it")
        return None
    if word == NONE:
        return None
    path = _shipped(target) if word == SHIPPED else cached_file(target) if word == MACHINE else Path(word)
    if not path.is_file():
        made = f"`qcompile profile {target.name}`"
        said = f"{made} measures this machine" if word == MACHINE else f"{made} -o writes one"
        raise InputError(f"there is no profile '{path}': {said}")
    found = _read(path)
    if found.target != target.name:
        raise InputError(f"profile '{path}' is of target '{found.target}', not of '{target.name}'")
    return found


def cached_file(target: Target) -> Path:
    """The file of a target's profile of this machine, in the user's cache."""
    from platformdirs import user_cache_path

    word = word_of(machine(target.runs_in, THREADS))
    return user_cache_path("qcompile") / "profiles" / target.name / f"{word}.json"


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(profile.to_json(), indent=1) + "\n")


def _shipped(target: Target) -> Path:
    return Path(__file__).parent / "data" / f"{target.profile}.{target.name}.json"


@cache
def _read(path: Path) -> Profile:
    return Profile.read(path)
