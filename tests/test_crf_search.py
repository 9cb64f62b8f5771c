"""The search of a CRF's settings: what is tried, on which images, and what is said of the outcome."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seglearn.crf import dense_crf
from seglearn.crf.search import Refined, crf_search, read_settings, verdict
from seglearn.data.transforms import MEAN, STD
from seglearn.errors import InputError
from seglearn.inference import evaluate, predict_logits
from seglearn.metrics import confusion_matrix, scores

PAGE = Path(__file__).resolve().parent.parent / "book/reference/pydensecrf.md"
ONE = {"compat": (5.0,), "sxy": (20.0,), "srgb": (10.0,)}  # a grid of one setting


class Pictures:
    """Grey pictures [3, 24, 32] of two classes, where the second is brighter."""

    name, split, classes, palette = "pictures", "val", ("ground", "pole"), ((0, 0, 0), (255, 255, 255))
    num_classes, ignore_index = 2, 255

    def __init__(self, kind: str, length: int = 6) -> None:
        rng = torch.Generator().manual_seed(0)
        self.items = []
        for index in range(length):
            label = torch.zeros(24, 32, dtype=torch.uint8)
            if kind == "halves":  # far apart in brightness but noisy, each pixel by itself
                label[:, 12 + index :] = 1
                grey = 90 + 50 * label + 35 * torch.randn(label.shape, generator=rng)
            else:  # a line of one pixel, hardly brighter, of which the network is sure enough
                label[:, 5 + index] = 1
                grey = 114 + 2.0 * label
            label[0] = 255
            self.items.append((grey.clamp(0, 255).to(torch.uint8).expand(3, -1, -1).contiguous(), label))
        self.ids = [str(index) for index in range(length)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.items[index]


class Threshold(nn.Module):
    """The brighter than 115, the surer of the second class."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, images: Tensor) -> Tensor:
        grey = images[:, 0] * STD[0] * 255 + MEAN[0] * 255
        score = self.slope * (grey - 115)
        return torch.stack([-score, score], 1)  # [N, 2, H, W]


UNSURE, SURE = Threshold(0.02), Threshold(0.5)


def test_a_network_with_a_crf_behind_it_gives_the_logs_of_its_marginals() -> None:
    net, pictures = UNSURE, Pictures("halves")
    image, _ = pictures[0]
    matrix = 4 * (1 - torch.eye(2))  # multiplied with in full precision, whatever autocast says
    settings = {"iterations": 3, "appearance": {"sxy": 9.0, "srgb": 20.0, "compat": matrix}}
    expected = dense_crf(predict_logits(net, image).softmax(0), image, **settings)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = predict_logits(Refined(net, **settings), image)
        assert torch.allclose(found.exp(), expected, atol=1e-6)


def test_all_of_the_grid_is_tried_and_then_the_neighbours_of_the_best() -> None:
    grid = {"compat": (1.0, 4.0), "sxy": (10.0,), "srgb": (5.0, 40.0)}
    found = crf_search(UNSURE, Pictures("halves"), 3, grid, rounds=2)
    tried = [(trial["compat"], trial["sxy"], trial["srgb"]) for trial in found["search"]["tried"]]
    assert tried[:4] == [(1.0, 10.0, 5.0), (1.0, 10.0, 40.0), (4.0, 10.0, 5.0), (4.0, 10.0, 40.0)]
    assert len(tried) == len(set(tried)) <= 4 + 6 + 6

    miou = [trial["miou"] for trial in found["search"]["tried"]]
    coarse = tried[miou.index(max(miou[:4]))]
    for setting in tried[4:10]:
        ratios = [b / a for a, b in zip(coarse, setting, strict=True)]
        moved = [abs(math.log2(ratio)) for ratio in ratios if ratio != 1]
        assert moved == [pytest.approx(0.5, abs=0.01)]
    best = tried[miou.index(max(miou))]
    assert tuple(found["crf"]["appearance"][name] for name in ("compat", "sxy", "srgb")) == best
    assert found["search"]["miou"] == max(miou)


def test_scores_of_the_search_and_of_the_rest_are_those_of_the_images_one_by_one() -> None:
    net, pictures = UNSURE, Pictures("halves")
    found = crf_search(net, pictures, 3, ONE, rounds=0)
    asked = {"smoothness": {"sxy": 3, "compat": 3}, "appearance": {"sxy": 20, "srgb": 10, "compat": 5}}
    for part, chosen in (("search", [0, 3]), ("rest", [1, 2, 4, 5])):
        matrices = {"alone": 0, "crf": 0, "defaults": 0}
        for index in chosen:
            image, label = pictures[index]
            p = predict_logits(net, image).softmax(0)
            ways = {"alone": p, "crf": dense_crf(p, image, 10, **asked), "defaults": dense_crf(p, image)}
            for way, marginals in ways.items():
                matrices[way] += confusion_matrix(marginals.argmax(0), label, 2, 255)
        expected = {way: scores(matrix) for way, matrix in matrices.items()}
        if part == "search":
            assert found["search"]["images"] == 2
            assert found["search"]["tried"][0]["miou"] == pytest.approx(
                expected["crf"].miou, abs=2e-3
            )  # half precision
            assert found["search"]["miou_alone"] == pytest.approx(expected["alone"].miou, abs=2e-3)
        else:
            assert found["rest"]["images"] == 4
            for way, each in expected.items():
                assert found["rest"][way]["miou"] == each.miou and found["rest"][way]["iou"]["pole"] == each.iou[1]


def test_images_for_choosing_and_for_the_score_are_apart() -> None:
    first = crf_search(UNSURE, Pictures("halves"), 3, ONE, rounds=0)
    for touched, same, other in ((range(0, 6, 3), "rest", "search"), ((1, 2, 4, 5), "search", "rest")):
        pictures = Pictures("halves")
        for index in touched:
            pictures[index][1][5:15] = 0
        second = crf_search(UNSURE, pictures, 3, ONE, rounds=0)
        assert second[same] == first[same] and second[other] != first[other]


def test_it_says_so_where_the_crf_helps() -> None:
    wide = {"compat": (10.0,), "sxy": (5.0,), "srgb": (100.0,)}  # the noise is within its reach
    found = crf_search(UNSURE, Pictures("halves"), 3, wide, rounds=0)
    rest = found["rest"]
    assert rest["crf"]["miou"] > rest["alone"]["miou"] + 0.1
    assert rest["crf"]["boundary_f1"] > rest["alone"]["boundary_f1"]
    assert "raises" in found["verdict"] and "No class loses" in found["verdict"]
    assert list(rest["alone"]["band_miou"]) == [str(width) for width in range(1, 21)]
    json.dumps(found)


def test_it_says_so_where_the_crf_makes_things_worse() -> None:
    net, pictures = SURE, Pictures("line")
    assert scores(evaluate(net, pictures)).miou == 1
    found = crf_search(net, pictures, 3, ONE, rounds=0)
    assert found["rest"]["crf"]["iou"]["pole"] == 0 and found["rest"]["iou_change"]["pole"] == -1
    assert "lowers the mIoU from 100.00 to 48.44" in found["verdict"]  # (31 / 32 + 0) / 2
    assert "2 of 2 classes worse: pole (-100.00), ground (-3.12)" in found["verdict"]


def test_a_class_in_no_map_is_in_no_verdict() -> None:
    before, after = (scores(torch.tensor(counts)) for counts in ([[8, 2, 0], [1, 9, 0], [0, 0, 0]], [[9, 1, 0]] * 3))
    same = verdict(before, before, ["sky", "road", "pole"])
    assert "leaves" in same and "No class loses" in same
    assert "2 of 2" in verdict(before, after, ["sky", "road", "pole"])


@pytest.mark.parametrize("every", [0, 1, 7])
def test_without_images_for_both_purposes_there_is_no_search(every: int) -> None:
    with pytest.raises(InputError, match=f"every is {every} for 6 images"):
        crf_search(UNSURE, Pictures("halves"), every)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"crf": {}}', '{"crf": {"appearance": {"sxy": 3}}}', None])
def test_a_file_that_is_no_result_of_a_search_is_refused(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "crf.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match="seglearn crf-search"):
        read_settings(file)


def test_the_page_for_those_who_come_from_pydensecrf_runs() -> None:
    pytest.importorskip("pydensecrf.densecrf")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) >= 5
    exec("\n".join(blocks), {})  # it has assertions of its own
