"""Shared by the commands: options, parsing of values, checks of files, loading of pipelines."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vasa_hf.checks import check_number
from vasa_hf.files import VIDEO_SUFFIXES, check_writable, staging
from vasa_hf.hub import EMBEDDED

# --- given options ----------------------------------------------------------------------------------------------------


def record_given(parser: argparse.ArgumentParser) -> None:
    """Let a parser refuse an option that is given twice, and list in `given` those that are given."""
    for name, kind in (
        ("store", argparse._StoreAction),
        ("store_true", argparse._StoreTrueAction),
        ("store_false", argparse._StoreFalseAction),
        ("append", argparse._AppendAction),
    ):
        parser.register("action", name, _make_action(kind, may_repeat=name == "append"))
    parser.register("action", None, _make_action(argparse._StoreAction))


def _make_action(kind: type, may_repeat: bool = False) -> type:
    """Make an action of argparse that also records in the namespace that it ran."""

    class RecordingAction(kind):
        def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
            given = getattr(namespace, "given", frozenset())
            if option is not None and self.dest in given and not may_repeat:
                raise argparse.ArgumentError(self, "is given twice, or together with an option that excludes it")
            namespace.given = given | ({self.dest} if option is not None else frozenset())
            super().__call__(parser, namespace, values, option)

    return RecordingAction


def refuse_ignored(options: argparse.Namespace, used: set[str], mode: str) -> None:
    """Raise `ValueError` for an option that was given and would have no effect."""
    if ignored := sorted(getattr(options, "given", set()) - used):
        raise ValueError(f"`{ignored[0]}` has no effect with --{mode}: leave one of them out.")


def check_faces(options: argparse.Namespace, *prefixes: str) -> None:
    """Raise `ValueError` for a face that is given both by its number and by its box."""
    for prefix in prefixes:
        if getattr(options, f"{prefix}face") is not None and getattr(options, f"{prefix}box") is not None:
            name = prefix.replace("_", "-")
            raise ValueError(f"`--{name}face` has no effect with --{name}box: leave one of them out.")


# --- options ----------------------------------------------------------------------------------------------------------


def add_control_options(parser: Any) -> None:
    """Add gaze, distance, emotion, amount of head motion and guidance."""
    controls = parser.add_argument_group("controls", "constant, or keyframes SECONDS:VALUE ... as in the examples")
    controls.add_argument("--gaze", metavar="YAW,PITCH", help="radians; > 0: left in the image, down (0,0: camera)")
    controls.add_argument("--distance", metavar="D", help="head distance, 1 as in the portrait")
    controls.add_argument("--emotion", metavar="NAME[=WEIGHT,...]", help="such as happy, or offsets happy=0.6")
    controls.add_argument("--head-motion", type=float, default=1.0, metavar="X", help="amount, 0 to 3 (%(default)s)")
    controls.add_argument(
        "--guidance", metavar="NAME=SCALE,...", help="of audio (0.5), gaze (1), head_distance, emotion, previous (0)"
    )


def add_edit_options(parser: Any) -> None:
    """Add edits of LivePortrait's keypoints."""
    edits = parser.add_argument_group("keypoints", "of LivePortrait's renderer, which moda uses")
    edits.add_argument("--expression", metavar="NAME=X,...", help="edits such as smile=0.5,brow=0.3; or keyframes")
    edits.add_argument(
        "--no-stitching", dest="stitching", action="store_false", default=None, help="let the shoulders move"
    )
    edits.add_argument("--multiplier", type=float, metavar="X", help="amount of all motion, 0 to 3 (1)")


def add_sampling_options(parser: Any, model: str | None = "vasa-small") -> None:
    """Add steps, seed, threads, model and device."""
    making = parser.add_argument_group("sampling")
    making.add_argument("--steps", type=int, help="denoising steps (10)")
    making.add_argument("--seed", type=int, help="same seed, same motion (random, and printed)")
    making.add_argument("--threads", type=int, help="CPU threads")
    add_model_options(making, model)


def add_video_options(picture: Any) -> None:
    """Add quality, motion file and provenance of a video."""
    picture.add_argument("--crf", type=int, default=18, help="quality of H.264, 0 to 51 (%(default)s)")
    picture.add_argument("--motion", metavar="OUT.safetensors", help="also save the motion")
    picture.add_argument(
        "--no-provenance",
        action="store_true",
        help="omit the watermark and the metadata of a synthetic video",
    )
    signing = "PEM file that signs a C2PA manifest in the video (environment: VASA_HF_C2PA_"
    picture.add_argument("--c2pa-cert", metavar="PEM", help=f"certificate: {signing}CERT)")
    picture.add_argument("--c2pa-key", metavar="PEM", help=f"its key: {signing}KEY)")


def add_face_options(parser: Any) -> None:
    """Add the choice of a face."""
    parser.add_argument("--face", type=int, help="which face, 0 is the largest")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="box of the face in pixels, instead of a search")


def add_model_options(parser: Any, model: str | None = "vasa-small") -> None:
    """Add model and device; without `model`, the command has a default of its own."""
    default = "the embedded one" if model is None else model
    parser.add_argument("--model", default=model, help=f"embedded name, folder or Hub repository ({default})")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda (%(default)s)")


# --- values -----------------------------------------------------------------------------------------------------------


def read_controls(options: argparse.Namespace) -> dict[str, Any]:
    """Read the options of `add_control_options` and `add_sampling_options` as arguments of a pipeline's call.

    Raises:
        ValueError: If a value cannot be parsed, or edits of keypoints are given.
    """
    if hasattr(options, "expression") and (edits := read_edits(options)):
        raise ValueError(f"`{next(iter(edits))}` needs --system moda.")
    settings = _read_shared_controls(options)
    if options.steps is None:
        settings["num_inference_steps"] = 10
    if options.gaze is not None:
        settings["gaze"] = parse_keyframes(options.gaze, lambda text: parse_numbers("gaze", text, 2))
    if options.distance is not None:
        settings["head_distance"] = parse_keyframes(
            options.distance, lambda text: parse_numbers("distance", text, 1)[0]
        )
    return settings


def read_keypoint_controls(options: argparse.Namespace) -> dict[str, Any]:
    """Read the same options for a pipeline with LivePortrait's keypoints, such as MoDA's.

    Raises:
        ValueError: If a value cannot be parsed, or the pipeline has no such control.
    """
    for name in ("gaze", "distance"):
        if getattr(options, name) is not None:
            raise ValueError(f"`{name}` is not supported by moda; gaze is an edit there: --expression gaze_yaw=0.2.")
    return {**_read_shared_controls(options), **read_edits(options)}


def _read_shared_controls(options: argparse.Namespace) -> dict[str, Any]:
    check_seed(options.seed)
    settings: dict[str, Any] = {
        "head_motion": options.head_motion,
        "num_inference_steps": options.steps,
        "guidance_scale": None if options.guidance is None else parse_weights("guidance", options.guidance),
    }
    if options.emotion is not None:
        settings["emotion"] = parse_keyframes(options.emotion, parse_emotion)
    return settings


def read_edits(options: argparse.Namespace) -> dict[str, Any]:
    """Read the options of `add_edit_options` as arguments of a pipeline's call."""
    edits = options.expression
    if edits is not None:
        edits = parse_keyframes(edits, lambda text: parse_weights("expression", text))
    settings = {"expression": edits, "stitching": options.stitching, "driving_multiplier": options.multiplier}
    return {name: value for name, value in settings.items() if value is not None}


def parse_keyframes(text: str, parse: Any) -> Any:
    """Parse `VALUE`, or `SECONDS:VALUE SECONDS:VALUE ...`."""
    if ":" not in text:
        return parse(text)
    keys = []
    for word in text.split():
        seconds, separator, value = word.partition(":")
        if not separator:
            raise ValueError(f"keyframes must be SECONDS:VALUE, got {word!r} in {text!r}.")
        keys.append((parse_numbers("seconds", seconds, 1)[0], parse(value)))
    return keys


def parse_numbers(name: str, text: str, count: int | None = None) -> tuple[float, ...]:
    """Parse numbers with commas between them; `count` of them if it is given."""
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


def parse_weights(name: str, text: str) -> dict[str, float]:
    """Parse `NAME=NUMBER,...`."""
    named = {}
    for word in text.split(","):
        key, separator, value = word.partition("=")
        if not separator:
            raise ValueError(f"`{name}` must be NAME=NUMBER with commas between them, got {text!r}.")
        if key.strip() in named:
            raise ValueError(f"`{name}` must have each name once, got {key.strip()!r} twice.")
        named[key.strip()] = parse_numbers(name, value, 1)[0]
    return named


def parse_emotion(text: str) -> str | dict[str, float]:
    """Parse the name of an emotion, or `NAME=NUMBER,...`."""
    return parse_weights("emotion", text) if "=" in text else text.strip()


def check_seed(seed: int | None) -> None:
    """Raise `ValueError` for a number that is out of a generator's range."""
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must be a whole number from 0 to 2**63 - 1, got {seed}.")


def check_threads(threads: float) -> None:
    """Raise `ValueError` for more CPU threads than this machine has cores."""
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


def check_target(name: str, path: str, *suffixes: str) -> None:
    """Raise `ValueError`, before any work, if a file cannot be written, or has none of the suffixes."""
    if not path.lower().endswith(suffixes):
        raise ValueError(f"`{name}` must end in {' or '.join(suffixes)}, got {path!r}.")
    check_writable(name, path)


def save_png(picture: Any, path: str) -> None:
    """Write a PIL image, whole or not at all, and print its path."""
    with staging(path) as folder:
        picture.save(folder / os.path.basename(path), format="PNG")
    print(path)


# --- the pipeline -----------------------------------------------------------------------------------------------------


def find_embedded(name: str) -> str:
    """Return the name of embedded weights.

    Raises:
        ValueError: If this version has none of that name.
    """
    if name not in EMBEDDED:
        raise ValueError(
            f"`model` must be given: this version comes without {name}; see the trainings in "
            "vasa_hf/training/README.md and `vasa-hf assemble`."
        )
    return name


def load_pipeline(options: argparse.Namespace, name: str = "VasaTalkingFacePipeline") -> Any:
    """Load the pipeline of this public name: `options.model`, on `options.device`, with `options.threads`.

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
    """Return a torch device by its name, after a small computation on it.

    Raises:
        ValueError: If there is none of that name, or it cannot compute.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`device` must be one of torch's, such as cpu or cuda, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` must be available: torch finds no CUDA device.")
    try:
        works = (torch.ones(2, device=device) + 1).sum().item() == 4
    except Exception as error:  # the type depends on the device's backend
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"`device` must be available and work, got {name!r}: {reason[0][:160]}") from error
    if not works:
        raise ValueError(f"`device` must compute correctly, got {name!r}.")
    return device


def choose_seed(options: argparse.Namespace) -> tuple[int, Any]:
    """Return the given seed, or a random one, and a generator with it."""
    import torch

    seed = torch.seed() % 2**32 if options.seed is None else options.seed
    return seed, torch.Generator().manual_seed(seed)


@contextmanager
def frame_counter(pipe: Any, text: str = "frames") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar; yields `show(done, total)`."""
    with pipe.progress_bar(total=0) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        bar.set_description(text)
        yield show


def talk_to_file(
    options: argparse.Namespace, name: str, find: Callable[[Any], Any], settings: Mapping[str, Any]
) -> int:
    """Write the talking video of the subject that `find(pipe)` returns, and its motion if `--motion` is given."""
    check_target("output", options.output, *VIDEO_SUFFIXES)
    if options.motion is not None:
        check_target("--motion", options.motion, ".safetensors")
    credentials = find_credentials(options)
    pipe = load_pipeline(options, name)
    subject = find(pipe)
    seed, generator = choose_seed(options)
    marks = {"provenance": not options.no_provenance, "crf": options.crf, "credentials": credentials}
    if options.audio is None:  # of instructions; a minute at most
        result = pipe(subject, generator=generator, **settings)
        result.save(options.output, **marks)
    else:
        with frame_counter(pipe) as show:
            given = {**marks, "on_frames": show, "generator": generator, **settings}
            result = pipe.talk_to_file(options.output, subject, options.audio, **given)
    if options.motion is not None:
        result.save(options.motion)
    print(f"seed {seed}", file=sys.stderr)
    print(options.output)
    return 0


def quiet_libraries() -> None:
    """Turn off the progress bars of libraries, which show the loading of small files."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
