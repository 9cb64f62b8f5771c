"""Diagrams of models: the layers of the papers' figures in the boxes, and a drawing that can be read."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from torch import Tensor, nn

from seglearn import models, plots
from seglearn.backbones import VGG
from seglearn.diagrams import BLOCK_COLORS, COLORS, Box, boxes
from seglearn.errors import InputError

ALL = [(name, size) for name in models.names() for size in models.SIZES]
FIGURES: dict[tuple[str, str], Figure] = {}


def make(name: str, size: str = "paper", **options: object) -> nn.Module:
    with torch.device("meta"):
        return models.create(name, 11, size, **options)


def figure(name: str, size: str) -> Figure:
    if (name, size) not in FIGURES:
        FIGURES[name, size] = plots.architecture(make(name, size))
    return FIGURES[name, size]


def kinds(found: list[Box]) -> list[tuple[str, int, int]]:
    return [(box.kind, box.channels, box.count) for box in found]


@pytest.mark.parametrize("name, size", ALL)
def test_texts_are_large_enough_and_lie_beside_each_other(name: str, size: str) -> None:
    drawn = figure(name, size)
    drawn.draw_without_rendering()
    texts = [text for text in drawn.findobj(Text) if text.get_text() and text.get_visible()]
    texts = [text for text in texts if text.axes is not None or text in drawn.legends[0].get_texts()]
    assert len(texts) > 10
    assert min(text.get_fontsize() for text in texts) >= 7
    frames = [(text.get_text(), text.get_window_extent()) for text in texts]
    for (one, frame), (other, second) in combinations(frames, 2):
        across = min(frame.x1, second.x1) - max(frame.x0, second.x0)
        down = min(frame.y1, second.y1) - max(frame.y0, second.y0)
        assert across <= 1 or down <= 1.5, (one, other, across, down)  # pixels at 100 a inch
    width, height = drawn.bbox.size
    assert all(f.x0 >= 0 and f.x1 <= width and f.y0 >= 0 and f.y1 <= height for _, f in frames)


@pytest.mark.parametrize("name, size", ALL)
def test_boxes_lie_beside_each_other_on_a_page(name: str, size: str) -> None:
    drawn = figure(name, size)
    width, height = drawn.get_size_inches()
    assert width == 7.5 and height < 7
    colors = {*COLORS.values(), *BLOCK_COLORS}
    rectangles = [p for p in drawn.axes[0].patches if isinstance(p, Rectangle) and to_hex(p.get_facecolor()) in colors]
    assert 5 <= len(rectangles) <= 60
    frames = [rectangle.get_bbox() for rectangle in rectangles]
    for one, other in combinations(frames, 2):
        assert (
            min(one.x1, other.x1) - max(one.x0, other.x0) < 1e-6 or min(one.y1, other.y1) - max(one.y0, other.y0) < 1e-6
        )


@pytest.mark.parametrize("name", models.names())
def test_legend_names_what_is_drawn(name: str) -> None:
    drawn = figure(name, "paper")
    found = boxes(make(name))
    inside = [part for box in found for branch in box.branches for part in branch]
    assert {text.get_text() for text in drawn.legends[0].get_texts()} == {box.kind for box in [*found, *inside]}
    assert not plt.get_fignums()  # an open figure would be shown a second time at the end of a cell


def test_fcn8s_is_the_figure_of_its_paper() -> None:
    found = boxes(make("fcn8s"))
    assert kinds(found) == [
        ("image", 3, 1),
        *[("convolution", 64, 2), ("pooling", 64, 1), ("convolution", 128, 2), ("pooling", 128, 1)],
        *[("convolution", 256, 3), ("pooling", 256, 1), ("convolution", 512, 3), ("pooling", 512, 1)],
        *[("convolution", 512, 3), ("pooling", 512, 1), ("convolution", 4096, 2), ("class scores", 11, 1)],
        *[("class scores", 11, 1), ("upsampling", 11, 1), ("sum", 11, 1)],
        *[("class scores", 11, 1), ("upsampling", 11, 1), ("sum", 11, 1), ("upsampling", 11, 1)],
    ]
    sums = [box for box in found if box.kind == "sum"]
    assert [box.stride for box in sums] == [16, 8]
    for box in sums:  # of pool4's and pool3's scores
        (score,) = (part for part in box.inputs if part.kind == "class scores")
        assert score.inputs[0].kind == "pooling" and score.inputs[0].stride == box.stride


def test_unet_concatenates_each_level() -> None:
    joins = [box for box in boxes(make("unet"), (572, 572)) if box.kind == "concatenation"]
    assert [(box.stride, box.channels) for box in joins] == [(8, 1024), (4, 512), (2, 256), (1, 128)]
    for join in joins:
        up, skip = sorted(join.inputs, key=lambda box: box.kind, reverse=True)
        assert (up.kind, skip.kind, skip.channels, skip.stride) == (
            "upsampling",
            "convolution",
            join.channels // 2,
            join.stride,
        )


def test_segnet_unpools_with_the_indices_of_its_poolings() -> None:
    unpoolings = [box for box in boxes(make("segnet")) if box.kind == "unpooling"]
    assert [box.size for box in unpoolings] == [(23, 30), (45, 60), (90, 120), (180, 240), (360, 480)]
    assert all(
        any(part.kind == "pooling" and part.stride == 2 * box.stride for part in box.inputs) for box in unpoolings
    )


def test_residual_blocks_are_one_box() -> None:
    found = boxes(make("gcn", depth=101))
    assert [(box.channels, box.count) for box in found if box.kind == "bottleneck"] == [
        (256, 3),
        (512, 4),
        (1024, 23),
        (2048, 3),
    ]
    assert sum(box.count for box in found if box.kind == "global convolution") == 4
    assert sum(box.count for box in found if box.kind == "boundary refinement") == 9


def branches(found: list[Box]) -> list[list[str]]:
    (join,) = (box for box in found if box.branches)
    return [[f"{part.kind} {part.note}".strip() for part in branch] for branch in join.branches]


def test_parallel_branches_are_drawn_above_each_other() -> None:
    assert sorted(branches(boxes(make("deeplab_v2")))) == [[f"class scores r{rate}"] for rate in (12, 18, 24, 6)]
    assert branches(boxes(make("pspnet"))) == [
        [],
        *([f"pooling {side}×{side}", "convolution", "upsampling"] for side in (1, 2, 3, 6)),
    ]
    aspp = branches(boxes(make("deeplab_v3")))
    assert aspp[:4] == [["convolution"], *([f"dilated convolution r{rate}"] for rate in (6, 12, 18))]
    assert aspp[4][:2] == ["pooling 1×1", "convolution"]


def test_further_scales_of_one_net_are_counted_not_drawn() -> None:
    found = boxes(make("deeplab_v2"))
    (fusion,) = (box for box in found if box.kind == "maximum")
    assert fusion.note == "3 scales" and len(fusion.inputs) == 1
    assert sum(box.count for box in found if box.kind == "bottleneck") == 3 + 4 + 23 + 3


def test_context_module_has_its_rates() -> None:
    notes = [box.note for box in boxes(make("dilation")) if box.kind == "dilated convolution"]
    assert notes == ["r2", "r4", "r2", "r4", "r8", "r16"]


class Shared(nn.Module):
    """Two layers and a sum outside any module: nothing to collapse."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        return x + self.second(x).relu()


def test_any_model_that_returns_logits() -> None:
    model = Shared()
    assert [box.kind for box in boxes(model)] == ["image", "class scores", "convolution", "sum"]
    texts = [text.get_text() for text in plots.architecture(model, (32, 48), title="Two layers").axes[0].texts]
    assert texts[0] == "Two layers, 0.8 k parameters, image 32×48" and "1\n32×48" in texts
    with pytest.raises(InputError, match="returns tuple"):
        plots.architecture(VGG([4] * 5, num_classes=None))
