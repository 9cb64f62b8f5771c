"""N4 against the paper's table of layers, and its dense form against one window per pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seglearn import losses
from seglearn.errors import InputError
from seglearn.models import patch
from seglearn.models.patch import PatchClassifier

LADDERS = {95: (4, 5, 4, 4), 47: (4, 5, 4)}


def small(window: int = 47, num_classes: int = 3, **options: object) -> PatchClassifier:
    """One of the two ladders, with so few channels that it runs in no time; norms that do something."""
    torch.manual_seed(0)
    model = PatchClassifier(num_classes, 2, kernels=LADDERS[window], width=6, hidden=8, **options)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def test_parameter_count() -> None:
    model = patch.paper(2, in_channels=1)
    counts = [sum(p.numel() for p in layer.parameters()) for layer in [*model.stages, model.fc, model.out]]
    assert counts == [816, 57_648, 36_912, 36_912, 86_600, 402]
    assert sum(p.numel() for p in model.parameters()) == 219_290


@pytest.mark.parametrize(
    "model, sides",
    [(patch.paper(2, 1), [92, 46, 42, 21, 18, 9, 6, 3]), (patch.laptop(2), [44, 22, 18, 9, 6, 3])],
)
def test_sides_of_the_maps(model: PatchClassifier, sides: list[int]) -> None:
    seen: list[int] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0].shape[-1], output.shape[-1]]))
    model.fc.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0].shape[-1], output.shape[-1]]))
    channels = model.stages[0].conv.in_channels
    assert model.classify(torch.zeros(2, channels, model.window, model.window)).shape == (2, 2)
    assert seen == [model.window, *sides, 1]


@torch.no_grad()
def test_a_window_goes_through_the_table_of_layers() -> None:
    """The same weights in torch's own layers, the fully connected ones as such."""
    model = small(95)
    layers: list[nn.Module] = []
    for stage in model.stages:
        conv = nn.Conv2d(stage.conv.in_channels, 6, stage.conv.kernel_size[0])
        conv.load_state_dict(stage.conv.state_dict())
        layers += [conv, nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(6 * 3 * 3, 8), nn.ReLU(), nn.Linear(8, 3)]
    plain = nn.Sequential(*layers)
    for linear, conv in ((plain[-3], model.fc.conv), (plain[-1], model.out)):
        linear.weight.copy_(conv.weight.flatten(1))
        linear.bias.copy_(conv.bias)
    windows = torch.randn(4, 2, 95, 95)
    torch.testing.assert_close(model.classify(windows), plain(windows), atol=1e-6, rtol=1e-5)


def window_by_window(model: PatchClassifier, image: Tensor) -> Tensor:
    """One window around each pixel of `[c, H, W]`, cut from a picture mirrored by numpy: `[C, H, W]`."""
    margin = model.window // 2
    around = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="reflect"))
    _, height, width = image.shape
    cut = [around[:, y : y + model.window, x : x + model.window] for y in range(height) for x in range(width)]
    logits = torch.cat([model.classify(torch.stack(cut[i : i + 64])) for i in range(0, len(cut), 64)])
    return logits.T.unflatten(1, (height, width))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (17, 12), (3, 61)])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("window", [95, 47])
@torch.no_grad()
def test_all_pixels_at_once_equal_one_window_per_pixel(window: int, batch_norm: bool, height: int, width: int) -> None:
    model = small(window, batch_norm=batch_norm)
    images = torch.randn(2, 2, height, width)
    expected = torch.stack([window_by_window(model, image) for image in images])
    logits = model(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def count(model: nn.Module, *shape: int, windows: bool) -> int:
    """Multiply-adds that torch counts, two operations each."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        inputs = torch.empty(shape)
        model.classify(inputs) if windows else model(inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("size", ["paper", "laptop"])
def test_multiply_adds(size: str) -> None:
    with torch.device("meta"):
        model = patch.paper(2, 1) if size == "paper" else patch.laptop(11)
    channels, side = model.stages[0].conv.in_channels, model.window
    for height, width in ((1, 1), (45, 60), (512, 512)):
        by_window, at_once = model.multiply_adds(height, width)
        assert by_window == height * width * count(model, 1, channels, side, side, windows=True)
        assert at_once == count(model, 1, channels, height, width, windows=False)
    if size == "paper":  # the figures of the docstring
        assert by_window == pytest.approx(31.8e12, rel=2e-3)
        assert at_once == pytest.approx(0.067e12, rel=5e-3)
        assert int(by_window / at_once) == 475


class Drawn:
    """A criterion that notes what it is given; the first channel of a picture holds the labels."""

    def __init__(self, model: PatchClassifier) -> None:
        self.centres: Tensor
        self.labels: Tensor
        self.shapes: tuple[torch.Size, torch.Size]
        model.stages[0].register_forward_hook(self.note)

    def note(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        middle = inputs[0].shape[-1] // 2
        self.centres = inputs[0][:, :, middle, middle]

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.labels, self.shapes = labels, (logits.shape, labels.shape)
        return F.cross_entropy(logits, labels.long())


@pytest.mark.parametrize("void", [3, 255])
def test_loss_draws_windows_around_labelled_pixels(void: int) -> None:
    model = small(windows=300)
    labels = torch.randint(0, 3, (2, 21, 30), dtype=torch.uint8)
    labels[:, 5:9] = void
    place = torch.arange(2 * 21 * 30).reshape(2, 21, 30)
    images = torch.stack([labels.float(), place.float()], 1)
    drawn = Drawn(model)
    model.loss(images, labels, drawn)
    assert drawn.shapes == ((600, 3, 1, 1), (600, 1, 1))
    assert torch.equal(drawn.centres[:, 0], drawn.labels[:, 0, 0].float())  # the label is the centre's
    assert void not in drawn.labels
    places = drawn.centres[:, 1].long()
    assert (labels.flatten()[places] == drawn.labels[:, 0, 0]).all()
    # 600 of 1020 labelled pixels with replacement: 1020 (1 - exp(-600 / 1020)) = 454 different ones are expected
    assert 400 < len(places.unique()) < 510
    assert {0, 1} == set((places // (21 * 30)).tolist())


def test_loss_reaches_the_only_labelled_pixels_even_in_a_corner() -> None:
    model = small(windows=50)
    labels = torch.full((2, 10, 12), 255)
    labels[0, 0, 0], labels[1, 9, 11] = 1, 2
    drawn = Drawn(model)
    model.loss(torch.stack([labels.float()] * 2, 1), labels, drawn)
    assert set(drawn.labels.flatten().tolist()) == {1, 2}


def test_loss_of_a_batch_of_void_is_zero() -> None:
    model = small(batch_norm=True).train()
    labels = torch.full((2, 10, 12), 255, dtype=torch.uint8)
    loss = model.loss(torch.randn(2, 2, 10, 12), labels, lambda logits, y: losses.cross_entropy(logits, y, 255))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_seed_fixes_the_windows() -> None:
    model, images, labels = small(), torch.randn(1, 2, 40, 40), torch.randint(0, 3, (1, 40, 40))
    values = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        values.append(model.loss(images, labels, F.cross_entropy).item())
    assert values[0] == values[2] != values[1]


def test_a_batch_of_one_pixel_trains() -> None:
    model = patch.laptop(3).train()
    model.loss(
        torch.randn(1, 3, 1, 1), torch.ones(1, 1, 1, dtype=torch.uint8), lambda x, y: F.cross_entropy(x, y.long())
    )
    assert model(torch.randn(1, 3, 1, 1)).shape == (1, 3, 1, 1)


def test_windows_of_another_side_are_refused() -> None:
    with pytest.raises(InputError, match="windows are 95x94, but this net sees 95x95"):
        small(95).classify(torch.zeros(1, 2, 95, 94))
    with pytest.raises(InputError, match=r"kernels \(5, 4\) see windows of even side"):
        PatchClassifier(2, kernels=(5, 4))


def test_one_rate_for_all() -> None:
    factors = [(g["lr_factor"], g["weight_decay_factor"], len(g["params"])) for g in patch.paper(2).parameter_groups()]
    assert sorted(factors) == [(1, 0, 6), (1, 1, 6)]
