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
      same numbers;
    - three variants that segmentation papers need: PSPNet's stem of three 3x3 convolutions (`deep_stem`), its
      dilation of the first 3x3 convolution as well (`dilate_first`), and DeepLab v3's unit rates (`multi_grid`).
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from seglearn.backbones.vgg import initialise
from seglearn.errors import InputError


def conv3x3(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias (a norm follows) that keeps the size, up to its stride."""
    return nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)


def conv1x1(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias (a norm follows)."""
    return nn.Conv2d(channels, width, 1, stride=stride, bias=False)


def shortcut(channels: int, width: int, stride: int) -> nn.Sequential | None:
    """Brings a block's input to the size of its output; None where it has that size already."""
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(conv1x1(channels, width, stride), nn.BatchNorm2d(width))


def stem(width: int, deep: bool) -> nn.Module:
    """The first convolution, 7x7; or three 3x3 ones that see 11x11 pixels and end with twice the channels."""
    if not deep:
        return nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(
        conv3x3(3, width, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        conv3x3(width, width),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        conv3x3(width, 2 * width),
    )


def set_rate(conv: nn.Module, stride: int, dilation: int = 1) -> None:
    """Another stride and dilation for a convolution, in place: same weights, and padding that keeps the size."""
    assert isinstance(conv, nn.Conv2d)
    padding = dilation * (conv.kernel_size[0] // 2)
    conv.stride, conv.dilation, conv.padding = (stride, stride), (dilation, dilation), (padding, padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, the block of ResNet-18 and ResNet-34.

    Args:
        channels: channels of the input.
        width: channels of both convolutions.
        stride: stride of the first 3x3 convolution.
    """

    expansion = 1  # channels of the output, in widths

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, width, stride)

    def set_rates(self, stride: int, first: int, dilation: int) -> None:
        """Change in place the block's stride and the dilations of its first and its second 3x3 convolution."""
        set_rate(self.conv1, stride, first)
        set_rate(self.conv2, 1, dilation)
        if self.downsample is not None:
            set_rate(self.downsample[0], stride)

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
    """

    expansion = 4  # channels of the output, in widths

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv1x1(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, width * self.expansion, stride)

    def set_rates(self, stride: int, first: int, dilation: int) -> None:
        """Change in place the block's stride and the dilation `first` of its only 3x3 convolution.

        `dilation` is that of a second one, which `BasicBlock` has.
        """
        set_rate(self.conv2, stride, first)
        if self.downsample is not None:
            set_rate(self.downsample[0], stride)

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
        output_stride: 32 as in the paper, or 16 or 8 by dilation; `set_output_stride` changes it later.
        deep_stem: PSPNet's stem, three 3x3 convolutions to `width`, `width` and `2 * width` channels. Its
            parameters are `conv1.0`, `.1`, `.3`, `.4`, `.6` and `bn1`; `from_semseg` knows their other names.
        dilate_first: dilate the first 3x3 convolution of a dilated stage like the rest of the stage (PSPNet).
            The strided map is then no longer found again in the dilated one.
        multi_grid: DeepLab v3's unit rates, one for each block of the last stage: its dilation is multiplied by
            them. All of them, the first block's too, count in the grid of that stage.

    Attributes:
        channels: channels of the four maps that `forward` returns.
        strides: their strides, in pixels of the image.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: int = 64,
        num_classes: int | None = 1000,
        output_stride: int = 32,
        deep_stem: bool = False,
        dilate_first: bool = False,
        multi_grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise InputError(f"depth is {depth}: choose one of {', '.join(map(str, DEPTHS))}.")
        block, blocks = DEPTHS[depth]
        if multi_grid is not None and len(multi_grid) != blocks[-1]:
            raise InputError(
                f"multi_grid is {tuple(multi_grid)}: give {blocks[-1]} rates, one for each block of the last stage."
            )
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.channels = tuple(block.expansion * w for w in widths)
        self.depth = depth
        self.dilate_first = dilate_first
        self.multi_grid = multi_grid

        channels = 2 * width if deep_stem else width
        self.conv1 = stem(width, deep_stem)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        stages = []
        for i in range(4):
            first = block(channels, widths[i], 1 if i == 0 else 2)
            channels = self.channels[i]
            stages.append(nn.Sequential(first, *(block(channels, widths[i]) for _ in range(blocks[i] - 1))))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.set_output_stride(output_stride)

        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(self.channels[-1], num_classes)
        initialise(self)

    def set_output_stride(self, output_stride: int) -> None:
        """Trade stride for dilation, in place and with the same weights.

        Raises:
            InputError: not 32, 16 or 8.
        """
        if output_stride not in (8, 16, 32):
            raise InputError(f"output_stride is {output_stride}: choose 32, 16 or 8.")
        self.strides = tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))
        stride, dilation = 4, 1
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            step, stride = self.strides[i] // stride, self.strides[i]
            before, dilation = dilation, (4, 8, 16, 32)[i] // stride
            rates = [dilation] * len(stage)
            if i == 3 and self.multi_grid is not None:
                rates = [dilation * unit for unit in self.multi_grid]
                before = rates[0]
            elif self.dilate_first:
                before = dilation
            blocks = [block for block in stage if isinstance(block, BasicBlock | Bottleneck)]
            for block, first, rate in zip(blocks, [before, *rates[1:]], rates, strict=True):
                block.set_rates(step if block is blocks[0] else 1, first, rate)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`[N, 3, H, W]` -> res2 to res5, the i-th `[N, channels[i], H / strides[i], W / strides[i]]`."""
        x = self.relu(self.bn1(self.conv1(images)))  # [N, width, H / 2, W / 2]; a deep stem has 2 width
        x = self.maxpool(x)  # [N, width, H / 4, W / 4]
        res2 = self.layer1(x)
        res3 = self.layer2(res2)
        res4 = self.layer3(res3)
        res5 = self.layer4(res4)
        return res2, res3, res4, res5

    def classify(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` -> ImageNet logits `[N, num_classes]`."""
        return self.fc(self.avgpool(self(images)[-1]).flatten(1))


def from_semseg(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of a ResNet with deep stem, renamed: from the names of PSPNet's authors (hszhao/semseg).

    They, and mit_semseg, count the stem's layers: conv1, bn1, conv2, bn2, conv3, bn3. Other names are the same.
    """
    ours = {
        "conv1": "conv1.0",
        "bn1": "conv1.1",
        "conv2": "conv1.3",
        "bn2": "conv1.4",
        "conv3": "conv1.6",
        "bn3": "bn1",
    }
    renamed = {}
    for name, value in state_dict.items():
        layer, _, rest = name.partition(".")
        renamed[f"{ours.get(layer, layer)}.{rest}"] = value
    return renamed
