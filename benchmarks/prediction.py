"""Predicted against measured divergences: of one group of sites at a time, and of random mixed assignments.

    python benchmarks/prediction.py MODEL.onnx --calibration C.npz [--evaluation E.npz] [--device cuda]

Coefficients and errors come from the calibration data, divergences from the engine on other data, by fake quantization
with each weight rounded to nearest. An assignment draws which share of its groups of sites has weights of 8 bits, and
inputs of 8 bits, and which share is turned by Hadamard matrices; every group then draws a scheme: so assignments are of
3.5 to 8 bits, from W3A16 to W8A8. Others follow, in which some of the inputs have 4 bits, too. It prints the rank
correlation, how far the logarithms of predicted and measured
scatter, the line through them, and up to which divergence predictions are proportional to what is measured. With
``--sites`` it prints what each group consists of: what errors of weight and input cost (α, of the site where it is
most), the relative error t² that the scheme makes there, and both divergences.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from time import perf_counter

import numpy as np
from scipy.stats import spearmanr

from qcompile.analysis.siblings import Siblings, siblings_of
from qcompile.choice.correction import Correction
from qcompile.choice.probe import probe
from qcompile.choice.scoring import probes_of, site_error, site_loss
from qcompile.choice.trial import Trial
from qcompile.preparation import prepare
from qcompile.run.data import hold_out, load_data
from qcompile.statistics.calibration import collect
from qcompile.statistics.curvature import measure_curvatures, spread_evenly
from qcompile.statistics.sensitivity import logit_outputs
from qcompile.targets.eligible import quantizable
from qcompile.targets.scheme import Scheme
from qcompile.transforms import Hadamard, Transform, has_hadamard

#: Formats of weights, of few bits and of eight, and of inputs that go with each.
FEW, EIGHT = ("int3-g32", "int4-g32", "mxfp4", "nvfp4"), ("int8-g32", "int8-channel")
INPUTS = "int8-channel"

#: Schemes whose inputs have four bits.
FOUR = ("int4-g32/int4-g32", "mxfp4/mxfp4", "nvfp4/nvfp4")

#: Assignments of one scheme everywhere, by which predictions are corrected.
UNIFORM = ("int8-channel/int8-channel", "int4-g32", "int3-g32/int8-channel")

#: How far from one factor predictions may be and count as proportional.
REGIME = 1.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", help="by default the calibration data")
    parser.add_argument("--assignments", type=int, default=60)
    parser.add_argument("--batches", type=int, default=16, help="of the evaluation data, evenly spread")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sites", action="store_true", help="print each group of sites")
    args = parser.parse_args()
    bench = Bench(args.model, args.calibration, args.evaluation or args.calibration, args.batches, args.device)
    print(f"{args.model}: {len(bench.groups)} groups of sites, {len(bench.tables)} tables, {bench.entries} entries")
    print(f"sensitivities in {bench.seconds:.1f} s on {args.device}")
    print(f"{'':28}{'rank':>7}{'spread':>8}{'R² of log':>11}{'slope':>7}{'factor':>8}")
    for scheme in ("int4-g32", "mxfp4/mxfp4"):
        pairs = [bench.alone(group, scheme) for group in bench.groups]
        if args.sites:
            bench.tell(scheme, pairs)
        show(f"one group in {scheme}", pairs)
    uniform = [bench.uniform(name) for name in UNIFORM]
    correction = Correction.fitted(uniform)
    assert correction is not None
    print(f"fitted to {', '.join(UNIFORM)} everywhere: {correction.factor:.3g} · predicted ^ {correction.slope:.3g}")
    for name, four in (("mixed assignments", 0.0), ("with inputs of 4 bits", 0.5)):
        rng, start = np.random.default_rng(0), perf_counter()
        pairs = [bench.mixed(rng, four) for _ in range(args.assignments)]
        show(f"{args.assignments} {name}", pairs)
        show("corrected", [(correction.of(predicted), measured) for predicted, measured in pairs])
        most = max(measured for _, measured in pairs)
        print(f"within a quarter of the fitted factor up to a divergence of {linear(pairs):.3g}, of {most:.3g} at most")
        print(f"{(perf_counter() - start) / args.assignments:.2f} s an assignment", flush=True)


def show(name: str, pairs: list[tuple[float, float]]) -> None:
    predicted, measured = np.log(np.array(pairs)).T
    slope, _ = np.polyfit(predicted, measured, 1)
    r2 = np.corrcoef(predicted, measured)[0, 1] ** 2
    rank, factor = spearmanr(predicted, measured)[0], np.exp(np.median(measured - predicted))
    spread = np.std(measured - predicted)
    print(f"{name:28}{rank:7.3f}{spread:8.3f}{r2:11.4f}{slope:7.2f}{factor:8.2f}", flush=True)


def linear(pairs: list[tuple[float, float]]) -> float:
    """The divergence up to which all that is measured is within ``REGIME`` of one factor times what is predicted."""
    predicted, measured = np.array(sorted(pairs, key=lambda pair: pair[1])).T
    factors = measured / predicted
    outside = np.abs(np.log(factors / np.median(factors))) > np.log(REGIME)
    first = int(outside.argmax()) if outside.any() else len(measured)
    return float(measured[first - 1]) if first else 0.0


class Bench:
    """A model with all that predictions need, and the engine to measure on."""

    def __init__(self, path: str, calibration: str, evaluation: str, batches: int, device: str) -> None:
        prepared = prepare(path)
        model = prepared.model
        data = hold_out(load_data(calibration, model), model)
        sites = [site for site in quantizable(prepared.analysis)[0] if not site.nested]
        self.groups, self.tables = siblings_of(sites), [site for site in sites if site.input is None]
        statistics = collect(model, {group.name: group.reading for group in self.groups}, data)
        start = perf_counter()
        costs = measure_curvatures(model, sites, statistics, data, lambda *said: print("!", *said), device=device)
        self.seconds = perf_counter() - start
        self.probes = {group: probes_of(group, statistics.get(group.name), costs) for group in self.groups}
        self.table_probes = {site.name: probe(site, None, costs[site.name]) for site in self.tables}
        seen = load_data(evaluation, model)
        seen = replace(seen, batches=tuple(spread_evenly(seen.batches, batches)))
        self.entries = sum(max(len(a) for a in batch.values() if a.ndim) for batch in seen.batches)
        self.trial = Trial(model, self.groups, self.tables, seen, logit_outputs(model, sites), device)

    def alone(self, group: Siblings, name: str) -> tuple[float, float]:
        """Predicted and measured divergence with one group quantized."""
        scheme = Scheme.parse(name)
        schemes = {site.name: scheme for site in group.sites}
        return self.probes[group].error(scheme), float(self.trial.divergences(schemes, {}).mean())

    def uniform(self, name: str) -> tuple[float, float]:
        """Predicted and measured divergence with one scheme everywhere."""
        scheme = Scheme.parse(name)
        schemes = {site.name: scheme for group in self.groups for site in group.sites}
        schemes |= {site.name: Scheme(scheme.weight) for site in self.tables}
        predicted = sum(probes.error(scheme) for probes in self.probes.values())
        predicted += sum(site_loss(item, Scheme(scheme.weight)) for item in self.table_probes.values())
        return predicted, float(self.trial.divergences(schemes, {}).mean())

    def tell(self, name: str, pairs: list[tuple[float, float]]) -> None:
        """Print what the predictions of each group consist of."""
        scheme = Scheme.parse(name)
        print(f"{name:28}{'α weight':>10}{'α input':>10}{'t²':>10}{'predicted':>11}{'measured':>10}")
        for group, (predicted, measured) in zip(self.groups, pairs, strict=True):
            item = max(self.probes[group].items, key=lambda item: item.curvature.weight)
            costs, error = item.curvature, site_error(item, scheme)
            print(f"{group.name[-27:]:28}{costs.weight:10.2e}{costs.input:10.2e}", end="")
            print(f"{error:10.2e}{predicted:11.2e}{measured:10.2e}")

    def mixed(self, rng: np.random.Generator, four: float) -> tuple[float, float]:
        """Predicted and measured divergence of a random assignment.

        Args:
            four: the most that may be the share of groups whose weights and inputs have four bits.
        """
        eight, inputs, turned, four = rng.random(), rng.random(), rng.random(), four * rng.random()

        def drawn() -> Scheme:
            if rng.random() < four:
                return Scheme.parse(rng.choice(FOUR))
            weight = rng.choice(EIGHT if rng.random() < eight else FEW)
            return Scheme.parse(f"{weight}/{INPUTS}" if rng.random() < inputs else str(weight))

        schemes: dict[str, Scheme] = {}
        transforms: dict[str, Transform | None] = {}
        predicted = 0.0
        for group in self.groups:
            scheme, other = drawn(), has_hadamard(group.width) and rng.random() < turned
            transforms[group.name] = transform(group) if other else None
            schemes |= {site.name: scheme for site in group.sites}
            predicted += self.probes[group].error(scheme, transforms[group.name])
        for site in self.tables:
            schemes[site.name] = Scheme(drawn().weight)
            predicted += site_loss(self.table_probes[site.name], schemes[site.name])
        return predicted, float(self.trial.divergences(schemes, transforms).mean())


_KNOWN: dict[str, Transform] = {}


def transform(group: Siblings) -> Transform:
    return _KNOWN.setdefault(group.name, Hadamard(group.width, 0))


if __name__ == "__main__":
    main()
