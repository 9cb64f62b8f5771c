"""The loss of every paper of the course: cross-entropy over labelled pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, label: Tensor, ignore_index: int, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored; 0, with gradient 0, where all are.

    Torch's own mean is 0/0 = NaN on a batch without a labelled pixel. Its gradient happens to be 0, but the NaN enters
    every sum with other losses and every average that is logged; a sum over a count written by hand has NaN gradients.

    Args:
        logits: [N, C, H, W], any float type; computed in float32.
        label: [N, H, W], integers 0..C-1 or `ignore_index`.
        weight: one factor a class, [C]; the mean is then weighted, as torch's is.

    Returns a scalar, float32.
    """
    label = label.long()
    total = F.cross_entropy(logits.float(), label, weight, ignore_index=ignore_index, reduction="sum")
    labelled = label != ignore_index
    if weight is None:
        return total / labelled.sum().clamp(min=1)
    # an ignored label may lie outside 0..C-1: look its weight up as class 0's and cancel it
    mass = (weight[label * labelled] * labelled).sum()
    return total / mass.clamp(min=1e-12)
