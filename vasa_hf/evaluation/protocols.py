"""The parts of `vasa-hf eval`: what is generated from what, beside which baselines, and which numbers are taken."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.evaluation.catalogue import ABLATIONS, COPY, LOUD, NO_CONTROL, NOT_DEFINED, OTHER, PARTS, TRUTH, WARP
from vasa_hf.evaluation.data import Clip, to_uint8
from vasa_hf.evaluation.scoring import Case, loudness_track, other_motion
from vasa_hf.geometry.landmarks import EXPRESSIONS
from vasa_hf.geometry.thin_plate import warp_by_landmarks
from vasa_hf.media.audio import save_wav
from vasa_hf.metrics import motion as measures
from vasa_hf.metrics.capp import PAPER_SCALE, PAPER_SHIFT, scale_study, shift_study, shuffled_capp
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.metrics.gaze import angle_of_shift, iris_shift
from vasa_hf.metrics.motion import FPS, SAMPLES_PER_FRAME
from vasa_hf.metrics.sync import expert_embeds, sync_study
from vasa_hf.streaming import map_ahead

if TYPE_CHECKING:
    from vasa_hf.evaluation.evaluate import Evaluation

CROSS_FRAMES = 75
EXCERPT_FRAMES = 75  # CAPP's window of 3 seconds, in VASA-1
ABLATION_SECONDS = 10
LOOK_STRIDE = 10  # ablations and controls look at every tenth frame
ABLATION_GAZE = ((0.25, 0.0), (-0.25, 0.0), (0.0, 0.15))
CONTROL_GAZE = ((-0.3, 0.0), (0.3, 0.0), (0.0, -0.2), (0.0, 0.2))
CONTROL_DISTANCE = (0.8, 1.25)
CONTROL_PORTRAITS, CONTROL_SECONDS = 4, 2
SILENCE_PORTRAITS, SILENCE_SECONDS = 2, 20
SPEED_VOICES, SPEED_SECONDS = 4, 10
GAZE = ("gaze_error", "distance_error")  # of what was asked for
ALONE = ("identity", "akd_labels", "lip_correlation", *PARTS["self"][PARTS["self"].index("msi") :])


def self_reconstruction(run: Evaluation) -> None:
    """Every clip made from its first frame and its own motion."""
    part, names = "self", PARTS["self"]
    for clip in run.readable_clips(part):
        with run.reasons(part, clip.name, names):
            _reconstruct(run, part, names, clip)
    run.score_sets(part, names)


def _reconstruct(run: Evaluation, part: str, names: Sequence[str], clip: Clip) -> None:
    """The first frame as source, all others to be made."""
    if len(clip.frames) < 2:
        raise ValueError("the clip has a single frame.")
    first, rest = clip.frames[:1], clip.frames[1:]
    truth = run.truth(clip, encode=False)
    with run.clock("generate"):
        out = run.pipeline.animate(
            to_uint8(first)[0],
            to_uint8(clip.frames),
            relative=False,
            box=run.whole,
            driving_box=run.whole,
            output_type="pt",
        )
    made = out.frames[1:]
    if run.eyes is run.pipeline:
        truth.latent = out.motion[0].cpu()  # absolute motion is what the encoder sees
    labels = None if clip.labels is None else clip.labels[1:]
    shared = {"truth": rest, "truth_track": truth.track[1:], "labels": labels, "source": first}
    with run.clock("score"):
        points = truth.best.landmarks
        copied = {"frames": first.expand_as(rest), "track": _held(truth.track, len(rest))}
        real = Case(frames=rest, track=truth.track[1:], labels=labels, source=first)
        videos = [
            ("model", run.model, 0, names, Case(frames=made, **shared)),
            ("baseline", COPY, 0, names, Case(**copied, **shared)),
            ("baseline", WARP, 0, names, Case(frames=_warped(first, points[:1], points[1:]), **shared)),
            ("truth", TRUTH, 0, [name for name in names if name in ALONE], real),
        ]
        run.keep(part, clip.name, videos)
    run.sheet(part, clip.name, first, rest, made, rest)


def cross_reenactment(run: Evaluation) -> None:
    """Every portrait with a clip's movements."""
    part, names = "cross", PARTS["cross"]
    portraits, clips = run.data.portraits, run.data.clips
    for index, path in enumerate(portraits):
        run.say(part, index, len(portraits), path.stem)
        with run.reasons(part, path.stem, names):
            first = index * len(clips) // len(portraits)
            clip = run.first_of(clips[first:] + clips[:first])
            with run.clock("generate"):
                portrait = run.pipeline.prepare_portrait(path)
                frames = clip.frames[:CROSS_FRAMES]
                made = run.pipeline.animate(
                    portrait, to_uint8(frames), relative=False, driving_box=run.whole, output_type="pt"
                ).frames
            source = _picture(portrait, run.size)
            truth = run.truth(clip, encode=False)
            with run.clock("score"):
                canonical = run.canonical()
                still, driving = run.need_track(source), truth.track[: len(made)]
                shared = {"truth_track": driving, "driving": frames[: len(made)], "source": source}
                target = driving.transplanted(still, canonical)
                copied = {"frames": source.expand_as(made), "track": _held(still, len(made))}
                warped = _warped(source, still.landmarks, target)
                videos = [
                    ("model", run.model, 0, names, Case(frames=made, **shared)),
                    ("baseline", COPY, 0, names, Case(**copied, **shared)),
                    ("baseline", WARP, 0, names, Case(frames=warped, **shared)),
                ]
                run.keep(part, path.stem, videos)
                real = Case(frames=frames, track=driving)
                kept = ("msi", "smoothness", "delta_pose", "blink_rate", "teeth_when_shut", "found")
                run.scorer.record(part, "truth", TRUTH, path.stem, 0, run.scorer.score(kept, real))
                run.scorer.collect(part, TRUTH, source)  # of real faces there are the portraits alone
            run.sheet(part, path.stem, source, frames, made, None)
    run.score_sets(part, names)


def audio_driven(run: Evaluation) -> None:
    """Every clip's sound on its first frame; every voice, in pieces, on the portraits in turn."""
    part, names = "audio", PARTS["audio"]
    lips = run.lip_motion() if run.has("sync_expert") else None
    for index, clip in enumerate(run.readable_clips(part)):
        with run.reasons(part, clip.name, names):
            if clip.samples is None:
                raise ValueError(clip.silent_because)
            truth, count = run.truth(clip), len(clip.frames)
            portrait = run.portrait(to_uint8(clip.frames[:1])[0], run.whole)
            sources = [(clip.name, portrait)] * run.num_samples
            others = [path for path in run.data.clips if run.person(path) != run.data.people.get(clip.name)]
            person = run.data.people.get(clip.name, clip.name)
            with run.clock("score"):
                wrong = run.wrong_sound(person, count, index)
            features = _talk(run, part, clip.name, sources, clip.samples, wrong, index, lips, others, clip)
            real = Case(frames=clip.frames, track=truth.track, labels=clip.labels, source=clip.frames[:1])
            heard = -(-len(clip.samples) // SAMPLES_PER_FRAME)
            real.samples, real.audio_features = clip.samples, features
            real.latent = None if truth.latent is None else truth.latent[:heard]
            kept = [name for name in names if name not in GAZE]
            with run.clock("score"):
                real.wrong_samples, real.wrong_features = wrong.get("wrong_samples"), wrong.get("wrong_features")
                run.keep(part, clip.name, [("truth", TRUTH, 0, kept, real)])
    excerpts = list(run.excerpts(part, names))
    portraits = itertools.cycle(run.data.portraits)
    for index, (name, samples) in enumerate(excerpts):
        run.say(part, index, len(excerpts), name)
        with run.reasons(part, name, names):
            sources = []
            for path in itertools.islice(portraits, run.num_samples):
                try:
                    sources.append((path.stem, run.portrait(path)))
                except ValueError as error:
                    reasons = dict.fromkeys(run.wanted(names), f"{path.stem}: {error}")
                    run.scorer.record(part, "model", run.model, name, len(sources), reasons)
            if not sources:
                raise ValueError("there is no portrait with a face to speak.")
            with run.clock("score"):
                wrong = run.wrong_sound(name.rpartition("@")[0], EXCERPT_FRAMES, index)
            _talk(run, part, name, sources, samples, wrong, 1000 + index, lips, run.data.clips)
    run.score_sets(part, names)


def _talk(
    run: Evaluation,
    part: str,
    item: str,
    sources: list[tuple[str, Any]],
    samples: Tensor,
    wrong: dict[str, Tensor | None],
    index: int,
    lips: Tensor | None,
    others: list[Path],
    clip: Clip | None = None,
) -> Tensor | None:
    """Generate and score one sound, a clip's or a voice's, on one portrait a sample; returns the sound's features."""
    truth, count = (None, EXCERPT_FRAMES) if clip is None else (run.truth(clip), len(clip.frames))
    names = [name for name in PARTS[part] if run.has_gaze or name not in GAZE]
    sound = samples[: count * SAMPLES_PER_FRAME]
    generators = [torch.Generator().manual_seed(run.seed + 10_000 * n + index) for n in range(len(sources))]
    with run.clock("generate"):
        out = run.pipeline(
            [portrait for _, portrait in sources],
            [(sound.numpy(), SAMPLES_PER_FRAME * FPS)] * len(sources),
            generator=generators,
            output_type="pt",
        )
    with run.clock("score"):
        features = run.audio_features(samples, count) if run.has("capp") else None
        shared = {"samples": sound, "audio_features": features, "wanted_gaze": torch.zeros(2), **wrong}
        if truth is not None:
            length = len(out.frames[0][:count])
            shared |= {"truth_track": truth.track[:length], "driving": clip.frames[:length]}
            shared |= {"labels": None if truth.labels is None else truth.labels[:length]}
        else:
            alone = f"{NOT_DEFINED}: a voice alone has no true lips"
            shared["lacks"] = {"truth_track": alone, "driving": alone}
        stills, videos = {}, []
        for number, ((name, portrait), made) in enumerate(zip(sources, out.frames, strict=True)):
            if name not in stills:
                source = _picture(portrait, run.size)
                stills[name] = source, run.need_track(source)
            source, still = stills[name]
            latent = run.seen(made[:count], out.motion[number, :count])
            case = Case(frames=made[:count], latent=latent, source=source, **shared)
            case.wanted_scale = float(still.scale[0])
            videos.append(("model", run.model, number, names, case))
        run.keep(part, item, videos)
        source, still = stills[sources[0][0]]
        latent = videos[0][-1].latent
        own = None if latent is None else latent[:1]  # near the portrait's own
        _audio_baselines(run, part, item, still, own, lips, others, index, {"source": source, **shared})
        for (name, _), (*_, case) in list(zip(sources, videos, strict=True))[: 1 if truth is not None else None]:
            title = f"{item}_{name}" if truth is None else item
            run.sheet(part, title, case.source, None, case.frames, None)
    return features


def _audio_baselines(
    run: Evaluation,
    part: str,
    item: str,
    still: FaceTrack,
    own: Tensor | None,
    lips: Tensor | None,
    others: list[Path],
    index: int,
    shared: dict[str, Any],
) -> None:
    """Score a still face, a mouth that follows loudness, and somebody else's motion, without pictures."""
    names = tuple(name for name in PARTS[part] if name not in (*GAZE, "blink_rate"))
    count = -(-len(shared["samples"]) // SAMPLES_PER_FRAME)
    if "truth_track" in shared:
        count = len(shared["truth_track"])
    without = {"frames": f"{NOT_DEFINED}: a baseline without pictures"}
    shared = {**shared, "lacks": {**shared.get("lacks", {}), **without}}
    still_case = Case(track=_held(still, count), latent=None if own is None else own.expand(count, -1), **shared)
    run.scorer.record(part, "baseline", COPY, item, 0, run.scorer.score(names, still_case))
    loud = loudness_track(still, shared["samples"], count)
    latent = None if lips is None or own is None else own + (loud.lip_gap - loud.lip_gap.mean())[:, None] * lips
    case = Case(track=loud, latent=latent, **shared)
    run.scorer.record(part, "baseline", LOUD, item, 0, run.scorer.score(names, case))
    for step in range(len(others)):
        try:
            other = run.truth_of(others[(7 * index + step) % len(others)])
        except ValueError:
            continue
        track = FaceTrack.of(*(other_motion(values, count) for values in (other.track.landmarks, other.track.pose)))
        latent = None if other.latent is None else other_motion(other.latent, count)
        case = Case(track=track, latent=latent, **shared)
        run.scorer.record(part, "baseline", OTHER, item, 0, run.scorer.score(names, case))
        break


def silence(run: Evaluation) -> None:
    """Idle faces: nothing is heard for 20 seconds, on portraits or, without them, on the first frames of clips."""
    part, names = "silence", PARTS["silence"]
    paths = run.data.portraits or run.data.clips
    paths = paths[:: max(1, len(paths) // SILENCE_PORTRAITS)][:SILENCE_PORTRAITS]
    samples = torch.zeros(SILENCE_SECONDS * FPS * SAMPLES_PER_FRAME)
    for index, path in enumerate(paths):
        run.say(part, index, len(paths), path.stem)
        with run.reasons(part, path.stem, names):
            still = path in run.data.portraits
            image = path if still else to_uint8(run.load(path).frames[:1])[0]
            portrait = run.portrait(image, None if still else run.whole)
            with run.clock("generate"):
                generator = torch.Generator().manual_seed(run.seed + index)
                frames = run.render(portrait, run.motion(portrait, samples, generator=generator))
            with run.clock("score"):
                run.keep(part, path.stem, [("model", run.model, 0, names, Case(frames=frames, samples=samples))])
            run.sheet(part, path.stem, _picture(portrait, run.size), None, frames, None)


def ablations(run: Evaluation) -> None:
    """The settings of VASA-1's Table 4."""
    part, names = "ablations", PARTS["ablations"]
    portrait = run.first_portrait(part, names)
    if portrait is None:
        return
    voices = list(run.voices(part, names, ABLATION_SECONDS))
    for number, (audio_scale, gaze_scale, steps) in enumerate(ABLATIONS):
        system = f"{run.model}, λ_A = {audio_scale:g}, λ_g = {gaze_scale:g}, {steps} steps"
        for index, (name, samples) in enumerate(voices):
            run.say(part, number * len(voices) + index, len(ABLATIONS) * len(voices), f"{system}: {name}")
            with run.reasons(part, name, names, system):
                gaze = ABLATION_GAZE[index % len(ABLATION_GAZE)]
                settings = {
                    "guidance_scale": {"audio": audio_scale, "gaze": gaze_scale},
                    "num_inference_steps": steps,
                    "gaze": gaze,
                }
                _ablate(run, part, names, system, name, portrait, samples, index, settings)


def _ablate(
    run: Evaluation,
    part: str,
    names: Sequence[str],
    system: str,
    name: str,
    portrait: Any,
    samples: Tensor,
    index: int,
    settings: dict[str, Any],
) -> None:
    with run.clock("generate"):
        generator = torch.Generator().manual_seed(run.seed + index)
        latent = run.motion(portrait, samples, generator=generator, **settings)
        some = run.render(portrait, latent[::LOOK_STRIDE])
    with run.clock("score"):
        track = run.track(some)
        moving = _track_of_motion(latent)
        shared = {"samples": samples, "latent": latent, "audio_features": None}
        if run.has("capp"):
            shared["audio_features"] = run.audio_features(samples, len(latent))
        seen = [name for name in names if name not in GAZE]
        no_pictures = {"frames": f"{NOT_DEFINED}: ablations are scored on motion"}
        values = run.scorer.score(seen, Case(track=moving, lacks=no_pictures, **shared))
        scale = float(run.need_track(_picture(portrait, run.size)).scale[0])
        looked = Case(track=track, wanted_gaze=torch.tensor(settings["gaze"]), wanted_scale=scale)
        values |= run.scorer.score(GAZE, looked)
        run.scorer.record(part, "model", system, name, 0, values)


def controls(run: Evaluation) -> None:
    """What a face does when a control is moved."""
    part, names = "controls", PARTS["controls"]
    voices = list(run.voices(part, names, CONTROL_SECONDS))[:1]
    if not voices:
        return
    paths = run.data.portraits[:: max(1, len(run.data.portraits) // CONTROL_PORTRAITS)][:CONTROL_PORTRAITS]
    for number, path in enumerate(paths):
        run.say(part, number, len(paths), path.stem)
        with run.reasons(part, path.stem, names):
            portrait = run.portrait(path)

            def look(portrait=portrait, **settings: Any) -> tuple[Tensor, FaceTrack]:
                with run.clock("generate"):
                    generator = torch.Generator().manual_seed(run.seed)
                    latent = run.motion(portrait, voices[0][1], generator=generator, **settings)
                    some = run.render(portrait, latent[LOOK_STRIDE // 2 :: LOOK_STRIDE])
                with run.clock("score"):
                    return some, run.need_track(some)

            run.scorer.record(part, "model", run.model, path.stem, 0, run.wanted_values(_respond(run, look)))
            ignored = {"gaze_yaw_slope": 0.0, "gaze_pitch_slope": 0.0, "distance_slope": 0.0, "emotion_change": 0.0}
            ignored |= {"iris_yaw_slope": 0.0, "iris_pitch_slope": 0.0}
            ignored |= {"emotion_hit": 1 / len(EXPRESSIONS)}
            ignored |= {"gaze_control_error": float(np.abs(np.array(CONTROL_GAZE)).sum(1).mean() * 180 / np.pi)}
            ignored |= {"distance_control_error": float(np.abs(np.log(CONTROL_DISTANCE)).mean())}
            run.scorer.record(part, "baseline", NO_CONTROL, path.stem, 0, run.wanted_values(ignored))


def _respond(run: Evaluation, look: Any) -> dict[str, float]:
    """Measured change when a control moves, for one portrait."""
    still, neutral = look()
    gaze, seen = {(0.0, 0.0): neutral}, {(0.0, 0.0): neutral.gaze[neutral.found].mean(0)}
    irises = {(0.0, 0.0): torch.zeros(2)}
    for asked in CONTROL_GAZE:
        frames, track = look(gaze=asked)
        gaze[asked], seen[asked] = track, track.gaze[track.found].mean(0)
        with contextlib.suppress(ValueError):  # shut eyes show none
            irises[asked] = angle_of_shift(iris_shift(still, frames, neutral, track))
    values: dict[str, float] = {}
    for axis, name in enumerate(("yaw", "pitch")):
        along = [asked for asked in gaze if asked[1 - axis] == 0]
        asked = torch.tensor([key[axis] for key in along])
        line = measures.control_response(asked, torch.stack([seen[key][axis] for key in along]))
        values[f"gaze_{name}_slope"] = line["slope"]
        if all(key in irises for key in along):
            line = measures.control_response(asked, torch.stack([irises[key][axis] for key in along]))
            values[f"iris_{name}_slope"] = line["slope"]
    errors = [measures.gaze_error(track, torch.tensor(asked)) for asked, track in gaze.items() if asked != (0.0, 0.0)]
    values["gaze_control_error"] = sum(errors) / len(errors)

    base = neutral.scale[neutral.found].mean()
    sizes = [(look(head_distance=d)[1], -np.log(d)) for d in CONTROL_DISTANCE]
    measured = torch.stack([(track.scale[track.found].mean() / base).log() for track, _ in sizes])
    asked = torch.tensor([wanted for _, wanted in sizes], dtype=torch.float32)
    line = measures.control_response(asked, measured)
    values |= {"distance_slope": line["slope"], "distance_control_error": line["error"]}

    canonical = run.canonical()
    calm = neutral.expressions(canonical)[neutral.found].mean(0)
    rises, hits = [], []
    for index, emotion in enumerate(EXPRESSIONS):
        track = look(emotion={emotion: 1.0})[1]
        rise = track.expressions(canonical)[track.found].mean(0) - calm
        rises.append(float(rise[index]))
        hits.append(float(rise.argmax() == index))
    values |= {"emotion_change": sum(rises) / len(rises), "emotion_hit": sum(hits) / len(hits)}
    return values


def speed(run: Evaluation) -> None:
    """MoDA's RTF, with everything from files to a file, and how soon a stream begins."""
    part, names = "speed", PARTS["speed"]
    if not run.data.portraits:
        return
    voices, image = list(itertools.islice(run.voices(part, names, SPEED_SECONDS), SPEED_VOICES)), run.data.portraits[0]
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, samples) in enumerate(voices):
            run.say(part, index, len(voices), name)
            with run.reasons(part, name, names), run.clock("generate"):
                sound, seconds = Path(folder) / "voice.wav", len(samples) / (SAMPLES_PER_FRAME * FPS)
                save_wav(sound, samples.numpy(), SAMPLES_PER_FRAME * FPS)
                generator, began = torch.Generator().manual_seed(run.seed), time.perf_counter()
                chunks = run.pipeline.stream(image, sound, generator=generator, output_type="np")
                next(chunks)
                values = {"first_frame": time.perf_counter() - began}
                chunks.close()
                generator, began = torch.Generator().manual_seed(run.seed), time.perf_counter()
                run.pipeline.talk_to_file(Path(folder) / "video.mp4", image, sound, generator=generator)
                values["rtf"] = (time.perf_counter() - began) / seconds
                run.scorer.record(part, "model", run.model, name, 0, run.wanted_values(values))


def studies(run: Evaluation) -> None:
    """What the learned metrics make of real clips, right and made wrong."""
    part, pairs, embeds, tracks = "studies", [], [], []
    for clip in run.readable_clips(part):
        with run.reasons(part, clip.name, ()):
            truth = run.truth(clip)
            if clip.labels is not None:
                tracks.append((truth.track, clip.labels))
            if clip.samples is None:
                raise ValueError(clip.silent_because)
            if run.has("capp"):
                pairs.append((truth.best.pose, run.audio_features(clip.samples, len(clip.frames))))
            if run.has("sync_expert") and truth.latent is not None:
                heard = -(-len(clip.samples) // SAMPLES_PER_FRAME)
                embeds.append(expert_embeds(run.networks["sync_expert"], truth.latent[:heard], clip.samples))
    ours, paper = "ours", "VASA-1"
    with run.clock("score"):
        if run.has("capp"):
            try:
                values = {f"CAPP ±{shift}": v for shift, v in shift_study(run.networks["capp"], pairs).items()}
                scaled = scale_study(run.networks["capp"], pairs)
                values |= {f"CAPP ×{factor:g}": value for factor, value in scaled.items()}
                values["CAPP shuffled"] = shuffled_capp(run.networks["capp"], pairs)
            except ValueError as error:
                values = {"CAPP ±0": str(error)}
            run.scorer.record(part, "model", ours, "*", "*", values)
        else:
            run.scorer.record(part, "model", ours, "*", "*", {"CAPP ±0": run.scorer.absent(("capp",))["capp"]})
        if run.has("sync_expert"):
            try:
                study = sync_study(embeds)
                curve = study.pop("cosine_by_shift")
                values = {f"sync {name}": value for name, value in study.items()}
                values |= {f"sync cosine ±{shift}": value for shift, value in enumerate(curve[:9])}
            except ValueError as error:
                values = {"sync cosine ±0": str(error)}
            run.scorer.record(part, "model", ours, "*", "*", values)
    run.scorer.record(part, "model", ours, "*", "*", _check_detector(tracks))
    printed = {f"CAPP ±{shift}": value for shift, value in PAPER_SHIFT.items()}
    printed |= {f"CAPP ×{factor:g}": value for factor, value in PAPER_SCALE.items()}
    run.scorer.record(part, "paper", paper, "*", "*", printed)


def _check_detector(tracks: Sequence[tuple[FaceTrack, FaceTrack]]) -> dict[str, float]:
    """How far our detector agrees with the labels of real clips: what the metrics that rest on it can see."""
    if not tracks:
        return {}
    both = [seen.found & labels.found for seen, labels in tracks]
    values = {}
    for name, key, what in (("detector AKD px", "landmarks", 256), ("detector pose error °", "rotation", None)):
        pairs = zip(tracks, both, strict=True)
        seen, true = zip(*((getattr(a, key)[ok], getattr(b, key)[ok]) for (a, b), ok in pairs), strict=True)
        seen, true = torch.cat(seen), torch.cat(true)
        error = measures.angle_between(seen, true) if what is None else (seen - true).norm(dim=-1) * what
        values[name] = float(error.mean())
    for name, key, axis in (
        ("lip gap", "lip_gap", None),
        ("lids", "eye_open", None),
        ("gaze yaw", "gaze", 0),
        ("gaze pitch", "gaze", 1),
    ):
        seen, true = [], []
        for (a, b), ok in zip(tracks, both, strict=True):
            x, y = (getattr(track, key)[ok] for track in (a, b))
            x, y = (x, y) if axis is None else (x[:, axis], y[:, axis])
            seen.append(x - x.mean())  # within clips: people differ
            true.append(y - y.mean())
        line = measures.control_response(torch.cat(true), torch.cat(seen))
        values[f"detector {name}, correlation"], values[f"detector {name}, slope"] = line["correlation"], line["slope"]
    return values


def _picture(portrait: Any, size: int) -> Tensor:
    """The crop of a prepared portrait, `(1, 3, size, size)` in [0, 1]."""
    picture = portrait.crop.image[None].float() * 0.5 + 0.5
    if picture.shape[-1] != size:
        picture = torch.nn.functional.interpolate(picture, size, mode="bilinear", antialias=True)
    return picture.clamp(0, 1)


def _warped(source: Tensor, landmarks: Tensor, target: Tensor) -> Tensor:
    """One picture warped so that its landmarks `(1, 162, 2)` come to lie at `(frames, 162, 2)`."""

    def warp(some: Tensor) -> Tensor:
        return warp_by_landmarks(source.expand(len(some), -1, -1, -1), landmarks.expand(len(some), -1, -1), some)

    # A spline holds megabytes a frame: with more of them it leaves the cache.
    parts = list(map_ahead(warp, target.split(4), torch.get_num_threads()))
    return torch.cat(parts).clamp(0, 1)


def _held(track: FaceTrack, count: int) -> FaceTrack:
    """The first frame of a track, so many times."""
    return FaceTrack.of(track.landmarks[:1].expand(count, -1, -1), track.pose[:1].expand(count, -1))


def _track_of_motion(latent: Tensor) -> FaceTrack:
    """Head pose of motion vectors as a track; it has no landmarks."""
    pose = torch.cat([latent[:, :5], torch.zeros(len(latent), 1), latent[:, 5:6]], 1)
    return FaceTrack.of(torch.full((len(latent), 162, 2), torch.nan), pose)


RUN: dict[str, Callable[[Evaluation], None]] = {
    "self": self_reconstruction,
    "cross": cross_reenactment,
    "audio": audio_driven,
    "silence": silence,
    "ablations": ablations,
    "controls": controls,
    "speed": speed,
    "studies": studies,
}
