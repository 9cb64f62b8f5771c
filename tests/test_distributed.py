"""Several processes train and score as one does: under torchrun, on one node and on two, killed and resumed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import write_camvid
from test_training import SMALL, weights_of

# Frozen modules are in evaluation mode: neither norms nor dropout tell the number of processes.
RECIPE = replace(
    SMALL, epochs=7, batch_size=4, freeze=("backbone", "fc6", "fc7"), class_weights="enet", precision="32-true", lr=0.05
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 photographs, 3 batches an epoch, 21 steps; crops reach beyond them, so processes differ in labelled pixels."""
    root = tmp_path_factory.mktemp("distributed")
    file = root / "recipe.yaml"
    file.write_text(replace(RECIPE, scale=(0.4, 1.0), root=str(write_camvid(root))).to_yaml())
    return file


def launch(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def train(recipe: Path, folder: Path, *words: str, launcher: list[str] | None = None) -> subprocess.Popen[str]:
    command = launcher or [sys.executable]
    return launch(*command, "-m", "seglearn", "train", str(recipe), "--folder", str(folder), *words)


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def on_this_machine(processes: int) -> list[str]:
    return [*TORCHRUN, "--standalone", "--nproc-per-node", str(processes)]


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """What one process makes of it."""
    folder = recipe.parent / "alone"
    end(train(recipe, folder))
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    expected, found = weights_of(one), weights_of(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    assert results[0]["iou"] == pytest.approx(results[1]["iou"], abs=1e-3, nan_ok=True)
    losses = [[row["loss"] for row in result["curve"]] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_processes_train_as_one(recipe: Path, alone: Path) -> None:
    end(train(recipe, recipe.parent / "two", launcher=on_this_machine(2)))
    assert_same_run(alone, recipe.parent / "two")
    result = json.loads((recipe.parent / "two" / "result.json").read_text())
    assert result["machine"]["processes"] == 2
    fresh = json.loads((alone / "result.json").read_text())["curve"]
    assert fresh[0]["loss"] != pytest.approx(fresh[-1]["loss"], rel=1e-3), "nothing was learnt"


def test_two_nodes_train_as_one_process(recipe: Path, alone: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rendezvous = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    folder = recipe.parent / "nodes"
    nodes = [train(recipe, folder, launcher=[*TORCHRUN, *rendezvous, "--node-rank", str(rank)]) for rank in (0, 1)]
    for node in nodes:
        end(node)
    assert_same_run(alone, folder)


def test_a_killed_process_ends_the_job_and_another_number_resumes_it(recipe: Path, alone: Path) -> None:
    folder = recipe.parent / "killed"
    job = train(recipe, folder, launcher=on_this_machine(2))
    deadline = time.monotonic() + 200
    while not (folder / "last.pt").exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    # the launcher's children; the one that is not rank 0
    children = [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
    ranks = {pid: environment_of(pid).get("RANK") for pid in children}
    victim = next(pid for pid, rank in ranks.items() if rank == "1")
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0 and time.monotonic() - killed < 30
    assert "exitcode  : -9" in output and "rank      : 1" in output
    assert not (folder / "result.json").exists()

    end(train(recipe, folder, "--resume"))  # one process where two were
    assert_same_run(alone, folder)


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def test_a_batch_that_processes_cannot_share_is_refused(recipe: Path) -> None:
    job = train(recipe, recipe.parent / "three", launcher=on_this_machine(3))
    output, _ = job.communicate(timeout=240)
    assert job.returncode != 0
    assert "batch_size is 4, which 3 processes cannot share evenly" in output
