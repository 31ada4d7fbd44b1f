"""Work in processes that are killed at some moment: a server forks each of them, so that none has to import torch.

with Killer(log) as killer:
    seconds = killer.run("talk", **arguments)               # to the end
    killer.run("talk", kill_after=0.3 * seconds, **arguments)
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Killer:
    """Runs functions of this module, each in a process of its own; a context manager.

    Args:
        folder: For their temporary files, and what they print.
    """

    def __init__(self, folder):
        self.folder, self.said = Path(folder), 0

    def __enter__(self):
        (self.folder / "temporary").mkdir(parents=True)
        environment = {**os.environ, "TMPDIR": str(self.folder / "temporary"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.testing_utils.killed"]
        with open(self.folder / "log", "w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            self.server = subprocess.Popen(command, env={**environment, "OMP_NUM_THREADS": "1"}, cwd=ROOT, **pipes)
        assert self.server.stdout.readline() == "ready\n", self.log()
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait(timeout=60)
        self.server.stdout.close()

    def run(self, job, kill_after=None, **arguments):
        """Run a job to its end, or kill it by SIGKILL; returns the seconds that it ran, `None` if it was killed."""
        began, self.said = time.monotonic(), (self.folder / "log").stat().st_size
        self.server.stdin.write(json.dumps([job, arguments], default=str) + "\n")
        self.server.stdin.flush()
        process = int(self.server.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(process, signal.SIGKILL)  # still there, as a zombie at least: the server waits for our word
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        status = int(self.server.stdout.readline())
        if os.WIFSIGNALED(status):
            return None
        assert status == 0, self.log()
        return time.monotonic() - began

    def log(self):
        """What the last job had to say, but its progress."""
        lines = (self.folder / "log").read_bytes()[self.said :].decode(errors="replace").splitlines()
        return "\n".join(line for line in lines if "it/s" not in line)

    def left(self):
        """Temporary files, but those by which Python's `tempfile` tries whether a folder can be written to."""
        files = (self.folder / "temporary").iterdir()
        return sorted(path.name for path in files if not (path.is_file() and path.read_bytes() in (b"", b"blat")))


def serve():
    """Fork for each line of stdin."""
    import diffusers  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import vasa_hf
    import vasa_hf.cli

    for name in ("VasaTalkingFacePipeline", "Vasa3DAvatarPipeline"):
        getattr(vasa_hf, name)
    print("ready", flush=True)
    while line := sys.stdin.readline():
        job, arguments = json.loads(line)
        process = os.fork()
        if process == 0:
            answers = os.dup(1)
            os.dup2(2, 1)
            os.close(answers)
            status = 1
            try:
                status = globals()[job](**arguments) or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(process, flush=True)
        sys.stdin.readline()
        print(os.waitpid(process, 0)[1], flush=True)


def command(words):
    """A command of `vasa-hf`."""
    from vasa_hf.cli import main

    return main(words)


def convert(source, destination):
    """A checkpoint of SyncNet's, small."""
    from tests.convert.test_syncnet import TINY
    from vasa_hf.convert.syncnet import convert_syncnet
    from vasa_hf.models.syncnet import SyncNet

    convert_syncnet(source, destination, SyncNet(**TINY))


def prepare(videos, output):
    """Clips of a folder of videos."""
    from vasa_hf.data import prepare_job
    from vasa_hf.data.filters import Filters
    from vasa_hf.data.prepare import PrepareSettings

    lenient = {"min_face": 20, "min_sharpness": 0, "min_bits": 0, "min_change": 0, "max_blocks": 9, "max_jump": 1}
    lenient |= {"max_people": 9, "min_lips": 0}
    filters = Filters.named("loose", min_seconds=0.2, max_seconds=2.0, **lenient)
    prepare_job.prepare(videos, output, PrepareSettings(filters, size=64), clips_per_shard=1)


def fit(model, portrait, output, resume=False):
    """An avatar of a portrait; as `vasa-hf fit`, with a fit of seconds."""
    changes = {"motion_minutes": 0.008, "motion_steps": 2, "num_frames": 4, "iterations": 6, "max_minutes": "null"}
    changes |= {"checkpoint_every": 2, "preview_every": 0, "log_every": 1, "num_gaussians": 10350}
    words = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    return command(
        ["fit", portrait, "-o", output, "--model", model, "--seed", "1", *words, *["--resume"] * bool(resume)]
    )


def train(folder, output, resume=False):
    """A tiny motion transformer, on random motion."""
    import numpy as np

    from vasa_hf.data.clips import MotionData, MotionPriors
    from vasa_hf.models.motion_transformer_vasa1 import EMOTIONS
    from vasa_hf.training.recipes import motion_transformer as trainer

    trainer.PRESETS["tiny"] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}
    data, priors = (Path(folder) / f"{name}.safetensors" for name in ("data", "priors"))
    if not data.exists():
        rng = np.random.default_rng(0)
        motion = (0.1 * rng.standard_normal((90, 12))).astype(np.float32)
        motion[:, 5] = 0.25
        audio = rng.standard_normal((90, 4)).astype(np.float32)
        silence = np.zeros((3, 20, 4), np.float32)
        MotionData(motion, audio, np.array([0, 30, 60, 90]), np.arange(3), np.ones(3, bool), silence).save(data)
        gaze, emotion = np.zeros((2, 6), np.float32), np.zeros((len(EMOTIONS), 6), np.float32)
        gaze[0, 4], gaze[1, 5], emotion[:, 3] = -10.0, 20.0, 1.0
        blink = np.array([0, 0, 3, 0, 0, 0], np.float32)
        MotionPriors(np.eye(12, dtype=np.float32), np.zeros(6, np.float32), blink, gaze, emotion).save(priors)
    options = trainer.MotionTransformerOptions(
        prepared=str(data),
        priors=str(priors),
        dynamics=["lips=2", "lids=1", "brows=1", "gaze=2"],
        preset="tiny",
        window=20,
        context=5,
        batch_size=4,
        max_steps=24,
        checkpoint_every=2,
        sample_every=0,
        log_every=4,
        cpu=True,
        output=str(output),
        resume=resume and any(Path(output).glob("checkpoint-*")),
    )
    trainer.run(options)


def evaluate(model, data, output):
    """An evaluation of one part."""
    return command(
        ["eval", "--data", data, "--output", output, "--pipeline", model, "--parts", "self", "--metrics", "psnr"]
    )


if __name__ == "__main__":
    serve()
