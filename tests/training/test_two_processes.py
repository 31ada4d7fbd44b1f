"""The real trainings on two processes (gloo), as `torchrun --nproc_per_node 2` starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.testing_utils.face_data import make_face_data
from tests.training.recipes.test_moda import make_data

ROOT = Path(__file__).parents[2]


def launch(processes, recipe, *arguments, log=None):
    """Run a training and return its log."""
    log = Path(arguments[arguments.index("--output") + 1]) / "log.jsonl" if log is None else log
    # `accelerate launch --cpu` starts one process, whatever is asked for; torchrun starts them, accelerate finds them.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    command += ["-m", "vasa_hf.training", recipe, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(a) for a in command], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_face_autoencoder_on_two_processes_has_the_losses_of_one(tmp_path):
    """Same samples a step. Augmentations and noise differ by process, so losses agree as means, not digit by digit."""
    data, logs = make_face_data(tmp_path / "train"), {}
    for processes, batch in ((1, 8), (2, 4)):
        common = ["--data", data, "--cache", tmp_path / "cache", "--output", tmp_path / f"run{processes}"]
        common += ["--preset", "tiny", "--stage", "renderer", "--batch-size", batch, "--max-steps", 120, "--cpu"]
        common += ["--log-every", 1, "--sample-every", 0, "--warmup-steps", 10, "--learning-rate", 2e-3]
        logs[processes] = launch(processes, "face_autoencoder", *common)
        assert len(logs[processes]) == 120
    for name in ("generator_loss", "l1", "flow"):
        for part in (slice(0, 30), slice(90, 120)):
            one, two = (np.mean([line[name] for line in logs[p][part]]) for p in (1, 2))
            assert two == pytest.approx(one, rel=0.1), (name, part, one, two)
    weights = load_file(tmp_path / "run2" / "face_autoencoder" / "diffusion_pytorch_model.safetensors")
    assert all(np.isfinite(w.float().numpy()).all() for w in weights.values())


@pytest.mark.slow
def test_an_avatar_on_two_processes_has_the_losses_of_one(tmp_path):
    """The same frames an iteration: two of one process, or one of each. Cameras of Eq. 7 are a process's own."""
    logs, portrait = {}, ROOT / "vasa_hf" / "assets" / "portrait.jpg"
    changes = {"motion_minutes": 0.008, "motion_steps": 2, "num_frames": 8, "iterations": 8, "max_minutes": "null"}
    changes |= {"densify_from": 2, "densify_until": 6, "densify_every": 2, "max_gaussians": 21_000, "log_every": 1}
    for processes, batch in ((1, 2), (2, 1)):
        output = tmp_path / f"run{processes}"
        settings = [f"{name}={value}" for name, value in {**changes, "batch_size": batch}.items()]
        arguments = ["--image", portrait, "--output", output, "--seed", 0, "--device", "cpu", "--set", *settings]
        logs[processes] = launch(processes, "gaussian_avatar", *arguments, log=output / "fit" / "log.jsonl")
    one, two = logs[1][:8], logs[2][:8]
    assert [line["gaussians"] for line in one] == [line["gaussians"] for line in two]
    assert one[-1]["gaussians"] > one[0]["gaussians"]
    for name in ("recon", "scaling"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=0.02)


@pytest.mark.slow
def test_two_machines_train_one_model(tmp_path):
    """Two launchers that find each other by an address, as on two machines; each has one process here."""
    make_data().save(tmp_path / "keypoints.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tiny = {"hidden_size": 96, "num_heads": 2, "num_four_stream": 1, "num_two_stream": 1, "num_single_stream": 1}
    arguments = ["--prepared", tmp_path / "keypoints.safetensors", "--output", tmp_path / "run", "--window", 20]
    arguments += ["--preset", "small", "--model", json.dumps(tiny), "--batch-size", 4, "--max-steps", 6, "--cpu"]
    arguments += ["--log-every", 1, "--sample-every", 0, "--warmup-steps", 1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = []
    for rank in (0, 1):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--node_rank", rank]
        command += ["--nproc_per_node", 1, "--master_addr", "127.0.0.1", "--master_port", port]
        command += ["-m", "vasa_hf.training", "motion_transformer_moda", *arguments]
        words = [str(word) for word in command]
        running.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 7))  # written once, by the first machine
    weights = load_file(tmp_path / "run" / "motion_transformer" / "diffusion_pytorch_model.safetensors")
    assert all(np.isfinite(value.float().numpy()).all() for value in weights.values())
