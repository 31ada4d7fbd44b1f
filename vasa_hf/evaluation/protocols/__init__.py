"""The protocols of `vasa-hf eval`, by name."""

from vasa_hf.evaluation.protocols.avatars import Avatars, RealVideos
from vasa_hf.evaluation.protocols.base import Protocol
from vasa_hf.evaluation.protocols.controls import Ablations, Controls
from vasa_hf.evaluation.protocols.disentanglement import Disentanglement
from vasa_hf.evaluation.protocols.motion_controls import MotionControls
from vasa_hf.evaluation.protocols.reenactment import CrossReenactment, SelfReconstruction
from vasa_hf.evaluation.protocols.speaking import AudioDriven, Silence, Speed, WholeVoices
from vasa_hf.evaluation.protocols.studies import Studies

_ALL = (
    *(SelfReconstruction, CrossReenactment, AudioDriven, WholeVoices, Disentanglement, Silence),
    *(Ablations, Controls, MotionControls, Speed, Studies, Avatars, RealVideos),
)
PROTOCOLS: dict[str, type[Protocol]] = {protocol.name: protocol for protocol in _ALL}
