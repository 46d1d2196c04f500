"""An encoder-decoder in two graphs: one reads and begins, one goes on from the cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretrained import make, tokens

import qcompile as qc
from qcompile.run.session import Session

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -e '.[hf]'")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["T5", "Whisper"])
def test_steps_give_what_all_tokens_give_at_once(family: str) -> None:
    module, call = make(family)
    begin = qc.capture(module, {**call, "use_cache": True})
    go_on = qc.capture(module, call, cache=True)
    assert [value.name for value in go_on.model.graph.inputs][:2] == ["input_ids", "encoder_hidden_states"]
    read = {name: torch.cat([value, value[:1]]) for name, value in call.items() if name != "decoder_input_ids"}
    if "input_ids" in read:  # of another length than the example
        read = {name: torch.cat([value, value[:, :3]], 1) for name, value in read.items()}
    written = tokens(3, 14)
    with torch.no_grad():
        whole = module(**read, decoder_input_ids=written).logits.numpy()
    inputs = {name: value.numpy() for name, value in read.items()}
    found = Session(begin.model).run(inputs | {"decoder_input_ids": written[:, :3].numpy()})
    step, logits, done = Session(go_on.model), [found["logits"]], 3
    given = {"encoder_hidden_states": found["encoder_last_hidden_state"]}
    if "attention_mask" in inputs:
        given["encoder_attention_mask"] = inputs["attention_mask"]
    for cut in (4, 5, 9, 14):
        cache = {name: found[name.replace("past_key_values", "present")] for name in step.inputs if "past_" in name}
        found |= step.run({"input_ids": written[:, done:cut].numpy(), **given, **cache})
        logits.append(found["logits"])
        done = cut
    np.testing.assert_allclose(np.concatenate(logits, 1), whole, rtol=1e-5, atol=1e-5)


def test_too_few_tokens_for_the_decoder_are_refused() -> None:
    module, call = make("T5")
    with pytest.raises(qc.InputError, match="an example of at least 4 decoder_input_ids, not 3"):
        qc.capture(module, {**call, "decoder_input_ids": tokens(2, 3)}, cache=True)
