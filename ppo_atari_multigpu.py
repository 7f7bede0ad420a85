# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ale-py==0.12.1", "envpool==1.2.5", "filelock==4.2.12", "gymnasium==1.4.0",
#     "moviepy==2.2.1", "numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1",
#     "tyro==1.0.17",
# ]
# ///
"""Proximal Policy Optimization for Atari games, on several GPUs, of one machine or of many.

    torchrun --standalone --nproc_per_node=2 ppo_atari_multigpu.py --env-id Breakout-v5

Every process steps its share of the environments and computes the gradient of its own minibatch,
with advantages that are normalised in it; all take the same step, along the mean of the gradients.
Without torchrun, this is ppo_atari_envpool.py. docs/scale.md has the commands for many machines.

The algorithm is that of the official code, ppo2 in github.com/openai/baselines at commit ea25b9e. A
reference such as ppo2/runner.py#L56 is a line of it, below the folder baselines; a label such as
Core 7 is a section of the blog post "The 37 Implementation Details of Proximal Policy
Optimization".

The environments differ from the official ones in three things: a game is cut after 108,000 frames
(official: 400,000), a stack starts with four copies of the first frame (official: three are black),
and frames are made grey before the maximum of two is taken (official: after it). With
--bootstrap-truncated, a life lost in the very step of the cut still counts as an end. Two details
differ: `approx_kl` is the mean of ratio - 1 - log ratio (official: half the mean square of log
ratio), and --target-kl stops at its value (Spinning Up, where it comes from: at 1.5 times its
value).

Read from here to the end of `main`: arguments, environments, agent, advantages, loss, and the
training loop. What comes after `main` (checks, checkpoints, log, progress) is not part of PPO.
"""

import atexit
import difflib
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
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, NoReturn, TextIO

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports below: no traceback
    # Until training begins, one process speaks for all, unless another one ends with an exception.
    if os.environ.get("LOCAL_RANK", "0") != "0":

        def show(*error):
            sys.stderr = sys.__stderr__
            sys.__excepthook__(*error)

        sys.stdout = sys.stderr = io.StringIO()
        sys.excepthook = show

import ale_py
import envpool
import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import tyro
from filelock import FileLock, Timeout
from gymnasium.utils.save_video import capped_cubic_video_schedule, save_video
from torch import Tensor, nn, optim
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    # Environment
    env_id: str = "Breakout-v5"  # Atari game, one of EnvPool's
    num_envs: int = 8  # environments stepped side by side, by all processes together
    capture_video: bool = False  # record videos of the first environment into the run folder

    # Algorithm
    total_timesteps: int = 10_000_000  # environment steps; more on a resume raise the learning rate
    num_steps: int = 128  # steps of each environment per update
    num_minibatches: int = 4  # minibatches per epoch
    update_epochs: int = 4  # passes over the batch per update
    learning_rate: float = 2.5e-4  # Adam's step size at the first update
    anneal_lr: bool = True  # decrease the learning rate linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda of generalized advantage estimation
    norm_adv: bool = True  # normalise the advantages of each minibatch
    clip_coef: float = 0.1  # clip the ratio to [1 - clip_coef, 1 + clip_coef]
    anneal_clip_coef: bool = False  # decrease clip_coef linearly to 0 as well
    clip_vloss: bool = True  # clip the value prediction to within clip_coef of the old one
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # clip the global norm of the gradient to this
    target_kl: float | None = None  # skip an update's other epochs once the mean KL exceeds this
    bootstrap_truncated: bool = False  # add the value of what a time limit cuts off

    # Run
    seed: int = 1  # seed of everything random
    torch_deterministic: bool = True  # let cuDNN use deterministic kernels
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA, a GPU a process, if there is one
    compile: bool = False  # compile the learner; needs a C++ compiler and a minute
    exp_name: str = Path(__file__).stem  # name of the experiment, part of the run folder's name
    save_every: int = 100  # updates between two checkpoints
    # run folder to continue, or the beginning of its name; then only these flags may change:
    # --total-timesteps --device --compile --save-every --capture-video --track
    resume: Path | None = None
    track: bool = False  # log to Weights & Biases too (see WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE)


# -------------------------------------------------------------------------------------------------
# Environments


class EnvPoolAtari(gym.vector.VectorEnv):
    """EnvPool's Atari games with the official resets, in the same step as an episode's end.

    EnvPool's own `episodic_life` and `use_fire_reset` do something else: up to 29 no-ops after a
    lost life where the official code takes one, a single FIRE frame where it takes FIRE and action
    2, and frames of the old life in the new stack. They are off, and the official steps are taken
    here, only by the environments that need them.
    """

    metadata: ClassVar = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(self, args: Args, run_dir: Path):
        spec = envpool.make_spec(args.env_id)
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        ale = ale_py.ALEInterface()
        ale.loadROM(Path(spec.config.base_path) / "atari" / "roms" / f"{spec.config.task}.bin")
        actions = ale.getMinimalActionSet()
        self.args = args
        self.needs_fire = len(actions) >= 3 and actions[1] == ale_py.Action.FIRE
        self.num_envs = args.num_envs
        self.single_action_space = gym.spaces.Discrete(len(actions))
        self.single_observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.device = torch.device("cpu")  # where frames are stacked
        self.video_dir = free_path(run_dir / "videos")  # a resumed run may have some already
        self.film = []  # of the first environment's game
        self.games = 0  # that the first environment has finished

    def reset(self, *, seed: list[int], options: dict | None = None) -> tuple[Tensor, dict]:
        self.pool = envpool.make(
            self.args.env_id,
            env_type="gymnasium",
            num_envs=self.num_envs,
            seed=[number % 2**31 for number in seed],  # EnvPool's seeds have 31 bits
            noop_max=30,  # Atari 1: 1 to 30 no-ops on reset
            frame_skip=4,  # Atari 2: actions repeated 4 times; the last two frames' maximum is seen
            repeat_action_probability=0.0,
            episodic_life=False,
            use_fire_reset=False,
            gray_scale=True,  # Atari 5: grey, 84 x 84
            img_height=84,
            img_width=84,
            reward_clip=True,  # Atari 6: rewards clipped to their sign
            stack_num=1,
            render_mode="rgb_array" if self.args.capture_video else None,
        )
        self.ids = np.arange(self.num_envs)
        self.game_returns = np.zeros(self.num_envs)  # unclipped, of the game so far
        self.finished = {}  # games that ended in this step: their returns and lengths
        frames, infos = self.pool.reset()
        self.lives = infos["lives"]
        frames = self.fire(self.ids, frames)
        self.stack = torch.as_tensor(frames, device=self.device).repeat(1, 4, 1, 1)
        return self.stack, {}

    def step(self, actions: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray, dict]:
        self.finished = {}
        frames, rewards, life_lost, terminated, truncated = self.play(actions, self.ids)
        # Atari 3: a lost life ends the episode, while the game goes on
        terminated = terminated | life_lost
        # Atari 7: four frames, so that motion can be seen
        final_obs = torch.cat(
            [self.stack[:, 1:], torch.as_tensor(frames, device=self.device)], dim=1
        )
        self.stack = final_obs
        ended = np.flatnonzero(terminated | truncated)
        if len(ended) > 0:
            first_frames = self.fire(ended, self.no_op(ended))
            self.stack = final_obs.clone()
            # A new stack is its first frame, four times.
            self.stack[ended] = torch.as_tensor(first_frames, device=self.device)
        infos = {"final_obs": final_obs}
        if self.finished:
            returns = np.zeros(self.num_envs)
            lengths = np.zeros(self.num_envs)
            for i, game in self.finished.items():
                returns[i], lengths[i] = game
            infos["episode"] = {"r": returns, "l": lengths}
            infos["_episode"] = np.isin(self.ids, list(self.finished))
        return self.stack, rewards, terminated, truncated, infos

    def no_op(self, ids: np.ndarray) -> np.ndarray:
        """Take a no-op after a lost life; where the game is over, EnvPool makes it a reset."""
        frames, _, _, terminated, truncated = self.play(np.zeros(len(ids), dtype=np.int64), ids)
        over = terminated | truncated
        if over.any():
            frames[over] = self.no_op(ids[over])
        return frames

    def fire(self, ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Atari 4: press FIRE, then take action 2, in games whose action 1 is FIRE."""
        if not self.needs_fire:
            return frames
        for action in (1, 2):
            frames, _, life_lost, terminated, truncated = self.play(np.full(len(ids), action), ids)
            ended = life_lost | terminated | truncated
            if ended.any():
                frames[ended] = self.no_op(ids[ended])
        return frames

    def play(self, actions: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """Step these environments alone.

        Returns frames, (len(ids), 1, 84, 84), rewards, and where a life was lost, where a game
        ended, and where one was cut by the time limit, all (len(ids),).
        """
        frames, rewards, _, truncated, infos = self.pool.step(actions, ids)
        terminated = infos["terminated"] == 1  # true also of a game that ends at the time limit
        lives = infos["lives"]
        # Qbert shows 0 lives for some frames before its end.
        life_lost = (lives > 0) & (lives < self.lives[ids])
        self.lives[ids] = lives
        self.game_returns[ids] += infos["reward"]
        over = terminated | truncated
        for i, length in zip(ids[over], infos["elapsed_step"][over], strict=True):
            self.finished[i] = (self.game_returns[i], length)
            self.game_returns[i] = 0
        if self.args.capture_video and ids[0] == 0:
            self.record(game_over=over[0])
        return frames, rewards, life_lost, terminated, truncated

    def record(self, game_over: bool) -> None:
        """Film game 0, 1, 8, 27, ... of the first environment."""
        if capped_cubic_video_schedule(self.games):
            self.film.extend(self.pool.render(env_ids=0))
        if game_over:
            save_video(self.film, str(self.video_dir), episode_index=self.games, fps=15)
            self.film = []
            self.games += 1


def make_envs(args: Args, run_dir: Path) -> gym.vector.VectorEnv:
    """Core 1: vectorised environments, which one policy steps side by side."""
    check_game(args.env_id)
    return EnvPoolAtari(args, run_dir)


def check_game(env_id: str) -> None:
    """Exit with one line if `env_id` is not an Atari game of EnvPool's."""
    specs = envpool.registration.registry.specs
    games = [name for name, (module, *_) in specs.items() if module == "envpool.atari"]
    if env_id not in games:
        name = env_id.removeprefix("ALE/").replace("NoFrameskip-v4", "-v5")
        closest = difflib.get_close_matches(name, games, cutoff=0.5)
        fail(f"EnvPool has no Atari game {env_id}; closest are: {', '.join(closest) or 'none'}")


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
    """Policy and value on top of one convolutional network (common/policies.py)."""

    def __init__(self, envs: gym.vector.VectorEnv):
        super().__init__()
        # Atari 8: one network for policy and value (Mnih et al. 2015; common/models.py#L15-L26)
        self.network = nn.Sequential(
            layer_init(nn.Conv2d(4, 32, kernel_size=8, stride=4)),
            nn.ReLU(inplace=True),
            layer_init(nn.Conv2d(32, 64, kernel_size=4, stride=2)),
            nn.ReLU(inplace=True),
            layer_init(nn.Conv2d(64, 64, kernel_size=3, stride=1)),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            layer_init(nn.Linear(64 * 7 * 7, 512)),
            nn.ReLU(inplace=True),
        )
        # The small gain makes all actions about equally likely at the start.
        self.actor = layer_init(nn.Linear(512, envs.single_action_space.n), std=0.01)
        self.critic = layer_init(nn.Linear(512, 1), std=1.0)

    def get_hidden(self, x: Tensor) -> Tensor:
        """Return the features of each observation: (batch, 4, 84, 84) uint8 -> (batch, 512)."""
        return self.network(x / 255.0)  # Atari 9: images scaled to [0, 1]

    def get_value(self, x: Tensor) -> Tensor:
        """Return the value of each observation: (batch, 4, 84, 84) uint8 -> (batch,)."""
        return self.critic(self.get_hidden(x)).squeeze(-1)

    def get_action(self, x: Tensor, greedy: bool = False) -> Tensor:
        """Sample actions, or take the likeliest: (batch, 4, 84, 84) uint8 -> (batch,)."""
        return sample(self.actor(self.get_hidden(x)), greedy)

    def get_action_and_value(
        self, x: Tensor, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return action, log-probability, entropy and value, each (batch,)."""
        hidden = self.get_hidden(x)
        logits = self.actor(hidden)
        if action is None:
            action = sample(logits)
        logprobs = logits.log_softmax(dim=-1)  # (batch, actions)
        logprob = logprobs.gather(-1, action[:, None])[:, 0]
        entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
        return action, logprob, entropy, self.critic(hidden).squeeze(-1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:  # what `agent(...)` calls
        return self.get_action_and_value(*inputs)


# -------------------------------------------------------------------------------------------------
# Advantages and loss


class Batch(NamedTuple):
    """What the learner sees of each row; a minibatch is a Batch of some of the rows."""

    obs: Tensor  # (rows, 4, 84, 84) uint8
    actions: Tensor  # (rows,) int64
    logprobs: Tensor  # (rows,) log-probability of the action under the policy that took it
    values: Tensor  # (rows,) value predicted during the rollout
    advantages: Tensor  # (rows,)
    returns: Tensor  # (rows,) target of the value function

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
    _, logprobs, entropies, values = agent(mb.obs, mb.actions)
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
    average_over_processes(agent, stats)
    # Core 11: the norm over all parameters is clipped, that of the mean (ppo2/model.py#L102-L108)
    stats["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    return stats


# -------------------------------------------------------------------------------------------------
# Processes


def join_processes(args: Args, device: torch.device) -> tuple[int, int]:
    """Aux 2: meet the other processes; return this one's rank, and how many there are.

    Without torchrun this is the only one. `device` is the kind that all of them use.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if args.num_envs % world_size != 0:
        fail(f"--num-envs {args.num_envs} must be a multiple of the {world_size} processes")
    share = args.num_envs * args.num_steps // world_size
    if share % args.num_minibatches != 0:
        fail(f"--num-minibatches {args.num_minibatches} does not divide a process's {share} steps")
    if dist.is_initialized():  # `main` was called before
        return rank, world_size
    if world_size > 1 and not dist.is_torchelastic_launched():
        fail("several processes are started with torchrun, see docs/scale.md")
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > gpus:  # the processes of this machine
            fail(f"more processes than GPUs: use --nproc_per_node={gpus}, or --device cpu")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if dist.is_torchelastic_launched():
        # Not in torchrun's own store: after a restart, that gives the addresses of the dead.
        address = os.environ["MASTER_ADDR"]
        port = int(os.environ["MASTER_PORT"]) + 1
        store = dist.TCPStore(address, port, is_master=rank == 0)
    else:
        store = dist.HashStore()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    atexit.register(dist.destroy_process_group)
    return rank, world_size


@cache
def lasting_store() -> dist.Store:
    """Return torchrun's own store, which outlives the processes that it starts."""
    address = os.environ["MASTER_ADDR"]
    port = int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False)


def continue_after_restart(args: Args) -> Args:
    """Where torchrun starts the processes again after one has died, go on from its checkpoint.

    A run is known by its arguments: called twice with the same ones, `main` goes on with that run.
    """
    name = str(replace(args, resume=None))
    if dist.is_torchelastic_launched() and lasting_store().check([name]):
        run_dir = Path(lasting_store().get(name).decode())
        if (run_dir / "checkpoint.pt").exists():
            return replace(args, resume=run_dir)
    return args


def remember_run(args: Args, run_dir: Path) -> None:
    """Leave word where the run is, for the processes that may be started after these."""
    if dist.is_torchelastic_launched():
        lasting_store().set(str(replace(args, resume=None)), str(run_dir))


@contextmanager
def stopping_together() -> Iterator[None]:
    """Let the first process do something for all: if it ends there, in order, all do."""
    exit_code = [None]
    try:
        yield
    except SystemExit as stop:
        exit_code = [stop.code]
    dist.broadcast_object_list(exit_code)
    if exit_code[0] is not None:
        raise SystemExit(exit_code[0])


@torch.compiler.disable
def average_over_processes(agent: Agent, stats: dict[str, Tensor]) -> None:
    """Aux 2: put in place of gradients and statistics their means over all processes.

    One message, as the official code sends for the gradients (common/mpi_adam_optimizer.py).
    """
    parts = [parameter.grad for parameter in agent.parameters()]
    parts.extend(stats.values())
    sizes = [part.numel() for part in parts]
    total = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(total)
    means = (total / dist.get_world_size()).split(sizes)
    for part, mean in zip(parts, means, strict=True):
        part.copy_(mean.view_as(part))


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes: (rows,) -> (rows * processes,)."""
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


# -------------------------------------------------------------------------------------------------
# Training


def main(args: Args) -> Agent:
    """Train and return the agent; with torchrun, in every process."""
    check_args(args)
    best_device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(best_device if args.device == "auto" else args.device)
    rank, world_size = join_processes(args, device)
    # From here on, `job` is what all processes do together, and `args` this one's share of it.
    job = continue_after_restart(args)
    args = replace(job, num_envs=job.num_envs // world_size)
    args.capture_video = job.capture_video and rank == 0
    batch_size = args.num_envs * args.num_steps
    num_iterations = args.total_timesteps // (batch_size * world_size)
    run_dir = args.resume or new_run_dir(args)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic

    with one_line_errors(args.env_id):
        envs = make_envs(args, run_dir)
    envs.device = device  # where frames are stacked, so that only one of four has to be sent
    agent = Agent(envs).to(device)
    # Adam's epsilon is set before each of its steps, below.
    optimizer = optim.Adam(agent.parameters(), lr=args.learning_rate, fused=True)
    mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
    gradient_fn = torch.compile(compute_gradient, mode=mode) if args.compile else compute_gradient
    # Aux 2: all begin where the first process does, with its weights (ppo2/model.py#L131)
    start = io.BytesIO()
    with stopping_together():
        if rank == 0:
            # Seeds, log, checkpoints: see below. On a resume, it restores what is handed to it.
            run = Run(job, run_dir, agent=agent, optimizer=optimizer)
            remember_run(job, run.dir)
            states = {"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(states | {"iteration": run.iteration, "seeds": run.env_seeds()}, start)
    message = [start.getvalue()]
    dist.broadcast_object_list(message)
    start = torch.load(io.BytesIO(message[0]), map_location="cpu", weights_only=True)
    agent.load_state_dict(start["agent"])
    optimizer.load_state_dict(start["optimizer"])
    seeds = start["seeds"][rank * args.num_envs : (rank + 1) * args.num_envs]
    if rank > 0:
        torch.manual_seed(seeds[0])  # actions and minibatches of its own
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # the first process says when to stop

    # One rollout. The images stay on the learner's device, with their channels last in memory,
    # which suits convolutions. Log-probabilities and values are kept as they come: to compute them
    # at the end, as ppo.py does, would take a second pass through the convolutions.
    channels, height, width = envs.single_observation_space.shape
    obs_shape = (args.num_steps, args.num_envs, height, width, channels)
    obs = torch.zeros(obs_shape, dtype=torch.uint8, device=device)
    obs = obs.movedim(-1, 2)  # (num_steps, num_envs, 4, 84, 84)
    actions = torch.zeros((args.num_steps, args.num_envs), dtype=torch.int64, device=device)
    logprobs = torch.zeros((args.num_steps, args.num_envs), device=device)
    values = torch.zeros((args.num_steps, args.num_envs), device=device)
    rewards = np.zeros((args.num_steps, args.num_envs), dtype=np.float32)
    dones = np.zeros((args.num_steps, args.num_envs), dtype=np.float32)
    to_tensor = partial(torch.as_tensor, device=device)

    with one_line_errors(args.env_id):
        next_obs, _ = envs.reset(seed=seeds)  # (num_envs, 4, 84, 84) uint8
    next_done = np.zeros(args.num_envs, dtype=bool)
    # Steps that Adam has taken: more than 0 after a resume
    adam_steps = max((int(state["step"]) for state in optimizer.state.values()), default=0)

    # The processes that were silenced at the imports may speak again.
    if isinstance(sys.stderr, io.StringIO):
        sys.stdout = sys.__stdout__
        sys.stderr = sys.__stderr__

    for iteration in range(start["iteration"], num_iterations):
        # Core 4: the learning rate falls linearly, and would reach 0 after the last iteration
        # Aux 1: the clip range likewise
        remaining = 1 - iteration / num_iterations
        lr = args.learning_rate * remaining if args.anneal_lr else args.learning_rate
        clip_coef = args.clip_coef * remaining if args.anneal_clip_coef else args.clip_coef
        optimizer.param_groups[0]["lr"] = lr
        if args.compile and args.anneal_clip_coef:
            clip_coef = torch.tensor(clip_coef, device=device)  # every new float is compiled anew

        # Roll out the policy. next_obs and next_done carry over to the next iteration.
        episodes = []  # of every step, those that ended: their returns and lengths
        with torch.no_grad():
            for step in range(args.num_steps):
                obs[step] = to_tensor(next_obs)
                dones[step] = next_done
                actions[step], logprobs[step], _, values[step] = agent.get_action_and_value(
                    obs[step]
                )
                next_obs, rewards[step], terminated, truncated, infos = envs.step(
                    actions[step].cpu().numpy()
                )
                next_done = terminated | truncated
                episodes.append(list(envs.finished.values()))

                cut = truncated & ~terminated
                if args.bootstrap_truncated and cut.any():
                    # A time limit cut the episode: what would have followed is worth V(final_obs).
                    final_obs = torch.stack([to_tensor(x) for x in infos["final_obs"][cut]])
                    rewards[step, cut] += args.gamma * agent.get_value(final_obs).cpu().numpy()

            next_value = agent.get_value(to_tensor(next_obs))

        advantages, returns = compute_gae(
            rewards=to_tensor(rewards),
            values=values,
            dones=to_tensor(dones),
            next_value=next_value,
            next_done=to_tensor(next_done),
            gamma=args.gamma,
            gae_lambda=args.gae_lambda,
        )
        batch = Batch(
            obs=obs.flatten(0, 1),
            actions=actions.flatten(),
            logprobs=logprobs.flatten(),
            values=values.flatten(),
            advantages=advantages.flatten(),
            returns=returns.flatten(),
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
                # Copies, because a CUDA graph uses its memory again
                stats.append({name: x.clone() for name, x in mb_stats.items()})
            if args.target_kl is not None:
                # Aux 3: stop when this epoch has moved the policy too far
                kls = [mb_stats["approx_kl"] for mb_stats in stats[-args.num_minibatches :]]
                if torch.stack(kls).mean() > args.target_kl:
                    break

        # Aux 2: the first process logs and saves for all.
        everyones = [None] * world_size
        dist.all_gather_object(everyones, episodes)
        batch = batch._replace(values=gather_rows(batch.values), returns=gather_rows(batch.returns))
        with stopping_together():
            if rank == 0:
                for ended in zip(*everyones, strict=True):
                    run.end_step({})
                    for episodic_return, episodic_length in chain(*ended):
                        run.log_episode(episodic_return, episodic_length)
                run.end_update(iteration, lr, stats, batch)

    if rank == 0:
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
