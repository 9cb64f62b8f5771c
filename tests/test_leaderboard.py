"""The leaderboard: it goes on after any kill with the same results, and one failure or change touches nothing else."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_training import SMALL

from seglearn import cli, leaderboard
from seglearn.data import CamVid, scenes
from seglearn.data import camvid as camvid_module
from seglearn.errors import InputError
from seglearn.leaderboard import fill, gap_entry, gaps, plan, read_results, standings, table
from seglearn.training import Recipe, train

MEASURED = ("seconds", "milliseconds", "peak_memory")  # what two runs of one recipe may differ in


def write(path: Path, recipe: Recipe) -> str:
    path.write_text(recipe.to_yaml())
    return str(path)


def repeatable(out: Path) -> str:
    """The results without what is measured by the clock."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(each) for key, each in value.items() if key not in MEASURED}
        return [strip(each) for each in value] if isinstance(value, list) else value

    return json.dumps(strip(json.loads(out.read_text())), indent=1)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def entry(recipe: str, seed: int, miou: float, digest: str = "a", **other: Any) -> dict[str, Any]:
    """An entry as the file has it, invented."""
    return {
        "recipe": recipe,
        "seed": seed,
        "hash": digest,
        "split": "val",
        "model": recipe,
        "data": {"name": "camvid"},
        "miou": miou,
        "pixel_accuracy": 0.9,
        "class_accuracy": 0.8,
        "boundary_f1": 0.7,
        "parameters": 1000,
        "flops": 2_000_000_000,
        "milliseconds": 30.0,
        "peak_memory": 500.0,
        "seconds": {"training": 100.0 + seed},
        **other,
    }


def test_killed_anywhere_it_ends_the_same(camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # in every process: another number of threads adds in another order
    source = write(tmp_path / "tiny.yaml", replace(SMALL, epochs=12, evaluate_every=4))
    plain, cut = tmp_path / "plain.json", tmp_path / "cut.json"
    assert fill([source], [0, 1], tmp_path / "plain", plain) == []

    # seed 0: the leaderboard is killed, the process that trains lives on
    runs = tmp_path / "cut"
    first, second = (plan(source, seed, runs).folder / "last.pt" for seed in (0, 1))
    words = ["leaderboard", source, "--seeds", "0", "1", "--runs", str(runs), "--out", str(cut)]
    process = subprocess.Popen([sys.executable, "-m", "seglearn", *words])
    try:
        until(lambda: first.exists() or process.poll() is not None)
    finally:
        process.kill()
        process.wait()
    assert not (first.parent / "result.json").exists()

    # seed 1: the process that trains is killed
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def note(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    def kill() -> None:
        until(second.exists)
        started[-1].kill()

    monkeypatch.setattr(subprocess, "Popen", note)
    killer = threading.Thread(target=kill)
    killer.start()
    said: list[str] = []
    (failure,) = fill([source], [0, 1], runs, cut, say=said.append)
    killer.join()
    assert any("waiting for the process that still trains" in line for line in said)
    assert len(started) == 1, "a second process was started in the folder of one that lived"
    assert "seed 1: killed by signal 9" in failure
    assert [entry["seed"] for entry in read_results(cut)["entries"]] == [0]

    assert fill([source], [0, 1], runs, cut, say=said.append) == []
    assert "--resume" in started[-1].args  # type: ignore[operator]
    assert repeatable(cut) == repeatable(plain)
    found = read_results(cut)["entries"][0]
    assert set(found["seconds"]) >= {"training", "of_it_waiting_for_data", "of_it_evaluating", "evaluation"}
    assert 100 < found["peak_memory"] < 16_000 and found["milliseconds"] > 0  # MiB
    assert found["iou"].keys() == set(CamVid.classes) and len(found["curve"]) == 12
    assert found["miou"] == pytest.approx(found["val_miou"])  # the checkpoint reproduces what training reported


def test_failures_and_changes_touch_nothing_else(
    camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leaderboard, "milliseconds", lambda *_: 1.0)
    monkeypatch.chdir(tmp_path)
    recipe = replace(SMALL, epochs=1)
    sources = [
        write(Path("bad.yaml"), replace(recipe, init_from="nowhere.safetensors")),
        write(Path("good.yaml"), recipe),
    ]
    words = ["leaderboard", *sources, "--seeds", "3", "--out", "board.json"]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert "bad, seed 3: checkpoint nowhere.safetensors is not there" in printed.err
    (old,) = read_results("board.json")["entries"]
    assert (old["recipe"], old["seed"]) == ("good", 3) and f"{100 * old['miou']:.2f}" in printed.out

    before = Path("board.json").read_bytes()
    assert fill(["good.yaml"], [3], Path("runs/leaderboard"), Path("board.json")) == []
    assert Path("board.json").read_bytes() == before  # nothing is missing, nothing is done

    write(Path("good.yaml"), replace(recipe, lr=0.001))
    assert fill(["good.yaml"], [3], Path("runs/leaderboard"), Path("board.json")) == []
    kept, new = read_results("board.json")["entries"]
    assert kept == old and new["hash"] != old["hash"] and new["fields"]["lr"] == 0.001
    folders = [path for path in Path("runs/leaderboard").glob("good-3-*") if path.is_dir()]
    assert len(folders) == 2 and all((folder / "result.json").exists() for folder in folders)
    (row,) = standings(read_results("board.json"))
    assert row["seeds"] == [3] and row["miou"] == new["miou"]


def test_a_damaged_checkpoint_stops_no_other_run(camvid: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "tiny.yaml", SMALL)
    for seed in (0, 1):
        folder = plan(source, seed, tmp_path / "runs").folder
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        (folder / "best.safetensors").write_bytes(b"half a file")
    failures = fill([source], [0, 1], tmp_path / "runs", tmp_path / "board.json")
    assert len(failures) == 2 and all("best.safetensors cannot be read" in failure for failure in failures)


def test_hash_is_of_what_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def digest(recipe: Recipe, seed: int = 0) -> str:
        return plan(write(Path("one.yaml"), recipe), seed, Path("runs")).digest

    base = digest(SMALL)
    assert digest(SMALL, seed=1) == base  # the seeds of one recipe are averaged
    assert digest(replace(SMALL, workers=2, save_every=7, root="elsewhere")) == base
    for change in ({"lr": 0.5}, {"data": "scenes"}, {"options": {"at_once": True}}, {"crop": (32, 64)}):
        assert digest(replace(SMALL, **change)) != base


def test_a_recipe_starts_from_the_run_of_the_same_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Path("runs/leaderboard")
    front = plan("laptop/dilation_front", 2, runs)
    run = plan("laptop/dilation", 2, runs)
    assert run.parent == front and run.words[-2:] == ("--init_from", str(front.folder / "best.safetensors"))
    assert plan("laptop/dilation", 2, Path("elsewhere")).digest == run.digest

    write(Path("first.yaml"), SMALL)
    write(Path("second.yaml"), replace(SMALL, init_from="runs/first/best.safetensors"))
    before = plan("second.yaml", 0, runs)
    write(Path("first.yaml"), replace(SMALL, lr=0.5))
    assert plan("second.yaml", 0, runs).digest != before.digest  # another start is another run

    def fail(command: list[str], stream: Any) -> int:
        stream.write(b"epoch 1\rseglearn: error: the loss is nan.\n")
        return 2

    monkeypatch.setattr(leaderboard, "wait_for", fail)
    problem = leaderboard.train_missing(plan("second.yaml", 0, runs))
    assert problem == "it starts from first, which failed: the loss is nan."


def test_standings_are_means_over_seeds() -> None:
    results: leaderboard.Results = {
        "entries": [
            entry("low", 0, 0.50),
            entry("changed", 0, 0.10, "old"),
            entry("changed", 1, 0.20, "old"),
            entry("low", 1, 0.52),
            entry("high", 0, 0.60),
            entry("changed", 0, 0.55, "new"),
            entry("low", 2, 0.57),
            entry("high", 0, 0.1, split="test"),
            entry("high", 0, 0.1, data={"name": "scenes"}),
        ],
        "domain_gap": [
            {**entry("low", seed, miou), "trained_on": "scenes", "evaluated_on": "camvid"}
            for seed, miou in ((0, 0.2), (1, 0.4))
        ],
    }
    high, changed, low = standings(results)
    assert (high["recipe"], changed["recipe"], low["recipe"]) == ("high", "changed", "low")
    assert low["miou"] == pytest.approx(0.53) and low["miou_std"] == pytest.approx(0.036056, abs=1e-6)
    assert low["seeds"] == [0, 1, 2] and low["seconds"] == pytest.approx(101)
    assert (changed["miou"], changed["seeds"], changed["miou_std"]) == (0.55, [0], None)
    (gap,) = gaps(results)
    assert gap["miou"] == pytest.approx(0.3) and (gap["trained_on"], gap["evaluated_on"]) == ("scenes", "camvid")
    printed = table(results)
    assert "53.00 ± 3.61" in printed and "1,000" in printed and "2.00" in printed
    assert printed.index("high") < printed.index("changed") < printed.index("low ")
    assert "30.00 ± 14.14" in printed and "scenes, camvid" in printed
    assert "10.00" in table(results, "test")


def test_table_alone_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leaderboard, "fill", lambda *_: pytest.fail("it began to train"))
    leaderboard.add(tmp_path / "board.json", "entries", entry("one", 0, 0.5), tmp_path / "lock")
    with pytest.raises(SystemExit) as ended:
        cli.main(["leaderboard", "--table", "--out", str(tmp_path / "board.json")])
    assert ended.value.code == 0 and "50.00" in capsys.readouterr().out


def test_what_is_there_is_never_lost(tmp_path: Path) -> None:
    out = tmp_path / "board.json"
    writers = [
        threading.Thread(target=leaderboard.add, args=(out, "entries", entry("one", seed, 0.5), tmp_path / "lock"))
        for seed in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(each["seed"] for each in read_results(out)["entries"]) == list(range(8))
    out.write_text(out.read_text()[:-20])
    with pytest.raises(InputError, match="board.json is no leaderboard"):
        leaderboard.add(out, "entries", entry("two", 0, 0.5), tmp_path / "lock")
    assert "one" in out.read_text()


def test_a_split_that_is_not_there_is_said_before_training(
    camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(camvid_module, "fetch", offline)
    monkeypatch.setattr(leaderboard, "train_missing", lambda *_: pytest.fail("it began to train"))
    with pytest.raises(InputError, match="CamVid's test split was not found"):
        fill(["laptop/fcn8s"], [0], tmp_path / "runs", tmp_path / "board.json", split="test")


def test_default_recipes_are_the_laptops_on_camvid() -> None:
    names = leaderboard.default_recipes()
    assert {"laptop/fcn8s", "laptop/dilation", "laptop/deeplab_v3"} <= set(names)
    assert "laptop/crfrnn" not in names  # on generated scenes


def test_domain_gap(camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scenes.LENGTHS, "val", 3)
    seen: list[tuple[int, ...]] = []
    evaluate_on = leaderboard.evaluate_on

    def watch(model: Any, dataset: Any, recipe: Recipe) -> Any:
        seen.append((len(dataset), *dataset[0][0].shape, *dataset[0][1].shape))
        return evaluate_on(model, dataset, recipe)

    monkeypatch.setattr(leaderboard, "evaluate_on", watch)
    run = plan(write(tmp_path / "tiny.yaml", replace(SMALL, epochs=1)), 0, tmp_path / "runs")
    train(run.recipe, run.folder)
    monkeypatch.setattr(leaderboard, "train_missing", lambda *_: None)
    out = tmp_path / "board.json"
    own = CamVid("val")
    there = gap_entry(run, own, "scenes")
    assert (there["trained_on"], there["evaluated_on"], there["size"]) == ("camvid", "scenes", [48, 64])
    assert seen[-1] == (3, 3, 48, 64, 48, 64)
    assert gap_entry(run, own, "camvid")["miou"] != there["miou"]

    # a run on scenes, whose pictures have another size
    elsewhere = plan(str(tmp_path / "tiny.yaml"), 0, tmp_path / "runs", "scenes")
    assert elsewhere.recipe.data == "scenes" and elsewhere.digest != run.digest
    run.folder.rename(elsewhere.folder)
    run.folder.symlink_to(elsewhere.folder)
    assert fill([str(tmp_path / "tiny.yaml")], [0], tmp_path / "runs", out, domain_gap=True) == []
    cells = [(row["trained_on"], row["evaluated_on"]) for row in gaps(read_results(out))]
    assert cells == [(one, two) for one in ("camvid", "scenes") for two in ("camvid", "scenes")]
    assert seen[-2:] == [(5, 3, 180, 240, 180, 240), (3, 3, 180, 240, 180, 240)]
