"""Random graphs from the whole table of cases: chains, residual joins, taps, shared constants, symbolic dimensions.

``grow(seed)`` is deterministic; its ``text`` shows the graph. Each graph is grown around one case, so that as many
seeds as there are cases use every operator. A step that gives no finite or only tiny numbers is not taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import changes
import numpy as np
import onnx_ir as ir
from cases import SIZES, Case, constants, resize
from onnx.checker import ValidationError
from rule_tables import CASES

from qcompile.errors import InputError
from qcompile.ir.widen import to_double
from qcompile.run.data import example_inputs

__all__ = ["MIXED", "SYMBOLS", "Graph", "grow"]

#: Symbolic dimensions, with what they are when a graph runs.
SYMBOLS = {"N": 2, "L": 3}

Dim = int | str | None

MIXED = [case for case in CASES if case.mixed]

#: The letters of sizes that a case uses elsewhere than in the shape that it reads.
FIXED = {case.name: set(re.findall(r"\b[A-E]\b", f"{case.body} {case.extra} {case.need}")) for case in CASES}


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its name, content and dimensions."""

    name: str
    array: np.ndarray
    dims: tuple[Dim, ...]


@dataclass
class Graph:
    """A graph under construction."""

    seed: int
    opset: int
    lines: list[str] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)
    contents: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    pool: list[Value] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    cases: list[str] = field(default_factory=list)
    steps: int = 0

    @property
    def text(self) -> str:
        """The graph in ONNX's textual syntax."""
        results = ", ".join(f"float[{', '.join(f'{o}_{i}' for i in range(n))}] {o}" for o, n in self.outputs.items())
        constants = ", ".join(self.declared.values())
        return (
            f"g ({', '.join(self.inputs.values())}) => ({results})\n<{constants}> {{\n" + "\n".join(self.lines) + "\n}"
        )

    def model(self) -> ir.Model:
        """The graph as a model."""
        return changes.parse(self.text, self.opset, self.seed, **self.contents)


def grow(seed: int) -> Graph:
    """A random graph that some evaluator runs as a whole; equal seeds give equal graphs."""
    for attempt in range(8):
        graph = _grown(seed, np.random.default_rng([seed, attempt]))
        if _runs(graph):
            return graph
    raise AssertionError(f"no graph of seed {seed} runs")


def _runs(graph: Graph) -> bool:
    """Whether all operators exist in one type, and each in one meaning.

    One may be missing in float64, its neighbour in float32; one operator cannot be two functions in a graph.
    """
    try:
        model = graph.model()
        changes.evaluate_exactly(to_double(model), example_inputs(model, seed=graph.seed, sizes=SYMBOLS))
    except (InputError, NotImplementedError, RuntimeError, ValueError, TypeError, IndexError, ValidationError):
        return False
    return True


def _grown(seed: int, rng: np.random.Generator) -> Graph:
    focus = MIXED[seed % len(MIXED)]
    opset = int(min(max(focus.opset, rng.choice([21, 23, 24])), focus.until))
    graph = Graph(seed, opset)
    for _ in range(8):
        if _around(graph, focus, rng):
            break
    for _ in range(int(rng.integers(2, 7))):
        _step(graph, rng)
    _finish(graph, rng)
    return graph


# -- sources -----------------------------------------------------------------------------------------------------


def _declare(graph: Graph, kind: str, dims: Sequence[int], content: np.ndarray | None, stem: str) -> str:
    name = f"{stem}{len(graph.declared)}"
    graph.declared[name] = f"{kind}[{', '.join(map(str, dims))}] {name}"
    if content is not None:
        graph.contents[name] = content
    return name


def _weight(graph: Graph, dims: Sequence[int], rng: np.random.Generator) -> str:
    """A constant of that shape, at times one that is there already."""
    alike = [n for n, text in graph.declared.items() if text.startswith(f"float[{', '.join(map(str, dims))}] ")]
    if alike and rng.random() < 0.3:
        return str(rng.choice(alike))
    content = rng.standard_normal(tuple(dims)) / np.sqrt(max(dims[0] if len(dims) > 1 else 1, 1))
    return _declare(graph, "float", dims, content.astype(np.float32), "w")


def _source(graph: Graph, dims: tuple[Dim, ...], rng: np.random.Generator) -> Value | None:
    """A new value of those dimensions that sites write: every static axis is free, if none is symbolic."""
    if not any(isinstance(dim, str) for dim in dims):
        graph.inputs["x"] = "float[1,5] x"
        count = int(np.prod(dims))
        weight = _weight(graph, (5, count), rng)
        shape = _declare(graph, "int64", [len(dims)], np.array(dims, np.int64), "s")
        return _emit(graph, f"q = MatMul(x, {weight})\n g = Reshape(q, {shape})", [_input(graph, "x")])
    if len(dims) == 3 and dims[:2] == ("N", "L") and rng.random() < 0.3:
        graph.inputs["ids"] = "int64[N,L] ids"
        return _emit(graph, f"g = Gather({_weight(graph, (7, dims[2]), rng)}, ids)", [_input(graph, "ids")])
    name = f"t{len(graph.inputs)}"
    graph.inputs[name] = f"float[{', '.join(map(str, (*dims[:-1], 6)))}] {name}"
    if isinstance(dims[-1], str):
        return None
    return _emit(graph, f"g = MatMul({name}, {_weight(graph, (6, dims[-1]), rng)})", [_input(graph, name)])


def _input(graph: Graph, name: str) -> Value:
    rng = np.random.default_rng([graph.seed, len(graph.inputs)])
    dims = [dim.strip() for dim in graph.inputs[name].split("[")[1].split("]")[0].split(",")]
    sizes = tuple(int(dim) if dim.isdigit() else SYMBOLS[dim] for dim in dims)
    array = rng.integers(0, 7, sizes) if name == "ids" else rng.standard_normal(sizes)
    return Value(name, array, tuple(int(dim) if dim.isdigit() else dim for dim in dims))


# -- steps -------------------------------------------------------------------------------------------------------


def _around(graph: Graph, case: Case, rng: np.random.Generator) -> bool:
    """Make a source for a case and apply it."""
    sizes = _sizes(case, rng)
    tokens = case.shape.split()
    dims: list[Dim] = [int(resize(token, sizes)) for token in tokens]
    for i, symbol in enumerate(("N", "L")):
        loose = len(tokens) > i + 1 and case.free and tokens.count(tokens[i]) == 1 and len(tokens[i]) == 1
        if loose and tokens[i] not in FIXED[case.name] and tokens[i].isalpha() and rng.random() < 0.35:
            dims[i] = symbol
    source = _source(graph, tuple(dims), rng)
    if source is None:
        return False
    if rng.random() < 0.3:
        source = _join(graph, source, rng) or source
    return _apply(graph, case, source, sizes, rng)


def _sizes(case: Case, rng: np.random.Generator) -> dict[str, int]:
    for _ in range(50):
        sizes = {letter: int(rng.choice([2, 3, 4, 6, 8])) for letter in SIZES}
        if case.free and eval(case.need, {}, dict(sizes)):
            return sizes
    return dict(SIZES)


def _step(graph: Graph, rng: np.random.Generator) -> None:
    """One random step on a value that is there, the newest more often."""
    if not graph.pool:
        return
    place = max(int(rng.integers(len(graph.pool))), int(rng.integers(len(graph.pool))))
    value = graph.pool[place]
    kind = rng.random()
    if kind < 0.45:
        fitting = [(case, sizes) for case in MIXED if (sizes := _fit(graph, case, value, rng)) is not None]
        if fitting:
            case, sizes = fitting[int(rng.integers(len(fitting)))]
            _apply(graph, case, value, sizes, rng)
    elif kind < 0.6:
        _join(graph, value, rng)
    elif kind < 0.75:
        _site(graph, value, rng)
    elif kind < 0.85 and len(value.dims) > 1:
        order = [int(i) for i in rng.permutation(len(value.dims))]
        _emit(graph, f"g = Transpose<perm={order}>({value.name})", [value])
    else:
        _reshape(graph, value, rng)


def _fit(graph: Graph, case: Case, value: Value, rng: np.random.Generator) -> dict[str, int] | None:
    """Sizes at which a case reads a value, or ``None``."""
    tokens = case.shape.split()
    if not case.free or not case.opset <= graph.opset <= case.until or len(tokens) != len(value.dims):
        return None
    bound: dict[str, Dim] = {}
    for token, dim in zip(tokens, value.dims, strict=True):
        symbolic = not isinstance(dim, int)
        if token in SIZES:
            if bound.setdefault(token, dim) != dim or (symbolic and token in FIXED[case.name]):
                return None
        elif symbolic or not token.isdigit() or int(token) != dim:
            return None
    sizes = {letter: int(rng.integers(2, 5)) for letter in SIZES}
    sizes |= {letter: dim for letter, dim in bound.items() if isinstance(dim, int)}
    return sizes if eval(case.need, {}, dict(sizes)) else None


def _apply(graph: Graph, case: Case, value: Value, sizes: dict[str, int], rng: np.random.Generator) -> bool:
    """Append a case's statements, with names of their own and at times with constants that are there already."""
    body, extra = resize(case.body, sizes), resize(case.extra, sizes)
    declared, contents = constants(extra, rng)
    names = {}
    for text in declared:
        kind, _, name = text.rpartition(" ")
        dims = [int(d) for d in kind[kind.index("[") + 1 : -1].split(",") if d.strip()] if "[" in kind else []
        if f"{name}:" not in extra and f"{name} =" not in extra and kind.startswith("float") and dims:
            names[name] = _weight(graph, dims, rng)
        else:
            names[name] = _declare(graph, kind.split("[")[0], dims, contents[name], "c")
            if not dims:
                graph.declared[names[name]] = f"{kind} {names[name]}"
    made = set(re.findall(r"\w+", " ".join(re.findall(r"^([\w, ]+?)=", body, re.M))))
    renamed = {**names, **{name: f"{name}_{graph.steps}" for name in made}, "h": value.name}
    pattern = r'"[^"]*"|(?<![\w<])(' + "|".join(sorted(renamed, key=len, reverse=True)) + r")\b(?!\s*=\s*[-\[\"\d])"
    text = re.sub(pattern, lambda m: renamed[m[1]] if m[1] else m[0], body)
    wanted = [renamed[name] for name in ("g", "g1", "g2") if name in made]
    done = _emit(graph, text, [value], wanted)
    if done is not None:
        graph.cases.append(case.name)
    return done is not None


def _join(graph: Graph, value: Value, rng: np.random.Generator) -> Value | None:
    """Join two values of the same shape."""
    others = [other for other in graph.pool if other.dims == value.dims and None not in other.dims]
    if not others or rng.random() < 0.3:
        made = None if None in value.dims else _source(graph, value.dims, rng)
        others = [made] if made is not None else others
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    how = rng.choice(["Add", "Add", "Sub", "Mul", "Concat<axis=-1>", "Max", "Concat<axis=0>"])
    return _emit(graph, f"g = {how}({value.name}, {other.name})", [value, other])


def _site(graph: Graph, value: Value, rng: np.random.Generator) -> Value | None:
    if not value.dims or not isinstance(value.dims[-1], int):
        return None
    size = int(rng.choice([value.dims[-1], 4, 6]))
    return _emit(graph, f"g = MatMul({value.name}, {_weight(graph, (value.dims[-1], size), rng)})", [value])


def _reshape(graph: Graph, value: Value, rng: np.random.Generator) -> Value | None:
    """Merge two neighbouring axes, or split one; at times with a size left open."""
    dims = [dim if isinstance(dim, int) else 0 for dim in value.dims]
    static = [i for i, dim in enumerate(dims) if dim > 1]
    if not static:
        return None
    place = int(rng.choice(static))
    if place and dims[place - 1] and rng.random() < 0.5:
        target = [*dims[: place - 1], dims[place - 1] * dims[place], *dims[place + 1 :]]
        place -= 1
    else:
        factors = [n for n in range(2, dims[place]) if dims[place] % n == 0]
        if not factors:
            return None
        outer = int(rng.choice(factors))
        target = [*dims[:place], outer, dims[place] // outer, *dims[place + 1 :]]
    if 0 in target[place + 1 :]:
        return None
    if rng.random() < 0.4:
        target[int(rng.integers(len(target)))] = -1
    if target.count(0) and any(i >= len(value.dims) for i, dim in enumerate(target) if dim == 0):
        return None
    shape = _declare(graph, "int64", [len(target)], np.array(target, np.int64), "s")
    return _emit(graph, f"g = Reshape({value.name}, {shape})", [value])


# -- evaluation of a step ----------------------------------------------------------------------------------------


def _emit(graph: Graph, text: str, operands: Sequence[Value], wanted: Sequence[str] = ()) -> Value | None:
    """Append statements if they run and give sensible numbers; their results join the pool."""
    if not wanted:
        text = re.sub(r"\b([gq])\b(?=[ ,)]|$)", rf"\1_{graph.steps}", text, flags=re.M)
        wanted = [f"g_{graph.steps}"]
    results = _run(graph, text, operands, wanted)
    if results is None:
        return None
    graph.steps += 1
    graph.lines.append(text)
    graph.used |= {value.name for value in operands}
    for value in results:
        if value.array.dtype.kind != "f":
            graph.lines.append(f"f_{value.name} = Cast<to=1>({value.name})")
            value = Value(f"f_{value.name}", value.array.astype(np.float64), value.dims)
        graph.pool.append(value)
    return graph.pool[-1]


def _run(graph: Graph, text: str, operands: Sequence[Value], wanted: Sequence[str]) -> list[Value] | None:
    read = set(re.findall(r"\w+", text))
    declared = [line for name, line in graph.declared.items() if name in read]
    inputs = {value.name: value for value in operands}
    signature = ", ".join(_typed(value) for value in inputs.values())
    contents = {name: array for name, array in graph.contents.items() if name in read}
    first = operands[0].name
    body = f"g ({signature}) => (float[1] probe) <{', '.join(declared)}> {{ probe = Identity({first})\n {text} }}"
    model = changes.parse(body, graph.opset, graph.seed, **contents)
    made = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.clear()
    model.graph.outputs.extend(made[name] for name in wanted)
    feeds = {value.name: value.array for value in operands}
    try:
        found = changes.evaluate_exactly(to_double(model), feeds)[0]
    except (InputError, RuntimeError, ValueError, TypeError, IndexError):
        return None
    if not all(_sensible(found[name]) for name in wanted):
        return None
    return [Value(name, found[name], _dims(made[name], found[name], operands)) for name in wanted]


def _typed(value: Value) -> str:
    dims = ", ".join(f"u{i}" if dim is None else str(dim) for i, dim in enumerate(value.dims))
    return f"{'int64' if value.name == 'ids' else 'float'}[{dims}] {value.name}"


def _sensible(array: np.ndarray) -> bool:
    if array.size > 20000 or array.size == 0:
        return False
    return array.dtype.kind != "f" or bool(np.isfinite(array).all() and 1e-3 < np.abs(array).max() < 1e3)


def _dims(value: ir.Value, array: np.ndarray, operands: Sequence[Value]) -> tuple[Dim, ...]:
    """Dimensions as shape inference finds them; all static where all operands are."""
    if all(isinstance(dim, int) for operand in operands for dim in operand.dims) or value.shape is None:
        static = all(isinstance(dim, int) for operand in operands for dim in operand.dims)
        return tuple(array.shape) if static else (None,) * array.ndim
    return tuple(d if isinstance(d, int) else d.value if d.value in SYMBOLS else None for d in value.shape)


def _finish(graph: Graph, rng: np.random.Generator) -> None:
    """Sites read what nothing reads yet; some values are outputs as they are."""
    loose = [value for value in graph.pool if value.name not in graph.used]
    for value in loose[-4:] or graph.pool[-1:]:
        if rng.random() < 0.1:
            made = value
        elif None not in value.dims and all(isinstance(dim, int) for dim in value.dims):
            shape = _declare(graph, "int64", [2], np.array([1, -1]), "s")
            weight = _weight(graph, (value.array.size, 4), rng)
            made = _emit(graph, f"q = Reshape({value.name}, {shape})\n g = MatMul(q, {weight})", [value])
        else:
            made = _site(graph, value, rng)
        _output(graph, made or value)
    if rng.random() < 0.15:
        _output(graph, graph.pool[int(rng.integers(len(graph.pool)))])


def _output(graph: Graph, value: Value) -> None:
    name = f"y{len(graph.outputs)}"
    graph.lines.append(f"{name} = Identity({value.name})")
    graph.outputs[name] = value.array.ndim
