"""RefineNet: multi-path refinement networks (Lin, Milan, Shen & Reid 2017, arXiv 1611.06612).

A ResNet loses detail on its way to stride 32. RefineNet does not dilate it: four blocks go back up, from res5 to
res2, and each refines what comes from below by the features of its own stride. All of a block's parts are
residual, so that gradients reach every stage of the ResNet by short ways. Chained pooling gathers context.

Chapter: book/models/refinenet.

Differs from the paper:
    - four poolings in a chain, as in the authors' release; biases and dropout are those of its PyTorch port
      (DrSleep/refinenet-pytorch): 99 060 309, 118 052 437 and 133 696 085 parameters at 21 classes for the
      depths 50, 101 and 152;
    - upsampling puts each cell where the ResNet saw it, for any size (see `layers.upsample`). The port lays corner on
      corner (`align_corners=True`): the same if height and width are 32n + 1, else maps drift apart;
    - images keep their size: the release enlarges them by 1.2 first. Resize before the call to have that;
    - logits are brought to the image's size; in the release, probabilities are;
    - the release freezes the norms of the ResNet, for its batches are single images. That is left to the training;
    - laptop size: a narrow ResNet-18 and less dropout. From scratch it is the decoder that must learn slowly, a fifth
      as fast as the ResNet: it has no norms to hold it. Its weights start from N(0, 0.03) rather than N(0, 0.01), since
      sums over 32 channels are smaller than over 256.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import ResNet, Weights, imagenet_weights, load_torchvision
from seglearn.errors import InputError
from seglearn.models.layers import parameter_groups, upsample


def conv3x3(channels: int, width: int, bias: bool = False) -> nn.Conv2d:
    """3x3 convolution that keeps the size."""
    return nn.Conv2d(channels, width, 3, padding=1, bias=bias)


class ResidualConvUnit(nn.Module):
    """A residual block without norms (figure 3 b): `[N, C, H, W] -> [N, C, H, W]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels, bias=True)
        self.conv2 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W] -> [N, C, H, W]`."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class MultiResolutionFusion(nn.Module):
    """The sum of two paths, at the finer one's size and the smaller one's channels (figure 3 c)."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.fine = conv3x3(fine, min(fine, coarse))
        self.coarse = conv3x3(coarse, min(fine, coarse))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """`[N, fine, H, W]` and `[N, coarse, H / 2, W / 2]` -> `[N, min(fine, coarse), H, W]`."""
        return self.fine(fine) + upsample(self.coarse(coarse), 2, fine.shape[-2:])


class ChainedResidualPooling(nn.Module):
    """Context from ever larger windows (figure 3 d): `[N, C, H, W] -> [N, C, H, W]`.

    A chain: each pooling reads what the one before has made, so that four of them look as far as windows of 5,
    9, 13 and 17 (and their convolutions a little further). All are added to the input.
    """

    def __init__(self, channels: int, pools: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(channels, channels) for _ in range(pools))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W] -> [N, C, H, W]`."""
        x = path = F.relu(x)  # the only one: a second would cut off what the convolutions subtract
        for conv in self.convs:
            path = conv(F.max_pool2d(path, 5, stride=1, padding=2))
            x = x + path
        return x


class RefineNetBlock(nn.Module):
    """Adapt, fuse, pool, and a last unit (figure 3 a).

    Args:
        features: channels of the ResNet's map.
        channels: channels of the result.
        coarse: channels of the coarser block's result; None for the first block, which has nothing to fuse.
        pools: poolings in the chain.
    """

    def __init__(self, features: int, channels: int, coarse: int | None = None, pools: int = 4) -> None:
        super().__init__()
        self.reduce = conv3x3(features, channels)
        self.adapt = nn.Sequential(ResidualConvUnit(channels), ResidualConvUnit(channels))
        if coarse is not None:
            self.adapt_coarse = nn.Sequential(ResidualConvUnit(coarse), ResidualConvUnit(coarse))
            self.fusion = MultiResolutionFusion(channels, coarse)
        self.pooling = ChainedResidualPooling(channels, pools)
        self.output = ResidualConvUnit(channels)

    def forward(self, features: Tensor, coarse: Tensor | None = None) -> Tensor:
        """`[N, features, H, W]` and `[N, coarse, H / 2, W / 2]` -> `[N, channels, H, W]`."""
        x = self.adapt(self.reduce(features))  # [N, channels, H, W]
        if coarse is not None:
            x = self.fusion(x, self.adapt_coarse(coarse))
        return self.output(self.pooling(x))


class SharedBlock(nn.Module):
    """One block for several stages of the ResNet, in nets of fewer cascades (figure 2 a and b).

    Args:
        features: channels of the ResNet's maps, the finest first, each half as large as the one before.
        channels: channels of the result.
        coarse: channels of the coarser block's result; None for the first block.
        pools: poolings in the chain.
    """

    def __init__(self, features: Sequence[int], channels: int, coarse: int | None = None, pools: int = 4) -> None:
        super().__init__()
        inputs = [*features] if coarse is None else [*features, coarse]
        self.adapt = nn.ModuleList(
            nn.Sequential(conv3x3(width, channels), ResidualConvUnit(channels), ResidualConvUnit(channels))
            for width in inputs
        )
        self.fuse = nn.ModuleList(conv3x3(channels, channels) for _ in inputs)
        self.pooling = ChainedResidualPooling(channels, pools)
        self.output = ResidualConvUnit(channels)

    def forward(self, features: Sequence[Tensor], coarse: Tensor | None = None) -> Tensor:
        """Maps of H, H / 2, H / 4 ... rows, and a coarser block's of the next in the row -> `[N, channels, H, W]`."""
        maps = [*features] if coarse is None else [*features, coarse]
        paths = [fuse(adapt(x)) for fuse, adapt, x in zip(self.fuse, self.adapt, maps, strict=True)]
        x = paths[0]
        for level, path in enumerate(paths[1:], 1):
            x = x + upsample(path, 2**level, x.shape[-2:])
        return self.output(self.pooling(x))


class RefineNet(nn.Module):
    """The four-cascaded, single-scale net (figure 2 c), for every height and width from 1 pixel on.

    The ResNet starts from ImageNet (`load_imagenet`), the decoder from a normal distribution, its biases from zero.

    Args:
        num_classes: number of classes, C in the shapes below.
        depth: 50, 101 or 152: the depth of the ResNet.
        width: channels of the ResNet's first stage.
        channels: channels of the first (coarsest) block, and of the other three.
        dropout: share of activations dropped after res4, res5 and before the classifier.
        std: standard deviation of the decoder's weights at the start.
        rates: factors on the learning rate, of the ResNet and of the decoder.
        pools: poolings in each chain; 0 leaves chained pooling out.
        cascades: blocks between the ResNet and the scores: 4, or 2 or 1 whose blocks serve several stages.

    Raises:
        InputError: another number of cascades.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 101,
        *,
        width: int = 64,
        channels: tuple[int, int] = (512, 256),
        dropout: float = 0.5,
        std: float = 0.01,
        rates: tuple[float, float] = (0.1, 1.0),
        pools: int = 4,
        cascades: int = 4,
    ) -> None:
        super().__init__()
        if cascades not in (1, 2, 4):
            raise InputError(f"cascades is {cascades}: the paper has nets of 4, 2 and 1.")
        self.rates, self.cascades = rates, cascades
        self.backbone = ResNet(depth, width=width, num_classes=None)
        res2, res3, res4, res5 = self.backbone.channels
        first, others = channels
        if cascades == 4:
            self.refine4 = RefineNetBlock(res5, first, pools=pools)
            self.refine3 = RefineNetBlock(res4, others, coarse=first, pools=pools)
            self.refine2 = RefineNetBlock(res3, others, coarse=others, pools=pools)
            self.refine1 = RefineNetBlock(res2, others, coarse=others, pools=pools)
        elif cascades == 2:
            self.lower = SharedBlock((res4, res5), first, pools=pools)
            self.upper = SharedBlock((res2, res3), others, coarse=first, pools=pools)
        else:
            self.only = SharedBlock(self.backbone.channels, others, pools=pools)
        self.last = nn.Sequential(ResidualConvUnit(others), ResidualConvUnit(others))
        self.classifier = conv3x3(others, num_classes, bias=True)
        self.dropout = nn.Dropout(dropout)
        for name, parameter in self.named_parameters():
            if name.startswith("backbone."):
                continue
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0, std)

    def scores(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> `[N, C, H / 4, W / 4]`, rounded up: cell i is centred on pixel 4 i."""
        res2, res3, res4, res5 = self.backbone(images)  # strides 4, 8, 16, 32
        res5, res4 = self.dropout(res5), self.dropout(res4)
        if self.cascades == 4:
            x = self.refine4(res5)  # [N, 512, H / 32, W / 32]
            x = self.refine3(res4, x)  # [N, 256, H / 16, W / 16]
            x = self.refine2(res3, x)  # [N, 256, H / 8, W / 8]
            x = self.refine1(res2, x)  # [N, 256, H / 4, W / 4]
        elif self.cascades == 2:
            x = self.lower((res4, res5))  # [N, 512, H / 16, W / 16]
            x = self.upper((res2, res3), x)  # [N, 256, H / 4, W / 4]
        else:
            x = self.only((res2, res3, res4, res5))  # [N, 256, H / 4, W / 4]
        return self.classifier(self.dropout(self.last(x)))  # [N, C, H / 4, W / 4]

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits."""
        return upsample(self.scores(images), 4, images.shape[-2:])

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion(scores, labels)` at stride 4, with the label of the pixel under each cell (the release)."""
        return criterion(self.scores(images), labels[:, ::4, ::4])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: the ResNet learns a tenth as fast as the decoder (the release), or as `rates` say."""
        backbone, decoder = self.rates
        return parameter_groups({part: backbone if part is self.backbone else decoder for part in self.children()})

    def load_imagenet(self, weights: Weights | None = None) -> None:
        """Load the ResNet's weights in place; None takes torchvision's first ones for its depth.

        Raises:
            InputError: the weights cannot be downloaded, or are those of another net.
        """
        load_torchvision(self.backbone, imagenet_weights(self.backbone) if weights is None else weights)


def paper(num_classes: int, depth: int = 101) -> RefineNet:
    """ResNet-101: 118 million parameters, 76 of them in the decoder."""
    return RefineNet(num_classes, depth)


def laptop(num_classes: int, pools: int = 4, cascades: int = 4) -> RefineNet:
    """ResNet-18 with a quarter of its width, and a decoder of 64 and 32 channels: 1.8 million parameters.

    In training, a batch of one needs an image of more than 32 pixels a side: norms need two values.
    """
    return RefineNet(
        num_classes,
        18,
        width=16,
        channels=(64, 32),
        dropout=0.1,
        std=0.03,
        rates=(1.0, 0.2),
        pools=pools,
        cascades=cascades,
    )
