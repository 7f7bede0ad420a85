"""A task that needs memory: the left or the right half of a frame lights up; which one was it?"""

import gymnasium as gym
import numpy as np


class Recall(gym.Env):
    """The first frame shows the half, five to seven dark ones follow, then a bright one asks."""

    observation_space = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.half, self.dark = self.np_random.integers(2), self.np_random.integers(5, 8)
        frame = np.zeros((84, 84), np.uint8)
        frame[:, 42 * self.half :][:, :42] = 255
        return frame, {}

    def step(self, action):
        self.dark -= 1
        over = self.dark < -1
        reward = 0 if not over else 1 if action == self.half else -1
        return np.full((84, 84), 255 * (self.dark == -1), np.uint8), reward, over, False, {}


gym.register("Recall-v0", Recall)
