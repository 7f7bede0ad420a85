# /// script
# requires-python = ">=3.11"
# dependencies = ["envpool==1.2.5", "gymnasium==1.4.0", "moviepy==2.2.1", "numpy==2.4.6", "tensorboard==2.21.0",
#     "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17"]
# ///
"""Proximal Policy Optimization for several discrete actions at once, with invalid ones masked.

    python ppo_multidiscrete.py --env-id Jumanji/Cleaner-v0

In EnvPool's Cleaner three robots clean a maze: a return of 21 after 1,000,000 steps, 5 without masks (three seeds).
Gymnasium's environments with MultiDiscrete actions work too; what info["action_mask"] calls invalid is never taken.
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

import envpool
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
    env_id: str = "Jumanji/Cleaner-v0"  # EnvPool's or Gymnasium's, with several discrete actions at once
    total_timesteps: int = 1_000_000  # environment steps of the whole run, all environments together
    learning_rate: float = 2.5e-4  # step size of Adam at the first update
    num_envs: int = 16  # environments that are stepped side by side
    num_steps: int = 128  # steps of each environment per update
    anneal_lr: bool = True  # let the learning rate fall linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda of generalized advantage estimation
    num_minibatches: int = 4  # minibatches into which each epoch splits the batch
    update_epochs: int = 4  # passes over the batch per update
    norm_adv: bool = True  # normalise the advantages of each minibatch
    clip_coef: float = 0.2  # the ratio is clipped to [1 - clip_coef, 1 + clip_coef]
    anneal_clip_coef: bool = False  # let clip_coef fall linearly to 0 too
    clip_vloss: bool = True  # clip the change of the value prediction by clip_coef as well
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # the global norm of the gradient is clipped to this
    target_kl: float | None = None  # stop the epochs of an update once their mean approximate KL exceeds this
    action_mask: bool = True  # never take an action that the environment calls invalid
    seed: int = 1  # seed of everything random
    torch_deterministic: bool = True  # use deterministic GPU kernels
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto is the CPU: networks this small are faster there
    compile: bool = False  # compile the learner; takes a minute at the start and needs a C++ compiler
    exp_name: str = Path(__file__).stem  # name of the experiment, part of the name of the run folder
    capture_video: bool = False  # record videos of the first environment into the run folder
    save_every: int = 100  # updates between two checkpoints
    # run folder to go on with; may change: --total-timesteps --device --compile --save-every --capture-video --track
    resume: Path | None = None
    track: bool = False  # log to Weights & Biases too (it reads WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE)


def make_env(env_id: str, idx: int, capture_video: bool, run_dir: Path) -> gym.Env:
    """Make environment number `idx`; number 0 records videos if asked to."""
    if not (capture_video and idx == 0):
        return gym.make(env_id)
    env = gym.make(env_id, render_mode="rgb_array")
    return gym.wrappers.RecordVideo(env, str(run_dir / "videos"), disable_logger=True)


class Cleaner(gym.vector.VectorWrapper):
    """EnvPool's Cleaner the way Gymnasium has it: vector observations, MultiDiscrete actions, the mask in infos."""

    single_observation_space = gym.spaces.Box(0, 1, (601,))  # 3 maps of the tiles, 3 of the robots, and the time
    single_action_space = gym.spaces.MultiDiscrete([4, 4, 4])

    def reset(self, **kwargs):
        return self.flatten(*self.env.reset())

    def step(self, actions):
        obs, reward, terminated, truncated, infos = self.env.step(actions.astype(np.int32))
        obs, infos = self.flatten(obs, infos)
        return obs, reward, terminated, truncated, infos

    def flatten(self, obs: dict, infos: dict) -> tuple[np.ndarray, dict]:
        tiles, robots = np.eye(3)[obs["grid"]].reshape(-1, 300), np.eye(100)[obs["agents_locations"] @ [10, 1]]
        # In some mazes the robots are walled in from the start: whatever they do ends the episode, so all is allowed.
        mask = obs["action_mask"] | ~obs["action_mask"].any(axis=-1, keepdims=True)
        infos |= {"action_mask": mask, "_action_mask": np.ones(self.num_envs, dtype=bool)}
        return np.hstack([tiles, robots.reshape(-1, 300), obs["step_count"][:, None] / 100]), infos

    def render(self):
        return self.num_envs * tuple(self.env.render())  # only the first one is filmed


def make_envs(args: Args, seeds: list[int], run_dir: Path) -> gym.vector.VectorEnv:
    """Make the vector environment, or end with one line that says why this script cannot train on it."""
    if args.env_id == "Jumanji/Cleaner-v0":
        envs = Cleaner(envpool.make_gymnasium(args.env_id, num_envs=args.num_envs, seed=seeds, render_mode="rgb_array"))
        if args.capture_video:
            envs = gym.wrappers.vector.RecordVideo(envs, str(run_dir / "videos"), record_first_only=True)
        return envs
    try:
        # Core 1: one policy steps all environments. NEXT_STEP: each reset has a step of its own, as in EnvPool.
        thunks = [partial(make_env, args.env_id, i, args.capture_video, run_dir) for i in range(args.num_envs)]
        envs = gym.vector.SyncVectorEnv(thunks, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)
    except (gym.error.Error, ImportError, ValueError) as error:
        names = ", ".join(difflib.get_close_matches(args.env_id, ["Jumanji/Cleaner-v0", *gym.registry])) or "none"
        fail(f"{args.env_id}: {error} (closest names: {names})")
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
        fail(f"{args.env_id} observes {obs_space}, not a vector: use gym.wrappers.FlattenObservation in make_env")
    if not isinstance(action_space, gym.spaces.MultiDiscrete) or len(action_space.shape) != 1:
        fail(f"{args.env_id} has {action_space}, no flat MultiDiscrete actions: see ppo.py, ppo_continuous_action.py")
    return envs


def valid_actions(args: Args, infos: dict, done: np.ndarray, nvec: np.ndarray) -> np.ndarray:
    """Return which actions are valid, (num_envs, nvec.sum()) bool: as infos["action_mask"] says, else all of them."""
    valid = np.ones((args.num_envs, nvec.sum()), dtype=bool)
    if args.action_mask and "action_mask" in infos:
        masks = infos["action_mask"].reshape(args.num_envs, -1).astype(bool)
        if masks.shape != valid.shape:
            fail(f"the action masks of {args.env_id} have the shape {masks.shape[1:]}, not {valid.shape[1:]}")
        valid = masks | ~(infos["_action_mask"] & ~done)[:, None]  # after an episode's end any action will do
        if not np.logical_or.reduceat(valid, np.cumsum(nvec) - nvec, axis=1).all():
            fail(f"{args.env_id} masks every choice of an action component: it should end the episode there instead")
    return valid


def layer_init(layer: nn.Module, std: float = 2**0.5, bias: float = 0.0) -> nn.Module:
    """Core 2: orthogonal weights with gain `std`, constant bias (baselines a2c/utils.py#L58)."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias)
    return layer


class Agent(nn.Module):
    """Policy and value networks (baselines common/policies.py)."""

    def __init__(self, envs: gym.vector.VectorEnv):
        super().__init__()
        obs_size, self.nvec = envs.single_observation_space.shape[0], envs.single_action_space.nvec.tolist()

        def mlp(outputs: int, std: float) -> nn.Module:
            body = layer_init(nn.Linear(obs_size, 64)), nn.Tanh(), layer_init(nn.Linear(64, 64)), nn.Tanh()
            return nn.Sequential(*body, layer_init(nn.Linear(64, outputs), std=std))

        # Core 13: two networks. The small gain of the policy's head makes all actions about equally likely at first.
        self.actor, self.critic = mlp(sum(self.nvec), std=0.01), mlp(1, std=1.0)

    def get_value(self, x: Tensor) -> Tensor:
        """Return the value of each observation: (batch, obs_size) -> (batch,)."""
        return self.critic(x).squeeze(-1)

    def get_action_and_value(self, x: Tensor, action: Tensor | None = None, action_mask: Tensor | None = None):
        """Return action (batch, components), log-probability, entropy, value (batch,); sample where none is given."""
        logits = self.actor(x)
        if action_mask is not None:  # Aux 4: the most negative number gives a probability and a gradient of exactly 0
            logits = torch.where(action_mask, logits, torch.finfo(logits.dtype).min)
        # MultiDiscrete 1: components are independent, so log-probabilities and entropies add up
        probs = [Categorical(logits=part, validate_args=False) for part in logits.split(self.nvec, dim=-1)]
        action = torch.stack([p.sample() for p in probs], dim=-1) if action is None else action
        logprob = sum(p.log_prob(a) for p, a in zip(probs, action.unbind(-1), strict=True))
        return action, logprob, sum(p.entropy() for p in probs), self.get_value(x)


class Batch(NamedTuple):
    """What the learner sees of each row; a minibatch is a Batch of some of the rows."""

    obs: Tensor  # (rows, obs_size) float32
    actions: Tensor  # (rows, components) int64
    logprobs: Tensor  # (rows,) log-probability of the action under the policy that took it
    values: Tensor  # (rows,) value predicted during the rollout
    advantages: Tensor  # (rows,)
    returns: Tensor  # (rows,) target of the value function
    action_masks: Tensor  # (rows, sum of nvec) bool, the actions that were valid


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
    _, logprobs, entropy, values = agent.get_action_and_value(mb.obs, mb.actions, mb.action_masks)
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
    # Every environment gets a seed of its own, and another one after a resume.
    seeds = (np.random.SeedSequence([args.seed, start["iteration"]]).generate_state(args.num_envs) >> 1).tolist()
    envs = make_envs(args, seeds, run_dir)
    agent = Agent(envs).to(device)
    optimizer = optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)  # Core 3: not 1e-8
    torch._dynamo.config.trace_autograd_ops = True  # the compiler shall see torch.autograd.grad
    compute = torch.compile(compute_gradient) if args.compile else compute_gradient
    # The rollout of one iteration
    obs = torch.zeros((args.num_steps, args.num_envs, *envs.single_observation_space.shape), device=device)
    action_space, nvec = envs.single_action_space, envs.single_action_space.nvec
    actions = torch.zeros((args.num_steps, args.num_envs, len(nvec)), dtype=torch.int64, device=device)
    masks = torch.zeros((args.num_steps, args.num_envs, nvec.sum()), dtype=torch.bool, device=device)
    logprobs, rewards, dones, values = torch.zeros((4, args.num_steps, args.num_envs), device=device)
    episode_returns, episode_lengths = np.zeros(args.num_envs), np.zeros(args.num_envs, dtype=np.int64)
    next_obs, infos = envs.reset(seed=seeds)
    next_obs = torch.as_tensor(next_obs, dtype=torch.float32, device=device)  # (num_envs, obs_size)
    next_done = torch.zeros(args.num_envs, device=device)
    next_mask = torch.as_tensor(valid_actions(args, infos, np.zeros(args.num_envs, dtype=bool), nvec), device=device)
    run = Run(args, run_dir, start, agent=agent, optimizer=optimizer)  # made so late that a bad mask leaves no folder
    for iteration in range(start["iteration"], num_iterations):
        remaining = 1 - iteration / num_iterations  # 1 in the first iteration
        lr = args.learning_rate * (remaining if args.anneal_lr else 1)  # Core 4: linear, from the full rate to 0
        clip_coef = args.clip_coef * (remaining if args.anneal_clip_coef else 1)  # Aux 1: the same for the clip range
        optimizer.param_groups[0]["lr"] = lr
        # Roll out num_steps steps of every environment; next_obs and next_done carry over to the next iteration.
        with torch.no_grad():
            for step in range(args.num_steps):
                obs[step], dones[step], masks[step] = next_obs, next_done, next_mask
                actions[step], logprobs[step], _, values[step] = agent.get_action_and_value(next_obs, None, next_mask)
                action = action_space.start + actions[step].cpu().numpy()
                next_obs, reward, terminated, truncated, infos = envs.step(action)
                done = terminated | truncated
                rewards[step] = torch.as_tensor(reward, dtype=torch.float32)
                next_obs = torch.as_tensor(next_obs, dtype=torch.float32, device=device)
                next_done = torch.as_tensor(done, dtype=torch.float32, device=device)
                next_mask = torch.as_tensor(valid_actions(args, infos, done, nvec), device=device)

                run.global_step += args.num_envs
                episode_returns += reward
                episode_lengths += 1
                for i in np.flatnonzero(done):
                    run.log_episode(episode_returns[i], episode_lengths[i])
                    episode_returns[i], episode_lengths[i] = 0, -1  # the reset counts as a step, but not of an episode

            next_value = agent.get_value(next_obs)
        advantages, returns = compute_gae(rewards, values, dones, next_value, next_done, args.gamma, args.gae_lambda)
        # The step after an episode's end is spent on the reset: it ignores the action and gives no reward. Such a row,
        # dones == 1, is no experience. No advantage crosses it, and here it is left out of the batch.
        valid = dones.flatten() == 0
        batch = Batch(*(x.flatten(0, 1)[valid] for x in (obs, actions, logprobs, values, advantages, returns, masks)))
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
