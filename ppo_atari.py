# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ale-py==0.12.1", "gymnasium==1.4.0", "moviepy==2.2.1", "numpy==2.4.6", "opencv-python-headless==5.0.0.93",
#     "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
# ]
# ///
"""Proximal Policy Optimization for classic control: vector observations, discrete actions.

python ppo.py --env-id CartPole-v1
"""

import difflib
import importlib.util
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import ale_py
import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn, optim
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    env_id: str = "BreakoutNoFrameskip-v4"  # Atari game, one of Gymnasium's
    total_timesteps: int = 10_000_000  # environment steps of the whole run, all environments together
    learning_rate: float = 2.5e-4  # step size of Adam at the first update
    num_envs: int = 8  # environments that are stepped side by side
    num_steps: int = 128  # steps of each environment per update
    anneal_lr: bool = True  # let the learning rate fall linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda of generalized advantage estimation
    num_minibatches: int = 4  # minibatches into which each epoch splits the batch
    update_epochs: int = 4  # passes over the batch per update
    norm_adv: bool = True  # normalise the advantages of each minibatch
    clip_coef: float = 0.1  # the ratio is clipped to [1 - clip_coef, 1 + clip_coef]
    anneal_clip_coef: bool = False  # let clip_coef fall linearly to 0 too
    clip_vloss: bool = True  # clip the change of the value prediction by clip_coef as well
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # the global norm of the gradient is clipped to this
    target_kl: float | None = None  # stop the epochs of an update once their mean approximate KL exceeds this
    bootstrap_truncated: bool = False  # at a time limit, bootstrap from the final observation (official code: no)
    seed: int = 1  # seed of everything random
    torch_deterministic: bool = True  # use deterministic GPU kernels
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto is CUDA where there is a GPU, else the CPU
    exp_name: str = Path(__file__).stem  # name of the experiment, part of the name of the run folder
    capture_video: bool = False  # record videos of the first environment into the run folder
    track: bool = False  # log to Weights & Biases too (it reads WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE)


# Environments


class EpisodicLifeEnv(gym.Wrapper):
    """Atari 3: a lost life ends the episode for the learner, while the game goes on (atari_wrappers.py#L61)."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.lives = 0
        self.game_over = True

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.game_over = terminated or truncated
        lives = self.unwrapped.ale.lives()
        # Some games (Qbert) show 0 lives for a few frames before they end; the end itself then ends the episode.
        terminated = terminated or 0 < lives < self.lives
        self.lives = lives
        return obs, reward, terminated, truncated, info

    def reset(self, **kwargs):
        if self.game_over:
            obs, info = self.env.reset(**kwargs)
        else:  # only a life was lost: go on with a no-op
            obs, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                obs, reset_info = self.env.reset(**kwargs)
                info |= reset_info
        self.lives = self.unwrapped.ale.lives()
        return obs, info


class FireResetEnv(gym.Wrapper):
    """Atari 4: press FIRE, then action 2, in games that wait for it at the start (atari_wrappers.py#L41)."""

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        for action in (1, 2):
            obs, _, terminated, truncated, step_info = self.env.step(action)
            info |= step_info
            if terminated or truncated:
                obs, reset_info = self.env.reset(**kwargs)
                info |= reset_info
        return obs, info


def make_env(env_id: str, idx: int, capture_video: bool, run_dir: Path) -> Callable[[], gym.Env]:
    """Return a function that makes environment number `idx`; number 0 can record videos."""

    def thunk() -> gym.Env:
        record = capture_video and idx == 0
        env = gym.make(env_id, frameskip=1, render_mode="rgb_array" if record else None)
        env = gym.wrappers.AtariPreprocessing(
            env,
            noop_max=30,  # Atari 1: 1 to 30 no-ops on reset
            frame_skip=4,  # Atari 2: each action is repeated 4 times; the last two frames' maximum is seen
            screen_size=84,  # Atari 5: 84 x 84, and grey
            grayscale_obs=True,
            terminal_on_life_loss=False,  # it would reset the game; EpisodicLifeEnv goes on with it
        )
        # The reported returns are those of the whole game and of the true rewards, so they are taken here.
        env = gym.wrappers.RecordEpisodeStatistics(env)
        if record:
            env = gym.wrappers.RecordVideo(env, str(run_dir / "videos"), fps=15, disable_logger=True)
        env = EpisodicLifeEnv(env)
        meanings = env.unwrapped.get_action_meanings()
        if len(meanings) >= 3 and meanings[1] == "FIRE":
            env = FireResetEnv(env)
        env = gym.wrappers.TransformReward(env, np.sign)  # Atari 6: reward clipped to its sign
        return gym.wrappers.FrameStackObservation(env, 4)  # Atari 7: four frames, so that motion can be seen

    return thunk


def make_envs(args: Args, run_dir: Path) -> gym.vector.VectorEnv:
    """Make the vector environment, or end with one line that says why this script cannot train on it."""
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner for every environment
    if args.env_id not in gym.registry:
        names = difflib.get_close_matches(args.env_id, gym.registry, cutoff=0.5)
        if f"{args.env_id.removesuffix('-v5')}NoFrameskip-v4" in gym.registry:
            names = [f"{args.env_id.removesuffix('-v5')}NoFrameskip-v4"]
        fail(f"there is no environment {args.env_id}; the closest names are: {', '.join(names) or 'none'}")
    if not str(gym.spec(args.env_id).entry_point).startswith("ale_py"):
        fail(f"{args.env_id} is no Atari game: use ppo.py (discrete actions) or ppo_continuous_action.py")
    # Core 1: one policy steps all environments side by side.
    # SAME_STEP: the step that ends an episode already returns the first observation of the next one. NEXT_STEP,
    # the default of Gymnasium, spends a step on the reset and would feed the learner rows that are no experience.
    return gym.vector.SyncVectorEnv(
        [make_env(args.env_id, i, args.capture_video, run_dir) for i in range(args.num_envs)],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )


# The agent


def layer_init(layer: nn.Module, std: float = 2**0.5, bias: float = 0.0) -> nn.Module:
    """Core 2: orthogonal weights with gain `std`, constant bias (baselines a2c/utils.py#L58)."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias)
    return layer


class Agent(nn.Module):
    """Policy and value on top of one convolutional network (baselines common/policies.py)."""

    def __init__(self, envs: gym.vector.VectorEnv):
        super().__init__()
        # Atari 8: the network of Mnih et al. (2015), shared by policy and value (common/models.py#L15-L26)
        self.network = nn.Sequential(
            layer_init(nn.Conv2d(4, 32, 8, stride=4)),
            nn.ReLU(),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(),
            nn.Flatten(),
            layer_init(nn.Linear(64 * 7 * 7, 512)),
            nn.ReLU(),
        )
        # The small gain of the policy head makes all actions about equally likely at the start.
        self.actor = layer_init(nn.Linear(512, envs.single_action_space.n), std=0.01)
        self.critic = layer_init(nn.Linear(512, 1), std=1.0)

    def get_value(self, x: Tensor) -> Tensor:
        """Return the value of each observation: (batch, 4, 84, 84) uint8 -> (batch,)."""
        return self.critic(self.network(x / 255.0)).squeeze(-1)  # Atari 9: images scaled to [0, 1]

    def get_action_and_value(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return action, log-probability, entropy and value, each (batch,); sample where no action is given."""
        hidden = self.network(x / 255.0)  # Atari 9: images scaled to [0, 1]
        probs = Categorical(logits=self.actor(hidden), validate_args=False)
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action), probs.entropy(), self.critic(hidden).squeeze(-1)


# The algorithm


class Batch(NamedTuple):
    """What the learner sees of each row; a minibatch is a Batch of some of the rows."""

    obs: Tensor  # (rows, 4, 84, 84) uint8
    actions: Tensor  # (rows,) int64
    logprobs: Tensor  # (rows,) log-probability of the action under the policy that took it
    values: Tensor  # (rows,) value predicted during the rollout
    advantages: Tensor  # (rows,)
    returns: Tensor  # (rows,) target of the value function


def compute_gae(
    rewards: Tensor,
    values: Tensor,
    dones: Tensor,
    next_value: Tensor,
    next_done: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Core 5: generalized advantage estimation (Schulman et al. 2016, eq. 16; baselines ppo2/runner.py#L56-L65).

    `rewards`, `values` and `dones` are (num_steps, num_envs); `dones[t]` is 1 where `obs[t]` begins an episode.
    `next_value` and `next_done`, (num_envs,), belong to the observation after the last step.
    Returns the advantages and the value targets, both (num_steps, num_envs).
    """
    # Row t takes the flag of the step it made: did the episode go on after it?
    continues = 1.0 - torch.cat([dones[1:], next_done[None]])
    next_values = torch.cat([values[1:], next_value[None]])
    deltas = rewards + gamma * continues * next_values - values
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(next_value)
    for t in reversed(range(len(rewards))):
        advantages[t] = advantage = deltas[t] + gamma * gae_lambda * continues[t] * advantage
    return advantages, advantages + values


def ppo_loss(agent: Agent, mb: Batch, clip_coef: float, args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of one minibatch and its statistics (Schulman et al. 2017, eq. 7 and 9), all scalars."""
    _, logprobs, entropy, values = agent.get_action_and_value(mb.obs, mb.actions)
    logratio = logprobs - mb.logprobs
    ratio = logratio.exp()

    advantages = mb.advantages
    if args.norm_adv:  # Core 7: per minibatch, with the population standard deviation
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)

    # Core 8: the pessimistic of the clipped and the unclipped objective
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    policy_loss = -torch.min(advantages * ratio, advantages * clipped_ratio).mean()

    value_losses = (values - mb.returns) ** 2
    if args.clip_vloss:  # Core 9: the value may move by clip_coef at most, too
        clipped_values = mb.values + (values - mb.values).clamp(-clip_coef, clip_coef)
        value_losses = torch.max(value_losses, (clipped_values - mb.returns) ** 2)
    value_loss = 0.5 * value_losses.mean()

    entropy = entropy.mean()
    loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss  # Core 10: one loss, one optimiser

    with torch.no_grad():  # Core 12: debug variables
        stats = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "old_approx_kl": -logratio.mean(),
            # Never negative, and of less variance than the line above: Schulman's "Approximating KL Divergence" (2020)
            "approx_kl": (ratio - 1 - logratio).mean(),
            "clipfrac": ((ratio - 1).abs() > clip_coef).float().mean(),
        }
    return loss, stats


# What serves the user


def fail(message: str) -> NoReturn:
    """End with one line on stderr and exit code 2, the code for wrong usage."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_args(args: Args) -> None:
    """End with one line that says what to change if the arguments make no sense."""
    bounds = dict.fromkeys(("total_timesteps", "num_envs", "num_steps", "num_minibatches", "update_epochs"), (1, 2**62))
    bounds |= dict.fromkeys(("learning_rate", "clip_coef", "max_grad_norm"), (0, 1e9))
    bounds |= {"gamma": (0, 1), "gae_lambda": (0, 1), "seed": (0, 2**31 - 1)}
    for name, (low, high) in bounds.items():
        if not low <= getattr(args, name) <= high:
            fail(f"--{name.replace('_', '-')} must lie between {low} and {high}, not at {getattr(args, name)}")
    batch_size = args.num_envs * args.num_steps
    batch = f"--num-envs {args.num_envs} times --num-steps {args.num_steps} makes batches of {batch_size}"
    if batch_size % args.num_minibatches:
        fail(f"{batch}, which cannot be split into --num-minibatches {args.num_minibatches} of equal size")
    if args.total_timesteps < batch_size:
        fail(f"{batch}, which is more than --total-timesteps {args.total_timesteps}")
    available = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[args.device]:
        fail(f"--device {args.device}: PyTorch finds no such device here; use --device cpu")
    if args.track and not importlib.util.find_spec("wandb"):
        fail("--track needs Weights & Biases: pip install wandb")


class LineBar(tqdm):
    """A progress bar for output that goes to a file: each state is a line of its own."""

    @staticmethod
    def status_printer(file):
        return lambda text: print(text, file=file, flush=True)


def progress_bar(total: int, text: str) -> tqdm:
    """Return a bar that is redrawn on a terminal, and written as a line every ten seconds elsewhere."""
    bar_format = "{n_fmt}/{total_fmt} steps |{bar:20}| {rate_noinv_fmt}{postfix}, {remaining} left"
    bar, mininterval = (tqdm, 0.5) if sys.stderr.isatty() else (LineBar, 10)
    return bar(total=total, unit=" steps", postfix=text, bar_format=bar_format, mininterval=mininterval, miniters=1)


def mean_stats(stats: list[dict[str, Tensor]]) -> dict[str, float]:
    """Average the statistics of some minibatches; the only point where an update waits for the device."""
    means = torch.stack([torch.stack(tuple(s.values())) for s in stats]).mean(dim=0)
    return dict(zip(stats[0], means.tolist(), strict=True))


def summary(returns: deque[float]) -> str:
    if not returns:
        return "no episode finished yet"
    return f"mean return of the last {len(returns)} episodes {np.mean(returns):.1f}"


def main(args: Args) -> Agent:
    """Train and return the agent."""
    check_args(args)
    batch_size = args.num_envs * args.num_steps
    num_iterations = args.total_timesteps // batch_size
    run_dir = Path("runs") / f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
    best_device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(best_device if args.device == "auto" else args.device)
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic

    envs = make_envs(args, run_dir)
    agent = Agent(envs).to(device)
    optimizer = optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)  # Core 3: not 1e-8
    if args.track:
        import wandb

        wandb.init(name=run_dir.name, config=asdict(args), sync_tensorboard=True, save_code=True)
    writer = SummaryWriter(run_dir)
    writer.add_text("hyperparameters", "\n".join(f"    {name}: {value}" for name, value in asdict(args).items()))

    # The rollout; these buffers are filled anew in every iteration.
    # The images lie in memory with their channels last, as convolutions like them best.
    obs = torch.zeros((args.num_steps, args.num_envs, 84, 84, 4), dtype=torch.uint8, device=device)
    obs = obs.permute(0, 1, 4, 2, 3)  # (num_steps, num_envs, 4, 84, 84)
    actions = torch.zeros((args.num_steps, args.num_envs), dtype=torch.int64, device=device)
    logprobs = torch.zeros((args.num_steps, args.num_envs), device=device)
    rewards = torch.zeros((args.num_steps, args.num_envs), device=device)
    dones = torch.zeros((args.num_steps, args.num_envs), device=device)
    values = torch.zeros((args.num_steps, args.num_envs), device=device)

    global_step = 0
    recent_returns = deque(maxlen=100)
    progress = progress_bar(num_iterations * batch_size, summary(recent_returns))
    next_obs, _ = envs.reset(seed=args.seed)  # Gymnasium gives environment i the seed args.seed + i
    next_obs = torch.as_tensor(next_obs, device=device)  # (num_envs, 4, 84, 84) uint8
    next_done = torch.zeros(args.num_envs, device=device)

    for iteration in range(num_iterations):
        iteration_start = time.perf_counter()
        remaining = 1 - iteration / num_iterations  # 1 in the first iteration
        # Core 4: the learning rate falls linearly; the first update runs at the full rate
        lr = args.learning_rate * (remaining if args.anneal_lr else 1)
        clip_coef = args.clip_coef * (remaining if args.anneal_clip_coef else 1)  # Aux 1: the same for the clip range
        optimizer.param_groups[0]["lr"] = lr

        # Roll out num_steps steps of every environment; next_obs and next_done carry over to the next iteration.
        for step in range(args.num_steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                actions[step], logprobs[step], _, values[step] = agent.get_action_and_value(next_obs)
            next_obs, reward, terminated, truncated, infos = envs.step(actions[step].cpu().numpy())
            done = terminated | truncated
            rewards[step] = torch.as_tensor(reward, dtype=torch.float32)
            if args.bootstrap_truncated and (cut := truncated & ~terminated).any():
                # The episode was cut, not over: what would have followed is worth V(final observation).
                final_obs = torch.as_tensor(np.stack(infos["final_obs"][cut]), device=device)
                with torch.no_grad():
                    rewards[step, cut] += args.gamma * agent.get_value(final_obs)
            next_obs = torch.as_tensor(next_obs, device=device)
            next_done = torch.as_tensor(done, dtype=torch.float32, device=device)

            global_step += args.num_envs
            for info in (infos, infos.get("final_info", {})):  # a game can also end during a reset
                for i in np.flatnonzero(info.get("_episode", False)):
                    recent_returns.append(info["episode"]["r"][i])
                    writer.add_scalar("charts/episodic_return", info["episode"]["r"][i], global_step)
                    writer.add_scalar("charts/episodic_length", info["episode"]["l"][i], global_step)

        with torch.no_grad():
            next_value = agent.get_value(next_obs)
        # advantages and returns are (num_steps, num_envs)
        advantages, returns = compute_gae(rewards, values, dones, next_value, next_done, args.gamma, args.gae_lambda)

        # Learn from the batch of all rows, several times over.
        batch = Batch(*(x.flatten(0, 1) for x in (obs, actions, logprobs, values, advantages, returns)))
        stats = []
        for _ in range(args.update_epochs):
            # Core 6: every epoch visits every row once, in minibatches of a new random order
            for rows in torch.randperm(len(batch.obs), device=device).tensor_split(args.num_minibatches):
                mb = Batch(*(field[rows] for field in batch))
                loss, mb_stats = ppo_loss(agent, mb, clip_coef, args)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)  # Core 11: the norm over all weights
                optimizer.step()
                stats.append(mb_stats)
            # Aux 3: stop early when this epoch moved the policy too far
            if args.target_kl is not None and mean_stats(stats[-args.num_minibatches :])["approx_kl"] > args.target_kl:
                break

        for name, value in mean_stats(stats).items():
            writer.add_scalar(f"losses/{name}", value, global_step)
        explained_variance = 1 - (batch.returns - batch.values).var() / batch.returns.var()
        writer.add_scalar("losses/explained_variance", explained_variance.item(), global_step)
        writer.add_scalar("charts/learning_rate", lr, global_step)
        writer.add_scalar("charts/SPS", batch_size / (time.perf_counter() - iteration_start), global_step)
        progress.set_postfix_str(summary(recent_returns), refresh=False)
        progress.update(batch_size)

    progress.close()
    envs.close()
    writer.close()
    print(f"{global_step:,} steps, {summary(recent_returns)}. The curves: tensorboard --logdir {run_dir}")
    return agent


if __name__ == "__main__":
    main(tyro.cli(Args))
