"""Functions of transformers in forms that can be traced at any size: scans as one operator, masks without ``vmap``.

As a loop in Python a scan would be as long as the example; a traced ``vmap`` is not left again when the program ends.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import masking_utils

from qcompile.ir.state_space import selective_scan, state_space_duality

__all__ = ["traceable"]


@contextmanager
def traceable(module: torch.nn.Module) -> Iterator[None]:
    """Let functions that a module's own files and the masks call be ours meanwhile; each version of transformers has
    some of them."""
    names = {type(part).__module__ for part in module.modules()}
    homes = {masking_utils, *(sys.modules[name] for name in names if name in sys.modules)}
    found = [(home, name) for home in homes for name in _OURS if hasattr(home, name)]
    originals = [getattr(home, name) for home, name in found]
    for (home, name), original in zip(found, originals, strict=True):
        setattr(home, name, _OURS[name](original))
    try:
        yield
    finally:
        for (home, name), original in zip(found, originals, strict=True):
            setattr(home, name, original)


def _selective(original: Callable[..., Any]) -> Callable[..., Any]:
    def scan(
        hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
        z: Tensor | None = None, delta_bias: Tensor | None = None, delta_softplus: bool = False,
        return_last_state: bool = False, **others: Any,
    ) -> Any:  # fmt: skip
        if return_last_state:  # which is for a cache
            rest = (D, z, delta_bias, delta_softplus, return_last_state)
            return original(hidden_states, dt, A, B, C, *rest, **others)
        dt = dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[..., None]
        dt = functional.softplus(dt) if delta_softplus else dt
        D = A.new_zeros(hidden_states.shape[1]) if D is None else D.float()
        inputs = [value.float().transpose(1, 2) for value in (hidden_states, dt, B, C)]
        y = selective_scan(inputs[0], inputs[1], A.float(), inputs[2], inputs[3], D)
        y = y.transpose(1, 2).to(hidden_states.dtype)
        return y if z is None else y * functional.silu(z)

    return scan


def _dual(original: Callable[..., Any]) -> Callable[..., Any]:
    def scan(
        hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor | None = None,
        dt_bias: Tensor | None = None, initial_states: Tensor | None = None, dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, math.inf), return_final_states: bool = False, **others: Any,
    ) -> Any:  # fmt: skip
        if return_final_states or initial_states is not None:  # which is for a cache
            rest = (D, dt_bias, initial_states, dt_softplus, dt_limit, return_final_states)
            return original(hidden_states, dt, A, B, C, chunk_size, *rest, **others)
        dt = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
        dt = functional.softplus(dt) if dt_softplus else dt
        dt = dt if tuple(dt_limit) == (0.0, math.inf) else dt.clamp(*dt_limit)
        D = A.new_zeros(hidden_states.shape[2]) if D is None else D
        return state_space_duality(*(value.float() for value in (hidden_states, dt, A, B, C, D)))

    return scan


def _broadcast(original: Callable[..., Any]) -> Callable[..., Any]:
    def expansion(mask_function: Callable[..., Tensor], bh_indices: bool = True) -> Callable[..., Tensor]:
        def expanded(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            indices = batch[:, None, None, None], head[:, None, None], query[:, None], key
            return mask_function(*indices).expand(*(index.shape[0] for index in (batch, head, query, key)))

        return expanded if bh_indices else original(mask_function, bh_indices)

    return expansion


_OURS = {
    "mamba_selective_scan": _selective, "mamba2_chunk_scan": _dual,
    "_vmap_for_bhqkv": _broadcast, "_vmap_expansion_sdpa": _broadcast,
}  # fmt: skip
