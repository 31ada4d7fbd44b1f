"""The whole evaluation on a made-up folder with a tiny pipeline: tables, reasons, exit status."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.testing_utils.face_data import moved
from tests.testing_utils.pipelines import make_audio, make_gaia_components, make_gaia_denoiser, make_moda_components
from vasa_hf import (
    FaceImageProcessor,
    GaiaAutoencoder,
    GaiaAvatarPipeline,
    LivePortraitRenderer,
    ModaTalkingHeadPipeline,
    SyncExpert,
    SyncNet,
    VasaTalkingFacePipeline,
)
from vasa_hf.evaluation import tables
from vasa_hf.evaluation.catalogue import COPY, LOUD, METRICS, OTHER, PAPERS, PARTS, TRUTH, WARP
from vasa_hf.evaluation.data import load_samples
from vasa_hf.evaluation.evaluate import evaluate, missing_metrics
from vasa_hf.evaluation.inference import PointwiseConv
from vasa_hf.evaluation.protocols import controls, motion_controls, speaking
from vasa_hf.evaluation.run import Evaluation
from vasa_hf.evaluation.scoring import fit_lip_motion, loudness_track, other_motion
from vasa_hf.geometry.landmarks import rows
from vasa_hf.hub import embedded_path
from vasa_hf.media import VideoWriter, save_wav
from vasa_hf.metrics.faces import FaceTrack, measure_faces
from vasa_hf.metrics.motion import keypoint_distance, mouth_skew, pose_variation, seam_roughness, signal_correlation
from vasa_hf.models.autoencoder_gaia import TINY_CONFIG
from vasa_hf.models.face_recognizer import FaceRecognizer
from vasa_hf.training.recipes.gaia_text_denoiser import GaiaTextOptions, make_text_encoder

CARD = embedded_path("vasa-small")
ASSETS = CARD.parents[1] / "vasa_hf" / "assets"
pytestmark = pytest.mark.skipif(not (CARD / "face_analyzer").is_dir(), reason="the embedded weights are not here")


@pytest.fixture(scope="module")
def result(pipeline, data, tmp_path_factory):
    """All parts with one sample and a made-up recogniser; returns folder and missing metrics."""
    torch.manual_seed(0)
    recognizer = FaceRecognizer(image_size=32, widths=(4, 8), depths=(1,), embedding_dim=4, num_feature_maps=2).eval()
    output = tmp_path_factory.mktemp("output")
    parts = ["self", "cross", "audio", "studies"]
    missing = evaluate(pipeline, data, output, parts, networks={"face_recognizer": recognizer}, samples=1)
    return output, missing


def values(output, part, system, metric):
    return {
        row["item"]: row["value"]
        for row in tables.read_rows(output)
        if (row["part"], row["system"], row["metric"]) == (part, system, metric) and row["value"] is not None
    }


def reasons(output, part, item):
    return {row["why"] for row in tables.read_rows(output) if row["part"] == part and row["item"] == item} - {""}


def test_every_system_has_its_rows(result, pipeline):
    output, _ = result
    model = type(pipeline).__name__
    assert set(values(output, "self", model, "psnr")) == {"a_good", "b_wide", "d_mute"}
    for system in (COPY, WARP):
        assert set(values(output, "self", system, "ssim")) == {"a_good", "b_wide", "d_mute"}
    assert values(output, "self", TRUTH, "delta_pose")
    assert set(values(output, "cross", COPY, "pose_error")) == {"face"}
    for system in (COPY, LOUD, OTHER, model):
        assert {"a_good", "long@0s"} <= set(values(output, "audio", system, "delta_pose"))
    assert set(values(output, "self", model, "fid_recognizer")) == {"*"}


def test_the_detector_measures_what_the_analyzer_does(pipeline, data, tmp_path, analyzer, portrait):
    detector, frames = Evaluation(pipeline, data, tmp_path).detector, frames_of(portrait, [0, 2, 4])
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in detector.landmarker.modules())
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in analyzer.landmarker.modules())  # left as it was
    ours, theirs = measure_faces(detector, frames), measure_faces(analyzer, frames)
    assert torch.allclose(ours.landmarks, theirs.landmarks, atol=1e-5)
    assert torch.allclose(ours.pose, theirs.pose, atol=1e-4)
    ours, theirs = (network.detect(frames[0] * 2 - 1)[0] for network in (detector, analyzer))
    assert torch.allclose(ours.box, theirs.box, atol=1e-2)  # pixels


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_product_of_matrices_is_a_convolution_with_a_kernel_of_1(channels_last):
    convolution, features = torch.nn.Conv2d(5, 7, 1), torch.randn(2, 5, 4, 6)
    out = PointwiseConv(convolution, channels_last)(features.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(out, convolution(features), atol=1e-6)
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_the_wrong_audio_is_a_strangers_and_long_enough(pipeline, data, tmp_path):
    run = Evaluation(pipeline, data, tmp_path)
    own = load_samples(data / "speech" / "long.wav", pipeline.audio_processor)
    other = load_samples(data / "speech" / "short.wav", pipeline.audio_processor)
    for index in range(8):
        wrong = run.pick_wrong_audio("long", 25, index)["other_samples"]  # no other voice is as long
        assert torch.equal(wrong, other[: 25 * 640]) and not torch.equal(wrong, own[: 25 * 640])
    assert run.pick_wrong_audio("long", 60, 0) == {}
    assert len(run.pick_wrong_audio("a_good", 60, 3)["other_samples"]) == 60 * 640


def test_copying_and_warping_score_what_they_must(result):
    output, _ = result
    assert max(values(output, "self", COPY, "delta_pose").values()) == pytest.approx(0, abs=1e-4)
    assert set(values(output, "self", COPY, "lip_correlation").values()) == {0.0}
    assert values(output, "cross", COPY, "identity")["face"] == pytest.approx(1, abs=1e-5)
    copy, warp = (values(output, "self", system, "akd") for system in (COPY, WARP))
    assert sum(warp.values()) < sum(copy.values())


def test_unfit_files_get_rows_that_say_why(result):
    output, _ = result
    assert any("no face" in why for why in reasons(output, "self", "c_grey"))
    assert any("no audio stream" in why for why in reasons(output, "audio", "d_mute"))
    assert any("single frame" in why for why in reasons(output, "self", "e_one"))
    assert any("shorter than a window" in why for why in reasons(output, "audio", "short"))
    assert any("face" in why for why in reasons(output, "cross", "grey"))


def test_clips_alone_are_enough_for_audio_and_silence(pipeline, data, tmp_path, monkeypatch):
    """A folder without portraits and voices: the clips' own audio, and idle faces on clips' first frames."""
    monkeypatch.setattr(speaking, "SILENCE_SECONDS", 2)
    (tmp_path / "clips").mkdir()
    for name in ("a_good", "b_wide"):
        shutil.copy(data / "clips" / f"{name}.mp4", tmp_path / "clips")
    output, model = tmp_path / "output", type(pipeline).__name__
    missing = evaluate(pipeline, tmp_path, output, ["audio", "silence", "studies"], samples=1, sheets=False)
    assert missing == []
    for name in ("delta_pose", "lip_correlation", "teeth_when_shut"):
        assert set(values(output, "audio", model, name)) <= {"a_good", "b_wide"}
    assert set(values(output, "audio", model, "delta_pose")) == {"a_good", "b_wide"}
    silence = {name: values(output, "silence", model, name) for name in PARTS["silence"]}
    assert all(set(silence[name]) == {"a_good", "b_wide"} for name in ("lip_gap", "blink_rate", "delta_pose", "found"))
    assert set(values(output, "silence", model, "closed_in_silence").values()) <= {k / 50 for k in range(51)}
    assert "Idle faces" in (output / "table.md").read_text()


def test_tables_hold_ours_the_papers_and_the_reasons(result, pipeline):
    output, _ = result
    text = (output / "table.md").read_text()
    for part in ("self", "cross", "audio"):
        for system in PAPERS[part]:
            assert f"| *{system}* |" in text
    assert f"| **{type(pipeline).__name__}** |" in text and "8.841" in text and "23.942" not in text  # two decimals
    assert "needs SyncNet: --syncnet" in text and "shorter than a window" in text
    content = json.loads((output / "table.json").read_text())
    assert {entry["part"] for entry in content["summary"]} >= {"self", "cross", "audio"}
    share = f"{type(pipeline).__name__}, share of {TRUTH}"
    assert f"| {share} |" in text and f"| {share} |" in (output / "card.md").read_text()
    with open(output / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    psnr = next(row for row in rows if row["metric"] == "psnr" and row["role"] == "model")
    assert float(psnr["low"]) <= float(psnr["value"]) <= float(psnr["high"]) and psnr["items"] == "3"
    assert Image.open(output / "sheets" / "self_a_good.jpg").size == (640, 654)


def test_time_is_reported_for_generating_and_measuring_apart(result):
    output, _ = result
    text, runs = (output / "table.md").read_text(), json.loads((output / "table.json").read_text())["runs"]
    assert set(runs) == {"self", "cross", "audio", "studies"}
    for run in runs.values():
        assert run["generate"] + run["score"] <= run["seconds"] + 0.2  # each rounded to a tenth
        assert run["generate_cpu_seconds"] + run["score_cpu_seconds"] <= run["cpu_seconds"] + 0.2
    assert runs["self"]["score_cpu_seconds"] > 0 and runs["studies"]["generate_cpu_seconds"] == 0
    both = [sum(run[key] for run in runs.values()) for key in ("score", "score_cpu_seconds")]
    assert f"measuring {both[0]:.0f} s ({both[1]:.0f} s of CPU time)." in text
    assert tables.format_time([runs["self"]]) in text


def test_tables_are_remade_from_the_rows_alone(result, tmp_path):
    output, _ = result
    shutil.copytree(output / "rows", tmp_path / "rows")
    tables.remake(tmp_path, plots=False)
    for name in ("table.md", "card.md", "table.csv", "table.json"):
        assert (tmp_path / name).read_text() == (output / name).read_text()
    with pytest.raises(ValueError, match="rows/"):
        tables.remake(tmp_path / "rows")


def test_what_was_asked_for_and_is_absent_is_missing(result):
    """Without networks for them, S_C and CAPP are reported but not required, unless named."""
    output, missing = result
    assert not [name for name in missing if "sync" in name or "capp" in name]
    assert missing_metrics(output, ["audio"], ["delta_pose"]) == []
    assert missing_metrics(output, ["audio"], ["sync_c"]) == ["audio: sync_c"]
    assert missing_metrics(output, ["self"], ["capp"]) == ["capp: in none of the parts self"]


def test_only_the_asked_for_metrics_are_computed(pipeline, data, tmp_path):
    evaluate(pipeline, data, tmp_path, ["self"], metrics=["psnr"], limit=1, sheets=False)
    assert {row["metric"] for row in tables.read_rows(tmp_path)} == {"psnr"}
    assert not (tmp_path / "sheets").exists()


def test_wrong_names_and_folders_are_reported(pipeline, data, tmp_path):
    with pytest.raises(ValueError, match="`metrics` must be of"):
        evaluate(pipeline, data, tmp_path, metrics=["nonsense"])
    with pytest.raises(ValueError, match="`parts` must be of"):
        evaluate(pipeline, data, tmp_path, ["nonsense"])
    with pytest.raises(ValueError, match="`data` must be an existing folder"):
        evaluate(pipeline, tmp_path / "nowhere", tmp_path)
    with pytest.raises(ValueError, match="`data` must hold clips"):
        evaluate(pipeline, tmp_path, tmp_path)


def summary_of(**systems):
    """Rows of PSNR: role_name -> values by item."""
    rows = []
    for key, scores in systems.items():
        role, system = key.split("_")
        for item, value in enumerate(scores):
            row = {"part": "self", "role": role, "system": system, "item": str(item), "sample": "0", "metric": "psnr"}
            rows.append({**row, "value": value, "why": ""})
    return tables.summarize(rows)


def test_a_model_below_its_baseline_is_reported():
    verdicts = tables.below_baselines(summary_of(model_ours=[20, 21, 22.0], baseline_copy=[23, 24, 25.0]))
    assert [(v["system"], v["baseline"], v["certain"]) for v in verdicts] == [("ours", "copy", True)]
    doubtful = tables.below_baselines(summary_of(model_ours=[20, 25, 22.0], baseline_copy=[23, 23.5, 21.0]))
    assert [v["certain"] for v in doubtful] == [False]
    assert not tables.below_baselines(summary_of(model_ours=[26, 27.0], baseline_copy=[23, 24.0]))
    # Only the items that both have are compared.
    assert not tables.below_baselines(summary_of(model_ours=[20.0], baseline_copy=[19, 40.0]))


def test_samples_are_averaged_before_clips():
    rows = [
        {"part": "audio", "role": "model", "system": "m", "item": item, "sample": sample, "metric": "msi", "why": ""}
        for item, sample in (("a", 0), ("a", 1), ("a", 2), ("b", 0))
    ]
    for row, value in zip(rows, (1.0, 2.0, 3.0, 4.0), strict=True):
        row["value"] = value
    (entry,) = tables.summarize(rows)
    assert entry["value"] == 3.0 and entry["items"] == 2 and entry["per_item"] == {"a": 2.0, "b": 4.0}


def test_a_share_is_of_the_items_that_both_have():
    (share,) = tables.shares_of_truth(summary_of(model_ours=[1.0, 2.0, 9.0], truth_real=[2.0, 4.0]))
    assert (share["role"], share["value"], share["items"]) == ("share", 0.5, 2)
    assert tables.shares_of_truth(summary_of(model_ours=[1.0], truth_real=[-2.0])) == []
    assert tables.shares_of_truth(summary_of(model_ours=[1.0], baseline_copy=[2.0])) == []


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        values = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        low, high = tables.bootstrap_interval(values, resamples=300, seed=seed)
        covered += low <= 0 <= high
        assert low <= values.mean() <= high
    assert 0.88 <= covered / 200 <= 0.98  # percentile intervals are a little narrow; 200 trials
    assert all(math.isnan(end) for end in tables.bootstrap_interval([1.0]))
    assert tables.bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_papers_rows_are_of_known_metrics():
    for part, systems in PAPERS.items():
        for row in systems.values():
            assert set(row) <= set(PARTS[part]) <= set(METRICS)
    assert PAPERS["audio"]["VASA-1 of 10 % of the data (Table 1, VoxCeleb2)"]["sync_c"] == 8.818
    assert PAPERS["minutes"]["VASA-1 (Table 1, OneMin-32)"] == {
        "sync_c": 7.957, "sync_d": 6.635, "capp_paper": 0.465, "delta_pose": 0.316, "fvd": 105.88,
    }  # fmt: skip


# --- the detector's track ---------------------------------------------------------------------------------------------


def frames_of(portrait, shifts, size=128):
    pictures = [np.asarray(Image.fromarray(moved(portrait, shift)).resize((size, size))) for shift in shifts]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def test_track_follows_a_moving_face(analyzer, portrait):
    shifts = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    track = measure_faces(analyzer, frames_of(portrait, shifts))
    assert track.found.all() and track.landmarks.shape == (10, 162, 2) and track.pose.shape == (10, 7)
    center = track.landmarks.mean(1)[:, 0] * 128
    assert torch.allclose(center - center[0], torch.tensor(shifts, dtype=torch.float32), atol=1.0)
    single = analyzer.detect(frames_of(portrait, [0])[0] * 2 - 1)[0]
    alone = FaceTrack.of(single.landmarks[None] / 128, track.pose[:1])
    assert keypoint_distance(track[:1], alone) < 2.5  # pixels at 256: another crop of the same face
    frozen = measure_faces(analyzer, frames_of(portrait, [0] * 10))
    assert pose_variation(frozen) < pose_variation(track)
    with pytest.raises(ValueError, match="must show a face"):
        measure_faces(analyzer, torch.full((3, 3, 64, 64), 0.5))


class DetectsOnly:
    """Another detector has `detect` and `canonical` alone, as `MediaPipeFaceAnalyzer` does."""

    def __init__(self, analyzer):
        self.detect, self.canonical = analyzer.detect, analyzer.canonical


def test_another_detector_is_asked_frame_by_frame(analyzer, portrait):
    frames = frames_of(portrait, [0, 3, 6])
    frames[1] = 0.5  # no person there
    track, ours = measure_faces(DetectsOnly(analyzer), frames), measure_faces(analyzer, frames)
    assert track.found.tolist() == [True, False, True]
    assert keypoint_distance(track, ours) < 2.5
    assert torch.allclose(track.pose[2], ours.pose[2], atol=0.03)


def test_transplanted_movement_keeps_the_face_and_takes_the_pose(analyzer, portrait):
    canonical = analyzer.canonical.float()
    track = measure_faces(analyzer, frames_of(portrait, [0, 4, 8]))
    assert torch.allclose(track.transplant(track[:1], canonical), track.landmarks, atol=2e-3)
    larger = FaceTrack.of(track.landmarks[:1] * 1.2, track.pose[:1] * torch.tensor([1, 1, 1, 1.2, 1.2, 1.2, 1.2]))
    assert torch.allclose(track.transplant(larger, canonical), track.landmarks, atol=2e-3)


def test_loudness_moves_the_lower_lip_alone(analyzer, portrait):
    still = measure_faces(analyzer, frames_of(portrait, [0]))
    samples = torch.zeros(16000)
    samples[8000:] = 0.3 * torch.sin(torch.arange(8000) * 0.2)
    track = loudness_track(still, samples, 25)
    assert track.lip_gap[3] < 0.02 and track.lip_gap[20] > 0.1
    assert pose_variation(track) == pytest.approx(0, abs=1e-4)
    assert torch.equal(track.eye_open, still.eye_open.expand(25))


def test_parts_of_the_baselines():
    assert other_motion(torch.arange(4.0), 9).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert other_motion(torch.arange(9.0), 3).tolist() == [0, 1, 2]
    gaps = [torch.rand(20), torch.rand(30) + 1]
    direction = torch.tensor([0.0, 2.0, -1.0])
    latents = [gap[:, None] * direction + offset for gap, offset in zip(gaps, (0.5, -3.0), strict=True)]
    assert torch.allclose(fit_lip_motion(latents, gaps), direction, atol=1e-4)


# --- another system ---------------------------------------------------------------------------------------------------


def test_moda_is_judged_with_vasa1_as_reference(pipeline, analyzer, portrait, data, tmp_path, monkeypatch):
    """Its motion is not the sync expert's: that looks at the frames, through VASA-1's encoder."""
    parts = make_moda_components() | {"face_analyzer": analyzer, "image_processor": FaceImageProcessor(size=64)}
    config = {**parts["renderer"].config, "image_size": 64}
    torch.manual_seed(0)
    moda = ModaTalkingHeadPipeline(**parts | {"renderer": LivePortraitRenderer.from_config(config).eval()})
    networks, looks = {"sync_expert": SyncExpert(motion_dim=10, lips=(6, 10), hidden_size=8, embed_dim=4).eval()}, []
    encode = pipeline.encode_video
    monkeypatch.setattr(pipeline, "encode_video", lambda frames, **box: looks.append(1) or encode(frames, **box))
    settings = {"networks": networks, "samples": 1, "limit": 1, "sheets": False, "reference": pipeline}
    settings["metrics"] = ["smoothness", "expert_d", "gaze_error", "rtf", "first_frame"]
    evaluate(moda, data, tmp_path, ["audio", "speed"], **settings)
    assert len(looks) >= 2  # at the real clip, and at the generated one
    name = "ModaTalkingHeadPipeline"
    assert values(tmp_path, "audio", name, "smoothness") and values(tmp_path, "audio", name, "expert_d")
    assert not values(tmp_path, "audio", name, "gaze_error")  # no gaze was requested
    (rtf,), (first,) = (list(values(tmp_path, "speed", name, key).values()) for key in ("rtf", "first_frame"))
    assert 0 < first < rtf * 3.1 * 1.5  # the voice lasts 3.1 s; the machine may be busy
    table = (tmp_path / "table.md").read_text()
    assert "MoDA (Table 2)" in table and "0.846" in table
    with pytest.raises(ValueError, match="`parts` must be of .* for this pipeline, got .'ablations'."):
        evaluate(moda, data, tmp_path, ["ablations"], reference=pipeline)

    # Its emotion control is measured, by its own names; it has no gaze and no distance.
    frames, asked = frames_of(portrait, [0, 1]), []

    def look(**settings):
        moda.create_motion_generator().check(moda.controls_type(**settings))
        asked.extend(settings.get("emotion", ()))
        return frames, measure_faces(analyzer, frames)

    measured = controls.Controls(Evaluation(moda, data, tmp_path, reference=pipeline))._respond(look)
    assert measured.keys() == {"emotion_change", "emotion_hit"}
    assert asked == ["anger", "disgust", "fear", "happiness", "sadness", "surprise"]


@pytest.fixture
def two_people(tmp_path, portrait):
    """Clips of more than a second of two people, a portrait and a voice of 2.4 s."""
    for name in ("clips", "portraits", "speech"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for seed, name in enumerate(("anna", "ben")):
        picture = portrait if not seed else ImageOps.mirror(portrait)
        audio = (make_audio(1.4, seed), 16_000)
        with VideoWriter(
            tmp_path / "data" / "clips" / f"{name}.mp4", 25, picture.size, audio, provenance=False
        ) as file:
            for index in range(30):
                file.write(moved(picture, index % 6))
    shutil.copy(ASSETS / "portrait.jpg", tmp_path / "data" / "portraits" / "face.jpg")
    save_wav(tmp_path / "data" / "speech" / "long.wav", make_audio(2.4, 7), 16_000)
    return tmp_path / "data"


@pytest.mark.e2e
def test_all_frames_are_measured_where_syncnet_and_i3d_are_given(two_people, tmp_path, monkeypatch):
    """Table 4 and whole voices with tiny networks in their places; identity and pose with others' motion."""
    pipeline = VasaTalkingFacePipeline.from_pretrained("vasa-small")  # a tiny one makes no faces
    torch.manual_seed(0)
    tiny = {"audio_widths": (2, 3, 4, 3, 3, 6), "face_widths": (2, 3, 3, 3, 3, 5), "embed_dim": 8}
    recognizer = FaceRecognizer(image_size=32, widths=(4, 8), depths=(1,), embedding_dim=4, num_feature_maps=2).eval()
    networks = {"syncnet": SyncNet(**tiny).eval(), "fvd": lambda clips: clips.mean((2, 3))[:, :, :3].flatten(1)}
    networks |= {"face_recognizer": recognizer}
    monkeypatch.setattr(controls, "ABLATIONS", controls.ABLATIONS[-2:])
    monkeypatch.setattr(controls, "ABLATION_SECONDS", 2)
    monkeypatch.setattr(speaking, "MINUTE_PART", 30)
    output, parts = tmp_path / "output", ["minutes", "disentangle", "ablations"]
    settings = {"networks": networks, "samples": 1, "sheets": False, "transfers": 50}
    assert evaluate(pipeline, two_people, output, parts, **settings) == []
    model = "vasa-small"
    for system in (f"{model}, λ_A = 2, λ_g = 1, 50 steps", f"{model}, λ_A = 0.5, λ_g = 1, 10 steps"):
        for name in ("sync_c", "sync_d", "fvd", "delta_pose", "gaze_error"):
            assert values(output, "ablations", system, name), (system, name)
    assert set(values(output, "ablations", TRUTH, "sync_d")) == {"anna", "ben"}
    assert values(output, "minutes", model, "fvd").keys() == {"*"}
    assert values(output, "minutes", model, "sync_d").keys() == {"long"}
    (seams,) = values(output, "minutes", model, "seams").values()
    assert 0.2 < seams < 5
    pairs = {"anna < ben", "ben < anna"}
    for name in ("identity_transfer", "pose_kept", "lips_come", "skew_comes", "eyes_come"):
        assert values(output, "disentangle", model, name).keys() == pairs, name
    table = (output / "table.md").read_text()
    assert "with l_cross_id (VASA-1, §4.3)" in table and "VASA-1 of 10 % of the data" in table


def test_seams_and_signals():
    smooth = torch.sin(torch.arange(200)[:, None] * torch.tensor([0.1, 0.17]))
    steps = smooth.clone()
    steps[100:] += 0.5
    assert seam_roughness(smooth, [50, 100, 150]) == pytest.approx(1, abs=0.3)
    assert seam_roughness(steps, [100]) > 5 > 1.5 > seam_roughness(steps, [50])
    with pytest.raises(ValueError, match="no seam"):
        seam_roughness(smooth, [])
    points = torch.zeros(3, 162, 2)
    points[:, rows(33)[0]], points[:, rows(263)[0]] = torch.tensor([0.3, 0.4]), torch.tensor([0.7, 0.4])
    points[:, rows(61)[0]] = torch.tensor([0.4, 0.7])
    points[:, rows(291)[0]] = torch.tensor([[0.6, 0.7], [0.6, 0.72], [0.6, 0.66]])
    track = FaceTrack.of(points, torch.zeros(3, 7))
    torch.testing.assert_close(mouth_skew(track), torch.tensor([0.0, 0.05, -0.1]))
    turned = (points - 0.5) @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]]) + 0.5  # a tilted head is no skewed mouth
    torch.testing.assert_close(mouth_skew(FaceTrack.of(turned, torch.zeros(3, 7))), mouth_skew(track))
    longer = FaceTrack.of(points.repeat(2, 1, 1), torch.zeros(6, 7))
    assert signal_correlation(mouth_skew, longer, longer) == pytest.approx(1)


def test_controls_of_gaia_are_measured_in_the_frames(analyzer, data, tmp_path, monkeypatch):
    """With random weights the source is shown nearly as it is: what is asked for does not happen, and that is seen."""
    monkeypatch.setattr(motion_controls, "INSTRUCTIONS", {"please smile": ("corner_lift", 0.03)})
    monkeypatch.setattr(motion_controls, "POSES", motion_controls.POSES[:2])
    monkeypatch.setattr(motion_controls, "SECONDS", 1)
    torch.manual_seed(0)
    model = GaiaAutoencoder(**{**TINY_CONFIG, "image_size": 64}).eval()
    tokenizer, text_encoder = make_text_encoder(GaiaTextOptions(text_width=16))
    parts = make_gaia_components() | {"face_analyzer": analyzer, "image_processor": FaceImageProcessor(size=64)}
    parts |= {"autoencoder": model, "motion_transformer": make_gaia_denoiser(motion_dim=model.motion_dim)}
    parts["landmark_denoiser"] = make_gaia_denoiser(motion_dim=324, motion_channels=2, predicts="landmarks")
    whole = parts | {"text_denoiser": make_gaia_denoiser(motion_dim=model.motion_dim)}
    whole |= {"text_encoder": text_encoder.eval(), "text_tokenizer": tokenizer}
    name, settings = "GaiaAvatarPipeline", {"sheets": False, "limit": 1}
    assert evaluate(GaiaAvatarPipeline(**whole), data, tmp_path / "a", ["motion_controls"], **settings) == []
    for metric in ("pose_constant_error", "pose_video_error", "held_error", "held_shift", "lip_gap_range"):
        (value,) = values(tmp_path / "a", "motion_controls", name, metric).values()
        assert math.isfinite(value)
    (error,) = values(tmp_path / "a", "motion_controls", name, "pose_constant_error").values()
    assert error == pytest.approx(math.degrees(0.3), abs=6)  # the face looks ahead
    smile = values(tmp_path / "a", "motion_controls", f"{name}: please smile", "instruction_effect")
    assert len(smile) == 1 and "please smile" in (tmp_path / "a" / "table.md").read_text()
    # What a pipeline does not have is no failure, and has its reason.
    assert evaluate(GaiaAvatarPipeline(**parts), data, tmp_path / "b", ["motion_controls"], **settings) == []
    assert "without text_denoiser" in (tmp_path / "b" / "table.md").read_text()


def test_changes_by_instructions_have_their_sign(analyzer, portrait):
    canonical, track = analyzer.canonical.float(), measure_faces(analyzer, frames_of(portrait, [0] * 8))
    assert abs(motion_controls.action_change(track, canonical, "yaw")) < 0.02
    track.pose[4:, 0] += 0.3
    assert motion_controls.action_change(track, canonical, "yaw") == pytest.approx(0.3, abs=0.02)
    assert motion_controls.action_change(track, canonical, "yaw swing") < 0.02
    track.pose[4:, 1] += torch.tensor([0.1, -0.1, 0.1, -0.1])
    assert motion_controls.action_change(track, canonical, "pitch swing") > 0.05
