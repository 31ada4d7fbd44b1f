"""Reading and writing video and audio files, and the marks of synthetic media. The only place that imports moviepy."""

from .audio import audio_blocks, load_audio, save_wav
from .content_credentials import ContentCredentials, read_content_credentials
from .inspection import Provenance, find_provenance
from .provenance import read_provenance
from .video import VideoReader, VideoWriter, read_video
from .watermark import MARK_THRESHOLD, detect_mark, embed_mark

__all__ = [
    "MARK_THRESHOLD",
    "ContentCredentials",
    "Provenance",
    "VideoReader",
    "VideoWriter",
    "audio_blocks",
    "detect_mark",
    "embed_mark",
    "find_provenance",
    "load_audio",
    "read_content_credentials",
    "read_provenance",
    "read_video",
    "save_wav",
]
