"""Settings of a talking video: the controls of the page, their units, and the arguments of a pipeline."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

NEUTRAL = "neutral"
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0), "green": (0.0, 0.69, 0.25)}
RATES = ["25", "24", "30", "50", "60", "30000/1001"]
#: Columns of the table of keyframes; an empty cell leaves that control unchanged.
KEYFRAME_COLUMNS = ("seconds", "yaw°", "pitch°", "distance", "emotion", "amount")


class SeedSettings:
    """Settings with a seed."""

    seed: int

    def chosen_seed(self) -> int:
        """The seed, or a random one if it is negative."""
        return int(self.seed) if self.seed is not None and self.seed >= 0 else secrets.randbelow(2**31)


@dataclass(frozen=True)
class TalkSettings(SeedSettings):
    """Settings of a talking video.

    Args:
        gaze_yaw_deg, gaze_pitch_deg (`float`): Main gaze; > 0 is left in the image, and down.
        head_distance (`float`): Relative to the portrait's own.
        emotion (`str`): A name, or "neutral".
        emotion_amount (`float`): Its weight in [-1, 1].
        head_motion (`float`): Amount of head movement.
        guidance_audio, guidance_gaze, guidance_distance, guidance_emotion, guidance_previous (`float`): Of Eq. 2.
        steps (`int`): Denoising steps.
        seed (`int`): Negative: a random one.
        fps (`str`): Frames per second.
        size (`int`): Side of the square crop in pixels.
        paste_back (`bool`): Make the whole image, with the face pasted back into it.
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

    def controls(self) -> dict[str, Any]:
        """Gaze, distance and emotion as a pipeline takes them: constant, or keyframes where the table has any.

        Raises:
            ValueError: If a cell of the table must be a number and is not, or a row has no time.
        """
        rows = [row for row in map(_cells, self.keyframes) if any(cell is not None for cell in row)]
        for row in rows:
            if row[0] is None:
                raise ValueError("`keyframes` must have the time in the column 'seconds' of every row.")
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
    """A row of the table: numbers, and a name in the column "emotion"; `None` for an empty cell."""
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


def add_keyframe(rows: Sequence[Sequence[Any]] | None, *cells: Any) -> list[list[str]]:
    """Add a row to the table of keyframes, or replace the one of the same time; sorted by time.

    Args:
        rows (`Sequence`): Rows of `KEYFRAME_COLUMNS`.
        *cells: The new row.

    Raises:
        ValueError: If the new row has no time, or nothing else; or from the table.
    """
    new = _cells(cells)
    if new[0] is None:
        raise ValueError("Please give the time of the keyframe in seconds.")
    if new[0] < 0 or not math.isfinite(new[0]):
        raise ValueError(f"The time of the keyframe must be 0 or later, got {new[0]:g}.")
    if all(cell is None for cell in new[1:5]):
        raise ValueError("Please set at least one of gaze, distance and emotion.")
    held = [row for row in map(_cells, rows or ()) if row[0] is not None and row[0] != new[0]]
    return [[_text(cell) for cell in row] for row in sorted([*held, new], key=lambda row: row[0])]


def list_keyframes(rows: Sequence[Sequence[str]]) -> str:
    """Rows of `add_keyframe` as a list in Markdown."""
    lines = []
    for seconds, yaw, pitch, distance, emotion, amount in rows:
        parts = [f"gaze yaw {yaw}°"] * bool(yaw) + [f"gaze pitch {pitch}°"] * bool(pitch)
        parts += [f"distance {distance}"] * bool(distance) + [f"{emotion} {amount}".strip()] * bool(emotion)
        lines.append(f"- {seconds} s: {', '.join(parts)}")
    return "\n".join(lines)


def _text(cell: Any) -> str:
    return "" if cell is None else cell if isinstance(cell, str) else f"{cell:g}"


def build_controls(emotions: Sequence[str], sizes: Sequence[int]) -> list[Any]:
    """Add the controls to the page and return those of the fields of `TalkSettings`, in their order.

    Args:
        emotions (`Sequence[str]`): Names that the model knows.
        sizes (`Sequence[int]`): Sides that it can make.
    """
    own, small = TalkSettings(), {"min_width": 140}
    with gr.Accordion("Gaze, distance, emotion", open=False), gr.Row():
        controls = [
            gr.Slider(-45, 45, own.gaze_yaw_deg, step=1, label="Gaze yaw (degrees)", info="above 0: image left"),
            gr.Slider(-45, 45, own.gaze_pitch_deg, step=1, label="Gaze pitch (degrees)", info="above 0: down"),
            gr.Slider(0.5, 2, own.head_distance, step=0.05, label="Head distance", info="1: as in the portrait"),
            gr.Dropdown([NEUTRAL, *emotions], value=own.emotion, label="Emotion"),
            gr.Slider(-1, 1, own.emotion_amount, step=0.05, label="Emotion amount"),
            gr.Slider(0, 3, own.head_motion, step=0.1, label="Head movement"),
        ]
    with gr.Accordion("Guidance, steps, seed, image", open=False), gr.Row():
        for name in ("audio", "gaze", "distance", "emotion", "previous"):
            value = getattr(own, f"guidance_{name}")
            controls.append(gr.Slider(0, 3, value, step=0.1, label=f"Guidance: {name}", **small))
        controls += [
            gr.Slider(1, 50, own.steps, step=1, label="Denoising steps", **small),
            gr.Number(own.seed, precision=0, label="Seed", info="below 0: random", **small),
            gr.Dropdown(RATES, value=own.fps, label="Frames per second", **small),
            gr.Dropdown(list(sizes), value=sizes[0], label="Size of the face (pixels)", **small),
            gr.Checkbox(own.paste_back, label="Paste back", info="into the whole image", **small),
        ]
    with gr.Accordion("Keyframes: controls over time", open=False, elem_classes="keyframes"):
        controls.append(_build_keyframes(emotions))
    return controls


def _build_keyframes(emotions: Sequence[str]) -> Any:
    """Fields of one keyframe, and the table that they are added to."""
    note = gr.Markdown("Set what changes at a time, and add it. An empty field leaves that control unchanged.")
    empty = {"placeholder": "unchanged", "min_width": 150}  # texts: an empty number field of Gradio shows 0
    with gr.Row():
        cells = [
            gr.Number(0, label="Time (seconds)", minimum=0, min_width=150),
            gr.Textbox(label="Gaze yaw (degrees)", **empty),
            gr.Textbox(label="Gaze pitch (degrees)", **empty),
            gr.Textbox(label="Head distance", **empty),
            gr.Dropdown([("unchanged", ""), NEUTRAL, *emotions], value="", label="Emotion", min_width=150),
            gr.Textbox(label="Emotion amount", **empty),
        ]
    with gr.Row():
        add, clear = gr.Button("Add keyframe", size="sm"), gr.Button("Remove all", size="sm")
    shown = gr.Markdown()
    # Only holds the rows: on a phone its columns are too narrow to be read.
    table = gr.Dataframe(headers=list(KEYFRAME_COLUMNS), datatype="str", type="array", row_count=0, visible="hidden")

    def add_row(rows: Any, *row: Any) -> tuple:
        try:
            rows = add_keyframe(rows, *row)
        except ValueError as error:
            return gr.skip(), gr.skip(), f"Error: {error}".replace("`", "")
        return rows, list_keyframes(rows), ""

    private = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    add.click(add_row, [table, *cells], [table, shown, note], **private)
    clear.click(lambda: ([], ""), None, [table, shown], **private)
    return table
