"""What a user sets becomes what a pipeline takes."""

import math

import pytest

from vasa_hf.motion.controls import parse_controls
from vasa_hf.studio.settings import TalkSettings, control_groups


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


@pytest.mark.parametrize(
    ("row", "name"), [(["soon", "1"], "seconds"), (["", "1"], "seconds"), (["1", "x"], "gaze yaw")]
)
def test_a_wrong_cell_is_named(row, name):
    with pytest.raises(ValueError, match=name):
        TalkSettings(keyframes=[row]).controls()


def test_a_control_for_each_field():
    controls = [control for group in control_groups(["happy"], [256, 512]).values() for control in group]
    fields = list(TalkSettings.__dataclass_fields__)
    assert len(controls) == len(fields)
    shown = {options["label"]: options.get("value") for _, options in controls}
    assert shown["Denoising steps"] == TalkSettings().steps and shown["Guidance: gaze"] == TalkSettings().guidance_gaze
    assert TalkSettings().chosen_seed() != TalkSettings().chosen_seed() and TalkSettings(seed=3).chosen_seed() == 3
