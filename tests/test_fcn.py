"""FCN against the numbers of the paper's release, and against references written another way."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from seglearn import models
from seglearn.backbones import VGG
from seglearn.errors import InputError
from seglearn.models.fcn import FCN, Grid, Upsample, add, from_vgg

STRIDES = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}
GEOMETRIES = {"paper": (100, (7, 0)), "laptop": (1, (3, 1))}


def small(stride: int, geometry: str = "paper", width: int = 4, num_classes: int = 3) -> FCN:
    """The geometry of one of the two sizes, with so few channels that it runs in no time."""
    padding, fc6 = GEOMETRIES[geometry]
    torch.manual_seed(0)
    backbone = VGG([width] * 5, num_classes=None, first_padding=padding, ceil_mode=True)
    model = FCN(num_classes, stride, backbone=backbone, hidden=width, fc6=fc6).eval()
    for score in scores_of(model).values():
        nn.init.normal_(score.weight)
    return model


def scores_of(model: FCN) -> dict[str, nn.Conv2d]:
    found = {name: layer for name, layer in model.named_children() if name.startswith("score")}
    return {name: layer for name, layer in found.items() if isinstance(layer, nn.Conv2d)}


def test_small_has_the_geometry_of_its_size() -> None:
    for name, stride in STRIDES.items():
        for geometry in GEOMETRIES:
            with torch.device("meta"):
                assert models.create(name, 11, geometry).offsets == small(stride, geometry).offsets


@pytest.mark.parametrize(
    "name, classes, count",
    [
        ("fcn32s", 21, 134_346_581),
        ("fcn16s", 21, 134_357_354),
        ("fcn8s", 21, 134_362_751),
        ("fcn32s", 11, 134_305_611),
        ("fcn16s", 11, 134_311_254),
        ("fcn8s", 11, 134_314_081),
    ],
)
def test_parameter_counts(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in models.create(name, classes).parameters()) == count


@pytest.mark.parametrize("name, offsets", [("fcn32s", (19,)), ("fcn16s", (5, 27)), ("fcn8s", (5, 9, 31))])
def test_offsets_are_those_of_the_release(name: str, offsets: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert models.create(name, 21).offsets == offsets


def test_offset_of_the_releases_alexnet() -> None:
    """Kernels and strides of its prototxt: another net, whose crop the same arithmetic must give."""
    layers = [nn.Conv2d(3, 1, 11, stride=4, padding=100), nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 5, padding=2)]
    layers += [nn.MaxPool2d(3, 2), *(nn.Conv2d(1, 1, 3, padding=1) for _ in range(3)), nn.MaxPool2d(3, 2)]
    grid = Grid().through([*layers, nn.Conv2d(1, 1, 6)])
    assert grid.stride == 32
    # its transposed convolution has kernel 63, not 64: cell 0 lies on pixel 31 of the result
    assert 31 - grid.start == 18


def test_grids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="without resampling"):
        Grid(8, 3.5).offset_in(Grid(16, 3.5))
    with pytest.raises(InputError, match="without resampling"):
        Grid(8, 3.5).offset_in(Grid(8, 3.0))
    with pytest.raises(InputError, match="without resampling"):
        FCN(3, 32, backbone=VGG([4] * 5, num_classes=None, output_stride=8), hidden=4)
    with pytest.raises(InputError, match="stride is 4"):
        FCN(3, 4)


def side_after(layer: nn.Module, side: int) -> int:
    """The arithmetic of PyTorch's documentation for one side of a map."""
    if isinstance(layer, nn.Conv2d):
        return side + 2 * int(layer.padding[0]) - layer.kernel_size[0] + 1
    if isinstance(layer, nn.MaxPool2d):
        return -(-side // 2)  # 2x2, stride 2, rounded up
    if isinstance(layer, Upsample):
        return (side - 1) * layer.factor + 2 * layer.factor
    return side


def sides_after(layers: nn.Module, side: int) -> int:
    for layer in layers.children() if isinstance(layers, nn.Sequential) else [layers]:
        side = side_after(layer, side)
    return side


@pytest.mark.parametrize("size", ["paper", "laptop"])
@pytest.mark.parametrize("name", STRIDES)
def test_every_side_from_1_to_600_by_arithmetic(name: str, size: str) -> None:
    with torch.device("meta"):
        model = models.create(name, 11, size)
    for side in range(1, 601):
        pools, x = [], side
        for stage in model.backbone.stages():
            x = sides_after(stage, x)
            pools.append(x)
        x = sides_after(model.fc6, x)
        assert x >= 1
        *skips, crop = model.offsets
        for offset, skip, upscore in zip(skips, (pools[3], pools[2]), ("upscore2", "upscore_pool4"), strict=False):
            x = sides_after(getattr(model, upscore), x)
            if offset >= 0:
                assert skip - offset >= x  # the release crops the skip to the scores: it must reach as far
            else:
                assert x + offset >= skip
                x = skip
        assert sides_after(model.upscore, x) >= crop + side


@pytest.mark.parametrize("size", ["paper", "laptop"])
@pytest.mark.parametrize("name", STRIDES)
@torch.no_grad()
def test_every_side_from_1_to_600_by_running(name: str, size: str) -> None:
    with torch.device("meta"):
        model = models.create(name, 11, size).eval()
        for parent in list(model.modules()):  # norms change no shape, and are slow on the meta device
            for key, child in parent.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, key, nn.Identity())
        for side in range(1, 301):
            assert model(torch.empty(1, 3, side, 601 - side)).shape == (1, 11, side, 601 - side)


@pytest.mark.parametrize("height, width, fc6", [(224, 224, (8, 8)), (500, 500, (16, 16)), (360, 480, (12, 16))])
def test_map_of_fc6(height: int, width: int, fc6: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = models.create("fcn8s", 21)
        x = model.fc6(model.backbone(torch.empty(1, 3, height, width))[-1])
    assert x.shape == (1, 4096, *fc6)


def release_kernel(size: int) -> Tensor:
    """The bilinear kernel by the release's formula."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    kernel = torch.empty(size, size)
    for y in range(size):
        for x in range(size):
            kernel[y, x] = (1 - abs(x - centre) / factor) * (1 - abs(y - centre) / factor)
    return kernel


def test_a_cpu_upsamples_in_float32_under_autocast() -> None:
    layer, x = Upsample(3, 32), torch.rand(1, 3, 4, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        upsampled = layer(x)
    assert torch.equal(upsampled, layer(x.float()).bfloat16())


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
@torch.no_grad()
def test_upsample_is_the_releases_dense_deconvolution(factor: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 4)
    dense = nn.ConvTranspose2d(5, 5, 2 * factor, stride=factor, bias=False)
    dense.weight.zero_()
    for channel in range(5):
        dense.weight[channel, channel] = release_kernel(2 * factor)
    upsampled = Upsample(5, factor)(x)
    assert upsampled.shape == (2, 5, factor * 7, factor * 5)
    torch.testing.assert_close(upsampled, dense(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_upsample_interpolates_at_half_pixels(factor: int) -> None:
    x = torch.randn(2, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    half = factor // 2
    upsampled = Upsample(5, factor)(x)[..., half:-half, half:-half]
    inside = (..., slice(half, -half), slice(half, -half))  # between the centres of the outermost cells
    torch.testing.assert_close(upsampled[inside], expected[inside], atol=1e-5, rtol=1e-5)
    assert (upsampled[..., 0, 0].abs() < expected[..., 0, 0].abs()).all()  # the rim fades


def test_upsample_is_neither_learnt_nor_stored() -> None:
    model = small(8)
    assert not [key for key in model.state_dict() if "upscore" in key]
    assert not [key for key, _ in model.named_parameters() if "upscore" in key]
    assert model.double().upscore.kernel.dtype == torch.float64


def test_add_lays_cells_over_cells() -> None:
    skip = torch.arange(6.0).expand(1, 1, 6, 6)
    scores = torch.arange(3.0).expand(1, 1, 3, 3)
    assert add(scores, skip, 2)[0, 0, 0].tolist() == [0 + 2, 1 + 3, 2 + 4]
    assert add(skip, scores, -2)[0, 0, 0].tolist() == [2 + 0, 3 + 1, 4 + 2]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("stride", STRIDES.values())
def test_scores_are_drawn_where_their_cell_looked(stride: int, geometry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell's receptive field, found by gradient, and the spot that its score makes have the same centre."""
    # averages and constant positive weights, for the gradient to reach all of the field
    monkeypatch.setattr(nn.MaxPool2d, "forward", lambda pool, x: F.avg_pool2d(x, 2, ceil_mode=True))
    model = small(stride, geometry, width=1, num_classes=2)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5 if parameter.ndim > 1 else 0)

    images = torch.ones(1, 3, 612, 709, requires_grad=True)
    outputs: dict[str, Tensor] = {}
    replaced: dict[str, Tensor] = {}  # what `forward` goes on with in their place

    def swap(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            outputs[name] = output
            return replaced.get(name, torch.zeros_like(output))

        return hook

    for name, layer in scores_of(model).items():
        layer.register_forward_hook(swap(name))
    model(images)
    for name, output in outputs.copy().items():
        y, x = (side // 2 for side in output.shape[-2:])
        (field,) = torch.autograd.grad(output[0, 0, y, x], images, retain_graph=True)
        impulse = torch.zeros_like(output)
        impulse[0, 0, y, x] = 1
        replaced.clear()
        replaced[name] = impulse
        spot = model(images)
        for axis in (0, 1):
            seen = field[0, 0].sum(1 - axis).nonzero()
            drawn = spot[0, 0].sum(1 - axis).nonzero()
            assert seen[0] > 0 and seen[-1] < images.shape[2 + axis] - 1, "the field must lie inside"
            assert seen[0] + seen[-1] == drawn[0] + drawn[-1], name


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("score, shift", [("score_fr", 32), ("score_pool4", 16), ("score_pool3", 8)])
@torch.no_grad()
def test_logits_move_with_the_image(score: str, shift: int, geometry: str) -> None:
    """By the stride of the scores: an object moved by it is drawn moved by it, to the last bit."""
    model = small(8, geometry)
    for name, layer in scores_of(model).items():
        if name != score:
            nn.init.zeros_(layer.weight)
    patch = torch.randn(3, 50, 40)

    def logits(top: int, left: int) -> Tensor:
        images = torch.zeros(1, 3, 700, 750)
        images[0, :, top : top + 50, left : left + 40] = patch
        return model(images)[0]

    here, there = logits(320, 330), logits(320 + shift, 330 + 2 * shift)
    assert here.abs().max() > 0
    torch.testing.assert_close(there, here.roll((shift, 2 * shift), (1, 2)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", ["paper", "laptop"])
def test_stages_hand_on_their_weights(size: str) -> None:
    with torch.device("meta"):
        nets = {name: models.create(name, 11, size) for name in STRIDES}
    keys = {name: set(net.state_dict()) for name, net in nets.items()}
    assert keys["fcn16s"] - keys["fcn32s"] == {"score_pool4.weight", "score_pool4.bias"}
    assert keys["fcn8s"] - keys["fcn16s"] == {"score_pool3.weight", "score_pool3.bias"}
    assert keys["fcn32s"] < keys["fcn16s"] < keys["fcn8s"]


@torch.no_grad()
def test_a_new_skip_changes_nothing_at_first() -> None:
    """With its score layer at zero, what 16s adds to 32s is but another way of upsampling."""
    coarse = small(32)
    fine = small(16)
    nn.init.zeros_(fine.score_pool4.weight)
    fine.start_from(coarse.state_dict())
    images = torch.randn(1, 3, 90, 130)
    score = coarse.score_fr(coarse.fc7(coarse.fc6(coarse.backbone(images)[-1])))
    again = fine.score_fr(fine.fc7(fine.fc6(fine.backbone(images)[-1])))
    assert torch.equal(score, again)
    assert F.cosine_similarity(coarse(images).flatten(), fine(images).flatten(), dim=0) > 0.95


def test_start_from_refuses_other_weights() -> None:
    model = small(16)
    with pytest.raises(InputError, match="2 missing, left over.*score_pool3.bias"):
        model.start_from(small(8).state_dict())
    with pytest.raises(InputError, match="score_fr.bias for one"):
        model.start_from(small(16, num_classes=4).state_dict())
    state_dict = model.state_dict()
    del state_dict["fc6.0.weight"]
    with pytest.raises(InputError, match="1 missing.*fc6.0.weight"):
        model.start_from(state_dict)
    with pytest.raises(InputError, match="no classifier.0.weight: give the state dict of torchvision's vgg16"):
        from_vgg(torchvision.models.resnet18().state_dict())


@torch.no_grad()
def test_convolutionalised_vgg_is_the_classifier() -> None:
    """On the classifier's own 224 pixels, unpadded, the net's one score per class is the classifier's."""
    torch.manual_seed(0)
    vgg = VGG([4, 4, 8, 8, 8], num_classes=5, hidden=16).eval()
    model = FCN(5, 32, backbone=VGG([4, 4, 8, 8, 8], num_classes=None, ceil_mode=True), hidden=16).eval()
    model.start_from(from_vgg(vgg.state_dict()))
    last = vgg.classifier[6]
    model.score_fr.weight.copy_(last.weight[:, :, None, None])
    model.score_fr.bias.copy_(last.bias)
    images = torch.randn(2, 3, 224, 224)
    scores = model.score_fr(model.fc7(model.fc6(model.backbone(images)[-1])))
    assert scores.shape == (2, 5, 1, 1) and scores.std() > 0
    torch.testing.assert_close(scores[..., 0, 0], vgg.classify(images), atol=1e-6, rtol=1e-4)


def test_vgg16_of_torchvision_fits_the_papers_size() -> None:
    with torch.device("meta"):
        state_dict = from_vgg(torchvision.models.vgg16().state_dict())
        for name in STRIDES:
            models.create(name, 21).start_from(state_dict)
    assert state_dict["fc6.0.weight"].shape == (4096, 512, 7, 7)
    assert state_dict["fc7.0.weight"].shape == (4096, 4096, 1, 1)


def test_dropout_drops_single_activations() -> None:
    with torch.device("meta"):
        model = models.create("fcn8s", 21)
    drops = [module for module in model.modules() if "Dropout" in type(module).__name__]
    assert [type(module) for module in drops] == [nn.Dropout, nn.Dropout]
    assert [module.p for module in drops] == [0.5, 0.5]


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    with torch.device("meta"):
        groups = models.create("fcn8s", 21).parameter_groups()
        laptop = models.create("fcn8s", 11, "laptop").parameter_groups()
    factors = [(g["lr_factor"], g["weight_decay_factor"]) for g in laptop]
    assert factors == [(1, 1), (2, 0), (1, 0)]  # weights, biases, norms
    assert [(g["lr_factor"], g["weight_decay_factor"]) for g in groups] == factors[:2]  # the paper has no norms
    assert [len(g["params"]) for g in groups] == [18, 18]
