"""The files as text: what several scripts share is the same, metadata and pins agree, what is quoted exists."""

import ast
import difflib
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import ALL_SCRIPTS as SCRIPTS
from conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    script: (ROOT / f"{script}.py").read_text(encoding="utf-8") for script in [*SCRIPTS, "evaluate"]
}
MARKER = "\n# The algorithm ends here"
HALVES = {script: SOURCES[script].split(MARKER) for script in SCRIPTS}


# What several scripts share


def diff(one: str, other: str, name: str, other_name: str) -> str:
    return "\n".join(
        difflib.unified_diff(one.splitlines(), other.splitlines(), name, other_name, lineterm="")
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_follows_the_algorithm_is_the_same_to_the_letter(script):
    upper, lower = HALVES[script]
    assert ast.parse(upper).body[-1].name == "main"
    assert lower == HALVES["ppo"][1], diff(HALVES["ppo"][1], lower, "ppo.py", f"{script}.py")
    assert len(upper.splitlines()) > len(lower.splitlines()), "the algorithm is the larger half"


def test_without_its_lower_half_a_script_trains_as_the_page_on_research_says(tmp_path, run_program):
    upper, _ = HALVES["ppo"]
    upper = upper.rpartition("\n# ---")[0]
    for pattern, replacement in (
        (r"with Run\(.*\) as run:", "if True:"),
        (r"start = run\.global_step", "start = 0"),
        (r" *(check_args\(args\)|run\.end_step\(infos\)|run\.end_update\(lr, losses\))\n", ""),
        (r"\n *if args\.capture_video:\n.*\n.*RecordVideo.*", ""),
    ):
        upper, found = re.subn(pattern, replacement, upper)
        assert found
    upper = upper.replace("UsageError", "ValueError") + "\n\nmain(tyro.cli(Args))\n"
    assert not re.search(r"\brun\.\w", upper)
    (tmp_path / "short.py").write_text(upper)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY["ppo"].items()]
    assert run_program("short.py", *flags) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["short.py"]


# Every function and class above the marker, every method of Agent and every field of Args (but for its default) is the
# same in all scripts that have it, except for these; the number is how many versions there are.
VERSIONS = {
    "Args.env_id": 6,  # Gymnasium's discrete, continuous, Atari; EnvPool's Atari, Procgen; microRTS
    "Args.num_envs": 2,  # of all processes together
    "Args.capture_video": 2,  # MuJoCo needs MUJOCO_GL
    "Args.device": 2,  # a GPU is slower for small networks
    "Args.compile": 2,  # of the recurrent agent the convolutions alone
    "make_env": 5,
    "make_envs": 5,
    "Agent.__init__": 6,
    "Agent.forward": 6,
    "Batch": 6,
    "ppo_loss": 3,  # one line: what the agent is given
    "main": 8,
}


def lines_of(source: str, node: ast.AST) -> str:
    """Return the lines of a definition, with its decorators and the comments right above it."""
    lines = source.splitlines(keepends=True)
    decorators = [decorator.lineno for decorator in getattr(node, "decorator_list", [])]
    first = min([node.lineno, *decorators])
    while first > 1 and lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return "".join(lines[first - 1 : node.end_lineno])


def blocks(source: str) -> dict[str, str]:
    """Return the text of every block that could be shared, by its name."""
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if node.name == "Args":
            for field in node.body:
                comment = source.splitlines()[field.lineno - 1].partition("  #")[2]
                found[f"Args.{field.target.id}"] = f"{ast.unparse(field.annotation)}  #{comment}"
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
    groups = {}
    for script in SCRIPTS:
        if name in BLOCKS[script]:
            groups.setdefault(BLOCKS[script][name], []).append(script)
    texts = list(groups)
    assert len(groups) == VERSIONS.get(name, 1), (
        f"{name} has these versions: {list(groups.values())}\n\n"
        + "\n\n".join(diff(texts[0], other, "one", "other") for other in texts[1:])
        + "\n\nMake the same change in every script, or say in VERSIONS why they differ."
    )


def test_no_difference_is_listed_for_what_is_gone():
    assert VERSIONS.keys() <= set(NAMES)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_loss_differs_only_in_what_the_agent_is_given(script):
    pairs = zip(*(BLOCKS[name]["ppo_loss"].splitlines() for name in ("ppo", script)), strict=True)
    for one, other in pairs:
        assert one == other or re.fullmatch(
            r"    policy, values(, _)? = agent\(mb\.obs(, mb\.\w+)+\)", other
        )


PARTS_OF_MAIN = {  # first and last text, and the scripts that have it otherwise
    "schedules": (
        "        for global_step in range(start",
        "# Roll out the policy.",
        {"ppo_atari_lstm"},
    ),
    "advantages": ("advantages, returns = compute_gae(", "batch = Batch(", set()),
    "epochs": (
        "            stats = []\n",
        "run.end_update(",
        {"ppo_atari_lstm", "ppo_atari_multigpu"},
    ),
}


@pytest.mark.parametrize("part", PARTS_OF_MAIN)
def test_parts_of_main_are_the_same(part):
    begin, end, others = PARTS_OF_MAIN[part]
    for script in [name for name in SCRIPTS if name not in others]:
        texts = [
            re.search(f"{re.escape(begin)}.*?{re.escape(end)}", BLOCKS[name]["main"], re.DOTALL)[0]
            for name in ("ppo", script)
        ]
        assert texts[0] == texts[1], diff(*texts, "ppo.py", f"{script}.py")


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
    if importlib.import_module(script).Args.env_id.startswith("microrts:"):
        packages |= {name: set() for name in requirements("requirements-microrts.txt")}
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
    tested = requirements("requirements.txt") | requirements("requirements-microrts.txt")
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
    everything = requirements("requirements.txt") | requirements("requirements-microrts.txt")
    assert {name: extras for name, (extras, _) in everything.items()} == together


def test_evaluate_needs_what_the_scripts_need_together():
    assert metadata("evaluate")["requires-python"] == ">=3.11"
    assert pins(metadata("evaluate")["dependencies"]) == requirements("requirements.txt")


def test_what_the_requirements_pull_in_is_pinned_as_it_is_installed_here():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert "-c constraints.txt" in (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert {name: importlib.metadata.version(name) for name in constraints} == constraints


def test_other_requirements_are_pinned_once_and_as_they_are_installed_here():
    # Those of the site need not be installed: test_site.py looks at them.
    names = {path.name for path in ROOT.glob("requirements*.txt")} - {"requirements-docs.txt"}
    everything = [item for name in names for item in requirements(name).items()]
    assert len(dict(everything)) == len(everything)
    for name, (_, version) in everything:
        assert importlib.metadata.version(name).partition("+")[0] == version


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_imports_nothing_from_this_repository(script):
    own = {path.stem for path in ROOT.glob("*.py")} | {
        path.name for path in ROOT.iterdir() if path.is_dir()
    }
    assert not imported_modules(script) & own


# What the pages and docstrings quote

PAGES = [ROOT / "README.md", ROOT / "agents" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = [
    program
    for program in [ROOT / f"{script}.py" for script in SOURCES]
    + sorted([*ROOT.glob("benchmark/*.py"), *ROOT.glob("details/*.py")])
    if "__main__" in program.read_text(encoding="utf-8")
]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the programs that a text calls with Python, uv or torchrun, each with the flags that it gives them."""
    found = []
    for program, rest in re.findall(
        r"(?:python3?|uv run|torchrun(?: --?[a-z_-]+(?:[= ]\d+)?)*) ((?:\w+/)*\w+\.py)\b([^`|&\"\n]*)",
        text,
    ):
        found.append((program, re.findall(r"--([a-z][a-z-]*)", rest)))
    return found


def flags_of(program: Path) -> set[str]:
    """Return the flags of a program, which are the fields of its class Args."""
    body = ast.parse(program.read_text(encoding="utf-8")).body
    (args,) = (node for node in body if getattr(node, "name", None) == "Args")
    fields = [field for field in args.body if isinstance(field, ast.AnnAssign)]
    names = {field.target.id.replace("_", "-") for field in fields}
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


def test_the_patch_of_an_experiment_fits():
    patch = ROOT / "benchmark" / "experiments" / "cleanrl_normaliser.patch"
    subprocess.run(["git", "apply", "--check", patch], cwd=ROOT, check=True)
