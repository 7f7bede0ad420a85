"""Train PPO of stable-baselines3 or SBX with the hyperparameters of ours, to be timed by speed.py.

    python benchmark/speed.py "python ppo.py --total-timesteps 100000" \\
        "../sbx/bin/python benchmark/peer.py sbx CartPole-v1 100000"
"""

import importlib
import sys

import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

VECTORS = {"n_steps": 128, "batch_size": 128, "n_epochs": 4, "learning_rate": 2.5e-4}
VECTORS |= {"ent_coef": 0.01}

library, env_id, steps = sys.argv[1:]  # stable_baselines3 or sbx
torch.set_num_threads(1)
if env_id == "CartPole-v1":
    envs, hyperparameters = make_vec_env(env_id, n_envs=4), VECTORS
else:  # MuJoCo, for which the libraries' defaults are ours
    envs, hyperparameters = VecNormalize(make_vec_env(env_id)), {}
ppo = importlib.import_module(library).PPO
ppo("MlpPolicy", envs, tensorboard_log="log", **hyperparameters).learn(int(steps))
