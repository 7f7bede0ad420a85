"""The catalogue of details: it fits the scripts and the page, and tests notice what it does to the scripts."""

import ast
import re
from pathlib import Path

import catalogue
import msgspec
import pytest
import remove
from conftest import ALL_SCRIPTS

ROOT = Path(__file__).resolve().parents[1]
CATALOGUE = catalogue.load()
CHANGES = CATALOGUE.changes()
KINDS = {"Core": 13, "Atari": 9, "Continuous": 9, "LSTM": 5, "MultiDiscrete": 1, "Aux": 4}
LABELS = [f"{kind} {number + 1}" for kind, count in KINDS.items() for number in range(count)]


# The details


def labelled(script: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return labels and the texts behind them, in a script's algorithm and in what follows it.

    Labels have the form `Core 7: ...`; `Core 13, Continuous 4: ...` has two.
    """
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    label = rf"(?:{'|'.join(KINDS)}) \d+"
    halves = []
    for half in source.split("\n# The algorithm ends here"):
        found = re.findall(rf"((?:{label}, )*{label}): (.+)", half)
        halves.append([(name, text) for names, text in found for name in names.split(", ")])
    algorithm, rest = halves
    return algorithm, rest


def test_the_catalogue_has_all_37_details_and_the_4_auxiliary_ones_in_their_order():
    assert [detail.label for detail in CATALOGUE.details] == LABELS
    assert len(LABELS) == 37 + 4


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_a_script_labels_the_details_that_it_has_and_no_other(script):
    algorithm, rest = labelled(script)
    having = {detail.label for detail in CATALOGUE.details if script in detail.scripts}
    assert {label for label, _ in algorithm} == having
    assert not rest


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_the_official_lines_that_a_script_names_are_those_of_the_catalogue(script):
    official = {detail.label: detail.official for detail in CATALOGUE.details}
    for label, text in labelled(script)[0]:
        for file, lines in re.findall(r"(\w+/\w+\.py)#(L[\dL-]+)\)", text):
            assert f"{file}#{lines}" in official[label], f"{label}: {file}#{lines}"


@pytest.mark.parametrize("detail", CATALOGUE.details, ids=lambda detail: detail.label)
def test_a_detail_says_what_it_is_and_where(detail):
    assert detail.name
    assert detail.why.endswith(".")
    assert (detail.official == []) == (detail.label == "Aux 4")  # which is not in the official code
    assert set(detail.scripts) <= set(ALL_SCRIPTS)
    if detail.removal is not None:
        assert detail.removal.instead.endswith(".")
        assert set(detail.removal.scripts) == set(detail.scripts)


def test_details_md_is_what_the_catalogue_says():
    text = catalogue.PAGE.read_text(encoding="utf-8")
    assert catalogue.page(CATALOGUE, text) == text, "run python details/catalogue.py"


# The changes


def test_every_change_applies_and_compiles_and_no_two_are_alike():
    names = {}
    for name, change in CHANGES.items():
        compiled = set()
        assert change.scripts, f"{name} names no script"
        for script in change.scripts:
            source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
            broken = catalogue.apply(change, script, source)
            edits = tuple(edit.new for edit in change.edits if script in edit.scripts)
            if edits not in compiled:  # in one of the scripts, which takes long enough
                ast.parse(broken, filename=f"{script}.py: {name}")
                compiled.add(edits)
            assert broken != source, f"{name} changes nothing in {script}.py"
            assert (script, broken) not in names, f"{name} is {names.get((script, broken))}"
            names[script, broken] = name


def test_the_tests_of_a_change_exist():
    for name, change in CHANGES.items():
        assert change.tests, f"{name} names no test"
        for test in change.tests:
            file, _, function = test.partition("::")
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {function.partition('[')[0]}" in source, f"{name}: {test}"


def test_an_edit_whose_text_is_not_there_exactly_once_is_an_error():
    change = catalogue.Change(edits=[catalogue.Edit("b", "c", ["one"])], tests=[])
    assert catalogue.apply(change, "one", "abd") == "acd"
    assert catalogue.apply(change, "another", "abd") == "abd"
    for source in ("ad", "abba"):
        with pytest.raises(ValueError, match="times: b"):
            catalogue.apply(change, "one", source)


def test_a_field_that_is_misspelt_and_a_detail_without_a_removal_are_errors():
    detail = {"label": "Core 1", "name": "n", "why": "w", "official": [], "scripts": ["ppo"]}
    for fields in (detail, detail | {"kept": "k", "added_by": "a"}, detail | {"keept": "k"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(fields, catalogue.Detail)
    assert msgspec.convert(detail | {"kept": "k"}, catalogue.Detail).kept == "k"


# A dozen of them, with tests that take a second or two each; details/remove.py tries all.
DOZEN = [
    ("Core 3: Adam's epsilon of 1e-5 is added after the bias correction", "ppo"),
    ("Core 5: without", "ppo"),
    ("Core 5: the flag of an episode's end counts one step late", "ppo_continuous_action"),
    ("Core 7: without", "ppo"),
    (
        "Core 7: the advantages are divided by the sample standard deviation",
        "ppo_continuous_action",
    ),
    ("Core 8: without", "ppo"),
    ("Core 9: the value is clipped around the new prediction", "ppo"),
    ("Atari 3: without", "ppo_atari"),
    (
        "Continuous 8: rewards are divided by their own standard deviation instead of the return's",
        "ppo_procgen",
    ),
    ("LSTM 3: without", "ppo_atari_lstm"),
    ("MultiDiscrete 1: the entropy is averaged over components", "ppo_multidiscrete"),
    ("Aux 4: without", "ppo_multidiscrete"),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return remove.copy_repository(tmp_path_factory.mktemp("copy") / "repository")


@pytest.mark.parametrize(("name", "script"), DOZEN)
def test_a_change_is_noticed(name, script, repository):
    assert remove.outcome(CHANGES[name], script, repository) == "noticed"


def test_what_no_test_notices_is_told_from_what_has_no_test(repository):
    source = (repository / "ppo.py").read_text(encoding="utf-8")
    for tests, expected in [
        (["test_loss.py::test_statistics_keep_no_graph_alive"], "not noticed"),
        (["test_lstm.py::test_the_first_state_is_zero"], "no test"),  # none about ppo.py
        (["test_loss.py::no_such_test"], "pytest failed (4)"),
    ]:
        harmless = catalogue.Change(edits=[], tests=tests)
        assert remove.outcome(harmless, "ppo", repository) == expected
    assert (repository / "ppo.py").read_text(encoding="utf-8") == source
