"""SmolLM2 as checkpoints: perplexity as transformers reads them back, beside that of the planned graph."""

from pathlib import Path

import numpy as np
import pytest
from smollm2_folder import smollm2_folder

import qcompile as qc

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
torch = pytest.importorskip("torch")
for _name in ("accelerate", "compressed_tensors", "gguf"):
    pytest.importorskip(_name, reason="the extras hf and gguf are not installed")

#: Nats between a checkpoint's loss and that of the planned graph.
LIMIT = 0.002

UNEXPLAINED = pytest.mark.xfail(
    strict=True, reason="0.013 nats apart, though weights and the rounding of each layer's input agree to the bit"
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2_folder(tmp_path_factory.mktemp("smollm2"))


def windows(folder: Path, rows: int = 4, length: int = 256) -> np.ndarray:
    """Pages of this project as tokens ``[rows, length]``."""
    root = Path(__file__).parents[3]
    text = (root / "README.md").read_text() + (root / "CONTRIBUTING.md").read_text()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text, verbose=False)["input_ids"]
    return np.array(ids[: rows * length], np.int64).reshape(rows, length)


def loss(logits: np.ndarray, ids: np.ndarray) -> float:
    """Nats a token."""
    rows = torch.from_numpy(logits[:, :-1]).flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(rows, torch.from_numpy(ids[:, 1:]).flatten()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "scheme"),
    [
        ("checkpoint-int4", "int4"), ("checkpoint-nvfp4", "nvfp4-4over6"), ("checkpoint-mxfp4", "mxfp4-even"),
        pytest.param("checkpoint-nvfp4", "nvfp4/nvfp4", marks=UNEXPLAINED), ("checkpoint-mxfp4", "mxfp4/mxfp4"),
        ("gguf", "q4_0"), ("gguf", "nvfp4"),
    ],
)  # fmt: skip
def test_it_loses_what_the_planned_graph_loses(target: str, scheme: str, smollm2: Path, tmp_path: Path) -> None:
    ids = windows(smollm2)
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    calibration = {name: array[:2] for name, array in given.items()} if "/" in scheme else None  # for static scales
    artifact = qc.export(
        smollm2, target, tmp_path / "out", formats=[scheme], transforms="none" if calibration else "auto", method="rtn",
        calibration=calibration, evaluation=given, cache=False,
    )  # fmt: skip
    found = artifact.manifest["quantization"]["loss"]
    planned, read = found["quantized"], loss(artifact.run(given)["logits"], ids)
    print(f"{target} {scheme}: float {found['float']:.5f}, planned {planned:.5f}, read back {read:.5f}")
    assert abs(read - planned) < LIMIT
