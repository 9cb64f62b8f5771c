from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn

from seglearn.backbones import VGG, ResNet, load_torchvision, torchvision_state_dict
from seglearn.backbones.resnet import from_semseg
from seglearn.errors import InputError

VGG_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
NARROW = (4, 4, 8, 8, 8)


def pair(name: str) -> tuple[VGG | ResNet, nn.Module]:
    """Our net and torchvision's."""
    ours: VGG | ResNet
    if name.startswith("vgg"):
        ours = VGG(depths=VGG_DEPTHS[int(name[3:5])], batch_norm=name.endswith("_bn"))
    else:
        ours = ResNet(int(name[6:]))
    return ours, getattr(torchvision.models, name)()


def settle(model: nn.Module) -> nn.Module:
    """Norms as after some training, so that their order and their statistics matter; in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0, 0.1)
    return model.eval()


def stages_of(resnet: nn.Module, images: Tensor) -> list[Tensor]:
    """torchvision's four stage outputs."""
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    maps = []
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        x = layer(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    "name",
    ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]
    + ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
)
def test_state_dict_has_torchvisions_names_order_and_shapes(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = pair(name)
    shapes = [[(key, value.shape) for key, value in net.state_dict().items()] for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn", "resnet18", "resnet50"])
@torch.no_grad()
def test_same_weights_give_torchvisions_logits_both_ways(name: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 70, 65)
    with torch.device("meta"):
        ours, _ = pair(name)
    theirs = settle(getattr(torchvision.models, name)())
    ours.load_state_dict(theirs.state_dict(), assign=True)  # shares the storage: VGG-16 twice is a gigabyte
    ours.eval()
    expected = theirs(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours.classify(images), expected, atol=1e-5, rtol=1e-5)
    if isinstance(ours, VGG):
        torch.testing.assert_close(ours(images)[-1], theirs.features(images), atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(list(ours(images)), stages_of(theirs, images), atol=1e-5, rtol=1e-5)

    with torch.device("meta"):
        _, back = pair(name)
    back.load_state_dict(ours.state_dict(), assign=True)
    torch.testing.assert_close(back.eval()(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("output_stride, dilate", [(16, [False, False, True]), (8, [False, True, True])])
@torch.no_grad()
def test_dilated_resnet_is_torchvisions(output_stride: int, dilate: list[bool]) -> None:
    torch.manual_seed(0)
    theirs = settle(torchvision.models.resnet50(replace_stride_with_dilation=dilate))
    ours = ResNet(50, output_stride=output_stride)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 65, 97)
    torch.testing.assert_close(list(ours.eval()(images)), stages_of(theirs, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("size", [(64, 96), (65, 99)])
@pytest.mark.parametrize("name", ["vgg", "vgg_bn", "resnet18", "resnet50"])
@torch.no_grad()
def test_dilated_map_holds_the_strided_one(name: str, size: tuple[int, int], output_stride: int) -> None:
    """With the same weights, each cell of the strided map is found again in the dilated one."""
    torch.manual_seed(0)

    def net(stride: int) -> VGG | ResNet:
        if name.startswith("vgg"):
            # ceil_mode, because a strided pooling that rounds down would lose the last row of an odd map
            bn = name == "vgg_bn"
            return VGG(NARROW, batch_norm=bn, num_classes=None, output_stride=stride, ceil_mode=True)
        return ResNet(int(name[6:]), width=4, num_classes=None, output_stride=stride)

    strided = net(32)
    settle(strided)
    dilated = net(output_stride)
    dilated.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, *size)
    steps = [coarse // fine for coarse, fine in zip(strided.strides, dilated.strides, strict=True)]
    for coarse, fine, step in zip(strided(images), dilated.eval()(images), steps, strict=True):
        torch.testing.assert_close(fine[..., ::step, ::step], coarse, atol=1e-5, rtol=1e-4)
    assert steps[-1] == 32 // output_stride


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@torch.no_grad()
def test_channels_and_strides_are_those_of_the_maps(output_stride: int) -> None:
    for net in (
        VGG(NARROW, num_classes=None, output_stride=output_stride),
        ResNet(18, width=8, num_classes=None, output_stride=output_stride),
        ResNet(50, width=4, num_classes=None, output_stride=output_stride),
    ):
        maps = net(torch.zeros(1, 3, 64, 128))
        expected = [(1, c, 64 // s, 128 // s) for c, s in zip(net.channels, net.strides, strict=True)]
        assert [tuple(x.shape) for x in maps] == expected
        assert net.strides[-1] == output_stride


def test_laptop_width_of_resnet() -> None:
    with torch.device("meta"):
        net = ResNet(18, width=16, num_classes=None)
    assert net.channels == (16, 32, 64, 128)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(0.7e6, rel=0.02)


def test_options_that_do_not_exist_are_named() -> None:
    with pytest.raises(InputError, match="output_stride is 4: choose 32, 16 or 8"):
        VGG(output_stride=4)
    with pytest.raises(InputError, match="output_stride is 64"):
        ResNet(18, output_stride=64)
    with pytest.raises(InputError, match="depth is 20: choose one of 18, 34, 50, 101, 152"):
        ResNet(20)
    with pytest.raises(InputError, match="VGG has 5 stages"):
        VGG(widths=(64, 128))


def test_load_torchvision_takes_a_state_dict_with_or_without_a_classifier() -> None:
    for name, headless in (("resnet18", ResNet(18, num_classes=None)), ("vgg11", None)):
        if headless is None:
            theirs = torchvision.models.vgg11(num_classes=2, init_weights=False)
            headless = VGG(depths=VGG_DEPTHS[11], num_classes=None)
        else:
            theirs = getattr(torchvision.models, name)()
        load_torchvision(headless, theirs.state_dict())
        for key, value in headless.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key])


def test_load_torchvision_refuses_the_weights_of_another_net() -> None:
    with pytest.raises(InputError, match="not of this ResNet: .*fc.weight") as error:
        load_torchvision(ResNet(18, num_classes=10), torchvision.models.resnet18().state_dict())
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="not of this VGG: Missing key"):
        load_torchvision(VGG(NARROW, num_classes=None), torchvision.models.resnet18().state_dict())


def test_weights_come_through_torchvisions_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / weights.url.rsplit("/", 1)[1])
    for given in (weights, "ResNet18_Weights.IMAGENET1K_V1", "ResNet18_Weights.DEFAULT"):
        net = ResNet(18)
        load_torchvision(net, given)
        assert torch.equal(net.fc.weight, theirs.fc.weight)


def test_offline_says_so_in_one_sentence(tmp_path, monkeypatch) -> None:
    def no_network(url: str, *args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(InputError, match="VGG16_Weights.IMAGENET1K_V1 could not be downloaded") as error:
        torchvision_state_dict("VGG16_Weights.IMAGENET1K_V1")
    assert "connect to the network" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["VGG17_Weights.DEFAULT", "VGG16_Weights.NONE", "vgg16"])
def test_unknown_weights_are_named(name: str) -> None:
    with pytest.raises(InputError, match=f"no weights '{name}'"):
        torchvision_state_dict(name)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@torch.no_grad()
def test_deep_stem_is_mit_semsegs(output_stride: int) -> None:
    from mit_semseg.models import models as mit_semseg
    from mit_semseg.models.resnet import resnet50

    torch.manual_seed(0)
    theirs = settle(resnet50(pretrained=False))
    ours = ResNet(50, output_stride=output_stride, deep_stem=True)
    weights = {name: value for name, value in theirs.state_dict().items() if "_tmp" not in name and "_iter" not in name}
    ours.load_state_dict(from_semseg(weights))  # its synchronised norms keep three more numbers
    if output_stride == 32:
        encoder = mit_semseg.Resnet(theirs)
    else:
        encoder = mit_semseg.ResnetDilated(theirs, dilate_scale=output_stride)
    images = torch.randn(1, 3, 65, 97)
    expected = encoder.eval()(images, return_feature_maps=True)
    torch.testing.assert_close(list(ours.eval()(images)), expected, atol=1e-5, rtol=1e-4)


def test_deep_stem_sees_11_pixels_and_changes_three_more_layers() -> None:
    torch.manual_seed(0)
    net = ResNet(50, width=4, num_classes=None, deep_stem=True).eval()
    images = torch.randn(1, 3, 65, 65, requires_grad=True)
    x = net.conv1(images)
    assert x.shape == (1, 8, 33, 33)
    x[0, :, 16, 16].sum().backward()
    seen = images.grad[0].abs().sum((0, 1)).nonzero().flatten()
    assert (seen[0], seen[-1]) == (32 - 5, 32 + 5)
    plain = ResNet(50, width=4, num_classes=None).state_dict()
    other = {name for name, value in net.state_dict().items() if name not in plain or value.shape != plain[name].shape}
    assert {name for name in other if not name.startswith(("conv1.", "bn1."))} == {
        "layer1.0.conv1.weight",
        "layer1.0.downsample.0.weight",
    }


@torch.no_grad()
def test_dilate_first_is_pspnets_dilation() -> None:
    """Its authors' three lines, done to torchvision's net: 2 and 4 on every 3x3 convolution, strides 1."""
    torch.manual_seed(0)
    theirs = settle(torchvision.models.resnet50())
    for stage, dilation in ((theirs.layer3, 2), (theirs.layer4, 4)):
        for block in stage:
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
            block.conv2.stride = (1, 1)
        stage[0].downsample[0].stride = (1, 1)
    ours = ResNet(50, output_stride=8, dilate_first=True)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 65, 97)
    torch.testing.assert_close(list(ours.eval()(images)), stages_of(theirs, images), atol=1e-5, rtol=1e-5)


def rates(net: ResNet) -> list[int]:
    """Dilations of the last stage's 3x3 convolutions."""
    return [
        conv.dilation[0] for conv in net.layer4.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size[0] == 3
    ]


def test_multi_grid_multiplies_the_last_stages_rate() -> None:
    net = ResNet(101, width=4, num_classes=None, multi_grid=(1, 2, 4))
    assert rates(net) == [1, 2, 4]
    net.set_output_stride(16)
    assert rates(net) == [2, 4, 8]  # section 3.2.1 of DeepLab v3
    net.set_output_stride(8)
    assert rates(net) == [4, 8, 16]
    assert rates(ResNet(18, width=4, output_stride=16, multi_grid=(1, 2))) == [2, 2, 4, 4]


@pytest.mark.parametrize("depth, multi_grid", [(18, None), (50, None), (18, (1, 2)), (50, (1, 2, 4)), (50, (2, 2, 2))])
@torch.no_grad()
def test_output_stride_changes_in_place(depth: int, multi_grid: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    net = settle(ResNet(depth, width=4, num_classes=None, multi_grid=multi_grid))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(1, 3, 65, 97)
    maps = {}
    for stride in (32, 8, 16, 32):
        net.set_output_stride(stride)
        fresh = ResNet(depth, width=4, num_classes=None, multi_grid=multi_grid, output_stride=stride).eval()
        fresh.load_state_dict(net.state_dict())
        assert net.strides == fresh.strides
        maps[stride] = net(images)
        for ours, theirs in zip(maps[stride], fresh(images), strict=True):
            assert torch.equal(ours, theirs)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.testing.assert_close(maps[8][-1][..., ::2, ::2], maps[16][-1], atol=1e-5, rtol=1e-4)


def test_multi_grid_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"multi_grid is \(1, 2, 4\): give 2 rates"):
        ResNet(18, multi_grid=(1, 2, 4))
    net = ResNet(18, width=4)
    with pytest.raises(InputError, match="output_stride is 4"):
        net.set_output_stride(4)
