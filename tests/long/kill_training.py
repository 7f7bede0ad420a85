"""Kill a real training run again and again, at random moments and while it writes its checkpoint; it goes on.

    python tests/long/kill_training.py --kills 200
    python tests/long/kill_training.py --script ppo_atari_envpool --kills 40

After every `kill -9` the checkpoint has to load, and at most `save_every` updates may be lost. Prints a line per ten
kills and a summary; exits with an error at the first checkpoint that fails.
"""

import importlib
import io
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


@dataclass
class Args:
    script: str = "ppo"  # whose training to kill, without .py
    kills: int = 200  # how often to kill the run
    save_every: int = 3  # updates between two checkpoints
    seed: int = 1  # seed of the moments


def train(script: ModuleType, args, done, saving) -> None:
    """Train, and tell the killer which update is done and when a checkpoint is being written."""
    sys.stdout = sys.stderr = io.StringIO()
    end_update = script.Run.end_update

    def count(self, *more):
        done.value = self.global_step // self.batch_size
        saving.value = done.value % args.save_every == 0
        end_update(self, *more)
        saving.value = False

    script.Run.end_update = count
    script.main(args)


def kill_once(context, script, args, saved: int, rng: random.Random) -> tuple[int, bool]:
    """Start the run, or go on from update `saved`, and kill it; return the updates done and whether it was saving."""
    done, saving = context.Value("i", 0, lock=False), context.Value("b", False, lock=False)
    process = context.Process(target=train, args=(script, args, done, saving))
    process.start()
    started = time.perf_counter()
    updates = rng.randint(1, 3 * args.save_every)
    while done.value < saved + updates:
        if not process.is_alive():
            raise SystemExit(f"the training ended by itself, with exit code {process.exitcode}")
        time.sleep(0.001)
    time.sleep(rng.uniform(0, (time.perf_counter() - started) / updates))
    if rng.random() < 0.5:
        while not saving.value:
            time.sleep(0.0002)
        time.sleep(rng.uniform(0, 0.004))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return done.value, bool(saving.value)


def main(args: Args, folder: Path) -> dict[str, int]:
    """Return how many kills there were, how many of them while saving, and the most updates that one of them lost."""
    os.chdir(folder)
    torch.set_num_threads(1)  # threads do not survive a fork
    # Imports for seconds: once here, and not again in every child
    torch.optim.Adam([torch.zeros(1)])
    context = multiprocessing.get_context("fork")
    rng = random.Random(args.seed)
    script = importlib.import_module(args.script)
    sizes = {"num_envs": 2, "num_steps": 16, "num_minibatches": 2, "total_timesteps": 10**8}
    training = script.Args(**sizes, save_every=args.save_every, run_dir=Path("run"))
    result = {"kills": 0, "while_saving": 0, "most_updates_lost": 0, "updates": 0}
    for kill in range(1, args.kills + 1):
        done, while_saving = kill_once(context, script, training, result["updates"], rng)
        saved = 0
        if Path("run/checkpoint.pt").exists():
            saved = script.load_checkpoint(Path("run"))["global_step"] // 32  # raises if damaged
        lost = done - saved
        if lost > args.save_every:
            raise SystemExit(
                f"kill {kill} lost {lost} updates: {done} were done, {saved} are saved"
            )
        result["kills"] = kill
        result["while_saving"] += while_saving
        result["most_updates_lost"] = max(result["most_updates_lost"], lost)
        result["updates"] = saved
        if kill % 10 == 0:
            print(result, flush=True)
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print("every checkpoint loaded:", json.dumps(main(tyro.cli(Args), Path(folder))))
