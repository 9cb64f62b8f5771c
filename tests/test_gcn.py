"""GCN against the counts of its paper, kernels composed by hand, and the tents that its scores must draw."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from seglearn import models
from seglearn.errors import InputError
from seglearn.models import gcn
from seglearn.models.gcn import GCN, BoundaryRefinement, GlobalConvolution


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(
    "depth, classes, expected",
    [
        (50, 21, 26_052_308),
        (50, 19, 25_799_280),
        (50, 11, 24_809_728),
        (101, 21, 45_044_436),
        (152, 21, 60_688_084),
    ],
)
def test_parameter_counts(depth: int, classes: int, expected: int) -> None:
    with torch.device("meta"):
        assert count(models.create("gcn", classes, depth=depth)) == expected


@pytest.mark.parametrize("classes, convolutions, refinement", [(21, 2_472_456, 7_980), (19, 2_232_424, 6_536)])
def test_parameters_of_each_part(classes: int, convolutions: int, refinement: int) -> None:
    with torch.device("meta"):
        modules = list(GCN(classes).modules())
    large = [module for module in modules if isinstance(module, GlobalConvolution)]
    refinements = [module for module in modules if isinstance(module, BoundaryRefinement)]
    assert len(large) == 4 and count(*large) == convolutions
    assert len(refinements) == 9 and {count(module) for module in refinements} == {refinement}


@pytest.mark.parametrize(
    "kernel, separable, dense",
    [(3, 260_694, 387_072), (5, 434_490, 1_075_200), (7, 608_286, 2_107_392), (9, 782_082, 3_483_648)],
)
def test_weights_of_the_papers_table_2(kernel: int, separable: int, dense: int) -> None:
    """Its counts are those of res5 and leave biases out."""
    with torch.device("meta"):
        layer = GlobalConvolution(2048, 21, kernel)
        trivial = nn.Conv2d(2048, 21, kernel, bias=False)
    assert sum(p.numel() for p in layer.parameters() if p.ndim > 1) == separable
    assert count(trivial) == dense


def composed(arm: nn.Sequential) -> Tensor:
    """The `[K, C, k, k]` kernel that two convolutions in a row, k x 1 and 1 x k or the reverse, amount to."""
    first, second = (conv.weight for conv in arm)  # [K, C, k, 1] and [K, K, 1, k], or k and 1 exchanged
    return (second[:, :, None] * first[None]).sum(1)


@torch.no_grad()
def test_global_convolution_is_one_large_kernel() -> None:
    torch.manual_seed(0)
    layer = GlobalConvolution(5, 3, kernel=7)
    kernel = composed(layer.left) + composed(layer.right)
    x = torch.randn(2, 5, 11, 16)
    for arm in (layer.left, layer.right):
        for conv in arm:
            nn.init.zeros_(conv.bias)
    assert kernel.shape == (3, 5, 7, 7)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, padding=3), atol=1e-5, rtol=1e-5)
    # a price: an arm's kernel is a sum of K products of a column and a row, so its rank is K rather than k
    for arm in (layer.left, layer.right):
        assert (torch.linalg.matrix_rank(composed(arm)) == 3).all()


def test_one_score_sees_all_of_its_window() -> None:
    layer = GlobalConvolution(2, 3)
    for part in (layer, layer.left, layer.right):
        x = torch.randn(1, 2, 31, 33, requires_grad=True)
        (field,) = torch.autograd.grad(part(x)[0, 0, 15, 16], x)
        window = torch.zeros(31, 33, dtype=torch.bool)
        window[15 - 7 : 15 + 8, 16 - 7 : 16 + 8] = True
        assert torch.equal(field[0, 0] != 0, window)


@torch.no_grad()
def test_boundary_refinement_adds_either_sign() -> None:
    """Its second convolution has no ReLU behind it: with kernels of 1 and -1, scores lose their positive part."""
    refinement = BoundaryRefinement(2)
    for conv, sign in ((refinement.conv1, 1), (refinement.conv2, -1)):
        nn.init.dirac_(conv.weight)
        conv.weight.mul_(sign)
        nn.init.zeros_(conv.bias)
    scores = torch.randn(1, 2, 5, 6)
    torch.testing.assert_close(refinement(scores), scores.clamp(max=0))


def test_even_kernels_are_refused() -> None:
    with pytest.raises(InputError, match="kernel is 14: choose an odd number"):
        models.create("gcn", 11, "laptop", kernel=14)


def test_sizes_at_512_pixels() -> None:
    with torch.device("meta"):
        model, images = models.create("gcn", 21), torch.empty(2, 3, 512, 512)
        assert isinstance(model, GCN)
        scores = (model.score4, model.score8, model.score16, model.score32)
        for x, score, side in zip(model.backbone(images), scores, (128, 64, 32, 16), strict=True):
            assert score(x).shape == (2, 21, side, side)
        assert model(images).shape == (2, 21, 512, 512)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@torch.no_grad()
def test_a_score_is_drawn_where_its_cell_looked(stride: int) -> None:
    """Cell i of an odd-kernel ResNet is centred on pixel stride * i. Unrefined, its score makes a tent there."""
    model = models.create("gcn", 2, "laptop").eval()
    for module in model.modules():
        if isinstance(module, BoundaryRefinement):
            nn.init.zeros_(module.conv2.weight)
    y, x = 2, 3

    def only_one_cell(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        output = torch.zeros_like(output)
        if module is getattr(model, f"score{stride}"):
            output[..., y, x] = 1
        return output

    for level in (4, 8, 16, 32):
        getattr(model, f"score{level}").register_forward_hook(only_one_cell)
    height, width = 131, 150
    rows = (1 - (torch.arange(height) - stride * y).abs() / stride).clamp(min=0)
    columns = (1 - (torch.arange(width) - stride * x).abs() / stride).clamp(min=0)
    drawn = model(torch.randn(1, 3, height, width))
    torch.testing.assert_close(drawn, torch.outer(rows, columns).expand(1, 2, height, width))


def test_loss_is_taken_at_full_resolution() -> None:
    torch.manual_seed(0)
    model = models.create("gcn", 3, "laptop").eval()
    images, labels = torch.randn(2, 3, 75, 90), torch.randint(0, 3, (2, 75, 90))
    torch.testing.assert_close(model.loss(images, labels, F.cross_entropy), F.cross_entropy(model(images), labels))


def test_one_rate_for_all() -> None:
    with torch.device("meta"):
        groups = models.create("gcn", 21).parameter_groups()
    assert sorted((group["lr_factor"], group["weight_decay_factor"]) for group in groups) == [(1, 0), (1, 1)]


def test_scores_start_near_zero() -> None:
    torch.manual_seed(0)
    model = GCN(11, 18).train()
    with torch.no_grad():
        assert 0.05 < model(torch.randn(2, 3, 96, 128)).std() < 2


def test_imagenet_weights_go_into_the_backbone_alone() -> None:
    torch.manual_seed(0)
    model = GCN(3, 18)
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
    monkeypatch.setattr(gcn, "load_torchvision", lambda model, weights: asked.append(weights))
    with torch.device("meta"):
        for depth in (50, 101, 152):
            GCN(21, depth).load_imagenet()
    assert asked == [f"ResNet{depth}_Weights.IMAGENET1K_V1" for depth in (50, 101, 152)]
