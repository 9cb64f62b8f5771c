"""U-Net (Ronneberger, Fischer & Brox 2015, "U-Net: convolutional networks for biomedical image segmentation",
MICCAI, arXiv 1505.04597).

The way down computes what is there, on ever coarser maps; the way up brings it back to where it is, with as
many channels as the way down and, at each level, the map of the way down concatenated. Convolutions are not
padded: a pixel gets logits only where the net sees real image all around it. A picture of any size is covered
by overlapping tiles, mirrored at its border, and no seam shows.

Chapter: book/ideas/encoder_decoder.

Differs from the paper:
    - `forward` takes the image as a single tile as large as it is. `overlap_tile` is the paper's strategy,
      with the same logits, and activations for one tile only;
    - dropout of 0.5 behind levels 4 and 5: the paper says "at the end of the contracting path", rate and
      exact place are our choice;
    - the loss is the plain criterion: the weight map that keeps touching cells apart is not in here;
    - `padded=True` is the U-Net that most people mean today, with padded convolutions: see `UNet`;
    - laptop size: a quarter of the channels, and batch normalisation, to train from scratch in minutes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seglearn.errors import InputError
from seglearn.models.layers import mirror, parameter_groups

STRIDE = 16  # of the lowest level, after four poolings
MARGIN = 92  # pixels that the unpadded convolutions lose on each side: 572 in, 388 out
CROPS = (88, 40, 16, 4)  # pixels of each skip, from the highest level to the lowest, that lie beyond the way up


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each followed by a rectifier: `[N, channels, H, W] -> [N, width, H - 4, W - 4]`.

    Padded, `[N, width, H, W]`.
    """

    def __init__(self, channels: int, width: int, padded: bool, batch_norm: bool) -> None:
        layers: list[nn.Module] = []
        for inputs in (channels, width):
            layers.append(nn.Conv2d(inputs, width, 3, padding=int(padded)))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class UNet(nn.Module):
    """The net of the paper's figure 1, for every height and width from 1 pixel on.

    All layers start from random weights: Gaussians of deviation sqrt(2 / N), N the number of inputs of a neuron.

    Args:
        num_classes: number of classes, C in the shapes below.
        in_channels: channels of the images (the paper's have one).
        padded: convolutions keep the size of their map, with zeros around it. The image is then mirrored only
            below and to the right, up to a multiple of 16, for every map to fit its skip. Far cheaper, but the
            logits near a border depend on where the image was cut.
        widths: channels of the five levels.
        dropout: share of single activations dropped behind levels 4 and 5.
        batch_norm: normalise after each 3x3 convolution.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        padded: bool = False,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.padded, self.batch_norm = padded, batch_norm
        w1, w2, w3, w4, w5 = widths

        def double_conv(channels: int, width: int) -> DoubleConv:
            return DoubleConv(channels, width, padded, batch_norm)

        self.down1 = double_conv(in_channels, w1)
        self.down2 = double_conv(w1, w2)
        self.down3 = double_conv(w2, w3)
        self.down4 = double_conv(w3, w4)
        self.bottom = double_conv(w4, w5)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.upconv4 = nn.ConvTranspose2d(w5, w4, 2, stride=2)
        self.up4 = double_conv(2 * w4, w4)
        self.upconv3 = nn.ConvTranspose2d(w4, w3, 2, stride=2)
        self.up3 = double_conv(2 * w3, w3)
        self.upconv2 = nn.ConvTranspose2d(w3, w2, 2, stride=2)
        self.up2 = double_conv(2 * w2, w2)
        self.upconv1 = nn.ConvTranspose2d(w2, w1, 2, stride=2)
        self.up1 = double_conv(2 * w1, w1)
        self.out = nn.Conv2d(w1, num_classes, 1)
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        """`[N, c, H, W]` normalised images -> `[N, C, H, W]` logits.

        Raises:
            InputError: in training, batch normalisation would see a single value per channel.
        """
        height, width = images.shape[-2:]
        if self.padded:
            if self.training and self.batch_norm and len(images) == 1 and max(height, width) <= STRIDE:
                raise InputError(
                    f"One image of {height}x{width} pixels leaves batch normalisation a single value per channel: "
                    f"train with at least 2 images, or with a side above {STRIDE} pixels."
                )
            images = mirror(images, 0, -height % STRIDE, 0, -width % STRIDE)  # [N, c, 16 n, 16 m]
        else:
            below, right = output_side(height) - height, output_side(width) - width
            images = mirror(images, MARGIN, MARGIN + below, MARGIN, MARGIN + right)  # [N, c, 16 n + 188, 16 m + 188]
        return self._net(images)[..., :height, :width]  # [N, C, H, W]

    def valid(self, images: Tensor) -> Tensor:
        """The bare net without padding: `[N, c, H, W] -> [N, C, H - 184, W - 184]`, 572 -> 388.

        Raises:
            InputError: a padded net; or a size at which a pooling would meet an odd side, or nothing is left.
        """
        if self.padded:
            raise InputError("This net has padded convolutions, which lose no border: call it, or use padded=False.")
        for side in images.shape[-2:]:
            if side % STRIDE != 12 or side < 2 * MARGIN + 4:
                raise InputError(f"A side of {side} pixels does not fit the unpadded net: give 188, 204, 220 ...")
        return self._net(images)

    def _net(self, images: Tensor) -> Tensor:
        """Figure 1. Sides in brackets: the paper's example of 572 pixels."""
        level1 = self.down1(images)  # [N, 64, 568, 568]
        level2 = self.down2(self.pool(level1))  # [N, 128, 280, 280]
        level3 = self.down3(self.pool(level2))  # [N, 256, 136, 136]
        level4 = self.dropout(self.down4(self.pool(level3)))  # [N, 512, 64, 64]
        x = self.dropout(self.bottom(self.pool(level4)))  # [N, 1024, 28, 28]
        crop1, crop2, crop3, crop4 = (0, 0, 0, 0) if self.padded else CROPS
        x = self.up4(join(level4, crop4, self.upconv4(x)))  # [N, 512, 52, 52] of 56
        x = self.up3(join(level3, crop3, self.upconv3(x)))  # [N, 256, 100, 100] of 104
        x = self.up2(join(level2, crop2, self.upconv2(x)))  # [N, 128, 196, 196] of 200
        x = self.up1(join(level1, crop1, self.upconv1(x)))  # [N, 64, 388, 388] of 392
        return self.out(x)  # [N, C, 388, 388]

    def overlap_tile(self, images: Tensor, tile: int = 388) -> Tensor:
        """The logits of `forward`, computed tile by tile: the paper's overlap-tile strategy (its figure 2).

        Each tile of logits is computed from a window that is 92 pixels larger on each side. Tiles start at
        multiples of 16 pixels: all poolings then pair the same pixels as on the whole image, and the logits are
        equal to those of `forward` in evaluation mode, whatever the tile. Without gradients, only image and
        logits need memory that grows with the image.

        Args:
            images: `[N, c, H, W]`, normalised.
            tile: side of a tile of logits, 20, 36, 52 ...; the paper's is 388.

        Returns logits `[N, C, H, W]`.

        Raises:
            InputError: a padded net, or another tile.
        """
        if tile % STRIDE != 4 or tile < STRIDE + 4:
            raise InputError(f"tile is {tile}: give a multiple of {STRIDE} plus 4, from 20 on, such as 388.")
        height, width = images.shape[-2:]
        step = tile - 4  # a multiple of 16; the last 4 pixels of a tile are the next one's first
        tops, lefts = range(0, height, step), range(0, width, step)
        below, right = tops[-1] + tile - height, lefts[-1] + tile - width  # the last tiles reach beyond the image
        images = mirror(images, MARGIN, MARGIN + below, MARGIN, MARGIN + right)
        window = tile + 2 * MARGIN
        rows = []
        for top in tops:
            tiles = [self.valid(images[..., top : top + window, left : left + window]) for left in lefts]
            rows.append(torch.cat([logits[..., :step, :step] for logits in tiles], -1))
        return torch.cat(rows, -2)[..., :height, :width]  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion(logits, labels)` at full resolution, where the paper takes its loss."""
        return criterion(self(images), labels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: one rate, as in the paper; biases and norms do not decay."""
        return parameter_groups({self: 1.0})


def output_side(side: int) -> int:
    """The smallest side that the unpadded net can return and that covers `side` pixels: 4, 20, 36 ..."""
    return (side + STRIDE - 5) // STRIDE * STRIDE + 4


def join(skip: Tensor, crop: int, x: Tensor) -> Tensor:
    """The map of the way down, without `crop` pixels on each side, and that of the way up, channel on channel."""
    skip = skip[..., crop : skip.shape[-2] - crop, crop : skip.shape[-1] - crop]
    return torch.cat([skip, x], 1)


def initialise(module: nn.Module) -> None:
    """Gaussian weights of deviation sqrt(2 / N), biases 0; N counts the inputs of one neuron of the layer."""
    if isinstance(module, nn.Conv2d):
        inputs = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
    elif isinstance(module, nn.ConvTranspose2d):
        inputs = module.in_channels  # stride and kernel are both 2: a pixel is reached by one position only
    else:
        return
    nn.init.normal_(module.weight, 0, (2 / inputs) ** 0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def paper(num_classes: int, in_channels: int = 3, padded: bool = False) -> UNet:
    """31 million parameters, padded or not."""
    return UNet(num_classes, in_channels, padded)


def laptop(num_classes: int, padded: bool = False) -> UNet:
    """A quarter of the channels, batch normalisation: 1.9 million parameters.

    Without padding, a crop of 192x256 is computed as 380x444: more than three times the pixels. That is the price of
    the paper's borders.
    """
    return UNet(num_classes, padded=padded, widths=(16, 32, 64, 128, 256), dropout=0.1, batch_norm=True)
