"""Runs a GGUF file by transformers, which decodes its blocks with the package gguf, on the CPU, in float32."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from qcompile.backends.llamacpp.metadata import scale_of
from qcompile.errors import InputError, MissingExtraError, reason_of

__all__ = ["load"]

FILE = "model.gguf"


def load(folder: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The file as a function of named inputs.

    Raises:
        InputError: if there is none, or transformers cannot read it; from the function, if it does not take the inputs.
        MissingExtraError: if transformers is missing.
    """
    if not (Path(folder) / FILE).is_file():
        raise InputError(f"'{folder}' holds no {FILE}: it is no artifact of this target")
    for name in ("transformers", "gguf", "accelerate"):  # transformers reads the format with the last two
        if find_spec(name) is None:
            raise MissingExtraError(f"loading a GGUF file back with {name}", "gguf")
    import torch
    import transformers

    from qcompile.huggingface.called import call_named

    try:
        with redirect_stderr(io.StringIO()), _multiplied(Path(folder)) as whole:  # it draws progress bars
            module = transformers.AutoModelForCausalLM.from_pretrained(
                whole, gguf_file=FILE, dtype=torch.float32, local_files_only=True
            ).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"transformers cannot load '{folder}': {reason_of(error)}") from error
    return lambda inputs: call_named(module, inputs)


@contextmanager
def _multiplied(folder: Path) -> Iterator[Path]:
    """The folder of a file whose weights hold their second level, which transformers takes for other weights."""
    import gguf

    reader = gguf.GGUFReader(folder / FILE)
    levels = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name.endswith(".scale")}
    if not levels:
        yield folder
        return
    with TemporaryDirectory() as scratch:
        writer = gguf.GGUFWriter(Path(scratch) / FILE, reader.fields["general.architecture"].contents())
        for name, field in reader.fields.items():
            if not name.startswith("GGUF.") and name != "general.architecture":
                sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), field.types[0], sub_type)
        for tensor in reader.tensors:
            if (level := levels.get(scale_of(tensor.name))) is not None:
                writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type) * level)
            elif tensor.name not in levels:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield Path(scratch)
