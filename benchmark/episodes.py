"""What a run's TensorBoard log says: its finished episodes, as a table kept as CSV, and its losses."""

from pathlib import Path

import numpy as np
import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COLUMNS = ["step", "return", "length", "seconds"]


def read_run(folder: Path) -> pd.DataFrame:
    """Return step, return, length and seconds of training at the end of every episode."""
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    if not {"charts/episodic_return", "charts/SPS"} <= set(log.Tags()["scalars"]):
        return pd.DataFrame(columns=COLUMNS, dtype=float)
    returns = pd.DataFrame(log.Scalars("charts/episodic_return"))
    lengths = pd.DataFrame(log.Scalars("charts/episodic_length"))
    updates = pd.DataFrame(log.Scalars("charts/SPS"))
    # Summed over the updates, so that a stop between two of them takes no time.
    seconds = (updates.step.diff().fillna(updates.step) / updates.value).cumsum()
    columns = {
        "step": returns.step,
        "return": returns.value,
        "length": lengths.value,
        "seconds": np.interp(returns.step, [0, *updates.step], [0, *seconds]),
    }
    return pd.DataFrame(columns).dropna()


def read_losses(folder: Path) -> dict[str, float]:
    """Return the median over all updates of everything that is logged as losses/..."""
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    losses = [tag for tag in log.Tags()["scalars"] if tag.startswith("losses/")]
    medians = {tag: np.nanmedian([event.value for event in log.Scalars(tag)]) for tag in losses}
    return {tag.removeprefix("losses/"): float(f"{x:.4g}") for tag, x in medians.items()}


def write_csv(path: Path, episodes: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = episodes.round({"return": 2, "seconds": 1}).astype({"step": int, "length": int})
    rounded.to_csv(path, index=False)


def read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)[COLUMNS]
