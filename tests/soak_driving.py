"""Memory of `vasa-hf animate` while a long driving video drives a portrait.

python -m tests.soak_driving --minutes 10                       # tiny networks: 15,000 frames
python -m tests.soak_driving --minutes 1 --model vasa-small     # the embedded model, and its analyzer
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.testing_utils import driving_clips as clips
from tests.testing_utils.pipelines import make_vasa1_components
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.media import VideoReader
from vasa_hf.media.ffmpeg import ffmpeg_path


def measure_driving(folder, minutes, model=None):
    """Drive the portrait for some minutes, and sample the memory of the process each second.

    Args:
        folder (`Path`): For all files.
        minutes (`float`): Length of the driving video.
        model (`str`, *optional*): Embedded name or folder; tiny random networks without it.

    Returns:
        `dict`: frames, seconds, exit status, and MiB of the process: at a tenth, at the end and at most.
    """
    shot, driving, output = folder / "shot.mp4", folder / "driving.mp4", folder / "out.mp4"
    run = [ffmpeg_path(), "-v", "error", "-i", clips.zoom(folder / "large.mp4", 100, 1.2), "-vf", "scale=160:160", shot]
    subprocess.run(run, check=True)
    loop = [ffmpeg_path(), "-v", "error", "-stream_loop", "-1", "-i", shot, "-t", str(60 * minutes), "-c", "copy"]
    subprocess.run([*loop, driving], check=True)
    words, size = ["--driving-box", "40,16,104,80"], "32"
    if model is None:
        model = folder / "tiny"
        VasaTalkingFacePipeline(**make_vasa1_components()).save_pretrained(model)
        words += ["--box", "130,40,310,220"]
    else:
        words, size = [], "256"
    command = [sys.executable, "-m", "vasa_hf.cli", "animate", clips.PORTRAIT, driving, "-o", output]
    command += ["--system", "vasa1", "--model", model, "--size", size, "--threads", "1", *words]
    began, samples = time.monotonic(), []
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(1)
            samples.append(_resident_mib(process.pid))
    samples = [size for size in samples if size is not None]
    tenth = samples[: max(1, len(samples) // 10)]
    return {
        "frames": sum(1 for _ in VideoReader(output)) if output.exists() else 0,
        "seconds": round(time.monotonic() - began),
        "status": process.returncode,
        "memory_mib": {"a tenth": max(tenth), "end": samples[-1], "most": max(samples)},
    }


def _resident_mib(pid):
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20) or None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", help="embedded name or folder (tiny networks)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure_driving(Path(folder), options.minutes, options.model)
    print(json.dumps(result, indent=1))
    return result["status"]


if __name__ == "__main__":
    sys.exit(main())
