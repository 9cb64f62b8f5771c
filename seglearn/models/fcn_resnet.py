"""A dilated ResNet with one 3x3 layer on top: what torchvision calls FCN, the baseline of PSPNet and DeepLab v3.

It is not the net of the FCN paper, which is in `seglearn.models.fcn`: there are no skips, the backbone is a
ResNet (He et al. 2016, arXiv 1512.03385) and not VGG-16, and its last two stages are dilated instead of
strided, so that scores come one per 8 pixels. PSPNet and DeepLab v3 start from such a net and ask what context
adds to it.

Chapter: book/models/deeplab_v3.

Differs from torchvision:
    - none in the structure: its state dicts load through `from_torchvision`, and the logits are equal;
    - `forward` returns the logits, not a dictionary with those of the auxiliary head;
    - scores start from a normal distribution of 0.01, for a fresh net to begin with even odds;
    - laptop size: ResNet-18, 24 channels wide.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import ResNet, Weights, imagenet_weights, load_torchvision, torchvision_state_dict
from seglearn.backbones.resnet import conv3x3
from seglearn.backbones.vgg import initialise
from seglearn.errors import InputError
from seglearn.models.layers import parameter_groups


class FCNHead(nn.Sequential):
    """From features to scores: 3x3 convolution, norm, ReLU, dropout, 1x1 convolution.

    PSPNet and DeepLab v3 (in torchvision's version) use it on res4, as auxiliary head.

    Args:
        channels: channels of the features.
        hidden: channels of the 3x3 convolution.
        num_classes: number of classes.
        dropout: share of single activations dropped.
    """

    def __init__(self, channels: int, hidden: int, num_classes: int, dropout: float = 0.1) -> None:
        score = nn.Conv2d(hidden, num_classes, 1)
        super().__init__(
            conv3x3(channels, hidden), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True), nn.Dropout(dropout), score
        )
        initialise(self)
        nn.init.normal_(score.weight, std=0.01)


class FCNResNet(nn.Module):
    """Dilated ResNet, 3x3 head, bilinear upsampling; for every height and width from 1 pixel on.

    The backbone starts from ImageNet (`load_imagenet`), the heads from random weights.

    Args:
        num_classes: number of classes, C in the shapes below.
        depth: depth of the ResNet, 50 or 101 in torchvision.
        aux: a second head on res4, used by `loss` only.
        backbone: a ResNet without classifier, of output stride 8; None makes the one of `depth`.
    """

    def __init__(self, num_classes: int, depth: int = 101, aux: bool = True, backbone: ResNet | None = None) -> None:
        super().__init__()
        self.backbone = backbone or ResNet(depth, num_classes=None, output_stride=8)
        *_, res4, res5 = self.backbone.channels
        self.head = FCNHead(res5, res5 // 4, num_classes)
        self.aux = FCNHead(res4, res4 // 4, num_classes) if aux else None

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits."""
        *_, res5 = self.backbone(images)  # [N, 2048, H / 8, W / 8]
        return upsample(self.head(res5), images)  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """At full resolution, plus 0.5 times the loss of the auxiliary head (torchvision's training script)."""
        *_, res4, res5 = self.backbone(images)
        loss = criterion(upsample(self.head(res5), images), labels)
        if self.aux is not None:
            loss = loss + 0.5 * criterion(upsample(self.aux(res4), images), labels)
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: the auxiliary head learns ten times as fast (torchvision's training script)."""
        factors: dict[nn.Module, float] = {self.backbone: 1.0, self.head: 1.0}
        if self.aux is not None:
            factors[self.aux] = 10.0
        return parameter_groups(factors)

    def load_imagenet(self, weights: Weights | None = None) -> None:
        """Start the backbone from a ResNet trained on ImageNet; None takes torchvision's first of this depth.

        Raises:
            InputError: the weights cannot be downloaded, or are of another net.
        """
        load_torchvision(self.backbone, imagenet_weights(self.backbone) if weights is None else weights)


def upsample(scores: Tensor, images: Tensor) -> Tensor:
    """`[N, C, h, w] -> [N, C, H, W]`, the size of the images: bilinear, at half pixels."""
    return F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)


def load_renamed(model: nn.Module, state_dict: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> None:
    """Load in place a state dict whose names begin otherwise: the first of `prefixes` that fits is replaced.

    Raises:
        InputError: the weights are not of this net.
    """
    renamed = {}
    for name, value in state_dict.items():
        theirs = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(theirs, "") + name.removeprefix(theirs)] = value
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise InputError(f"These weights are not of this {type(model).__name__}: {first}") from error


def check_classes(state_dict: Mapping[str, Tensor], num_classes: int) -> None:
    """Raise InputError if the weights, of one of torchvision's segmentation nets, score other classes."""
    score = state_dict.get("classifier.4.weight")
    if score is None:
        raise InputError("These weights have no classifier.4.weight: give those of a torchvision segmentation net.")
    if len(score) != num_classes:
        raise InputError(
            f"These weights score {len(score)} classes, not {num_classes}: create the model with num_classes="
            f"{len(score)}, or start from ImageNet with load_imagenet."
        )


def from_torchvision(num_classes: int = 21, weights: Weights | None = None, depth: int = 101) -> FCNResNet:
    """The net with torchvision's weights, by default those trained on COCO with the 21 labels of VOC.

    The map of names: `classifier` is our `head`, `aux_classifier` our `aux`; `backbone` is the same.

    Args:
        num_classes: as many as the weights have.
        weights: see `seglearn.backbones.torchvision_state_dict`; None takes the trained ones of `depth` 50 or 101.
        depth: depth of the ResNet.

    Raises:
        InputError: the weights cannot be downloaded, score other classes or are of another net.
    """
    if weights is None:
        weights = f"FCN_ResNet{depth}_Weights.COCO_WITH_VOC_LABELS_V1"
    state_dict = torchvision_state_dict(weights)
    check_classes(state_dict, num_classes)
    model = FCNResNet(num_classes, depth, aux="aux_classifier.4.weight" in state_dict)
    load_renamed(model, state_dict, {"classifier.": "head.", "aux_classifier.": "aux."})
    return model


def paper(num_classes: int, depth: int = 101, aux: bool = True) -> FCNResNet:
    """torchvision's `fcn_resnet101` (or 50): 54 million parameters, 52 without the auxiliary head."""
    return FCNResNet(num_classes, depth, aux)


def laptop(num_classes: int, aux: bool = True, width: int = 24) -> FCNResNet:
    """ResNet-18, 24 channels wide: 1.7 million parameters."""
    return FCNResNet(num_classes, aux=aux, backbone=ResNet(18, width=width, num_classes=None, output_stride=8))
