"""U-Net against the paper's figure 1, against the same figure in plain function calls, and against another's code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.errors import InputError
from seglearn.models import unet
from seglearn.models.unet import UNet


def small(padded: bool = False, batch_norm: bool = False, in_channels: int = 2) -> UNet:
    """All five levels, with so few channels that it runs in no time; biases and norms that do something."""
    torch.manual_seed(0)
    model = UNet(3, in_channels, padded, widths=(4, 6, 8, 10, 12), batch_norm=batch_norm).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("classes, channels, count", [(2, 1, 31_030_658), (21, 3, 31_033_045), (11, 3, 31_032_395)])
def test_parameter_counts(classes: int, channels: int, count: int, padded: bool) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in unet.paper(classes, channels, padded).parameters()) == count


def test_batch_norm_adds_two_parameters_a_channel() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(21, batch_norm=True).parameters()) == 31_044_821


def test_the_23_convolutions_of_the_paper() -> None:
    with torch.device("meta"):
        model = unet.paper(2, 1)
    kernels = [(type(m), m.kernel_size[0]) for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(kernels) == 23
    assert kernels.count((nn.Conv2d, 3)) == 18
    assert kernels.count((nn.ConvTranspose2d, 2)) == 4
    assert kernels[-1] == (nn.Conv2d, 1)


def test_sides_and_crops_of_figure_1() -> None:
    with torch.device("meta"):
        model = unet.paper(2, 1)
        sides: dict[str, int] = {}
        inputs: dict[str, tuple[int, int]] = {}

        def note(name: str):  # type: ignore[no-untyped-def]
            def hook(layer: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
                sides[name] = output.shape[-1]
                inputs[name] = (given[0].shape[1], given[0].shape[-1])

            return hook

        for name, layer in model.named_children():
            layer.register_forward_hook(note(name))
        assert model.valid(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    assert [sides[f"down{level}"] for level in (1, 2, 3, 4)] == [568, 280, 136, 64]
    assert sides["bottom"] == 28
    assert [sides[f"upconv{level}"] for level in (4, 3, 2, 1)] == [56, 104, 200, 392]
    assert [inputs[f"up{level}"] for level in (4, 3, 2, 1)] == [(1024, 56), (512, 104), (256, 200), (128, 392)]
    assert [sides[f"up{level}"] for level in (4, 3, 2, 1)] == [52, 100, 196, 388]
    cropped = [(sides[f"down{level}"] - sides[f"upconv{level}"]) // 2 for level in (1, 2, 3, 4)]
    assert cropped == [88, 40, 16, 4]


def test_the_smallest_input_of_the_bare_net() -> None:
    with torch.device("meta"):
        assert unet.paper(2, 1).valid(torch.empty(1, 1, 188, 204)).shape == (1, 2, 4, 20)


@pytest.mark.parametrize("height, width, side", [(572, 571, 571), (172, 188, 172), (188, 189, 189), (192, 572, 192)])
def test_sizes_that_do_not_fit_the_bare_net_are_refused(height: int, width: int, side: int) -> None:
    with pytest.raises(InputError, match=f"side of {side} pixels.*188, 204, 220"):
        small().valid(torch.zeros(1, 2, height, width))


def figure_1(weights: dict[str, Tensor], x: Tensor, padded: bool) -> Tensor:
    """The paper's figure once more, in function calls; weights in the order of the figure."""
    layers = iter(zip(list(weights.values())[::2], list(weights.values())[1::2], strict=True))

    def pair(x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.conv2d(x, *next(layers), padding=1 if padded else 0).relu()
        return x

    level1 = pair(x)
    level2 = pair(F.max_pool2d(level1, 2))
    level3 = pair(F.max_pool2d(level2, 2))
    level4 = pair(F.max_pool2d(level3, 2))
    x = pair(F.max_pool2d(level4, 2))
    for skip in (level4, level3, level2, level1):
        x = F.conv_transpose2d(x, *next(layers), stride=2)
        side = [(a - b) // 2 for a, b in zip(skip.shape[2:], x.shape[2:], strict=True)]
        middle = skip[:, :, side[0] : side[0] + x.shape[2], side[1] : side[1] + x.shape[3]]
        x = pair(torch.cat((middle, x), dim=1))
    return F.conv2d(x, *next(layers))


@torch.no_grad()
def test_the_bare_net_is_figure_1() -> None:
    model, images = small(), torch.randn(2, 2, 204, 236)
    expected = figure_1(model.state_dict(), images, padded=False)
    assert expected.shape == (2, 3, 20, 52) and expected.std() > 0.01
    torch.testing.assert_close(model.valid(images), expected, atol=1e-5, rtol=1e-5)


def reflected(images: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    return torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), mode="reflect"))


@pytest.mark.parametrize("height, width, below, right", [(1, 1, 3, 3), (20, 37, 0, 15), (45, 61, 7, 7), (64, 5, 4, 15)])
@torch.no_grad()
def test_any_image_is_one_mirrored_tile(height: int, width: int, below: int, right: int) -> None:
    model, images = small(), torch.randn(1, 2, height, width)
    tile = reflected(images, 92, 92 + below, 92, 92 + right)
    expected = figure_1(model.state_dict(), tile, padded=False)[:, :, :height, :width]
    assert expected.shape == (1, 3, height, width)
    shapes: list[torch.Size] = []
    model.down1.register_forward_hook(lambda _, inputs, output: shapes.append(inputs[0].shape))
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    assert shapes == [tile.shape]  # and no larger


@pytest.mark.parametrize(
    "height, width, below, right", [(1, 1, 15, 15), (48, 64, 0, 0), (45, 61, 3, 3), (17, 5, 15, 11)]
)
@torch.no_grad()
def test_the_padded_net_is_figure_1_on_multiples_of_16(height: int, width: int, below: int, right: int) -> None:
    model, images = small(padded=True), torch.randn(2, 2, height, width)
    tile = reflected(images, 0, below, 0, right)
    expected = figure_1(model.state_dict(), tile, padded=True)[:, :, :height, :width]
    assert expected.std() > 0
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_padded_net_equals_segmentation_models_pytorch() -> None:
    """Its Unet on VGG-13 is ours, of 512 channels at the bottom, up to what the two leave out or add.

    - It enlarges by repetition, without weights. Our up-convolution does both: with the same matrix in all four
      taps it repeats, and the matrix can be multiplied into the next convolution of the other net.
    - It has no skip at full resolution: there, our weights on the skip are 0.
    - It has two convolutions more at the bottom, which are set to the identity, and a last kernel of 3x3, not 1x1.
    """
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    theirs = smp.Unet(
        "vgg13", encoder_weights=None, encoder_depth=4, decoder_channels=(512, 256, 128, 64), classes=5,
        decoder_use_norm=False,
    ).eval()  # fmt: skip
    ours = UNet(5, padded=True, widths=(64, 128, 256, 512, 512)).eval()

    encoder = [m for m in theirs.encoder.features if isinstance(m, nn.Conv2d)]
    way_down = [ours.down1, ours.down2, ours.down3, ours.down4, ours.bottom]
    mine = [m for pair in way_down for m in pair if isinstance(m, nn.Conv2d)]
    for a, b in zip(encoder, mine, strict=True):
        nn.init.normal_(b.bias, 0, 0.1)
        a.load_state_dict(b.state_dict())
    for conv in (m for m in theirs.decoder.center.modules() if isinstance(m, nn.Conv2d)):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)

    way_up = [(ours.upconv4, ours.up4), (ours.upconv3, ours.up3), (ours.upconv2, ours.up2), (ours.upconv1, ours.up1)]
    for block, (upconv, pair) in zip(theirs.decoder.blocks, way_up, strict=True):
        upconv.weight.copy_(upconv.weight[:, :, :1, :1].expand_as(upconv.weight))  # [in, out, 2, 2]
        first, second = (m for m in pair if isinstance(m, nn.Conv2d))
        skip, up = first.weight.split([first.in_channels - upconv.out_channels, upconv.out_channels], 1)
        if upconv is ours.upconv1:
            skip.zero_()
            skip = skip[:, :0]
        folded = torch.einsum("ouij,cu->ocij", up, upconv.weight[:, :, 0, 0])
        block.conv1[0].weight.copy_(torch.cat([folded, skip], 1))
        block.conv1[0].bias.copy_(first.bias)
        block.conv2[0].load_state_dict(second.state_dict())

    head = theirs.segmentation_head[0]
    head.weight.zero_()[:, :, 1:2, 1:2] = ours.out.weight
    head.bias.copy_(ours.out.bias)

    images = torch.randn(1, 3, 48, 64)
    expected = theirs(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("height, width", [(1, 1), (20, 24), (36, 37), (75, 91), (101, 16)])
@pytest.mark.parametrize("tile", [20, 52, 388])
@torch.no_grad()
def test_tiles_give_the_logits_of_the_whole(tile: int, height: int, width: int, batch_norm: bool) -> None:
    model, images = small(batch_norm=batch_norm).double(), torch.randn(1, 2, height, width, dtype=torch.float64)
    whole = model(images)
    if height * width > 1:
        assert whole.std() > 0.01
    windows: list[torch.Size] = []
    model.down1.register_forward_hook(lambda _, inputs, output: windows.append(inputs[0].shape))
    torch.testing.assert_close(model.overlap_tile(images, tile), whole, atol=1e-10, rtol=1e-10)
    assert set(windows) == {(1, 2, tile + 184, tile + 184)}  # however large the image


@pytest.mark.parametrize("tile", [4, 388 - 8, 384, 0, -12])
def test_tiles_that_do_not_align_are_refused(tile: int) -> None:
    with pytest.raises(InputError, match=f"tile is {tile}: .*from 20 on"):
        small().overlap_tile(torch.zeros(1, 2, 30, 30), tile)


def test_a_padded_net_has_no_tiles() -> None:
    model = small(padded=True)
    for call in (model.valid, model.overlap_tile):
        with pytest.raises(InputError, match="has padded convolutions"):
            call(torch.zeros(1, 2, 188, 188))


@torch.no_grad()
def test_logits_far_inside_do_not_depend_on_where_the_image_was_cut() -> None:
    """The net that returns rows 96, 97 ... reads from row 96 - 92 on; what returns rows 80 to 95, from row -12 on."""
    model, images = small().double(), torch.randn(1, 2, 240, 256, dtype=torch.float64)
    whole, crop = model(images)[..., 16:, 32:], model(images[..., 16:, 32:])
    assert whole.shape == crop.shape == (1, 3, 224, 224)
    difference = (whole - crop).abs().amax((0, 1))
    assert difference[96:, 96:].max() < 1e-10
    assert difference[80:96, 96:].max() > 1e-6 and difference[96:, 80:96].max() > 1e-6


def test_deviation_of_the_initial_weights() -> None:
    """sqrt(2 / N), N the inputs of one neuron: 576 for 3x3 on 64 channels; an up-convolution sees one position."""
    torch.manual_seed(0)
    model = UNet(2, 1, widths=(64, 128, 32, 32, 256))
    expected = {"down1.2": 2 / 576, "down2.0": 2 / 576, "up1.0": 2 / (9 * 128), "upconv4": 2 / 256, "upconv1": 2 / 128}
    for name, variance in expected.items():
        layer = model.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(variance**0.5, rel=0.02), name
        assert not layer.bias.any()


def test_dropout_ends_the_way_down() -> None:
    model = small()
    model.train()
    assert model.dropout.p == 0.5
    drops: list[int] = []
    zeros: list[float] = []

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        drops.append(inputs[0].shape[1])
        zeros.append(((output == 0) & (inputs[0] != 0)).sum().item() / (inputs[0] != 0).sum().item())

    model.dropout.register_forward_hook(note)
    model(torch.randn(2, 2, 60, 60))
    assert drops == [10, 12]  # channels of levels 4 and 5
    assert zeros == pytest.approx([0.5, 0.5], abs=0.1)


def test_the_loss_is_taken_at_full_resolution() -> None:
    for padded in (False, True):
        model, images, labels = small(padded), torch.randn(2, 2, 33, 50), torch.randint(0, 3, (2, 33, 50))
        expected = F.cross_entropy(model(images), labels)
        assert model.loss(images, labels, F.cross_entropy).item() == pytest.approx(expected.item(), rel=1e-6)


def test_one_image_too_small_for_batch_norm_is_refused() -> None:
    model = small(padded=True, batch_norm=True).train()
    with pytest.raises(InputError, match="One image of 16x9 pixels.*at least 2 images, or with a side above 16"):
        model(torch.randn(1, 2, 16, 9))
    assert model(torch.randn(1, 2, 17, 1)).shape == (1, 3, 17, 1)
    assert model(torch.randn(2, 2, 1, 1)).shape == (2, 3, 1, 1)
    assert model.eval()(torch.randn(1, 2, 1, 1)).shape == (1, 3, 1, 1)
    assert small(batch_norm=True).train()(torch.randn(1, 2, 1, 1)).shape == (1, 3, 1, 1)


def test_one_rate_for_all() -> None:
    with torch.device("meta"):
        groups = unet.paper(2, 1).parameter_groups()
    factors = sorted((g["lr_factor"], g["weight_decay_factor"], len(g["params"])) for g in groups)
    assert factors == [(1, 0, 23), (1, 1, 23)]
