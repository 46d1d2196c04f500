"""Manifests as exports write them, as far as pages read them, made by hand: numbers are easy to check."""

from __future__ import annotations

from typing import Any

__all__ = ["manifest", "site"]


def site(module: str, t2: float | None, measured: float | None = None, **other: Any) -> dict[str, Any]:
    """A site of a manifest, with a weight of 8x4."""
    name = f"node_{module}"
    own = {
        "name": name, "module": module, "op": "MatMul", "weight_shape": [8, 4], "space_in": "s1", "space_out": "s2",
        "format": "int4-g32", "activation": None, "bits": 4, "bits_per_weight": 4.5, "alpha": None, "t2": t2,
        "transform_in": {"kind": "none", "online": False}, "predicted_delta": None, "tie": "t0", "input": "x",
        "weight": f"{module}.weight", "asked": [], "lowering": {},
    }  # fmt: skip
    return own | ({} if measured is None else {"measured_t2": measured}) | other


def manifest(sites: list[dict[str, Any]], sizes: dict[str, tuple[int, int]], **quantization: Any) -> dict[str, Any]:
    """A manifest of these sites.

    Args:
        sizes: bytes of each site's weight, before and after, by module.
        quantization: in place of what is usual.
    """
    weights = [
        {
            "name": f"{module}.weight", "module": module, "kind": "matrix", "shape": [8, 4], "bytes": before,
            "bytes_after": after, "sites": [f"node_{module}"], "readers": [f"node_{module}"], "status": "quantized",
            "format": "int4-g32", "reason": None,
        }
        for module, (before, after) in sizes.items()
    ]  # fmt: skip
    usual = {
        "rel_l2": 0.05, "predicted_loss_delta": None, "measured_loss_delta": None, "loss_standard_error": None,
        "divergence": 0.01, "loss": {}, "evaluated_inputs": 3, "evaluated_on": "held out", "plain": None,
    }  # fmt: skip
    before, after = (sum(pair[i] for pair in sizes.values()) for i in (0, 1))
    return {
        "qcompile": "0", "source": {"path": "models/m.onnx", "sha256": "0" * 64}, "target": "cpu-int4", "seed": 0,
        "options": {"transforms": "auto", "method": "gptq", "calibration": None, "evaluation": None},
        "sites": sites, "weights": weights, "spaces": [], "declined": [], "online_transforms": [], "candidates": {},
        "weights_summary": {"bytes": before, "share": 1.0, "small": {"count": 0, "bytes": 0}}, "decisions": [],
        "equivalence": {"rel_l2": 1e-7, "max_abs": 1e-6, "checked_inputs": 1}, "implementation": None, "engine": None,
        "bytes": {"source": before, "artifact": after}, "bits_per_weight": 4.5, "quantization": usual | quantization,
    }  # fmt: skip
