"""Mean field: pydensecrf's marginals, the exact ones, and what is refused.

Where pydensecrf is not installed (extra `crf`; it has no build for Python 3.13), its tests are skipped.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from seglearn.crf import DenseCRF, Lattice, dense, dense_crf, exact_crf
from seglearn.data import StreetScenes
from seglearn.errors import InputError

MODES = ["symmetric", "before", "after", "none"]
SIZE = (96, 128)


@cache
def image(name: str) -> Tensor:
    """uint8 [3, 96, 128]. The number of pixels is a multiple of 4: pydensecrf pads to one, with black pixels that make
    lattice points of their own."""
    if name == "scene":
        return StreetScenes("val", size=SIZE, length=1)[0][0]
    picture = {"astronaut": skimage.data.astronaut, "chelsea": skimage.data.chelsea, "coffee": skimage.data.coffee}[
        name
    ]
    return torch.from_numpy(picture()[60 : 60 + SIZE[0], 120 : 120 + SIZE[1]].copy()).permute(2, 0, 1)


def network_like(classes: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    """Probabilities [C, H, W] as smooth as those of a network of stride 8."""
    rng = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(1, classes, size[0] // 8, size[1] // 8, generator=rng)
    return interpolate(scores, size, mode="bilinear")[0].softmax(0)


def pydensecrf(
    probabilities: Tensor,
    image: Tensor,
    iterations: int,
    smoothness: dict,
    appearance: dict,
    normalization: str = "symmetric",
) -> Tensor:
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    utils = pytest.importorskip("pydensecrf.utils")
    mode = {
        "symmetric": densecrf.NORMALIZE_SYMMETRIC,
        "before": densecrf.NORMALIZE_BEFORE,
        "after": densecrf.NORMALIZE_AFTER,
        "none": densecrf.NO_NORMALIZATION,
    }[normalization]
    classes, height, width = probabilities.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(probabilities.numpy())))
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    crf.addPairwiseGaussian(**smoothness, normalization=mode)
    crf.addPairwiseBilateral(**appearance, rgbim=pixels, normalization=mode)
    return torch.from_numpy(np.array(crf.inference(iterations))).view(classes, height, width)


def assert_equal_marginals(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours.argmax(0) == theirs.argmax(0)).double().mean() >= 0.999


@pytest.mark.parametrize("iterations", [1, 5, 10])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [2, 12, 21])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "scene"])
def test_marginals_equal_pydensecrf(name: str, classes: int, mode: str, iterations: int) -> None:
    """Without normalization messages are sums, not means: weights are divided by how much there is to sum.

    With weights of 3 and 10 the sums reach 10 000, float32 rounds them to 0.001, and the marginals of either library
    follow the order of its additions.
    """
    w1, w2 = (3.0, 10.0) if mode != "none" else (3.0 / 50, 10.0 / 1000)
    settings = {"smoothness": {"sxy": 3, "compat": w1}, "appearance": {"sxy": 80, "srgb": 13, "compat": w2}}
    probabilities, picture = network_like(classes), image(name)
    ours = dense_crf(probabilities, picture, iterations, **settings, normalization=mode)  # type: ignore[arg-type]
    assert_equal_marginals(ours, pydensecrf(probabilities, picture, iterations, **settings, normalization=mode))
    assert (ours - probabilities).abs().max() > 0.1  # something has happened
    torch.testing.assert_close(ours.sum(0), torch.ones(SIZE))


# what papers use: DeepLab v1's search, v2's release, CRF-RNN's bandwidths; and one of each deviation
@pytest.mark.parametrize(
    ("smoothness", "appearance"),
    [
        ({"sxy": 3, "compat": 3}, {"sxy": 49, "srgb": 5, "compat": 4}),
        ({"sxy": 1, "compat": 3}, {"sxy": 67, "srgb": 3, "compat": 4}),
        ({"sxy": 3, "compat": 3}, {"sxy": 160, "srgb": 3, "compat": 5}),
        ({"sxy": (2, 5), "compat": 1}, {"sxy": (30, 60), "srgb": (5, 13, 20), "compat": 6}),
    ],
)
def test_other_bandwidths_equal_pydensecrf(smoothness: dict, appearance: dict) -> None:
    probabilities, picture = network_like(5), image("coffee")
    ours = dense_crf(probabilities, picture, 10, smoothness, appearance)
    assert_equal_marginals(ours, pydensecrf(probabilities, picture, 10, smoothness, appearance))


@pytest.mark.parametrize("shape", [(4,), (4, 4)])
def test_compatibilities_equal_pydensecrf(shape: tuple[int, ...]) -> None:
    """A vector is an energy of agreeing, a matrix one of each pair; only its symmetric part counts."""
    compat = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 3
    probabilities, picture = network_like(4), image("chelsea")
    theirs = pydensecrf(
        probabilities, picture, 5, {"sxy": 3, "compat": compat}, {"sxy": 80, "srgb": 13, "compat": compat}
    )
    given = torch.from_numpy(compat)
    ours = dense_crf(probabilities, picture, 5, {"compat": given}, {"compat": given})
    assert_equal_marginals(ours, theirs)


def test_potts_in_three_ways() -> None:
    probabilities, picture = network_like(4), image("chelsea")
    expected = dense_crf(probabilities, picture, 5, {"compat": 2}, {"compat": 5})
    for cost in (-torch.ones(4), 1 - torch.eye(4)):
        found = dense_crf(probabilities, picture, 5, {"compat": 2 * cost}, {"compat": 5 * cost})
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_close_to_the_exact_marginals(mode: str) -> None:
    """In the mean. Pixels near a tie are far off, with pydensecrf as here: `benchmarks/crf.py` prints how far."""
    picture, probabilities = image("coffee")[:, :32, :32], network_like(4, (32, 32))
    w = {"smoothness": {"compat": 3.0}, "appearance": {"sxy": 20.0, "compat": 5.0}}
    if mode == "none":
        w = {"smoothness": {"compat": 0.05}, "appearance": {"sxy": 20.0, "compat": 0.01}}
    ours = dense_crf(probabilities, picture, 1, **w, normalization=mode)  # type: ignore[arg-type]
    exact, without = (
        exact_crf(probabilities, picture, 1, **w, normalization=mode, self_message=kept)  # type: ignore[arg-type]
        for kept in (True, False)
    )
    error = (ours - exact).abs().mean()
    assert error < (0.01 if mode != "none" else 0.05)
    assert error < (exact - probabilities).abs().mean() / 5
    assert (exact - without).abs().max() > 1e-4


def test_exact_mean_field_of_two_pixels() -> None:
    """By hand: without self-message and normalization, each hears only the other."""
    picture = torch.zeros(3, 1, 2, dtype=torch.uint8)
    p = torch.tensor([[[0.8, 0.3]], [[0.2, 0.7]]], dtype=torch.float64)
    found = exact_crf(p, picture, 1, {"sxy": 1.0, "compat": 2.0}, None, "none", self_message=False)
    likelihood = p * (2 * np.exp(-0.5) * p.flip(2)).exp()
    torch.testing.assert_close(found, likelihood / likelihood.sum(0))


def test_history_batches_and_reuse() -> None:
    pictures = torch.stack([image("astronaut"), image("scene")])
    batch = torch.stack([network_like(3, seed=seed) for seed in (0, 1)])
    expected = torch.stack([dense_crf(p, i, 4) for p, i in zip(batch, pictures, strict=True)])
    assert torch.equal(dense_crf(batch, pictures, 4), expected)
    shared = dense_crf(batch, pictures[0], 4)
    assert torch.equal(shared[0], expected[0])
    history = dense_crf(batch, pictures, 4, history=True)
    assert history.shape == (5, 2, 3, *SIZE) and torch.equal(history[-1], expected)
    torch.testing.assert_close(history[0], batch, atol=1e-4, rtol=0)
    torch.testing.assert_close(history[2], dense_crf(batch, pictures, 2))
    crf = DenseCRF(pictures[0])
    assert torch.equal(crf(batch[0], 4), expected[0]) and torch.equal(crf(batch[1], 4), shared[1])
    crf.costs = [1.0, 2.0]
    assert torch.equal(crf(batch[0], 4), dense_crf(batch[0], pictures[0], 4, {"compat": 1.0}, {"compat": 2.0}))


def test_lattices_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One over positions for all images of a size, one over colours an image, however many maps it serves."""
    dimensions = []

    def counted(features: Tensor, *arguments: object) -> Lattice:
        dimensions.append(features.shape[1])
        return Lattice(features, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dense, "Lattice", counted)
    dense.position_lattice.cache_clear()
    batch = torch.stack([network_like(3, seed=seed) for seed in range(3)])
    dense_crf(batch, image("scene"), 1)
    assert dimensions == [2, 5]
    dense_crf(batch, torch.stack([image("scene")] * 3), 1)
    assert dimensions == [2, 5, 5, 5, 5]
    crf = DenseCRF(image("coffee"))
    for probabilities in batch:
        crf(probabilities, 1)
    assert dimensions == [2, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("only", ["smoothness", "appearance"])
def test_one_kernel_alone(only: str) -> None:
    other = {"smoothness": "appearance", "appearance": "smoothness"}[only]
    probabilities, picture = network_like(3), image("scene")
    alone = dense_crf(probabilities, picture, 5, **{other: None})  # type: ignore[arg-type]
    weightless = dense_crf(probabilities, picture, 5, **{other: {"compat": 0.0}})  # type: ignore[arg-type]
    torch.testing.assert_close(alone, weightless)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_and_untouched_arguments(dtype: torch.dtype) -> None:
    probabilities, picture = network_like(21).to(dtype), image("scene")
    before = probabilities.clone(), picture.clone()
    found = dense_crf(probabilities, picture, 3)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        found, dense_crf(probabilities.float(), picture, 3), atol=1e-4, rtol=0, check_dtype=False
    )
    assert torch.equal(probabilities, before[0]) and torch.equal(picture, before[1])


class Operations(TorchDispatchMode):
    """Notes every torch operation that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_no_host_round_trip_inside_the_iterations() -> None:
    """What reads a value back (`.item()`, `if tensor`), or has a size that depends on values, would wait for a GPU.

    Such operations are there, in the lattice and the checks, and as many for ten iterations as for one.
    """
    waits = {"_local_scalar_dense", "_unique2", "nonzero", "item", "_to_copy", "is_nonzero", "masked_select"}
    crf, probabilities = DenseCRF(image("scene")), network_like(3)
    counts = []
    for iterations in (1, 10):
        with Operations() as operations:
            crf(probabilities, iterations)
        counts.append([operations.names.count(name) for name in sorted(waits)])
    assert counts[0] == counts[1] and sum(counts[0]) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, i: (p.log(), i), "go down to .*are these logits.*softmax"),
        (lambda p, i: (p * 3, i), "sum to 1 give or take 2.*are these logits"),
        (lambda p, i: (p * float("nan"), i), "not finite"),
        (lambda p, i: (p / 0, i), "not finite"),
        (lambda p, i: (p[:1], i), r"one class.*torch.stack\(\[1 - p, p\]\)"),
        (lambda p, i: (p[0], i), r"float32 \[96, 128\]: give floating-point numbers of shape \[C, H, W\]"),
        (lambda p, i: ((p > 0.5).long(), i), "int64.*give floating-point"),
        (lambda p, i: (p, i.float()), "float32: give uint8"),
        (lambda p, i: (p, i[:1]), r"expand\(3, -1, -1\)"),
        (lambda p, i: (p, i[0]), r"shape \[96, 128\]: give RGB"),
        (lambda p, i: (p, torch.cat([i, i[:1]])), r"image\[:3\]"),
        (lambda p, i: (p, i.permute(1, 2, 0)), r"permute\(2, 0, 1\)"),
        (lambda p, i: (p, i.transpose(1, 2)), "96x128, the image is 128x96: height and width are swapped"),
        (lambda p, i: (p, i[:, :50]), "96x128, the image is 50x128: resize"),
        (lambda p, i: (p[None].expand(3, -1, -1, -1), i[None].expand(2, -1, -1, -1)), "3 maps .* 2 images"),
        (lambda p, i: (p.numpy(), i), "numpy.*torch.from_numpy"),
    ],
)
def test_wrong_input_is_named(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message) as caught:
        dense_crf(*change(network_like(3), image("scene")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothness": {"sigma": 3}}, "smoothness has no setting 'sigma': it has sxy, compat"),
        ({"appearance": {"sxy": 0}}, "appearance has sxy 0: give one positive number, or 2"),
        ({"appearance": {"srgb": (1, 2)}}, "give one positive number, or 3"),
        ({"appearance": {"compat": torch.zeros(4)}}, r"compat has shape \[4\]: give a number, \[3\] or \[3, 3\]"),
        ({"smoothness": None, "appearance": None}, "both None"),
        ({"iterations": -1}, "iterations is -1"),
        ({"normalization": "AFTER"}, "'AFTER': choose symmetric"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dense_crf(network_like(3), image("scene"), **settings)
    if "iterations" not in settings:
        small = image("scene")[:, :16, :16]
        if "normalization" not in settings:
            with pytest.raises(InputError, match=message):
                exact_crf(network_like(3, (16, 16)), small, **settings)


def test_exact_refuses_large_images() -> None:
    with pytest.raises(InputError, match="12288 pixels"):
        exact_crf(network_like(3), image("scene"))
