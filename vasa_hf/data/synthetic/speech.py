"""Synthetic speech whose phones and their times are known exactly.

Two free synthesisers, whichever is installed: espeak-ng (the library, called through ctypes: it reports each phone with
its first sample; a hundred languages and voices) and flite (the command; a few recorded English voices). Their phone
names are mapped to one set, `PHONES`, and from there to what a camera would see (`ARTICULATION`).
"""

import ctypes
import ctypes.util
import functools
import re
import shutil
import subprocess
import threading
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vasa_hf.files import temporary_folder
from vasa_hf.processors.audio import resample

# phone: (lip opening 0..1, width -1 rounded .. 1 spread, lips pressed 0..1). Chosen after phonetics textbooks.
ARTICULATION = {
    "sil": (0.0, 0.0, 0.3),
    "aa": (1.0, 0.0, 0.0),
    "ae": (0.85, 0.5, 0.0),
    "ah": (0.6, 0.0, 0.0),
    "ao": (0.7, -0.6, 0.0),
    "aw": (0.8, -0.3, 0.0),
    "ay": (0.8, 0.3, 0.0),
    "eh": (0.6, 0.5, 0.0),
    "er": (0.4, -0.3, 0.0),
    "ey": (0.5, 0.7, 0.0),
    "ih": (0.35, 0.5, 0.0),
    "iy": (0.3, 0.9, 0.0),
    "ow": (0.5, -0.8, 0.0),
    "oy": (0.5, -0.4, 0.0),
    "uh": (0.3, -0.6, 0.0),
    "uw": (0.2, -1.0, 0.0),
    "ue": (0.25, -0.9, 0.0),
    "oe": (0.45, -0.7, 0.0),
    "p": (0.0, 0.0, 1.0),
    "b": (0.0, 0.0, 1.0),
    "m": (0.0, 0.0, 1.0),
    "f": (0.1, 0.2, 0.5),
    "v": (0.1, 0.2, 0.5),
    "t": (0.25, 0.3, 0.0),
    "d": (0.25, 0.3, 0.0),
    "n": (0.25, 0.3, 0.0),
    "l": (0.35, 0.2, 0.0),
    "s": (0.15, 0.5, 0.0),
    "z": (0.15, 0.5, 0.0),
    "th": (0.25, 0.2, 0.0),
    "dh": (0.25, 0.2, 0.0),
    "sh": (0.25, -0.6, 0.0),
    "zh": (0.25, -0.6, 0.0),
    "ch": (0.25, -0.5, 0.0),
    "jh": (0.25, -0.5, 0.0),
    "k": (0.35, 0.0, 0.0),
    "g": (0.35, 0.0, 0.0),
    "ng": (0.35, 0.0, 0.0),
    "x": (0.4, 0.0, 0.0),
    "hh": (0.4, 0.0, 0.0),
    "q": (0.4, 0.0, 0.0),
    "r": (0.3, -0.4, 0.0),
    "rr": (0.35, 0.1, 0.0),
    "w": (0.1, -1.0, 0.2),
    "y": (0.25, 0.7, 0.0),
}
PHONES = tuple(ARTICULATION)
PHONE_IDS = {phone: index for index, phone in enumerate(PHONES)}

# IPA symbols of espeak-ng for each phone; marks of length, stress, tone and the like are dropped before.
_IPA = {
    "aa": "a ɑ ä", "ae": "æ", "ah": "ʌ ə ɐ ᵻ", "ao": "ɔ ɒ", "aw": "aʊ au ɑʊ", "ay": "aɪ ai aj ɑɪ", "eh": "ɛ",
    "er": "ɜ ɚ ɝ", "ey": "e eɪ ei ej", "ih": "ɪ", "iy": "i ɨ", "ow": "o ɤ oʊ ou əʊ", "oy": "ɔɪ oi ɔʏ ɔø ɔy", "uh": "ʊ",
    "uw": "u ʉ ɯ", "ue": "y ʏ", "oe": "ø œ ɵ ɶ", "p": "p", "b": "b β", "m": "m", "f": "f ɸ", "v": "v ʋ", "t": "t ʈ",
    "d": "d ɖ", "n": "n ɲ ɳ", "l": "l ɫ ɭ ʎ ɬ", "s": "s ts", "z": "z", "th": "θ", "dh": "ð", "sh": "ʃ ʂ ɕ",
    "zh": "ʒ ʐ ʑ", "ch": "tʃ tɕ tʂ cç", "jh": "dʒ dʑ dʐ ɟʝ", "k": "k c q", "g": "g ɡ ɟ ɢ ʛ", "ng": "ŋ ɴ",
    "x": "x χ ɣ ħ ç ʁ", "hh": "h ɦ", "q": "ʔ ʕ", "r": "ɹ ɻ", "rr": "r ɾ ɽ", "w": "w ɥ ʍ", "y": "j ʝ",
}  # fmt: skip
_FROM_IPA = {symbol: phone for phone, symbols in _IPA.items() for symbol in symbols.split()}
_ARPABET = {"pau": "sil", "ssil": "sil", "h#": "sil", "ax": "ah", "axr": "er", "ix": "ih", "hv": "hh", "dx": "rr"}
_ARPABET |= {"el": "l", "em": "m", "en": "n", "nx": "n", "ux": "uw"}


def phone_from_ipa(symbol: str) -> str | None:
    """Map one IPA symbol of espeak-ng to `PHONES`; `None` for marks that are not spoken (a switch of language)."""
    if symbol.startswith("("):
        return None
    core = re.sub(r"[ːˈˌˑ̩̯̪̃͡ʲʰʷˤˠ0-9'\-|.~^\"_;: ]|[̀-ͯ˥-˩↑↓]", "", symbol)
    if not core:
        return "sil"
    for length in (2, 1):
        if core[:length] in _FROM_IPA:
            return _FROM_IPA[core[:length]]
    return None


def phone_from_arpabet(symbol: str) -> str | None:
    """Map one phone name of flite to `PHONES`."""
    symbol = symbol.lower().rstrip("012")
    symbol = _ARPABET.get(symbol, symbol)
    return symbol if symbol in PHONE_IDS else None


@dataclass
class Speech:
    """One utterance with its phones.

    Args:
        samples (`np.ndarray` of shape `(n,)`): Mono audio, float32, full scale = 1.
        sampling_rate (`int`): Its rate in Hz.
        phones (`list[tuple[str, float, float]]`): `(phone, start_s, end_s)`, without gaps, names from `PHONES`.
        voice (`str`): Synthesiser and voice, "espeak:de+f2".
    """

    samples: np.ndarray
    sampling_rate: int
    phones: list[tuple[str, float, float]]
    voice: str = ""

    def phone_ids(self, num_frames: int, frame_rate: float = 50.0) -> np.ndarray:  # [num_frames]
        """Phone in the middle of each frame as an index into `PHONES`; silence after the end."""
        ids = np.zeros(num_frames, np.int64)
        middle = (np.arange(num_frames) + 0.5) / frame_rate
        for phone, start, end in self.phones:
            ids[(middle >= start) & (middle < end)] = PHONE_IDS[phone]
        return ids


def articulation(
    phone_ids: np.ndarray,  # [n]
    frame_rate: float = 50.0,
    smoothing_seconds: float = 0.05,
) -> np.ndarray:  # [n, 3]
    """Lip opening, width and closure of a phone sequence, smoothed in time as lips move; closures are kept sharp."""
    table = np.array([ARTICULATION[phone] for phone in PHONES], np.float32)
    target = table[phone_ids]
    radius = max(1, round(2 * smoothing_seconds * frame_rate))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / (smoothing_seconds * frame_rate)) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(target, ((radius, radius), (0, 0)), mode="edge")
    smooth = np.stack([np.convolve(padded[:, c], kernel, mode="valid") for c in range(3)], 1)
    closed = target[:, 2:] >= 1.0
    smooth[:, :1] = np.where(closed, 0.3 * smooth[:, :1], smooth[:, :1])
    smooth[:, 2:] = np.where(closed, 1.0, smooth[:, 2:])
    return smooth.astype(np.float32)


# --- espeak-ng ------------------------------------------------------------------------------------------------------


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_EVENT_END, _EVENT_PHONEME = 0, 7
_OUTPUT_SYNCHRONOUS, _PHONEME_EVENTS_IN_IPA, _CHARS_UTF8 = 2, 3, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Espeak:
    """The library keeps one state for the whole process: one instance, one utterance at a time."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        self.lock = threading.Lock()
        self.sampling_rate = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, None, _PHONEME_EVENTS_IN_IPA)
        if self.sampling_rate <= 0:
            raise OSError("espeak-ng did not start: its data folder is missing.")
        self.callback = _CALLBACK(self._receive)
        library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                name = bytes(event.id.string).split(b"\0")[0].decode("utf-8", "ignore")
                self.events.append((event.sample, name))
            index += 1
        return 0

    def say(self, text: str, voice: str, words_per_minute: int, pitch: int, pitch_range: int) -> Speech:
        with self.lock:
            self.chunks: list[np.ndarray] = []
            self.events: list[tuple[int, str]] = []
            if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"`voice` must be a voice of espeak-ng (`espeak-ng --voices`); got {voice!r}.")
            for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_RANGE, pitch_range)):
                self.library.espeak_SetParameter(parameter, int(value), 0)
            data = text.encode() + b"\0"
            self.library.espeak_Synth(data, len(data), 0, 1, 0, _CHARS_UTF8, None, None)
            self.library.espeak_Synchronize()
        samples = np.concatenate(self.chunks) if self.chunks else np.zeros(0, np.int16)
        named = [(sample, phone_from_ipa(name)) for sample, name in self.events]
        named = [(sample, phone) for sample, phone in named if phone is not None]
        return Speech(
            samples.astype(np.float32) / 32768,
            self.sampling_rate,
            _join(
                [phone for _, phone in named],
                [s / self.sampling_rate for s, _ in named],
                len(samples) / self.sampling_rate,
            ),
            f"espeak:{voice}",
        )


def _join(phones: list[str], starts: list[float], end: float) -> list[tuple[str, float, float]]:
    """Intervals without gaps from the starts of phones; neighbouring silences become one, empty intervals none."""
    out: list[tuple[str, float, float]] = []
    if not starts or starts[0] > 0:
        phones, starts = ["sil", *phones], [0.0, *starts]
    for phone, start, stop in zip(phones, starts, [*starts[1:], end], strict=True):
        if stop <= start:
            continue
        if out and out[-1][0] == phone == "sil":
            out[-1] = ("sil", out[-1][1], stop)
        else:
            out.append((phone, start, stop))
    return out


@functools.cache
def _espeak() -> _Espeak | None:
    for name in (ctypes.util.find_library("espeak-ng"), "libespeak-ng.so.1", "libespeak-ng.dylib", "libespeak-ng.dll"):
        try:
            return _Espeak(ctypes.CDLL(name)) if name else None
        except OSError:
            continue
    return None


# --- flite ----------------------------------------------------------------------------------------------------------


@functools.cache
def _flite_voices() -> tuple[str, ...]:
    listing = subprocess.run(["flite", "-lv"], capture_output=True, text=True).stdout
    return tuple(listing.partition(":")[2].split())


def _flite(text: str, voice: str, words_per_minute: int, pitch: int) -> Speech:
    if voice not in _flite_voices():  # flite itself would speak with its default voice instead
        raise ValueError(f"`voice` must be a voice of flite, one of {', '.join(_flite_voices())}; got {voice!r}.")
    with temporary_folder() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={165 / words_per_minute:.3f}", "-psdur"]
        command += ["--setf", f"int_f0_target_mean={85 + 1.2 * pitch:.0f}"] if voice.startswith("kal") else []
        done = subprocess.run([*command, "-t", text, "-o", str(path)], capture_output=True, text=True)
        if done.returncode or not path.exists():
            raise OSError(f"flite failed: {done.stderr.strip()}")
        with wave.open(str(path)) as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    # `name:end` pairs
    phones, starts, position = [], [], 0.0
    for item in done.stdout.split():
        name, _, end = item.rpartition(":")
        phone = phone_from_arpabet(name)
        if phone is not None:
            phones.append(phone)
            starts.append(position)
        position = float(end)
    return Speech(samples, rate, _join(phones, starts, max(len(samples) / rate, position)), f"flite:{voice}")


# --- both -----------------------------------------------------------------------------------------------------------


def available_engines() -> tuple[str, ...]:
    """Names of the synthesisers that this machine has, of "espeak" and "flite"."""
    return tuple(
        name for name, found in (("espeak", _espeak() is not None), ("flite", bool(shutil.which("flite")))) if found
    )


def synthesize(
    text: str,
    voice: str = "espeak:en-us",
    words_per_minute: int = 165,
    pitch: int = 50,
    pitch_range: int = 50,
    sampling_rate: int | None = 16_000,
) -> Speech:
    """Speak a text, with the times of its phones.

    Args:
        text (`str`): What to say, in the script of the voice's language.
        voice (`str`, defaults to `"espeak:en-us"`):
            `"espeak:<language>[+<variant>]"` (`espeak-ng --voices`, `--voices=variant`) or `"flite:<voice>"`.
        words_per_minute (`int`, defaults to 165): Speed, 80 to 400.
        pitch (`int`, defaults to 50): 0 to 99.
        pitch_range (`int`, defaults to 50): How lively the pitch moves, 0 to 99.
        sampling_rate (`int`, *optional*, defaults to 16000): Rate to resample to; `None` for the synthesiser's own.

    Returns:
        `Speech`.

    Raises:
        ValueError: If the engine or the voice is unknown.
        ImportError: If the engine is not installed.
    """
    engine, _, name = voice.partition(":")
    if engine not in ("espeak", "flite") or not name:
        raise ValueError(f"`voice` must be 'espeak:<voice>' or 'flite:<voice>'; got {voice!r}.")
    if engine not in available_engines():
        package = {"espeak": "libespeak-ng1", "flite": "flite"}[engine]
        raise ImportError(
            f"{engine} is not installed: `apt install {package}` (or your system's package of that name)."
        )
    if engine == "espeak":
        speech = _espeak().say(text, name, words_per_minute, pitch, pitch_range)
    else:
        speech = _flite(text, name, words_per_minute, pitch)
    if sampling_rate is not None and sampling_rate != speech.sampling_rate:
        speech.samples = resample(speech.samples, speech.sampling_rate, sampling_rate)
        speech.sampling_rate = sampling_rate
    return speech


# --- texts and voices -----------------------------------------------------------------------------------------------

_WORDS = {
    "en": "apple boat charm dream every father garden house island jump kitchen little mother never open people quick"
    " river summer table under voice window yellow zebra about before could thought measure beige thing this there"
    " young boy town cow sky high five mouth smooth bath path full pull book good food move bob pop mom paper bubble"
    " maybe member number five very love leave off fish wish shop much change judge large bridge fur word early bird"
    " car far star heart law door four more hair care near clear hello morning today please water snow show go home",
    "de": "Apfel Buch Dach Ecke Feuer Garten Haus Insel Junge Käse Licht Mutter Nacht Ofen Pferd Quelle Regen Schule"
    " Tür Ufer Vogel Wasser Zeit schön grün müde böse hören über fünf zwölf ich auch nicht immer leise Mond Pfeffer",
    "fr": "arbre bonjour chaise deux eau fleur gare homme île jardin lune maison nuit orange pain quatre rue soleil"
    " table un vin vert yeux zéro beaucoup peu bleu feu vous nous mon bon blanc main jambe montagne vieux pomme femme",
    "es": "agua barco casa dedo estrella fuego gato hijo isla jugo lluvia mano noche ojo perro queso río sol tierra uva"
    " viento yo zapato mañana muchacho bueno pueblo hombre mujer abuelo amigo papel boca llamar guerra",
    "it": "acqua bello casa dove estate fiume gatto isola luna mare notte occhio padre quando rosa sole terra uomo vino"
    " zio buongiorno famiglia gnocchi pesce chiaro giorno bambino mamma pioggia luogo",
    "pt": "água bola casa dia estrela fogo gato homem ilha janela lua mãe noite olho pão quando rio sol terra uva vinho"
    " manhã coração bom muito amigo boca pomba filho senhor",
    "nl": "appel boek dag eten fiets groot huis ijs jongen kaas lucht moeder nacht oog paard regen school tuin uur vuur"
    " water zon mooi deur nieuw vrouw goed muis",
    "tr": "ağaç bahçe çocuk deniz ev fare göz hava ışık kapı lale masa nehir okul pencere rüzgar süt şeker toprak üzüm"
    " yol zaman güneş köpek baba anne",
    "ar": "بَيْت كِتَاب شَمْس قَمَر مَاء نَهْر وَلَد بِنْت طَعَام سَمَاء أَرْض يَوْم لَيْل مَدِينَة مَدْرَسَة بَاب مَفْتُوح صَبَاح مَسَاء خُبْز حَلِيب"
    " عَيْن فَم يَد قَلْب طَرِيق جَبَل بَحْر سَفِينَة غُرْفَة حَدِيقَة شَجَرَة وَرْد صَدِيق أُمّ أَب كَبِير صَغِير جَمِيل",
    "cmn": "ni3 hao3 wo3 men5 ta1 da4 xiao3 shan1 shui3 huo3 tian1 di4 ren2 ma1 ba4 peng2 you3 xue2 xiao4 lao3 shi1"
    " zhong1 guo2 che1 fei1 ji1 chi1 fan4 yu3 lü4 hua1 mao1 gou3 niao3 yue4 liang4 bai2 hong2 qing1 zuo4",
}
_SYLLABLES = {  # onsets, vowels, codas
    "latin": ("b p m f v t d n l s z k g r h w sh ch j y br pl st gr".split(), "a e i o u ai ou ee oo".split(),
              " - - - n m l s t p k r b f".split(" ")),
    "ar": ("ب ت ث ج ح خ د ذ ر ز س ش ص ض ط ظ ع غ ف ق ك ل م ن ه و ي".split(), "َ ِ ُ َا ِي ُو".split(),
           " - - - نْ مْ لْ سْ بْ".split(" ")),
}  # fmt: skip
_VOICES = {"en": ["en-us", "en", "en-gb-scotland"], "pt": ["pt", "pt-br"], "es": ["es", "es-419"]}
_VARIANTS = tuple(
    "m1 m2 m3 m4 m5 m6 f1 f2 f3 f4 klatt klatt2 klatt4 Alex Alicia Andrea Andy Annie Diogo Gene Hugo".split()
) + tuple("Jacky Lee Linda Mario Michael Mike Steph Storm Zac anika grandpa victor travis whisper".split())
HELD_OUT_VARIANTS = ("m7", "f5", "Henrique", "Belinda")  # never in training: phone accuracy is measured on them
_FLITE_VOICES, HELD_OUT_FLITE_VOICES = ("awb", "rms"), ("slt",)
LANGUAGES = tuple(_WORDS)


def random_text(rng: np.random.Generator, language: str = "en", num_words: int | None = None) -> str:
    """Words of a language in random order, mixed with syllables that mean nothing, with commas for pauses."""
    if language not in _WORDS:
        raise ValueError(f"`language` must be one of {', '.join(LANGUAGES)}; got {language!r}.")
    words = _WORDS[language].split()
    onsets, vowels, codas = _SYLLABLES["ar" if language == "ar" else "latin"]
    text = []
    for _ in range(num_words or int(rng.integers(4, 10))):
        if language != "cmn" and rng.random() < 0.35:
            word = "".join(
                rng.choice(onsets) + rng.choice(vowels) + str(rng.choice(codas)).strip("-")
                for _ in range(rng.integers(1, 4))
            )
        else:
            word = str(rng.choice(words))
        text.append(word + ("," if rng.random() < 0.12 else ""))
    return " ".join(text) + "."


@dataclass
class Voice:
    """Who speaks and how: the arguments of `synthesize`, and the language of the texts."""

    language: str
    name: str
    words_per_minute: int
    pitch: int
    pitch_range: int

    def say(self, text: str) -> Speech:
        """Speak a text at 16 kHz."""
        return synthesize(text, self.name, self.words_per_minute, self.pitch, self.pitch_range)


def random_voice(
    rng: np.random.Generator,
    held_out: bool = False,
    engines: tuple[str, ...] | None = None,
    words_per_minute: tuple[int, int] = (110, 260),
) -> Voice:
    """A random voice, language, speed and pitch.

    Args:
        rng (`np.random.Generator`): Source of all choices.
        held_out (`bool`, defaults to `False`): Take the voices that training never hears.
        engines (`tuple[str, ...]`, *optional*, defaults to those installed): Synthesisers to use.
        words_per_minute (`tuple[int, int]`, defaults to (110, 260)): Least and greatest speed.

    Returns:
        `Voice`.
    """
    engines = available_engines() if engines is None else engines
    speed, pitch = int(rng.integers(*words_per_minute)), int(rng.integers(15, 90))
    if "flite" in engines and ("espeak" not in engines or rng.random() < 0.2):
        name = f"flite:{rng.choice(HELD_OUT_FLITE_VOICES if held_out else _FLITE_VOICES)}"
        return Voice("en", name, speed, pitch, 50)
    language = str(rng.choice(LANGUAGES, p=_LANGUAGE_SHARES))
    name = str(rng.choice(_VOICES.get(language, [language])))
    variant = rng.choice(HELD_OUT_VARIANTS if held_out else _VARIANTS)
    return Voice(language, f"espeak:{name}+{variant}", speed, pitch, int(rng.integers(20, 90)))


def random_speech(rng: np.random.Generator, held_out: bool = False, engines: tuple[str, ...] | None = None) -> Speech:
    """One utterance of a `random_voice` at 16 kHz.

    Args:
        rng (`np.random.Generator`): Source of all choices.
        held_out (`bool`, defaults to `False`): Take the voices that training never hears.
        engines (`tuple[str, ...]`, *optional*, defaults to those installed): Synthesisers to use.

    Returns:
        `Speech`.
    """
    voice = random_voice(rng, held_out, engines)
    return voice.say(random_text(rng, voice.language))


_LANGUAGE_SHARES = np.array([{"en": 5.0, "ar": 4.0}.get(language, 1.0) for language in LANGUAGES])
_LANGUAGE_SHARES /= _LANGUAGE_SHARES.sum()
