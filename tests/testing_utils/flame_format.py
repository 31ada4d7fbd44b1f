"""Any head of ours in the format of FLAME's files: stands in for the real ones, which need a licence."""

import numpy as np
import torch

from vasa_hf.convert.flame import FlameSizes
from vasa_hf.head.parametric import FLAME_AXES, ParametricHead
from vasa_hf.head.whole import whole_head


def flame_arrays(head: ParametricHead, seed: int = 0) -> tuple[dict[str, np.ndarray], FlameSizes, np.ndarray]:
    """Arrays by FLAME's names, their sizes, and for each vertex written which one of the head it is.

    As in FLAME, nothing tells what is what: vertices are shuffled, those of no triangle (the landmarks of the built-in
    head) are left out, and the expressions are turned into others that span the same faces.
    """
    rng = np.random.default_rng(seed)
    used = head.faces.unique().numpy()
    order = rng.permutation(used)
    number = np.full(len(head.template), -1)
    number[order] = np.arange(len(order))
    axes = np.array(FLAME_AXES) / 100
    mix, _ = np.linalg.qr(rng.normal(size=(len(head.expression_basis),) * 2))
    expression = np.tensordot(mix, head.expression_basis.numpy()[:, order], 1)
    basis = np.concatenate([head.shape_basis.numpy()[:, order], expression]) * axes
    regressor = head.joint_regressor.numpy()[:, order]
    arrays = {
        "v_template": head.template.numpy()[order] * axes,
        "shapedirs": basis.transpose(1, 2, 0),
        "posedirs": rng.normal(size=(len(order), 3, 36)) * 1e-4,
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "weights": head.skinning_weights.numpy()[order],
        "f": number[head.faces.numpy()].astype(np.uint32),
        "kintree_table": np.array([[4294967295, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.int64),
    }
    sizes = FlameSizes(len(order), len(head.faces), len(head.shape_basis), len(head.expression_basis))
    return arrays, sizes, order


def someone_else(head: ParametricHead, scale: float = 1.05, tilt_rad: float = 0.08) -> ParametricHead:
    """Another mean head: a person of other proportions, larger, looking a little down, elsewhere."""
    shape = torch.zeros(1, len(head.shape_basis))
    shape[0, :8] = torch.tensor([0.6, -0.7, 0.5, 0.8, -0.5, 0.4, 0.6, -0.4])[: len(head.shape_basis)]
    pose = torch.tensor([[tilt_rad, 0.0, 0.0]])
    placed = head(shape=shape, global_pose=pose, translation=torch.tensor([[0.5, 3.0, -8.0]])).vertices[0]
    state = dict(head.named_buffers()) | {"template": scale * placed}
    return ParametricHead(**state | {"eye_radius_cm": scale * float(head.eye_radius_cm)})


def full_size_arrays() -> dict[str, np.ndarray]:
    """The built-in head with as many vertices, triangles and components as FLAME: less scalp, no tongue, padded."""
    head, sizes = whole_head(), FlameSizes()
    faces = head.faces[head.region("face", "neck", "left_eye", "right_eye")]
    scalp = head.faces[head.region("scalp")]
    scalp = scalp[head.template[scalp].mean(1)[:, 2].argsort()]  # from the front on
    faces = torch.cat([faces, scalp[:2200]])
    state = dict(head.named_buffers()) | {"faces": faces, "regions": torch.zeros(len(faces), dtype=torch.long)}
    small, found, _ = flame_arrays(ParametricHead(**state))
    if found.vertices > sizes.vertices or found.triangles > sizes.triangles:
        raise ValueError(f"The built-in head has grown beyond FLAME's size: {found}.")
    small["f"] = np.resize(small["f"], (sizes.triangles, 3))
    shapes, expressions = np.split(small["shapedirs"], [found.shapes], 2)
    padded = [_padded(shapes, 2, sizes.shapes), _padded(expressions, 2, sizes.expressions)]
    small["shapedirs"] = np.concatenate(padded, 2)
    for name, axis in (("v_template", 0), ("shapedirs", 0), ("posedirs", 0), ("J_regressor", 1), ("weights", 0)):
        small[name] = _padded(small[name], axis, sizes.vertices)
    small["weights"][found.vertices :, 0] = 1
    return small


def _padded(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    width = [(0, 0)] * array.ndim
    width[axis] = (0, size - array.shape[axis])
    return np.pad(array, width)
