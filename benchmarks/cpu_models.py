"""Real models on a CPU against onnxruntime's own quantizers: size, error, and time at few and at many rows, in one run.

    python benchmarks/cpu_models.py [MODEL.onnx | FOLDER ...] [--runs 40] [--transforms auto,none] [--rows 1,128]
        [--targets cpu-int8,cpu-int8=int8-channel/uint8-tensor,cpu-int4,qdq-int8] [--method METHOD] [--json FILE]

A FOLDER holds a model of transformers (config.json, weights, a tokenizer), which torch exports. Without models: those
of the zoo, and an ALBERT and a graph network with random weights. Integer inputs are tokens: of the zoo's calibration
data, of the English of this project's pages where there is a tokenizer, else random; other inputs are the zoo's, else
smooth noise. A quarter of the data is not calibrated with, and errors (relative L2 of the outputs) are on that.

Rows are tokens of one sequence, or else the batch. Times are processor times of the one thread that
computes, of which one run in ten is below, in turn, over those of the float model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from convolutions import error, session
from graph_models import albert, graph_network, transformers_model
from latency import in_turn

import qcompile as qc

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "examples" / "zoo"
LENGTH, SEQUENCES = 128, 48
MEASURES = ("size", "error")

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A float model and what it reads.

    Args:
        path: of the graph.
        data: inputs of one run each.
        at: the inputs of a run with so many rows.
    """

    path: Path
    data: list[Feed]
    at: Callable[[int], Feed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--runs", type=int, default=40, help="of each model")
    parser.add_argument("--targets", default=TARGETS, help="formats may stand behind one")
    parser.add_argument("--transforms", default="auto,none")
    parser.add_argument("--method", help="of rounding, by default that of an export")
    parser.add_argument("--rows", default="1,128")
    parser.add_argument("--json", type=Path, help="all numbers")
    options = parser.parse_args()
    rows = [int(count) for count in options.rows.split(",")]
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(options.models, Path(scratch)):
            folder = Path(scratch) / f"of-{case.path.stem}"
            folder.mkdir()
            ours = [(target, kind) for target in options.targets.split(",") for kind in options.transforms.split(",")]
            found[case.path.stem] = measured(case, folder, ours, rows, options.runs, options.method)
            print(table(case, found[case.path.stem], rows), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


def cases(models: list[Path], scratch: Path) -> Iterator[Case]:
    """The models that are asked for, or those that are there."""
    if not models:
        models = [*sorted(ZOO.glob("*.onnx")), albert(scratch / "albert.onnx"), graph_network(scratch / "graph.onnx")]
    for path in models:
        if path.is_dir():
            yield case_of(transformers_model(path, scratch / f"{path.name}.onnx"), path / "tokenizer.json")
        else:
            yield case_of(path, path.parent / "tokenizer.json")


# ---- data --------------------------------------------------------------------------------------------------------


def case_of(path: Path, tokenizer: Path) -> Case:
    """A model with data of its own, or else made up."""
    values = onnx.load(path, load_external_data=False).graph.input
    family = "classifier" if path.stem in ("resnet", "mobilenet") else path.stem
    shipped = ZOO / f"{ {'mamba': 'language_model'}.get(family, family) }_calibration.npz"
    if path.resolve().parent == ZOO and shipped.is_file():
        with np.load(shipped) as arrays:
            whole = {value.name: arrays[value.name] for value in values}
    else:
        tokens = text_tokens(tokenizer) if tokenizer.is_file() else None
        whole = {value.name: made_up(value, tokens) for value in values}
    count = len(next(iter(whole.values())))
    step = max(1, count // SEQUENCES)
    data = [{name: array[i : i + step] for name, array in whole.items()} for i in range(0, count, step)]
    sequences = all(value.type.tensor_type.elem_type == onnx.TensorProto.INT64 for value in values)
    return Case(path, data, lambda rows: {name: cut(array, rows, sequences) for name, array in whole.items()})


def cut(array: np.ndarray, rows: int, sequence: bool) -> np.ndarray:
    """The first tokens of a sequence, or the first of a batch."""
    return array[:1, :rows] if sequence else np.resize(array, (rows, *array.shape[1:]))


def text_tokens(tokenizer: Path) -> np.ndarray:
    """The pages of this project as sequences of tokens."""
    from tokenizers import Tokenizer

    text = "\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_truncation()
    ids = np.array(reader.encode(text, add_special_tokens=False).ids, np.int64)
    return ids[: LENGTH * SEQUENCES].reshape(-1, LENGTH)


def made_up(value: onnx.ValueInfoProto, tokens: np.ndarray | None) -> np.ndarray:
    """Data for one input: a mask of ones, tokens, or noise that is smooth along places."""
    rng, kind = np.random.default_rng(0), value.type.tensor_type
    if kind.elem_type == onnx.TensorProto.INT64:
        count = SEQUENCES if tokens is None else len(tokens)
        if "mask" in value.name or "type" in value.name:
            return np.full((count, LENGTH), int("mask" in value.name), np.int64)
        return rng.integers(0, 256, (count, LENGTH)) if tokens is None else tokens
    sizes = [dim.dim_value or (3 if i == 1 else 64) for i, dim in enumerate(kind.shape.dim)][1:]
    made = rng.standard_normal((SEQUENCES, *sizes))
    for axis in range(2, made.ndim):
        made = (made + np.roll(made, 1, axis) + np.roll(made, 2, axis)) / 1.7
    return made.astype(np.float32)


# ---- quantizing --------------------------------------------------------------------------------------------------


def theirs(case: Case, folder: Path, learned: list[Feed]) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """onnxruntime's quantizers by name, each writing to a path, on the graph that its preprocessing makes."""
    from onnx.inliner import inline_local_functions
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits
    from onnxruntime.quantization import quant_utils, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self.rest = iter(learned)

        def get_next(self) -> Feed | None:
            return next(self.rest, None)

    inlined, prepared = folder / "inlined.onnx", folder / "prepared.onnx"
    onnx.save(inline_local_functions(onnx.load(case.path)), inlined)
    quant_pre_process(str(inlined), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    del model.graph.value_info[:]  # its dynamic quantizer turns weights of Gemm, and then contradicts their old shapes
    onnx.save(model, prepared)

    def four_bits(to: Path, kinds: tuple[str, ...]) -> None:
        quantizer = nbits.MatMulNBitsQuantizer(
            onnx.load(prepared), block_size=32, is_symmetric=True, accuracy_level=4, op_types_to_quantize=kinds,
            quant_format=quant_utils.QuantFormat.QOperator,
        )  # fmt: skip
        quantizer.process()
        quantizer.model.save_model_to_file(str(to))

    def dynamic(to: Path, **settings: bool) -> None:
        quantize_dynamic(str(prepared), str(to), op_types_to_quantize=DYNAMIC, **settings)

    def static(to: Path) -> None:
        quantize_static(str(prepared), str(to), Reader(), per_channel=True)

    yield "dynamic INT8", dynamic
    yield "dynamic INT8, per channel", lambda to: dynamic(to, per_channel=True)
    yield "static INT8, per channel", static
    yield "4 bits", lambda to: four_bits(to, ("MatMul",))
    yield "4 bits, tables too", lambda to: four_bits(to, ("MatMul", "Gather"))


def quantized(
    case: Case, folder: Path, learned: list[Feed], ours: list[tuple[str, str]], method: str | None
) -> Iterator[tuple[str, Path | str]]:  # fmt: skip
    """Quantized copies of a model by name, theirs first, or why there is none."""
    for number, (name, make) in enumerate(theirs(case, folder, learned)):
        path = folder / f"theirs-{number}.onnx"
        try:
            make(path)
            session(path)
        except Exception as reason:  # theirs have no common base, and the table says what they say
            yield f"onnxruntime, {name}", str(reason).strip().splitlines()[0][:120]
        else:
            yield f"onnxruntime, {name}", path
    data = folder / "data"
    data.mkdir()
    for number, given in enumerate(learned):
        np.savez(data / f"{number:03}.npz", **given)
    for number, (target, kind) in enumerate(ours):
        to, (name, _, formats) = folder / f"ours-{number}", target.partition("=")
        own = formats.split(",") if formats else None
        try:
            qc.export(case.path, name, to, calibration=data, transforms=kind, formats=own, method=method)
        except qc.QCompileError as reason:
            yield f"qcompile, {target}, {kind}", str(reason)[:120]
        else:
            yield f"qcompile, {target}, {kind}", to / "model.onnx"


def measured(
    case: Case, folder: Path, ours: list[tuple[str, str]], rows: list[int], runs: int,
    method: str | None,
) -> dict[str, Any]:  # fmt: skip
    """By name, the numbers of a quantized copy over those of the float model, or why there is none."""
    held_out = case.data[3::4]
    learned = [given for number, given in enumerate(case.data) if number % 4 != 3]
    plain = session(case.path)
    want = [plain.run(None, given) for given in held_out]
    made = dict(quantized(case, folder, learned, ours, method))
    found: dict[str, Any] = {name: {"reason": why} for name, why in made.items() if isinstance(why, str)}
    files = {name: file for name, file in made.items() if isinstance(file, Path)}
    sessions = {name: session(file) for name, file in files.items()}
    for name, file in files.items():
        size = sum(part.stat().st_size for part in file.parent.glob(file.name + "*")) / case.path.stat().st_size
        lost = error(want, [sessions[name].run(None, given) for given in held_out])
        found[name] = {"size": size, "error": lost} if lost else {"reason": "it quantizes nothing"}
    for count in rows:
        given = case.at(count)
        (source, _), *times = in_turn([case.path, *files.values()], given, runs)
        for name, (own, _) in zip(files, times, strict=True):
            found[name][str(count)] = own / source
    return found


# ---- the table ---------------------------------------------------------------------------------------------------


def table(case: Case, found: Mapping[str, Mapping[str, Any]], rows: list[int]) -> str:
    """A table in Markdown, and which of theirs no row of ours is at least as good as in all columns."""
    columns = (*MEASURES, *map(str, rows))
    lines = [f"\n{case.path.name}: {case.path.stat().st_size:,} bytes\n"]
    lines += ["| quantized by | size | error |" + "".join(f" time at {count} |" for count in rows)]
    lines += ["|" + "---|" * (len(columns) + 1)]
    for name, row in found.items():
        cells = [f"{row[column]:.4g}" if column in row else "–" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |{row.get('reason', '')}")
    for name, row in found.items():
        if name.startswith("onnxruntime") and "error" in row:
            lines.append(f"{name}: {beaten(row, found, columns)}")
    return "\n".join(lines)


def beaten(row: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> str:
    """The row of ours that is no worse in any column by more than times vary, or the least that one is worse."""
    best, which, where = float("inf"), "", ""
    for name, own in found.items():
        if name.startswith("qcompile") and "error" in own:
            worst, column = max((own[column] / max(row[column], 1e-9), column) for column in columns)
            if worst < best:
                best, which, where = worst, name, column
    return f"{which} is no worse" if best <= SAME else f"{which} comes nearest: {best:.2f}x in {where}"


#: Without the standard's Attention, which its quantizer takes for its own, so that its session refuses the graph.
DYNAMIC = ["MatMul", "Gemm", "Gather", "Conv"]

#: Targets of ours, some with formats that are not their default.
TARGETS = "cpu-int8,cpu-int8=int8-channel/uint8-tensor,cpu-int4,qdq-int8"

#: Ratios that differ by less are the same.
SAME = 1.02

if __name__ == "__main__":
    main()
