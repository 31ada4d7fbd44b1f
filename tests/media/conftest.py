import subprocess

import pytest

from vasa_hf.media.ffmpeg import ffmpeg_path


@pytest.fixture
def ffmpeg(tmp_path):
    """Run ffmpeg in `tmp_path` and return the path of its last argument."""

    def run(*options):
        command = [ffmpeg_path(), "-v", "error", "-y", *map(str, options)]
        subprocess.run(command, cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
        return tmp_path / options[-1]

    return run
