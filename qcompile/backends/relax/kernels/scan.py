"""Mamba's selective scan and Mamba-2's recurrence: time runs inside, channels are independent jobs."""

from __future__ import annotations

from dataclasses import replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from qcompile.backends.relax.kernels.lanes import Lanes, argument, kernel
from qcompile.backends.relax.kernels.rows import exp_of_negative

__all__ = ["selective_scan", "state_space_duality"]


def _wide(lanes: Lanes, state: int) -> Lanes:
    return lanes if state % lanes.width == 0 else replace(lanes, width=1)


def _across(lanes: Lanes, vector: tirx.Expr) -> tirx.Expr:
    """The sum over lanes."""
    if lanes.width == 1:
        return vector
    return tirx.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fadd", tirx.const(0.0, "float32"), vector)


def selective_scan(lanes: Lanes, channels: int, state: int) -> tirx.PrimFunc:
    """``(u, delta [batch, length, channels], A [channels, state], B, C [batch, length, state], D [channels], y)``.

    ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``; ``delta A`` must not be positive.
    """
    lanes = _wide(lanes, state)

    def write() -> None:
        batch, length = T.int64(), T.int64()
        u, delta = (argument(name, (batch, length, channels), "float32") for name in ("u", "delta"))
        a = argument("A", (channels, state), "float32")
        b, c = (argument(name, (batch, length, state), "float32") for name in "BC")
        d, y = argument("D", (channels,), "float32"), argument("y", (batch, length, channels), "float32")
        with lanes.jobs(batch, channels) as (n, channel):
            h = _state(lanes, state)
            with T.serial(0, length) as t:
                step, value = T.Bind(delta[n, t, channel]), T.Bind(u[n, t, channel])
                drive = T.Bind(step * value)
                total = lanes.local(1)
                lanes.store(total, 0, lanes.number(0.0))
                for i in range(0, state, lanes.width):
                    at = lanes.at(i)
                    decay = exp_of_negative(lanes, T.Bind(a[channel, at] * lanes.splat(step)))
                    new = T.Bind(h[at] * decay + b[n, t, at] * lanes.splat(drive))
                    T.buffer_store(h, new, [at])
                    lanes.store(total, 0, lanes.load(total, 0) + new * c[n, t, at])
                T.buffer_store(y, _across(lanes, lanes.load(total, 0)) + d[channel] * value, [n, t, channel])

    return kernel("selective_scan", write)


def state_space_duality(lanes: Lanes, heads: int, width: int, groups: int, state: int) -> tirx.PrimFunc:
    """``(x [batch, length, heads, width], delta [.., heads], A [heads], B, C [.., groups, state], D [heads], y)``."""
    lanes = _wide(lanes, state)

    def write() -> None:
        batch, length = T.int64(), T.int64()
        x = argument("x", (batch, length, heads, width), "float32")
        delta, a = argument("delta", (batch, length, heads), "float32"), argument("A", (heads,), "float32")
        b, c = (argument(name, (batch, length, groups, state), "float32") for name in "BC")
        d, y = argument("D", (heads,), "float32"), argument("y", (batch, length, heads, width), "float32")
        with lanes.jobs(batch, heads, width) as (n, head, p):
            h = _state(lanes, state)
            group = T.Bind(head // (heads // groups))
            with T.serial(0, length) as t:
                step, value = T.Bind(delta[n, t, head]), T.Bind(x[n, t, head, p])
                decay = exp_of_negative(replace(lanes, width=1), T.Bind(a[head] * step))
                drive = T.Bind(step * value)
                total = lanes.local(1)
                lanes.store(total, 0, lanes.number(0.0))
                for i in range(0, state, lanes.width):
                    at = lanes.at(i)
                    new = T.Bind(h[at] * lanes.splat(decay) + b[n, t, group, at] * lanes.splat(drive))
                    T.buffer_store(h, new, [at])
                    lanes.store(total, 0, lanes.load(total, 0) + new * c[n, t, group, at])
                T.buffer_store(y, _across(lanes, lanes.load(total, 0)) + d[head] * value, [n, t, head, p])

    return kernel("state_space_duality", write)


def _state(lanes: Lanes, state: int) -> tirx.Buffer:
    """The state of one job, all zeros; a GPU's thread cannot allocate memory, so there it is in registers."""
    h = T.alloc_buffer((state,), "float32", scope="local" if lanes.threads else "global")
    for i in range(0, state, lanes.width):
        T.buffer_store(h, lanes.number(0.0), [lanes.at(i)])
    return h
