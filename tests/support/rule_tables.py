"""All cases of all rules."""

from __future__ import annotations

import attention_cases
import control_cases
import elementwise_cases
import fused_cases
import image_cases
import indexing_cases
import linear_cases
import memory_cases
import normalization_cases
import sequence_cases
import shaping_cases

__all__ = ["CASES"]

CASES = [
    *elementwise_cases.CASES,
    *linear_cases.CASES,
    *shaping_cases.CASES,
    *image_cases.CASES,
    *indexing_cases.CASES,
    *normalization_cases.CASES,
    *attention_cases.CASES,
    *fused_cases.CASES,
    *memory_cases.CASES,
    *control_cases.CASES,
    *sequence_cases.CASES,
]
