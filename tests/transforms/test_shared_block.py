"""The matrix that a transform repeats: equal to the transform, and the smallest."""

import pytest
import torch

from qcompile.transforms import BlockDiagonal, Dense, Hadamard
from qcompile.transforms.shared_block import shared_block


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        (BlockDiagonal(Hadamard(16, 3, "default"), 4), 16),
        (Hadamard(64, 3, "default"), 64),
        (BlockDiagonal(Dense(torch.arange(1.0, 10.0, dtype=torch.float64).view(3, 3) + torch.eye(3)), 5), 3),
    ],
)
def test_it_is_the_transform(transform, size: int) -> None:
    block = shared_block(transform.factors())
    assert block.shape == (size, size)
    whole = transform.apply(torch.eye(transform.size, dtype=torch.float64), 0)
    torch.testing.assert_close(torch.block_diag(*[block] * (transform.size // size)), whole, rtol=1e-6, atol=1e-6)


def test_blocks_that_differ_are_one() -> None:
    torch.manual_seed(0)
    block = shared_block([(4, 1, torch.randn(4, 8, 8))])
    assert block.shape == (32, 32)
