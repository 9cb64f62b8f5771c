"""Losses that are a mean over labelled pixels: cross-entropy, focal, online hard example mining."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seglearn.errors import InputError


def cross_entropy(
    logits: Tensor, label: Tensor, ignore_index: int, weight: Tensor | None = None, pixel_weight: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored; 0, with gradient 0, where all are.

    Torch's own mean is 0/0 = NaN on a batch without a labelled pixel. Its gradient happens to be 0, but the NaN enters
    every sum with other losses and every average that is logged; a sum over a count written by hand has NaN gradients.

    Args:
        logits: [N, C, H, W], any float type; computed in float32 at least.
        label: [N, H, W], integers 0..C-1 or `ignore_index`.
        weight: one factor a class, [C]; the mean is then weighted, as torch's is.
        pixel_weight: one factor a pixel, [N, H, W], such as `1 + border_weights(...)`; the mean is weighted by it too.

    Returns a scalar, float32.

    Raises:
        InputError: shapes that do not fit, a label that is no integer, a weight that is not one a class; on the CPU
            also a label that is neither a class nor ignored.
    """
    logits, label = prepare(logits, label, ignore_index)
    each = F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none")  # [N, H, W]
    factor = pixel_factors(logits, label, ignore_index, weight)
    return weighted_mean(each, factor if pixel_weight is None else factor * pixel_weight)


def focal(logits: Tensor, label: Tensor, ignore_index: int, weight: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Mean of (1 - p) ** gamma times the cross-entropy -ln p, p being the probability of the pixel's true class.

    Pixels that are right already count little: at gamma 2, one with p = 0.9 counts a hundredth. At gamma 0 this is
    `cross_entropy`. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 3.2, there for yes-or-no
    outputs and with their best gamma; this is the form for a softmax. Their alpha is `weight`.

    Arguments, return value and errors are those of `cross_entropy`. Mean over labelled pixels: some implementations
    also divide by the ignored ones, and then the loss depends on how much of a crop is void.
    """
    logits, label = prepare(logits, label, ignore_index)
    each = F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none")
    # 1 - p without cancellation. It is 0 where p = 1, and there a power below 1 has an infinite slope: hence the clamp
    miss = torch.expm1(-each).neg().clamp(min=torch.finfo(each.dtype).tiny)
    return weighted_mean(miss**gamma * each, pixel_factors(logits, label, ignore_index, weight))


def ohem(
    logits: Tensor,
    label: Tensor,
    ignore_index: int,
    weight: Tensor | None = None,
    threshold: float = 0.7,
    minimum: float = 1 / 16,
) -> Tensor:
    """Cross-entropy over hard pixels only: those whose true class is predicted with at most probability `threshold`.

    Where these are fewer than the share `minimum` of the labelled pixels, that share of the hardest is taken instead.
    The definition is that of Wu, Shen, van den Hengel, "Bridging Category-level and Instance-level Semantic Image
    Segmentation", arXiv 1605.06885 (online bootstrapping; for detection: Shrivastava et al., CVPR 2016). They state the
    minimum as a number of pixels. A share means the same at every crop size; 0.7 and 1/16 are what
    CoinCheung/BiSeNet trains with. The selection is over all pixels of the batch, by unweighted loss.

    Arguments, return value and errors are otherwise those of `cross_entropy`.
    """
    logits, label = prepare(logits, label, ignore_index)
    each = F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none")
    with torch.no_grad():
        candidates = each[label != ignore_index]
        kept = math.ceil(minimum * len(candidates))
        easiest = -math.log(threshold)  # as a loss
        if kept:
            easiest = min(easiest, candidates.topk(kept).values[-1].item())
    return weighted_mean(each, pixel_factors(logits, label, ignore_index, weight) * (each >= easiest))


def prepare(logits: Tensor, label: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Check what every loss is given; logits in float32 at least, label in int64.

    In int64 before any comparison: to torch, a uint8 label of 255 equals -1.
    """
    if label.shape != logits.shape[:1] + logits.shape[2:]:
        raise InputError(
            f"label is {list(label.shape)} but logits are {list(logits.shape)}: expected [N, H, W] and [N, C, H, W] "
            "with the same N, H and W; resize the logits to the label's size."
        )
    if label.is_floating_point():
        raise InputError(f"label is {label.dtype}: expected integers, one class index a pixel.")
    label = label.long()
    if label.device.type == "cpu" and label.numel():  # a GPU would have to stop for it
        low, high = label.masked_fill(label == ignore_index, 0).aminmax()
        if low < 0 or high >= logits.shape[1]:
            raise InputError(
                f"label holds {int(low if low < 0 else high)}: expected classes 0..{logits.shape[1] - 1} and the "
                f"ignore index, which is {ignore_index}; pass the dataset's own."
            )
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), label


def pixel_factors(logits: Tensor, label: Tensor, ignore_index: int, weight: Tensor | None) -> Tensor:
    """How much each pixel counts, [N, H, W]: 0 where ignored, else the weight of its class, or 1."""
    labelled = label != ignore_index
    if weight is None:
        return labelled.to(logits.dtype)
    if weight.shape != logits.shape[1:2]:
        raise InputError(f"weight is {list(weight.shape)}: expected one a class, [{logits.shape[1]}].")
    # an ignored label may lie outside 0..C-1: look its weight up as class 0's and cancel it
    return weight[label * labelled] * labelled


def weighted_mean(each: Tensor, factor: Tensor) -> Tensor:
    """Mean of `each` weighted by `factor`; 0 where all factors are 0."""
    return (each * factor).sum() / factor.sum().clamp(min=1e-12)
