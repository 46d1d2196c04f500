"""What the compiler makes of the kernels for GPUs that are not here: matrix instructions and registers.

Compiled in a process of its own, because kernels imported for Triton's interpreter cannot be compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels need triton")

SCRIPT = """
import json, re, sys
import torch
from qcompile.backends.gpu import aot, packing
from qcompile.formats import get_format, quantize
from qcompile.targets.scheme import Scheme

arch, size, out, *schemes = sys.argv[1:]
for name in schemes:
    scheme = Scheme.parse(name)
    weight = quantize(torch.randn(16, int(size)), scheme.weight)
    _, meta = packing.pack([weight], scheme, arch)
    for config in aot.linear_configs(meta | {"N": int(out)}, arch):
        made = aot.compile_config(config, arch)
        text = made.asm["ptx" if arch.startswith("sm") else "amdgcn"]
        pattern = r"(?:wgmma\\.mma_async|tcgen05\\.mma|mma\\.sync|v_mfma)[\\w.:]+"
        print(json.dumps({"scheme": name, "tokens": config.constants.get("BM"), "layout": meta["layout"],
                          "instructions": sorted(set(re.findall(pattern, text))), "spills": aot.spilled(made)}))
"""


def compiled(arch: str, *schemes: str, size: int = 4096, out: int = 14336) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, arch, str(size), str(out), *schemes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("arch", "scheme", "expected"),
    [
        ("sm_100", "nvfp4/nvfp4", "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale"),
        ("sm_100", "mxfp4/mxfp4", "tcgen05.mma.cta_group::1.kind::mxf4.block_scale"),
        ("sm_103", "nvfp4/nvfp4", "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale"),
        ("sm_120", "nvfp4/nvfp4", "kind::mxf4nvf4.block_scale.scale_vec::4X"),
        ("sm_120", "mxfp4/mxfp4", "kind::mxf4nvf4.block_scale.scale_vec::2X"),
        ("gfx950", "mxfp4/mxfp4", "v_mfma_scale_f32"),
    ],
)
def test_scaled_products_use_the_scaled_matrix_instructions(arch: str, scheme: str, expected: str) -> None:
    (made,) = compiled(arch, scheme)
    assert made["layout"] == "scaled"
    assert made["instructions"], "no matrix instruction"
    assert all(expected in instruction for instruction in made["instructions"])
    assert made["spills"] == 0


def test_hopper_decodes_into_registers_of_the_matrix_unit() -> None:
    made = compiled("sm_90", "int4-g128")
    assert {entry["tokens"] for entry in made} == {8, 16, 64, 128}
    assert all(entry["spills"] == 0 for entry in made)
    assert all("bf16" in instruction for entry in made for instruction in entry["instructions"])
    assert any("wgmma" in instruction for entry in made for instruction in entry["instructions"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "instruction"),
    [
        ("nvfp4", "bf16"), ("mxfp4", "bf16"), ("nf4-g64", "bf16"), ("uint4-g128", "bf16"), ("int8-channel", "bf16"),
        ("fp8-e4m3-channel", "bf16"), ("nvfp4/nvfp4", "bf16"), ("int4-g128/fp8-e4m3-channel", "e4m3.e4m3"),
        ("int4-g128/int8-channel", "s32.s8.s8"),
    ],
)  # fmt: skip
def test_hopper_spills_nothing(scheme: str, instruction: str) -> None:
    made = compiled("sm_90", scheme)
    assert made
    for entry in made:
        assert entry["spills"] <= (16 if entry["layout"] == "bytes" else 0), entry  # indices, around the loop
        assert all(instruction in name for name in entry["instructions"])


ROTATE = """
import sys
import triton.language as tl
from qcompile.backends.gpu import aot, packing
from qcompile.backends.gpu.kernels.row_launches import encoding
from qcompile.backends.gpu.kernels.launch import rotation_of
from qcompile.formats import get_format
from qcompile.transforms import Hadamard

_, meta = packing.pack_transform([(o, i, m.numpy()) for o, i, m in Hadamard(14336, 1).factors()])
_, stages, options = rotation_of(128 * 128, True)
fmt = None if sys.argv[1] == "none" else packing.describe(get_format(sys.argv[1]))
constants = encoding(fmt) | {
    "A": 112, "B": 128, "A_PAD": 128, "B_PAD": 128, "LEFT": True, "RIGHT": True, "BEFORE": "signs", "AFTER": False,
    "LEVELS": meta["plan"]["levels"], "TERMS_X": 1, "TERMS": 2, "DOT": tl.bfloat16, "PRECISION": "tf32x3",
    "QUANTIZE": fmt is not None, "STAGES": stages}
types = {"x": "*bf16", "left": "*fp32", "right": "*fp32", "before": "*fp32", "signs": "*i32", "after": "*fp32",
         "y": "*bf16", "codes": "*u8", "scales": "*u8", "seconds": "*fp32", "count": "i32", "stride": "i32",
         "factor": "fp32"}
aligned = [name for name in types if name not in ("count", "factor")]
warps = options.pop("num_warps")
config = aot.Config("rotate", "rotate", "rotate_kernel", types, constants, aligned, warps, options)
made = aot.compile_config(config, "sm_90")
print(aot.spilled(made), made.asm["ptx"].count("wgmma.mma_async"))
"""


@pytest.mark.parametrize("fmt", ["mxfp4", "nvfp4", "none"])
def test_two_rows_of_a_transform_fit_the_registers_of_a_multiprocessor(fmt: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", ROTATE, fmt], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    spilled, products = map(int, done.stdout.split())
    assert spilled <= 64  # constants of the loop: nothing with triton 3.6, up to 40 of 512 bytes with 3.9
    assert products > 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_100", "sm_120", "gfx950"])
def test_weights_alone_compile_for_other_architectures(arch: str) -> None:
    for entry in compiled(arch, "int4-g128", "nvfp4", "mxfp4"):
        assert entry["instructions"]
        assert entry["spills"] == 0, entry
