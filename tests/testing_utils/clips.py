"""Clips for data folders: small videos with audio."""

from tests.testing_utils.pipelines import make_audio, make_image
from vasa_hf.media.video import VideoWriter


def make_clips(folder, lengths):
    """Video files of so many frames with sound, except one called mute."""
    (folder / "clips").mkdir(parents=True)
    for seed, (name, frames) in enumerate(lengths.items()):
        sound = None if name == "mute" else (make_audio(frames / 25, seed), 16_000)
        with VideoWriter(folder / "clips" / f"{name}.mp4", 25, (32, 32), sound, provenance=False) as writer:
            for i in range(frames):
                writer.write(make_image(seed, (32, 32 + i))[:, -32:])
