"""What a user sets for a talking video, in the page's units, and what a pipeline is given."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NEUTRAL = "neutral"
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0), "green": (0.0, 0.69, 0.25)}
#: Columns of the table of keyframes; an empty cell leaves that control alone at that time.
KEYFRAME_COLUMNS = ("seconds", "gaze yaw°", "gaze pitch°", "distance", "emotion", "amount")


@dataclass(frozen=True)
class TalkSettings:
    """Settings of a talking video.

    Args:
        gaze_yaw_deg, gaze_pitch_deg (`float`): Main gaze; > 0 is the picture's left, and down.
        head_distance (`float`): Over the portrait's own.
        emotion (`str`): A name, or "neutral".
        emotion_amount (`float`): Its weight in [-1, 1].
        head_motion (`float`): Amount of head movement.
        guidance_audio, guidance_gaze, guidance_distance, guidance_emotion, guidance_previous (`float`): Eq. 2.
        steps (`int`): Denoising steps.
        seed (`int`): Below 0: a random one.
        fps (`str`): Frames a second.
        size (`int`): Side of the face's square.
        paste_back (`bool`): The whole picture, the face put back into it.
        keyframes (`Sequence`): Rows of `KEYFRAME_COLUMNS`.
    """

    gaze_yaw_deg: float = 0.0
    gaze_pitch_deg: float = 0.0
    head_distance: float = 1.0
    emotion: str = NEUTRAL
    emotion_amount: float = 0.6
    head_motion: float = 1.0
    guidance_audio: float = 0.5
    guidance_gaze: float = 1.0
    guidance_distance: float = 0.0
    guidance_emotion: float = 0.0
    guidance_previous: float = 0.0
    steps: int = 10
    seed: int = -1
    fps: str = "25"
    size: int = 256
    paste_back: bool = False
    keyframes: Sequence[Sequence[Any]] = field(default_factory=tuple)

    def chosen_seed(self) -> int:
        """The seed, or a random one if it is below 0."""
        return int(self.seed) if self.seed is not None and self.seed >= 0 else secrets.randbelow(2**31)

    def controls(self) -> dict[str, Any]:
        """Gaze, distance and emotion as a pipeline takes them: constant, or keyframes where the table has any.

        Raises:
            ValueError: If a cell of the table is no number where one must be, or its time is missing.
        """
        rows = [row for row in map(_cells, self.keyframes) if any(cell is not None for cell in row)]
        for row in rows:
            if row[0] is None:
                raise ValueError("`keyframes` must say the seconds in the first column of every row that is used.")
        rows.sort(key=lambda row: row[0])
        gaze = [(s, self._gaze(yaw, pitch)) for s, yaw, pitch, *_ in rows if yaw is not None or pitch is not None]
        distance = [(row[0], row[3]) for row in rows if row[3] is not None]
        emotion = [(row[0], _emotion(row[4], 1.0 if row[5] is None else row[5])) for row in rows if row[4] is not None]
        return {
            "gaze": gaze or self._gaze(None, None),
            "head_distance": distance or float(self.head_distance),
            "emotion": emotion or _emotion(self.emotion, self.emotion_amount),
        }

    def motion_options(self) -> dict[str, Any]:
        """Sampling and controls, as `VasaTalkingFacePipeline.stream` takes them; without the generator."""
        scales = {
            "audio": self.guidance_audio,
            "gaze": self.guidance_gaze,
            "head_distance": self.guidance_distance,
            "emotion": self.guidance_emotion,
            "previous": self.guidance_previous,
        }
        return {
            **self.controls(),
            "guidance_scale": {name: float(scale) for name, scale in scales.items()},
            "num_inference_steps": int(self.steps),
            "head_motion": float(self.head_motion),
        }

    def _gaze(self, yaw: float | None, pitch: float | None) -> tuple[float, float]:
        yaw, pitch = (
            self.gaze_yaw_deg if yaw is None else yaw,
            self.gaze_pitch_deg if pitch is None else pitch,
        )
        return math.radians(yaw), math.radians(pitch)


def _emotion(name: Any, amount: float) -> dict[str, float]:
    return {} if name in (None, "", NEUTRAL) else {str(name): float(amount)}


def _cells(row: Sequence[Any]) -> list[Any]:
    """A row of the table: numbers, but a name in the fifth column; `None` where a cell is empty."""
    row = [*row, *[None] * len(KEYFRAME_COLUMNS)][: len(KEYFRAME_COLUMNS)]
    cells = []
    for name, cell in zip(KEYFRAME_COLUMNS, row, strict=True):
        text = "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else str(cell).strip()
        if not text:
            cells.append(None)
        elif name == "emotion":
            cells.append(text.lower())
        else:
            try:
                cells.append(float(text))
            except ValueError as error:
                raise ValueError(f"`keyframes` must have numbers in the column {name!r}, got {text!r}.") from error
    return cells


def control_groups(emotions: Sequence[str], sizes: Sequence[int]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """What a page shows for each field of `TalkSettings`, in their order: group -> (kind of control, its options).

    Args:
        emotions (`Sequence[str]`): Names that the model knows.
        sizes (`Sequence[int]`): Sides that it can make.
    """
    own, small = TalkSettings(), {"min_width": 140}

    def slider(low: float, high: float, value: float, step: float, label: str, **more: Any) -> tuple[str, dict]:
        return "Slider", {"minimum": low, "maximum": high, "value": value, "step": step, "label": label, **more}

    guidance = [
        slider(0, 3, getattr(own, f"guidance_{name}"), 0.1, f"Guidance: {name}", **small)
        for name in ("audio", "gaze", "distance", "emotion", "previous")
    ]
    rates = ["25", "24", "30", "50", "60", "30000/1001"]
    kinds = ["str" if name == "emotion" else "number" for name in KEYFRAME_COLUMNS]
    table = {"headers": list(KEYFRAME_COLUMNS), "datatype": kinds, "row_count": 3, "type": "array"}
    return {
        "Gaze, distance, emotion": [
            slider(-45, 45, own.gaze_yaw_deg, 1, "Gaze yaw (degrees)", info="above 0: to the picture's left"),
            slider(-45, 45, own.gaze_pitch_deg, 1, "Gaze pitch (degrees)", info="above 0: down"),
            slider(0.5, 2, own.head_distance, 0.05, "Head distance", info="1: the portrait's own"),
            ("Dropdown", {"choices": [NEUTRAL, *emotions], "value": own.emotion, "label": "Emotion"}),
            slider(-1, 1, own.emotion_amount, 0.05, "Emotion amount"),
            slider(0, 3, own.head_motion, 0.1, "Head movement"),
        ],
        "Guidance, steps, seed, picture": [
            *guidance,
            slider(1, 50, own.steps, 1, "Denoising steps", **small),
            ("Number", {"value": own.seed, "precision": 0, "label": "Seed", "info": "below 0: a random one", **small}),
            ("Dropdown", {"choices": rates, "value": own.fps, "label": "Frames a second", **small}),
            ("Dropdown", {"choices": list(sizes), "value": sizes[0], "label": "Face's side (pixels)", **small}),
            ("Checkbox", {"value": own.paste_back, "label": "Paste back", "info": "the whole picture", **small}),
        ],
        "Keyframes: controls that change with time": [("Dataframe", {**table, "label": "Empty cells change nothing"})],
    }
