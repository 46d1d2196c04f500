"""The tensors of nested values: what modules take and return, in containers of any kind.

Mappings, sequences, dataclasses, types that are registered with torch's pytree, and other objects that hold tensors in
their attributes, such as caches, are taken apart and put together again without knowing their names.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["Kind", "leaves", "mapped", "register"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of container.

    Args:
        parts: its parts by name.
        rebuilt: a container like the first argument, of other parts.
    """

    parts: Callable[[Any], Mapping[str, Any]]
    rebuilt: Callable[[Any, Mapping[str, Any]], Any]


_REGISTERED: dict[type, Kind] = {}


def register(container: type, kind: Kind) -> None:
    """Say how values of a type, and of its subclasses, are taken apart."""
    _REGISTERED[container] = kind


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a value, with the keys and attributes that lead to it: ``cache.layers.0.keys``."""
    yield from _leaves(value, path, ())


def _leaves(value: Any, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif id(value) not in above and (kind := _kind(value)) is not None:
        for key, part in kind.parts(value).items():
            yield from _leaves(part, f"{path}.{key}" if path else str(key), (*above, id(value)))


def mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The same containers around other tensors, in the order of ``leaves``; what holds none is kept as it is."""
    return _mapped(value, change, ())


def _mapped(value: Any, change: Callable[[torch.Tensor], Any], above: tuple[int, ...]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if id(value) in above or (kind := _kind(value)) is None:
        return value
    parts = kind.parts(value)
    others = {key: _mapped(part, change, (*above, id(value))) for key, part in parts.items()}
    unchanged = all(others[key] is parts[key] for key in parts)
    return value if unchanged and not any(True for _ in leaves(value)) else kind.rebuilt(value, others)


# -- kinds -------------------------------------------------------------------------------------------------------------


def _kind(value: Any) -> Kind | None:
    """How a value is taken apart; ``None`` if it holds nothing."""
    for container in type(value).__mro__:
        if container in _REGISTERED:
            return _REGISTERED[container]
    if value is None or isinstance(value, _PLAIN) or callable(value):
        return None
    if isinstance(value, Mapping):
        return _MAPPING
    if isinstance(value, Sequence):
        return _SEQUENCE
    if type(value) in pytree.SUPPORTED_NODES:
        return _PYTREE
    return _OBJECT if hasattr(value, "__dict__") else None


#: Values without parts.
_PLAIN = (str, bytes, int, float, complex, enum.Enum, torch.dtype, torch.device, torch.SymInt, torch.SymFloat)


def _remapped(value: Any, parts: Mapping[str, Any]) -> Any:
    if type(value) is dict:
        return dict(parts)
    made = copy.copy(value)
    for key, part in parts.items():
        made[key] = part
    return made


def _resequenced(value: Any, parts: Mapping[str, Any]) -> Any:
    items = list(parts.values())
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _sequence_parts(value: Any) -> dict[str, Any]:
    keys = value._fields if hasattr(value, "_fields") else map(str, range(len(value)))
    return dict(zip(keys, value, strict=True))


def _pytree_parts(value: Any) -> dict[str, Any]:
    return {str(i): part for i, part in enumerate(pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0])}


def _pytree_rebuilt(value: Any, parts: Mapping[str, Any]) -> Any:
    kind = pytree.SUPPORTED_NODES[type(value)]
    return kind.unflatten_fn(list(parts.values()), kind.flatten_fn(value)[1])


def _object_rebuilt(value: Any, parts: Mapping[str, Any]) -> Any:
    made = copy.copy(value)
    made.__dict__.update(parts)
    return made


_MAPPING = Kind(lambda value: {key: part for key, part in value.items() if part is not None}, _remapped)
_SEQUENCE = Kind(_sequence_parts, _resequenced)
_PYTREE = Kind(_pytree_parts, _pytree_rebuilt)
_OBJECT = Kind(lambda value: dict(vars(value)), _object_rebuilt)
