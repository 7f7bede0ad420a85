"""The price of details: which scripts are trained, and what is made of their results."""

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import price
import pytest
from conftest import SCRIPTS
from episodes import write_csv

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = price.Experiment(
    name="made-up",
    script="ppo",
    env_ids=["A-v0"],
    steps=10_000,
    seeds=3,
    changes=["Core 7: without", "Core 9: without"],
    flags={"Aux 1: the clip range annealed": "--anneal-clip-coef"},
)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A repository with nothing in it but the script."""
    (tmp_path / "ppo.py").write_text((ROOT / "ppo.py").read_text())
    monkeypatch.setattr(price, "ROOT", tmp_path)
    return tmp_path


def test_a_plan_trains_seed_after_seed_what_the_catalogue_changes(root):
    plan = tomllib.loads(price.write_plan(EXPERIMENT).read_text())["settings"]
    assert [setting["seeds"] for setting in plan] == [[1]] * 4 + [[2]] * 4 + [[3]] * 4
    names = ["complete", "core-7-without", "core-9-without", "aux-1-the-clip-range-annealed"]
    assert [setting["name"] for setting in plan] == names * 3
    complete, core_7, _, aux_1 = ((root / setting["script"]).read_text() for setting in plan[:4])
    assert complete == aux_1 == (root / "ppo.py").read_text()
    assert plan[3]["flags"] == "--anneal-clip-coef"
    assert core_7 != complete
    compile(core_7, "core_7", "exec")


def test_experiments_name_what_is_there():
    changes = price.load().changes()
    for experiment in price.read_experiments():
        assert experiment.script in SCRIPTS
        for row in experiment.changes:
            assert experiment.script in changes[row].scripts
        assert len({experiment.setting(row) for row in experiment.rows()}) == len(experiment.rows())


def test_every_experiment_has_its_scripts(root):
    for experiment in price.read_experiments():
        if experiment.settings:
            continue
        shutil.copy(ROOT / f"{experiment.script}.py", root)
        plan = tomllib.loads(price.write_plan(experiment).read_text())["settings"]
        assert all(setting["flags"].startswith(experiment.options) for setting in plan)
        for path in {root / setting["script"] for setting in plan}:
            compile(path.read_text(), path, "exec")
            assert all((path.parent / name).is_file() for name in experiment.modules)


def test_runs_of_another_plan_are_taken_as_they_are():
    plans = [e for e in price.read_experiments() if e.settings]
    assert plans
    for experiment in plans:
        plan = ROOT / "benchmark" / "plans" / f"{experiment.name}.toml"
        assert price.write_plan(experiment).name == plan.name
        settings = tomllib.loads(plan.read_text())["settings"]
        for row in [price.COMPLETE, *experiment.rows()]:
            name = experiment.setting(row)
            found = [setting for setting in settings if setting["name"] == name]
            assert {env_id for setting in found for env_id in setting["env_ids"]} >= set(
                experiment.env_ids
            )
            assert {setting["script"] for setting in found} == {f"{experiment.script}.py"}
            assert {setting["steps"] for setting in found} == {experiment.steps}


def write_results(root, setting: str, finals: list[float]) -> None:
    """Write runs whose return rises in a straight line from 10 to each of the finals."""
    folder = root / "benchmark" / "results" / "price-made-up"
    folder.mkdir(parents=True, exist_ok=True)
    steps = np.arange(10, 10_001, 10)
    for seed, last in enumerate(finals, 1):
        returns = np.where(steps <= 200, 10, np.where(steps > 9000, last, (10 + last) / 2))
        episodes = pd.DataFrame({"step": steps, "return": returns, "length": 10, "seconds": 0.1})
        write_csv(folder / f"A-v0__{setting}__{seed}.csv.xz", episodes)


def test_a_price_is_the_difference_of_returns_between_the_untrained_and_the_complete(root):
    write_results(root, "complete", [108, 110, 112])
    write_results(root, "core-7-without", [58, 60, 62])  # half of what is to be learned
    write_results(root, "aux-1-the-clip-range-annealed", [100, 110, 120])
    half, none = price.prices(EXPERIMENT, "A-v0")
    assert half.row == "Core 7: without"
    assert half.seeds == 3
    assert half.final == pytest.approx(-0.5)
    assert half.area == pytest.approx(-0.5 * 100 / 1000 - 0.25 * 880 / 1000, abs=0.01)
    low, high = half.interval
    assert -0.54 <= low < -0.5 < high <= -0.46
    low, high = half.area_interval
    assert half.area - 0.02 < low < half.area < high < half.area + 0.02
    assert none.final == pytest.approx(0)
    assert none.interval[0] < -0.05
    assert none.interval[1] > 0.05
    text = price.table("A-v0", [half, none])
    assert "Core 7: Advantage normalisation, in each minibatch | -0.50 (" in text


def test_nothing_is_said_of_a_single_seed(root):
    write_results(root, "complete", [110])
    write_results(root, "core-7-without", [60, 61])
    assert price.prices(EXPERIMENT, "A-v0") == []
    write_results(root, "complete", [110, 111])
    write_results(root, "core-9-without", [60])
    assert [found.row for found in price.prices(EXPERIMENT, "A-v0")] == ["Core 7: without"]
