"""Write the results into the README: the tables, and the figures in docs, from benchmark/results.

    python benchmark/readme.py

The table has a row for each command of the plans below. Atari games have their milestones below it. The figures have
the settings and environments that are named here, as far as they have been run.
"""

import importlib
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmark")]  # also where this file is imported

import plot  # noqa: E402

README = ROOT / "README.md"
RESULTS = ROOT / "benchmark" / "results"
PLANS = ("classic", "mujoco", "atari", "cleaner")
EXPERIMENTS = ("truncated", "own_resets")  # plans that have figures and no rows
CONTINUOUS = ("ppo_continuous_action",)
FIGURES = {
    "results": {
        "CartPole-v1": ("separate",),
        "Hopper-v5": CONTINUOUS,
        "HalfCheetah-v5": CONTINUOUS,
        "Breakout-v5": ("ppo_atari_envpool",),
    },
    "mujoco": {
        "Walker2d-v5": CONTINUOUS,
        "InvertedPendulum-v5": CONTINUOUS,
        "Pusher-v5": CONTINUOUS,
        "Humanoid-v5": CONTINUOUS,
    },
    "atari": {
        "PongNoFrameskip-v4": ("ppo_atari",),
        "Pong-v5": ("ppo_atari_envpool",),
        "BreakoutNoFrameskip-v4": ("ppo_atari_lstm",),
    },
    "cleaner": {"Jumanji-Cleaner-v0": ("masked", "unmasked")},
    "truncated": {
        "Pendulum-v1": (*CONTINUOUS, "bootstrapped", "tuned", "tuned_bootstrapped"),
        "HalfCheetah-v5": (*CONTINUOUS, "bootstrapped"),
    },
    "own_resets": {"Breakout-v5": ("ppo_atari_envpool", "own_resets")},
}
DRAWN_STEPS = {"own_resets": 1_000_000}  # of figures that end before their runs
BEGIN, END = "<!-- results: python benchmark/readme.py -->\n", "<!-- end of the results -->\n"


def read(plan: str) -> plot.Groups:
    """Return the runs of a plan that have been exported, by environment and setting."""
    return plot.group([plot.read(path) for path in plot.find((RESULTS / plan,))])


def command_of(entry: dict) -> str:
    """Return the command of a run, as code, without its name, its seed, and the script's defaults."""
    command, _, stopped = entry["command"].partition("  # stopped at ")
    words = shlex.split(command)
    defaults = importlib.import_module(Path(words[1]).stem).Args()
    short = words[:2]
    for flag, value in zip(words[2:], [*words[3:], ""], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name in ("exp_name", "seed"):
            continue
        if not value or value.startswith("--"):  # a switch
            short += [flag]
        elif value != str(getattr(defaults, name)):
            short += [flag, value]
    cell = f"`{shlex.join(short)}`"
    if not entry["finished"]:
        return f"{cell}, not finished"
    return f"{cell}, stopped at {int(stopped):,} steps" if stopped else cell


def table() -> str:
    """Return the table of plot.py, with the command in place of environment and setting, and one mean of two."""
    lines = []
    for plan in PLANS:
        meta = json.loads((RESULTS / plan / "meta.json").read_text(encoding="utf-8"))
        for environment, settings in read(plan).items():
            for setting, runs in settings.items():
                by_command = {}  # what was stopped early has a row of its own
                for run in runs:
                    by_command.setdefault(command_of(meta[run.path.stem]), []).append(run)
                for command, some in by_command.items():
                    seeds = sorted(run.seed for run in some)
                    if seeds != list(range(1, len(seeds) + 1)):
                        command += f", seed {', '.join(map(str, seeds))}"
                    rows = plot.markdown(plot.final_returns({environment: {setting: some}}))
                    firsts = ("command", "---", command)
                    for first, row in zip(firsts, rows.splitlines(), strict=True):
                        _, _, _, *cells = row.split("|")
                        del cells[3]  # the interquartile mean
                        lines.append(f"| {first} |{'|'.join(cells)}\n")
    return "".join(dict.fromkeys(lines))  # the header once


def milestones() -> str:
    """Return a table for each Atari game: the mean of the last 100 games after each million steps."""
    text = ""
    for environment, settings in read("atari").items():
        for setting, runs in settings.items():
            longest = max(run.episodes.steps[-1] for run in runs)
            millions = np.arange(1, round(longest / 1e6, 1) + 1e-9).astype(int)
            if len(millions) == 0:
                continue
            rows = {f"{environment}, {setting}": [f"{million}M" for million in millions]}
            rows["---"] = ["---"] * len(millions)
            for run in runs:
                reached = [m for m in millions if run.episodes.steps[-1] > 0.99e6 * m]
                rows[f"seed {run.seed}"] = [plot.number(return_at(run, m * 1e6)) for m in reached]
            for curve in plot.published("curves", environment, plot.network_of(setting)):
                values = np.interp(millions * 1e6, curve["steps"], curve["returns"])
                rows[f"{curve['code']}, published"] = [plot.number(value) for value in values]
            for name, cells in rows.items():
                cells += [""] * (len(millions) - len(cells))
                text += f"| {' | '.join([name, *cells])} |\n"
            text += "\n"
    return text


def return_at(run: plot.Run, step: float) -> float:
    """Return the mean of the last 100 episodes that had ended by a step."""
    return run.episodes.returns[run.episodes.steps <= step][-plot.LAST :].mean()


def page() -> str:
    """Return the README with the tables of today."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + "\n" + milestones() + END + after


def cut(runs: list[plot.Run], last: float) -> list[plot.Run]:
    """Return runs without what came after a step."""
    return [replace(run, episodes=run.episodes.until(last)) for run in runs]


def draw(name: str, settings: dict[str, tuple[str, ...]]) -> None:
    """Draw docs/NAME.png: some settings of each environment."""
    runs = {}
    for plan in PLANS + EXPERIMENTS:
        for environment, some in read(plan).items():
            runs.setdefault(environment, {}).update(some)
    last = DRAWN_STEPS.get(name, np.inf)
    groups = {
        environment: {setting: cut(runs[environment][setting], last) for setting in names}
        for environment, names in settings.items()
        if environment in runs
    }
    curves = {
        (environment, setting): plot.curve(some)
        for environment, by_setting in groups.items()
        for setting, some in by_setting.items()
    }
    args = plot.Args(runs=(), x="steps", published_curves=True)
    with matplotlib.rc_context(plot.STYLE):
        plot.draw(groups, curves, args).savefig(ROOT / "docs" / f"{name}.png")


if __name__ == "__main__":
    README.write_text(page(), encoding="utf-8")
    for name, settings in FIGURES.items():
        draw(name, settings)
