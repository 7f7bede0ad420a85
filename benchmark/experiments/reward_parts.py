"""Print the mean return of saved agents over 100 games, and the parts that MuJoCo reports of it.

python benchmark/experiments/reward_parts.py RUN_FOLDER...
"""

import sys
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))
import evaluate
import ppo_continuous_action

GAMES = 100


class RewardParts(gym.vector.VectorWrapper):
    """Sums what the infos of one environment call reward_..., over all games."""

    def __init__(self, envs: gym.vector.VectorEnv):
        super().__init__(envs)
        self.sums = Counter()

    def step(self, actions: np.ndarray) -> tuple:
        result = self.env.step(actions)
        infos = result[-1]
        for name, values in infos.get("final_info", infos).items():
            if name.startswith("reward_"):
                self.sums[name] += float(values[0])
        return result


def main(folders: list[Path]) -> None:
    for folder in folders:
        checkpoint = evaluate.load_checkpoint(folder)
        agent, envs = evaluate.load_agent(ppo_continuous_action, checkpoint)
        envs = RewardParts(envs)
        args = evaluate.Args(folder, episodes=GAMES)
        returns, lengths = evaluate.play(agent, envs, args, folder)
        parts = ", ".join(f"{name} {total / GAMES:.1f}" for name, total in envs.sums.items())
        print(f"{folder}: return {np.mean(returns):.1f} in {np.mean(lengths):.1f} steps: {parts}")


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
