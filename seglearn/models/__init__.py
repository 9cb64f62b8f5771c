"""The models of the course, one file per paper. `create` makes one by its name.

Every model maps `[N, 3, H, W]` normalised images to `[N, num_classes, H, W]` logits for any size, and has

- `loss(images, labels, criterion)`, which takes the loss where its paper does;
- `parameter_groups()`, with the paper's factors on learning rate and weight decay.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import TypeAlias

from seglearn.errors import InputError
from seglearn.models import fcn
from seglearn.models.fcn import FCN

Model: TypeAlias = FCN  # the union of all model classes

SIZES = ("paper", "laptop")

_BUILDERS: dict[str, dict[str, Callable[[int], Model]]] = {
    "fcn32s": {"paper": partial(fcn.paper, stride=32), "laptop": partial(fcn.laptop, stride=32)},
    "fcn16s": {"paper": partial(fcn.paper, stride=16), "laptop": partial(fcn.laptop, stride=16)},
    "fcn8s": {"paper": partial(fcn.paper, stride=8), "laptop": partial(fcn.laptop, stride=8)},
}


def names() -> list[str]:
    """Names that `create` knows, in the order of the papers."""
    return list(_BUILDERS)


def create(name: str, num_classes: int, size: str = "paper") -> Model:
    """A fresh model.

    Args:
        name: one of `names()`.
        num_classes: number of classes, at least 2.
        size: "paper" for the paper's own, "laptop" for one of at most 2 million parameters.

    Raises:
        InputError: an unknown name or size, or fewer than 2 classes.
    """
    if name not in _BUILDERS:
        raise InputError(_unknown("model", name, names()))
    if size not in SIZES:
        raise InputError(_unknown("size", size, SIZES))
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}: a model needs at least 2 to tell apart.")
    return _BUILDERS[name][size](num_classes)


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    nearest = get_close_matches(name, known, n=1, cutoff=0)
    return f"Unknown {kind} {name!r}: did you mean {nearest[0]!r}? There are {', '.join(known)}."
