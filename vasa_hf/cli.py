"""The command `vasa-hf`: parses, calls a pipeline or a function, prints.

Results go to stdout, progress and messages to stderr. Exit status: 0 done, 2 bad input (one line says what), 130
stopped by Ctrl-C, 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import vasa_hf
from vasa_hf.hub import EMBEDDED, embedded_path, resolve

# Heavy imports (torch and what brings it) wait until a command needs them: `vasa-hf --help` is quick.

_TALK_EXAMPLES = """examples:
  vasa-hf talk me.jpg hello.wav -o out.mp4
  vasa-hf talk me.jpg hello.mp3 -o out.mp4 --seed 1 --paste-back --fps 30
  vasa-hf talk me.jpg hello.wav -o out.mp4 --gaze 0.2,0 --distance 1.2 --emotion happy=0.6
  vasa-hf talk me.jpg hello.wav -o out.mp4 --gaze "0:0,0 2:0.3,0 4:0,0" --emotion "0:happy=0 3:happy=1"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments (`Sequence[str]`, *optional*): Words after `vasa-hf`, those of the process by default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(_with_joined_values(arguments))
    # Read when torch is imported. Threads that wait for each other busily take the cores that ffmpeg, and whatever else
    # runs here, need: twice as slow on a laptop with two busy cores, and no gain on idle ones.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        # A polite kill cleans up as Ctrl-C does; signals can be caught in the main thread only.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    except ValueError:
        pass
    notes = _notes_to_stderr()
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("vasa-hf: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        print(f"vasa-hf: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finally:
        logging.getLogger("vasa_hf").removeHandler(notes)


def _notes_to_stderr() -> logging.Handler:
    """What the package has to say of its input (several faces, a shrunk picture, a silent sound) is said here, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("vasa-hf: note: %(message)s"))
    logger = logging.getLogger("vasa_hf")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def _with_joined_values(arguments: list[str]) -> list[str]:
    """`--gaze -0.1,0` -> `--gaze=-0.1,0`: argparse would take the value for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--gaze":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vasa-hf",
        description="Talking faces from one portrait and one voice (VASA-1), with embedded weights.",
        epilog="`vasa-hf COMMAND --help` tells more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"vasa-hf {vasa_hf.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.set_defaults(run=run)
        return added

    talk = command("talk", _talk, "make a talking video from a portrait and a voice", _TALK_EXAMPLES)
    talk.add_argument("image", help="portrait: a picture file")
    talk.add_argument("audio", help="voice: a sound file, or a video with sound")
    talk.add_argument("-o", "--output", required=True, metavar="OUT.mp4", help="video to write")
    _add_talk_options(talk)

    demo = command(
        "demo",
        _demo,
        "make a talking video from the portrait and the voice that come with the package",
        "example:\n  vasa-hf demo -o demo.mp4\n",
    )
    demo.add_argument("-o", "--output", default="demo.mp4", metavar="OUT.mp4", help="video to write (%(default)s)")
    _add_talk_options(demo)

    crop = command(
        "crop",
        _crop,
        "find the faces of a picture and cut one out, as `talk` would",
        "examples:\n  vasa-hf crop group.jpg\n  vasa-hf crop group.jpg -o face.png --face 1 --preview seen.png\n",
    )
    crop.add_argument("image", help="a picture file")
    crop.add_argument("-o", "--output", metavar="OUT.png", help="picture of the square to write")
    crop.add_argument("--preview", metavar="OUT.png", help="write the picture with boxes, landmarks and the square")
    crop.add_argument("--size", type=int, default=256, help="side of the square in pixels (%(default)s)")
    crop.add_argument("--json", action="store_true", help="print what was found as JSON")
    _add_face_options(crop)
    _add_model_options(crop)

    info = command(
        "info",
        _info,
        "print versions, embedded weights and devices",
        "examples:\n  vasa-hf info\n  vasa-hf info --json\n",
    )
    info.add_argument("--json", action="store_true", help="as JSON")

    bench = command(
        "bench",
        _bench,
        "measure load time, latency, speed by stage and memory on this machine",
        "examples:\n  vasa-hf bench --threads 1,2\n  vasa-hf bench --seconds 600 --json > bench.json\n",
    )
    bench.add_argument("--seconds", type=float, default=10.0, help="length of the voice (%(default)s)")
    bench.add_argument("--threads", metavar="N,M", help="numbers of CPU threads to compare, each in a fresh process")
    bench.add_argument("--steps", type=int, default=10, help="denoising steps (%(default)s)")
    bench.add_argument("--size", type=int, help="side of the face's square in pixels")
    bench.add_argument("--json", action="store_true", help="as JSON")
    _add_model_options(bench)

    judge = command(
        "eval",
        _eval,
        "judge a model on a folder of clips, portraits and voices; write the papers' tables with its row in them",
        "examples:\n"
        "  vasa-hf eval --data data/eval --output results\n"
        "  vasa-hf eval --data data/eval --output results --parts self,audio --limit 5\n"
        "  vasa-hf eval --output results --remake\n"
        "\nexit status: 0 if every asked-for metric was computed, 1 if not (the tables say why)\n",
    )
    judge.add_argument("--data", metavar="DIR", help="folder with clips/, portraits/, speech/, and labels if there are")
    judge.add_argument("--output", required=True, metavar="DIR", help="folder for tables, rows, plots and sheets")
    judge.add_argument("--pipeline", dest="model", default="vasa-small", help="what to judge (%(default)s)")
    judge.add_argument("--parts", metavar="A,B", help="self, cross, audio, ablations, controls, studies (all)")
    judge.add_argument("--metrics", metavar="A,B", help="only these, by their names in table.csv")
    judge.add_argument("--limit", type=int, metavar="N", help="at most so many clips, portraits and voices")
    judge.add_argument("--samples", type=int, default=3, help="videos for each sound (%(default)s)")
    judge.add_argument("--seed", type=int, default=0, help="of their random numbers (%(default)s)")
    judge.add_argument("--threads", type=int, help="CPU threads")
    judge.add_argument("--device", default="cpu", help="such as cpu or cuda (%(default)s)")
    judge.add_argument("--no-sheets", dest="sheets", action="store_false", help="write no pictures of frames")
    judge.add_argument("--remake", action="store_true", help="only make the tables anew from the rows in the folder")
    networks = judge.add_argument_group("networks of metrics", "those of the model's folder are used if it has them")
    networks.add_argument("--mediapipe", metavar="FILE", help="measure faces by MediaPipe: its face_landmarker.task")
    networks.add_argument("--recognizer", metavar="NAME", help="face recogniser: folder, or vision model of the Hub")
    networks.add_argument("--sync-expert", metavar="DIR", help="our sync expert")
    networks.add_argument("--capp", metavar="DIR", help="our CAPP")
    networks.add_argument("--syncnet", metavar="DIR", help="SyncNet, converted by vasa_hf.convert.syncnet")
    networks.add_argument("--lpips", metavar="DIR", help="LPIPS, converted by vasa_hf.convert.lpips")
    networks.add_argument("--fid-network", metavar="FILE", help="Inception: TorchScript")
    networks.add_argument("--fvd-network", metavar="FILE", help="I3D: TorchScript")

    convert = command(
        "convert",
        _convert,
        "turn a public checkpoint into safetensors, without running what it pickles",
        "examples:\n"
        "  vasa-hf convert syncnet syncnet_v2.model syncnet\n"
        "  vasa-hf convert lpips alexnet.pth lpips_alex.pth lpips\n"
        "  vasa-hf convert flame FLAME2020/generic_model.pkl flame2020.safetensors\n",
    )
    convert.add_argument("kind", choices=("syncnet", "lpips", "flame"), help="what it is")
    convert.add_argument("source", nargs="+", help="checkpoint; for lpips the backbone's, then the linear layers'")
    convert.add_argument("destination", help="folder to write; for flame a .safetensors file")

    ready = command(
        "prepare",
        _prepare,
        "make training clips of a folder of videos: find faces, filter, crop, label, write shards",
        "examples:\n"
        "  vasa-hf prepare videos -o shards --workers 4\n"
        "  vasa-hf prepare videos -o shards --filters loose --set min_face=100 --set frontal_deg=45\n"
        "  vasa-hf prepare --check shards\n"
        "  vasa-hf prepare --unpack shards -o data     # the layout that the trainers read\n"
        "\nA run may be stopped; the same command goes on. Exit status of --check: 0 if all is well, 1 if not.\n",
    )
    ready.add_argument("videos", nargs="?", help="folder of videos; its first folders name the people")
    ready.add_argument("-o", "--output", metavar="DIR", help="folder for the shards, or for what is unpacked")
    ready.add_argument("--check", metavar="DIR", help="compare shards with their manifest")
    ready.add_argument("--unpack", metavar="DIR", help="write clips/*.mp4, clips.npz and identities.csv from shards")
    ready.add_argument("--filters", default="strict", help="strict: for motion, loose: for appearance (%(default)s)")
    ready.add_argument(
        "--set", action="append", default=[], metavar="NAME=NUMBER", help="change a filter, see vasa_hf/data/filters.py"
    )
    ready.add_argument("--min-seconds", type=float, help="least length of a clip (3)")
    ready.add_argument("--max-seconds", type=float, help="longer ones are cut (10)")
    ready.add_argument("--size", type=int, default=256, help="side of the clips in pixels (%(default)s)")
    ready.add_argument("--crop-scale", type=float, default=2.0, help="side over that of the face (%(default)s)")
    ready.add_argument("--crf", type=int, default=18, help="quality of H.264, 0 to 51 (%(default)s)")
    ready.add_argument("--identity", default="folder", help="who is who: folder or video (%(default)s)")
    ready.add_argument("--model", default="vasa-small", help="with the networks that look and listen (%(default)s)")
    ready.add_argument("--mediapipe", metavar="FILE", help="find faces by MediaPipe: its face_landmarker.task")
    ready.add_argument("--clips-per-shard", type=int, default=1000, help="(%(default)s)")
    ready.add_argument("--workers", type=int, default=1, help="processes (%(default)s)")
    ready.add_argument("--engine", default="local", help="local, or ray for a cluster (%(default)s)")
    ready.add_argument("--retry", action="store_true", help="try unreadable videos again")
    ready.add_argument("--json", action="store_true", help="print the manifest's counts as JSON")

    inspect = command(
        "inspect",
        _inspect,
        "tell whether a video says, or bears the mark, that it was made by vasa_hf",
        "example:\n  vasa-hf inspect out.mp4\n",
    )
    inspect.add_argument("video", help="a video file")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _add_talk_options(parser: argparse.ArgumentParser) -> None:
    controls = parser.add_argument_group("controls", "constant, or keyframes as in the examples (SECONDS:VALUE ...)")
    controls.add_argument("--gaze", metavar="YAW,PITCH", help="radians; > 0: picture's left, down (0,0: camera)")
    controls.add_argument("--distance", metavar="D", help="head distance, 1 is the portrait's own")
    controls.add_argument("--emotion", metavar="NAME=WEIGHT,...", help="offsets in [-1, 1], such as happy=0.6")
    controls.add_argument("--head-motion", type=float, default=1.0, metavar="X", help="amount, 0 to 3 (%(default)s)")
    controls.add_argument(
        "--guidance", metavar="NAME=SCALE,...", help="of audio (0.5), gaze (1), head_distance, emotion, previous (0)"
    )
    making = parser.add_argument_group("making")
    making.add_argument("--steps", type=int, default=10, help="denoising steps (%(default)s)")
    making.add_argument("--seed", type=int, help="same seed, same motion; a random one is told if left out")
    making.add_argument("--threads", type=int, help="CPU threads")
    _add_model_options(making)
    picture = parser.add_argument_group("picture")
    picture.add_argument("--fps", default="25", help="frames a second, such as 30 or 30000/1001 (%(default)s)")
    picture.add_argument("--size", type=int, help="side of the face's square in pixels, such as 256 or 512")
    picture.add_argument("--crf", type=int, default=18, help="quality of H.264, 0 to 51 (%(default)s)")
    shape = picture.add_mutually_exclusive_group()
    shape.add_argument("--paste-back", action="store_true", help="the whole picture, the face put back into it")
    shape.add_argument("--crop", dest="paste_back", action="store_false", help="the face's square (default)")
    _add_face_options(picture)
    picture.add_argument("--motion", metavar="OUT.safetensors", help="also save the motion")
    picture.add_argument(
        "--no-provenance", action="store_true", help="leave out the mark and the note that the video is synthetic"
    )


def _add_face_options(parser: Any) -> None:
    parser.add_argument("--face", type=int, help="which face, 0 is the largest")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="the face's box in pixels, instead of looking for it")


def _add_model_options(parser: Any) -> None:
    parser.add_argument("--model", default="vasa-small", help="embedded name, folder or Hub repository (%(default)s)")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda (%(default)s)")


# --- commands ---------------------------------------------------------------------------------------------------------


def _talk(options: argparse.Namespace) -> int:
    from vasa_hf.media.ffmpeg import parse_fps

    # What can be seen to be wrong without torch is told at once.
    settings = {
        "head_motion": options.head_motion,
        "num_inference_steps": options.steps,
        "guidance_scale": None if options.guidance is None else _weights("guidance", options.guidance),
        "fps": parse_fps(options.fps),
        "face": options.face,
        "box": None if options.box is None else _numbers("box", options.box, 4),
        "output_size": options.size,
        "paste_back": options.paste_back,
    }
    if options.gaze is not None:
        settings["gaze"] = _keyframes(options.gaze, lambda text: _numbers("gaze", text, 2))
    if options.distance is not None:
        settings["head_distance"] = _keyframes(options.distance, lambda text: _numbers("distance", text, 1)[0])
    if options.emotion is not None:
        settings["emotion"] = _keyframes(options.emotion, lambda text: _weights("emotion", text))
    for name, path in (("image", options.image), ("audio", options.audio)):
        if not os.path.isfile(path):
            raise ValueError(f"`{name}` must be an existing file, got {path!r}.")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise ValueError(f"`seed` must be a whole number from 0 to 2**63 - 1, got {options.seed}.")
    _check_target("output", options.output, ".mp4")
    if options.motion is not None:
        _check_target("motion", options.motion, ".safetensors")

    pipe = _load_pipeline(options)
    import torch

    seed = torch.seed() % 2**32 if options.seed is None else options.seed
    generator = torch.Generator().manual_seed(seed)
    with pipe.progress_bar(total=0) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        bar.set_description("frames")
        result = pipe.talk_to_file(
            options.output,
            options.image,
            options.audio,
            provenance=not options.no_provenance,
            crf=options.crf,
            on_frames=show,
            generator=generator,
            **settings,
        )
    if options.motion is not None:
        result.save(options.motion)
    print(f"seed {seed}", file=sys.stderr)
    print(options.output)
    return 0


def _demo(options: argparse.Namespace) -> int:
    assets = os.path.join(os.path.dirname(os.path.abspath(vasa_hf.__file__)), "assets")
    options.image, options.audio = os.path.join(assets, "portrait.jpg"), os.path.join(assets, "voice.flac")
    return _talk(options)


def _crop(options: argparse.Namespace) -> int:
    for name, path in (("output", options.output), ("preview", options.preview)):
        if path is not None:
            _check_target(name, path, ".png")
    if not os.path.isfile(options.image):
        raise ValueError(f"`image` must be an existing picture file, got {options.image!r}.")
    box = None if options.box is None else _numbers("box", options.box, 4)
    folder = resolve(options.model)

    from vasa_hf import FaceAnalyzer, FaceImageProcessor

    _quiet_libraries()
    processor = FaceImageProcessor.from_pretrained(folder, subfolder="image_processor")
    analyzer = FaceAnalyzer.from_pretrained(folder, subfolder="face_analyzer").float()
    picture = processor.load(options.image)
    faces = analyzer.to(options.device).detect(picture)
    chosen = processor.choose(faces, tuple(picture.shape[-2:]), options.face) if box is None else None
    crop = processor.crop(picture, chosen, box, size=options.size)
    if options.output is not None:
        _save_png(processor.preview(crop.image), options.output)
    if options.preview is not None:
        _save_png(processor.preview(picture, faces, crop), options.preview)
    found = [
        {
            "face": index,
            "score": round(face.score, 3),
            "box": [round(value, 1) for value in face.box.tolist()],
            "pose_degrees": [round(value, 1) for value in face.pose[:3].rad2deg().tolist()],
        }
        for index, face in enumerate(faces)
    ]
    if options.json:
        print(json.dumps({"faces": found, "crop_from_image": crop.crop_from_image.tolist()}))
        return 0
    for face in found:
        print("face {face}: score {score}, box {box}, yaw pitch roll {pose_degrees} degrees".format(**face))
    return 0


def _info(options: argparse.Namespace) -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from vasa_hf.media.ffmpeg import ffmpeg_path

    def version_of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "moviepy", "gradio", "gsplat")
    weights = {}
    for name, text in EMBEDDED.items():
        folder = embedded_path(name)
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) if folder.is_dir() else 0
        weights[name] = {
            "what": text,
            "found": (folder / "model_index.json").is_file() and size > 0,
            "megabytes": round(size / 2**20, 1),
        }
    devices = {"cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"}
    devices.update({f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    facts = {
        "vasa_hf": vasa_hf.__version__,
        "python": platform.python_version(),
        "packages": {package: version_of(package) for package in packages},
        "ffmpeg": ffmpeg_path(),
        "weights": weights,
        "devices": devices,
    }
    if options.json:
        print(json.dumps(facts))
        return 0
    print(f"vasa_hf {facts['vasa_hf']}, Python {facts['python']}")
    print("packages  " + ", ".join(f"{name} {number or 'missing'}" for name, number in facts["packages"].items()))
    print(f"ffmpeg    {facts['ffmpeg']}")
    for name, entry in weights.items():
        state = f"{entry['megabytes']} MB" if entry["found"] else "MISSING"
        print(f"weights   {name}: {entry['what']}, {state}")
    for name, text in devices.items():
        print(f"device    {name}: {text}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from vasa_hf import bench

    threads = None if options.threads is None else _numbers("threads", options.threads)
    if threads is not None and not all(count >= 1 and count == int(count) for count in threads):
        raise ValueError(f"`threads` must be whole numbers from 1 on, such as 1,2, got {options.threads!r}.")
    results = bench.compare(
        [None] if threads is None else [int(count) for count in threads],
        model=options.model,
        seconds=options.seconds,
        num_inference_steps=options.steps,
        output_size=options.size,
        device=options.device,
    )
    print(json.dumps(results) if options.json else bench.table(results))
    return 0


def _eval(options: argparse.Namespace) -> int:
    from vasa_hf.metrics import evaluate, tables

    for name in ("limit", "samples"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}.")
    parts, metrics = (None if text is None else text.split(",") for text in (options.parts, options.metrics))
    evaluate.check_names(parts, metrics)
    if options.remake:
        tables.remake(options.output)
        missing = evaluate.missing_metrics(options.output, parts, metrics)
    else:
        if options.data is None:
            raise ValueError("`data` must be given: --data DIR (or --remake).")
        if not os.path.isdir(options.data):
            raise ValueError(f"`data` must be an existing folder, got {options.data!r}.")
        pipe = _load_pipeline(options)
        detector = None
        if options.mediapipe is not None:
            from vasa_hf import MediaPipeFaceAnalyzer

            detector = MediaPipeFaceAnalyzer(options.mediapipe, pipe.face_analyzer.canonical)
        missing = evaluate.evaluate(
            pipe,
            options.data,
            options.output,
            parts,
            metrics=metrics,
            networks=_metric_networks(options),
            limit=options.limit,
            samples=options.samples,
            seed=options.seed,
            sheets=options.sheets,
            detector=detector,
        )
    for name in missing:
        print(f"vasa-hf: not computed: {name}", file=sys.stderr)
    print(os.path.join(options.output, "table.md"))
    return 1 if missing else 0


def _metric_networks(options: argparse.Namespace) -> dict[str, Any]:
    """Networks of metrics: those that were named, else those in the model's folder; others are absent."""
    from vasa_hf import Capp, FaceRecognizer, SyncExpert, SyncNet, pretrained_features
    from vasa_hf.metrics.frechet import load_i3d, load_inception
    from vasa_hf.metrics.lpips import Lpips

    networks: dict[str, Any] = {}
    folder = resolve(options.model)
    own = {"face_recognizer": FaceRecognizer, "sync_expert": SyncExpert, "capp": Capp}
    for name, kind in own.items():
        if os.path.isfile(os.path.join(folder, name, "config.json")):
            networks[name] = kind.from_pretrained(folder, subfolder=name).float()
    if options.recognizer is not None:
        networks["face_recognizer"] = pretrained_features(options.recognizer)
    for name, kind in (("sync_expert", SyncExpert), ("capp", Capp), ("syncnet", SyncNet)):
        if (path := getattr(options, name)) is not None:
            if not os.path.isfile(os.path.join(path, "config.json")):
                raise ValueError(f"`{name}` must be a folder with config.json, got {path!r}.")
            networks[name] = kind.from_pretrained(path).float()
    if options.lpips is not None:
        networks["lpips"] = Lpips.load(options.lpips)
    networks = {name: network.eval().to(options.device) for name, network in networks.items()}
    if options.fid_network is not None:
        networks["fid"] = load_inception(options.fid_network, options.device)
    if options.fvd_network is not None:
        networks["fvd"] = load_i3d(options.fvd_network, options.device)
    return networks


def _convert(options: argparse.Namespace) -> int:
    from vasa_hf.convert.flame import convert_flame
    from vasa_hf.convert.lpips import convert_lpips
    from vasa_hf.convert.syncnet import convert_syncnet

    kinds = {"syncnet": (convert_syncnet, 1), "lpips": (convert_lpips, 2), "flame": (convert_flame, 1)}
    convert, files = kinds[options.kind]
    if len(options.source) != files:
        raise ValueError(f"`source` must be {files} file(s) for {options.kind}, got {len(options.source)}.")
    print(convert(*options.source, options.destination))
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from vasa_hf.data import shards

    if options.check is not None:
        complaints = shards.check(options.check)
        print(
            "\n".join(complaints) or f"{options.check}: {shards.read_manifest(options.check)['samples']} clips, whole"
        )
        return 1 if complaints else 0
    if options.output is None:
        raise ValueError("`output` must be given: -o DIR.")
    if options.unpack is not None:
        print(f"{shards.unpack(options.unpack, options.output)} clips in {options.output}")
        return 0
    if options.videos is None:
        raise ValueError("`videos` must be given: a folder.")
    _quiet_libraries()
    from vasa_hf.data import prepare_job
    from vasa_hf.data.filters import Filters
    from vasa_hf.data.prepare import PrepareSettings

    changes = {name: value for text in options.set for name, value in _weights("set", text).items()}
    for name in ("min_seconds", "max_seconds"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    names = ("size", "crop_scale", "crf", "model", "mediapipe", "identity")
    manifest = prepare_job.prepare(
        options.videos,
        options.output,
        PrepareSettings(Filters.named(options.filters, **changes), **{name: getattr(options, name) for name in names}),
        clips_per_shard=options.clips_per_shard,
        workers=options.workers,
        engine=options.engine,
        retry=options.retry,
        progress=lambda done, total: print(f"\r{done} of {total} videos", end="", file=sys.stderr, flush=True),
    )
    print(file=sys.stderr)
    for name, error in prepare_job.unreadable(options.output):
        print(f"vasa-hf: unreadable: {name}: {error}", file=sys.stderr)
    print(json.dumps(manifest["counts"]) if options.json else prepare_job.table(manifest["counts"]))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from vasa_hf.media import MARK_THRESHOLD, detect_mark, read_provenance, read_video

    manifest = read_provenance(options.video)
    score = detect_mark(read_video(options.video))
    if options.json:
        print(json.dumps({"manifest": manifest, "mark_score": round(score, 2), "marked": score > MARK_THRESHOLD}))
        return 0
    print(f"manifest  {'none' if manifest is None else json.dumps(manifest)}")
    found = "found" if score > MARK_THRESHOLD else "not found"
    print(f"mark      {found} (score {score:.1f}, threshold {MARK_THRESHOLD:.1f})")
    return 0


# --- small parts ------------------------------------------------------------------------------------------------------


def _load_pipeline(options: argparse.Namespace) -> Any:
    import torch

    from vasa_hf import VasaTalkingFacePipeline

    _quiet_libraries()
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"`threads` must be at least 1, got {options.threads}.")
        torch.set_num_threads(options.threads)
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise ValueError(f"`device` must be one of torch's, such as cpu or cuda, got {options.device!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` must be one that is here: torch finds no CUDA device.")
    return VasaTalkingFacePipeline.from_pretrained(options.model).to(device)


def _quiet_libraries() -> None:
    """No progress bars for the loading of small files."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _check_target(name: str, path: str, suffix: str) -> None:
    """Tell before the work, not after it, that a file cannot be written."""
    if not path.lower().endswith(suffix):
        raise ValueError(f"`{name}` must end in {suffix}, got {path!r}.")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise ValueError(f"`{name}` must lie in an existing folder, got {path!r}.")
    if os.path.isdir(path) or not os.access(os.path.dirname(path) or ".", os.W_OK):
        raise ValueError(f"`{name}` must be a file that can be written, got {path!r}.")


def _save_png(picture: Any, path: str) -> None:
    from vasa_hf.media.ffmpeg import staging

    with staging(path) as folder:
        picture.save(folder / os.path.basename(path), format="PNG")
    print(path)


def _keyframes(text: str, parse: Any) -> Any:
    """`VALUE`, or `SECONDS:VALUE SECONDS:VALUE ...`."""
    if ":" not in text:
        return parse(text)
    keys = []
    for word in text.split():
        seconds, separator, value = word.partition(":")
        if not separator:
            raise ValueError(f"keyframes must be SECONDS:VALUE, got {word!r} in {text!r}.")
        keys.append((_numbers("seconds", seconds, 1)[0], parse(value)))
    return keys


def _numbers(name: str, text: str, count: int | None = None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (count is not None and len(numbers) != count):
        wanted = "numbers" if count is None else f"{count} number{'s' * (count > 1)}"
        raise ValueError(f"`{name}` must be {wanted}{' with commas between them' * (count != 1)}, got {text!r}.")
    return numbers


def _weights(name: str, text: str) -> dict[str, float]:
    weights = {}
    for word in text.split(","):
        key, separator, value = word.partition("=")
        if not separator:
            raise ValueError(f"`{name}` must be NAME=NUMBER with commas between them, got {text!r}.")
        weights[key.strip()] = _numbers(name, value, 1)[0]
    return weights


if __name__ == "__main__":
    sys.exit(main())
