"""The targets that the generated Triton programs run on."""

from __future__ import annotations

from qcompile.targets.target import Target

__all__ = ["ARCHITECTURES", "BANDWIDTH", "EXTRA", "RUNTIME", "TARGETS"]

EXTRA = "triton"

#: What runs the artifacts, as manifests and the command line call it.
RUNTIME = "triton"

#: GPUs that a target is compiled for; weights are packed for the first. Targets of other backends that this one joins
#: stand here too.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "hopper-int4": ("sm_90",),
    "hopper-fp4": ("sm_90",),
    "hopper-w4a8": ("sm_90",),
    "blackwell-fp4": ("sm_100", "sm_103", "sm_120"),
    "blackwell-mxfp4": ("sm_100", "sm_103", "sm_120"),
    "mi350-mxfp4": ("gfx950",),
}

#: Memory bandwidth in bytes a second: H100 SXM (measured as a copy), B200, B300, RTX PRO 6000, MI350X (data sheets).
BANDWIDTH = {"sm_90": 3.0e12, "sm_100": 8.0e12, "sm_103": 8.0e12, "sm_120": 1.79e12, "gfx950": 8.0e12}

_INT4 = tuple(f"{kind}4-g{group}" for kind in ("int", "uint") for group in (128, 64, 32))
_TABLES = tuple(f"{name}-g{group}" for name in ("nf4", "af4") for group in (64, 128, 32)) + ("higgs-p1-n16",)
_INT8 = tuple(f"{kind}8-g{group}" for kind in ("int", "uint") for group in (128, 64, 32)) + ("int8-channel",)
_NVFP4 = ("nvfp4-4over6", "nvfp4", "nvfp4-4over6-448")
_MXFP4 = ("mxfp4-even", "mxfp4", "mxfp4-rceil", "mxfp4-ceil", "mxfp4-nearest", "mxfp4-mrgptq")
_FP8 = ("fp8-e4m3-channel",)
_EIGHT = ("fp8-e4m3-channel", "int8-channel")

TARGETS = (
    Target(
        "hopper-int4",
        "4-bit integer and table weights, activations in bfloat16, Triton kernels for the H100",
        ("gpu",),
        schemes=_INT4 + _TABLES + _INT8,
        default="int4-g128",
        edge="int8-g128",
        transform_price=3.0,
        bandwidth=BANDWIDTH["sm_90"],
        runs_here=False,
        stacks="matrices",
        bodies=True,
    ),
    Target(
        "hopper-fp4",
        "NVFP4 and MXFP4 weights, activations in bfloat16, Triton kernels for the H100",
        ("gpu",),
        schemes=_NVFP4 + _MXFP4 + _FP8,
        default="nvfp4-4over6",
        plain="nvfp4",
        edge="fp8-e4m3-channel",
        transform_price=3.0,
        bandwidth=BANDWIDTH["sm_90"],
        runs_here=False,
        stacks="matrices",
        bodies=True,
    ),
    Target(
        "hopper-w4a8",
        "4-bit weights and 8-bit activations (FP8 or INT8), Triton kernels for the H100",
        ("gpu",),
        schemes=tuple(f"{weight}/{act}" for act in _EIGHT for weight in (*_INT4, "mxfp4-even", "mxfp4")) + _FP8 + _INT8,
        default="int4-g128/fp8-e4m3-channel",
        edge="int8-g128",
        bandwidth=BANDWIDTH["sm_90"],
        runs_here=False,
        stacks="matrices",
        bodies=True,
    ),
    Target(
        "mi350-mxfp4",
        "MXFP4 weights and activations, Triton kernels for the MI350 (compiled, never run)",
        ("gpu",),
        schemes=tuple(f"{name}/{name}" for name in _MXFP4) + _MXFP4 + ("mxfp8-e4m3/mxfp8-e4m3", "mxfp8-e4m3") + _FP8,
        default="mxfp4-even/mxfp4-even",
        plain="mxfp4/mxfp4",
        edge="mxfp8-e4m3",
        bandwidth=BANDWIDTH["gfx950"],
        runs_here=False,
        stacks="matrices",
        bodies=True,
    ),
)
