"""Play microRTS's task with an opponent at random, in ours or in the original environment.

python benchmark/experiments/random_microrts.py [original] [masked]

The original needs Python below 3.12, gym==0.23.1, numpy==1.23.5, dacite and JAVA_HOME.
"""

import sys
from pathlib import Path

import numpy as np

GAMES = 240
TASK = "MicrortsRandomEnemyShapedReward3-v1"


def random_action(rng: np.random.Generator, mask: np.ndarray, sizes: np.ndarray) -> list[int]:
    """Draw each component from its valid choices, or from all of them where none is valid."""
    action = []
    for valid in np.split(mask, np.cumsum(sizes)[:-1]):
        choices = np.flatnonzero(valid) if valid.any() else np.arange(len(valid))
        action.append(int(rng.choice(choices)))
    return action


def main(original: bool, masked: bool) -> None:
    if original:
        import gym
        import gym_microrts  # noqa: F401
    else:
        import gymnasium as gym

        sys.path.append(str(Path(__file__).resolve().parents[2]))
        import microrts  # noqa: F401
    env = gym.make(TASK).unwrapped  # without the time limit, which is counted below
    rng = np.random.default_rng(1)
    returns = []
    lost = 0
    for game in range(GAMES):
        if original:
            env.reset()
        else:
            _, info = env.reset(seed=1 if game == 0 else None)
        returns.append(0.0)
        for _ in range(600):
            mask = env.action_mask if original else info["action_mask"]
            mask = mask if masked else np.ones_like(mask)
            action = random_action(rng, mask, env.action_space.nvec)
            _, reward, over, *_, info = env.step(action)
            returns[-1] += reward
            if over:
                lost += reward < 0
                break
    error = np.std(returns, ddof=1) / GAMES**0.5
    print(f"mean return {np.mean(returns):.2f}, standard error {error:.2f}, {lost} games lost")


if __name__ == "__main__":
    main("original" in sys.argv, "masked" in sys.argv)
