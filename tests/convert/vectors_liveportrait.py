"""LivePortrait's reference vectors: reduced modules, the geometry of keypoints, and all in a chain."""

from __future__ import annotations

from functools import cache, partial

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.convert.parity import FOLDER, Checks, difference, load
from vasa_hf.geometry.keypoints import (
    KeypointMotion,
    absolute_motion,
    euler_matrix,
    head_pose_degrees,
    relative_motion,
    transform_keypoints,
)
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer

CHECKS = Checks()
MODULE_LIMIT, GEOMETRY_LIMIT, CHAIN_LIMIT = 2e-5, 2e-6, 1e-4

# Name of the reference's module -> ours.
MODULES = {
    "appearance_feature_extractor": "appearance_feature_extractor",
    "motion_extractor": "motion_extractor",
    "warping_module": "warping_module",
    "spade_generator": "spade_generator",
    "stitching_retargeting_stitching": "stitching",
    "stitching_retargeting_lip": "retargeting_lip",
    "stitching_retargeting_eye": "retargeting_eye",
}
SPECTRAL = ("conv_0", "conv_1", "conv_s")
SMALL = {
    "image_size": 128,
    "block_expansion": 4,
    "max_features": 32,
    "feature_channels": 4,
    "feature_depth": 8,
    "num_resblocks": 2,
    "motion_depths": (2, 2, 3, 2),
    "motion_dims": (12, 24, 48, 96),
    "hourglass_block_expansion": 4,
    "hourglass_max_features": 32,
    "compress_channels": 2,
    "generator_out_channels": 8,
}

vectors = partial(load, "liveportrait")


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with each spectral norm divided out, by the vectors that were stored with it."""
    plain = {}
    for key, value in state.items():
        if key.endswith("weight_orig"):
            layer = key.removesuffix("_orig")
            plain[layer] = value / torch.dot(state[f"{layer}_u"], value.flatten(1) @ state[f"{layer}_v"])
        elif not key.endswith(("weight_u", "weight_v")):
            plain[key] = value
    return plain


@cache
def small_renderer() -> LivePortraitRenderer:
    """The reduced renderer with the reference's weights."""
    renderer = LivePortraitRenderer(**SMALL).eval()
    for theirs, ours in MODULES.items():
        state = folded(load_file(FOLDER / "liveportrait" / f"{theirs}_small.safetensors"))
        renderer.get_submodule(ours).load_state_dict(state)
    return renderer


def points(value: Tensor) -> Tensor:
    """Flat keypoints `(batch, 63)` as `(batch, 21, 3)`."""
    return value.view(len(value), -1, 3)


@CHECKS("appearance features (F)", MODULE_LIMIT)
def _appearance() -> dict[str, float]:
    data = vectors("appearance_feature_extractor_small_io")
    return {"feature_3d": difference(small_renderer().encode_appearance(data["image"]), data["feature_3d"])}


@CHECKS("motion (M)", MODULE_LIMIT)
def _motion() -> dict[str, float]:
    data = vectors("motion_extractor_small_io")
    heads = small_renderer().motion_extractor(data["image"])
    return {name: difference(value, data[f"out_{name}"]) for name, value in heads.items()}


def _recorded(modules: dict[str, nn.Module], run) -> dict[str, Tensor]:
    """What modules gave while `run` ran."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs, output)}))
        for name, module in modules.items()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@CHECKS("warping (W)", MODULE_LIMIT)
def _warping() -> dict[str, float]:
    data = vectors("warping_module_small_io")
    inputs = [data[name] for name in ("feature_3d", "kp_source", "kp_driving")]
    names = ("out", "deformation", "occlusion_map")
    differences = {
        name: difference(a, data[name]) for name, a in zip(names, small_renderer().warp(*inputs), strict=True)
    }
    mask = small_renderer().warping_module.dense_motion_network(*inputs)[2]
    return {**differences, "mask": difference(mask, data["mask"])}


@CHECKS("warping, inside", MODULE_LIMIT)
def _warping_inside() -> dict[str, float]:
    data, reference = vectors("warping_module_small_io"), vectors("warping_module_small_intermediates")
    inputs = [data[name] for name in ("feature_3d", "kp_source", "kp_driving")]
    network = small_renderer().warping_module.dense_motion_network
    seen = _recorded({"norm": network.norm, "hourglass": network.hourglass}, lambda: network(*inputs))
    (proposals,), hourglass = seen["hourglass"]
    sub = (slice(0, 1), slice(None), slice(None, None, 2), slice(None, None, 4), slice(None, None, 4))
    heatmaps = proposals.unflatten(1, (22, -1))[:, :, 0][sub][:, :, None]
    return {
        "compressed": difference(seen["norm"][1][:1].relu(), reference["compressed_b0"]),
        "heatmaps": difference(heatmaps, reference["heatmap_b0_sub"]),
        "hourglass in": difference(proposals[sub], reference["hourglass_in_b0_sub"]),
        "hourglass out": difference(hourglass[sub], reference["hourglass_out_b0_sub"]),
    }


@CHECKS("generator (G)", MODULE_LIMIT)
def _generator() -> dict[str, float]:
    data, reference = vectors("spade_generator_small_io"), vectors("spade_generator_small_intermediates")
    generator, pictures = small_renderer().spade_generator, []
    parts = {"fc": generator.fc, "G_middle_0": generator.G_middle_0}
    seen = _recorded(parts, lambda: pictures.append(small_renderer().decode(data["feature"])))
    inside = {name: difference(seen[name][1][:1], reference[f"{name}_b0"]) for name in parts}
    return {"image": difference(pictures[0], data["image"]), **inside}


@CHECKS("stitching and retargeting", MODULE_LIMIT)
def _retargeting() -> dict[str, float]:
    data, renderer = vectors("stitching_retargeting_small_io"), small_renderer()
    source, eye, lip = data["kp_source"], data["eye_ratio"], data["lip_ratio"]
    return {
        "stitching network": difference(renderer.stitching(data["stitching_mlp_in"]), data["stitching_mlp_out"]),
        "stitched": difference(renderer.stitch(source, data["kp_driving"]), data["stitched_kp_driving"]),
        "eyes": difference(renderer.retarget_eyes(source, eye[:, :2], eye[:, 2:]), data["eye_delta"]),
        "lips": difference(renderer.retarget_lips(source, lip[:, :1], lip[:, 1:]), data["lip_delta"]),
    }


@CHECKS("head pose, degrees", MODULE_LIMIT)  # of numbers up to 100
def _head_pose() -> dict[str, float]:
    data = vectors("motion_headpose_degree")
    # The one-hot logits are the large number of the vectors' making; the others decide the softmax.
    onehot = torch.full((66, 66), -1e4).fill_diagonal_(1e4)
    return {
        "degree": difference(head_pose_degrees(data["logits"]), data["degree"]),
        "one bin": difference(head_pose_degrees(onehot), data["onehot_logits_degree"]),
        "decoded already": difference(head_pose_degrees(data["passthrough_in"]), data["passthrough_out"]),
    }


@CHECKS("rotation", GEOMETRY_LIMIT)
def _rotation() -> dict[str, float]:
    data = vectors("motion_euler_rotation")
    return {"R": difference(euler_matrix(data["pitch_deg"], data["yaw_deg"], data["roll_deg"]), data["R"])}


@CHECKS("transform of keypoints", MODULE_LIMIT)
def _transform() -> dict[str, float]:
    data = vectors("motion_transform_keypoint")
    common = (points(data["in_kp"]), points(data["in_exp"]), data["in_scale"], data["in_t"])
    raw = KeypointMotion(*common, *(head_pose_degrees(data[f"in_{name}"]) for name in ("pitch", "yaw", "roll")))
    refined = KeypointMotion(*common, *(data[f"{name}_deg"][:, 0] for name in ("pitch", "yaw", "roll")))
    return {
        "from logits": difference(transform_keypoints(raw), data["x_transformed"]),
        "from degrees": difference(transform_keypoints(refined), data["x_transformed_from_refined"]),
    }


@CHECKS("relative and absolute driving", MODULE_LIMIT)
def _driving() -> dict[str, float]:
    data = vectors("motion_driving_rules")

    def motion(who: str, kp: Tensor) -> KeypointMotion:
        angles = (data[f"{who}_{name}"][:, 0] for name in ("pitch", "yaw", "roll"))
        return KeypointMotion(kp, data[f"{who}_exp"], data[f"{who}_scale"], data[f"{who}_t"], *angles)

    source = motion("src", data["src_kp"])
    driving = motion("drv", data["src_kp"].expand(3, -1, -1))  # the driver's own keypoints never matter
    return {
        "source": difference(transform_keypoints(source), data["x_s"]),
        "relative": difference(
            transform_keypoints(relative_motion(source, driving, driving[:1])), data["x_d_relative"]
        ),
        "absolute": difference(transform_keypoints(absolute_motion(source, driving)), data["x_d_absolute"]),
    }


@CHECKS("chain, step by step", CHAIN_LIMIT)
def _chain() -> dict[str, float]:
    data, renderer = vectors("pipeline_small_io"), small_renderer()
    motion = renderer.extract_motion(data["image"])
    # The reference squashed what untrained weights give before it went on.
    motion.kp, motion.exp = torch.tanh(motion.kp / 2), 0.05 * motion.exp
    motion.scale, motion.t = 1 + 0.1 * torch.tanh(motion.scale), 0.1 * motion.t
    kp_source = transform_keypoints(motion)
    # Each image is driven by the other's keypoints.
    stitched = renderer.stitch(kp_source, kp_source.flip(0))
    warped = renderer.warp(renderer.encode_appearance(data["image"]), kp_source, stitched)[0]
    return {
        "kp_source": difference(kp_source, data["x_s"]),
        "stitched": difference(stitched, data["x_d_stitched"]),
        "warped": difference(warped, data["warped"]),
        "image": difference(renderer.decode(warped), data["out_image"]),
    }


@CHECKS("chain, optimised for inference", CHAIN_LIMIT)
def _chain_fast() -> dict[str, float]:
    data, renderer = vectors("pipeline_small_io"), small_renderer().optimize_for_inference()
    feature_3d = renderer.encode_appearance(data["image"])
    warped = renderer.warp(feature_3d, data["x_s"], data["x_d_stitched"])[0]
    differences = {
        "warped": difference(warped, data["warped"]),
        "image": difference(renderer.decode(warped), data["out_image"]),
    }
    renderer.optimize_for_inference(False)
    return differences
