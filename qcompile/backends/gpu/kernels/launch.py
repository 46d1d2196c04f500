"""Launch parameters: a table that ships, so that nothing is tuned at the first call.

Printed by ``benchmarks/gpu.py --tune`` on an H100; other GPUs start from the same numbers.
"""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["INTERPRETED", "Tile", "eight_tile_of", "rotation_of", "scaling_of", "split_of", "stages_of", "tile_of"]

#: Whether kernels run in Triton's interpreter, on the CPU: few large programs then, and float32 products.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


class Tile(NamedTuple):
    """How a product is cut into programs.

    ``rows`` of the weight and ``tokens`` of a program, its ``warps`` and pipeline ``stages``; ``programs`` to aim at
    by cutting K into shares, 0 for never; the most ``columns`` of each plane that are taken at a time; and for 8-bit
    activations whether the registers hold the sums of ``halves`` of the tokens, one after the other.
    """

    rows: int
    tokens: int
    warps: int
    stages: int
    programs: int
    columns: int = 64
    halves: bool = False


#: (most tokens, tile); ``None`` expands the weight for torch's product.
_TILES: tuple[tuple[float, Tile | None], ...] = (
    (8, Tile(32, 8, 2, 3, 792)),
    (16, Tile(64, 16, 4, 3, 528)),
    (64, Tile(64, 64, 4, 3, 264)),
    (640, Tile(128, 128, 4, 3, 264, 32)),
    (float("inf"), None),
)
#: The same for 8-bit activations; and where as many of the large tile as make a wave, that.
_EIGHT: tuple[tuple[float, Tile], ...] = (
    (16, Tile(64, 16, 4, 3, 528)),
    (64, Tile(64, 64, 4, 3, 264)),
    (float("inf"), Tile(128, 64, 4, 3, 264)),
)
_LARGE, _WAVE = Tile(128, 128, 4, 3, 0, halves=True), 256
_INTERPRETED = Tile(256, 64, 4, 1, 0)


def tile_of(tokens: int, scaling: str = "post", arch: str = "sm_90") -> Tile | None:
    """The tile for that many tokens, scaling of the layout and architecture, or None to expand the weight."""
    if INTERPRETED:
        return _INTERPRETED if tokens <= 16 else None
    if scaling == "mx" and 16 < tokens <= 64:
        return Tile(128, 64, 8, 3, 132)
    narrow = arch.startswith("gfx")  # whose matrix instructions take no fewer than 16 tokens
    tile = next(tile for most, tile in _TILES if (max(tokens, 16) if narrow else tokens) <= most)
    spread = tile is not None and tile.tokens >= 128 and arch not in ("sm_90", "sm_100", "sm_103")
    return tile._replace(warps=8) if tile is not None and spread else tile  # where sums stay in registers


def eight_tile_of(tokens: int, rows: int) -> Tile:
    """The tile for that many tokens of 8 bits and rows of the weight."""
    if INTERPRETED:
        return _INTERPRETED
    if tokens > 64 and -(-rows // _LARGE.rows) * -(-tokens // _LARGE.tokens) >= _WAVE:
        return _LARGE
    return next(tile for most, tile in _EIGHT if tokens <= most)


def rotation_of(values: int, whole: bool, bits: int = 16) -> tuple[int, int, dict[str, int]]:
    """(programs, pipeline stages, options of the launch) of the transform of rows of that many values, with padding.

    ``whole`` rows of ``bits`` bits pass two matrices: two programs then share a multiprocessor, with half of its
    registers each.
    """
    if INTERPRETED:
        return 264, 1, {}
    if values <= 8192:
        return 1056, 1, {"num_warps": 4}
    if bits == 16 and values <= 16384:
        return 264, 2, {"num_warps": 8, "maxnreg": 128} if whole else {"num_warps": 8}
    return 264, 1, {"num_warps": 8 if values <= 16384 else 16}


def scaling_of(scaling: str, scales: str, dtype: str, tile: Tile) -> str:
    """Where scales are applied: for many bfloat16 tokens to the weights, in place of sums that fill the registers."""
    many = tile.tokens >= 128 and dtype == "bfloat16" and scales == "bf16"
    return "pre" if scaling == "post" and many else scaling


def stages_of(tile: Tile, codes: str) -> int:
    """Pipeline stages; none where levels come from a table in memory, whose reads the pipeline would copy about."""
    return 1 if codes == "table" else tile.stages


def split_of(tile: Tile, tiles: int, tiles_k: int) -> int:
    """Into how many shares to cut K, of at least two tiles each."""
    return max(1, min(round(tile.programs / max(tiles, 1)), tiles_k // 2))
