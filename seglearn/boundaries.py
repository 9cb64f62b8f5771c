"""Scores of the borders between classes: boundary F1, and IoU within a band around them (trimap).

The mIoU is ruled by the insides of large regions, so two predictions with one mIoU may have sharp or ragged edges. Both
scores are counted image by image, as integers that several processes can share and add without rounding.

Sources: the boundary F1 is the one of Badrinarayanan, Kendall, Cipolla, "SegNet", PAMI 2017, section 3.3, after Csurka,
Larlus, Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013. The band is the one of
Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from seglearn.metrics import confusion_matrix, void_last

WIDTHS = (1, 2, 4, 8, 16)  # of the bands, in pixels on either side of a border


def boundary_counts(
    prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int | None = None, tolerance: float = 0.0075
) -> Tensor:
    """Count the border pixels of every class in one image, and those that the other map has too.

    A pixel is on the border of its class when one of its four neighbours has another class; the edge of the picture is
    no border. It is matched when the other map has a border pixel of the same class within `tolerance`.

    Void pixels take the class of the nearest labelled pixel, in the truth and in the prediction alike. So what is
    predicted on void never matters, and a border that the annotators marked as a strip of void (PASCAL VOC) runs
    through its middle.

    Args:
        prediction: class indices [H, W], any integer type.
        label: the truth, [H, W]; values 0..num_classes-1 or `ignore_index`.
        tolerance: the largest (Euclidean) distance of a match, as a share of the image's diagonal.

    Returns int64 [num_classes, 4]: border pixels of the prediction, those of them that are matched, border pixels of
    the truth, those of them that are matched. All 0 where nothing is labelled.

    Raises:
        InputError: as `confusion_matrix`.
    """
    maps = [each.numpy() for each in (prediction, void_last(prediction, label, num_classes, ignore_index))]
    if (void := maps[1] == num_classes).any():
        if void.all():
            return torch.zeros(num_classes, 4, dtype=torch.int64)
        nearest = ndimage.distance_transform_edt(void, return_distances=False, return_indices=True)
        maps = [each[tuple(nearest)] for each in maps]
    borders = [on_border(each) for each in maps]

    # A set of classes is one integer, a bit for each, so that all classes are matched at once, 64 at a time.
    kinds: tuple[Any, ...] = (np.uint8, np.uint16, np.uint32, np.uint64)
    kind = next(kind for kind in kinds if 8 * kind(0).nbytes >= min(num_classes, 64))
    radius = tolerance * math.hypot(*label.shape)
    matched = [np.zeros_like(border) for border in borders]
    for first in range(0, num_classes, 64):
        bits = np.zeros(num_classes, kind)
        some = bits[first : first + 64]
        some[:] = kind(1) << np.arange(len(some), dtype=kind)
        sets = [bits[each] * border for each, border in zip(maps, borders, strict=True)]
        for own, other, hits in zip(sets, reversed(sets), matched, strict=True):
            hits |= own & unite(other, radius) != 0
    columns = [
        np.bincount(each[chosen], minlength=num_classes)
        for each, border, hits in zip(maps, borders, matched, strict=True)
        for chosen in (border, hits)
    ]
    return torch.from_numpy(np.stack(columns, 1))


def on_border(labels: np.ndarray) -> np.ndarray:
    """Where a pixel of [H, W] has a neighbour above, below, left or right with another value: bool [H, W]."""
    border = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    return border


def unite(sets: np.ndarray, radius: float) -> np.ndarray:
    """The union of the sets of all pixels within `radius` of each pixel; a set is an integer of [H, W], by its bits.

    A disc is a stack of rows, and the rows of one width are the rows of the next smaller width and two shifts more:
    about 4 times the radius ORs of the whole map, where a distance transform for each class does the same work again.
    """
    height = len(sets)
    limit = int(radius**2 + 1e-6)  # squared distances are integers; rounding must not lose the one that equals radius²
    united, rows, width = np.zeros_like(sets), sets.copy(), 0
    for dy in range(min(math.isqrt(limit), height - 1), -1, -1):
        while width < math.isqrt(limit - dy * dy):
            width += 1
            rows[:, width:] |= sets[:, :-width]
            rows[:, :-width] |= sets[:, width:]
        united[dy:] |= rows[: height - dy]
        united[: height - dy] |= rows[dy:]
    return united


@dataclass(frozen=True)
class BoundaryScores:
    """Boundary F1 in 0..1; NaN where no image has a border."""

    f1: float
    images: int  # how many have a border at all: `f1` is their mean
    per_class: list[float]  # mean over the images in which the truth has a border of the class


def boundary_scores(counts: Tensor) -> BoundaryScores:
    """Boundary F1 of a split: in each image the mean over the classes of the truth, then the mean over images.

    A class that fills a picture, or is not in its truth, has no border to find and does not enter that picture's mean.

    Args:
        counts: int64 [N, C, 4], `boundary_counts` of each image.
    """
    predicted, right, true, found = counts.double().unbind(-1)  # [N, C]
    precision, recall = (right / predicted).nan_to_num(0.0), found / true  # no border predicted: none is right
    f1 = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
    f1[true == 0] = torch.nan
    image = f1.nanmean(1)
    return BoundaryScores(image.nanmean().item(), int(image.isfinite().sum()), f1.nanmean(0).tolist())


def trimap_matrices(
    prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int, widths: Sequence[float] = WIDTHS
) -> Tensor:
    """Confusion matrices of one image within bands around the borders of the truth; `scores` makes IoUs of them.

    Unlike in `boundary_counts`, the edge of void is a border too: the papers measure on PASCAL VOC, where void lies
    around every object, and take the pixels around it. Void itself is not counted.

    Args:
        prediction: class indices [H, W], any integer type.
        label: the truth, [H, W]; values 0..num_classes-1 or `ignore_index`.
        widths: a band holds the pixels less than so many pixels away from a border pixel; 1: the border pixels, those
            with another label above, below, left or right.

    Returns int64 [len(widths), num_classes, num_classes]; matrices of several images are added.

    Raises:
        InputError: as `confusion_matrix`.
    """
    border = on_border(label.numpy())
    if not border.any():
        return torch.zeros(len(widths), num_classes, num_classes, dtype=torch.int64)
    distance = torch.from_numpy(ndimage.distance_transform_edt(~border))
    bands = [torch.where(distance < width, label, ignore_index) for width in widths]
    return torch.stack([confusion_matrix(prediction, band, num_classes, ignore_index) for band in bands])
