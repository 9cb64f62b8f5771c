"""VGG: a stack of 3x3 convolutions with a max pooling after each stage (Simonyan & Zisserman,
ICLR 2015, arXiv 1409.1556).

The idea: two or three 3x3 convolutions see as much as one of 5x5 or 7x7, with fewer weights and more
non-linearities, so that depth is bought cheaply. VGG-16 (configuration D) is what FCN, SegNet, DeepLab and
Dilation start from.

Parameter names are torchvision's: a state dict of its `vgg16` or `vgg16_bn` loads into `VGG()` or
`VGG(batch_norm=True)`, and the other way round.

Differs from the paper:
    - batch normalisation is on offer (the paper is older than it);
    - an output stride of 16 or 8: the last one or two poolings lose their stride and what follows is dilated
      by as much, with the same weights (the "hole" algorithm of DeepLab, arXiv 1412.7062). Where the dilated
      map and the strided one meet, they hold the same numbers.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.errors import InputError

STAGES = 5


class StridelessMaxPool(nn.Module):
    """2x2 max pooling without its stride: `[N, C, H, W] -> [N, C, H, W]`.

    The window looks right and down, as the strided one does. Beyond the border lies minus infinity, which
    never wins, so that the map keeps its size.
    """

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W] -> [N, C, H, W]`."""
        d = self.dilation
        return F.max_pool2d(F.pad(x, (0, d, 0, d), value=float("-inf")), 2, stride=1, dilation=d)

    def extra_repr(self) -> str:
        """The dilation, for `print`."""
        return f"dilation={self.dilation}"


POOLINGS = (nn.MaxPool2d, StridelessMaxPool)


class VGG(nn.Module):
    """VGG with any widths; the defaults make VGG-16.

    Args:
        widths: channels of each of the five stages.
        depths: convolutions in each of the five stages.
        batch_norm: normalise after each convolution.
        num_classes: outputs of the ImageNet classifier; None leaves the classifier out.
        hidden: width of the classifier's two hidden layers.
        output_stride: 32 as in the paper, or 16 or 8 by dilation. With 16 or 8, a layer on top of pool5 is to
            be dilated by 2 or 4 itself to see what it sees at 32.
        first_padding: zeros around the image at the first convolution (FCN pads by 100).
        ceil_mode: poolings round odd sides up, as in Caffe, rather than down.

    Attributes:
        channels: channels of the five maps that `forward` returns.
        strides: their strides, in pixels of the image.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        *,
        batch_norm: bool = False,
        num_classes: int | None = 1000,
        hidden: int = 4096,
        output_stride: int = 32,
        first_padding: int = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise InputError(f"output_stride is {output_stride}: choose 32, 16 or 8.")
        if len(widths) != STAGES or len(depths) != STAGES:
            raise InputError(f"VGG has {STAGES} stages: give as many widths and depths, not {widths}, {depths}.")

        self.channels = tuple(widths)
        self.strides = tuple(min(2 ** (stage + 1), output_stride) for stage in range(STAGES))
        layers: list[nn.Module] = []
        dilation, channels = 1, 3
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for _ in range(depth):
                padding = dilation if layers else first_padding
                layers.append(nn.Conv2d(channels, width, 3, padding=padding, dilation=dilation))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            if 2 ** (stage + 1) <= output_stride:
                layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=ceil_mode))
            else:
                layers.append(StridelessMaxPool(dilation))
                dilation *= 2
        self.features = nn.Sequential(*layers)  # flat, for torchvision's names: a stage ends with its pooling

        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d(7)
            self.classifier = nn.Sequential(
                nn.Linear(channels * 7 * 7, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Linear(hidden, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Linear(hidden, num_classes),
            )
        initialise(self)

    def stages(self) -> list[nn.Sequential]:
        """The five slices of `features`, each up to and including its pooling."""
        ends = [i + 1 for i, layer in enumerate(self.features) if isinstance(layer, POOLINGS)]
        return [self.features[start:end] for start, end in pairwise([0, *ends])]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`[N, 3, H, W]` -> pool1 to pool5, the i-th `[N, channels[i], H / strides[i], W / strides[i]]`."""
        maps = []
        x = images
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, POOLINGS):
                maps.append(x)
        return tuple(maps)

    def classify(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> ImageNet logits `[N, num_classes]`."""
        return self.classifier(self.avgpool(self(images)[-1]).flatten(1))


def initialise(model: nn.Module) -> None:
    """Draw weights in place: Kaiming's normal (fan out, ReLU) for convolutions, 0.01 for linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
