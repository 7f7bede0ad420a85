"""Finished training episodes of a run, read from its folder or from a CSV file: what the other programs here share."""

import csv
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.util.tensor_util import make_ndarray

COLUMNS = ("step", "return", "length", "seconds")
PAUSE = 60  # seconds without an event after which a run is taken to have been paused


@dataclass
class Episodes:
    """What each finished episode of one run was, in the order of their ends; all (episodes,)."""

    steps: np.ndarray  # environment steps of the run at the episode's end
    returns: np.ndarray  # undiscounted sum of its rewards
    lengths: np.ndarray  # in environment steps
    seconds: np.ndarray  # of training until its end, without pauses, of the run or of the machine

    def until(self, step: int) -> "Episodes":
        """Return those that had ended by a step of the run."""
        ended = self.steps <= step
        return Episodes(*(column[ended] for column in astuple(self)))


def read_run(folder: Path) -> Episodes:
    """Read the TensorBoard log of a run folder, one file for the start and one for each resume."""
    rows = []  # (step, return, length, seconds)
    files = sorted(folder.glob("events.out.tfevents.*"))
    if not files:
        raise FileNotFoundError(f"{folder} has no TensorBoard log: give a run folder, runs/...")
    for file in files:
        seconds = rows[-1][3] if rows else 0.0
        last_time = None  # of the file's last event
        for event in LegacyEventFileLoader(str(file)).Load():
            gap = event.wall_time - last_time if last_time is not None else 0.0
            seconds += gap if gap < PAUSE else 0.0
            last_time = event.wall_time
            if event.session_log.status == SessionLog.START:
                # A resumed run logs again what came after its last checkpoint.
                rows = [row for row in rows if row[0] < event.step]
                seconds = rows[-1][3] if rows else 0.0
            for value in event.summary.value:
                if value.tag == "charts/episodic_return":
                    episodic_return = scalar(value)
                if value.tag == "charts/episodic_length":
                    rows.append((event.step, episodic_return, scalar(value), seconds))
    return to_episodes(rows)


def scalar(value) -> float:
    if value.HasField("simple_value"):
        return value.simple_value
    return float(make_ndarray(value.tensor))


def read_csv(path: Path) -> Episodes:
    """Read what `write_csv` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        if file.readline().rstrip() != ",".join(COLUMNS):
            raise ValueError(f"{path} is not a results file: its columns are not {COLUMNS}")
        lines = file.readlines()
    if not lines:
        return to_episodes([])
    types = [(name, float) for name in COLUMNS]  # a row with more or fewer is an error
    table = np.loadtxt(lines, delimiter=",", dtype=types, ndmin=1)
    return Episodes(*(table[name] for name in COLUMNS))


def write_csv(path: Path, episodes: Episodes) -> None:
    """Write one line per episode; returns keep two decimals, seconds one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        rows = zip(
            episodes.steps, episodes.returns, episodes.lengths, episodes.seconds, strict=True
        )
        for step, episodic_return, length, seconds in rows:
            writer.writerow([int(step), f"{episodic_return:.2f}", int(length), f"{seconds:.1f}"])
    temporary.replace(path)


def to_episodes(rows: list) -> Episodes:
    columns = np.array(rows, dtype=float).reshape(-1, len(COLUMNS)).T
    return Episodes(*columns)
