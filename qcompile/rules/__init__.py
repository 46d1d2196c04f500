"""The commutation rules: what each operator does to axes, and which freedom it leaves.

One file per family of operators. Importing this package registers them all.
"""

from qcompile.rules import attention, control_flow, elementwise, fused_attention, linear, normalization, shaping, state_space

__all__ = ["attention", "control_flow", "elementwise", "fused_attention", "linear", "normalization", "shaping", "state_space"]
