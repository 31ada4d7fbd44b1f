"""Samples of MoDA's motion generator, made of the same clips and talkers as VASA-1's.

`MotionSequences` composes talk, pauses, blinks and head movement as relative motion with the dynamics code of
`LandmarkDynamics`; here that motion is put onto a person's face and becomes the 70 numbers of LivePortrait's keypoints
(`data/keypoint_labels.py`), with the label of an emotion.

# Not in the paper: MoDA trains on motion that its renderer's M reads from 700 hours of video, with emotions that a
classifier sees. Labels of landmarks stand in for M, and emotions are added to calm faces by known directions.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vasa_hf.data.clips import MotionData, MotionPriors
from vasa_hf.data.face_pairs import motion_of, people_of_clips
from vasa_hf.data.keypoint_labels import keypoints_from_labels, keypoints_from_motion
from vasa_hf.data.landmark_dynamics import EMOTION_SHAPES, PARTS, FaceLabels, LandmarkDynamics
from vasa_hf.data.motion_sequences import MotionSequences
from vasa_hf.motion import POSE_DIM, MotionSpec, from_relative

# MoDA's classes and the directions that stand for them; `None`: a calm face.
EMOTION_DIRECTIONS = {
    "anger": "angry",
    "contempt": "contempt",
    "disgust": "disgusted",
    "fear": "fearful",
    "happiness": "happy",
    "neutral": None,
    "sadness": "sad",
    "surprise": "surprised",
}
NO_EMOTION = len(EMOTION_DIRECTIONS)
CONTEMPT_SHAPES = {"mouthDimple": 1.0, "mouthSmile": 0.2, "eyeSquint": 0.3}


def emotion_offsets(dynamics: LandmarkDynamics, head: str | os.PathLike) -> Tensor:
    """What each of MoDA's eight emotions adds to z_dyn at full strength, `(8, 28)`.

    Args:
        dynamics (`LandmarkDynamics`): Meaning of z_dyn.
        head (`str` or `os.PathLike`): The `ict_facekit.npz` file.
    """
    shapes = dynamics.project_head_shapes(head)
    mixtures = {**EMOTION_SHAPES, "contempt": CONTEMPT_SHAPES}
    calm = torch.zeros(dynamics.dim)
    return torch.stack(
        [
            calm if name is None else sum(weight * shapes[shape] for shape, weight in mixtures[name].items())
            for name in EMOTION_DIRECTIONS.values()
        ]
    )


def load_faces(folder: str | os.PathLike, dynamics: LandmarkDynamics) -> tuple[Tensor, Tensor]:
    """Faces that motion can be put onto: one a clip, and all portraits if there are any.

    Args:
        folder (`str` or `os.PathLike`): Holds `clips.npz`; `identities.csv` and `portraits.npz` if there are any.
        dynamics (`LandmarkDynamics`): Splits shapes into person and expression.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: canonical keypoints `(faces, 21, 3)` and the pose there `(faces, 6)`.
    """
    folder, keypoints, poses = Path(folder), [], []
    clips = FaceLabels.load(folder / "clips.npz")
    first = torch.from_numpy(clips.offsets[:-1].astype(np.int64))
    sets = [(clips, motion_of(clips, dynamics.encode(clips, people_of_clips(folder, clips.names))), first)]
    if (folder / "portraits.npz").exists():
        portraits = FaceLabels.load(folder / "portraits.npz")
        sets.append((portraits, motion_of(portraits, dynamics.encode(portraits)), slice(None)))
    for labels, motion, rows in sets:
        keypoints.append(keypoints_from_labels(dynamics, labels.landmarks[rows], motion[rows]).kp)
        poses.append(motion[rows, :POSE_DIM])
    return torch.cat(keypoints), torch.cat(poses)


class KeypointSequences(Dataset):
    """Windows of keypoint motion with audio: `dataset[i]` is a pure function of the seed and `i`.

    A sample is a dict: `motion` (window, 70) of LivePortrait's numbers, not normalised, `previous_motion` (70,),
    `audio` (window, 1, A), `keypoints` (63,), `emotion` () int64 in 0..8, `frame_mask` (window,) bool, `drop_audio` and
    `drop_emotion` () bool.

    Args:
        data (`MotionData`): Clips and talkers, motion of width 34.
        faces (`tuple[torch.Tensor, torch.Tensor]`): As `load_faces` gives them.
        dynamics (`LandmarkDynamics`): Meaning of z_dyn.
        priors (`MotionPriors`): Known directions.
        emotions (`torch.Tensor` of shape `(8, 28)`, *optional*): As `emotion_offsets` gives them; none without it.
        window (`int`, defaults to 80): Frames of a window (paper §4.1.2).
        seed (`int`): Seed.
        drop_audio (`float`, defaults to 0.5): Drop probability of speech (paper §4.1.2).
        drop_emotion (`float`, defaults to 0.1): Drop probability of the emotion (paper §4.1.2).
        emotional (`float`, defaults to 0.6): Share of the samples with a label, a calm face's among them.
        **options: Of `MotionSequences`.
    """

    def __init__(
        self,
        data: MotionData,
        faces: tuple[Tensor, Tensor],
        dynamics: LandmarkDynamics,
        priors: MotionPriors,
        emotions: Tensor | None = None,
        window: int = 80,
        seed: int = 0,
        drop_audio: float = 0.5,
        drop_emotion: float = 0.1,
        emotional: float = 0.6,
        **options,
    ):
        # Emotions are labels here, not offsets: they are added below, one at a time.
        calm = MotionPriors(priors.flip, priors.neutral, priors.blink, priors.gaze)
        self.sequences = MotionSequences(
            data,
            MotionSpec(dict(PARTS)),
            calm,
            window,
            1,
            0,
            seed,
            drop_condition=drop_audio,
            measured=False,  # what shifts put into the motion is taken out again below
            **options,
        )
        self.faces, self.dynamics, self.priors, self.emotions, self.seed = faces, dynamics, calm, emotions, seed
        self.drop_emotion, self.emotional = drop_emotion, emotional if emotions is not None else 0.0

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw sample `index`."""
        rng = np.random.default_rng([self.seed, index, 1])
        sample = self.sequences[index]
        # The frame before the window; where there is none, the window's own first (paper §3.2.1).
        previous = sample["motion"][:1] if sample["drop_previous"] else sample["previous_motion"]
        relative = torch.cat([previous, sample["motion"]])
        # MoDA has no gaze and no distance among its conditions: eyes on the camera, heads where the portrait has them.
        if self.priors.gaze is not None:
            relative[:, POSE_DIM:] -= sample["gaze"] @ torch.from_numpy(self.priors.gaze).float()
        relative[:, 5] += sample["head_distance"].log()
        emotion = NO_EMOTION
        if rng.random() < self.emotional:
            emotion = int(rng.integers(NO_EMOTION))
            relative[:, POSE_DIM:] += rng.uniform(0.5, 1.0) * self.emotions[emotion]
        face = int(rng.integers(len(self.faces[0])))
        pose = torch.cat([self.faces[1][face], relative.new_zeros(relative.shape[1] - POSE_DIM)])
        motion = from_relative(relative[None], pose[None])[0]
        keypoints = self.faces[0][face]
        numbers = keypoints_from_motion(self.dynamics, keypoints.expand(len(motion), -1, -1), motion).to_vector()
        return {
            "motion": numbers[1:],
            "previous_motion": numbers[0],
            "audio": sample["audio"][:, None],
            "keypoints": keypoints.flatten(),
            "emotion": torch.tensor(emotion),
            "frame_mask": sample["frame_mask"],
            "drop_audio": sample["drop_audio"],
            "drop_emotion": torch.tensor(bool(rng.random() < self.drop_emotion)),
        }
