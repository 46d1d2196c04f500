"""SmolLM2 as checkpoints: perplexity as transformers reads them back, beside that of the planned graph."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from smollm2_folder import smollm2_folder

import qcompile as qc
from qcompile import compiler
from qcompile.backends.checkpoint.runner import load_module
from qcompile.checks.fake_quantized import rounded_for
from qcompile.formats import fake_quantize_rows
from qcompile.formats.catalogue import get_activation
from qcompile.formats.static import Range
from qcompile.run.executor import Executor
from qcompile.targets.fake_quantization import Place, Rounded

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
torch = pytest.importorskip("torch")
for _name in ("accelerate", "compressed_tensors", "gguf"):
    pytest.importorskip(_name, reason="the extras hf and gguf are not installed")

from compressed_tensors.quantization.lifecycle import forward  # noqa: E402

#: Nats between a checkpoint's loss and that of the planned graph.
LIMIT = 0.002

#: Relative L2 between what a layer reads in the checkpoint and in the plan, where all layers before it read equal
#: codes: sums of some hundred terms in another order.
SUMS = 1e-5


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


def rounds_as_planned(module: torch.nn.Module, manifest: dict, ids: torch.Tensor) -> None:
    """Each layer rounds what it really reads as the plan does, to the bit."""
    sites, seen = {one["module"]: one for one in manifest["sites"] if one.get("module")}, []

    def check(path: str, layer: torch.nn.Module, x: torch.Tensor) -> None:
        activation = get_activation(sites[path]["activation"])
        if "range" in sites[path]:
            activation = Range(activation, sites[path]["range"]["scale"])
        theirs = forward.forward_quantize(layer, x, "input", layer.quantization_scheme.input_activations)
        ours = fake_quantize_rows(x.flatten(0, -2), activation).view(x.shape)
        assert torch.equal(theirs, ours), path
        seen.append(path)

    hooks = [
        layer.register_forward_pre_hook(lambda layer, given, path=path: check(path, layer, given[0]))
        for path, layer in module.named_modules()
        if getattr(layer, "quantization_scheme", None) is not None
    ]
    with torch.no_grad():
        module(input_ids=ids)
    for hook in hooks:
        hook.remove()
    assert sorted(seen) == sorted(path for path, one in sites.items() if one["activation"])


def with_planned_codes(
    module: torch.nn.Module, rounded: Rounded, manifest: dict, given: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[np.ndarray, dict[str, float]]:  # fmt: skip
    """What the module computes where its layers read the codes that they read in the plan.

    Returns:
        the logits; by the path of each layer, how far what it reads is from the plan before it is rounded, in relative
        L2.
    """
    path_of = {one["name"]: one["module"] for one in manifest["sites"] if one.get("module")}
    engine = Executor(rounded.model, hooked=rounded.places)
    engine.sources |= rounded.weights
    read, codes, apart = {}, {}, {}

    def noted(place: Place, value: torch.Tensor) -> torch.Tensor:
        found = place.hook(value)
        for path in filter(None, map(path_of.get, place.sites)):
            read[path], codes[path] = value, found
        return found

    with torch.no_grad():
        engine(given, {name: partial(noted, place) for name, place in rounded.places.items() if place.hook})
    names = {layer: path for path, layer in module.named_modules()}

    def planned(layer: torch.nn.Module, x: torch.Tensor, base_name: str, args: object) -> torch.Tensor:
        want = read[names[layer]].view(x.shape)
        apart[names[layer]] = float((x - want).norm() / want.norm())
        return codes[names[layer]].view(x.shape)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(forward, "forward_quantize", planned)
        logits = module(input_ids=torch.from_numpy(given["input_ids"])).logits
    assert set(apart) == set(read)
    return logits.numpy(), apart


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "scheme"),
    [
        ("checkpoint-int4", "int4"), ("checkpoint-nvfp4", "nvfp4-4over6"), ("checkpoint-mxfp4", "mxfp4-even"),
        ("checkpoint-nvfp4", "nvfp4/nvfp4"), ("checkpoint-mxfp4", "mxfp4/mxfp4"),
        ("gguf", "q4_0"), ("gguf", "nvfp4"),
    ],
)  # fmt: skip
def test_it_loses_what_the_planned_graph_loses(
    target: str, scheme: str, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where inputs are rounded, the checkpoint is held to the plan with equal codes: free, a value beside a boundary
    falls to one side or the other by the order of sums, and docs/checkpoints.md says how far that goes."""
    made: list[Rounded] = []
    monkeypatch.setattr(compiler, "rounded_for", lambda *given: made.append(rounded_for(*given)) or made[-1])
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
    if "/" in scheme:
        module = load_module(artifact.folder)
        rounds_as_planned(module, artifact.manifest, torch.from_numpy(ids))
        logits, apart = with_planned_codes(module, made[-1], artifact.manifest, given, monkeypatch)
        read = loss(logits, ids)
        print(f"with the codes of the plan {read:.5f}, layers read within {max(apart.values()):.1e}")
        assert max(apart.values()) < SUMS
    assert abs(read - planned) < LIMIT
