"""Break the scripts in every way that the table below lists, one at a time, and see whether a test notices.

    python tests/long/mutants.py
    python tests/long/mutants.py --only "ppo_atari: Atari 3"

A mutant is a script with one text replaced, so that a detail of PPO is missing or bent. In a copy of the repository
the replacement is made, a file of tests that should notice is run, and the replacement undone. Prints a line for each,
and at the end how many survived; exits with 1 if one did. A test that hangs has noticed. Takes hours on one core.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Args:
    only: str = ""  # only mutants whose script and detail contain this
    time_limit: float = 600.0  # seconds after which a mutant's tests are said to hang


class Mutant(NamedTuple):
    script: str  # without .py
    breaks: str  # the detail that is broken
    old: str  # occurs once in the script
    new: str  # is put in its place
    tests: str  # the file that should notice

    def __str__(self) -> str:
        return f"{self.script}: {self.breaks}"


VECTORS = "ppo ppo_continuous_action ppo_multidiscrete"
GYMNASIUM_ATARI = "ppo_atari ppo_atari_lstm"
ATARI = GYMNASIUM_ATARI + " ppo_atari_envpool"
CATEGORICAL = ATARI + " ppo ppo_multidiscrete"
ALL = VECTORS + " " + ATARI
ROWS = VECTORS + " ppo_atari ppo_atari_envpool"  # all but the recurrent one
GYMNASIUM = VECTORS + " " + GYMNASIUM_ATARI

RANDPERM = "torch.randperm(batch_size, device=device)"
GUMBEL = "-torch.empty_like(self.logits).exponential_().log()"
MIDDLE = (
    "layer_init(nn.Conv2d(32, 64, kernel_size=4, stride=2)),\n"
    "            nn.ReLU(inplace=True),\n"
    "            layer_init(nn.Conv2d(64, 64,"
)
LAST = "layer_init(nn.Linear(64 * 7 * 7, 512)),\n            nn.ReLU(inplace=True),"
TANH = "nn.Tanh(),\n                layer_init(nn.Linear(64, 64)),\n                nn.Tanh(),"
OBSERVE = 'self.count("obs", obs.astype(np.float64))'

# fmt: off
# Test file, scripts, and what is broken in each of them: detail, text, replacement
CHANGES = [
    ("test_gae.py", ALL, [
        ("Core 5: the chain goes on past an end", "gae_lambda * continues[t] * advantage", "gae_lambda * advantage"),
        ("Core 5: values past an end", "gamma * continues * next_values", "gamma * next_values"),
        ("Core 5: flags of the step before", "continues = 1 - dones ", "continues = 1 - dones.roll(1, 0) "),
        ("Core 5: nothing after the last step", "values[1:], next_value[None]]", "values[1:], 0 * next_value[None]]"),
        ("Core 5: targets of the next step", "advantages, advantages + values", "advantages, advantages + next_values"),
        ("the chain goes on past a time limit", "dones[step] = terminated | truncated", "dones[step] = terminated"),
    ]),
    ("test_gae.py", GYMNASIUM, [
        ("bootstrapping from the reset", 'infos["final_obs"][cut]', "next_obs[cut]"),
        ("bootstrapping at true ends", "cut = truncated & ~terminated", "cut = truncated"),
        ("bootstrapping undiscounted", "+= args.gamma * final_value", "+= final_value"),
    ]),
    ("test_loss.py", ROWS, [
        ("log-ratio upside down", "policy.log_prob(mb.actions) - mb.logprobs",
         "mb.logprobs - policy.log_prob(mb.actions)"),
        ("Core 7: sample standard deviation", "advantages.std(correction=0)", "advantages.std()"),
        ("Core 7: the mean stays", "(advantages - advantages.mean()) /", "advantages /"),
        ("Core 8: max for min", "-torch.min(advantages * ratio", "-torch.max(advantages * ratio"),
        ("Core 8: no clipping", "advantages * clipped_ratio).mean()", "advantages * ratio).mean()"),
        ("Core 8: clipped from above only", "clamp(1 - clip_coef, 1 + clip_coef)", "clamp(max=1 + clip_coef)"),
        ("Core 9: no clipping", "if args.clip_vloss:", "if not args.clip_vloss:"),
        ("Core 9: min for max", "torch.max(value_losses", "torch.min(value_losses"),
        ("Core 9: around the return", "mb.values + (values - mb.values)", "mb.returns + (values - mb.returns)"),
        ("the half of the squared error", "0.5 * value_losses", "value_losses"),
        ("Core 10: entropy's sign", "policy_loss - args.ent_coef", "policy_loss + args.ent_coef"),
        ("Core 10: vf_coef", "args.vf_coef * value_loss", "value_loss"),
        ("Core 12: sign of old_approx_kl", '"old_approx_kl": -logratio', '"old_approx_kl": logratio'),
        ("Core 12: approx_kl of another direction", "(ratio - 1 - logratio)", "(logratio.exp() * logratio)"),
    ]),
    ("test_lstm.py", "ppo_atari_lstm", [
        ("Core 7: sample standard deviation", "advantages.std(correction=0)", "advantages.std()"),
        ("Core 8: max for min", "-torch.min(advantages * ratio", "-torch.max(advantages * ratio"),
        ("Core 9: no clipping", "if args.clip_vloss:", "if not args.clip_vloss:"),
        ("Core 10: entropy's sign", "policy_loss - args.ent_coef", "policy_loss + args.ent_coef"),
        ("LSTM 1: gain sqrt(2)", "(self.lstm.weight_hh, 1.0)", "(self.lstm.weight_hh, 2**0.5)"),
        ("LSTM 1: PyTorch's weights", "nn.init.orthogonal_(self.lstm.weight_ih, 1.0)", "pass"),
        ("LSTM 1: two biases that learn", "bias_hh.requires_grad = False", "bias_hh.requires_grad = True"),
        ("LSTM 2: a first state of ones", "torch.zeros((num_envs, 256)", "torch.ones((num_envs, 256)"),
        ("LSTM 3: the state outlives an episode", "state * (1 - starts_t[:, None])", "state"),
        ("LSTM 3: no ends in training", "mb.state, mb.starts", "mb.state, 0 * mb.starts"),
        ("LSTM 3: no ends in the rollout", "next_start = to_tensor(dones[step])",
         "next_start = to_tensor(0 * dones[step])"),
        ("LSTM 4: minibatches environment by environment", "field[:, ids].flatten(0, 1)",
         "field[:, ids].swapaxes(0, 1).flatten(0, 1)"),
        ("LSTM 4: environments in their order", "torch.randperm(args.num_envs,", "torch.arange(args.num_envs,"),
        ("LSTM 5: training begins at zero", "state=initial_state,", "state=0 * initial_state,"),
        ("LSTM 5: training begins at the end", "state=initial_state,", "state=state,"),
        ("hidden and cell state swapped", "torch.cat([hidden, cell], dim=1)", "torch.cat([cell, hidden], dim=1)"),
        ("the cell state is the output", "outputs.append(hidden)", "outputs.append(cell)"),
        ("the last value without a state", "to_tensor(next_obs), state,", "to_tensor(next_obs), 0 * state,"),
        ("a time limit's value without a state", "final_obs, state[cut]", "final_obs, 0 * state[cut]"),
        ("a rollout that forgets", "initial_state = state\n", "state = initial_state = 0 * state\n"),
    ]),
    ("test_learner.py", ALL, [
        ("Core 3: PyTorch's epsilon", '1e-5 / (1 - beta2 ** group["steps"]) ** 0.5', "1e-5"),
        ("Core 3: epsilon 1e-8", "1e-5 / (1 - beta2", "1e-8 / (1 - beta2"),
        ("Core 3: steps of the first group alone", "for group in self.param_groups:",
         "for group in self.param_groups[:1]:"),
        ("Core 4: annealed from the first update on", "remaining = 1 - global_step",
         "remaining = 1 - (global_step + batch_size)"),
        ("Core 4: not annealed", "args.learning_rate * remaining if", "args.learning_rate if"),
        ("Aux 1: annealed unasked", "remaining if args.anneal_clip_coef", "remaining if args.anneal_lr"),
        ("Aux 3: never stops", "> args.target_kl", "> 1e9"),
        ("Aux 3: looks at one minibatch", "stats[-args.num_minibatches :]", "stats[-1:]"),
        ("Aux 3: looks at all epochs", "stats[-args.num_minibatches :]", "stats"),
        ("Core 11: no clipping of the gradient", "parameters(), args.max_grad_norm", 'parameters(), float("inf")'),
        ("gradients add up", "optimizer.zero_grad()", "pass"),
        ("explained variance of the values", "(returns - values).var()", "values.var()"),
        ("Core 2: gain 1 instead of sqrt(2)", "gain: float = 2**0.5", "gain: float = 1.0"),
        ("Core 2: gain 1 for the policy's head", "gain=0.01", "gain=1.0"),
    ]),
    ("test_learner.py", ROWS, [
        ("Core 6: rows in their order", RANDPERM, "torch.arange(batch_size, device=device)"),
        ("Core 6: one order for all epochs", RANDPERM,
         "torch.randperm(batch_size, generator=torch.Generator().manual_seed(global_step))"),
        ("Core 6: rows drawn with replacement", RANDPERM, "torch.randint(batch_size, (batch_size,))"),
        ("the last value is of the last row", "next_value = agent(to_tensor(next_obs)",
         "next_value = agent(to_tensor(obs[-1])"),
    ]),
    ("test_learner.py", VECTORS, [
        ("Core 13: one body for policy and value", "actor_body if shared_network else", "actor_body or"),
    ]),
    ("test_plain.py", "ppo ppo_continuous_action ppo_multidiscrete", [
        ("Core 7: over the batch", "advantages=advantages.flatten(),",
         "advantages=(advantages.flatten() - advantages.mean()) / (2 * advantages.std()),"),
        ("half as many epochs", "range(args.update_epochs)", "range(args.update_epochs // 2)"),
    ]),
    ("test_defaults.py", ALL, [
        ("bootstrapped by default", "bootstrap_truncated: bool = False", "bootstrap_truncated: bool = True"),
        ("gae_lambda 0.9", "gae_lambda: float = 0.95", "gae_lambda: float = 0.9"),
        ("vf_coef 1", "vf_coef: float = 0.5", "vf_coef: float = 1.0"),
        ("max_grad_norm 1", "max_grad_norm: float = 0.5", "max_grad_norm: float = 1.0"),
        ("learning rate not annealed", "anneal_lr: bool = True", "anneal_lr: bool = False"),
    ]),
    ("test_defaults.py", ATARI, [
        ("clip_coef 0.2", "clip_coef: float = 0.1", "clip_coef: float = 0.2"),
        ("16 environments", "num_envs: int = 8", "num_envs: int = 16"),
        ("Atari 8: half the filters", MIDDLE, MIDDLE.replace("32, 64,", "32, 32,").replace("64, 64,", "32, 64,")),
        ("Atari 8: a missing ReLU", LAST, LAST.partition("\n")[0]),
    ]),
    ("test_defaults.py", VECTORS, [("ReLU for tanh", TANH, TANH.replace("Tanh", "ReLU"))]),
    ("test_official.py", ATARI, [("Atari 9: images from 0 to 255", "x / 255.0", "x / 1.0")]),
    ("test_reproducible.py", ALL, [
        ("a seed that is not looked at", "torch.manual_seed(seed)", "torch.manual_seed(0)"),
    ]),
    ("test_checkpoint.py", ALL, [
        ("seeds of a resumed run", "SeedSequence([args.seed, start])", "SeedSequence([args.seed])"),
        ("random numbers of a resumed run", "if start > 0:", "if False:"),
    ]),
    ("test_sampling.py", CATEGORICAL, [
        ("sampling: logits doubled", "(self.logits + gumbel).argmax", "(2 * self.logits + gumbel).argmax"),
        ("sampling: Gumbel's sign", GUMBEL, GUMBEL[1:]),
        ("sampling: uniform noise", GUMBEL, "torch.rand_like(self.logits)"),
        ("mode: the unlikeliest", "return self.logits.argmax", "return self.logits.argmin"),
        ("entropy without its minus", "return -(self.logprobs.exp()", "return (self.logprobs.exp()"),
    ]),
    ("test_sampling.py", "ppo_continuous_action", [
        ("Continuous 1: the variance for the deviation", "self.std * torch.randn_like",
         "self.std**2 * torch.randn_like"),
        ("sampling: uniform noise", "torch.randn_like(self.mean)", "torch.rand_like(self.mean)"),
        ("sampling: one noise for all components", "torch.randn_like(self.mean)", "torch.randn_like(self.mean[:, :1])"),
        ("Continuous 3: the mean of the log-probabilities", "(2 * math.pi)).sum(dim=-1)",
         "(2 * math.pi)).mean(dim=-1)"),
        ("Continuous 3: the mean of the entropies", "self.std.log()).sum(dim=-1)", "self.std.log()).mean(dim=-1)"),
    ]),
    ("test_sampling.py", "ppo_multidiscrete", [
        ("Aux 4: the mask upside down", "torch.where(mask, logits", "torch.where(~mask, logits"),
        ("Aux 4: invalid actions are only unlikely", "torch.finfo(logits.dtype).min", "-10.0"),
        ("MultiDiscrete 1: the first component's entropy", "sum(component.entropy() for component in self.components)",
         "self.components[0].entropy()"),
    ]),
    ("test_multidiscrete.py", "ppo_multidiscrete", [
        ("Cleaner: the reset is a row", "obs[name][ended] = first_obs[name]", "pass"),
        ("Cleaner: returns of all episodes so far", "self.episode_returns[done] = 0", "pass"),
        ("Cleaner: rows and columns swapped", "@ [10, 1]", "@ [1, 10]"),
        ("Aux 4: masks that are not asked for", "if not self.action_mask or ", "if "),
        ("Aux 4: no mask in training", "agent(mb.obs, mb.masks)", "agent(mb.obs, mb.masks | True)"),
        ("Aux 4: the next row's mask in training", "torch.as_tensor(masks, device=device)",
         "torch.as_tensor(np.roll(masks, -1, axis=0), device=device)"),
    ]),
    ("test_environments.py", "ppo ppo_continuous_action ppo_atari ppo_atari_lstm", [
        ("Core 1: a step of its own for the reset", "AutoresetMode.SAME_STEP,", "AutoresetMode.NEXT_STEP,"),
    ]),
    ("test_environments.py", ALL, [
        ("the same seed in all environments", "envs.reset(seed=seeds)",
         "envs.reset(seed=[7] * len(seeds))"),
    ]),
    ("test_environments.py", GYMNASIUM_ATARI, [
        ("Atari 1: up to 15 no-ops", "noop_max=30", "noop_max=15"),
        ("Atari 2: 3 frames", "frame_skip=4", "frame_skip=3"),
        ("Atari 3: a lost life is no end", "if 0 < self.lives < lives_before:", "if False:"),
        ("Atari 3: 0 lives are an end", "0 < self.lives < lives_before", "self.lives < lives_before"),
        ("Atari 3: a lost life resets the game", "if self.game_over:", "if True:"),
        ("Atari 3: no no-op after a lost life", "self.env.step(0)", "self.env.step(1)"),
        ("Atari 3: no reset at a time limit", "self.game_over = terminated or truncated",
         "self.game_over = terminated"),
        ("Atari 3: lives of before the reset",
         "        self.lives = self.unwrapped.ale.lives()\n        return obs, info", "        return obs, info"),
        ("Atari 4: no FIRE", "env = FireResetEnv(env)", "pass"),
        ("Atari 4: no action 2", "for action in (1, 2):", "for action in (1,):"),
        ("Atari 4: no reset at a time limit", "info |= step_info\n            if terminated or truncated:",
         "info |= step_info\n            if terminated:"),
        ("Atari 6: rewards as they are", "TransformReward(env, np.sign)", "TransformReward(env, float)"),
        ("returns of single lives", "env = gym.wrappers.RecordEpisodeStatistics(",
         "env = EpisodicLifeEnv(env)\n    env = gym.wrappers.RecordEpisodeStatistics("),
        ("returns of clipped rewards", "env = gym.wrappers.RecordEpisodeStatistics(",
         "env = gym.wrappers.TransformReward(env, np.sign)\n    env = gym.wrappers.RecordEpisodeStatistics("),
    ]),
    ("test_environments.py", "ppo_atari", [
        ("Atari 7: a stack that starts black", "FrameStackObservation(env, 4)",
         'FrameStackObservation(env, 4, padding_type="zero")'),
    ]),
    ("test_envpool.py", "ppo_atari_envpool", [
        ("Atari 1: up to 15 no-ops", "noop_max=30", "noop_max=15"),
        ("Atari 2: 3 frames", "frame_skip=4", "frame_skip=3"),
        ("sticky actions", "repeat_action_probability=0.0", "repeat_action_probability=0.25"),
        ("Atari 3: a lost life is no end", "episodic_life=True", "episodic_life=False"),
        ("Atari 4: no FIRE", "use_fire_reset=True", "use_fire_reset=False"),
        ("Atari 6: rewards as they are", "reward_clip=True", "reward_clip=False"),
        ("Atari 7: one frame more", "stack_num=4", "stack_num=5"),
        ("returns of clipped rewards", '+= infos["reward"]', "+= rewards"),
        ("returns of all games so far", "self.game_returns[game_over] = 0", "pass"),
        ("a lost life is the end of a game", '(infos["terminated"] == 1) | truncated', "terminated | truncated"),
        ("the reset is a row", "if len(ended) > 0:", "if False:"),
        ("the reset's stack as the final observation", "obs = obs.copy()", "pass"),
        ("bootstrapping from the reset", 'infos["final_obs"][cut]', "next_obs[cut]"),
    ]),
    ("test_environments.py", "ppo_continuous_action", [
        ("Continuous 5: actions taken unclipped", "env = gym.wrappers.ClipAction(env)", "pass"),
    ]),
    ("test_normalize.py", "ppo_continuous_action", [
        ("Continuous 6: clipped before they are counted", OBSERVE, OBSERVE.replace("64))", "64).clip(-10, 10))")),
        ("Continuous 6: by what was seen before", OBSERVE + "\n        return self.normalize(obs)",
         f"normalised = self.normalize(obs)\n        {OBSERVE}\n        return normalised"),
        ("Continuous 6: the first environment's statistics", '"obs", obs.astype', '"obs", obs[:1].astype'),
        ("Continuous 6: final observations as they are", 'self.normalize(infos["final_obs"][i])',
         'infos["final_obs"][i]'),
        ("Continuous 7: clipped at 5", "obs.clip(-10, 10)", "obs.clip(-5, 5)"),
        ("Continuous 7: not clipped", "obs.clip(-10, 10)", "obs"),
        ("Continuous 8: the return is never reset", "self.discounted_returns[done] = 0", "pass"),
        ("Continuous 8: the first environment's return", '"return", self.discounted_returns)',
         '"return", self.discounted_returns[:1])'),
        ("Continuous 8: the rewards' deviation", '"return", self.discounted_returns)', '"return", rewards)'),
        ("Continuous 8: rewards centred", "rewards = rewards / np",
         'rewards = (rewards - self.moments["return"][0]) / np'),
        ("Continuous 8: returns undiscounted", "self.gamma = gamma", "self.gamma = 1.0"),
        ("Continuous 8: a reset goes on with the return", "self.discounted_returns[:] = 0", "pass"),
        ("Continuous 9: not clipped", "return rewards.clip(-10, 10)", "return rewards"),
        ("moments without the distance of the means", " + delta**2 * (size * len(x) / total)", ""),
        ("moments in float32", "obs.astype(np.float64)", "obs.astype(np.float32)"),
        ("statistics that never freeze", "if not self.training:", "if False:"),
        ("statistics that are not saved", ", normalizer=envs)", ")"),
    ]),
    ("test_learner.py", "ppo_continuous_action", [
        ("Continuous 2: an initial deviation of 0.6", "torch.zeros(action_size)", "torch.zeros(action_size) - 0.5"),
    ]),
    ("test_multigpu.py", "ppo_atari_multigpu", [
        ("Aux 2: gradients stay one's own", "loss_fn(learner, batch", "loss_fn(agent, batch"),
        ("Aux 2: each process stops by its own KL", "dist.all_reduce(kl)", "kl *= world_size"),
        ("Aux 2: the sum of the KLs", "kl / world_size >", "kl >"),
        ("the environments of the first process in all", "seeds[rank * num_envs :", "seeds[0 * num_envs :"),
        ("the actions of the first process in all", "if start > 0 or rank > 0:", "if start > 0:"),
        ("moments of one's own after a restart", "optimizer.load_state_dict(begin[1])", "pass"),
        ("the first process stops alone", "dist.broadcast(stop, 0)", "pass"),
    ]),
    ("test_evaluate.py", "evaluate", [
        ("greedy and sampled swapped", "if args.deterministic else", "if not args.deterministic else"),
        ("LSTM 3: never zeroed", "starts = torch.as_tensor(terminated | truncated).float()", "starts = torch.zeros(1)"),
        ("LSTM 3: always zeroed", "starts = torch.as_tensor(terminated | truncated).float()", "starts = torch.ones(1)"),
        ("the state stays the first", "policy, _, state = agent", "policy, _, _ = agent"),
        ("Aux 4: no mask", 'torch.as_tensor(infos["action_mask"])', 'torch.as_tensor(infos["action_mask"] | True)'),
        ("statistics that go on", "envs.training = False", "envs.training = True"),
        ("statistics that begin anew", 'envs.load_state_dict(checkpoint["normalizer"])', "pass"),
        ("new weights", 'agent.load_state_dict(checkpoint["agent"])', "pass"),
        ("the default game", 'script.Args(**checkpoint["args"])', "script.Args()"),
        ("the network's arguments dropped", "{name: getattr(args, name) for name in names}", "{}"),
        ("a game's end is not seen", '(infos, infos.get("final_info", {}))', "(infos,)"),
        ("lengths for returns", 'float(info["episode"]["r"][0])', 'float(info["episode"]["l"][0])'),
        ("a seed that is not looked at", "script.set_seed(args.seed)", "pass"),
        ("sample standard deviation", "np.std(returns)", "np.std(returns, ddof=1)"),
    ]),
]
# fmt: on

MUTANTS = [
    Mutant(script, breaks, old, new, tests)
    for tests, scripts, changes in CHANGES
    for script in scripts.split()
    for breaks, old, new in changes
]


def run_tests(root: Path, mutant: Mutant, time_limit: float) -> int | None:
    """Return pytest's exit code, None if the time was up."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    command += ["--basetemp", str(root.parent / "tmp"), f"tests/{mutant.tests}"]
    # Leave out what is tried on other scripts, by their names. A part of the name cannot be left out.
    others = {script for _, scripts, _ in CHANGES for script in scripts.split()} - {"evaluate"}
    if mutant.script in ALL.split():
        others = sorted(other for other in others if other not in mutant.script)
        command += ["-k", f"not ({' or '.join(others)})"]
    # Bytecode is looked up by size and second of the change, which two mutants may share.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(time_limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            process.wait()


def main(args: Args) -> int:
    """Print a line for each mutant; return how many no test noticed."""
    survived = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "wandb")
        root = shutil.copytree(ROOT, Path(folder) / "repository", ignore=ignored)
        for mutant in [mutant for mutant in MUTANTS if args.only in str(mutant)]:
            path = root / f"{mutant.script}.py"
            source = path.read_text(encoding="utf-8")
            path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
            code = run_tests(root, mutant, args.time_limit)
            path.write_text(source, encoding="utf-8")
            verdict = {1: "caught", None: "hangs"}.get(code, f"SURVIVED ({code})")
            survived += verdict.startswith("SURVIVED")
            print(f"{verdict:12} {mutant} ({mutant.tests})", flush=True)
    print(f"{survived} survived")
    return survived


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)) > 0)
