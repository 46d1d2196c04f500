"""The parameters of a module out of its graph: each operator says by its path whose content it holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch

from qcompile.analysis.forms import Linear, Lookup, read_site
from qcompile.errors import TargetError
from qcompile.ir.blueprint import Blueprint
from qcompile.ir.module_paths import module_path
from qcompile.ir.required import constant, optional, rank_of
from qcompile.ir.text import refusal
from qcompile.ir.transform_nodes import is_transform, read_transform
from qcompile.targets.plans import Plan, plan_of
from qcompile.transforms.shared_block import shared_block

__all__ = ["Parameters", "read_parameters", "ties"]

#: Operators that hold the parameters of a norm: weight, then bias.
_NORMS = ("RMSNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization")


@dataclass
class Parameters:
    """The content of a checkpoint before it is packed.

    Args:
        floats: by name of the parameter, float32 in the shape of the module's own.
        plans: by path of a module, how its weight is quantized.
        nodes: by path of such a module, its operator.
        transforms: by path of a module, the block ``M`` that its input is multiplied by, ``x (I ⊗ M)ᵀ``.
    """

    floats: dict[str, torch.Tensor] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    transforms: dict[str, torch.Tensor] = field(default_factory=dict)


def read_parameters(model: ir.Model, blueprint: Blueprint) -> Parameters:
    """The parameters of the module that a planned graph came from.

    Those that no operator holds, such as of a head that was not captured, stay as they came.

    Raises:
        TargetError: if a parameter cannot be read off the graph, or an operator computes what no module does.
    """
    nodes: dict[str, list[ir.Node]] = defaultdict(list)
    for node in model.graph.all_nodes():
        nodes[module_path(node) or ""].append(node)
    made = Parameters()
    for name, source in blueprint.parameters.items():
        path, _, own = name.rpartition(".")
        found = _Module(path, nodes.get(path, []), blueprint)
        if own == "weight" and path in blueprint.linear:
            if (product := found.product()) is None:
                made.floats[name] = source.float()
            else:
                _read_product(made, found, product, source)
            continue
        content = found.vector(own) if path in blueprint.offsets or path in blueprint.linear else found.table(own)
        if content is None:
            content = found.named(name, model)
        if content is None:
            content = source.float() if source.is_floating_point() else source
        if content.shape != source.shape:
            shapes = f"{list(content.shape)} in the graph, and {list(source.shape)} in its module"
            raise _refused(name, f"has the shape {shapes}")
        made.floats[name] = content
    _check_transforms(model, made)
    return made


def _refused(name: str, reason: str) -> TargetError:
    return TargetError(f"parameter '{name}' cannot be written back to its module: it {reason}")


def _read_product(made: Parameters, found: _Module, node: ir.Node, source: torch.Tensor) -> None:
    """Read the weight of a linear layer, and the transform in front of it."""
    form = read_site(node)
    assert isinstance(form, Linear)
    name = f"{found.path}.weight"
    plan = plan_of(node)
    if plan is not None:
        made.plans[found.path] = plan
        made.nodes[found.path] = node
        shape = torch.Size(plan.weight.shape)
    else:
        content = _tensor(form.weight)
        made.floats[name] = content = content if form.axis == 1 else content.T.contiguous()
        shape = content.shape
    if shape != source.shape or form.alpha != 1 or form.before is not None:
        raise _refused(name, f"is a matrix of {list(shape)} in the graph, and of {list(source.shape)} in its module")
    before = form.x.producer()
    if before is not None and (structure := read_transform(before)) is not None:
        steps = [(outer, inner, torch.from_numpy(matrix.copy())) for outer, inner, matrix in structure.steps]
        if (block := shared_block(steps)) is None:
            reason = f"reads a transform of kind '{structure.kind}' that has another matrix for each block"
            raise refusal(TargetError, "site '{name}' ({op}) cannot be written: it {reason}", node, reason=reason)
        made.transforms[found.path] = block


def _check_transforms(model: ir.Model, made: Parameters) -> None:
    """Refuse transforms that no linear layer takes to itself."""
    known = {made.nodes[path] for path in made.transforms if path in made.nodes}
    for node in model.graph.all_nodes():
        if is_transform(node):
            for reader, _ in node.outputs[0].uses():
                if reader not in known:
                    reason = "applies a transform in front of something that is no quantized linear layer"
                    raise refusal(TargetError, "'{name}' ({op}) cannot be written: it {reason}", node, reason=reason)


def _tensor(value: ir.Value) -> torch.Tensor:
    return torch.from_numpy(constant(value).numpy().copy())


class _Module:
    """A module, as the operators that came from it show it."""

    def __init__(self, path: str, nodes: list[ir.Node], blueprint: Blueprint) -> None:
        self.path, self.nodes, self.blueprint = path, nodes, blueprint

    def product(self) -> ir.Node | None:
        """The operator that multiplies by the weight of a linear layer; ``None`` if the layer was not captured.

        Raises:
            TargetError: if there are several, with weights that differ.
        """
        found = [node for node in self.nodes if node.op_type in ("MatMul", "Gemm") and _constants(node)]
        forms = [form for node in found if isinstance(form := read_site(node), Linear)]
        if not forms:
            if self.nodes:
                raise _refused(f"{self.path}.weight", "is in no product of its module's")
            return None
        if any(form.weight is not forms[0].weight for form in forms):
            raise _refused(f"{self.path}.weight", f"has become {len(forms)} matrices")
        return forms[0].node

    def vector(self, own: str) -> torch.Tensor | None:
        """The weight or the bias of a norm, or the bias of a linear layer."""
        norms = [node for node in self.nodes if node.op_type in _NORMS]
        if own == "weight" and norms:
            return self._scale(norms)
        if own != "bias":
            return None
        values = [value for node in norms if (value := optional(node, 2)) is not None]
        values += [value for node in self.nodes if node.op_type == "Gemm" if (value := optional(node, 2)) is not None]
        values += [value for node in self.nodes if node.op_type == "Add" for value in _constants(node)]
        return self._one(values, own)

    def _scale(self, norms: list[ir.Node]) -> torch.Tensor | None:
        values = [value for node in norms if (value := optional(node, 1)) is not None]
        found = self._one(values, "weight")
        offset = self.blueprint.offsets[self.path]
        if found is None:
            return None
        if offset is None:
            raise _refused(f"{self.path}.weight", "is no plain factor of what its norm returns")
        return found - offset

    def table(self, own: str) -> torch.Tensor | None:
        """A table that is looked up."""
        found = [node for node in self.nodes if node.op_type == "Gather" and own == "weight"]
        values = [form.weight for node in found if _constants(node) and isinstance(form := read_site(node), Lookup)]
        if any(plan_of(node) is not None for node in found):
            raise _refused(f"{self.path}.{own}", "is a table, which the layout does not pack")
        return self._one([value for value in values if rank_of(value) == 2], own)

    def _one(self, values: list[ir.Value], own: str) -> torch.Tensor | None:
        """The content of values that must be one."""
        constants = [value for value in dict.fromkeys(values) if value.const_value is not None]
        if len(constants) > 1:
            tensors = [_tensor(value) for value in constants]
            if any(not torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
                raise _refused(f"{self.path}.{own}", f"has become {len(constants)} constants")
        return _tensor(constants[0]) if constants else None

    def named(self, name: str, model: ir.Model) -> torch.Tensor | None:
        """A constant of the parameter's own name."""
        value: ir.Value | None = model.graph.initializers.get(name)
        return None if value is None or value.const_value is None else _tensor(value)


def _constants(node: ir.Node) -> list[ir.Value]:
    given = [value for value in node.inputs if value is not None and value.const_value is not None]
    return [value for value in given if constant(value).size > 1]


def ties(blueprint: Blueprint, floats: Mapping[str, torch.Tensor]) -> bool:
    """Whether parameters that were one are still equal."""
    found = [floats[name] for name in blueprint.tied if name in floats]
    return len(found) == len(blueprint.tied) and all(torch.equal(one, found[0]) for one in found[1:])
