"""Receptive fields: the papers' numbers, arithmetic by hand, and which pixels really change a cell."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seglearn
from seglearn import models
from seglearn.backbones import VGG, ResNet
from seglearn.errors import InputError
from seglearn.fields import effective_receptive_field, receptive_field
from seglearn.models import layers
from seglearn.tracing import trace


class Last(nn.Module):
    """The last map of a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)[-1]


def conv(channels: int, width: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, width, kernel, stride=stride, padding=padding, dilation=dilation)


def make(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return models.create(name, 21, **options)


# ---- the papers' numbers


def test_fcn_sees_404_pixels_every_32() -> None:
    """Table 1 of the paper."""
    field = receptive_field(make("fcn32s"), layer="fc7")
    assert (field.size, field.stride, field.whole_image) == ((404, 404), (32, 32), False)


@pytest.mark.parametrize("stage, size", list(enumerate((6, 16, 44, 100, 212))))
def test_vgg_by_hand(stage: int, size: int) -> None:
    """Each 3x3 convolution adds two cells of its stage, each pooling one: 1 -> 5 -> 6, 6 + 2 * 4 -> 14 -> 16 ..."""
    with torch.device("meta"):
        vgg = VGG(num_classes=None)
        field = receptive_field(nn.Sequential(*vgg.stages()[: stage + 1]))
    assert field.size == (size, size) and field.stride == (2 ** (stage + 1),) * 2


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_dilation_keeps_the_field_of_what_it_replaces(output_stride: int) -> None:
    with torch.device("meta"):
        field = receptive_field(Last(VGG(num_classes=None, output_stride=output_stride)))
    assert field.size == (212, 212) and field.stride == (output_stride,) * 2


@pytest.mark.parametrize("depth, size", [(18, 435), (50, 427), (101, 971)])
def test_resnets_by_hand(depth: int, size: int) -> None:
    """Stem and pooling see 11 pixels; then each 3x3 convolution adds 2 * stride * dilation."""
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    convolutions = 2 if depth < 50 else 1
    output_stride = 32 if depth < 50 else 8
    seen, stride, dilation = 11, 4, 1
    for stage, number in enumerate(blocks):
        for index in range(number * convolutions):
            seen += 2 * stride * dilation  # the first one of a stage still reads the grid of the stage before
            if index == 0 and stage:
                stride, dilation = (2 * stride, dilation) if stride < output_stride else (stride, 2 * dilation)
    assert seen == size
    with torch.device("meta"):
        field = receptive_field(Last(ResNet(depth, num_classes=None, output_stride=output_stride)))
    assert field.size == (size, size) and field.stride == (output_stride,) * 2


def test_context_module_sees_67_cells() -> None:
    """Table 1 of Yu and Koltun."""
    rates = (1, 1, 2, 4, 8, 16, 1)
    sizes = [receptive_field(nn.Sequential(*(conv(3, 3, dilation=d) for d in rates[: n + 1]))).size for n in range(7)]
    assert sizes == [(side, side) for side in (3, 5, 9, 17, 33, 65, 67)]


def test_dilation_by_its_sizes() -> None:
    """A padded image of 900 gives 66 cells, so that one sees 900 - 65 * 8 pixels; the context adds 66 cells."""
    model = make("dilation")
    assert receptive_field(model, layer="front_end").size == (380, 380)
    assert receptive_field(model, layer="context").size == (380 + 66 * 8,) * 2


def test_segnet_basic_sees_106_pixels() -> None:
    """Its encoder, section 3.1 of the paper: four times 7x7 and a pooling."""
    encoder = [part for channels in (3, 8, 8, 8) for part in (conv(channels, 8, 7), nn.MaxPool2d(2))]
    assert receptive_field(nn.Sequential(*encoder)).size == (106, 106)
    assert receptive_field(make("segnet_basic"), layer="encoders.3").size == (98, 98)  # before the last pooling


def test_patch_classifier_sees_its_window() -> None:
    field = receptive_field(make("patch"))
    assert (field.size, field.stride) == ((95, 95), (1, 1))


@pytest.mark.parametrize(
    "kernel, rate, paper, strict", [(7, 4, 224, 404), (4, 4, 128, 308), (4, 8, 224, 404), (3, 12, 224, 404)]
)
def test_field_of_view_of_deeplab(kernel: int, rate: int, paper: int, strict: int) -> None:
    """Table 2 of DeepLab v1 counts what fc6 sees through the poolings alone, as if each convolution were 1x1.

    A cell of pool5 then covers 32 pixels, and the taps of fc6 lie 8 * rate pixels apart: 32 + 8 * rate * (kernel - 1).
    Convolutions add 180 to that: a cell of VGG's pool5 sees 212.
    """
    fc6 = nn.Conv2d(4, 4, kernel, dilation=rate)
    with torch.device("meta"):
        vgg = VGG([4] * 5, num_classes=None, output_stride=8)
        assert receptive_field(nn.Sequential(*vgg.features, fc6)).size == (strict, strict)
        pointwise = [nn.Conv2d(x.in_channels, 4, 1) if isinstance(x, nn.Conv2d) else x for x in vgg.features]
        assert receptive_field(nn.Sequential(*pointwise, fc6)).size == (paper, paper)
    assert 32 + 8 * rate * (kernel - 1) == paper


# ---- against what changes


def weigh(model: nn.Module) -> nn.Module:
    """Positive weights: no path cancels another, so that every dependence shows."""
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    return model.double().eval()


class Mirrored(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(layers.mirror(x, 3, 2, 4, 1), torch.ones(1, x.shape[1], 3, 3).to(x))


class Unpooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pooled, index = F.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)
        pooled = F.avg_pool2d(pooled, (3, 1), stride=1, padding=(1, 0))
        return F.max_unpool2d(pooled, index, 3, stride=2, padding=1, output_size=x.shape[-2:])


class Upsampled(nn.Module):
    def __init__(self, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.options = {"mode": mode, "align_corners": align_corners}

    def forward(self, x: Tensor) -> Tensor:
        coarse = F.avg_pool2d(x, 3, stride=3, padding=1)
        return F.interpolate(coarse, x.shape[-2:], **self.options)


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = conv(3, 2), conv(3, 2, 5, stride=2, dilation=2)
        self.up = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(self.coarse(F.pad(x, (3, 0, 1, 2))))[..., 1 : x.shape[2] - 3, 2 : x.shape[3] - 2]
        fine = self.fine(x)[..., 2:-2, 2:-2]
        return torch.cat([fine[..., : up.shape[2], : up.shape[3]], up * 2], 1)


class Sides(nn.Module):
    """Rows and columns by different ways: permuted, flattened, cut and put together again."""

    def forward(self, x: Tensor) -> Tensor:
        tall = F.avg_pool2d(x, (5, 1), stride=1, padding=(2, 0)).permute(0, 1, 3, 2)
        wide = F.max_pool2d(tall, (3, 1), stride=1, padding=(1, 0)).transpose(2, 3)
        pieces = torch.cat([wide[:, :, ::2], wide[:, :, 1::2]], 2)
        return pieces.flatten(0, 1).unsqueeze(0)


NETS = {
    "strides": lambda: nn.Sequential(conv(3, 2, 5, 2), nn.MaxPool2d(3, 2, ceil_mode=True), conv(2, 2, 3, 1, 2)),
    "norms": lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.LocalResponseNorm(3), conv(4, 2, 3, 2)),
    "even": lambda: nn.Sequential(nn.Conv2d(3, 2, 4, stride=3, dilation=2), nn.AvgPool2d((2, 3), stride=(1, 2))),
    "skip": Skip,
    "mirror": Mirrored,
    "reflect": lambda: nn.Sequential(nn.ReflectionPad2d((3, 1, 2, 0)), nn.ReplicationPad2d(2), conv(3, 1, 5)),
    "unpool": Unpooled,
    "half pixels": lambda: Upsampled("bilinear", False),
    "corners": lambda: Upsampled("bilinear", True),
    "nearest": lambda: Upsampled("nearest", None),
    "nearest-exact": lambda: Upsampled("nearest-exact", None),
    "sides": Sides,
    "bins": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(7), conv(3, 1)),
}


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_each_cell_depends_on_what_the_interval_says(name: str) -> None:
    """Cell by cell, at borders too: which rows of the result change when a row of the picture does?"""
    torch.manual_seed(0)
    model = weigh(NETS[name]())
    run = trace(model, (26, 31))
    spans = seglearn.fields._follow(run)[run.output]
    for axis, span in zip((-2, -1), spans, strict=True):
        assert span.axis == axis
        pixels = (26, 31)[axis]
        depends = np.zeros((run.output.shape[axis], pixels), bool)
        for _ in range(10):  # other maxima in other pictures
            picture = torch.rand(1, 3, 26, 31, dtype=torch.float64) ** 8
            before = model(picture)
            for pixel in range(pixels):
                changed = picture.clone()
                changed.select(axis, pixel).copy_(torch.rand_like(changed.select(axis, pixel)) ** 8)
                difference = (model(changed) != before).any(0).any(0)
                depends[:, pixel] |= difference.any(1 if axis == -2 else 0).numpy()
        for cell, row in enumerate(depends):
            found = row.nonzero()[0]
            interval = (span.first[cell], span.last[cell])
            assert interval == (found[0], found[-1]) if len(found) else interval[0] > interval[1], (axis, cell)


def test_rows_and_columns_are_told_apart() -> None:
    field = receptive_field(nn.Conv2d(3, 1, (7, 1), stride=(2, 5), dilation=(3, 1)))
    assert (field.size, field.stride) == ((19, 1), (2, 5))


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True) + x.flatten(2).amax(2)[:, :, None, None]


@pytest.mark.parametrize(
    "net", [nn.AdaptiveAvgPool2d(1), Gated(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))]
)
def test_global_operations_see_the_whole_image(net: nn.Module) -> None:
    field = receptive_field(net, size=(64, 64))
    assert field.whole_image and field.size == (64, 64)


@pytest.mark.parametrize("name", models.names())
def test_every_model_has_one(name: str) -> None:
    started = time.process_time()
    field = receptive_field(make(name))
    assert field.whole_image == (name in ("pspnet", "deeplab_v3", "combined"))
    if not field.whole_image:
        assert min(field.size) >= 95 and field.stride == (1, 1)
    assert time.process_time() - started < 10


def test_what_is_unknown_is_said() -> None:
    with pytest.raises(InputError, match="'fc8' is no layer that ran.*FCN.*fc7"):
        receptive_field(make("fcn32s"), layer="fc8")
    with pytest.raises(InputError, match="through roll is not known"):
        receptive_field(nn.Sequential(Rolled()))
    with pytest.raises(InputError, match="returns tuple"):
        receptive_field(VGG([4] * 5, num_classes=None))


class Rolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(3, 2)


def test_tracing_leaves_the_model_as_it_is() -> None:
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model, (8, 8))
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_importing_seglearn_stays_quick() -> None:
    code = "import sys, seglearn; assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert seglearn.receptive_field is receptive_field
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = seglearn.nothing


# ---- effective fields


def boxes(depth: int) -> nn.Sequential:
    """3x3 averages: the gradient is the distribution of a sum of `depth` independent steps of -1, 0 or 1."""
    net = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 1, 1, 3, padding=1, bias=False) for i in range(depth)))
    for parameter in net.parameters():
        nn.init.constant_(parameter, 1 / 9)
    return net


def test_effective_field_of_averages_is_their_distribution() -> None:
    field = effective_receptive_field(boxes(12), (61, 71), samples=2)
    steps = np.ones(1)
    for _ in range(12):
        steps = np.convolve(steps, np.ones(3) / 3)
    expected = np.zeros((61, 71))
    expected[30 - 12 : 30 + 13, 35 - 12 : 35 + 13] = np.outer(steps, steps)
    np.testing.assert_allclose(field.weight, expected / expected.max(), atol=1e-6)
    rows = field.weight.sum(1) / field.weight.sum()
    assert (rows * (np.arange(61) - 30) ** 2).sum() == pytest.approx(12 * 2 / 3, rel=1e-4)  # a step's variance is 2/3


@pytest.mark.parametrize("depth", [6, 24])
def test_effective_field_grows_like_a_square_root(depth: int) -> None:
    """A Gaussian of variance s^2 falls to 4.55 % at s * sqrt(2 ln 22): a disc, whose area is that of the square."""
    field = effective_receptive_field(boxes(depth), (81, 81), samples=1)
    radius = math.sqrt(depth * 2 / 3) * math.sqrt(2 * math.log(1 / 0.0455))
    assert field.diameter == pytest.approx(radius * math.sqrt(math.pi), rel=0.06)
    assert field.diameter < receptive_field(boxes(depth)).size[0]


def test_effective_field_of_a_layer_lies_within_the_theoretical_one() -> None:
    torch.manual_seed(0)
    model = models.create("fcn8s", 11, "laptop").train()
    field = effective_receptive_field(model, (256, 256), samples=1, layer="backbone.features.29")
    theory = receptive_field(model, layer="backbone.features.29")
    rows = np.flatnonzero(field.weight.any(1))
    assert 0 < field.diameter < theory.size[0] and rows[-1] - rows[0] < theory.size[0]
    again = effective_receptive_field(model, (256, 256), samples=1, layer="backbone.features.29")
    assert np.array_equal(field.weight, again.weight) and field.weight.max() == 1
    assert model.training and all(p.grad is None for p in model.parameters())


def test_effective_field_of_given_images() -> None:
    images = torch.randn(2, 3, 21, 21)
    assert effective_receptive_field(boxes(3), images).weight.shape == (21, 21)


def test_effective_field_says_why_it_is_empty() -> None:
    with pytest.raises(InputError, match="start at zero"):
        effective_receptive_field(models.create("fcn8s", 11, "laptop"), (64, 64), samples=1)
    with pytest.raises(InputError, match="'fc9' is no layer of FCN"):
        effective_receptive_field(models.create("fcn8s", 11, "laptop"), (64, 64), layer="fc9")
