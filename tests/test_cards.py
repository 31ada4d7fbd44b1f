"""Cards of the embedded models: metadata that the Hub accepts, and the sections that a reader needs."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from vasa_hf.hub import EMBEDDED, embedded_path
from vasa_hf.publish import CARD, release_files

ROOT = Path(__file__).resolve().parent.parent
# Part of a heading -> what stands below it in any card of ours.
SECTIONS = {
    "What is in it": r"safetensors",
    "Intended use": r"synthetic",
    "misuse": r"[Ii]mpersonat",
    "Consent": r"agreed|[Aa]sk",
    "Data": r"rights|licen[cs]e",
    "Training": r"vasa_hf\.training|vasa-hf (train|fit)",
    "Limits": r"^- ",
    "Bias": r"not been measured by group",
    "Licence": r"Apache-2\.0",
    "Citation": r"@inproceedings",
}
# Those of a folder that holds weights of its own: made by somebody, somewhere, and looked at.
SECTIONS_OF_WEIGHTS = {
    "Example": r"!\[[^]]+\]\(images/",
    "Measured": r"vasa-hf (eval|bench)",
    "Carbon": r"estimate",
}


def load(name):
    return ModelCard.load(embedded_path(name) / CARD)


def evaluation(name):
    """What stands beside the card, where there is too much to say."""
    file = embedded_path(name) / "EVALUATION.md"
    return file.read_text() if file.is_file() else ""


def has_weights(name):
    return any(embedded_path(name).rglob("*.safetensors"))


def sections(text):
    """Heading -> text down to the next heading of its level or above."""
    found = {}
    for heading in re.finditer(r"^(#+) (.+)$", re.sub(r"(?m)^```.*?^```", hide, text, flags=re.DOTALL), re.MULTILINE):
        rest = text[heading.end() :]
        end = re.search(rf"^#{{1,{len(heading[1])}}} ", re.sub(r"(?m)^```.*?^```", hide, rest, flags=re.DOTALL), re.M)
        found[heading[2]] = rest[: end.start()] if end else rest
    return found


def hide(block):
    """As many characters, none of which begins a heading."""
    return re.sub(r"#", "-", block[0])


@pytest.mark.parametrize("name", EMBEDDED)
def test_metadata_is_what_the_hub_reads(name):
    card = load(name)
    data = card.data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.library_name) == ("apache-2.0", "vasa_hf")
    assert data.pipeline_tag in {"image-to-video", "image-to-3d"}
    assert len(data.tags) == len(set(data.tags)) and {"safetensors", "talking-face"} <= set(data.tags)
    assert any(re.fullmatch(r"arxiv:\d{4}\.\d{5}", tag) for tag in data.tags), "links the paper's page"
    # Written and read again, nothing is lost: every field has the type that the Hub expects.
    again = ModelCardData(**yaml.safe_load(data.to_yaml()))
    assert again.to_dict() == data.to_dict() == yaml.safe_load(card.content.split("---\n")[1])


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_section_is_there(name):
    text = load(name).text
    assert len(text.split()) < 2600, "a card that is read; details belong in EVALUATION.md"
    found = sections(text) | {f"Details: {key}": body for key, body in sections(evaluation(name)).items()}
    wanted = SECTIONS | (SECTIONS_OF_WEIGHTS if has_weights(name) else {})
    for part, content in wanted.items():
        below = "\n".join(body for heading, body in found.items() if part in heading)
        assert re.search(content, below, re.MULTILINE), f"{name}: no section {part!r} with {content!r}"
    assert f'from_pretrained("{name}")' in text
    for link in re.findall(r"\]\(([^)]+)\)", text + evaluation(name)):  # the Hub has this folder alone
        assert link.startswith("https://") or (embedded_path(name) / link.split("#")[0]).is_file(), link
    assert not re.search(r"\b(TODO|FIXME|TBD|XXX)\b", text)


@pytest.mark.parametrize("name", EMBEDDED)
def test_results_of_the_metadata_are_those_of_the_text(name):
    """A number that was changed in one place only would be a lie in the other."""
    card = load(name)
    measured = "\n".join(body for heading, body in sections(card.text).items() if "Measured" in heading)
    for result in card.data.eval_results or ():
        for text in (measured, evaluation(name)):
            assert re.search(rf"(?<![\d.]){re.escape(str(result.metric_value))}(?![\d])", text), result
    assert bool(card.data.eval_results) <= (card.data.model_name == name)


@pytest.mark.parametrize("name", EMBEDDED)
def test_carbon_is_what_its_assumptions_give(name):
    card = load(name)
    carbon = "".join(body for heading, body in sections(evaluation(name)).items() if heading == "Carbon")
    stated = (card.data.to_dict().get("co2_eq_emissions") or {}).get("emissions")
    if stated is not None:
        assert carbon, "grams in the metadata, but no section that explains them"
        carbon = " ".join(carbon.split())
        hours, watts, kwh = map(float, re.search(r"([\d.]+) h x ([\d.]+) W = ([\d.]+) kWh", carbon).groups())
        again, grid, grams = map(float, re.search(r"([\d.]+) kWh x ([\d.]+) g/kWh = ([\d.]+) g", carbon).groups())
        assert hours * watts / 1000 == pytest.approx(kwh, rel=0.05) and again == kwh
        assert kwh * grid == pytest.approx(grams, rel=0.05) and grams == stated


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models_can_be_published_as_they_are(name):
    """`vasa-hf push NAME ...` takes them: a card, and no file of a strange kind."""
    files = release_files(embedded_path(name))
    assert CARD in files and "model_index.json" in files
    on_disk = {path.relative_to(embedded_path(name)).as_posix() for path in embedded_path(name).rglob("*.*")}
    assert {path for path in on_disk if (embedded_path(name) / path).is_file()} == set(files)


def test_citation_names_the_papers():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(cff)
    import vasa_hf

    assert (cff["version"], cff["license"]) == (vasa_hf.__version__, "Apache-2.0")
    titles = [reference["title"].split(":")[0] for reference in cff["references"]]
    assert titles == ["VASA-1", "VASA-3D", "GAIA", "MoDA"]
    for reference in cff["references"]:
        assert reference["year"] >= 2024 and reference["url"].startswith("https://")
        assert all({"family-names", "given-names"} == set(author) for author in reference["authors"])


def test_licence_and_changelog():
    import vasa_hf

    assert "Apache License" in (ROOT / "LICENSE").read_text() and "Version 2.0" in (ROOT / "LICENSE").read_text()
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == vasa_hf.__version__ and len(versions) == len(set(versions))
