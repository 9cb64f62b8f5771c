"""Augmentation of picture and label together, and the normalisation that every model expects.

Resizing is most of an augmentation's cost. So the order here is: draw the scale, cut the window of the *source* that
the crop will show, and resize only that. Rotation and elastic deformation work the same way: scale, turn and
displacement make one map from the crop's pixels to the source, and the source is read once, through that map.
Chapter: `book/basics/data_and_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from seglearn.errors import InputError

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB values in 0..1, as torchvision's weights expect them
STD = (0.229, 0.224, 0.225)
MEAN_PIXEL = (124, 116, 104)  # the same mean in 0..255: a padded pixel becomes about 0 after `normalize`
PLACES = 10  # tried for a crop that no class fills, as in mmsegmentation


def normalize(image: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] to float32 with ImageNet's mean 0 and standard deviation 1 in each channel."""
    mean = torch.tensor(MEAN, device=image.device).view(3, 1, 1) * 255
    std = torch.tensor(STD, device=image.device).view(3, 1, 1) * 255
    return (image - mean) / std


@dataclass(frozen=True)
class Augment:
    """Random scale, crop, flip and changes of colour; if asked for, rotation, elastic deformation and blur.

    Picture and label go through the same geometry: the picture bilinear, the label by the nearest pixel, so that no
    class appears that was not there. What is off draws no random number.

    Args:
        crop: height and width of what comes out, in pixels.
        ignore_index: what the label is filled with where the crop reaches beyond the picture. Filling it with 0
            would teach the network that black borders are class 0. The picture is filled with the mean colour.
        scale: the picture is resized by a factor drawn uniformly from this range.
        flip: probability of a horizontal flip.
        jitter: brightness, contrast and saturation are each multiplied by a factor in [1 - jitter, 1 + jitter].
        rotate: the crop is turned about its centre by an angle drawn uniformly from [-rotate, rotate] degrees. PSPNet
            (Zhao et al., arXiv 1612.01105, section 5.1) takes 10; its authors' code turns every second picture, and
            the whole picture before the crop is cut.
        elastic: standard deviation, in pixels of the crop, of the random displacements of an elastic deformation:
            U-Net (Ronneberger et al., arXiv 1505.04597, section 3.1) takes 10. See `displacement`.
        blur: the picture is blurred by a Gaussian whose standard deviation, in pixels of the crop, is drawn uniformly
            from [0, blur]. PSPNet blurs (section 5.1) and gives no width; its authors' code blurs every second
            picture by 1.1 pixels.
        max_class_share: a place where one class has this share of the labelled pixels, or more, is drawn again, at
            most nine times. mmsegmentation's recipes take 0.75 (there called `cat_max_ratio`). 1 takes every place.

    Raises:
        InputError: a number out of its range.
    """

    crop: tuple[int, int]
    ignore_index: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.0
    rotate: float = 0.0
    elastic: float = 0.0
    blur: float = 0.0
    max_class_share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if min(self.crop) < 1:
            raise InputError(f"crop is {self.crop}: give height and width in pixels, each at least 1.")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise InputError(f"scale is {self.scale}: give a range low, high with 0 < low <= high.")
        for name, high, unit in (
            ("flip", 1, "a probability"),
            ("jitter", 1, "a share"),
            ("rotate", 180, "degrees"),
            ("elastic", math.inf, "pixels"),
            ("blur", math.inf, "pixels"),
        ):
            if not 0 <= getattr(self, name) <= high:
                limit = f", at most {high}" if high < math.inf else ""
                raise InputError(f"{name} is {getattr(self, name)}: give {unit}, at least 0 (off){limit}.")
        if not 0 < self.max_class_share <= 1:
            raise InputError(f"max_class_share is {self.max_class_share}: give a share above 0, at most 1 (off).")

    def __call__(self, image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment uint8 `[3, H, W]` and `[H, W]`; everything random comes from `generator`.

        Returns uint8 `[3, *crop]` and `[*crop]`.

        Raises:
            InputError: picture and label are not of one size.
        """
        if image.shape[1:] != label.shape:
            raise InputError(
                f"the picture is {list(image.shape)} and its label {list(label.shape)}: "
                "give [3, H, W] and [H, W] of the same height and width."
            )
        scale, down, across, flip, *jitter = torch.rand(7, generator=generator).tolist()
        scale = self.scale[0] + scale * (self.scale[1] - self.scale[0])
        for _ in range(PLACES):
            top, bottom, out_top, out_bottom = window(image.shape[1], self.crop[0], scale, down)
            left, right, out_left, out_right = window(image.shape[2], self.crop[1], scale, across)
            if self.max_class_share == 1 or self.is_varied(label[top:bottom, left:right]):
                break
            down, across = torch.rand(2, generator=generator).tolist()
        if self.rotate or self.elastic:
            positions = self.bend(image.shape[1:], scale, (down, across), generator)
            if flip < self.flip:
                positions = positions.flip(2)
            image, label, outside = read(image, label, positions, scale)
            image = self.recolour(image, jitter, generator)
            mean = torch.tensor(MEAN_PIXEL, dtype=torch.uint8).view(3, 1, 1)
            return torch.where(outside, mean, image), label.masked_fill_(outside, self.ignore_index)
        size = [out_bottom - out_top, out_right - out_left]
        image = F.resize(image[:, top:bottom, left:right], size, antialias=scale < 1)
        # nearest-exact samples at pixel centres, as the bilinear picture does; plain nearest is off by half a pixel
        label = F.resize(label[None, top:bottom, left:right], size, InterpolationMode.NEAREST_EXACT)[0]
        if flip < self.flip:
            image, label = F.horizontal_flip(image), F.horizontal_flip(label)
            out_left, out_right = self.crop[1] - out_right, self.crop[1] - out_left
        image = self.recolour(image, jitter, generator)
        if size != list(self.crop):
            image = pad(image, self.crop, out_top, out_left, MEAN_PIXEL)
            label = pad(label[None], self.crop, out_top, out_left, (self.ignore_index,))[0]
        return image, label

    def is_varied(self, label: Tensor) -> bool:
        """Whether every class has less than `max_class_share` of the labelled pixels."""
        counts = label.flatten().bincount(minlength=256)
        counts[self.ignore_index] = 0
        return bool(counts.max() < self.max_class_share * counts.sum())

    def bend(
        self, size: Sequence[int], scale: float, position: tuple[float, float], generator: torch.Generator
    ) -> Tensor:
        """Turn and deform the crop: where each of its pixels lies in a picture of `size`, `[2, *crop]` for `read`."""
        down, across = (torch.arange(side) + 0.5 - side / 2 for side in self.crop)
        positions = torch.stack(torch.meshgrid(down, across, indexing="ij"))  # from the centre, in the crop's pixels
        if self.elastic:
            positions += displacement(self.crop, self.elastic * torch.randn(2, 3, 3, generator=generator))
        if self.rotate:
            angle = math.radians(self.rotate * (2 * torch.rand(1, generator=generator).item() - 1))
            turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            positions = (turn @ positions.flatten(1)).view_as(positions)
        for axis, side, crop, where in zip(positions, size, self.crop, position, strict=True):
            start, length = place(side, crop, scale, where)
            axis.div_(crop).add_(0.5).mul_(length).add_(start)
        return positions

    def recolour(self, image: Tensor, jitter: list[float], generator: torch.Generator) -> Tensor:
        """Jitter and blur: what changes the picture and not the label. `jitter` are three values in [0, 1)."""
        if self.jitter:
            image = jitter_colours(image, *(1 + self.jitter * (2 * value - 1) for value in jitter))
        if self.blur:
            image = blur(image, self.blur * torch.rand(1, generator=generator).item())
        return image


def place(side: int, crop: int, scale: float, position: float) -> tuple[int, int]:
    """One axis of a random crop: start and length, in source pixels, of what it shows.

    Resizing `side` pixels by `scale` and cutting `crop` of them shows `crop / scale` source pixels. `position` in
    [0, 1) places that window. Where it is longer than the source, it reaches beyond on both ends, by random amounts.
    """
    length = max(1, round(crop / scale))
    return round(position * (side - length)), length  # the start is negative where the window is the longer one


def window(side: int, crop: int, scale: float, position: float) -> tuple[int, int, int, int]:
    """The part of that place that lies in the picture: which source pixels, and where they lie in the crop.

    Returns `start, stop` in the source and `start, stop` in the crop.
    """
    start, length = place(side, crop, scale, position)
    first, last = max(start, 0), min(start + length, side)
    return first, last, round((first - start) * crop / length), max(round((last - start) * crop / length), 1)


def displacement(crop: tuple[int, int], vectors: Tensor) -> Tensor:
    """U-Net's elastic deformation: `[2, 3, 3]` vectors on a coarse grid over the crop, `[2, *crop]` between them.

    The grid's outer points are the crop's corner and border pixels. Bicubic interpolation (of PyTorch, Keys' kernel
    with a = -0.75) is linear and works axis by axis, so it is two small matrix products. Vectors much longer than a
    tenth of the crop's side can fold the picture over itself.
    """
    down, across = (
        interpolate(torch.eye(3)[None, None], (side, 3), mode="bicubic", align_corners=True)[0, 0] for side in crop
    )
    return down @ vectors @ across.T


def read(image: Tensor, label: Tensor, positions: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Read picture (bilinear) and label (nearest) at `positions`: `[2, h, w]`, row and column of each output pixel.

    Positions are in source pixels, and pixel 0 reaches from 0 to 1. `scale` is how much larger things become.

    Returns uint8 `[3, h, w]`, uint8 `[h, w]`, and bool `[h, w]`: which positions lie outside the picture. These show
    the nearest pixel of the picture.
    """
    outside = torch.zeros(positions.shape[1:], dtype=torch.bool)
    window, grid = [], []
    for axis, side in zip(positions, label.shape, strict=True):
        outside |= (axis < 0) | (axis > side)
        # only what the positions reach is converted to float, and a pixel around it for the interpolation
        first = min(max(int(axis.min()) - 1, 0), side - 1)
        last = max(min(int(axis.max()) + 2, side), first + 1)
        window.append(slice(first, last))
        grid.append(2 * (axis - first) / (last - first) - 1)
    rows, columns = window
    where = torch.stack(grid[::-1], -1)[None]  # grid_sample wants x before y, from -1 to 1
    image, label = image[None, :, rows, columns], label[None, None, rows, columns].float()
    if scale < 1:  # bilinear reading would skip pixels; the grid spans the window, whatever its size
        image = F.resize(image, [math.ceil(side * scale) for side in label.shape[2:]])
    image = grid_sample(image.float(), where, "bilinear", "border", align_corners=False)[0]
    label = grid_sample(label, where, "nearest", "border", align_corners=False)[0, 0]
    return image.round_().to(torch.uint8), label.to(torch.uint8), outside


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian of standard deviation `sigma` pixels over uint8 `[3, H, W]`; the border is continued outwards."""
    # SciPy filters axis by axis; torchvision's two-dimensional kernel takes several times as long.
    smooth = gaussian_filter(image.numpy().astype("float32"), (0, sigma, sigma), mode="nearest")
    return torch.from_numpy(smooth).round_().to(torch.uint8)


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
