"""Augmentation: picture and label move together, and padding never invents a class."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from seglearn.data.transforms import MEAN_PIXEL, Augment, displacement, jitter_colours, normalize, read
from seglearn.errors import InputError
from seglearn.training.recipe import Recipe


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coded_pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A label of 16-pixel stripes both ways, and a picture whose grey value is the label times 20."""
    rows = torch.arange(height)[:, None] // 16
    columns = torch.arange(width)[None] // 16
    label = ((rows + 2 * columns) % 7 + 1).to(torch.uint8)
    return (label * 20)[None].repeat(3, 1, 1), label


# Eight colours at the corners of the RGB cube: no mixture of some is another one, nor is the padding's mean colour.
CORNERS = torch.tensor([[255 * (code >> bit & 1) for bit in range(3)] for code in range(8)], dtype=torch.uint8)


def coloured_pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A label of patches of 12x16 pixels and classes 1 to 8, and the picture that shows class k as colour k - 1."""
    code = (torch.arange(height)[:, None] // 12 * 3 + torch.arange(width)[None] // 16) % 8
    return CORNERS[code].permute(2, 0, 1).contiguous(), (code + 1).to(torch.uint8)


@st.composite
def augmentations(draw: st.DrawFn, **fixed: Any) -> Augment:
    """Any augmentation: each optional part on or off."""
    low = draw(st.floats(0.3, 1.5))
    settings = {
        "crop": draw(st.tuples(st.integers(1, 80), st.integers(1, 80))),
        "scale": (low, low * draw(st.floats(1, 2.5))),
        "flip": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "jitter": draw(st.sampled_from([0.0, 0.3])),
        "rotate": draw(st.sampled_from([0.0, 10.0, 180.0])),
        "elastic": draw(st.sampled_from([0.0, 4.0])),
        "blur": draw(st.sampled_from([0.0, 2.0])),
        "max_class_share": draw(st.sampled_from([1.0, 0.3])),
    }
    return Augment(ignore_index=255, **(settings | fixed))


SIZES = st.tuples(st.integers(8, 90), st.integers(8, 90))
SEEDS = st.integers(0, 10**6)


@settings(max_examples=100, deadline=None)
@given(size=SIZES, augment=augmentations(), seed=SEEDS)
def test_whatever_is_switched_on(size: tuple[int, int], augment: Augment, seed: int) -> None:
    """Size of the crop, no new class, filled in both or in none, the seed decides, the arguments stay as they are."""
    image, label = coloured_pair(*size)
    before = image.clone(), label.clone()
    out_image, out_label = augment(image, label, rng(seed))
    assert out_image.shape == (3, *augment.crop) and out_label.shape == augment.crop
    assert out_image.dtype == out_label.dtype == torch.uint8
    assert set(out_label.unique().tolist()) <= set(label.unique().tolist()) | {255}
    filled = out_label == 255  # the label itself has no void
    assert (out_image.permute(1, 2, 0)[filled] == torch.tensor(MEAN_PIXEL, dtype=torch.uint8)).all()
    if not (augment.rotate or augment.elastic):
        assert not filled.all()
        reach = [int(side / augment.scale[0]) + 1 for side in augment.crop]
        assert not filled.any() or reach[0] > size[0] or reach[1] > size[1]
    again = augment(image, label, rng(seed))
    assert torch.equal(again[0], out_image) and torch.equal(again[1], out_label)
    assert torch.equal(image, before[0]) and torch.equal(label, before[1])


@settings(max_examples=100, deadline=None)
@given(size=SIZES, augment=augmentations(jitter=0.0, blur=0.0), seed=SEEDS)
def test_colour_tells_the_label(size: tuple[int, int], augment: Augment, seed: int) -> None:
    """An unmixed colour comes from pixels of one class only, so the label has to be that class: no tolerance."""
    out_image, out_label = augment(*coloured_pair(*size), rng(seed))
    pure = ((out_image == 0) | (out_image == 255)).all(0)
    code = (out_image.long() // 255 * torch.tensor([1, 2, 4]).view(3, 1, 1)).sum(0)
    assert torch.equal(out_label.long()[pure], code[pure] + 1)


@settings(max_examples=60, deadline=None)
@given(size=SIZES, augment=augmentations(jitter=0.0, blur=0.0), seed=SEEDS)
def test_a_flip_mirrors_what_there_would_be_without(size: tuple[int, int], augment: Augment, seed: int) -> None:
    plain, flipped = (replace(augment, flip=flip)(*coloured_pair(*size), rng(seed)) for flip in (0.0, 1.0))
    assert torch.equal(flipped[0], plain[0].flip(2)) and torch.equal(flipped[1], plain[1].flip(1))


@pytest.mark.parametrize("options", [{}, {"rotate": 10}, {"elastic": 10}, {"rotate": 10, "elastic": 10}])
def test_most_colours_are_unmixed(options: dict[str, float]) -> None:
    """Otherwise the test above would say little."""
    augment = Augment((64, 64), 255, (1.0, 1.5), **options)
    for seed in range(10):
        out_image, out_label = augment(*coloured_pair(90, 90), rng(seed))
        pure = ((out_image == 0) | (out_image == 255)).all(0)
        assert pure[out_label != 255].float().mean() > 0.6


@given(augment=augmentations(rotate=0.0, elastic=0.0, blur=0.0, max_class_share=1.0), seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_what_is_off_draws_nothing(augment: Augment, seed: int) -> None:
    """Seven numbers a sample, whatever they are used for: a recipe without the later parts sees what it saw before."""
    used, expected = rng(seed), rng(seed)
    augment(*coded_pair(60, 80), used)
    torch.rand(7, generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())


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


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=rng(0))


@pytest.mark.parametrize("seed", range(4))
def test_rotation_equals_scipy(seed: int) -> None:
    """The whole picture at scale 1, turned about its centre, filled with void and the mean colour."""
    image, label = coded_pair(81, 101)
    image = F.gaussian_blur(noise(81, 101), [9, 9])
    out_image, out_label = Augment((81, 101), 255, (1, 1), flip=0, rotate=30)(image, label, rng(seed))
    generator = rng(seed)
    torch.rand(7, generator=generator)
    angle = 30 * (2 * torch.rand(1, generator=generator).item() - 1)
    turned = ndimage.rotate(label.numpy(), angle, reshape=False, order=0, mode="grid-constant", cval=255)
    assert (out_label.numpy() == turned).mean() > 0.995
    inside = ndimage.binary_erosion(turned != 255, iterations=2)
    for channel, out_channel in zip(image.numpy(), out_image.numpy(), strict=True):
        expected = ndimage.rotate(channel.astype(float), angle, reshape=False, order=1)
        assert abs(expected - out_channel)[inside].max() <= 1
    assert (out_label == 255).float().mean() > 0.01


@pytest.mark.parametrize(("low", "high"), [(20.0, 40.0), (0.0, 60.0)])
def test_reading_a_part_equals_scipy_on_the_whole(low: float, high: float) -> None:
    image, label = noise(60, 60), coloured_pair(60, 60)[1]
    positions = low + (high - low) * torch.rand(2, 30, 40, generator=rng(1))
    out_image, out_label, outside = read(image, label, positions, scale=1)
    points = positions.numpy() - 0.5  # scipy counts from pixel centres
    expected = ndimage.map_coordinates(label.numpy(), points, order=0, mode="nearest")
    assert (out_label.numpy() == expected).all() and not outside.any()
    for channel, out_channel in zip(image.numpy(), out_image.numpy(), strict=True):
        expected = ndimage.map_coordinates(channel.astype(float), points, order=1, mode="nearest")
        assert abs(expected - out_channel).max() <= 0.51


def coordinates() -> tuple[Tensor, Tensor]:
    """A picture whose first two channels are each pixel's own row and column: it shows where a pixel came from."""
    down, across = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    return torch.stack([down, across, across]).to(torch.uint8), torch.zeros(256, 256, dtype=torch.uint8)


def test_angles_cover_their_range() -> None:
    augment = Augment((101, 101), 255, (1, 1), flip=0, rotate=10)
    rows = torch.stack([augment(*coordinates(), rng(seed))[0][0, 50].float() for seed in range(200)])
    angles = torch.asin((rows[:, 90] - rows[:, 10]) / 80).rad2deg()
    assert -10.8 < angles.min() < -9 and 9 < angles.max() < 10.8
    assert abs(angles.mean()) < 1.3 and abs(angles.std() - 20 / 12**0.5) < 0.6  # uniform


def test_displacements_between_the_coarse_grid_equal_torch() -> None:
    vectors = torch.randn(2, 3, 3, generator=rng(0))
    between = displacement((33, 49), vectors)
    assert torch.allclose(
        between, interpolate(vectors[None], (33, 49), mode="bicubic", align_corners=True)[0], atol=1e-5
    )
    assert torch.allclose(between[:, ::16, ::24], vectors, atol=1e-6)  # the coarse points lie on pixels


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_elastic_deformation_moves_by_ten_pixels(scale: float) -> None:
    """U-Net: random displacements of 3x3 points, of standard deviation 10 pixels."""
    image, label = coordinates()
    plain = Augment((65, 65), 255, (scale, scale), flip=0)
    moves = []
    for seed in range(150):
        before, after = plain(image, label, rng(seed)), replace(plain, elastic=10)(image, label, rng(seed))
        points = (after[0].int() - before[0].int())[:2, ::32, ::32]  # pixels of the source
        moves.append(points[:, (after[1] != 255)[::32, ::32]].flatten() * scale)
    shift = torch.cat(moves)
    assert abs(shift.mean()) < 1.5 and abs(shift.std() - 10) < 1
    down, across = (torch.stack([move[index] for move in moves if len(move) == 18]) for index in (4, 13))
    assert abs(torch.corrcoef(torch.stack([down, across]))[0, 1]) < 0.25  # the centre's two components


def test_shrinking_and_turning_skips_no_pixels() -> None:
    """Shrunk white noise is grey: a reader that skips pixels would leave it as rough as it was."""
    image, label = noise(400, 400), torch.zeros(400, 400, dtype=torch.uint8)
    plain = Augment((100, 100), 255, (0.3, 0.3), flip=0)
    smooth, turned = (each(image, label, rng(1))[0].float().std() for each in (plain, replace(plain, rotate=10)))
    assert turned < 1.1 * smooth < 0.5 * image.float().std()


@pytest.mark.parametrize("seed", range(3))
def test_blur_equals_torchvision(seed: int) -> None:
    image, label = noise(60, 70), coded_pair(60, 70)[1]
    plain = Augment((50, 50), 255, (1, 1))
    blurred = replace(plain, blur=2)(image, label, rng(seed))
    sharp = plain(image, label, rng(seed))
    generator = rng(seed)
    torch.rand(7, generator=generator)
    sigma = 2 * torch.rand(1, generator=generator).item()
    expected = F.gaussian_blur(sharp[0].float(), [21, 21], [sigma, sigma])
    assert (blurred[0] - expected)[:, 10:-10, 10:-10].abs().max() <= 0.6
    assert torch.equal(blurred[1], sharp[1])


def test_crops_that_one_class_fills_are_drawn_again() -> None:
    """A place is refused with probability p, so all ten are with p^10: mmsegmentation's rule, counted."""
    image, label = coded_pair(90, 240)
    label = (torch.arange(240) > 200).to(torch.uint8).expand(90, 240).clone()
    label[::2] = 255  # void counts neither as a class nor in the total
    plain = Augment((40, 60), 255, (1, 1))

    def largest(augment: Augment, seed: int) -> float:
        counts = augment(image, label, rng(seed))[1].flatten().bincount(minlength=256)[:255]
        return float(counts.max() / counts.sum())

    before = torch.tensor([largest(plain, seed) for seed in range(400)])
    after = torch.tensor([largest(replace(plain, max_class_share=0.75), seed) for seed in range(400)])
    refused = float((before >= 0.75).float().mean())
    assert 0.75 < refused < 0.9
    spread = (refused**10 * (1 - refused**10) / 400) ** 0.5
    assert abs((after >= 0.75).float().mean() - refused**10) < 4 * spread
    assert torch.equal(after[before < 0.75], before[before < 0.75])  # a good first place stays


@pytest.mark.parametrize("value", [0, 255])
def test_a_label_of_one_value_ends_the_search(value: int) -> None:
    label = torch.full((60, 60), value, dtype=torch.uint8)
    out = Augment((40, 40), 255, (1, 1), max_class_share=0.75)(coded_pair(60, 60)[0], label, rng(0))
    assert (out[1] == value).all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"crop": (0, 4)}, "crop is (0, 4): give height and width in pixels, each at least 1."),
        ({"scale": (2.0, 1.0)}, "scale is (2.0, 1.0): give a range low, high with 0 < low <= high."),
        ({"flip": 2}, "flip is 2: give a probability, at least 0 (off), at most 1."),
        ({"jitter": 1.5}, "jitter is 1.5: give a share, at least 0 (off), at most 1."),
        ({"rotate": 270}, "rotate is 270: give degrees, at least 0 (off), at most 180."),
        ({"elastic": -1}, "elastic is -1: give pixels, at least 0 (off)."),
        ({"blur": float("nan")}, "blur is nan: give pixels, at least 0 (off)."),
        ({"max_class_share": 0.0}, "max_class_share is 0.0: give a share above 0, at most 1 (off)."),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        Augment(**({"crop": (8, 8), "ignore_index": 255} | settings))
    assert str(refused.value) == sentence
    with pytest.raises(InputError) as refused:  # and by a recipe, before it loads anything
        replace(Recipe(), **settings).check()
    assert str(refused.value) == sentence


def test_picture_and_label_of_two_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"the picture is \[3, 60, 80\] and its label \[80, 60\]: give \[3, H, W\]"):
        Augment((8, 8), 255)(coded_pair(60, 80)[0], coded_pair(80, 60)[1], rng(0))


def test_a_recipe_hands_on_every_setting() -> None:
    settings: dict[str, Any] = {"crop": (32, 48), "scale": (0.7, 1.1), "flip": 0.1, "jitter": 0.3}
    settings |= {"rotate": 10.0, "elastic": 5.0, "blur": 1.1, "max_class_share": 0.75}
    assert Recipe(**settings).augment(11) == Augment(ignore_index=11, **settings)
    assert Recipe().augment(11) == Augment((192, 256), 11, (0.5, 2.0), 0.5, 0.2)  # the later parts are off
