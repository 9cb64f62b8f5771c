"""Augmented samples a second on one core: cut the window then resize it, against resizing the picture first.

Run: python benchmarks/augmentation.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timing import paired, ratio
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from seglearn.data import StreetScenes
from seglearn.data.transforms import MEAN_PIXEL, Augment, jitter_colours, pad

CROP, SCALE, JITTER, SAMPLES, ROUNDS = (224, 224), (0.5, 2.0), 0.2, 100, 7


def resize_first(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The usual order: resize the whole picture, pad it to the crop, cut the crop, flip, jitter."""
    scale, down, right, flip, *jitter = torch.rand(7, generator=generator).tolist()
    scale = SCALE[0] + scale * (SCALE[1] - SCALE[0])
    size = [round(image.shape[1] * scale), round(image.shape[2] * scale)]
    image = F.resize(image, size, antialias=scale < 1)
    label = F.resize(label[None], size, InterpolationMode.NEAREST_EXACT)
    canvas = (max(CROP[0], size[0]), max(CROP[1], size[1]))
    if canvas != tuple(size):
        image, label = pad(image, canvas, 0, 0, MEAN_PIXEL), pad(label, canvas, 0, 0, (11,))
    top, left = int(down * (canvas[0] - CROP[0] + 1)), int(right * (canvas[1] - CROP[1] + 1))
    image, label = F.crop(image, top, left, *CROP), F.crop(label, top, left, *CROP)
    if flip < 0.5:
        image, label = F.horizontal_flip(image), F.horizontal_flip(label)
    return jitter_colours(image, *(1 + JITTER * (2 * value - 1) for value in jitter)), label[0]


def main() -> None:
    """Time both orders in turn, so that a busy machine slows both."""
    torch.set_num_threads(1)
    image, label = StreetScenes("train", size=(360, 480))[0]
    orders: dict[str, Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]] = {
        "cut, then resize": Augment(CROP, 11, SCALE, flip=0.5, jitter=JITTER),
        "resize, then cut": resize_first,
    }

    def work(augment: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]) -> None:
        generator = torch.Generator().manual_seed(0)
        for _ in range(SAMPLES):
            augment(image, label, generator)

    seconds = paired({name: partial(work, augment) for name, augment in orders.items()}, ROUNDS)
    for name, times in seconds.items():
        print(f"{name}: {SAMPLES / min(times):6.0f} samples/s of {CROP[0]}x{CROP[1]} from 360x480, one core")
    ours, theirs = seconds.values()
    print(f"resize first takes {ratio(theirs, ours):.2f} times as long (median of {ROUNDS} paired rounds)")


if __name__ == "__main__":
    main()
