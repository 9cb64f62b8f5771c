"""DeepLab v2 against parameter counts, torchvision's dilated ResNet, and a plain restatement of scales and loss."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from seglearn import models
from seglearn.backbones import VGG, ResNet
from seglearn.errors import InputError
from seglearn.models import deeplab_v2
from seglearn.models.deeplab_v1 import atrous_vgg
from seglearn.models.deeplab_v2 import ASPP, ASPP_L, ASPP_S, DeepLabV2, shrink


def small(scales: tuple[float, ...] = (1, 0.75, 0.5), vgg: bool = False) -> DeepLabV2:
    """Few channels, scores that are not small."""
    torch.manual_seed(0)
    backbone = atrous_vgg((4,) * 5) if vgg else ResNet(18, width=4, num_classes=None, output_stride=8)
    model = DeepLabV2(3, backbone, scales=scales, hidden=6 if vgg else None).eval()
    for branch in model.aspp.branches:
        nn.init.normal_(branch.fc8.weight)
        nn.init.normal_(branch.fc8.bias)
    return model


@pytest.mark.parametrize(
    "backbone, classes, count",
    [("resnet101", 21, 44_048_532), ("vgg16", 21, 37_877_652), ("vgg16", 11, 37_836_652)],
)
def test_parameter_counts(backbone: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        model = models.create("deeplab_v2", classes, backbone=backbone)
    assert sum(p.numel() for p in model.parameters()) == count


def test_parameters_of_aspp_and_of_a_single_branch() -> None:
    with torch.device("meta"):
        aspp = models.create("deeplab_v2", 21).aspp
        large_fov = models.create("deeplab_v2", 21, backbone="vgg16", rates=(12,))
    assert sum(p.numel() for p in aspp.parameters()) == 1_548_372
    assert sum(p.numel() for p in large_fov.parameters()) == 20_505_429  # DeepLab v1's


@pytest.mark.parametrize("backbone", ["resnet101", "vgg16"])
@pytest.mark.parametrize("side, cells", [(321, [41, 31, 21]), (513, [65, 49, 33])])
def test_map_sizes_of_the_papers_crops(backbone: str, side: int, cells: list[int]) -> None:
    with torch.device("meta"):
        model = models.create("deeplab_v2", 21, backbone=backbone).eval()
        images = torch.empty(1, 3, side, side)
        assert [scores.shape for scores in model.scores(images)] == [(1, 21, n, n) for n in cells]
        assert model(images).shape == (1, 21, side, side)


def test_rates_are_the_papers() -> None:
    assert ASPP_L == (6, 12, 18, 24) and ASPP_S == (2, 4, 8, 12)
    with torch.device("meta"):
        net = models.create("deeplab_v2", 21)
        vgg = models.create("deeplab_v2", 21, backbone="vgg16", rates=ASPP_S)
    assert [branch.fc8.dilation for branch in net.aspp.branches] == [(r, r) for r in ASPP_L]
    assert [branch.fc6[0].dilation for branch in vgg.aspp.branches] == [(r, r) for r in ASPP_S]
    assert [m.p for m in vgg.modules() if isinstance(m, nn.Dropout)] == [0.5] * 8


@pytest.mark.parametrize("hidden", [None, 6])
@torch.no_grad()
def test_aspp_adds_its_branches(hidden: int | None) -> None:
    torch.manual_seed(0)
    aspp, x = ASPP(5, 3, (2, 4), hidden).eval(), torch.randn(2, 5, 9, 12)
    expected = torch.zeros(2, 3, 9, 12)
    for branch, rate in zip(aspp.branches, (2, 4), strict=True):
        nn.init.normal_(branch.fc8.weight)
        nn.init.normal_(branch.fc8.bias)
        weight, bias = branch.fc8.weight, branch.fc8.bias
        if hidden is None:
            expected += F.conv2d(x, weight, bias, padding=rate, dilation=rate)
        else:
            (fc6, *_), (fc7, *_) = branch.fc6, branch.fc7
            y = F.conv2d(x, fc6.weight, fc6.bias, padding=rate, dilation=rate).relu()
            y = F.conv2d(y, fc7.weight, fc7.bias).relu()
            expected += F.conv2d(y, weight, bias)
    torch.testing.assert_close(aspp(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_features_are_those_of_torchvisions_dilated_resnet() -> None:
    """res4 at rate 2, res5 at rate 4; weights carried over by `load_imagenet`."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    for module in theirs.modules():  # statistics that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = DeepLabV2(3, ResNet(50, num_classes=None, output_stride=8)).eval()
    ours.load_imagenet(theirs.state_dict())
    body = nn.Sequential(*list(theirs.children())[:-2])
    images = torch.randn(1, 3, 97, 129)
    features, expected = ours.backbone(images)[-1], body(images)
    assert expected.shape == (1, 2048, 13, 17)
    scale = expected.abs().max()
    torch.testing.assert_close(features / scale, expected / scale, atol=1e-6, rtol=1e-4)


def test_the_papers_resnet_is_torchvisions_resnet101() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet101(replace_stride_with_dilation=[False, True, True])
        ours = models.create("deeplab_v2", 21).backbone
    convs = [
        [(m.kernel_size, m.stride, m.padding, m.dilation, m.in_channels, m.out_channels) for m in net.modules()
         if isinstance(m, nn.Conv2d)]
        for net in (ours, theirs)
    ]  # fmt: skip
    assert convs[0] == convs[1]


@pytest.mark.parametrize("vgg", [False, True])
@torch.no_grad()
def test_each_scale_is_the_shared_net_on_a_resized_image(vgg: bool) -> None:
    model, images = small(vgg=vgg), torch.randn(2, 3, 65, 97)  # 32n + 1
    maps = model.scores(images)
    for scores, height, width in zip(maps, (65, 49, 33), (97, 73, 49), strict=True):
        resized = F.interpolate(images, (height, width), mode="bilinear", align_corners=True)
        expected = model.aspp(model.backbone(resized)[-1])
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_every_scale_puts_its_cells_on_the_same_pixels() -> None:
    """A ramp across the image, sampled by each scale: cell i reads pixel 8 i / scale."""
    model = small()
    ramp = torch.arange(97.0).expand(1, 3, 65, 97)

    class Sample(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x[..., ::8, ::8],)

    model.backbone, model.aspp = Sample(), nn.Identity()
    maps = model.scores(ramp)
    for scores, scale in zip(maps, (1, 0.75, 0.5), strict=True):
        expected = torch.arange(scores.shape[-1]) * 8 / scale
        torch.testing.assert_close(scores[0, 0, 0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.fuse(maps), maps[0], atol=1e-4, rtol=0)  # laid over each other, they agree
    torch.testing.assert_close(model(ramp), ramp, atol=1e-4, rtol=0)


@torch.no_grad()
def test_fusion_takes_the_highest_score_of_each_class() -> None:
    model, images = small(), torch.randn(2, 3, 65, 97)
    maps = model.scores(images)
    resized = [F.interpolate(scores, (9, 13), mode="bilinear", align_corners=True) for scores in maps]
    fused = torch.stack(resized).amax(0)
    winners = torch.stack(resized).argmax(0)
    assert len(winners.unique()) == 3  # each scale wins somewhere
    torch.testing.assert_close(model.fuse(maps), fused, atol=1e-5, rtol=1e-5)
    logits = F.interpolate(fused, (65, 97), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model(images), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(images)[..., ::8, ::8], fused, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("height, width", [(65, 97), (64, 96), (50, 81), (1, 2)])
@torch.no_grad()
def test_loss_is_the_sum_over_scales_and_their_fusion(height: int, width: int) -> None:
    model, images = small(), torch.randn(2, 3, height, width)
    labels = torch.arange(2 * height * width).reshape(2, height, width)
    seen: list[tuple[Tensor, Tensor]] = []

    def criterion(scores: Tensor, target: Tensor) -> Tensor:
        seen.append((scores, target))
        return scores.square().mean()

    loss = model.loss(images, labels, criterion)
    assert len(seen) == 4
    torch.testing.assert_close(loss, sum(scores.square().mean() for scores, _ in seen))
    for (scores, target), step in zip(seen, (8, 32 / 3, 16, 8), strict=True):
        assert scores.shape == (2, 3, *target.shape[1:])
        y, x = target.shape[1] // 2, target.shape[2] - 1
        nearest = min(round(y * step), height - 1), min(round(x * step), width - 1)
        assert target[1, y, x] == labels[1, nearest[0], nearest[1]]
        assert abs(nearest[0] - y * step) < 1 and abs(nearest[1] - x * step) < 1
    torch.testing.assert_close(seen[3][0], model(images)[..., ::8, ::8], atol=1e-3, rtol=1e-3)
    assert torch.equal(seen[0][1], seen[3][1])


def test_a_single_scale_counts_once() -> None:
    model, images = small(scales=(1,)), torch.randn(1, 3, 33, 41)
    calls: list[Tensor] = []

    def criterion(scores: Tensor, target: Tensor) -> Tensor:
        calls.append(scores)
        return scores.mean()

    model.loss(images, torch.zeros(1, 33, 41), criterion)
    assert len(calls) == 1 and calls[0].shape == (1, 3, 5, 6)
    assert model.grid == 8  # one scale needs no larger grid than the net's


def test_shrink_by_hand() -> None:
    labels = torch.arange(33)[None, :, None] * 100 + torch.arange(25)
    assert shrink(labels, 32 / 3)[0].tolist() == [[100 * y + x for x in (0, 11, 21)] for y in (0, 11, 21, 32)]
    assert shrink(labels, 16)[0].tolist() == [[100 * y + x for x in (0, 16)] for y in (0, 16, 32)]
    assert torch.equal(shrink(labels, 8), labels[:, ::8, ::8])
    assert shrink(labels.to(torch.uint8), 8).dtype == torch.uint8


@pytest.mark.parametrize("scales, grid", [((1,), 8), ((1, 0.5), 16), ((1, 0.75, 0.5), 32), ((1, 1.5), 16)])
def test_size_that_suits_every_scale(scales: tuple[float, ...], grid: int) -> None:
    model = small(scales=scales)
    assert model.grid == grid
    for scale in scales:
        assert (scale * grid) % 8 == 0  # 8n + 1 pixels at every scale
    assert model(torch.randn(1, 3, 19, 40)).shape == (1, 3, 19, 40)


def test_rates_of_learning() -> None:
    with torch.device("meta"):
        for backbone in ("resnet101", "vgg16"):
            model = models.create("deeplab_v2", 21, backbone=backbone)
            norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
            for group in model.parameter_groups():
                for name, parameter in model.named_parameters():
                    if not any(parameter is p for p in group["params"]):
                        continue
                    bias = name.endswith("bias") and id(parameter) not in norms
                    assert group["lr_factor"] == (10 if "fc8" in name else 1) * (2 if bias else 1), name
                    assert group["weight_decay_factor"] == (0 if bias or id(parameter) in norms else 1), name


def test_start_of_the_scores() -> None:
    torch.manual_seed(0)
    for branch in models.create("deeplab_v2", 20, "laptop").aspp.branches:
        assert branch.fc8.weight.std().item() == pytest.approx(0.01, rel=0.05) and not branch.fc8.bias.any()


def test_load_imagenet_leaves_the_scores() -> None:
    torch.manual_seed(0)
    state_dict = ResNet(18, width=4).state_dict()
    model = small()
    scores = [branch.fc8.weight.clone() for branch in model.aspp.branches]
    model.load_imagenet(state_dict)
    assert all(torch.equal(value, state_dict[name]) for name, value in model.backbone.state_dict().items())
    assert all(torch.equal(a, branch.fc8.weight) for a, branch in zip(scores, model.aspp.branches, strict=True))


def test_load_imagenet_gives_each_branch_filters_of_the_classifier() -> None:
    torch.manual_seed(0)
    state_dict = VGG((4,) * 5, num_classes=5, hidden=24).state_dict()
    state_dict = {name: torch.randn_like(value) for name, value in state_dict.items()}
    model = small(vgg=True)
    model.load_imagenet(state_dict)
    assert torch.equal(model.backbone.features[0].weight, state_dict["features.0.weight"])
    full = state_dict["classifier.0.weight"].reshape(24, 4, 7, 7)[..., ::3, ::3]  # taps 0, 3, 6
    chosen = []
    for branch in model.aspp.branches:
        fc6, fc7 = branch.fc6[0], branch.fc7[0]
        rows = [(full == weight).flatten(1).all(1).nonzero().item() for weight in fc6.weight]
        assert torch.equal(fc6.bias, state_dict["classifier.0.bias"][rows])
        assert all((state_dict["classifier.3.weight"][:, rows] == w[:, 0, 0]).all(1).any() for w in fc7.weight)
        chosen.append(tuple(rows))
    assert len(set(chosen)) == 4


def test_weights_of_torchvision_fit_the_papers_sizes() -> None:
    with torch.device("meta"):
        vgg16, resnet101 = torchvision.models.vgg16().state_dict(), torchvision.models.resnet101().state_dict()
        models.create("deeplab_v2", 21).load_imagenet(resnet101)
        models.create("deeplab_v2", 21, backbone="vgg16").load_imagenet(vgg16)
        with pytest.raises(InputError, match="not of this ResNet"):
            models.create("deeplab_v2", 21).load_imagenet(vgg16)
        with pytest.raises(InputError, match="not of this ResNet"):
            models.create("deeplab_v2", 21, "laptop").load_imagenet(resnet101)
        with pytest.raises(InputError, match="no classifier.0.weight"):
            models.create("deeplab_v2", 21, backbone="vgg16").load_imagenet(resnet101)


@pytest.mark.parametrize("backbone, name", [("resnet101", "ResNet101"), ("vgg16", "VGG16")])
def test_weights_of_the_backbone_are_the_default(backbone: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(weights: str) -> None:
        asked.append(weights)
        raise InputError("no network")

    monkeypatch.setattr(deeplab_v2, "torchvision_state_dict", refuse)
    with torch.device("meta"), pytest.raises(InputError):
        models.create("deeplab_v2", 21, backbone=backbone).load_imagenet()
    assert asked == [f"{name}_Weights.IMAGENET1K_V1"]


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"scales are \(0.5, 1\): start with 1"):
        deeplab_v2.laptop(11, scales=(0.5, 1))
    with pytest.raises(InputError, match="no DeepLab v2 on 'resnet50': choose resnet101 or vgg16"):
        deeplab_v2.paper(21, backbone="resnet50")
