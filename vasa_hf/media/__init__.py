"""Reading and writing video and sound files, and the marks of synthetic media. The only place that imports moviepy."""

from .audio import audio_blocks, load_audio, save_wav
from .provenance import MARK_THRESHOLD, detect_mark, embed_mark, read_provenance
from .video import VideoReader, VideoWriter, read_video

__all__ = [
    "MARK_THRESHOLD",
    "VideoReader",
    "VideoWriter",
    "audio_blocks",
    "detect_mark",
    "embed_mark",
    "load_audio",
    "read_provenance",
    "read_video",
    "save_wav",
]
