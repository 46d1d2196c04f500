"""Reading a transform back from its JSON form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qcompile.errors import InputError
from qcompile.transforms.composite import BlockDiagonal, Compose, DirectSum, Kronecker
from qcompile.transforms.dense import BlockDense, Dense, RandomOrthogonal
from qcompile.transforms.elementary import Diagonal, Givens, Householder, Identity, Permutation
from qcompile.transforms.fields import decode_tensor
from qcompile.transforms.hadamard import Hadamard
from qcompile.transforms.transform import Transform

__all__ = ["from_json"]

_READERS: dict[str, Callable[[Mapping[str, Any]], Transform]] = {
    "identity": lambda d: Identity(d["size"]),
    "hadamard": lambda d: Hadamard(d["size"], d["seed"], d["variant"], d.get("transposed", False)),
    "random-orthogonal": lambda d: RandomOrthogonal(d["size"], d["seed"], d["transposed"]),
    "diagonal": lambda d: Diagonal(decode_tensor(d["values"])),
    "permutation": lambda d: Permutation(d["indices"]),
    "householder": lambda d: Householder(decode_tensor(d["vector"])),
    "givens": lambda d: Givens(d["size"], d["first"], d["second"], d["angle"]),
    "dense": lambda d: Dense(decode_tensor(d["matrices"])),
    "block-dense": lambda d: BlockDense(decode_tensor(d["matrices"])),
    "block": lambda d: BlockDiagonal(from_json(d["block"]), d["count"]),
    "kronecker": lambda d: Kronecker(from_json(d["left"]), from_json(d["right"])),
    "direct-sum": lambda d: DirectSum(tuple(map(from_json, d["parts"]))),
    "compose": lambda d: Compose(tuple(map(from_json, d["parts"]))),
}


def from_json(data: Mapping[str, Any]) -> Transform:
    """The transform that ``Transform.to_json`` wrote.

    Raises:
        InputError: if the kind is unknown or a field is missing.
    """
    kind = data.get("kind")
    if kind not in _READERS:
        raise InputError(f"unknown transform kind {kind!r}; known: {', '.join(sorted(_READERS))}")
    try:
        return _READERS[kind](data)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{kind} transform cannot be read: {type(error).__name__}: {error}") from error
