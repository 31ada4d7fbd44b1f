"""Sample sheets: what trainings draw into their output folder."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor


def draw_curves(curves: dict[str, list[np.ndarray]], size: tuple[int, int] = (420, 110)) -> Image.Image:
    """Sheet of small line plots, one row a name: real motion in grey, then generated motion in colours."""
    colours = [(150, 150, 150), (200, 40, 40), (40, 90, 200), (30, 140, 60)]
    width, height = size
    sheet = Image.new("RGB", (width, height * len(curves)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, lines) in enumerate(curves.items()):
        low, high = min(line.min() for line in lines), max(line.max() for line in lines)
        for line, colour in zip(lines, colours, strict=False):
            x = np.linspace(4, width - 4, len(line))
            y = height * (row + 1) - 6 - (line - low) / (high - low + 1e-6) * (height - 24)
            draw.line([*zip(x.tolist(), y.tolist(), strict=True)], fill=colour, width=1)
        draw.text((4, row * height + 2), f"{name}  [{low:.2f}, {high:.2f}]", fill="black")
    return sheet


def save_columns(sheets: list[Image.Image], path: Path) -> None:
    """Write sheets of one size next to each other."""
    sheet = Image.new("RGB", (sum(part.width for part in sheets), sheets[0].height))
    for index, part in enumerate(sheets):
        sheet.paste(part, (index * part.width, 0))
    sheet.save(path)


def save_images(images: Tensor, path: Path) -> None:
    """Write images `(3, height, width)` in [-1, 1] as a file."""
    pixels = ((images.clamp(-1, 1).permute(1, 2, 0) + 1) * 127.5).round().byte().cpu().numpy()
    Image.fromarray(pixels).save(path)
