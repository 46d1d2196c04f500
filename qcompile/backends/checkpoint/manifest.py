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
        "a folder of Hugging Face with NVFP4 weights, as vLLM, SGLang and transformers load it",
        schemes=("nvfp4-4over6", "nvfp4", "nvfp4-4over6-448"),
        default="nvfp4-4over6",
        plain="nvfp4",
    ),
    _checkpoint(
        "checkpoint-nvfp4-online",
        "the same with online transforms where they pay: vLLM applies them, transformers computes something else",
        schemes=("nvfp4-4over6", "nvfp4", "nvfp4-4over6-448"),
        default="nvfp4-4over6",
        plain="nvfp4",
        online="shared",
    ),
    _checkpoint(
        "checkpoint-mxfp4",
        "a folder of Hugging Face with MXFP4 weights, as vLLM, SGLang and transformers load it",
        schemes=("mxfp4-even", "mxfp4", "mxfp4-rceil", "mxfp4-ceil", "mxfp4-nearest"),
        default="mxfp4-even",
        plain="mxfp4",
    ),
)
