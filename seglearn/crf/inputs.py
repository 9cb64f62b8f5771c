"""What a CRF is asked: its settings with their defaults, and what is refused, with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from seglearn.errors import InputError

Sigma: TypeAlias = float | Sequence[float]
Setting: TypeAlias = Mapping[str, object]  # sxy, srgb: Sigma; compat: float or Tensor

SMOOTHNESS: Setting = {"sxy": 3.0, "compat": 3.0}  # the example in pydensecrf's README
APPEARANCE: Setting = {"sxy": 80.0, "srgb": 13.0, "compat": 10.0}


def settings(
    smoothness: Setting | None, appearance: Setting | None
) -> list[tuple[tuple[float, ...], tuple[float, ...] | None, object]]:
    """(sxy, srgb, compat) of each kernel; srgb is None for the smoothness kernel."""
    if smoothness is None and appearance is None:
        raise InputError("smoothness and appearance are both None: a CRF needs at least one of them.")
    kernels = []
    for name, given, default in (("smoothness", smoothness, SMOOTHNESS), ("appearance", appearance, APPEARANCE)):
        if given is None:
            continue
        unknown = sorted(given.keys() - default.keys())
        if unknown:
            raise InputError(f"{name} has no setting {unknown[0]!r}: it has {', '.join(default)}.")
        setting = {**default, **given}
        srgb = _deviations(name, "srgb", setting["srgb"], 3) if "srgb" in setting else None
        kernels.append((_deviations(name, "sxy", setting["sxy"], 2), srgb, setting["compat"]))
    return kernels


def _deviations(kernel: str, name: str, value: object, count: int) -> tuple[float, ...]:
    numbers = (value,) * count if isinstance(value, int | float) else value
    if (
        not isinstance(numbers, Sequence)
        or len(numbers) != count
        or not all(isinstance(n, int | float) and 0 < n < float("inf") for n in numbers)
    ):
        raise InputError(f"{kernel} has {name} {value!r}: give one positive number, or {count} of them.")
    return tuple(float(n) for n in numbers)


def check_image(images: Tensor) -> None:
    """Refuse what is not a batch of RGB images, uint8 [B, 3, H, W]."""
    if images.ndim != 4:
        raise InputError(f"image has shape {list(images.shape)[1:]}: give RGB, uint8 [3, H, W].")
    shape = list(images.shape[1:])
    if shape[0] != 3:
        if shape[0] == 4:
            hint = "drop its alpha channel with image[:3]"
        elif shape[0] == 1:
            hint = "repeat its grey values with image.expand(3, -1, -1)"
        elif shape[2] in (1, 3, 4):
            hint = "put its channels first with image.permute(2, 0, 1)"
        else:
            hint = "give 3 channels, red, green and blue"
        raise InputError(f"image has shape {shape}, not [3, H, W]: {hint}.")
    if images.dtype != torch.uint8:
        raise InputError(f"image is {images.dtype}: give uint8 from 0 to 255, as read from its file, not normalised.")


def check(probabilities: Tensor, images: Tensor) -> None:
    """Refuse probabilities [B, C, H, W] that are none, or that do not fit images [B or 1, 3, H, W]."""
    check_image(images)
    if probabilities.ndim != 4 or not probabilities.is_floating_point():
        found = f"{probabilities.dtype} {list(probabilities.shape)[1:]}"
        raise InputError(f"probabilities are {found}: give floating-point numbers of shape [C, H, W].")
    classes, *sides = probabilities.shape[1:]
    size = list(images.shape[2:])
    if sides != size:
        swapped = ": height and width are swapped in one of them" if sides == size[::-1] else ": resize one of them"
        raise InputError(f"probabilities are {sides[0]}x{sides[1]}, the image is {size[0]}x{size[1]}{swapped}.")
    if classes < 2:
        raise InputError("probabilities have one class: for foreground p give both, torch.stack([1 - p, p]).")
    low, off = probabilities.amin(), (probabilities.sum(1, dtype=torch.float32) - 1).abs().amax()
    if bool(low >= 0) and bool(off <= 0.01):  # bfloat16 is off by up to 0.003; both are false for NaN
        return
    if not probabilities.isfinite().all():
        raise InputError("probabilities are not finite: look for NaN or infinity in the network's scores.")
    logits = "are these logits? Give logits.softmax(0)"
    if low < 0:
        raise InputError(f"probabilities go down to {low:.3g}: {logits}.")
    raise InputError(f"probabilities of a pixel sum to 1 give or take {off:.3g}: {logits}.")
