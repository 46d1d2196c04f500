"""Ours against quantizers of others that take ONNX: the same model, formats and data, weights of 4 bits at every site.

    python benchmarks/peers.py examples/zoo/language_model.onnx [--ways "onnxruntime GPTQ,onnxsim QuaRot"]

Peers are onnxruntime's quantizer for MatMulNBits (to nearest, HQQ, GPTQ) and, where it is installed (``pip install
onnxsim``), onnxsim 0.8: GPTQ, Qronos and HQQ for weights, MXFP4 and NVFP4, QuaRot and SpinQuant for inputs as well.
They leave embedding tables float, and heads that share them; ours are rounded to 4 bits too, so that ours store no
more, but for ``--edge float``, which leaves the same sites float where a head shares its table. Each row has the mean
divergence over evaluation sequences (KL of logits, else half the squared relative error), and how much that is above
ours of the same formats, with the standard error of the difference over sequences.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from recipes import beside, difference, sequences, tensors

import qcompile as qc
from qcompile.analysis.analyze import analyze
from qcompile.statistics.sensitivity import divergence, logit_outputs

Feed = dict[str, np.ndarray]

#: Sequences that peers calibrate with, of as many as they ask for: onnxsim's run sites one by one.
SEQUENCES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, help="by default NAME_calibration.npz")
    parser.add_argument("--evaluation", type=Path, help="by default NAME_evaluation.npz")
    parser.add_argument("--ways", help="peers, separated by commas; by default all")
    parser.add_argument("--sequences", type=int, default=32, help="of the evaluation data")
    parser.add_argument("--edge", help="the format of our tables and heads; by default that of all sites")
    args = parser.parse_args()
    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
    data = args.calibration or beside(args.model, "calibration")
    judge = Judge(args.model, sequences(args.evaluation or beside(args.model, "evaluation"), args.sequences))
    print(f"{'way':24}{'formats':20}{'divergence':>11}{'above ours':>12}{'±':>9}{'s':>6}", flush=True)
    ours: dict[str, list[float]] = {}
    for name, (formats, make) in peers().items():
        if args.ways is not None and name not in args.ways.split(","):
            continue
        if formats not in ours:
            started = time.perf_counter()
            ours[formats] = judge.of(ours_of(args.model, data, formats, args.edge or formats))
            print(f"{'ours':24}{formats:20}{np.mean(ours[formats]):11.5f}{'':21}{time.perf_counter() - started:6.0f}")
        started = time.perf_counter()
        found = judge.of(run_of(make(args.model, sequences(data, SEQUENCES))))
        apart, error = difference(found, ours[formats])
        seconds = time.perf_counter() - started
        print(f"{name:24}{formats:20}{np.mean(found):11.5f}{apart:12.5f}{error:9.5f}{seconds:6.0f}", flush=True)


class Judge:
    """The float model on evaluation data."""

    def __init__(self, path: Path, batches: Sequence[Feed]) -> None:
        analysis = analyze(qc.capture(path).model)
        self.logits, self.batches = logit_outputs(analysis.model, analysis.sites), batches
        run = run_of(onnx.load(path))
        self.exact = [tensors(run(batch)) for batch in batches]

    def of(self, run: Callable[[Feed], Mapping[str, np.ndarray]]) -> list[float]:
        """The divergence on each sequence."""
        pairs = zip(self.exact, self.batches, strict=True)
        return [divergence(want, tensors(dict(run(batch))), self.logits) for want, batch in pairs]


def run_of(model: onnx.ModelProto) -> Callable[[Feed], dict[str, np.ndarray]]:
    """A model as a function."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(names, batch), strict=True))


def ours_of(path: Path, data: Path, formats: str, edge: str) -> Callable[[Feed], Mapping[str, np.ndarray]]:
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"calibration": data, "formats": formats, "format_for": {"kind:edge": edge}}
        return qc.export(path, "reference", Path(folder) / "a", **options).load()


def peers() -> dict[str, tuple[str, Callable[[Path, list[Feed]], onnx.ModelProto]]]:
    """By name, the formats that each writes, and how."""
    found: dict[str, tuple[str, Callable[[Path, list[Feed]], onnx.ModelProto]]] = {
        f"onnxruntime {name}": (formats, lambda path, data, name=name: onnxruntime_model(path, data, name))
        for name, formats in (("nearest", "int4-g32"), ("HQQ", "uint4-g32"), ("GPTQ", "int4-g32"))
    }
    if importlib.util.find_spec("onnxsim") is None:
        print("onnxsim is not installed: its rows are left out")
        return found
    import onnxsim

    def after(name: str) -> Callable[[Path, list[Feed]], onnx.ModelProto]:
        def made(path: Path, data: list[Feed]) -> onnx.ModelProto:
            return getattr(onnxsim, name)(str(path), onnxsim.quantize_weight_only_int4(str(path)), data)

        return made

    return found | {
        "onnxsim nearest": ("int4-g32", lambda path, data: onnxsim.quantize_weight_only_int4(str(path))),
        "onnxsim HQQ": ("uint4-g32", lambda path, data: onnxsim.quantize_weight_only_int4_hqq(str(path))),
        "onnxsim GPTQ": ("int4-g32", after("apply_gptq")),
        "onnxsim Qronos": ("int4-g32", after("apply_qronos")),
        "onnxsim MXFP4": ("mxfp4", lambda path, data: onnxsim.quantize_weight_only_mxfp4(str(path))),
        "onnxsim NVFP4": ("nvfp4", lambda path, data: onnxsim.quantize_weight_only_nvfp4(str(path))),
        "onnxsim QuaRot": ("int4-g32/int4-g32", lambda path, data: onnxsim.apply_quarot(str(path))),
        "onnxsim QuaRot with GPTQ": (
            "int4-g32/int4-g32", lambda path, data: onnxsim.apply_quarot_gptq(str(path), data)
        ),
        "onnxsim SpinQuant": ("int4-g32/int4-g32", lambda path, data: onnxsim.apply_spinquant(str(path), data)),
    }  # fmt: skip


def onnxruntime_model(path: Path, data: list[Feed], name: str) -> onnx.ModelProto:
    """By onnxruntime's quantizer, symmetric in groups of 32 but for HQQ, which has zero points."""
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import matmul_nbits_quantizer as theirs

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(data)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

        def rewind(self) -> None:
            self.left = iter(data)

    ways: dict[str, Callable[[], Any]] = {
        "nearest": lambda: theirs.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True),
        "HQQ": lambda: theirs.HQQWeightOnlyQuantConfig(block_size=32),
        "GPTQ": lambda: theirs.GPTQWeightOnlyQuantConfig(Reader(), block_size=32),
    }
    made = theirs.MatMulNBitsQuantizer(onnx.load(path), 4, 32, name != "HQQ", algo_config=ways[name]())
    made.process()
    return made.model.model


if __name__ == "__main__":
    main()
