"""What a motion is and how it is made: channels, controls, guidance, windows, streams. No networks."""

from vasa_hf.motion.spec import (
    MAX_WIDTH,
    POSE_DIM,
    MotionSpec,
    from_relative,
    load_motion,
    resample_motion,
    save_motion,
    to_relative,
)

__all__ = [
    "MAX_WIDTH",
    "POSE_DIM",
    "MotionSpec",
    "from_relative",
    "load_motion",
    "resample_motion",
    "save_motion",
    "to_relative",
]
