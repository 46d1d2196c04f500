"""The usual options of rounding by data, with the reason of each."""

from __future__ import annotations

__all__ = ["LEAST_DAMPING", "SHIFT"]

#: The usual damping of GPTQ; few rows need more.
LEAST_DAMPING = 0.01

#: How much of the way a weight is moved to the least-squares estimate for the input of the quantized graph. That
#: estimate shrinks outputs the more the noisier its input is, which later layers do not expect; on the shipped
#: language model a quarter to three quarters do about equally well, and better than none or all of it (ADR 5).
SHIFT = 0.5
