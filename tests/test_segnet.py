"""SegNet against hand-made cases, a reference written from the release's layer table, and torchvision's VGG."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from seglearn import models
from seglearn.errors import InputError
from seglearn.models.segnet import SegNet, SegNetBasic, pool, unpool

# the release's layer table at 11 classes: after each unpooling, the channels of the decoder's convolutions
DECODER = [(512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, 11)]


def settle(model: nn.Module) -> None:
    """Norms as after some training, so that their order and their statistics matter; in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0, 0.1)
    model.eval()


@pytest.mark.parametrize(
    "name, classes, count",
    [
        ("segnet", 11, 29_449_355),
        ("segnet", 12, 29_449_932),
        ("segnet", 21, 29_455_125),
        ("segnet_basic", 11, 1_416_587),
        ("segnet_basic", 21, 1_417_237),
    ],
)
def test_parameter_counts(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in models.create(name, classes).parameters()) == count


def test_widths_of_the_decoder_are_those_of_the_release() -> None:
    with torch.device("meta"):
        model = models.create("segnet", 11)
    convs = [[layer for layer in decoder if isinstance(layer, nn.Conv2d)] for decoder in model.decoders]
    assert [tuple(conv.out_channels for conv in decoder) for decoder in convs] == DECODER
    assert [type(layer) for layer in model.decoders[-1]][-4:] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]


def test_only_the_full_net_has_relus_in_its_decoder() -> None:
    with torch.device("meta"):
        full, basic = models.create("segnet", 11), models.create("segnet_basic", 11)
    assert sum(isinstance(module, nn.ReLU) for module in full.decoders.modules()) == 12  # 13 convolutions but the last
    assert not [module for module in basic.decoders.modules() if isinstance(module, nn.ReLU)]


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("segnet", [(180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]),
        ("segnet_basic", [(180, 240), (90, 120), (45, 60), (23, 30)]),
    ],
)
def test_pooled_sizes_of_the_papers_image(
    name: str, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled: list[tuple[int, int]] = []
    unpooled: list[tuple[int, int]] = []

    def watched_pool(x: Tensor) -> tuple[Tensor, object]:
        result = pool(x)
        pooled.append(tuple(result[0].shape[-2:]))
        return result

    def watched_unpool(x: Tensor, memory: object) -> Tensor:
        result = unpool(x, memory)
        unpooled.append(tuple(result.shape[-2:]))
        return result

    monkeypatch.setattr("seglearn.models.segnet.pool", watched_pool)
    monkeypatch.setattr("seglearn.models.segnet.unpool", watched_unpool)
    with torch.device("meta"):
        models.create(name, 11)(torch.empty(2, 3, 360, 480))
    assert pooled == sizes
    assert unpooled == [*reversed(sizes[:-1]), (360, 480)]


def test_unpooling_by_hand() -> None:
    x = torch.tensor([[1.0, 5, 2], [3, 4, 6], [9, 7, 8]])  # windows: 1 5 3 4 | 2 6 | 9 7 | 8
    values, memory = pool(x[None, None])
    assert values[0, 0].tolist() == [[5, 6], [9, 8]]
    assert memory.indices[0, 0].tolist() == [[1, 5], [6, 8]]  # row * 3 + column
    assert memory.size == (3, 3)
    back = unpool(torch.tensor([[[[10.0, 20], [30, 40]]]]), memory)
    assert back[0, 0].tolist() == [[0, 10, 0], [0, 0, 20], [30, 0, 40]]


@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (5, 2), (7, 9), (8, 8)])
def test_unpooling_puts_each_maximum_where_it_was(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width)
    values, memory = pool(x)
    back = unpool(values, memory)
    assert back.shape == x.shape
    assert torch.equal(back[back != 0], x[back != 0])  # what is there, is at its place
    assert (back != 0).sum() == values.numel()  # one a window
    assert torch.equal(pool(back.where(back != 0, torch.tensor(float("-inf"))))[0], values)


def test_gradient_goes_the_way_of_the_values() -> None:
    x = torch.randn(1, 2, 5, 6, requires_grad=True)
    values, memory = pool(x)
    (unpool(values, memory) * torch.arange(30.0).view(5, 6)).sum().backward()
    expected = torch.zeros(1, 2, 30).scatter(2, memory.indices.flatten(2), memory.indices.flatten(2).float())
    assert torch.equal(x.grad, expected.view(1, 2, 5, 6))


def reference_segnet(weights: dict[str, Tensor], images: Tensor, basic: bool) -> Tensor:
    """The release's prototxt in plain functions, its layers taken one by one from the state dict, in order."""
    names = [
        name.removesuffix(".weight") for name, value in weights.items() if name.endswith("weight") and value.ndim == 4
    ]
    norms = [name.removesuffix(".running_var") for name in weights if name.endswith("running_var")]
    used_convs, used_norms = iter(names), iter(norms)

    def conv(x: Tensor, padding: int) -> Tensor:
        name = next(used_convs)
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    def norm(x: Tensor) -> Tensor:
        name = next(used_norms)
        mean, var, scale, shift = (
            weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[
            :, None, None
        ]

    def enlarge(x: Tensor, winner: Tensor, size: torch.Size) -> Tensor:
        big = torch.zeros(*x.shape[:2], size[0] * size[1])
        return big.scatter(2, winner.flatten(2), x.flatten(2)).unflatten(2, size)

    x = images
    depths = [1] * 4 if basic else [2, 2, 3, 3, 3]
    padding = 3 if basic else 1
    if basic:
        x = x / (1 + 1e-4 / 5 * (x**2).sum(1, keepdim=True)) ** 0.75  # 5 channels around each: all 3
    stack = []
    for depth in depths:
        for _ in range(depth):
            x = norm(conv(x, padding)).clamp(min=0)
        stack.append(x.shape[-2:])
        x, winner = F.max_pool2d(x, 2, stride=2, ceil_mode=True, return_indices=True)
        stack.append(winner)
    for stage, depth in reversed(list(enumerate(depths))):
        winner, size = stack.pop(), stack.pop()
        x = enlarge(x, winner, size)
        for layer in range(depth):
            x = conv(x, padding)
            if basic:
                x = norm(x)
            elif (stage, layer) != (0, 1):
                x = norm(x).clamp(min=0)
    x = conv(x, 0) if basic else x
    assert not [*used_convs, *used_norms]  # nothing left over
    return x


@pytest.mark.parametrize("basic", [False, True])
@torch.no_grad()
def test_logits_are_those_of_the_releases_layer_table(basic: bool) -> None:
    torch.manual_seed(0)
    model = SegNetBasic(5, width=8) if basic else SegNet(5, widths=(4, 8, 8, 12, 12))
    settle(model)
    images = torch.randn(2, 3, 45, 61) * 100  # so large that the normalisation of the input matters
    expected = reference_segnet(model.state_dict(), images, basic)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(images), expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


@torch.no_grad()
def test_encoder_is_torchvisions() -> None:
    """vgg16_bn's weights, loaded, give its features: 512 channels at 1/32."""
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16_bn()
    settle(theirs)
    model = models.create("segnet", 11).eval()
    decoders = {name: value.clone() for name, value in model.decoders.state_dict().items()}
    model.load_imagenet(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)  # of whole windows: torchvision's poolings round down
    expected = theirs.features(images)
    assert expected.shape == (1, 512, 2, 3) and expected.std() > 0
    x = images
    for stage in model.encoder.stages():
        x, _ = pool(stage[:-1](x))
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, decoders[name]) for name, value in model.decoders.state_dict().items())


def test_weights_of_other_nets_are_refused() -> None:
    with torch.device("meta"):
        model = models.create("segnet", 11)
        with pytest.raises(InputError, match="not of this VGG"):
            model.load_imagenet(torchvision.models.vgg16().state_dict())  # without norms
        with pytest.raises(InputError, match="not of this VGG"):
            models.create("segnet", 11, "laptop").load_imagenet(torchvision.models.vgg16_bn().state_dict())
    assert not hasattr(models.create("segnet_basic", 11, "laptop"), "load_imagenet")


def test_a_cell_of_basics_deepest_map_sees_106_pixels() -> None:
    """The paper chose its kernels for this number; positive weights and averages let the gradient reach them all."""
    model = SegNetBasic(2, width=1).eval()
    for parameter in model.encoders.parameters():
        nn.init.constant_(parameter, 0.1 if parameter.ndim > 1 else 1)
    images = torch.ones(1, 3, 320, 320, requires_grad=True)
    x = images
    for encoder in model.encoders:
        x = F.avg_pool2d(encoder(x), 2)
    x[0, 0, 10, 10].backward()
    seen = images.grad[0].sum((0, 1)).nonzero()
    assert seen[-1] - seen[0] + 1 == 106


def test_start_of_the_weights() -> None:
    """He's normal, 2 / fan in; a norm's shift is 0.001."""
    torch.manual_seed(0)
    for model in (SegNet(11, widths=(64, 64, 64, 64, 64)), SegNetBasic(11)):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.in_channels * module.kernel_size[0] ** 2
                if module.weight.numel() > 5000:
                    assert abs(module.weight.std() / (2 / fan_in) ** 0.5 - 1) < 0.05
                assert not module.bias.any()
            elif isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all() and (module.bias == 0.001).all()


@pytest.mark.parametrize("name", ["segnet", "segnet_basic"])
def test_biases_learn_twice_as_fast_and_do_not_decay(name: str) -> None:
    with torch.device("meta"):
        model = models.create(name, 11)
    groups = {(g["lr_factor"], g["weight_decay_factor"]): len(g["params"]) for g in model.parameter_groups()}
    convs, norms = (26, 25) if name == "segnet" else (9, 8)
    assert groups == {(1, 1): convs, (2, 0): convs, (1, 0): 2 * norms}


@pytest.mark.parametrize("name, stride", [("segnet", 16), ("segnet_basic", 8)])
def test_one_small_image_cannot_be_trained_on(name: str, stride: int) -> None:
    model = models.create(name, 11, "laptop")
    with pytest.raises(InputError, match="One image of 3x.*at least 2"):
        model(torch.randn(1, 3, 3, stride))
    assert model(torch.randn(1, 3, 3, stride + 1)).isfinite().all()
    assert model(torch.randn(2, 3, 3, stride)).isfinite().all()
    assert model.eval()(torch.randn(1, 3, 3, stride)).isfinite().all()


def test_loss_is_taken_at_full_resolution() -> None:
    model = models.create("segnet_basic", 11, "laptop").eval()
    images, labels = torch.randn(2, 3, 21, 34), torch.randint(0, 11, (2, 21, 34))
    assert torch.equal(model.loss(images, labels, F.cross_entropy), F.cross_entropy(model(images), labels))
