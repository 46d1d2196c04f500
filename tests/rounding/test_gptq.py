"""GPTQ: against round-to-nearest, against the definition, and at the edges of its second moment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.errors import InputError
from qcompile.formats import compute_scales, fake_quantize, get_format, quantize, round_to
from qcompile.rounding.gptq import factorize, gptq, output_error

FORMATS = [
    "nvfp4", "nvfp4-4over6", "nvfp4-16x16", "mxfp4", "mxfp4-rceil", "mxfp4-mrgptq", "int4-g32", "int4-g128",
    "uint4-g32", "int4-channel", "int8-g128", "fp8-e4m3-g128", "q4_0", "nf4-g64", "mxint8",
]  # fmt: skip


def problem(out: int, size: int, seed: int, samples: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the second moment of correlated inputs with one loud channel."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, size, generator=generator)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    x = torch.randn(samples or 4 * size, size, generator=generator, dtype=torch.float64) @ (mix + torch.eye(size))
    x[:, size // 3] *= 8
    return weight, x.T @ x / len(x)


@pytest.mark.parametrize("scales", ["absmax", "search"])
@pytest.mark.parametrize("name", FORMATS)
def test_clearly_better_than_rounding_on_correlated_inputs(name: str, scales: str) -> None:
    fmt, (weight, moment) = get_format(name), problem(64, 160, 3)
    nearest = output_error(weight, fake_quantize(weight, fmt), moment)
    result = gptq(weight, moment, fmt, scales=scales)
    assert result.error < 0.8 * nearest
    assert result.damping == 0.01
    assert result.error == pytest.approx(output_error(weight, result.quantized.dequantize(), moment), rel=1e-9)


def test_never_worse_than_rounding_over_many_seeds() -> None:
    ratios = []
    for seed in range(30):
        weight, moment = problem(8, 48, seed)
        fmt = get_format(FORMATS[seed % len(FORMATS)])
        ratios.append(gptq(weight, moment, fmt).error / output_error(weight, fake_quantize(weight, fmt), moment))
    assert sum(ratio < 1 for ratio in ratios) >= 29
    assert max(ratios) < 1.05
    assert sorted(ratios)[15] < 0.75


@pytest.mark.parametrize("name", FORMATS)
def test_identity_moment_is_round_to_nearest(name: str) -> None:
    fmt, (weight, _) = get_format(name), problem(16, 96, 5)
    result = gptq(weight, 3.0 * torch.eye(96), fmt)
    assert torch.equal(result.quantized.dequantize(), fake_quantize(weight, fmt))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [96, 70])
def test_the_result_is_representable(name: str, size: int) -> None:
    """Quantizing it again with the same scales changes nothing; 70 is not a multiple of any group."""
    fmt, (weight, moment) = get_format(name), problem(16, size, 6)
    quantized = gptq(weight, moment, fmt).quantized
    again = quantize(quantized.dequantize(), fmt, scales=quantized.all_scales)
    assert quantized.shape == (16, size)
    assert torch.equal(again.codes, quantized.codes)
    assert torch.equal(quantized.scales, compute_scales(weight, fmt).scale)


def by_definition(weight: torch.Tensor, moment: torch.Tensor, name: str, damping: float) -> torch.Tensor:
    """Optimal brain quantization in a fixed order: after each column, the rest by least squares in float64."""
    fmt = get_format(name)
    scale = compute_scales(weight, fmt).effective
    h = moment + damping * moment.diagonal().mean() * torch.eye(len(moment))
    order = torch.argsort(moment.diagonal(), descending=True, stable=True).tolist()
    current, result = weight.double().clone(), torch.empty_like(weight)
    for k, j in enumerate(order):
        result[:, j] = round_to(current[:, j].float(), scale[:, j // (fmt.group or len(order))], None, fmt)
        rest = order[k + 1 :]
        if rest:
            move = torch.linalg.solve(h[rest][:, rest], h[rest, j])
            current[:, rest] += (current[:, j] - result[:, j].double())[:, None] * move
    return result


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int4-g32"])
@pytest.mark.parametrize("block", [1, 7, 128])
def test_matches_column_by_column_least_squares(name: str, block: int) -> None:
    weight, moment = problem(6, 64, 7)
    expected = by_definition(weight, moment, name, 0.01)
    result = gptq(weight, moment, get_format(name), block=block).quantized.dequantize()
    differing = (result != expected).float().mean()
    assert differing < 0.01  # a float32 rounding at a tie may flip single codes


def test_rank_deficient_moment_is_damped_and_says_so() -> None:
    weight, moment = problem(16, 64, 8, samples=10)
    moment[5], moment[:, 5] = 0, 0  # and one channel was never active
    fmt = get_format("int4-g32")
    result = gptq(weight, moment, fmt)
    assert result.damping == 0.01
    undamped = gptq(weight, moment, fmt, damping=0.0)
    assert undamped.damping > 0
    for r in (result, undamped):
        assert r.error < output_error(weight, fake_quantize(weight, fmt), moment)
        assert torch.isfinite(r.quantized.dequantize()).all()


def test_indefinite_moment_raises_the_damping_then_raises() -> None:
    weight, moment = problem(4, 32, 9)
    slightly = (
        moment
        - 1.05 * torch.linalg.eigvalsh(moment)[0] * torch.eye(32)
        - 0.05 * moment.diagonal().mean() * torch.eye(32)
    )
    assert gptq(weight, slightly, get_format("mxfp4")).damping == pytest.approx(0.1)
    hopeless = torch.eye(32, dtype=torch.float64)
    hopeless[0, 1] = hopeless[1, 0] = 1e3
    with pytest.raises(InputError, match="not positive semidefinite"):
        gptq(weight, hopeless, get_format("mxfp4"))


def test_a_factor_is_shared_by_siblings() -> None:
    weight, moment = problem(8, 64, 10)
    factor, fmt = factorize(moment), get_format("nvfp4")
    shared = float(compute_scales(torch.cat([weight, 2 * weight]), fmt).tensor_scale)
    alone = gptq(weight, moment, fmt, tensor_scale=shared)
    with_factor = gptq(weight, factor, fmt, tensor_scale=shared)
    assert torch.equal(alone.quantized.codes, with_factor.quantized.codes)
    assert float(with_factor.quantized.tensor_scale) == shared
    assert with_factor.error != with_factor.error  # not known from the factor


@pytest.mark.parametrize(
    ("weight", "moment", "options", "message"),
    [
        (torch.ones(2, 4), torch.eye(5), {}, "does not read an input of 5"),
        (torch.ones(2, 4), torch.zeros(4, 4), {}, "no activation was seen"),
        (torch.full((2, 4), torch.nan), torch.eye(4), {}, "weight holds a NaN"),
        (torch.ones(2, 4), torch.eye(4) / 0, {}, "second moment holds a NaN"),
        (torch.ones(2, 4), torch.ones(4, 3), {}, "must be square"),
        (torch.ones(2, 4), torch.eye(4), {"damping": -1}, "damping"),
        (torch.ones(2, 4), torch.eye(4), {"block": 0}, "block"),
        (torch.ones(2, 4), torch.eye(4), {"scales": "magic"}, "scales"),
    ],
)
def test_mistakes_are_named(weight: torch.Tensor, moment: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gptq(weight, moment, get_format("int4-g32"), **options)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 1000), st.sampled_from(FORMATS), st.booleans())
def test_any_shape_gives_a_finite_representable_weight(out: int, size: int, seed: int, name: str, order: bool) -> None:
    weight, moment = problem(out, size, seed)
    result = gptq(weight, moment, get_format(name), activation_order=order, block=16)
    values = result.quantized.dequantize()
    assert values.shape == weight.shape
    assert torch.isfinite(values).all()
    again = quantize(values, result.quantized.format, scales=result.quantized.all_scales)
    assert torch.equal(again.dequantize(), values)
