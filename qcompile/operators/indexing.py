"""Operators that look up and write elements by index."""

from __future__ import annotations

from collections.abc import Callable

from qcompile.operators.call import Call

__all__ = ["ROWS"]


def _gather(c: Call) -> str:
    axis = c.int("axis", 0)
    before = ":, " * axis if axis >= 0 else "..., "
    after = ", :" * (-1 - axis) if axis < 0 else ""
    item = c.item(1)
    if item is not None:
        index = c.scalar(1)
        if c.rank(1) == 0:
            return f"{c[0]}[{before}{index}{after}]"
        if item == -1:
            return f"{c[0]}[{before}-1:{after}]"
        if isinstance(item, int):
            return f"{c[0]}[{before}{item}:{item + 1}{after}]"
    return f"{c[0]}[{before}{c[1]}{after}]"


def _gather_elements(c: Call) -> str:
    return f"{c.helper('gather_elements')}({c[0]}, {c.int('axis', 0)}, {c[1]})"


def _gather_nd(c: Call) -> str:
    return f"{c.helper('gather_nd')}({c[0]}, {c[1]}, {c.int('batch_dims', 0)})"


def _scatter_elements(c: Call) -> str:
    name, reduction = c.helper("scatter_elements"), c.string("reduction", "none")
    return f'{name}({c[0]}, {c.int("axis", 0)}, {c[1]}, {c[2]}, "{reduction}")'


def _scatter_nd(c: Call) -> str:
    return f'{c.helper("scatter_nd")}({c[0]}, {c[1]}, {c[2]}, "{c.string("reduction", "none")}")'


def _non_zero(c: Call) -> str:
    c.program.notes["captures"] = False
    return f"torch.nonzero({c[0]}).t()"


def _compress(c: Call) -> str:
    c.program.notes["captures"] = False
    axis = c.int("axis")
    x = f"{c[0]}.reshape(-1)" if axis is None else c[0]
    return f"{c.helper('compress')}({x}, {c[1]}, {0 if axis is None else axis})"


def _shape(c: Call) -> str:
    """A shape that is needed as numbers on the device."""
    start, end = c.int("start", 0), c.int("end")
    return f"torch.tensor({c[0]}.shape[{start}:{'' if end is None else end}], device=device)"


def _refused(name: str) -> Callable[[Call], str]:
    def row(c: Call) -> str:
        raise c.refuse(f"{name} is random: its result would differ at every run")

    return row


ROWS = {
    "Compress": _compress,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    **{name: _refused(name) for name in ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike",
                                           "RandomUniform", "RandomUniformLike")},
}  # fmt: skip
