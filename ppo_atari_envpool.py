# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "envpool==1.2.5", "gymnasium==1.4.0", "numpy==2.4.6", "tensorboard==2.21.0",
#     "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
# ]
# ///
"""Proximal Policy Optimization for Atari games through EnvPool, for many cores.

    python ppo_atari_envpool.py --env-id Breakout-v5

On Breakout the mean return reaches 209 (one seed) after 5,000,000 of the 10,000,000 steps.

EnvPool's resets are not the official ones, which ppo_atari.py has: after every lost life, and not
only at the start of a game, EnvPool takes up to 29 no-ops (30 in games without FIRE), whose points
count nowhere; it presses FIRE once, not FIRE and then action 2; and the frames of the old life stay
in the stack. In a million steps of Breakout, this did no harm (docs/experiments.md).

Labels such as "Core 7" are sections of the blog post "The 37 Implementation Details of Proximal
Policy Optimization". References such as ppo2/runner.py#L56 are lines of the official code, in the
folder baselines/ of github.com/openai/baselines at commit ea25b9e.

The algorithm ends with `main`. What follows it logs, saves and resumes.
"""

import itertools
import os
import random
import re
import signal
import sys
import threading
import time
import zipfile
from collections import deque
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import envpool
import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn, optim
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    # Environment
    env_id: str = "Breakout-v5"  # Atari game, one of EnvPool's
    num_envs: int = 8  # environments stepped side by side

    # Algorithm
    total_timesteps: int = 10_000_000  # environment steps
    num_steps: int = 128  # steps of each environment per update
    num_minibatches: int = 4  # minibatches per epoch
    update_epochs: int = 4  # passes over the batch per update
    learning_rate: float = 2.5e-4  # Adam's step size in the first update
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
    target_kl: float | None = None  # end an update early once an epoch's mean KL exceeds this
    bootstrap_truncated: bool = False  # at a time limit, add the value of the final observation

    # Run
    seed: int = 1  # seeds everything random
    torch_deterministic: bool = True  # let cuDNN use deterministic kernels only
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    compile: bool = False  # compile the loss; needs a C++ compiler and a minute
    exp_name: str = Path(__file__).stem  # part of the run folder's name
    run_dir: Path | None = None  # run folder; if there is a checkpoint in it, the run resumes
    save_every: int = 100  # updates between two checkpoints
    track: bool = False  # log to Weights & Biases too (pip install wandb)


# -------------------------------------------------------------------------------------------------
# Environments


class EnvPoolAtari(gym.vector.VectorEnv):
    """EnvPool's Atari games, which reset in the same step as an episode's end.

    EnvPool spends the step after the end on the reset, and the learner would train on a transition
    that never happened. Here the environments that ended take that step at once, and alone.
    """

    metadata: ClassVar = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(self, args: Args, render_mode: str | None):
        if args.env_id not in envpool.list_all_envs():
            raise UsageError(f"EnvPool has no game {args.env_id}: its names are like Breakout-v5")
        spec = envpool.make_spec(args.env_id)
        self.args = args
        self.render_mode = render_mode
        self.num_envs = args.num_envs
        self.single_action_space = spec.gymnasium_action_space
        self.single_observation_space = spec.gymnasium_observation_space
        if self.single_observation_space.shape != (4, 84, 84):
            raise UsageError(f"{args.env_id} is not an Atari game")

    def reset(self, *, seed: list[int], options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.pool = envpool.make(
            self.args.env_id,
            env_type="gymnasium",
            num_envs=self.num_envs,
            seed=seed,
            noop_max=30,  # Atari 1: up to 29 no-ops on reset, 30 without FIRE
            frame_skip=4,  # Atari 2: actions repeated 4 times; the last two frames' maximum is seen
            repeat_action_probability=0.0,
            episodic_life=True,  # Atari 3: a lost life ends the episode, not the game
            use_fire_reset=True,  # Atari 4: FIRE on reset, in games that have it
            gray_scale=True,  # Atari 5: grey, 84 x 84
            img_height=84,
            img_width=84,
            reward_clip=True,  # Atari 6: rewards clipped to their sign
            stack_num=4,  # Atari 7: four frames, so that motion can be seen
            render_mode=self.render_mode,
        )
        self.game_returns = np.zeros(self.num_envs)  # unclipped, of the game so far
        obs, _ = self.pool.reset()
        return obs, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        # terminated: the game or a life has ended, but not in a step that is cut (truncated);
        # infos["terminated"]: the game
        obs, rewards, terminated, truncated, infos = self.pool.step(actions)
        self.game_returns += infos["reward"]
        game_over = (infos["terminated"] == 1) | truncated
        infos = {
            "final_obs": obs,
            "episode": {"r": self.game_returns.copy(), "l": infos["elapsed_step"]},
            "_episode": game_over,
        }
        self.game_returns[game_over] = 0
        ended = np.flatnonzero(terminated | truncated)
        if len(ended) > 0:
            obs = obs.copy()
            obs[ended] = self.pool.step(np.zeros(len(ended), dtype=np.int64), ended)[0]
        return obs, rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...]:
        return tuple(self.pool.render(env_ids=np.arange(self.num_envs)))


def make_envs(args: Args, render_mode: str | None = None) -> gym.vector.VectorEnv:
    """Core 1: vectorised environments, which one policy steps side by side."""
    return EnvPoolAtari(args, render_mode)


# -------------------------------------------------------------------------------------------------
# Agent


def layer_init(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Core 2: orthogonal weights with a `gain`, zero biases (a2c/utils.py#L58)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Categorical:
    """A distribution over actions for each row of `logits`, (batch, num_actions)."""

    def __init__(self, logits: Tensor):
        self.logits = logits
        self.logprobs = logits.log_softmax(dim=-1)

    def sample(self) -> Tensor:
        # Logits plus independent Gumbel noise: the largest is a draw from their softmax, as in the
        # official code (common/distributions.py#L199). It is faster than torch.multinomial.
        gumbel = -torch.empty_like(self.logits).exponential_().log()
        return (self.logits + gumbel).argmax(dim=-1)

    def mode(self) -> Tensor:
        return self.logits.argmax(dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.logprobs.gather(-1, action[:, None])[:, 0]

    def entropy(self) -> Tensor:
        return -(self.logprobs.exp() * self.logprobs).sum(dim=-1)


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
        self.actor = layer_init(nn.Linear(512, envs.single_action_space.n), gain=0.01)
        self.critic = layer_init(nn.Linear(512, 1), gain=1.0)

    def forward(self, x: Tensor) -> tuple[Categorical, Tensor]:
        """Return the policy and the values, (batch,), for images (batch, 4, 84, 84) uint8."""
        x = x.contiguous(memory_format=torch.channels_last)  # faster for convolutions
        hidden = self.network(x / 255.0)  # Atari 9: images scaled to [0, 1]
        return Categorical(self.actor(hidden)), self.critic(hidden).squeeze(-1)


# -------------------------------------------------------------------------------------------------
# Advantages and loss


class Batch(NamedTuple):
    """Training data, a row for each step of each environment; a minibatch is some of the rows."""

    obs: Tensor  # (rows, 4, 84, 84) uint8
    actions: Tensor  # (rows,)
    logprobs: Tensor  # (rows,) log-probability of the action under the policy that took it
    values: Tensor  # (rows,) value predicted during the rollout
    advantages: Tensor  # (rows,)
    returns: Tensor  # (rows,) target of the value function

    def select(self, rows: Tensor) -> "Batch":
        return Batch(*(field[rows] for field in self))


def compute_gae(
    rewards: Tensor,
    values: Tensor,
    dones: Tensor,
    next_value: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Core 5: generalized advantage estimation (Schulman et al. 2016; ppo2/runner.py#L56-L65).

    `rewards`, `values` and `dones` are (num_steps, num_envs); `dones[t]` is 1 where step t ended an
    episode (the official dones[t + 1]). `next_value`, (num_envs,), is the value of the observation
    after the last step. Returns advantages and value targets, both (num_steps, num_envs).
    """
    next_values = torch.cat([values[1:], next_value[None]])
    continues = 1 - dones  # 0 where nothing follows
    deltas = rewards + gamma * continues * next_values - values
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(next_value)  # no delta beyond the rollout is known
    for t in reversed(range(len(rewards))):
        advantage = deltas[t] + gamma * gae_lambda * continues[t] * advantage
        advantages[t] = advantage
    return advantages, advantages + values


def ppo_loss(
    agent: Agent, mb: Batch, clip_coef: float, args: Args
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a minibatch and its statistics (Schulman et al. 2017, eq. 7 and 9)."""
    policy, values = agent(mb.obs)
    logratio = policy.log_prob(mb.actions) - mb.logprobs
    ratio = logratio.exp()

    advantages = mb.advantages
    if args.norm_adv:  # Core 7: per minibatch, with the population standard deviation
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)

    # Core 8: the clipped surrogate objective, the worse of the two terms for each row
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    policy_loss = -torch.min(advantages * ratio, advantages * clipped_ratio).mean()

    value_losses = (values - mb.returns) ** 2
    if args.clip_vloss:  # Core 9: the larger of the errors with and without clipping
        clipped_values = mb.values + (values - mb.values).clamp(-clip_coef, clip_coef)
        value_losses = torch.max(value_losses, (clipped_values - mb.returns) ** 2)
    value_loss = 0.5 * value_losses.mean()

    entropy = policy.entropy().mean()
    loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss  # Core 10: one loss

    stats = {  # Core 12: debug variables
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        # Two estimates of KL(old policy || new policy), see joschu.net/blog/kl-approx.html
        "old_approx_kl": -logratio.mean(),  # the plain one: noisy, and can be negative
        "approx_kl": (ratio - 1 - logratio).mean(),  # never negative, less noisy
        "clipfrac": ((ratio - 1).abs() > clip_coef).float().mean(),
    }
    return loss, {name: value.detach() for name, value in stats.items()}


class Adam(optim.Adam):
    """Core 3: epsilon is 1e-5, as TensorFlow's Adam applies it.

    TensorFlow adds epsilon to sqrt(v), PyTorch to sqrt(v / (1 - beta2^t)). Dividing epsilon by
    sqrt(1 - beta2^t) gives PyTorch the same step.
    """

    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            beta2 = group["betas"][1]
            group["eps"] = 1e-5 / (1 - beta2 ** group["steps"]) ** 0.5
        return super().step(closure)


# -------------------------------------------------------------------------------------------------
# Training


def set_seed(seed: int) -> None:
    """Seed PyTorch, and the global generators that an environment may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def main(args: Args) -> Agent:
    """Train and return the agent."""
    check_args(args)
    device = torch.device(args.device)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    set_seed(args.seed)

    envs = make_envs(args)
    agent = Agent(envs).to(device)
    optimizer = Adam(agent.parameters(), lr=args.learning_rate, fused=True)
    loss_fn = torch.compile(ppo_loss) if args.compile else ppo_loss

    # Log, checkpoints and progress: see below
    with Run(args, agent=agent, optimizer=optimizer) as run:
        batch_size = args.num_envs * args.num_steps
        start = run.global_step  # 0, or where the run resumes
        end = start + (args.total_timesteps - start) // batch_size * batch_size  # whole updates

        # One rollout. The images stay on the learner's device. Values and log-probabilities are
        # kept from each step: at the end, they would take a second pass through the convolutions.
        shape = (args.num_steps, args.num_envs)
        obs_shape = envs.single_observation_space.shape
        obs = torch.zeros((*shape, *obs_shape), dtype=torch.uint8, device=device)
        actions = torch.zeros(shape, dtype=torch.int64, device=device)
        logprobs, values = torch.zeros((2, *shape), device=device)
        rewards = np.zeros(shape, dtype=np.float32)
        dones = np.zeros(shape, dtype=np.float32)
        to_tensor = partial(torch.as_tensor, device=device)

        # Each environment has a seed of its own, of 31 bits: simulators in C accept no more.
        sequence = np.random.SeedSequence([args.seed, start])
        *seeds, new_seed = (sequence.generate_state(args.num_envs + 1) % 2**31).tolist()
        if start > 0:  # a resumed run must not repeat its random numbers
            set_seed(new_seed)
        next_obs, _ = envs.reset(seed=seeds)  # (num_envs, 4, 84, 84) uint8

        for global_step in range(start, end, batch_size):
            # Core 4: the learning rate falls linearly; it would reach 0 after the last update
            # Aux 1: so does the clip range, if asked to
            remaining = 1 - global_step / end
            lr = args.learning_rate * remaining if args.anneal_lr else args.learning_rate
            clip_coef = args.clip_coef * remaining if args.anneal_clip_coef else args.clip_coef
            if args.compile:
                # The compiled gradient would keep the first values of a float (PyTorch 2.13).
                clip_coef = torch.tensor(clip_coef, device=device)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # Roll out the policy. next_obs carries over to the next update.
            with torch.no_grad():
                for step in range(args.num_steps):
                    obs[step] = to_tensor(next_obs)
                    policy, values[step] = agent(obs[step])
                    action = policy.sample()
                    actions[step] = action
                    logprobs[step] = policy.log_prob(action)
                    next_obs, rewards[step], terminated, truncated, infos = envs.step(
                        action.cpu().numpy()
                    )
                    dones[step] = terminated | truncated
                    run.end_step(infos)

                    # A time limit ends an episode like any other end, as in the official code. With
                    # the flag, the final observation's value stands for what would have followed.
                    cut = truncated & ~terminated
                    if args.bootstrap_truncated and cut.any():
                        final_obs = torch.stack([to_tensor(x) for x in infos["final_obs"][cut]])
                        _, final_value = agent(final_obs)
                        rewards[step, cut] += args.gamma * final_value.cpu().numpy()

                _, next_value = agent(to_tensor(next_obs))
                advantages, returns = compute_gae(
                    to_tensor(rewards),
                    values,
                    to_tensor(dones),
                    next_value,
                    args.gamma,
                    args.gae_lambda,
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
                    loss, mb_stats = loss_fn(agent, batch.select(rows), clip_coef, args)
                    optimizer.zero_grad()
                    loss.backward()
                    # Core 11: clip the norm of the whole gradient
                    norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                    optimizer.step()
                    stats.append(mb_stats | {"grad_norm": norm})
                if args.target_kl is not None:
                    # Aux 3: stop if this epoch has taken the policy too far from the one that acted
                    kls = [mb_stats["approx_kl"] for mb_stats in stats[-args.num_minibatches :]]
                    if torch.stack(kls).mean() > args.target_kl:
                        break

            # Core 12: debug variables, as means over all minibatches
            losses = {name: torch.stack([mb[name] for mb in stats]).mean() for name in stats[0]}
            losses["explained_variance"] = 1 - (returns - values).var() / returns.var()
            run.end_update(lr, losses)

    envs.close()
    return agent


# -------------------------------------------------------------------------------------------------
# The algorithm ends here. What follows is the same in every script: arguments, log, checkpoints.


class UsageError(Exception):
    """Wrong arguments: the message is one line, and says what to change."""


def check_args(args: Args) -> None:
    def flag(name: str) -> str:
        return f"--{name.replace('_', '-')} {getattr(args, name)}"

    for name in ("num_envs", "num_steps", "num_minibatches", "update_epochs", "save_every"):
        if getattr(args, name) < 1:
            raise UsageError(f"{flag(name)}: must be at least 1")
    for name in ("learning_rate", "clip_coef", "ent_coef", "vf_coef", "max_grad_norm", "seed"):
        if not getattr(args, name) >= 0:
            raise UsageError(f"{flag(name)}: must not be negative")
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(args, name) <= 1:
            raise UsageError(f"{flag(name)}: must lie between 0 and 1")
    rows = args.num_envs * args.num_steps
    if args.total_timesteps < rows:
        raise UsageError(f"{flag('total_timesteps')}: less than one update, {rows} steps")
    if rows % args.num_minibatches != 0:
        raise UsageError(f"{flag('num_minibatches')}: does not divide an update's {rows} rows")
    if args.norm_adv and rows == args.num_minibatches:
        raise UsageError("--norm-adv: in a minibatch of one row, every advantage would be 0")
    try:
        torch.empty(0, device=args.device)
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"{flag('device')}: {error}".splitlines()[0]) from None


def load_checkpoint(run_dir: Path) -> dict:
    """Read the checkpoint of a run. It cannot run code, and a damaged file is an error."""
    path = Path(run_dir, "checkpoint.pt")
    if zipfile.ZipFile(path).testzip():  # torch.load does not compare checksums
        raise zipfile.BadZipFile(f"{path} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def save_checkpoint(run_dir: Path, args: Args, global_step: int, parts: dict) -> None:
    """Write a new checkpoint, then rename it over the old one: at any time, one is complete."""
    checkpoint = {name: part.state_dict() for name, part in parts.items()}
    checkpoint["args"] = asdict(args)
    del checkpoint["args"]["run_dir"]  # the folder may be moved
    checkpoint["script"] = Path(__file__).stem  # for evaluate.py
    checkpoint["global_step"] = global_step
    path = run_dir / f"checkpoint.{os.getpid()}.tmp"
    torch.save(checkpoint, path)
    torch.load(path, map_location="cpu", weights_only=True)  # fails now, not on resume
    path.replace(run_dir / "checkpoint.pt")


def saved_args(run_dir: Path) -> Args:
    """Return the arguments of a run: main(replace(saved_args(run_dir), ...)) resumes it."""
    return Args(**load_checkpoint(run_dir)["args"], run_dir=run_dir)


def parse_args() -> Args:
    """Read the command line. A resumed run keeps its arguments, except for those given again."""
    args = tyro.cli(Args, description=__doc__)
    if args.run_dir is None or not (args.run_dir / "checkpoint.pt").exists():
        return args
    saved = saved_args(args.run_dir)
    if ":" in saved.env_id and saved.env_id != args.env_id:
        # Importing a module runs its code: somebody else's checkpoint must not choose which one.
        raise UsageError(f"the run imports a module: if you trust it, add --env-id {saved.env_id}")
    return tyro.cli(Args, default=saved, description=__doc__)


def new_run_dir(args: Args) -> Path:
    """Make a folder for a new run, one level deep, with a name that every system accepts."""
    name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
    name = re.sub(r"[^\w.+-]+", "-", name)
    path = Path("runs", name)
    for number in itertools.count(2):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:  # a sweep starts several runs in one second
            path = Path("runs", f"{name}-{number}")


class Run:
    """One training run: its folder with log and checkpoints, its progress, its orderly stop.

    `parts` are objects with a state_dict: every checkpoint saves them, and a resume restores them.
    """

    def __init__(self, args: Args, **parts):
        self.args = args
        self.parts = parts
        self.batch_size = args.num_envs * args.num_steps
        self.global_step = 0  # environment steps so far
        self.returns = deque(maxlen=100)  # of the last finished episodes
        self.stop_signal = 0  # the number of the signal that arrived, if any
        self.handlers = {}
        self.dir = Path(args.run_dir or new_run_dir(args))
        if (self.dir / "checkpoint.pt").exists():
            checkpoint = load_checkpoint(self.dir)
            self.global_step = checkpoint["global_step"]
            for name, value in checkpoint["args"].items():
                if getattr(args, name, value) != value:
                    print(f"changed: {name}, from {value}", file=sys.stderr)
            for name, part in parts.items():
                part.load_state_dict(checkpoint[name])
                if isinstance(part, optim.Optimizer):
                    for parameter, state in part.state.items():  # fused Adam does not check shapes
                        moments = [state[key] for key in state if key.startswith("exp_avg")]
                        if any(moment.shape != parameter.shape for moment in moments):
                            raise ValueError(f"the checkpoint's {name} does not fit the agent")

    def __enter__(self) -> "Run":
        print(f"{self.dir}: training on {self.args.device}", file=sys.stderr)
        config = asdict(self.args)
        if self.args.track:
            import wandb

            self.dir.mkdir(parents=True, exist_ok=True)
            path = self.dir / "wandb_id"  # a resumed run goes on under the same id
            names = {"id": path.read_text() if path.exists() else None, "name": self.dir.name}
            run = wandb.init(**names, resume="allow", config=config, sync_tensorboard=True)
            path.write_text(run.id)
        # purge_step: a resumed run logs again what came after its last checkpoint.
        self.writer = SummaryWriter(self.dir, purge_step=self.global_step + 1)
        lines = [f"    {name}: {value}" for name, value in config.items()]
        self.writer.add_text("hyperparameters", "\n".join(lines), self.global_step)
        # A progress bar on a terminal; elsewhere `end_update` prints lines
        total = self.args.total_timesteps
        self.bar = tqdm(total=total, initial=self.global_step, dynamic_ncols=True, disable=None)
        self.last_update = self.last_line = time.perf_counter()
        # The first Ctrl-C or SIGTERM saves and stops after the update; a second one acts at once.
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.handlers[signum] = signal.signal(signum, self.on_signal)
        return self

    def on_signal(self, signum: int, frame) -> None:
        self.stop_signal = signum
        signal.signal(signum, self.handlers[signum])
        os.write(2, b"\nstopping after this update; a second signal stops at once\n")

    def __exit__(self, error_type: type | None, *_) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        self.bar.close()
        self.writer.close()
        if self.args.track:
            sys.modules["wandb"].finish(exit_code=int(error_type is not None))
        if error_type is None:
            result = f"{self.global_step:,} steps, {self.mean_return()}"
            print(f"{result}. The curves: tensorboard --logdir {self.dir}")
        elif (self.dir / "checkpoint.pt").exists():
            print(f"to resume, add --run-dir {self.dir} to the command", file=sys.stderr)

    def end_step(self, infos: dict) -> None:
        """Count a step of every environment; log episodes that RecordEpisodeStatistics reports."""
        # An Atari game can also end within a reset (no-op, FIRE): it is then in infos itself.
        for info in (infos, infos.get("final_info", {})):
            if "episode" in info:
                for i in np.flatnonzero(info["_episode"]):
                    step = self.global_step + i + 1  # one each: W&B keeps one value per step
                    self.returns.append(info["episode"]["r"][i])
                    self.writer.add_scalar("charts/episodic_return", self.returns[-1], step)
                    self.writer.add_scalar("charts/episodic_length", info["episode"]["l"][i], step)
        self.global_step += self.args.num_envs

    def end_update(self, lr: float, losses: dict[str, Tensor]) -> None:
        """Log, save if it is time, show the progress, and stop if a signal has arrived."""
        losses = {f"losses/{name}": float(value) for name, value in losses.items()}
        # A broken agent must not be saved. (Explained variance is NaN where all returns are equal.)
        if not np.isfinite([losses[tag] for tag in losses if "explained" not in tag]).all():
            raise FloatingPointError(f"after {self.global_step} steps: {losses}")
        now = time.perf_counter()
        sps = self.batch_size / (now - self.last_update)
        self.last_update = now
        for tag, value in (losses | {"charts/learning_rate": lr, "charts/SPS": sps}).items():
            self.writer.add_scalar(tag, value, self.global_step)
        over = self.global_step + self.batch_size > self.args.total_timesteps
        due = self.global_step // self.batch_size % self.args.save_every == 0
        if over or due or self.stop_signal:
            self.writer.flush()
            save_checkpoint(self.dir, self.args, self.global_step, self.parts)
        self.bar.set_postfix_str(self.mean_return(), refresh=False)
        self.bar.update(self.batch_size)
        if self.bar.disable and now - self.last_line >= 30:  # seconds
            self.last_line = now
            status = f"{self.global_step:,} steps, {sps:,.0f} a second, {self.mean_return()}"
            print(status, file=sys.stderr)
        if self.stop_signal:
            raise SystemExit(128 + self.stop_signal)

    def mean_return(self) -> str:
        mean = f"{np.mean(self.returns):.1f}" if self.returns else "not known yet"
        return f"mean return {mean}"


if __name__ == "__main__":
    try:
        main(parse_args())
    except (UsageError, gym.error.Error) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
