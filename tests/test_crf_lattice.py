"""The lattice: what its authors prove about it, the true Gaussian, its transpose, its gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seglearn.crf import Lattice
from seglearn.crf.lattice import enclosing_simplex
from seglearn.errors import InputError

MODES = ["none", "symmetric", "before", "after"]


def random_features(points: int, d: int, spread: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return spread * torch.randn(points, d, generator=torch.Generator().manual_seed(points + d), dtype=dtype)


def grid(side: int, sigma: float) -> Tensor:
    steps = torch.arange(side, dtype=torch.float64) / sigma
    return torch.cartesian_prod(steps, steps)


def gaussian(features: Tensor) -> Tensor:
    return torch.cdist(features, features).square().div(-2).exp()


def dense_matrix(lattice: Lattice, transpose: bool = False) -> Tensor:
    return lattice.filter(torch.eye(len(lattice.weights), dtype=lattice.weights.dtype), transpose)


@given(d=st.integers(1, 6), points=st.integers(1, 60), spread=st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
@settings(max_examples=60, deadline=None)
def test_a_simplex_encloses_its_point(d: int, points: int, spread: float) -> None:
    """Ranks are a permutation; corners sum to 0; the barycentric mean of a point's corners is the point."""
    features = random_features(points, d, spread)
    cell, rank, residual = enclosing_simplex(features)
    assert torch.equal(rank.sort(0).values, torch.arange(d + 1, dtype=torch.int8)[:, None].expand(d + 1, points))
    assert (cell.sum(0) == 0).all()
    assert residual.sum(0).abs().max() < 1e-6 * (1 + spread)
    lattice = Lattice(features)
    assert lattice.weights.min() > -1e-6 and (lattice.weights.sum(1) - 1).abs().max() < 1e-6
    corner = torch.arange(d + 1)[:, None, None]
    # the corners as the paper lists them: r in the first d + 1 - r coordinates by rank, r - (d + 1) in the others
    canonical = torch.where(rank <= d - corner, corner, corner - (d + 1))  # [corner, coordinate, N]
    mean = (lattice.weights.t()[:, None] * canonical).sum(0)
    torch.testing.assert_close(mean, residual, atol=1e-5, rtol=1e-5)
    keys = ((d + 1) * cell + canonical).permute(2, 0, 1).reshape(-1, d + 1)
    distinct, index = torch.unique(keys, dim=0, return_inverse=True)
    assert lattice.size == len(distinct)
    pairs = torch.stack([index, lattice.corners.flatten().long()], 1).unique(dim=0)
    assert len(pairs) == lattice.size  # the same points, under other numbers


def test_neighbours_are_those_of_the_definition() -> None:
    """Key - 1 in all coordinates but + d in one; the second neighbour the other way; none beyond the points."""
    d, features = 3, random_features(40, 3)
    lattice = Lattice(features)
    cell, rank, _ = enclosing_simplex(features)
    keys: dict[int, tuple[int, ...]] = {}
    for n in range(40):
        for r in range(d + 1):
            keys[int(lattice.corners[n, r])] = tuple(
                (d + 1) * int(cell[i, n]) + (r if rank[i, n] <= d - r else r - d - 1) for i in range(d + 1)
            )
    number = {key: m for m, key in keys.items()}
    assert len(number) == lattice.size
    for axis in range(d + 1):
        for m, key in keys.items():
            for column, sign in ((1, 1), (2, -1)):
                other = tuple(k + sign * (1 - (d + 1) * (i == axis)) for i, k in enumerate(key))
                assert lattice.neighbours[axis, m, column] == number.get(other, lattice.size)
        assert lattice.neighbours[axis, -1].tolist() == [lattice.size] * 3


@pytest.mark.parametrize(("sigma", "largest", "mean"), [(3.0, 0.015, 0.003), (8.0, 0.01, 0.0012)])
def test_averages_are_close_to_the_true_gaussian(sigma: float, largest: float, mean: float) -> None:
    features = grid(40, sigma)
    values = torch.rand(1600, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = gaussian(features)
    expected = kernel @ values / kernel.sum(1, keepdim=True)
    error = (Lattice(features, "after").filter(values) - expected).abs()
    assert error.max() < largest and error.mean() < mean
    assert error.mean() < (values - expected).abs().mean() / 50  # and not for want of anything to do


def test_sums_are_too_small_without_normalization() -> None:
    features = grid(40, 3.0)
    sums = Lattice(features).filter(torch.ones(1600, 1, dtype=torch.float64))[:, 0]
    assert 0.8 < (sums / gaussian(features).sum(1)).median() < 0.95


@pytest.mark.parametrize("mode", MODES)
def test_transpose_and_symmetry(mode: str) -> None:
    lattice = Lattice(random_features(50, 5, 1.0), mode)  # type: ignore[arg-type]
    matrix, transposed = dense_matrix(lattice), dense_matrix(lattice, transpose=True)
    torch.testing.assert_close(transposed, matrix.t(), atol=1e-12, rtol=1e-9)
    assert (matrix >= -1e-9).all() and matrix.sum() > 1


def test_normalization_is_what_it_says() -> None:
    features = random_features(50, 5, 1.0)
    matrices = {mode: dense_matrix(Lattice(features, mode)) for mode in MODES}  # type: ignore[arg-type]
    k = matrices["none"]
    ones = k.sum(1)
    for mode, expected in {
        "after": k / ones[:, None],
        "before": k / ones,
        "symmetric": k / (ones[:, None] * ones).sqrt(),
    }.items():
        torch.testing.assert_close(matrices[mode], expected, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(matrices["after"].sum(1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_and_second_gradient(mode: str) -> None:
    lattice = Lattice(random_features(12, 3, 1.0), mode)  # type: ignore[arg-type]
    values = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lattice.filter, values)
    assert torch.autograd.gradgradcheck(lattice.filter, values)


def test_single_precision_is_the_double_one_rounded() -> None:
    features = random_features(500, 5)
    values = torch.rand(500, 4, dtype=torch.float64)
    expected = Lattice(features, "after").filter(values)
    found = Lattice(features.float(), "after").filter(values.float())
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("features", [torch.zeros(1, 5), torch.zeros(7, 2), torch.tensor([[-1e4], [1e4]])])
def test_few_and_equal_points(features: Tensor) -> None:
    values = torch.rand(len(features), 3)
    found = Lattice(features, "after").filter(values)
    expected = values.mean(0).expand_as(values) if features.unique(dim=0).shape[0] == 1 else values
    torch.testing.assert_close(found, expected)


def test_wrong_input() -> None:
    with pytest.raises(InputError, match=r"torch.int64 \[4, 2\]: give float32"):
        Lattice(torch.zeros(4, 2, dtype=torch.long))
    with pytest.raises(InputError, match="larger standard deviations"):
        Lattice(torch.tensor([[0.0] * 5, [1e6] * 5]))
    with pytest.raises(InputError, match="'Symmetric': choose symmetric"):
        Lattice(torch.zeros(4, 2), "Symmetric")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\[3, 1\]: this lattice filters torch.float32 \[4, C\]"):
        Lattice(torch.zeros(4, 2)).filter(torch.zeros(3, 1))
