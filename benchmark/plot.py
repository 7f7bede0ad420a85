"""Draw learning curves of runs, and the table of their final returns.

    python benchmark/plot.py runs/CartPole*
    python benchmark/plot.py benchmark/results/classic --x steps --output docs/classic

It takes run folders, result files ENVIRONMENT__SETTING__SEED.csv, and folders that hold either. Each environment has
its panels: return against steps and, below, against minutes. Each setting (the --exp-name of a run) is a line. Of two
runs that differ in nothing but their time, the newest counts. Runs that go on are drawn as far as they are.

It writes four files: plot.png, plot.csv (the points drawn), plot_table.md and plot_table.csv (the final returns).

A curve: the run is cut into 100 windows of equal length in steps (fewer where they would hold less than ten episodes).
The returns of the episodes that ended in a window are averaged, for each seed; then come the mean over the seeds that
got there and its 95 % interval, by rliable's stratified bootstrap. One seed has no interval. Against minutes it is the
same curve, each point moved to when the seeds typically (by the median) got there; a run that was paused shows it.

The table: the mean of each seed's last 100 training episodes; of these the mean and the interquartile mean over the
seeds, with intervals of the same kind. With three or five seeds such an interval is too narrow more often than one
time in twenty.

Dashed and dotted lines are published results, from benchmark/published.json, which has their sources. The legend
says for which version of the environment they are, and after how many steps. An arrow: the line is off the scale,
because the runs are not that far yet.
"""

import json
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import tyro
from episodes import Episodes, read_csv, read_run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

try:
    import pandas as pd
    from rliable import library, metrics
except ImportError as error:
    sys.exit(f"{error.name} is missing: pip install -r requirements-benchmark.txt")

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
WINDOWS = 100  # points of a curve
LAST = 100  # episodes at the end of a run that its final return is the mean of
REPETITIONS = 2000  # of the bootstrap
FOLDER = re.compile(r"(.+?)__(.+)__(\d+)__(\d+)(?:-(\d+))?")  # of a run
FILE = re.compile(r"(.+?)__(.+)__(\d+)\.csv")  # of a result

# Okabe and Ito's colours, which colour-blind readers tell apart, without their yellow and black. There are as many
# markers as it takes for 42 settings to differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PUBLISHED_STYLES = {  # by code, and by whether the network is the default one
    ("official code", True): {"color": "black", "linestyle": "--"},
    ("official code", False): {"color": "black", "linestyle": "-."},
    ("CleanRL", True): {"color": "#666666", "linestyle": ":"},
    ("CleanRL", False): {"color": "#666666", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
}
CODES = ("official code", "CleanRL")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "savefig.dpi": 200,  # 1800 pixels wide: sharp where a page shows it at 900
}


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, result files, or folders of either (`runs`, `benchmark/results/PLAN`)"""
    x: Literal["both", "steps", "minutes"] = "both"
    """what to draw returns against"""
    published_curves: bool = False
    """draw the published curves against steps too, where there are any, instead of their last values"""
    output: Path = Path("plot")
    """beginning of the names of the four files"""


@dataclass
class Run:
    environment: str
    setting: str
    seed: int
    started: tuple[int, int]  # unix time, and the number that tells runs of one second apart
    place: Path  # the folder it lies in
    path: Path
    episodes: Episodes


Groups = dict[str, dict[str, list[Run]]]  # by environment and by the setting's name in the legend


# From files to settings


def find(paths: tuple[Path, ...]) -> Iterator[Path]:
    """Replace a folder that is no run by the result files and the run folders in it."""
    for path in paths:
        if not path.is_dir() or FOLDER.fullmatch(path.name):
            yield path
            continue
        results = [child for child in path.glob("*.csv") if FILE.fullmatch(child.name)]
        folders = [child for child in path.glob("*/") if FOLDER.fullmatch(child.name)]
        if not results and not folders:
            skip(path, "there are no run folders and no result files in it")
        yield from sorted(results + folders)


def skip(path: Path, why: str) -> None:
    print(f"skipped {path}: {why}", file=sys.stderr)


def read(path: Path) -> Run:
    """Read a run folder or a result file; a ValueError says what is wrong with it."""
    if not path.exists():
        raise ValueError("there is no such run or file; look into runs/")
    match = (FOLDER if path.is_dir() else FILE).fullmatch(path.name)
    if match is None:
        raise ValueError(
            "give a run folder, ENVIRONMENT__NAME__SEED__TIME, or ENVIRONMENT__SETTING__SEED.csv"
        )
    environment, setting, seed, *started = match.groups(default="1")
    try:
        episodes = read_run(path) if path.is_dir() else read_csv(path)
    except FileNotFoundError:
        raise ValueError("it has no TensorBoard log; train again") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(
            "not a result file, which has numbers in step,return,length,seconds"
        ) from None
    if len(episodes.steps) == 0:
        raise ValueError("no episode has finished; train longer")
    if not np.isfinite([episodes.steps, episodes.returns, episodes.seconds]).all():
        raise ValueError("some of its numbers are not finite; train again")
    return Run(
        environment=environment,
        setting=setting,
        seed=int(seed),
        started=tuple(map(int, started)),
        place=path.absolute().parent,
        path=path,
        episodes=episodes,
    )


def group(runs: list[Run]) -> Groups:
    """Sort runs by environment and setting, and keep the newest of those that are the same."""
    newest = {}
    for run in runs:
        key = (run.environment, run.setting, run.place, run.seed)
        older = newest.get(key)
        if older and older.started > run.started:
            older, run = run, older
        if older:
            skip(older.path, f"{run.path.name} is a newer run of the same")
        newest[key] = run

    groups = {}
    for environment, setting, place, seed in newest:
        # The same setting from two folders is two settings: your runs beside published ones of the same name.
        places = {key[2] for key in newest if key[:2] == (environment, setting)}
        names = {other.name for other in places}
        shown = place.name if len(names) == len(places) else place
        name = setting if len(places) == 1 else f"{setting} ({shown})"
        settings = groups.setdefault(environment, {})
        settings.setdefault(name, []).append(newest[environment, setting, place, seed])
    return groups


# Published results


def game(environment: str) -> str:
    """Return what ALE-Breakout-v5, Breakout-v5 and BreakoutNoFrameskip-v4 have in common."""
    match = re.fullmatch(r"(?:ALE[-/])?(\w+?)(?:NoFrameskip|Deterministic)?-v\d+", environment)
    return match[1] if match else environment


def published(kind: Literal["returns", "curves"], environment: str, network: str) -> list[dict]:
    """Return the published results to compare with, one of each code at most."""
    return [
        entry
        for entry in PUBLISHED[kind]
        if game(entry["environment"]) == game(environment)
        and entry["network"] == network
        and entry.get("drawn", True)
    ]


def network_of(setting: str) -> str:
    """Tell the network of a setting from its name: default, shared or LSTM."""
    for network in ("shared", "LSTM"):
        if network.lower() in setting.lower():
            return network
    return "default"


# Statistics


def bootstrap(scores: np.ndarray, statistic: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Return a statistic of scores (seeds, tasks, ...), and its 95 % interval (2, ...): nan with one seed."""
    np.random.seed(0)  # rliable draws from this generator: the same runs give the same files
    if len(scores) == 1:
        return statistic(scores), np.full((2, *statistic(scores).shape), np.nan)
    values, intervals = library.get_interval_estimates({"": scores}, statistic, reps=REPETITIONS)
    return values[""], intervals[""]


def window_means(episodes: Episodes, edges: np.ndarray) -> np.ndarray:
    """Return the mean return of the episodes that ended in each window, nan before the first and after the last."""
    windows = len(edges) - 1
    window = np.searchsorted(edges, episodes.steps).clip(1, windows) - 1
    counts = np.bincount(window, minlength=windows)
    sums = np.bincount(window, weights=episodes.returns, minlength=windows)
    filled = counts.nonzero()[0]
    means = sums[filled] / counts[filled]
    # A window without an episode is on the straight line between its neighbours.
    return np.interp(np.arange(windows), filled, means, left=np.nan, right=np.nan)


def curve(runs: list[Run]) -> pd.DataFrame:
    """Return the mean curve of a setting with its interval, a row a window."""
    longest = max(run.episodes.steps[-1] for run in runs)
    episodes = max(len(run.episodes.steps) for run in runs)
    edges = np.linspace(0, longest, 1 + np.clip(episodes // 10, 2, WINDOWS))
    centres = (edges[:-1] + edges[1:]) / 2

    returns = np.array([window_means(run.episodes, edges) for run in runs])  # (seeds, windows)
    present = np.isfinite(returns)
    mean = np.full(len(centres), np.nan)
    interval = np.full((2, len(centres)), np.nan)
    for seeds in np.unique(present[:, present.any(axis=0)], axis=1).T:
        # The windows that exactly these seeds have reached. Their scores are those of one task.
        here = (present == seeds[:, None]).all(axis=0)
        scores = returns[np.ix_(seeds, here)][:, None, :]
        mean[here], interval[:, here] = bootstrap(scores, metrics.aggregate_mean)

    # The typical time for each window, summed: seeds that end early do not set the others' time back.
    minutes = [
        np.interp(
            centres,
            np.append(0, run.episodes.steps),
            np.append(0, run.episodes.seconds) / 60,
            right=np.nan,
        )
        for run in runs
    ]
    minutes = np.nanmedian(np.diff(minutes, axis=1, prepend=0), axis=0).cumsum()
    points = {
        "step": centres,
        "minutes": minutes,
        "seeds": present.sum(axis=0),
        "mean": mean,
        "low": interval[0],
        "high": interval[1],
    }
    return pd.DataFrame(points).dropna(subset="mean")


def summary(runs: list[Run]) -> dict:
    """Return the final return of a setting and what it took, for a row of the table."""

    def mean_and_iqm(scores: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_mean(scores), metrics.aggregate_iqm(scores)])

    finals = np.array([[run.episodes.returns[-LAST:].mean()] for run in runs])  # (seeds, 1 task)
    (mean, iqm), (low, high) = bootstrap(finals, mean_and_iqm)
    steps = np.array([run.episodes.steps[-1] for run in runs])
    seconds = np.array([run.episodes.seconds[-1] for run in runs])
    return {
        "seeds": len(runs),
        "fewest_steps": int(steps.min()),
        "most_steps": int(steps.max()),
        "mean": mean,
        "low": low[0],
        "high": high[0],
        "iqm": iqm,
        "iqm_low": low[1],
        "iqm_high": high[1],
        "minutes": np.median(seconds) / 60,
        "steps_per_second": np.median(steps / seconds),
    }


# The table


def final_returns(groups: Groups) -> pd.DataFrame:
    """Return the table, a row a setting, with the published results beside."""
    rows = []
    for environment, settings in groups.items():
        for setting, runs in settings.items():
            row = {"environment": environment, "setting": setting} | summary(runs)
            for entry in published("returns", environment, network_of(setting)):
                for name in ("mean", "std", "steps", "environment"):
                    row[f"{entry['code']} {name}"] = entry[name]
            rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    header = (
        "environment",
        "setting",
        "steps",
        "seeds",
        f"return, last {LAST} episodes (95 % interval)",
        "interquartile mean",
        "minutes",
        "steps/s",
        *CODES,
    )
    lines = [header, ["---"] * len(header)]
    for row in table.to_dict("records"):
        # To two digits: the last episode of a run of 1M steps ends at 998,550, say.
        fewest = short(float(f"{row['fewest_steps']:.2g}"))
        most = short(float(f"{row['most_steps']:.2g}"))
        steps = most if fewest == most else f"{fewest} to {most}"
        mean = number(row["mean"])
        if row["seeds"] > 1:
            mean += f" ({number(row['low'])} to {number(row['high'])})"
        cells = [
            row["environment"],
            row["setting"],
            steps,
            str(row["seeds"]),
            mean,
            number(row["iqm"]),
            f"{row['minutes']:.1f}",
            f"{row['steps_per_second']:,.0f}",
        ]
        lines.append(cells + [published_cell(row, code) for code in CODES])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def published_cell(row: dict, code: str) -> str:
    if pd.isna(row.get(f"{code} mean")):
        return ""
    mean, std = row[f"{code} mean"], row[f"{code} std"]
    cell = number(mean) if pd.isna(std) else f"{number(mean)} ± {number(std, like=mean)}"
    where = short(row[f"{code} steps"])
    if row[f"{code} environment"] != row["environment"]:
        where = f"{row[f'{code} environment']}, {where}"
    return f"{cell} ({where})"


def number(value: float, like: float | None = None) -> str:
    """Write a return with as many decimals as its size, or that of `like`, makes sense: 2465, 490.3, 0.53."""
    size = abs(value if like is None else like)
    if size >= 1000:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


def short(value: float, _position=None) -> str:
    """Write a number of steps, or at a tick: 500, 1.5k, 10M."""
    value = float(f"{value:.3g}")  # 999,712 is 1M, not 1000k
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


# The figure


def draw(groups: Groups, curves: dict[tuple[str, str], pd.DataFrame], args: Args) -> Figure:
    """Draw a panel for each environment, four at most in a row, and the same against minutes below."""
    kinds = ("steps", "minutes") if args.x == "both" else (args.x,)
    rows = math.ceil(len(groups) / 4)
    columns = math.ceil(len(groups) / rows)
    figure = Figure(figsize=(9, 9), layout="constrained")  # inches
    panels = figure.subplots(rows * len(kinds), columns, squeeze=False)
    for panel in panels.flat:
        panel.set_visible(False)  # until it is drawn on
    legend_columns = 3 if columns == 1 else 1
    legend_lines = np.zeros(len(panels))  # below each row of panels

    names = list(dict.fromkeys(name for settings in groups.values() for name in settings))
    for block, kind in enumerate(kinds):
        for i, (environment, settings) in enumerate(groups.items()):
            row = block * rows + i // columns
            panel = panels[row, i % columns]
            panel.set_visible(True)
            panel.set_title(environment)
            panel.set_xlabel("environment steps" if kind == "steps" else "minutes of training")
            if i % columns == 0:
                panel.set_ylabel("episodic return")
            for name, runs in settings.items():
                points = curves[environment, name]
                draw_curve(panel, points, kind, label(name, runs, points), names.index(name))
            draw_published(panel, environment, settings, args.published_curves and kind == "steps")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
                axis.set_major_formatter(short)
            # One legend serves both panels of an environment, unless they show different lines.
            if kind == kinds[-1] or args.published_curves:
                legend = panel.legend(
                    loc="upper center",
                    bbox_to_anchor=(0.5, 0),
                    bbox_transform=panel.transAxes
                    + ScaledTranslation(0, -0.42, figure.dpi_scale_trans),  # inches, below the axis
                    frameon=False,
                    ncols=legend_columns,
                )
                entries = math.ceil(len(legend.get_texts()) / legend_columns)
                legend_lines[row] = max(legend_lines[row], 2 * entries)
    figure.set_figheight(2.2 * len(panels) + 0.17 * legend_lines.sum())
    return figure


def label(name: str, runs: list[Run], points: pd.DataFrame) -> str:
    """Name a setting in the legend, in two lines as the published results have them."""
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    last = points["seeds"].iloc[-1]
    if last < len(runs):
        seeds += f", {last} at the end"
    return f"{textwrap.fill(name, 28)}\n({seeds})"


def draw_curve(panel: Axes, points: pd.DataFrame, kind: str, name: str, index: int) -> None:
    x = points["step" if kind == "steps" else "minutes"]
    colour = COLOURS[index % len(COLOURS)]
    every = max(1, len(points) // 8)
    panel.plot(
        x,
        points["mean"],
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        markevery=(every // 2 * (index % 2), every),  # those of two curves beside each other
        label=name,
    )
    panel.fill_between(x, points["low"], points["high"], color=colour, alpha=0.2, linewidth=0)


def draw_published(
    panel: Axes, environment: str, settings: dict[str, list[Run]], with_curves: bool
) -> None:
    longest = max(run.episodes.steps[-1] for runs in settings.values() for run in runs)
    for network in sorted({network_of(name) for name in settings}, key=str.lower):
        curves = published("curves", environment, network) if with_curves else []
        for entry in curves:
            steps = [step for step in entry["steps"] if step < longest] + [longest]
            panel.plot(
                steps,
                np.interp(steps, entry["steps"], entry["returns"], left=np.nan, right=np.nan),
                label=f"{entry_name(entry)}\n({entry['environment']})",
                **style(entry),
            )
        for entry in published("returns", environment, network):
            if entry["code"] in [curve["code"] for curve in curves]:
                continue
            label = f"{entry_name(entry)} {number(entry['mean'])}"
            if longest < 0.8 * entry["steps"]:
                # Runs that are not that far yet keep their scale; the line may be outside it.
                bottom, top = panel.get_ylim()
                panel.set_ylim(bottom, top)
                if entry["mean"] > top:
                    label += " ↑"
                if entry["mean"] < bottom:
                    label += " ↓"
            label += f"\n({entry['environment']}, {short(entry['steps'])})"
            panel.axhline(entry["mean"], label=label, **style(entry))


def entry_name(entry: dict) -> str:
    return entry["code"] + ("" if entry["network"] == "default" else f" {entry['network']}")


def style(entry: dict) -> dict:
    own = PUBLISHED_STYLES[entry["code"], entry["network"] == "default"]
    return {"linewidth": 1.2, "zorder": 1.9} | own  # behind the curves


def main(args: Args) -> None:
    runs = []
    for path in dict.fromkeys(find(args.runs)):
        try:
            runs.append(read(path))
        except ValueError as error:
            skip(path, str(error))
    if not runs:
        sys.exit("nothing to draw: give run folders, such as runs/CartPole*, or result files")

    groups = group(runs)
    curves = {
        (environment, setting): curve(group_runs)
        for environment, settings in groups.items()
        for setting, group_runs in settings.items()
    }
    table = final_returns(groups)
    prefix = args.output.with_suffix("") if args.output.suffix == ".png" else args.output
    outputs = [Path(f"{prefix}{end}") for end in (".png", ".csv", "_table.md", "_table.csv")]
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            draw(groups, curves, args).savefig(outputs[0])
        drawn = pd.concat(curves, names=["environment", "setting"]).droplevel(2)
        drawn.to_csv(outputs[1], float_format="%.6g")
        outputs[2].write_text(markdown(table), encoding="utf-8")
        table.to_csv(outputs[3], float_format="%.6g", index=False)
    except OSError as error:
        sys.exit(f"cannot write {prefix}: {error.strerror}; choose another --output")
    print(markdown(table))
    print("wrote", *outputs)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
