"""The loop: it learns, writes what it promises, resumes bit for bit, and refuses what cannot work."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from seglearn import losses, models
from seglearn.data import CamVid
from seglearn.data.transforms import normalize
from seglearn.errors import InputError
from seglearn.training import Recipe, load_model, load_recipe, recipe_names, train
from seglearn.training import loop as module
from seglearn.training.checkpoint import load_state, read_weights, save_weights, write_atomically
from seglearn.training.modes import freeze, recompute_batch_norm, synchronise_norms
from seglearn.training.samples import Augmented, Batches
from seglearn.views import View

SMALL = Recipe(epochs=3, batch_size=4, crop=(32, 48), scale=(0.7, 1.5), evaluate_every=2, save_every=2, lr=0.02)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_state(folder / "last.pt")["model"]
    return weights


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights_of(first), weights_of(second)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def start(folder: Path, *words: str, recipe: Recipe = SMALL) -> subprocess.Popen[str]:
    """`seglearn train` in a process of its own."""
    file = folder.with_suffix(".yaml")
    file.write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "seglearn", "train", str(file), "--folder", str(folder), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} was never written"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run that several tests look at."""
    from conftest import write_camvid

    root = tmp_path_factory.mktemp("run")
    result = train(replace(SMALL, root=str(write_camvid(root))), root / "run")
    assert result is not None
    return root / "run", result


def test_a_run_leaves_what_it_promises(run: tuple[Path, dict[str, Any]]) -> None:
    folder, result = run
    assert {path.name for path in folder.iterdir()} == {
        "recipe.yaml",
        "log.csv",
        "tensorboard",
        "last.pt",
        "best.safetensors",
        "result.json",
        "predictions.png",
    }
    assert json.loads((folder / "result.json").read_text()) == result
    rows = list(csv.DictReader((folder / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["val_miou"]) for row in rows] == [False, True, True]  # every second epoch and the last
    assert result["data"]["images"] == 5 and len(result["data"]["sha256"]) == 64
    assert list(result["iou"]) == list(CamVid.classes)
    assert result["machine"]["precision"] in ("32-true", "bf16-mixed")
    assert result["machine"]["memory_format"] in ("channels_last", "contiguous_format")
    assert (folder / "best.safetensors").stat().st_mode & 0o044  # readable by others, unlike a temporary file


def test_the_best_checkpoint_reproduces_the_result(run: tuple[Path, dict[str, Any]]) -> None:
    from seglearn.inference import evaluate
    from seglearn.metrics import scores

    folder, result = run
    model, metadata = load_model(folder)
    assert metadata["miou"] == pytest.approx(result["miou"])
    dataset = CamVid("val", folder.parent)
    with torch.autocast("cpu", torch.bfloat16, enabled=result["machine"]["precision"] == "bf16-mixed"):
        again = scores(evaluate(model, dataset))
    assert again.miou == pytest.approx(result["miou"], abs=1e-9)


class WithBackbone(nn.Module):
    """What a recipe's `backbone_weights` are loaded into."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, torch.Tensor] | None = None

    def load_imagenet(self, weights: dict[str, torch.Tensor] | None = None) -> None:
        self.loaded = weights


@pytest.mark.parametrize("name", ["vgg.pth", "vgg.safetensors"])
def test_backbone_weights_of_a_file(name: str, tmp_path: Path) -> None:
    weights = nn.Linear(2, 3)
    if name.endswith(".pth"):
        torch.save(weights.state_dict(), tmp_path / name)
    else:
        save_weights(tmp_path / name, weights, {})
    net = WithBackbone()
    module.load_backbone(net, replace(SMALL, size="paper", backbone_weights=str(tmp_path / name)))
    assert net.loaded is not None and torch.equal(net.loaded["weight"], weights.weight)


def test_backbone_weights_that_cannot_be(tmp_path: Path) -> None:
    paper = replace(SMALL, size="paper")
    with pytest.raises(InputError, match="backbone_weights are those of the paper's size"):
        replace(SMALL, backbone_weights="imagenet").check()
    with pytest.raises(InputError, match="fcn8s is trained from scratch"):
        module.load_backbone(NormFree(), replace(paper, backbone_weights="imagenet"))
    with pytest.raises(InputError, match="none.pth are not there"):
        module.load_backbone(WithBackbone(), replace(paper, backbone_weights=str(tmp_path / "none.pth")))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match="text.pth cannot be read"):
        module.load_backbone(WithBackbone(), replace(paper, backbone_weights=str(tmp_path / "text.pth")))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="list.pth are no state dict"):
        module.load_backbone(WithBackbone(), replace(paper, backbone_weights=str(tmp_path / "list.pth")))


def test_it_learns(camvid: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, epochs=25, evaluate_every=25, lr=0.05, crop=(48, 64), scale=(1.0, 1.0))
    result = train(recipe, tmp_path / "run")
    assert result is not None
    losses = [row["loss"] for row in result["curve"]]
    assert losses[-1] < 0.6 * losses[0]
    assert result["pixel_accuracy"] > 0.35  # 11 equally frequent classes: chance is 0.09


def test_recipe_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL.to_yaml())
    assert load_recipe(str(file)) == SMALL
    assert load_recipe(str(file), ["--lr", "0.5", "--crop", "[10, 20]"]) == replace(SMALL, lr=0.5, crop=(10, 20))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_runs(name: str, camvid: Path, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        net = models.create(recipe.model, 11, recipe.size, **recipe.options)
        freeze(net, recipe.freeze)
    if recipe.size == "laptop":
        short = replace(recipe, data="camvid", epochs=1, batch_size=4, crop=(48, 64), init_from=None)
        result = train(short, tmp_path / "run")
        assert result is not None and 0 <= result["miou"] <= 1
        model, _ = load_model(tmp_path / "run")
        assert type(model) is type(net)


def test_frozen_modules_stand_still(camvid: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, freeze=("backbone", "fc6"))
    torch.manual_seed(recipe.seed)
    fresh = models.create(recipe.model, 11, recipe.size).state_dict()
    train(recipe, tmp_path / "run")
    trained = weights_of(tmp_path / "run")
    # weights, and the running statistics of norms, which evaluation in between must not have woken
    moved = {name.split(".")[0] for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert moved == {"fc7", "score_fr", "score_pool4", "score_pool3"}
    with pytest.raises(InputError, match="freeze names 'backbon'.*did you mean 'backbone'"):
        train(replace(SMALL, freeze=("backbon",)), tmp_path / "typo")
    with pytest.raises(InputError, match="holds every parameter"):
        freeze(
            models.create("fcn8s", 11, "laptop"), ("backbone", "fc6", "fc7", "score_fr", "score_pool4", "score_pool3")
        )


def test_a_frozen_net_trains_on_single_images(camvid: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, batch_size=1, epochs=1)
    with pytest.raises(InputError, match="1 image is computed at a time"):
        train(recipe, tmp_path / "refused")
    assert train(replace(recipe, freeze=("backbone", "fc6", "fc7")), tmp_path / "run") is not None


def test_recomputed_statistics_are_those_of_the_training_images(camvid: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout()).eval()
    dataset = CamVid("train")
    recompute_batch_norm(net, dataset, batch_size=len(dataset))
    maps = net[0](normalize(torch.stack([image for image, _ in dataset])))  # [N, 2, H, W]
    torch.testing.assert_close(net[1].running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, maps.var((0, 2, 3)))
    assert not any(module.training for module in net.modules())


def test_recomputing_changes_norms_alone(camvid: Path, tmp_path: Path) -> None:
    train(SMALL, tmp_path / "plain")
    train(replace(SMALL, recompute_batch_norm=True), tmp_path / "anew")
    one, two = weights_of(tmp_path / "plain"), weights_of(tmp_path / "anew")
    changed = {name.rsplit(".")[-1] for name in one if not torch.equal(one[name], two[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


def test_options_reach_the_model_and_its_checkpoint(camvid: Path, tmp_path: Path) -> None:
    result = train(replace(SMALL, epochs=1, options={"at_once": True}), tmp_path / "run")
    assert result is not None and result["recipe"]["options"] == {"at_once": True}
    model, metadata = load_model(tmp_path / "run")
    assert metadata["options"] == {"at_once": True} and model.skip_scales == (1e-2, 1e-4)
    with pytest.raises(InputError, match="Unknown option 'depth'"):
        train(replace(SMALL, options={"depth": 50}), tmp_path / "refused")
    assert load_recipe("laptop/fcn8s", ["--options", '{"at_once": true}']).options == {"at_once": True}


def test_killed_and_resumed_equals_undisturbed(camvid: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, epochs=12, evaluate_every=4, ema=0.9, accumulate=2, test_scales=(0.5, 1.0), test_flip=True)
    plain = start(tmp_path / "plain", recipe=recipe)
    assert plain.wait(120) == 0, plain.communicate()[0]

    killed = start(tmp_path / "killed", recipe=recipe)
    wait_for(tmp_path / "killed" / "last.pt", killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    step = load_state(tmp_path / "killed" / "last.pt")["step"]
    assert 0 < step < 36

    resumed = start(tmp_path / "killed", "--resume", recipe=recipe)
    assert resumed.wait(120) == 0, resumed.communicate()[0]
    assert_same_weights(tmp_path / "plain", tmp_path / "killed")
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("plain", "killed"))
    assert one["miou"] == two["miou"]
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in r["curve"]] for r in (one, two)]
    assert strip[0] == strip[1]


class NormFree(nn.Module):
    """A net whose images do not see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 11, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits

    def loss(self, images: torch.Tensor, labels: torch.Tensor, criterion: Any) -> torch.Tensor:
        loss: torch.Tensor = criterion(self(images), labels)
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr_factor": 1.0, "weight_decay_factor": 1.0}]


@pytest.fixture
def norm_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "create", lambda *_, **__: NormFree())


def test_parts_of_a_batch_make_the_same_update_as_the_whole(norm_free: None, camvid: Path, tmp_path: Path) -> None:
    """Crops reach beyond the pictures, so that parts differ in how many pixels are labelled."""
    recipe = replace(SMALL, scale=(0.3, 1.0), class_weights="enet", precision="32-true", lr=0.1)
    for accumulate in (1, 2, 4):
        assert train(replace(recipe, accumulate=accumulate), tmp_path / str(accumulate)) is not None
    whole = weights_of(tmp_path / "1")
    for accumulate in ("2", "4"):
        for name, value in weights_of(tmp_path / accumulate).items():
            torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=1e-5)


def test_a_summed_loss_needs_a_rate_as_many_times_smaller(norm_free: None, camvid: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, epochs=1, batch_size=12, scale=(1.0, 1.0), precision="32-true", weight_decay=0.0)
    assert train(recipe, tmp_path / "mean") is not None
    samples = Augmented(CamVid("train"), recipe.augment(11), recipe.seed)
    pixels = sum(int((samples[(0, index)][1] != 11).sum()) for index in range(12))
    assert train(replace(recipe, reduction="sum", lr=recipe.lr / pixels), tmp_path / "sum") is not None
    mean, summed = weights_of(tmp_path / "mean"), weights_of(tmp_path / "sum")
    for name, value in summed.items():
        torch.testing.assert_close(value, mean[name], atol=1e-6, rtol=1e-4)


def test_the_average_of_the_weights_is_what_is_scored_and_saved(
    norm_free: None, camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    update = module.AveragedModel.update_parameters

    def note(average: Any, net: nn.Module) -> None:
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        update(average, net)

    monkeypatch.setattr(module.AveragedModel, "update_parameters", note)
    assert train(replace(SMALL, ema=0.75, evaluate_every=3), tmp_path / "run") is not None
    assert len(seen) == 9
    saved, _ = read_weights(tmp_path / "run" / "best.safetensors")
    for name, value in saved.items():
        expected = seen[0][name]
        for step in seen[1:]:
            expected = 0.75 * expected + 0.25 * step[name]
        torch.testing.assert_close(value, expected)
        assert not torch.equal(value, seen[-1][name])


def test_prediction_takes_the_recipe_s_view(camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seglearn import inference

    views: set[View] = set()
    logits_of = inference.logits_of

    def note(model: nn.Module, image: torch.Tensor, view: View) -> torch.Tensor:
        views.add(view)
        return logits_of(model, image, view)

    monkeypatch.setattr(inference, "logits_of", note)
    recipe = replace(SMALL, epochs=1, test_scales=(0.5, 1.0), test_flip=True, test_window=(32, 32))
    assert train(recipe, tmp_path / "run") is not None
    assert views == {View((0.5, 1.0), True, (32, 32))}


def test_interrupt_saves_and_resume_ends_the_same(
    camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(SMALL, save_every=1000)
    assert train(recipe, tmp_path / "plain") is not None
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    calls = 0

    def press_ctrl_c(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return set_rate(*arguments)

    set_rate = module.set_rate
    monkeypatch.setattr(module, "set_rate", press_ctrl_c)
    assert train(recipe, tmp_path / "cut") is None
    assert "interrupted after step 5 of 9, saved: go on with --resume" in capsys.readouterr().out
    assert load_state(tmp_path / "cut" / "last.pt")["step"] == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert train(recipe, tmp_path / "cut", resume=True) is not None
    assert_same_weights(tmp_path / "plain", tmp_path / "cut")


def test_ctrl_c_on_the_command_line_exits_with_130(camvid: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", recipe=replace(SMALL, epochs=500))
    wait_for(tmp_path / "run" / "last.pt", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "go on with --resume" in output and "Traceback" not in output
    assert 0 < load_state(tmp_path / "run" / "last.pt")["step"] < 1500


def test_workers_do_not_change_the_samples(camvid: Path, tmp_path: Path) -> None:
    assert train(replace(SMALL, epochs=1), tmp_path / "none") is not None
    assert train(replace(SMALL, epochs=1, workers=2), tmp_path / "two") is not None
    assert_same_weights(tmp_path / "none", tmp_path / "two")


def test_batches_are_a_function_of_the_step() -> None:
    whole = list(Batches(10, 4, steps=6, seed=3))
    assert len(whole) == 6 and all(len(batch) == 4 for batch in whole)
    assert list(Batches(10, 4, steps=6, seed=3, first=3)) == whole[3:]
    for epoch in range(3):
        seen = [index for batch in whole[2 * epoch : 2 * epoch + 2] for _, index in batch]
        assert len(set(seen)) == 8 and {e for b in whole[2 * epoch : 2 * epoch + 2] for e, _ in b} == {epoch}
    assert list(Batches(10, 4, steps=6, seed=4)) != whole
    halves = [list(Batches(10, 4, steps=6, seed=3, rank=rank, processes=2)) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in whole]


def test_augmentation_differs_by_epoch_and_not_by_order(camvid: Path) -> None:
    from seglearn.data.transforms import Augment

    samples = Augmented(CamVid("train"), Augment((32, 32), 11, jitter=0.2), seed=1)
    first = samples[(0, 3)][0]
    other = samples[(1, 3)][0]
    assert torch.equal(samples[(0, 3)][0], first) and not torch.equal(first, other)


def test_learning_rate_drops_to_a_tenth_where_the_recipe_says() -> None:
    recipe = replace(SMALL, lr=0.1, power=0.0, warmup=0.0, drops=(0.5, 0.75))
    rates = [module.learning_rate(recipe, step, 100) for step in (0, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    with pytest.raises(InputError, match="drops is"):
        replace(SMALL, drops=(50,)).check()


def test_norms_are_synchronised_only_where_gpus_are(monkeypatch: pytest.MonkeyPatch) -> None:
    net = models.create("gcn", 3, "laptop")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sync_norms needs GPUs"):
        synchronise_norms(net)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names, training = list(net.state_dict()), sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    synchronised = synchronise_norms(net)
    assert list(synchronised.state_dict()) == names
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synchronised.modules()) == training > 10


def test_learning_rate_is_poly_at_every_step() -> None:
    recipe = replace(SMALL, lr=0.1, power=0.9)
    for step in (0, 1, 50, 99):
        assert module.learning_rate(recipe, step, 100) == pytest.approx(0.1 * (1 - step / 100) ** 0.9)
    warm = replace(recipe, warmup=0.1)
    assert module.learning_rate(warm, 0, 100) == pytest.approx(0.01)
    assert module.learning_rate(warm, 9, 100) == pytest.approx(0.1 * (1 - 9 / 100) ** 0.9)


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    net = models.create("fcn8s", 11, "laptop")
    optimizer = module.make_optimizer(net, replace(SMALL, weight_decay=0.01))
    module.set_rate(optimizer, replace(SMALL, lr=0.1), 0, 10)
    bias = net.score_fr.bias
    group = next(g for g in optimizer.param_groups if any(p is bias for p in g["params"]))
    assert group["lr"] == pytest.approx(0.2) and group["weight_decay"] == 0
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(net.parameters()))


def test_loss_and_class_weights_are_the_recipes(camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def create(*arguments: Any) -> Any:
        asked.append(arguments)
        return built(*arguments)

    built = losses.create
    monkeypatch.setattr(losses, "create", create)
    for number, (loss, rule) in enumerate(
        [("cross_entropy", "none"), ("ohem", "enet"), ("focal+lovasz", "median_frequency")]
    ):
        recipe = replace(SMALL, epochs=1, loss=loss, class_weights=rule)
        assert train(recipe, tmp_path / str(number)) is not None
        name, ignore_index, weight = asked.pop()
        assert not asked and (name, ignore_index) == (loss, 11)
        assert (weight is None) == (rule == "none")
        if weight is not None:
            assert torch.equal(weight.cpu(), losses.class_weights(CamVid("train"), rule))
    one, two = (weights_of(tmp_path / number) for number in ("0", "2"))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    assert load_recipe("laptop/fcn8s", ["--loss", "cross_entropy+dice"]).loss == "cross_entropy+dice"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "fcn8"}, "model 'fcn8' is unknown: did you mean 'fcn8s'"),
        ({"data": "camvit"}, "dataset 'camvit' is unknown: did you mean 'camvid'"),
        ({"batch_size": 1}, "1 image is computed at a time, but this model has batch normalisation"),
        ({"accumulate": 4}, "1 image is computed at a time, but this model has batch normalisation"),
        ({"accumulate": 3}, "batch_size is 4, 4 for each process, which cannot be computed in 3 equal parts"),
        ({"accumulate": 0}, "accumulate is 0: it must be at least 1"),
        ({"ema": 1.0}, "ema is 1.0: it must be at least 0"),
        ({"test_scales": ()}, "scales is .*: give at least one factor"),
        ({"batch_size": 13}, "batch_size is 13 but the training split has 12 images"),
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"scale": (2.0, 1.0)}, "scale is"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"loss": "focl"}, "loss 'focl' is unknown: did you mean 'focal'"),
        ({"loss": "dice", "class_weights": "enet"}, "loss dice takes no class weights"),
        ({"lr": 1e9, "epochs": 30}, "the loss is .*: lower lr"),
        ({"init_from": "nowhere.safetensors"}, "checkpoint nowhere.safetensors is not there"),
    ],
)
def test_what_cannot_work_is_refused(camvid: Path, tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        train(replace(SMALL, **change), tmp_path / "run")


def test_unknown_recipe_field_or_value(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'laptop/fcn8s'"):
        load_recipe("laptop/fcn8")
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rate: 1\n")
    with pytest.raises(InputError, match="learning_rate"):
        load_recipe(str(file))
    file.write_text("epochs: many\n")
    with pytest.raises(InputError, match="epochs"):
        load_recipe(str(file))


def test_another_run_is_never_written_over(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, result = run
    recipe = Recipe(**result["recipe"])
    with pytest.raises(InputError, match="already holds a run: go on with --resume"):
        train(recipe, folder)
    with pytest.raises(InputError, match=r"started with another recipe \(now lr: 0.5\)"):
        train(replace(recipe, lr=0.5), folder, resume=True)
    with pytest.raises(InputError, match="nothing to resume"):
        train(recipe, tmp_path / "empty", resume=True)


def test_a_start_that_failed_can_be_repeated(camvid: Path, tmp_path: Path) -> None:
    mask = camvid / "trainannot" / "train_000.png"
    content = mask.read_bytes()
    mask.unlink()
    with pytest.raises(InputError, match="is missing for picture"):
        train(replace(SMALL, epochs=1), tmp_path / "run")
    mask.write_bytes(content)
    assert train(replace(SMALL, epochs=1), tmp_path / "run") is not None


def test_folder_that_cannot_be_written(camvid: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written.*choose another with --folder"):
        train(SMALL, tmp_path / "file" / "run")


def test_damaged_state_is_named(camvid: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(SMALL.to_yaml())
    (folder / "last.pt").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"last\.pt cannot be read as a training state"):
        train(SMALL, folder, resume=True)


def test_checkpoint_of_another_class_count(tmp_path: Path) -> None:
    from seglearn.training.checkpoint import init_weights, load_weights

    file = tmp_path / "five.safetensors"
    save_weights(file, models.create("fcn8s", 5, "laptop"), {})
    with pytest.raises(InputError, match=r"score_fr.weight of shape \[5, .*\[11, .*another number of classes"):
        load_weights(models.create("fcn8s", 11, "laptop"), file)
    net = models.create("fcn8s", 11, "laptop")
    skipped = init_weights(net, file)
    assert skipped and all(name.startswith("score") for name in skipped)
    with pytest.raises(InputError, match="of another model: it lacks"):
        load_weights(models.create("fcn16s", 5, "laptop"), file)
    with pytest.raises(InputError, match="does not say which model"):
        load_model(file)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_training_computes_in_the_recipe_s_precision(
    precision: str, dtype: torch.dtype, camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()

    class Watched(NormFree):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = super().forward(images)
            if self.training:
                seen.add(logits.dtype)
            return logits

    monkeypatch.setattr(models, "create", lambda *_, **__: Watched())
    assert train(replace(SMALL, epochs=1, precision=precision), tmp_path / "run") is not None  # type: ignore[arg-type]
    assert seen == {dtype}


def test_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    from seglearn.training import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert device.choose_precision() == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert device.choose_precision() == "bf16-mixed"
