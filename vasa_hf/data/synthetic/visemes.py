"""From phones to lips: coarticulation, and the shapes of a head that make the wanted lips.

Not in the paper: VASA-1 learns lips from videos. Here each phone pulls at opening, rounding, spreading, lower lip and
lip contact with a strength and reach of its own, after the dominance functions of Cohen and Massaro (1993); vowels
carry through the consonants between them, rounding begins early, closures of p, b and m are complete.
"""

import numpy as np

from vasa_hf.data.synthetic.speech import ARTICULATION, Speech

FPS = 25
RATE = 100
CLOSURES = frozenset("pbm")
OPEN_GAP = 0.24  # lip gap of a full "aa" over the distance of the outer eye corners, as wide as presenters open at most
# Columns of `articulate`.
OPENING, ROUND, SPREAD, TUCK, CONTACT = range(5)
_VOWELS = frozenset("aa ae ah ao aw ay eh er ey ih iy ow oy uh uw ue oe".split())
_LABIODENTAL, _FIRM = frozenset("fv"), frozenset(("sh", "zh", "ch", "jh", "w", "s", "z"))
_REST_SECONDS = 0.16  # pauses at least this long let the mouth come to rest


def _phone_rows(speech: Speech) -> list[tuple[str, float, float]]:
    """Phones whose short gaps belong to the phone before, and long pauses cut into a release, rest and an onset."""
    rows: list[tuple[str, float, float]] = []
    for phone, start, end in speech.phones:
        if phone == "sil" and end - start < _REST_SECONDS and rows:
            rows[-1] = (rows[-1][0], rows[-1][1], end)
        else:
            rows.append((phone, start, end))
    return rows


def articulate(speech: Speech, num_frames: int) -> np.ndarray:  # [num_frames, 5]
    """Opening, rounding, spreading, lower-lip tuck and lip contact of each frame, 0..1, 25 frames per second.

    Args:
        speech (`Speech`): Audio and phones.
        num_frames (`int`): Length; after the speech's end the mouth is at rest.
    """
    rows = _phone_rows(speech)
    rows.append(("sil", rows[-1][2] if rows else 0.0, num_frames / FPS + 1.0))
    names = [name for name, _, _ in rows]
    start, end = np.array([row[1:] for row in rows]).T
    table = np.array([ARTICULATION[name] for name in names])
    vowel = np.isin(names, list(_VOWELS))
    rest = np.array([name == "sil" for name in names])
    closed = np.isin(names, list(CLOSURES))
    tuck = np.isin(names, list(_LABIODENTAL))
    firm = np.isin(names, list(_FIRM))
    target = np.stack(
        [table[:, 0], (-table[:, 1]).clip(0), table[:, 1].clip(0), tuck.astype(float), np.zeros(len(names))], 1
    )
    target[closed, OPENING] = 0.1  # the jaw; the lips meet by contact
    # Strength of each phone's pull on opening, rounding, spreading, tuck; what it does not care for it pulls at weakly.
    strength = np.stack(
        [
            np.where(vowel, 1.0, np.where(closed | tuck | firm, 1.0, 0.55)),
            np.where(np.abs(table[:, 1]) > 0.35, 1.2, np.where(vowel, 0.6, 0.15)),
            np.where(np.abs(table[:, 1]) > 0.35, 1.0, np.where(vowel, 0.6, 0.2)),
            np.where(tuck, 1.5, 0.8),
        ],
        1,
    )
    strength[rest] = 3.0
    # Time constants in seconds: of the way in (anticipation) and out.
    before = np.tile([0.045, 0.085, 0.06, 0.035], (len(names), 1))
    after = np.tile([0.05, 0.06, 0.06, 0.035], (len(names), 1))
    before[rest], after[rest] = 0.03, 0.03
    # Four samples per frame, averaged: the shutter of a camera.
    time = (np.arange(num_frames * 4) + 0.5)[:, None] / RATE
    distance_in, distance_out = (start - time).clip(0), (time - end).clip(0)  # [T, P]
    near = ((distance_in < 0.6) & (distance_out < 0.6)).astype(float) + 1e-12
    out = np.zeros((num_frames, 5))
    for channel in range(4):
        pull = strength[:, channel] * near
        pull = pull * np.exp(-distance_in / before[:, channel] - distance_out / after[:, channel])
        value = (pull @ target[:, channel]) / (pull.sum(1) + 1e-12)
        out[:, channel] = value.reshape(-1, 4).mean(1)
    out[:, CONTACT] = _contact(start[closed], end[closed], start[rest], end[rest], num_frames)
    return out


def _contact(start, end, rest_start, rest_end, num_frames: int) -> np.ndarray:
    """Lip contact [num_frames]: complete in p, b, m for a frame at least; lips at rest touch, too."""
    middle = (np.arange(num_frames) + 0.5) / FPS
    contact = np.zeros(num_frames)
    for begin, stop in zip(start, end, strict=True):
        distance = np.maximum(begin - middle, middle - stop).clip(0)
        contact = np.maximum(contact, (1 - distance / 0.06).clip(0, 1) ** 1.5)
        nearest = int(np.abs(middle - (begin + stop) / 2).argmin())
        contact[nearest] = 1.0
    for begin, stop in zip(np.where(rest_start > 0, rest_start, -1.0), rest_end, strict=True):
        # After speech lips take a while; before it they part a little early.
        easing = np.minimum((middle - begin) / 0.14, (stop - middle) / 0.12).clip(0, 1)
        contact = np.maximum(contact, easing * easing * (3 - 2 * easing))
    return contact


def mouth_shapes(
    articulation: np.ndarray,  # [F, 5]
    gap_of_shape: dict[str, float],
    own_gap: float,
    amplitude: np.ndarray | float = 1.0,  # [F]
    extra_gap: np.ndarray | float = 0.0,  # [F]
) -> dict[str, np.ndarray]:
    """Weights of a head's shapes whose lips have exactly the wanted gap.

    Args:
        articulation (`numpy.ndarray` of shape `(frames, 5)`): From `articulate`.
        gap_of_shape (`dict` of `str` to `float`): Lip gap that each shape at weight 1 adds (both sides of pairs
            together), signed, over the outer eye distance; see `HeadPoints.gap_of_shape`.
        own_gap (`float`): Gap of the head without any of these.
        amplitude (`numpy.ndarray` of shape `(frames,)` or `float`, defaults to 1): How far this speaker opens.
        extra_gap (`numpy.ndarray` of shape `(frames,)` or `float`, defaults to 0): What other shapes, of emotions,
            add to the gap; it is taken back.

    Returns:
        `dict` of `str` to `numpy.ndarray` of shape `(frames,)`: Weights 0..1 by name, for both sides of pairs.
    """
    opening, rounding, spread, tuck, contact = articulation.T
    loose = (1 - contact).clip(0, 1)
    wanted = OPEN_GAP * opening * amplitude * loose * (1 - 0.85 * tuck)
    shapes = {
        "mouthFunnel": 0.45 * rounding * (0.4 + 0.6 * opening) * loose,
        "mouthPucker": 0.55 * rounding,
        "mouthStretch": 0.32 * spread,
        "mouthSmile": 0.12 * spread,
        "mouthUpperUp": (0.10 * opening + 0.12 * tuck) * loose,
        "mouthLowerDown": 0.35 * opening * loose * (1 - tuck),
        "mouthRollLower": 0.55 * tuck,
        "mouthPress": 0.35 * contact * (opening > 0.06),
    }
    jaw = 0.55 * opening * amplitude  # continues while lips are shut
    gap = own_gap + extra_gap + jaw * gap_of_shape["jawOpen"]
    gap = gap + sum(weight * gap_of_shape[name] for name, weight in shapes.items())
    more = (wanted - gap).clip(0) / gap_of_shape["jawOpen"]
    shapes["jawOpen"] = jaw + more
    shapes["mouthClose"] = (gap - wanted).clip(0) / -gap_of_shape["mouthClose"]
    return {name: np.clip(weight, 0, 1) for name, weight in shapes.items()}
