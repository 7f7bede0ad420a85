"""Write the tables in docs/results.md and the figures of docs/ from benchmark/results.

    python benchmark/tables.py

The first table has a row for each command of the plans below; those of Atari games follow.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.style
import numpy as np
import plot

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "benchmark" / "results"
BEGIN, END = "<!-- results: python benchmark/tables.py -->\n", "<!-- end of the results -->\n"
PLANS = ("classic", "mujoco", "atari", "breakout", "microrts", "procgen")
GAMES = ("atari", "breakout")  # plans that have a table of milestones
FIGURES = {  # environments, and the results PLAN/*__SETTING__* of each
    "results": {
        "CartPole-v1": ["classic/separate"],
        "Hopper-v5": ["mujoco/ppo_continuous_action"],
        "HalfCheetah-v5": ["mujoco/ppo_continuous_action"],
        "Breakout-v5": ["breakout/ppo_atari_envpool"],
    },
    "mujoco": {
        "Walker2d-v5": ["mujoco/ppo_continuous_action"],
        "InvertedPendulum-v5": ["mujoco/ppo_continuous_action"],
        "Pusher-v5": ["mujoco/ppo_continuous_action"],
        "Humanoid-v5": ["mujoco/ppo_continuous_action"],
    },
    "atari": {
        "PongNoFrameskip-v4": ["atari/ppo_atari"],
        "Pong-v5": ["atari/ppo_atari_envpool"],
        "BreakoutNoFrameskip-v4": ["atari/ppo_atari", "atari/ppo_atari_lstm"],
        "StarpilotEasy-v0": ["procgen/ppo_procgen"],
    },
    "microrts": {
        "microrts-MicrortsMining-v1": ["microrts/masked", "microrts/unmasked"],
        "microrts-MicrortsAttackShapedReward-v1": ["microrts/unmasked"],
        "microrts-MicrortsRandomEnemyShapedReward3-v1": ["microrts/masked", "microrts/unmasked"],
    },
    "truncated": {
        "Pendulum-v1": [
            "truncated/ppo_continuous_action",
            "truncated/bootstrapped",
            "truncated/tuned",
            "truncated/tuned_bootstrapped",
        ],
        "HalfCheetah-v5": ["mujoco/ppo_continuous_action", "truncated/bootstrapped"],
    },
    "own_resets": {"Breakout-v5": ["atari/ppo_atari_envpool", "own_resets/own_resets"]},
}
LAST_STEPS = {"own_resets": 1_000_000}  # of figures that end before their runs


def read(pattern: str) -> list[plot.Run]:
    return [plot.read(path) for path in plot.find(sorted(RESULTS.glob(pattern)))]


def entry_of(run: plot.Run) -> dict:
    return json.loads(Path(str(run.path).removesuffix(".csv.xz") + ".json").read_text())


def note_of(run: plot.Run) -> str:
    entry = entry_of(run)
    return f" ({entry['note']})" if "note" in entry else ""


def command_of(run: plot.Run) -> str:
    """Return the command without its seed, a note on its code, and where the run was stopped."""
    entry = entry_of(run)
    command = f"`{re.sub(r' --seed [0-9]+', '', entry['command'])}`{note_of(run)}"
    return f"{command}, stopped at {entry['stop_at']:,}" if "stop_at" in entry else command


def table() -> str:
    """Return the final returns, a row for each command."""
    rows = [["command", *plot.HEADER]]
    for plan in PLANS:
        by_command = {}
        for run in read(f"{plan}/*.csv.xz"):
            by_command.setdefault(command_of(run), []).append(run)
        for command, runs in by_command.items():
            rows.append([command, *plot.cells(runs[0].environment, runs[0].setting, runs)])
    return plot.markdown(rows)


def milestones() -> str:
    """Return a table for each Atari game: the last 100 games' mean after each million steps."""
    games = [game for plan in GAMES for game in plot.group(read(f"{plan}/*.csv.xz")).items()]
    text = ""
    for environment, settings in games:
        for setting, runs in settings.items():
            longest = max(run.episodes.step.iloc[-1] for run in runs)
            steps = np.arange(1e6, longest + 1e4, 1e6)
            header = [f"{environment}, {setting}{note_of(runs[0])}", *map(plot.short, steps)]
            rows = [[f"seed {run.seed}", *returns_at(run, steps)] for run in runs]
            for curve in plot.published("curves", environment, plot.network_of(setting)):
                values = np.interp(steps, curve["steps"], curve["returns"])
                rows.append([f"{curve['code']}, published", *map(plot.number, values)])
            text += "\n" + plot.markdown([header, *rows])
    return text


def returns_at(run: plot.Run, steps: np.ndarray) -> list[str]:
    """Return the mean of the last 100 episodes before each step that the run has reached."""
    cells = []
    for step in steps:
        before = run.episodes[run.episodes.step <= step]
        reached = run.episodes.step.iloc[-1] > 0.99 * step
        cells.append(plot.number(before["return"][-plot.LAST :].mean()) if reached else "")
    return cells


def page() -> str:
    """Return docs/results.md with the tables of today."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{milestones()}{END}{after}"


def draw(name: str) -> None:
    """Draw docs/NAME.png."""
    last = LAST_STEPS.get(name, np.inf)
    groups = {}
    several = any(len(settings) > 1 for settings in FIGURES[name].values())
    for environment, settings in FIGURES[name].items():
        for text in settings:
            plan, _, setting = text.partition("/")
            label = setting if several else "ours"
            for run in read(f"{plan}/{environment}__{setting}__*.csv.xz"):
                run = replace(run, episodes=run.episodes[run.episodes.step <= last])
                groups.setdefault(environment, {}).setdefault(label, []).append(run)
    with matplotlib.style.context(plot.STYLE):
        plot.draw(groups).savefig(ROOT / "docs" / f"{name}.png")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    for name in FIGURES:
        draw(name)
