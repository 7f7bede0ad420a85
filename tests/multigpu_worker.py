"""What test_multigpu.py starts with torchrun: ppo_atari_multigpu.py, watched and disturbed.

The first argument says how. Each process writes what it saw to rank{R}.pt in the working directory.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import ppo_atari_multigpu as script

# A ReLU has a kink: a unit that is 0 but for rounding has one gradient here and another one in the test.
torch.nn.ReLU = torch.nn.ELU
RANK = int(os.environ["RANK"])
real_loss = script.ppo_loss
real_save = script.save_checkpoint
seen = {"minibatches": [], "updates": [], "actions": []}
agents = []


class WatchedEnvs(script.EnvPoolAtari):
    def reset(self, *, seed):
        seen["seeds"] = seed
        return super().reset(seed=seed)

    def step(self, actions):
        seen["actions"].append(actions.copy())
        return super().step(actions)


def watched_loss(learner, mb, *inputs):
    if not seen["minibatches"]:
        agents.append(learner.module)
        seen["first"] = {name: x.clone() for name, x in learner.module.state_dict().items()}
    seen["minibatches"].append(mb)
    return real_loss(learner, mb, *inputs)


def loss_with_kl(*inputs):
    """Each process says a KL of its own; their means in the three updates are 0.35, 0.5 and 0.3."""
    loss, stats = watched_loss(*inputs)
    update = len(seen["actions"]) // 16 - 1
    seen["updates"].append(update)
    kls = [(0.1, 0.6), (0.0, 1.0), (0.3, 0.3)]
    return loss, stats | {"approx_kl": torch.tensor(kls[update][RANK])}


def stopping_loss(*inputs):
    """The first process has torchrun stopped, in the middle of an update."""
    result = watched_loss(*inputs)
    if RANK == 0 and len(seen["minibatches"]) == 4 + 2:
        os.kill(os.getppid(), signal.SIGTERM)
    return result


def noted_save(run_dir, args, global_step, parts):
    with open("saves", "a") as file:
        file.write(f"{global_step}\n")
    real_save(run_dir, args, global_step, parts)


script.EnvPoolAtari = WatchedEnvs
script.save_checkpoint = noted_save
script.ppo_loss = {"watch": loss_with_kl, "stop": stopping_loss}[sys.argv.pop(1)]
try:
    script.main(script.parse_args())
finally:
    result = seen | {"final": agents[0].state_dict(), "actions": np.stack(seen["actions"])}
    torch.save(result, f"rank{RANK}.pt")
