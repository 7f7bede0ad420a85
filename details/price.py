"""Measure what each detail is worth: train with it and without it, over seeds.

    python details/price.py
    python details/price.py --only classic
    python details/price.py --draw

Each experiment of details/price.toml becomes a plan for benchmark/run.py, or names one in
benchmark/plans. Started again, it goes on where it was stopped. All rows train one seed before the
next begins, so that what is finished can be compared. The changed scripts are in runs/price, the
results in benchmark/results/price-NAME. At the end, or at once with --draw, the table and the
figure of docs/price.md are made from what is finished.

A return is normalised for each environment: 0 is that of the untrained agent, 1 that of the script
as it is at the end of its training. The price of a detail is the difference without it.
"""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import msgspec
import numpy as np
import tyro
from catalogue import ROOT, Change, Edit, apply, load
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rliable import library

sys.path.append(str(ROOT / "benchmark"))
import plot

PAGE = ROOT / "docs" / "price.md"
BEGIN, END = "<!-- prices: python details/price.py -->\n", "<!-- end of the prices -->\n"
COMPLETE = "complete"  # the setting with all details
UNTRAINED = 20  # episodes at the start of each run


class Experiment(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    script: str
    env_ids: list[str]
    steps: int
    seeds: int  # 1 to this number
    changes: list[str]  # of the catalogue, by their full names
    flags: dict[str, str] = {}  # instead of a change
    options: str = ""  # flags of all rows
    modules: list[str] = []  # files of this folder that the script imports
    edits: list[Edit] = []  # of the script, in all rows
    settings: dict[str, str] = {}  # of benchmark/plans/NAME.toml, which trains these rows already

    @property
    def plan(self) -> str:
        return self.name if self.settings else f"price-{self.name}"

    def rows(self) -> list[str]:
        return [*self.changes, *self.flags]

    def setting(self, row: str) -> str:
        """Return the name of a row's setting: "Core 7: without" is core-7-without."""
        return self.settings.get(row, re.sub(r"[^a-z0-9.]+", "-", row.lower()).strip("-"))


class Price(msgspec.Struct):
    """The difference that a change makes; 95 % intervals are bootstrapped over the seeds."""

    row: str
    seeds: int
    final: float  # of the normalised return of the last 100 episodes
    interval: tuple[float, float]
    area: float  # of the normalised mean return of the whole training
    area_interval: tuple[float, float]


@dataclass
class Args:
    only: str = ""  # only the experiment of this name
    draw: bool = False  # train nothing


def read_experiments() -> list[Experiment]:
    text = Path(__file__).with_name("price.toml").read_text(encoding="utf-8")
    return msgspec.toml.decode(text, type=dict[str, list[Experiment]])["experiment"]


def write_plan(experiment: Experiment) -> Path:
    """Return the plan that trains all rows; where there is none, write it and its scripts."""
    if experiment.settings:
        return ROOT / "benchmark" / "plans" / f"{experiment.plan}.toml"
    source = (ROOT / f"{experiment.script}.py").read_text(encoding="utf-8")
    source = apply(Change(edits=experiment.edits, tests=[]), experiment.script, source)
    changes = load().changes()
    settings = {COMPLETE: (source, "")}
    settings |= {
        row: (apply(changes[row], experiment.script, source), "") for row in experiment.changes
    }
    settings |= {row: (source, flags) for row, flags in experiment.flags.items()}
    lines = []
    for seed in range(1, experiment.seeds + 1):
        for row, (text, flags) in settings.items():
            folder = Path("runs", "price", experiment.name, experiment.setting(row))
            path = folder / f"{experiment.script}.py"
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(text, encoding="utf-8")
            for name in experiment.modules:
                shutil.copy(Path(__file__).with_name(name), (ROOT / path).parent)
            setting = {
                "name": experiment.setting(row),
                "script": str(path),
                "env_ids": experiment.env_ids,
                "seeds": [seed],
                "steps": experiment.steps,
                "flags": f"{experiment.options} {flags}".strip(),
            }
            lines += ["[[settings]]", *(f"{key} = {json.dumps(x)}" for key, x in setting.items())]
    plan = ROOT / "runs" / "price" / f"{experiment.plan}.toml"
    plan.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return plan


def final(run: plot.Run) -> float:
    return run.episodes["return"][-plot.LAST :].mean()


def difference(with_it: np.ndarray, without: np.ndarray) -> float:
    return without.mean() - with_it.mean()


def compare(pair: tuple[np.ndarray, np.ndarray]) -> tuple[float, tuple[float, float]]:
    """Return the difference of two groups of seeds, and its 95 % interval."""
    np.random.seed(0)  # rliable draws from this generator: the same runs give the same numbers
    _, intervals = library.get_interval_estimates({"": pair}, difference, reps=5000)
    return difference(*pair), tuple(np.ravel(intervals[""]))


def prices(experiment: Experiment, env_id: str) -> list[Price]:
    """Compare what is finished of an environment, the dearest detail first."""
    results = ROOT / "benchmark" / "results" / experiment.plan
    folder = re.sub("[/:]", "-", env_id)
    runs = {
        row: [plot.read(path) for path in sorted(results.glob(f"{folder}__{setting}__*.csv.xz"))]
        for row in [COMPLETE, *experiment.rows()]
        for setting in [experiment.setting(row)]
    }
    if len(runs[COMPLETE]) < 2:
        return []
    low = np.mean([run.episodes["return"][:UNTRAINED].mean() for run in runs[COMPLETE]])
    high = np.mean([final(run) for run in runs[COMPLETE]])

    def normalised(row: str, measure) -> np.ndarray:
        return (np.array([measure(run) for run in runs[row]])[:, None] - low) / (high - low)

    def area(run: plot.Run) -> float:
        edges = np.linspace(0, experiment.steps, plot.WINDOWS + 1)
        return plot.window_means(run.episodes, edges).mean()

    found = []
    for row in experiment.rows():
        if len(runs[row]) < 2:
            continue
        finals = (normalised(COMPLETE, final), normalised(row, final))
        areas = (normalised(COMPLETE, area), normalised(row, area))
        found.append(Price(row, len(runs[row]), *compare(finals), *compare(areas)))
    return sorted(found, key=lambda price: price.final)


def label(row: str) -> str:
    """Return what stands in the table: for a removal, the detail's name."""
    prefix, _, rest = row.partition(": ")
    names = {detail.label: detail.name for detail in load().details}
    return f"without {prefix}: {names[prefix]}" if rest == "without" else row


def table(environment: str, found: list[Price]) -> str:
    rows = [
        [
            environment,
            "change of the final return (95 % interval)",
            "change of the area under the curve",
            "seeds",
        ]
    ]
    for price in found:
        cells = [
            f"{change:+.2f} ({low:+.2f} to {high:+.2f})"
            for change, (low, high) in [
                (price.final, price.interval),
                (price.area, price.area_interval),
            ]
        ]
        rows.append([label(price.row), *cells, str(price.seeds)])
    return plot.markdown(rows)


def draw(found: dict[str, list[Price]]) -> Figure:
    """Draw a panel for each environment: differences with their intervals, sorted."""
    columns = min(2, len(found))
    rows = [len(prices_of) for prices_of in found.values()]
    heights = [max(rows[i : i + columns]) for i in range(0, len(rows), columns)]
    size = (10, sum(0.32 * height + 0.6 for height in heights))  # inches
    figure = Figure(figsize=size, layout="constrained")
    grid = {"squeeze": False, "sharex": True, "height_ratios": heights}
    panels = figure.subplots(len(heights), columns, **grid).flat
    for panel in panels[len(found) :]:
        panel.set_visible(False)
    for panel, (environment, prices_of) in zip(panels, found.items(), strict=False):
        panel.axvline(0, color="black", lw=0.8)
        for height, price in enumerate(reversed(prices_of)):
            low, high = price.interval
            clear = low > 0 or high < 0  # the interval does not contain 0: filled
            panel.plot([low, high], [height, height], color="C0", lw=1.5)
            face = "C0" if clear else "white"
            looks = {"marker": "o", "color": "C0", "markerfacecolor": face, "ms": 5, "lw": 1.5}
            panel.plot(price.final, height, **looks)
            (mean,) = panel.plot(price.area, height, "|", color="C1", ms=9, mew=2)
        names = [name(price.row) for price in reversed(prices_of)]
        panel.set_yticks(range(len(names)), names, fontsize=8)
        seeds = " or ".join(map(str, sorted({price.seeds for price in prices_of})))
        title = f"{environment.rpartition(':')[2]}, {seeds} seeds"
        panel.set_title(textwrap.fill(title, 37, break_on_hyphens=False), loc="right")
        panel.tick_params(labelbottom=True)
    figure.supxlabel("change of the normalised return", fontsize=10)
    end = Line2D([], [], **looks | {"markerfacecolor": "C0"})
    labels = ["at the end, with its 95 % interval (filled: it excludes 0)", "area under the curve"]
    figure.legend([end, mean], labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def name(row: str) -> str:
    """Return what stands beside a point: the row up to its first pause, in lines of 46 columns."""
    parts = re.split(r": |, |; | \(", label(row))
    return textwrap.fill(": ".join(parts[:2]), 46)


def main(args: Args) -> None:
    found = {}
    text = ""
    for experiment in read_experiments():
        if args.only in ("", experiment.name) and not args.draw:
            command = [sys.executable, "benchmark/run.py", write_plan(experiment)]
            if subprocess.run(command, cwd=ROOT).returncode == 130:
                sys.exit(130)
        for env_id in experiment.env_ids:
            if result := prices(experiment, env_id):
                found[env_id] = result
                text += "\n" + table(env_id, result)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")
    with matplotlib.style.context(plot.STYLE):
        draw(found).savefig(ROOT / "docs" / "price.png")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
