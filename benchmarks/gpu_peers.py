"""Other libraries' 4-bit products beside ours, in the table of ``benchmarks/gpu.py``; each is optional.

GemLite 0.6.0 (a source package) and Humming 0.1.19 (``humming-kernels``, which compiles its kernels with nvcc or nvrtc
at the first call, and needs ``tabulate``). Where nothing can be installed, copies of the packages' folders on
``PYTHONPATH`` do; the helper ``humming/_native/x86_64/nvrtc_compile`` must keep its execute bit.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["PEERS", "missing", "peer_calls"]

DEVICE, BF16 = "cuda", torch.bfloat16
#: Column of the table: (module, arguments of its layer).
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GemLite INT4": ("gemlite", {}),
    "Humming INT4": ("humming", {"weight": {"dtype": "int4", "group_size": 128}}),
    "Humming NVFP4": ("humming", {"weight": {"dtype": "float4e2m1", "group_size": 16, "scale_dtype": "float8e4m3",
                                             "scale_2_type": "tensor"}}),
    "Humming INT4 x FP8": ("humming", {"weight": {"dtype": "int4", "group_size": 128},
                                       "input": {"dtype": "float8e4m3"}}),
}  # fmt: skip


def missing() -> dict[str, str]:
    """Why a peer is not in the table, by module."""
    reasons = {}
    for module in sorted({module for module, _ in PEERS.values()}):
        try:
            importlib.import_module(module)
        except ImportError as error:
            reasons[module] = f"{module} is not measured: it cannot be imported ({error})"
    return reasons


def peer_calls(name: str, size: int, out: int, count: int) -> Callable[[Tensor], list[Callable[[], Tensor]]]:
    """What makes, of an input, a call for each of ``count`` copies of a random weight, activations quantized already.

    Raises:
        ValueError: when called, if the product is not that of the weight.
    """
    module, arguments = PEERS[name]
    make = {"gemlite": _gemlite, "humming": _humming}[module]
    layers, weight = make(size, out, count, **arguments)

    def calls(x: Tensor) -> list[Callable[[], Tensor]]:
        made = [_bound(module, layer, x) for layer in layers]
        expected = x.float() @ weight.float().T
        error = float((made[0]().float() - expected).norm() / expected.norm())
        if not error < 0.2:  # of four bits; weights are all the same
            raise ValueError(f"{name} differs from the product by {error:.2f}")
        return made

    return calls


def _gemlite(size: int, out: int, count: int) -> tuple[list[Any], Tensor]:
    from gemlite.helper import A16Wn

    codes = torch.randint(0, 16, (out, size), dtype=torch.uint8, device=DEVICE)
    scales = torch.full((out, size // 128), 0.01, dtype=BF16, device=DEVICE)
    zeros = torch.full_like(scales, 8.0)
    layers = [A16Wn(device=DEVICE, dtype=BF16).from_weights(codes, scales, zeros, 4, 128) for _ in range(count)]
    return layers, ((codes.float() - 8) * 0.01).bfloat16()


def _humming(
    size: int, out: int, count: int, weight: dict[str, Any], input: dict[str, Any] | None = None
) -> tuple[list[Any], Tensor]:
    from humming.layer import HummingLayer

    value = torch.randn(out, size, dtype=BF16, device=DEVICE)
    layers = []
    for _ in range(count):
        given = {} if input is None else {"input_config": input}
        layer = HummingLayer(shape_n=out, shape_k=size, weight_config=weight, torch_dtype=BF16, **given).cuda()
        layer.load_from_unquantized(value)
        layer.transform()
        layers.append(layer)
    return layers, value


def _bound(module: str, layer: Any, x: Tensor) -> Callable[[], Tensor]:
    if module == "humming":
        from humming.layer import HummingLayerMethod

        values, scale = HummingLayerMethod.may_quant_input(layer, x)
        return partial(layer, values, input_scale=scale)
    return partial(layer, x)
