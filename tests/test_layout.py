"""The rules that keep the project readable: direction of imports, flat models, honest docstrings, small files.

Every rule is a function from sources to a list of complaints. It is run on the project, and on tiny bad examples that
it must complain about: a rule that cannot fail checks nothing.
"""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vasa_hf"

# What each part of the package may import of the package, besides itself; a part is a folder or a module of `vasa_hf`.
FOUNDATION = {"checks", "files", "geometry", "motion", "outputs", "hub"}
TOOLS = {"processors", "media", "metrics"}
NETWORKS = {"layers", "gaussians", "head", "models"}
MAY_IMPORT = {
    "checks": set(),
    "files": set(),
    "geometry": set(),
    "motion": {"checks", "files", "geometry"},
    "hub": {"checks"},
    "publish": {"hub"},
    "media": {"checks", "files", "motion"},
    "outputs": {"checks", "files", "motion", "media"},
    "processors": {"checks", "geometry", "media"},
    "metrics": {"geometry", "motion"},
    "layers": {"geometry"},
    "gaussians": {"files", "geometry"},
    "head": {"geometry"},
    "models": {"checks", "geometry", "layers", "gaussians", "head", "motion"},
    "pipelines": FOUNDATION | TOOLS | NETWORKS,
    "data": FOUNDATION | TOOLS | NETWORKS,
    "training": FOUNDATION | TOOLS | NETWORKS | {"data"},
    "convert": FOUNDATION | TOOLS | NETWORKS,
    "bench": {"files", "gaussians", "media", "serve"},
    "evaluation": FOUNDATION | TOOLS | NETWORKS | {"pipelines", "bench"},
    "live": {"checks", "media", "motion", "outputs", "processors"},
    "batch": set(),
    "batch_ray": {"batch"},
    "viewer": {"geometry", "gaussians", "motion", "pipelines"},
    "demo": {"checks", "files", "hub", "media", "motion", "outputs"},
    "serve": {"checks", "files", "live", "media"},
    "forgery": {"geometry", "media", "models", "processors"},
    "app": {"cli"},
    "__main__": {"cli"},
    "cli": {
        "batch",
        "batch_ray",
        "checks",
        "files",
        "hub",
        "publish",
        "media",
        "bench",
        "evaluation",
        "viewer",
        "convert",
        "data",
        "demo",
        "serve",
        "forgery",
        "training",
    },
}
# (file, module) against the direction: `pipe.fit` trains an avatar, as it belongs to one person; `pipe.live` begins a
# session; VASA-1's pipeline makes what it is trained on.
EXCEPTIONS = {
    ("cli/avatars.py", "vasa_hf.training.avatar.presets"),  # `fit --set` knows the settings by name and type
    ("pipelines/base.py", "vasa_hf.live.session"),
    ("pipelines/vasa_3d_avatar.py", "vasa_hf.training.avatar.fit"),
    ("training/recipes/gaussian_avatar.py", "vasa_hf.pipelines.vasa_talking_face"),
}
# The front doors take classes by their public names, as every user does.
FRONT_DOORS = {"bench", "cli", "demo", "evaluation"}
# Libraries that only one place may import.
KEPT_APART = {
    "gsplat": ("gaussians/cuda.py",),
    "cv2": ("processors/matte.py",),
    "gradio": ("demo/",),
    "fastapi": ("serve/",),
    "moviepy": ("media/",),
    "imageio_ffmpeg": ("media/",),
    "imageio": ("media/",),
    "pickle": ("convert/",),
    "mediapipe": ("models/face_analyzer_mediapipe.py",),
    "ray": ("data/prepare_ray.py", "batch_ray.py"),
    "viser": ("viewer.py",),
    "c2pa": ("media/content_credentials.py",),
}
# Development tools and libraries that the project does not depend on.
NOT_OURS = {"torchvision", "torchaudio", "librosa", "scipy", "skimage", "pytest", "requests"}
SYSTEMS = {
    "vasa1": "Vasa1",
    "vasa3d": "Vasa3D",
    "gaia": "Gaia",
    "liveportrait": "LivePortrait",
    "moda": "Moda",
    "joyvasa": "JoyVasa",
}
# Networks whose weights are files of other projects, read unchanged.
NOT_SAVED = {"face_analyzer_mediapipe", "emotion_classifier", "lpips", "pretrained_features"}
SHARED_MODELS = {
    "face_analyzer",
    "face_recognizer",
    "sync_expert",
    "syncnet",
    "capp",
    "forgery_detector",
    "arcface",
    "vgg_features",
    *NOT_SAVED,
}
# Files of `layers/` with one user, whose model file would be longer than 700 lines with them.
LONG_WITH = {"convnext_v2", "volume_warp"}
# Words with a plainer one ("image", "audio", "again", "next to", "at most"), for prose and messages.
ODD_WORDS = re.compile(
    r"\b(pictures?|sounds?|told|heard|anew|besides?|shelf|shelves|sitters?|performers?|somebody|nobody|anybody|everybody"
    r"|by hand|so many|as of|whose weights|the story|go(es)? on)\b|\b\w+_ours\b|Whose\.|: Who,",
    re.IGNORECASE,
)
MAX_EMBEDDED_FILE, MAX_RELEASE = 15 * 2**20, 45 * 2**20
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ".sh", ".ipynb", ""}


def package_sources() -> dict[str, str]:
    """Path in the package -> source; and app.py, which is next to it."""
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    return {"app.py": (ROOT / "app.py").read_text(), **sources}


def project_texts() -> dict[str, str]:
    """Path in the repository -> text of what a reader sees: code, configuration and prose."""
    folders = ("vasa_hf", "tests", "notebooks", "model_cards", "docs", ".ci")
    paths = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".git")]
    paths += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    paths = [path for path in paths if path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(paths)}


def imported_modules(path: str, source: str) -> list[tuple[int, str]]:
    """(line, absolute name) of every import anywhere in a file of the package, relative ones resolved."""
    found = []
    parents = ("vasa_hf", *path.split("/")[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # With the imported name: `from vasa_hf import motion` names a module, too.
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            found += [(node.lineno, name) for name in names if isinstance(name, str)]
    return found


def wrong_imports(sources: dict[str, str]) -> list[str]:
    """Imports against the direction geometry -> layers -> models -> pipelines, or of libraries kept apart."""
    modules = public_modules(sources.get("__init__.py", ""))
    public = {name: module.split(".")[0] for name, module in modules.items()}
    complaints = []
    for path, source in sources.items():
        part = path.split("/")[0].removesuffix(".py")
        if part not in MAY_IMPORT and part != "__init__":
            complaints.append(f"{path}: {part!r} has no place in the layout")
        for line, name in imported_modules(path, source):
            library, *rest = name.split(".")
            if (path, name.rpartition(".")[0]) in EXCEPTIONS:
                continue
            where = f"{path}:{line}: imports {name}"
            if library == "vasa_hf" and part in MAY_IMPORT and rest:
                target = public.get(rest[0], rest[0])
                allowed = MAY_IMPORT[part] | {part, "__version__"}
                if target not in allowed and not (part in FRONT_DOORS and rest[0] in public):
                    complaints.append(f"{where}: {part} must not import {target}")
            if library in NOT_OURS:
                complaints.append(f"{where}: not a dependency of the project")
            homes = KEPT_APART.get(library)
            if homes is not None and not any(path.startswith(home) for home in homes):
                complaints.append(f"{where}: only {', '.join(homes) or 'app.py'} may")
    return complaints


def public_modules(source: str) -> dict[str, str]:
    """Public name -> the module it comes from, read from the table in `__init__.py`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PUBLIC":
            return ast.literal_eval(node.value)
    return {}


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Path -> paths of the files it imports, at its top, in functions, for type checking, or by a string."""
    public = public_modules(sources.get("__init__.py", ""))
    files = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    graph: dict[str, set[str]] = {path: set() for path in sources}
    for path, source in sources.items():
        for _, name in imported_modules(path, source):
            library, _, inside = name.partition(".")
            if library == "vasa_hf" and inside:
                first = inside.split(".")[0]
                inside = public.get(first, inside)
                while inside and inside not in files:
                    inside = inside.rpartition(".")[0]
                graph[path] |= {files[inside]} - {path} if inside else set()
    return graph


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Circles of imports."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    ends = {node: reached(node) for node in graph}
    return [f"{a}: a circle through {b}" for a in graph for b in sorted(graph[a]) if a in ends[b] and a <= b]


def lonely_layers(sources: dict[str, str]) -> list[str]:
    """Files of `layers/` that only one file uses: they belong to it."""
    graph = import_graph(sources)
    files = [path for path in sources if path.startswith("layers/") and "__init__" not in path]
    users = {path: [user for user in graph if path in graph[user]] for path in files}
    lonely = {path: found for path, found in users.items() if len(found) < 2 and Path(path).stem not in LONG_WITH}
    return [f"{path}: used by {found} alone" for path, found in lonely.items()]


def wrong_notebooks(cells: dict[str, str], sources: dict[str, str]) -> list[str]:
    """Imports in notebooks of names that begin with `_`, of public names from elsewhere, of modules that are gone."""
    public, complaints = public_modules(sources["__init__.py"]), []
    for path, code in cells.items():
        for name in re.findall(r"from vasa_hf(?:\.[\w.]+)? import .*", code):
            _, module, _, *names = name.replace(",", " ").split()
            inside = module.partition(".")[2].replace(".", "/")
            if inside and not {f"{inside}.py", f"{inside}/__init__.py"} & set(sources):
                complaints.append(f"{path}: no module {module}")
            complaints += [f"{path}: {part} of {module} is not public" for part in names if part.startswith("_")]
            complaints += [f"{path}: import {part} from vasa_hf" for part in names if inside and part in public]
    return complaints


def notebook_cells() -> dict[str, str]:
    """Path of each notebook -> its code."""
    notebooks = {path.name: json.loads(path.read_text()) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    code = {name: [cell for cell in book["cells"] if cell["cell_type"] == "code"] for name, book in notebooks.items()}
    return {name: "\n".join("".join(cell["source"]) for cell in cells) for name, cells in code.items()}


def unsafe_loading(sources: dict[str, str]) -> list[str]:
    """`torch.load` outside `convert/` or without `weights_only=True`, `np.load` that may unpickle."""
    complaints = []
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name == "torch.load" and not path.startswith("convert/"):
                complaints.append(f"{path}:{node.lineno}: torch.load outside convert/")
            if name == "torch.load" and options.get("weights_only") != "True":
                complaints.append(f"{path}:{node.lineno}: torch.load without weights_only=True")
            if name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
                complaints.append(f"{path}:{node.lineno}: np.load that unpickles")
    return complaints


def wrong_models(sources: dict[str, str]) -> list[str]:
    """Files of `models/` in folders, without the system's suffix, or with classes and prefixes that do not fit."""
    complaints = []
    for path, source in sources.items():
        if not path.startswith("models/") or path == "models/__init__.py":
            continue
        stem = path.removeprefix("models/").removesuffix(".py")
        if stem.startswith("backends/"):
            continue
        if "/" in stem:
            complaints.append(f"{path}: models/ is flat")
            continue
        system = stem.rsplit("_", 1)[-1]
        if system not in SYSTEMS and stem not in SHARED_MODELS:
            complaints.append(f"{path}: the file's suffix must name one of {sorted(SYSTEMS)}")
        classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        saved = [
            node.name for node in classes if "ModelMixin" in {ast.unparse(base).split(".")[-1] for base in node.bases}
        ]
        if len(saved) != 1 and stem not in NOT_SAVED:
            complaints.append(f"{path}: one saved class (ModelMixin) a file, found {saved}")
        if system in SYSTEMS:
            prefix = SYSTEMS[system]
            complaints += [f"{path}: {name} must begin with {prefix}" for name in saved if not name.startswith(prefix)]
    return complaints


def documented_arguments(docstring: str, heading: str = "Args") -> list[str] | None:
    """Names listed in a section of a Google docstring, in order; None without that section."""
    lines = docstring.expandtabs().splitlines()
    if f"{heading}:" not in lines:
        return None
    names = []
    for line in lines[lines.index(f"{heading}:") + 1 :]:
        if line and not line.startswith(" "):
            break
        entry = re.match(r" {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*)\s*(?:\(.*)?(?::|$)", line)
        if entry:
            names += [name.strip().lstrip("*") for name in entry.group(1).split(",")]
    return names


def signature_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of the parameters, without `self` and `cls`."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    names = [argument.arg for argument in (*named, *[arguments.vararg] * bool(arguments.vararg), *arguments.kwonlyargs)]
    names += [arguments.kwarg.arg] if arguments.kwarg else []
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def wrong_docstrings(sources: dict[str, str]) -> list[str]:
    """Public functions, methods and classes whose `Args:` are not exactly the parameters, in their order."""
    complaints = []

    def visit(node: ast.AST, path: str) -> None:
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        for child in (child for child in node.body if isinstance(child, definitions) and child.name[0] != "_"):
            documented = documented_arguments(ast.get_docstring(child) or "")
            expected = class_parameters(child) if isinstance(child, ast.ClassDef) else signature_names(child)
            if documented is not None and expected is not None:
                if "kwargs" in expected and "kwargs" not in documented:
                    expected.remove("kwargs")  # what is handed on to the parent may go without saying
                if documented != expected:
                    complaints.append(f"{path}:{child.lineno}: {child.name} documents {documented}, takes {expected}")
            if isinstance(child, ast.ClassDef):
                visit(child, path)

    for path, source in sources.items():
        visit(ast.parse(source), path)
    return complaints


def prose_of(source: str) -> list[tuple[int, str]]:
    """(line, text) of the comments, docstrings and messages of a file, without code in backticks and argument names."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            texts.append((node.lineno, node.value))
    hidden = re.compile(r"^ *[*\w, ]+ \((?=`)|`[^`]*`", re.MULTILINE)
    return [(line, hidden.sub("", text)) for line, text in texts]


def odd_words(sources: dict[str, str], guides: dict[str, str]) -> list[str]:
    """Words of `ODD_WORDS` in the prose of the package and in guides."""
    texts = []
    for path, source in sources.items():
        texts += [(f"{path}:{line}", text) for line, text in prose_of(source)]
    for path, guide in guides.items():
        texts.append((path, re.sub(r"^```.*?^```|`[^`]*`", "", guide, flags=re.MULTILINE | re.DOTALL)))
    return [f"{where}: {word.group()!r}" for where, text in texts for word in ODD_WORDS.finditer(text)]


def guides() -> dict[str, str]:
    """Name -> text of the guides that are checked, cells of notebooks included."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", PACKAGE / "evaluation" / "README.md"]
    found = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
        found[path.name] = "\n\n".join("".join(cell["source"]) for cell in cells)
    return found


def class_parameters(node: ast.ClassDef) -> list[str] | None:
    """What a class is made with: parameters of its `__init__`, or the fields of a dataclass; None if inherited."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return signature_names(child)
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return None
    if any(ast.unparse(base).split(".")[-1] not in ("BaseOutput", "object") for base in node.bases):
        return None  # further fields come from the parent
    fields = [child for child in node.body if isinstance(child, ast.AnnAssign) and "ClassVar" not in ast.unparse(child)]
    return [field.target.id for field in fields if "init=False" not in ast.unparse(field)]


# In pieces, so that this file does not complain about itself.
MACHINE_PATH = re.compile(
    r"(?<![\w.~/}-])(?:/(?:" + "|".join(("work", "tmp", "home", "root", "Users", "mnt")) + r")/\w|[A-Z]:\\\\?Users)"
)


def machine_paths(texts: dict[str, str]) -> list[str]:
    """Absolute paths that exist on one machine only."""
    return [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]


def too_large(sizes: dict[str, int]) -> list[str]:
    """Embedded files over 15 MiB, and a model's release over 45 MiB; each folder is a repository of the Hub."""
    complaints = [f"{path}: {size} bytes" for path, size in sizes.items() if size > MAX_EMBEDDED_FILE]
    releases: dict[str, int] = {}
    for path, size in sizes.items():
        release = path.removeprefix("model_cards/").split("/")[0]
        releases[release] = releases.get(release, 0) + size
    return complaints + [f"{name}: {total} bytes" for name, total in releases.items() if total > MAX_RELEASE]


def readme_commands(readme: str) -> dict[str, str]:
    """The two commands: number -> the one line of the shell block that follows `**1.` and `**2.`."""
    blocks = re.findall(r"^\*\*(\d)\. [^\n]*\n(?:[^\n`]*\n)*?```bash\n(.*?)```", readme, flags=re.MULTILINE | re.DOTALL)
    return {number: block.strip() for number, block in blocks}


def wrong_commands(readme: str) -> list[str]:
    """The README's two commands: one line each, from nothing but a Python, with versions pinned."""
    commands = readme_commands(readme)
    if sorted(commands) != ["1", "2"]:
        return [f"the README must have the commands 1 and 2, found {sorted(commands)}"]
    complaints = []
    for number, needed in (("1", ("vasa-hf demo -o",)), ("2", ("ruff check", "ruff format --check", "pytest"))):
        command = commands[number]
        if "\n" in command:
            complaints.append(f"command {number} must be one line")
        for part in ("python3 -m venv ", "pip install -c constraints.txt ", *needed):
            if part not in command:
                complaints.append(f"command {number} lacks {part!r}")
    return complaints


def missing_links(texts: dict[str, str]) -> list[str]:
    """Links and pictures of Markdown files to files that do not exist."""
    complaints = []
    for path, text in texts.items():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if path.endswith(".md") else ():
            if not re.match(r"[a-z]+:", target) and not (ROOT / path).parent.joinpath(target).exists():
                complaints.append(f"{path}: {target} does not exist")
    return complaints


def wrong_components(indexes: dict[str, str], sources: dict[str, str]) -> list[str]:
    """Classes named by a `model_index.json` that are not where it says: such a checkpoint does not load."""
    complaints = []
    for path, text in indexes.items():
        for name, value in json.loads(text).items():
            if not (isinstance(value, list) and value[0] and str(value[0]).startswith("vasa_hf.")):
                continue
            source = sources.get(value[0].removeprefix("vasa_hf.").replace(".", "/") + ".py", "")
            if value[1] not in {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}:
                complaints.append(f"{path}: {name}: no class {value[1]} in {value[0]}")
    return complaints


def embedded_sizes() -> dict[str, int]:
    folders = (ROOT / "model_cards", PACKAGE / "assets")
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in paths}


def model_indexes() -> dict[str, str]:
    paths = sorted((ROOT / "model_cards").glob("*/model_index.json"))
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


RULES = {
    "imports": lambda: wrong_imports(package_sources()),
    "circles": lambda: circles(import_graph(package_sources())),
    "circles of parts": lambda: circles({part: MAY_IMPORT[part] & MAY_IMPORT.keys() for part in MAY_IMPORT}),
    "layers": lambda: lonely_layers(package_sources()),
    "notebooks": lambda: wrong_notebooks(notebook_cells(), package_sources()),
    "loading": lambda: unsafe_loading(package_sources()),
    "models": lambda: wrong_models(package_sources()),
    "docstrings": lambda: wrong_docstrings(package_sources()),
    "words": lambda: odd_words(package_sources(), guides()),
    "machine paths": lambda: machine_paths(project_texts()),
    "sizes": lambda: too_large(embedded_sizes()),
    "README commands": lambda: wrong_commands((ROOT / "README.md").read_text()),
    "links": lambda: missing_links(project_texts()),
    "model indexes": lambda: wrong_components(model_indexes(), package_sources()),
}


@pytest.mark.parametrize("rule", RULES)
def test_project_obeys(rule):
    complaints = RULES[rule]()
    assert not complaints, "\n" + "\n".join(complaints)


def test_something_is_checked():
    """A moved folder must not turn the rules into no-ops."""
    sources = package_sources()
    assert {
        "app.py",
        "__init__.py",
        "motion/spec.py",
        "models/face_analyzer.py",
        "pipelines/vasa_talking_face.py",
    } <= set(sources)
    documented = [name for source in sources.values() for name in re.findall(r"^ +Args:$", source, flags=re.MULTILINE)]
    assert len(documented) > 20
    assert "README.md" in project_texts() and "tests/test_layout.py" in project_texts()
    assert model_indexes() and embedded_sizes()


def test_no_folder_is_named_like_a_pipeline_of_diffusers():
    """diffusers takes a component from `diffusers.pipelines.<folder>` when its own folder has such a name."""
    import diffusers

    theirs = {path.name for path in (Path(diffusers.__file__).parent / "pipelines").iterdir() if path.is_dir()}
    assert "flux" in theirs
    assert not theirs & {path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__")}


LINE = "import vasa_hf.pipelines.vasa_talking_face\n"
PUBLIC = '_PUBLIC = {"FaceAnalyzer": "models.face_analyzer"}\n'


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("geometry/a.py", "from vasa_hf.layers import blocks"),
        ("geometry/a.py", "from ..motion import MotionSpec"),
        ("layers/a.py", "from ..models.face_analyzer import FaceAnalyzer"),
        ("layers/a.py", "from .. import models"),
        ("models/a.py", LINE),
        ("models/a.py", "from ..processors.image import FaceImageProcessor"),
        ("motion/a.py", "from ..models import face_analyzer"),
        ("motion/a.py", "from vasa_hf import FaceAnalyzer"),
        ("metrics/a.py", "def f():\n    from vasa_hf.models.capp import Capp"),
        ("processors/a.py", "from importlib import import_module\nimport_module('vasa_hf.models.face_analyzer')"),
        ("training/a.py", LINE),
        ("data/a.py", "from vasa_hf.training import losses"),
        ("metrics/a.py", "from vasa_hf.evaluation import tables"),
        ("pipelines/a.py", "from vasa_hf.evaluation import tables"),
        ("data/synthetic/a.py", "from ...pipelines import vasa_talking_face"),
        ("pipelines/a.py", "from ..training import losses"),
        ("pipelines/a.py", "from vasa_hf.training.avatar.fit import fit_avatar"),
        ("pipelines/vasa_3d_avatar.py", "from vasa_hf.training.losses import ssim"),
        ("motion/a.py", "from vasa_hf.layers import blocks"),
        ("motion/a.py", "from vasa_hf.pipelines.motion_generator import Sampling"),
        ("pipelines/a.py", "import gradio as gr"),
        ("app.py", "import gradio as gr"),
        ("cli/app.py", "import gradio as gr"),
        ("demo/a.py", "from vasa_hf.training import losses"),
        ("app.py", LINE),
        ("gaussians/render.py", "import gsplat"),
        ("pipelines/a.py", "from moviepy import VideoFileClip"),
        ("training/a.py", "from imageio_ffmpeg import get_ffmpeg_exe"),
        ("training/a.py", "import pickle"),
        ("data/a.py", "import cv2"),
        ("cli.py", LINE),
        ("cli.py", "from vasa_hf.models.face_analyzer import FaceAnalyzer"),
        ("helpers/a.py", ""),
        ("utils.py", ""),
    ],
)
def test_wrong_imports_are_found(path, source):
    assert wrong_imports({"__init__.py": PUBLIC, path: source})


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("layers/a.py", "import torch\nfrom vasa_hf.geometry import crops\nfrom ..geometry.crops import paste"),
        ("gaussians/cuda.py", "import gsplat"),
        ("pipelines/vasa_3d_avatar.py", "from vasa_hf.training.avatar.fit import fit_avatar"),
        ("media/video.py", "from moviepy.config import FFMPEG_BINARY\nfrom vasa_hf import __version__"),
        ("training/a.py", "from vasa_hf import FaceAnalyzer\nfrom ..data import clips"),
        ("evaluation/a.py", "from vasa_hf import FaceAnalyzer\nfrom vasa_hf.metrics import image"),
        ("cli.py", "from . import bench\nfrom vasa_hf import FaceAnalyzer"),
    ],
)
def test_right_imports_pass(path, source):
    assert not wrong_imports({"__init__.py": PUBLIC, path: source})


@pytest.mark.parametrize(
    "back",
    [
        "from .b import name",
        "def f():\n    from vasa_hf.metrics.b import name",
        "if TYPE_CHECKING:\n    from vasa_hf.metrics import b",
        "import_module('vasa_hf.metrics.b')",
        "from vasa_hf import Name",
    ],
)
def test_circles_are_found(back):
    sources = {"__init__.py": '_PUBLIC = {"Name": "metrics.b"}', "metrics/b.py": "from vasa_hf.metrics import a, c"}
    sources |= {"metrics/c.py": ""}
    assert not circles(import_graph({**sources, "metrics/a.py": "from . import c"}))
    assert circles(import_graph({**sources, "metrics/a.py": back}))


def test_layers_with_one_user_are_found():
    sources = {"layers/a.py": "", "models/b.py": "from vasa_hf.layers.a import A"}
    assert lonely_layers(sources)
    assert not lonely_layers({**sources, "models/c.py": "from vasa_hf.layers import a"})


def test_wrong_notebooks_are_found():
    sources = {"__init__.py": PUBLIC, "media/__init__.py": "", "models/face_analyzer.py": ""}
    for line in (
        "vasa_hf.gone import a",
        "vasa_hf.media import _a",
        "vasa_hf.models.face_analyzer import FaceAnalyzer",
    ):
        assert wrong_notebooks({"a.ipynb": f"from {line}"}, sources)
    assert not wrong_notebooks({"a.ipynb": "from vasa_hf import FaceAnalyzer\nfrom vasa_hf.media import load"}, sources)


def test_unsafe_loading_is_found():
    assert unsafe_loading({"training/loop.py": "torch.load(path, weights_only=True)"})
    assert unsafe_loading({"convert/moda.py": "torch.load(path)"})
    assert unsafe_loading({"data/clips.py": "np.load(path, allow_pickle=True)"})
    assert not unsafe_loading({"convert/moda.py": "torch.load(path, weights_only=True)", "data/a.py": "np.load(path)"})


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/vasa1/face_autoencoder.py", "class Vasa1FaceAutoencoder(ModelMixin): ..."),
        ("models/face_autoencoder.py", "class FaceAutoencoder(ModelMixin): ..."),
        ("models/face_autoencoder_vasa1.py", "class FaceAutoencoder(ModelMixin, ConfigMixin): ..."),
        ("models/face_autoencoder_vasa1.py", "class Vasa1A(ModelMixin): ...\nclass Vasa1B(diffusers.ModelMixin): ..."),
        ("models/face_autoencoder_vasa1.py", "class Vasa1A(nn.Module): ..."),
    ],
)
def test_wrong_models_are_found(path, source):
    assert wrong_models({path: source})


@pytest.mark.parametrize(
    "source",
    [
        'def f(a, b):\n    """F.\n\n    Args:\n        a (`int`): A.\n    """',
        'def f(a):\n    """F.\n\n    Args:\n        a (`int`): A.\n        b (`int`): Gone.\n    """',
        'def f(a, b):\n    """F.\n\n    Args:\n        b (`int`): B.\n        a (`int`): A.\n    """',
        'class C:\n    """C.\n\n    Args:\n        a: A.\n    """\n\n    def __init__(self, size):\n        pass',
        'class C:\n    def f(self, *, a):\n        """F.\n\n        Args:\n            c (`int`): New.\n        """',
        '@dataclass\nclass C:\n    """C.\n\n    Args:\n        a (`int`): A.\n    """\n\n    a: int\n    b: int = 0',
    ],
)
def test_wrong_docstrings_are_found(source):
    assert wrong_docstrings({"motion/spec.py": source})


def test_right_docstrings_pass():
    arguments = (
        "        a, b (`int`): Both.\n        c (`float`):\n            Note: one line.\n        **kwargs: Rest.\n"
    )
    docstring = f'"""F.\n\n    Args:\n{arguments}\n    Returns:\n        int: A.\n    """'
    assert not wrong_docstrings({"motion/spec.py": f"def f(a, b, *, c=1.0, **kwargs):\n    {docstring}"})


@pytest.mark.parametrize(
    "source",
    [
        "# The sitter's picture.",
        '"""What was heard, and no more."""',
        'raise ValueError(f"{a} must hold sound, got {b}.")',
    ],
)
def test_odd_words_are_found(source):
    assert odd_words({"motion/spec.py": source}, {}) and odd_words({}, {"README.md": source})


def test_names_in_prose_pass():
    docstring = '"""Load `picture`.\n\n    Args:\n        picture (`Tensor`): An image.\n    """'
    assert not odd_words(
        {"motion/spec.py": f"def load(picture):\n    {docstring}"}, {"README.md": "`picture`: an image"}
    )


def test_machine_paths_are_found():
    for path in ("/" + "work/data", "/" + "home/me/x", "C:" + "\\Users\\me", "'/" + "tmp/out.mp4'"):
        assert machine_paths({"a.py": f"open({path})"}), path
    assert not machine_paths({"a.py": "https://host.org/" + "home/page and tests/" + "tmp/file and $HOME/x"})


def test_large_files_are_found():
    assert too_large({"a": MAX_EMBEDDED_FILE + 1})
    assert too_large({f"model_cards/a/{index}": MAX_EMBEDDED_FILE for index in range(4)})
    assert not too_large({f"model_cards/{name}/{index}": MAX_EMBEDDED_FILE for name in "ab" for index in range(3)})


def test_wrong_commands_are_found():
    readme = (ROOT / "README.md").read_text()
    assert wrong_commands("# vasa_hf")
    assert wrong_commands(readme.replace("-c constraints.txt", ""))
    assert wrong_commands(readme.replace("vasa-hf demo -o", "vasa-hf talk -o"))
    assert wrong_commands(readme.replace("python3 -m venv .venv &&", "python3 -m venv .venv\n"))


def test_dead_links_are_found():
    assert missing_links({"README.md": "[a](nowhere.md)"})
    assert not missing_links({"README.md": "[a](LICENSE) [b](https://arxiv.org/abs/2404.10667) [c](#here)"})


def test_moved_components_are_found():
    index = json.dumps({"_class_name": "P", "face_analyzer": ["vasa_hf.models.face_analyzer", "FaceAnalyzer"]})
    assert wrong_components({"m/model_index.json": index}, {"models/faces.py": "class FaceAnalyzer: ..."})
    assert not wrong_components({"m/model_index.json": index}, {"models/face_analyzer.py": "class FaceAnalyzer: ..."})
