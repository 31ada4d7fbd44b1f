"""Motion, priors and silence of clips."""

import math
from pathlib import Path

import numpy as np
import pytest

from vasa_hf.data.clips import motion_from_labels, silent_recordings
from vasa_hf.data.landmark_dynamics import FaceLabels

LABELS = Path(__file__).parents[3] / "shared" / "data" / "train" / "clips.npz"


@pytest.mark.slow
@pytest.mark.skipif(not LABELS.exists(), reason="needs the labelled clips")
def test_directions_from_labels_do_to_landmarks_what_they_say():
    motion, priors = motion_from_labels(LABELS.parent)
    labels = FaceLabels.load(LABELS)
    assert motion.shape == (len(labels.pose), 34)
    codes = np.c_[motion[:, 6:], np.ones(len(motion))]

    def at(target, code):
        return np.r_[code, 1.0] @ np.linalg.lstsq(codes, target.numpy(), rcond=None)[0]

    eyes, mouth = labels.eye_open.mean(1), labels.mouth[:, 0]
    assert at(mouth, priors.neutral) < 0.02 and at(eyes, priors.neutral) > 0.3
    assert at(eyes, priors.neutral + priors.blink) < 0.12
    iris = labels.iris_offset.mean(1)
    assert at(iris[:, 0], priors.gaze[0] * 0.2) < -0.05  # yaw > 0: the irises go to the picture's left
    assert at(iris[:, 1], priors.gaze[1] * 0.2) > 0.03
    np.testing.assert_allclose(priors.flip @ priors.flip, np.eye(34), atol=1e-3)


def test_silent_recordings_are_nearly_silent():
    recordings = silent_recordings(6, 10)
    assert len(recordings) == 6 and all(len(samples) == 6400 for samples in recordings)
    levels = [20 * math.log10(np.sqrt((samples**2).mean()) + 1e-9) for samples in recordings]
    assert max(levels) < -48 and min(levels) < -100
