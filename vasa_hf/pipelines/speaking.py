"""What pipelines of talking faces have in common: the way in for pictures and sounds, and the way out for videos.

    picture, sound --checked, read--> models of the pipeline --> motion, by windows --> frames --> list, stream, file

No model is named here. A system brings its motion and its pictures: `prepare_portrait`, `decode_frames`, `stream`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vasa_hf.media.audio import load_audio
from vasa_hf.media.ffmpeg import parse_fps
from vasa_hf.media.video import VideoWriter
from vasa_hf.motion import MotionSpec, resample_motion
from vasa_hf.outputs import TalkingFaceOutput, join_pictures, named_provenance, to_pictures, to_uint8
from vasa_hf.pipelines.inputs import (
    AudioInput,
    ImageInput,
    Performer,
    Sound,
    audio_list,
    check_audios,
    check_batch,
    check_choice,
    check_images,
    check_number,
    check_output,
    image_list,
)
from vasa_hf.processors.audio import MAX_RATE, MIN_RATE
from vasa_hf.streaming import AudioBuffer, map_ahead, resampled

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MAX_DECODE_WORKERS = 4  # on a CPU; each holds the activations of `decode_batch_size` frames


class SpeakingMixin:
    """Checks, reading and writing for a pipeline that makes pictures talk.

    The pipeline has the components `face_analyzer`, `image_processor` and `audio_processor`, the steps `decode_frames`
    and `stream`, and the properties `output_sizes` and `motion_spec`.

    Attributes:
        decode_batch_size (`int`, *optional*): Frames decoded at a time; 4 on a CPU, 16 elsewhere if `None`.
        cpu_bfloat16 (`bool`): Decode float32 weights under bfloat16 autocast on CPUs that compute it natively.
    """

    _callback_tensor_inputs: Sequence[str] = ()
    decode_batch_size: int | None = None
    cpu_bfloat16: bool = True

    @property
    def motion_spec(self) -> MotionSpec:
        """Meaning of the channels of `motion`."""
        raise NotImplementedError

    # --- the way in ---------------------------------------------------------------------------------------------------

    def check_inputs(
        self,
        image: Any,
        audio: Any = None,
        sampling_rate: Any = None,
        face: Any = None,
        output_size: Any = None,
        fps: Any = 25,
        output_type: str = "pil",
    ) -> None:
        """Raise `ValueError` for what can be seen to be wrong of pictures, sounds and output before any work.

        Controls are checked by `parse_controls`, what is in pictures and sounds when they are read; all before the
        models run.
        """
        images, audios = image_list(image)[0], [None] if audio is None else audio_list(audio)[0]
        if output_size is not None:
            check_choice("output_size", output_size, self.output_sizes)
        check_images(images, output_size)
        if audio is not None:
            check_audios(audios)
        check_batch(images, audios)
        if sampling_rate is not None:
            check_number("sampling_rate", sampling_rate, MIN_RATE, MAX_RATE, whole=True)
        if face is not None:
            check_number("face", face, 0, 1000, whole=True)
        parse_fps(fps)
        check_choice("output_type", output_type, OUTPUT_TYPES)

    def check_callback(self, callback_on_step_end: Any, callback_on_step_end_tensor_inputs: Sequence[str]) -> None:
        """Raise `ValueError` for a callback that cannot be called with what it asks for."""
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"`callback_on_step_end` must be callable, got {type(callback_on_step_end).__name__}.")
        for name in callback_on_step_end_tensor_inputs:
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)

    def _find_face(self, picture: Tensor, face: int | None, box: Sequence[float] | None) -> dict[str, Any]:
        """Where to crop: the box by hand, or the chosen one of the faces found."""
        if box is not None:
            return {"box": box}
        faces = self.face_analyzer.detect(picture)
        return {"face": self.image_processor.choose(faces, tuple(picture.shape[-2:]), face)}

    def check_speech(self) -> None:
        """Raise `ValueError` if this pipeline has nothing to make speech of."""

    def prepare_audio(self, audio: AudioInput, sampling_rate: int | None = None) -> tuple[Tensor, np.ndarray, int]:
        """Read a sound of any kind.

        Args:
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`): See `VasaAudioProcessor.load`.
            sampling_rate (`int`, *optional*): Rate of bare samples in Hz, defaults to the processor's.

        Returns:
            `tuple`: samples for the encoder `(1, n)`; the sound as it was, mono `(samples,)`; and its rate.
        """
        self.check_speech()
        sound, rate = load_audio(audio, self._rate_of(audio, sampling_rate))
        samples = self.audio_processor.load((sound, rate))
        return torch.from_numpy(samples)[None], sound.mean(0), rate

    def open_audio(self, audio: AudioInput | Sound, sampling_rate: int | None = None) -> Sound:
        """Read a sound through and check it, but do not keep it: `prepare_audio` for long files."""
        self.check_speech()
        return audio if isinstance(audio, Sound) else Sound(audio, self._rate_of(audio, sampling_rate))

    def _rate_of(self, audio: AudioInput, sampling_rate: int | None) -> int | None:
        bare = not isinstance(audio, str | os.PathLike | tuple)
        return self.audio_processor.sampling_rate if bare and sampling_rate is None else sampling_rate

    def on_step(self, progress_bar: Any, callback: Callable | None, names: Sequence[str]) -> Callable:
        """What a sampler calls after each step: counts it, and asks the user's callback for other latents.

        Args:
            progress_bar (`tqdm`): Counts.
            callback (`Callable`, *optional*): `callback_on_step_end` of the call.
            names (`Sequence[str]`): `callback_on_step_end_tensor_inputs` of the call.

        Returns:
            `Callable`: `on_step(step, timestep, latents, audio_features) -> latents`.
        """

        def on_step(step: int, timestep: Tensor, latents: Tensor, audio_features: Tensor) -> Tensor:
            progress_bar.update()
            if callback is None:
                return latents
            tensors = {"latents": latents, "audio_features": audio_features}
            chosen = {name: tensors[name] for name in names}
            return (callback(self, step, timestep, chosen) or {}).get("latents", latents)

        return on_step

    def driving_crops(
        self, frames: Iterable[ImageInput], face: int | None, box: Sequence[float] | None, total: int | None, size: int
    ) -> Iterator[Tensor]:
        """Cut the face of a driving video out of all frames: one square, around the first frame's face.

        Args:
            frames (`Iterable`): Pictures of one size, as `FaceImageProcessor.load` takes them.
            face (`int`, *optional*): Which face of the first frame, 0 is the largest.
            box (`Sequence[float]`, *optional*): Its box, instead of looking for it.
            total (`int`, *optional*): Their number for the progress bar, if it is known.
            size (`int`): Side of the squares.

        Yields:
            `torch.Tensor` of shape `(3, size, size)` in [-1, 1].

        Raises:
            ValueError: If a frame cannot be read, or the first shows no face.
        """
        around = None
        with self.progress_bar(total=total or 0) as progress_bar:
            progress_bar.set_description("driving")
            for index, frame in enumerate(frames):
                try:
                    picture = self.image_processor.load(frame)
                    around = self._find_face(picture, face, box) if around is None else around
                    crop = self.image_processor.crop(picture, **around, size=size)
                except ValueError as error:
                    raise ValueError(f"`driving_video`, frame {index}: {error}") from error
                yield crop.image
                progress_bar.update()

    # --- the way out --------------------------------------------------------------------------------------------------

    def decode_ahead(self, decode: Callable[[Tensor], Tensor], motion: Tensor) -> Iterator[Tensor]:
        """`decode` of some frames of a motion `(frames, channels)` after the others; on a CPU, side by side."""
        on_cpu = self._execution_device.type == "cpu"
        workers = min(torch.get_num_threads(), MAX_DECODE_WORKERS) if on_cpu else 1
        yield from map_ahead(decode, motion.split(self.decode_batch_size or (4 if on_cpu else 16)), workers)

    def decoder_precision(self, model: torch.nn.Module) -> torch.autocast:
        """Autocast for the decoder, where it pays; see `cpu_bfloat16`."""
        wanted = self.cpu_bfloat16 and self._execution_device.type == "cpu" and model.dtype == torch.float32
        return torch.autocast("cpu", torch.bfloat16, enabled=wanted and _cpu_computes_bfloat16())

    def make_videos(
        self,
        performers: Sequence[Performer],
        motions: Sequence[Sequence[Tensor]],
        num_frames: Sequence[int],
        fps: Fraction,
        paste_back: bool,
        output_type: str,
        **options: Any,
    ) -> list[Any]:
        """Decode one video for each performer.

        Args:
            performers (`Sequence[Performer]`): Who.
            motions (`Sequence`): For each, the pieces `(1, frames, channels)` of absolute motion, one after another.
            num_frames (`Sequence[int]`): Frames of each video.
            fps (`Fraction`): Their rate.
            paste_back (`bool`): Whether to put the face back into the whole picture.
            output_type (`str`): As of the call; `"latent"` gives the motion itself.
            **options: More for `decode_frames`.
        """
        if output_type == "latent":
            return [torch.cat(list(pieces), dim=1)[0] for pieces in motions]
        videos = []
        with self.progress_bar(total=sum(num_frames)) as progress_bar:
            progress_bar.set_description("frames")
            for performer, pieces, count in zip(performers, motions, num_frames, strict=True):
                parts = []
                for motion in resampled(pieces, self.audio_processor.fps, fps, lambda count=count: count):
                    for part in self.decode_frames(performer, motion[0], paste_back, **options):
                        parts.append(self.postprocess(part, output_type))
                        progress_bar.update(len(part))
                videos.append(join_pictures(parts, output_type))
        return videos

    def draw_motion(
        self,
        performer: Performer,
        motion: Tensor,
        motion_fps: Fraction,
        fps: Fraction,
        sound: tuple[np.ndarray | None, int | None],
        paste_back: bool,
        output_type: str,
        return_dict: bool,
        **options: Any,
    ) -> TalkingFaceOutput | tuple:
        """Decode one absolute motion `(1, frames, channels)`; the end of `animate` and `render`."""
        frames = motion[0]
        if output_type != "latent":
            wanted, parts = resample_motion(motion, motion_fps, fps), []
            with self.progress_bar(total=wanted.shape[1]) as progress_bar:
                progress_bar.set_description("frames")
                for part in self.decode_frames(performer, wanted[0], paste_back, **options):
                    parts.append(self.postprocess(part, output_type))
                    progress_bar.update(len(part))
            frames = join_pictures(parts, output_type)
        self.maybe_free_model_hooks()
        return self._output(frames, *sound, fps, motion, motion_fps) if return_dict else (frames,)

    @torch.no_grad()
    def speak(
        self,
        performer: Performer,
        pieces: Iterable[Tensor],
        move: Callable[[Iterator[Tensor]], Iterator[Tensor]],
        fps: Fraction,
        paste_back: bool,
        output_type: str,
        **options: Any,
    ) -> Iterator[TalkingFaceOutput]:
        """Make frames while the sound comes in.

        Args:
            performer (`Performer`): Who.
            pieces (`Iterable[torch.Tensor]`): Pieces `(1, n)` of the sound, as `listen` gives them.
            move (`Callable`): Turns the pieces into absolute motion `(1, frames, channels)`, window by window.
            fps (`Fraction`): Of the video.
            paste_back (`bool`): Whether to put the face back into the whole picture.
            output_type (`str`): As of `stream`.
            **options: More for `decode_frames`.

        Yields:
            `TalkingFaceOutput` with a few frames, their sound and their motion.
        """
        rate, sound, count = self.audio_processor.sampling_rate, AudioBuffer(), 0

        def heard() -> Iterator[Tensor]:
            for samples in pieces:
                sound.append(samples)
                yield samples

        ends = lambda: math.ceil(sound.stop * fps / rate)  # noqa: E731 - known when the sound has ended
        for motion in resampled(move(heard()), self.audio_processor.fps, fps, ends):
            parts = [motion[0]]
            if output_type != "latent":
                parts = self.decode_frames(performer, motion[0], paste_back, **options)
            for part in parts:
                frames = part if output_type == "latent" else self.postprocess(part, output_type)
                start, stop = (round(frame * rate / fps) for frame in (count, count + len(part)))
                audio = sound.cut(start, stop)[0].numpy()
                sound.forget(stop)
                yield self._output(frames, audio, rate, fps, motion[:, : len(part)], motion_fps=fps)
                motion, count = motion[:, len(part) :], count + len(part)
        self.maybe_free_model_hooks()

    def talk_to_file(
        self,
        path: str | os.PathLike,
        image: ImageInput | Performer,
        audio: AudioInput,
        *,
        provenance: bool | Mapping[str, Any] = True,
        crf: int = 18,
        on_frames: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> TalkingFaceOutput:
        """Write a talking video frame by frame: `stream` into a file, with the sound as it was, in constant memory.

        Args:
            path (`str` or `os.PathLike`): The `.mp4` file; appears whole or not at all.
            image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `Performer`): One portrait.
            audio (`str`, `os.PathLike`, `np.ndarray`, `torch.Tensor` or `tuple`): One voice.
            provenance (`bool` or `dict`, defaults to `True`): See `TalkingFaceOutput.save`.
            crf (`int`, defaults to 18): Quality of H.264, 0 (lossless) to 51.
            on_frames (`Callable`, *optional*): `on_frames(frames_written, frames_in_all)` from time to time.
            **options: As for `stream`.

        Returns:
            `TalkingFaceOutput` without frames and sound: its motion (at the video's rate) can be saved.
        """
        check_output(path)
        check_number("crf", crf, 0, 51, whole=True)
        check_audios([audio])
        sound = self.open_audio(audio, options.get("sampling_rate"))
        chunks = self.stream(image, sound, **{**options, "output_type": "np"})
        fps = parse_fps(options.get("fps", 25))
        num_frames = math.ceil(sound.num_samples * fps / sound.sampling_rate)
        first, motions = next(chunks), []
        size = (first.frames.shape[2], first.frames.shape[1])
        provenance = named_provenance(provenance, self.model_name)
        with VideoWriter(path, fps, size, provenance=provenance, crf=crf) as writer:
            for block in sound:
                writer.write_audio(block.mean(0), sound.sampling_rate)
            for chunk in itertools.chain([first], chunks):
                for frame in to_uint8(chunk.frames):
                    writer.write(frame)
                motions.append(chunk.motion)
                if on_frames is not None:
                    on_frames(writer.num_frames, num_frames)
        return self._output([], None, None, fps, torch.cat(motions, dim=1), motion_fps=fps)

    @staticmethod
    def postprocess(frames: Tensor, output_type: str) -> Any:
        """Frames `(n, 3, height, width)` in [0, 1] as PIL images, an array `(n, height, width, 3)`, or as they are."""
        return to_pictures(frames, output_type)

    def _join_audio(self, sounds: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Pad sounds `(1, n)` with zeros to one batch; also the frames of each."""
        longest = max(sound.shape[1] for sound in sounds)
        batch = torch.cat([torch.nn.functional.pad(sound, (0, longest - sound.shape[1])) for sound in sounds])
        return batch, [-(-sound.shape[1] // self.audio_processor.samples_per_frame) for sound in sounds]

    def _output(
        self,
        frames: Any,
        audio: Any,
        sampling_rate: int | None,
        fps: Fraction,
        motion: Tensor,
        motion_fps: Fraction | None = None,
    ) -> TalkingFaceOutput:
        return TalkingFaceOutput(
            frames=frames,
            audio=audio,
            sampling_rate=sampling_rate,
            fps=fps,
            motion=motion,
            motion_spec=self.motion_spec,
            motion_fps=Fraction(self.audio_processor.fps) if motion_fps is None else motion_fps,
            model_name=self.model_name,
        )


def _cpu_computes_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; others emulate it slowly."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)
