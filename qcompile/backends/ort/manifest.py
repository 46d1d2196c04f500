"""The targets that onnxruntime runs."""

from __future__ import annotations

from qcompile.operators.sorts import MOVES, POINTWISE
from qcompile.targets.target import Target

__all__ = ["EXTRA", "RUNTIME", "TARGETS"]

#: onnxruntime is a dependency of the core: nothing more to install.
EXTRA = None

#: What runs the artifacts, as manifests and the command line call it.
RUNTIME = "ort"

_GROUPS = (16, 32, 64, 128, 256)
_FP8 = ("fp8-e4m3-channel/fp8-e4m3-channel", "fp8-e4m3-channel")
_MXFP8 = ("mxfp8-e4m3/mxfp8-e4m3", "mxfp8-e4m3")
_NVFP4 = ("nvfp4-4over6", "nvfp4", "nvfp4-4over6-448")
_MXFP4 = ("mxfp4", "mxfp4-even", "mxfp4-rceil", "mxfp4-ceil", "mxfp4-nearest", "mxfp4-mrgptq")

#: Weights that QuantizeLinear pairs hold beside activations of 8 bits, and alone.
_PAIRS = tuple(f"{weight}/{x}-static" for weight in ("int8-channel", "int4-channel", *(f"int4-g{n}" for n in _GROUPS))
               for x in ("uint8", "int8")) + ("int4-channel", *(f"int4-g{n}" for n in _GROUPS))  # fmt: skip

#: Bytes a second that a desktop processor reads with a few threads.
_CPU = 2e10

#: The machine whose times price what runs on a CPU, unless others are asked for.
_PROFILE, _PACKAGES = "epyc-vnni", ("onnxruntime",)


#: Operators with an integer form.
INTEGER = MOVES | POINTWISE | {
    "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LayerNorm", "LayerNormalization", "LeakyRelu",
    "MatMul", "PRelu", "Pad", "RMSNorm", "RMSNormalization", "ReduceMean", "Shape", "Softmax", "Split",
}  # fmt: skip


def _both(names: tuple[str, ...]) -> tuple[str, ...]:
    """Each format for weights and activations, then for weights alone."""
    return tuple(f"{name}/{name}" for name in names) + names


def _integers(widths: tuple[int, ...], groups: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"{kind}{bits}-g{group}" for bits in widths for kind in ("int", "uint") for group in groups)


TARGETS = (
    Target(
        "cpu-int4",
        "weights of 2, 4 and 8 bits in onnxruntime's MatMulNBits, on any CPU; of 3, decoded as the model is loaded",
        ("ort",),
        schemes=_integers((4, 8), _GROUPS) + _integers((2,), (64, 32, 128)) + _integers((3,), (32, 64, 128, 16, 256)),
        default="int4-g32",
        edge="int8-g32",
        transform_price=3.0,
        bandwidth=_CPU,
        profile=_PROFILE,
        runs_in=_PACKAGES,
        stacks="all",
        convolutions="weights",
        bodies=True,
        ties=True,
        caches="channel",
        fused_caches=True,
        forms=("plain", "genai"),
        options={
            "kernels": ("convolution", "nbits", "nbits-lookup", "stack", "decoded", "lookup"),
            "accuracy_level": 4,
            "unrolls": True,
        },
    ),
    Target(
        "cpu-int8",
        "8-bit weights per channel and activations per token in integer arithmetic, on any CPU",
        ("ort",),
        schemes=("int8-channel/int8-channel",),
        default="int8-channel/int8-channel",
        transform_price=3.0,
        bandwidth=_CPU,
        profile=_PROFILE,
        runs_in=_PACKAGES,
        edge="int8-channel/int8-channel",
        stacks="all",
        convolutions="weights",
        bodies=True,
        ties=True,
        caches="channel",
        fused_caches=True,
        forms=("plain", "genai"),
        options={"kernels": ("convolution", "integer", "integer-lookup", "stack"), "unrolls": True},
    ),
    Target(
        "qdq-int8",
        "8-bit weights per channel, activations in static ranges, as QuantizeLinear/DequantizeLinear pairs",
        ("ort",),
        schemes=_PAIRS,
        default="int8-channel/uint8-static",
        edge="int8-channel/uint8-static",
        transform_price=3.0,
        bandwidth=_CPU,
        convolutions="all",
        forms=("plain", "qonnx"),
        constant_forms=("qonnx",),
        options={"kernels": ("qdq-convolution", "qdq", "integer-lookup")},
    ),
    Target(
        "integer",
        "8-bit codes and 32-bit sums with dyadic scales: no floating-point operator between quantization and output",
        ("ort",),
        schemes=("int8-channel/uint8-static",),
        default="int8-channel/uint8-static",
        edge="int8-channel/uint8-static",
        bandwidth=_CPU,
        convolutions="all",
        online="none",
        static="all",
        operators=INTEGER,
        options={"kernels": ("qdq-convolution", "qdq"), "integers": True},
    ),
    Target(
        "blackwell-fp4",
        "NVFP4 weights and activations: Triton kernels for tensor cores, and to the bit in onnxruntime anywhere",
        ("ort", "gpu"),
        schemes=_both(_NVFP4) + _FP8 + _MXFP8,
        default="nvfp4-4over6/nvfp4-4over6",
        plain="nvfp4/nvfp4",
        edge="fp8-e4m3-channel",
        aliases=("blackwell-nvfp4",),
        stacks="matrices",
        bodies=True,
        emulated=True,
        options={"kernels": ("emulated", "stack", "lookup")},
    ),
    Target(
        "blackwell-mxfp4",
        "MXFP4 weights and activations: Triton kernels for tensor cores, and to the bit in onnxruntime anywhere",
        ("ort", "gpu"),
        schemes=_both(_MXFP4) + _MXFP8 + _FP8,
        default="mxfp4-even/mxfp4-even",
        plain="mxfp4/mxfp4",
        edge="mxfp8-e4m3",
        stacks="matrices",
        bodies=True,
        emulated=True,
        options={"kernels": ("emulated", "stack", "lookup")},
    ),
    Target(
        "reference",
        "any format for weights and activations, emulated to the bit in onnxruntime",
        ("ort",),
        schemes=("*",),
        default="int4-g32/int4-g32",
        edge="int8-g32",
        stacks="all",
        convolutions="all",
        bodies=True,
        emulated=True,
        ties=True,
        caches="token",
        forms=("plain", "qonnx"),
        constant_forms=("qonnx",),
        options={"kernels": ("emulated", "stack", "lookup", "convolution")},
    ),
)
