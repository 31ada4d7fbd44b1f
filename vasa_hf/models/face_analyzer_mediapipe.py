"""The same interface as `FaceAnalyzer`, with Google's MediaPipe face landmarker behind it.

Optional: `pip install "vasa_hf[mediapipe]"`, and the user brings the model file (`face_landmarker.task`). Useful for
drawn faces or hard light, where the larger network is more reliable than the small `FaceAnalyzer`.
"""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vasa_hf.geometry.landmarks import GROUPS, LANDMARK_IDS, fit_similarity
from vasa_hf.geometry.rotations import euler_from_matrix
from vasa_hf.models.face_analyzer import DetectedFace, describe_face, to_image_tensor


class MediaPipeFaceAnalyzer:
    """Find and measure faces with MediaPipe.

    Args:
        task_file (`str` or `os.PathLike`): The `face_landmarker.task` file.
        canonical (`torch.Tensor` of shape `(162, 3)`):
            The mean face that poses are measured against: `FaceAnalyzer.from_pretrained(...).canonical`.
        max_faces (`int`, *optional*, defaults to 16): Maximum number of faces.
        threshold (`float`, *optional*, defaults to 0.5): Least confidence of a face.

    Raises:
        ImportError: If mediapipe is not installed.
        ValueError: If the file does not exist.
    """

    def __init__(
        self, task_file: str | os.PathLike, canonical: Tensor, max_faces: int = 16, threshold: float = 0.5
    ) -> None:
        try:
            import mediapipe
            from mediapipe.tasks import python as tasks
        except ImportError as error:
            raise ImportError('MediaPipeFaceAnalyzer needs mediapipe: pip install "vasa_hf[mediapipe]"') from error
        if not Path(task_file).is_file():
            raise ValueError(f"`task_file` must be a face_landmarker.task file, but {str(task_file)!r} does not exist.")
        options = tasks.vision.FaceLandmarkerOptions(
            base_options=tasks.BaseOptions(model_asset_path=str(task_file)),
            num_faces=max_faces,
            min_face_detection_confidence=threshold,
        )
        self._mediapipe = mediapipe
        self._landmarker = tasks.vision.FaceLandmarker.create_from_options(options)
        self.canonical = canonical.detach().float().cpu()
        self.threshold = threshold

    def detect(self, image: Image.Image | np.ndarray | Tensor) -> list[DetectedFace]:
        """Find the faces of an image, largest first; `image` as for `FaceAnalyzer.detect`.

        MediaPipe's landmarker tells no confidence, so every face has the score 1.
        """
        picture = to_image_tensor(image)
        array = ((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
        frame = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=array)
        meshes = self._landmarker.detect(frame).face_landmarks
        points = [torch.tensor([[p.x, p.y, p.z] for p in mesh]) for mesh in meshes]
        faces = [face_from_mesh(p, picture.shape[-2:], self.canonical) for p in points]
        return sorted(faces, key=lambda face: -face.side)


def face_from_mesh(
    mesh: Tensor,  # [478, 3]
    image_size: tuple[int, int],
    canonical: Tensor,  # [162, 3]
) -> DetectedFace:
    """A `DetectedFace` from MediaPipe's mesh: x and z in image widths, y in image heights, of (height, width)."""
    height, width = image_size
    points = mesh[list(LANDMARK_IDS)] * mesh.new_tensor([width, height, width])
    rigid = list(GROUPS["rigid"])
    rotation, translation, scale = fit_similarity(points[rigid], canonical[rigid])
    pose = torch.cat([euler_from_matrix(rotation), translation, scale[None]])
    return describe_face(points[:, :2].contiguous(), pose, canonical, score=1.0)
