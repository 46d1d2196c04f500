"""The target that is a GGUF file."""

from __future__ import annotations

from qcompile.targets.target import Target

__all__ = ["EXTRA", "RUNTIME", "TARGETS"]

#: The package that knows names and keys of the format, and the extra that installs it.
EXTRA = "gguf"

#: The format, for llama.cpp and its relatives all read it.
RUNTIME = "gguf"

_SCHEMES = (
    "q4_0", "q4_1", "q5_0", "q8_0", "mxfp4-even", "mxfp4", "mxfp4-rceil", "mxfp4-ceil", "mxfp4-nearest",
    "nvfp4-4over6", "nvfp4", "nvfp4-4over6-448",
)  # fmt: skip

TARGETS = (
    Target(
        "gguf",
        "a GGUF file of a Llama-like language model in Q4_0, Q4_1, Q5_0, Q8_0, MXFP4 or NVFP4, as llama.cpp loads it",
        ("llamacpp",),
        schemes=_SCHEMES,
        default="q4_0",
        edge="q8_0",
        runs_here=False,
        emulated=True,
        modules=True,
        online="none",
    ),
)
