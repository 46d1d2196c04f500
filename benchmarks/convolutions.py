"""Convolutional networks against onnxruntime's own quantizers: size, error and latency, from one run.

    python benchmarks/convolutions.py [MODEL.onnx ...] [--seconds 2] [--targets cpu-int8,cpu-int4,qdq-int8]

Without models: the shipped classifiers and U-Net, a YOLO-like and a MobileNet-like network with random weights, and the
PP-OCR models of the package ``rapidocr-onnxruntime`` where it is installed. Data is that of the zoo, else pictures of
digits shaped as the input; a quarter of it is not calibrated with, and errors (relative L2 of the outputs) are on that.
Times are medians of up to 200 runs in turn, in seconds of the one thread that computes, over those of the float model.
A file that onnxruntime does not load is named.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime

import qcompile as qc
from qcompile.checks.latency import interleaved

ZOO = Path(__file__).parent.parent / "examples" / "zoo"
PLACES = (64, 320)
IMAGES = 64

#: Rounds of all files of a model at most.
ROUNDS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the runs of each model")
    parser.add_argument("--targets", default="cpu-int8,cpu-int4,qdq-int8")
    parser.add_argument(
        "--places", type=int, nargs=2, default=PLACES, help="height and width, where a model leaves them free"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in options.models or shipped(Path(folder)):
            table(path, Path(folder) / path.stem, options)


def shipped(folder: Path) -> list[Path]:
    """The models that are there."""
    found = [ZOO / "resnet.onnx", ZOO / "mobilenet.onnx", ZOO / "unet.onnx"]
    found += [yolo_like(folder / "yolo.onnx"), mobilenet_like(folder / "random_mobilenet.onnx")]
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    if package is not None and package.origin is not None:
        found += sorted((Path(package.origin).parent / "models").glob("*.onnx"))
    return found


def yolo_like(path: Path) -> Path:
    """A backbone of strided convolutions with SiLU, joins by Concat, upsampling, and a head for boxes."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inner: int, outer: int, kernel: int = 3, stride: int = 1) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.silu(self.conv(x))

    class Yolo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList(
                Block(a, b, 3, 2) for a, b in ((3, 16), (16, 32), (32, 64), (64, 128), (128, 256))
            )
            self.inner = nn.ModuleList(Block(n, n) for n in (32, 64, 128, 256))
            self.narrow = nn.ModuleList([Block(256, 128, 1), Block(128, 64, 1)])
            self.join = nn.ModuleList([Block(256, 128), Block(128, 64)])
            self.head = nn.ModuleList([nn.Conv2d(64, 85, 1), nn.Conv2d(128, 85, 1)])

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x, seen = self.down[0](images), []
            for down, inner in zip(list(self.down)[1:], self.inner, strict=True):
                x = down(x)
                x = x + inner(x)
                seen.append(x)
            up = nn.functional.interpolate(self.narrow[0](seen[3]), scale_factor=2)
            middle = self.join[0](torch.cat([up, seen[2]], 1))
            up = nn.functional.interpolate(self.narrow[1](middle), scale_factor=2)
            return self.head[0](self.join[1](torch.cat([up, seen[1]], 1))), self.head[1](middle)

    torch.manual_seed(0)
    return saved(Yolo(), (160, 160), path)


def mobilenet_like(path: Path) -> Path:
    """Inverted residuals as in MobileNetV2: pointwise, depthwise, pointwise, ReLU6 between, batch norms behind each."""
    import torch
    from torch import nn

    def normed(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        norm = nn.BatchNorm2d(outer)
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.uniform_(norm.running_var, 0.2, 0.6)
        return [nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False), norm]

    class Inverted(nn.Module):
        def __init__(self, inner: int, outer: int, stride: int) -> None:
            super().__init__()
            wide = 6 * inner
            middle = [*normed(inner, wide, 1), nn.ReLU6(), *normed(wide, wide, 3, stride, wide), nn.ReLU6()]
            self.inner = nn.Sequential(*middle, *normed(wide, outer, 1))
            self.skips = inner == outer and stride == 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.inner(x) if self.skips else self.inner(x)

    torch.manual_seed(0)
    widths = (16, 24, 24, 32, 32, 64, 64, 96, 160)
    blocks = [Inverted(a, b, 1 if a == b else 2) for a, b in pairwise(widths[:6])]
    blocks += [Inverted(a, b, 1) for a, b in pairwise(widths[5:])]
    head = [*normed(160, 640, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(640, 200)]
    return saved(nn.Sequential(*normed(3, 16, 3, 2), nn.ReLU6(), *blocks, *head), (128, 128), path)


def saved(network: Any, places: tuple[int, int], path: Path) -> Path:
    """The file of a torch module that reads one picture."""
    import torch

    program = torch.onnx.export(network.eval(), (torch.randn(1, 3, *places),), dynamo=True, verbose=False)
    program.save(path, external_data=False)
    return path


def images_of(model: onnx.ModelProto, places: tuple[int, int] = PLACES) -> list[dict[str, np.ndarray]]:
    """Inputs of a model of images: digits for one that reads them, else pictures in its layout."""
    constants = {tensor.name for tensor in model.graph.initializer}
    value, *more = [value for value in model.graph.input if value.name not in constants]
    if more:  # a diffusion model
        with np.load(ZOO / "dit_calibration.npz") as points:
            return [{name: points[name][i::IMAGES] for name in points} for i in range(IMAGES)]
    dims = [dim.dim_value or 0 for dim in value.type.tensor_type.shape.dim]
    with np.load(ZOO / "classifier_calibration.npz") as digits:
        shapes = digits["x"]
    if dims[1:] == [1, 16, 16]:
        return [{value.name: shapes[i : i + 4]} for i in range(0, 4 * IMAGES, 4)]
    last = dims[-1] in (1, 3) and dims[1] not in (1, 3)
    batch, channels, height, width = [dims[0], dims[3], *dims[1:3]] if last else dims
    size = channels or 3, height or places[0], width or places[1]
    rng = np.random.default_rng(0)
    found = [np.stack([picture(rng, size, shapes) for _ in range(max(batch, 1))]) for _ in range(IMAGES)]
    return [{value.name: image.transpose(0, 2, 3, 1) if last else image} for image in found]


def picture(rng: np.random.Generator, size: tuple[int, int, int], shapes: np.ndarray) -> np.ndarray:
    """A row of dark digits on bright, slightly noisy ground, as text is normalized: ``[channels, height, width]``."""
    channels, height, width = size
    coarse = rng.standard_normal((channels, -(-height // 8), -(-width // 8)))
    image = 1.5 + 0.15 * coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width] + 0.05 * rng.standard_normal(size)
    factor = max(height // 32, 1)
    side = 16 * factor
    top = int(rng.integers(0, max(height - side, 0) + 1))
    for left in range(int(rng.integers(side)), width - side + 1, side * 3 // 4):
        place = image[:, top : top + side, left : left + side]
        drawn = shapes[rng.integers(len(shapes)), 0].repeat(factor, 0).repeat(factor, 1)
        place -= 1.5 * (drawn + 1)[: place.shape[1], : place.shape[2]]
    return image.astype(np.float32)


def table(path: Path, folder: Path, options: argparse.Namespace) -> None:
    """Print the rows of one model."""
    folder.mkdir()
    inputs = images_of(onnx.load(path), options.places)
    learned, held_out = inputs[: IMAGES * 3 // 4], inputs[IMAGES * 3 // 4 :]
    plain = session(path)
    want = [plain.run(None, given) for given in held_out]
    rows = dict(quantized(path, folder, learned, options.targets.split(",")))
    sessions = {name: own for name, file in rows.items() if (own := loaded(file, name)) is not None}
    rows = {name: rows[name] for name in sessions}
    errors = {name: error(want, [own.run(None, given) for given in held_out]) for name, own in sessions.items()}
    runs: list[Callable[[], Any]] = [lambda own=own: own.run(None, inputs[0]) for own in (plain, *sessions.values())]
    times, _ = interleaved(runs, options.seconds * len(runs), ROUNDS, thread_time)
    print(f"\n{path.name}: {path.stat().st_size:,} bytes, {times[0] * 1e3:.2f} ms a run\n")
    print("| quantized by | size | error | latency |\n|---|---|---|---|")
    for (name, file), own in zip(rows.items(), times[1:], strict=True):
        size = sum(part.stat().st_size for part in file.parent.glob(file.name + "*")) / path.stat().st_size
        print(f"| {name} | {size:.3f} | {errors[name]:.4f} | {own / times[0]:.2f} |", flush=True)


def quantized(
    path: Path, folder: Path, learned: list[dict[str, np.ndarray]], targets: list[str]
) -> Iterator[tuple[str, Path]]:  # fmt: skip
    """Quantized copies of a model by name, theirs first."""
    from onnxruntime.quantization import CalibrationMethod, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self.rest = iter(learned)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    if model.opset_import[0].version < 13:  # scales of channels need it
        model = onnx.version_converter.convert_version(model, 13)
    del model.graph.value_info[:]  # its dynamic quantizer turns weights of Gemm, and then contradicts their old shapes
    onnx.save(model, prepared)
    dynamic = folder / "dynamic.onnx"
    quantize_dynamic(str(prepared), str(dynamic), per_channel=True)
    yield "onnxruntime, dynamic", dynamic
    for name in ("MinMax", "Percentile", "Entropy"):
        method = CalibrationMethod[name]
        static = folder / f"{name}.onnx"
        quantize_static(str(prepared), str(static), Reader(), per_channel=True, calibrate_method=method)
        yield f"onnxruntime, static, {name}", static
    data = folder / "data"
    data.mkdir()
    for number, given in enumerate(learned):
        np.savez(data / f"{number:03}.npz", **given)
    for target in targets:
        qc.export(path, target, folder / target, calibration=data)
        yield f"qcompile, {target}", folder / target / "model.onnx"


def loaded(path: Path, name: str) -> onnxruntime.InferenceSession | None:
    """A session, or none of a file that is invalid, with a word about it."""
    try:
        return session(path)
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph as error:
        print(f"\n{name}: onnxruntime does not load what it wrote: {str(error)[:300]}")
        return None


def session(path: Path) -> onnxruntime.InferenceSession:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def error(want: list[list[np.ndarray]], have: list[list[np.ndarray]]) -> float:
    """Relative L2 over all outputs and inputs."""
    pairs = [(a, b) for one, other in zip(want, have, strict=True) for a, b in zip(one, other, strict=True)]
    lost = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in pairs)
    return float(np.sqrt(lost / sum(float(np.square(a.astype(np.float64)).sum()) for a, _ in pairs)))


if __name__ == "__main__":
    main()
