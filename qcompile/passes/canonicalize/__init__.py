"""Canonicalize: one spelling per idea, whatever exporter wrote the graph; each step is a pass of its own.

Functions of other domains are inlined, constants lifted and folded, identities removed, and normalizations that an
exporter spelled out become one operator: ``RMSNormalization`` and ``LayerNormalization``, or functions of the same
meaning in graphs of older opsets. Attention, rotary embeddings and activations need no canonical form: the rules
follow their pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """onnxscript warns of what it leaves alone, which is none of the user's business."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
