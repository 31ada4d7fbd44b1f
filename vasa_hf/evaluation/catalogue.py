"""Names, units and directions of all metrics, and the numbers of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    Attributes:
        label (`str`): Heading.
        better (`int`): 1 if higher is better, -1 if lower is better, 0 for neither.
        decimals (`int`): Digits after the decimal point.
        about (`str`): One sentence for the legend of the table.
        needs (`str`, *optional*): Network of the metric: a key of `evaluate`'s `networks`.
        trivial (`tuple[str, ...]`): Baselines that are perfect by construction and not compared with.
    """

    label: str
    better: int
    decimals: int
    about: str
    needs: str | None = None
    trivial: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """Label with an arrow in the better direction."""
        return self.label + {1: " ↑", -1: " ↓", 0: ""}[self.better]


COPY, WARP, OTHER, LOUD = (
    "copy of the source frame",
    "thin-plate warp by the true driving landmarks",
    "motion of another clip",
    "mouth that follows loudness",
)
TRUTH = "true frames"
FULL, BASE = "VASA-3D, G'' (ours)", "VASA-3D, G' (ours, base deformation alone)"
STILL, VASA1 = "one frame of the avatar, held", "VASA-1, same motion and portrait"
NO_CONTROL = "control ignored"
NOT_DEFINED = "not defined here"  # prefix of reasons that are no failure

METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR dB", 1, 2, "peak signal-to-noise ratio of the whole crop"),
    "psnr_face": Metric("PSNR face dB", 1, 2, "the same inside the box of the true landmarks"),
    "ssim": Metric("SSIM", 1, 3, "structural similarity, Gaussian window of 11 pixels"),
    "l1": Metric("L1", -1, 4, "mean absolute difference of colours in [0, 1]"),
    "lpips": Metric("LPIPS", -1, 3, "with the public weights", "lpips"),
    "perceptual": Metric("perceptual", -1, 3, "feature distance of the recogniser; not LPIPS", "face_recognizer"),
    "mouth_sharpness": Metric(
        "mouth sharpness",
        1,
        2,
        "mean absolute Laplacian inside the true inner lips relative to the true frames, lips at least 0.1 apart",
        None,
        (COPY, WARP),
    ),
    "eye_sharpness": Metric(
        "eye sharpness", 1, 2, "the same inside the true eye openings, frames with open eyes", None, (COPY, WARP)
    ),
    "mouth_distance": Metric(
        "mouth distance", -1, 3, "feature distance of the recogniser, squares around the mouth", "face_recognizer"
    ),
    "eye_distance": Metric("eye distance", -1, 3, "the same, squares around each eye", "face_recognizer"),
    "mouth_flicker": Metric(
        "mouth flicker",
        -1,
        2,
        "second difference over time of pixels in squares that follow the mouth, relative to real frames",
        None,
        (COPY, WARP),
    ),
    "teeth_when_shut": Metric(
        "teeth when shut",
        -1,
        3,
        "share of frames with lips that should be closed in which the line between them is whiter than the lips",
        None,
        (COPY,),
    ),
    "fid": Metric("FID", -1, 2, "Fréchet distance of Inception features", "fid"),
    "fid_recognizer": Metric(
        "FID (recogniser)",
        -1,
        4,
        "Fréchet distance of the recogniser's embeddings; not FID",
        "face_recognizer",
        (COPY,),
    ),
    "fvd": Metric("FVD₂₅", -1, 1, "Fréchet distance of I3D features of 25-frame clips at 224²", "fvd"),
    "identity": Metric(
        "identity", 1, 3, "cosine of identity embeddings to the source", "face_recognizer", (COPY, WARP, STILL)
    ),
    "identity_30": Metric("identity ±30°", 1, 3, "the same for views from 30° to both sides", "face_recognizer"),
    "identity_45": Metric("identity ±45°", 1, 3, "the same for views from 45° to both sides", "face_recognizer"),
    "akd": Metric("AKD px", -1, 2, "mean landmark distance at 256², the same detector on both", None, (WARP,)),
    "akd_labels": Metric("AKD to labels px", -1, 2, "the same against the labels of the data", None, (WARP,)),
    "pose_error": Metric("pose error °", -1, 2, "angle to the true head rotation", None, (WARP,)),
    "lip_correlation": Metric("lip corr.", 1, 3, "correlation of the lip gap with the true one", None, (WARP,)),
    "gaze_error": Metric("gaze error °", -1, 2, "angle to the requested or true gaze (E_θg)", None, (WARP, COPY)),
    "distance_error": Metric("distance error", -1, 3, "relative error of the head's size (E_s)", None, (WARP, COPY)),
    "msi": Metric("MSI", 1, 3, "1 / variance of the landmarks' acceleration at 256²", None, (COPY, LOUD, STILL)),
    "smoothness": Metric(
        "Smo (approximated)",
        1,
        4,
        "1 - difference from the neighbours' mean; that of MoDA's rows (VBench) interpolates by a network",
        None,
        (COPY,),
    ),
    "delta_pose": Metric("ΔP °", 0, 3, "head rotation per frame"),
    "lip_gap": Metric("lip gap", 0, 3, "mean gap of the inner lips relative to the distance of the outer eye corners"),
    "blink_rate": Metric("blinks/min", 0, 1, "lids that close and open again"),
    "closed_in_silence": Metric(
        "closed in pauses", 1, 3, "share of frames 0.2 s or more from any speech with closed lips", None, (COPY, LOUD)
    ),
    "sync_c": Metric("S_C", 1, 3, "SyncNet confidence", "syncnet"),
    "sync_d": Metric("S_D", -1, 3, "SyncNet distance", "syncnet"),
    "expert_c": Metric(
        "S_C (ours)",
        1,
        3,
        "confidence of this project's sync expert with unshifted audio; not SyncNet's",
        "sync_expert",
    ),
    "expert_d": Metric("S_D (ours)", -1, 3, "its distance with unshifted audio", "sync_expert"),
    "expert_offset": Metric("offset frames", -1, 2, "the audio offset with its smallest distance", "sync_expert"),
    "capp_paper": Metric("CAPP (VASA-1's)", 1, 3, "the network of the paper, which is not published", "nobody"),
    "expert_c_shuffled": Metric(
        "S_C (ours), wrong audio", 0, 3, "its confidence with audio of another person", "sync_expert"
    ),
    "capp": Metric("CAPP (ours)", 1, 3, "audio-pose alignment by this project's network", "capp"),
    "capp_shuffled": Metric("CAPP (ours), wrong audio", 0, 3, "with audio of another person: about 0", "capp"),
    "found": Metric("face found", 1, 3, "share of frames in which the detector finds a face", None, (COPY, STILL)),
    "gaze_yaw_slope": Metric("gaze yaw slope", 0, 2, "measured over requested change; 1 is right"),
    "gaze_pitch_slope": Metric("gaze pitch slope", 0, 2, "the same for pitch"),
    "iris_yaw_slope": Metric("iris yaw slope", 0, 2, "the same by matching the pixels of the irises"),
    "iris_pitch_slope": Metric("iris pitch slope", 0, 2, "the same for pitch"),
    "gaze_control_error": Metric("gaze error °", -1, 2, "mean |measured - requested| over the requested directions"),
    "distance_slope": Metric("distance slope", 0, 2, "measured over requested change of the log of the head's size"),
    "distance_control_error": Metric("distance error", -1, 3, "mean |log measured - log requested|"),
    "emotion_change": Metric("emotion change", 1, 3, "increase of the requested expression's score over neutral"),
    "emotion_hit": Metric("emotion hits", 1, 2, "share of emotions whose own score increases most"),
    "pose_constant_error": Metric("pose error °", -1, 2, "angle to a requested constant head pose"),
    "pose_yaw_slope": Metric("yaw slope", 0, 2, "measured over requested change of the yaw; 1 is right"),
    "pose_video_error": Metric("pose error, video °", -1, 2, "angle to head poses taken from a clip"),
    "held_error": Metric("held landmarks px", -1, 2, "distance of held landmarks in the frames to those asked for"),
    "held_shift": Metric(
        "held landmarks, moved by the mouth px",
        -1,
        2,
        "distance of held landmarks to those in frames that are painted from the asked landmarks alone",
    ),
    "lip_gap_range": Metric("lip gap range", 0, 3, "90th minus 10th percentile of the lip gap while others are held"),
    "instruction_effect": Metric(
        "effect", 1, 2, "measured change relative to the change from which an instruction counts as followed"
    ),
    "instruction_followed": Metric("followed", 1, 2, "share of portraits with an effect of 1 or more"),
    "seams": Metric(
        "seams", -1, 2, "second difference of the motion where windows meet over that elsewhere; 1 is best"
    ),
    "identity_transfer": Metric(
        "identity, motion of others", 1, 3, "cosine of identity embeddings to the target", "face_recognizer"
    ),
    "pose_kept": Metric("pose kept °", -1, 2, "angle to the target's own pose, given the source's dynamics alone"),
    "lips_come": Metric("lips", 1, 3, "correlation of the lip gap with the source's, given its dynamics alone"),
    "skew_comes": Metric("skewed mouth", 1, 3, "the same for the difference in height of the corners of the mouth"),
    "eyes_come": Metric("side glances", 1, 3, "the same for the yaw of the eyes relative to the head"),
    "rtf": Metric("RTF", -1, 3, "seconds from image and audio files to the video file, per second of audio"),
    "first_frame": Metric("first frame s", -1, 2, "seconds from the same files to the first frame of a stream"),
}

# Part -> its metrics. `capp_paper` is for the papers' rows.
MOVING = ("msi", "smoothness", "delta_pose", "blink_rate", "teeth_when_shut", "found")
SYNC = ("sync_c", "sync_d", "expert_c", "expert_d", "expert_offset", "capp_paper", "capp")
PARTS: dict[str, tuple[str, ...]] = {
    "self": (
        *("psnr", "psnr_face", "ssim", "l1", "lpips", "perceptual", "fid", "fid_recognizer", "fvd", "identity"),
        *("mouth_sharpness", "eye_sharpness", "mouth_distance", "eye_distance", "mouth_flicker"),
        *("akd", "akd_labels", "pose_error", "lip_correlation", "gaze_error", "distance_error"),
        *MOVING,
    ),
    "cross": (
        *("fid", "fid_recognizer", "identity", "akd", "pose_error", "lip_correlation", "gaze_error"),
        *("distance_error", "mouth_flicker", *MOVING),
    ),
    "audio": (
        *SYNC,
        *("expert_c_shuffled", "capp_shuffled"),
        *("delta_pose", "fvd", "fid", "fid_recognizer", "identity", "lip_correlation", "closed_in_silence"),
        *("gaze_error", "distance_error", "msi", "smoothness", "blink_rate", "mouth_flicker", "teeth_when_shut"),
        "found",
    ),
    "minutes": (*SYNC, "delta_pose", "fvd", "seams"),
    "disentangle": ("identity_transfer", "pose_kept", "lips_come", "skew_comes", "eyes_come"),
    "silence": ("blink_rate", "lip_gap", "closed_in_silence", "delta_pose", "teeth_when_shut", "found"),
    "ablations": (*SYNC, "delta_pose", "fvd", "gaze_error", "distance_error"),
    "controls": (
        *("gaze_yaw_slope", "gaze_pitch_slope", "iris_yaw_slope", "iris_pitch_slope", "gaze_control_error"),
        *("distance_slope", "distance_control_error", "emotion_change", "emotion_hit"),
    ),
    "motion_controls": (
        *("pose_constant_error", "pose_yaw_slope", "pose_video_error", "held_error", "held_shift", "lip_gap_range"),
        *("instruction_effect", "instruction_followed"),
    ),
    "speed": ("rtf", "first_frame"),
    "studies": (),
    "avatars": (
        *("psnr", "psnr_face", "l1", "ssim", "lpips", "perceptual", "fid", "fid_recognizer"),
        *("identity", "identity_30", "identity_45", "sync_c", "sync_d", "expert_c", "expert_d", "expert_offset"),
        *("akd", "pose_error", "lip_correlation", "gaze_error", "msi", "delta_pose", "found"),
    ),
    "real": (
        *("psnr", "psnr_face", "l1", "ssim", "lpips", "perceptual", "identity", "sync_c", "sync_d", "expert_c"),
        *("expert_d", "akd", "pose_error", "lip_correlation", "delta_pose", "found"),
    ),
}
CONTROL_METRICS = ("gaze_error", "distance_error")  # against the requested values
# Part -> the controls of which a pipeline must have one.
CONTROL_PARTS = {"ablations": ("gaze",), "controls": ("gaze", "emotion"), "motion_controls": ("pose",)}
AVATAR_PARTS = ("avatars", "real")  # for `Vasa3DAvatarPipeline`; all others are for talking faces
LATENT_PARTS = ("disentangle",)  # for pipelines whose motion is z_pose and z_dyn
TITLES = {
    "self": "Self-reconstruction",
    "cross": "Cross-reenactment",
    "audio": "Audio-driven generation",
    "minutes": "One-minute speech (VASA-1, Table 1, OneMin-32)",
    "disentangle": "Disentanglement of identity, pose and dynamics (VASA-1 §4.3, Fig. 4)",
    "silence": "Idle faces",
    "ablations": "Ablation of guidance scales and steps (VASA-1, Table 4)",
    "controls": "Controllability",
    "motion_controls": "Control of head pose, landmarks and instructions (GAIA, §5.4)",
    "speed": "Speed",
    "studies": "Studies of the learned metrics on real clips (VASA-1, Tables 2 and 3)",
    "avatars": "Avatars against VASA-1 (VASA-3D, Tables 1, 2 and 3)",
    "real": "Avatars against real videos (VASA-3D, Table A)",
}


# Numbers of the papers, on their data with their networks: part | paper | table | metrics, and a row for each system.
_PAPERS = """
self | GAIA | Table 2 | fid lpips psnr akd msi
  FOMM  23.843 0.196 22.669 2.16 0.839
  HeadGAN  21.499 0.278 18.555 2.99 0.835
  face-vid2vid  18.604 0.184 23.681 2.195 0.813
  GAIA  15.73 0.167 23.942 1.442 0.856
cross | GAIA | Table 2 | fid akd msi
  FOMM  45.951 3.404 0.838
  HeadGAN  90.746 5.964 0.788
  face-vid2vid  28.093 3.63 0.853
  GAIA  15.2 2.003 1.102
minutes | VASA-1 | Table 1, OneMin-32 | sync_c sync_d capp_paper delta_pose fvd
  MakeItTalk  -0.123 14.34 0.002 0.19 304.83
  Audio2Head  5.992 8.211 0.205 0.239 209.77
  SadTalker  5.501 8.85 0.383 0.252 214.51
  VASA-1  7.957 6.635 0.465 0.316 105.88
  VASA-1 of 10 % of the data  7.99 6.645 0.441 0.229 147.401
  real video  7.192 7.254 0.559 0.405 29.25
disentangle | VASA-1 | §4.3 | identity_transfer
  without l_cross_id  0.72
  with l_cross_id  0.8
audio | VASA-1 | Table 1, VoxCeleb2 | sync_c sync_d capp_paper delta_pose
  MakeItTalk  4.176 15.513 -0.051 0.21
  Audio2Head  6.172 8.47 0.246 0.26
  SadTalker  5.843 8.813 0.441 0.275
  VASA-1  8.841 6.312 0.468 0.304
  VASA-1 of 10 % of the data  8.818 6.298 0.457 0.229
  real video  7.64 7.189 0.588 0.505
self | GAIA | Table 7, VoxCeleb2 | fid lpips psnr akd msi
  GAIA  16.099 0.173 22.896 1.434 1.083
cross | GAIA | Table 7, VoxCeleb2 | fid akd msi
  GAIA  27.643 2.968 1.035
self | GAIA | Table 4 | fid
  GAIA, 80M, 500 h  18.353
  GAIA, 80M, 1000 h  17.486
  GAIA, 700M, 1000 h  15.73
  GAIA, 1.7B, 1000 h  15.886
audio | GAIA | Tables 3 and 8 | sync_d msi fid
  MakeItTalk  9.932 1.14 28.894
  Audio2Head  8.508 0.635 28.607
  PC-AVS  8.341 0.677 59.464
  SadTalker  8.606 1.165 22.322
  PD-FGC, driven by the true video  8.573 0.478 58.943
  GAIA  8.528 1.181 22.924
  real video  8.548 - -
audio | GAIA | Table 5 | sync_d
  GAIA, 180M, 100 h  9.145
  GAIA, 180M, 1000 h  8.913
  GAIA, 600M, 1000 h  8.603
  GAIA, 1.2B, 1000 h  8.528
audio | GAIA | Tables 6 and 9 | sync_d msi fid
  GAIA, 700M and 180M  8.913 1.132 24.242
  GAIA, no disentanglement  12.68 1.423 140.009
  GAIA, no head pose  9.134 1.208 23.648
  GAIA, no diffusion  9.817 1.486 21.049
  GAIA, landmark prediction  9.331 1.038 27.022
  GAIA, both added  8.989 1.125 28.189
  GAIA, both by attention  10.231 1.139 28.718
  GAIA, speech by attention, reference added  10.18 1.015 24.021
  GAIA, Transformer  9.312 0.623 25.385
audio | MoDA | Table 1, HDTF | fvd fid identity sync_c sync_d smoothness
  EchoMimic  207.987 29.633 0.887 2.744 11.805 0.9939
  JoyHallo  256.226 44.842 0.852 7.36 7.984 0.9944
  Hallo  216.573 34.35 0.878 7.087 7.941 0.995
  Hallo2  229.806 34.426 0.871 7.102 7.976 0.9951
  Ditto  243.491 32.2 0.943 6.102 8.79 0.997
  JoyVASA  229.634 32.584 0.953 5.255 9.6 0.9968
  MoDA with ALSE  191.292 30.449 0.925 8.183 7.065 0.997
  MoDA  174.622 28.182 0.927 7.369 7.744 0.9971
  real video  - - 0.86 7.267 7.586 0.9959
audio | MoDA | Table 1, CelebV-HQ | fvd fid identity sync_c sync_d smoothness
  EchoMimic  258.451 47.169 0.837 2.61 11.216 0.9946
  JoyHallo  282.081 57.247 0.813 6.041 8.418 0.9945
  Hallo  245.101 44.411 0.851 5.629 8.384 0.9952
  Hallo2  242.352 46.615 0.851 5.671 8.397 0.9953
  Ditto  302.525 46.996 0.915 4.681 9.28 0.9973
  JoyVASA  271.231 44.574 0.918 5.171 8.632 0.9971
  MoDA with ALSE  205.307 44.201 0.916 6.552 7.635 0.9972
  MoDA  205.442 44.071 0.913 5.878 8.135 0.9972
  real video  - - 0.861 5.837 7.989 0.9964
audio | MoDA | Table 2 | identity sync_c sync_d
  EchoMimic  0.87 2.292 12.13
  JoyHallo  0.825 7.0 8.167
  Hallo  0.848 6.051 8.73
  Hallo2  0.849 6.386 8.523
  Ditto  0.923 6.107 9.04
  JoyVASA  0.924 5.569 9.368
  MoDA with ALSE  0.896 7.71 7.469
  MoDA  0.895 6.862 8.088
audio | MoDA | Table 3 | fid fvd sync_c sync_d
  MoDA by cross-attention  47.365 232.291 5.331 8.692
  MoDA, four streams throughout  44.548 221.631 5.535 8.465
  MoDA, motion joins emotion and identity  48.358 216.982 5.511 8.527
  MoDA  44.071 205.442 5.878 8.135
speed | MoDA | Table 2 | rtf
  EchoMimic  48.657
  JoyHallo  59.735
  Hallo  59.19
  Hallo2  60.305
  Ditto  0.792
  JoyVASA  1.717
  MoDA  0.846
ablations | VASA-1 | | sync_c sync_d capp_paper delta_pose fvd gaze_error distance_error
  λ_A = 0, λ_g = 0  7.087 7.391 0.414 0.291 117.425 5.73 0.004
  λ_A = 0, λ_g = 1  7.134 7.345 0.421 0.29 116.547 5.329 0.004
  λ_A = 0, λ_g = 2  7.108 7.386 0.414 0.298 117.784 5.064 0.005
  λ_A = 0.5, λ_g = 1  7.957 6.635 0.465 0.316 105.884 5.253 0.005
  λ_A = 1, λ_g = 1  8.218 6.437 0.474 0.342 104.886 5.333 0.005
  λ_A = 2, λ_g = 1  8.295 6.397 0.455 0.395 104.293 5.531 0.005
  λ_A = 0.5, λ_g = 1, 10 steps  8.293 6.363 0.523 0.243 117.06 5.469 0.006
  real video  7.192 7.254 0.559 0.405 29.244 - -
avatars | VASA-3D | Table 1 | psnr l1 ssim lpips sync_c sync_d
  basic, G' alone  25.74 0.0228 0.8544 0.0768 6.6347 8.1265
  + VAS deformation  27.19 0.0195 0.8654 0.0695 6.9636 7.905
  + L_sds  27.23 0.0195 0.8653 0.0707 6.9581 7.9191
  + L_consist  27.33 0.0192 0.8672 0.0706 6.9429 7.9221
  + L_cas  26.62 0.0209 0.8472 0.0657 6.9145 7.9422
  VASA-1's frames  - - - - 7.1517 7.777
avatars | VASA-3D | Table 2 | fid sync_c sync_d identity
  VASA-1  5.24 8.142 6.9237 0.8154
  VASA-3D  7.45 8.121 6.93 0.7874
avatars | VASA-3D | Table 3 | sync_c sync_d identity
  ER-NeRF  5.921 8.7788 0.7732
  GeneFace  5.922 9.6066 0.7857
  MimicTalk  5.27 10.9368 0.7748
  TalkingGaussian  6.701 8.1061 0.7971
  VASA-3D  8.121 6.93 0.7874
  VASA-3D of 20,000 iterations  7.98 7.002 -
real | VASA-3D | Table A | psnr psnr_face l1 ssim lpips sync_c sync_d
  GAGAvatar  25.74 30.53 0.0257 0.8695 0.0829 5.502 8.693
  GPAvatar  24.91 29.41 0.0288 0.8583 0.1016 4.785 9.256
  Real3DPortrait  23.78 28.04 0.0338 0.8481 0.1091 4.971 9.179
  Voodoo3D  23.43 28.39 0.0343 0.838 0.1209 4.307 9.5
  Portrait4D-v2  23.19 27.55 0.0356 0.8325 0.0946 5.823 8.53
  VASA-3D  26.21 31.11 0.0255 0.8741 0.076 6.453 7.996
  real video  - - - - - 6.673 7.802
  VASA-1  25.93 31.01 0.0261 0.8544 0.0809 6.302 8.061
"""


def _read_papers(text: str) -> dict[str, dict[str, dict[str, float]]]:
    papers: dict[str, dict[str, dict[str, float]]] = {}
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            part, paper, table, metrics = (field.strip() for field in line.split("|"))
            continue
        system, values = line.strip().split("  ")
        source = table if system.startswith(paper) else f"{paper}, {table}"
        system = f"{system} ({source})" if table else f"{paper}, {system}"
        row = zip(metrics.split(), values.split(), strict=True)
        papers.setdefault(part, {})[system] = {name: float(value) for name, value in row if value != "-"}
    return papers


PAPERS = _read_papers(_PAPERS)
# Table 4's settings: audio scale, gaze scale, steps.
ABLATIONS = (
    (0.0, 0.0, 50),
    (0.0, 1.0, 50),
    (0.0, 2.0, 50),
    (0.5, 1.0, 50),
    (1.0, 1.0, 50),
    (2.0, 1.0, 50),
    (0.5, 1.0, 10),
)


def check_names(parts: Sequence[str] | None, metrics: Sequence[str] | None) -> None:
    """Raise `ValueError` for an unknown part or metric."""
    for argument, names, known in (("parts", parts, PARTS), ("metrics", metrics, METRICS)):
        for name in names or ():
            if name not in known:
                raise ValueError(f"`{argument}` must be of {list(known)}, got {name!r}.")
