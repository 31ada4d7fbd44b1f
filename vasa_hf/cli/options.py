"""What commands share: options, small texts to values, files to write, the pipeline itself."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vasa_hf.checks import check_number
from vasa_hf.files import check_writable, staging

# --- what was given ---------------------------------------------------------------------------------------------------


def note_given(parser: argparse.ArgumentParser) -> None:
    """Let a parser refuse an option that is given twice, and tell in `given` which were given at all."""
    for name, kind in (
        ("store", argparse._StoreAction),
        ("store_true", argparse._StoreTrueAction),
        ("store_false", argparse._StoreFalseAction),
        ("append", argparse._AppendAction),
    ):
        parser.register("action", name, _noting(kind, may_repeat=name == "append"))
    parser.register("action", None, _noting(argparse._StoreAction))


def _noting(kind: type, may_repeat: bool = False) -> type:
    """An action of argparse's that notes in the namespace that it ran."""

    class Noting(kind):
        def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
            given = getattr(namespace, "given", frozenset())
            if option is not None and self.dest in given and not may_repeat:
                raise argparse.ArgumentError(self, "is given twice, or against another that it excludes")
            namespace.given = given | ({self.dest} if option is not None else frozenset())
            super().__call__(parser, namespace, values, option)

    return Noting


def refuse_ignored(options: argparse.Namespace, used: set[str], beside: str) -> None:
    """Raise `ValueError` for an option that was given and would have no effect."""
    if ignored := sorted(getattr(options, "given", set()) - used):
        name = ignored[0].replace("_", "-")
        raise ValueError(f"`{name}` has no effect with --{beside}: leave one of them out.")


def check_faces(options: argparse.Namespace, *prefixes: str) -> None:
    """Raise `ValueError` for a face that is told by its number and by its box."""
    for prefix in prefixes:
        if getattr(options, f"{prefix}face") is not None and getattr(options, f"{prefix}box") is not None:
            name = prefix.replace("_", "-")
            raise ValueError(f"`{name}face` has no effect with --{name}box: leave one of them out.")


# --- options ----------------------------------------------------------------------------------------------------------


def add_control_options(parser: Any) -> None:
    """Gaze, distance, emotion, amount of movement and guidance."""
    controls = parser.add_argument_group("controls", "constant, or keyframes as in the examples (SECONDS:VALUE ...)")
    controls.add_argument("--gaze", metavar="YAW,PITCH", help="radians; > 0: picture's left, down (0,0: camera)")
    controls.add_argument("--distance", metavar="D", help="head distance, 1 is the portrait's own")
    controls.add_argument("--emotion", metavar="NAME[=WEIGHT,...]", help="such as happy, or offsets happy=0.6")
    controls.add_argument("--head-motion", type=float, default=1.0, metavar="X", help="amount, 0 to 3 (%(default)s)")
    controls.add_argument(
        "--guidance", metavar="NAME=SCALE,...", help="of audio (0.5), gaze (1), head_distance, emotion, previous (0)"
    )


def add_edit_options(parser: Any) -> None:
    """How LivePortrait's keypoints are changed and drawn."""
    edits = parser.add_argument_group("keypoints", "with a renderer of LivePortrait's, such as moda's")
    edits.add_argument("--expression", metavar="NAME=X,...", help="edits such as smile=0.5,brow=0.3; or keyframes")
    edits.add_argument("--no-stitching", dest="stitching", action="store_false", default=None, help="shoulders move")
    edits.add_argument("--multiplier", type=float, metavar="X", help="amount of all movement, 0 to 3 (1)")


def add_making_options(parser: Any, model: str | None = "vasa-small") -> None:
    """Steps, seed, threads, model and device."""
    making = parser.add_argument_group("making")
    making.add_argument("--steps", type=int, help="denoising steps (10)")
    making.add_argument("--seed", type=int, help="same seed, same motion; a random one is told if left out")
    making.add_argument("--threads", type=int, help="CPU threads")
    add_model_options(making, model)


def add_video_options(picture: Any) -> None:
    """Quality, motion file and provenance of a video that is written."""
    picture.add_argument("--crf", type=int, default=18, help="quality of H.264, 0 to 51 (%(default)s)")
    picture.add_argument("--motion", metavar="OUT.safetensors", help="also save the motion")
    picture.add_argument(
        "--no-provenance", action="store_true", help="leave out the mark and the note that the video is synthetic"
    )
    signing = "PEM file that signs a C2PA manifest in the video (environment: VASA_HF_C2PA_"
    picture.add_argument("--c2pa-cert", metavar="PEM", help=f"certificate: {signing}CERT)")
    picture.add_argument("--c2pa-key", metavar="PEM", help=f"its key: {signing}KEY)")


def add_face_options(parser: Any) -> None:
    """Which face of a picture."""
    parser.add_argument("--face", type=int, help="which face, 0 is the largest")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="the face's box in pixels, instead of looking for it")


def add_model_options(parser: Any, model: str | None = "vasa-small") -> None:
    """Model and device; without `model`, the command has a default of its own."""
    default = "the embedded one" if model is None else model
    parser.add_argument("--model", default=model, help=f"embedded name, folder or Hub repository ({default})")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda (%(default)s)")


# --- values -----------------------------------------------------------------------------------------------------------


def control_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_control_options` and `add_making_options` read, as arguments of a pipeline's call.

    Raises:
        ValueError: If a text cannot be read, or edits of keypoints are asked for.
    """
    if hasattr(options, "expression") and (strange := edit_settings(options)):
        raise ValueError(f"`{next(iter(strange))}` needs --system moda.")
    settings: dict[str, Any] = {
        "head_motion": options.head_motion,
        "num_inference_steps": 10 if options.steps is None else options.steps,
        "guidance_scale": None if options.guidance is None else weights("guidance", options.guidance),
    }
    if options.gaze is not None:
        settings["gaze"] = keyframes(options.gaze, lambda text: numbers("gaze", text, 2))
    if options.distance is not None:
        settings["head_distance"] = keyframes(options.distance, lambda text: numbers("distance", text, 1)[0])
    if options.emotion is not None:
        settings["emotion"] = keyframes(options.emotion, emotion)
    check_seed(options.seed)
    return settings


def keypoint_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The same for a pipeline with LivePortrait's keypoints, such as MoDA's.

    Raises:
        ValueError: If a text cannot be read, or a control is not known there.
    """
    for name in ("gaze", "distance"):
        if getattr(options, name) is not None:
            raise ValueError(f"`{name}` is no control of moda; gaze is an edit there: --expression gaze_yaw=0.2.")
    settings: dict[str, Any] = {
        "head_motion": options.head_motion,
        "num_inference_steps": options.steps,
        "guidance_scale": None if options.guidance is None else weights("guidance", options.guidance),
        **edit_settings(options),
    }
    if options.emotion is not None:
        settings["emotion"] = keyframes(options.emotion, emotion)
    check_seed(options.seed)
    return settings


def edit_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_edit_options` reads, as arguments of a pipeline's call."""
    edits = None if options.expression is None else keyframes(options.expression, lambda text: weights("edits", text))
    settings = {"expression": edits, "stitching": options.stitching, "driving_multiplier": options.multiplier}
    return {name: value for name, value in settings.items() if value is not None}


def keyframes(text: str, parse: Any) -> Any:
    """`VALUE`, or `SECONDS:VALUE SECONDS:VALUE ...`."""
    if ":" not in text:
        return parse(text)
    keys = []
    for word in text.split():
        seconds, separator, value = word.partition(":")
        if not separator:
            raise ValueError(f"keyframes must be SECONDS:VALUE, got {word!r} in {text!r}.")
        keys.append((numbers("seconds", seconds, 1)[0], parse(value)))
    return keys


def numbers(name: str, text: str, count: int | None = None) -> tuple[float, ...]:
    """Numbers with commas between them; `count` of them if it is given."""
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not all(map(math.isfinite, values)):
        raise ValueError(f"`{name}` must be finite, got {text!r}.")
    if not values or (count is not None and len(values) != count):
        wanted = "numbers" if count is None else f"{count} number{'s' * (count > 1)}"
        raise ValueError(f"`{name}` must be {wanted}{' with commas between them' * (count != 1)}, got {text!r}.")
    return values


def weights(name: str, text: str) -> dict[str, float]:
    """`NAME=NUMBER,...`."""
    named = {}
    for word in text.split(","):
        key, separator, value = word.partition("=")
        if not separator:
            raise ValueError(f"`{name}` must be NAME=NUMBER with commas between them, got {text!r}.")
        if key.strip() in named:
            raise ValueError(f"`{name}` must have each name once, got {key.strip()!r} twice.")
        named[key.strip()] = numbers(name, value, 1)[0]
    return named


def emotion(text: str) -> str | dict[str, float]:
    """The name of an emotion, or `NAME=NUMBER,...`."""
    return weights("emotion", text) if "=" in text else text.strip()


def check_seed(seed: int | None) -> None:
    """Raise `ValueError` for a number that no generator takes."""
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must be a whole number from 0 to 2**63 - 1, got {seed}.")


def check_threads(threads: float) -> None:
    """Raise `ValueError` for a number of CPU threads that this machine has no cores for."""
    check_number("threads", threads, 1, os.cpu_count() or 1, whole=True)


def find_credentials(options: argparse.Namespace) -> Any:
    """The certificate and key of the options or, without them, of the environment; none if neither names them.

    Raises:
        ValueError: If one of them is missing, they cannot sign, or --no-provenance leaves nothing to sign.
    """
    paths = {name: getattr(options, f"c2pa_{name}") for name in ("cert", "key")}
    if not any(paths.values()) and not options.no_provenance:
        paths = {name: os.environ.get(f"VASA_HF_C2PA_{name.upper()}") for name in paths}
    if not any(paths.values()):
        return None
    if options.no_provenance:
        raise ValueError("`c2pa-cert` has no effect with --no-provenance: leave one of them out.")
    for name, path in paths.items():
        if not path:
            raise ValueError(f"`c2pa-{name}` must be given, too: a certificate and its key sign together.")

    from vasa_hf.media import ContentCredentials

    return ContentCredentials(paths["cert"], paths["key"])


def check_files(**paths: str) -> None:
    """Raise `ValueError` for an argument that is not an existing file."""
    for name, path in paths.items():
        if not os.path.isfile(path):
            raise ValueError(f"`{name}` must be an existing file, got {path!r}.")


def check_target(name: str, path: str, suffix: str) -> None:
    """Tell before the work, not after it, that a file cannot be written."""
    if not path.lower().endswith(suffix):
        raise ValueError(f"`{name}` must end in {suffix}, got {path!r}.")
    check_writable(name, path)


def save_png(picture: Any, path: str) -> None:
    """Write a PIL image whole or not at all, and print where."""
    with staging(path) as folder:
        picture.save(folder / os.path.basename(path), format="PNG")
    print(path)


# --- the pipeline -----------------------------------------------------------------------------------------------------


def load_pipeline(options: argparse.Namespace, name: str = "VasaTalkingFacePipeline") -> Any:
    """The pipeline of this public name, by `options.model`, on `options.device`, with `options.threads`.

    Raises:
        ValueError: If there is no such device.
    """
    import torch

    import vasa_hf

    quiet_libraries()
    if options.threads is not None:
        check_threads(options.threads)
        torch.set_num_threads(options.threads)
    device = find_device(options.device)
    return getattr(vasa_hf, name).from_pretrained(options.model).to(device)


def find_device(name: str) -> Any:
    """A device of torch's by its name, tried out: it must hold a number and give it back.

    Raises:
        ValueError: If there is none of that name, or it cannot compute.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`device` must be one of torch's, such as cpu or cuda, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` must be one that is here: torch finds no CUDA device.")
    try:
        works = (torch.ones(2, device=device) + 1).sum().item() == 4
    except Exception as error:  # torch raises what the maker of the device does
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"`device` must be one that is here and works, got {name!r}: {reason[0][:160]}") from error
    if not works:
        raise ValueError(f"`device` must be one that computes, got {name!r}.")
    return device


def seeded(options: argparse.Namespace) -> tuple[int, Any]:
    """The seed that was asked for, or a random one, and a generator with it."""
    import torch

    seed = torch.seed() % 2**32 if options.seed is None else options.seed
    return seed, torch.Generator().manual_seed(seed)


@contextmanager
def frame_counter(pipe: Any, text: str = "frames") -> Iterator[Callable[[int, int], None]]:
    """A progress bar, as `show(done, total)`."""
    with pipe.progress_bar(total=0) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        bar.set_description(text)
        yield show


def talk_to_file(
    options: argparse.Namespace, name: str, find: Callable[[Any], Any], settings: Mapping[str, Any]
) -> int:
    """Let a pipeline of this class write the video of whom `find(pipe)` finds, and the motion if it is asked for."""
    check_target("output", options.output, ".mp4")
    if options.motion is not None:
        check_target("motion", options.motion, ".safetensors")
    credentials = find_credentials(options)
    pipe = load_pipeline(options, name)
    who = find(pipe)
    seed, generator = seeded(options)
    with frame_counter(pipe) as show:
        result = pipe.talk_to_file(
            options.output,
            who,
            options.audio,
            provenance=not options.no_provenance,
            crf=options.crf,
            credentials=credentials,
            on_frames=show,
            generator=generator,
            **settings,
        )
    if options.motion is not None:
        result.save(options.motion)
    print(f"seed {seed}", file=sys.stderr)
    print(options.output)
    return 0


def quiet_libraries() -> None:
    """No progress bars for the loading of small files."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
