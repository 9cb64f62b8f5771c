"""RefineNet against the counts and the wiring of its released code, and against windows counted by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from seglearn import models
from seglearn.backbones import ResNet
from seglearn.errors import InputError
from seglearn.models import refinenet
from seglearn.models.refinenet import (
    ChainedResidualPooling,
    MultiResolutionFusion,
    RefineNet,
    ResidualConvUnit,
    upsample,
)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def small(num_classes: int = 3) -> RefineNet:
    """All of the structure, with few channels and a signal that is felt everywhere."""
    torch.manual_seed(0)
    return RefineNet(num_classes, 18, width=4, channels=(8, 4), std=0.1).eval()


@pytest.mark.parametrize(
    "depth, classes, expected",
    [(50, 21, 99_060_309), (101, 21, 118_052_437), (152, 21, 133_696_085), (101, 11, 118_029_387)],
)
def test_parameter_counts(depth: int, classes: int, expected: int) -> None:
    with torch.device("meta"):
        assert count(models.create("refinenet", classes, depth=depth)) == expected


def test_parameters_of_each_part() -> None:
    with torch.device("meta"):
        model = models.create("refinenet", 21)
    assert isinstance(model, RefineNet)
    first, *others = model.refine4, model.refine3, model.refine2, model.refine1
    assert [count(block.reduce) for block in (first, *others)] == [9_437_184, 2_359_296, 1_179_648, 589_824]
    assert count(first.adapt) == 9_438_208
    assert count(first.pooling) == 9_437_184
    # the port has three units behind the pooling: one of this block, two for the coarse path of the next
    assert count(first.output, others[0].adapt_coarse) == 14_157_312
    assert [count(block.fusion.coarse) for block in others] == [1_179_648, 589_824, 589_824]
    for block in others:
        assert count(block.adapt) == 2_359_808
        assert count(block.fusion.fine) == 589_824
        assert count(block.pooling) == 2_359_296
    for block, following in zip(others, [others[1].adapt_coarse, others[2].adapt_coarse, model.last], strict=True):
        assert count(block.output, following) == 3_539_712
    assert count(model.classifier) == 48_405
    assert count(model) - count(model.backbone) == 75_552_277
    decoder = [part for name, part in model.named_modules() if not name.startswith("backbone")]
    assert not [part for part in decoder if isinstance(part, nn.BatchNorm2d)]


def test_sizes_at_512_pixels() -> None:
    with torch.device("meta"):
        model, images = models.create("refinenet", 21), torch.empty(2, 3, 512, 512)
        assert isinstance(model, RefineNet)
        assert [x.shape[2:] for x in model.backbone(images)] == [(side, side) for side in (128, 64, 32, 16)]
        assert model.scores(images).shape == (2, 21, 128, 128)
        assert model(images).shape == (2, 21, 512, 512)


@torch.no_grad()
def test_wiring_is_that_of_the_port() -> None:
    """Written flat, as there, with corner on corner: the same for sides of 32n + 1."""
    model = small()
    for parameter in model.parameters():  # biases that are not zero
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1)
    convs = [module for name, module in model.named_modules() if type(module) is nn.Conv2d and "backbone" not in name]
    queue = iter(convs)

    def units(x: Tensor, number: int) -> Tensor:
        for _ in range(number):
            y = next(queue)(x.relu())
            x = x + next(queue)(y.relu())
        return x

    def pool(x: Tensor) -> Tensor:
        total = x = x.relu()
        for _ in range(4):
            x = next(queue)(F.max_pool2d(x, 5, 1, 2))
            total = total + x
        return total

    images = torch.randn(2, 3, 97, 129)
    res2, res3, res4, res5 = model.backbone(images)
    x = units(pool(units(next(queue)(res5), 2)), 1)
    for features in (res4, res3, res2):
        fine = units(next(queue)(features), 2)
        x = units(x, 2)
        fine = next(queue)(fine)
        x = F.interpolate(next(queue)(x), fine.shape[2:], mode="bilinear", align_corners=True) + fine
        x = units(pool(x), 1)
    x = units(x, 2)
    x = next(queue)(x)
    assert not list(queue) and x.std() > 0.1
    torch.testing.assert_close(model.scores(images), x, atol=1e-5, rtol=1e-5)
    x = F.interpolate(x, (97, 129), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model(images), x, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_residual_conv_unit() -> None:
    unit = ResidualConvUnit(2)
    nn.init.dirac_(unit.conv1.weight)
    nn.init.dirac_(unit.conv2.weight)
    assert unit.conv1.bias is not None and unit.conv2.bias is None
    nn.init.constant_(unit.conv1.bias, -1)
    x = torch.tensor([-3.0, 0.5, 3.0]).expand(1, 2, 1, 3)
    assert unit(x)[0, 0, 0].tolist() == [-3.0, 0.5, 3.0 + 2.0]


@torch.no_grad()
def test_pooling_is_a_chain() -> None:
    """A single 1 spreads over windows of 5, 9, 13 and 17 cells; poolings side by side would all see 5."""
    pooling = ChainedResidualPooling(1)
    for conv in pooling.convs:
        nn.init.dirac_(conv.weight)
    x = torch.zeros(1, 1, 21, 21)
    x[0, 0, 10, 10] = 1
    row = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    assert pooling(x)[0, 0, 10].tolist() == row
    assert pooling(x)[0, 0, :, 10].tolist() == row
    assert not pooling(-x).any()  # ReLU comes first


@torch.no_grad()
def test_no_relu_within_the_chain() -> None:
    pooling = ChainedResidualPooling(1, pools=2)
    for conv in pooling.convs:
        nn.init.dirac_(conv.weight)
        conv.weight.neg_()
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    # -1 on 5x5 cells; its maximum over 5x5 is -1 at the centre alone, where the second convolution makes it +1
    assert pooling(x)[0, 0, 4].tolist() == [0, 0, -1, -1, 1 - 1 + 1, -1, -1, 0, 0]


@pytest.mark.parametrize("factor", [2, 4])
def test_upsample_puts_cell_i_on_factor_i(factor: int) -> None:
    for side in range(1, 60):
        cells = -(-side // factor)
        ramp = factor * torch.arange(cells).float()
        x = upsample(ramp[:, None].expand(1, 1, cells, cells), factor, (side, side))
        expected = torch.arange(side).clamp(max=factor * (cells - 1)).float()
        torch.testing.assert_close(x, expected[:, None].expand(1, 1, side, side))


def test_cells_of_a_resnet_are_centred_on_multiples_of_their_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `upsample` relies on, found by gradient: the field of cell i is symmetric about pixel stride * i."""
    monkeypatch.setattr(nn.MaxPool2d, "forward", lambda pool, x: F.avg_pool2d(x, 3, 2, 1))
    backbone = ResNet(18, width=1, num_classes=None).eval()
    for name, parameter in backbone.named_parameters():
        nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 0.5)
    images = torch.ones(1, 3, 640, 701, requires_grad=True)
    for x, stride in zip(backbone(images), backbone.strides, strict=True):
        i, j = x.shape[2] // 2, x.shape[3] // 2
        (field,) = torch.autograd.grad(x[0, :, i, j].sum(), images, retain_graph=True)
        for axis, cell in enumerate((i, j)):
            seen = field[0, 0].sum(1 - axis).nonzero()
            assert seen[0] > 0 and seen[-1] < images.shape[2 + axis] - 1, "the field must lie inside"
            assert seen[0] + seen[-1] == 2 * stride * cell


@torch.no_grad()
def test_fusion_takes_the_fine_size_and_the_few_channels() -> None:
    fusion = MultiResolutionFusion(fine=4, coarse=8)
    assert fusion(torch.randn(1, 4, 7, 10), torch.randn(1, 8, 4, 5)).shape == (1, 4, 7, 10)
    assert fusion.fine.bias is None and fusion.coarse.bias is None


def test_loss_is_taken_on_every_fourth_pixel() -> None:
    """The score of a cell is the logit of its pixel, and meets the label of that pixel."""
    model, images = small(), torch.randn(2, 3, 75, 90)
    labels = torch.randint(0, 3, (2, 75, 90), dtype=torch.uint8)

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        assert labels.dtype == torch.uint8
        return F.cross_entropy(logits, labels.long())

    loss = model.loss(images, labels, criterion)
    torch.testing.assert_close(loss, criterion(model(images)[..., ::4, ::4], labels[..., ::4, ::4]))


def test_dropout_follows_res4_res5_and_precedes_the_classifier() -> None:
    with torch.device("meta"):
        model = models.create("refinenet", 21)
        assert isinstance(model, RefineNet) and model.dropout.p == 0.5
        seen = []
        model.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
        model(torch.empty(2, 3, 64, 64))
    assert sorted(seen) == [256, 1024, 2048]


def test_decoder_starts_from_the_papers_distribution() -> None:
    torch.manual_seed(0)
    model = RefineNet(3, 18, width=4, channels=(64, 64))
    for name, parameter in model.named_parameters():
        if name.startswith("backbone"):
            continue
        if parameter.ndim == 1:
            assert not parameter.any()
        elif parameter.numel() > 10_000:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.05)
            assert parameter.mean().item() == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize("size, backbone, decoder", [("paper", 0.1, 1), ("laptop", 1, 0.2)])
def test_rates_of_resnet_and_decoder(size: str, backbone: float, decoder: float) -> None:
    with torch.device("meta"):
        model = models.create("refinenet", 11, size)
    assert isinstance(model, RefineNet)
    inside = {id(parameter) for parameter in model.backbone.parameters()}
    groups = model.parameter_groups()
    for group in groups:
        assert {id(p) in inside for p in group["params"]} == {group["lr_factor"] == backbone}
    factors = {(group["lr_factor"], group["weight_decay_factor"]) for group in groups}
    assert factors == {(backbone, 0), (backbone, 1), (decoder, 0), (decoder, 1)}


def test_imagenet_weights_go_into_the_backbone_alone() -> None:
    torch.manual_seed(0)
    model = RefineNet(3, 18, channels=(4, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    source = torchvision.models.resnet18().state_dict()
    model.load_imagenet(source)
    for name, value in model.state_dict().items():
        key = name.removeprefix("backbone.")
        assert torch.equal(value, source[key] if key != name else before[name]), name
    with pytest.raises(InputError, match="not of this ResNet"):
        model.load_imagenet(torchvision.models.resnet34().state_dict())


def test_imagenet_weights_are_those_of_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(refinenet, "load_torchvision", lambda model, weights: asked.append(weights))
    with torch.device("meta"):
        for depth in (50, 101, 152):
            RefineNet(21, depth).load_imagenet()
    assert asked == [f"ResNet{depth}_Weights.IMAGENET1K_V1" for depth in (50, 101, 152)]
