"""Export to 4-bit weights for CPUs: time, memory and token latency, against onnxruntime's own quantizer.

    python benchmarks/int4_export.py MODEL.onnx [--length 1] [--runs 30]

Both round to nearest in groups of 32, in processes of their own; times are of the whole process. Latency is of one
forward pass over a short input, the two models in turn, medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PEER = """
import sys, onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
model = onnx.load(sys.argv[1])
quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, accuracy_level=4)
quantizer.process()
quantizer.model.save_model_to_file(sys.argv[2], use_external_data_format=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--length", type=int, default=1, help="tokens of one forward pass")
    parser.add_argument("--runs", type=int, default=30)
    args = parser.parse_args()
    float_bytes = sum(path.stat().st_size for path in args.model.parent.glob(args.model.name + "*"))
    with tempfile.TemporaryDirectory() as folder:
        peer, ours = Path(folder) / "peer.onnx", Path(folder) / "ours"
        ours_command = [sys.executable, "-m", "qcompile", "export", str(args.model), "--target", "cpu-int4"]
        ours_command += ["--formats", "int4-g32", "--method", "rtn", "-q", "-o", str(ours)]
        rows = {
            "onnxruntime": measured([sys.executable, "-c", PEER, str(args.model), str(peer)]),
            "qcompile": measured(ours_command),
        }
        print(f"{'':12} {'s':>7} {'peak MiB':>9} {'peak / float size':>18}")
        for name, (seconds, peak) in rows.items():
            print(f"{name:12} {seconds:7.1f} {peak / 2**20:9.0f} {peak / float_bytes:18.2f}")
        print(f"time ratio {rows['qcompile'][0] / rows['onnxruntime'][0]:.2f}")
        latency(peer, ours / "model.onnx", args)


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
    return time.perf_counter() - started, int(result.stdout.split()[-1]) * 1024


def latency(peer: Path, ours: Path, args: argparse.Namespace) -> None:
    """Median time of one forward pass of each model, in turn."""
    import onnxruntime as ort

    sessions = {name: ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for name, p in
                (("onnxruntime", peer), ("qcompile", ours))}  # fmt: skip
    (value, *others) = sessions["qcompile"].get_inputs()
    if others:
        print("latency: only models with one input are timed")
        return
    inputs = {value.name: np.ones((1, args.length), np.int64)}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(args.runs):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, inputs)
            times[name].append(time.perf_counter() - started)
    medians = {name: float(np.median(values[3:])) for name, values in times.items()}
    ratio = medians["qcompile"] / medians["onnxruntime"]
    print(f"latency at {args.length} token(s), median of {args.runs - 3}: ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
