"""Names of schemes: what has no kernel anywhere is refused before any work starts."""

from __future__ import annotations

import pytest

from qcompile.errors import InputError, TargetError
from qcompile.formats import EXTENDED_FORMATS, FORMATS
from qcompile.formats.scalar import is_scalar
from qcompile.targets.registry import get_target
from qcompile.targets.scheme import Scheme
from qcompile.targets.target import Target

STRUCTURED = {type(fmt): name for name, fmt in EXTENDED_FORMATS.items()}


@pytest.mark.parametrize("text", ["float", "int4-g32", "nvfp4/nvfp4", "higgs-p1-n16", "int4-g32/fp8-e4m3-channel"])
def test_a_scheme_has_the_name_that_it_is_read_from(text):
    assert Scheme.parse(text).name == text


def test_groups_are_those_of_the_weight():
    assert [Scheme.parse(text).group for text in ("float", "int4-g32", "int4-channel")] == [None, 32, None]
    assert Scheme.parse("mxfp4/mxfp8-e4m3").bits == FORMATS["mxfp4"].bits


@pytest.mark.parametrize("name", [name for name in STRUCTURED.values() if not is_scalar(EXTENDED_FORMATS[name])])
def test_weights_without_levels_are_refused(name):
    with pytest.raises(InputError, match=f"no target runs '{name}'"):
        Scheme.parse(name)


@pytest.mark.parametrize("name", STRUCTURED.values())
def test_activations_with_a_structure_are_refused(name):
    with pytest.raises(InputError, match=f"no target quantizes activations to '{name}'"):
        Scheme.parse(f"int4-g32/{name}")


@pytest.mark.parametrize(
    ("target", "text", "name"),
    [
        ("cpu-int4", "int4", "int4-g32"), ("cpu-int4", "int8", "int8-g32"), ("cpu-int4", "uint4", "uint4-g16"),
        ("cpu-int4", "int4-g64", "int4-g64"), ("cpu-int8", "int8", "int8-channel/int8-channel"),
        ("hopper-int4", "int4", "int4-g128"), ("blackwell-fp4", "nvfp4", "nvfp4"),
        ("reference", "int4", "int4-g32/int4-g32"),
    ],
)  # fmt: skip
def test_the_beginning_of_a_format_means_the_targets_own(target, text, name):
    assert get_target(target).scheme(text).name == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"default": "int8-g32"}, "cannot run format 'int8-g32'"),
        ({"edge": "int4"}, "falls back on 'int4', which is none of its schemes"),
        ({"edge": "int3"}, "cannot run format 'int3'"),
        ({"plain": "nvfp4"}, "cannot run format 'nvfp4'"),
        ({"schemes": ("int4-g32/int4-g32",)}, "falls back on 'int4-g32', which is none of its schemes"),
        ({"schemes": ("int4-g32", "magic")}, "no format 'magic'"),
        ({"backends": ()}, "names no backend"),
    ],
)
def test_a_target_whose_data_do_not_fit_cannot_be_declared(change, message):
    parts = {"backends": ("ort",), "schemes": ("int4-g32",), "default": "int4-g32"}
    assert Target("mine", "", **parts).scheme("int4-g32").name == "int4-g32"
    with pytest.raises((InputError, TargetError), match=message):
        Target("mine", "", **(parts | change))
