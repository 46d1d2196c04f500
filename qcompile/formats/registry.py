"""Every scalar block format by name, generated from a few lines of data per family.

``FORMATS`` and ``get_format`` for all formats, the others included, are in ``catalogue``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from qcompile.formats.elements import ELEMENTS
from qcompile.formats.format import Format, ScaleRule, ScaleType

__all__ = ["SCALAR_FORMATS"]

_GROUPS = (16, 32, 64, 128, 256)
_MX = "OCP Microscaling Formats (MX) specification 1.0"
_NVFP4 = "NVIDIA, Pretraining LLMs with NVFP4, arXiv:2509.25149, appendix C"
_MR_GPTQ = "Egiazarian et al., Bridging the gap between promise and performance, arXiv:2509.23202"
_OVER = "Cook et al., Four over six, arXiv:2512.02010"

# name of the family: (element, rule, zero point, default scale of groups, source)
_GROUPED = {
    **{f"int{b}": (f"int{b}", ScaleRule.ABSMAX, False, ScaleType.BF16, "ONNX QuantizeLinear") for b in range(2, 9)},
    **{f"uint{b}": (f"uint{b}", ScaleRule.MINMAX, True, ScaleType.BF16, "ONNX QuantizeLinear") for b in range(2, 9)},
    **{
        f"int{b}-signedmax": (f"int{b}-full", ScaleRule.SIGNED_MAX, False, ScaleType.BF16, "GGML, block_q4_0")
        for b in range(2, 9)
    },
    **{e: (e, ScaleRule.ABSMAX, False, ScaleType.BF16, _MX) for e in ("e1m2", "e2m1", "e3m0", "e2m3", "e3m2")},
    "nf4": ("nf4", ScaleRule.ABSMAX, False, ScaleType.FP32, "QLoRA, arXiv:2305.14314"),
    "nf4-signedmax": ("nf4", ScaleRule.SIGNED_MAX, False, ScaleType.FP32, "QLoRA, arXiv:2305.14314"),
    "af4": ("af4", ScaleRule.ABSMAX, False, ScaleType.FP32, "Yoshida, arXiv:2306.06965"),
    "bnb-fp4": ("bnb-fp4", ScaleRule.ABSMAX, False, ScaleType.FP32, "bitsandbytes, csrc/kernels.cu"),
    "fp8-e4m3": ("e4m3", ScaleRule.ABSMAX, False, ScaleType.FP32, "OCP 8-bit floating point specification 1.0"),
    "fp8-e5m2": ("e5m2", ScaleRule.ABSMAX, False, ScaleType.FP32, "OCP 8-bit floating point specification 1.0"),
}
_STORAGE = {"-fp32": ScaleType.FP32, "-fp16": ScaleType.FP16, "-bf16": ScaleType.BF16}

_MX_ELEMENTS = {
    "mxfp4": "e2m1", "mxfp6-e2m3": "e2m3", "mxfp6-e3m2": "e3m2", "mxfp8-e4m3": "e4m3", "mxfp8-e5m2": "e5m2",
    "mxint4": "mxint4", "mxint8": "mxint8",
}  # fmt: skip
_MX_RULES = {
    "": (ScaleRule.FLOOR, _MX),
    "-ceil": (ScaleRule.CEIL, "torchao, ScaleCalculationMode.CEIL"),
    "-rceil": (ScaleRule.RCEIL, "cuBLAS, MXFP8 quantization; torchao, ScaleCalculationMode.RCEIL"),
    "-even": (ScaleRule.EVEN, "AMD Quark; torchao, ScaleCalculationMode.EVEN"),
    "-nearest": (ScaleRule.NEAREST, "the scale nearest to ABSMAX in log2"),
    "-mrgptq": (ScaleRule.FOUR_THIRDS, _MR_GPTQ),
}


def _grouped() -> Iterator[Format]:
    for family, (element, rule, zero_point, storage, source) in _GROUPED.items():
        made = partial(Format, rule=rule, zero_point=zero_point, source=source)
        yield made(f"{family}-channel", ELEMENTS[element], None, ScaleType.FP32)
        for group in _GROUPS:
            name = f"{family}-g{group}"
            yield made(name, ELEMENTS[element], group, storage)
            for suffix, other in _STORAGE.items():
                yield made(name + suffix, ELEMENTS[element], group, other)


def _microscaling() -> Iterator[Format]:
    for name, element in _MX_ELEMENTS.items():
        for suffix, (rule, source) in _MX_RULES.items():
            yield Format(name + suffix, ELEMENTS[element], 32, ScaleType.E8M0, rule, source=source)


def _two_level() -> Iterator[Format]:
    e2m1, e4m3, ue5m3 = ELEMENTS["e2m1"], ScaleType.E4M3, ScaleType.UE5M3
    over = partial(Format, tensor_scale=256.0, targets=(6.0, 4.0), source=_OVER)
    yield Format("nvfp4", e2m1, 16, e4m3, tensor_scale=448.0, source=_NVFP4)
    yield over("nvfp4-4over6", e2m1, 16, e4m3)
    yield over("nvfp4-4over6-448", e2m1, 16, e4m3, tensor_scale=448.0)
    yield Format("nvfp4-16x16", e2m1, 16, e4m3, tensor_scale=448.0, rows=16, source=_NVFP4)
    yield over("nvfp4-16x16-4over6", e2m1, 16, e4m3, rows=16)
    for group in _GROUPS:
        yield Format(f"e2m1-4over6-g{group}", e2m1, group, ScaleType.BF16, targets=(6.0, 4.0), source=_OVER)
    for group in (16, 32):
        suffix = "" if group == 16 else f"-g{group}"
        for name in ("e2m1", "int4", "e1m2"):
            yield Format(f"{name}-e4m3{suffix}", ELEMENTS[name], group, e4m3, tensor_scale=448.0, source=_NVFP4)
            yield Format(f"{name}-ue5m3{suffix}", ELEMENTS[name], group, ue5m3, source="arXiv:2601.19026")


def _ggml() -> Iterator[Format]:
    source = "GGML, ggml-common.h"
    yield Format("q4_0", ELEMENTS["int4-full"], 32, ScaleType.FP16, ScaleRule.SIGNED_MAX, source=source)
    yield Format("q4_1", ELEMENTS["uint4"], 32, ScaleType.FP16, ScaleRule.MINMAX, zero_point=True, source=source)
    yield Format("q5_0", ELEMENTS["int5-full"], 32, ScaleType.FP16, ScaleRule.SIGNED_MAX, source=source)
    yield Format("q8_0", ELEMENTS["int8"], 32, ScaleType.FP16, ScaleRule.ABSMAX, source=source)


SCALAR_FORMATS: dict[str, Format] = {
    fmt.name: fmt for family in (_grouped, _microscaling, _two_level, _ggml) for fmt in family()
}
