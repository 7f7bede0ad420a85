# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium[mujoco]==1.4.0", "moviepy==2.2.1", "mujoco==3.8.1", "numpy==2.4.6", "tensorboard==2.21.0",
#     "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17"]
# ///
"""Proximal Policy Optimization for continuous control: vector observations, continuous actions.

    python ppo_continuous_action.py --env-id HalfCheetah-v5

Hopper-v5 reaches a mean return of 2465 in 1,000,000 steps (seed 1). The algorithm is that of baselines' ppo2.
"""

import atexit
import difflib
import importlib.util
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn, optim
from torch.distributions import Normal
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    env_id: str = "HalfCheetah-v5"  # Gymnasium environment with vector observations and continuous actions
    total_timesteps: int = 1_000_000  # environment steps of the whole run, all environments together
    learning_rate: float = 3e-4  # step size of Adam at the first update
    num_envs: int = 1  # environments that are stepped side by side
    num_steps: int = 2048  # steps of each environment per update
    anneal_lr: bool = True  # let the learning rate fall linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda of generalized advantage estimation
    num_minibatches: int = 32  # minibatches into which each epoch splits the batch
    update_epochs: int = 10  # passes over the batch per update
    norm_adv: bool = True  # normalise the advantages of each minibatch
    clip_coef: float = 0.2  # the ratio is clipped to [1 - clip_coef, 1 + clip_coef]
    anneal_clip_coef: bool = False  # let clip_coef fall linearly to 0 too
    clip_vloss: bool = True  # clip the change of the value prediction by clip_coef as well
    ent_coef: float = 0.0  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # the global norm of the gradient is clipped to this
    target_kl: float | None = None  # stop the epochs of an update once their mean approximate KL exceeds this
    bootstrap_truncated: bool = False  # at a time limit, bootstrap from the final observation (official code: no)
    shared_network: bool = False  # one body for policy and value instead of two
    seed: int = 1  # seed of everything random
    torch_deterministic: bool = True  # use deterministic GPU kernels
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto is the CPU: networks this small are faster there
    compile: bool = False  # compile the learner; takes a minute at the start and needs a C++ compiler
    exp_name: str = Path(__file__).stem  # name of the experiment, part of the name of the run folder
    capture_video: bool = False  # record videos of the first environment into the run folder
    save_every: int = 10  # updates between two checkpoints
    # run folder to go on with; may change: --total-timesteps --device --compile --save-every --capture-video --track
    resume: Path | None = None
    track: bool = False  # log to Weights & Biases too (it reads WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE)


def make_env(env_id: str, idx: int, capture_video: bool, run_dir: Path) -> gym.Env:
    """Make environment number `idx`; number 0 records videos if asked to."""
    if not (capture_video and idx == 0):
        return gym.make(env_id)
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # how MuJoCo draws without a display
    env = gym.make(env_id, render_mode="rgb_array")
    return gym.wrappers.RecordVideo(env, str(run_dir / "videos"), disable_logger=True)


def make_envs(args: Args, run_dir: Path) -> gym.vector.VectorEnv:
    """Make the vector environment, or end with one line that says why this script cannot train on it."""
    try:
        # Core 1: one policy steps all environments. SAME_STEP: the step that ends an episode already returns the
        # next one's first observation; the default, NEXT_STEP, would feed the learner rows that are no experience.
        thunks = [partial(make_env, args.env_id, i, args.capture_video, run_dir) for i in range(args.num_envs)]
        envs = gym.vector.SyncVectorEnv(thunks, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    except (gym.error.Error, ImportError, ValueError) as error:
        names = ", ".join(difflib.get_close_matches(args.env_id, gym.registry, n=5, cutoff=0.6)) or "none"
        fail(f"{args.env_id}: {error} (closest names: {names}; Atari games: use ppo_atari.py)")
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
        remedy = "use ppo_atari.py for images, or gym.wrappers.FlattenObservation in make_env"
        fail(f"{args.env_id} observes {obs_space}, not a vector: {remedy}")
    if not isinstance(action_space, gym.spaces.Box) or len(action_space.shape) != 1:
        fail(f"{args.env_id} has actions {action_space}, no vector (Discrete: ppo.py, several: ppo_multidiscrete.py)")
    return envs


class VecNormalize:
    """Normalise observations and scale rewards by float64 statistics of all environments (vec_normalize.py#L4)."""

    def __init__(self, envs: gym.vector.VectorEnv, gamma: float):
        self.moments = {"obs": (0.0, 1.0, 1e-4), "return": (0.0, 1.0, 1e-4)}  # mean, variance and number of rows
        self.gamma, self.discounted_returns = gamma, np.zeros(envs.num_envs)

    def count(self, name: str, x: np.ndarray) -> None:
        """Merge the rows of `x` into the moments of those before (Chan et al. 1979)."""
        mean, var, size = self.moments[name]
        delta, total = x.sum(axis=0) / len(x) - mean, size + len(x)
        squares = var * size + ((x - mean - delta) ** 2).sum(axis=0) + delta**2 * (size * len(x) / total)
        self.moments[name] = mean + delta * (len(x) / total), squares / total, total

    def normalize(self, obs: np.ndarray) -> np.ndarray:
        """Normalise `obs`, (rows, obs_size), by the statistics so far."""
        mean, var, _ = self.moments["obs"]
        obs = (obs - mean) / np.sqrt(var + 1e-8)  # Continuous 6: observations normalised
        return obs.clip(-10, 10)  # Continuous 7: and clipped

    def observe(self, obs: np.ndarray) -> np.ndarray:
        """Count the observations of one step, (num_envs, obs_size), and return them normalised."""
        self.count("obs", obs.astype(np.float64))
        return self.normalize(obs)

    def scale(self, reward: np.ndarray, done: np.ndarray) -> np.ndarray:
        """Return the scaled rewards of one step, (num_envs,); an episode that is done starts its return anew."""
        self.discounted_returns = self.discounted_returns * self.gamma + reward
        self.count("return", self.discounted_returns)
        reward = reward / np.sqrt(self.moments["return"][1] + 1e-8)  # Continuous 8: divided by the return's deviation
        self.discounted_returns[done] = 0
        return reward.clip(-10, 10)  # Continuous 9: and clipped

    def state_dict(self) -> dict[str, list]:
        return {name: [np.asarray(x).tolist() for x in moments] for name, moments in self.moments.items()}

    def load_state_dict(self, state: dict[str, list]) -> None:
        self.moments = {name: tuple(np.array(x) for x in moments) for name, moments in state.items()}


def layer_init(layer: nn.Module, std: float = 2**0.5, bias: float = 0.0) -> nn.Module:
    """Core 2: orthogonal weights with gain `std`, constant bias (baselines a2c/utils.py#L58)."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias)
    return layer


class Agent(nn.Module):
    """Policy and value networks (baselines common/policies.py)."""

    def __init__(self, envs: gym.vector.VectorEnv, shared_network: bool = False):
        super().__init__()
        obs_size, action_size = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]

        def body() -> tuple[nn.Module, ...]:
            return layer_init(nn.Linear(obs_size, 64)), nn.Tanh(), layer_init(nn.Linear(64, 64)), nn.Tanh()

        actor_body = body()  # Continuous 4: policy and value share no weights
        critic_body = actor_body if shared_network else body()  # Core 13: two bodies, or one for both
        # The small gain of the policy head makes the first actions centre on 0.
        self.actor_mean = nn.Sequential(*actor_body, layer_init(nn.Linear(64, action_size), std=0.01))
        self.critic = nn.Sequential(*critic_body, layer_init(nn.Linear(64, 1), std=1.0))
        self.actor_logstd = nn.Parameter(torch.zeros(action_size))  # Continuous 2: the same in all states, initially 0

    def get_value(self, x: Tensor) -> Tensor:
        """Return the value of each observation: (batch, obs_size) -> (batch,)."""
        return self.critic(x).squeeze(-1)

    def get_action(self, x: Tensor) -> Tensor:
        """Sample an action for each observation, and compute nothing else: (batch, obs_size) -> (batch, actions)."""
        mean = self.actor_mean(x)
        return mean + self.actor_logstd.exp() * torch.randn_like(mean)

    def get_action_and_value(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return action (batch, action_size) and log-probability, entropy, value (batch,); sample without an action."""
        probs = Normal(self.actor_mean(x), self.actor_logstd.exp(), validate_args=False)  # Continuous 1: a normal
        action = probs.sample() if action is None else action
        # Continuous 3: the components are independent, so their log-probabilities add up
        return action, probs.log_prob(action).sum(-1), probs.entropy().sum(-1), self.get_value(x)


class Batch(NamedTuple):
    """What the learner sees of each row; a minibatch is a Batch of some of the rows."""

    obs: Tensor  # (rows, obs_size) float32
    actions: Tensor  # (rows, action_size) float32, as sampled
    logprobs: Tensor  # (rows,) log-probability of the action under the policy that took it
    values: Tensor  # (rows,) value predicted during the rollout
    advantages: Tensor  # (rows,)
    returns: Tensor  # (rows,) target of the value function


def compute_gae(rewards, values, dones, next_value, next_done, gamma, gae_lambda) -> tuple[Tensor, Tensor]:
    """Core 5: generalized advantage estimation (Schulman et al. 2016, eq. 16; baselines ppo2/runner.py#L56-L65).

    `rewards`, `values`, `dones` are (num_steps, num_envs); `dones[t]` is 1 where `obs[t]` begins an episode.
    `next_value`, `next_done` (num_envs,) belong to the last observation. Returns advantages and value targets.
    """
    continues = 1.0 - torch.cat([dones[1:], next_done[None]])  # did the episode go on after step t?
    next_values = torch.cat([values[1:], next_value[None]])
    deltas, decay = rewards + gamma * continues * next_values - values, gamma * gae_lambda * continues
    advantages = [torch.zeros_like(next_value)]  # what follows the last step; from there backwards in time
    for delta, factor in zip(deltas.flip(0), decay.flip(0), strict=True):
        advantages.append(delta + factor * advantages[-1])
    advantages = torch.stack(advantages[:0:-1])
    return advantages, advantages + values


def ppo_loss(agent: Agent, mb: Batch, clip_coef: float, args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of one minibatch and its statistics (Schulman et al. 2017, eq. 7 and 9), all scalars."""
    _, logprobs, entropy, values = agent.get_action_and_value(mb.obs, mb.actions)
    logratio = logprobs - mb.logprobs
    ratio = logratio.exp()
    advantages = mb.advantages
    if args.norm_adv:  # Core 7: per minibatch, with the population standard deviation
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)  # Core 8: the worse of clipped and unclipped counts
    policy_loss = -torch.min(advantages * ratio, advantages * clipped_ratio).mean()
    value_losses = (values - mb.returns) ** 2
    if args.clip_vloss:  # Core 9: the value may move by clip_coef at most, too
        clipped_values = mb.values + (values - mb.values).clamp(-clip_coef, clip_coef)
        value_losses = torch.max(value_losses, (clipped_values - mb.returns) ** 2)
    value_loss = 0.5 * value_losses.mean()
    loss = policy_loss - args.ent_coef * entropy.mean() + args.vf_coef * value_loss  # Core 10: one loss, one optimiser
    with torch.no_grad():  # Core 12: debug variables
        stats = {"policy_loss": policy_loss.detach(), "value_loss": value_loss.detach(), "entropy": entropy.mean()}
        stats["old_approx_kl"] = -logratio.mean()
        stats["approx_kl"] = (ratio - 1 - logratio).mean()  # never negative, less variance (Schulman 2020)
        stats["clipfrac"] = ((ratio - 1).abs() > clip_coef).float().mean()
    return loss, stats


def compute_gradient(agent: Agent, mb: Batch, clip_coef: float, args: Args) -> dict[str, Tensor]:
    """Set `grad` of every parameter to the clipped gradient of one minibatch, and return the minibatch's statistics."""
    loss, stats = ppo_loss(agent, mb, clip_coef, args)
    parameters = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient.contiguous()  # laid out in memory as the parameter is
    stats["grad_norm"] = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)  # Core 11: over all weights
    return stats


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one line on stderr; exit code 2 stands for wrong usage. (From here to `main`: no algorithm.)"""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def check_args(args: Args) -> None:
    """End with one line that says what to change if the arguments make no sense."""
    highest = {"gamma": 1, "gae_lambda": 1, "seed": 2**31 - 1}
    for name, kind in Args.__annotations__.items():
        low, high, value = int(kind is int and name != "seed"), highest.get(name, 10**12), getattr(args, name)
        if kind in (int, float, float | None) and not low <= (value or 0) <= high:
            fail(f"--{name.replace('_', '-')} must lie between {low} and {high}, not at {value}")
    batch_size = args.num_envs * args.num_steps
    if batch_size % args.num_minibatches:
        fail(f"--num-minibatches {args.num_minibatches} does not divide --num-envs times --num-steps, {batch_size}")
    if args.total_timesteps < batch_size:
        fail(f"--total-timesteps {args.total_timesteps} is less than --num-envs times --num-steps, {batch_size}")
    if args.device != "auto" and not torch.get_device_module(args.device).is_available():
        fail(f"--device {args.device}: PyTorch finds no such device here; use --device cpu")
    if args.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        fail("--compile needs a C++ compiler, and there is none: install g++, or leave --compile out")
    if not all(map(importlib.util.find_spec, ["wandb"] * args.track + ["moviepy"] * args.capture_video)):
        fail("a package is missing: --track needs pip install wandb, --capture-video needs pip install moviepy")


def load_checkpoint(path: Path) -> dict:
    """Read the checkpoint of a run of this script, or end with one line that says what is wrong with it."""
    path = path / "checkpoint.pt" if path.is_dir() else path
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # a stranger's file cannot run code
        script, version = checkpoint["script"], checkpoint["version"]
    except Exception:  # whatever a missing or damaged file makes the unpickler raise
        fail(f"{path} is missing, damaged or no checkpoint: --resume takes the folder of a run, runs/...")
    if (script, version) != (Path(__file__).stem, 1) or checkpoint["args"].keys() - Args.__annotations__.keys():
        fail(f"{path} is by {script}.py, format {version}, but not by this version of {Path(__file__).name}")
    return checkpoint | {"run_dir": path.parent}


def parse_args() -> Args:
    """Read the command line; with --resume, what it leaves out comes from the checkpoint."""
    args = tyro.cli(Args, description=__doc__)
    if args.resume:
        checkpoint = load_checkpoint(args.resume)
        saved = checkpoint["args"] | {"resume": args.resume}
        args = tyro.cli(Args, default=Args(**saved))
        may_change = {"total_timesteps", "device", "compile", "save_every", "capture_video", "track"}
        for name in sorted(saved.keys() - may_change):
            if getattr(args, name) != saved[name]:
                fail(f"--{name.replace('_', '-')} is {saved[name]} in the run to resume and cannot change")
        if checkpoint["iteration"] >= args.total_timesteps // (args.num_envs * args.num_steps):
            fail(f"the run is over, at {checkpoint['global_step']} steps: give it more with --total-timesteps")
    return args


class Run:
    """The run folder with its log and checkpoint, the progress bar, and an orderly end after Ctrl-C or SIGTERM."""

    signals: ClassVar[list[int]] = []  # those that came

    def __init__(self, args: Args, run_dir: Path, checkpoint: dict, **parts):
        """Open log and progress bar; `parts` is what a checkpoint keeps, and is restored if the run is resumed."""
        self.args, self.dir, self.parts, self.returns = args, run_dir, parts, []
        self.global_step, self.last_update, self.compiled = checkpoint["global_step"], time.perf_counter(), 0.0
        if args.resume:
            for name, part in parts.items():
                part.load_state_dict(checkpoint[name])
            torch.set_rng_state(checkpoint["rng"][0])
            torch.cuda.set_rng_state_all(checkpoint["rng"][1 : 1 + torch.cuda.device_count()])
        if args.track:
            names = {"id": run_dir.name, "name": run_dir.name, "resume": "allow"}
            importlib.import_module("wandb").init(**names, config=asdict(args), sync_tensorboard=True)
        # purge_step: a resumed run logs again what was logged between its checkpoint and the interruption.
        self.writer = SummaryWriter(run_dir, purge_step=self.global_step + 1)
        self.writer.add_text("hyperparameters", "\n".join(f"    {k}: {v}" for k, v in asdict(args).items()))
        total = args.total_timesteps - args.total_timesteps % (args.num_envs * args.num_steps)
        self.bar = tqdm(total=total, initial=self.global_step, unit=" steps", miniters=1, delay=1e-9, position=0)
        self.bar.bar_format = "{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"  # 80 columns
        if not sys.stderr.isatty():  # in a file, each state of the bar is a line of its own, every ten seconds
            self.bar.mininterval, self.bar.sp = 10, lambda text: print(text, file=sys.stderr, flush=True)
        self.bar.set_postfix_str("no episode finished yet")
        hint = f"to go on: python {Path(__file__).name} --resume {run_dir}"
        self.hint = lambda: (self.bar.close(), print(hint, file=sys.stderr))

    def log_episode(self, episodic_return: float, episodic_length: int) -> None:
        self.returns.append(episodic_return)
        self.writer.add_scalar("charts/episodic_return", episodic_return, self.global_step)
        self.writer.add_scalar("charts/episodic_length", episodic_length, self.global_step)

    def end_update(self, iteration: int, learning_rate: float, stats: list[dict[str, Tensor]]) -> None:
        """Log the update, save a checkpoint where one is due, and end the run if it is over or a signal came."""
        means = torch.stack([torch.stack(tuple(s.values())) for s in stats]).mean(dim=0).tolist()  # waits for the GPU
        scalars = {f"losses/{name}": mean for name, mean in zip(stats[0], means, strict=True)}
        compiling = torch._dynamo.utils.calculate_time_spent().get("total_wall_time", 0.0) - self.compiled
        self.compiled, self.bar.last_print_t = self.compiled + compiling, self.bar.last_print_t + compiling
        seconds, self.last_update = time.perf_counter() - self.last_update - compiling, time.perf_counter()
        scalars |= {"charts/SPS": (self.global_step - self.bar.n) / seconds, "charts/learning_rate": learning_rate}
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, self.global_step)
            if not np.isfinite(value) and tag != "losses/explained_variance":  # never save a broken agent
                fail(f"{tag} became {value} in update {iteration + 1}; try a smaller --learning-rate", code=1)
        if last := self.returns[-100:]:
            note = f", compiled in {self.compiled:.0f} s" * (self.compiled > 0)
            self.bar.set_postfix_str(f"mean return {np.mean(last):.1f} (last {len(last)}){note}", refresh=False)
        self.bar.update(self.global_step - self.bar.n)
        over = self.bar.n == self.bar.total
        if over or self.signals or (iteration + 1) % self.args.save_every == 0:
            self.save_checkpoint(iteration + 1)
        if self.signals:
            raise SystemExit(128 + self.signals[0])
        if over:
            atexit.unregister(self.hint)
            self.bar.close()
            print(f"{self.bar.n:,} steps, {self.bar.postfix}. The curves: tensorboard --logdir {self.dir}")

    def save_checkpoint(self, iteration: int) -> None:
        """Replace the checkpoint in one go: whatever happens while it is written, the one before survives."""
        checkpoint = {name: part.state_dict() for name, part in self.parts.items()}
        checkpoint |= {"version": 1, "script": Path(__file__).stem, "args": asdict(self.args) | {"resume": None}}
        checkpoint |= {"iteration": iteration, "global_step": self.global_step}
        checkpoint["rng"] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        self.writer.flush()
        try:
            with open(self.dir / "checkpoint.tmp", "wb", buffering=0) as file:
                torch.save(checkpoint, file)
                os.fsync(file.fileno())
            os.replace(file.name, self.dir / "checkpoint.pt")
        except (OSError, RuntimeError) as error:  # a RuntimeError is how torch.save reports a full disk
            fail(f"no checkpoint written to {self.dir}, the one before is kept: {error}", code=1)
        atexit.unregister(self.hint)
        atexit.register(self.hint)


def main(args: Args) -> Agent:
    """Train and return the agent."""
    check_args(args)
    num_iterations = args.total_timesteps // (args.num_envs * args.num_steps)
    start = load_checkpoint(args.resume) if args.resume else {"iteration": 0, "global_step": 0}
    run_dir = start.get("run_dir", Path(f"runs/{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"))
    device = torch.device("cpu" if args.device == "auto" else args.device)
    torch.set_num_threads(1)  # a second thread does not make networks this small faster; leave it to a second seed
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    envs = make_envs(args, run_dir)
    normalizer = VecNormalize(envs, args.gamma)
    agent = Agent(envs, args.shared_network).to(device)
    optimizer = optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)  # Core 3: not 1e-8
    torch._dynamo.config.trace_autograd_ops = True  # the compiler shall see torch.autograd.grad
    compute = torch.compile(compute_gradient) if args.compile else compute_gradient
    run = Run(args, run_dir, start, agent=agent, optimizer=optimizer, normalizer=normalizer)
    # The rollout of one iteration lies in NumPy arrays, which are filled faster than tensors, step by step.
    obs = np.zeros((args.num_steps, args.num_envs, *envs.single_observation_space.shape), dtype=np.float32)
    actions = np.zeros((args.num_steps, args.num_envs, *envs.single_action_space.shape), dtype=np.float32)
    rewards, dones = np.zeros((2, args.num_steps, args.num_envs), dtype=np.float32)
    to_tensor = partial(torch.as_tensor, device=device)  # makes no copy on the CPU
    episode_returns, episode_lengths = np.zeros(args.num_envs), np.zeros(args.num_envs, dtype=np.int64)
    seeds = np.random.SeedSequence([args.seed, start["iteration"]]).generate_state(args.num_envs)  # new after a resume
    next_obs = normalizer.observe(envs.reset(seed=seeds.tolist())[0])  # (num_envs, obs_size)
    next_done = np.zeros(args.num_envs, dtype=bool)
    for iteration in range(start["iteration"], num_iterations):
        remaining = 1 - iteration / num_iterations  # 1 in the first iteration
        lr = args.learning_rate * (remaining if args.anneal_lr else 1)  # Core 4: linear, from the full rate to 0
        clip_coef = args.clip_coef * (remaining if args.anneal_clip_coef else 1)  # Aux 1: the same for the clip range
        optimizer.param_groups[0]["lr"] = lr
        # Roll out num_steps steps of every environment; next_obs and next_done carry over to the next iteration.
        with torch.no_grad():
            for step in range(args.num_steps):
                obs[step], dones[step] = next_obs, next_done
                actions[step] = agent.get_action(to_tensor(obs[step])).cpu().numpy()
                # Continuous 5: the environment gets the clipped action, the learner keeps the one that was sampled
                action = actions[step].clip(envs.single_action_space.low, envs.single_action_space.high)
                next_obs, reward, terminated, truncated, infos = envs.step(action)
                rewards[step] = normalizer.scale(reward, next_done := terminated | truncated)
                if args.bootstrap_truncated and (cut := truncated & ~terminated).any():
                    # The episode was cut, not over: what would have followed is worth V(final observation).
                    final_obs = to_tensor(normalizer.normalize(np.stack(infos["final_obs"][cut])), dtype=torch.float32)
                    rewards[step, cut] += args.gamma * agent.get_value(final_obs).cpu().numpy()
                next_obs = normalizer.observe(next_obs)

                run.global_step += args.num_envs
                episode_returns += reward
                episode_lengths += 1
                for i in np.flatnonzero(next_done):
                    run.log_episode(episode_returns[i], episode_lengths[i])
                    episode_returns[i] = episode_lengths[i] = 0
            b_obs, b_actions, b_rewards, b_dones, ended = map(to_tensor, (obs, actions, rewards, dones, next_done))
            _, logprobs, _, values = agent.get_action_and_value(b_obs, b_actions)  # at once: faster than step by step
            next_value = agent.get_value(to_tensor(next_obs, dtype=torch.float32))
        advantages, returns = compute_gae(b_rewards, values, b_dones, next_value, ended, args.gamma, args.gae_lambda)
        batch = Batch(*(x.flatten(0, 1) for x in (b_obs, b_actions, logprobs, values, advantages, returns)))
        stats, explained_variance = [], 1 - (batch.returns - batch.values).var() / batch.returns.var()
        for _ in range(args.update_epochs):  # Core 6: each epoch visits every row once, in a new random order
            for rows in torch.randperm(len(batch.obs), device=device).chunk(args.num_minibatches):
                mb = Batch(*(field[rows] for field in batch))
                mb_stats = compute(agent, mb, clip_coef, args)
                optimizer.step()
                stats.append(mb_stats | {"explained_variance": explained_variance})
            kls = [mb_stats["approx_kl"] for mb_stats in stats[-args.num_minibatches :]]
            if args.target_kl and sum(kls) > args.target_kl * len(kls):  # Aux 3: this epoch moved the policy too far
                break
        run.end_update(iteration, lr, stats)

    envs.close()
    return agent


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # the first is noted, a second one kills
        signal.signal(number, lambda n, _: (Run.signals.append(n), signal.signal(n, signal.SIG_DFL)))
    main(parse_args())
