# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ale-py==0.12.1", "envpool==1.2.5", "gymnasium[classic-control,mujoco]==1.4.0", "moviepy==2.2.1", "mujoco==3.8.1",
#     "numpy==2.4.6", "opencv-python-headless==5.0.0.93", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1",
#     "tyro==1.0.17",
# ]
# ///
"""Play whole games with a saved agent and print their returns.

    python evaluate.py runs/CartPole-v1__ppo__1__* --episodes 10

The agent, its environment and its normalisation are rebuilt by the script that wrote the checkpoint, which has to lie
beside this file. Statistics are frozen, rewards are the game's own, and the seed is not one of training. An EnvPool
agent plays the same game in Gymnasium, so the two environments' slight differences are part of its result.
"""

import importlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch
import tyro

from ppo import fail

# What the agent of each script prefers: the likeliest action (or actions), or the mean of the normal distribution.
GREEDY = {
    "ppo": lambda agent, x: agent.actor(x).argmax(-1),
    "ppo_atari": lambda agent, x: agent.actor(agent.network(x / 255.0)).argmax(-1),
    "ppo_atari_envpool": lambda agent, x: agent.actor(agent.network(x / 255.0)).argmax(-1),
    "ppo_atari_lstm": lambda agent, x, lstm_state, done: agent.actor(agent.get_states(x, lstm_state, done)[0]).argmax(
        -1
    ),
    "ppo_continuous_action": lambda agent, x: agent.actor_mean(x),
    "ppo_multidiscrete": lambda agent, x, action_mask: torch.stack(
        [part.argmax(-1) for part in agent.actor(x).where(action_mask, -torch.inf).split(agent.nvec, dim=-1)], dim=-1
    ),
}


@dataclass
class Args:
    run: tyro.conf.Positional[Path]  # run folder, or the checkpoint in it
    episodes: int = 10  # whole games to play
    deterministic: bool = False  # take the likeliest action instead of sampling one
    capture_video: bool = False  # record games 0, 1, 8, 27, ... into a new folder beside the checkpoint
    seed: int = 1_000_000  # seed of the environment and of the sampled actions
    json: bool = False  # print one JSON object instead of text


class VectorOfOne(gym.Env):
    """The only environment of a vector environment; its mask of valid actions is in `info`."""

    def __init__(self, envs: gym.vector.VectorEnv):
        self.envs = envs
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space

    def reset(self, **kwargs):
        obs, infos = self.envs.reset()
        return obs[0], {"action_mask": infos["action_mask"][0]}

    def step(self, action):
        obs, reward, terminated, truncated, infos = self.envs.step(action[None])
        return obs[0], reward[0], terminated[0], truncated[0], {"action_mask": infos["action_mask"][0]}

    def close(self):
        self.envs.close()


class Player:
    """The agent of a checkpoint, with the environment and the normalisation it was trained with.

    `script` is the script that wrote the checkpoint (an imported module), `env` one environment that records episode
    statistics, `normalizer` holds the statistics of training, or is None, and `lstm_state` what a recurrent agent
    remembers.
    """

    def __init__(self, checkpoint: dict, video_dir: Path | None, seed: int):
        self.script = importlib.import_module(checkpoint["script"])
        self.args = args = replace(self.script.Args(**checkpoint["args"]), num_envs=1)
        self.env_id, maker = args.env_id, self.script
        if checkpoint["script"] == "ppo_atari_envpool":
            self.env_id, maker = args.env_id.replace("-v5", "NoFrameskip-v4"), importlib.import_module("ppo_atari")
        if args.env_id.startswith("Jumanji/"):  # EnvPool's environments are vectors, and seeded as they are made
            args = replace(args, capture_video=video_dir is not None)
            self.env = VectorOfOne(maker.make_envs(args, [seed], video_dir))
        else:
            self.env = maker.make_env(self.env_id, 0, video_dir is not None, video_dir)
        if not hasattr(maker, "EpisodicLifeEnv"):  # the Atari environments do it themselves, below the lost lives
            self.env = gym.wrappers.RecordEpisodeStatistics(self.env)
        envs = SimpleNamespace(
            num_envs=1, single_observation_space=self.env.observation_space, single_action_space=self.env.action_space
        )
        shared = {"shared_network": True} if getattr(args, "shared_network", False) else {}
        self.agent = self.script.Agent(envs, **shared)
        self.agent.load_state_dict(checkpoint["agent"])
        self.normalizer, self.lstm_state = None, torch.zeros(1, 256)
        if "normalizer" in checkpoint:
            self.normalizer = self.script.VecNormalize(envs, args.gamma)
            self.normalizer.load_state_dict(checkpoint["normalizer"])

    @torch.no_grad()
    def act(self, obs: np.ndarray, info: dict, begins: bool, deterministic: bool) -> np.ndarray:
        """Return the action for one observation, which may begin an episode, in the form the environment takes."""
        x = obs[None] if self.normalizer is None else self.normalizer.normalize(obs[None])
        x = torch.as_tensor(x, dtype=torch.uint8 if x.dtype == np.uint8 else torch.float32)
        space, more = self.env.action_space, {}
        if self.script.__name__ == "ppo_atari_lstm":
            more = {"lstm_state": self.lstm_state, "done": torch.tensor([float(begins)])}
        if self.script.__name__ == "ppo_multidiscrete":
            infos = {"action_mask": info["action_mask"][None], "_action_mask": True} if "action_mask" in info else {}
            more = {
                "action_mask": torch.tensor(self.script.valid_actions(self.args, infos, np.zeros(1, bool), space.nvec))
            }
        action, _, _, _, *state = self.agent.get_action_and_value(x, **more)
        self.lstm_state = state[0] if state else None
        action = (GREEDY[self.script.__name__](self.agent, x, **more) if deterministic else action)[0].numpy()
        if isinstance(space, gym.spaces.Box):
            return np.clip(action, space.low, space.high)
        return action + space.start if isinstance(space, gym.spaces.MultiDiscrete) else action.item()

    def play(self, episodes: int, deterministic: bool, seed: int) -> tuple[list[float], list[int]]:
        """Play whole games; return their unclipped returns and their lengths in steps of the agent."""
        torch.manual_seed(seed)
        games, begins = [], True
        obs, info = self.env.reset(seed=seed)
        while len(games) < episodes:
            obs, _, terminated, truncated, info = self.env.step(self.act(obs, info, begins, deterministic))
            games += [info["episode"]] if "episode" in info else []
            begins = terminated or truncated
            if begins and len(games) < episodes:
                obs, info = self.env.reset()
                games += [info["episode"]] if "episode" in info else []  # a game can end during a reset
        return [float(game["r"]) for game in games], [int(game["l"]) for game in games]


def load_player(path: Path, capture_video: bool = False, seed: int = 1_000_000) -> tuple[Player, dict]:
    """Rebuild the agent of a run, or end with one line that says what is wrong with its checkpoint."""
    path = path / "checkpoint.pt" if path.is_dir() else path
    try:
        script = torch.load(path, map_location="cpu", weights_only=True)["script"]  # a stranger's file runs no code
    except Exception:  # whatever a missing or damaged file makes the unpickler raise
        fail(f"{path} is missing, damaged or no checkpoint: evaluate.py takes the folder of a run, runs/...")
    if script not in GREEDY:
        fail(f"{path} was written by {script}.py; evaluate.py knows {', '.join(GREEDY)}")
    checkpoint = importlib.import_module(script).load_checkpoint(path)
    video_dir = path.parent / f"evaluation_{int(time.time())}" if capture_video else None
    return Player(checkpoint, video_dir, seed), checkpoint


def main(args: Args) -> dict:
    """Evaluate and return what `--json` prints."""
    if args.episodes < 1:
        fail(f"--episodes must be at least 1, not {args.episodes}")
    torch.set_num_threads(1)  # one observation at a time leaves nothing to a second thread
    player, checkpoint = load_player(args.run, args.capture_video, args.seed)
    returns, lengths = player.play(args.episodes, args.deterministic, args.seed)
    player.env.close()
    result = {
        "run": str(args.run),
        "env_id": player.env_id,
        "global_step": checkpoint["global_step"],
        "deterministic": args.deterministic,
        "seed": args.seed,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns)),
        "returns": returns,
        "lengths": lengths,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['env_id']} after {result['global_step']:,} steps of training, {args.episodes} whole games:")
        print("returns " + ", ".join(f"{value:.1f}" for value in returns))
        print(f"mean {result['mean']:.1f}, standard deviation {result['std']:.1f}")
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
