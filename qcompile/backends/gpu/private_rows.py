"""Our own operators, which have kernels. Attributes of nodes of the domain ``gpu`` name objects of the program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qcompile.ir.functions import DOMAIN
from qcompile.operators.call import Call
from qcompile.operators.precision import MIXED
from qcompile.operators.table import STANDARD, Table

__all__ = ["PRECISION", "TABLE"]

PRECISION = replace(MIXED, kernels="gpu")


def _linear(c: Call) -> str:
    name = c.string("object")
    call = f"self.{name}({c[0]}{f', {c[1]}' if c.has(1) else ''})"
    return call if len(c.node.outputs) == 1 else f"self.{name}.split({call})"


def _finish(c: Call) -> list[str]:
    """What follows inside of the same kernel."""
    parts = [f"transform=self.{c.string('transform')}"] if c.string("transform") else []
    return parts + ([f"activation=self.{c.string('activation')}"] if c.string("activation") else [])


def _kernel(name: str, arguments: Callable[[Call], list[str]]) -> Callable[[Call], str]:
    return lambda c: f"{c.program.kernel(name)}({', '.join([*arguments(c), *_finish(c)])})"


def _norm(c: Call) -> list[str]:
    return [c[0], c.program.tensor(c.value(1), False), str(c.float("epsilon", 1e-5))]


def _transform(c: Call) -> str:
    name = f"self.{c.string('object')}"
    return f"{name}.quantize({c[0]}, self.{c.string('activation')})" if c.string("activation") else f"{name}({c[0]})"


def _embedding(c: Call) -> str:
    return f"{c.program.kernel('embedding')}({c[0]}, *self.{c.string('object')}, dtype)"


def _scan(name: str) -> Callable[[Call], str]:
    """Decays are left in the type that they have: products of many factors close to 1."""

    def call(c: Call) -> str:
        inputs = [c.program.own(c.value(i)) for i in range(len(c))]
        return f"{c.program.kernel(name)}({', '.join([c[0], *inputs[1:]])})"

    return call


def _rotary(c: Call) -> str:
    """Angles keep their precision: the kernel computes in float32."""
    cos, sin = (c.program.own(c.value(i)) for i in (1, 2))
    return f"{c.program.kernel('rotary')}({c[0]}, {cos}, {sin})"


def _older_norm(c: Call) -> str:
    return f"{c.program.kernel('rms_norm')}({c[0]}, {c[1]}, {c.number(2)})"


def _older_layer_norm(c: Call) -> str:
    return f"F.layer_norm({c[0]}, {c[1]}.shape, {c[1]}, {c[2]}, {c.number(3)})"


def _attention(c: Call) -> str:
    mask = f", mask={c[3]}" if c.has(3) else ""
    return f"{c.helper('attention')}({c[0]}, {c[1]}.transpose(-1, -2), {c[2]}{mask}, scale={c.float('scale', 1.0)})"


TABLE: Table = {
    **STANDARD,
    ("gpu", "Attention"): _attention,
    ("gpu", "Embedding"): _embedding,
    ("gpu", "Gate"): _kernel("gate", lambda c: [c[0], c[1], f'"{c.string("kind")}"']),
    ("gpu", "Linear"): _linear,
    ("gpu", "Modulate"): _kernel("modulate", lambda c: [c[0], c[1], c[2]]),
    ("gpu", "Quantize"): lambda c: f"{c.program.kernel('quantize_activation')}({c[0]}, self.{c.string('activation')})",
    ("gpu", "RMSNorm"): _kernel("rms_norm", _norm),
    ("gpu", "Rotary"): _rotary,
    ("gpu", "Transform"): _transform,
    (DOMAIN, "LayerNorm"): _older_layer_norm,
    (DOMAIN, "RMSNorm"): _older_norm,
    (DOMAIN, "SelectiveScan"): _scan("selective_scan"),
    (DOMAIN, "StateSpaceDuality"): _scan("state_space_duality"),
}
