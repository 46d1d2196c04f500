"""The targets that TVM compiles for."""

from __future__ import annotations

from qcompile.targets.target import Target

__all__ = ["EXTRA", "RUNTIME", "TARGETS"]

EXTRA = "tvm"

#: What runs the artifacts, as manifests and the command line call it.
RUNTIME = "tvm"

_GROUPS = (16, 32, 64, 128, 256)
_INTEGERS = tuple(f"{kind}{bits}-g{group}" for bits in (4, 8) for kind in ("int", "uint") for group in _GROUPS)
_NVFP4 = ("nvfp4-4over6", "nvfp4", "nvfp4-4over6-448")
_MXFP4 = ("mxfp4", "mxfp4-even", "mxfp4-rceil", "mxfp4-ceil", "mxfp4-nearest", "mxfp4-mrgptq")
_EIGHT = ("int8-channel", "fp8-e4m3-channel", "mxfp8-e4m3")
_TABLES = ("nf4-g32", "nf4-g64", "nf4-g128")
_QUANTIZED = (*_NVFP4, *_MXFP4, *_EIGHT, "int4-g32", "int8-g32")
_W4A8 = tuple(f"int4-g{group}/{activation}" for activation in _EIGHT[:2] for group in (128, 64, 32))

#: Weights alone, then activations in the same format, then in 8 bits; the first scheme is what a weight format alone
#: means.
_SCHEMES = (*_INTEGERS, *_NVFP4, *_MXFP4, *_EIGHT, *_TABLES, *(f"{name}/{name}" for name in _QUANTIZED), *_W4A8)

TARGETS = (
    Target(
        "tvm-cpu",
        "weights of 4 and 8 bits in a library that TVM compiles for a CPU, this one or --tvm-target",
        ("relax",),
        schemes=_SCHEMES,
        default="int4-g32",
        edge="int8-g32",
        transform_price=3.0,
        stacks="matrices",
        ties=True,
        options={"kind": "cpu", "machine": None},
    ),
    Target(
        "tvm-cuda",
        "the same kernels as CUDA source, compiled where nvcc is installed",
        ("relax",),
        schemes=_SCHEMES,
        default="int4-g32",
        edge="int8-g32",
        transform_price=3.0,
        stacks="matrices",
        ties=True,
        runs_here=False,
        options={"kind": "cuda", "machine": None},
    ),
)
