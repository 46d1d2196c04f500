"""The commutation rules: what each operator does to axes, and which freedom it leaves.

One file per family of operators. Importing this package registers them all.
"""

from qcompile.rules import attention as attention
from qcompile.rules import control_flow as control_flow
from qcompile.rules import convolution as convolution
from qcompile.rules import einsum as einsum
from qcompile.rules import elementwise as elementwise
from qcompile.rules import fused as fused
from qcompile.rules import fused_attention as fused_attention
from qcompile.rules import images as images
from qcompile.rules import indexing as indexing
from qcompile.rules import linear as linear
from qcompile.rules import memory as memory
from qcompile.rules import normalization as normalization
from qcompile.rules import quantization as quantization
from qcompile.rules import recurrent as recurrent
from qcompile.rules import sequences as sequences
from qcompile.rules import shaping as shaping
from qcompile.rules import sizes as sizes
from qcompile.rules import state_space as state_space
