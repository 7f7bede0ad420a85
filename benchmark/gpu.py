"""Turn the logs that benchmark/gpu.sh made into gpu.json, gpu.png and a table.

    python benchmark/gpu.py RUN_FOLDER...

Steps per second are the median over the updates of a run, without the first three, which hold the compiling.
It needs matplotlib, which envpool brings along.
"""

import json
import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

import envpool
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
WARM_UP = 3  # updates
WINDOW = 20  # episodes, of the moving average in the figure


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]  # run folders


def read(run: Path) -> dict:
    """Return the arguments of a run that matter, its speed, and its returns with the steps and minutes of each."""
    args = torch.load(run / "checkpoint.pt", weights_only=True)["args"]
    log = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    speeds, episodes = log.Scalars("charts/SPS"), []
    if "charts/episodic_return" in log.Tags()["scalars"]:
        episodes = log.Scalars("charts/episodic_return")
    names = ("exp_name", "env_id", "device", "compile", "num_envs", "num_steps", "seed")
    return {name: args[name] for name in names} | {
        "sps": statistics.median(event.value for event in speeds[WARM_UP:]),
        "steps": speeds[-1].step,
        "minutes": (speeds[-1].wall_time - speeds[0].wall_time) / 60,
        "episodes": [
            [event.step, round((event.wall_time - speeds[0].wall_time) / 60, 3), event.value]
            for event in episodes
        ],
    }


def machine() -> str:
    """Return accelerator, cores and versions in one line."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = ", ".join(
        f"{package.__name__} {package.__version__}" for package in (torch, envpool, gym, np)
    )
    return f"{accelerator}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def draw(run: dict, path: Path) -> None:
    """Draw the returns of a run over its steps and over its minutes."""
    steps, minutes, returns = np.array(run["episodes"]).reshape(-1, 3).T
    figure, axes = plt.subplots(ncols=2, sharey=True, figsize=(9, 3.6), layout="constrained")
    width = min(WINDOW, len(returns))
    for axis, x, label in zip(
        axes, (steps / 1e6, minutes), ("environment steps (millions)", "minutes"), strict=True
    ):
        axis.plot(x, returns, ".", color="tab:blue", alpha=0.3, markersize=3)
        if width:
            axis.plot(
                x[width - 1 :],
                np.convolve(returns, np.ones(width) / width, "valid"),
                color="tab:blue",
            )
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel=f"episodic return (line: mean of {WINDOW})")
    figure.suptitle(f"{run['env_id']}, {run['sps']:,.0f} steps per second")
    figure.savefig(path, dpi=120)


def main(args: Args) -> None:
    runs = [read(run) for run in sorted(args.runs, key=lambda run: run.stat().st_mtime)]
    print(machine(), "\n\n| script | --compile | steps/s |\n|---|---|---|", sep="")
    for run in runs:
        if run["exp_name"] != "pong":
            print(
                f"| {run['exp_name']}.py | {'yes' if run['compile'] else 'no'} | {run['sps']:,.0f} |"
            )
    report = {"machine": machine(), "runs": runs}
    (ROOT / "benchmark" / "results" / "gpu.json").write_text(
        json.dumps(report) + "\n", encoding="utf-8"
    )
    for run in runs:
        if run["exp_name"] == "pong":
            draw(run, ROOT / "docs" / "gpu.png")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
