"""Kill a process of a distributed training again and again; torchrun starts all anew, and the run goes on.

    python tests/long/kill_processes.py --kills 20

Two processes train Breakout. At a random moment one of them, the first or the second, gets a `kill -9`. After each
restart the run has to go on from its last checkpoint, with at most `save_every` updates lost. Prints a line for each
kill; exits with an error if one lost more, or if torchrun gave up.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Args:
    kills: int = 5  # how often to kill a process
    save_every: int = 3  # updates between two checkpoints
    seed: int = 1  # seed of the moments


def train() -> None:
    """Be one of the processes that torchrun starts; the first notes its updates in the file `updates`."""
    sys.path.insert(0, str(ROOT))
    import ppo_atari_multigpu as script

    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    last_start = int(os.environ["TORCHELASTIC_MAX_RESTARTS"])
    rng = random.Random(f"{os.environ['SEED']} {start}")
    is_killed = rng.randint(0, 1) == int(os.environ["RANK"])
    updates_left = rng.randint(2, 8)
    moment = rng.uniform(0, 2)  # seconds after these
    compute_gae = script.compute_gae
    end_update = script.Run.end_update

    def counted_gae(*inputs):
        nonlocal updates_left
        updates_left -= 1
        if updates_left == 0 and is_killed and start < last_start:
            threading.Timer(moment, os.kill, [os.getpid(), signal.SIGKILL]).start()
        return compute_gae(*inputs)

    def noted_update(self, *inputs):
        with open("updates", "a") as file:
            file.write(f"{start} {self.global_step // self.batch_size}\n")
        if start == last_start:
            os.kill(os.getppid(), signal.SIGTERM)  # torchrun, which stops all
        end_update(self, *inputs)

    script.compute_gae = counted_gae
    script.Run.end_update = noted_update
    script.main(script.parse_args())


def main(args: Args, folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [f"--max-restarts={args.kills}", __file__, "--num-envs", "4", "--num-steps", "32"]
    command += ["--total-timesteps", "100000000", "--save-every", str(args.save_every)]
    command += ["--run-dir", "run"]
    environment = os.environ | {
        "SEED": str(args.seed),
        "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = (folder / "updates").read_text().splitlines()
    updates = [tuple(map(int, line.split())) for line in lines]
    for kill in range(args.kills):
        done = [update for start, update in updates if start == kill]
        after = [update for start, update in updates if start == kill + 1]
        if not after:
            raise SystemExit(f"{result.stderr}\nkill {kill + 1}: the run did not go on")
        went_on_after = after[0] - 1
        print(f"kill {kill + 1}: {done[-1]} updates, on from {went_on_after}")
        if not 0 <= done[-1] - went_on_after <= args.save_every:
            raise SystemExit(f"kill {kill + 1} lost {done[-1] - went_on_after} updates")


if __name__ == "__main__":
    if "RANK" in os.environ:
        train()
    else:
        arguments = tyro.cli(Args, description=__doc__)
        with tempfile.TemporaryDirectory() as folder:
            main(arguments, Path(folder))
