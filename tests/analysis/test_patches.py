"""Patches of what convolutions read, and kernels as matrices: the products of both are the convolutions of torch."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F

from qcompile.analysis.matrices import kernel_layout
from qcompile.analysis.patches import PLACES, Patches, Reading, patches_of
from qcompile.run.session import evaluate

PADS = [(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 2, 1)]


def product(patches: Patches, x: torch.Tensor, kernel: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
    """The convolution, by the patches of its input and the matrix of its kernel."""
    matrix = kernel_layout(kernel.shape, patches.groups, transposed=patches.transposed).matrix(kernel)
    rows = patches.rows(x).reshape(-1, patches.groups, matrix.shape[1])
    made = torch.einsum("rgi,goi->rgo", rows, matrix.reshape(patches.groups, -1, matrix.shape[1]))
    return made.reshape(len(x), *places, len(matrix)).movedim(-1, 1)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("pads", PADS)
def test_convolutions(groups: int, stride: int, dilation: int, pads: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 4, 9, 8).double(), torch.randn(8, 4 // groups, 3, 2).double()
    padded = F.pad(x, (pads[1], pads[3], pads[0], pads[2]))
    want = F.conv2d(padded, kernel, stride=stride, dilation=dilation, groups=groups)
    patches = Patches((3, 2), (stride, stride), (dilation, dilation), pads, groups=groups)
    torch.testing.assert_close(product(patches, x, kernel, want.shape[2:]), want)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("pads", PADS)
def test_transposed_convolutions(groups: int, stride: int, dilation: int, pads: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 4, 5, 6).double(), torch.randn(4, 3, 3, 2).double()
    whole = F.conv_transpose2d(x, kernel, stride=stride, dilation=dilation, groups=groups)
    want = whole[:, :, pads[0] : whole.shape[2] - pads[2], pads[1] : whole.shape[3] - pads[3]]
    patches = Patches((3, 2), (stride, stride), (dilation, dilation), pads, groups=groups, transposed=True)
    torch.testing.assert_close(product(patches, x, kernel, want.shape[2:]), want)


@pytest.mark.parametrize("line", [
    "Conv<auto_pad='SAME_UPPER', strides=[2, 2]>", "Conv<auto_pad='SAME_LOWER', strides=[2, 2]>",
    "Conv<auto_pad='VALID'>", "Conv<auto_pad='SAME_UPPER', strides=[3, 2]>",
    "ConvTranspose<strides=[2, 2], output_padding=[1, 0]>", "ConvTranspose<strides=[2, 2], output_shape=[13, 14]>",
    "ConvTranspose<strides=[2, 2], output_shape=[13, 14], auto_pad='SAME_UPPER'>",
    "ConvTranspose<strides=[2, 2], auto_pad='SAME_UPPER'>", "ConvTranspose<strides=[2, 2], auto_pad='SAME_LOWER'>",
])  # fmt: skip
def test_padding_is_that_of_onnxruntime(parse, line: str) -> None:
    line = line.replace("'", '"')
    model = parse(f"g (float[2,4,7,7] x) => (float[2,4,d,e] y) <float[4,4,3,4] w> {{ y = {line}(x, w) }}")
    x = np.random.default_rng(0).standard_normal((2, 4, 7, 7)).astype(np.float32)
    want = evaluate(model, {"x": x})["y"]
    (node,) = model.graph
    kernel = torch.from_numpy(model.graph.initializers["w"].const_value.numpy())
    made = product(patches_of(node), torch.from_numpy(x), kernel, want.shape[2:])
    np.testing.assert_allclose(made.numpy(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", [1, 3])
def test_any_number_of_axes(spatial: int) -> None:
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 3, *[5] * spatial).double(), torch.randn(6, 3, *[3] * spatial).double()
    want = {1: F.conv1d, 3: F.conv3d}[spatial](x, kernel, padding=1)
    patches = Patches((3,) * spatial, (1,) * spatial, (1,) * spatial, (1,) * 2 * spatial)
    torch.testing.assert_close(product(patches, x, kernel, want.shape[2:]), want)


def test_a_layout_goes_both_ways() -> None:
    for groups, transposed in itertools.product((1, 2), (False, True)):
        kernel = torch.randn(4, 6 // (1 if transposed else groups), 3, 2)
        layout = kernel_layout(kernel.shape, groups, transposed=transposed)
        assert torch.equal(layout.weight(layout.matrix(kernel)), kernel)


def test_statistics_see_some_patches_of_each_size_and_the_same_ones_of_two_graphs() -> None:
    reading = Reading("x", 1, Patches((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)))
    x = torch.arange(2 * 4 * 40 * 40, dtype=torch.float32).reshape(2, 4, 40, 40)
    rows = reading.rows(x)
    assert rows.shape == (2 * PLACES, 36)
    assert torch.equal(reading.rows(x + 1)[:, 16:20], rows[:, 16:20] + 1)  # the tap in the middle is never padded
    assert len(reading.rows(x[..., :4, :4])) == 2 * 16
    means = rows[:, 16].mean() / x[:, 0].mean()
    assert abs(float(means) - 1) < 0.1


def test_a_plain_product_is_one_without_taps_strides_pads_and_groups(parse) -> None:
    lines = ["Conv(x, w)", "Conv<strides=[2]>(x, w)", "Conv<pads=[1, 0]>(x, w)", "Conv<group=2>(x, v)",
             "ConvTranspose(x, w)", 'Conv<auto_pad="SAME_UPPER">(x, w)']  # fmt: skip
    plain = []
    for line in lines:
        model: ir.Model = parse(
            f"g (float[1,4,8] x) => (float[1,4,n] y) <float[4,4,1] w, float[4,2,1] v> {{ y = {line} }}"
        )
        plain.append(patches_of(next(iter(model.graph))).plain)
    assert plain == [True, False, False, False, False, True]
