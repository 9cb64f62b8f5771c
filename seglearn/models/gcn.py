"""GCN: large kernel matters, global convolutional networks (Peng, Zhang, Yu, Luo & Sun 2017, arXiv 1703.02719).

A classifier connects every score to the whole image; a segmentation net's small kernels do not. GCN scores each
position through a kernel nearly as large as the map, 15x15, made affordable by pairs of 15x1 and 1x15. What such
kernels blur at an object's edge, boundary refinement sharpens.

Chapter: book/models/gcn.

Differs from the paper:
    - upsampling is bilinear, each cell put where the ResNet saw it, for any size (see `layers.upsample`). The paper
      learns transposed convolutions. 26 052 308, 45 044 436 and 60 688 084 parameters at 21 classes for the depths
      50, 101 and 152;
    - the paper does not say how the new layers start. Here each halves the size of its input, for scores near zero;
    - laptop size: a narrow ResNet-18 from scratch.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from seglearn.backbones import ResNet, Weights, imagenet_weights, load_torchvision
from seglearn.errors import InputError
from seglearn.models.layers import parameter_groups, upsample


class GlobalConvolution(nn.Module):
    """A k x k kernel as the sum of two separable ones (figure 2 b), without norm or ReLU.

    Takes `2 k num_classes (channels + num_classes)` weights, a k x k convolution `k k channels num_classes`.

    Raises:
        InputError: an even kernel, which has no centre.
    """

    def __init__(self, channels: int, num_classes: int, kernel: int = 15) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise InputError(f"kernel is {kernel}: choose an odd number, for the kernel to have a centre.")
        half = kernel // 2

        def column(inputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, num_classes, (kernel, 1), padding=(half, 0))

        def row(inputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, num_classes, (1, kernel), padding=(0, half))

        self.left = nn.Sequential(column(channels), row(num_classes))
        self.right = nn.Sequential(row(channels), column(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, H, W] -> [N, num_classes, H, W]`."""
        return self.left(x) + self.right(x)


class BoundaryRefinement(nn.Module):
    """What to add to the scores near boundaries (figure 2 c): `[N, C, H, W] -> [N, C, H, W]`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_classes, num_classes, 3, padding=1)
        self.conv2 = nn.Conv2d(num_classes, num_classes, 3, padding=1)

    def forward(self, scores: Tensor) -> Tensor:
        """`[N, C, H, W] -> [N, C, H, W]`."""
        return scores + self.conv2(self.conv1(scores).relu())


def large_kernel(
    channels: int, num_classes: int, kernel: int, kind: Literal["global", "trivial", "stack"] = "global"
) -> nn.Module:
    """What scores a map through a window of `kernel` x `kernel` cells: the paper's block, or what it is compared with.

    Args:
        channels: channels of the map.
        num_classes: number of classes.
        kernel: side of the window, odd.
        kind: "global" for `GlobalConvolution`; "trivial" for one convolution of that kernel (table 2); "stack" for
            3x3 convolutions, one after the other without ReLU, that see as far together (table 3).

    Raises:
        InputError: another kind; an even kernel; a stack of none, for kernel 1.
    """
    if kind == "global":
        return GlobalConvolution(channels, num_classes, kernel)
    if kind not in ("trivial", "stack") or kernel % 2 == 0 or (kind == "stack" and kernel < 3):
        raise InputError(
            f"kind is {kind!r} with kernel {kernel}: take 'global', 'trivial' or 'stack', with an odd kernel, at least "
            "3 in a stack."
        )
    if kind == "trivial":
        return nn.Conv2d(channels, num_classes, kernel, padding=kernel // 2)
    below = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(kernel // 2 - 1)]
    return nn.Sequential(*below, nn.Conv2d(channels, num_classes, 3, padding=1))


class GCN(nn.Module):
    """The net of figure 2 a, for every height and width from 1 pixel on.

    The ResNet starts from ImageNet (`load_imagenet`), all other layers from random weights.

    Args:
        num_classes: number of classes, C in the shapes below, and the channels of the whole decoder.
        depth: 50, 101 or 152: the depth of the ResNet.
        kernel: side of the large kernels, k. At 512 pixels res5 is 16x16, so that 15 nearly covers it.
        width: channels of the ResNet's first stage.
        kind: what stands in the place of the large kernels, see `large_kernel`.
        refine: with boundary refinement.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 101,
        kernel: int = 15,
        *,
        width: int = 64,
        kind: Literal["global", "trivial", "stack"] = "global",
        refine: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(depth, width=width, num_classes=None)

        def refinement() -> nn.Module:
            return BoundaryRefinement(num_classes) if refine else nn.Identity()

        def score(channels: int) -> nn.Sequential:
            return nn.Sequential(large_kernel(channels, num_classes, kernel, kind), refinement())

        self.score4, self.score8, self.score16, self.score32 = map(score, self.backbone.channels)
        self.refine16, self.refine8, self.refine4, self.refine2, self.refine1 = (refinement() for _ in range(5))
        for name, parameter in self.named_parameters():
            if name.startswith("backbone."):
                continue
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0, 0.5 / parameter[0].numel() ** 0.5)  # half the size of what comes in

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits."""
        res2, res3, res4, res5 = self.backbone(images)  # strides 4, 8, 16, 32
        score4, score8 = self.score4(res2), self.score8(res3)  # [N, C, H / 4, W / 4], [N, C, H / 8, W / 8]
        score16, score32 = self.score16(res4), self.score32(res5)  # [N, C, H / 16, W / 16], [N, C, H / 32, W / 32]
        x = self.refine16(upsample(score32, 2, score16.shape[-2:]) + score16)  # [N, C, H / 16, W / 16]
        x = self.refine8(upsample(x, 2, score8.shape[-2:]) + score8)  # [N, C, H / 8, W / 8]
        x = self.refine4(upsample(x, 2, score4.shape[-2:]) + score4)  # [N, C, H / 4, W / 4]
        x = self.refine2(upsample(x, 2, images[..., ::2, ::2].shape[-2:]))  # [N, C, H / 2, W / 2]
        return self.refine1(upsample(x, 2, images.shape[-2:]))  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion(logits, labels)` at full resolution, where the decoder ends."""
        return criterion(self(images), labels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: one rate for all (the paper names no other); biases and norms do not decay."""
        return parameter_groups({self: 1.0})

    def load_imagenet(self, weights: Weights | None = None) -> None:
        """Load the ResNet's weights in place; None takes torchvision's first ones for its depth.

        Raises:
            InputError: the weights cannot be downloaded, or are those of another net.
        """
        load_torchvision(self.backbone, imagenet_weights(self.backbone) if weights is None else weights)


def paper(num_classes: int, depth: int = 101, kernel: int = 15) -> GCN:
    """ResNet-101: 45 million parameters, 2.5 of them in the decoder. The paper's final results are with depth 152."""
    return GCN(num_classes, depth, kernel)


def laptop(
    num_classes: int, kernel: int = 15, kind: Literal["global", "trivial", "stack"] = "global", refine: bool = True
) -> GCN:
    """ResNet-18 with three eighths of its width: 1.7 million parameters.

    In training, a batch of one needs an image of more than 32 pixels a side: norms need two values.
    """
    return GCN(num_classes, 18, kernel, width=24, kind=kind, refine=refine)
