"""Small graphs around one operator, with the freedom that the mathematics gives to each axis that it reads.

A case is a few lines of ONNX's textual syntax that read ``h`` and write ``g`` (and ``g1``, ``g2``). The graph around it
leaves every axis of ``h`` free: a site writes it, of whose output the axes are factors. Sites read the results. The
letters ``A`` to ``E`` in a case stand for sizes, so that random graphs can use it at others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import changes
import numpy as np
import onnx_ir as ir

from qcompile.analysis.axes import Mode, Ref, Structure
from qcompile.analysis.spaces import Analysis
from qcompile.ir.widen import to_double
from qcompile.run.data import example_inputs
from qcompile.transforms.freedom import Freedom

__all__ = ["CODES", "Case", "build", "constants", "expression", "resize"]

SIZES = {"A": 2, "B": 3, "C": 8, "D": 4, "E": 4}

CODES = {
    "G": Freedom.GENERAL, "O": Freedom.ORTHOGONAL, "1": Freedom.ORTHOGONAL_ONES, "M": Freedom.MONOMIAL,
    "+": Freedom.POSITIVE_MONOMIAL, "S": Freedom.SIGNED_PERMUTATION, "P": Freedom.PERMUTATION, "D": Freedom.DIAGONAL,
    "d": Freedom.POSITIVE_DIAGONAL, "s": Freedom.SIGNS, "N": Freedom.NONE,
}  # fmt: skip

#: Contents of constants by the word after a colon in a declaration.
CONTENTS = {
    "ones": lambda rng, dims: np.ones(dims),
    "zeros": lambda rng, dims: np.zeros(dims),
    "uniform": lambda rng, dims: np.full(dims, 0.7),
    "positive": lambda rng, dims: rng.uniform(0.5, 1.5, dims),
    "small": lambda rng, dims: 0.1 * rng.standard_normal(dims),
    "bytes": lambda rng, dims: rng.integers(0, 256, dims),
    "random": lambda rng, dims: rng.standard_normal(dims),
}

_DECLARATION = re.compile(r"(\w+)(\[[^\]]*\])? (\w+)(?::(\w+))?(?:\s*=\s*\{([^}]*)\})?")


@dataclass(frozen=True)
class Case:
    """One operator, or a few, between sites.

    Args:
        name: what is special about it.
        shape: of ``h``, as letters.
        freedom: per axis of ``h`` the code of its freedom: ``"G G M"``; ``x*y`` for factors and ``x|y`` for segments.
        body: statements of ONNX's textual syntax.
        extra: constants: ``"float[C] c, float[C] v:positive, int64[1] a = {-1}"``.
        opset: the first in which the operators exist in this form.
        until: the last such opset.
        need: a condition on the sizes, in Python.
        loose: per axis a larger group that the operators do commute with though the rule does not say so, or ``-``.
        free: whether random graphs may use it at other sizes.
        mixed: whether random graphs use it at all.
    """

    name: str
    shape: str
    freedom: str
    body: str
    extra: str = ""
    opset: int = 21
    until: int = 99
    need: str = "True"
    loose: str = ""
    free: bool = True
    mixed: bool = True


def resize(text: str, sizes: Mapping[str, int | str]) -> str:
    """A text with numbers (or symbols) for the letters, products like ``2*C`` and quotients ``C/2`` included."""
    text = re.sub(r"\b[A-E]\b", lambda match: str(sizes[match[0]]), text)
    return re.sub(r"\b(\d+(?:[*/+-]\d+)+)\b", lambda match: str(int(eval(match[0]))), text)


def constants(extra: str, rng: np.random.Generator) -> tuple[list[str], dict[str, np.ndarray]]:
    """Declarations in ONNX's syntax, and the contents of those that are not random."""
    declared, contents = [], {}
    for kind, dims, name, how, items in _DECLARATION.findall(extra):
        declared.append(f"{kind}{dims} {name}")
        sizes = tuple(int(d) for d in dims.strip("[]").split(",") if d.strip())
        dtype = {"float": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_, "uint8": np.uint8,
                 "int8": np.int8, "uint32": np.uint32}[kind]  # fmt: skip
        if items:
            contents[name] = np.array([float(i) if "." in i else int(i) for i in items.split(",")], dtype).reshape(
                sizes
            )
        else:
            contents[name] = CONTENTS[how or "random"](rng, sizes).astype(dtype)
    return declared, contents


def build(case: Case, seed: int = 0) -> ir.Model:
    """The case as a model of one input and one output for each of ``g``, ``g1`` and ``g2``."""
    sizes = [int(resize(letter, SIZES)) for letter in case.shape.split()]
    body, extra = resize(case.body, SIZES), resize(case.extra, SIZES)
    outputs = sorted(set(re.findall(r"\bg\d?\b(?=[^=\n]*=[^=])", body)))
    rng = np.random.default_rng(seed)
    declared, contents = constants(extra, rng)
    declared += [f"float[5,{np.prod(sizes)}] w1", f"int64[{len(sizes)}] hshape"]
    contents["hshape"] = np.array(sizes)
    head = f"h0 = MatMul(x, w1)\n h = Reshape(h0, hshape)\n {body}"
    probe = changes.parse(
        _text("float[1,5] probe", declared, f"probe = Identity(x)\n {head}"), case.opset, seed, **contents
    )
    produced = {value.name: value for node in probe.graph for value in node.outputs}
    probe.graph.outputs.extend(produced[out] for out in outputs)
    found = changes.evaluate_exactly(to_double(probe), example_inputs(probe, seed=seed))[0]
    for out in outputs:
        count = found[out].size
        cast = found[out].dtype.kind != "f"
        head += f"\n f_{out} = Cast<to=1>({out})" if cast else ""
        head += f"\n r_{out} = Reshape({'f_' * cast}{out}, flat)\n y_{out} = MatMul(r_{out}, w_{out})"
        declared.append(f"float[{count},4] w_{out}")
    declared.append("int64[2] flat")
    contents["flat"] = np.array([1, -1])
    return changes.parse(
        _text(", ".join(f"float[1,4] y_{o}" for o in outputs), declared, head), case.opset, seed, **contents
    )


def _text(results: str, declared: list[str], body: str) -> str:
    return f"g (float[1,5] x) => ({results})\n<{', '.join(declared)}> {{ {body} }}"


def expression(analysis: Analysis, ref: Ref) -> str:
    """The freedoms of an axis' leaves: ``G``, ``N*D``, ``M|P``."""
    root = analysis.axes.find(ref)
    if root.node.structure is Structure.LEAF:
        return "-" if root.node.size == 1 else _code(root)
    sign = "*" if root.node.structure is Structure.PRODUCT else "|"
    parts = [expression(analysis, child) for child in analysis.axes.children(root)]
    return sign.join(f"({part})" if sign == "*" and "|" in part else part for part in parts)


def _code(leaf: Ref) -> str:
    freedom = leaf.node.freedom
    if leaf.mode is Mode.PLAIN:
        freedom &= Freedom.PERMUTATION
    return next(code for code, group in CODES.items() if group == freedom)
