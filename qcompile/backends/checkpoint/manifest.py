"""The targets that are checkpoints in the layout of compressed-tensors."""

from __future__ import annotations

from functools import partial

from qcompile.targets.target import Target

__all__ = ["EXTRA", "RUNTIME", "TARGETS"]

#: Checkpoints are written without any package; only to load one back takes the extra ``hf``.
EXTRA = None

#: What runs the artifacts, as manifests and the command line call it.
RUNTIME = "transformers"

_GROUPS = (16, 32, 64, 128)

#: NVFP4 for weights alone, and with inputs below static tensor scales, as FP4 hardware multiplies.
_NVFP4 = tuple(f"nvfp4{rule}{inputs}" for inputs in ("", "/nvfp4-static") for rule in ("-4over6", "", "-4over6-448"))

_MXFP4 = ("mxfp4-even", "mxfp4", "mxfp4-rceil", "mxfp4-ceil", "mxfp4-nearest")

_checkpoint = partial(
    Target, backends=("checkpoint",), runs_here=False, emulated=True, modules=True, online="asked", transform_price=3.0
)

TARGETS = (
    _checkpoint(
        "checkpoint-int4",
        "a folder of Hugging Face with INT4 or INT8 weights in groups, as vLLM, SGLang and transformers load it",
        schemes=tuple(f"{kind}{bits}-g{group}" for bits in (4, 8) for kind in ("int", "uint") for group in _GROUPS),
        default="int4-g32",
    ),
    _checkpoint(
        "checkpoint-nvfp4",
        "a folder of Hugging Face with NVFP4 weights, and inputs if asked, as vLLM, SGLang and transformers load it",
        schemes=_NVFP4,
        default="nvfp4-4over6",
        plain="nvfp4",
    ),
    _checkpoint(
        "checkpoint-nvfp4-online",
        "the same with online transforms where they pay: vLLM applies them, transformers computes something else",
        schemes=_NVFP4,
        default="nvfp4-4over6",
        plain="nvfp4",
        online="shared",
    ),
    _checkpoint(
        "checkpoint-mxfp4",
        "a folder of Hugging Face with MXFP4 weights, and inputs if asked, as vLLM, SGLang and transformers load it",
        schemes=_MXFP4 + tuple(f"{weight}/mxfp4-even" for weight in _MXFP4),
        default="mxfp4-even",
        plain="mxfp4",
    ),
)
