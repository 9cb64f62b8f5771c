"""Augmentation of picture and label together, and the normalisation that every model expects.

Resizing is most of an augmentation's cost. So the order here is: draw the scale, cut the window of the *source* that
the crop will show, and resize only that. Chapter: `book/basics/data_and_scores`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB values in 0..1, as torchvision's weights expect them
STD = (0.229, 0.224, 0.225)
MEAN_PIXEL = (124, 116, 104)  # the same mean in 0..255: a padded pixel becomes about 0 after `normalize`


def normalize(image: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] to float32 with ImageNet's mean 0 and standard deviation 1 in each channel."""
    mean = torch.tensor(MEAN, device=image.device).view(3, 1, 1) * 255
    std = torch.tensor(STD, device=image.device).view(3, 1, 1) * 255
    return (image - mean) / std


@dataclass(frozen=True)
class Augment:
    """Random scale, crop, flip and colour jitter, the same geometry for picture and label.

    Args:
        crop: height and width of what comes out, in pixels.
        ignore_index: what the label is padded with where the crop reaches beyond the picture. Padding it with 0
            would teach the network that black borders are class 0.
        scale: the picture is resized by a factor drawn uniformly from this range.
        flip: probability of a horizontal flip.
        jitter: brightness, contrast and saturation are each multiplied by a factor in [1 - jitter, 1 + jitter].
    """

    crop: tuple[int, int]
    ignore_index: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.0

    def __call__(self, image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment uint8 `[3, H, W]` and `[H, W]`; everything random comes from `generator`.

        Returns uint8 `[3, *crop]` and `[*crop]`.
        """
        scale, down, right, flip, *jitter = torch.rand(7, generator=generator).tolist()
        scale = self.scale[0] + scale * (self.scale[1] - self.scale[0])
        top, bottom, out_top, out_bottom = window(image.shape[1], self.crop[0], scale, down)
        left, right, out_left, out_right = window(image.shape[2], self.crop[1], scale, right)
        size = [out_bottom - out_top, out_right - out_left]
        image = F.resize(image[:, top:bottom, left:right], size, antialias=scale < 1)
        # nearest-exact samples at pixel centres, as the bilinear picture does; plain nearest is off by half a pixel
        label = F.resize(label[None, top:bottom, left:right], size, InterpolationMode.NEAREST_EXACT)[0]
        if flip < self.flip:
            image, label = F.horizontal_flip(image), F.horizontal_flip(label)
            out_left, out_right = self.crop[1] - out_right, self.crop[1] - out_left
        if self.jitter:
            image = jitter_colours(image, *(1 + self.jitter * (2 * value - 1) for value in jitter))
        if size != list(self.crop):
            image = pad(image, self.crop, out_top, out_left, MEAN_PIXEL)
            label = pad(label[None], self.crop, out_top, out_left, (self.ignore_index,))[0]
        return image, label


def window(side: int, crop: int, scale: float, position: float) -> tuple[int, int, int, int]:
    """One axis of a random crop: which source pixels it shows, and where they lie in the crop.

    Resizing `side` pixels by `scale` and cutting `crop` of them shows `crop / scale` source pixels. `position` in
    [0, 1) places that window. Where it is longer than the source, it reaches beyond on both ends, by random amounts.

    Returns `start, stop` in the source and `start, stop` in the crop.
    """
    length = max(1, round(crop / scale))
    start = round(position * (side - length))  # negative where the window is longer than the picture
    first, last = max(start, 0), min(start + length, side)
    return first, last, round((first - start) * crop / length), max(round((last - start) * crop / length), 1)


def jitter_colours(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Multiply brightness, then contrast about the mean grey, then saturation about each pixel's grey.

    Each is linear in the pixel, so the three are one matrix: a single pass over uint8 [3, H, W].
    """
    pixels = image.flatten(1).float()  # [3, H * W]
    grey = torch.tensor([0.2989, 0.587, 0.114])  # ITU-R 601 luma, as torchvision weighs it
    mean = brightness * (grey @ pixels.mean(1))
    colour = saturation * torch.eye(3) + (1 - saturation) * grey
    pixels = (contrast * brightness * colour) @ pixels + (1 - contrast) * mean
    return pixels.clamp_(0, 255).round_().to(torch.uint8).view_as(image)


def pad(plane: Tensor, crop: tuple[int, int], top: int, left: int, fill: tuple[int, ...]) -> Tensor:
    """Place `[C, h, w]` into `[C, *crop]` at (top, left) on a background of one value a channel."""
    canvas = torch.tensor(fill, dtype=plane.dtype).view(-1, 1, 1).repeat(1, *crop)
    canvas[:, top : top + plane.shape[1], left : left + plane.shape[2]] = plane
    return canvas
