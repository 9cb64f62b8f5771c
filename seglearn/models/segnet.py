"""SegNet and SegNet-Basic (Badrinarayanan, Kendall & Cipolla 2015/2017, arXiv 1511.00561).

An encoder halves the map stage by stage, a decoder doubles it as often. Max pooling says which of four pixels
won, not only its value: each decoder puts its values back onto these pixels, leaves zeros between them, and
convolves. Borders stay sharp for the price of an index per window, where U-Net would keep whole maps.

Chapter: book/models/segnet.

Differs from the paper:
    - convolutions have biases, as in the authors' release (the paper's SegNet-Basic has none): 29 449 355 and
      1 416 587 parameters at 11 classes;
    - no dropout, as in the release (the paper's benchmark drops half of the deeper activations);
    - `SegNet.load_imagenet` takes torchvision's VGG-16 with batch normalisation, since the encoder normalises
      (the paper starts from VGG-16 without);
    - SegNet-Basic's normalisation of the input is the release's, across channels. Our images come with mean 0
      and variance 1, not as 0...255, so that it changes them by less than one part in 1000;
    - an index takes 8 bytes in PyTorch (2 bits would do, says the paper);
    - statistics of the norms are running averages; the authors compute them anew over the training set once
      the weights are final. The recipes do so too (`recompute_batch_norm`);
    - laptop size: narrower; SegNet with VGG-13's two convolutions a stage, which learn faster from scratch.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import VGG, Weights, load_torchvision
from seglearn.errors import InputError
from seglearn.models.layers import parameter_groups

Keeps = Literal["indices", "nothing", "features"]


class Pooled(NamedTuple):
    """What the decoder keeps of a pooling."""

    indices: Tensor  # of each value of the pooled map: where in the larger map it was, row * width + column
    size: torch.Size  # height and width of the larger map: of 45 and 46 both become 23, so an index is not enough


def pool(x: Tensor) -> tuple[Tensor, Pooled]:
    """2x2 max pooling that remembers: `[N, C, H, W] -> [N, C, ceil(H / 2), ceil(W / 2)]`."""
    pooled, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
    return pooled, Pooled(indices, x.shape[-2:])


def unpool(x: Tensor, pooled: Pooled) -> Tensor:
    """Each value back to where the pooling's maximum was, 0 elsewhere: `[N, C, h, w] -> [N, C, H, W]`."""
    return F.max_unpool2d(x, pooled.indices, (2, 2), output_size=pooled.size)


def initialise(model: nn.Module) -> None:
    """Draw weights in place, as the release does: He's normal for convolutions, 1 and 0.001 for norms."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, 0.001)


def refuse_single_values(model: nn.Module, images: Tensor, stride: int) -> None:
    """A norm cannot be trained on one value per channel, as the deepest ones see it in one small image."""
    if model.training and len(images) == 1 and max(images.shape[-2:]) <= stride:
        raise InputError(
            f"One image of {images.shape[-2]}x{images.shape[-1]} pixels leaves the deepest norm one value per channel, "
            f"and it needs at least 2: train with a larger batch, or with more than {stride} pixels a side."
        )


class SegNet(nn.Module):
    """The convolutional part of VGG-16 and its mirror image (figure 2), for every height and width from 1 on.

    All layers are drawn as the release draws them; `load_imagenet` then fills the encoder. In training, a batch
    of one needs an image of more than 16 pixels a side.

    Args:
        num_classes: number of classes, C in the shapes below.
        widths: channels of each of the five encoders.
        depths: convolutions in each of the five encoders, and in their decoders.
    """

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, ...] = (64, 128, 256, 512, 512),
        depths: tuple[int, ...] = (2, 2, 3, 3, 3),
    ) -> None:
        super().__init__()
        self.encoder = VGG(widths, depths, batch_norm=True, num_classes=None, ceil_mode=True)
        self.decoders = nn.ModuleList()  # the deepest first, as they are used
        for stage in reversed(range(len(widths))):
            width = widths[stage]
            last = widths[stage - 1] if stage else num_classes  # what the next decoder, or the loss, takes
            decoder = nn.Sequential()
            for channels in [width] * (depths[stage] - 1) + [last]:
                conv = nn.Conv2d(width, channels, 3, padding=1)
                decoder.extend([conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)])
            # the very last convolution is the classifier: no norm, no ReLU
            self.decoders.append(decoder if stage else decoder[:-2])
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits.

        Raises:
            InputError: in training, one image of at most 16 pixels a side.
        """
        refuse_single_values(self, images, stride=16)
        x, memory = images, []
        for stage in self.encoder.stages():
            x, pooled = pool(stage[:-1](x))  # [N, widths[i], H / 2, W / 2], then H / 4, W / 4 ... rounded up
            memory.append(pooled)
        for decoder in self.decoders:
            x = unpool(x, memory.pop())  # [N, widths[i], H / 16, W / 16] ... [N, widths[0], H, W]
            x = decoder(x)  # [N, widths[i - 1], ...], at last [N, C, H, W]
        return x

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion(logits, labels)` at full resolution; the paper's weights of the classes are the criterion's."""
        return criterion(self(images), labels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: biases learn twice as fast, without decay (the release); norms do not decay."""
        return parameter_groups({self: 1.0}, bias_factor=2.0)

    def load_imagenet(self, weights: Weights = "VGG16_BN_Weights.IMAGENET1K_V1") -> None:
        """Start the encoder from a classifier, in place; the decoders stay as they are.

        Args:
            weights: what `backbones.torchvision_state_dict` accepts, for `vgg16_bn`.

        Raises:
            InputError: unknown name, no network, or the weights of another net.
        """
        load_torchvision(self.encoder, weights)


class SegNetBasic(nn.Module):
    """The small SegNet on which the paper compares decoders: four encoders and decoders of one convolution each.

    Kernels are 7x7 everywhere: a cell of the deepest map sees 106x106 pixels. A decoder has no ReLU. The net is
    trained from scratch. In training, a batch of one needs an image of more than 8 pixels a side.

    Args:
        num_classes: number of classes, C in the shapes below.
        width: channels of every layer.
        stages: number of encoders, and of decoders.
        keeps: what a decoder has of its encoder. "indices" is SegNet; of "nothing" it is left to upsample bilinearly;
            with "features" the encoder's whole map is added to the unpooled one (the paper's EncoderAddition).

    Raises:
        InputError: another `keeps`.
    """

    def __init__(self, num_classes: int, width: int = 64, stages: int = 4, keeps: Keeps = "indices") -> None:
        super().__init__()
        if keeps not in ("indices", "nothing", "features"):
            raise InputError(f"keeps is {keeps!r}: choose 'indices', 'nothing' or 'features'.")
        self.keeps, self.width = keeps, width
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.encoders = nn.ModuleList()
        self.decoders = nn.ModuleList()
        for before, after in pairwise([3] + [width] * stages):
            conv = nn.Conv2d(before, after, 7, padding=3)
            self.encoders.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
            self.decoders.append(nn.Sequential(nn.Conv2d(width, width, 7, padding=3), nn.BatchNorm2d(width)))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits.

        Raises:
            InputError: in training, one image of at most 8 pixels a side.
        """
        refuse_single_values(self, images, stride=8)
        x, memory = self.norm(images), []
        for encoder in self.encoders:
            features = encoder(x)
            x, pooled = pool(features)  # [N, width, H / 2, W / 2], then H / 4, W / 4 ... rounded up
            memory.append((pooled, features))
        for decoder in self.decoders:
            x = decoder(self.enlarge(x, *memory.pop()))  # [N, width, H / 8, W / 8] ... [N, width, H, W]
        return self.classifier(x)  # [N, C, H, W]

    def enlarge(self, x: Tensor, pooled: Pooled, features: Tensor) -> Tensor:
        """`[N, width, h, w] -> [N, width, H, W]`, the size of `features`, with what the decoder keeps of them."""
        if self.keeps == "nothing":
            return F.interpolate(x, pooled.size, mode="bilinear", align_corners=False)
        x = unpool(x, pooled)
        return x + features if self.keeps == "features" else x

    def decoder_memory(self, height: int, width: int) -> int:
        """Bytes that the decoders need of the encoders, for one image: 2 bits an index, 4 bytes a feature."""
        bits = 0
        for _ in self.encoders:
            if self.keeps == "features":
                bits += 32 * self.width * height * width
            height, width = (height + 1) // 2, (width + 1) // 2
            if self.keeps != "nothing":
                bits += 2 * self.width * height * width
        return bits // 8

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion(logits, labels)` at full resolution; the paper's weights of the classes are the criterion's."""
        return criterion(self(images), labels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: biases learn twice as fast, without decay (the release); norms do not decay."""
        return parameter_groups({self: 1.0}, bias_factor=2.0)


def paper(num_classes: int) -> SegNet:
    """SegNet on VGG-16's 13 convolutions: 29 million parameters."""
    return SegNet(num_classes)


def laptop(num_classes: int) -> SegNet:
    """Narrow, with two convolutions a stage, which learn faster from scratch than three: 1.7 million parameters."""
    return SegNet(num_classes, widths=(16, 32, 64, 128, 192), depths=(2, 2, 2, 2, 2))


def paper_basic(num_classes: int, keeps: Keeps = "indices") -> SegNetBasic:
    """SegNet-Basic, 64 channels wide: 1.4 million parameters."""
    return SegNetBasic(num_classes, keeps=keeps)


def laptop_basic(num_classes: int, keeps: Keeps = "indices") -> SegNetBasic:
    """Narrower, since 7x7 kernels at full resolution are slow: 0.2 million parameters."""
    return SegNetBasic(num_classes, width=24, keeps=keeps)
