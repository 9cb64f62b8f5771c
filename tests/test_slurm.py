"""The Slurm script, with stand-ins for Slurm's commands: what it starts, when it resumes, when it queues again."""

import os
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "train.slurm"


def submit(folder: Path, left: int, status: int = 0) -> tuple[int, list[str]]:
    """Run the script as Slurm would, `left` seconds before its limit; its exit status and what it called."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    calls = folder / "calls"
    for name, answer in {"srun": f"exit {status}", "scontrol": 'test "$1" = show && echo node7'}.items():
        (commands / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "{calls}"\n{answer}\ntrue\n')
        (commands / name).chmod(0o755)
    calls.write_text("")
    slurm = {"NODELIST": "node[7-8]", "NUM_NODES": "2", "ID": "42", "END_TIME": str(int(time.time()) + left)}
    environment = {
        **os.environ,
        **{f"SLURM_JOB_{name}": value for name, value in slurm.items()},
        "SLURM_GPUS_ON_NODE": "4",
        "SEGLEARN_RUNS": str(folder / "runs"),
        "PATH": f"{commands}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", SCRIPT, "voc/pspnet", "--batch_size", "32"], env=environment, cwd=folder)
    return done.returncode, calls.read_text().splitlines()


def test_it_starts_a_process_for_each_gpu_of_each_node(tmp_path: Path) -> None:
    status, calls = submit(tmp_path, left=80_000)
    assert status == 0 and len(calls) == 2
    assert "--nnodes 2 --nproc-per-node 4" in calls[1] and "--rdzv-endpoint node7:29500" in calls[1]
    assert calls[1].endswith(f"-m seglearn train voc/pspnet --folder {tmp_path}/runs/voc/pspnet --batch_size 32")


def test_a_run_out_of_time_queues_again_and_resumes(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "voc" / "pspnet"
    run.mkdir(parents=True)
    (run / "last.pt").touch()
    status, calls = submit(tmp_path, left=500, status=1)
    assert status == 0 and "--resume --batch_size 32" in calls[1] and calls[2] == "scontrol requeue 42"
    (run / "result.json").touch()
    assert len(submit(tmp_path, left=500)[1]) == 2  # it is done


def test_an_error_does_not_queue_again(tmp_path: Path) -> None:
    status, calls = submit(tmp_path, left=80_000, status=3)
    assert status == 3 and not any("requeue" in call for call in calls)
