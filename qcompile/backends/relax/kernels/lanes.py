"""Writing kernels for two machines at once: vectors of 16 lanes on a CPU, one lane in each thread of a GPU.

Every kernel is a ``PrimFunc`` that Python writes statement by statement. ``Lanes`` makes vectors and constants of the
machine's width, and turns independent jobs into a parallel loop or into threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

__all__ = ["BLOCK", "Lanes", "bits_of", "const", "float_of", "kernel", "select"]

#: Output columns that lie together in a packed weight, whatever machine reads it.
BLOCK = 16
_THREADS = 128


def kernel(name: str, write: Callable[[], None]) -> tirx.PrimFunc:
    """The function that ``write`` writes."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE, "tirx.is_scheduled": True})
        write()
    function = builder.get()
    root = s_tir.SBlock([], [], [], "root", function.body)  # passes of Relax look for one
    return function.with_body(s_tir.SBlockRealize([], True, root))


_OPAQUE = 8  # no fusion with neighbours


def argument(name: str, shape: Sequence[Any], dtype: str) -> tirx.Buffer:
    """The next parameter of the function: a dense tensor."""
    return T.match_buffer(T.arg(name, T.handle()), tuple(shape), dtype)


def const(value: float, dtype: str, lanes: int = 1) -> tirx.Expr:
    """A number, in each lane."""
    scalar = tirx.const(value, dtype)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def bits_of(value: tirx.Expr, lanes: int = 1) -> tirx.Expr:
    """The bits of float32 numbers as int32."""
    return tirx.reinterpret(_typed("int32", lanes), value)


def float_of(value: tirx.Expr, lanes: int = 1) -> tirx.Expr:
    """The float32 numbers that int32 bits stand for."""
    return tirx.reinterpret(_typed("float32", lanes), value)


def select(condition: tirx.Expr, yes: tirx.Expr, no: tirx.Expr) -> tirx.Expr:
    """``yes`` where the condition holds; both are computed."""
    return tirx.Select(condition, yes, no)


@dataclass(frozen=True)
class Lanes:
    """A machine.

    Args:
        width: lanes of a vector.
        threads: whether jobs are threads of a GPU.
        permutes: whether a vector of 16 floats can be looked up by a vector of indices (AVX-512).
    """

    width: int
    threads: bool = False
    permutes: bool = False

    def at(self, base: Any) -> Any:
        """The index of a vector that starts at ``base``."""
        return base if self.width == 1 else tirx.Ramp(_index(base), _index(1), self.width)

    def splat(self, value: tirx.Expr) -> tirx.Expr:
        """A scalar in every lane."""
        return value if self.width == 1 else tirx.Broadcast(value, self.width)

    def number(self, value: float, dtype: str = "float32") -> tirx.Expr:
        """A constant in every lane."""
        return const(value, dtype, self.width)

    def cast(self, value: tirx.Expr, dtype: str) -> tirx.Expr:
        """Converted to a type, in every lane."""
        return tirx.Cast(_typed(dtype, self.width), value)

    def bits(self, value: tirx.Expr) -> tirx.Expr:
        """The bits of floats."""
        return bits_of(value, self.width)

    def floats(self, value: tirx.Expr) -> tirx.Expr:
        """The floats of bits."""
        return float_of(value, self.width)

    def table(self, values: Sequence[float], index: tirx.Expr) -> tirx.Expr:
        """``values[index & 15]`` for sixteen values, in one instruction where the machine has it."""
        if self.permutes and self.width == 16:
            vector = tirx.Shuffle([const(v, "float32") for v in values], [tirx.const(i, "int32") for i in range(16)])
            return tirx.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.permvar.sf.512", vector, index)
        return self._choose(values, index, 8)

    def _choose(self, values: Sequence[float], index: tirx.Expr, bit: int) -> tirx.Expr:
        if len(values) == 1:
            return self.number(values[0])
        half = len(values) // 2
        chosen = (index & self.number(bit, "int32")) != self.number(0, "int32")
        return select(
            chosen, self._choose(values[half:], index, bit // 2), self._choose(values[:half], index, bit // 2)
        )

    def local(self, vectors: int, dtype: str = "float32") -> tirx.Buffer:
        """Registers for some vectors. At most 1 KiB, or TVM puts them into memory."""
        return T.alloc_buffer((vectors * self.width,), dtype, scope="local")

    def load(self, buffer: tirx.Buffer, vector: int) -> tirx.Expr:
        """One vector of :meth:`local`."""
        return buffer[self.at(vector * self.width)]

    def store(self, buffer: tirx.Buffer, vector: int, value: tirx.Expr) -> None:
        """Set one vector of :meth:`local`."""
        T.buffer_store(buffer, value, [self.at(vector * self.width)])

    @contextmanager
    def jobs(self, *extents: Any) -> Iterator[list[tirx.Expr]]:
        """Independent jobs, numbered along each extent; the last one runs fastest."""
        total = 1
        for extent in extents:
            total = total * extent
        if not self.threads:
            with T.parallel(0, total) as job:
                yield _split(job, extents)
            return
        blocks = T.thread_binding(0, tirx.ceildiv(total, _THREADS), thread="blockIdx.x")
        with blocks as block, T.thread_binding(0, _THREADS, thread="threadIdx.x") as thread:
            job = block * _THREADS + thread
            with T.If(job < total), T.Then():
                yield _split(job, extents)


def _index(value: Any) -> Any:
    return tirx.const(value, "int64") if isinstance(value, int) else value


def _split(job: tirx.Expr, extents: Sequence[Any]) -> list[tirx.Expr]:
    parts = []
    for extent in reversed(extents[1:]):
        parts.append(tirx.floormod(job, extent))
        job = tirx.floordiv(job, extent)
    return [job, *reversed(parts)]
