"""Compilation ahead of time: kernels to cubin or hsaco for a GPU that is not there.

Triton compiles for any target when it is told the types of the arguments; the files are what it would cache.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.errors import MissingExtraError

__all__ = ["Compiled", "Config", "compile_config", "linear_configs", "spilled", "write"]

_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_TOKENS = (1, 16, 64, 512, 4096)  # one batch size for each entry of the launch table that has a kernel


@dataclass(frozen=True)
class Config:
    """One kernel with everything that is fixed at compile time.

    Args:
        name: of the file.
        kernel: attribute of ``module``.
        module: of ``qcompile.backends.gpu.kernels``.
        signature: Triton type by argument; the rest are constants.
        constants: values of the constant arguments.
        aligned: arguments that are multiples of 16 (addresses, and sizes that are known to be).
    """

    name: str
    module: str
    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: Sequence[str] = ()
    warps: int = 4
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """A compiled configuration: the binary, its assembly by stage, and its resources."""

    config: Config
    binary: bytes
    suffix: str
    asm: Mapping[str, Any]
    metadata: Mapping[str, Any]


def compile_config(config: Config, arch: str) -> Compiled:
    """Compile for ``sm_90``, ``sm_100``, ``sm_103``, ``sm_120``, ``gfx942`` or ``gfx950``.

    Raises:
        MissingExtraError: without triton.
    """
    try:
        import triton
        from triton.compiler import ASTSource
    except ImportError as error:
        raise MissingExtraError("ahead-of-time compilation", "triton") from error
    import importlib

    kernel = getattr(importlib.import_module(f"qcompile.backends.gpu.kernels.{config.module}"), config.kernel)
    names = kernel.arg_names
    types = {name: config.signature.get(name, "constexpr") for name in names}
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in config.aligned}
    source = ASTSource(kernel, types, dict(config.constants), attrs)
    made = triton.compile(source, target=_target(arch), options={"num_warps": config.warps, **config.options})
    suffix = "cubin" if arch.startswith("sm") else "hsaco"
    return Compiled(config, made.asm[suffix], suffix, made.asm, made.metadata._asdict())


def _target(arch: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch[3:]), 32)
    return GPUTarget("hip", arch, 64)


def spilled(made: Compiled) -> int:
    """Bytes of registers that a kernel keeps in memory, as the assembler or the code object says."""
    if made.suffix == "hsaco":
        counts = re.findall(r"[sv]gpr_spill_count:\s*(\d+)", made.asm["amdgcn"])
        return 4 * sum(map(int, counts))
    return sum(map(int, re.findall(r"STACK:(\d+)", _resources(made.binary))))


def _resources(cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout


def write(configs: Iterable[Config], arch: str, folder: Path) -> list[str]:
    """Compile into ``folder``: a binary and a description for each; returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for config in configs:
        made = compile_config(config, arch)
        about = {"kernel": made.metadata["name"], "arch": arch, "shared": made.metadata["shared"],
                 "num_warps": config.warps, "signature": dict(config.signature),
                 "constants": {k: str(v) for k, v in config.constants.items()}}  # fmt: skip
        (folder / f"{config.name}.{made.suffix}").write_bytes(made.binary)
        (folder / f"{config.name}.json").write_text(json.dumps(about, indent=1))
        names += [f"{config.name}.{made.suffix}", f"{config.name}.json"]
    return names


def linear_configs(meta: Mapping[str, Any], arch: str, dtype: str = "bfloat16") -> list[Config]:
    """The kernels that a packed weight launches at batch sizes from one token to many."""
    make = {"planes": _planes_config, "bytes": _bytes_config, "scaled": _scaled_config}[meta["layout"]]
    made = [make(meta, arch, dtype, tokens) for tokens in _TOKENS]
    return list({config.name: config for config in made if config is not None}.values())


def _planes_config(meta: Mapping[str, Any], arch: str, dtype: str, tokens: int) -> Config | None:
    import triton.language as tl

    from qcompile.backends.gpu.kernels.launch import scaling_of, stages_of, tile_of

    tile, activation = tile_of(tokens, meta["scaling"], arch), meta.get("activation")
    if tile is None or (meta["codes"] == "table" and tile.tokens > 32):
        return None
    token = activation is not None and (
        activation["group"] is None or activation["tensor_scale"] is not None or "constant" in activation
    )
    constants = {
        **_layout(meta), "SCALE": scaling_of(meta["scaling"], meta["scales"], dtype, tile), "TOKEN": token,
        "BIAS": False, "EVEN_K": meta["K"] % meta["tile"] == 0, "ASM": arch.startswith("sm"), "DOT": tl.bfloat16,
        "TERMS": {"bfloat16": 1, "float16": 2, "float32": 3}[dtype], "BN": tile.rows, "BM": tile.tokens,
        "SPLIT": _splits(meta, tile, tokens), "COLUMNS": min(tile.columns, meta["plane"]),
        "STAGES": stages_of(tile, meta["codes"]), "bias": None, **({} if token else {"token_scale": None}),
    }  # fmt: skip
    types = _signature(meta, dtype) | ({"token_scale": "*fp32"} if token else {})
    return Config(_name("matmul", meta, tile.rows, tile.tokens), "matmul", "matmul_kernel", types, constants,
                  _aligned(meta), tile.warps)  # fmt: skip


def _bytes_config(meta: Mapping[str, Any], arch: str, dtype: str, tokens: int) -> Config:
    from qcompile.backends.gpu.kernels.launch import eight_tile_of

    tile = eight_tile_of(tokens, meta["N"])
    constants = {
        "FLOAT": meta["floating"], "GROUP": meta["tile_group"], "PLANE": meta["plane"], "BIAS": False,
        "EVEN_K": meta["K"] % meta["tile"] == 0, "ASM": True, "BN": tile.rows, "BM": tile.tokens,
        "HALVES": tile.halves, "SPLIT": _splits(meta, tile, tokens), "STAGES": tile.stages, "bias": None,
    }  # fmt: skip
    types = {"x": "*fp8e4nv" if meta["floating"] else "*i8", "words": "*i8",
             "scales": "*bf16" if meta["scales"] == "bf16" else "*fp32", "row_scale": "*fp32", "token_scale": "*fp32",
             "y": f"*{_TYPES[dtype]}", "partial": "*fp32", "counters": "*i32"}  # fmt: skip
    types |= dict.fromkeys(("M", "N", "K", "stride_x"), "i32")
    aligned = [name for name in _aligned(meta) if name in types]
    name = _name("int4_by_8bit", meta, tile.rows, tile.tokens)
    return Config(name, "int4_by_8bit", "int4_by_8bit_kernel", types, constants, aligned, tile.warps)


def _scaled_config(meta: Mapping[str, Any], arch: str, dtype: str, tokens: int) -> Config:
    from qcompile.backends.gpu.kernels.both_quantized import SCALED_TILE, SCALED_WARPS

    second = meta["group"] == 16
    types = dict.fromkeys(("x", "x_scales", "w", "w_scales"), "*u8") | {"row_scale": "*fp32", "y": f"*{_TYPES[dtype]}"}
    types |= dict.fromkeys(("M", "N", "K"), "i32") | ({"token_scale": "*fp32"} if second else {})
    constants = {"GROUP": meta["group"], "TOKEN": second, "BIAS": False, "bias": None, **SCALED_TILE}
    constants |= {} if second else {"token_scale": None}
    aligned = ["x", "x_scales", "w", "w_scales", "row_scale", "y", *(n for n in ("N", "K") if meta[n] % 16 == 0)]
    name = _name("scaled", meta, SCALED_TILE["BN"], SCALED_TILE["BM"])
    return Config(name, "scaled", "scaled_kernel", types, constants, aligned, SCALED_WARPS)


def _name(kernel: str, meta: Mapping[str, Any], rows: int, tokens: int) -> str:
    return f"{kernel}_{meta['format']}_{meta['N']}x{meta['K']}_{rows}x{tokens}".replace("-", "_")


def _splits(meta: Mapping[str, Any], tile: Any, tokens: int) -> bool:
    from qcompile.backends.gpu.kernels.launch import split_of

    tiles = -(-meta["N"] // tile.rows) * -(-tokens // tile.tokens)
    return split_of(tile, tiles, -(-meta["K"] // meta["tile"])) > 1


def _layout(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {"KIND": meta["codes"], "ZERO": meta["zeros"], "GROUP": meta["tile_group"],
            "PLANE": meta["plane"]}  # fmt: skip


def _signature(meta: Mapping[str, Any], dtype: str) -> dict[str, str]:
    scales = {"post": "*bf16" if meta["scales"] == "bf16" else "*fp32", "row": "*i16"}.get(meta["scaling"], "*u8")
    pointers = {"x": f"*{_TYPES[dtype]}", "words": "*i16", "scales": scales,
                "zeros": "*u8" if meta["zeros"] else "*i16",
                "table": "*fp32" if meta["codes"] == "table" else "*i16", "row_scale": "*fp32",
                "y": f"*{_TYPES[dtype]}", "partial": "*fp32", "counters": "*i32"}  # fmt: skip
    return pointers | dict.fromkeys(("M", "N", "K", "stride_x"), "i32")


def _aligned(meta: Mapping[str, Any]) -> list[str]:
    sizes = [name for name, size in (("N", meta["N"]), ("K", meta["K"]), ("stride_x", meta["K"])) if size % 16 == 0]
    return ["x", "words", "scales", "zeros", "table", "row_scale", "y", "partial", "counters", *sizes]
