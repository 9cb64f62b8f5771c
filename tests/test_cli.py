"""The command `seglearn`, as a user types it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
from conftest import write_camvid
from PIL import Image
from test_training import SMALL

from seglearn import cli, models
from seglearn.data.camvid import CLASSES, PALETTE
from seglearn.training.checkpoint import save_weights


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    return int(caught.value.code or 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An FCN-8s that was never trained, with scores that are not all zero."""
    torch.manual_seed(0)
    net = models.create("fcn8s", 11, "laptop")
    for name, parameter in net.named_parameters():
        if name.startswith("score"):
            torch.nn.init.normal_(parameter, std=0.1)
    file = tmp_path / "net.safetensors"
    metadata = {
        "model": "fcn8s",
        "size": "laptop",
        "classes": CLASSES,
        "palette": PALETTE,
        "recipe": {"data": "camvid"},
    }
    save_weights(file, net, metadata)
    return file


@pytest.mark.parametrize(
    "command", ["models", "recipes", "data", "train", "evaluate", "crf-search", "predict", "export"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"seglearn {command}" in text and len(text) > 120


def test_help_of_train_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--help")
    text = capsys.readouterr().out
    for field in SMALL.__dataclass_fields__:
        assert f"--{field} " in text
    assert "None\n" not in text.replace("default None", "")


def test_models_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    assert "134,314,081" in capsys.readouterr().out  # FCN-8s at 11 classes
    assert run("recipes") == 0
    assert "laptop/fcn8s" in capsys.readouterr().out
    assert run("recipes", "laptop/fcn8s") == 0
    assert "model: fcn8s" in capsys.readouterr().out


def test_data_says_what_is_there(camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data") == 0
    text = capsys.readouterr().out
    assert f"in {camvid}" in text and "seglearn data fetch camvid" in text and "generated" in text


def test_train_evaluate_predict(camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(replace(SMALL, epochs=1).to_yaml())
    folder = tmp_path / "run"
    assert run("train", str(file), "--folder", str(folder), "--lr", "0.01") == 0
    assert "lr: 0.01" in (folder / "recipe.yaml").read_text()
    assert run("evaluate", str(folder), "--out", str(tmp_path / "scores.json")) == 0
    result = json.loads((folder / "result.json").read_text())
    again = json.loads((tmp_path / "scores.json").read_text())
    assert again["miou"] == result["miou"] and np.sum(again["matrix"]) == 5 * 46 * 64  # two rows are void
    capsys.readouterr()

    photograph = tmp_path / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()[:251, :333]).save(photograph)
    frame = camvid / "val" / "val_000.png"
    assert (
        run(
            "predict",
            str(frame),
            str(photograph),
            "--checkpoint",
            str(folder),
            "--out",
            str(tmp_path / "out"),
        )
        == 0
    )
    labels = Image.open(tmp_path / "out" / "astronaut_labels.png")
    assert labels.mode == "P" and labels.size == (333, 251) and np.array(labels).max() < 11
    assert tuple(labels.getpalette()[:3]) == PALETTE[0]
    assert Image.open(tmp_path / "out" / "val_000_overlay.png").size == (64, 48)
    assert str(photograph) in capsys.readouterr().out


def test_two_processes_count_every_image_once(tmp_path: Path, checkpoint: Path) -> None:
    """101 images, an odd number: a sampler that pads would count one twice."""
    write_camvid(tmp_path, train=1, val=101, size=(24, 32))
    asked = ["--bootstrap", "--boundary", "--calibration"]
    command = ["evaluate", str(checkpoint), "--root", str(tmp_path), "--precision", "32-true", *asked, "--out"]
    assert run(*command, str(tmp_path / "one.json")) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seglearn"]
    done = subprocess.run([*launch, *command, str(tmp_path / "two.json")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two and np.sum(one["matrix"]) == 101 * 22 * 32  # to the last digit
    assert one["miou_interval"][0] < one["miou"] < one["miou_interval"][1]
    assert 0 < one["boundary"]["f1"] < 1 and one["boundary"]["images"] == 101
    assert list(one["band_miou"]) == ["1", "2", "4", "8", "16"] and 0 < one["calibration"]["ece"] < 1


def test_evaluate_finds_the_data_that_the_run_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_camvid(tmp_path / "elsewhere")
    monkeypatch.setenv("SEGLEARN_DATA", str(tmp_path / "nothing"))
    recipe = replace(SMALL, epochs=1, root=str(root)).to_yaml()
    (tmp_path / "mine.yaml").write_text(recipe)
    assert run("train", str(tmp_path / "mine.yaml"), "--folder", str(tmp_path / "run")) == 0
    assert run("evaluate", str(tmp_path / "run")) == 0


def test_evaluate_reports_what_is_asked_for(camvid: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", str(checkpoint)) == 0
    text = capsys.readouterr().out
    assert not any(word in text for word in ("interval", "boundary", "calibration"))
    assert run("evaluate", str(checkpoint), "--bootstrap", "--boundary", "--calibration") == 0
    text = capsys.readouterr().out
    for words in ("95 % interval", "boundary F1", "mean of 5 images", "near borders", "calibration error"):
        assert words in text


def test_crf_is_searched_and_shown_beside_the_network(
    camvid: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("crf-search", str(checkpoint), "--every", "2") == 0
    file = checkpoint.parent / "crf.json"
    assert str(file) in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["search"]["images"] == 3 and found["rest"]["images"] == 2
    assert found["checkpoint"]["model"] == "fcn8s" and found["data"]["images"] == 5 and found["seconds"] > 0

    asked = [
        "evaluate",
        str(checkpoint),
        "--boundary",
        "--precision",
        "32-true",
        "--out",
        str(file.with_name("out.json")),
    ]
    assert run(*asked, "--crf", str(file)) == 0
    text = capsys.readouterr().out
    for words in ("IoU with CRF", "F1 with CRF", "The CRF ", "with CRF: boundary F1", "with CRF: mIoU near borders"):
        assert words in text
    one = json.loads(file.with_name("out.json").read_text())
    assert one["crf"]["settings"] == found["crf"] and np.sum(one["crf"]["matrix"]) == np.sum(one["matrix"])
    assert run(*asked, "--crf") == 0  # as in pydensecrf's example
    two = json.loads(file.with_name("out.json").read_text())
    assert two["crf"]["settings"]["appearance"] == {"sxy": 80, "srgb": 13, "compat": 10}
    assert one["matrix"] == two["matrix"] != two["crf"]["matrix"] != one["crf"]["matrix"]
    assert run("evaluate", str(checkpoint), "--crf", str(file.with_name("out.json"))) == 2
    assert "holds no settings" in capsys.readouterr().err


def test_two_processes_train_and_write_one_run(tmp_path: Path) -> None:
    write_camvid(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(replace(SMALL, epochs=1, root=str(tmp_path)).to_yaml())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seglearn"]
    command = [*launch, "train", str(file), "--folder", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["machine"]["processes"] == 2 and result["classes_averaged"] > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["train", "laptop/fcn"],
            "recipe 'laptop/fcn' is neither one of the package's nor a file: did you mean 'laptop/fcn",
        ),
        (["train", "laptop/fcn8s", "--learning_rate", "1"], "learning_rate"),
        (["predict", "nothing.png", "--checkpoint", "CHECKPOINT"], "picture nothing.png is not there"),
        (["predict", "nothing.png", "--checkpoint", "none"], "checkpoint none is not there"),
        (["evaluate", "CHECKPOINT", "--root", "ROOT", "--split", "vol"], "split 'vol' of CamVid is unknown"),
        (["data", "fetch", "scenes"], "nothing to fetch for scenes"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], sentence: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [{"CHECKPOINT": str(checkpoint), "ROOT": str(tmp_path)}.get(word, word) for word in words]
    assert run(*words) == 2
    output = capsys.readouterr()
    assert output.err.startswith("seglearn: error: ") and sentence in output.err and output.err.count("\n") == 1


def test_unknown_word_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--fast") == 2
    assert "unrecognized arguments: --fast" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_export_writes_a_model_that_runs_without_torch(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", str(checkpoint)) == 0
    file = checkpoint.parent / "model.onnx"
    assert str(file) in capsys.readouterr().out
    (logits,) = onnxruntime.InferenceSession(file).run(None, {"images": np.zeros((1, 3, 50, 70), np.float32)})
    assert logits.shape == (1, 11, 50, 70)
