"""Window by window: the sliding-window pixel classifier N4 (Ciresan, Giusti, Gambardella & Schmidhuber 2012,
"Deep neural networks segment neuronal membranes in electron microscopy images", NIPS).

The label of a pixel is the class of the window around it: an ordinary classifier of pictures, asked once per
pixel, segments. Neighbouring windows share almost all their pixels and the net computes everything anew, which
is what FCN puts an end to. Here both ways of asking stand side by side: `classify` as in the paper, `forward`
for all pixels at once, with the same weights and the same result. `multiply_adds` counts what each costs.

Chapter: book/ideas/patch_classification.

Differs from the paper:
    - all pixels at once (`forward`): it changes the cost, not the result;
    - rectifiers, and Gaussian weights of variance 2 / N for N inputs: the table of layers that this follows
      leaves both open;
    - one net: no foveated windows and no average over several nets, which are not needed for the idea;
    - windows are drawn from all labelled pixels alike; the balance of classes is left to the criterion;
    - laptop size: windows of 47 pixels (the same ladder without its last stage), narrower, with batch
      normalisation, to train from scratch in minutes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.errors import InputError
from seglearn.models.layers import mirror, parameter_groups

FC_KERNEL = 3  # side of the map that the ladder leaves of a window


class Unit(nn.Module):
    """Convolution, (norm,) rectifier. The same weights can be spread over a finer grid, by `dilation`."""

    def __init__(self, channels: int, width: int, kernel: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel)
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.Identity()

    def forward(self, x: Tensor, dilation: int = 1) -> Tensor:
        """`[N, channels, H, W] -> [N, width, H - r, W - r]` with r = (kernel - 1) * dilation."""
        x = F.conv2d(x, self.conv.weight, self.conv.bias, dilation=dilation)
        return F.relu(self.norm(x))


class PatchClassifier(nn.Module):
    """N4: for each stage a convolution and a 2x2 max pooling, then two fully connected layers.

    The first of these is a convolution as large as the map it meets, the second one a 1x1 convolution: on one
    window the same sums. All layers start from random weights.

    Args:
        num_classes: number of classes, C in the shapes below.
        in_channels: channels of the images (the paper's have one).
        kernels: side of the convolution of each stage. They fix the window, together with the poolings.
        width: channels of each stage.
        hidden: neurons of the fully connected layer.
        windows: windows drawn per image in `loss`.
        batch_norm: normalise after the convolutions of the stages.

    Attributes:
        window: side of the window, 95 with the paper's kernels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        kernels: Sequence[int] = (4, 5, 4, 4),
        width: int = 48,
        hidden: int = 200,
        windows: int = 256,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.windows = windows
        self.window = FC_KERNEL
        for kernel in reversed(kernels):  # from the last map back to the image: 3 -> 6, 9 -> 18, 21 -> 42, 46 -> 92, 95
            self.window = 2 * self.window + kernel - 1
        if self.window % 2 == 0:
            raise InputError(f"kernels {tuple(kernels)} see windows of even side: make the first one even.")

        channels = [in_channels, *[width] * len(kernels)]
        self.stages = nn.ModuleList(Unit(channels[i], width, kernel, batch_norm) for i, kernel in enumerate(kernels))
        self.fc = Unit(width, hidden, FC_KERNEL, batch_norm=False)
        self.out = nn.Conv2d(hidden, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def classify(self, windows: Tensor) -> Tensor:
        """The paper's net: windows `[M, c, w, w]` -> `[M, C]` logits of their centre pixels.

        Raises:
            InputError: windows of another side than `window`.
        """
        if windows.shape[-2:] != (self.window, self.window):
            sides = "x".join(map(str, windows.shape[-2:]))
            raise InputError(f"windows are {sides}, but this net sees {self.window}x{self.window}.")
        x = windows
        for stage in self.stages:  # paper: 95 -> 92 -> 46 -> 42 -> 21 -> 18 -> 9 -> 6 -> 3
            x = F.max_pool2d(stage(x), 2)
        x = self.fc(x)  # [M, hidden, 1, 1]
        return self.out(x).flatten(1)  # [M, C]

    def forward(self, images: Tensor) -> Tensor:
        """`[N, c, H, W]` normalised images -> `[N, C, H, W]` logits, equal to one `classify` per pixel.

        A pooling of stride 2 keeps one map of four: which one depends on where the window starts. Here the
        maximum is taken at every pixel and nothing is dropped, so all four live on, interleaved in one map;
        what belongs to one window then lies twice as far apart, and later layers are dilated by as much.
        """
        margin = self.window // 2
        x = mirror(images, margin, margin, margin, margin)  # [N, c, H + w - 1, W + w - 1]
        dilation = 1
        for stage in self.stages:
            x = F.max_pool2d(stage(x, dilation), 2, stride=1, dilation=dilation)
            dilation *= 2
        x = self.fc(x, dilation)  # [N, hidden, H, W]: every window's margin is used up
        return self.out(x)  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The criterion on `windows` windows per image, around labelled pixels drawn from the whole batch.

        Labels of `num_classes` and more are void and not drawn, unless a batch holds nothing else: then the
        criterion sees void labels only. Pixels come from torch's global generator, so a seed fixes them.
        """
        drawable = (labels < self.num_classes).nonzero()  # [P, 3], one row (image, row, column) a pixel
        if len(drawable) == 0:
            drawable = torch.ones_like(labels, dtype=torch.bool).nonzero()
        draws = torch.randint(len(drawable), (self.windows * len(images),), device=labels.device)
        n, y, x = drawable[draws].unbind(1)  # [M] each, M = windows * N

        margin = self.window // 2
        around = mirror(images, margin, margin, margin, margin)  # [N, c, H + w - 1, W + w - 1]
        around = around.unfold(2, self.window, 1).unfold(3, self.window, 1)  # [N, c, H, W, w, w], nothing copied
        logits = self.classify(around[n, :, y, x])  # [M, C]
        return criterion(logits[:, :, None, None], labels[n, y, x][:, None, None])

    def multiply_adds(self, height: int, width: int) -> tuple[int, int]:
        """Multiply-adds of all convolutions for one image: window by window, and all pixels at once.

        Window by window, each convolution fills its whole map anew for every pixel; all at once, it computes about
        one position a pixel. The paper's net with one channel and an image of 512x512 pixels: 31.8 million million
        against 0.067, 475 times as many.
        """
        by_window = at_once = 0
        side, rows, columns, dilation = self.window, height + self.window - 1, width + self.window - 1, 1
        convs = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        for index, conv in enumerate(convs):
            reach = conv.kernel_size[0] - 1
            side, rows, columns = side - reach, rows - reach * dilation, columns - reach * dilation
            by_window += height * width * side**2 * conv.weight.numel()
            at_once += rows * columns * conv.weight.numel()
            if index < len(self.stages):  # a pooling follows
                side, rows, columns, dilation = side // 2, rows - dilation, columns - dilation, 2 * dilation
        return by_window, at_once

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: one rate; biases and norms do not decay."""
        return parameter_groups({self: 1.0})


def paper(num_classes: int, in_channels: int = 3) -> PatchClassifier:
    """N4, windows of 95 pixels: 219 290 parameters for the paper's one channel and two classes."""
    return PatchClassifier(num_classes, in_channels)


def laptop(num_classes: int) -> PatchClassifier:
    """Windows of 47 pixels, 64 of them per image, batch normalisation: 47 thousand parameters."""
    return PatchClassifier(num_classes, kernels=(4, 5, 4), width=24, hidden=96, windows=64, batch_norm=True)
