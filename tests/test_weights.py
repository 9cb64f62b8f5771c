"""Shipped weights: what `leaderboard.ship` writes is what `create` loads, small and with its history."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from test_leaderboard import entry
from test_training import SMALL

from seglearn import leaderboard, models, results, weights
from seglearn.data import StreetScenes, scenes
from seglearn.errors import InputError
from seglearn.inference import predict
from seglearn.training import load_model, train


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on scenes, the median of three invented ones, shipped into a folder of its own."""
    root = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        for split in ("train", "val"):
            patch.setitem(scenes.LENGTHS, split, 8)
        recipe = replace(SMALL, data="scenes", epochs=20, evaluate_every=20, crop=(96, 128), seed=1)
        result = train(recipe, root / "runs" / "fcn8s-1-aaaaaaaa")
    assert result is not None
    common = {"data": {"name": "scenes"}, "classes_averaged": 11, "iou": result["iou"], "epoch": 20, "machine": {}}
    for seed, miou in enumerate((0.5, 0.4, 0.3)):
        invented = entry("laptop/fcn8s", seed, miou, "a" * 64, **common)
        leaderboard.add(root / "board.json", "entries", invented, root / "lock")
    lines = leaderboard.ship([], root / "runs", root / "board.json", "scenes", root / "shipped")
    return root, lines


@pytest.fixture
def folder(shipped: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder: Path = shipped[0] / "shipped"
    monkeypatch.setattr(weights, "FOLDER", folder)
    return folder


def test_the_shipped_model_labels_as_the_trained_one(shipped: Any, folder: Path) -> None:
    trained, _ = load_model(shipped[0] / "runs" / "fcn8s-1-aaaaaaaa")
    model = models.create("fcn8s", 11, "laptop", weights="scenes").eval()
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in model.state_dict().values())
    own, theirs = model.state_dict(), trained.state_dict()
    for name, tensor in own.items():  # a filter's weights are off by half a step at most, vectors not at all
        step = theirs[name].flatten(1).abs().amax(1, keepdim=True) / 127 if tensor.dim() > 1 else 0.0
        assert torch.all((tensor - theirs[name]).flatten(1 if tensor.dim() > 1 else 0).abs() <= 0.501 * step + 1e-9)
    assert any(not torch.equal(own[name], theirs[name]) for name in own)  # it was rounded
    images = [image for image, _ in StreetScenes("test", length=6)]
    labels = [(predict(model, image), predict(trained, image)) for image in images]
    assert len(labels[0][1].unique()) > 2  # else any two models agree
    agreeing = sum((one == two).sum().item() for one, two in labels) / sum(one.numel() for one, _ in labels)
    assert agreeing >= 0.995


def test_the_file_is_small_and_says_how_it_came_to_be(shipped: Any, folder: Path) -> None:
    path = folder / "scenes" / "fcn8s.safetensors"
    assert path.stat().st_size < 1.05 * 1_880_241  # one byte a parameter
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("score_fr.weight").dtype == torch.int8
    _, metadata = load_model(path)
    assert metadata["model"] == "fcn8s" and metadata["classes"] == list(StreetScenes.classes)
    assert metadata["recipe"]["lr"] == SMALL.lr and metadata["seed"] == metadata["recipe"]["seed"] == 1
    assert metadata["scores"]["miou"] == 0.4 and metadata["scores"]["iou"].keys() == set(StreetScenes.classes)
    assert "median of 3 seeds" in metadata["origin"] and "MIT" in metadata["licence"]
    assert "CC BY-NC 4.0" in weights.LICENCE["camvid"] and "research" in weights.LICENCE["camvid"]
    assert "seed 1, the median of 3 seeds by val mIoU" in shipped[1][0]


def test_what_does_not_ship_is_said(folder: Path) -> None:
    with pytest.raises(InputError, match="No scenes weights of unet come with the package: there are fcn8s"):
        models.create("unet", 11, "laptop", weights="scenes")
    with pytest.raises(InputError, match="No camvid weights of unet.*none of any model"):
        models.create("unet", 11, "laptop", weights="camvid")
    for classes, size in ((5, "laptop"), (11, "paper")):
        with pytest.raises(InputError, match=f"of 11 classes, not of {classes} in {size} size"):
            models.create("fcn8s", classes, size, weights="scenes")
    with pytest.raises(InputError, match="trained with options {}, not {'at_once': True}"):
        models.create("fcn8s", 11, "laptop", weights="scenes", at_once=True)
    with pytest.raises(InputError, match="Unknown kind of weights 'scene': did you mean 'scenes'"):
        models.create("fcn8s", 11, "laptop", weights="scene")


def test_what_cannot_ship_is_said(shipped: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shipped[0]
    with pytest.raises(InputError, match="laptop/unet has no entry on scenes val in .*: there are laptop/fcn8s"):
        leaderboard.ship(["laptop/unet"], root / "runs", root / "board.json", "scenes", tmp_path)
    with pytest.raises(InputError, match="has no entries on camvid val"):
        leaderboard.ship([], root / "runs", root / "board.json", "camvid", tmp_path)
    monkeypatch.setattr(weights, "LIMIT", 1_000_000)
    with pytest.raises(InputError, match=r"fcn8s has 1\.9 MB and .* more than 1 MB together"):
        leaderboard.ship([], root / "runs", root / "board.json", "scenes", tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(InputError, match="kernel has weights that are not finite"):
        weights.pack({"kernel": torch.full((2, 2), torch.nan)})


def test_packing_keeps_vectors_and_each_filters_own_range() -> None:
    kernel = torch.tensor([[1.0, -0.5, 0.004], [1e-3, 0.0, -1e-3], [0.0, 0.0, 0.0]])
    tensors = {"kernel": kernel, "variance": torch.full((2,), 1e5), "step": torch.tensor(7)}
    packed = weights.pack(tensors)
    assert packed["kernel"].dtype == torch.int8 and packed["variance"].dtype == torch.float32
    back = weights.unpack(packed)
    assert back.keys() == tensors.keys() and torch.equal(back["variance"], tensors["variance"]) and back["step"] == 7
    assert torch.allclose(back["kernel"], torch.tensor([[1.0, -64 / 127, 1 / 127], [1e-3, 0, -1e-3], [0, 0, 0]]))


def test_the_package_stays_small() -> None:
    files = list(weights.FOLDER.glob("*/*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 30_000_000
    for file in files:
        model, metadata = load_model(file)
        assert file.parent.name in weights.DATA and metadata["recipe"]["data"] == file.parent.name
        assert {"origin", "licence", "scores", "seed", "recipe", "machine"} <= metadata.keys()


def test_what_ships_is_the_median_run_of_the_table_and_scores_as_it_says() -> None:
    board = leaderboard.current(leaderboard.read_results(results.FOLDER / "camvid.json"))
    checked = json.loads((results.FOLDER / "shipped.json").read_text())
    assert list(checked) == weights.names("camvid"), "run `python benchmarks/shipped.py`"
    for name, found in checked.items():
        file = weights.checkpoint("camvid", name)
        metadata = load_model(file)[1]
        ranked = sorted(board[f"laptop/{name}"], key=lambda entry: entry["miou"])
        median = ranked[(len(ranked) - 1) // 2]
        assert (metadata["hash"], metadata["seed"]) == (median["hash"], median["seed"])
        assert metadata["scores"]["miou"] == found["table"] == median["miou"]
        assert found["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest(), "run `python benchmarks/shipped.py`"
        assert abs(found["here"] - found["table"]) < 0.003  # int8 kernels, another processor: the page gives each
