"""FCNResNet against torchvision's nets, with the weights carried over."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.segmentation import fcn_resnet50, fcn_resnet101

from seglearn.backbones import ResNet
from seglearn.errors import InputError
from seglearn.models import fcn_resnet
from seglearn.models.fcn_resnet import FCNResNet, from_torchvision

BUILDERS = {50: fcn_resnet50, 101: fcn_resnet101}
SIZES = [(64, 96), (33, 50), (1, 7)]


def torchvisions(depth: int, aux: bool, num_classes: int = 21) -> nn.Module:
    """Its net with random weights, whose norms and scores matter."""
    torch.manual_seed(0)
    model = BUILDERS[depth](weights=None, weights_backbone=None, aux_loss=aux, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.7)  # 33 blocks add up: logits of about 1, not of thousands
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def small(aux: bool = True) -> FCNResNet:
    torch.manual_seed(0)
    return FCNResNet(3, aux=aux, backbone=ResNet(18, width=8, num_classes=None, output_stride=8)).eval()


@pytest.mark.parametrize(
    "depth, aux, count",
    [(50, False, 32_957_013), (50, True, 35_322_218), (101, False, 51_949_141), (101, True, 54_314_346)],
)
def test_parameter_counts_are_torchvisions(depth: int, aux: bool, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in fcn_resnet.paper(21, depth, aux).parameters()) == count
        assert sum(p.numel() for p in torchvisions(depth, aux).parameters()) == count


@pytest.mark.parametrize("depth, aux", [(50, True), (50, False), (101, True)])
@torch.no_grad()
def test_logits_are_torchvisions(depth: int, aux: bool) -> None:
    theirs = torchvisions(depth, aux)
    ours = from_torchvision(21, theirs.state_dict(), depth).eval()
    assert (ours.aux is not None) == aux
    for size in SIZES:
        images = torch.randn(1, 3, *size)
        expected = theirs(images)
        assert expected["out"].std() > 0.01
        torch.testing.assert_close(ours(images), expected["out"], atol=1e-5, rtol=0)
        if ours.aux is not None:
            scores = ours.aux(ours.backbone(images)[2])
            scores = F.interpolate(scores, size, mode="bilinear")
            torch.testing.assert_close(scores, expected["aux"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [50, 101])
def test_trained_weights_are_asked_of_torchvision_by_depth(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with torch.device("meta"):
        state_dict = torchvisions(depth, aux=True).state_dict()

    def get_state_dict(self: WeightsEnum, *args: object, **kwargs: object) -> dict[str, Tensor]:
        asked.append(str(self))
        return state_dict

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    with torch.device("meta"):
        model = from_torchvision(depth=depth)
    assert asked == [f"FCN_ResNet{depth}_Weights.COCO_WITH_VOC_LABELS_V1"]
    assert model.aux is not None and model.backbone.strides[-1] == 8


def test_weights_that_do_not_fit_are_refused() -> None:
    with torch.device("meta"):
        state_dict = torchvisions(50, aux=False).state_dict()
        with pytest.raises(InputError, match="score 21 classes, not 11: create the model with num_classes=21"):
            from_torchvision(11, state_dict, 50)
        with pytest.raises(InputError, match="not of this FCNResNet") as error:
            from_torchvision(21, state_dict, 101)
        assert "\n" not in str(error.value)
        with pytest.raises(InputError, match="no classifier.4.weight"):
            from_torchvision(21, torchvision.models.resnet50().state_dict(), 50)
        with pytest.raises(InputError, match="torchvision has no weights 'FCN_ResNet152"):
            from_torchvision(21, depth=152)


def test_loss_is_at_full_resolution_with_half_of_the_auxiliary_one() -> None:
    images, labels = torch.randn(2, 3, 41, 50), torch.zeros(2, 41, 50, dtype=torch.uint8)
    seen = []

    def criterion(logits: Tensor, given: Tensor) -> Tensor:
        assert given is labels
        seen.append(logits)
        return logits.sum() * 0 + 10 ** len(seen)

    model = small()
    assert model.loss(images, labels, criterion) == 10 + 0.5 * 100
    assert [logits.shape for logits in seen] == [(2, 3, 41, 50)] * 2
    torch.testing.assert_close(seen[0], model(images))
    seen.clear()
    assert small(aux=False).loss(images, labels, criterion) == 10


def test_auxiliary_head_learns_ten_times_as_fast() -> None:
    model = small()
    factors = {id(p): g["lr_factor"] for g in model.parameter_groups() for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert factors[id(parameter)] == (10 if name.startswith("aux.") else 1), name


def test_load_imagenet_fills_the_backbone() -> None:
    model, resnet = small(), ResNet(18, width=8)
    head = model.head[0].weight.clone()
    model.load_imagenet(resnet.state_dict())
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, resnet.state_dict()[name])
    assert torch.equal(model.head[0].weight, head)
    with pytest.raises(InputError, match="not of this ResNet"):
        model.load_imagenet(ResNet(18, width=4).state_dict())


def test_imagenet_weights_are_those_of_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(fcn_resnet, "load_torchvision", lambda net, weights: asked.append(weights))
    with torch.device("meta"):
        for depth in (50, 101):
            fcn_resnet.paper(21, depth).load_imagenet()
    assert asked == ["ResNet50_Weights.IMAGENET1K_V1", "ResNet101_Weights.IMAGENET1K_V1"]
