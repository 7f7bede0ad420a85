"""The files as text: what several scripts share is the same, metadata and pins agree, what is quoted exists."""

import ast
import difflib
import importlib
import importlib.metadata
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import ALL_SCRIPTS as SCRIPTS

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmark"))
import details

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    script: (ROOT / f"{script}.py").read_text(encoding="utf-8") for script in [*SCRIPTS, "evaluate"]
}


# The lower half of a script


MARKER = "\n# The algorithm ends here"
HALVES = {script: SOURCES[script].split(MARKER) for script in SCRIPTS}


def diff(one: str, other: str, name: str, other_name: str) -> str:
    return "\n".join(
        difflib.unified_diff(one.splitlines(), other.splitlines(), name, other_name, lineterm="")
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_follows_the_algorithm_is_the_same_to_the_letter(script):
    assert len(HALVES[script]) == 2, (
        f"{script}.py needs one line that begins with {MARKER.strip()!r}, after main"
    )
    upper, lower = HALVES[script]
    assert ast.parse(upper).body[-1].name == "main"
    expected = HALVES["ppo"][1]
    assert lower == expected, (
        f"what follows the algorithm differs between ppo.py and {script}.py:\n\n"
        f"{diff(expected, lower, 'ppo.py', f'{script}.py')}\n\n"
        f"It is the same text, to the letter, in every script: make the change in each of {', '.join(SCRIPTS)}. "
        "What must differ between scripts belongs above the marker, into the algorithm."
    )


# What several upper halves share

VECTORS = {"ppo", "ppo_continuous_action", "ppo_multidiscrete"}
CONTINUOUS = {"ppo_continuous_action"}
SEVERAL = {"ppo_multidiscrete"}
SINGLE = {"ppo_atari_envpool"}
MULTIGPU = {"ppo_atari_multigpu"}
ENVPOOL = SINGLE | MULTIGPU
FRAMES = {"ppo_atari"} | ENVPOOL  # four of them at a time
LSTM = {"ppo_atari_lstm"}
KINDS = [{"ppo"}, CONTINUOUS, SEVERAL, FRAMES, LSTM]

# Every function and class above the marker, every method of Agent and every field of Args is the same in all scripts
# that have it, but for these: scripts in one group have the same text.
DIFFERENCES = {
    "Args.env_id": [
        {"ppo"},
        CONTINUOUS,
        SEVERAL,
        {"ppo_atari"} | LSTM,
        ENVPOOL,
    ],  # each names its kind
    "Args.num_envs": [VECTORS | {"ppo_atari"} | LSTM | SINGLE, MULTIGPU],  # of all processes
    # A GPU is slower for small networks; several processes cannot use Apple's.
    "Args.device": [VECTORS, {"ppo_atari"} | LSTM | SINGLE, MULTIGPU],
    "make_env": [
        {"ppo"},
        CONTINUOUS,
        SEVERAL,
        {"ppo_atari"},
        LSTM,
    ],  # other wrappers for other spaces
    "make_envs": [
        {"ppo", "ppo_atari"} | LSTM,
        CONTINUOUS,
        SEVERAL,
        ENVPOOL,
    ],  # normalised, masked, from EnvPool
    "check_spaces": [{"ppo"}, CONTINUOUS, SEVERAL],  # other actions
    "check_game": [{"ppo_atari"} | LSTM, ENVPOOL],  # EnvPool has a list of its own
    "Agent.__init__": KINDS,
    "Agent.get_value": [VECTORS, FRAMES, LSTM],
    "Agent.get_action": KINDS,
    "Agent.get_action_and_value": KINDS,
    "Batch": KINDS,  # other shapes; the LSTM's state, the action masks
    "ppo_loss": [{"ppo"} | CONTINUOUS | FRAMES, SEVERAL, LSTM],  # one line: what the agent is given
    "compute_gradient": [{"ppo", "ppo_atari"} | CONTINUOUS | SEVERAL | SINGLE, MULTIGPU],  # Aux 2
    "main": [{"ppo"}, CONTINUOUS, SEVERAL, {"ppo_atari"}, SINGLE, MULTIGPU, LSTM],
}

WHAT_TO_DO = (
    "What several scripts share is kept identical, so that a diff of two scripts shows only what their settings need. "
    "Make the same change in every script that has it. Where scripts must differ, say so in DIFFERENCES in "
    "tests/test_files.py."
)


def lines_of(source: str, node: ast.AST) -> str:
    """Return the lines of a definition, with its decorators and the comments right above it."""
    lines = source.splitlines(keepends=True)
    first = min(
        [node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]
    )
    while first > 1 and lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return "".join(lines[first - 1 : node.end_lineno])


def field_of(source: str, node: ast.AnnAssign) -> str:
    """Return what all scripts must agree on in a field of Args: name, type and comment, but not the default."""
    text = lines_of(source, node)
    comments = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    return f"{node.target.id}: {ast.unparse(node.annotation)}\n" + "".join(
        f"{comment}\n" for comment in comments
    )


def blocks(source: str) -> dict[str, str]:
    """Return the text of every block that could be shared, by its name."""
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if node.name == "Args":
            for field in node.body:
                found[f"Args.{field.target.id}"] = field_of(source, field)
        elif node.name == "Agent":
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"Agent.{method.name}"] = lines_of(source, method)
        else:
            found[node.name] = lines_of(source, node)
    return found


BLOCKS = {script: blocks(upper) for script, (upper, *_) in HALVES.items()}
NAMES = list(dict.fromkeys(name for found in BLOCKS.values() for name in found))


@pytest.mark.parametrize("name", NAMES)
def test_shared_block_is_the_same(name):
    having = [script for script in SCRIPTS if name in BLOCKS[script]]
    groups = DIFFERENCES.get(name, [set(having)])
    assert sorted(having) == sorted(script for group in groups for script in group), (
        f"{name}: the groups in DIFFERENCES must name each script that has it, once"
    )
    for group in groups:
        first, *others = [script for script in having if script in group]
        for other in others:
            one, two = BLOCKS[first][name], BLOCKS[other][name]
            assert one == two, (
                f"{name} is not the same in {first}.py and {other}.py:\n\n"
                f"{diff(one, two, f'{first}.py', f'{other}.py')}\n\n{WHAT_TO_DO}"
            )
    texts = {BLOCKS[min(group)][name] for group in groups}
    assert len(texts) == len(groups), (
        f"{name}: two groups in DIFFERENCES are the same by now; make them one"
    )


def test_no_difference_is_listed_for_what_is_gone():
    assert DIFFERENCES.keys() <= set(NAMES)


@pytest.mark.parametrize(("script", "more"), [("ppo_atari_lstm", 1), ("ppo_multidiscrete", 0)])
def test_the_loss_differs_only_in_what_the_agent_is_given(script, more):
    pairs = zip(*(BLOCKS[name]["ppo_loss"].splitlines() for name in ("ppo", script)), strict=True)
    ((_, other),) = [(one, other) for one, other in pairs if one != other]
    assert re.fullmatch(
        rf"    _, logprobs, entropies, values(, _){{{more}}} = agent\((mb\.\w+(, )?)+\)", other
    )


# Metadata and pins

DISTRIBUTIONS = {
    "ale_py": "ale-py",
    "cv2": "opencv-python-headless",
    "envpool": "envpool",
    "filelock": "filelock",
    "gymnasium": "gymnasium",
    "moviepy": "moviepy",
    "mujoco": "mujoco",
    "numpy": "numpy",
    "torch": "torch",
    "torch.utils.tensorboard": "tensorboard",
    "tqdm": "tqdm",
    "tyro": "tyro",
}
# --track asks the user to install it; nobody else needs it.
OPTIONAL = {"wandb"}


def metadata(script: str) -> dict:
    """Read the inline script metadata (PEP 723)."""
    (block,) = re.findall(r"(?m)^# /// script\n((?:#(?: .*)?\n)+?)# ///$", SOURCES[script])
    return tomllib.loads("".join(line[2:] or "\n" for line in block.splitlines(keepends=True)))


def pins(lines: list[str]) -> dict[str, tuple[set[str], str]]:
    """Return the extras and the version of each package; every line pins one package exactly."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"([a-z0-9-]+)(?:\[([a-z0-9,-]+)\])?==(\d+(?:\.\d+)*)", line)
        assert match, f"not of the form name==version: {line}"
        name, extras, version = match.groups()
        assert name not in found, f"{name} stands there twice"
        found[name] = set(extras.split(",")) if extras else set(), version
    return found


def requirements(name: str) -> dict[str, tuple[set[str], str]]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return pins([line for line in lines if not line.startswith("-")])


def imported_modules(script: str) -> set[str]:
    """Return the modules that a script imports, wherever in the file; the part before the first dot suffices."""
    names = set()
    for node in ast.walk(ast.parse(SOURCES[script])):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name if name in DISTRIBUTIONS else name.partition(".")[0] for name in names}


def needed(script: str) -> dict[str, set[str]]:
    """Return the packages that a script needs, each with the extras, from what stands in the file."""
    modules = imported_modules(script) - sys.stdlib_module_names - OPTIONAL
    packages = {DISTRIBUTIONS[module]: set() for module in modules}
    if "capture_video" in SOURCES[script]:
        packages["moviepy"] = set()
    if "AtariPreprocessing" in SOURCES[script]:
        packages["opencv-python-headless"] = set()
    default = gym.registry.get(importlib.import_module(script).Args.env_id)
    if "classic_control" in str(default and default.entry_point):
        packages["gymnasium"] = {"classic-control"}
    if "mujoco" in str(default and default.entry_point):
        packages["gymnasium"], packages["mujoco"] = {"mujoco"}, set()
    return packages


@pytest.mark.parametrize("script", SCRIPTS)
def test_metadata_lists_exactly_what_the_script_needs(script):
    data = metadata(script)
    assert data.keys() == {"requires-python", "dependencies"}
    assert data["requires-python"] == ">=3.11"
    assert {name: extras for name, (extras, _) in pins(data["dependencies"]).items()} == needed(
        script
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_metadata_pins_the_versions_of_requirements_txt(script):
    tested = requirements("requirements.txt")
    for name, (extras, version) in pins(metadata(script)["dependencies"]).items():
        assert name in tested
        assert tested[name][1] == version, (
            f"{script}.py and requirements.txt pin different versions of {name}"
        )
        assert extras <= tested[name][0]


def test_requirements_are_what_the_scripts_need_together():
    together = {}
    for script in SCRIPTS:
        for name, extras in needed(script).items():
            together[name] = together.get(name, set()) | extras
    assert {
        name: extras for name, (extras, _) in requirements("requirements.txt").items()
    } == together


def test_evaluate_needs_what_the_scripts_need_together():
    assert metadata("evaluate")["requires-python"] == ">=3.11"
    assert pins(metadata("evaluate")["dependencies"]) == requirements("requirements.txt")


def test_what_the_requirements_pull_in_is_pinned_as_it_is_installed_here():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert "-c constraints.txt" in (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert {name: importlib.metadata.version(name) for name in constraints} == constraints


def test_requirements_for_development_are_pinned_and_not_pinned_twice():
    development = requirements("requirements-dev.txt")
    assert {"pytest", "ruff"} <= development.keys()
    assert not development.keys() & requirements("requirements.txt").keys()


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_imports_nothing_from_this_repository(script):
    own = {path.stem for path in ROOT.glob("*.py")} | {
        path.name for path in ROOT.iterdir() if path.is_dir()
    }
    assert not imported_modules(script) & own


# Labels


def numbered(kind: str, count: int) -> set[str]:
    return {f"{kind} {number}" for number in range(1, count + 1)}


LABELS = {
    "ppo": numbered("Core", 13),
    "ppo_atari": numbered("Core", 12) | numbered("Atari", 9),
    "ppo_atari_envpool": numbered("Core", 12) | numbered("Atari", 9),
    "ppo_atari_multigpu": numbered("Core", 12) | numbered("Atari", 9) | {"Aux 2"},
    "ppo_continuous_action": numbered("Core", 13) | numbered("Continuous", 9),
    "ppo_atari_lstm": numbered("Core", 12)
    | (numbered("Atari", 9) - {"Atari 7"})
    | numbered("LSTM", 5),
    "ppo_multidiscrete": numbered("Core", 13) | {"MultiDiscrete 1", "Aux 4"},
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_detail_is_labelled_and_no_other(script):
    # In every script the clip range can be annealed (Aux 1) and the epochs can stop early (Aux 3).
    assert details.labelled_lines(HALVES[script][0]).keys() == LABELS[script] | {"Aux 1", "Aux 3"}


def test_table_of_details_has_all_37_and_the_4_auxiliary_ones():
    all_37 = (
        numbered("Core", 13)
        | numbered("Atari", 9)
        | numbered("Continuous", 9)
        | numbered("LSTM", 5)
    )
    assert len(all_37 | {"MultiDiscrete 1"}) == 37
    assert details.DETAILS.keys() == all_37 | {"MultiDiscrete 1"} | numbered("Aux", 4)


def test_table_of_details_links_to_every_labelled_line():
    links = set()
    for row in details.table().splitlines()[2:]:
        label = row.split(" | ")[0].removeprefix("| ")
        for script, line in re.findall(r"\(\.\./(\w+)\.py#L(\d+)\)", row):
            assert f"{label}: " in SOURCES[script].splitlines()[int(line) - 1]
            links.add((label, script))
    expected = {
        (label, script) for script in SCRIPTS for label in LABELS[script] | {"Aux 1", "Aux 3"}
    }
    assert links == expected


def test_page_of_details_is_up_to_date():
    page = details.PAGE.read_text(encoding="utf-8")
    assert page == details.page(), "a labelled line has moved; run: python benchmark/details.py"


# What the pages and docstrings quote

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = [
    program
    for program in [ROOT / f"{script}.py" for script in SOURCES]
    + sorted(ROOT.glob("benchmark/*.py"))
    if "__main__" in program.read_text(encoding="utf-8")
]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the programs that a text calls with Python, uv or Bash, each with the flags that it gives them."""
    found = []
    for program, rest in re.findall(
        r"(?:python3?|uv run|bash|torchrun(?: --?[a-z_-]+(?:[= ]\d+)?)*) ((?:\w+/)*\w+\.(?:py|sh))\b([^`|&\n]*)",
        text,
    ):
        found.append((program, re.findall(r"--([a-z][a-z-]*)", rest)))
    return found


def flags_of(program: Path) -> set[str]:
    """Return the flags of a program that has its arguments in a class Args, or hands them to argparse."""
    source = program.read_text(encoding="utf-8")
    if "argparse" in source:
        return {*re.findall(r'add_argument\(\s*"--([a-z-]+)"', source), "help"}
    (args,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == "Args"]
    names = {
        field.target.id.replace("_", "-") for field in args.body if isinstance(field, ast.AnnAssign)
    }
    return names | {f"no-{name}" for name in names} | {"help"}


def assert_exist(quoted: Iterable[tuple[str, list[str]]]) -> None:
    for program, flags in quoted:
        if program.startswith("my/"):  # one that the reader makes, by copying another
            continue
        assert (ROOT / program).is_file(), f"there is no {program}"
        if flags:
            assert set(flags) <= flags_of(ROOT / program), (
                f"{program} has not all of these: {flags}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert_exist(commands(text))
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}, which does not exist"


def test_readme_links_to_every_script():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        assert f"]({script}.py)" in readme


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_commands_of_a_docstring_exist(program):
    quoted = commands(ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))))
    assert_exist(quoted)
    assert str(program.relative_to(ROOT)) in {name for name, _ in quoted}, (
        "a docstring says how its program is called"
    )


# That of cleanrl_atari is for a file of CleanRL's.
PATCHES = sorted(
    set(ROOT.glob("benchmark/experiments/*.patch"))
    - {ROOT / "benchmark" / "experiments" / "cleanrl_atari.patch"}
)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_the_patch_of_an_experiment_fits(patch):
    subprocess.run(["git", "apply", "--check", patch], cwd=ROOT, check=True)
