"""Kernels for quantized linear layers and what stands around them; shipped as they are with every artifact.

Nothing here imports anything but torch, triton and the standard library.

    linear = Linear(tensors, meta)            # both from ``packing.pack``
    y = linear(x, bias)                       # x [..., K] -> [..., N]
    q, k, v = linear.split(y)                 # siblings that were packed as one weight
    activation = Transform(tensors, meta).quantize(x, meta_of_format)
    y = linear(activation)
"""

from .activation import dequantize, quantize_activation
from .activation_type import Activation
from .embedding import embedding
from .fused import gate, modulate, rms_norm
from .linear import Linear
from .rotary import rotary
from .scan import selective_scan, state_space_duality
from .transform import Transform

__all__ = [
    "Activation",
    "Linear",
    "Transform",
    "dequantize",
    "embedding",
    "gate",
    "modulate",
    "quantize_activation",
    "rms_norm",
    "rotary",
    "selective_scan",
    "state_space_duality",
]
