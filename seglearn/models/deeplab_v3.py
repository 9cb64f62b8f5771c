"""DeepLab v3: rethinking atrous convolution (Chen, Papandreou, Schroff & Adam 2017, arXiv 1706.05587).

How finely the net computes becomes a setting: with an output stride of 16 it trains, with 8 it predicts, with
the same weights and all rates doubled. Context comes from ASPP, parallel atrous convolutions and the average
of the whole image, or from a cascade of further ResNet blocks at growing rates. Batch normalisation everywhere
makes both trainable, the loss is taken at full resolution, and no CRF is left.

Chapter: book/models/deeplab_v3.

Differs from the paper:
    - the stride of res4 lies on its first 3x3 convolution, as in torchvision's ResNets, not at the end of res3;
    - norms keep PyTorch's momentum of 0.1. The paper's decay of 0.9997 is the weight of the old mean, so 0.0003
      here, which needs its 30 000 steps; that the second stage freezes the norms is left to the training loop;
    - blocks of the cascade start from random weights of their own;
    - laptop size: ResNet-18, 24 channels wide; its last stage has two blocks, so unit rates (1, 2); ASPP has 48
      channels and rates 2, 4, 6, the paper's in proportion to a crop of 192 pixels instead of 513.

torchvision's `deeplabv3_resnet101` differs from the paper, and `layout="torchvision"` with it: a further 3x3
convolution and dropout after ASPP, half-pixel upsampling; its trained nets have output stride 8 (so ASPP rates
12, 24, 36), no multi-grid, and an auxiliary head.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import ResNet, Weights, imagenet_weights, load_torchvision, torchvision_state_dict
from seglearn.backbones.resnet import Bottleneck, conv1x1, conv3x3, set_rate
from seglearn.backbones.vgg import initialise
from seglearn.errors import InputError
from seglearn.models.fcn_resnet import FCNHead, check_classes, load_renamed
from seglearn.models.layers import pad_to_grid, parameter_groups

LAYOUTS = ("paper", "torchvision")


def norm_relu(conv: nn.Module, channels: int) -> list[nn.Module]:
    """A convolution with what follows each one here."""
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class ImagePooling(nn.Sequential):
    """Image-level features: the average of the whole map, reduced by a 1x1 convolution, given to every place."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *norm_relu(conv1x1(channels, width), width))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, h, w] -> [N, width, h, w]`.

        Raises:
            InputError: batch normalisation over one image's only value.
        """
        if self[2].training and len(x) == 1:
            raise InputError(
                "A batch of one image has a single value per channel after image pooling, too few for batch "
                "normalisation: train with at least 2 images, or put the model's norms in evaluation mode."
            )
        pooled = super().forward(x)  # [N, width, 1, 1]
        return pooled.expand(-1, -1, *x.shape[-2:])  # bilinear upsampling of a single value


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (section 3.3): 1x1, three 3x3 at different rates, and image pooling.

    Args:
        channels: channels of the input.
        rates: rates of the 3x3 convolutions at output stride 16; they double at 8.
        width: channels of each branch and of the result.
        image_pooling: with the branch of image-level features.
    """

    def __init__(
        self, channels: int, rates: Sequence[int] = (6, 12, 18), width: int = 256, image_pooling: bool = True
    ) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.channels = width  # of the result
        self.branches = nn.ModuleList(
            [
                nn.Sequential(*norm_relu(conv1x1(channels, width), width)),
                *(nn.Sequential(*norm_relu(conv3x3(channels, width), width)) for _ in rates),
            ]
        )
        if image_pooling:
            self.branches.append(ImagePooling(channels, width))
        self.project = nn.Sequential(*norm_relu(conv1x1(len(self.branches) * width, width), width))
        self.set_output_stride(16)
        initialise(self)

    def set_output_stride(self, output_stride: int) -> None:
        """Rates count cells: twice as many cells, twice the rates. The image's average needs no change."""
        dilated = self.branches[1 : 1 + len(self.rates)]
        for branch, rate in zip(dilated, self.rates, strict=True):
            conv, *_ = branch.children()
            set_rate(conv, 1, max(1, rate * 16 // output_stride))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, h, w] -> [N, width, h, w]`."""
        x = torch.cat([branch(x) for branch in self.branches], 1)  # [N, 5 width, h, w]
        return self.project(x)


class Cascade(nn.Module):
    """block5, block6, ...: copies of the structure of block4, each at twice the rate of the one before (tables 1-4).

    Args:
        channels: channels of the input and of the result.
        blocks: how many; 3 ends with block7, 0 leaves block4 as it is.
        multi_grid: rates of the three units of each block.
    """

    def __init__(self, channels: int, blocks: int = 3, multi_grid: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__()
        self.channels = channels
        self.multi_grid = tuple(multi_grid)
        width = channels // Bottleneck.expansion
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Bottleneck(channels, width) for _ in multi_grid)) for _ in range(blocks)
        )
        self.set_output_stride(16)
        initialise(self)

    def set_output_stride(self, output_stride: int) -> None:
        """Rates 4, 8, 16 times the units' at output stride 16 (figure 3)."""
        rate = 32 // output_stride  # of block4
        for block in self.blocks:
            rate *= 2
            for unit, grid in zip(block.children(), self.multi_grid, strict=True):
                assert isinstance(unit, Bottleneck)
                unit.set_rates(1, rate * grid, rate * grid)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, h, w] -> [N, channels, h, w]`."""
        for block in self.blocks:
            x = block(x)
        return x


class DeepLabV3(nn.Module):
    """The net of the paper's figure 5, or of its figure 3 (`cascade`); for every height and width from 1 pixel on.

    In the paper's layout images are padded to sides of the form `output_stride * n + 1`, where cells lie on pixels
    from corner to corner, and upsampling aligns corners. The backbone starts from ImageNet (`load_imagenet`), the
    rest from random weights.

    Args:
        num_classes: number of classes, C in the shapes below.
        depth: depth of the ResNet: 50 or 101.
        layout: what follows ASPP, and the upsampling: "paper" or "torchvision".
        multi_grid: unit rates of the last stage; None is torchvision's way, without.
        output_stride: 32, 16 or 8; it can be assigned at any time, see below.
        rates: of ASPP at output stride 16.
        cascade: None for ASPP; a number of further blocks for a `Cascade` instead.
        aux: a second head on res4, used by `loss` only (torchvision).
        backbone: a ResNet without classifier, with the unit rates it needs; None makes the one of `depth`.
        width: channels of ASPP.
        image_pooling: see `ASPP`.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 101,
        layout: str = "paper",
        multi_grid: Sequence[int] | None = (1, 2, 4),
        output_stride: int = 16,
        *,
        rates: Sequence[int] = (6, 12, 18),
        cascade: int | None = None,
        aux: bool = False,
        backbone: ResNet | None = None,
        width: int = 256,
        image_pooling: bool = True,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise InputError(f"layout is {layout!r}: choose 'paper' or 'torchvision'.")
        self.layout = layout
        self.backbone = backbone or ResNet(depth, num_classes=None, multi_grid=multi_grid)
        *_, res4, res5 = self.backbone.channels
        self.context: ASPP | Cascade
        if cascade is None:
            self.context = ASPP(res5, rates, width, image_pooling)
        else:
            self.context = Cascade(res5, cascade, multi_grid or (1, 1, 1))
        channels = self.context.channels
        score = nn.Conv2d(channels, num_classes, 1)
        if layout == "paper":
            self.score = nn.Sequential(score)
        else:
            self.score = nn.Sequential(nn.Dropout(0.5), *norm_relu(conv3x3(channels, channels), channels), score)
        initialise(self.score)
        nn.init.normal_(score.weight, std=0.01)  # even odds at first
        self.aux = FCNHead(res4, res4 // 4, num_classes) if aux else None
        self.output_stride = output_stride

    @property
    def output_stride(self) -> int:
        """Pixels per cell of the last map. Assigning to it changes strides and rates in place, never weights."""
        return self.backbone.strides[-1]

    @output_stride.setter
    def output_stride(self, output_stride: int) -> None:
        self.backbone.set_output_stride(output_stride)
        self.context.set_output_stride(output_stride)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits.

        Raises:
            InputError: see `ImagePooling`.
        """
        *_, res5 = self.backbone(self.pad(images))  # [N, 2048, h, w], h = H / output_stride
        x = self.context(res5)  # [N, 256, h, w]; a cascade has 2048
        scores = self.score(x)  # [N, C, h, w]
        return self.upsample(scores, images)  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """At full resolution, labels intact (section 4.2), plus 0.5 times that of torchvision's auxiliary head."""
        *_, res4, res5 = self.backbone(self.pad(images))
        loss = criterion(self.upsample(self.score(self.context(res5)), images), labels)
        if self.aux is not None:
            loss = loss + 0.5 * criterion(self.upsample(self.aux(res4), images), labels)
        return loss

    def pad(self, images: Tensor) -> Tensor:
        """In the paper's layout, zeros below and to the right: `513` pixels make 33 or 65 cells."""
        return pad_to_grid(images, self.output_stride) if self.layout == "paper" else images

    def upsample(self, scores: Tensor, images: Tensor) -> Tensor:
        """`[N, C, h, w] -> [N, C, H, W]`, the size of the images."""
        height, width = images.shape[-2:]
        if self.layout == "torchvision":
            return F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
        padded = [side + (1 - side) % self.output_stride for side in (height, width)]
        return F.interpolate(scores, padded, mode="bilinear", align_corners=True)[..., :height, :width]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: one rate for all; torchvision's auxiliary head learns ten times as fast."""
        factors: dict[nn.Module, float] = {self.backbone: 1.0, self.context: 1.0, self.score: 1.0}
        if self.aux is not None:
            factors[self.aux] = 10.0
        return parameter_groups(factors)

    def load_imagenet(self, weights: Weights | None = None) -> None:
        """Start the backbone from a ResNet trained on ImageNet; None takes torchvision's first of this depth.

        Raises:
            InputError: the weights cannot be downloaded, or are of another net.
        """
        load_torchvision(self.backbone, imagenet_weights(self.backbone) if weights is None else weights)


# torchvision's names begin so, and ours so; `backbone` is the same
NAMES = {
    "classifier.0.convs.": "context.branches.",
    "classifier.0.project.": "context.project.",
    "classifier.": "score.",
    "aux_classifier.": "aux.",
}


def from_torchvision(num_classes: int = 21, weights: Weights | None = None, depth: int = 101) -> DeepLabV3:
    """The net in torchvision's layout with its weights, by default those trained on COCO with VOC's 21 labels.

    Args:
        num_classes: as many as the weights have.
        weights: see `seglearn.backbones.torchvision_state_dict`; None takes the trained ones of `depth` 50 or 101.
        depth: depth of the ResNet.

    Raises:
        InputError: the weights cannot be downloaded, score other classes or are of another net.
    """
    if weights is None:
        weights = f"DeepLabV3_ResNet{depth}_Weights.COCO_WITH_VOC_LABELS_V1"
    state_dict = torchvision_state_dict(weights)
    check_classes(state_dict, num_classes)
    aux = "aux_classifier.4.weight" in state_dict
    model = DeepLabV3(num_classes, depth, "torchvision", multi_grid=None, output_stride=8, aux=aux)
    load_renamed(model, state_dict, NAMES)
    return model


def paper(
    num_classes: int,
    depth: int = 101,
    multi_grid: Sequence[int] = (1, 2, 4),
    cascade: int | None = None,
    output_stride: int = 16,
) -> DeepLabV3:
    """ResNet-101, multi-grid (1, 2, 4), ASPP (6, 12, 18), output stride 16: 58 million parameters."""
    return DeepLabV3(num_classes, depth, multi_grid=multi_grid, output_stride=output_stride, cascade=cascade)


def laptop(
    num_classes: int,
    output_stride: int = 16,
    multi_grid: Sequence[int] = (1, 2),
    rates: Sequence[int] = (2, 4, 6),
    image_pooling: bool = True,
) -> DeepLabV3:
    """ResNet-18, 24 channels wide, output stride 16: 1.9 million parameters."""
    backbone = ResNet(18, width=24, num_classes=None, multi_grid=multi_grid)
    return DeepLabV3(
        num_classes,
        output_stride=output_stride,
        rates=rates,
        backbone=backbone,
        width=48,
        image_pooling=image_pooling,
    )
