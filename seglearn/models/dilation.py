"""Dilated convolutions for context (Yu & Koltun 2016, arXiv 1511.07122).

A convolution with gaps sees far without pooling: with dilations 1, 2, 4, 8, 16 the field grows exponentially,
the number of layers linearly, and the map keeps its resolution. The paper cleans VGG-16 up for dense prediction
(the front end: no padding, two poolings fewer) and puts a stack of such convolutions, the context module, on
top of its scores. The module starts as the identity and learns to correct.

Chapters: book/ideas/dilated_convolution, book/models/dilation.

Differs from the paper:
    - the context module pads each layer by its own dilation, as the authors' training code and their CamVid net
      do (their VOC net pads the scores once, by 33: the same but near borders);
    - scores are upsampled before the softmax, not after it, so that the model ends in logits like the others;
    - an image passes in one piece, whatever its size (the release cuts it into tiles of 528 pixels);
    - weights come from torchvision's VGG-16, so images are RGB and normalised, not BGR minus the mean;
    - laptop size: a narrow front end with batch normalisation, one convolution a stage and fc6 3x3, which takes
      less mirrored border. The margin is derived in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import Weights, torchvision_state_dict
from seglearn.backbones.vgg import initialise
from seglearn.errors import InputError
from seglearn.models.fcn import Grid, from_vgg
from seglearn.models.layers import mirror, parameter_groups

STRIDE = 8  # of the scores: three poolings are left


class FrontEnd(nn.Module):
    """VGG-16 edited (section 4): no padding, pool4 and pool5 removed, dilation for what followed them.

    Layers are named as in torchvision's `vgg16`: an identity stands where a pooling was removed. VGG's layers
    and fc6, fc7 start from `Dilation.load_imagenet`, else from Kaiming's normal; `final` from a Gaussian of
    standard deviation 0.001.

    Args:
        num_classes: number of classes, C in the shapes below.
        widths: channels of each of the five stages.
        depths: convolutions in each of the five stages.
        hidden: channels of fc6 and fc7.
        fc6: kernel size of fc6, which is dilated by 4.
        dropout: share of single activations dropped after fc6 and fc7.
        batch_norm: normalise after each convolution but the last.

    Attributes:
        margin: pixels of the input, on each side, that the unpadded layers use up: 186 in the paper's size. A
            cell of the result is centred on the middle of an 8x8 block, the first on the first behind the margin.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        *,
        hidden: int = 4096,
        fc6: int = 7,
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()

        def convolution(channels: int, width: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(channels, width, kernel, dilation=dilation)
            norm = [nn.BatchNorm2d(width)] if batch_norm else []
            return [conv, *norm, nn.ReLU(inplace=True)]

        self.batch_norm = batch_norm
        self.features = nn.Sequential()
        channels = 3
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            for _ in range(depth):
                self.features.extend(convolution(channels, width, 3, dilation=2 if stage == 5 else 1))
                channels = width
            self.features.append(nn.MaxPool2d(2) if stage <= 3 else nn.Identity())
        self.fc6 = nn.Sequential(*convolution(channels, hidden, fc6, dilation=4), nn.Dropout(dropout))
        self.fc7 = nn.Sequential(*convolution(hidden, hidden, 1), nn.Dropout(dropout))
        self.final = nn.Conv2d(hidden, num_classes, 1)
        initialise(self)
        nn.init.normal_(self.final.weight, 0, 0.001)

        grid = Grid().through([*self.features, *self.fc6, *self.fc7, self.final])
        self.margin = int(grid.start - (STRIDE - 1) / 2)  # 189.5 - 3.5: from a cell's centre to its block's edge

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, 8 h + 2 margin, 8 w + 2 margin]` mirrored images -> `[N, C, h, w]` scores."""
        x = self.features(images)  # three poolings: [N, widths[-1], h + 24, w + 24] with the paper's fc6
        x = self.fc6(x)  # [N, hidden, h, w]
        x = self.fc7(x)
        return self.final(x)  # [N, C, h, w]


class ContextModule(nn.Module):
    """Eight convolutions that see 67x67 cells and leave resolution and number of maps as they are (table 1).

    It starts as the identity, for inputs that are not negative: layers 1 to 7 truncate at 0.

    Args:
        num_classes: C, the number of maps.
        width: "basic" has C channels in every layer; "large" has 2, 2, 4, 8, 16, 32, 32 times C in layers 1 to 7.
        noise: standard deviation of the random weights of "large" next to the identity's, as a share of these.
            They tell the copies of a class apart.
        identity: start as the identity; otherwise from Kaiming's normal, which failed in the paper.
    """

    multipliers = {"basic": (1, 1, 1, 1, 1, 1, 1), "large": (2, 2, 4, 8, 16, 32, 32)}
    dilations = (1, 1, 2, 4, 8, 16, 1)

    def __init__(
        self, num_classes: int, width: Literal["basic", "large"] = "basic", noise: float = 0.01, identity: bool = True
    ) -> None:
        super().__init__()
        if width not in self.multipliers:
            raise InputError(f"The context module's width is {width!r}: choose 'basic' or 'large'.")
        channels = [num_classes * multiplier for multiplier in (1, *self.multipliers[width])]
        self.layers = nn.Sequential()
        for (before, after), dilation in zip(pairwise(channels), self.dilations, strict=True):
            self.layers.append(nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation))
            self.layers.append(nn.ReLU(inplace=True))
        self.layers.append(nn.Conv2d(channels[-1], num_classes, 1))
        if not identity:
            initialise(self)
            return
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                initialise_identity(layer, num_classes, noise if width == "large" else 0.0)

    def forward(self, scores: Tensor) -> Tensor:
        """`[N, C, h, w] -> [N, C, h, w]`."""
        return self.layers(scores)


@torch.no_grad()
def initialise_identity(conv: nn.Conv2d, num_classes: int, noise: float) -> None:
    """Let a convolution hand on each class as it is, in place (equations 4 and 5).

    A layer of `c` channels has `c / C` of them for each class, and shares the score out: each carries `C / c` of
    it. Output channel `b` sums the input channels `a` of its class, those with `floor(a C / channels in) =
    floor(b C / channels out)`, at the kernel's centre. All other weights are random, or 0 without noise.
    """
    share = num_classes / conv.out_channels
    inputs = torch.arange(conv.in_channels, device=conv.weight.device) * num_classes // conv.in_channels
    outputs = torch.arange(conv.out_channels, device=conv.weight.device) * num_classes // conv.out_channels
    same_class = outputs[:, None] == inputs[None, :]  # [channels out, channels in]
    centre = conv.kernel_size[0] // 2
    conv.weight.normal_(0, noise * share)
    conv.weight[:, :, centre, centre].masked_fill_(same_class, share)
    if conv.bias is not None:
        conv.bias.zero_()


class Dilation(nn.Module):
    """Front end and context module, for every height and width from 1 pixel on.

    The paper trains in two stages: the front end by itself, then the context module on top of it, frozen.

    Args:
        num_classes: number of classes, C in the shapes below.
        context: width of the context module, see `ContextModule`; None leaves it out.
        front_end: None makes the paper's.
        identity: how the context module starts, see `ContextModule`.
    """

    def __init__(
        self,
        num_classes: int,
        context: Literal["basic", "large"] | None = "basic",
        *,
        front_end: FrontEnd | None = None,
        identity: bool = True,
    ) -> None:
        super().__init__()
        self.front_end = front_end or FrontEnd(num_classes)
        self.context = None if context is None else ContextModule(num_classes, context, identity=identity)

    def scores(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, h, w]`, the scores of every 8th pixel.

        Cell i is centred on the middle of pixels 8 i to 8 i + 7, but the release compares it with the label of
        pixel 8 i, so that this is the pixel it learns to speak for. `h` is the least number whose last cell
        speaks for the last row or one beyond it: `8 (h - 1) + 1 >= H`, and `w` likewise.

        Raises:
            InputError: in training with norms, one image of 1x1 pixel.
        """
        height, width = images.shape[-2:]
        if self.front_end.training and self.front_end.batch_norm and images.shape[0] * height * width == 1:
            raise InputError("One image of 1x1 pixel has one value per channel; norms need at least 2: train on more.")
        margin = self.front_end.margin
        below = (1 - height) % STRIDE + STRIDE - 1  # up to 8 (h - 1) + 1 rows, then to the end of the last block
        right = (1 - width) % STRIDE + STRIDE - 1
        x = mirror(images, margin, below + margin, margin, right + margin)  # [N, 3, 8 h + 2 margin, 8 w + 2 margin]
        x = self.front_end(x)  # [N, C, h, w]
        return x if self.context is None else self.context(x)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits.

        Raises:
            InputError: see `scores`.
        """
        height, width = images.shape[-2:]
        scores = self.scores(images)  # [N, C, h, w]
        # cell i belongs on pixel 8 i: with the outermost cells on the outermost pixels, that is where it comes
        size = [STRIDE * (side - 1) + 1 for side in scores.shape[-2:]]
        logits = F.interpolate(scores, size=size, mode="bilinear", align_corners=True)
        return logits[..., :height, :width]  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion(scores, labels)` on every 8th row and column of the labels, where the release takes it."""
        labels = labels[..., ::STRIDE, ::STRIDE]
        height, width = labels.shape[-2:]
        return criterion(self.scores(images)[..., :height, :width], labels)  # less a cell beyond the last label

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: biases learn twice as fast, without decay (the release); norms do not decay."""
        return parameter_groups({self: 1.0}, bias_factor=2.0)

    def load_imagenet(self, weights: Weights = "VGG16_Weights.IMAGENET1K_V1") -> None:
        """Start the front end from the whole of a VGG-16, its classifier included, in place.

        `final` and the context module stay as they are.

        Args:
            weights: what `backbones.torchvision_state_dict` accepts, for `vgg16`.

        Raises:
            InputError: unknown name, no network, or the weights of another net.
        """
        vgg = from_vgg(torchvision_state_dict(weights))
        _load(self.front_end, {name.removeprefix("backbone."): value for name, value in vgg.items()}, but="final.")

    def start_from(self, state_dict: Mapping[str, Tensor]) -> None:
        """Second stage: load the weights of a net without context module, in place.

        The context module stays as it is: the identity, in a fresh net.

        Raises:
            InputError: the weights of another net, or of another number of classes.
        """
        _load(self, state_dict, but="context.")


def _load(module: nn.Module, state_dict: Mapping[str, Tensor], but: str) -> None:
    """Load all weights but those under a prefix, which may be absent."""
    mine = module.state_dict()
    wrong = [name for name in mine.keys() - state_dict.keys() if not name.startswith(but)]
    wrong += [name for name in state_dict if name not in mine or mine[name].shape != state_dict[name].shape]
    if wrong:
        raise InputError(
            f"These weights are not of this {type(module).__name__} ({len(wrong)} missing, left over or of another "
            f"shape, {min(wrong)} for one): give those of a net of this size and number of classes."
        )
    module.load_state_dict(state_dict, strict=False)


def paper(num_classes: int, context: Literal["basic", "large"] | None = "basic") -> Dilation:
    """VGG-16's 13 convolutions, fc6 and fc7 with 4096 channels: 134 million parameters, 141 with "large"."""
    return Dilation(num_classes, context)


def laptop(num_classes: int, context: Literal["basic", "large"] | None = "basic", identity: bool = True) -> Dilation:
    """A narrow front end, one convolution a stage, with batch normalisation: 0.8 million parameters.

    Mirrored borders are most of the work in a small crop; so few layers and a 3x3 fc6 need 63 pixels, not 186.
    """
    front_end = FrontEnd(
        num_classes,
        widths=(16, 32, 64, 128, 192),
        depths=(1, 1, 1, 1, 1),
        hidden=256,
        fc6=3,
        dropout=0.1,
        batch_norm=True,
    )
    return Dilation(num_classes, context, front_end=front_end, identity=identity)
