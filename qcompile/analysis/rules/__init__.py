"""The commutation rules: what each operator does to axes, and which freedom it leaves.

One file per family of operators. Importing this package registers them all.
"""

from qcompile.analysis.rules import attention as attention
from qcompile.analysis.rules import control_flow as control_flow
from qcompile.analysis.rules import convolution as convolution
from qcompile.analysis.rules import einsum as einsum
from qcompile.analysis.rules import elementwise as elementwise
from qcompile.analysis.rules import fused as fused
from qcompile.analysis.rules import fused_attention as fused_attention
from qcompile.analysis.rules import images as images
from qcompile.analysis.rules import indexing as indexing
from qcompile.analysis.rules import linear as linear
from qcompile.analysis.rules import memory as memory
from qcompile.analysis.rules import normalization as normalization
from qcompile.analysis.rules import quantization as quantization
from qcompile.analysis.rules import recurrent as recurrent
from qcompile.analysis.rules import sequences as sequences
from qcompile.analysis.rules import shaping as shaping
from qcompile.analysis.rules import sizes as sizes
from qcompile.analysis.rules import state_space as state_space
