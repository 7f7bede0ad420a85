"""The scripts as text: shared blocks are the same, metadata and pins agree, the shape is the one that was agreed on."""

import ast
import difflib
import importlib
import io
import re
import sys
import tokenize
import tomllib
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import pytest
from conftest import SCRIPTS

sys.path.append(str(Path(__file__).resolve().parents[1] / "docs"))
import details

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {script: (ROOT / f"{script}.py").read_text(encoding="utf-8") for script in SCRIPTS}


# What is the same stays the same


class Difference(NamedTuple):
    """Scripts in one group have the same text; the groups differ, and `reason` says why they must."""

    reason: str
    groups: tuple[set[str], ...]


VECTORS = {"ppo", "ppo_continuous_action", "ppo_multidiscrete"}
FRAMES = {"ppo_atari", "ppo_atari_envpool"}  # four of them at a time
LSTM, SEVERAL = {"ppo_atari_lstm"}, {"ppo_multidiscrete"}
EACH = ({"ppo"}, {"ppo_atari"}, {"ppo_atari_envpool"}, {"ppo_continuous_action"}, LSTM, SEVERAL)
KINDS = ({"ppo"}, {"ppo_continuous_action"}, SEVERAL, FRAMES, LSTM)

# Every top-level function and class, every method of Agent and every field of Args that is not named here is the same
# in all scripts that have it.
DIFFERENCES = {
    "main": Difference("the loop is where the settings differ", EACH),
    "make_env": Difference(
        "MuJoCo is told how to draw; Atari frames go through wrappers; an LSTM sees one",
        ({"ppo"} | SEVERAL, {"ppo_continuous_action"}, {"ppo_atari"}, LSTM),
    ),
    "make_envs": Difference(
        "each setting takes other spaces, and EnvPool makes all environments at once",
        EACH,
    ),
    "Batch": Difference("observations and actions have other shapes", KINDS),
    "Agent.__init__": Difference("each setting has its network", KINDS),
    "Agent.get_value": Difference("images pass through the convolutions, and the LSTM", (VECTORS, FRAMES, LSTM)),
    "Agent.get_action": Difference("the kind of action sets the distribution", ({"ppo"}, {"ppo_continuous_action"})),
    "Agent.get_action_and_value": Difference("the kind of action sets the distribution", KINDS),
    "ppo_loss": Difference(
        "the LSTM's state and the action mask are inputs of the network", ((VECTORS | FRAMES) - SEVERAL, LSTM, SEVERAL)
    ),
    "check_args": Difference("an LSTM's minibatch is whole environments", (VECTORS | FRAMES, LSTM)),
    "Args.env_id": Difference(
        "each script names its kind of environment",
        ({"ppo"}, {"ppo_continuous_action"}, SEVERAL, {"ppo_atari"} | LSTM, {"ppo_atari_envpool"}),
    ),
    "Args.device": Difference("a GPU is slower for small networks", (VECTORS, FRAMES | LSTM)),
}

WHAT_TO_DO = (
    "Blocks that several scripts share are kept identical, so that a diff of two scripts shows only what their "
    "settings need. Make the same change in every script that has the block. If the scripts must differ here, say so "
    "in DIFFERENCES in tests/test_files.py, with the reason."
)


def lines_of(source: str, node: ast.AST) -> str:
    """Return the lines of a definition, with its decorators and the comments right above it."""
    lines = source.splitlines(keepends=True)
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    while first > 1 and lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return "".join(lines[first - 1 : node.end_lineno])


def field_of(source: str, node: ast.AnnAssign) -> str:
    """Return what all scripts must agree on in a field of Args: name, type and comment, but not the default."""
    text = lines_of(source, node)
    comments = [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    ]
    return f"{node.target.id}: {ast.unparse(node.annotation)}\n" + "".join(f"{comment}\n" for comment in comments)


def blocks(source: str) -> dict[str, str]:
    """Return the text of every block that could be shared, by its name."""
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if node.name == "Args":
            found |= {f"Args.{f.target.id}": field_of(source, f) for f in node.body if isinstance(f, ast.AnnAssign)}
        elif node.name == "Agent":
            found |= {f"Agent.{f.name}": lines_of(source, f) for f in node.body if isinstance(f, ast.FunctionDef)}
        else:
            found[node.name] = lines_of(source, node)
    return found


def disagreements(sources: dict[str, str], differences: dict[str, Difference]) -> list[str]:
    """Return a message for every block that is not the same where it has to be."""
    of_script = {script: blocks(source) for script, source in sources.items()}
    names = dict.fromkeys(name for found in of_script.values() for name in found)
    messages = []
    for name in names:
        groups = differences[name].groups if name in differences else (set(of_script),)
        for group in groups:
            first, *others = [script for script in of_script if script in group and name in of_script[script]] or [None]
            for other in others:
                one, two = of_script[first][name], of_script[other][name]
                if one != two:
                    diff = difflib.unified_diff(
                        one.splitlines(), two.splitlines(), f"{first}.py", f"{other}.py", lineterm=""
                    )
                    text = "\n".join(diff)
                    messages.append(f"{name} is not the same in {first}.py and {other}.py:\n\n{text}\n\n{WHAT_TO_DO}")
    return messages


def test_shared_blocks_are_identical():
    messages = disagreements(SOURCES, DIFFERENCES)
    assert not messages, "\n\n".join(["", *messages])


@pytest.mark.parametrize("name", DIFFERENCES)
def test_table_of_differences_is_up_to_date(name):
    having = {script for script, source in SOURCES.items() if name in blocks(source)}
    groups = DIFFERENCES[name].groups
    assert sorted(having) == sorted(script for group in groups for script in group), (
        f"{name}: the groups in DIFFERENCES must name each script that has it, once"
    )
    texts = [blocks(SOURCES[min(group)])[name] for group in groups]
    assert len(set(texts)) == len(groups), f"{name}: two groups in DIFFERENCES are the same by now; make them one"


@pytest.mark.parametrize("script", ["ppo_atari_lstm", "ppo_multidiscrete"])
def test_the_loss_differs_only_in_what_the_agent_is_given(script):
    pairs = zip(*(blocks(SOURCES[name])["ppo_loss"].splitlines() for name in ("ppo", script)), strict=True)
    ((_, other),) = [(one, other) for one, other in pairs if one != other]
    assert re.fullmatch(
        r"    _, logprobs, entropy, values(, _)? = agent\.get_action_and_value\((mb\.\w+(, )?)+\)", other
    )


@pytest.mark.parametrize(
    ("block", "old", "new", "changed_line"),
    [
        ("ppo_loss", "ratio = logratio.exp()", "ratio = logratio.exp2()", "    ratio = logratio.exp2()"),
        ("ppo_loss", "():  # Core 12: ", "():  # Core 12:  ", "    with torch.no_grad():  # Core 12:  "),
        ("fail", "def fail(", "# never returns\ndef fail(", "# never returns\n"),
        ("Args.gamma", "gamma: float =", "gamma: int =", "gamma: int\n"),
        ("Args.gamma", "# discount factor", "# the discount factor", "# the discount factor\n"),
        (
            "Agent.get_value",
            "self.critic(x).squeeze(-1)",
            "self.critic(x)[..., 0]",
            "        return self.critic(x)[..., 0]",
        ),
    ],
)
def test_changed_copy_is_reported_with_its_files_and_a_diff(block, old, new, changed_line):
    assert SOURCES["ppo_continuous_action"].count(old) == 1
    doctored = SOURCES | {"ppo_continuous_action": SOURCES["ppo_continuous_action"].replace(old, new)}
    known = disagreements(SOURCES, DIFFERENCES)
    (message,) = [message for message in disagreements(doctored, DIFFERENCES) if message not in known]
    assert message.startswith(f"{block} is not the same in ppo.py and ppo_continuous_action.py:")
    assert f"+{changed_line}" in message
    assert WHAT_TO_DO in message


def test_default_of_an_argument_may_differ():
    doctored = SOURCES | {"ppo": re.sub(r"(gamma: float =) \S+", r"\1 0.5", SOURCES["ppo"])}
    assert doctored["ppo"] != SOURCES["ppo"]
    assert disagreements(doctored, DIFFERENCES) == disagreements(SOURCES, DIFFERENCES)


# Metadata and pins

DISTRIBUTIONS = {
    "ale_py": "ale-py",
    "cv2": "opencv-python-headless",
    "envpool": "envpool",
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
    return pins((ROOT / name).read_text(encoding="utf-8").splitlines())


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
    assert {name: extras for name, (extras, _) in pins(data["dependencies"]).items()} == needed(script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_metadata_pins_the_versions_of_requirements_txt(script):
    tested = requirements("requirements.txt")
    for name, (extras, version) in pins(metadata(script)["dependencies"]).items():
        assert name in tested
        assert tested[name][1] == version, f"{script}.py and requirements.txt pin different versions of {name}"
        assert extras <= tested[name][0]


def test_requirements_are_what_the_scripts_need_together():
    together = {}
    for script in SCRIPTS:
        for name, extras in needed(script).items():
            together[name] = together.get(name, set()) | extras
    assert {name: extras for name, (extras, _) in requirements("requirements.txt").items()} == together


def test_requirements_for_development_are_pinned_and_not_pinned_twice():
    development = requirements("requirements-dev.txt")
    assert {"pytest", "ruff"} <= development.keys()
    assert not development.keys() & requirements("requirements.txt").keys()


# Shape


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_short_enough_to_be_read(script):
    lines = SOURCES[script].splitlines()
    assert len(lines) <= 450, f"{script}.py has {len(lines)} lines"
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("script", SCRIPTS)
def test_docstring_has_at_most_20_lines(script):
    docstring = ast.parse(SOURCES[script]).body[0]
    assert ast.get_docstring(ast.parse(SOURCES[script]))
    assert docstring.end_lineno - docstring.lineno + 1 <= 20
    assert f"python {script}.py" in docstring.value.value


def comments(source: str) -> dict[int, str]:
    """Return the comments by their line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


@pytest.mark.parametrize("script", SCRIPTS)
def test_at_least_15_percent_of_the_lines_carry_a_comment(script):
    commented, lines = len(comments(SOURCES[script])), len(SOURCES[script].splitlines())
    assert commented / lines >= 0.15, f"{commented} of the {lines} lines of {script}.py"


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_imports_nothing_from_this_repository(script):
    own = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not imported_modules(script) & own


# Labels


def numbered(kind: str, count: int) -> set[str]:
    return {f"{kind} {number}" for number in range(1, count + 1)}


LABELS = {
    "ppo": numbered("Core", 13),
    "ppo_atari": numbered("Core", 12) | numbered("Atari", 9),
    "ppo_atari_envpool": numbered("Core", 12) | numbered("Atari", 9),
    "ppo_continuous_action": numbered("Core", 13) | numbered("Continuous", 9),
    "ppo_atari_lstm": numbered("Core", 12) | (numbered("Atari", 9) - {"Atari 7"}) | numbered("LSTM", 5),
    "ppo_multidiscrete": numbered("Core", 13) | {"MultiDiscrete 1", "Aux 4"},
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_detail_is_labelled_and_no_other(script):
    # In every script the clip range can be annealed (Aux 1) and the epochs can stop early (Aux 3).
    assert details.labelled_lines(SOURCES[script]).keys() == LABELS[script] | {"Aux 1", "Aux 3"}


def test_table_of_details_has_all_37_and_the_4_auxiliary_ones():
    all_37 = numbered("Core", 13) | numbered("Atari", 9) | numbered("Continuous", 9) | numbered("LSTM", 5)
    assert len(all_37 | {"MultiDiscrete 1"}) == 37
    assert details.DETAILS.keys() == all_37 | {"MultiDiscrete 1"} | numbered("Aux", 4)


def test_table_of_details_links_to_every_labelled_line():
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in details.table().splitlines()[2:]}
    links = {
        (label, script, int(line))
        for label, row in rows.items()
        for script, line in re.findall(r"\((\w+)\.py#L(\d+)\)", row)
    }
    assert {(label, script) for label, script, _ in links} == {
        (label, script) for script in SCRIPTS for label in LABELS[script] | {"Aux 1", "Aux 3"}
    }
    for label, script, line in links:
        assert f"{label}: " in SOURCES[script].splitlines()[line - 1]


def test_readme_has_the_table_as_it_is_now():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert details.with_table(readme) == readme, "run: python docs/details.py"
