"""Quality of an avatar by the size of its training data and by its iterations (VASA-3D §4.1.1, Fig. 3).

    python -m vasa_hf.evaluation.fit_study me.jpg -o study --minutes 5 10 30 --iterations 20000 200000

Each pair is a fit of its own in `study/MINUTESmin_ITERATIONS`; one that is there is not made again. All are judged on
the same motion of a voice that no fit was given, against VASA-1's frames. `study/psnr.csv` has a row for each.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vasa_hf import Vasa3DAvatarPipeline
from vasa_hf.evaluation.avatars import load_eval_avatar
from vasa_hf.files import write_csv
from vasa_hf.geometry.crops import WHOLE_PICTURE_BOX
from vasa_hf.metrics.image import psnr
from vasa_hf.metrics.motion import FPS

_VOICE = Path(__file__).resolve().parents[1] / "assets" / "voice.flac"


def study_fits(
    pipe: Vasa3DAvatarPipeline,
    image: Any,
    output: str | os.PathLike,
    minutes: Sequence[float],
    iterations: Sequence[int],
    test_audio: Any,
    preset: str = "paper",
    seed: int = 0,
    **options: Any,
) -> list[dict[str, float]]:
    """Fit an avatar for each pair of sizes, and measure all of them.

    Args:
        pipe (`Vasa3DAvatarPipeline`): Fits and renders.
        image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The portrait.
        output (`str` or `os.PathLike`): Folder.
        minutes (`Sequence[float]`): Lengths of the training videos.
        iterations (`Sequence[int]`): Numbers of iterations, without those of the CAS loss.
        test_audio (`Any`): Voice of the test video, as the pipeline takes it; not one of the fit's.
        preset (`str`, *optional*, defaults to "paper"): See `pipe.fit`.
        seed (`int`, *optional*, defaults to 0): Of fits and test motion.
        **options: As for `pipe.fit`.

    Returns:
        `list[dict]`: `minutes`, `iterations` and `psnr` in dB.
    """
    face, rows, truth = pipe.talking_face, [], None
    for length, steps in itertools.product(minutes, iterations):
        folder = Path(output) / f"{length:g}min_{steps}"
        if not (folder / "config.json").is_file():
            sizes: dict[str, Any] = {
                "motion_minutes": length,
                "num_frames": round(60 * FPS * length),
                "iterations": steps,
            }
            sizes |= {"sharpen_iterations": 0, "max_minutes": None}
            generator = torch.Generator().manual_seed(seed)
            pipe.fit(image, preset, output=folder, generator=generator, **{**sizes, **options})
        avatar = load_eval_avatar(pipe, str(folder), folder, face.output_sizes[0])
        if truth is None:  # the cut-out portrait is the same in all fits
            picture = avatar.portrait()
            portrait = face.prepare_portrait(picture, box=[picture.width * share for share in WHOLE_PICTURE_BOX])
            generator = torch.Generator().manual_seed(seed + 1)
            motion = face(portrait, test_audio, generator=generator, output_type="latent").motion[0].cpu()
            truth = face.render(portrait, motion, output_type="pt").frames
        value = float(psnr(avatar.show(motion, 0.0, True), truth).mean())
        rows.append({"minutes": length, "iterations": steps, "psnr": round(value, 3)})
        write_csv(Path(output) / "psnr.csv", rows)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="portrait")
    parser.add_argument("-o", "--output", required=True, help="folder")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 10, 20, 30, 60, 120, 300, 600])
    parser.add_argument("--iterations", type=int, nargs="+", default=[20_000, 50_000, 100_000, 200_000, 400_000])
    parser.add_argument("--videos", nargs="+", help="clips that drive the training frames")
    parser.add_argument("--audios", nargs="+", help="voices that drive them")
    parser.add_argument("--test-audio", default=str(_VOICE), help="voice of the test video (the package's own)")
    parser.add_argument("--preset", default="paper", help="settings of the fits (%(default)s)")
    parser.add_argument("--model", default="vasa3d-small", help="pipeline (%(default)s)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if not options.videos and not options.audios:
        parser.error("--videos or --audios must be given: the package's own voice is the test's")
    pipe = Vasa3DAvatarPipeline.from_pretrained(options.model).to(options.device)
    chosen = {
        name: getattr(options, name) for name in ("image", "output", "minutes", "iterations", "test_audio", "preset")
    }
    rows = study_fits(pipe, **chosen, videos=options.videos, audios=options.audios)
    print("| minutes | " + " | ".join(f"{steps:,} iterations" for steps in options.iterations) + " |")
    print("| ---: |" + " ---: |" * len(options.iterations))
    for length in options.minutes:
        cells = [f"{row['psnr']:.2f}" for row in rows if row["minutes"] == length]
        print(f"| {length:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
