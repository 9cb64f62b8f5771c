"""PSPNet against the numbers of the paper's release, mit_semseg and segmentation_models_pytorch."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.backbones import ResNet
from seglearn.errors import InputError
from seglearn.models import pspnet
from seglearn.models.fcn_resnet import FCNHead
from seglearn.models.pspnet import STEM, AverageBins, PSPNet, PyramidPooling, upsample

Net = TypeVar("Net", bound=nn.Module)


def small(aux: bool = True) -> PSPNet:
    torch.manual_seed(0)
    backbone = ResNet(18, width=8, num_classes=None, output_stride=8, deep_stem=True, dilate_first=True)
    return settle(PSPNet(3, aux=aux, backbone=backbone))


def settle(model: Net) -> Net:
    """Norms as after some training, so that their statistics matter; in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.7)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize(
    "depth, aux, count",
    [
        (50, True, 49_081_578),
        (50, False, 46_716_373),
        (101, True, 68_073_706),
        (101, False, 65_708_501),
        (152, True, 83_717_354),
        (152, False, 81_352_149),
    ],
)
def test_parameter_counts_are_those_of_the_authors_code(depth: int, aux: bool, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in pspnet.paper(21, depth, aux).parameters()) == count


def test_parameter_counts_of_the_parts() -> None:
    with torch.device("meta"):
        model = pspnet.paper(21, 50)
        assert sum(p.numel() for p in model.ppm.parameters()) == 4_198_400
        assert sum(p.numel() for p in model.head.parameters()) == 18_886_165
        assert model.aux is not None and sum(p.numel() for p in model.aux.parameters()) == 2_365_205
        assert sum(p.numel() for p in pspnet.paper(11, 50).parameters()) == 49_073_878


@pytest.mark.parametrize("side, cells", [(473, 60), (713, 90)])
@torch.no_grad()
def test_crops_of_the_paper(side: int, cells: int) -> None:
    shapes = {}
    with torch.device("meta"):
        model = pspnet.paper(21).eval()
        for name in ("ppm", "head"):
            model.get_submodule(name).register_forward_hook(
                lambda _, inputs, output, name=name: shapes.update({name: (inputs[0].shape, output.shape)})
            )
        logits = model(torch.empty(1, 3, side, side))
    assert shapes["ppm"] == ((1, 2048, cells, cells), (1, 4096, cells, cells))
    assert shapes["head"][1] == (1, 21, cells, cells)
    assert logits.shape == (1, 21, side, side)


def test_every_3x3_of_the_papers_last_stages_is_dilated() -> None:
    with torch.device("meta"):
        backbone = pspnet.paper(21).backbone
    for stage, dilation in ((backbone.layer2, 1), (backbone.layer3, 2), (backbone.layer4, 4)):
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert {conv.dilation for conv in convs} == {(dilation, dilation)}


@pytest.mark.parametrize("cells", [60, 90])
def test_bins_are_the_releases_windows(cells: int) -> None:
    """Caffe's poolings at 473 and 713 pixels: windows of 60, 30, 20, 10 and of 90, 45, 30, 15."""
    x = torch.randn(1, 2, cells, cells, generator=torch.Generator().manual_seed(0))
    for bins in (1, 2, 3, 6):
        expected = F.avg_pool2d(x, cells // bins, cells // bins)
        torch.testing.assert_close(AverageBins(bins)(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(60, 60), (46, 61), (7, 13), (5, 4), (1, 1), (1, 9)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_bins_are_pytorchs_adaptive_pooling(bins: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(AverageBins(bins)(x), F.adaptive_avg_pool2d(x, bins), atol=1e-6, rtol=1e-5)


def test_pyramid_pooling_is_smps() -> None:
    """Same bins, reduction and upsampling. It has no norm in the first level, so ours is made to do nothing."""
    from segmentation_models_pytorch.decoders.pspnet import decoder

    torch.manual_seed(0)
    ours = settle(PyramidPooling(64))
    theirs = decoder.PSPModule(64, (1, 2, 3, 6)).eval()
    for level, block in zip(ours.levels, theirs.blocks, strict=True):
        _, conv, norm, _ = level.children()
        their_conv, their_norm, _ = block.pool[1].children()
        their_conv.weight.data = conv.weight.data
        if block.pool_size == 1:
            norm.reset_parameters()
            nn.init.constant_(norm.running_var, 1 - norm.eps)
            nn.init.zeros_(their_conv.bias)
        else:
            their_norm.load_state_dict(norm.state_dict())
    x = torch.randn(2, 64, 13, 18)
    result = ours(x)
    assert result.shape == (2, 128, 13, 18)
    assert torch.equal(result[:, :64], x)
    torch.testing.assert_close(torch.cat([result[:, 64:], x], 1), theirs(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_scores_are_mit_semsegs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ResNet-50 with the deep stem, its decoder with pyramid pooling and auxiliary head: before the last resize.

    It differs in three things. The first 3x3 convolution of a stage keeps the dilation of the stage before, which our
    backbone can do as well; the auxiliary head has 512 channels; and the levels are upsampled at half pixels, which
    is made corner-aligned here.
    """
    from mit_semseg.models import models as theirs
    from mit_semseg.models.resnet import resnet50

    torch.manual_seed(0)
    model = settle(PSPNet(21, backbone=ResNet(50, num_classes=None, output_stride=8, deep_stem=True)))
    model.aux = FCNHead(1024, 512, 21).eval()
    for head in (model.head, model.aux):
        nn.init.normal_(head[-1].weight, std=0.1)
    names = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2", "conv1.6": "conv3"}
    names |= {"bn1": "bn3"} | {f"layer{i}": f"layer{i}" for i in range(1, 5)}
    encoder = theirs.ResnetDilated(resnet50(pretrained=False), dilate_scale=8).eval()
    fill(encoder, model.backbone, names)
    decoder = theirs.PPMDeepsup(num_class=21, fc_dim=2048).eval()
    names = {f"ppm.levels.{i}": f"ppm.{i}" for i in range(4)}
    names |= {f"head.{i}": f"conv_last.{i}" for i in (0, 1, 4)}
    names |= {"aux.0": "cbr_deepsup.0", "aux.1": "cbr_deepsup.1", "aux.4": "conv_last_deepsup"}
    fill(decoder, model, names, skip="backbone.")

    images = torch.randn(1, 3, 97, 129)
    resize = F.interpolate
    with monkeypatch.context() as patch:
        patch.setattr(F, "interpolate", lambda *args, **kwargs: resize(*args, **kwargs | {"align_corners": True}))
        expected, expected_aux = decoder(encoder(images, return_feature_maps=True))
    *_, res4, res5 = model.backbone(images)
    scores, scores_aux = model.head(model.ppm(res5)), model.aux(res4)
    assert scores.shape == (1, 21, 13, 17) and scores.std() > 0.1 and scores_aux.std() > 0.1
    torch.testing.assert_close(scores.log_softmax(1), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores_aux.log_softmax(1), expected_aux, atol=1e-4, rtol=0)


def fill(theirs: nn.Module, ours: nn.Module, names: dict[str, str], skip: str = "-") -> None:
    """Carry weights over; nothing of ours may be left out, of theirs only what its synchronised norms add."""
    weights = {}
    for name, value in ours.state_dict().items():
        if not name.startswith(skip):
            prefix = next(prefix for prefix in names if name.startswith(f"{prefix}."))
            weights[names[prefix] + name.removeprefix(prefix)] = value
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and all("_tmp" in name or "_iter" in name for name in missing)


def test_cells_are_drawn_on_every_eighth_pixel() -> None:
    scores = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    logits = upsample(scores, torch.empty(1, 3, 33, 25))
    assert logits.shape == (1, 2, 33, 25)
    torch.testing.assert_close(logits[..., ::8, ::8], scores)
    torch.testing.assert_close(upsample(scores, torch.empty(1, 3, 29, 20)), logits[..., :29, :20])


def test_loss_is_at_full_resolution_with_0_4_of_the_auxiliary_one() -> None:
    images, labels = torch.randn(2, 3, 41, 50), torch.zeros(2, 41, 50, dtype=torch.uint8)
    seen = []

    def criterion(logits: Tensor, given: Tensor) -> Tensor:
        assert given is labels
        seen.append(logits)
        return logits.sum() * 0 + 10 ** len(seen)

    model = small()
    assert model.loss(images, labels, criterion) == 10 + 0.4 * 100
    main, auxiliary = seen
    torch.testing.assert_close(main, model(images))
    res4 = model.backbone(F.pad(images, (0, 7)))[2]  # 41 x 57 pixels
    expected = F.interpolate(model.aux(res4), (41, 57), mode="bilinear", align_corners=True)  # type: ignore[misc]
    torch.testing.assert_close(auxiliary, expected[..., :50])
    seen.clear()
    assert small(aux=False).loss(images, labels, criterion) == 10


def test_new_layers_learn_ten_times_as_fast() -> None:
    model = small()
    factors = {id(p): g["lr_factor"] for g in model.parameter_groups() for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert factors[id(parameter)] == (1 if name.startswith("backbone.") else 10), name


def test_one_image_cannot_train() -> None:
    model, images = small().train(), torch.randn(1, 3, 41, 50)
    with pytest.raises(InputError, match="train with at least 2 images") as error:
        model(images)
    assert "\n" not in str(error.value)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert model(images).shape == (1, 3, 41, 50)  # frozen norms need no second image
    with pytest.raises(InputError, match="train with at least 2 images"):
        small().train().loss(images, torch.zeros(1, 41, 50), F.cross_entropy)


def test_load_imagenet_keeps_the_stem() -> None:
    """torchvision's ResNet has another one; what reads its 128 channels keeps its own start too."""
    for depth in (18, 50):
        model = PSPNet(3, backbone=ResNet(depth, width=8, num_classes=None, output_stride=8, deep_stem=True))
        resnet = ResNet(depth, width=8)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_imagenet(settle(resnet).state_dict())
        for name, value in model.backbone.state_dict().items():
            kept = name.startswith(STEM)
            source = before[f"backbone.{name}"] if kept else resnet.state_dict()[name]
            assert torch.equal(value, source), name
        assert torch.equal(model.head[0].weight, before["head.0.weight"])


def test_load_imagenet_takes_a_resnet_with_this_stem_as_a_whole() -> None:
    ours = settle(ResNet(50, width=8, deep_stem=True))
    names = {
        "conv1.0": "conv1",
        "conv1.1": "bn1",
        "conv1.3": "conv2",
        "conv1.4": "bn2",
        "conv1.6": "conv3",
        "bn1": "bn3",
    }
    authors = {rename(name, names): value for name, value in ours.state_dict().items()}
    for weights in (ours.state_dict(), authors):
        model = PSPNet(3, backbone=ResNet(50, width=8, num_classes=None, output_stride=8, deep_stem=True))
        model.load_imagenet(weights)
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(value, ours.state_dict()[name]), name


def rename(name: str, names: dict[str, str]) -> str:
    layer, _, rest = name.rpartition(".")
    return f"{names.get(layer, layer)}.{rest}"


@pytest.mark.parametrize("change", [lambda w: {}, lambda w: w | {"layer2.0.conv1.weight": torch.zeros(1)}])
def test_load_imagenet_refuses_other_weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    weights = dict(ResNet(18, width=8).state_dict())
    with pytest.raises(InputError, match="not of this ResNet"):
        small().load_imagenet(change(weights))


def test_imagenet_weights_are_those_of_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def state_dict(name: str) -> dict[str, Tensor]:
        asked.append(name)
        return {}

    monkeypatch.setattr(pspnet, "torchvision_state_dict", state_dict)
    with torch.device("meta"):
        for depth in (50, 101):
            with pytest.raises(InputError):
                pspnet.paper(21, depth).load_imagenet()
    assert asked == ["ResNet50_Weights.IMAGENET1K_V1", "ResNet101_Weights.IMAGENET1K_V1"]
