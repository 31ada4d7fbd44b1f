import numpy as np
import pytest

from vasa_hf.data.synthetic.speech import (
    ARTICULATION,
    LANGUAGES,
    PHONE_IDS,
    PHONES,
    Speech,
    articulation,
    available_engines,
    phone_from_arpabet,
    phone_from_ipa,
    random_speech,
    random_text,
    synthesize,
)

ENGINES = available_engines()
needs_espeak = pytest.mark.skipif("espeak" not in ENGINES, reason="espeak-ng is not installed")
needs_flite = pytest.mark.skipif("flite" not in ENGINES, reason="flite is not installed")
VOICES = [
    pytest.param("espeak:en-us+f2", marks=needs_espeak),
    pytest.param("flite:slt", marks=needs_flite),
]


def test_phone_names_of_both_engines_meet():
    assert [phone_from_ipa(s) for s in ("iː", "tʃ", "oʊ", "ɔ̃", "ˈa", "", "(en)")] == [
        "iy", "ch", "ow", "ao", "aa", "sil", None,
    ]  # fmt: skip
    assert [phone_from_arpabet(s) for s in ("iy1", "ch", "AX", "pau", "??")] == ["iy", "ch", "ah", "sil", None]
    assert PHONES[0] == "sil"
    assert {ARTICULATION[p][2] for p in ("p", "b", "m")} == {1.0}


def test_phones_at_frames():
    speech = Speech(np.zeros(1600), 16_000, [("sil", 0, 0.04), ("m", 0.04, 0.1)])
    assert [PHONES[i] for i in speech.phone_ids(6)] == ["sil", "sil", "m", "m", "m", "sil"]


def test_lips_shut_in_the_middle_of_a_vowel():
    ids = np.array([PHONE_IDS[p] for p in ["aa"] * 10 + ["b"] * 4 + ["aa"] * 10])
    lips = articulation(ids)
    assert lips.shape == (24, 3)
    assert lips[10:14, 0].max() < 0.3 < 0.9 < lips[2, 0]
    assert lips[10:14, 2].min() == 1.0


@pytest.mark.parametrize("voice", VOICES)
def test_phones_have_exact_times(voice):
    speech = synthesize("Papa sees Bob.", voice)
    names = [phone for phone, _, _ in speech.phones if phone != "sil"]
    assert "".join(n for n in names if n in "pbsz") == "ppszbb"
    starts, ends = np.array([p[1] for p in speech.phones]), np.array([p[2] for p in speech.phones])
    np.testing.assert_allclose(starts[1:], ends[:-1])
    assert starts[0] == 0
    assert abs(ends[-1] - len(speech.samples) / 16_000) < 0.02

    # What sounds there agrees: hiss in the s, no hiss but voice in the vowels.
    def share_above_3_khz(phone):
        start, end = next((a, b) for name, a, b in speech.phones if name == phone)
        power = np.abs(np.fft.rfft(speech.samples[int(start * 16_000) : int(end * 16_000)])) ** 2
        return power[int(3_000 * (end - start)) :].sum() / power.sum()

    assert share_above_3_khz("s") > 0.6 > 0.2 > share_above_3_khz("iy" if "iy" in names else "aa")


@needs_espeak
def test_every_language_speaks():
    rng = np.random.default_rng(0)
    for language in LANGUAGES:
        voice = {"en": "en-us"}.get(language, language)
        speech = synthesize(random_text(rng, language), f"espeak:{voice}")
        assert len({phone for phone, _, _ in speech.phones}) > 6, language
        assert np.abs(speech.samples).max() > 0.05


@pytest.mark.skipif(not ENGINES, reason="neither espeak-ng nor flite is installed")
def test_the_same_seed_says_the_same():
    one, two = (random_speech(np.random.default_rng(3)) for _ in range(2))
    assert one.voice == two.voice
    assert [p[0] for p in one.phones] == [p[0] for p in two.phones]
    # espeak-ng carries a little state from one utterance to the next: the last samples differ by a few.
    assert abs(len(one.samples) - len(two.samples)) < 80


def test_wrong_names_are_named():
    with pytest.raises(ValueError, match="`voice` must be 'espeak:<voice>' or 'flite:<voice>'; got 'robot'"):
        synthesize("Hello", "robot")
    with pytest.raises(ValueError, match="`language` must be one of en, .*; got 'tlh'"):
        random_text(np.random.default_rng(0), "tlh")


@pytest.mark.parametrize(
    "engine", [pytest.param("espeak", marks=needs_espeak), pytest.param("flite", marks=needs_flite)]
)
def test_unknown_voice_is_named(engine):
    with pytest.raises(ValueError, match=f"`voice` must be a voice of {engine}.*'nobody'"):
        synthesize("Hello", f"{engine}:nobody")
