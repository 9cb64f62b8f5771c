"""DeepLab v3 against the numbers of the paper, torchvision and segmentation_models_pytorch."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from seglearn.backbones import ResNet
from seglearn.errors import InputError
from seglearn.models import deeplab_v3
from seglearn.models.deeplab_v3 import ASPP, Cascade, DeepLabV3, ImagePooling, from_torchvision

BUILDERS = {50: deeplabv3_resnet50, 101: deeplabv3_resnet101}
SIZES = [(64, 96), (33, 50), (1, 7)]


def settle(model: nn.Module) -> None:
    """Norms as after some training, so that their statistics matter; in evaluation mode."""
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.7)  # 33 blocks add up: logits of about 1, not of thousands
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0, 0.1)


def torchvisions(depth: int, aux: bool, num_classes: int = 21) -> nn.Module:
    """Its net with random weights."""
    torch.manual_seed(0)
    model = BUILDERS[depth](weights=None, weights_backbone=None, aux_loss=aux, num_classes=num_classes)
    settle(model)
    return model


def small(layout: str = "paper", aux: bool = False, cascade: int | None = None) -> DeepLabV3:
    torch.manual_seed(0)
    backbone = ResNet(50, width=4, num_classes=None, multi_grid=(1, 2, 4) if layout == "paper" else None)
    model = DeepLabV3(3, layout=layout, backbone=backbone, width=16, aux=aux, cascade=cascade)
    settle(model)
    return model


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert count(deeplab_v3.paper(21)) == 58_040_661  # as in kazuto1011/deeplab-pytorch
        assert count(DeepLabV3(21, multi_grid=(1, 1, 1))) == 58_040_661  # rates have no weights
        assert count(ASPP(2048)) == 15_535_104


@pytest.mark.parametrize(
    "depth, aux, expected",
    [(50, False, 39_638_869), (50, True, 42_004_074), (101, False, 58_630_997), (101, True, 60_996_202)],
)
def test_parameter_counts_are_torchvisions(depth: int, aux: bool, expected: int) -> None:
    with torch.device("meta"):
        assert count(torchvisions(depth, aux)) == expected
        assert count(DeepLabV3(21, depth, "torchvision", aux=aux)) == expected


def test_crop_of_the_paper_at_both_output_strides() -> None:
    with torch.device("meta"):
        model = deeplab_v3.paper(21).eval()
        for stride, cells in ((16, 33), (8, 65)):
            model.output_stride = stride
            assert model.output_stride == stride
            assert model.backbone(torch.empty(1, 3, 513, 513))[-1].shape == (1, 2048, cells, cells)
            assert model(torch.empty(1, 3, 513, 513)).shape == (1, 21, 513, 513)


def rates(module: nn.Module) -> Iterator[int]:
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
            assert conv.stride == (1, 1) and conv.dilation == conv.padding and conv.dilation[0] == conv.dilation[1]
            yield conv.dilation[0]


def test_rates_double_from_16_to_8() -> None:
    with torch.device("meta"):
        model = deeplab_v3.paper(21)
        assert list(rates(model.context)) == [6, 12, 18]
        assert list(rates(model.backbone.layer4)) == [2, 4, 8]
        model.output_stride = 8
        assert list(rates(model.context)) == [12, 24, 36]
        assert list(rates(model.backbone.layer4)) == [4, 8, 16]
        model.output_stride = 16
        assert list(rates(model.context)) == [6, 12, 18]
        with pytest.raises(InputError, match="output_stride is 4"):
            model.output_stride = 4


def test_rates_of_the_cascade_double_from_block_to_block() -> None:
    with torch.device("meta"):
        model = deeplab_v3.paper(21, multi_grid=(1, 1, 1), cascade=3)
        assert list(rates(model.backbone.layer4)) == [2, 2, 2]
        assert list(rates(model.context)) == [4, 4, 4, 8, 8, 8, 16, 16, 16]  # block5, block6, block7
        model = deeplab_v3.paper(21, multi_grid=(1, 2, 1), cascade=1)
        model.output_stride = 8
        assert list(rates(model.context)) == [8, 16, 8]
        block4 = count(model.backbone.layer4[1]) * 3
        assert count(model.context) == block4
        assert count(deeplab_v3.paper(21, cascade=0).context) == 0


@pytest.mark.parametrize("cascade", [None, 2])
@torch.no_grad()
def test_output_stride_8_holds_what_16_computed(cascade: int | None) -> None:
    """Every second cell, borders included: features, cascade and atrous branches; the image's average differs."""
    model, images = small(cascade=cascade), torch.randn(1, 3, 97, 129)

    def maps() -> dict[str, Tensor]:
        res5 = model.backbone(images)[-1]
        found = {"res5": res5}
        if isinstance(model.context, ASPP):
            found |= {f"branch {i}": branch(res5) for i, branch in enumerate(model.context.branches)}
        else:
            found["cascade"] = model.context(res5)
        return found

    coarse = maps()
    model.output_stride = 8
    fine = maps()
    assert coarse["res5"].shape[-2:] == (7, 9) and fine["res5"].shape[-2:] == (13, 17)
    average = coarse.pop("branch 4", None)
    for name, value in coarse.items():
        assert value.std() > 0
        torch.testing.assert_close(fine[name][..., ::2, ::2], value, atol=1e-4, rtol=1e-4, msg=name)
    if average is not None:
        assert not torch.allclose(fine["branch 4"][..., ::2, ::2], average, atol=1e-4)


@pytest.mark.parametrize("layout", ["paper", "torchvision"])
@torch.no_grad()
def test_output_stride_is_a_setting_of_the_same_weights(layout: str) -> None:
    model, images = small(layout), torch.randn(1, 3, 70, 101)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    logits = {}
    for stride in (16, 8, 32, 16):
        model.output_stride = stride
        fresh = small(layout)
        fresh.output_stride = stride
        fresh.load_state_dict(model.state_dict())
        logits[stride] = model(images)
        assert logits[stride].shape == (1, 3, 70, 101)
        assert torch.equal(logits[stride], fresh(images))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not torch.allclose(logits[8], logits[16])


@torch.no_grad()
def test_logits_of_the_paper_align_corners() -> None:
    """Cell i is drawn on pixel 16 i, and what was padded is cut off."""
    model, images = small(), torch.randn(1, 3, 49, 65)
    scores = model.score(model.context(model.backbone(images)[-1]))
    assert scores.shape == (1, 3, 4, 5)
    torch.testing.assert_close(model(images)[..., ::16, ::16], scores)
    cut = images[..., :40, :60]
    torch.testing.assert_close(model(cut), model(F.pad(cut, (0, 5, 0, 9)))[..., :40, :60])


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
            scores = ours.upsample(ours.aux(ours.backbone(images)[2]), images)
            torch.testing.assert_close(scores, expected["aux"], atol=1e-5, rtol=0)


def test_torchvisions_dropout() -> None:
    with torch.device("meta"):
        theirs, ours = torchvisions(50, aux=True), DeepLabV3(21, 50, "torchvision", aux=True)
    shares = [[m.p for m in model.modules() if isinstance(m, nn.Dropout)] for model in (ours, theirs)]
    assert shares[0] == shares[1] == [0.5, 0.1]


def test_aspp_is_smps() -> None:
    from segmentation_models_pytorch.decoders.deeplabv3 import decoder

    torch.manual_seed(0)
    ours = ASPP(48, width=32)
    settle(ours)
    theirs = decoder.ASPP(48, 32, (6, 12, 18), separable=False, dropout=0.5).eval()
    theirs.load_state_dict({name.replace("branches", "convs"): value for name, value in ours.state_dict().items()})
    x = torch.randn(2, 48, 33, 21)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_a_rate_beyond_the_map_leaves_a_1x1_convolution() -> None:
    """Why image pooling is there (section 3.3): where all taps but one fall into the padding, rates see nothing."""
    aspp = ASPP(4, rates=(6, 12, 18), width=4)
    conv, *_ = aspp.branches[3].children()
    assert isinstance(conv, nn.Conv2d)
    x = torch.randn(1, 4, 18, 18)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight[:, :, 1:2, 1:2]), atol=1e-5, rtol=1e-5)


def test_image_pooling_is_one_value_everywhere() -> None:
    pooling = ImagePooling(6, 4).eval()
    x = torch.randn(2, 6, 5, 7)
    result = pooling(x)
    assert result.shape == (2, 4, 5, 7)
    torch.testing.assert_close(result, pooling(x.mean((2, 3), keepdim=True)).expand(2, 4, 5, 7))


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
    assert asked == [f"DeepLabV3_ResNet{depth}_Weights.COCO_WITH_VOC_LABELS_V1"]
    assert model.aux is not None and model.output_stride == 8
    assert list(rates(model.backbone.layer4)) == [2, 4, 4]


def test_weights_that_do_not_fit_are_refused() -> None:
    with torch.device("meta"):
        state_dict = torchvisions(50, aux=False).state_dict()
        with pytest.raises(InputError, match="score 21 classes, not 11: create the model with num_classes=21"):
            from_torchvision(11, state_dict, 50)
        with pytest.raises(InputError, match="not of this DeepLabV3") as error:
            from_torchvision(21, state_dict, 101)
        assert "\n" not in str(error.value)
        with pytest.raises(InputError, match="torchvision has no weights 'DeepLabV3_ResNet152"):
            from_torchvision(21, depth=152)
        with pytest.raises(InputError, match="layout is 'tv': choose 'paper' or 'torchvision'"):
            DeepLabV3(21, layout="tv")


@pytest.mark.parametrize("aux", [False, True])
def test_loss_is_at_full_resolution(aux: bool) -> None:
    images, labels = torch.randn(2, 3, 41, 50), torch.zeros(2, 41, 50, dtype=torch.uint8)
    seen = []

    def criterion(logits: Tensor, given: Tensor) -> Tensor:
        assert given is labels  # intact
        seen.append(logits)
        return logits.sum() * 0 + 10 ** len(seen)

    model = small("torchvision" if aux else "paper", aux)
    assert model.loss(images, labels, criterion) == 10 + 0.5 * 100 * aux
    assert [logits.shape for logits in seen] == [(2, 3, 41, 50)] * (1 + aux)
    torch.testing.assert_close(seen[0], model(images))


def test_only_torchvisions_auxiliary_head_learns_faster() -> None:
    assert {group["lr_factor"] for group in small().parameter_groups()} == {1}
    model = small("torchvision", aux=True)
    factors = {id(p): g["lr_factor"] for g in model.parameter_groups() for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert factors[id(parameter)] == (10 if name.startswith("aux.") else 1), name


def test_one_image_cannot_train() -> None:
    model, images = small().train(), torch.randn(1, 3, 41, 50)
    with pytest.raises(InputError, match="train with at least 2 images") as error:
        model(images)
    assert "\n" not in str(error.value)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert model(images).shape == (1, 3, 41, 50)  # frozen norms, as in the paper's second stage
    assert small(cascade=1).train()(images).shape == (1, 3, 41, 50)  # nothing is pooled


def test_load_imagenet_fills_the_backbone() -> None:
    model, resnet = small(), ResNet(50, width=4)
    before = model.context.state_dict()
    model.load_imagenet(resnet.state_dict())
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, resnet.state_dict()[name])
    assert all(torch.equal(value, before[name]) for name, value in model.context.state_dict().items())
    with pytest.raises(InputError, match="not of this ResNet"):
        model.load_imagenet(ResNet(18, width=4).state_dict())


def test_imagenet_weights_are_those_of_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(deeplab_v3, "load_torchvision", lambda net, weights: asked.append(weights))
    with torch.device("meta"):
        for depth in (50, 101):
            deeplab_v3.paper(21, depth).load_imagenet()
    assert asked == ["ResNet50_Weights.IMAGENET1K_V1", "ResNet101_Weights.IMAGENET1K_V1"]


def test_cascade_trains() -> None:
    cascade = Cascade(16, blocks=2)
    cascade(torch.randn(2, 16, 9, 9)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in cascade.parameters())
