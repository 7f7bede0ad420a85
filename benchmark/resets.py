"""Draw what the official resets changed in Breakout, docs/resets.png.

    python benchmark/resets.py

The curves are those of benchmark/results/atari: a mean of the last 100 games at every point. The points are what the
README of commit 565e7af reported of a run with EnvPool's own resets, seed 1; its log is gone. Published is the mean of
three seeds, in benchmark/published.json.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from episodes import read_csv

ROOT = Path(__file__).resolve().parents[1]
RUN = str(ROOT / "benchmark" / "results" / "atari" / "Breakout-v5__ppo_atari_envpool__{}.csv")
BEFORE = {100_000: 4.3, 200_000: 8.5, 300_000: 11.2, 400_000: 14.5, 500_000: 16.3}
LAST = 500_000  # steps


def main() -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for seed, colour in ((1, "#0072B2"), (2, "#56B4E9")):
        episodes = read_csv(Path(RUN.format(seed)))
        steps = np.arange(20_000, LAST + 1, 10_000)
        means = [episodes.returns[episodes.steps <= step][-100:].mean() for step in steps]
        axes.plot(steps / 1e3, means, color=colour, label=f"official resets, seed {seed}")
    before = np.array(list(BEFORE)) / 1e3
    label = "EnvPool's own resets, seed 1"
    axes.plot(before, list(BEFORE.values()), "s", color="#D55E00", label=label)
    published = json.loads((ROOT / "benchmark" / "published.json").read_text(encoding="utf-8"))
    for curve in published["curves"]:
        if curve["environment"] == "BreakoutNoFrameskip-v4" and curve["network"] == "default":
            near = np.array(curve["steps"]) <= 1.2 * LAST
            style = "--" if curve["code"] == "official code" else ":"
            x = np.array(curve["steps"])[near] / 1e3
            y = np.array(curve["returns"])[near]
            axes.plot(x, y, style, color="black", label=f"{curve['code']}, published")
    axes.set_xlim(0, LAST / 1e3)
    axes.set(xlabel="environment steps (thousands)", ylabel="episodic return", title="Breakout-v5")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(ROOT / "docs" / "resets.png", dpi=120)


if __name__ == "__main__":
    main()
