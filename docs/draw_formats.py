"""Draw the grids of docs/formats.md: ``python docs/draw_formats.py`` rewrites docs/formats-*.svg from the registry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from qcompile.formats import ELEMENTS, ScaleType
from qcompile.formats.grids.e8p import decode_e8p
from qcompile.formats.grids.vectors import higgs_grid
from qcompile.formats.scales import scale_from_code
from qcompile.formats.structured.family import power_element
from qcompile.formats.structured.twin_log import twin_log_levels

_SCALAR = (
    "int2", "int3", "int4", "int4-full", "int5", "int6", "int7", "int8", "uint2", "uint3", "uint4", "mxint4", "mxint8",
    "e1m2", "e2m1", "e3m0", "e2m3", "e3m2", "e4m3", "e5m2", "nf4", "af4", "bnb-fp4",
)  # fmt: skip
_ROW, _LEFT, _WIDTH = 26, 110, 720


def _svg(width: int, height: int, body: list[str]) -> str:
    view = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>\n"])


def scalar_grids() -> str:
    """A row of ticks for each codebook, scaled to its largest magnitude."""
    rows = [(name, ELEMENTS[name].levels) for name in _SCALAR]
    twin_log = twin_log_levels(torch.tensor([1.0, 0.8]), torch.tensor([32, 24]), 4).tolist()
    rows += [("NUPES a=0.5", power_element(4, 0.5).levels), ("twin-log", twin_log)]
    rows += [(f"Lloyd-Max {n}", tuple(point[0] for point in higgs_grid(1, n))) for n in (2, 4, 8, 16, 32, 64)]
    rows.append(("2 trit-planes", tuple(a * 0.75 + b * 0.25 for a in (-1, 0, 1) for b in (-1, 0, 1))))
    body = []
    for i, (name, levels) in enumerate(rows):
        y = 20 + i * _ROW
        body.append(f'<text x="4" y="{y + 4}">{name}</text>')
        body.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}" stroke="#ccc"/>')
        body += [_tick(level / max(map(abs, levels)), y) for level in levels]
    return _svg(_LEFT + _WIDTH + 20, 20 + len(rows) * _ROW, body)


def _tick(position: float, y: int) -> str:
    x = _LEFT + (position + 1) / 2 * _WIDTH
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 7}" y2="{y + 7}" stroke="#1f5fa8" stroke-width="1.2"/>'


def plane_grids() -> str:
    """The two-dimensional HIGGS grids, and two coordinates of E8P, each within ±4 standard deviations."""
    e8p = {tuple(p) for p in (decode_e8p(torch.arange(1 << 16, dtype=torch.int32))[:, :2] / 1.03).tolist()}
    panels = [(f"HIGGS p=2, n={n}", higgs_grid(2, n)) for n in (16, 64, 256)] + [("E8P, two of eight", sorted(e8p))]
    body = []
    for i, (name, points) in enumerate(panels):
        body.append(f'<text x="{10 + 230 * i}" y="16">{name}</text>')
        body += [_dot(point, 120 + 230 * i, 135) for point in points if max(map(abs, point)) < 4]
    return _svg(230 * len(panels) + 10, 260, body)


def _dot(point: Sequence[float], x: int, y: int) -> str:
    return f'<circle cx="{x + point[0] * 27:.1f}" cy="{y - point[1] * 27:.1f}" r="1.8" fill="#1f5fa8"/>'


def scale_grids() -> str:
    """Every value of the 8-bit scales, by its logarithm; the bar marks one."""
    rows = []
    for name in ("E8M0", "E4M3", "UE5M3"):
        values = scale_from_code(torch.arange(256).to(torch.uint8), ScaleType[name])
        rows.append((name, [float(v) for v in values if 0 < v < float("inf")]))
    body = []
    for i, (name, values) in enumerate(rows):
        y = 20 + i * _ROW
        body.append(f'<text x="4" y="{y + 4}">{name}</text>')
        body += [_tick(math.log2(value) / 128, y) for value in values]
        body.append(_tick(0, y).replace("#1f5fa8", "#c00"))
    return _svg(_LEFT + _WIDTH + 20, 20 + len(rows) * _ROW, body)


DRAWINGS = {
    "formats-scales.svg": scale_grids, "formats-scalar.svg": scalar_grids, "formats-plane.svg": plane_grids,
}  # fmt: skip

if __name__ == "__main__":
    for name, make in DRAWINGS.items():
        (Path(__file__).parent / name).write_text(make())
