"""Draws the figures of docs/explanation: python docs/draw_spaces.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.linalg import hadamard

FOLDER = Path(__file__).parent / "explanation"
STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#5b6676}.b{fill:#2f6fde}.o{fill:#e0803a}.g{stroke:#5b6676}"
    ".pale{stroke:#5b6676;stroke-opacity:.35}.box{fill:none;stroke:#2f6fde;stroke-width:1.6}"
    ".t{fill:#e0803a;font-weight:600}"
)


def svg(width: int, height: int, *parts: str) -> str:
    """A figure that is readable on light and on dark pages."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><style>{STYLE}</style>'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def rect(x: float, y: float, width: float, height: float, kind: str, round_by: int = 0) -> str:
    return f'<rect x="{x:.0f}" y="{y:.1f}" width="{width:.0f}" height="{height:.1f}" rx="{round_by}" class="{kind}"/>'


def line(x0: float, x1: float, y: float, kind: str = "g") -> str:
    return f'<line x1="{x0:.0f}" x2="{x1:.0f}" y1="{y:.1f}" y2="{y:.1f}" class="{kind}"/>'


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" class="{kind}">{said}</text>'


def spread() -> str:
    """Sixteen values, one of them loud, before and after a Hadamard matrix, on the levels of INT4."""
    x = np.random.default_rng(3).normal(0, 1, 16)
    x[5] = 12
    before = _panel(30, x, "before: most values share a few levels")
    return svg(770, 290, *before, *_panel(410, hadamard(16) @ x / 4, "after: more levels are used"))


def _panel(left: int, values: np.ndarray, title: str) -> list[str]:
    top = np.abs(values).max()
    step, high = top / 7, np.abs(values) / top * 105
    lines = [line(left, left + 330, 150 - 15 * i, "pale") for i in range(-7, 8)]
    bars = [
        rect(left + 8 + 20 * i, 150 - high[i] if value > 0 else 150, 13, high[i], "o" if abs(value) == top else "b")
        for i, value in enumerate(values)
    ]
    error = np.linalg.norm(np.round(values / step) * step - values) / np.linalg.norm(values)
    return [*lines, *bars, text(left, 20, title), text(left, 282, f"relative error of rounding: {error:.1%}")]


def fold() -> str:
    """Two layers with a transform between them, and the same with it folded."""
    return svg(760, 185, *_chain(30, ["x", "W₁", "T", "T⁻¹", "W₂", "y"]), *_chain(120, ["x", "T W₁", "W₂ T⁻¹", "y"]))


def _chain(y: int, names: list[str]) -> list[str]:
    width, parts = 720 / len(names), []
    for i, name in enumerate(names):
        middle, inside = 20 + width * (i + 0.5), name not in ("x", "y")
        half = width / 2 - 12 if inside else 14
        parts += [rect(middle - half, y, 2 * half, 44, "box", 9)] if inside else []
        parts.append(text(middle, y + 27, name, "t" if "T" in name else "", "middle"))
        if i + 1 < len(names):
            other = width / 2 - 12 if names[i + 1] not in ("x", "y") else 14
            parts.append(line(middle + half, middle + width - other, y + 22))
    return parts


if __name__ == "__main__":
    (FOLDER / "spread.svg").write_text(spread())
    (FOLDER / "fold.svg").write_text(fold())
