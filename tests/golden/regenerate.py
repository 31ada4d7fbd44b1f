"""Golden values of all pipelines: what fixed seeds gave when they were recorded, in `pipelines.json`.

    python -m tests.golden.regenerate        writes the file; only for a change that is meant to change outputs

On the machine that recorded them, outputs must be equal bit for bit. Others sum in another order, so that there the
sampled values are compared, with a tolerance.
"""

import hashlib
import json
import platform
from pathlib import Path

import numpy as np
import torch

import vasa_hf
from tests.testing_utils.avatars import make_avatar
from tests.testing_utils.pipelines import (
    BOX,
    generator,
    make_audio,
    make_image,
    make_joyvasa_components,
    make_moda_components,
    make_vasa1_components,
)
from vasa_hf import (
    JoyVasaTalkingHeadPipeline,
    LivePortraitPipeline,
    ModaTalkingHeadPipeline,
    OrbitCamera,
    Vasa3DAvatarPipeline,
    VasaTalkingFacePipeline,
)
from vasa_hf.media.audio import load_audio

FILE = Path(__file__).with_name("pipelines.json")
ASSETS = Path(vasa_hf.__file__).parent / "assets"
SAMPLED = 48


def machine():
    """What bit-for-bit equality depends on."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def voice(seconds=1.0):
    samples, rate = load_audio(ASSETS / "voice.flac")
    return samples[:, : round(seconds * rate)], rate


def pieces(audio, size=1000):
    return [audio[i : i + size] for i in range(0, len(audio), size)]


def streamed(chunks):
    chunks = list(chunks)
    return {
        "motion": torch.cat([chunk.motion for chunk in chunks], dim=1),
        "frames": torch.cat([chunk.frames for chunk in chunks]),
        "audio": torch.from_numpy(np.concatenate([chunk.audio for chunk in chunks])),
    }


def called(out):
    return {"motion": out.motion, "frames": out.frames}


def driving(count=3):
    return [np.roll(make_image(7), 2 * i, axis=1) for i in range(count)]


def vasa1_cases():
    """The embedded weights: call, stream, animate, render."""
    pipe, portrait = quiet(VasaTalkingFacePipeline.from_pretrained("vasa-small")), ASSETS / "portrait.jpg"
    options = {"num_inference_steps": 3, "fps": 10, "output_type": "pt"}
    out = pipe(portrait, voice(), generator=generator(), emotion={"happy": 0.5}, gaze=(0.1, 0.0), **options)
    yield "call", called(out)
    yield "stream", streamed(pipe.stream(portrait, voice(0.6), generator=generator(), first_window=12, **options))
    yield "animate", called(pipe.animate(portrait, driving(2), driving_box=BOX, output_type="pt"))
    yield "render", called(pipe.render(portrait, out.motion[:, :5], fps=10, relative=True, output_type="pt"))


def vasa3d_cases():
    """A packaged avatar: call, stream, animate, render."""
    pipe = quiet(Vasa3DAvatarPipeline.from_pretrained("vasa3d-small"))
    who = pipe.avatars[0]
    options = {"num_inference_steps": 3, "fps": 10, "output_type": "pt", "output_size": 48}
    out = pipe(who, voice(), generator=generator(), camera=OrbitCamera(period_seconds=1.0), **options)
    yield "call", called(out)
    chunks = pipe.stream(who, voice(0.6), generator=generator(), camera="orbit", **options)
    yield "stream", streamed(chunks)
    seen = {"output_size": 48, "output_type": "pt"}
    yield "animate", called(pipe.animate(who, driving(), driving_box=BOX, fps=12, camera="orbit", **seen))
    yield "render", called(pipe.render(who, out.motion[:, :6], fps=10, background=(0.2, 0.3, 0.4), **seen))


def moda_cases():
    """The embedded weights: call, stream, animate, render, retarget."""
    pipe, portrait = quiet(ModaTalkingHeadPipeline.from_pretrained("moda-small")), ASSETS / "portrait.jpg"
    options = {"num_inference_steps": 3, "fps": 10, "output_type": "pt"}
    out = pipe(portrait, voice(), generator=generator(), emotion="happiness", expression={"smile": 0.5}, **options)
    yield "call", called(out)
    yield "stream", streamed(pipe.stream(portrait, voice(0.6), generator=generator(), **options))
    yield "animate", called(pipe.animate(portrait, driving(2), driving_box=BOX, output_type="pt"))
    yield "render", called(pipe.render(portrait, out.motion[:, :5], fps=10, relative=True, output_type="pt"))
    yield "retarget", {"frames": torch.from_numpy(np.array(pipe.retarget(portrait, eyes=0.1, lips=0.3)))}


def tiny_vasa1_cases():
    """Many windows, batches and other rates, with tiny random weights."""
    pipe, options = quiet(VasaTalkingFacePipeline(**make_vasa1_components())), {"num_inference_steps": 3, "box": BOX}
    options["output_type"] = "pt"
    controls = {"gaze": [(0.0, (0.1, 0.0)), (1.0, (0.0, 0.2))], "head_distance": 1.5, "emotion": None}
    audios, seeds = [make_audio(1.3, 0), make_audio(0.5, 1)], [generator(0), generator(1)]
    out = pipe(make_image(), audios, generator=seeds, fps=30, head_motion=0.5, **controls, **options)
    yield "batch", {"motion": out.motion, "frames 0": out.frames[0], "frames 1": out.frames[1]}
    chunks = pipe.stream(
        make_image(), pieces(make_audio(1.37)), generator=generator(), fps=30, first_window=5, **options
    )
    yield "stream", streamed(chunks)


def tiny_vasa3d_cases():
    """The same for avatars of random Gaussians."""
    pipe, options = quiet(Vasa3DAvatarPipeline(**make_vasa1_components())), {"num_inference_steps": 3}
    options |= {"output_type": "pt", "output_size": 32, "camera": OrbitCamera(period_seconds=1.0)}
    audios, seeds = [make_audio(1.3, 0), make_audio(0.5, 1)], [generator(0), generator(1)]
    out = pipe(make_avatar(), audios, generator=seeds, fps=30, **options)
    yield "batch", {"motion": out.motion, "frames 0": out.frames[0], "frames 1": out.frames[1]}
    yield "stream", streamed(pipe.stream(make_avatar(), pieces(make_audio(1.37)), generator=generator(), **options))


def tiny_head_cases(pipe):
    """Call, stream, animate, render and retarget for keypoint portraits, with tiny random weights."""
    options = {"num_inference_steps": 3, "box": BOX, "output_type": "pt"}
    audios, seeds = [make_audio(1.3, 0), make_audio(0.5, 1)], [generator(0), generator(1)]
    out = pipe(make_image(), audios, generator=seeds, fps=30, head_motion=0.5, **options)
    yield "batch", {"motion": out.motion, "frames 0": out.frames[0], "frames 1": out.frames[1]}
    yield "stream", streamed(pipe.stream(make_image(), pieces(make_audio(1.37)), generator=generator(), **options))
    yield from tiny_driving_cases(pipe)


def tiny_driving_cases(pipe):
    drawn = {"box": BOX, "output_type": "pt"}
    out = pipe.animate(make_image(), driving(), driving_box=BOX, expression_friendly=True, lip_ratio=0.3, **drawn)
    yield "animate", called(out)
    again = pipe.render(make_image(2), out.motion, relative=True, region="expression", stitching=False, **drawn)
    yield "render", called(again)
    picture = pipe.retarget(make_image(), eyes=0.1, expression={"smile": 0.5}, rotation_deg=(5, 0, 0), box=BOX)
    yield "retarget", {"frames": torch.from_numpy(np.array(picture))}


def cases():
    """Name -> generator of (name, outputs)."""
    renderer = ("face_analyzer", "image_processor", "renderer")
    return {
        "vasa1": vasa1_cases,
        "vasa3d": vasa3d_cases,
        "moda": moda_cases,
        "tiny vasa1": tiny_vasa1_cases,
        "tiny vasa3d": tiny_vasa3d_cases,
        "tiny moda": lambda: tiny_head_cases(quiet(ModaTalkingHeadPipeline(**make_moda_components()))),
        "tiny joyvasa": lambda: tiny_head_cases(quiet(JoyVasaTalkingHeadPipeline(**make_joyvasa_components()))),
        "tiny liveportrait": lambda: tiny_driving_cases(
            quiet(LivePortraitPipeline(**{name: make_moda_components()[name] for name in renderer}))
        ),
    }


def record(value):
    """Shape, digest and some values of a tensor."""
    value = value.detach().cpu().contiguous()
    flat = value.flatten()
    index = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat))).long()
    return {
        "shape": list(value.shape),
        "sha256": hashlib.sha256(value.numpy().tobytes()).hexdigest(),
        "values": [float(f"{number:.7g}") for number in flat[index].double().tolist()],
    }


def run(name):
    """All outputs of one case, recorded; with one thread, as sums depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            f"{name}, {part}, {output}": record(value)
            for part, outputs in cases()[name]()
            for output, value in outputs.items()
        }
    finally:
        torch.set_num_threads(threads)


def main():
    values = {key: value for name in cases() for key, value in run(name).items()}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    text = f'{{\n "machine": {json.dumps(machine())},\n "outputs": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    FILE.write_text(text)
    print(f"{len(values)} outputs in {FILE}")


if __name__ == "__main__":
    main()
