"""Draw the returns of Cleaner with and without masks, docs/cleaner.png, from TensorBoard logs.

    python benchmark/cleaner.py RUN_FOLDER...

It needs matplotlib, which envpool brings along. The curves go to benchmark/results/cleaner.json too: for each run the
mean return of the episodes that ended in each 10,000 steps.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
WINDOW = 10_000  # steps


def curve(run: Path) -> dict:
    """Return the arguments that matter, the mean return of each window of steps, and that of the last 100 episodes."""
    args = torch.load(run / "checkpoint.pt", weights_only=True)["args"]
    log = EventAccumulator(str(run), size_guidance={"scalars": 0})
    log.Reload()
    events = log.Scalars("charts/episodic_return")
    steps, returns = np.array([e.step for e in events]), np.array([e.value for e in events])
    windows = [
        returns[(steps > end - WINDOW) & (steps <= end)]
        for end in range(WINDOW, steps.max() + 1, WINDOW)
    ]
    means = [round(float(w.mean()), 2) if len(w) else None for w in windows]
    arguments = {name: args[name] for name in ("env_id", "seed", "action_mask", "total_timesteps")}
    return arguments | {"means": means, "last_100": round(float(returns[-100:].mean()), 2)}


def main(runs: list[Path]) -> None:
    curves = [curve(run) for run in runs]
    (ROOT / "benchmark" / "results" / "cleaner.json").write_text(
        json.dumps(curves) + "\n", encoding="utf-8"
    )
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for masked, color, name in (
        (True, "tab:blue", "--action-mask"),
        (False, "tab:orange", "--no-action-mask"),
    ):
        means = np.array([c["means"] for c in curves if c["action_mask"] == masked], dtype=float)
        steps = WINDOW * np.arange(1, means.shape[1] + 1) / 1e6
        axes.plot(steps, means.T, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(
            steps, means.mean(axis=0), color=color, label=f"{name}, mean of {len(means)} seeds"
        )
    axes.set(
        xlabel="environment steps (millions)", ylabel="episodic return", title="Jumanji/Cleaner-v0"
    )
    axes.legend(loc="center right")
    axes.grid(alpha=0.3)
    figure.savefig(ROOT / "docs" / "cleaner.png", dpi=120)


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
