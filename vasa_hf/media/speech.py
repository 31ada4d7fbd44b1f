"""Text to speech by espeak-ng, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

MAX_LETTERS = 2000
#: What is missing without espeak-ng.
INSTALL = "Typed text needs the speech synthesizer espeak-ng on the server: apt-get install espeak-ng"
#: Label -> espeak-ng's name.
VOICES = {
    "English (US), woman": "en-us+f3",
    "English (US), man": "en-us+m3",
    "English (UK), woman": "en-gb+f3",
    "English (UK), man": "en-gb+m3",
    "Deutsch": "de+f3",
    "Español": "es+f3",
    "Français": "fr+f3",
    "Italiano": "it+f3",
    "العربية": "ar+m3",
    "中文": "cmn+f3",
}


def can_speak() -> bool:
    """Whether espeak-ng is installed."""
    return shutil.which("espeak-ng") is not None


def speak(text: str, folder: Path, voice: str = "English (US), woman", words_a_minute: int = 160) -> Path:
    """Write text as speech; returns the `.wav` file.

    Args:
        text (`str`): At most `MAX_LETTERS` characters.
        folder (`Path`): For the file.
        voice (`str`): A key of `VOICES`.
        words_a_minute (`int`, defaults to 160): Speed.

    Raises:
        ValueError: If the text is empty or too long, or the voice is unknown.
        ImportError: If espeak-ng is not installed.
    """
    if not text or not text.strip():
        raise ValueError("`text` must have words to speak, got none.")
    if len(text) > MAX_LETTERS:
        raise ValueError(f"`text` must have at most {MAX_LETTERS} characters, got {len(text)}.")
    if voice not in VOICES:
        raise ValueError(f"`voice` must be one of {list(VOICES)}, got {voice!r}.")
    if not can_speak():
        raise ImportError(INSTALL)
    path = Path(folder) / "speech.wav"
    command = ["espeak-ng", "-v", VOICES[voice], "-s", str(words_a_minute), "-w", str(path), "--stdin"]
    done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=60)
    if done.returncode != 0 or not path.is_file():
        raise RuntimeError(f"espeak-ng failed: {done.stderr.decode(errors='replace').strip()}")
    return path
