"""FCN-32s, FCN-16s, FCN-8s: fully convolutional networks (Long, Shelhamer & Darrell 2015, arXiv 1411.4038).

A classifier's fully connected layers are convolutions in disguise: written as such, VGG-16 scores every
position of an image of any size. Its scores come one per 32 pixels; skips add the finer scores of pool4
(FCN-16s) and pool3 (FCN-8s), and upsampling brings the sum back to pixels. The net is trained end to end with
a loss on each pixel.

Chapter: book/models/fcn.

Differs from the paper:
    - every upsampling is a fixed bilinear kernel, as in the authors' release (the paper's text learns the x2
      ones). Kernels are buffers: 134 346 581, 134 357 354 and 134 362 751 parameters at 21 classes;
    - the three nets are trained one after the other by `start_from`; `at_once` is the release's other way;
    - weights come from torchvision's VGG-16, so images are RGB and normalised, not BGR minus the mean;
    - laptop size: a narrow VGG with batch normalisation, padded by 1 pixel rather than 100 (which more than
      doubles the work at 360x480), and fc6 3x3 rather than 7x7. The geometry is derived in the same way.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import VGG, Weights, torchvision_state_dict
from seglearn.backbones.vgg import initialise
from seglearn.errors import InputError
from seglearn.models.layers import parameter_groups


class Upsample(nn.Module):
    """Bilinear upsampling as a transposed convolution with a fixed kernel, each channel by itself.

    The result reaches half a coarse cell beyond the map on each side, where its values fade to 0.
    """

    kernel: Tensor

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        ramp = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor  # a triangle: up, then down
        kernel = torch.outer(ramp, ramp).repeat(channels, 1, 1, 1)  # [C, 1, 2 factor, 2 factor]
        self.register_buffer("kernel", kernel, persistent=False)  # follows from factor: no need to store it

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w] -> [N, C, factor * (h + 1), factor * (w + 1)]`."""
        # in bfloat16 a CPU has no fast transposed convolution of this kind: with factor 32 it takes 20 times longer
        with torch.autocast("cpu", enabled=False):
            upsampled = F.conv_transpose2d(x.to(self.kernel), self.kernel, stride=self.factor, groups=len(self.kernel))
        return upsampled.to(x.dtype)

    def extra_repr(self) -> str:
        """Channels and factor, for `print`."""
        return f"{len(self.kernel)}, factor={self.factor}"


class Grid(NamedTuple):
    """Where the cells of a map lie: cell `i` is centred on pixel `stride * i + start` of the image."""

    stride: int = 1
    start: float = 0.0

    def through(self, layers: Iterable[nn.Module]) -> "Grid":
        """The grid behind convolutions, poolings and `Upsample` layers; other layers leave it as it is."""
        stride, start = self
        for layer in layers:
            if isinstance(layer, Upsample):
                stride //= layer.factor
                start -= stride * (layer.factor - 0.5)  # the kernel spreads a cell over 2 factor finer ones
            elif isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                kernel, step, padding, dilation = (
                    int(size[0]) if isinstance(size, tuple) else int(size)
                    for size in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
                )
                start += stride * (dilation * (kernel - 1) / 2 - padding)
                stride *= step
        return Grid(stride, start)

    def offset_in(self, other: "Grid") -> int:
        """Which cell of `other` lies under cell 0 of this grid: negative if `other` starts later.

        Raises:
            InputError: the grids differ in stride, or by a fraction of a cell.
        """
        if self.stride != other.stride or (self.start - other.start) % other.stride:
            raise InputError(f"{self} and {other} cannot be laid over each other without resampling.")
        return int(self.start - other.start) // other.stride


def add(scores: Tensor, skip: Tensor, offset: int) -> Tensor:
    """Sum of two maps over the cells they share; cell 0 of `scores` lies on cell `offset` of `skip`."""
    scores = scores[..., max(-offset, 0) :, max(-offset, 0) :]
    skip = skip[..., max(offset, 0) :, max(offset, 0) :]
    height, width = (min(sides) for sides in zip(scores.shape[-2:], skip.shape[-2:], strict=True))
    return scores[..., :height, :width] + skip[..., :height, :width]


def score_layer(channels: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution that starts at zero, as in the paper: a new skip adds nothing at first."""
    layer = nn.Conv2d(channels, num_classes, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class FCN(nn.Module):
    """The net of the paper's figure 3, for every height and width from 1 pixel on.

    The logits are a view into a slightly larger map, so not contiguous; autocast decides on their type.
    The backbone, fc6 and fc7 start from VGG-16 (`load_imagenet`), every score layer from zero.

    Args:
        num_classes: number of classes, C in the shapes below.
        stride: 32, 16 or 8, that of the finest scores.
        backbone: a VGG without classifier and with `ceil_mode`; None makes the paper's.
        hidden: channels of fc6 and fc7.
        fc6: kernel size and padding of fc6.
        dropout: share of single activations dropped after fc6 and fc7.
        batch_norm: normalise fc6 and fc7.
        at_once: train all skips in one go, not net after net: pool4 counts 0.01 and pool3 0.0001 times before
            it is scored, as in the release.

    Attributes:
        offsets: cells cropped before each sum (at pool4, at pool3) and at the end. A negative number is
            cropped from the upsampled scores, not from the skip.
    """

    def __init__(
        self,
        num_classes: int,
        stride: int,
        *,
        backbone: VGG | None = None,
        hidden: int = 4096,
        fc6: tuple[int, int] = (7, 0),
        dropout: float = 0.5,
        batch_norm: bool = False,
        at_once: bool = False,
    ) -> None:
        super().__init__()
        if stride not in (8, 16, 32):
            raise InputError(f"stride is {stride}: FCN has 32, 16 and 8.")
        self.stride = stride
        self.skip_scales = (1e-2, 1e-4) if at_once else (1.0, 1.0)
        self.backbone = backbone or VGG(num_classes=None, first_padding=100, ceil_mode=True)
        _, _, pool3, pool4, pool5 = self.backbone.channels

        def fully_connected(channels: int, kernel: int, padding: int) -> nn.Sequential:
            conv = nn.Conv2d(channels, hidden, kernel, padding=padding)
            norm = [nn.BatchNorm2d(hidden)] if batch_norm else []
            return nn.Sequential(conv, *norm, nn.ReLU(inplace=True), nn.Dropout(dropout))

        self.fc6 = fully_connected(pool5, *fc6)
        self.fc7 = fully_connected(hidden, 1, 0)
        initialise(self)
        self.score_fr = score_layer(hidden, num_classes)
        if stride <= 16:
            self.upscore2 = Upsample(num_classes, 2)
            self.score_pool4 = score_layer(pool4, num_classes)
        if stride == 8:
            self.upscore_pool4 = Upsample(num_classes, 2)
            self.score_pool3 = score_layer(pool3, num_classes)
        self.upscore = Upsample(num_classes, stride)
        self.offsets = self._offsets()

    def _offsets(self) -> tuple[int, ...]:
        """Follows the grids through the layers as `forward` follows the maps."""
        image = grid = Grid()
        _, _, pool3, pool4, pool5 = (grid := grid.through(stage) for stage in self.backbone.stages())
        scores = pool5.through([*self.fc6, *self.fc7, self.score_fr])
        offsets = []
        if self.stride <= 16:
            scores = scores.through([self.upscore2])
            offsets.append(scores.offset_in(pool4))
            scores = max(scores, pool4)  # their sum starts where the later of the two does
        if self.stride == 8:
            scores = scores.through([self.upscore_pool4])
            offsets.append(scores.offset_in(pool3))
            scores = max(scores, pool3)
        scores = scores.through([self.upscore])
        return (*offsets, image.offset_in(scores))

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits."""
        _, _, pool3, pool4, pool5 = self.backbone(images)  # strides 8, 16, 32
        x = self.fc6(pool5)  # [N, hidden, h, w], h about H / 32
        x = self.fc7(x)
        scores = self.score_fr(x)  # [N, C, h, w]
        *skips, crop = self.offsets
        if self.stride <= 16:
            scores = self.upscore2(scores)  # [N, C, 2 h + 2, 2 w + 2]
            scores = add(scores, self.score_pool4(self.skip_scales[0] * pool4), skips[0])
        if self.stride == 8:
            scores = self.upscore_pool4(scores)  # [N, C, about H / 8, about W / 8]
            scores = add(scores, self.score_pool3(self.skip_scales[1] * pool3), skips[1])
        logits = self.upscore(scores)  # [N, C, more than H, more than W]
        height, width = images.shape[-2:]
        return logits[..., crop : crop + height, crop : crop + width]  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion(logits, labels)` at full resolution, where the paper takes its loss."""
        return criterion(self(images), labels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: biases learn twice as fast, without decay (the release); norms do not decay."""
        return parameter_groups({self: 1.0}, bias_factor=2.0)

    def start_from(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load in place the weights of a coarser net (32s into 16s, 16s into 8s) or those of `from_vgg`.

        Score layers that the state dict lacks stay as they are: at zero, in a fresh net.

        Raises:
            InputError: anything else is missing, left over, or of another shape.
        """
        mine = self.state_dict()
        wrong = [name for name in mine.keys() - state_dict.keys() if not name.startswith("score")]
        wrong += [name for name in state_dict if name not in mine or mine[name].shape != state_dict[name].shape]
        if wrong:
            raise InputError(
                f"These weights are not of this FCN ({len(wrong)} missing, left over or of another shape, "
                f"{min(wrong)} for one): create the model with the size and the number of classes they have."
            )
        self.load_state_dict(state_dict, strict=False)

    def load_imagenet(self, weights: Weights = "VGG16_Weights.IMAGENET1K_V1") -> None:
        """Start from a VGG-16 trained on ImageNet, its fully connected layers included.

        Raises:
            InputError: the weights cannot be downloaded, or this net is not of the paper's size.
        """
        self.start_from(from_vgg(torchvision_state_dict(weights)))


def from_vgg(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's `vgg16` weights under the names of a paper-size FCN, for its `start_from`.

    A row of `classifier.0` has seen a 7x7 map of 512 channels, flattened: it is a 7x7 filter, and one of
    `classifier.3` a 1x1 filter.

    Raises:
        InputError: not the state dict of a VGG with its classifier.
    """
    weights = {f"backbone.{name}": value for name, value in state_dict.items() if name.startswith("features.")}
    for layer, name, size in (("classifier.0", "fc6.0", 7), ("classifier.3", "fc7.0", 1)):
        if f"{layer}.weight" not in state_dict:
            raise InputError(f"These weights have no {layer}.weight: give the state dict of torchvision's vgg16.")
        weights[f"{name}.weight"] = state_dict[f"{layer}.weight"].unflatten(1, (-1, size, size))
        weights[f"{name}.bias"] = state_dict[f"{layer}.bias"]
    return weights


def paper(num_classes: int, stride: int, at_once: bool = False) -> FCN:
    """VGG-16 padded by 100, fc6 and fc7 with 4096 channels: 134 million parameters."""
    return FCN(num_classes, stride, at_once=at_once)


def laptop(num_classes: int, stride: int, at_once: bool = False) -> FCN:
    """A narrow VGG with batch normalisation: 1.9 million parameters.

    In training, a batch of one needs an image of more than 32 pixels a side: norms need two values.
    """
    backbone = VGG(widths=(16, 32, 64, 128, 192), batch_norm=True, num_classes=None, ceil_mode=True)
    return FCN(
        num_classes, stride, backbone=backbone, hidden=256, fc6=(3, 1), dropout=0.1, batch_norm=True, at_once=at_once
    )
