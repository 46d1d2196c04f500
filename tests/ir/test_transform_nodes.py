"""What is written of a transform is read back, whatever its structure, and every runtime computes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
import torch
from runtimes import RUNTIMES

from qcompile.errors import InputError
from qcompile.ir.transform_nodes import Structure, append_transform, read_transform
from qcompile.transforms import (
    BlockDense,
    BlockDiagonal,
    Compose,
    Dense,
    Diagonal,
    DirectSum,
    Givens,
    Hadamard,
    Householder,
    Identity,
    Kronecker,
    Permutation,
    RandomOrthogonal,
    Signal,
    Transform,
)

SIZE = 24
RNG = torch.Generator().manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


TRANSFORMS: dict[str, Transform] = {
    "nothing": Identity(SIZE),
    "hadamard": Hadamard(SIZE, None),
    "hadamard, signs": Hadamard(SIZE, 3),
    "hadamard, regular": BlockDiagonal(Hadamard(4, 1, "regular"), 6),
    "hadamard, two factors": Hadamard(4 * SIZE, 0),
    "blocks": BlockDiagonal(Hadamard(8, 0), 3),
    "kronecker": Kronecker(Dense(draw(6, 6)), Hadamard(4)),
    "kronecker of blocks": Kronecker(BlockDense(draw(2, 3, 3)), Hadamard(4)),
    "order": Permutation(torch.randperm(SIZE, generator=RNG)),
    "order of blocks": Kronecker(Permutation([2, 0, 1]), Identity(8)),
    "scale": Diagonal(draw(SIZE)),
    "matrix": Dense(draw(SIZE, SIZE)),
    "stack": BlockDense(draw(3, 8, 8)),
    "random": RandomOrthogonal(SIZE, 5),
    "smooth in few": Signal(SIZE, "haar"),
    "householder": Householder(draw(SIZE)),
    "givens": Givens(SIZE, 2, 5, 0.3),
    "sum of equal sizes": DirectSum((Dense(draw(12, 12)), Hadamard(12))),
    "sum of unequal sizes": DirectSum((Dense(draw(4, 4)), Hadamard(20))),
    "chain": Compose((Diagonal(draw(SIZE)), Permutation(torch.randperm(SIZE, generator=RNG)), Hadamard(SIZE, 0))),
}

FEW = "g (float[2,3,{size}] x) => (float[2,3,{size}] y) <float[2,3,{size}] h> {{ h = Relu(x)\n y = Relu(h) }}"
BATCH = "g (float[n,3,{size}] x) => (float[n,3,{size}] y) <float[n,3,{size}] h> {{ h = Relu(x)\n y = Relu(h) }}"
NONE = "g (float[n,{size}] x, bool[n] mine) => (float[k,{size}] y) {{ h = Compress<axis=0>(x, mine)\n y = Relu(h) }}"


def structure_of(transform: Transform) -> Structure:
    return Structure(transform.kind, [(outer, inner, matrix.numpy()) for outer, inner, matrix in transform.factors()])


def written(model: ir.Model, structure: Structure) -> ir.Model:
    """The transform between the two operators of a graph, written to a file and read again."""
    last, value = list(model.graph)[-1], list(model.graph)[-1].inputs[0]
    made = append_transform(model, last, value, structure, np.dtype(np.float32), f"{value.name}_transformed")
    last.replace_input_with(0, made)
    return ir.from_proto(ir.to_proto(model))


def found(model: ir.Model) -> list[Structure]:
    return [structure for node in model.graph if (structure := read_transform(node)) is not None]


def same(found: Structure, wanted: Structure) -> bool:
    pairs = zip(found.steps, wanted.steps, strict=True)
    return found.kind == wanted.kind and all(
        a[:2] == b[:2] and np.array_equal(a[2], b[2] if b[2].dtype.kind == "i" else b[2].astype(np.float32))
        for a, b in pairs
    )


def kinds(base: type[Transform]) -> set[str]:
    own = {base.kind} if "kind" in vars(base) else set()
    return own.union(*map(kinds, base.__subclasses__()))


def test_every_kind_of_transform_is_a_case() -> None:
    assert {transform.kind for transform in TRANSFORMS.values()} == kinds(Transform)


@pytest.mark.parametrize("graph", [FEW, NONE], ids=["some rows", "perhaps no row"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_is_written_is_read(name: str, graph: str, parse: Callable) -> None:
    wanted = structure_of(TRANSFORMS[name])
    (read,) = found(written(parse(graph.format(size=TRANSFORMS[name].size)), wanted))
    assert same(read, wanted)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_runtime_applies_the_transform(name: str, runtime: str, parse: Callable) -> None:
    transform = TRANSFORMS[name]
    proto = ir.to_proto(written(parse(FEW.format(size=transform.size)), structure_of(transform)))
    onnx.checker.check_model(proto, full_check=True)
    x = draw(2, 3, transform.size).abs().float()
    want = transform.apply(x.double()).clamp(min=0).numpy()
    (got,) = RUNTIMES[runtime](proto, {"x": x.numpy()})
    assert np.abs(got - want).max() <= 1e-6 * np.abs(transform.matrix().numpy()).sum(1).max() * float(x.max())


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["blocks", "kronecker", "kronecker of blocks", "stack", "hadamard, two factors"])
def test_every_runtime_applies_it_to_rows_that_the_data_chooses(
    name: str, runtime: str, rows: int, parse: Callable
) -> None:
    transform = TRANSFORMS[name]
    proto = ir.to_proto(written(parse(NONE.format(size=transform.size)), structure_of(transform)))
    onnx.checker.check_model(proto, full_check=True)
    x = draw(3, transform.size).abs().float()
    want = transform.apply(x[:rows].double()).clamp(min=0).numpy()
    (got,) = RUNTIMES[runtime](proto, {"x": x.numpy(), "mine": np.arange(3) < rows})
    assert got.shape == want.shape
    limit = 1e-6 * np.abs(transform.matrix().numpy()).sum(1).max() * float(x.max())
    assert np.abs(got - want).max(initial=0) <= limit


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["blocks", "kronecker", "kronecker of blocks", "stack", "hadamard, two factors"])
def test_every_runtime_applies_it_to_a_batch_of_none(name: str, runtime: str, parse: Callable) -> None:
    transform = TRANSFORMS[name]
    proto = ir.to_proto(written(parse(BATCH.format(size=transform.size)), structure_of(transform)))
    for batch in (0, 1):
        (got,) = RUNTIMES[runtime](proto, {"x": np.ones((batch, 3, transform.size), np.float32)})
        assert got.shape == (batch, 3, transform.size)


def test_nothing_but_attributes_and_constants_says_what_a_transform_is(parse: Callable) -> None:
    wanted = structure_of(TRANSFORMS["kronecker of blocks"])
    proto = ir.to_proto(written(parse(FEW.format(size=SIZE)), wanted))
    (function,) = proto.functions
    node = next(node for node in proto.graph.node if node.domain == function.domain)
    assert {*function.attribute} == {attribute.name for attribute in node.attribute}
    node.op_type = function.name = "Whatever"
    (read,) = found(ir.from_proto(proto))
    assert same(read, wanted)


def test_one_body_is_one_function(parse: Callable) -> None:
    """Numbers and kinds are no part of it, sizes are."""
    model = parse(FEW.format(size=SIZE))
    dense, random = (structure_of(TRANSFORMS[name]) for name in ("matrix", "random"))
    model = written(written(model, dense), random)
    assert len(model.functions) == 1
    assert [structure.kind for structure in found(model)] == ["dense", "random-orthogonal"]
    assert len(written(model, structure_of(TRANSFORMS["blocks"])).functions) == 2


def test_inlining_leaves_operators_of_the_standard(parse: Callable) -> None:
    model = written(parse(FEW.format(size=SIZE)), structure_of(TRANSFORMS["stack"]))
    common.InlinePass()(model)
    assert found(model) == []
    assert {node.domain for node in model.graph} == {""}


def test_other_nodes_and_computed_matrices_are_no_transforms(parse: Callable) -> None:
    model = written(parse(FEW.format(size=SIZE)), structure_of(TRANSFORMS["stack"]))
    assert len(found(model)) == 1
    assert all(read_transform(node) is None for node in model.graph if not node.domain)
    (node,) = (node for node in model.graph if node.domain)
    node.inputs[1].const_value = None
    assert found(model) == []


def test_constants_of_other_sizes_are_refused(parse: Callable) -> None:
    model = written(parse(FEW.format(size=SIZE)), structure_of(TRANSFORMS["stack"]))
    (node,) = (node for node in model.graph if node.domain)
    node.attributes["width"] = ir.AttrInt64s("width", [6])
    with pytest.raises(InputError, match=r"'h_transformed' states steps of the sizes \[6\], .* constants have \[8\]"):
        found(model)
