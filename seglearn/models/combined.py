"""What the course teaches, in one net of two million parameters: not a paper's model, but made of papers' parts.

From left to right: a ResNet that stops halving at 1/16 and is dilated from there (DeepLab), pyramid pooling over rates
and the whole image (ASPP of DeepLab v3), and a decoder that climbs back step by step, at each step looking at the map
of that resolution on the way down (U-Net's copies, RefineNet's cascade). In training a second, small head looks at the
map at 1/16 (PSPNet's auxiliary loss).

DeepLab v3+ (Chen et al. 2018, arXiv 1802.02611) joins the same ideas, with one step of decoder at 1/4. Here a last step
at 1/2 is for poles and signs, which are a few pixels wide.

Chapter: book/results/leaderboard.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import ResNet, Weights, imagenet_weights, load_torchvision
from seglearn.backbones.resnet import conv1x1, conv3x3
from seglearn.backbones.vgg import initialise
from seglearn.models.deeplab_v3 import ASPP, norm_relu
from seglearn.models.layers import parameter_groups, upsample

AUX_WEIGHT = 0.4  # PSPNet, section 3.3


class Step(nn.Module):
    """One step up: twice the resolution, what was seen there on the way down, and a convolution over both.

    Args:
        channels: channels of the coarser map.
        skip: channels of the map from the way down, reduced to `width // 2` so that it does not drown the other.
        width: channels of the result.
    """

    def __init__(self, channels: int, skip: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*norm_relu(conv1x1(skip, width // 2), width // 2))
        self.fuse = nn.Sequential(*norm_relu(conv3x3(channels + width // 2, width), width))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`[N, channels, h, w]` and `[N, skip, 2h, 2w]` -> `[N, width, 2h, 2w]`."""
        x = upsample(x, 2, skip.shape[-2:])
        return self.fuse(torch.cat([x, self.reduce(skip)], dim=1))


class Combined(nn.Module):
    """For every height and width from 1 pixel on.

    Args:
        num_classes: number of classes, C in the shapes below.
        depth, width: of the ResNet.
        aspp: channels of each branch of the pyramid, and of its result.
        rates: of the pyramid, in cells of 16 pixels.
        decoder: channels at 1/8, 1/4 and 1/2.
        dropout: share of the channels before the score layer that are dropped in training.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int,
        width: int,
        aspp: int,
        rates: tuple[int, ...],
        decoder: tuple[int, int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(depth, width=width, num_classes=None, output_stride=16)
        res2, res3, res4, res5 = self.backbone.channels
        self.aspp = ASPP(res5, rates, aspp)
        skips = (res3, res2, width)  # the last is the stem's
        self.steps = nn.ModuleList(
            Step(channels, skip, out) for channels, skip, out in zip((aspp, *decoder[:2]), skips, decoder, strict=True)
        )
        self.score = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(decoder[-1], num_classes, 1))
        self.auxiliary = nn.Conv2d(res4, num_classes, 1)
        initialise(self.steps)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, 3, H, W]` -> the decoder's map `[N, decoder[2], H/2, W/2]` and res4 `[N, ..., H/16, W/16]`."""
        net = self.backbone
        stem = net.relu(net.bn1(net.conv1(images)))  # [N, width, H/2, W/2]
        res2 = net.layer1(net.maxpool(stem))  # [N, ..., H/4, W/4]
        res3 = net.layer2(res2)  # [N, ..., H/8, W/8]
        res4 = net.layer3(res3)  # [N, ..., H/16, W/16]
        x = self.aspp(net.layer4(res4))  # [N, aspp, H/16, W/16]
        for step, skip in zip(self.steps, (res3, res2, stem), strict=True):
            x = step(x, skip)
        return x, res4

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits."""
        x, _ = self.features(images)
        return upsample(self.score(x), 2, images.shape[-2:])

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion` on the logits, plus 0.4 times that on the auxiliary ones."""
        x, res4 = self.features(images)
        size = images.shape[-2:]
        auxiliary = F.interpolate(self.auxiliary(res4), size, mode="bilinear", align_corners=False)
        return criterion(upsample(self.score(x), 2, size), labels) + AUX_WEIGHT * criterion(auxiliary, labels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: one rate for all."""
        return parameter_groups(dict.fromkeys(self.children(), 1.0))

    def load_imagenet(self, weights: Weights | None = None) -> None:
        """Start from a ResNet trained on ImageNet: torchvision's first weights for its depth unless told otherwise.

        Raises:
            InputError: the weights cannot be downloaded, or are of another net.
        """
        load_torchvision(self.backbone, imagenet_weights(self.backbone) if weights is None else weights)


def paper(num_classes: int, depth: int = 101) -> Combined:
    """For a GPU: the widths of DeepLab v3 and its rates, on a whole ResNet."""
    return Combined(num_classes, depth, width=64, aspp=256, rates=(6, 12, 18), decoder=(256, 128, 64), dropout=0.1)


def laptop(num_classes: int) -> Combined:
    """ResNet-18, three eighths as wide: 1.9 million parameters."""
    return Combined(num_classes, 18, width=24, aspp=48, rates=(2, 4, 6), decoder=(48, 32, 24), dropout=0.1)
