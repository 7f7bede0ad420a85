"""Write the results into the README: the table, and the figure docs/results.png, from benchmark/results.

    python benchmark/readme.py

The table has a row for each setting of the plans below, with its command. The figure has the default setting in the
four environments that are named here, as far as they have been run.
"""

import importlib
import json
import shlex
import sys
from pathlib import Path

import matplotlib

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmark")]  # also where this file is imported

import plot  # noqa: E402

README = ROOT / "README.md"
RESULTS = ROOT / "benchmark" / "results"
PLANS = ("classic", "mujoco", "atari")
FIGURE = {
    "CartPole-v1": "separate",
    "Hopper-v5": "ppo_continuous_action",
    "HalfCheetah-v5": "ppo_continuous_action",
    "Breakout-v5": "ppo_atari_envpool",
}
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
        if not value.startswith("--") and value != str(getattr(defaults, name)):
            short += [flag, value] if value else [flag]
        elif value.startswith("--"):
            short += [flag]
    cell = f"`{shlex.join(short)}`"
    if not entry["finished"]:
        return f"{cell}, not finished"
    return f"{cell}, stopped at {int(stopped):,} steps" if stopped else cell


def table() -> str:
    """Return the table of plot.py, with the command in place of environment and setting, and one mean of two."""
    lines = []
    for plan in PLANS:
        if not (RESULTS / plan).is_dir():
            continue
        meta = json.loads((RESULTS / plan / "meta.json").read_text(encoding="utf-8"))
        groups = read(plan)
        runs = [runs[0] for settings in groups.values() for runs in settings.values()]
        commands = [command_of(meta[run.path.stem]) for run in runs]
        header, line, *rows = plot.markdown(plot.final_returns(groups)).splitlines()
        for command, row in zip(["command", "---", *commands], [header, line, *rows], strict=True):
            _, _, _, *cells = row.split("|")
            del cells[3]  # the interquartile mean
            lines.append(f"| {command} |{'|'.join(cells)}\n")
    return "".join(dict.fromkeys(lines))  # the header once


def page() -> str:
    """Return the README with the table of today."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def draw() -> None:
    groups = {}
    for plan in PLANS:
        if (RESULTS / plan).is_dir():
            groups |= read(plan)
    groups = {
        name: {setting: groups[name][setting]} for name, setting in FIGURE.items() if name in groups
    }
    curves = {(name, FIGURE[name]): plot.curve(groups[name][FIGURE[name]]) for name in groups}
    args = plot.Args(runs=(), x="steps", published_curves=True)
    with matplotlib.rc_context(plot.STYLE):
        plot.draw(groups, curves, args).savefig(ROOT / "docs" / "results.png")


if __name__ == "__main__":
    README.write_text(page(), encoding="utf-8")
    draw()
