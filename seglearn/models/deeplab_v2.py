"""DeepLab v2: atrous spatial pyramid pooling on ResNet-101 (Chen et al. 2016, arXiv 1606.00915).

Objects come in many sizes, so one field of view is wrong for most. ASPP scores the same map by several atrous
convolutions side by side, from a small rate to a large one, and adds their scores. Besides, one net sees the image
at three scales, and each pixel takes each class's highest score. A deeper backbone, ResNet-101, does the rest.

Chapter: book/models/deeplab_v2.

Differs from the paper:
    - no CRF here: the paper applies it to the finished net's output;
    - images of any size: they are padded to 32n + 1 pixels a side, of which the paper's crop 321 is one. Three
      quarters and half of that are 24n + 1 and 16n + 1: at every scale the first and the last cell lie on the
      first and the last pixel, and resizing with `align_corners=True` lays the maps over each other exactly;
    - the ResNet has torchvision's structure, with a block's stride on its 3x3 convolution; the authors' Caffe net
      has it on the 1x1 before. So the first 3x3 of res4 and res5, which reads the finer grid, keeps the rate before;
    - weights come from torchvision, so images are RGB and normalised, not BGR minus the mean;
    - laptop size: a narrow ResNet-18, trained from scratch with batch normalisation at work.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import VGG, ResNet, Weights, load_torchvision, torchvision_state_dict
from seglearn.backbones.vgg import initialise
from seglearn.errors import InputError
from seglearn.models.deeplab_v1 import atrous_vgg, fully_connected, thin
from seglearn.models.fcn import from_vgg
from seglearn.models.layers import pad_to_grid, parameter_groups

STRIDE = 8  # pixels from one cell of the scores to the next

ASPP_S = (2, 4, 8, 12)
ASPP_L = (6, 12, 18, 24)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: one branch for each rate, from features to scores; scores are added.

    The paper has two kinds of branches. On VGG each is DeepLab v1's fc6 (3x3 at its rate), fc7 (1x1) and fc8 (1x1).
    On ResNet fc8 is all, 3x3 at the branch's rate. Each ends in fc8, which starts from a Gaussian of 0.01.

    Args:
        channels: channels of the features.
        num_classes: number of classes.
        rates: one for each branch. `ASPP_L` and `ASPP_S` are the paper's; `(12,)` is LargeFOV.
        hidden: channels of fc6 and fc7; None for branches of a single convolution.
    """

    def __init__(
        self, channels: int, num_classes: int, rates: Sequence[int] = ASPP_L, hidden: int | None = None
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for rate in rates:
            layers = OrderedDict[str, nn.Module]()
            if hidden is None:
                fc8 = nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate)
            else:
                layers["fc6"] = fully_connected(channels, hidden, 3, rate)
                layers["fc7"] = fully_connected(hidden, hidden)
                fc8 = nn.Conv2d(hidden, num_classes, 1)
            layers["fc8"] = fc8
            self.branches.append(nn.Sequential(layers))
            initialise(self.branches[-1])
            nn.init.normal_(fc8.weight, 0, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, h, w] -> [N, C, h, w]`."""
        first, *others = self.branches
        scores = first(x)
        for branch in others:
            scores = scores + branch(x)
        return scores


class DeepLabV2(nn.Module):
    """Backbone and ASPP at several scales, for every height and width from 1 pixel on.

    The backbone starts from ImageNet, and so do fc6 and fc7 on VGG (`load_imagenet`). The paper fine-tunes with the
    ResNet's batch norms frozen, statistics and scales: its batches are too small for them. From scratch, as in the
    laptop size, they learn; each scale is then normalised by itself in training.

    Args:
        num_classes: number of classes, C in the shapes below.
        backbone: a VGG or a ResNet of output stride 8.
        rates: of the branches of ASPP.
        scales: at which the image is seen; the first is 1. The paper's VGG nets see (1,) only.
        hidden: channels of fc6 and fc7, on VGG; None on ResNet.

    Raises:
        InputError: `scales` does not start with 1.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: VGG | ResNet,
        *,
        rates: Sequence[int] = ASPP_L,
        scales: Sequence[float] = (1, 0.75, 0.5),
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if not scales or scales[0] != 1:
            raise InputError(f"scales are {tuple(scales)}: start with 1, whose map the others are resized to.")
        self.scales = [Fraction(scale).limit_denominator(16) for scale in scales]
        self.grid = STRIDE * math.lcm(*(scale.denominator for scale in self.scales))  # 32 in the paper
        self.backbone = backbone
        self.hidden = hidden
        self.aspp = ASPP(backbone.channels[-1], num_classes, rates, hidden)

    def scores(self, images: Tensor) -> list[Tensor]:
        """`[N, 3, 32n + 1, 32m + 1]` -> a map for each scale, `[N, C, 4n + 1, 4m + 1]` at scale 1.

        At scale 0.75 the map is `[N, C, 3n + 1, 3m + 1]`, at 0.5 `[N, C, 2n + 1, 2m + 1]`: cell `i` of a map is the
        score of pixel `8 i / scale`.
        """
        maps = []
        for scale in self.scales:
            height, width = ((side - 1) * scale.numerator // scale.denominator + 1 for side in images.shape[-2:])
            x = F.interpolate(images, (height, width), mode="bilinear", align_corners=True) if scale != 1 else images
            features = self.backbone(x)[-1]  # [N, channels, height / 8, width / 8], rounded up
            maps.append(self.aspp(features))
        return maps

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """The highest score of each class at each cell of the first map: `[N, C, 4n + 1, 4m + 1]`."""
        fused, *others = maps
        for scores in others:
            resized = F.interpolate(scores, fused.shape[-2:], mode="bilinear", align_corners=True)
            fused = torch.maximum(fused, resized)
        return fused

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits."""
        height, width = images.shape[-2:]
        images = pad_to_grid(images, self.grid)  # [N, 3, 32n + 1, 32m + 1]
        scores = self.fuse(self.scores(images))  # [N, C, 4n + 1, 4m + 1]
        logits = F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=True)
        return logits[..., :height, :width]  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum of `criterion` on each scale's map and on their fusion, four terms in the paper.

        Labels are shrunk to each map: a cell has the label of the pixel nearest to it.
        """
        maps = self.scores(pad_to_grid(images, self.grid))
        terms = [(scores, scale) for scores, scale in zip(maps, self.scales, strict=True)]
        if len(maps) > 1:
            terms.append((self.fuse(maps), self.scales[0]))
        losses = []
        for scores, scale in terms:
            target = shrink(labels, STRIDE / float(scale))
            height, width = target.shape[-2:]
            losses.append(criterion(scores[..., :height, :width], target))  # cells on the padding have no label
        return torch.stack(losses).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: the layers fc8 learn 10 times as fast, biases twice, without decay."""
        factors: dict[nn.Module, float] = {self.backbone: 1}
        for branch in self.aspp.branches:
            factors |= {layer: 10 if name == "fc8" else 1 for name, layer in branch.named_children()}
        return parameter_groups(factors, bias_factor=2)

    def load_imagenet(self, weights: Weights | None = None) -> None:
        """Start from a ResNet-101 or VGG-16 trained on ImageNet; None takes the one that the backbone is.

        On VGG, fc6 and fc7 of each branch start from other filters, drawn at random (`deeplab_v1.thin`): with the
        same in each, branches would differ in their rate only.

        Raises:
            InputError: the weights cannot be downloaded, or are of another net than this one's backbone.
        """
        if weights is None:
            vgg = isinstance(self.backbone, VGG)
            weights = "VGG16_Weights.IMAGENET1K_V1" if vgg else "ResNet101_Weights.IMAGENET1K_V1"
        state_dict = torchvision_state_dict(weights)
        start: dict[str, Tensor] = {}
        if self.hidden is not None:
            for i in range(len(self.aspp.branches)):
                layers = thin(from_vgg(state_dict), 3, self.hidden, seed=i)
                start |= {f"aspp.branches.{i}.{name}": value for name, value in layers.items()}
        load_torchvision(self.backbone, state_dict)
        self.load_state_dict(start, strict=False)


def shrink(labels: Tensor, step: float) -> Tensor:
    """The label nearest to each cell of a map whose cell `i` lies on pixel `step * i`.

    `[N, H, W] -> [N, H / step, W / step]`, rounded up.
    """
    height, width = labels.shape[-2:]
    rows, columns = (
        torch.arange(0, side, step, dtype=torch.float64, device=labels.device).round().long().clamp(max=side - 1)
        for side in (height, width)
    )
    return labels[:, rows[:, None], columns]


def paper(
    num_classes: int,
    backbone: str = "resnet101",
    rates: Sequence[int] = ASPP_L,
    scales: Sequence[float] = (1, 0.75, 0.5),
) -> DeepLabV2:
    """ResNet-101, or "vgg16": 44.0 or 37.9 million parameters.

    Raises:
        InputError: another backbone.
    """
    if backbone == "resnet101":
        resnet = ResNet(101, num_classes=None, output_stride=STRIDE)
        return DeepLabV2(num_classes, resnet, rates=rates, scales=scales)
    if backbone == "vgg16":
        return DeepLabV2(num_classes, atrous_vgg(), rates=rates, scales=scales, hidden=1024)
    raise InputError(f"There is no DeepLab v2 on {backbone!r}: choose resnet101 or vgg16.")


def laptop(num_classes: int, rates: Sequence[int] = ASPP_L, scales: Sequence[float] = (1, 0.75, 0.5)) -> DeepLabV2:
    """A narrow ResNet-18: 1.2 million parameters."""
    resnet = ResNet(18, width=20, num_classes=None, output_stride=STRIDE)
    return DeepLabV2(num_classes, resnet, rates=rates, scales=scales)
