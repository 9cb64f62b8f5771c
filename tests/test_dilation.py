"""Dilation against the paper's tables, references written from the layer tables, and torchvision's VGG."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from seglearn import models
from seglearn.errors import InputError
from seglearn.models.dilation import ContextModule, Dilation, FrontEnd


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def small(context: str | None = "basic", fc6: int = 7, num_classes: int = 3) -> Dilation:
    """The paper's geometry, with so few channels that it runs in no time."""
    torch.manual_seed(0)
    front_end = FrontEnd(num_classes, widths=(2, 3, 4, 5, 6), hidden=8, fc6=fc6)
    nn.init.normal_(front_end.final.weight)
    return Dilation(num_classes, context, front_end=front_end).eval()


@pytest.mark.parametrize(
    "classes, front, basic, large",
    [(21, 134_346_581, 134_374_973, 141_149_720), (11, 134_305_611, 134_313_443, 136_172_740)],
)
def test_parameter_counts(classes: int, front: int, basic: int, large: int) -> None:
    with torch.device("meta"):
        assert count(models.create("dilation_front", classes)) == front
        assert count(models.create("dilation", classes)) == basic
        assert count(models.create("dilation", classes, context="large")) == large


def test_parameter_counts_of_the_context_module() -> None:
    with torch.device("meta"):
        assert count(ContextModule(21)) == 28_392
        assert count(ContextModule(21, "large")) == 6_803_139


def test_sizes_of_the_papers_tile() -> None:
    """900 pixels, of which 186 on each side are margin: 66 cells for the 528 pixels between."""
    with torch.device("meta"):
        front_end = FrontEnd(21)
        sides = []
        for layer in [*front_end.features, *front_end.fc6]:
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                layer.register_forward_hook(lambda layer, inputs, output: sides.append(output.shape[-1]))
        scores = front_end(torch.empty(1, 3, 900, 900))
    stages = [898, 896, 448, 446, 444, 222, 220, 218, 216, 108, 106, 104, 102, 98, 94, 90, 66]
    assert sides == stages
    assert scores.shape == (1, 21, 66, 66)
    assert front_end.margin == 186 and 66 * 8 + 2 * 186 == 900


@pytest.mark.parametrize("size", ["paper", "laptop"])
def test_unpadded_layers_use_up_the_margin(size: str) -> None:
    """Walking back from one cell by hand: a convolution adds its reach, a pooling doubles."""
    with torch.device("meta"):
        front_end = models.create("dilation", 11, size).front_end
    side = 1
    for layer in reversed([*front_end.features, *front_end.fc6]):
        if isinstance(layer, nn.Conv2d):
            side += layer.dilation[0] * (layer.kernel_size[0] - 1)
        elif isinstance(layer, nn.MaxPool2d):
            side *= 2
    assert side == 8 + 2 * front_end.margin


def reference(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Front end and basic context in plain functions from the layer tables; numpy's reflection (border not repeated).

    The scores of every 8th pixel, up to the first at or beyond the last row and column.
    """
    convs = iter([name.removesuffix(".weight") for name in weights if name.endswith("weight")])

    def conv(x: Tensor, dilation: int = 1, padding: int = 0) -> Tensor:
        name = next(convs)
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], dilation=dilation, padding=padding)

    cells = [-(-(side - 1) // 8) + 1 for side in images.shape[-2:]]
    far = [8 * number + 186 - side for number, side in zip(cells, images.shape[-2:], strict=True)]
    x = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (186, far[0]), (186, far[1])), mode="reflect"))
    for depth, dilation, pooled in ((2, 1, True), (2, 1, True), (3, 1, True), (3, 1, False), (3, 2, False)):
        for _ in range(depth):
            x = conv(x, dilation).clamp(min=0)
        x = F.max_pool2d(x, 2) if pooled else x
    x = conv(x, 4).clamp(min=0)
    x = conv(x).clamp(min=0)
    x = conv(x)
    assert list(x.shape[-2:]) == cells
    for dilation in (1, 1, 2, 4, 8, 16, 1):
        x = conv(x, dilation, dilation).clamp(min=0)
    x = conv(x)
    assert not [*convs]
    return x


@pytest.mark.parametrize("height, width", [(1, 1), (1, 50), (16, 17), (90, 131), (200, 193)])
@torch.no_grad()
def test_scores_are_those_of_the_layer_tables(height: int, width: int) -> None:
    model = small()
    for parameter in model.context.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    images = torch.randn(2, 3, height, width)
    expected = reference(model.state_dict(), images)
    assert expected.std() > 0.01 if min(height, width) > 1 else True
    torch.testing.assert_close(model.scores(images), expected, atol=1e-4, rtol=1e-4)


def zoom(scores: np.ndarray, height: int, width: int) -> np.ndarray:
    """The release's interpolation: pixel y lies between cell floor(y / 8) and the next, (y mod 8) / 8 of the way."""
    scores = np.pad(scores, ((0, 1), (0, 1)), mode="edge")  # a neighbour of weight 0 where the last cell is hit
    result = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            (row, down), (column, right) = divmod(y, 8), divmod(x, 8)
            corners = scores[row : row + 2, column : column + 2]
            result[y, x] = np.array([1 - down / 8, down / 8]) @ corners @ np.array([1 - right / 8, right / 8])
    return result


@pytest.mark.parametrize("height, width", [(1, 1), (9, 16), (24, 33)])
@torch.no_grad()
def test_upsampling_is_the_releases(height: int, width: int) -> None:
    model = small()
    images = torch.randn(1, 3, height, width)
    scores = model.scores(images)[0].double().numpy()
    logits = model(images)[0].numpy()
    for one, other in zip(scores, logits, strict=True):
        np.testing.assert_allclose(other, zoom(one, height, width), atol=1e-5, rtol=1e-5)


def test_loss_is_taken_where_the_release_slices_the_labels() -> None:
    """Pixels 0, 8, 16...: there the logits are the scores themselves."""
    for height, width in ((1, 1), (8, 9), (16, 17), (23, 40)):
        model = small()
        images, labels = torch.randn(2, 3, height, width), torch.randint(0, 3, (2, height, width))
        expected = F.cross_entropy(model(images)[..., ::8, ::8], labels[..., ::8, ::8])
        torch.testing.assert_close(model.loss(images, labels, F.cross_entropy), expected, atol=1e-5, rtol=1e-5)


def test_a_cell_looks_at_the_middle_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by gradient: the field of cell i has its middle between pixels 8 i + 3 and 8 i + 4."""
    monkeypatch.setattr(nn.MaxPool2d, "forward", lambda pool, x: F.avg_pool2d(x, 2))
    model = small(None)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5 if parameter.ndim > 1 else 0)
    images = torch.ones(1, 3, 480, 560, requires_grad=True)
    model.scores(images)[0, 0, 30, 33].backward()
    for axis, cell in ((0, 30), (1, 33)):
        seen = images.grad[0, 0].sum(1 - axis).nonzero()
        assert seen[0] > 0 and seen[-1] < images.shape[2 + axis] - 1, "the field must lie inside"
        assert seen[0] + seen[-1] == 2 * (8 * cell) + 7
        assert seen[-1] - seen[0] + 1 == 8 + 2 * 186


@torch.no_grad()
def test_logits_move_with_the_image() -> None:
    """An image whose content is moved by the stride has its logits moved by it."""
    model = small(None)
    image = torch.randn(1, 3, 480, 480)
    here, there = model(image), model(image.roll((8, 16), (2, 3)))
    inner = (..., slice(208, 248), slice(208, 248))  # sees no border, before and after
    torch.testing.assert_close(there.roll((-8, -16), (2, 3))[inner], here[inner], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", ["basic", "large"])
@torch.no_grad()
def test_context_module_starts_as_the_identity(width: str) -> None:
    scores = torch.rand(2, 5, 30, 41) * 10
    torch.testing.assert_close(ContextModule(5, width, noise=0)(scores), scores, atol=0, rtol=1e-6)
    different = ContextModule(5, width)(scores)
    if width == "basic":
        assert torch.equal(different, scores)
    else:
        assert 0 < (different - scores).abs().mean() < 0.1 * scores.mean()
    truncated = (scores - 5).clamp(min=0)
    torch.testing.assert_close(ContextModule(5, width, noise=0)(scores - 5), truncated, atol=0, rtol=1e-6)


def test_start_of_the_large_context_module() -> None:
    """Equation 5 by hand, at 3 classes, for 6 -> 12 channels: 0 1 | 2 3 | 4 5 feed 0-3 | 4-7 | 8-11."""
    torch.manual_seed(0)
    layers = [layer for layer in ContextModule(3, "large").layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [6, 6, 12, 24, 48, 96, 96, 3]
    weight = layers[2].weight.detach()
    centre = weight[:, :, 1, 1]
    expected = torch.zeros(12, 6)
    for output in range(12):
        group = output // 4
        expected[output, 2 * group : 2 * group + 2] = 3 / 12
    assert torch.equal(centre[expected > 0], expected[expected > 0])
    noise = torch.cat([centre[expected == 0], weight[:, :, 0].flatten(), weight[:, :, 2].flatten()])
    assert abs(noise.std() / (0.01 * 3 / 12) - 1) < 0.1
    assert not any(layer.bias.any() for layer in layers)


@pytest.mark.parametrize("width", ["basic", "large"])
def test_context_module_sees_67_cells(width: str) -> None:
    module = ContextModule(2, width)
    fields = []
    scores = torch.ones(1, 2, 101, 101, requires_grad=True)
    x = scores
    for layer in module.layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.1)
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            (gradient,) = torch.autograd.grad(x[0, 0, 50, 50], scores, retain_graph=True)
            rows = gradient[0].sum((0, 2)).nonzero()
            assert rows[0] + rows[-1] == 100  # centred
            fields.append(int(rows[-1] - rows[0] + 1))
    assert fields == [3, 5, 9, 17, 33, 65, 67, 67]


def test_layers_1_to_7_truncate_and_the_last_does_not() -> None:
    kinds = [type(layer) for layer in ContextModule(3).layers]
    assert kinds == [nn.Conv2d, nn.ReLU] * 7 + [nn.Conv2d]


def test_unknown_width_is_refused() -> None:
    with pytest.raises(InputError, match="'wide': choose 'basic' or 'large'"):
        ContextModule(3, "wide")


@torch.no_grad()
def test_second_stage_starts_where_the_first_ended() -> None:
    """In a fresh second stage the context module changes nothing but negative scores."""
    first, second = small(None), small("basic")
    for parameter in first.parameters():
        parameter += 0.1
    second.start_from(first.state_dict())
    images = torch.randn(1, 3, 20, 30)
    expected = first.scores(images).clamp(min=0)
    assert expected.any()
    assert torch.equal(second.scores(images), expected)


def test_start_from_refuses_other_weights() -> None:
    with pytest.raises(InputError, match="not of this Dilation.*front_end.final.bias for one"):
        small().start_from(small(None, num_classes=4).state_dict())
    with pytest.raises(InputError, match="left over.*context.layers.0.bias"):
        small(None).start_from(small().state_dict())
    weights = small().state_dict()
    del weights["front_end.fc6.0.weight"]
    with pytest.raises(InputError, match="1 missing.*fc6.0.weight"):
        small().start_from(weights)


def test_vgg16_of_torchvision_fits_the_papers_size() -> None:
    with torch.device("meta"):
        vgg = torchvision.models.vgg16().state_dict()
        for name in ("dilation_front", "dilation"):
            models.create(name, 21).load_imagenet(vgg)
        with pytest.raises(InputError, match="not of this FrontEnd"):
            models.create("dilation", 21).load_imagenet(torchvision.models.vgg19().state_dict())
        with pytest.raises(InputError, match="not of this FrontEnd"):
            models.create("dilation", 21, "laptop").load_imagenet(vgg)
        with pytest.raises(InputError, match="no classifier.0.weight"):
            models.create("dilation", 21).load_imagenet(torchvision.models.resnet18().state_dict())


@torch.no_grad()
def test_weights_of_a_classifier_land_in_their_layers() -> None:
    """A small VGG-16, its convolutions in order and its classifier as filters; `final` and context as they were."""
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shapes = [
        (name, value.shape) for name, value in before.items() if name.startswith("front_end.f") and "final" not in name
    ]
    names = [
        f"features.{i}.{kind}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28) for kind in ("weight", "bias")
    ]
    names += ["classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias"]
    vgg = {name: torch.randn(shape) for name, (_, shape) in zip(names, shapes, strict=True)}
    for name in ("classifier.0.weight", "classifier.3.weight"):
        vgg[name] = vgg[name].flatten(1)
    model.load_imagenet({**vgg, "classifier.6.weight": torch.randn(5, 8), "classifier.6.bias": torch.randn(5)})
    after = model.state_dict()
    for (ours, shape), theirs in zip(shapes, names, strict=True):
        assert torch.equal(after[ours], vgg[theirs].view(shape)), ours
    untouched = [name for name in after if name.startswith("context.") or "final" in name]
    assert len(untouched) == 18 and all(torch.equal(after[name], before[name]) for name in untouched)


def test_start_of_the_last_layer() -> None:
    torch.manual_seed(0)
    final = FrontEnd(50, widths=(2, 2, 2, 2, 2), hidden=500).final
    assert abs(final.weight.std() / 0.001 - 1) < 0.05 and not final.bias.any()


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    with torch.device("meta"):
        model = models.create("dilation", 11)
    groups = {(g["lr_factor"], g["weight_decay_factor"]): len(g["params"]) for g in model.parameter_groups()}
    assert groups == {(1, 1): 16 + 8, (2, 0): 16 + 8}


def test_a_frozen_front_end_is_left_out_of_the_groups() -> None:
    model = small()
    model.front_end.requires_grad_(False)
    held = {id(p) for group in model.parameter_groups() for p in group["params"]}
    assert held == {id(p) for p in model.context.parameters()}


def test_one_pixel_cannot_be_trained_on_with_norms() -> None:
    model = models.create("dilation", 11, "laptop")
    with pytest.raises(InputError, match="One image of 1x1 pixel.*at least 2"):
        model(torch.randn(1, 3, 1, 1))
    assert model(torch.randn(1, 3, 1, 2)).shape == (1, 11, 1, 2)
    model.front_end.eval()  # frozen, as in the second stage
    assert model(torch.randn(1, 3, 1, 1)).shape == (1, 11, 1, 1)
    assert small().train()(torch.randn(1, 3, 1, 1)).shape == (1, 3, 1, 1)  # the paper's size has no norms
