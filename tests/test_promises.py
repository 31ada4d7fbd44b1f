"""A sample of `tests/fuzz`, by the functions that read files."""

from tests.testing_utils import hostile
from tests.testing_utils.promises import check_call
from vasa_hf import FaceImageProcessor, load_motion
from vasa_hf.media import VideoReader, load_audio


def test_hostile_files_are_refused_by_name(tmp_path):
    kinds = {"pictures": FaceImageProcessor().load, "sounds": load_audio, "videos": VideoReader, "motions": load_motion}
    kept = {"sounds": {"20 samples", "rate 50", "NaN", "infinity"}, "motions": set()}  # judged by who uses them
    kept["motions"] = {"other channels", "two videos", "scale 0", "values of 1e38"}
    for kind, read in kinds.items():
        folder = tmp_path / kind
        folder.mkdir()
        files = getattr(hostile, kind)(folder)
        for name, path in list(files.items())[::2]:
            if name not in kept.get(kind, ()):
                assert check_call(read, path), (kind, name)
