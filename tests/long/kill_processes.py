"""Kill a process of a distributed training again and again; torchrun starts all anew, and they go on by themselves.

    python tests/long/kill_processes.py --kills 20

Two processes train Breakout. At a random moment one of them, the first or the second, gets a `kill -9`. After each
restart the run has to go on from its last checkpoint, with at most `save_every` updates lost. Prints a line per kill
and a summary; exits with an error at the first restart that fails. Linux only: it reads /proc.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Args:
    kills: int = 20  # how often to kill a process
    save_every: int = 3  # updates between two checkpoints
    seed: int = 1  # seed of the moments


def train() -> None:
    """Be one of the processes that torchrun starts; the first notes every update in the file `updates`."""
    sys.path.insert(0, str(ROOT))
    import ppo_atari_multigpu

    end_update = ppo_atari_multigpu.Run.end_update

    def note(self, iteration, *more):
        with open("updates", "a") as file:
            file.write(f"{os.environ['TORCHELASTIC_RESTART_COUNT']} {iteration + 1}\n")
        end_update(self, iteration, *more)

    ppo_atari_multigpu.Run.end_update = note
    ppo_atari_multigpu.main(ppo_atari_multigpu.parse_args())


def updates_of(start: int, folder: Path) -> list[int]:
    """Return the updates that were done after so many restarts."""
    file = folder / "updates"
    lines = file.read_text().splitlines() if file.exists() else []
    numbers = [tuple(map(int, line.split())) for line in lines]
    return [update for restart, update in numbers if restart == start]


def wait_for_updates(torchrun: subprocess.Popen, folder: Path, start: int, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(updates_of(start, folder)) < count:
        if torchrun.poll() is not None:
            raise SystemExit(f"torchrun ended by itself, with exit code {torchrun.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"restart {start} did not get to {count} updates within five minutes")
        time.sleep(0.05)


def process_of(rank: int, torchrun: subprocess.Popen) -> int:
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().decode()
        if re.search(rf"(^|\0)RANK={rank}\0", environment):
            return int(child)
    raise SystemExit(f"torchrun has no process with rank {rank}")


def main(args: Args, folder: Path) -> dict[str, int]:
    """Return how many kills there were, how many of the first process, and the most updates that one of them lost."""
    rng = random.Random(args.seed)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [f"--max-restarts={args.kills}", __file__, "--num-envs", "4", "--num-steps", "32"]
    command += ["--total-timesteps", "100000000", "--save-every", str(args.save_every)]
    result = {"kills": 0, "of_the_first": 0, "most_updates_lost": 0, "updates": 0}
    with (folder / "log").open("w") as log:
        torchrun = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        for start in range(args.kills):
            wait_for_updates(torchrun, folder, start, rng.randint(args.save_every, 8))
            time.sleep(rng.uniform(0, 1))
            rank = rng.randint(0, 1)
            os.kill(process_of(rank, torchrun), signal.SIGKILL)
            wait_for_updates(torchrun, folder, start + 1, 1)
            done = updates_of(start, folder)[-1]
            went_on_after = updates_of(start + 1, folder)[0] - 1
            lost = done - went_on_after
            print(
                f"kill {start + 1}: rank {rank}, {done} updates, on from {went_on_after}",
                flush=True,
            )
            if not 0 <= lost <= args.save_every:
                raise SystemExit(f"kill {start + 1} lost {lost} updates")
            result["kills"] += 1
            result["of_the_first"] += rank == 0
            result["most_updates_lost"] = max(result["most_updates_lost"], lost)
            result["updates"] = went_on_after
    finally:
        torchrun.terminate()
        torchrun.wait()
    return result


if __name__ == "__main__":
    if "RANK" in os.environ:
        train()
    else:
        arguments = tyro.cli(Args, description=__doc__)
        with tempfile.TemporaryDirectory() as folder:
            print("every restart went on:", json.dumps(main(arguments, Path(folder))))
