"""Attention and rotary embeddings."""

from __future__ import annotations

from qcompile.operators.call import Call

__all__ = ["ROWS"]


def _attention(c: Call) -> str:
    if len(c) > 6 and c.has(6):
        raise c.refuse("it has lengths that are not padded")
    if len(c.node.outputs) > 3 and c.node.outputs[3].uses():
        raise c.refuse("the scores are read")
    options = {
        "heads": (c.int("q_num_heads"), c.int("kv_num_heads")) if c.int("q_num_heads") else None,
        "causal": bool(c.int("is_causal", 0)) or None,
        "scale": c.float("scale"),
        "softcap": c.float("softcap", 0.0) or None,
    }
    parts = [c[0], c[1], c[2]]
    parts += [f"mask={c[3]}"] if c.has(3) else []
    parts += [f"past=({c[4]}, {c[5]})"] if c.has(4) else []
    parts += [f"{name}={value}" for name, value in options.items() if value is not None]
    several = len(c.node.outputs) > 1 and any(out.uses() or out.is_graph_output() for out in c.node.outputs[1:])
    name = "attention_with_cache" if several else "attention"
    return f"{c.helper(name)}({', '.join(parts)})"


def _rotary(c: Call) -> str:
    plain = c.rank(0) == 4 and not any(c.int(name, 0) for name in ("interleaved", "rotary_embedding_dim"))
    if plain and not c.has(3):
        cos, sin = (c.program.own(c.value(i)) for i in (1, 2))
        return f"{c.program.kernel('rotary')}({c[0]}, {cos}.unsqueeze(-3), {sin}.unsqueeze(-3))"
    options = [f"interleaved={bool(c.int('interleaved'))}"] if c.int("interleaved", 0) else []
    options += [f"width={c.int('rotary_embedding_dim')}"] if c.int("rotary_embedding_dim", 0) else []
    options += [f"heads={c.int('num_heads')}"] if c.int("num_heads", 0) and c.rank(0) == 3 else []
    options += [f"positions={c[3]}"] if c.has(3) else []
    return f"{c.helper('rotary')}({', '.join([c[0], c[1], c[2], *options])})"


ROWS = {"Attention": _attention, "RotaryEmbedding": _rotary}
