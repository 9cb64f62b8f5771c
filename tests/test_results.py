"""Recorded results as chapters show them, from files that the package's own functions write."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from test_leaderboard import entry

from seglearn import leaderboard, results
from seglearn.ablations import choose, plan, runs
from seglearn.errors import InputError


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A folder with a leaderboard: one recipe with three seeds, one with a single one."""
    common: dict[str, Any] = {"data": {"name": "camvid"}, "iou": {"Sky": 0.9}, "curve": []}
    for seed, miou in enumerate((0.5, 0.6, 0.55)):
        new = entry("laptop/fcn8s", seed, miou, "a" * 64, **common)
        leaderboard.add(tmp_path / "camvid.json", "entries", new, tmp_path / "lock")
    new = entry("laptop/gcn", 0, 0.7, "b" * 64, **common)
    leaderboard.add(tmp_path / "camvid.json", "entries", new, tmp_path / "lock")
    return tmp_path


def record(folder: Path, name: str, scores: dict[str, list[float]]) -> None:
    """An ablation's file as `seglearn ablate` writes it, with invented mIoU for each arm and seed."""
    (ablation,) = choose([name])
    entries = []
    for label, values in scores.items():
        arm = ablation.arm(label)
        for seed, miou in enumerate(values):
            key = {**plan(ablation, arm, seed, Path("runs")).key(), "arm": label, "tested": {}, "crf": None}
            entries.append({**key, "miou": miou, "boundary_f1": miou / 2})
    (folder / "ablations").mkdir(exist_ok=True)
    runs.write(folder / "ablations" / f"{name}.json", runs.summary(ablation, entries, Path("runs")))


def test_standings_have_a_row_a_recipe_the_best_first(board: Path) -> None:
    text = results.standings(folder=board).data
    assert text.index(">gcn<") < text.index(">fcn8s<")
    assert "55.00 ± 5.00" in text and ">70.00<" in text  # no deviation of a single seed
    assert ">gcn<" not in results.standings(["fcn8s"], board).data
    assert "No recorded run" in results.standings(["unet"], board).data


def test_runs_are_of_the_median_seed(board: Path) -> None:
    found = results.runs(["laptop/fcn8s", "gcn", "unet"], board)
    assert list(found) == ["fcn8s", "gcn"]
    assert found["fcn8s"]["miou"] == 0.55 and found["fcn8s"]["seed"] == 2


def test_costs_join_the_table(board: Path) -> None:
    cost = {"seconds_a_step": 0.5, "steps": 1440, "milliseconds": 61.4, "peak_memory": 700.0}
    (board / "camvid-cost.json").write_text(json.dumps({"machine": {}, "recipes": {"laptop/fcn8s": cost}}))
    text = results.standings(["fcn8s"], board).data
    assert ">12<" in text and ">61<" in text  # minutes, milliseconds


def test_the_crf_joins_the_table_if_it_stands_behind_a_run_of_it(board: Path) -> None:
    rest = {"alone": {"miou": 0.55}, "crf": {"miou": 0.57}}
    (board / "crf-fcn8s.json").write_text(json.dumps({"rest": rest}))
    assert "with CRF" not in results.standings(["fcn8s"], board).data  # of a run that is gone
    (board / "crf-fcn8s.json").write_text(json.dumps({"rest": rest, "hash": "a" * 64}))
    assert "55.0 → 57.0" in results.standings(["fcn8s"], board).data


def test_a_search_as_the_command_writes_it_is_known_by_its_checkpoint(board: Path) -> None:
    """It counts only where the leaderboard has a run of that score."""
    search = json.loads((results.FOLDER / "crf-fcn8s.json").read_text())
    assert "hash" not in search
    (board / "crf-fcn8s.json").write_text(json.dumps(search))
    assert results.crf_effect(board) == {}
    new = entry("laptop/fcn8s", 3, 0.5, "a" * 64, val_miou=search["checkpoint"]["miou"])
    leaderboard.add(board / "camvid.json", "entries", new, board / "lock")
    rest = search["rest"]
    assert results.crf_effect(board) == {"fcn8s": (rest["alone"]["miou"], rest["crf"]["miou"])}


def test_the_books_search_is_behind_a_run_of_its_leaderboard() -> None:
    assert "fcn8s" in results.crf_effect()


VERDICTS = {  # what the chapters' paragraphs count on; where one of these changes, its paragraph does, too
    "fcn_skips": ("holds", "holds", "holds"),
    "fcn_at_once": ("does not hold", "holds"),
    "segnet_decoder": ("does not hold", "cannot tell here", "holds", "holds"),
    "dilation_context": ("holds", "does not hold", "does not hold"),
    "dilation_start": ("holds", "holds"),
    "dilation_joint": ("holds", "holds"),
    "deeplab_v1_field": ("cannot tell here", "cannot tell here", "cannot tell here"),
    "deeplab_v1_features": ("holds", "holds"),
    "deeplab_crf": ("holds", "holds"),
    "deeplab_v2_aspp": ("cannot tell here", "does not hold"),
    "deeplab_v2_scales": ("cannot tell here",),
    "deeplab_v3_stride": ("cannot tell here", "does not hold", "cannot tell here", "holds"),
    "deeplab_v3_multi_grid": ("cannot tell here", "holds"),
    "deeplab_v3_image_pooling": ("cannot tell here",),
    "refinenet_pooling": ("holds", "cannot tell here"),
    "refinenet_cascades": ("does not hold", "cannot tell here"),
    "refinenet_memory": ("does not hold", "cannot tell here", "holds"),
    "pspnet_bins": ("cannot tell here", "cannot tell here"),
    "pspnet_aux": ("cannot tell here", "cannot tell here"),
    "gcn_kernel": ("cannot tell here", "does not hold", "does not hold", "does not hold"),
    "gcn_window": ("holds", "holds"),
    "gcn_form": ("holds", "does not hold", "holds"),
    "gcn_boundary": ("holds", "holds", "does not hold"),
    "choice_weights": ("holds", "holds", "cannot tell here"),
    "choice_optimizer": ("cannot tell here", "holds", "holds"),
    "choice_resolution": ("cannot tell here", "does not hold", "does not hold"),
}


@pytest.mark.parametrize("name", [path.stem for path in sorted((results.FOLDER / "ablations").glob("*.json"))])
def test_the_text_is_about_the_recorded_verdicts(name: str) -> None:
    recorded = results.load_ablation(name)
    assert recorded is not None
    assert tuple(claim["verdict"] for claim in recorded["claims"]) == VERDICTS[name]
    assert all(row["seeds"] == [0, 1, 2] for row in recorded["arms"])
    # judged by the rule and the table of today, from the entries
    (ablation,) = choose([name])
    anew = json.loads(json.dumps(runs.summary(ablation, recorded["entries"])))
    assert anew["claims"] == recorded["claims"] and anew["arms"] == recorded["arms"]


def test_what_the_chapter_says_of_trees_in_fcn_32s() -> None:
    recorded = results.load_ablation("fcn_skips")
    assert recorded is not None
    trees = {arm: [e["iou"]["Tree"] for e in recorded["entries"] if e["arm"] == arm] for arm in ("32s", "16s")}
    assert max(trees["32s"]) < 0.05 and min(trees["16s"]) > 0.8


def test_an_ablation_shows_arms_and_verdicts(tmp_path: Path) -> None:
    record(tmp_path, "pspnet_bins", {"none": [0.40, 0.41], "1": [0.45, 0.46], "1, 2, 3, 6": [0.44, 0.47]})
    text = results.ablation("pspnet_bins", tmp_path).data
    assert "40.50 ± 0.71" in text and "Zhao et al. 2017" in text
    assert text.index("+5.00") < text.index("<b>holds</b>") < text.index("<b>cannot tell here</b>")
    figure = results.ablation_figure("pspnet_bins", folder=tmp_path)
    assert figure is not None
    dots = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [list(map(round, 10 * x)) for x in dots] == [[400, 410], [450, 460], [440, 470]]  # a dot a seed
    plt.close(figure)


def test_one_seed_is_not_judged(tmp_path: Path) -> None:
    record(tmp_path, "pspnet_bins", {"none": [0.40], "1": [0.45], "1, 2, 3, 6": [0.44]})
    assert "fewer than two seeds" in results.ablation("pspnet_bins", tmp_path).data


def test_what_is_not_recorded_is_said(tmp_path: Path) -> None:
    assert "seglearn ablate gcn_form" in results.ablation("gcn_form", tmp_path).data
    assert results.ablation_figure("gcn_form", folder=tmp_path) is None
    assert results.runs(["fcn8s"], tmp_path) == {} and results.costs(tmp_path) == {}
    assert results.crf_effect(tmp_path) == {}
    assert "--domain-gap" in results.domain_gap(tmp_path).data


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'gcn_form'"):
        results.ablation("gcn_from", tmp_path)
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "gcn_form.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read.*seglearn ablate gcn_form"):
        results.ablation("gcn_form", tmp_path)
    record(tmp_path, "pspnet_bins", {"none": [0.4], "1": [0.5], "1, 2, 3, 6": [0.6]})
    with pytest.raises(InputError, match="'speed' is unknown"):
        results.ablation_figure("pspnet_bins", "speed", tmp_path)
    with pytest.raises(InputError, match="no arm of pspnet_bins has the score 'miou_near'"):
        results.ablation_figure("pspnet_bins", "miou_near", tmp_path)
    for show in (results.runs, results.standings):
        with pytest.raises(InputError, match="did you mean 'fcn8s'"):
            show(["fcn8"], tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"entries": [1]}'])
def test_a_damaged_file_is_said_whatever_it_holds(tmp_path: Path, text: str) -> None:
    (tmp_path / "ablations").mkdir()
    for name in ("ablations/gcn_form.json", "camvid-cost.json", "crf-fcn8s.json"):
        (tmp_path / name).write_text(text)
    for show in (lambda: results.ablation("gcn_form", tmp_path), lambda: results.costs(tmp_path)):
        with pytest.raises(InputError, match="make it anew"):
            show()
    with pytest.raises(InputError, match="crf-search"):
        results.crf_effect(tmp_path)


def test_every_score_that_a_claim_is_about_has_a_heading() -> None:
    assert set(runs.SCORES) <= set(results.SCORES)


def test_the_gap_has_a_row_for_each_pair_of_streets(tmp_path: Path) -> None:
    for target, miou in (("camvid", 0.6), ("scenes", 0.25)):
        new = {"recipe": "laptop/fcn8s", "seed": 0, "hash": "a", "split": "val", "trained_on": "camvid"}
        new |= {"evaluated_on": target, "miou": miou}
        leaderboard.add(tmp_path / "camvid.json", "domain_gap", new, tmp_path / "lock")
    text = results.domain_gap(tmp_path).data
    assert ">60.00<" in text and ">25.00<" in text and text.count(">fcn8s<") == 2


def test_the_book_has_a_leaderboard_of_finite_scores() -> None:
    """What ships in the book is complete: every entry has every class, a curve, and scores between 0 and 1."""
    entries = leaderboard.read_results(results.FOLDER / "camvid.json")["entries"]
    assert len({item["recipe"] for item in entries}) >= 19
    for item in entries:
        assert len(item["iou"]) == item["classes_averaged"] == 11 and item["curve"]
        assert math.isclose(sum(item["iou"].values()) / 11, item["miou"], abs_tol=1e-9)
        assert item["data"]["images"] == 101 and 0 < item["boundary_f1"] < 1
