"""The permutohedral lattice: Gaussian filtering of many values in many dimensions (Adams, Baek & Davis 2010).

Filtering exactly takes each of N pixels to each other one. Here a pixel first hands its values to the few corners of a
lattice around it (splat), the corners mix with their neighbours along each axis (blur), and every pixel reads its
corners again (slice). The lattice tiles d dimensions with simplices, which have d + 1 corners where a cube has 2^d:
with 5 dimensions (x, y, red, green, blue) that is 6 instead of 32.

All three steps are the same operation, weighted sums of rows, with indices and weights that follow from the features
alone. So the filter is a linear map K, the features fix it once, and its gradient is a filter again: K transposed
splats with the weights of slice, blurs along the axes in reverse, slices with the weights of splat.

Chapter: book/ideas/crf.

Differs from the paper and from its authors' code:
    - lattice points are found by sorting their keys, not in a hash table: sorting is a torch operation on any device;
    - only points that are corners of some pixel's simplex exist, as in Krähenbühl and Koltun's code (2011): what is
      blurred beyond them is lost. The filter's sums are therefore too small, which `normalization` makes up for.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seglearn.errors import InputError

Normalization: TypeAlias = Literal["symmetric", "before", "after", "none"]
_TINY = 1e-20  # keeps the inverse of an empty sum finite, as in pydensecrf


class Lattice:
    """A Gaussian filter over N points: `filter` gives each the sum of all values, weighted by nearness.

    Nearness of points p and q is about `exp(-|p - q|^2 / 2)`: divide features by the standard deviations first.
    Indices and weights depend on the features only, so one lattice serves many values.

    Args:
        features: [N, d], float32 or float64, on any device. No gradient flows into them.
        normalization: with n = K 1, what a filter makes of ones, the filter is K / n ("after": averages, what the paper
            by Krähenbühl and Koltun uses), K (1 / n) ("before"), n^-1/2 K n^-1/2 ("symmetric": K stays symmetric), or
            K as it is ("none": its sums depend on how many lattice points there are).

    Attributes:
        size: number of lattice points, M.
        corners: [N, d + 1], the lattice points around each pixel.
        weights: [N, d + 1], barycentric: how near each corner is; at least 0 and 1 in sum, up to rounding.
        neighbours: [d + 1, M + 1, 3], each lattice point and its two neighbours along each axis; M where there is none.

    Raises:
        InputError: features of another shape or type, or spread over more than 2^62 cells.
    """

    def __init__(self, features: Tensor, normalization: Normalization = "none") -> None:
        if features.ndim != 2 or features.dtype not in (torch.float32, torch.float64) or not features.numel():
            shape = list(features.shape)
            raise InputError(f"features are {features.dtype} {shape}: give float32 or float64 of shape [N, d].")
        if normalization not in get_args(Normalization):
            raise InputError(f"normalization is {normalization!r}: choose symmetric, before, after or none.")
        with torch.no_grad():
            self._build(features.detach())
            self._normalize(normalization)

    def _build(self, features: Tensor) -> None:
        (count, d), device = features.shape, features.device
        cell, rank, residual = enclosing_simplex(features)  # each [d + 1, N]

        # Barycentric weights. Walking through the simplex, corner 0 to corner d, the k-th step goes along the axis with
        # the k-th smallest residual, so the weights are differences of neighbours in this order.
        place = (d - rank).long()  # when the walk takes each axis
        ordered = torch.empty_like(residual).scatter_(0, place, residual).mul_(1 / (d + 1))
        weights = features.new_empty(count, d + 1)
        torch.add(ordered[0], 1 - ordered[d], out=weights[:, 0])
        torch.sub(ordered[1:].t(), ordered[:-1].t(), out=weights[:, 1:])
        self.weights = weights

        # A lattice point is d + 1 integers that sum to 0. The first d of them, read as digits of one number, are its
        # key. Neighbours are 2 cells away at most, and digits may be off by that without a carry.
        low, high = cell[:d].amin(1) - 2, cell[:d].amax(1) + 2
        digits = ((d + 1) * (high - low + 1)).tolist()
        if math.prod(digits) >= 2**62:
            raise InputError("features spread over more than 2^62 lattice cells: take larger standard deviations.")
        place_values = [math.prod(digits[i + 1 :]) for i in range(d)]
        value = torch.tensor([*place_values, 0], device=device)  # [d + 1]; the last integer follows from the others
        total = sum(place_values)

        # Pixels in the same simplex share its corners, so corners are found once a simplex. Which simplex: corner 0 is
        # (d + 1) cell, and rank, from 0 to d, fits into the gap up to the next.
        simplex = torch.zeros(count, dtype=torch.long, device=device)
        for i in range(d):
            simplex.add_((d + 1) * (cell[i] - low[i]) + rank[i], alpha=place_values[i])
        simplices, pixel_simplex = torch.unique(simplex, return_inverse=True)
        example = torch.empty_like(simplices)
        example[pixel_simplex] = torch.arange(count, device=device)  # some pixel of each simplex
        cell, place = cell[:, example].long(), place[:, example]  # [d + 1, simplices]
        step = torch.empty_like(cell).scatter_(0, place, value[:, None].expand_as(cell))
        first = ((d + 1) * (cell[:d] - low[:, None]) * value[:d, None]).sum(0)
        keys = [first]
        for axis in step[:d]:  # each step adds 1 to all digits, and takes d + 1 from one
            keys.append(keys[-1] + total - (d + 1) * axis)
        points, corners = torch.unique(torch.stack(keys, 1), return_inverse=True)  # [M], [simplices, d + 1]
        self.size = len(points)
        self.corners = corners.int().index_select(0, pixel_simplex)  # [N, d + 1]

        # Neighbours along an axis differ by one step. Row M stands for all points that no pixel touches: always 0.
        here = torch.arange(self.size + 1, device=device)
        neighbours = torch.full((d + 1, self.size + 1, 3), self.size, dtype=torch.int32, device=device)
        for axis in range(d + 1):
            wanted = points + total - (d + 1) * value[axis]
            found = torch.searchsorted(points, wanted).clamp(max=self.size - 1)
            after = torch.where(points[found] == wanted, found, self.size)
            neighbours[axis, :, 0] = here
            neighbours[axis, :-1, 1] = after
            neighbours[axis, :, 2][after] = here[:-1].int()  # whoever I come before comes after me
            neighbours[axis, -1, 2] = self.size
        self.neighbours = neighbours
        self._blur_weights = features.new_tensor([1.0, 0.5, 0.5]).repeat(self.size + 1, 1)

        # Splat reads the same table by lattice point: `starts[m]` is where the pixels of point m begin.
        flat, order = self.corners.flatten().sort(stable=True)
        self._order = order.int()  # [N (d + 1)]
        self._pixels = self._order.div(d + 1, rounding_mode="trunc")
        self._starts = torch.searchsorted(flat, torch.arange(self.size + 2, dtype=torch.int32, device=device)).int()

    def _normalize(self, normalization: Normalization) -> None:
        d = self.weights.shape[1] - 1
        splat = slice_ = self.weights
        self._scale(splat, slice_ / (1 + 2.0**-d))  # the amplitude of the blur, from Adams et al.
        if normalization == "none":
            return
        ones = self.filter(self.weights.new_ones(len(self.weights), 1))  # [N, 1]
        if normalization == "symmetric":
            factor = (ones + _TINY).rsqrt()
            self._scale(splat * factor, self._slice[False] * factor)
        elif normalization == "before":
            self._scale(splat / (ones + _TINY), self._slice[False])
        else:
            self._scale(splat, self._slice[False] / (ones + _TINY))

    def _scale(self, splat: Tensor, slice_: Tensor) -> None:
        """Fix the weights of the first and the last step, [N, d + 1] each, also for the transposed filter."""
        self._slice = {False: slice_, True: splat}
        self._splat = {False: splat.flatten().index_select(0, self._order)}

    def splat(self, values: Tensor, transpose: bool = False) -> Tensor:
        """`[N, C] -> [M + 1, C]`: each lattice point sums up the pixels whose corner it is. The last row is 0."""
        if transpose not in self._splat:
            self._splat[transpose] = self._slice[not transpose].flatten().index_select(0, self._order)
        return weighted_sums(values, self._pixels, self._splat[transpose], self._starts)

    def blur(self, points: Tensor, transpose: bool = False) -> Tensor:
        """`[M + 1, C] -> [M + 1, C]`: along each axis in turn, half of both neighbours is added."""
        axes = reversed(self.neighbours.unbind()) if transpose else self.neighbours.unbind()
        for neighbours in axes:
            points = weighted_sums(points, neighbours, self._blur_weights)
        return points

    def slice(self, points: Tensor, transpose: bool = False) -> Tensor:
        """`[M + 1, C] -> [N, C]`: each pixel reads its corners."""
        return weighted_sums(points, self.corners, self._slice[transpose])

    @property
    def slice_table(self) -> tuple[Tensor, Tensor]:
        """Indices and weights of `slice`, both [N, d + 1], for a caller who slices several lattices in one go."""
        return self.corners, self._slice[False]

    def filter(self, values: Tensor, transpose: bool = False) -> Tensor:
        """K values, or K^T values: `[N, C] -> [N, C]`. Differentiable in the values, as often as wanted.

        Rows of one pixel lie together in memory, since all three steps read and write whole rows.

        Raises:
            InputError: the number of rows or the type differ from those of the features.
        """
        if values.ndim != 2 or len(values) != len(self.weights) or values.dtype != self.weights.dtype:
            wanted = f"{self.weights.dtype} [{len(self.weights)}, C]"
            raise InputError(f"values are {values.dtype} {list(values.shape)}: this lattice filters {wanted}.")
        filtered: Tensor = _Filter.apply(values, self, transpose)
        return filtered


class _Filter(torch.autograd.Function):
    """Linear, so its gradient is the transposed filter of what comes in, whatever the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: Lattice, transpose: bool) -> Tensor:
        ctx.lattice, ctx.transpose = lattice, transpose
        points = lattice.splat(values.contiguous(), transpose)
        return lattice.slice(lattice.blur(points, transpose), transpose)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _Filter.apply(gradient, ctx.lattice, not ctx.transpose), None, None


def enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex of the lattice that each point lies in: `[N, d]` -> three of `[d + 1, N]`.

    The points are turned into the plane of R^(d+1) whose coordinates sum to 0. There, all points whose coordinates are
    multiples of d + 1 are lattice points. One of them is a corner of the simplex; how the coordinates of the remaining
    way rank, largest first, says which of the (d + 1)! simplices around it (Adams et al., section 3).

    Returns:
        The corner divided by d + 1, an integer; the rank of each coordinate, from 0 to d; and what remains of it.
    """
    d = features.shape[1]
    deviation = math.sqrt(2 / 3) * (d + 1)  # of the blur, in the plane's units
    scaled = [features[:, i] * _single(_single(deviation) / math.sqrt((i + 1) * (i + 2))) for i in range(d)]
    plane = features.new_empty(d + 1, len(features))
    total = torch.zeros_like(scaled[0])
    for i in range(d, 0, -1):
        plane[i] = total - i * scaled[i - 1]
        total = total + scaled[i - 1]
    plane[0] = total

    cell = (plane * _single(1 / (d + 1))).round()  # ties to even
    residual = plane - cell * (d + 1)
    rank = torch.zeros(plane.shape, dtype=torch.int8, device=features.device)
    for i in range(d):
        for j in range(i + 1, d + 1):
            behind = residual[i] < residual[j]
            rank[i] += behind
            rank[j] += ~behind

    # Rounding each coordinate by itself may leave the plane by some units; the coordinates to correct are those that
    # were rounded furthest, the ones that rank first or last.
    rank += cell.sum(0).to(rank.dtype)
    shift = (rank < 0).to(rank.dtype) - (rank > d).to(rank.dtype)
    rank += (d + 1) * shift
    cell += shift
    return cell.int(), rank, plane - cell * (d + 1)


def _single(number: float) -> float:
    """Rounded to float32, in which pydensecrf computes: a point on a border shall fall to the same side as there."""
    return float(np.float32(number))


def weighted_sums(rows: Tensor, indices: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """Row k of the result is the sum of `weights * rows[indices]` over row k of both.

    Args:
        rows: [R, C].
        indices, weights: [K, n]; or flat, with as many entries a row as it takes.
        starts: [K + 1], where the entries of each row begin if they are flat.
    """
    return F.embedding_bag(
        indices, rows, starts, mode="sum", per_sample_weights=weights, include_last_offset=starts is not None
    )
