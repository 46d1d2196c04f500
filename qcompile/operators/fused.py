"""onnxruntime's own operators that are several in one: activations with a bias, products with a scale."""

from __future__ import annotations

from collections.abc import Callable

from qcompile.operators.call import Call

__all__ = ["ROWS"]


def _fast_gelu(c: Call) -> str:
    x = f"{c[0]} + {c[1]}" if c.has(1) else c[0]
    return f'F.gelu({x}, approximate="tanh")'


def _quick_gelu(c: Call) -> str:
    return f"{c[0]} * torch.sigmoid({c[0]} * {c.float('alpha', 1.702)})"


def _fused_matmul(c: Call) -> str:
    if c.int("transBatchA", 0) or c.int("transBatchB", 0):
        raise c.refuse("it transposes its batch")
    left, right = (
        f"{c[i]}.mT" if c.int(name, 0) and c.rank(i) != 1 else c[i] for i, name in enumerate(("transA", "transB"))
    )
    alpha = c.float("alpha", 1.0)
    return f"{left} @ {right}" if alpha == 1.0 else f"({left} @ {right}) * {alpha}"


ROWS: dict[str, str | Callable[[Call], str]] = {
    "BiasGelu": "F.gelu({0!t} + {1!t})",
    "FastGelu": _fast_gelu,
    "FusedMatMul": _fused_matmul,
    "Gelu": "F.gelu({0!t})",
    "QuickGelu": _quick_gelu,
}
