"""ResNet-18 to ResNet-152: blocks that learn what to add to their input (He et al. 2016, arXiv 1512.03385).

The idea: a stack of `x + f(x)` is as easy to train at 100 layers as at 10, for a block that has nothing to
say only needs `f = 0`. DeepLab, RefineNet, PSPNet and GCN stand on these nets.

Parameter names are torchvision's: a state dict of its `resnet50` loads into `ResNet(50)`, and back.

Differs from the paper:
    - the stride of a bottleneck sits on its 3x3 convolution rather than on the first 1x1 ("v1.5"), as in
      torchvision, whose weights are made for it;
    - an output stride of 16 or 8: the last one or two stages lose their stride and are dilated by as much,
      with the same weights. The first 3x3 convolution of such a stage keeps the dilation of the stage before,
      since it still reads that stage's grid. Where the dilated map and the strided one meet, they hold the
      same numbers.
"""

from torch import Tensor, nn

from seglearn.backbones.vgg import initialise
from seglearn.errors import InputError


def conv3x3(channels: int, width: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias (a norm follows) that keeps the size, up to its stride."""
    return nn.Conv2d(channels, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def conv1x1(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias (a norm follows)."""
    return nn.Conv2d(channels, width, 1, stride=stride, bias=False)


def shortcut(channels: int, width: int, stride: int) -> nn.Sequential | None:
    """Brings a block's input to the size of its output; None where it has that size already."""
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(conv1x1(channels, width, stride), nn.BatchNorm2d(width))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, the block of ResNet-18 and ResNet-34.

    Args:
        channels: channels of the input.
        width: channels of both convolutions.
        stride: stride of the first 3x3 convolution.
        first_dilation: dilation of the first 3x3 convolution.
        dilation: dilation of the second one.
    """

    expansion = 1  # channels of the output, in widths

    def __init__(self, channels: int, width: int, stride: int, first_dilation: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, width, stride, first_dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, H, W] -> [N, width, H / stride, W / stride]`."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + identity)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut, the block of ResNet-50, ResNet-101 and ResNet-152.

    Args:
        channels: channels of the input.
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: stride of the 3x3 convolution.
        first_dilation: dilation of the first (and only) 3x3 convolution.
        dilation: unused, there being no second one; `BasicBlock` has it.
    """

    expansion = 4  # channels of the output, in widths

    def __init__(self, channels: int, width: int, stride: int, first_dilation: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, first_dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, H, W] -> [N, 4 width, H / stride, W / stride]`."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + identity)


DEPTHS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A ResNet of one of the paper's depths and any width.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: channels of the first stage's 3x3 convolutions: 64 in the paper; 16 makes a laptop's ResNet-18,
            of 0.7 million parameters.
        num_classes: outputs of the ImageNet classifier; None leaves the classifier out.
        output_stride: 32 as in the paper, or 16 or 8 by dilation.

    Attributes:
        channels: channels of the four maps that `forward` returns.
        strides: their strides, in pixels of the image.
    """

    def __init__(self, depth: int, *, width: int = 64, num_classes: int | None = 1000, output_stride: int = 32) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise InputError(f"depth is {depth}: choose one of {', '.join(map(str, DEPTHS))}.")
        if output_stride not in (8, 16, 32):
            raise InputError(f"output_stride is {output_stride}: choose 32, 16 or 8.")
        block, blocks = DEPTHS[depth]
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.channels = tuple(block.expansion * w for w in widths)
        self.strides = tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))

        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        stages = []
        channels, stride, dilation = width, 4, 1
        for i in range(4):
            step, stride = self.strides[i] // stride, self.strides[i]
            before, dilation = dilation, (4, 8, 16, 32)[i] // stride
            first = block(channels, widths[i], step, before, dilation)
            channels = self.channels[i]
            rest = (block(channels, widths[i], 1, dilation, dilation) for _ in range(blocks[i] - 1))
            stages.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(self.channels[-1], num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`[N, 3, H, W]` -> res2 to res5, the i-th `[N, channels[i], H / strides[i], W / strides[i]]`."""
        x = self.relu(self.bn1(self.conv1(images)))  # [N, width, H / 2, W / 2]
        x = self.maxpool(x)  # [N, width, H / 4, W / 4]
        res2 = self.layer1(x)
        res3 = self.layer2(res2)
        res4 = self.layer3(res3)
        res5 = self.layer4(res4)
        return res2, res3, res4, res5

    def classify(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> ImageNet logits `[N, num_classes]`."""
        return self.fc(self.avgpool(self(images)[-1]).flatten(1))
