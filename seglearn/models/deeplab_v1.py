"""DeepLab v1: atrous convolution and a large field of view on VGG-16 (Chen et al. 2015, arXiv 1412.7062).

Pooling four cells into one loses where things are. DeepLab takes the stride out of VGG-16's last two poolings and
spreads the taps of what follows instead ("hole" or atrous convolution): scores come one per 8 pixels rather than
32, with the same weights. fc6 gets the same freedom: few taps far apart see as much as many close together,
with a sixth of the parameters (LargeFOV). A fully connected CRF on top, in the paper, draws the borders.

Chapter: book/models/deeplab_v1.

Differs from the paper:
    - no CRF here: the paper trains net and CRF one after the other, so this is its net, unchanged;
    - logits are upsampled, not log-probabilities: both differ by one number per position, the same for every
      class, so that bilinear upsampling leaves class and probability of each pixel the same;
    - images of any size: they are padded to 8n + 1 pixels a side, as the paper's crops are;
    - MSc: the text leaves open how maps of stride 1, 2, 4 and 8 meet. Here the 3x3 convolution has the missing
      stride. Its cells, too, lie on every 8th pixel;
    - weights come from torchvision's VGG-16, so images are RGB and normalised, not BGR minus the mean;
    - laptop size: a narrow VGG with batch normalisation, trained from scratch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import VGG, Weights, load_torchvision, torchvision_state_dict
from seglearn.backbones.vgg import POOLINGS, initialise
from seglearn.errors import InputError
from seglearn.models.fcn import from_vgg
from seglearn.models.layers import pad_to_grid, parameter_groups

STRIDE = 8  # pixels from one cell of the scores to the next


class FC6(NamedTuple):
    """The first fully connected layer as a convolution: the paper's table 2 varies it."""

    kernel: int
    rate: int
    channels: int

    @property
    def field_of_view(self) -> int:
        """Pixels that the kernel spans, as the paper counts: 224 for VGG's own 7x7 kernel.

        Neighbouring taps are `rate` cells of 8 pixels apart, and a cell of pool5 stands for 32x32 pixels, as in
        VGG-16. (Convolutions and poolings below see farther than their cell: the whole receptive field is larger.)
        """
        return (self.kernel - 1) * self.rate * STRIDE + 32


VARIANTS = {
    "7x7": FC6(7, 4, 4096),  # DeepLab-CRF-7x7: VGG's own, at 4 times VGG's resolution
    "4x4-128": FC6(4, 4, 4096),  # DeepLab-CRF: every other tap, not spread: sees 128 pixels
    "4x4": FC6(4, 8, 4096),  # DeepLab-CRF-4x4: every other tap, where it was
    "largefov": FC6(3, 12, 1024),  # DeepLab-CRF-LargeFOV: every third tap, where it was, and a quarter of the filters
}


def atrous_vgg(widths: tuple[int, ...] = (64, 128, 256, 512, 512), batch_norm: bool = False) -> VGG:
    """VGG-16 of stride 8, with the release's poolings of 3x3; pool4 and pool5 have stride 1, conv5 has rate 2.

    A pooling of 2x2 looks right and down and moves its map by half a cell. Of 3x3, it has a centre: cell `i` of
    every map lies on pixel `stride * i` exactly, and 321 pixels become 161, 81 and 41.
    """
    vgg = VGG(widths, batch_norm=batch_norm, num_classes=None, output_stride=STRIDE)
    for i, layer in enumerate(vgg.features):
        if isinstance(layer, POOLINGS):
            vgg.features[i] = nn.MaxPool2d(3, stride=2 if isinstance(layer, nn.MaxPool2d) else 1, padding=1)
    return vgg


def fully_connected(
    channels: int, hidden: int, kernel: int = 1, rate: int = 1, dropout: float = 0.5, batch_norm: bool = False
) -> nn.Sequential:
    """Atrous convolution, ReLU, dropout: `[N, channels, h, w] -> [N, hidden, h, w]`.

    The kernel spans `rate * (kernel - 1) + 1` cells. At an even rate this is odd for a 4x4 kernel too, whose four
    taps then lie at -1.5, -0.5, 0.5 and 1.5 rates: it has a centre, and needs the same padding on all sides.
    """
    conv = nn.Conv2d(channels, hidden, kernel, padding=rate * (kernel - 1) // 2, dilation=rate)
    norm = [nn.BatchNorm2d(hidden)] if batch_norm else []
    return nn.Sequential(conv, *norm, nn.ReLU(inplace=True), nn.Dropout(dropout))


def mlp(channels: int, width: int, stride: int, batch_norm: bool = False) -> nn.Sequential:
    """MSc's perceptron of two layers, 3x3 and 1x1: `[N, channels, H, W] -> [N, width, H / stride, W / stride]`."""
    layers: list[nn.Module] = []
    for conv in (nn.Conv2d(channels, width, 3, stride=stride, padding=1), nn.Conv2d(width, width, 1)):
        norm = [nn.BatchNorm2d(width)] if batch_norm else []
        layers += [conv, *norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class DeepLabV1(nn.Module):
    """The net of section 3 and, with `msc`, of section 4.3, for every height and width from 1 pixel on.

    Backbone, fc6 and fc7 start from VGG-16 (`load_imagenet`), fc8 from a Gaussian of 0.01, MSc's layers from
    Kaiming's normal.

    MSc is trained in a second step: only the new weights learn. Start it from the checkpoint of the net without
    MSc (`init_from`; all names but fc8's are the same) and freeze the modules `backbone`, `fc6` and `fc7`.

    Args:
        num_classes: number of classes, C in the shapes below.
        fc6: kernel, rate and channels of fc6; fc7 has as many channels.
        backbone: what `atrous_vgg` makes; None makes the paper's.
        average: a 3x3 average pooling after pool5, as the release of LargeFOV has.
        msc: channels that image and pool1 to pool4 each add to fc7's: 128 in the paper, 0 for none.
        dropout: share of single activations dropped after fc6 and fc7.
        batch_norm: normalise fc6, fc7 and MSc.
    """

    def __init__(
        self,
        num_classes: int,
        fc6: FC6 = VARIANTS["largefov"],
        *,
        backbone: VGG | None = None,
        average: bool = True,
        msc: int = 0,
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, rate, self.hidden = fc6
        self.backbone = backbone or atrous_vgg()
        *lower, pool5 = self.backbone.channels
        self.average = nn.AvgPool2d(3, stride=1, padding=1) if average else nn.Identity()
        self.fc6 = fully_connected(pool5, self.hidden, self.kernel, rate, dropout=dropout, batch_norm=batch_norm)
        self.fc7 = fully_connected(self.hidden, self.hidden, dropout=dropout, batch_norm=batch_norm)
        self.msc = nn.ModuleList()
        if msc:
            for channels, stride in zip((3, *lower), (1, *self.backbone.strides[:4]), strict=True):
                self.msc.append(mlp(channels, msc, STRIDE // stride, batch_norm))
        self.fc8 = nn.Conv2d(self.hidden + msc * len(self.msc), num_classes, 1)
        initialise(self)
        nn.init.normal_(self.fc8.weight, 0, 0.01)

    def scores(self, images: Tensor) -> Tensor:
        """`[N, 3, 8n + 1, 8m + 1] -> [N, C, n + 1, m + 1]`: cell `i` is the score of pixel `8i`."""
        *lower, pool5 = self.backbone(images)  # strides 2, 4, 8, 8, 8
        x = self.average(pool5)
        x = self.fc6(x)  # [N, hidden, n + 1, m + 1]
        x = self.fc7(x)
        if self.msc:
            details = (mlp(source) for mlp, source in zip(self.msc, (images, *lower), strict=True))
            x = torch.cat([x, *details], 1)  # [N, hidden + 5 msc, n + 1, m + 1]
        return self.fc8(x)  # [N, C, n + 1, m + 1]

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits."""
        height, width = images.shape[-2:]
        images = pad_to_grid(images, STRIDE)  # [N, 3, 8n + 1, 8m + 1]
        scores = self.scores(images)  # [N, C, n + 1, m + 1]
        logits = F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=True)
        return logits[..., :height, :width]  # [N, C, H, W]

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion` on the scores as they come, with the labels shrunk by 8: each cell has its pixel's."""
        labels = labels[:, ::STRIDE, ::STRIDE]
        height, width = labels.shape[-2:]
        scores = self.scores(pad_to_grid(images, STRIDE))
        return criterion(scores[..., :height, :width], labels)  # cells on the padding have no label

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: the classifier fc8 learns 10 times as fast, biases twice, without decay."""
        factors: dict[nn.Module, float] = {self.backbone: 1, self.fc6: 1, self.fc7: 1, self.msc: 1, self.fc8: 10}
        return parameter_groups(factors, bias_factor=2)

    def load_imagenet(self, weights: Weights = "VGG16_Weights.IMAGENET1K_V1") -> None:
        """Start backbone, fc6 and fc7 from a VGG-16 trained on ImageNet, thinned out as `thin` says.

        Raises:
            InputError: the weights cannot be downloaded, or are of another net than this one's backbone.
        """
        state_dict = torchvision_state_dict(weights)
        start = thin(from_vgg(state_dict), self.kernel, self.hidden)
        load_torchvision(self.backbone, state_dict)
        self.load_state_dict(start, strict=False)


def thin(weights: Mapping[str, Tensor], kernel: int, channels: int, seed: int = 0) -> dict[str, Tensor]:
    """What is left of VGG-16's fc6 and fc7 for a smaller kernel and fewer channels.

    Of the 7x7 taps, 4x4 keeps rows and columns 0, 2, 4, 6, and 3x3 keeps 0, 3, 6. At rate 4, that of the 7x7 kernel
    at stride 8, these lie 8 and 12 cells apart: at rates 8 and 12 each tap stays where it was trained. Which
    channels stay is drawn at random, as in the paper.

    Args:
        weights: what `from_vgg` makes.
        kernel: side of the new fc6's kernel: 7, 4 or 3.
        channels: channels of the new fc6 and fc7.
        seed: of the draw.

    Raises:
        InputError: the weights have fewer channels.
    """
    total = len(weights["fc6.0.weight"])
    if channels > total:
        raise InputError(f"fc6 has {channels} channels, these weights {total}: take a VGG-16's.")
    generator = torch.Generator().manual_seed(seed)
    fc6, fc7 = (torch.randperm(total, generator=generator, device="cpu")[:channels].sort().values for _ in range(2))
    step = 6 // (kernel - 1)
    return {
        "fc6.0.weight": weights["fc6.0.weight"][fc6][..., ::step, ::step],
        "fc6.0.bias": weights["fc6.0.bias"][fc6],
        "fc7.0.weight": weights["fc7.0.weight"][fc7][:, fc6],
        "fc7.0.bias": weights["fc7.0.bias"][fc7],
    }


def fc6_of(variant: str) -> FC6:
    """The fc6 of a variant, by its name.

    Raises:
        InputError: no such variant.
    """
    if variant not in VARIANTS:
        raise InputError(f"There is no variant {variant!r} of DeepLab v1: choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[variant]


def paper(num_classes: int, variant: str = "largefov", msc: bool = False) -> DeepLabV1:
    """20.5 million parameters (LargeFOV), 65.1 (4x4, 4x4-128) or 134.3 (7x7)."""
    return DeepLabV1(num_classes, fc6_of(variant), average=variant == "largefov", msc=128 if msc else 0)


def laptop(
    num_classes: int, variant: str = "largefov", msc: bool = False, fc6: Sequence[int] | None = None
) -> DeepLabV1:
    """A narrow VGG with batch normalisation: 0.9 million parameters (LargeFOV).

    In training, a batch of one needs an image of more than one pixel: norms need two values.

    Args:
        num_classes: number of classes.
        variant: which fc6 of the paper's table 2.
        msc: multi-scale features.
        fc6: kernel and rate instead of the variant's: the paper's rates are for crops of 321 pixels.

    Raises:
        InputError: no such variant; an even kernel at an odd rate, which has no centre.
    """
    kernel, rate = fc6 or fc6_of(variant)[:2]
    if kernel % 2 == 0 and rate % 2:
        raise InputError(f"fc6 is {kernel}x{kernel} at rate {rate}: an even kernel needs an even rate for a centre.")
    return DeepLabV1(
        num_classes,
        FC6(kernel, rate, channels=256),
        backbone=atrous_vgg((16, 32, 64, 96, 96), batch_norm=True),
        average=variant == "largefov",
        msc=32 if msc else 0,
        dropout=0.1,
        batch_norm=True,
    )
