"""Print the norms of the policy's and of the value's gradient in the first steps of CartPole.

python benchmark/experiments/gradient_parts.py
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2]))
import ppo

clip_grad_norm_ = nn.utils.clip_grad_norm_
norms = []


def recorded(parameters, max_norm: float) -> torch.Tensor:
    parameters = list(parameters)
    half = len(parameters) // 2  # the actor's come first, then as many of the critic's
    parts = parameters[:half], parameters[half:]
    norms.append([nn.utils.get_total_norm([x.grad for x in part]).item() for part in parts])
    return clip_grad_norm_(parameters, max_norm)


nn.utils.clip_grad_norm_ = recorded
ppo.main(ppo.Args(total_timesteps=30_000))
for name, column in zip(("policy", "value"), np.transpose(norms), strict=True):
    low, median, high = np.quantile(column, [0.25, 0.5, 0.75])
    print(f"{name}: median {median:.2f}, quartiles {low:.2f} and {high:.2f}")
