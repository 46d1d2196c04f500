"""One text, however the graph that writes it takes what was before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from running_sums import VOCABULARY, plain, save, with_cache

from qcompile.run.generation import Decoder, greedy, shortened
from qcompile.run.session import Session

COUNT, READ = 9, 4


@pytest.fixture
def prompts() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY, (3, READ))


def by_hand(text: str, prompts: np.ndarray) -> np.ndarray:
    """The loop over the graph without a cache, written down."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.parser.parse_model(text).graph.initializer}
    ids = prompts
    for _ in range(COUNT):
        scores = np.tanh(constants["table"][ids].sum(1)) @ constants["head"]
        ids = np.concatenate([ids, scores.argmax(-1)[:, None]], 1)
    return ids[:, READ:]


def written(text: str, feeds: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    path = save(text, folder / "model.onnx")
    decoder = Decoder.of(ir.load(path), "ids", "logits")
    return greedy(Session(path).run, decoder, feeds, COUNT)


def test_a_graph_without_a_cache(prompts: np.ndarray, tmp_path: Path) -> None:
    made = written(plain(), {"ids": prompts}, tmp_path)
    np.testing.assert_array_equal(made, by_hand(plain(), prompts))
    assert len(np.unique(made)) > 2  # it says something


def test_a_graph_with_a_cache(prompts: np.ndarray, tmp_path: Path) -> None:
    places = np.tile(np.arange(READ), (3, 1))
    feeds = {"ids": prompts, "position": places, "mask": np.ones_like(prompts), "past": np.zeros((3, 0, 6), np.float32)}
    np.testing.assert_array_equal(written(with_cache(), feeds, tmp_path), by_hand(plain(), prompts))


def test_a_graph_of_one_length(prompts: np.ndarray, tmp_path: Path) -> None:
    window = np.concatenate([prompts, np.full((3, COUNT), 5)], 1)
    made = written(plain(length=str(READ + COUNT)), {"ids": window}, tmp_path)
    np.testing.assert_array_equal(made, by_hand(plain(), prompts))


def test_what_stands_beside_the_tokens_goes_on_as_it_began(prompts: np.ndarray, tmp_path: Path) -> None:
    session = Session(save(with_cache(), tmp_path / "model.onnx"))
    decoder = Decoder.of(ir.load(tmp_path / "model.onnx"), "ids", "logits")
    seen = []

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append({name: value.copy() for name, value in inputs.items()})
        return session.run(inputs)

    places = np.tile(np.arange(10, 10 + READ), (3, 1))
    feeds = {"ids": prompts, "position": places, "mask": np.ones_like(prompts), "past": np.zeros((3, 0, 6), np.float32)}
    greedy(run, decoder, feeds, 3)
    assert [step["position"][0].tolist() for step in seen] == [[10, 11, 12, 13], [14], [15]]
    assert [step["mask"].shape[1] for step in seen] == [4, 5, 6]
    assert [step["past"].shape[1] for step in seen] == [0, 4, 5]


def test_the_beginning_of_a_prompt(prompts: np.ndarray, tmp_path: Path) -> None:
    model = ir.load(save(with_cache(), tmp_path / "model.onnx"))
    feeds = {"ids": prompts, "position": prompts, "mask": np.ones((3, READ), int), "past": np.zeros((3, 0, 6))}
    cut = shortened(feeds, Decoder.of(model, "ids", "logits"), 3)
    assert {name: array.shape[1] for name, array in cut.items()} == {"ids": 3, "position": 3, "mask": 3, "past": 0}
