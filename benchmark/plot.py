"""Draw learning curves beside the published ones, and print the table of final returns.

    python benchmark/plot.py runs/CartPole*
    python benchmark/plot.py benchmark/results/classic --output docs/classic.png

It takes run folders, result files, and folders that hold either. Each environment is a panel, each
setting a line. Unfinished runs are drawn as far as they go; of several with the same environment,
setting and seed in one folder, only the newest is used.

A curve: the run is cut into 100 windows of equal length in steps (fewer where they would hold less
than ten episodes). Returns are averaged in each window and for each seed; then come the mean over
the seeds that got there and its 95 % interval, by rliable's stratified bootstrap. The table has the
mean over the seeds of the last 100 episodes, with such an interval. With three or five seeds
it misses the true mean more often than one time in twenty; one seed has none.

Dashed and dotted lines are published results (sources in benchmark/published.json): curves, or
where there are none, the final return.
"""

import json
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.style
import numpy as np
import pandas as pd
import tyro
from episodes import read_csv, read_run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rliable import library, metrics

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
WINDOWS = 100  # points of a curve
LAST = 100  # episodes at the end of a run that its final return is the mean of
NAME = re.compile(r"(.+?)__(.+?)__(\d+)(__\d{9,}(-\d+)?)?(\.csv\.xz)?")  # of a folder or file

CODES = {  # whose results are published, and how they are drawn
    "official code": {"color": "black", "linestyle": "--"},
    "CleanRL": {"color": "#666666", "linestyle": ":"},
}
HEADER = ["steps", "seeds", f"return, last {LAST} episodes (95 % interval)", "minutes", "steps/s"]
HEADER += CODES
STYLE = [
    "petroff8",
    {
        "font.size": 9,
        "axes.titlesize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e5e5e5",
        "savefig.dpi": 150,
    },
]


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]  # run folders, result files, or folders of either
    output: Path = Path("plot.png")  # the picture


@dataclass
class Run:
    environment: str
    setting: str
    seed: int
    path: Path
    episodes: pd.DataFrame  # step, return, length, seconds


Settings = dict[str, list[Run]]  # by the name in the legend


# -------------------------------------------------------------------------------------------------
# Runs


def find(paths: tuple[Path, ...]) -> list[Path]:
    """Replace folders of runs by what is in them, and keep the newest of runs that are the same."""
    newest = {}
    for path in paths:
        inside = sorted(p for p in path.glob("*") if NAME.fullmatch(p.name))
        for run in inside or [path]:
            match = NAME.fullmatch(run.name)
            if match is None:
                sys.exit(f"error: {run} is no run: give folders such as runs/CartPole*")
            key = (run.parent, *match.groups()[:3])
            older = newest.get(key, run)
            # The unix time at the end, and a -2 behind that if two began in one second
            newest[key] = max(older, run, key=lambda p: (len(p.name), p.name))
    return list(newest.values())


def read(path: Path) -> Run:
    environment, setting, seed = NAME.fullmatch(path.name).groups()[:3]
    episodes = read_run(path) if path.is_dir() else read_csv(path)
    return Run(environment, setting, int(seed), path, episodes)


def group(runs: list[Run]) -> dict[str, Settings]:
    """Sort runs by environment and setting; from several folders, settings have their names too."""
    one_folder = len({run.path.parent for run in runs}) == 1
    groups = {}
    for run in runs:
        label = run.setting if one_folder else f"{run.path.parent.name}/{run.setting}"
        groups.setdefault(run.environment, {}).setdefault(label, []).append(run)
    return groups


# -------------------------------------------------------------------------------------------------
# Published results


def game(environment: str) -> str:
    """Return what ALE-Breakout-v5, Breakout-v5 and BreakoutNoFrameskip-v4 have in common."""
    pattern = r"(?:ALE[-/]|microrts[-:])?(\w+?)(?:NoFrameskip|Deterministic)?-v\d+"
    match = re.fullmatch(pattern, environment)
    return match[1] if match else environment


def network_of(setting: str) -> str:
    """Tell the network of a setting from its name: default, shared, LSTM or unmasked."""
    for network in ("shared", "LSTM", "unmasked"):
        if network.lower() in setting.lower():
            return network
    return "default"


def published(kind: Literal["returns", "curves"], environment: str, network: str) -> list[dict]:
    """Return the published results to compare with, one of each code at most."""
    return [
        entry
        for entry in PUBLISHED[kind]
        if game(entry["environment"]) == game(environment)
        and entry["network"] == network
        and entry.get("drawn", True)
    ]


# -------------------------------------------------------------------------------------------------
# Statistics


def mean_and_interval(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of scores (seeds, points), and its 95 % interval (2, points)."""
    if len(scores) == 1:
        return scores[0], np.full((2, scores.shape[1]), np.nan)
    np.random.seed(0)  # rliable draws from this generator: the same runs give the same numbers
    estimate = library.get_interval_estimates
    means, intervals = estimate({"": scores[:, None]}, metrics.aggregate_mean, reps=2000)
    return means[""], intervals[""]


def window_means(episodes: pd.DataFrame, edges: np.ndarray) -> pd.Series:
    """Return the mean return in each window; an empty one lies between its neighbours."""
    window = pd.cut(episodes.step, edges, labels=False)
    means = episodes["return"].groupby(window).mean().reindex(range(len(edges) - 1))
    return means.interpolate(limit_area="inside")


def curve(runs: list[Run]) -> pd.DataFrame:
    """Return the mean curve of a setting with its interval, a row a window, by step."""
    longest = max(run.episodes.step.iloc[-1] for run in runs)
    windows = np.clip(max(len(run.episodes) for run in runs) // 10, 2, WINDOWS)
    edges = np.linspace(0, longest, 1 + windows)
    centres = (edges[:-1] + edges[1:]) / 2

    returns = np.array([window_means(run.episodes, edges) for run in runs])  # (seeds, windows)
    there = np.isfinite(returns)
    columns = np.full((3, windows), np.nan)  # mean, low, high
    for seeds in np.unique(there[:, there.any(axis=0)], axis=1).T:
        # The windows that exactly these seeds have reached
        here = (there == seeds[:, None]).all(axis=0)
        mean, interval = mean_and_interval(returns[np.ix_(seeds, here)])
        columns[:, here] = [mean, *interval]

    points = pd.DataFrame(columns.T, index=centres, columns=["mean", "low", "high"])
    return points.dropna(subset="mean")


# -------------------------------------------------------------------------------------------------
# Table


def cells(environment: str, setting: str, runs: list[Run]) -> list[str]:
    """Return the final return of a setting and what it took, a cell for each word of HEADER."""
    finals = np.array([[run.episodes["return"][-LAST:].mean()] for run in runs])
    (mean,), ((low,), (high,)) = mean_and_interval(finals)
    steps = np.array([run.episodes.step.iloc[-1] for run in runs])
    seconds = np.array([run.episodes.seconds.iloc[-1] for run in runs])
    # To two digits: the last episode of a run of 1M steps ends at 998,550, say.
    reached = dict.fromkeys(short(float(f"{end:.2g}")) for end in (steps.min(), steps.max()))
    row = [
        " to ".join(reached),
        str(len(runs)),
        f"{number(mean)} ({number(low)} to {number(high)})" if len(runs) > 1 else number(mean),
        f"{np.median(seconds) / 60:.1f}",
        f"{np.median(steps / seconds):,.0f}",
    ]
    results = published("returns", environment, network_of(setting))
    by_code = {entry["code"]: published_cell(entry, environment) for entry in results}
    return row + [by_code.get(code, "") for code in CODES]


def published_cell(entry: dict, environment: str) -> str:
    mean, std = entry["mean"], entry["std"]
    cell = number(mean) if std is None else f"{number(mean)} ± {number(std, like=mean)}"
    same = environment.endswith(entry["environment"])  # or with the module that registers it
    version = "" if same else f"{entry['environment']}, "
    return f"{cell} ({version}{short(entry['steps'])})"


def number(value: float, like: float | None = None) -> str:
    """Write a return with the decimals that suit it, or `like`: 2465, 490.3, 0.53."""
    size = abs(value if like is None else like)
    return f"{value:.{0 if size >= 1000 else 1 if size >= 10 else 2}f}"


def short(value: float, _position=None) -> str:
    """Write a number of steps, or at a tick: 500, 1.5k, 10M."""
    value = float(f"{value:.3g}")  # 999,712 is 1M, not 1000k
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def markdown(rows: list[list[str]]) -> str:
    """Return a table in Markdown; the first row is its header."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# -------------------------------------------------------------------------------------------------
# Figure


def draw(groups: dict[str, Settings]) -> Figure:
    """Draw a panel for each environment, four at most in a row, with one legend for all."""
    rows = -(-len(groups) // 4)
    columns = -(-len(groups) // rows)
    figure = Figure(figsize=(9, 2.3 * rows + 0.4), layout="constrained")  # inches
    panels = figure.subplots(rows, columns, squeeze=False)
    names = list(dict.fromkeys(name for settings in groups.values() for name in settings))
    handles = {}
    for panel in panels.flat[len(groups) :]:
        panel.set_visible(False)
    for panel, (environment, settings) in zip(panels.flat, groups.items(), strict=False):
        for name, runs in settings.items():
            points = curve(runs)
            colour = f"C{names.index(name)}"
            panel.plot(points["mean"], color=colour, label=name)
            panel.fill_between(points.index, points.low, points.high, color=colour, alpha=0.2, lw=0)
        versions = draw_published(panel, environment, settings)
        counts = sorted({len(runs) for runs in settings.values()})
        seeds = "1\u00a0seed" if counts == [1] else f"{' or '.join(map(str, counts))}\u00a0seeds"
        beside = f"\nbeside {' and '.join(versions)}" if versions else ""
        title = f"{environment.removeprefix('microrts-')}, {seeds}"
        panel.set_title(textwrap.fill(title, 37, break_on_hyphens=False) + beside)
        panel.set_xlabel("environment steps")
        panel.set_ylabel("episodic return" if panel in panels[:, 0] else "")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(short)
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = sorted(handles, key=lambda label: label.startswith(tuple(CODES)))  # ours first
    looks = {"loc": "outside lower center", "ncols": 4, "frameon": False}
    figure.legend([handles[label] for label in labels], labels, **looks)
    return figure


def draw_published(panel: Axes, environment: str, settings: Settings) -> list[str]:
    """Draw curves as far as the runs go, or final returns; return the versions they are of."""
    longest = max(run.episodes.step.iloc[-1] for runs in settings.values() for run in runs)
    versions = {}
    networks = {network_of(runs[0].setting) for runs in settings.values()}
    for network in sorted(networks, key=str.lower):
        entries = {}
        for entry in published("returns", environment, network):
            if longest > 0.8 * entry["steps"]:  # it says nothing about runs that are not that far
                entries[entry["code"]] = entry | {
                    "steps": [0, longest],
                    "returns": [entry["mean"]] * 2,
                }
        for entry in published("curves", environment, network):
            entries[entry["code"]] = entry
        for code, entry in entries.items():
            steps = [step for step in entry["steps"] if step < longest] + [longest]
            known = entry["steps"], entry["returns"]
            returns = np.interp(steps, *known, left=np.nan, right=np.nan)
            label = code if network == "default" else f"{code}, {network}"
            panel.plot(
                steps, returns, label=label, alpha=1 if label == code else 0.5, **CODES[code]
            )
            versions[entry["environment"]] = True
    first, *others = versions or [environment]
    if environment.endswith(first):
        return []
    return [first, *(other.rpartition("-")[2] for other in others)]  # Hopper-v2, v4


def main(args: Args) -> None:
    found = [read(path) for path in find(args.runs)]
    for run in found:
        if run.episodes.empty:
            print(f"left out, no episode has finished: {run.path}", file=sys.stderr)
    groups = group([run for run in found if not run.episodes.empty])
    if not groups:
        sys.exit("error: nothing to draw")
    with matplotlib.style.context(STYLE):
        draw(groups).savefig(args.output)
    rows = [
        [environment, setting, *cells(environment, setting, runs)]
        for environment, settings in groups.items()
        for setting, runs in settings.items()
    ]
    print(markdown([["environment", "setting", *HEADER], *rows]))
    print("wrote", args.output)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
