"""DeepLab v1 against the paper's table 2, its crop sizes, and a plain restatement of its layers."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from seglearn import models
from seglearn.backbones import VGG
from seglearn.errors import InputError
from seglearn.models import deeplab_v1
from seglearn.models.deeplab_v1 import FC6, VARIANTS, DeepLabV1, atrous_vgg, fully_connected, thin

NARROW = FC6(3, 12, 6)


def small(fc6: FC6 = NARROW, msc: int = 0, average: bool = True, width: int = 4) -> DeepLabV1:
    """The paper's geometry with so few channels that it runs in no time."""
    torch.manual_seed(0)
    model = DeepLabV1(3, fc6, backbone=atrous_vgg((width,) * 5), average=average, msc=msc).eval()
    nn.init.normal_(model.fc8.weight)
    return model


@pytest.mark.parametrize(
    "variant, classes, count",
    [
        ("largefov", 21, 20_505_429),
        ("largefov", 11, 20_495_179),
        ("4x4", 21, 65_140_565),
        ("4x4-128", 21, 65_140_565),
        ("7x7", 21, 134_346_581),
    ],
)
def test_parameter_counts(variant: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        model = models.create("deeplab_v1", classes, variant=variant)
    assert sum(p.numel() for p in model.parameters()) == count


def test_parameters_that_msc_adds() -> None:
    first = sum(9 * channels * 128 + 128 for channels in (3, 64, 128, 256, 512))  # image, pool1 to pool4
    second = 5 * (128 * 128 + 128)
    classifier = 5 * 128 * 21  # 640 more channels in
    with torch.device("meta"):
        count = sum(p.numel() for p in models.create("deeplab_v1_msc", 21).parameters())
    assert count == 20_505_429 + first + second + classifier


@pytest.mark.parametrize("variant, pixels", [("7x7", 224), ("4x4-128", 128), ("4x4", 224), ("largefov", 224)])
def test_field_of_view_is_the_papers(variant: str, pixels: int) -> None:
    assert VARIANTS[variant].field_of_view == pixels


@pytest.mark.parametrize("name", ["deeplab_v1", "deeplab_v1_msc"])
@pytest.mark.parametrize("size", ["paper", "laptop"])
@pytest.mark.parametrize("side, pools, cells", [(321, [161, 81, 41, 41, 41], 41), (513, [257, 129, 65, 65, 65], 65)])
def test_map_sizes_of_the_papers_crops(name: str, size: str, side: int, pools: list[int], cells: int) -> None:
    with torch.device("meta"):
        model = models.create(name, 21, size).eval()
        images = torch.empty(1, 3, side, side)
        assert [x.shape[-1] for x in model.backbone(images)] == pools
        assert model.scores(images).shape == (1, 21, cells, cells)
        assert model(images).shape == (1, 21, side, side)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kernel_keeps_the_map(variant: str) -> None:
    """4x4 as well: at an even rate its kernel spans an odd number of cells."""
    with torch.device("meta"):
        model = models.create("deeplab_v1", 21, variant=variant)
        assert model.scores(torch.empty(1, 3, 321, 241)).shape == (1, 21, 41, 31)


@pytest.mark.parametrize("msc", [0, 2])
@pytest.mark.parametrize("fc6", [FC6(3, 12, 2), FC6(4, 8, 2), FC6(4, 4, 2), FC6(7, 4, 2)])
def test_a_cell_looks_around_its_own_pixel(fc6: FC6, msc: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receptive field, found by gradient: as wide as hand arithmetic says, cell i centred on pixel 8i."""
    # averages and constant positive weights, for the gradient to reach all of the field
    monkeypatch.setattr(nn.MaxPool2d, "forward", lambda pool, x: F.avg_pool2d(x, 3, pool.stride, 1))
    model = small(fc6, msc, average=fc6.kernel == 3, width=1)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5 if parameter.ndim > 1 else 0)
    images = torch.ones(1, 3, 561, 577, requires_grad=True)
    model.scores(images)[0, 0, 33, 37].backward()
    assert images.grad is not None
    #     conv1   pool1   conv2   pool2   conv3   pool3   conv4   pool4  conv5   pool5
    field = 1 + 4 + 2 + 2 * 4 + 2 * 2 + 4 * 6 + 4 * 2 + 8 * 6 + 8 * 2 + 8 * 12 + 8 * 2
    field += 8 * 2 if fc6.kernel == 3 else 0  # the average pooling
    field += 8 * (fc6.kernel - 1) * fc6.rate
    for axis, centre in ((1, 8 * 33), (0, 8 * 37)):
        seen = images.grad[0, 0].abs().sum(axis).nonzero().flatten()
        assert seen[0] + seen[-1] == 2 * centre
        assert seen[-1] - seen[0] + 1 == field


@torch.no_grad()
def restated(model: DeepLabV1, images: Tensor, rate: int, average: bool) -> Tensor:
    """The paper's net, layer by layer, on images of 8n + 1 pixels; MSc's strides as the module says."""
    convs = iter(layer for layer in model.backbone.features if isinstance(layer, nn.Conv2d))
    x, sources = images, [images]
    for depth, hole, stride in ((2, 1, 2), (2, 1, 2), (3, 1, 2), (3, 1, 1), (3, 2, 1)):
        for _ in range(depth):
            conv = next(convs)
            x = F.conv2d(x, conv.weight, conv.bias, padding=hole, dilation=hole).relu()
        x = F.max_pool2d(x, 3, stride, 1)
        sources.append(x)
    if average:
        x = F.avg_pool2d(x, 3, 1, 1)
    kernel = model.fc6[0].kernel_size[0]
    x = F.conv2d(x, model.fc6[0].weight, model.fc6[0].bias, padding=rate * (kernel - 1) // 2, dilation=rate).relu()
    x = F.conv2d(x, model.fc7[0].weight, model.fc7[0].bias).relu()
    features = [x]
    for layers, source in zip(model.msc, sources, strict=False):
        first, _, second, _ = layers
        whole = F.conv2d(source, first.weight, first.bias, padding=1).relu()
        every = (whole.shape[-1] - 1) // (x.shape[-1] - 1)
        features.append(F.conv2d(whole[..., ::every, ::every], second.weight, second.bias).relu())
    return F.conv2d(torch.cat(features, 1), model.fc8.weight, model.fc8.bias)


@pytest.mark.parametrize("fc6, average", [(FC6(3, 12, 6), True), (FC6(4, 8, 6), False), (FC6(7, 4, 6), False)])
@pytest.mark.parametrize("msc", [0, 5])
@torch.no_grad()
def test_equal_to_a_plain_restatement(fc6: FC6, average: bool, msc: int) -> None:
    model, images = small(fc6, msc, average), torch.randn(2, 3, 145, 193)
    expected = restated(model, images, fc6.rate, average)
    assert expected.std() > 0
    torch.testing.assert_close(model.scores(images), expected, atol=1e-5, rtol=1e-5)
    logits = F.interpolate(expected, (145, 193), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model(images), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(images)[..., ::8, ::8], expected, atol=1e-4, rtol=1e-4)  # cell i on pixel 8i


@torch.no_grad()
def test_upsampling_log_probabilities_gives_the_same() -> None:
    """Logits are upsampled where the paper upsamples log-probabilities; class and probability agree."""
    model, images = small(), torch.randn(1, 3, 97, 65)
    log = model.scores(images).log_softmax(1)
    papers = F.interpolate(log, (97, 65), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model(images).softmax(1), papers.softmax(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("height, width", [(65, 97), (64, 90), (1, 3), (360, 481)])
@torch.no_grad()
def test_loss_is_taken_on_every_eighth_label(height: int, width: int) -> None:
    model, images = small(), torch.randn(2, 3, height, width)
    labels = torch.arange(2 * height * width).reshape(2, height, width)
    seen: list[tuple[Tensor, Tensor]] = []

    def criterion(scores: Tensor, target: Tensor) -> Tensor:
        seen.append((scores, target))
        return scores.sum()

    loss = model.loss(images, labels, criterion)
    ((scores, target),) = seen
    assert loss == scores.sum()
    assert target.shape == (2, -(-height // 8), -(-width // 8)) and scores.shape == (2, 3, *target.shape[1:])
    for y, x in ((0, 0), (target.shape[1] - 1, target.shape[2] - 1)):
        assert target[1, y, x] == labels[1, 8 * y, 8 * x]
    logits = model(images)[..., ::8, ::8]  # at the cells' own pixels upsampling changes nothing
    torch.testing.assert_close(scores, logits, atol=1e-4, rtol=1e-4)


def test_classifier_learns_ten_times_and_biases_twice_as_fast() -> None:
    with torch.device("meta"):
        model = models.create("deeplab_v1_msc", 21)
        laptop = models.create("deeplab_v1", 11, "laptop")
    factor = {id(p): (g["lr_factor"], g["weight_decay_factor"]) for g in model.parameter_groups() for p in g["params"]}
    for name, parameter in model.named_parameters():
        head, bias = name.startswith("fc8"), name.endswith("bias")
        assert factor[id(parameter)] == ((10 if head else 1) * (2 if bias else 1), 0 if bias else 1), name
    factors = {(g["lr_factor"], g["weight_decay_factor"]) for g in laptop.parameter_groups()}
    assert factors == {(1, 1), (2, 0), (1, 0), (10, 1), (20, 0)}  # norms: (1, 0)


def test_start_of_the_classifier() -> None:
    torch.manual_seed(0)
    fc8 = models.create("deeplab_v1", 50, "laptop").fc8
    assert fc8.weight.std().item() == pytest.approx(0.01, rel=0.05) and not fc8.bias.any()


def test_msc_starts_from_the_net_without_it() -> None:
    """All but the new weights bear the names and shapes that they have without MSc."""
    with torch.device("meta"):
        plain, msc = (models.create(name, 11, "laptop") for name in ("deeplab_v1", "deeplab_v1_msc"))
    before = {name: value.shape for name, value in plain.state_dict().items()}
    after = {name: value.shape for name, value in msc.state_dict().items()}
    new = {name for name, shape in after.items() if before.get(name) != shape}
    assert before.keys() < after.keys()
    assert {name.split(".")[0] for name in new} == {"msc", "fc8"}
    assert {name for name, _ in msc.named_children()} == {"backbone", "average", "fc6", "fc7", "msc", "fc8"}


def classifier(hidden: int = 12) -> dict[str, Tensor]:
    """Weights of a narrow VGG-16 with its classifier."""
    torch.manual_seed(1)
    state_dict = VGG((4,) * 5, num_classes=5, hidden=hidden).state_dict()
    return {name: torch.randn_like(value) for name, value in state_dict.items()}


@pytest.mark.parametrize("kernel, rate, hidden", [(7, 4, 12), (4, 8, 12), (3, 12, 5)])
@torch.no_grad()
def test_load_imagenet_keeps_taps_where_they_were(kernel: int, rate: int, hidden: int) -> None:
    """A thinned fc6 answers as the 7x7 one at rate 4 does once the dropped taps are zero."""
    weights = classifier()
    model = small(FC6(kernel, rate, hidden))
    start = model.fc8.weight.clone()
    model.load_imagenet(weights)
    for name in ("features.0.weight", "features.28.bias"):
        assert torch.equal(model.backbone.state_dict()[name], weights[name])
    assert torch.equal(model.fc8.weight, start)

    full = weights["classifier.0.weight"].reshape(12, 4, 7, 7)
    mask = torch.zeros(7, 7)
    for y in {7: range(7), 4: (0, 2, 4, 6), 3: (0, 3, 6)}[kernel]:
        for x in {7: range(7), 4: (0, 2, 4, 6), 3: (0, 3, 6)}[kernel]:
            mask[y, x] = 1
    pool5 = torch.randn(1, 4, 41, 33)
    expected = F.conv2d(pool5, full * mask, weights["classifier.0.bias"], padding=12, dilation=4)
    fc6 = model.fc6[0](pool5)
    chosen = [(expected[0] - fc6[0, i]).abs().amax((1, 2)).argmin().item() for i in range(hidden)]
    assert chosen == sorted(set(chosen))  # different filters, in their order
    torch.testing.assert_close(fc6, expected[:, chosen], atol=1e-4, rtol=1e-4)
    # fc7 reads the filters that are left: for each of its rows, there is the original one, cut to these columns
    rows = weights["classifier.3.weight"][:, chosen]
    for i in range(hidden):
        row = (rows == model.fc7[0].weight[i, :, 0, 0]).all(1).nonzero().item()
        assert model.fc7[0].bias[i] == weights["classifier.3.bias"][row]


def test_thinning_is_the_same_each_time_and_differs_by_seed() -> None:
    weights = {"fc6.0.weight": torch.randn(40, 2, 7, 7), "fc6.0.bias": torch.randn(40)}
    weights |= {"fc7.0.weight": torch.randn(40, 40, 1, 1), "fc7.0.bias": torch.randn(40)}
    first, again, other = (thin(weights, 3, 10, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc6.0.bias"], other["fc6.0.bias"])
    assert not torch.equal(first["fc7.0.bias"], other["fc7.0.bias"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_vgg16_of_torchvision_fits_the_papers_size(variant: str) -> None:
    with torch.device("meta"):
        state_dict = torchvision.models.vgg16().state_dict()
        models.create("deeplab_v1", 21, variant=variant).load_imagenet(state_dict)
        models.create("deeplab_v1_msc", 21, variant=variant).load_imagenet(state_dict)


def test_other_weights_are_refused() -> None:
    with torch.device("meta"):
        vgg16, vgg19 = torchvision.models.vgg16().state_dict(), torchvision.models.vgg19().state_dict()
        resnet = torchvision.models.resnet18().state_dict()
        with pytest.raises(InputError, match="not of this VGG"):
            models.create("deeplab_v1", 21, "laptop").load_imagenet(vgg16)
        with pytest.raises(InputError, match="not of this VGG"):
            models.create("deeplab_v1", 21).load_imagenet(vgg19)
        with pytest.raises(InputError, match="no classifier.0.weight"):
            models.create("deeplab_v1", 21).load_imagenet(resnet)
    with pytest.raises(InputError, match="fc6 has 13 channels, these weights 12"):
        small(FC6(3, 12, 13)).load_imagenet(classifier())


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(InputError, match="no variant 'LargeFOV'.*7x7, 4x4-128, 4x4, largefov"):
        deeplab_v1.paper(21, variant="LargeFOV")


def test_layers_that_only_one_net_has() -> None:
    """The average pooling is LargeFOV's; dropout follows fc6 and fc7."""
    with torch.device("meta"):
        nets = {variant: models.create("deeplab_v1", 21, variant=variant) for variant in VARIANTS}
    averages = {variant for variant, net in nets.items() if isinstance(net.average, nn.AvgPool2d)}
    assert averages == {"largefov"}
    assert [m.p for m in nets["largefov"].modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_taps_of_an_even_kernel_lie_around_the_centre() -> None:
    conv = fully_connected(1, 1, kernel=4, rate=8)[0]
    nn.init.ones_(conv.weight)
    nn.init.zeros_(conv.bias)
    x = torch.zeros(1, 1, 41, 41)
    x[0, 0, 20, 20] = 1
    assert conv(x)[0, 0].sum(0).nonzero().flatten().tolist() == [20 - 12, 20 - 4, 20 + 4, 20 + 12]
