"""What the boundary F1 of an image costs, against the definition written down with scikit-image and scipy.

Pairs of 360x480 pixels in 11 classes: the labels of generated streets, with their void, and the same labels shifted and
coarsened. Both ways count the same border pixels and the same matches; this is checked.

Run: python benchmarks/boundary.py
"""

from __future__ import annotations

import math

import torch
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import find_boundaries
from timing import paired, ratio
from torch import Tensor

from seglearn.boundaries import boundary_counts, trimap_matrices
from seglearn.data import StreetScenes

PAIRS, ROUNDS, CLASSES, VOID = 8, 7, 11, 11
LIMIT = 15.0  # milliseconds a pair


def straightforward(prediction: Tensor, label: Tensor) -> Tensor:
    """Class by class: its borders in both maps, and their distance transforms."""
    maps = [prediction.numpy(), label.numpy()]
    void = maps[1] == VOID
    nearest = distance_transform_edt(void, return_distances=False, return_indices=True)
    maps = [each[tuple(nearest)] for each in maps]
    tolerance = 0.0075 * math.hypot(*label.shape)
    counts = torch.zeros(CLASSES, 4, dtype=torch.int64)
    for index in range(CLASSES):
        borders = [find_boundaries(each == index, connectivity=1, mode="inner") for each in maps]
        for column, (own, other) in enumerate((borders, borders[::-1])):
            counts[index, 2 * column] = int(own.sum())
            if own.any() and other.any():
                counts[index, 2 * column + 1] = int((own & (distance_transform_edt(~other) <= tolerance)).sum())
    return counts


def main() -> None:
    """Time both in turn, so that a busy machine slows both."""
    torch.set_num_threads(1)
    scenes = StreetScenes("val", size=(360, 480), length=PAIRS)
    labels = [scenes[index][1] for index in range(PAIRS)]
    coarse = [label[::4, ::4].repeat_interleave(4, 0).repeat_interleave(4, 1) for label in labels]
    guesses = [label.roll(3, 1).clamp(max=CLASSES - 1) for label in coarse]
    pairs = list(zip(guesses, labels, strict=True))
    for guess, label in pairs:
        ours, theirs = boundary_counts(guess, label, CLASSES, VOID), straightforward(guess, label)
        assert torch.equal(ours, theirs), "the two count differently"

    ways = {
        "boundary F1": lambda: [boundary_counts(guess, label, CLASSES, VOID) for guess, label in pairs],
        "straightforward": lambda: [straightforward(guess, label) for guess, label in pairs],
        "five bands": lambda: [trimap_matrices(guess, label, CLASSES, VOID) for guess, label in pairs],
    }
    seconds = paired(ways, ROUNDS)
    for name, times in seconds.items():
        print(f"{name:<16}{1000 * min(times) / PAIRS:7.1f} ms a pair of 360x480 in {CLASSES} classes, one thread")
    factor = ratio(seconds["straightforward"], seconds["boundary F1"])
    within = "within" if 1000 * min(seconds["boundary F1"]) / PAIRS <= LIMIT else "ABOVE"
    print(f"straightforward takes {factor:.1f} times as long (median of {ROUNDS} paired rounds)")
    print(f"boundary F1 is {within} its limit of {LIMIT:.0f} ms")


if __name__ == "__main__":
    main()
