"""A mixture of experts on cpu-int4: size of the artifact and time of a prompt, beside its float graph.

    python benchmarks/experts.py [--layers 4] [--width 512] [--inner 1024] [--experts 16] [--top 2]

Random weights; experts looked up for each token, then batched. onnxruntime with one thread, medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qcompile.compiler import Options, export

TOKENS, VOCABULARY, REPEATS = (1, 16, 64), 4096, 5


class Experts(nn.Module):
    """SwiGLU experts in stacks, looked up or batched."""

    def __init__(self, args: argparse.Namespace, looked_up: bool) -> None:
        super().__init__()
        self.looked_up, self.top, self.count = looked_up, args.top, args.experts
        self.router = nn.Linear(args.width, args.experts, False)
        self.gate, self.up, self.down = (
            nn.Parameter(torch.randn(args.experts, *shape) / shape[0] ** 0.5)
            for shape in ((args.width, args.inner), (args.width, args.inner), (args.inner, args.width))
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights = self.router(rows).softmax(-1)
        if self.looked_up:
            weights, chosen = weights.topk(self.top, -1)
            gate, up = (torch.einsum("td,tkdf->tkf", rows, stack[chosen]) for stack in (self.gate, self.up))
            made = torch.einsum("tkf,tkfd->tkd", nn.functional.silu(gate) * up, self.down[chosen])
            return (made * weights[..., None]).sum(1).unflatten(0, x.shape[:2])
        rows = rows[None].expand(self.count, -1, -1)
        made = (nn.functional.silu(rows @ self.gate) * (rows @ self.up)) @ self.down
        return (made * weights.T[..., None]).sum(0).unflatten(0, x.shape[:2])


class Model(nn.Module):
    """An embedding, layers of experts, a head."""

    def __init__(self, args: argparse.Namespace, looked_up: bool) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(VOCABULARY, args.width), nn.Linear(args.width, VOCABULARY, False)
        self.layers = nn.ModuleList(Experts(args, looked_up) for _ in range(args.layers))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = x + layer(nn.functional.rms_norm(x, x.shape[-1:]))
        return self.head(nn.functional.rms_norm(x, x.shape[-1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 4), ("width", 512), ("inner", 1024), ("experts", 16), ("top", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    print(f"{'':22} {'MB':>7} {'bits':>5} " + " ".join(f"{count:>6} tok" for count in TOKENS) + "  ms")
    for looked_up in (True, False):
        torch.manual_seed(0)
        model, kind = Model(args, looked_up).eval(), "looked up" if looked_up else "batched"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "float.onnx"
            ids, length = torch.zeros(1, 8, dtype=torch.long), torch.export.Dim("length", min=2, max=4096)
            torch.onnx.export(model, (ids,), source, dynamo=True, dynamic_shapes=[{1: length}], input_names=["ids"],
                              external_data=False, verbose=False)  # fmt: skip
            _line(f"{kind}, float", source, source.stat().st_size, 32)
            options = Options(target="cpu-int4", transforms="none", method="rtn")
            made = export(source, options, Path(folder) / "artifact")
            _line(f"{kind}, cpu-int4", Path(folder) / "artifact" / "model.onnx", made.manifest["bytes"]["artifact"],
                  made.manifest["bits_per_weight"])  # fmt: skip


def _line(label: str, path: Path, size: int, bits: float) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session, rng, medians = ort.InferenceSession(path, options), np.random.default_rng(0), []
    for count in TOKENS:
        inputs = {"ids": rng.integers(0, VOCABULARY, (1, count))}
        session.run(None, inputs)
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            session.run(None, inputs)
            times.append(time.perf_counter() - start)
        medians.append(1e3 * float(np.median(times)))
    print(f"{label:22} {size / 1e6:7.1f} {bits:5.2f} " + " ".join(f"{ms:10.2f}" for ms in medians), flush=True)


if __name__ == "__main__":
    main()
