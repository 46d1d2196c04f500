"""Methods of rounding as words with options, and what each promises, on sites of a shipped model and their inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qcompile.analysis.matrices import weight_matrix
from qcompile.analysis.siblings import siblings_of
from qcompile.errors import InputError
from qcompile.formats import Quantized, Scales, fake_quantize, get_format, quantize
from qcompile.formats.registry import SCALAR_FORMATS
from qcompile.formats.tensor_scale import default_tensor_scale
from qcompile.preparation import prepare
from qcompile.rounding import comq as comq_steps
from qcompile.rounding.comq import comq
from qcompile.rounding.gptq import output_error
from qcompile.rounding.methods import METHODS, Comq, Gptq, Rtn, Search, method_of
from qcompile.rounding.moments import InputMoments, input_moments
from qcompile.run.data import hold_out, load_data
from qcompile.statistics.calibration import collect

ZOO = Path(__file__).parent.parent.parent / "examples" / "zoo"

Site = tuple[torch.Tensor, InputMoments]


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    """Weights of the shipped DiT, a few of each width, with the moments of their inputs."""
    prepared = prepare(str(ZOO / "dit.onnx"))
    groups = [group for group in siblings_of(prepared.analysis.sites) if group.width >= 32][::4]
    data = hold_out(load_data(ZOO / "dit_calibration.npz", prepared.model), prepared.model)
    found = collect(prepared.model, {group.name: group.reading for group in groups}, data)
    return [(weight_matrix(g.sites[0]), input_moments(found[g.name], None)) for g in groups if g.name in found]


def test_words() -> None:
    assert method_of("gptq") == Gptq()
    assert method_of("gptq{shift=1}") == Gptq(shift=1.0)
    assert str(method_of("gptq{damping=0.05,shift=0.5,tune=TRUE}")) == "gptq{damping=0.05,tune=true}"
    assert method_of("search{reach=12 rounds=2}") == Search(reach=12, rounds=2)
    assert [str(method()) for method in METHODS.values()] == list(METHODS)
    assert Rtn() != Search()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gtpq", "unknown method 'gtpq'; there are gptq, comq, search, rtn; the nearest: gptq"),
        ("gptq,rtn", "'gptq,rtn' is no method, such as gptq, "),
        ("", "'' is no method"),
        ("gptq{", "is no method"),
        ("rtn{shift=1}", "method 'rtn' has no option 'shift'; there are none"),
        ("comq{sweeps=1.5}", "option 'sweeps' of method 'comq' takes a whole number, which '1.5' is not"),
        ("gptq{tune=maybe}", "option 'tune' of method 'gptq' takes true or false, which 'maybe' is not"),
    ],
)
def test_other_words_are_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        method_of(text)


@pytest.mark.parametrize("name", ["int4-g32", "nvfp4", "mxfp4", "uint4-g32"])
@pytest.mark.parametrize("method", ["gptq{shift=0}", "comq{shift=0}"])
def test_outputs_err_less_than_rounded_to_nearest(sites: list[Site], method: str, name: str) -> None:
    fmt = get_format(name)
    for weight, moments in sites:
        rounded = method_of(method).learned(weight, fmt, moments).dequantize()
        nearest = output_error(weight, fake_quantize(weight, fmt), moments.moment)
        assert output_error(weight, rounded, moments.moment) <= nearest


def test_the_damping_is_the_one_that_held_out_sequences_bear(sites: list[Site]) -> None:
    fmt = get_format("int4-g32")
    for weight, moments in sites:
        tuned, *fixed = (
            float(moments.errors(weight, method_of(f"gptq{{{options}}}").learned(weight, fmt, moments))[::2].sum())
            for options in ("tune=true", "damping=0.001", "damping=0.01", "damping=0.05")
        )
        assert tuned == pytest.approx(min(fixed))


def test_the_goal_differs_from_the_loss_by_a_constant(sites: list[Site]) -> None:
    """``E‖Wx - Ŵx̃‖² = tr((Ŵ - W₀) G̃ (Ŵ - W₀)ᵀ) + c`` for every ``Ŵ``, with ``W₀ = W E[xx̃ᵀ] E[x̃x̃ᵀ]⁻¹``."""
    generator = torch.Generator().manual_seed(0)
    weight = sites[0][0]
    x = torch.randn(512, weight.shape[1], generator=generator)
    seen = x + 0.3 * torch.randn(x.shape, generator=generator)
    moment, cross = (part.double().T @ seen.double() / len(x) for part in (seen, x))
    own = InputMoments(moment, cross, x[:4], seen[:4], [4], 1e9)
    goal = own.goal(weight, 1.0, 1e-7).double()
    differences = []
    for method in ("rtn", "search", "gptq{shift=1}", "comq"):
        fmt = get_format("int4-g32")
        way = method_of(method)
        rounded = (way.learned(weight, fmt, own) if way.learns else way.plain(weight, fmt)).dequantize().double()
        loss = float((x.double() @ weight.double().T - seen.double() @ rounded.T).square().sum() / len(x))
        off = rounded - goal
        differences.append(loss - float(((off @ moment) * off).sum()))
    assert differences == pytest.approx([differences[0]] * 4, rel=1e-4)


@pytest.mark.parametrize("name", ["int4-g32", "uint4-g32", "nvfp4", "mxfp4", "nf4-g64", "int4-channel"])
def test_no_visit_raises_the_error(sites: list[Site], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sweep over codes, and each over scales, for every row by itself."""
    weight, moments = max(sites, key=lambda site: site[0].shape[1])
    g, errors = moments.damped(), []

    def watched(visit):
        def run(weight: torch.Tensor, rounded: torch.Tensor, *rest: object) -> object:
            result = visit(weight, rounded, *rest)
            after = result[1] if isinstance(result, tuple) else result
            errors.append([(((q - weight) @ g) * (q - weight)).sum(1) for q in (rounded, after)])
            return result

        return run

    for step in ("_visit_codes", "_visit_scales"):
        monkeypatch.setattr(comq_steps, step, watched(getattr(comq_steps, step)))
    made = comq(weight, g, get_format(name), sweeps=2)
    assert len(errors) == 4
    for before, after in errors:
        assert (after <= before * (1 + 1e-4) + 1e-6 * before.max()).all()
    assert errors[-1][1].sum() < 0.9 * errors[0][0].sum()
    off = made.dequantize() - weight
    assert float(((off @ g) * off).sum()) == pytest.approx(float(errors[-1][1].sum()), rel=1e-3)


def test_codes_are_the_best_given_the_others() -> None:
    """After enough sweeps no single code of any row can be changed for the better."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    weight, g, fmt = torch.randn(3, 24, generator=generator), x.T @ x / 256, get_format("int3-g256-fp32")
    made = comq(weight, g, fmt, sweeps=30)
    rounded, step = made.dequantize(), made.scales
    for row in range(3):

        def error(q: torch.Tensor, row: int = row) -> float:
            off = (q - weight[row]).double()
            return float(off @ g.double() @ off)

        least = error(rounded[row])
        for column in range(24):
            for level in range(-3, 4):
                other = rounded[row].clone()
                other[column] = level * step[row, 0]
                assert error(other) >= least * (1 - 1e-5)


@pytest.mark.parametrize("options", ["", "reach=8", "reach=12,rounds=4", "macro=8"])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp4-mrgptq", "int4-g32"])
def test_a_wider_search_errs_less(sites: list[Site], name: str, options: str) -> None:
    fmt = get_format(name)
    for weight, moments in sites[:4]:
        found = [
            method_of(f"search{{{words}}}").learned(weight, fmt, moments).dequantize() for words in (options, "macro=1")
        ]
        ours, usual, rule = (
            ((q - weight).square() * moments.importance).sum() for q in (*found, fake_quantize(weight, fmt))
        )
        assert ours <= rule
        assert ours <= usual * (1 + 1e-6)


def test_a_macro_scale_of_one_octave_step_is_the_format_as_it_is(sites: list[Site]) -> None:
    weight, moments = sites[0]
    fmt = get_format("mxfp4-mrgptq")
    one, several = (Search(macro=macro).learned(weight, fmt, moments) for macro in (1, 8))
    assert torch.equal(one.tensor_scale, default_tensor_scale(weight, fmt))
    assert torch.equal(one.dequantize(), Search().learned(weight, fmt, moments).dequantize())
    assert float(several.tensor_scale / one.tensor_scale) in [pytest.approx(2 ** (k / 8)) for k in range(8)]


def test_a_shared_second_scale_is_kept(sites: list[Site]) -> None:
    weight, moments = sites[0]
    given = torch.tensor(0.01)
    for method in (Gptq(), Comq(), Search(macro=8)):
        made = method.learned(weight, get_format("nvfp4"), moments, given)
        assert torch.equal(made.tensor_scale, given)
        assert torch.equal(quantize(made.dequantize(), made.format, scales=made.all_scales).codes, made.codes)
    assert replace(Gptq(), shift=1.0) != Gptq()


def kinds_of_formats() -> list[str]:
    """One block format of each kind: element, storage and rule of scales, zero point, levels of scales, rows."""
    found = {}
    for name, fmt in SCALAR_FORMATS.items():
        kind = (fmt.element.name, fmt.scale, fmt.rule, fmt.zero_point, fmt.tensor_scale, fmt.targets, fmt.rows)
        found.setdefault(kind, name)
    return list(found.values())


@pytest.mark.parametrize("method", ["gptq", "comq{sweeps=1}", "search", "rtn"])
def test_every_kind_of_format_is_rounded_by_every_method(method: str) -> None:
    """To values of the format, and by those that learn with no more than the error of plain rounding and a little."""
    generator, worse, way = torch.Generator().manual_seed(0), [], method_of(method)
    x = torch.randn(512, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    moments = InputMoments(x.double().T @ x.double() / 512, None, x[:64], x[:64], [32, 32], 512.0)
    weight, names = torch.randn(16, 64, generator=generator), kinds_of_formats()
    seen = moments.moment if way.walks else moments.moment.diagonal().diag()  # all that a search knows of it
    assert len(names) > 90
    for name in names:
        fmt = get_format(name)
        plain = way.plain(weight, fmt)
        made = way.learned(weight, fmt, moments) if way.learns else plain
        values = made.dequantize()
        assert values.isfinite().all(), name
        assert torch.equal(quantize(values, fmt, scales=made.all_scales).dequantize(), values), name
        if output_error(weight, values, seen) > output_error(weight, plain.dequantize(), seen):
            worse.append(name)
    assert len(worse) <= 0.02 * len(names), worse


def test_the_sequences_that_chose_a_damping_do_not_judge_it() -> None:
    """Errors of the judging sequences do not change what is chosen, and they alone say whether it is taken."""
    held_out = list(range(8))
    assert held_out[Gptq().judges] == held_out
    assert held_out[Gptq(tune=True).judges] == [1, 3, 5, 7]

    class Seen:
        def learn(self, weight, fmt, tensor_scale, shift, damping, lean):
            return SimpleNamespace(quantized=damping)

        def errors(self, weight, damping):
            return np.array([damping, 1 / damping] * 4)  # the least is best where it is chosen

    assert Gptq(damping=1.0, tune=True).learned(torch.zeros(1, 1), get_format("int4-g32"), Seen()) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["int3-g64", "uint2-g64", "int4-channel"])
def test_lean_scales_spare_what_costs_most(name: str, sites: list[Site]) -> None:
    """Scales have the least error weighed by the inverse diagonal of the factor; a power of 0 weighs all alike."""
    from qcompile.formats.search import total_error

    fmt = get_format(name)
    for weight, moments in sites:
        factor = moments.factor()
        importance = factor.importance(4.0)
        pivots = torch.empty(len(factor.order), dtype=torch.float64)
        pivots[factor.order] = factor.upper.diagonal().double()
        torch.testing.assert_close(importance, (pivots**-4 / (pivots**-4).mean()).float())
        assert torch.equal(factor.importance(0.0), torch.ones(len(pivots)))
        lean, usual = (Gptq(shift=0.0, lean=power).learned(weight, fmt, moments) for power in (4.0, 0.0))
        lost = [total_error(weight, fmt, -1, _scales_of(q), importance) for q in (lean, usual)]
        assert lost[0] <= lost[1] * (1 + 1e-6)
        plain = quantize(weight, fmt).dequantize()
        assert output_error(weight, lean.dequantize(), moments.moment) < output_error(weight, plain, moments.moment)


def _scales_of(q: Quantized) -> Scales:
    return Scales(q.scales, q.zero_points, q.tensor_scale)
