"""The defaults and the networks of every script, in one table each, against the official ones."""

import importlib

import pytest
from conftest import ALL_SCRIPTS, spaces_of
from torch import nn

# What all have: the defaults of ppo2.learn, and what the official code does without asking (normalised advantages,
# clipped values, a learning rate that falls to 0 but no clip range, no early stop, no bootstrapping at time limits).
ALL = {
    "gamma": 0.99, "gae_lambda": 0.95, "vf_coef": 0.5, "max_grad_norm": 0.5, "norm_adv": True, "clip_vloss": True,
    "anneal_lr": True, "anneal_clip_coef": False, "target_kl": None, "bootstrap_truncated": False,
}  # fmt: skip
# ppo2/defaults.py, atari(); 8 environments and 10 million steps are those of the paper, table 5
ATARI = ALL | {
    "num_envs": 8, "num_steps": 128, "num_minibatches": 4, "update_epochs": 4, "learning_rate": 2.5e-4,
    "clip_coef": 0.1, "ent_coef": 0.01, "total_timesteps": 10_000_000,
}  # fmt: skip
# ppo2/defaults.py, mujoco(); one environment and a million steps as in the paper
MUJOCO = ALL | {
    "num_envs": 1, "num_steps": 2048, "num_minibatches": 32, "update_epochs": 10, "learning_rate": 3e-4,
    "clip_coef": 0.2, "ent_coef": 0.0, "total_timesteps": 1_000_000, "shared_network": False,
}  # fmt: skip
# The official code has no entry for classic control; these are those of the blog.
CLASSIC = ALL | {
    "num_envs": 4, "num_steps": 128, "num_minibatches": 4, "update_epochs": 4, "learning_rate": 2.5e-4,
    "clip_coef": 0.2, "ent_coef": 0.01, "total_timesteps": 500_000, "shared_network": False,
}  # fmt: skip
# Those of openai/train-procgen, but for easy levels and half as many steps, as in the blog post
PROCGEN = ATARI | {
    "num_envs": 64, "num_steps": 256, "num_minibatches": 8, "update_epochs": 3, "learning_rate": 5e-4,
    "anneal_lr": False, "gamma": 0.999, "clip_coef": 0.2, "total_timesteps": 25_000_000,
    "num_levels": 0, "start_level": 0,
}  # fmt: skip
# Nor has it any for several discrete actions: the blog takes those of Atari.
SEVERAL = ATARI | {"total_timesteps": 2_000_000, "action_mask": True}
OTHERS = {
    "ppo": CLASSIC,
    "ppo_continuous_action": MUJOCO,
    "ppo_multidiscrete": SEVERAL,
    "ppo_procgen": PROCGEN,
}
# What is no part of the algorithm
RUN = {"env_id", "capture_video", "seed", "torch_deterministic", "device", "compile", "exp_name"}
RUN |= {"run_dir", "save_every", "track"}


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_the_defaults_are_the_official_ones(script):
    args = vars(importlib.import_module(script).Args())
    assert {name: args[name] for name in args.keys() - RUN} == OTHERS.get(script, ATARI)


# common/models.py: mlp has two layers of 64 with tanh, and nature_cnn what follows
BODY = ["Linear 64", "Tanh", "Linear 64", "Tanh"]
CONVOLUTIONS = [
    "Conv2d 32 of 8 by 4", "ReLU", "Conv2d 64 of 4 by 2", "ReLU", "Conv2d 64 of 3 by 1", "ReLU", "Flatten",
    "Linear 512", "ReLU",
]  # fmt: skip
NETWORKS = {
    "ppo": [*BODY, "Linear 6", *BODY, "Linear 1"],
    "ppo_atari_lstm": [*CONVOLUTIONS, "LSTMCell 128", "Linear 6", "Linear 1"],
    "ppo_continuous_action": [*BODY, "Linear 3", *BODY, "Linear 1"],
    "ppo_multidiscrete": [
        "Conv2d 16 of 3 by 2",
        "ReLU",
        "Conv2d 32 of 2 by 1",
        "ReLU",
        "Flatten",
        "Linear 128",
        "ReLU",
        "Linear 6",
        "Linear 1",
    ],  # of the blog's script
}
RESIDUAL = ["ReLU", "Conv2d {0} of 3 by 1", "ReLU", "Conv2d {0} of 3 by 1"]
IMPALA = ["Conv2d {0} of 3 by 1", "MaxPool2d", *RESIDUAL, *RESIDUAL]
NETWORKS["ppo_procgen"] = [layer.format(depth) for depth in (16, 32, 32) for layer in IMPALA]
NETWORKS["ppo_procgen"] += ["Flatten", "ReLU", "Linear 256", "ReLU", "Linear 6", "Linear 1"]


def describe(layer: nn.Module) -> str:
    name = type(layer).__name__
    if isinstance(layer, nn.Conv2d):
        return f"{name} {layer.out_channels} of {layer.kernel_size[0]} by {layer.stride[0]}"
    if isinstance(layer, nn.Linear):
        return f"{name} {layer.out_features}"
    if isinstance(layer, nn.LSTMCell):
        return f"{name} {layer.hidden_size}"
    return name


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_the_network_is_the_official_one(script):
    agent = importlib.import_module(script).Agent(spaces_of(script))
    layers = [describe(layer) for layer in agent.modules() if not list(layer.children())]
    assert layers == NETWORKS.get(script, [*CONVOLUTIONS, "Linear 6", "Linear 1"])
