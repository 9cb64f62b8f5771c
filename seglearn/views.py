"""How a picture is shown to a network at test time: whole or in windows, at which sizes, mirrored or not.

The models take a picture of any size, so the plain view is the picture itself. Papers show more: DeepLab v3 averages
probabilities over six sizes and their mirror images, PSPNet slides a window of the training crop's size over each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.data.transforms import normalize
from seglearn.errors import InputError

STRIPE = 64  # rows of a label map that are upsampled at a time


@dataclass(frozen=True)
class View:
    """What the network is shown of a picture, in place of the picture as it is.

    Args:
        scales: factors by which the picture is resized; what the network says at each is resized back, and the
            probabilities are averaged.
        flip: average with the prediction for the mirror image, too.
        window: height and width of the windows that each resized picture is cut into, None for the whole at once. A
            smaller picture is filled up with the mean colour.
        overlap: share of the window by which neighbours overlap, at least. PSPNet's authors take 1/3.
        margin: rows and columns at a window's rim that do not count where another window sees more. What the network
            says there suffers from the cut; 0 averages over all of each window, as papers do.

    Raises:
        InputError: a scale that is not positive, or windows that do not cover the picture.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    overlap: float = 1 / 3
    margin: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"scales is {self.scales}: give at least one factor, each above 0, such as 0.5 1 1.5.")
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap is {self.overlap}: it is a share of the window, at least 0 and below 1.")
        if self.window is not None and not 0 <= 2 * self.margin <= self.overlap * min(self.window):
            raise InputError(
                f"margin is {self.margin}, but windows of {self.window[0]}x{self.window[1]} overlap by a share of "
                f"{self.overlap:.3g}: give at most half of that, else pixels between windows are lost."
            )

    @property
    def is_single(self) -> bool:
        """Whether the network is asked once, so that there is nothing to average."""
        return len(self.scales) == 1 and not self.flip


PLAIN = View()


def view_of(recipe: Mapping[str, Any]) -> View:
    """The view that a checkpoint's recipe was scored with; a recipe older than these fields has the plain one."""
    scales, window = recipe.get("test_scales", (1.0,)), recipe.get("test_window")
    return View(tuple(scales), recipe.get("test_flip", False), tuple(window) if window else None)


def logits_of(model: nn.Module, image: Tensor, view: View = PLAIN) -> Tensor:
    """Logits [C, H, W] of one picture uint8 [3, H, W]; of an average, the logarithm of the mean probability."""
    height, width = image.shape[1:]
    if view.is_single:
        (logits,) = maps(model, image, view)
        return rows_of(logits, (height, width), 0, height)
    return probabilities(model, image, view).log_()


def labels_of(model: nn.Module, image: Tensor, view: View = PLAIN) -> Tensor:
    """The class of the highest logit: uint8 [H, W] on the CPU, of one picture uint8 [3, H, W].

    The network's answer is brought to the picture's size and decided on in stripes, so that no map of all classes at
    that size is made.
    """
    height, width = image.shape[1:]
    scores = probabilities(model, image, view) if not view.is_single else next(maps(model, image, view))
    stripes = (rows_of(scores, (height, width), top, min(top + STRIPE, height)) for top in range(0, height, STRIPE))
    # max gives the same labels as argmax, several times faster on a CPU; only the small map leaves the device
    return torch.cat([stripe.max(0).indices.to(torch.uint8).cpu() for stripe in stripes])


def probabilities(model: nn.Module, image: Tensor, view: View) -> Tensor:
    """Mean probabilities [C, H, W] over sizes and mirror images."""
    height, width = image.shape[1:]
    total: Tensor | None = None
    for logits in maps(model, image, view):
        if total is None:
            total = logits.new_zeros(logits.shape[0], height, width, dtype=torch.float32)
        for top in range(0, height, STRIPE):
            stripe = rows_of(logits, (height, width), top, min(top + STRIPE, height))
            total[:, top : top + STRIPE] += stripe.float().softmax(0)
    assert total is not None
    return total / (len(view.scales) * (1 + view.flip))


def maps(model: nn.Module, image: Tensor, view: View) -> Iterator[Tensor]:
    """Logits of the picture at each size and then of its mirror image, turned back: [C, H * scale, W * scale]."""
    device = next(model.parameters()).device
    for scale in view.scales:
        batch = normalize(image.to(device))[None]  # [1, 3, H, W]
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        if size != list(image.shape[1:]):
            batch = F.interpolate(batch, size, mode="bilinear", antialias=scale < 1)
        batch = batch.contiguous(memory_format=torch.channels_last)
        for flipped in (False, True)[: 1 + view.flip]:
            logits = windows(model, batch.flip(3) if flipped else batch, view)[0]
            yield logits.flip(2) if flipped else logits


def windows(model: nn.Module, batch: Tensor, view: View) -> Tensor:
    """Logits [1, C, H, W] of pictures [1, 3, H, W], averaged where windows overlap."""
    if view.window is None:
        whole: Tensor = model(batch)
        return whole
    height, width = batch.shape[2:]
    down, across = (max(0, window - side) for window, side in zip(view.window, (height, width), strict=True))
    batch = F.pad(batch, (0, across, 0, down))  # the mean colour is 0
    tops, lefts = (
        starts(side, window, view.overlap) for side, window in zip(batch.shape[2:], view.window, strict=True)
    )
    total: Tensor | None = None
    for top in tops:
        for left in lefts:
            part = batch[:, :, top : top + view.window[0], left : left + view.window[1]]
            logits = model(part.contiguous(memory_format=torch.channels_last)).float()
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], *batch.shape[2:])
                seen = logits.new_zeros(batch.shape[2:])
            rows, columns = (
                slice(view.margin * (start > 0), window - view.margin * (start < last))
                for start, last, window in ((top, tops[-1], view.window[0]), (left, lefts[-1], view.window[1]))
            )
            here = (slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop))
            total[(..., *here)] += logits[:, :, rows, columns]
            seen[here] += 1
    assert total is not None
    return (total / seen)[:, :, :height, :width]


def starts(side: int, window: int, overlap: float) -> list[int]:
    """Where windows begin on one axis: evenly spread from end to end, as few as overlap by at least that share."""
    between = side - window
    steps = -(-between // max(1, int(window * (1 - overlap))))
    return [round(step * between / max(1, steps)) for step in range(steps + 1)]


def rows_of(logits: Tensor, size: tuple[int, int], first: int, last: int) -> Tensor:
    """Rows `first` to `last` of the logits [C, h, w] resized to `size`, bilinear: [C, last - first, size[1]]."""
    height, width = size
    if logits.shape[1:] == (height, width):
        return logits[:, first:last]
    centres = (torch.arange(first, last, device=logits.device) + 0.5) * (logits.shape[1] / height) - 0.5
    centres = centres.clamp(0, logits.shape[1] - 1)
    above = centres.floor().long()
    below = (above + 1).clamp(max=logits.shape[1] - 1)
    rows = torch.lerp(logits[:, above].float(), logits[:, below].float(), (centres - above)[:, None])
    return F.interpolate(rows, width, mode="linear")
