"""What tests/test_multigpu.py starts with torchrun: ppo_atari_multigpu.py, watched and disturbed.

Each process writes what it saw to rank{R}.pt in the working directory.
"""

import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import ppo_atari_multigpu as script

RANK = int(os.environ["RANK"])
SMALL = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "update_epochs": 2}
real = {name: getattr(script, name) for name in ("compute_gradient", "ppo_loss", "EnvPoolAtari")}
seen = {}  # of the training that goes on


class WatchedEnvs(script.EnvPoolAtari):
    """Notes its seeds, and reports an episode in every fifth step of the first process, every seventh of the second."""

    def reset(self, *, seed):
        seen["seeds"] = seed
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, actions):
        result = super().step(actions)
        self.steps += 1
        self.finished = {}
        if self.steps % (5 + 2 * RANK) == 0:
            self.finished = {0: (1000.0 * RANK + self.steps, 10 * RANK + 1)}
        return result


def watched_gradient(agent, mb, clip_coef, args):
    seen.setdefault("weights", {name: x.clone() for name, x in agent.state_dict().items()})
    seen["minibatches"].append(mb)
    return real["compute_gradient"](agent, mb, clip_coef, args)


def train(**changes) -> dict:
    seen.clear()
    seen["minibatches"] = []
    agent = script.main(script.Args(**SMALL | changes))
    return seen | {"final": agent.state_dict()}


def watch() -> None:
    script.EnvPoolAtari = WatchedEnvs
    script.compute_gradient = watched_gradient
    results = {"plain": train(total_timesteps=3 * 64, exp_name="plain")}

    def loss_with_kl(*inputs):
        loss, stats = real["ppo_loss"](*inputs)
        stats["approx_kl"] = torch.tensor(float(RANK))  # so the mean is 0.5
        return loss, stats

    script.ppo_loss = loss_with_kl
    results["kl reached"] = train(total_timesteps=2 * 64, target_kl=0.4)
    results["kl not reached"] = train(total_timesteps=2 * 64, target_kl=0.6)

    def full_disk(self, *episode):
        script.fail("the disk is full", code=1)

    script.Run.log_episode = full_disk
    try:
        train(total_timesteps=2 * 64, exp_name="full")
    except SystemExit as stop:
        results["exit code"] = stop.code
    torch.save(results, f"rank{RANK}.pt")


def die_in_update(number: int) -> None:
    """Train eight updates; the second process kills itself in the middle of one, unless it has been started again."""

    def deadly_gradient(agent, mb, clip_coef, args):
        seen["minibatches"].append(None)
        first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if RANK == 1 and first_start and len(seen["minibatches"]) == 4 * (number - 1) + 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real["compute_gradient"](agent, mb, clip_coef, args)

    script.compute_gradient = deadly_gradient
    torch.save(train(total_timesteps=8 * 64, save_every=2), f"rank{RANK}.pt")


def count_saves() -> None:
    """Train with the arguments of the command line, and note every save in the file `saves`."""
    save = script.Run.save

    def noted(self, batch):
        with open("saves", "a") as file:
            file.write(f"{self.iteration}\n")
        save(self, batch)

    script.Run.save = noted
    script.main(script.parse_args())


if __name__ == "__main__":
    task = sys.argv.pop(1)
    if task == "watch":
        watch()
    elif task == "die":
        die_in_update(6)
    else:
        count_saves()
