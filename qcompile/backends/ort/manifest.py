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

#: Schemes of 8 bits as TensorRT reads them: zero is code 0, and scales of inputs are constants.
_TRT_INT8, _TRT_FP8 = "int8-channel/int8-static", "fp8-e4m3-channel/fp8-e4m3-static"

#: Those whose scales TensorRT computes for blocks of inputs, MXFP8 by its rule, which rounds scales up.
_TRT_BLOCKS = tuple(f"{weight}/nvfp4-static" for weight in _NVFP4) + ("mxfp8-e4m3-rceil/mxfp8-e4m3-rceil",)

#: Two weights together, where bytes are multiplied: 255 times as much is within 16 bits.
_NEIGHBOURS = 128

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


_PAIR_KERNELS = ("qdq-convolution", "qdq", "integer-lookup")

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
        schemes=("int8-channel/int8-channel", "int8-channel/uint8-tensor"),
        default="int8-channel/int8-channel",
        transform_price=3.0,
        bandwidth=_CPU,
        profile=_PROFILE,
        runs_in=_PACKAGES,
        edge="int8-channel/int8-channel",
        neighbours=_NEIGHBOURS,
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
        neighbours=_NEIGHBOURS,
        transform_price=3.0,
        bandwidth=_CPU,
        convolutions="all",
        oldest={"int4": 21},
        forms=("plain", "qonnx", "tensorrt"),
        constant_forms=("qonnx",),
        in_forms={
            "tensorrt": {
                "schemes": (_TRT_INT8,),
                "default": _TRT_INT8,
                "edge": _TRT_INT8,
                "tables": False,
                "refusals": {
                    "int8-channel/uint8": "TensorRT's integers have no zero point but 0",
                    "int4": "TensorRT has no product of 4-bit weights and 8-bit inputs",
                },
            }
        },
        options={"kernels": _PAIR_KERNELS, "tensorrt": _PAIR_KERNELS[:2]},
    ),
    Target(
        "integer",
        "8-bit codes and 32-bit sums with dyadic scales: no floating-point operator between quantization and output",
        ("ort",),
        schemes=("int8-channel/uint8-static",),
        default="int8-channel/uint8-static",
        edge="int8-channel/uint8-static",
        neighbours=_NEIGHBOURS,
        bandwidth=_CPU,
        convolutions="all",
        online="none",
        static="all",
        tables=False,
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
        forms=("plain", "tensorrt"),
        in_forms={
            "tensorrt": {
                "backends": ("ort",),
                "schemes": (*_TRT_BLOCKS, _TRT_FP8),
                "default": _TRT_BLOCKS[0],
                "plain": "nvfp4/nvfp4-static",
                "edge": _TRT_FP8,
                "stacks": "none",
                "bodies": False,
                "tables": False,
                "oldest": {"nvfp4": 23, "mxfp8": 19, "fp8": 19},
                "refusals": {
                    "nvfp4": "TensorRT computes NVFP4 weights in float32, without a word, if inputs are not NVFP4",
                    "fp8": "inputs in FP8 have a static range in TensorRT",
                    "mxfp8": "TensorRT rounds scales of MXFP8 up",
                },
            }
        },
        options={"kernels": ("emulated", "stack", "lookup"), "tensorrt": ("tensorrt-fp4", "tensorrt-mxfp8", "qdq")},
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
        channels=True,
        bodies=True,
        emulated=True,
        ties=True,
        caches="token",
        forms=("plain", "qonnx"),
        constant_forms=("qonnx",),
        options={"kernels": ("emulated", "stack", "lookup", "convolution")},
    ),
)
