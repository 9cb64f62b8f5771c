"""Losses that are a mean over classes, each a measure of overlap between two regions: Dice and Lovász-softmax.

Both take the pixels of the whole batch together, as the score takes those of the whole split, and average over the
classes that occur in the truth. Every class counts alike, so class weights have no place here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seglearn.losses.pixels import prepare


def dice(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """1 - Dice, averaged over the classes present; Dice of a class is 2 sum(p t) / (sum(p) + sum(t)), in 0..1.

    p is the class's softmax probability and t its one-hot truth, summed over labelled pixels. The soft Dice of
    Milletari et al., "V-Net", 3DV 2016, section 3, but without their squares and for any number of classes. No epsilon
    is needed: a class that is present has sum(t) >= 1. An absent class would have Dice 0 however well it is avoided.

    Args:
        logits: [N, C, H, W], any float type; computed in float32 at least.
        label: [N, H, W], integers 0..C-1 or `ignore_index`.

    Returns a scalar, float32; 0, with gradient 0, where all pixels are ignored.

    Raises:
        InputError: as `cross_entropy` does.
    """
    probability, truth = present_classes(logits, label, ignore_index)
    overlap = (probability * truth).sum(1)
    return mean_over_classes(1 - 2 * overlap / (probability.sum(1) + truth.sum(1)))


def lovasz_softmax(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """Lovász-softmax: 1 - IoU of each class present, made continuous, averaged over the classes.

    IoU depends on which pixels are wrong, not on how wrong. The Lovász extension orders the pixels by error and
    multiplies each error by what IoU loses as that pixel joins the wrong ones; on hard predictions it is 1 - IoU.
    Berman et al., "The Lovász-Softmax loss", CVPR 2018, algorithm 1; the mean over present classes is their code's.

    Arguments, return value and errors are those of `dice`.
    """
    probability, truth = present_classes(logits, label, ignore_index)
    error, order = (truth.to(probability.dtype) - probability).abs().sort(1, descending=True)
    truth = truth.gather(1, order)
    size = truth.sum(1, keepdim=True)
    overlap = (size - truth.cumsum(1)).to(error.dtype)  # with the truth, once this pixel and all before it are wrong
    union = (size + (~truth).cumsum(1)).to(error.dtype)
    # What IoU loses at this pixel. A pixel of the class leaves the overlap: 1 / union. Another one joins the union:
    # overlap / (union - 1) - overlap / union, written without the difference, which would lose most digits.
    loss = torch.where(truth, 1 / union, overlap / union / (union - 1))
    return mean_over_classes((error * loss).sum(1))


def present_classes(logits: Tensor, label: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Probabilities and truth (bool) of the labelled pixels, each [classes present, pixels]."""
    logits, label = prepare(logits, label, ignore_index)
    labelled = label != ignore_index
    probability = logits.softmax(1).movedim(1, 0)[:, labelled]
    # scatter and not ==, which would take a label outside 0..C-1, unchecked on a GPU, for no class at all
    truth = torch.zeros_like(probability, dtype=torch.bool).scatter_(0, label[labelled][None], True)
    present = truth.any(1)
    return probability[present], truth[present]


def mean_over_classes(each: Tensor) -> Tensor:
    """Mean, and 0 where there is no class."""
    return each.sum() / max(1, len(each))
