"""Settings of the page as arguments of a pipeline."""

import math

import gradio as gr
import pytest

from vasa_hf.demo.settings import TalkSettings, add_keyframe, build_controls, list_keyframes
from vasa_hf.motion.controls import parse_controls


def test_constants_are_in_the_pipeline_s_units():
    controls = TalkSettings(gaze_yaw_deg=30, head_distance=1.2, emotion="happy", emotion_amount=0.4).controls()
    assert controls["gaze"] == pytest.approx((math.pi / 6, 0))
    assert controls["head_distance"] == 1.2 and controls["emotion"] == {"happy": 0.4}


def test_rows_are_keyframes_of_the_cells_that_are_filled():
    rows = [["2", "", "", "1.5", "", ""], ["0", "10", "", "", "happy", "0.5"], ["", "", "", "", "", ""]]
    controls = TalkSettings(gaze_pitch_deg=5, keyframes=rows).controls()
    assert controls["gaze"] == [(0.0, pytest.approx((math.radians(10), math.radians(5))))]
    assert controls["head_distance"] == [(2.0, 1.5)]
    assert controls["emotion"] == [(0.0, {"happy": 0.5})]
    parse_controls(**controls, emotions=["happy"])


@pytest.mark.parametrize(("row", "name"), [(["soon", "1"], "seconds"), (["", "1"], "seconds"), (["1", "x"], "yaw")])
def test_a_wrong_cell_is_named(row, name):
    with pytest.raises(ValueError, match=name):
        TalkSettings(keyframes=[row]).controls()


def test_a_control_for_each_field():
    with gr.Blocks():
        controls = build_controls(["happy"], [256, 512])
    fields = list(TalkSettings.__dataclass_fields__)
    assert len(controls) == len(fields)
    shown = {control.label: control.value for control in controls}
    assert shown["Denoising steps"] == TalkSettings().steps and shown["Guidance: gaze"] == TalkSettings().guidance_gaze
    assert TalkSettings().chosen_seed() != TalkSettings().chosen_seed() and TalkSettings(seed=3).chosen_seed() == 3


def test_keyframes_are_added_in_order_and_empty_cells_stay_empty():
    rows = add_keyframe([], 2, None, None, 1.5, "", None)
    rows = add_keyframe(rows, 0.5, 10, None, None, "happy", 0.4)
    assert rows == [["0.5", "10", "", "", "happy", "0.4"], ["2", "", "", "1.5", "", ""]]
    assert list_keyframes(rows).splitlines() == ["- 0.5 s: gaze yaw 10°, happy 0.4", "- 2 s: distance 1.5"]
    assert add_keyframe(rows, 2, None, 0, None, "", None)[1] == ["2", "", "0", "", "", ""]  # the same time: replaced
    assert TalkSettings(keyframes=rows).controls()["head_distance"] == [(2.0, 1.5)]


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ((None, 10), "time"),
        ((-1, 10), "0 or later"),
        ((1,), "at least one"),
        ((1, None, None, None, "", 0.5), "at least"),
    ],
)
def test_a_keyframe_without_effect_is_refused(cells, problem):
    with pytest.raises(ValueError, match=problem):
        add_keyframe([], *cells)
