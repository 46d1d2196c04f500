"""One export by several processes beside the same by one: seconds by step, their ratio, and whether all bytes agree.

    NCCL_NVLS_ENABLE=0 python benchmarks/distributed.py llama-8b --layers 8 --device cuda --devices 1 2
    python benchmarks/distributed.py llama-tiny --device cpu --tokens 64 128 --devices 1 2 3 --repeat 3

The model is that of ``benchmarks/large.py``, with random weights, made once. Every export runs in a process of its own,
in turn, ``--repeat`` times; seconds are the least of each. On CPUs every export has all threads: one process all of
them, two half each. User seconds are those of all processes, by which exports beside other work can be compared; the
lines of an export are printed when it is done, so that a limit of time loses no more than what is left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from large import DECODERS, decoder, texts

#: Steps that are printed, of each export.
SHOWN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=DECODERS)
    parser.add_argument("--target", default="hopper-int4")
    parser.add_argument("--layers", type=int, default=0, help="0: all")
    parser.add_argument("--tokens", type=int, nargs=2, default=(128, 2048), help="rows and length to calibrate on")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="make the model in this folder, and leave it")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(exported(args, args.child)))
        return
    with tempfile.TemporaryDirectory(prefix="qcompile-distributed-") as scratch:
        args.keep = args.keep or Path(scratch)
        begin = time.time()
        path, count = model(args)
        print(f"{path}: {count / 1e9:.2f}B parameters, made in {time.time() - begin:.0f} s", flush=True)
        found: dict[int, list[dict[str, Any]]] = {devices: [] for devices in args.devices}
        for _ in range(args.repeat):
            for devices in args.devices:
                found[devices].append(row := in_process(args, devices))
                show(devices, row)
    compare(found)


def model(args: argparse.Namespace) -> tuple[Path, int]:
    """The file of the model, which is made if it is not there, and how many parameters it has."""
    *shape, full, tied = DECODERS[args.model]
    layers = args.layers or full
    folder = args.keep / f"{args.model}-{layers}"
    counted = folder / "parameters"
    if not counted.is_file():
        path, count = decoder(folder, shape, layers, tied, wide=args.model == "smollm2")
        counted.write_text(str(count))
        return path, count
    return folder / "model.onnx", int(counted.read_text())


def in_process(args: argparse.Namespace, devices: int) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, "--keep", str(args.keep), "--child", str(devices)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the export by {devices} failed")
    return json.loads(done.stdout.splitlines()[-1])


def exported(args: argparse.Namespace, devices: int) -> dict[str, Any]:
    import qcompile as qc

    path, _ = model(args)
    data = {"input_ids": texts(DECODERS[args.model][4], *args.tokens)}
    with tempfile.TemporaryDirectory(prefix="qcompile-distributed-") as scratch:
        begin = time.time()
        artifact = qc.export(path, args.target, Path(scratch) / "artifact", calibration=data, method=args.method,
                             device=args.device, devices=devices)  # fmt: skip
        seconds = time.time() - begin
        digest = hashlib.sha256()
        for file in sorted(path for path in artifact.folder.rglob("*") if path.is_file()):
            digest.update(file.relative_to(artifact.folder).as_posix().encode() + b"\0" + file.read_bytes())
    user = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peaks = {place: (artifact.effort[place] or {"bytes": 0})["bytes"] for place in ("device", "host")}
    return {"seconds": seconds, "user": user, "steps": artifact.effort["steps"], "digest": digest.hexdigest(), **peaks}


def show(devices: int, row: dict[str, Any]) -> None:
    print(f"{devices} processes: {row['seconds']:.1f} s, {row['user']:.1f} s of user time; the first has "
          f"{row['device'] / 2**30:.1f} GiB of the GPU and {row['host'] / 2**30:.1f} GiB of RAM",
          flush=True)  # fmt: skip
    steps = sorted(row["steps"].items(), key=lambda item: -item[1])[:SHOWN]
    print("    " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in steps), flush=True)


def compare(found: dict[int, list[dict[str, Any]]]) -> None:
    first, *others = found
    base = min(row["seconds"] for row in found[first])
    for devices in others:
        seconds, digests = min(row["seconds"] for row in found[devices]), {r["digest"] for r in found[devices]}
        same = digests == {row["digest"] for row in found[first]}
        print(f"{devices} processes: {base / seconds:.2f}x as fast as {first}; bytes {'agree' if same else 'DIFFER'}")


if __name__ == "__main__":
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    main()
