"""Protocols in which audio drives a portrait: speech, silence, and speed."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vasa_hf.evaluation.catalogue import CONTROL_METRICS, COPY, LOUD, NOT_DEFINED, OTHER, TRUTH
from vasa_hf.evaluation.data import Clip, to_uint8
from vasa_hf.evaluation.protocols.base import EXCERPT_FRAMES, Protocol
from vasa_hf.evaluation.scoring import VideoSample, loudness_track, other_motion
from vasa_hf.files import temporary_folder
from vasa_hf.media.audio import save_wav
from vasa_hf.metrics.faces import FaceTrack
from vasa_hf.metrics.motion import FPS, SAMPLES_PER_FRAME, seam_roughness

MINUTE_SECONDS, MINUTE_PART = 60, 250  # frames that are held at a time
SILENCE_PORTRAITS, SILENCE_SECONDS = 2, 20
SPEED_VOICES, SPEED_SECONDS = 4, 10


class AudioDriven(Protocol):
    """Every clip's audio with its first frame; windows of every voice with the portraits in turn."""

    name = "audio"

    def _generate(self) -> None:
        run = self.run
        self.lips = run.lip_motion() if run.has("sync_expert") else None
        for index, clip in enumerate(self.readable_clips()):
            with self.record_failure(clip.name):
                if clip.samples is None:
                    raise ValueError(clip.silent_because)
                portrait = run.portrait(to_uint8(clip.frames[:1])[0], run.whole)
                self._talk(clip.name, [(clip.name, portrait)] * run.num_samples, clip.samples, index, clip)
        excerpts = list(self.excerpts())
        portraits = itertools.cycle(run.data.portraits)
        for index, (name, samples) in enumerate(excerpts):
            self.report(index, len(excerpts), name)
            with self.record_failure(name):
                sources = []
                for path in itertools.islice(portraits, run.num_samples):
                    try:
                        sources.append((path.stem, run.portrait(path)))
                    except ValueError as error:
                        reasons = dict.fromkeys(run.select_requested(self.metrics), f"{path.stem}: {error}")
                        self.scorer.record("model", run.model, name, len(sources), reasons)
                if not sources:
                    raise ValueError("no portrait shows a face.")
                self._talk(name, sources, samples, index)
        self.score_sets()

    def _talk(
        self, item: str, sources: list[tuple[str, Any]], samples: Tensor, index: int, clip: Clip | None = None
    ) -> None:
        """Generate and score videos of one audio, one portrait for each sample, with baselines and the real clip."""
        run = self.run
        truth, count = (None, EXCERPT_FRAMES) if clip is None else (run.measure_reference(clip), len(clip.frames))
        person = item.rpartition("@")[0] if clip is None else run.data.people.get(clip.name, clip.name)
        with run.clock("score"):
            wrong = run.pick_wrong_audio(person, count, index)
        others = [path for path in run.data.clips if run.data.people[path.stem] != person]
        index += 1000 * (clip is None)
        names = [name for name in self.metrics if run.has_gaze or name not in CONTROL_METRICS]
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
            shared: dict[str, Any] = {
                "samples": sound,
                "audio_features": features,
                "wanted_gaze": torch.zeros(2),
                **wrong,
            }
            if clip is not None and truth is not None:
                length = len(out.frames[0][:count])
                shared |= {"truth_track": truth.track[:length], "driving": clip.frames[:length]}
                shared |= {"labels": None if truth.labels is None else truth.labels[:length]}
            else:
                alone = f"{NOT_DEFINED}: speech without video has no true lips"
                shared["lacks"] = {"truth_track": alone, "driving": alone}
            stills, videos = {}, []
            for number, ((name, portrait), made) in enumerate(zip(sources, out.frames, strict=True)):
                if name not in stills:
                    source = run.crop_portrait(portrait)
                    stills[name] = source, run.require_track(source)
                source, still = stills[name]
                latent = run.encode_generated(made[:count], out.motion[number, :count])
                video = VideoSample(frames=made[:count], latent=latent, source=source, **shared)
                video.wanted_scale = float(still.scale[0])
                videos.append(("model", run.model, number, names, video))
            self.keep(item, videos)
            source, still = stills[sources[0][0]]
            latent = videos[0][-1].latent
            own = None if latent is None else latent[:1]  # near the portrait's motion
            self._score_baselines(item, still, own, others, index, {"source": source, **shared})
            for (name, _), (*_, video) in list(zip(sources, videos, strict=True))[: 1 if truth is not None else None]:
                title = f"{item}_{name}" if truth is None else item
                self.sheet(title, video.get("source"), None, video.get("frames"), None)
            if clip is not None and truth is not None:
                real = VideoSample(
                    frames=clip.frames, track=truth.track, labels=clip.labels, source=clip.frames[:1], **wrong
                )
                real.samples, real.audio_features = clip.samples, features
                num_frames = -(-len(real.get("samples")) // SAMPLES_PER_FRAME)
                real.latent = None if truth.latent is None else truth.latent[:num_frames]
                kept = [name for name in self.metrics if name not in CONTROL_METRICS]
                self.keep(item, [("truth", TRUTH, 0, kept, real)])

    def _score_baselines(
        self, item: str, still: FaceTrack, own: Tensor | None, others: list[Path], index: int, shared: dict[str, Any]
    ) -> None:
        """Score a still face, a mouth that follows loudness, and the motion of another clip, without frames."""
        run = self.run
        names = tuple(name for name in self.metrics if name not in (*CONTROL_METRICS, "blink_rate"))
        count = -(-len(shared["samples"]) // SAMPLES_PER_FRAME)
        if "truth_track" in shared:
            count = len(shared["truth_track"])
        without = {"frames": f"{NOT_DEFINED}: a baseline without frames"}
        shared = {**shared, "lacks": {**shared.get("lacks", {}), **without}}
        still_video = VideoSample(
            track=still.repeat_first(count), latent=None if own is None else own.expand(count, -1), **shared
        )
        self.scorer.record("baseline", COPY, item, 0, self.scorer.score(names, still_video))
        loud = loudness_track(still, shared["samples"], count)
        latent = None
        if self.lips is not None and own is not None:
            latent = own + (loud.lip_gap - loud.lip_gap.mean())[:, None] * self.lips
        video = VideoSample(track=loud, latent=latent, **shared)
        self.scorer.record("baseline", LOUD, item, 0, self.scorer.score(names, video))
        for step in range(len(others)):
            try:
                other = run.load_reference(others[(7 * index + step) % len(others)])
            except ValueError:
                continue
            track = FaceTrack.of(*(other_motion(values, count) for values in (other.track.landmarks, other.track.pose)))
            latent = None if other.latent is None else other_motion(other.latent, count)
            video = VideoSample(track=track, latent=latent, **shared)
            self.scorer.record("baseline", OTHER, item, 0, self.scorer.score(names, video))
            break


class WholeVoices(Protocol):
    """The first minute of every voice as one video: seams between windows, and no loss of sync over time."""

    name = "minutes"

    def _generate(self) -> None:
        run = self.run
        portrait = self.first_portrait()
        voices = list(self.voices(MINUTE_SECONDS)) if portrait is not None else []
        self.score_real_video()
        for index, (name, samples) in enumerate(voices):
            self.report(index, len(voices), name)
            for number in range(run.num_samples):
                with self.record_failure(name):
                    with run.clock("generate"):
                        generator = torch.Generator().manual_seed(run.seed + 10_000 * number + index)
                        latent = run.motion(portrait, samples, generator=generator)
                    with run.clock("score"):
                        values = self.score_motion(self.metrics, latent, samples)
                        values.update(run.select_values({"seams": self._seams(latent)}))
                    self.scorer.record("model", run.model, name, number, values)
                    for start in range(0, len(latent), MINUTE_PART) if self.needs_frames else ():
                        with run.clock("generate"):
                            frames = run.render(portrait, latent[start : start + MINUTE_PART])
                        with run.clock("score"):
                            sound = samples[start * SAMPLES_PER_FRAME :][: len(frames) * SAMPLES_PER_FRAME]
                            values = self.score_frames(run.model, frames, sound)
                            self.scorer.record("model", run.model, name, f"{number}@{start // FPS}s", values)
                            self.scorer.forget()
        self.score_sets()

    def _seams(self, latent: Tensor) -> float | str:
        """Roughness where windows meet, or the reason why there is none."""
        windows = self.run.pipeline.create_motion_generator().windows()
        starts = [part.start for part in windows.take(len(latent), True)][1:]
        try:
            return seam_roughness(latent, starts)
        except ValueError as error:
            return f"{NOT_DEFINED}: {error}"


class Silence(Protocol):
    """Idle faces: 20 seconds of silence, with portraits or, without them, with the first frames of clips."""

    name = "silence"

    def _generate(self) -> None:
        run = self.run
        paths = run.data.portraits or run.data.clips
        paths = paths[:: max(1, len(paths) // SILENCE_PORTRAITS)][:SILENCE_PORTRAITS]
        samples = torch.zeros(SILENCE_SECONDS * FPS * SAMPLES_PER_FRAME)
        for index, path in enumerate(paths):
            self.report(index, len(paths), path.stem)
            with self.record_failure(path.stem):
                still = path in run.data.portraits
                image = path if still else to_uint8(run.load(path).frames[:1])[0]
                portrait = run.portrait(image, None if still else run.whole)
                with run.clock("generate"):
                    generator = torch.Generator().manual_seed(run.seed + index)
                    frames = run.render(portrait, run.motion(portrait, samples, generator=generator))
                with run.clock("score"):
                    self.keep(
                        path.stem, [("model", run.model, 0, self.metrics, VideoSample(frames=frames, samples=samples))]
                    )
                self.sheet(path.stem, run.crop_portrait(portrait), None, frames, None)


class Speed(Protocol):
    """MoDA's RTF from input files to the video file, and the latency of a stream."""

    name = "speed"

    def _generate(self) -> None:
        run = self.run
        if not run.data.portraits:
            return
        voices, image = list(itertools.islice(self.voices(SPEED_SECONDS), SPEED_VOICES)), run.data.portraits[0]
        with temporary_folder() as folder:
            for index, (name, samples) in enumerate(voices):
                self.report(index, len(voices), name)
                with self.record_failure(name), run.clock("generate"):
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
                    self.scorer.record("model", run.model, name, 0, run.select_values(values))
