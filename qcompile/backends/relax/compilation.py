"""From a Relax module to a library: TVM's passes, a schedule for what has none, the linker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from qcompile.backends.relax.kernels.lanes import Lanes
from qcompile.errors import TargetError, first_line

__all__ = ["Machine", "build", "extensions", "machine"]

#: Elements that make a job of their own.
_WORTHWHILE = 4096

_ALL = 100


@dataclass(frozen=True)
class Machine:
    """The machine to compile for.

    Args:
        target: TVM's.
        lanes: how kernels are written for it.
        native: whether this machine's linker makes a library for it.
    """

    target: tvm.target.Target
    lanes: Lanes
    native: bool


def machine(description: str | dict[str, Any] | None, kind: str) -> Machine:
    """The machine that a target string describes; the one that this runs on where there is none.

    Args:
        description: as TVM takes it: a tag, ``{"kind": "llvm", ...}`` or ``llvm -mtriple=... -mcpu=...``.
        kind: ``cpu`` or ``cuda``.

    Raises:
        TargetError: if TVM does not know it.
    """
    settings = _parse(description) if description is not None else _default(kind)
    if settings.get("kind") != {"cpu": "llvm", "cuda": "cuda"}[kind]:
        raise TargetError(f"TVM: a {kind} artifact cannot be compiled for '{description}'")
    try:
        target = tvm.target.Target(settings)
    except Exception as error:  # TVM's errors have many types
        raise TargetError(f"TVM does not know the target '{description}': {first_line(error)}") from error
    if kind == "cuda":
        return Machine(target, Lanes(1, threads=True), True)
    native = description is None or "mtriple" not in settings
    return Machine(target, Lanes(16, permutes=_permutes(target)), native)


def _default(kind: str) -> dict[str, Any]:
    if kind == "cuda":
        return {"kind": "cuda", "arch": "sm_90", "max_threads_per_block": 1024, "max_shared_memory_per_block": 49152,
                "thread_warp_size": 32, "host": {"kind": "llvm"}}  # fmt: skip
    return {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()}


def _parse(description: str | dict[str, Any]) -> dict[str, Any]:
    """``llvm -mtriple=aarch64-linux-gnu -mattr=+neon`` as the dictionary that newer versions of TVM ask for."""
    if isinstance(description, dict):
        return dict(description)
    kind, *options = description.split()
    settings: dict[str, Any] = {"kind": kind}
    for option in options:
        name, equals, value = option.lstrip("-").partition("=")
        if not option.startswith("-") or not equals:
            raise TargetError(f"TVM target '{description}': '{option}' is not an option of the form -name=value")
        settings[name] = value.split(",") if name == "mattr" else value
    return settings


def _permutes(target: tvm.target.Target) -> bool:
    with target:
        return bool(tvm.target.codegen.llvm_cpu_has_features("avx512f", target)) if _is_x86(target) else False


def _is_x86(target: tvm.target.Target) -> bool:
    triple = str(target.attrs.get("mtriple", "")) or tvm.target.codegen.llvm_get_system_triple()
    return triple.startswith(("x86_64", "i686", "amd64"))


#: Extensions of instruction sets, as LLVM names them. Its other features say what is fast.
_EXTENSIONS = ("sse", "avx", "fma", "f16c", "bmi", "amx", "lzcnt", "popcnt", "gfni", "vaes", "vpclmul", "movbe", "adx")


def extensions(target: tvm.target.Target) -> list[str]:
    """The extensions that code for an x86 target may use."""
    if target.kind.name != "llvm" or not _is_x86(target):
        return []
    return sorted(f for f in tvm.target.codegen.llvm_get_cpu_features(target) if str(f).startswith(_EXTENSIONS))


# ---- passes ------------------------------------------------------------------------------------------------------


def build(module: tvm.IRModule, where: Machine) -> Any:
    """The executable.

    Raises:
        TargetError: if TVM cannot compile it: a limit of TVM that no row of the table knew of.
    """
    passes = [
        relax.transform.DeadCodeElimination(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        _schedule_gpu() if where.lanes.threads else _schedule_cpu,
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    try:
        with where.target, tvm.transform.PassContext(opt_level=3):
            return relax.build(module, where.target, relax_pipeline=tvm.transform.Sequential(passes))
    except Exception as error:  # TVM's errors have many types
        raise TargetError(f"TVM cannot compile the graph: {first_line(error)}") from error


def _schedule_gpu() -> Any:
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
    return dlight.ApplyDefaultSchedule(*rules)


@tvm.transform.module_pass(opt_level=0, name="ScheduleCPU")  # type: ignore[untyped-decorator]  # TVM has no types
def _schedule_cpu(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
    """Outer loops in parallel; LLVM makes vectors of the innermost ones."""
    functions = dict(module.functions_items())
    for name, function in functions.items():
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled", False):
            module[name] = _scheduled(function)
    return module


def _scheduled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with the outer data-parallel loops of each block fused into a parallel one.

    The innermost loop stays as it is, for LLVM to make vectors of. Where the sizes are more than TVM can fuse, the
    outermost loop alone is parallel. Loops that it does not see to be independent (a sort, a scatter) stay serial.
    """
    if function.body.block.name_hint != "root":  # one opaque block, such as TVM's own sort
        return function
    for most in (_ALL, 1):
        try:
            return _parallel(function, most)
        except (s_tir.ScheduleError, tvm.error.InternalError):
            continue
    return function


def _parallel(function: tirx.PrimFunc, most: int) -> tirx.PrimFunc:
    """At most so many outer loops of each block, fused."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = _independent(schedule, block)
        if not loops or _elements(schedule, loops) < _WORTHWHILE:
            continue
        if len(loops) == 1:
            outer, _ = schedule.split(loops[0], [None, _WORTHWHILE])
        else:
            outer = schedule.fuse(*loops[:-1][:most])
        schedule.parallel(outer)
    return schedule.mod["main"]


def _independent(schedule: Any, block: Any) -> list[Any]:
    """The outer loops over independent elements; of a block that reduces, with one of its other loops last."""
    loops, kinds = schedule.get_loops(block), schedule.get(block).iter_vars
    if len(loops) != len(kinds):
        return []
    spatial = [iterator.iter_type == tirx.IterVar.DataPar for iterator in kinds]
    if all(spatial):
        return loops
    count = spatial.index(False)
    return loops[: count + 1] if count else []


def _elements(schedule: Any, loops: list[Any]) -> int:
    """How many there are; many, where that is dynamic."""
    count = 1
    for loop in loops:
        extent = schedule.get(loop).extent
        count *= int(extent) if isinstance(extent, tirx.IntImm) else _WORTHWHILE
    return count
