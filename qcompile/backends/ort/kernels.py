"""How a site can be computed. A target names the kernels that it allows; the first that takes a site lowers it.

A kernel is chosen by properties of the scheme and of the operator, never by the name of a format or target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from qcompile.analysis.forms import Convolution, Form, Linear, Lookup, Stack, read_convolution, read_site
from qcompile.analysis.patches import is_convolution
from qcompile.backends.ort import emulation, integer, nbits, qdq, tensorrt
from qcompile.backends.ort.emitter import Emitter, Parts
from qcompile.backends.ort.weights import packed_parts
from qcompile.errors import TargetError
from qcompile.formats import Quantized
from qcompile.ir.graph import node_name
from qcompile.targets.plans import Plan
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target

__all__ = ["KERNELS", "Kernel", "choose"]


@dataclass(frozen=True)
class Kernel:
    """One way to compute a site.

    Args:
        site: the kind of site that it is for.
        takes: whether it computes a scheme.
        pack: lays a weight out, its parts by name.
        emit: writes the nodes, given those parts; returns the result and what to say about it.
        about: one line for the report.
        rounds: names the format to which it rounds the site's input by itself, given that of the weight.
    """

    site: type[Form]
    takes: Callable[[Scheme], bool]
    pack: Callable[[Quantized], Parts]
    emit: Callable[[Emitter, Any, Plan, Parts], tuple[ir.Value, Mapping[str, Any]]]
    about: str
    rounds: Callable[[Any, Target], str | None] | None = None

    def form_of(self, node: ir.Node) -> Form:
        """A site as the kernel takes it."""
        return read_convolution(node) if self.site is Convolution else read_site(node)


KERNELS: dict[str, Kernel] = {
    "nbits": Kernel(
        Linear, nbits.takes, nbits.pack, nbits.emit_linear, "com.microsoft.MatMulNBits", nbits.rounds_input_to
    ),
    "nbits-lookup": Kernel(Lookup, nbits.takes, nbits.pack, nbits.emit_lookup, "com.microsoft.GatherBlockQuantized"),
    "integer": Kernel(
        Linear, integer.takes, integer.pack, integer.emit, "MatMulIntegerToFloat, activations quantized per token"
    ),
    "integer-lookup": Kernel(
        Lookup, integer.takes_lookup, integer.pack_table, integer.emit_lookup, "rows of bytes, times their scales"
    ),
    "qdq-convolution": Kernel(
        Convolution, qdq.takes, qdq.pack, qdq.emit, "QuantizeLinear and DequantizeLinear around the convolution"
    ),
    "qdq": Kernel(Linear, qdq.takes, qdq.pack, qdq.emit, "QuantizeLinear and DequantizeLinear around it"),
    "tensorrt-fp4": Kernel(
        Linear, tensorrt.takes_fp4, tensorrt.pack_fp4, tensorrt.emit_fp4, "TRT_FP4DynamicQuantize and DequantizeLinear"
    ),
    "tensorrt-mxfp8": Kernel(
        Linear,
        tensorrt.takes_mxfp8,
        tensorrt.pack_mxfp8,
        tensorrt.emit_mxfp8,
        "TRT_MXFP8DynamicQuantize and TRT_MXFP8DequantizeLinear",
    ),
    "decoded": Kernel(
        Linear,
        emulation.takes_decoded,
        packed_parts,
        emulation.emit_linear,
        "a float product: weights are decoded when the model is loaded, and save no time and no memory then",
    ),
    "emulated": Kernel(Linear, emulation.takes, packed_parts, emulation.emit_linear, "standard operators, exact"),
    "stack": Kernel(
        Stack, emulation.takes, packed_parts, emulation.emit_stack, "the operator itself, weights decoded, exact"
    ),
    "convolution": Kernel(
        Convolution,
        emulation.takes,
        packed_parts,
        emulation.emit_convolution,
        "the operator itself, weights decoded when the model is loaded, exact",
    ),
    "lookup": Kernel(Lookup, emulation.takes_lookup, packed_parts, emulation.emit_lookup, "standard operators, exact"),
}


def choose(node: ir.Node, plan: Plan, allowed: tuple[str, ...], *, split: bool = False) -> Kernel:
    """The first allowed kernel for a site.

    Args:
        split: whether it is a stack that will be a site for each of its matrices.

    Raises:
        TargetError: if there is none.
    """
    kinds: set[type[Form]] = {Linear if split else type(read_site(node))}
    if is_convolution(node):
        kinds.add(Convolution)
    for name in allowed:
        kernel = KERNELS[name]
        if kernel.site in kinds and kernel.takes(plan.scheme):
            return kernel
    raise TargetError(
        f"onnxruntime: no kernel for site '{node_name(node)}' ({node.op_type}) in format '{plan.scheme.name}'; "
        f"the target has {', '.join(allowed)}"
    )
