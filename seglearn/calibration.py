"""Does a network know when it is wrong? Its confidence against how often it is right.

Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seglearn.metrics import void_last

UNIT = 2**24  # confidences are summed as integers, in units of 1 / UNIT: such sums are the same in every order


def calibration_counts(logits: Tensor, label: Tensor, ignore_index: int | None = None, bins: int = 15) -> Tensor:
    """Count the pixels of one image by the confidence of their prediction, the highest softmax probability.

    Args:
        logits: [C, H, W], any float type; computed in float32.
        label: the truth, [H, W]; values 0..C-1 or `ignore_index`.
        bins: how many parts of equal width 0..1 is divided into; each includes its upper end.

    Returns int64 [bins, 3]: pixels, those of them that are right, the sum of their confidences in units of 1 / `UNIT`.
    Counts of several images are added.

    Raises:
        InputError: as `confusion_matrix`.
    """
    logits, label = logits.float(), label.to(logits.device)
    top, prediction = logits.max(0)
    kept = void_last(prediction, label, len(logits), ignore_index) != len(logits)
    confidence = (top - logits.logsumexp(0)).exp()[kept].double()
    index = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    weights = (None, (prediction == label)[kept].double(), (confidence * UNIT).round())
    return torch.stack([index.bincount(weight, bins).long() for weight in weights], 1)


@dataclass(frozen=True)
class Calibration:
    """How confidence and accuracy agree, all in 0..1; NaN where no pixel was counted."""

    ece: float  # expected calibration error: mean over pixels of |accuracy - confidence| of their bin
    confidence: float  # mean over all pixels; above the accuracy: the network is too sure of itself
    accuracy: float
    share: list[float]  # a value a bin from here on: its share of the pixels,
    bin_confidence: list[float]  # the mean confidence in it,
    bin_accuracy: list[float]  # and the share that is right: against the confidence, a reliability diagram


def calibration(counts: Tensor) -> Calibration:
    """Expected calibration error and reliability diagram of `calibration_counts`, int64 [bins, 3]."""
    pixels, right, confidence = counts.double().unbind(1)
    confidence, total = confidence / UNIT, pixels.sum()
    return Calibration(
        ece=((right - confidence).abs().sum() / total).item(),
        confidence=(confidence.sum() / total).item(),
        accuracy=(right.sum() / total).item(),
        share=(pixels / total).tolist(),
        bin_confidence=(confidence / pixels).tolist(),
        bin_accuracy=(right / pixels).tolist(),
    )
