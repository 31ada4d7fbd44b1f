"""Small driving videos made from the package's portrait by ffmpeg, each with one thing that real videos do."""

import subprocess
from pathlib import Path

import vasa_hf
from vasa_hf.media.ffmpeg import ffmpeg_path

PORTRAIT = Path(vasa_hf.__file__).parent / "assets" / "portrait.jpg"
# Centre of the portrait's face in fractions of the picture.
FACE = (0.44, 0.24)


def _video(path, filters, frames):
    command = [ffmpeg_path(), "-v", "error", "-y", "-loop", "1", "-framerate", "25", "-i", str(PORTRAIT)]
    command += ["-filter_complex", f"{filters},format=yuv420p", "-frames:v", str(frames), "-crf", "12", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def slide(path, frames=30, pixels_per_second=200):
    """The portrait, 320 pixels wide, crosses a wide canvas."""
    overlay = f"[0]scale=320:320[p];color=0x606870:s=960x400:r=25[c];[c][p]overlay=x='{pixels_per_second}*t':y=40"
    return _video(path, overlay, frames)


def zoom(path, frames=25, most=1.9):
    """A zoom on the face from 1 to `most`."""
    x, y = (f"i{side}*{place}*(1-1/zoom)" for side, place in zip("wh", FACE, strict=True))
    ratio = f"1+{most - 1}*on/{frames - 1}"
    return _video(path, f"scale=1200:1200,zoompan=z='{ratio}':x='{x}':y='{y}':d=1:s=400x400:fps=25", frames)


def black(path, first, last, frames=30, pixels_per_second=0):
    """Black from `first` to `last` (both included)."""
    cover = f"drawbox=enable='between(n,{first},{last})':color=black:t=fill"
    if pixels_per_second:
        overlay = f"color=0x606870:s=640x320:r=25[c];[c][p]overlay=x='{pixels_per_second}*t':y=0"
        return _video(path, f"[0]scale=320:320[p];{overlay},{cover}", frames)
    return _video(path, f"scale=320:320,{cover}", frames)


def cut(path, at, frames=20):
    """Another shot from frame `at` on: the portrait mirrored, larger, elsewhere, in other colours."""
    shots = "[0]split[a][b];[a]scale=320:320,pad=640:320:0:0:0x606870[a];"
    shots += "[b]hflip,scale=400:400,crop=400:320:0:0,pad=640:320:240:0:0x203010,hue=h=20[b];"
    return _video(path, f"{shots}[a][b]overlay=enable='gte(n,{at})'", frames)
