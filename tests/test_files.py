"""Files that cannot be written are rejected before the work; files of killed processes are removed."""

import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch

from vasa_hf.cli import avatars
from vasa_hf.files import check_writable, staging, sweep, temporary_prefix
from vasa_hf.media import VideoWriter
from vasa_hf.motion import MotionSpec, save_motion

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files and signals")


@posix
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 300, "File name too long"),
        ("b" * 255 + "/a", "existing folder"),
        ("folder", "is a folder"),
        ("pipe", "is a device"),
        ("a\0b", "."),
    ],
)
def test_unwritable_names_are_told_and_nothing_is_left(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        check_writable("output", tmp_path / name)
    assert len(str(error.value)) < 400
    with pytest.raises(ValueError, match=message), staging(tmp_path / name):
        raise AssertionError("the work began")
    assert sorted(os.listdir(tmp_path)) == before
    longest = "c" * 251 + ".mp4"
    check_writable("output", tmp_path / longest)
    with staging(tmp_path / longest) as folder:
        (folder / longest).write_text("x")
    assert (tmp_path / longest).read_text() == "x"


@posix
def test_a_full_disk_is_told_before_the_work_and_during_it(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # as a disk with 4 kB left
    try:
        with pytest.raises(ValueError, match="`output` must be a file that can be written, .*: File too large"):
            check_writable("output", tmp_path / "a.mp4")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, hard))
        random = np.random.default_rng(0)
        with pytest.raises(OSError), VideoWriter(tmp_path / "a.mp4", 25, (256, 256), crf=0) as writer:
            for _ in range(50):
                writer.write(random.integers(0, 255, (256, 256, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@posix
def test_leftovers_of_a_killed_process_go_and_those_of_others_stay(tmp_path):
    code = "import sys, os\nfrom vasa_hf.files import staging\n"
    code += "with staging(sys.argv[1]) as folder: print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "a.mp4")]
    killed, working = (subprocess.Popen(command, stdin=-1, stdout=subprocess.PIPE) for _ in range(2))
    for process in (killed, working):
        process.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (tmp_path / ".vasa-hf-other-1-x").mkdir()  # of another machine
    (tmp_path / ".vasa-hf-notes").mkdir()
    with staging(tmp_path / "b.txt") as folder:
        (folder / "b.txt").write_text("x")
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 4 and {".vasa-hf-other-1-x", ".vasa-hf-notes", "b.txt"} < set(left)
    assert any(f"-{working.pid}-" in name for name in left)
    working.kill()
    for process in (killed, working):
        process.communicate()


def test_own_temporary_files_are_not_swept(tmp_path):
    (tmp_path / f"{temporary_prefix()}x").mkdir()
    sweep(tmp_path)
    assert len(os.listdir(tmp_path)) == 1


@posix
def test_saved_motion_has_the_mode_of_other_files(tmp_path):
    before = os.umask(0o022)
    try:
        save_motion(tmp_path / "a.safetensors", torch.zeros(3, 8), MotionSpec({"a": 2}), 25)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644


@pytest.mark.parametrize(("made", "kept"), [((), False), (("settings.json",), False), (("frames/complete",), True)])
def test_a_refused_fit_leaves_no_folder(tmp_path, made, kept):
    folder = tmp_path / "me"
    with pytest.raises(ValueError, match="no face"), avatars._remove_if_refused(str(folder)):
        (folder / "fit" / "frames").mkdir(parents=True)
        for name in made:
            (folder / "fit" / name).write_text("{}")
        raise ValueError("no face")
    assert folder.exists() == kept


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "vasa_hf.cli", "info"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("vasa-hf: error: ")
    assert "No space left" in done.stderr and "Traceback" not in done.stderr and "Exception" not in done.stderr
