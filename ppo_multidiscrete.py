# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "envpool==1.2.5", "filelock==4.2.12", "gymnasium==1.4.0", "moviepy==2.2.1", "numpy==2.4.6",
#     "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
# ]
# ///
"""Proximal Policy Optimization for several discrete actions at once, with invalid ones masked.

    python ppo_multidiscrete.py --env-id Jumanji/Cleaner-v0

In EnvPool's Cleaner three robots clean a maze. The return is 21 after 1,000,000 steps, which take a
few minutes on one CPU core, and 5 without masks (five seeds each). Gymnasium's environments with
several discrete actions work too; what info["action_mask"], one array for all components, calls
invalid is never taken.

The algorithm is that of the official code, ppo2 in github.com/openai/baselines at commit ea25b9e. A
reference such as ppo2/runner.py#L56 is a line of it, below the folder baselines; a label such as
Core 7 is a section of the blog post "The 37 Implementation Details of Proximal Policy
Optimization".

The official code has no masks and no settings for such environments. Two details differ:
`approx_kl` is the mean of ratio - 1 - log ratio (official: half the mean square of log ratio), and
--target-kl stops at its value (Spinning Up, where it comes from: at 1.5 times its value).

Read from here to the end of `main`: arguments, environments, agent, advantages, loss, and the
training loop. What comes after `main` (checks, checkpoints, log, progress) is not part of PPO.
"""

import atexit
import glob
import importlib.util
import io
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, NoReturn, TextIO

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below: no traceback

import envpool
import gymnasium as gym
import numpy as np
import torch
import tyro
from filelock import FileLock, Timeout
from gymnasium.utils.save_video import capped_cubic_video_schedule, save_video
from torch import Tensor, nn, optim
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    # Environment
    env_id: str = "Jumanji/Cleaner-v0"  # EnvPool's Cleaner, or one of Gymnasium's
    num_envs: int = 16  # environments stepped side by side
    capture_video: bool = False  # record videos of the first environment into the run folder
    action_mask: bool = True  # never take an action that the environment calls invalid

    # Algorithm
    total_timesteps: int = 1_000_000  # environment steps; more on a resume raise the learning rate
    num_steps: int = 128  # steps of each environment per update
    num_minibatches: int = 4  # minibatches per epoch
    update_epochs: int = 4  # passes over the batch per update
    learning_rate: float = 2.5e-4  # Adam's step size at the first update
    anneal_lr: bool = True  # decrease the learning rate linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda of generalized advantage estimation
    norm_adv: bool = True  # normalise the advantages of each minibatch
    clip_coef: float = 0.2  # clip the ratio to [1 - clip_coef, 1 + clip_coef]
    anneal_clip_coef: bool = False  # decrease clip_coef linearly to 0 as well
    clip_vloss: bool = True  # clip the value prediction to within clip_coef of the old one
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # clip the global norm of the gradient to this
    target_kl: float | None = None  # skip an update's other epochs once the mean KL exceeds this
    bootstrap_truncated: bool = False  # add the value of what a time limit cuts off
    shared_network: bool = False  # one body for policy and value instead of two

    # Run
    seed: int = 1  # seed of everything random
    torch_deterministic: bool = True  # let cuDNN use deterministic kernels
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: the CPU, for networks this small
    compile: bool = False  # compile the learner; needs a C++ compiler and a minute
    exp_name: str = Path(__file__).stem  # name of the experiment, part of the run folder's name
    save_every: int = 100  # updates between two checkpoints
    # run folder to continue, or the beginning of its name; then only these flags may change:
    # --total-timesteps --device --compile --save-every --capture-video --track
    resume: Path | None = None
    track: bool = False  # log to Weights & Biases too (see WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE)


# -------------------------------------------------------------------------------------------------
# Environments


def make_env(env_id: str, idx: int, capture_video: bool, run_dir: Path) -> gym.Env:
    """Make environment number `idx`; number 0 records videos if asked to."""
    record = capture_video and idx == 0
    env = gym.make(env_id, render_mode="rgb_array") if record else gym.make(env_id)
    check_spaces(env_id, env)
    obs_space = env.observation_space
    if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)
    if isinstance(env.action_space, gym.spaces.MultiBinary):
        nvec = np.full(env.action_space.shape, 2)
        start = np.zeros(env.action_space.shape, dtype=np.int64)
    else:
        nvec = env.action_space.nvec
        start = env.action_space.start
    # The agent's actions are vectors, and count from 0.
    space = gym.spaces.MultiDiscrete(nvec.flatten())
    env = gym.wrappers.TransformAction(
        env, lambda action: start + action.reshape(start.shape), space
    )
    if record:
        folder = free_path(run_dir / "videos")  # a resumed run may have some already
        env = gym.wrappers.RecordVideo(env, str(folder), disable_logger=True)
    return gym.wrappers.RecordEpisodeStatistics(env)


def make_envs(args: Args, run_dir: Path) -> gym.vector.VectorEnv:
    """Core 1: vectorised environments, which one policy steps side by side."""
    if args.env_id == "Jumanji/Cleaner-v0":
        return ActionMask(Cleaner(args, run_dir), args)
    thunks = [
        partial(make_env, args.env_id, i, args.capture_video, run_dir) for i in range(args.num_envs)
    ]
    # SAME_STEP: the step that ends an episode returns the first observation of the next one.
    # Gymnasium's default, NEXT_STEP, spends a step on the reset, and the learner would train on a
    # transition that never happened.
    envs = gym.vector.SyncVectorEnv(thunks, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    return ActionMask(envs, args)


def check_spaces(env_id: str, env: gym.Env) -> None:
    """Exit with one line if this script cannot train on `env`."""
    check_observations(env_id, env.observation_space)
    if isinstance(env.action_space, gym.spaces.Box):
        fail(f"{env_id} has continuous actions: use ppo_continuous_action.py")
    if isinstance(env.action_space, gym.spaces.Discrete):
        fail(f"{env_id} has one discrete action, {env.action_space}: use ppo.py")
    if not isinstance(env.action_space, gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        fail(f"{env_id} has the actions {env.action_space}: map them to MultiDiscrete in make_env")


def check_observations(env_id: str, space: gym.Space) -> None:
    """Exit with one line unless `space` is made of numbers, which FlattenObservation can take."""
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        parts = space.values() if isinstance(space, gym.spaces.Dict) else space
        for part in parts:
            check_observations(env_id, part)
    elif isinstance(space, gym.spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) == 3 and min(space.shape[:2]) >= 36:
            fail(f"{env_id} observes images: start from ppo_atari.py, with your make_env")
    elif not isinstance(
        space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary
    ):
        fail(f"{env_id} observes {space}, not numbers: use FilterObservation in make_env")


class Cleaner(gym.vector.VectorEnv):
    """EnvPool's Cleaner with vector observations, MultiDiscrete actions, and masks in infos.

    EnvPool spends the step after an episode's end on the reset. That step is taken here at once, by
    the environments that need it, so that no learner sees it.
    """

    metadata: ClassVar = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    # Three maps of the tiles, three of the robots, and the time
    single_observation_space = gym.spaces.Box(0, 1, (601,))
    single_action_space = gym.spaces.MultiDiscrete([4, 4, 4])

    def __init__(self, args: Args, run_dir: Path):
        self.args = args
        self.num_envs = args.num_envs
        self.video_dir = free_path(run_dir / "videos")  # a resumed run may have some already
        self.film = []  # of the first environment's episode
        self.episodes = 0  # that the first environment has finished

    def reset(self, *, seed: list[int], options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.pool = envpool.make(
            self.args.env_id,
            env_type="gymnasium",
            num_envs=self.num_envs,
            seed=[number % 2**31 for number in seed],  # EnvPool takes 31 bits, and takes them here
            render_mode="rgb_array" if self.args.capture_video else None,
        )
        self.episode_returns = np.zeros(self.num_envs)
        obs, _ = self.pool.reset()
        return self.flatten(obs), self.masks(obs)

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        obs, rewards, terminated, truncated, infos = self.pool.step(actions.astype(np.int32))
        self.episode_returns += rewards
        done = terminated | truncated
        if self.args.capture_video:
            self.record(done[0])
        if not done.any():
            return self.flatten(obs), rewards, terminated, truncated, self.masks(obs)

        more = {
            "final_obs": self.flatten(obs),
            "episode": {"r": self.episode_returns.copy(), "l": infos["elapsed_step"]},
            "_episode": done,
        }
        self.episode_returns[done] = 0
        ended = np.flatnonzero(done)
        first_obs, *_ = self.pool.step(np.zeros((len(ended), 3), dtype=np.int32), ended)
        for name in obs:
            obs[name][ended] = first_obs[name]
        return self.flatten(obs), rewards, terminated, truncated, self.masks(obs) | more

    def flatten(self, obs: dict) -> np.ndarray:
        """Return the observations as vectors, (num_envs, 601)."""
        tiles = np.eye(3)[obs["grid"]].reshape(-1, 300)
        robots = np.eye(100)[obs["agents_locations"] @ [10, 1]].reshape(-1, 300)
        return np.hstack([tiles, robots, obs["step_count"][:, None] / 100])

    def masks(self, obs: dict) -> dict:
        # In some mazes the robots are walled in from the start. Whatever they do ends the episode,
        # so all is allowed.
        valid = obs["action_mask"] | ~obs["action_mask"].any(axis=-1, keepdims=True)
        return {"action_mask": valid, "_action_mask": np.ones(self.num_envs, dtype=bool)}

    def record(self, done: bool) -> None:
        """Film episode 0, 1, 8, 27, ... of the first environment."""
        if capped_cubic_video_schedule(self.episodes):
            self.film.extend(self.pool.render(env_ids=0))
        if done:
            save_video(self.film, str(self.video_dir), episode_index=self.episodes, fps=10)
            self.film = []
            self.episodes += 1


class ActionMask(gym.vector.VectorWrapper):
    """Aux 4: infos["action_mask"], (num_envs, sum of nvec) bool, says which actions are valid."""

    def __init__(self, envs: gym.vector.VectorEnv, args: Args):
        super().__init__(envs)
        self.args = args
        self.nvec = envs.single_action_space.nvec

    def reset(self, **kwargs) -> tuple[np.ndarray, dict]:
        obs, infos = self.env.reset(**kwargs)
        infos["action_mask"] = self.valid_actions(infos)
        return obs, infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        infos["action_mask"] = self.valid_actions(infos)
        return obs, rewards, terminated, truncated, infos

    def valid_actions(self, infos: dict) -> np.ndarray:
        valid = np.ones((self.num_envs, self.nvec.sum()), dtype=bool)
        if not self.args.action_mask or "action_mask" not in infos:
            return valid
        masks = infos["action_mask"].reshape(self.num_envs, -1).astype(bool)
        if masks.shape != valid.shape:
            shapes = f"{masks.shape[1:]}, not {valid.shape[1:]}"
            how = "concatenate those of the components"
            fail(f"the action masks of {self.args.env_id} have the shape {shapes}: {how}")
        valid = masks | ~infos["_action_mask"][:, None]
        first = np.cumsum(self.nvec) - self.nvec  # column of each component
        if not np.logical_or.reduceat(valid, first, axis=1).all():
            fail(f"{self.args.env_id} masks all choices of a component: it should end the episode")
        return valid


# -------------------------------------------------------------------------------------------------
# Agent


def layer_init(layer: nn.Module, std: float = 2**0.5) -> nn.Module:
    """Core 2: orthogonal weights with gain `std`, zero biases (a2c/utils.py#L58)."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


def sample(logits: Tensor, greedy: bool = False) -> Tensor:
    """Draw from the softmax of each row, or take the likeliest: (batch, actions) -> (batch,)."""
    if greedy:
        return logits.argmax(dim=-1)
    # The argmax of logits plus Gumbel noise is such a draw (common/distributions.py#L199).
    gumbel = -torch.empty_like(logits).exponential_().log()
    return (logits + gumbel).argmax(dim=-1)


class Agent(nn.Module):
    """Policy and value networks (common/policies.py)."""

    def __init__(self, envs: gym.vector.VectorEnv, shared_network: bool = False):
        super().__init__()
        obs_size = envs.single_observation_space.shape[0]
        self.nvec = envs.single_action_space.nvec.tolist()  # number of choices of each component

        def body() -> list[nn.Module]:
            return [
                layer_init(nn.Linear(obs_size, 64)),
                nn.Tanh(),
                layer_init(nn.Linear(64, 64)),
                nn.Tanh(),
            ]

        actor_body = body()
        # Core 13: separate networks, or one body for both
        critic_body = actor_body if shared_network else body()
        # The small gain makes all actions about equally likely at the start.
        self.actor = nn.Sequential(*actor_body, layer_init(nn.Linear(64, sum(self.nvec)), std=0.01))
        self.critic = nn.Sequential(*critic_body, layer_init(nn.Linear(64, 1), std=1.0))

    def get_value(self, x: Tensor) -> Tensor:
        """Return the value of each observation: (batch, obs_size) -> (batch,)."""
        return self.critic(x).squeeze(-1)

    def get_logits(self, x: Tensor, action_mask: Tensor | None) -> tuple[Tensor, ...]:
        """Return each component's logits, (batch, choices); the mask is (batch, sum of nvec)."""
        logits = self.actor(x)
        if action_mask is not None:
            # Aux 4: the most negative number gives a probability and a gradient of exactly 0
            logits = torch.where(action_mask, logits, torch.finfo(logits.dtype).min)
        return logits.split(self.nvec, dim=-1)

    def get_action(
        self, x: Tensor, greedy: bool = False, action_mask: Tensor | None = None
    ) -> Tensor:
        """Sample actions, or take the likeliest: (batch, obs_size) -> (batch, components)."""
        return torch.stack(
            [sample(logits, greedy) for logits in self.get_logits(x, action_mask)], dim=-1
        )

    def get_action_and_value(
        self, x: Tensor, action: Tensor | None = None, action_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return action (batch, components), log-probability, entropy and value (batch,)."""
        if action is None:
            action = self.get_action(x, action_mask=action_mask)
        # MultiDiscrete 1: independent components, whose log-probabilities and entropies add up
        logprob = 0.0
        entropy = 0.0
        for logits, choice in zip(
            self.get_logits(x, action_mask), action.unbind(dim=-1), strict=True
        ):
            logprobs = logits.log_softmax(dim=-1)  # (batch, choices)
            logprob = logprob + logprobs.gather(-1, choice[:, None])[:, 0]
            entropy = entropy - (logprobs.exp() * logprobs).sum(dim=-1)
        return action, logprob, entropy, self.get_value(x)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:  # what `agent(...)` calls
        return self.get_action_and_value(*inputs)


# -------------------------------------------------------------------------------------------------
# Advantages and loss


class Batch(NamedTuple):
    """What the learner sees of each row; a minibatch is a Batch of some of the rows."""

    obs: Tensor  # (rows, obs_size) float32
    actions: Tensor  # (rows, components) int64
    logprobs: Tensor  # (rows,) log-probability of the action under the policy that took it
    values: Tensor  # (rows,) value predicted during the rollout
    advantages: Tensor  # (rows,)
    returns: Tensor  # (rows,) target of the value function
    action_masks: Tensor  # (rows, sum of nvec) bool, the actions that were valid

    def select(self, rows: Tensor) -> "Batch":
        return Batch(*(field[rows] for field in self))


def compute_gae(
    rewards, values, dones, next_value, next_done, gamma, gae_lambda
) -> tuple[Tensor, Tensor]:
    """Core 5: generalized advantage estimation (Schulman et al. 2016; ppo2/runner.py#L56-L65).

    `rewards`, `values` and `dones` are (num_steps, num_envs). `dones[t]` is 1 where the step before
    t ended an episode, so that `obs[t]` is the first observation of the next one. `next_value` and
    `next_done`, (num_envs,), belong to the observation after the last step.
    Returns the advantages and the targets of the value function, both (num_steps, num_envs).
    """
    next_values = torch.cat([values[1:], next_value[None]])
    # 0 where the episode ended with step t
    continues = 1.0 - torch.cat([dones[1:], next_done[None]])
    deltas = rewards + gamma * continues * next_values - values

    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(next_value)  # beyond the last step, all is in next_value
    for t in reversed(range(len(rewards))):
        advantage = deltas[t] + gamma * gae_lambda * continues[t] * advantage
        advantages[t] = advantage
    return advantages, advantages + values


def ppo_loss(
    agent: Agent, mb: Batch, clip_coef: float, args: Args
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a minibatch and its statistics (Schulman et al. 2017, eq. 7 and 9)."""
    _, logprobs, entropies, values = agent(mb.obs, mb.actions, mb.action_masks)
    logratio = logprobs - mb.logprobs
    ratio = logratio.exp()

    advantages = mb.advantages
    if args.norm_adv:  # Core 7: per minibatch, with the population standard deviation
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)

    # Core 8: the clipped surrogate objective; the worse of clipped and unclipped counts
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    policy_loss = -torch.min(advantages * ratio, advantages * clipped_ratio).mean()

    value_losses = (values - mb.returns) ** 2
    if args.clip_vloss:  # Core 9: the worse of the errors with and without clipping
        clipped_values = mb.values + (values - mb.values).clamp(-clip_coef, clip_coef)
        value_losses = torch.max(value_losses, (clipped_values - mb.returns) ** 2)
    value_loss = 0.5 * value_losses.mean()

    entropy = entropies.mean()
    loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss  # Core 10: one loss

    with torch.no_grad():  # Core 12: debug variables
        stats = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "old_approx_kl": -logratio.mean(),
            "approx_kl": (ratio - 1 - logratio).mean(),  # never negative (Schulman 2020)
            "clipfrac": ((ratio - 1).abs() > clip_coef).float().mean(),
        }
    return loss, stats


def compute_gradient(agent: Agent, mb: Batch, clip_coef: float, args: Args) -> dict[str, Tensor]:
    """Set every parameter's gradient to that of a minibatch's loss; return the statistics."""
    if torch.compiler.is_compiling():
        # The same gradient as that of loss.backward() below, in a form that torch.compile can take.
        def loss_of(parameters: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return ppo_loss(partial(call_with, parameters), mb, clip_coef, args)

        def call_with(parameters: dict[str, Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
            return torch.func.functional_call(agent, parameters, inputs)

        with torch.no_grad():
            gradient_of = torch.func.grad(loss_of, has_aux=True)
            gradients, stats = gradient_of(dict(agent.named_parameters()))
        for name, parameter in agent.named_parameters():
            parameter.grad = gradients[name].contiguous()  # laid out in memory as the parameter is
    else:
        loss, stats = ppo_loss(agent, mb, clip_coef, args)
        loss.backward()
    # Core 11: the norm over all parameters is clipped
    stats["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    return stats


# -------------------------------------------------------------------------------------------------
# Training


def main(args: Args) -> Agent:
    """Train and return the agent."""
    check_args(args)
    batch_size = args.num_envs * args.num_steps
    num_iterations = args.total_timesteps // batch_size
    run_dir = args.resume or new_run_dir(args)
    device = torch.device("cpu" if args.device == "auto" else args.device)
    torch.set_num_threads(1)  # a second thread does not make networks this small faster
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic

    with one_line_errors(args.env_id):
        envs = make_envs(args, run_dir)
    agent = Agent(envs, args.shared_network).to(device)
    # Adam's epsilon is set before each of its steps, below.
    optimizer = optim.Adam(agent.parameters(), lr=args.learning_rate, fused=True)
    gradient_fn = torch.compile(compute_gradient) if args.compile else compute_gradient
    # Seeds, log, checkpoints: see below. On a resume, it restores what is handed to it.
    run = Run(args, run_dir, agent=agent, optimizer=optimizer)

    # One rollout. NumPy arrays are filled faster than tensors, and become tensors once per update.
    obs = np.zeros(
        (args.num_steps, args.num_envs, *envs.single_observation_space.shape), dtype=np.float32
    )
    nvec = envs.single_action_space.nvec
    actions = np.zeros((args.num_steps, args.num_envs, len(nvec)), dtype=np.int64)
    masks = np.zeros((args.num_steps, args.num_envs, nvec.sum()), dtype=bool)
    rewards = np.zeros((args.num_steps, args.num_envs), dtype=np.float32)
    dones = np.zeros((args.num_steps, args.num_envs), dtype=np.float32)
    to_tensor = partial(torch.as_tensor, dtype=torch.float32, device=device)

    with one_line_errors(args.env_id):
        next_obs, infos = envs.reset(seed=run.env_seeds())  # (num_envs, obs_size)
    next_done = np.zeros(args.num_envs, dtype=bool)
    # Steps that Adam has taken: more than 0 after a resume
    adam_steps = max((int(state["step"]) for state in optimizer.state.values()), default=0)

    for iteration in range(run.iteration, num_iterations):
        # Core 4: the learning rate falls linearly, and would reach 0 after the last iteration
        # Aux 1: the clip range likewise
        remaining = 1 - iteration / num_iterations
        lr = args.learning_rate * remaining if args.anneal_lr else args.learning_rate
        clip_coef = args.clip_coef * remaining if args.anneal_clip_coef else args.clip_coef
        optimizer.param_groups[0]["lr"] = lr
        if args.compile and args.anneal_clip_coef:
            clip_coef = torch.tensor(clip_coef, device=device)  # every new float is compiled anew

        # Roll out the policy. next_obs and next_done carry over to the next iteration.
        with torch.no_grad():
            for step in range(args.num_steps):
                obs[step] = next_obs
                dones[step] = next_done
                masks[step] = infos["action_mask"]
                mask = torch.as_tensor(masks[step], device=device)
                action = agent.get_action(to_tensor(next_obs), action_mask=mask)
                actions[step] = action.cpu().numpy()
                next_obs, rewards[step], terminated, truncated, infos = envs.step(actions[step])
                next_done = terminated | truncated
                run.end_step(infos)

                cut = truncated & ~terminated
                if args.bootstrap_truncated and cut.any():
                    # A time limit cut the episode: what would have followed is worth V(final_obs).
                    final_obs = torch.stack([to_tensor(x) for x in infos["final_obs"][cut]])
                    rewards[step, cut] += args.gamma * agent.get_value(final_obs).cpu().numpy()

            # The weights are still those that acted: evaluate all rows at once.
            b_obs = to_tensor(obs).flatten(0, 1)
            b_actions = torch.as_tensor(actions, device=device).flatten(0, 1)
            b_masks = torch.as_tensor(masks, device=device).flatten(0, 1)
            _, logprobs, _, values = agent.get_action_and_value(b_obs, b_actions, b_masks)
            next_value = agent.get_value(to_tensor(next_obs))

        advantages, returns = compute_gae(
            rewards=to_tensor(rewards),
            values=values.view(args.num_steps, args.num_envs),
            dones=to_tensor(dones),
            next_value=next_value,
            next_done=to_tensor(next_done),
            gamma=args.gamma,
            gae_lambda=args.gae_lambda,
        )
        batch = Batch(
            obs=b_obs,
            actions=b_actions,
            logprobs=logprobs,
            values=values,
            advantages=advantages.flatten(),
            returns=returns.flatten(),
            action_masks=b_masks,
        )

        stats = []
        for _ in range(args.update_epochs):
            # Core 6: every epoch visits every row once, in a new random order
            for rows in torch.randperm(batch_size, device=device).chunk(args.num_minibatches):
                optimizer.zero_grad()
                mb_stats = gradient_fn(agent, batch.select(rows), clip_coef, args)
                # Core 3: epsilon is 1e-5. TensorFlow adds it before Adam's bias correction, PyTorch
                # after it: divided by the correction, it makes PyTorch take TensorFlow's step.
                adam_steps += 1
                optimizer.param_groups[0]["eps"] = 1e-5 / (1 - 0.999**adam_steps) ** 0.5
                optimizer.step()
                stats.append(mb_stats)
            if args.target_kl is not None:
                # Aux 3: stop when this epoch has moved the policy too far
                kls = [mb_stats["approx_kl"] for mb_stats in stats[-args.num_minibatches :]]
                if torch.stack(kls).mean() > args.target_kl:
                    break

        run.end_update(iteration, lr, stats, batch)

    run.close()
    envs.close()
    return agent


# -------------------------------------------------------------------------------------------------
# The algorithm ends here. What follows is the same in every script: it checks the arguments, saves
# and resumes the run, logs it, and shows its progress.


def say(message: str, stream: TextIO | None) -> None:
    """Print one line; that a terminal or the reader of a pipe is gone does not stop the run."""
    line = "".join(character if character.isprintable() else " " for character in message)
    if stream is not None:  # as it is where the shell has closed it
        with suppress(OSError, ValueError):
            print(" ".join(line.split()), file=stream, flush=True)


def fail(message: str, code: int = 2) -> NoReturn:
    """Exit with one line on stderr; exit code 2 means wrong usage."""
    say(f"error: {message}", sys.stderr)
    raise SystemExit(code)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_args(args: Args) -> None:
    """Exit with one line that says what to change if the arguments make no sense."""
    sizes = ("num_envs", "num_steps", "num_minibatches", "update_epochs", "total_timesteps")
    for name in (*sizes, "save_every"):
        if getattr(args, name) < 1:
            fail(f"{flag(name)} must be at least 1, not {getattr(args, name)}")
    if args.num_envs > 100_000 or args.num_envs * args.num_steps > 2**40:
        fail(f"--num-envs {args.num_envs} times --num-steps {args.num_steps} is too much")
    for name in ("learning_rate", "clip_coef", "ent_coef", "vf_coef", "max_grad_norm"):
        if not 0 <= getattr(args, name) <= 1e30:
            fail(f"{flag(name)} must lie between 0 and 1e30, not at {getattr(args, name)}")
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(args, name) <= 1:
            fail(f"{flag(name)} must lie between 0 and 1, not at {getattr(args, name)}")
    if args.target_kl is not None and not args.target_kl >= 0:
        fail(f"--target-kl must be a number from 0 up, not {args.target_kl}")
    if not 0 <= args.seed < 2**31:
        fail(f"--seed must lie between 0 and {2**31 - 1}, not at {args.seed}")

    batch_size = args.num_envs * args.num_steps
    if batch_size % args.num_minibatches != 0:
        batch = f"--num-envs times --num-steps, {batch_size}"
        fail(f"--num-minibatches {args.num_minibatches} does not divide {batch}")
    if args.total_timesteps < batch_size:
        fail(
            f"--total-timesteps {args.total_timesteps} is less than one update, {batch_size} steps"
        )
    if args.device != "auto" and not torch.get_device_module(args.device).is_available():
        fail(f"--device {args.device}: PyTorch finds no such device here; use --device cpu")
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    if args.compile and not any(shutil.which(name) for name in compilers):
        fail("--compile needs a C++ compiler: install g++, or leave --compile out")
    if args.track and importlib.util.find_spec("wandb") is None:
        fail("--track needs Weights & Biases: pip install wandb")
    if args.capture_video and importlib.util.find_spec("moviepy") is None:
        fail("--capture-video needs moviepy: pip install moviepy")


@contextmanager
def one_line_errors(env_id: str) -> Iterator[None]:
    """Turn what goes wrong while environments are made or reset into one line."""
    try:
        yield
    except gym.error.UnregisteredEnv as error:
        fail(f"{env_id}: {error} (Atari: ppo_atari.py; from a package: --env-id package:Name-v0)")
    except gym.error.Error as error:
        fail(f"{env_id}: {error}")
    except SystemExit as error:
        if not error.code:  # not one of ours
            fail(f"{env_id}: its code ended the program, with sys.exit()")
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        fail(f"{env_id}: {type(error).__name__}: {error} ({place.filename}, line {place.lineno})")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a folder that is gone or may not be written into one line."""
    try:
        yield
    except OSError as error:
        saved = ", its last checkpoint is whole" if os.path.exists(path / "checkpoint.pt") else ""
        fail(f"cannot write to {path}{saved}: {error.strerror or error}", code=1)


# A resumed run keeps its arguments, all but these.
MAY_CHANGE = (
    "total_timesteps",
    "device",
    "compile",
    "save_every",
    "capture_video",
    "track",
    "resume",
)


def parse_args() -> Args:
    """Read the command line; with --resume, what it leaves out comes from the checkpoint."""
    given = tyro.cli(Args, description=__doc__)
    if given.resume is None:
        return given
    run_dir = find_run(given.resume)
    checkpoint = load_checkpoint(run_dir)
    if checkpoint["script"] != Path(__file__).stem:
        fail(f"{run_dir} is a run of {checkpoint['script']}.py, not of {Path(__file__).name}")
    if "optimizer" not in checkpoint:
        fail(f"{run_dir} has weights only: evaluate.py plays the agent, training cannot go on")
    saved = Args(**checkpoint["args"])
    if ":" in saved.env_id and given.env_id != saved.env_id:
        # A stranger's file must not choose what is imported.
        fail(f"the run imports a package: if you trust it, add --env-id {saved.env_id}")
    args = tyro.cli(Args, default=saved, description=__doc__)
    args.resume = run_dir
    for field in fields(Args):
        value = getattr(saved, field.name)
        if field.name not in MAY_CHANGE and getattr(args, field.name) != value:
            fail(f"{flag(field.name)} is {value} in the run to resume and cannot change")
    if checkpoint["iteration"] >= args.total_timesteps // (args.num_envs * args.num_steps):
        fail(f"the run is over, at {checkpoint['global_step']} steps: raise --total-timesteps")
    return args


def find_run(path: Path) -> Path:
    """Return the run folder at `path`: itself, a checkpoint's, or the newest that begins so."""
    folder = path.parent if path.name == "checkpoint.pt" else path
    if os.path.isfile(folder / "checkpoint.pt"):
        return folder
    for rest in ("__*", "*"):  # seed 1 is not seed 10
        names = glob.glob(f"{glob.escape(str(path))}{rest}/checkpoint.pt")
        files = [name for name in names if os.path.isfile(name)]
        if files:
            return Path(max(files, key=os.path.getmtime)).parent
    fail(f"no run {path} with a checkpoint: give the folder of a run, runs/...")


def load_checkpoint(run_dir: Path) -> dict:
    """Read the checkpoint of a run, or exit with one line that says what is wrong with it."""
    path = run_dir / "checkpoint.pt"
    try:
        # torch.load does not look at the checksums; with weights_only it runs no foreign code.
        damaged = not path.is_file() or zipfile.ZipFile(path).testzip()
        checkpoint = {} if damaged else torch.load(path, map_location="cpu", weights_only=True)
        args = checkpoint["args"]
        batch_size = args["num_envs"] * args["num_steps"]
        version = checkpoint["version"]
        iteration = checkpoint["iteration"]
        global_step = checkpoint["global_step"]
        counted = type(iteration) is type(global_step) is int and iteration > 0 and batch_size > 0
        counted = counted and global_step == iteration * batch_size
        known = isinstance(checkpoint["script"], str) and type(version) is int
    except Exception:  # a missing, damaged or foreign file can raise anything
        fail(f"{path} is missing, damaged or no checkpoint: give the folder of a run, runs/...")
    if not known or version != Run.version:
        fail(f"{path} has the format {version}, not {Run.version}: use the script that wrote it")
    defaults = {field.name: field.default for field in fields(Args)}
    for name in [*args, *defaults]:
        if name not in args or name not in defaults:
            scripts = f"{checkpoint['script']}.py, not by this {Path(__file__).name}"
            fail(f"{path} was written by {scripts}: they differ in {flag(str(name))}")
        if not fits_default(args[name], defaults[name]):
            fail(f"{path} is damaged: {flag(name)} is {args[name]!r}")
    if not counted:
        fail(f"{path} is damaged: its numbers of steps and updates do not agree")
    return checkpoint


def fits_default(value, default) -> bool:
    """Whether a value from a file has the type of an argument's default."""
    if isinstance(default, float) or default is None:
        return value is None or type(value) in (float, int)
    return type(value) is type(default)


def fits(saved, own) -> bool:
    """Whether `saved` has the keys, shapes and types of `own`, and nothing but finite numbers."""
    if isinstance(own, dict):
        same = isinstance(saved, dict) and saved.keys() == own.keys()
        return same and all(fits(saved[key], own[key]) for key in own)
    if isinstance(own, list):
        return isinstance(saved, list) and len(saved) == len(own) and all(map(fits, saved, own))
    if isinstance(own, Tensor):
        same = isinstance(saved, Tensor) and saved.shape == own.shape and saved.dtype == own.dtype
        same = same and saved.device.type != "meta" and saved.layout == torch.strided
        return same and bool(saved.isfinite().all())
    return type(saved) in (float, int) and np.isfinite(saved)


def new_run_dir(args: Args) -> Path:
    """Return a name that is free, legal on every system, and one level deep."""
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
    return free_path(Path("runs") / re.sub(r"[^\w.+-]+", "-", name))


def free_path(path: Path) -> Path:
    """Return `path` if nothing is there, else the first of path-2, path-3, ... that is free."""
    free = path
    number = 2
    while os.path.exists(free):
        free = path.with_name(f"{path.name}-{number}")
        number += 1
    return free


class Run:
    """One training run: its folder with log and checkpoints, its progress, its orderly end.

    `parts` (agent, optimizer, ...) go into every checkpoint, and come back from it on a resume.
    """

    version = 2  # of the checkpoint's format
    script = Path(__file__)

    def __init__(self, args: Args, run_dir: Path, **parts):
        self.args = args
        self.dir = run_dir
        self.parts = parts
        self.iteration = 0  # updates so far
        self.global_step = 0  # environment steps so far
        self.returns = deque(maxlen=100)  # of the last finished episodes
        self.stop_signal = 0  # the number of the signal that came, if one did
        self.claim_folder()
        if args.resume:
            self.restore(load_checkpoint(run_dir))

        self.first_step = self.global_step
        self.total = args.total_timesteps - args.total_timesteps % (args.num_envs * args.num_steps)
        device = next(parts["agent"].parameters()).device
        versions = f"torch {torch.__version__}, gymnasium {gym.__version__}"
        say(f"{self.dir}: {device}, {versions}", sys.stderr)
        # A bar in a terminal, elsewhere a line every ten seconds
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(
            total=self.total,
            initial=self.global_step,
            bar_format="{percentage:3.0f}%|{bar}| {remaining} left{postfix}",
            dynamic_ncols=True,
            disable=not self.terminal,
        )
        self.started = self.last_update = self.last_line = time.perf_counter()
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                signum = getattr(signal, name, None)  # Windows has no SIGHUP, and nohup ignores it
                if signum and signal.getsignal(signum) != signal.SIG_IGN:
                    self.handlers[signum] = signal.signal(signum, self.on_signal)
        atexit.register(self.say_how_to_go_on)

    def claim_folder(self) -> None:
        """Make the run folder, and lock it; a process that is killed leaves no lock behind."""
        with disk_errors(self.dir):
            self.dir.parent.mkdir(parents=True, exist_ok=True)
            while not self.args.resume:
                try:
                    # There may be a folder for videos in it already.
                    self.dir.mkdir(exist_ok=self.args.capture_video)
                    break
                except FileExistsError:  # another run started in the same second
                    self.dir = new_run_dir(self.args)
            self.lock = FileLock(self.dir / "lock", is_singleton=True)
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                fail(f"{self.dir} is in use: another process is training this run")

    @cached_property
    def writer(self) -> SummaryWriter:
        """The log, opened when it is first written to."""
        if self.args.track:
            import wandb

            name = self.dir.name
            config = asdict(self.args)
            wandb.init(id=name, name=name, resume="allow", config=config, sync_tensorboard=True)
        self.put_log_in_order()
        # purge_step: a resumed run logs again what came after its last checkpoint.
        writer = SummaryWriter(self.dir, purge_step=self.first_step + 1)
        settings = asdict(self.args) | {"threads": torch.get_num_threads()}
        lines = [f"    {name}: {value}" for name, value in settings.items()]
        writer.add_text("hyperparameters", "\n".join(lines))
        return writer

    def put_log_in_order(self) -> None:
        """Rename log files from the future: TensorBoard reads them in the order of their names."""
        files = sorted(self.dir.glob("events.out.tfevents.*"))
        if files and files[-1].name >= f"events.out.tfevents.{int(time.time())}":
            for number, file in enumerate(files):  # the clock was set back
                file.rename(self.dir / f"events.out.tfevents.{number:010}.earlier")

    def env_seeds(self) -> list[int]:
        """Return a seed for every environment: none of another run's, and new ones on a resume."""
        sequence = np.random.SeedSequence([self.args.seed, self.iteration])
        return sequence.generate_state(self.args.num_envs).tolist()

    def end_step(self, infos: dict) -> None:
        """Count a step of every environment; log episodes that RecordEpisodeStatistics reports."""
        self.global_step += self.args.num_envs
        for info in (infos, infos.get("final_info", {})):
            if "episode" in info:
                for i in np.flatnonzero(info["_episode"]):
                    self.log_episode(info["episode"]["r"][i], info["episode"]["l"][i])

    def log_episode(self, episodic_return: float, episodic_length: int) -> None:
        self.returns.append(episodic_return)
        self.log("charts/episodic_return", episodic_return)
        self.log("charts/episodic_length", episodic_length)

    def end_update(self, iteration: int, lr: float, stats: list[dict], batch: Batch) -> None:
        """Log the means over all minibatches, save if it is due, and stop if a signal came."""
        self.iteration = iteration + 1
        rows = [torch.stack(list(mb_stats.values())) for mb_stats in stats]
        means = torch.stack(rows).mean(dim=0).tolist()  # waits for the GPU
        for name, mean in zip(stats[0], means, strict=True):
            if not np.isfinite(mean):  # a broken agent is never saved
                self.close()
                what = f"{name} became {mean} in update {self.iteration}"
                fail(f"{what}: {self.cause(batch)}", code=1)
            self.log(f"losses/{name}", mean)
        explained_variance = 1 - (batch.returns - batch.values).var() / batch.returns.var()
        self.log("losses/explained_variance", explained_variance.item())
        self.log("charts/learning_rate", lr)

        now = time.perf_counter()
        batch_size = self.args.num_envs * self.args.num_steps
        sps = batch_size / (now - self.last_update)
        self.last_update = now
        self.log("charts/SPS", sps)

        over = self.global_step >= self.total
        if over or self.stop_signal or self.iteration % self.args.save_every == 0:
            self.save(batch)
        self.show_progress(sps, batch_size)
        if self.stop_signal:
            self.close()
            raise SystemExit(128 + self.stop_signal)

    def cause(self, batch: Batch) -> str:
        """Say what made a number NaN or infinite."""
        if not batch.obs.isfinite().all():
            return f"{self.args.env_id} gave an observation that is NaN or infinite"
        if not batch.returns.isfinite().all():
            what = "a reward or an observation that is NaN, infinite or far too large"
            return f"{self.args.env_id} gave {what}"
        return "try a smaller --learning-rate"

    def log(self, tag: str, value: float) -> None:
        with disk_errors(self.dir):
            self.writer.add_scalar(tag, value, self.global_step)

    def show_progress(self, sps: float, batch_size: int) -> None:
        status = f"{sps:,.0f} steps/s, {self.mean_return()}"
        with suppress(OSError, ValueError):  # as in `say`
            self.bar.set_postfix_str(status, refresh=False)
            self.bar.update(batch_size)
        now = time.perf_counter()
        if not self.terminal and now - self.last_line >= 10:
            self.last_line = now
            rate = (self.global_step - self.first_step) / (now - self.started)
            left = tqdm.format_interval((self.total - self.global_step) / rate)
            steps = f"{self.global_step:,} of {self.total:,} steps"
            say(f"{steps}, {left} left, {status}", sys.stderr)

    def mean_return(self) -> str:
        if not self.returns:
            return "no episode finished yet"
        return f"mean return {np.mean(self.returns):.1f}"

    def save(self, batch: Batch) -> None:
        """Write a new checkpoint, then rename it over the old one: a whole one is always there."""
        checkpoint = {name: part.state_dict() for name, part in self.parts.items()}
        states = checkpoint | {"optimizer": checkpoint["optimizer"]["state"]}
        if not all(fits(state, state) for state in states.values()):  # as `restore` will ask
            self.close()
            what = f"a weight is not finite after update {self.iteration}"
            fail(f"{what}: {self.cause(batch)}", code=1)
        checkpoint["script"] = self.script.stem
        checkpoint["version"] = self.version
        checkpoint["args"] = asdict(self.args) | {"resume": None}
        checkpoint["iteration"] = self.iteration
        checkpoint["global_step"] = self.global_step
        checkpoint["rng"] = torch.get_rng_state()
        checkpoint["cuda_rng"] = torch.cuda.get_rng_state_all()
        if torch.backends.mps.is_available():
            checkpoint["mps_rng"] = torch.mps.get_rng_state()
        data = io.BytesIO()
        torch.save(checkpoint, data)
        temporary = self.dir / "checkpoint.tmp"
        with disk_errors(self.dir):
            self.writer.flush()
            try:
                with temporary.open("wb") as file:
                    file.write(data.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.dir / "checkpoint.pt")
            finally:
                temporary.unlink(missing_ok=True)

    def restore(self, checkpoint: dict) -> None:
        """Load what `save` saved, after a look at all of it: it may be a stranger's file."""
        self.iteration = checkpoint["iteration"]
        self.global_step = checkpoint["global_step"]
        optimizer = self.parts["optimizer"]
        parameters = optimizer.param_groups[0]["params"]
        own = {name: part.state_dict() for name, part in self.parts.items()}
        own["optimizer"] = {
            number: {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            for number, parameter in enumerate(parameters)
            if parameter.requires_grad
        }
        try:
            saved = {name: checkpoint[name] for name in self.parts}
            saved["optimizer"] = checkpoint["optimizer"]["state"]
            unfit = [name for name in own if not fits(saved[name], own[name])]
            if unfit:
                raise ValueError(f"{', '.join(unfit)}: other names, shapes or types, or not finite")
            if min(state["step"] for state in saved["optimizer"].values()) < 1:
                raise ValueError("optimizer: a number of steps below 1")
            # The optimiser's settings are the script's, not the file's.
            settings = optimizer.state_dict()["param_groups"]
            saved["optimizer"] = {"state": saved["optimizer"], "param_groups": settings}
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
            torch.set_rng_state(checkpoint["rng"])
            torch.cuda.set_rng_state_all(checkpoint["cuda_rng"][: torch.cuda.device_count()])
            if torch.backends.mps.is_available() and "mps_rng" in checkpoint:
                torch.mps.set_rng_state(checkpoint["mps_rng"])
        except Exception as error:  # a foreign file can raise anything
            fail(f"the checkpoint in {self.dir} does not fit: {type(error).__name__}: {error}")

    def on_signal(self, signum: int, frame) -> None:
        """Note the first Ctrl-C or SIGTERM, and finish the update; a second one acts as usual."""
        self.stop_signal = signum
        self.restore_handlers()

    def restore_handlers(self) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)

    def close(self) -> None:
        """Close log and bar, and say how the run went if it is over."""
        self.restore_handlers()
        with disk_errors(self.dir):
            self.writer.close()
        with suppress(OSError, ValueError):  # as in `say`
            self.bar.close()
        self.lock.release()
        if self.global_step >= self.total:
            atexit.unregister(self.say_how_to_go_on)
            curves = shlex.join(["tensorboard", "--logdir", str(self.dir)])
            result = f"{self.global_step:,} steps, {self.mean_return()}"
            say(f"{result}. The curves: {curves}", sys.stdout)

    def say_how_to_go_on(self) -> None:
        """After Ctrl-C or a crash, print the command that continues from the last checkpoint."""
        if self.global_step < self.total and (self.dir / "checkpoint.pt").exists():
            # As it was called, unless another program imported it
            called = Path(sys.argv[0]).name == self.script.name
            script = sys.argv[0] if called else str(self.script)
            command = [sys.orig_argv[0], script, "--resume", str(self.dir)]
            if ":" in self.args.env_id:  # a package is imported only if the command names it
                command += ["--env-id", self.args.env_id]
            say(f"to go on: {shlex.join(command)}", sys.stderr)


if __name__ == "__main__":
    # An error of the log's own thread comes back at the next write to the log.
    threading.excepthook = lambda failure: None
    try:
        main(parse_args())
    except (MemoryError, RuntimeError) as error:
        if "allocate" not in str(error):
            raise
        fail(f"out of memory: {error}; try a smaller --num-steps or --num-envs", code=1)
