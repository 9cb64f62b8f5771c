"""The recipes of the papers on VOC 2012: field by field what the papers state, and costs that are computed."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from seglearn import models
from seglearn.backbones import VGG
from seglearn.training import Recipe, load_recipe, recipe_names
from seglearn.training.modes import BATCH_NORM, check_normalisation, freeze, start_training
from seglearn.training.recipe import recipe_path
from seglearn.training.rehearsal import cost

NAMES = [name.removeprefix("voc/") for name in recipe_names() if name.startswith("voc/")]
PAPERS = [name for name in NAMES if not name.endswith("-modern")]
MODERN = [name for name in NAMES if name.endswith("-modern")]
IMAGES = {"trainaug": 10582, "trainval": 2913, "train": 1464}
PAGE = Path(__file__).parent.parent / "book" / "reference" / "voc_recipes.md"

FCN: dict[str, Any] = {
    "images_per_step": 1,
    "iterations": 100_000,
    "reduction": "sum",
    "momentum": 0.99,
    "weight_decay": 5e-4,
    "power": 0,
    "crop": (500, 500),  # whole images: none of VOC is larger
    "scale": (1, 1),
    "flip": 0,
}
DEEPLAB_V1: dict[str, Any] = {
    "images_per_step": 20,
    "iterations": 6000,
    "crop": (321, 321),
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "class_weights": "none",
    "power": 0,
    "drops_at": (2000, 4000),  # iterations
}
DEEPLAB_V2_RESNET: dict[str, Any] = {
    "images_per_step": 10,
    "iterations": 20_000,
    "crop": (321, 321),
    "scale": (0.5, 1.5),
    "lr": 2.5e-4,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "power": 0.9,
    "frozen_norms": True,
}
DEEPLAB_V3: dict[str, Any] = {
    "images_per_step": 16,
    "iterations": 30_000,
    "crop": (513, 513),
    "scale": (0.5, 2),
    "power": 0.9,
}
V3_OPTIONS = {"depth": 101, "multi_grid": [1, 2, 4]}
GCN: dict[str, Any] = {
    "images_per_step": 1,
    "crop": (512, 512),
    "scale": (1, 1),
    "jitter": 0,
    "momentum": 0.99,
    "weight_decay": 5e-4,
    "options": {"depth": 152, "kernel": 15},
}
# What the papers and their authors' code state, in their own units.
STATED: dict[str, dict[str, Any]] = {
    "fcn32s": FCN | {"lr": 1e-10, "start": "imagenet"},
    "fcn16s": FCN | {"lr": 1e-12, "start": "fcn32s"},
    "fcn8s": FCN | {"lr": 1e-14, "start": "fcn16s"},
    "fcn8s_atonce": FCN | {"lr": 1e-10, "iterations": 300_000, "start": "imagenet"},
    "segnet": {
        "images_per_step": 4,
        "iterations": 40_000,
        "crop": (360, 480),
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "power": 0,
        "class_weights": "median_frequency",
        "start": "imagenet",
    },
    "dilation_front": {
        "images_per_step": 14,
        "iterations": 60_000,
        "lr": 1e-3,
        "momentum": 0.9,
        "power": 0,
        "reduction": "mean",
        "start": "imagenet",
    },
    "dilation_context": {
        "images_per_step": 60,
        "lr": 1e-3,
        "momentum": 0.9,
        "freeze": ("front_end",),
        "start": "dilation_front",
    },
    "deeplab_v1": DEEPLAB_V1 | {"options": {"variant": "largefov"}, "start": "imagenet"},
    "deeplab_v1_msc": DEEPLAB_V1 | {"freeze": ("backbone", "fc6", "fc7"), "start": "deeplab_v1"},
    "deeplab_v2_vgg": {
        "images_per_step": 10,
        "iterations": 20_000,
        "power": 0.9,
        "options": {"backbone": "vgg16", "rates": [6, 12, 18, 24], "scales": [1]},
        "start": "imagenet",
    },
    "deeplab_v2": DEEPLAB_V2_RESNET
    | {"accumulate": 2, "options": {"rates": [6, 12, 18, 24], "scales": [1, 0.75, 0.5]}, "start": "imagenet"},
    "deeplab_v2_single": DEEPLAB_V2_RESNET
    | {"options": {"rates": [6, 12, 18, 24], "scales": [1]}, "start": "imagenet"},
    "crfrnn": {
        "images_per_step": 1,
        "crop": (500, 500),
        "reduction": "sum",
        "lr": 1e-13,
        "momentum": 0.99,
        "start": "fcn8s",
    },
    "refinenet": {
        "images_per_step": 1,
        "crop": (400, 400),
        "scale": (0.7, 1.3),
        "flip": 0.5,
        "lr": 5e-4,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "frozen_norms": True,
        "test_scales": (0.4, 0.6, 0.8, 1, 1.2),
        "start": "imagenet",
    },
    "pspnet": {
        "images_per_step": 16,
        "epochs": 50,
        "crop": (473, 473),
        "scale": (0.5, 2),
        "flip": 0.5,
        "rotate": 10,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "power": 0.9,
        "test_window": (473, 473),
        "test_flip": True,
        "start": "imagenet",
    },
    "gcn_stage2": GCN | {"start": "imagenet"},
    "gcn_stage3": GCN | {"split": "train", "start": "gcn_stage2"},
    "deeplab_v3_stage1": DEEPLAB_V3 | {"options": V3_OPTIONS, "lr": 0.007, "frozen_norms": False, "start": "imagenet"},
    "deeplab_v3_stage2": DEEPLAB_V3
    | {
        "options": V3_OPTIONS | {"output_stride": 8},
        "lr": 0.001,
        "split": "trainval",
        "frozen_norms": True,
        "test_scales": (0.5, 0.75, 1, 1.25, 1.5, 1.75),
        "test_flip": True,
        "start": "deeplab_v3_stage1",
    },
    "unet": {"images_per_step": 1, "crop": (388, 388), "elastic": 10, "momentum": 0.99, "start": None},
}


def build(recipe: Recipe) -> torch.nn.Module:
    """The recipe's model of 21 classes as it would start training, without memory for its weights."""
    with torch.device("meta"):
        net = models.create(recipe.model, 21, recipe.size, **recipe.options)
    freeze(net, recipe.freeze, recipe.freeze_norms)
    start_training(net)
    return net


def test_every_paper_has_its_row() -> None:
    assert set(STATED) == set(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
def test_what_the_paper_states(name: str) -> None:
    recipe, stated = load_recipe(f"voc/{name}"), dict(STATED[name])
    assert recipe.data == "voc2012" and recipe.size == "paper" and recipe.optimizer == "sgd"
    assert recipe.split == stated.pop("split", "trainaug")
    assert recipe.batch_size == stated.pop("images_per_step")
    if "drops_at" in stated:
        drops = [share * stated["iterations"] for share in recipe.drops]
        assert drops == pytest.approx(stated.pop("drops_at"), rel=1e-3)
    if "iterations" in stated:
        epochs = stated.pop("iterations") * recipe.batch_size / IMAGES[recipe.split]
        assert abs(recipe.epochs - epochs) <= 0.5
    start = stated.pop("start")
    if start is None or start == "imagenet":
        assert (recipe.backbone_weights, recipe.init_from) == (start, None)
    else:  # the stage before: a recipe that exists, whose run is found where the page says to put it
        assert start in NAMES
        assert (recipe.backbone_weights, recipe.init_from) == (None, f"runs/voc/{start}/best.safetensors")
    norms = [module for module in build(recipe).modules() if isinstance(module, BATCH_NORM)]
    if "frozen_norms" in stated:
        assert len(norms) > 50
        assert {module.training for module in norms} == {not stated.pop("frozen_norms")}
    for field, value in stated.items():
        assert getattr(recipe, field) == value, field


@pytest.mark.parametrize("name", NAMES)
def test_it_can_start(name: str) -> None:
    """The model is built, one GPU can take a whole step of it, and it can load weights where it says so."""
    recipe = load_recipe(f"voc/{name}")
    net = build(recipe)
    check_normalisation(net, recipe.batch_size // recipe.accumulate)
    assert recipe.batch_size % recipe.accumulate == 0
    assert not recipe.backbone_weights or hasattr(net, "load_imagenet")
    assert not recipe.recompute_batch_norm  # VOC's images are of many sizes, which it cannot stack


@pytest.mark.parametrize("name", [name for name in NAMES if load_recipe(f"voc/{name}").freeze_norms])
def test_frozen_norms_are_all_that_is_frozen(name: str) -> None:
    net = build(load_recipe(f"voc/{name}"))
    held = {key.rpartition(".")[0] for key, value in net.named_parameters() if not value.requires_grad}
    norms = {key for key, module in net.named_modules() if isinstance(module, BATCH_NORM)}
    assert held == norms and len(norms) > 100
    assert {module.training for module in net.modules() if isinstance(module, BATCH_NORM)} == {False}


@pytest.mark.parametrize("name", [n for n in PAPERS if STATED[n]["start"] not in (None, "imagenet")])
def test_what_a_stage_takes_from_the_one_before(name: str) -> None:
    """All of the earlier net, other than the layers that the papers start anew."""
    before = build(load_recipe(f"voc/{STATED[name]['start']}")).state_dict()
    after = build(load_recipe(f"voc/{name}")).state_dict()
    lost = {key.split(".")[0] for key, value in before.items() if key not in after or after[key].shape != value.shape}
    allowed = {"deeplab_v1_msc": {"fc8"}, "fcn16s": {"upsample32"}, "fcn8s": {"upsample16"}}.get(name, set())
    assert {key for key in lost if "up" not in key} <= allowed


@pytest.mark.parametrize("name", MODERN)
def test_modern_recipes_share_one_setting(name: str) -> None:
    shared = load_recipe("voc/fcn_resnet-modern")
    assert (shared.lr, shared.weight_decay, shared.batch_size) == (0.01, 5e-4, 16)
    assert abs(shared.epochs - 20_000 * 16 / IMAGES["trainaug"]) < 0.5
    own = {"model", "options", "crop", "lr"}
    recipe = load_recipe(f"voc/{name}")
    assert replace(recipe, **{field: getattr(shared, field) for field in own}) == shared
    assert recipe.crop in ((512, 512), (513, 513)) and recipe.lr == (0.001 if recipe.model == "pspnet" else 0.01)


@pytest.mark.parametrize("name", PAPERS)
def test_every_field_that_decides_the_training_is_written_down(name: str) -> None:
    """A default that changes must not change a paper's recipe; `jitter`, for one, is not 0 by default."""
    written = yaml.safe_load(recipe_path(f"voc/{name}").read_text("utf-8"))
    asked = "model size data split epochs batch_size crop scale flip jitter loss reduction optimizer lr momentum"
    assert not set(f"{asked} weight_decay power precision".split()) - set(written)
    assert set(written) <= {field.name for field in fields(Recipe)}


def test_vgg_is_vgg() -> None:
    net = build(load_recipe("voc/deeplab_v2_vgg"))
    assert isinstance(net.backbone, VGG)


def costs() -> dict[str, list[float]]:
    """From the page's table, by recipe: GFLOP and GiB an image, EFLOP of the run, GiB held, hours twice."""
    rows = re.findall(r"^\| `voc/([\w-]+)` \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {name: [float(cell.replace(",", "")) for cell in cells.split(" | ")] for name, cells in rows}


def test_page_lists_every_recipe() -> None:
    assert list(costs()) == NAMES
    expected = PAGE.read_text("utf-8").partition("## What to expect")[2].partition("\n## ")[0]
    assert set(re.findall(r"`voc/([\w-]+)`", expected)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_costs_on_the_page(name: str) -> None:
    recipe = load_recipe(f"voc/{name}")
    # the CRF's lattice depends on the images: the page says that its row is of the net without it
    counted = replace(recipe, model="fcn8s") if recipe.model == "crfrnn" else recipe
    flops, memory = cost(counted, recipe.crop, 21, 255)
    images = recipe.epochs * (IMAGES[recipe.split] // recipe.batch_size) * recipe.batch_size
    weights = sum(4 * p.numel() * (3 if p.requires_grad else 1) for p in build(recipe).parameters())
    held = weights + memory * recipe.batch_size / recipe.accumulate
    hours = [flops * images / (0.4 * peak) / 3600 for peak in (15e12, 125e12)]
    computed = [round(flops / 1e9), memory / 2**30, flops * images / 1e18, held / 2**30, *hours]
    for printed, value, half in zip(costs()[name], computed, (0.5, 0.005, 0.0005, 0.05, 0.05, 0.05), strict=True):
        assert printed == pytest.approx(value, abs=half + 1e-9)
