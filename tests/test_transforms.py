"""Augmentation: picture and label move together, and padding never invents a class."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from seglearn.data.transforms import MEAN_PIXEL, Augment, jitter_colours, normalize


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coded_pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A label of 16-pixel stripes both ways, and a picture whose grey value is the label times 20."""
    rows = torch.arange(height)[:, None] // 16
    columns = torch.arange(width)[None] // 16
    label = ((rows + 2 * columns) % 7 + 1).to(torch.uint8)
    return (label * 20)[None].repeat(3, 1, 1), label


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    crop=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    low=st.floats(0.3, 1.5),
    ratio=st.floats(1, 2.5),
    seed=st.integers(0, 10**6),
)
def test_shape_classes_and_padding(
    height: int, width: int, crop: tuple[int, int], low: float, ratio: float, seed: int
) -> None:
    image, label = coded_pair(height, width)
    augment = Augment(crop, ignore_index=255, scale=(low, low * ratio), jitter=0.0)
    out_image, out_label = augment(image, label, rng(seed))
    assert out_image.shape == (3, *crop) and out_label.shape == crop
    assert out_image.dtype == out_label.dtype == torch.uint8
    assert set(out_label.unique().tolist()) <= set(label.unique().tolist()) | {255}
    padded = out_label == 255
    assert (out_image.permute(1, 2, 0)[padded] == torch.tensor(MEAN_PIXEL, dtype=torch.uint8)).all()
    assert not padded.all()


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_picture_and_label_stay_aligned(scale: float, flip: float) -> None:
    image, label = coded_pair(96, 128)
    out_image, out_label = Augment((64, 80), 255, (scale, scale), flip)(image, label, rng(3))
    kept = out_label != 255
    # away from the borders between stripes, the grey value still is the label times 20
    agree = ((out_image[0].int() - out_label.int() * 20).abs() <= 2)[kept]
    assert agree.float().mean() > (0.99 if scale == 1 else 0.75)
    shifted = ((out_image[0, :, 4:].int() - out_label[:, :-4].int() * 20).abs() <= 2)[kept[:, :-4]]
    assert agree.float().mean() > shifted.float().mean() + 0.05  # 4 pixels beside, it agrees less


def test_scale_one_is_a_plain_crop() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=rng(0))
    label = torch.randint(0, 11, (40, 50), dtype=torch.uint8, generator=rng(1))
    out_image, out_label = Augment((20, 30), 11, (1, 1), flip=0)(image, label, rng(5))
    places = [
        (top, left)
        for top in range(21)
        for left in range(21)
        if torch.equal(out_label, label[top : top + 20, left : left + 30])
    ]
    assert len(places) == 1
    top, left = places[0]
    assert torch.equal(out_image, image[:, top : top + 20, left : left + 30])


def test_crop_first_equals_resize_first() -> None:
    """Where the window's borders fall on whole pixels, the two orders give the same picture inside."""
    image = (torch.arange(64 * 64).view(1, 64, 64) % 251).to(torch.uint8).repeat(3, 1, 1)
    image = F.gaussian_blur(image, [9, 9])
    _, label = coded_pair(64, 64)
    augment = Augment((64, 64), 255, (2.0, 2.0), flip=0)
    out_image, out_label = augment(image, label, rng(1))
    whole = F.resize(image, [128, 128])
    whole_label = F.resize(label[None], [128, 128], F.InterpolationMode.NEAREST_EXACT)[0]
    # the window is 32 source pixels long and starts on one of them: find it by the label, compare the picture
    starts = [
        (top, left)
        for top in range(0, 65, 2)
        for left in range(0, 65, 2)
        if torch.equal(out_label, whole_label[top : top + 64, left : left + 64])
        and (out_image.int() - whole[:, top : top + 64, left : left + 64].int()).abs()[:, 2:-2, 2:-2].max() <= 1
    ]
    assert starts


def test_same_seed_same_output_other_seed_other_output() -> None:
    image, label = coded_pair(60, 80)
    image = (image.int() + torch.randint(0, 30, image.shape, generator=rng(9))).to(torch.uint8)
    augment = Augment((48, 64), 255, jitter=0.3)
    first, again, other = (
        augment(image, label, rng(1)),
        augment(image, label, rng(1)),
        augment(image, label, rng(2)),
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_scales_and_positions_cover_their_range() -> None:
    """The label's pixel value is its column: its range in a crop tells the scale, its least value the position."""
    label = torch.arange(200, dtype=torch.uint8).repeat(200, 1)
    image = label[None].repeat(3, 1, 1)
    augment = Augment((50, 50), 255, (0.5, 2.0), flip=0)
    spans, starts = [], []
    for seed in range(300):
        row = augment(image, label, rng(seed))[1][25].int()
        spans.append(50 / (int(row[-1] - row[0]) + 1))
        starts.append(int(row[0]) / (200 - 50 / spans[-1]))
    assert min(spans) < 0.6 and max(spans) > 1.9
    assert abs(torch.tensor(spans).mean() - 1.25) < 0.08  # uniform between 0.5 and 2
    assert min(starts) < 0.05 and max(starts) > 0.95 and abs(torch.tensor(starts).mean() - 0.5) < 0.06


def test_label_is_untouched_by_jitter() -> None:
    image, label = coded_pair(60, 80)
    plain = Augment((48, 64), 255)(image, label, rng(4))
    jittered = Augment((48, 64), 255, jitter=0.5)(image, label, rng(4))
    assert torch.equal(plain[1], jittered[1]) and not torch.equal(plain[0], jittered[0])


def test_normalize() -> None:
    image = torch.tensor(MEAN_PIXEL, dtype=torch.uint8).view(3, 1, 1).repeat(1, 2, 2)
    assert normalize(image).abs().max() < 0.01  # what is padded becomes about 0
    white = normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert torch.allclose(white, torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))


@pytest.mark.parametrize("factors", [(1.2, 1.0, 1.0), (1.0, 0.8, 1.0), (1.0, 1.0, 1.3), (0.9, 1.2, 0.8)])
def test_colour_jitter_equals_torchvision(factors: tuple[float, float, float]) -> None:
    image = torch.randint(60, 180, (3, 20, 30), dtype=torch.uint8, generator=rng(0))
    brightness, contrast, saturation = factors
    expected = F.adjust_contrast(F.adjust_brightness(image.float() / 255, brightness), contrast)
    expected = F.adjust_saturation(expected, saturation) * 255
    assert (jitter_colours(image, *factors) - expected).abs().max() <= 0.6  # rounded once, at the end
