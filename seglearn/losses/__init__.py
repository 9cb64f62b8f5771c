"""Losses of the course, and the weights that some of them take.

Every loss is called with logits [N, C, H, W], a label [N, H, W] and the dataset's ignore index. Ignored pixels neither
add to it nor get a gradient; without any other it is 0, not NaN; no argument is changed; half precision is computed in
float32. `cross_entropy`, `focal` and `ohem` are means over pixels and take class weights; `dice` and `lovasz_softmax`
are means over classes. Chapter: `book/basics/losses`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from seglearn.errors import InputError
from seglearn.losses.pixels import cross_entropy, focal, ohem
from seglearn.losses.regions import dice, lovasz_softmax
from seglearn.losses.weights import (
    SEGNET_CAMVID_WEIGHTS,
    border_weights,
    class_weights,
    count_pixels,
    enet_weights,
    inverse_sqrt_weights,
    median_frequency_weights,
)

OVER_PIXELS: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "focal": focal, "ohem": ohem}
OVER_CLASSES: dict[str, Callable[..., Tensor]] = {"dice": dice, "lovasz": lovasz_softmax}


def create(name: str, ignore_index: int, weight: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """A criterion(logits, label) by its name: cross_entropy, focal, ohem, dice, lovasz, or a sum such as `focal+dice`.

    Args:
        weight: one factor a class, [C], for those terms of the sum that are means over pixels.

    Raises:
        InputError: an unknown name (names the nearest), or weights for a loss without a term that takes them.
    """
    check(name, weight is not None)
    terms = [
        partial(OVER_PIXELS[term], weight=weight) if term in OVER_PIXELS else OVER_CLASSES[term]
        for term in name.split("+")
    ]

    def criterion(logits: Tensor, label: Tensor) -> Tensor:
        return torch.stack([term(logits, label, ignore_index) for term in terms]).sum()

    return criterion


def total_weight(label: Tensor, ignore_index: int, weight: Tensor | None = None) -> Tensor:
    """What a mean over pixels divides by: the labelled pixels of `label` [N, H, W], or the sum of their class weights.

    Means over parts of a batch, each times its share of this, add up to the mean over the whole.
    """
    label = label.long()
    labelled = label != ignore_index
    if weight is None:
        return labelled.sum().to(torch.float32)
    return weight.float()[label[labelled]].sum()


def check(name: str, weighted: bool) -> None:
    """Refuse what `create` cannot build."""
    known = [*OVER_PIXELS, *OVER_CLASSES]
    terms = name.split("+")
    for term in terms:
        if term not in known:
            near = difflib.get_close_matches(term, known, 1, cutoff=0)[0]
            raise InputError(
                f"loss {term!r} is unknown: did you mean {near!r}? Known are {', '.join(known)}, and sums of them such "
                "as cross_entropy+dice."
            )
    if weighted and not any(term in OVER_PIXELS for term in terms):
        raise InputError(
            f"loss {name} takes no class weights, since every class counts alike in it: set class_weights to none, or "
            f"loss to cross_entropy+{name}."
        )


__all__ = [
    "SEGNET_CAMVID_WEIGHTS",
    "border_weights",
    "class_weights",
    "count_pixels",
    "create",
    "cross_entropy",
    "dice",
    "enet_weights",
    "inverse_sqrt_weights",
    "focal",
    "lovasz_softmax",
    "median_frequency_weights",
    "ohem",
    "total_weight",
]
