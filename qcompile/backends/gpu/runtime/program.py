"""Loads the weights of a generated program and runs it. Ships with every artifact; needs nothing but torch."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_HALVES = (torch.float16, torch.bfloat16)
Inputs = Mapping[str, Any]


class Weights:
    """The tensors of a program, moved to a device as they are asked for.

    Args:
        folder: with ``weights.safetensors``, which is mapped, not read, and ``layout.json``.
        device: where tensors go.
        dtype: of floats that the program computes with.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._layout = json.loads((folder / "layout.json").read_text())
        with open(folder / "weights.safetensors", "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        size = int.from_bytes(self._bytes[:8], "little")
        self._header = json.loads(self._bytes[8 : 8 + size])
        self._start = 8 + size

    def raw(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        entry = self._header[name]
        dtype, shape, (start, end) = _TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if start == end:
            return torch.empty(shape, dtype=dtype, device=self.device)
        count = (end - start) // dtype.itemsize
        return (
            torch.frombuffer(self._bytes, dtype=dtype, count=count, offset=self._start + start)
            .reshape(shape)
            .to(self.device, copy=True)
        )

    def narrow(self, name: str) -> Tensor:
        """A tensor in the dtype that the program computes in."""
        return self.raw(name).to(self.dtype)

    def wide(self, name: str) -> Tensor:
        """A tensor in float32."""
        return self.raw(name).float()

    def packed(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The parts of a packed weight, and what its kernel knows of it."""
        start = name + "."
        tensors = {key[len(start) :]: self.raw(key) for key in self._header if key.startswith(start)}
        return tensors, {key: self._expanded(value) for key, value in self._layout["packed"][name].items()}

    def format(self, name: str) -> dict[str, Any]:
        """A format of activations."""
        return self._expanded(self._layout["activations"][name])

    def _expanded(self, entry: Any) -> Any:
        named = isinstance(entry, dict) and entry.keys() == {"format"}
        return self._layout["formats"][entry["format"]] if named else entry


class Program:
    """A generated program with its weights; call it with inputs by name.

    Subclasses give ``INPUTS`` and ``OUTPUTS`` (dtypes by name), ``__init__`` and ``forward``.
    """

    INPUTS: ClassVar[dict[str, torch.dtype]] = {}
    OUTPUTS: ClassVar[dict[str, torch.dtype]] = {}
    CAPTURES: ClassVar[bool] = True

    def __init__(self, weights: Weights) -> None:
        self.device, self.dtype = weights.device, weights.dtype

    @torch.inference_mode()
    def __call__(self, inputs: Inputs) -> dict[str, Any]:
        """Outputs by name: arrays if every input is one of numpy, else tensors on the device.

        Raises:
            ValueError: if inputs are missing or unknown.
        """
        tensors = self._tensors(inputs)
        values = self.forward(*tensors)
        outputs = dict(zip(self.OUTPUTS, values, strict=True))
        outputs = {name: value.to(self.OUTPUTS[name]) for name, value in outputs.items()}
        if inputs and not any(isinstance(value, Tensor) for value in inputs.values()):
            return {name: _array(value) for name, value in outputs.items()}
        return outputs

    def _tensors(self, inputs: Inputs) -> list[Tensor]:
        if set(inputs) != set(self.INPUTS):
            raise ValueError(f"the inputs are {', '.join(self.INPUTS)}, not {', '.join(inputs) or 'none'}")
        kinds = {name: self.dtype if kind in _HALVES else kind for name, kind in self.INPUTS.items()}
        return [torch.as_tensor(inputs[name]).to(self.device, kind) for name, kind in kinds.items()]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of ``OUTPUTS``."""
        raise NotImplementedError

    @torch.inference_mode()
    def capture(self, inputs: Inputs, warm_up: int = 3) -> Callable[[Inputs], dict[str, Tensor]]:
        """The program at one set of shapes as a CUDA graph.

        Args:
            inputs: an example; the shapes stay.
            warm_up: runs before the capture, in which kernels compile and buffers are found.

        Returns:
            a function of new inputs of the same shapes; the tensors that it returns are overwritten by the next call.

        Raises:
            RuntimeError: without a GPU, or if the program waits for values of the GPU.
        """
        if self.device.type != "cuda":
            raise RuntimeError("CUDA graphs need a GPU")
        if not self.CAPTURES:
            raise RuntimeError("this program waits for values that the GPU computes, so no CUDA graph can hold it")
        held = dict(zip(self.INPUTS, (tensor.clone() for tensor in self._tensors(inputs)), strict=True))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                self(held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self(held)

        @torch.inference_mode()
        def replay(new: Inputs) -> dict[str, Tensor]:
            for name, value in new.items():
                held[name].copy_(torch.as_tensor(value))
            graph.replay()
            return outputs

        replay.graph = graph
        return replay


def _array(value: Tensor) -> Any:
    return value.cpu().numpy()


def load(program: type[Program], folder: str | Path, device: Any = None, dtype: torch.dtype | None = None) -> Program:
    """A program with the weights of its folder.

    Args:
        device: the GPU if there is one, else, under Triton's interpreter, the CPU.
        dtype: float32 unless told; bfloat16 is the fast one.

    Raises:
        RuntimeError: if there is no GPU and the interpreter was not asked for.
    """
    chosen = torch.device(device) if device is not None else _device()
    weights = Weights(Path(folder), chosen, dtype or torch.float32)
    with torch.inference_mode():
        return program(weights)


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    raise RuntimeError("there is no GPU here; set TRITON_INTERPRET=1 to run under Triton's interpreter, slowly")
