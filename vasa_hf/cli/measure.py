"""Commands that measure: `info` (what is installed), `bench` (speed), `eval` (quality)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from typing import Any

import vasa_hf
from vasa_hf.cli import options as shared
from vasa_hf.hub import EMBEDDED, base_name, embedded_path, read_index, resolve

_REFERENCE = "vasa-small"
_SYSTEMS = {"moda": ("moda-small", "ModaTalkingHeadPipeline"), "gaia": ("gaia-small", "GaiaAvatarPipeline")}
_NETWORKS = ("recognizer", "sync_expert", "capp", "syncnet", "lpips", "fid_network", "fvd_network")


def add_commands(command: Any) -> None:
    """Add this module's commands to the parser."""
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
        "examples:\n"
        "  vasa-hf bench --threads 1,2\n"
        "  vasa-hf bench --seconds 600 --json > bench.json\n"
        "  vasa-hf bench moda --threads 1,2\n"
        "  vasa-hf bench gaia --model my-gaia\n"
        "  vasa-hf bench 3d --threads 1,2\n"
        "  vasa-hf bench 3d --device cuda\n"
        "  vasa-hf bench live --seconds 120\n"
        "  vasa-hf bench serve --sessions 2\n"
        "  vasa-hf bench renderer --threads 1\n"
        "  vasa-hf bench marks --data data --limit 24 --unmarked 1200\n",
    )
    help_text = (
        "VASA-1, MoDA, GAIA, avatars, a live session, a server, LivePortrait's renderer, the watermark (%(default)s)"
    )
    choices = ("2d", *_SYSTEMS, "3d", "live", "serve", "renderer", "marks")
    bench.add_argument("what", nargs="?", choices=choices, default="2d", help=help_text)
    bench.add_argument(
        "--seconds", type=float, help="2d, moda, gaia: length of the voice (10); live, serve: of a session (60)"
    )
    bench.add_argument("--sessions", type=int, help="serve: sessions at the same time (2)")
    bench.add_argument("--threads", metavar="N,M", help="numbers of CPU threads to compare, each in a fresh process")
    bench.add_argument("--steps", type=int, help="2d, moda, gaia, 3d, live: denoising steps (10)")
    bench.add_argument("--size", type=int, help="2d, 3d, live, serve: side in pixels (3d: 256, on CUDA 512)")
    bench.add_argument("--avatar", metavar="NAME", help="3d: name or folder (the first of the embedded ones)")
    bench.add_argument("--gaussians", type=int, help="3d: number of Gaussians (20000, on CUDA 200000)")
    bench.add_argument("--fit", metavar="PRESET", help="3d: also fit the package's portrait, such as fast; minutes")
    bench.add_argument("--batch", type=int, help="renderer: frames at a time (1)")
    bench.add_argument("--repeats", type=int, help="renderer: runs of each variant; the fastest counts (3)")
    bench.add_argument("--data", metavar="DIR", help="marks: folder of unmarked videos and images (synthetic ones)")
    bench.add_argument("--limit", type=int, help="marks: number of videos to mark and distort (24)")
    bench.add_argument("--unmarked", type=int, help="marks: number of videos and images without a mark (1000)")
    bench.add_argument("--json", action="store_true", help="as JSON")
    shared.add_model_options(bench, None)

    judge = command(
        "eval",
        _eval,
        "evaluate a model on a folder of clips, portraits and voices; write the papers' tables with its row added",
        "examples:\n"
        "  vasa-hf eval --data data/eval --output results\n"
        "  vasa-hf eval --data data/eval --output results --parts self,audio --limit 5\n"
        "  vasa-hf eval --data data/eval --output results --pipeline vasa3d --avatars me/,anna\n"
        "  vasa-hf eval --data data/eval --output results --pipeline moda --parts audio,speed\n"
        "  vasa-hf eval --data data/eval --output results --pipeline my-gaia --parts motion_controls\n"
        "  vasa-hf eval --output results --remake\n"
        "\nexit status: 0 if every requested metric was computed, 1 if not (the tables say why)\n",
    )
    judge.add_argument("--data", metavar="DIR", help="folder with clips/, portraits/, speech/, and optional labels")
    judge.add_argument("--output", required=True, metavar="DIR", help="folder for tables, rows, plots and sheets")
    judge.add_argument(
        "--pipeline",
        dest="model",
        default="vasa-small",
        help="model to evaluate; moda, gaia and vasa3d (avatars) are short names (%(default)s)",
    )
    judge.add_argument("--avatars", metavar="A,B", help="names or folders of avatars (all of the pipeline)")
    judge.add_argument(
        "--parts",
        metavar="A,B",
        help="self, cross, audio, minutes, disentangle, silence, ablations, controls, motion_controls, speed, studies; "
        "avatars, real (all)",
    )
    judge.add_argument(
        "--fit", metavar="PRESET", help="real: fit an avatar to a frame of each clip first, such as fast"
    )
    judge.add_argument("--metrics", metavar="A,B", help="only these metrics, by their names in table.csv")
    judge.add_argument("--limit", type=int, metavar="N", help="maximal number of clips, portraits and voices")
    judge.add_argument("--samples", type=int, default=3, help="videos per audio file (%(default)s)")
    judge.add_argument("--transfers", type=int, default=3, help="disentangle: clips a person, paper 50 (%(default)s)")
    judge.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    judge.add_argument("--threads", type=int, help="CPU threads")
    judge.add_argument("--device", default="cpu", help="such as cpu or cuda (%(default)s)")
    judge.add_argument("--no-sheets", dest="sheets", action="store_false", help="write no sheets of frames")
    judge.add_argument("--remake", action="store_true", help="only write the tables again from the rows in the folder")
    networks = judge.add_argument_group("networks of metrics", "by default those in the model's folder")
    networks.add_argument("--mediapipe", metavar="FILE", help="measure faces with MediaPipe: its face_landmarker.task")
    networks.add_argument("--recognizer", metavar="NAME", help="face recogniser: folder, or vision model of the Hub")
    networks.add_argument("--sync-expert", metavar="DIR", help="this project's sync expert")
    networks.add_argument("--capp", metavar="DIR", help="this project's CAPP")
    networks.add_argument("--syncnet", metavar="DIR", help="SyncNet, from `vasa-hf convert syncnet`")
    networks.add_argument("--lpips", metavar="DIR", help="LPIPS, from `vasa-hf convert lpips`")
    networks.add_argument("--fid-network", metavar="FILE", help="Inception as TorchScript")
    networks.add_argument("--fvd-network", metavar="FILE", help="I3D as TorchScript")


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

    packages = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "moviepy", "gradio")
    packages += ("gsplat", "viser")
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
    from vasa_hf.bench import avatars, live, marks, renderer, runs, serve, talking

    threads = None if options.threads is None else shared.parse_numbers("threads", options.threads)
    for count in threads or ():
        shared.check_threads(int(count) if count == int(count) else count)
    shared_options = {"num_inference_steps": options.steps, "output_size": options.size}
    only: dict[str, dict[str, Any]] = {"2d": {"seconds": options.seconds, **shared_options}}
    only |= dict.fromkeys((*_SYSTEMS, "live"), only["2d"])
    only["serve"] = {"seconds": options.seconds, "sessions": options.sessions, "output_size": options.size}
    only["3d"] = {"avatar": options.avatar, "gaussians": options.gaussians, "fit": options.fit, **shared_options}
    only["renderer"] = {"batch": options.batch, "repeats": options.repeats}
    only["marks"] = {"data": options.data, "limit": options.limit, "unmarked": options.unmarked}
    own = only[options.what]
    others = {name: value for kind in only.values() for name, value in kind.items() if name not in own}
    if unused := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"`{unused[0]}` has no effect with {options.what!r}.")
    for name in ("limit", "unmarked"):
        if (count := getattr(options, name)) is not None and count < 0:
            raise ValueError(f"`{name}` must be at least 0, got {count}.")
    shared.find_device(options.device)
    settings = {**own, "model": options.model}
    if options.what in _SYSTEMS:
        model, pipeline = _SYSTEMS[options.what]
        chosen = shared.find_embedded(model) if options.model is None else options.model
        settings |= {"model": chosen, "pipeline": pipeline}
    if options.what == "live" and options.model is not None:
        settings["pipeline"] = read_index(resolve(options.model)).get("_class_name", "VasaTalkingFacePipeline")
    if options.what == "3d":
        settings["num_gaussians"] = settings.pop("gaussians")
    modules = {"3d": avatars, "live": live, "serve": serve, "renderer": renderer, "marks": marks}
    module: Any = modules.get(options.what, talking)
    results = runs.compare(
        [None] if threads is None else [int(count) for count in threads],
        module.__name__,
        device=options.device,
        **{name: value for name, value in settings.items() if value is not None},
    )
    print(json.dumps(results) if options.json else module.format_results(results))
    return 0


def _eval(options: argparse.Namespace) -> int:
    from vasa_hf.evaluation import catalogue, evaluate, tables
    from vasa_hf.evaluation.networks import load_networks

    for name in ("limit", "samples", "transfers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}.")
    parts, metrics = (None if text is None else text.split(",") for text in (options.parts, options.metrics))
    catalogue.check_names(parts, metrics)
    if options.remake:
        shared.refuse_ignored(options, {"output", "remake", "parts", "metrics"}, "remake")
        tables.remake(options.output)
        missing = evaluate.missing_metrics(options.output, parts, metrics)
    else:
        if options.data is None:
            raise ValueError("`data` must be given: --data DIR (or --remake).")
        if not os.path.isdir(options.data):
            raise ValueError(f"`data` must be an existing folder, got {options.data!r}.")
        pipe, avatars, model, reference = _load_evaluated(options)
        detector = None
        if options.mediapipe is not None:
            from vasa_hf import MediaPipeFaceAnalyzer

            detector = MediaPipeFaceAnalyzer(options.mediapipe, pipe.face_analyzer.canonical)
        named = {name: getattr(options, name) for name in _NETWORKS}
        missing = evaluate.evaluate(
            pipe,
            options.data,
            options.output,
            parts,
            metrics=metrics,
            networks=load_networks(resolve(model), options.device, **named),
            limit=options.limit,
            samples=options.samples,
            transfers=options.transfers,
            seed=options.seed,
            sheets=options.sheets,
            detector=detector,
            avatars=avatars,
            reference=reference,
        )
    for name in missing:
        print(f"vasa-hf: not computed: {name}", file=sys.stderr)
    print(os.path.join(options.output, "table.md"))
    return 1 if missing else 0


def _load_evaluated(options: argparse.Namespace) -> tuple[Any, dict[str, Any] | None, str, Any]:
    """Load the pipeline; return it, loaders of avatars by name, the model with the metrics' networks, the reference."""
    embedded = {"vasa3d": "vasa3d-small", **{name: model for name, (model, _) in _SYSTEMS.items()}}
    if options.model in embedded:
        options.model = shared.find_embedded(embedded[options.model])
    folder = resolve(options.model)
    about = read_index(folder)
    if about.get("_class_name") != "Vasa3DAvatarPipeline":
        if options.fit is not None:
            raise ValueError(f"`fit` needs --pipeline vasa3d, got {options.model!r}.")
        if options.avatars is not None:
            raise ValueError(f"`avatars` needs --pipeline vasa3d, got {options.model!r}.")
        kind = about.get("_class_name", "VasaTalkingFacePipeline")
        own = kind not in ("ModaTalkingHeadPipeline", "JoyVasaTalkingHeadPipeline", "GaiaAvatarPipeline")
        pipe = shared.load_pipeline(options, "VasaTalkingFacePipeline" if own else kind.replace("JoyVasa", "Moda"))
        if own:
            return pipe, None, options.model, None
        options.model = _REFERENCE  # the sync expert and CAPP read VASA-1's motion and audio
        return pipe, None, _REFERENCE, shared.load_pipeline(options)

    from vasa_hf.evaluation.avatars import fit_clips, load_eval_avatar
    from vasa_hf.evaluation.data import EvalData

    pipe = shared.load_pipeline(options, "Vasa3DAvatarPipeline")
    pipe.set_progress_bar_config(disable=True)
    if options.fit is not None:
        if options.avatars is not None:
            raise ValueError("`avatars` has no effect with --fit: leave one of them out.")
        clips, made = EvalData(options.data, options.limit).clips, os.path.join(options.output, "avatars")
        fitted = fit_clips(pipe, clips, made, options.fit, options.seed)
        return pipe.talking_face, fitted, base_name(about) or options.model, None
    names = pipe.avatars if options.avatars is None else [name.rstrip("/") for name in options.avatars.split(",")]
    if not names:
        raise ValueError(f"`avatars` must be given: {options.model!r} has none of its own.")
    size, loaders = pipe.talking_face.output_sizes[0], {}
    for name in names:
        place = os.path.join(folder, "avatars", name) if name in pipe.avatars else name
        title = os.path.basename(name)
        loaders[name if title in loaders else title] = partial(load_eval_avatar, pipe, name, place, size)
    return pipe.talking_face, loaders, base_name(about) or options.model, None
