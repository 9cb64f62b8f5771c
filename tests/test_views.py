"""What a network is shown at test time: sizes, mirror images, windows."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn.data import StreetScenes
from seglearn.data.transforms import normalize
from seglearn.errors import InputError
from seglearn.inference import predict, predict_logits
from seglearn.views import STRIPE, View, rows_of, starts


@pytest.fixture
def net() -> nn.Module:
    """Sees 3 pixels in each direction."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.Conv2d(8, 5, 3, padding=1)).eval()


@pytest.fixture
def image() -> Tensor:
    return StreetScenes("val", size=(150, 211), length=1)[0][0]


def by_hand(net: nn.Module, image: Tensor, scale: float, flip: bool) -> Tensor:
    """Probabilities at the picture's size, in the plainest words."""
    height, width = image.shape[1:]
    batch = normalize(image)[None]
    if scale != 1:
        size = (round(height * scale), round(width * scale))
        batch = F.interpolate(batch, size=size, mode="bilinear", antialias=scale < 1)
    logits = net(batch.flip(3)).flip(3) if flip else net(batch)
    return F.interpolate(logits, size=(height, width), mode="bilinear")[0].softmax(0)


def test_the_plain_view_is_the_network(net: nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        expected = net(normalize(image)[None])[0]
    torch.testing.assert_close(predict_logits(net, image), expected)
    assert torch.equal(predict(net, image), expected.argmax(0).to(torch.uint8))


@torch.no_grad()
def test_one_size(net: nn.Module, image: Tensor) -> None:
    view = View(scales=(0.6,))
    torch.testing.assert_close(predict_logits(net, image, view).softmax(0), by_hand(net, image, 0.6, False))
    assert torch.equal(predict(net, image, view), predict_logits(net, image, view).argmax(0).to(torch.uint8))


@torch.no_grad()
def test_probabilities_are_averaged_over_sizes_and_mirror_images(net: nn.Module, image: Tensor) -> None:
    view = View(scales=(0.5, 1, 1.3), flip=True)
    expected = torch.stack([by_hand(net, image, s, f) for s in view.scales for f in (False, True)]).mean(0)
    torch.testing.assert_close(predict_logits(net, image, view).exp(), expected)
    assert torch.equal(predict(net, image, view), expected.argmax(0).to(torch.uint8))


def test_a_mirrored_picture_gets_the_mirrored_labels(net: nn.Module, image: Tensor) -> None:
    view = View(flip=True)
    torch.testing.assert_close(predict_logits(net, image.flip(2), view), predict_logits(net, image, view).flip(2))


@pytest.mark.parametrize("window", [(64, 64), (150, 70), (40, 211), (32, 45)])
def test_windows_equal_the_whole_where_the_network_sees_no_further_than_their_margin(
    window: tuple[int, int], net: nn.Module, image: Tensor
) -> None:
    view = View(window=window, margin=3)
    torch.testing.assert_close(predict_logits(net, image, view), predict_logits(net, image), atol=1e-5, rtol=0)
    cut_off = predict_logits(net, image, View(window=window))  # the paper's way averages over what is cut off, too
    assert (cut_off - predict_logits(net, image)).abs().max() > 1e-3


def test_a_picture_smaller_than_the_window_is_filled_up_with_the_mean(net: nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        expected = net(F.pad(normalize(image), (0, 89, 0, 50))[None])[0, :, :150, :211]
    torch.testing.assert_close(predict_logits(net, image, View(window=(200, 300))), expected)


@pytest.mark.parametrize("side", [*range(1, 20), 50, 97, 473, 500])
@pytest.mark.parametrize(("window", "overlap"), [(7, 1 / 3), (20, 0.5), (1, 0.0), (97, 0.1)])
def test_windows_reach_from_end_to_end_and_overlap(side: int, window: int, overlap: float) -> None:
    side = max(side, window)
    tops = starts(side, window, overlap)
    assert tops[0] == 0 and tops[-1] == side - window
    steps = [after - before for before, after in itertools.pairwise(tops)]
    assert all(1 <= step <= max(1, window * (1 - overlap)) for step in steps)
    assert len(tops) == 1 + math.ceil((side - window) / max(1, int(window * (1 - overlap))))


def test_stripes_of_a_resized_map_are_torch_s(image: Tensor) -> None:
    logits = torch.randn(4, 19, 31, generator=torch.Generator().manual_seed(0))
    for size in ((150, 211), (10, 7), (19, 31), (19, 64)):
        expected = F.interpolate(logits[None], size=size, mode="bilinear")[0]
        stripes = [rows_of(logits, size, top, min(top + STRIPE, size[0])) for top in range(0, size[0], STRIPE)]
        torch.testing.assert_close(torch.cat(stripes, 1), expected)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scales": ()}, "at least one factor"),
        ({"scales": (1.0, 0.0)}, "each above 0"),
        ({"overlap": 1.0}, "at least 0 and below 1"),
        ({"window": (30, 40), "margin": 6}, "windows of 30x40 overlap by a share of 0.333: give at most half"),
    ],
)
def test_refusals(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        View(**arguments)  # type: ignore[arg-type]
