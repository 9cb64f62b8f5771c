"""PSPNet: pyramid scene parsing (Zhao, Shi, Qi, Wang & Jia 2017, arXiv 1612.01105).

A dilated ResNet sees each place sharply but confuses what only its surroundings tell apart. PSPNet averages
the features over the whole image, its quarters, ninths and thirty-sixths, and lays these summaries beside
every place's own features before it is scored. A second loss on res4 helps to train the deep backbone.

Chapter: book/models/pspnet.

Differs from the paper:
    - images are RGB, normalised by mean and standard deviation; the release only takes the mean off;
    - bins are adaptive: at 473 and 713 pixels they are the release's fixed windows, elsewhere neighbouring bins
      share a row of cells where 2, 3 or 6 does not divide the map;
    - norms keep PyTorch's momentum of 0.1. The release's 0.95 is the weight of the old mean, so 0.05 here; short
      runs need the faster one. They are synchronised over GPUs only if the loop does so;
    - the auxiliary head stays in the model when it is not training, for checkpoints to be of one shape;
    - torchvision has no ImageNet weights for the stem: see `load_imagenet`;
    - laptop size: ResNet-18, 24 channels wide, with the paper's stem, and all heads narrowed by as much.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import ResNet, Weights, imagenet_weights, load_torchvision, torchvision_state_dict
from seglearn.backbones.resnet import conv1x1, from_semseg
from seglearn.backbones.vgg import initialise
from seglearn.errors import InputError
from seglearn.models.fcn_resnet import FCNHead
from seglearn.models.layers import pad_to_grid, parameter_groups

# what a deep stem changes in a ResNet: itself, and the layers that read its 128 channels
STEM = ("conv1.", "bn1.", "layer1.0.conv1.", "layer1.0.bn1.", "layer1.0.downsample.")


class AverageBins(nn.Module):
    """Averages over `bins` x `bins` parts of a map: `nn.AdaptiveAvgPool2d`, written as two products of matrices.

    So written it exports to ONNX for every size of the image, and its gradient on a GPU is reproducible.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def weights(self, cells: int, like: Tensor) -> Tensor:
        """`[bins, cells]`: what each of the cells along a side counts in each bin."""
        position = torch.arange(cells, device=like.device)
        bin = torch.arange(self.bins, device=like.device)[:, None]
        start = bin * cells // self.bins  # rounded down
        end = ((bin + 1) * cells + self.bins - 1) // self.bins  # rounded up: bins may share a cell, none is empty
        inside = (start <= position) & (position < end)
        return (inside / inside.sum(1, keepdim=True)).to(like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, h, w] -> [N, C, bins, bins]`."""
        height, width = x.shape[-2:]
        rows = self.weights(height, x) @ x  # [N, C, bins, w]
        return rows @ self.weights(width, x).T  # [N, C, bins, bins]

    def extra_repr(self) -> str:
        """The number of bins, for `print`."""
        return f"{self.bins}"


class PyramidPooling(nn.Module):
    """The pyramid pooling module (section 3.2): averages over bins of four sizes, beside the features themselves.

    Args:
        channels: channels of the features. Each level of the pyramid reduces them by the number of levels, so
            that all levels together have as many again.
        bins: bins along a side, for each level; none leaves the features alone.
    """

    def __init__(self, channels: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        width = channels // max(len(bins), 1)
        self.channels = channels + len(bins) * width  # of the result
        self.bins = tuple(bins)
        self.levels = nn.ModuleList(
            nn.Sequential(
                AverageBins(bin),  # [N, channels, bin, bin]
                conv1x1(channels, width),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for bin in bins
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, h, w] -> [N, 2 channels, h, w]`: features first, then the levels in the order of `bins`.

        Raises:
            InputError: batch normalisation over one image's only bin.
        """
        learning = any(module.training for module in self.modules() if isinstance(module, nn.BatchNorm2d))
        if learning and 1 in self.bins and len(x) == 1:
            raise InputError(
                "A batch of one image has a single value per channel in the bin of the whole image, too few for batch "
                "normalisation: train with at least 2 images, or put the model's norms in evaluation mode."
            )
        pooled = (F.interpolate(level(x), x.shape[-2:], mode="bilinear", align_corners=True) for level in self.levels)
        return torch.cat([x, *pooled], 1)


class PSPNet(nn.Module):
    """The net of the paper's figure 3, for every height and width from 1 pixel on.

    Odd kernels put the cells of the features on every eighth pixel, corners included, if sides are `8 n + 1`:
    images are padded to that, and upsampling aligns corners, as in the release. The backbone starts from
    ImageNet (`load_imagenet`), pyramid and heads from random weights.

    Args:
        num_classes: number of classes, C in the shapes below.
        depth: depth of the ResNet: 50, 101 or 152.
        aux: a second head on res4, used by `loss` only.
        bins: see `PyramidPooling`.
        backbone: a ResNet without classifier, of output stride 8; None makes the paper's: deep stem, res4 and
            res5 with dilation 2 and 4 on every 3x3 convolution.
        aux_weight: what the second head's loss counts.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 101,
        aux: bool = True,
        bins: Sequence[int] = (1, 2, 3, 6),
        backbone: ResNet | None = None,
        aux_weight: float = 0.4,
    ) -> None:
        super().__init__()
        self.aux_weight = aux_weight
        self.backbone = backbone or ResNet(depth, num_classes=None, output_stride=8, deep_stem=True, dilate_first=True)
        *_, res4, res5 = self.backbone.channels
        self.ppm = PyramidPooling(res5, bins)
        self.head = FCNHead(self.ppm.channels, res5 // 4, num_classes)
        self.aux = FCNHead(res4, res4 // 4, num_classes) if aux else None

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits.

        Raises:
            InputError: see `PyramidPooling`.
        """
        *_, res5 = self.backbone(pad_to_grid(images))  # [N, 2048, h, w], h = H / 8 + 1
        x = self.ppm(res5)  # [N, 4096, h, w]
        scores = self.head(x)  # [N, C, h, w]
        return upsample(scores, images)  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """At full resolution, plus 0.4 times that of the auxiliary head (section 4 and table 2)."""
        *_, res4, res5 = self.backbone(pad_to_grid(images))
        loss = criterion(upsample(self.head(self.ppm(res5)), images), labels)
        if self.aux is not None:
            loss = loss + self.aux_weight * criterion(upsample(self.aux(res4), images), labels)
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: all new layers learn ten times as fast as the backbone (the release)."""
        new = [self.ppm, self.head] + ([self.aux] if self.aux is not None else [])
        return parameter_groups({self.backbone: 1.0} | dict.fromkeys(new, 10.0))

    def load_imagenet(self, weights: Weights | None = None) -> None:
        """Start the backbone from a ResNet trained on ImageNet; None takes torchvision's first of this depth.

        torchvision's ResNets have another stem. Of theirs everything loads but the stem, the first convolution
        and the shortcut that read its 128 channels, and their norms: these keep their own start. The state dict
        of a ResNet with this stem, such as the authors' (names as in `from_semseg`), loads as a whole.

        Raises:
            InputError: the weights cannot be downloaded, or are of another net.
        """
        state_dict = torchvision_state_dict(imagenet_weights(self.backbone) if weights is None else weights)
        if "conv3.weight" in state_dict:
            state_dict = from_semseg(state_dict)
        elif "conv1.weight" in state_dict:
            kept = {name: value for name, value in self.backbone.state_dict().items() if name.startswith(STEM)}
            rest = {name: value for name, value in state_dict.items() if not name.startswith(STEM)}
            state_dict = kept | rest
        load_torchvision(self.backbone, state_dict)


def upsample(scores: Tensor, images: Tensor) -> Tensor:
    """`[N, C, h, w] -> [N, C, H, W]`, the size of the images: cell i is drawn on pixel 8 i."""
    (height, width), (rows, columns) = images.shape[-2:], scores.shape[-2:]
    size = (8 * (rows - 1) + 1, 8 * (columns - 1) + 1)
    return F.interpolate(scores, size, mode="bilinear", align_corners=True)[..., :height, :width]


def paper(num_classes: int, depth: int = 101, aux: bool = True) -> PSPNet:
    """ResNet-101 with the deep stem: 68 million parameters, 66 without the auxiliary head."""
    return PSPNet(num_classes, depth, aux)


def laptop(num_classes: int, aux: bool = True, bins: Sequence[int] = (1, 2, 3, 6), aux_weight: float = 0.4) -> PSPNet:
    """ResNet-18 with the deep stem, 24 channels wide: 1.8 million parameters."""
    backbone = ResNet(18, width=24, num_classes=None, output_stride=8, deep_stem=True, dilate_first=True)
    return PSPNet(num_classes, aux=aux, bins=bins, backbone=backbone, aux_weight=aux_weight)
