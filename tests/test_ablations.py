"""Ablations: the rule on made-up numbers, arms that can be built, runs that go on after a kill."""

import itertools
import json
import math
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from seglearn import cli, models
from seglearn.ablations import RULE, TABLE, Ablation, Arm, Claim, fill, judge, plan, runs, summary
from seglearn.errors import InputError
from seglearn.models.dilation import ContextModule
from seglearn.models.gcn import large_kernel
from seglearn.models.segnet import paper_basic

TINY: dict[str, Any] = {"epochs": 2, "evaluate_every": 2, "batch_size": 4, "crop": [32, 48], "scale": [0.7, 1.5]}
TINY |= {"test_scales": [1.0], "save_every": 2}
SMALL = Ablation(
    "small",
    "Does it run?",
    "it did",
    "nobody 2026",
    (
        Arm("32s", "laptop/fcn32s", TINY),
        Arm("16s", "laptop/fcn16s", TINY, start="32s"),
        Arm("v3", "laptop/deeplab_v3", TINY),
        Arm("v3 at 8", "laptop/deeplab_v3", TINY, of="v3", tested={"output_stride": 8}),
        Arm("v3 in windows", "laptop/deeplab_v3", TINY, of="v3", windows=True),
    ),
    (
        Claim("a skip has more parameters", "16s", "32s", "parameters"),
        Claim("finer cells take more work", "v3 at 8", "v3", "flops"),
        Claim("finer cells score higher", "v3 at 8", "v3"),
    ),
)


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([0.03, 0.02, 0.04], 0.0, "holds"),
        ([-0.03, -0.02, -0.04], 0.0, "does not hold"),
        ([0.03, -0.02, 0.01], 0.0, "cannot tell here"),
        ([0.001, -0.002, 0.002], -0.01, "holds"),  # as good as, within a percent
        ([-0.03, -0.031, -0.029], -0.01, "does not hold"),
        ([-0.03, 0.01, -0.02], -0.01, "cannot tell here"),
        ([100, 100, 100], 0.0, "holds"),  # memory does not depend on the seed
        ([-100, -100], 0.0, "does not hold"),
        ([0.0, 0.0, 0.0], 0.0, "cannot tell here"),
        ([0.5], 0.0, "cannot tell here"),
        ([], 0.0, "cannot tell here"),
    ],
)
def test_the_rule(differences: list[float], margin: float, verdict: str) -> None:
    assert judge(differences, margin).verdict == verdict


def test_the_rule_by_hand() -> None:
    found = judge([0.01, 0.02, 0.06])
    assert found.mean == pytest.approx(0.03)
    # squared deviations 4, 1, 9 (times 1e-4), over n - 1 = 2, over n = 3
    assert found.standard_error == pytest.approx(math.sqrt(14e-4 / 2 / 3))
    assert (found.verdict, found.seeds) == ("cannot tell here", 3)  # 0.030 against twice 0.0153


def test_the_rule_errs_as_often_as_it_says() -> None:
    draws = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)).tolist()
    wrong = sum(judge(three).verdict != "cannot tell here" for three in draws)
    assert wrong / len(draws) == pytest.approx(0.18, abs=0.01) and "in 18 of 100" in RULE
    tens = torch.randn(20_000, 10, generator=torch.Generator().manual_seed(1)).tolist()
    wrong = sum(judge(ten).verdict != "cannot tell here" for ten in tens)
    assert wrong / len(tens) == pytest.approx(0.08, abs=0.01) and "ten seeds in 8" in RULE


@pytest.mark.parametrize("ablation", TABLE, ids=lambda ablation: ablation.name)
def test_every_arm_can_be_built(ablation: Ablation, tmp_path: Path) -> None:
    labels = [arm.label for arm in ablation.arms]
    assert len(set(labels)) == len(labels)
    described = {}
    for arm in ablation.arms:
        run = plan(ablation, arm, 0, tmp_path)  # checks the recipe
        recipe = run.recipe
        described[arm.label] = (run.digest, str(arm.tested), arm.windows, arm.crf)
        with torch.device("meta"):
            trained = models.create(recipe.model, 11, recipe.size, **recipe.options)
            tested = models.create(recipe.model, 11, recipe.size, **{**recipe.options, **arm.tested})
            assert tested(torch.zeros(2, 3, 90, 120)).shape == (2, 11, 90, 120)
        tested.load_state_dict(trained.state_dict())
        for name in recipe.freeze:
            trained.get_submodule(name)
    assert len(set(described.values())) == len(labels), "two arms are the same"
    for claim in ablation.claims:
        assert {claim.more, claim.less} <= set(labels) and claim.score in runs.SCORES


def test_shared_arms_are_one_run(tmp_path: Path) -> None:
    by_name = {ablation.name: ablation for ablation in TABLE}
    first, second = (by_name[name] for name in ("dilation_context", "dilation_start"))
    one, two = (plan(each, each.arm("basic context"), 1, tmp_path) for each in (first, second))
    assert one == two and one.parent is not None and one.parent.folder != one.folder
    assert plan(first, first.arm("basic context"), 2, tmp_path).folder != one.folder


def test_options_change_what_they_say() -> None:
    def parameters(name: str, **options: Any) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in models.create(name, 11, "laptop", **options).parameters())

    gcn = parameters("gcn", kernel=7)
    features = 24 * (1 + 2 + 4 + 8)  # channels of the four maps together
    separable = sum(2 * 7 * 11 * (channels + 11) + 4 * 11 for channels in (24, 48, 96, 192))
    assert parameters("gcn", kernel=7, kind="trivial") == gcn - separable + 49 * 11 * features + 4 * 11
    assert parameters("gcn", kernel=7, refine=False) == gcn - 9 * 2 * (9 * 11 * 11 + 11)
    stack = sum(2 * (9 * c * c + c) + 9 * c * 11 + 11 for c in (24, 48, 96, 192))
    assert parameters("gcn", kernel=7, kind="stack") == gcn - separable + stack
    assert parameters("refinenet") - parameters("refinenet", pools=0) == 4 * 9 * (64**2 + 3 * 32**2)
    assert parameters("segnet_basic", keeps="nothing") == parameters("segnet_basic", keeps="features")
    assert parameters("pspnet", bins=[1]) > parameters("pspnet", bins=[])
    assert parameters("dilation", identity=False) == parameters("dilation")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("gcn", {"kind": "round"}, "'global', 'trivial' or 'stack'"),
        ("gcn", {"kind": "stack", "kernel": 1}, "at least 3 in a stack"),
        ("gcn", {"kind": "trivial", "kernel": 4}, "odd kernel"),
        ("refinenet", {"cascades": 3}, "4, 2 and 1"),
        ("segnet_basic", {"keeps": "all"}, "'indices', 'nothing' or 'features'"),
        ("deeplab_v1", {"fc6": [4, 1]}, "even rate"),
    ],
)
def test_wrong_options_are_explained(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        models.create(name, 11, "laptop", **options)


def test_a_stack_sees_as_far_as_its_kernel() -> None:
    for kind in ("global", "trivial", "stack"):
        x = torch.randn(1, 2, 21, 21, requires_grad=True)
        large_kernel(2, 3, 7, kind)(x)[0, :, 10, 10].sum().backward()  # type: ignore[arg-type]
        assert x.grad is not None
        rows = x.grad[0].abs().sum((0, 2)).nonzero().flatten()
        assert rows.tolist() == list(range(7, 14)), kind


def test_unpooling_with_features_adds_them() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 33, 46)
    nets = [models.create("segnet_basic", 11, "laptop", keeps=keeps) for keeps in ("indices", "features", "nothing")]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    found = [net.eval()(images) for net in nets]
    assert all(not torch.equal(one, two) for one, two in itertools.combinations(found, 2))
    assert all(each.shape == (2, 11, 33, 46) for each in found)


def test_memory_of_segnets_decoder() -> None:
    """The paper's arithmetic: 64 maps of 180x240 indices of 2 bits, as floats 11.06 MB a pooled map."""
    indices, nothing, features = (paper_basic(11, keeps) for keeps in ("indices", "nothing", "features"))
    windows = 180 * 240 + 90 * 120 + 45 * 60 + 23 * 30
    assert indices.decoder_memory(360, 480) == 64 * windows * 2 // 8
    assert nothing.decoder_memory(360, 480) == 0
    pixels = 360 * 480 + 180 * 240 + 90 * 120 + 45 * 60
    assert features.decoder_memory(360, 480) == 64 * windows * 2 // 8 + 64 * pixels * 4


def test_a_random_start_is_not_the_identity() -> None:
    torch.manual_seed(0)
    scores = torch.rand(1, 4, 9, 9)
    assert torch.equal(ContextModule(4)(scores), scores)
    assert not torch.allclose(ContextModule(4, identity=False)(scores), scores, atol=0.1)


def test_interrupted_and_resumed(camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SETTING", {})
    out, folder = tmp_path / "out", tmp_path / "runs"
    file = out / "small.json"
    popen = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def note(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    def kill() -> None:
        state = plan(SMALL, SMALL.arm("16s"), 0, folder).folder / "last.pt"
        deadline = time.monotonic() + 300
        while not state.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        started[-1].send_signal(signal.SIGKILL)

    monkeypatch.setattr(subprocess, "Popen", note)
    killer = threading.Thread(target=kill)
    killer.start()
    said: list[str] = []
    failures = fill([SMALL], [0], folder, out, said.append)
    killer.join()
    assert len(failures) == 1 and "small, 16s, seed 0: killed by signal 9" in failures[0]
    partial = json.loads(file.read_text())
    assert [entry["arm"] for entry in partial["entries"]] == ["32s", "v3", "v3 at 8", "v3 in windows"]
    assert [claim["verdict"] for claim in partial["claims"]] == ["cannot tell here"] * 3  # one seed is none

    assert fill([SMALL], [0], folder, out, said.append) == []
    # a training each of three arms, and the one that was killed twice: the last two arms train nothing
    assert len(started) == 4 and "--resume" in started[-1].args  # type: ignore[operator]
    entries = json.loads(file.read_text())["entries"]
    assert [(entry["arm"], entry["seed"]) for entry in entries] == [(arm.label, 0) for arm in SMALL.arms]
    run = plan(SMALL, SMALL.arm("16s"), 0, folder)
    log = run.folder.with_name(f"{run.folder.name}.log").read_text()
    assert run.parent is not None
    assert f"started from {run.parent.folder / 'best.safetensors'}; kept their own start: score_pool4.weight" in log
    for entry in entries:
        assert 0 <= entry["miou_near"] <= 1 and 0 <= entry["miou_inside"] <= 1 and entry["data"]["images"] == 5

    # as if a second seed had scored 0.1 more
    second = [{**entry, "seed": 1, "miou": entry["miou"] + 0.1} for entry in entries]
    result = summary(SMALL, [*entries, *second], folder)
    skip, work, score = result["claims"]
    assert skip["verdict"] == work["verdict"] == "holds" and skip["mean"] == 128 * 11 + 11  # score_pool4
    assert score["differences"].keys() == {0, 1}
    v3, v3_at_8, in_windows = result["arms"][2:]
    assert in_windows["windows"] and in_windows["miou"] != v3["miou"]
    assert v3["miou"]["mean"] != v3_at_8["miou"]["mean"] and v3["parameters"] == v3_at_8["parameters"]
    own = entries[2]["miou"]
    assert v3["miou"] == {"mean": pytest.approx(own + 0.05), "deviation": pytest.approx(0.1 / 2**0.5)}
    assert result["rule"] == RULE and entries[0]["training_memory"] > 0

    kept = file.read_bytes()
    assert fill([SMALL], [0], folder, out, said.append) == []
    assert file.read_bytes() == kept and len(started) == 4  # nothing is missing, nothing is done
    changed = Ablation(
        "small",
        "",
        "",
        "",
        (Arm("32s", "laptop/fcn32s", TINY | {"lr": 0.5}), *SMALL.arms[1:]),
        SMALL.claims,
    )
    assert [e["arm"] for e in summary(changed, entries, folder)["entries"]] == ["v3", "v3 at 8", "v3 in windows"]


def test_the_command(camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["ablate", "gcn_kernels"])
    assert ended.value.code == 2 and "did you mean 'gcn_kernel'?" in capsys.readouterr().err
    (tmp_path / "fcn_skips.json").write_text("[]")
    with pytest.raises(SystemExit) as ended:
        cli.main(["ablate", "fcn_skips", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")])
    assert ended.value.code == 2 and "is no ablation" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["ablate", "deeplab_v3_image_pooling", "dilation_start", "--list", "--seeds", "0", "1"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and "5 trainings for each of 2 seeds" in printed
