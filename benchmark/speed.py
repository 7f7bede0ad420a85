"""Time training commands beside each other, by the TensorBoard logs that they write.

    python benchmark/speed.py "python ppo.py --total-timesteps 50000" \\
        "python ../cleanrl/cleanrl/ppo.py --total-timesteps 50000" --rounds 3

The commands take turns (A B A B ...), each in a fresh folder, so that a machine that gets slower
meanwhile is slow for all. A speed is that of the second half of a run, without start-up and
compiling, from what is logged once per update: charts/SPS by these scripts and by CleanRL's,
time/fps by stable-baselines3. Ratios are to the first command in the same round. Nothing else
should run meanwhile.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from run import machine, versions
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {"charts/SPS", "time/fps"}


@dataclass
class Args:
    commands: tyro.conf.Positional[tuple[str, ...]]  # the first one has ratio 1
    rounds: int = 3  # turns of each command
    output: Path = Path("speed.json")


def steps_per_second(folder: Path) -> float:
    """Return the speed in the second half of the only log in a folder."""
    (file,) = folder.rglob("events.out.tfevents.*")
    log = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    (tag,) = TAGS.intersection(log.Tags()["scalars"])
    updates = log.Scalars(tag)
    last = updates[-1]
    middle = next(update for update in updates if update.step >= last.step / 2)
    return (last.step - middle.step) / (last.wall_time - middle.wall_time)


def time_command(command: str) -> float:
    """Run a command in a fresh folder; paths in it begin in the current one."""
    words = [
        str(Path(word).absolute()) if Path(word).exists() else word for word in shlex.split(command)
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"error: {command}\n{done.stderr}")
        return steps_per_second(Path(folder))


def table(speeds: dict[str, list[float]]) -> str:
    lines = ["| command | steps/s | ratio (least to greatest) |", "|---|---|---|"]
    first = next(iter(speeds.values()))
    for command, values in speeds.items():
        ratios = [value / base for value, base in zip(values, first, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| `{command}` | {statistics.median(values):,.0f} | {spread} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    speeds = {command: [] for command in args.commands}
    for number in range(1, args.rounds + 1):
        for command, values in speeds.items():
            values.append(time_command(command))
            print(f"round {number}: {values[-1]:,.0f} steps/s: {command}", file=sys.stderr)
    report = {"machine": machine(), "versions": versions(), "steps_per_second": speeds}
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(table(speeds))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
