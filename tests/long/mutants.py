"""Break the scripts in every way that the table below lists, one at a time, and see whether a test notices.

    python tests/long/mutants.py

A mutant is a script with one text replaced. Each worker has a copy of the repository; there it makes the replacement,
runs the tests that should notice, and undoes it. Prints a line per mutant and at the end the survivors, which no test
noticed; exits with 1 if there are any. A test that hangs has noticed. Takes about a quarter of an hour on two cores.
"""

import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import tyro

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Args:
    only: str = ""  # run the mutants whose script, detail or text contains this
    quick: bool = False  # only those whose tests take no more than a second or two
    sample: int | None = None  # run so many of them, chosen at random
    seed: int = 1  # seed of the choice
    jobs: int = 2  # processes side by side
    time_limit: float = 180.0  # seconds after which a mutant's tests are said to hang
    baseline: bool = True  # first see whether the tests pass without any change
    list: bool = False  # print the mutants instead of running them


@dataclass(frozen=True)
class Mutant:
    script: str  # without .py
    old: str  # occurs once in the script
    new: str  # is put in its place
    breaks: str  # the detail that is broken
    tests: tuple[str, ...]  # that should notice

    @property
    def quick(self) -> bool:
        return not any(slow in test for test in self.tests for slow in SLOW)

    def __str__(self) -> str:
        return f"{self.script}: {self.breaks}"


# ---------------------------------------------------------------------------------------------------------------------
# The tests, with the name of the script in place of SCRIPT

# One minibatch
LOSS = "test_loss.py::test_loss_and_statistics_follow_the_formulas[SCRIPT-True-True]"
LSTM_LOSS = "test_lstm.py::test_gradient_of_a_minibatch_is_that_of_the_equations_step_by_step"
GAE = "test_gae.py::test_advantages_are_the_sum_of_the_definition[SCRIPT-0.99-0.95]"
HAND = "test_gae.py::test_worked_by_hand[SCRIPT-truncated-True]"
OFFICIAL_NETWORK = "test_official.py::test_the_network_gives_the_official_probabilities_and_values"

# Short runs of main
LEARNER = "test_learner.py::test_"
PAIRS = LEARNER + "rollout_pairs_each_flag_reward_and_action_with_its_step[SCRIPT]"
BOOTSTRAP = (
    LEARNER
    + "the_segment_is_bootstrapped_from_the_observation_that_the_next_one_starts_with[SCRIPT]"
)
ROWS = LEARNER + "every_epoch_visits_every_row_once[SCRIPT]"
ORDER = LEARNER + "every_epoch_has_an_order_of_its_own[SCRIPT]"
CLIP = LEARNER + "each_step_uses_the_gradient_of_its_minibatch_clipped_by_its_global_norm[SCRIPT]"
EPSILON = LEARNER + "every_step_has_its_own_epsilon[SCRIPT]"
RATE = LEARNER + "learning_rate_falls_linearly_and_clip_coef_stays_by_default[SCRIPT]"
STOP = LEARNER + "target_kl_is_compared_with_the_mean_of_the_epoch_that_just_ran[SCRIPT]"
EXPLAINED = LEARNER + "explained_variance_is_that_of_the_values_of_the_rollout[SCRIPT]"
LAYERS = LEARNER + "layers_start_orthogonal_with_their_gains_and_without_bias"
SEPARATE = LEARNER + "policy_and_value_share_no_weights_by_default[SCRIPT]"
PLAIN_FORM = "test_plain.py::test_training_equals_the_plain_form[SCRIPT]"
SEED = "test_reproducible.py::test_a_seed_fixes_every_weight_and_another_seed_does_not[SCRIPT]"
RESUMED_SEEDS = "test_checkpoint.py::test_the_environments_of_a_resumed_run_get_other_seeds[SCRIPT]"
RESUMED_STEPS = "test_checkpoint.py::test_the_epsilon_of_adam_goes_on_after_a_resume[SCRIPT]"
RESUMED_STATE = "test_checkpoint.py::test_a_resumed_run_starts_with_all_that_was_saved"
DEFAULTS = "test_defaults.py::test_the_defaults_are_the_official_ones[SCRIPT]"
EVALUATION_SEED = "test_defaults.py::test_the_seed_of_an_evaluation_is_none_of_training"
NETWORK = "test_defaults.py::test_the_network_is_the_official_one[SCRIPT]"

# Draws
SOFTMAX = "test_sampling.py::test_sampled_actions_come_as_often_as_the_softmax_says[SCRIPT]"
GREEDY = "test_sampling.py::test_a_greedy_choice_is_the_likeliest_action[SCRIPT]"
NORMAL = "test_sampling.py::test_continuous_actions_are_normal_with_the_policys_mean_and_deviation[get_action]"
GREEDY_MEAN = "test_sampling.py::test_a_greedy_continuous_action_is_the_mean"

# Environments
ENVIRONMENTS = "test_environments.py::test_"
SAME_STEP = ENVIRONMENTS + "gymnasium_environments_reset_in_the_same_step[SCRIPT]"
LIMIT = ENVIRONMENTS + "a_time_limit_is_an_end_unless_it_is_bootstrapped[False-SCRIPT]"
BOOTSTRAPPED_LIMIT = ENVIRONMENTS + "a_time_limit_is_an_end_unless_it_is_bootstrapped[True-SCRIPT]"
OWN_SEEDS = ENVIRONMENTS + "every_environment_has_a_seed_of_its_own[SCRIPT]"
ACTIONS = ENVIRONMENTS + "continuous_actions_are_stored_unclipped_and_taken_clipped"
LOST_LIFE = ENVIRONMENTS + "a_lost_life_ends_the_episode_while_the_game_goes_on[SCRIPT]"
ZERO_LIVES = ENVIRONMENTS + "the_last_life_lost_is_no_end_before_the_game_is_over[SCRIPT]"
GAME_END = ENVIRONMENTS + "the_end_of_the_game_resets_it"
LOST_IN_RESET = ENVIRONMENTS + "a_life_lost_in_the_noop_of_a_reset_is_not_counted_twice[SCRIPT]"
FIRE = ENVIRONMENTS + "fire_reset_presses_fire_then_action_2_and_resets_where_one_ends_the_episode"
FIRE_GAMES = ENVIRONMENTS + "fire_is_pressed_in_the_games_that_know_it[SCRIPT-Breakout-True]"
PREPROCESSING = ENVIRONMENTS + "preprocessing_of_a_scripted_game[SCRIPT]"
NOOPS = ENVIRONMENTS + "a_reset_takes_1_to_30_noops[SCRIPT]"
REPORTS = ENVIRONMENTS + "gymnasium_reports_whole_games_with_true_rewards[SCRIPT-Asterix-250]"

# EnvPool
ENVPOOL = "test_envpool.py::test_"
POOL_LOST_LIFE = ENVPOOL + "a_lost_life_ends_the_episode_while_the_game_goes_on"
POOL_ZERO_LIVES = ENVPOOL + "the_last_life_lost_is_no_end_before_the_game_is_over"
POOL_GAME_END = ENVPOOL + "the_end_of_the_game_resets_it"
POOL_END_IN_RESET = ENVPOOL + "a_game_that_ends_in_the_noop_of_a_reset_starts_anew_and_is_reported"
POOL_FIRE = ENVPOOL + "a_reset_presses_fire_then_action_2_and_resets_where_one_ends_the_episode"
POOL_STACK = ENVPOOL + "the_stack_holds_the_last_four_frames_of_one_episode"
POOL_NOOPS = ENVPOOL + "a_reset_takes_1_to_30_noops"
POOL_BREAKOUT = ENVPOOL + "envpool_plays_the_games_of_ppo_atari[Breakout-450-12-2]"
POOL_FREEWAY = ENVPOOL + "envpool_plays_the_games_of_ppo_atari[Freeway-300-0-0]"
POOL_GAMES = ENVPOOL + "envpool_plays_the_games_of_ppo_atari[MsPacman-700-4-2]"
POOL_REPORTS = (
    ENVPOOL + "whole_games_are_reported_with_true_rewards[Breakout with a time limit-100]"
)

# The LSTM
LSTM = "test_lstm.py::test_"
EQUATIONS = LSTM + "many_steps_in_one_call_follow_the_equations_step_by_step"
LSTM_START = LSTM + "lstm_weights_start_orthogonal_with_gain_one_and_its_biases_at_zero"
FIRST_STATE = LSTM + "the_first_state_is_zero"
TIME_FIRST = LSTM + "a_minibatch_has_all_rows_of_its_environments_time_first"
LSTM_ROLLOUT = LSTM + "the_rollout_follows_the_equations_from_a_state_of_zero"
FINAL_STATE = (
    LSTM
    + "a_time_limit_is_worth_the_value_of_the_final_observation_with_the_state_after_the_last_step"
)
RECOMPUTED = LSTM + "training_recomputes_the_log_probabilities_and_values_of_the_rollout"
PARTITION = LSTM + "every_epoch_partitions_the_environments_in_an_order_of_its_own"
ONE_BIAS = LSTM + "only_one_of_the_two_biases_is_trained"

# Normalisation
NORMALIZE = "test_normalize.py::test_"
EXACT = NORMALIZE + "statistics_are_exact_in_float64"
SEEN = NORMALIZE + "observations_are_normalised_by_all_that_were_seen_including_themselves"
OBS_CLIP = NORMALIZE + "normalised_observations_are_clipped_at_10"
SCALED = NORMALIZE + "rewards_are_scaled_by_the_deviation_of_the_discounted_return"
REWARD_CLIP = NORMALIZE + "scaled_rewards_keep_their_sign_and_are_clipped_at_10"
WRAPPER = NORMALIZE + "the_wrapper_normalises_what_reset_and_step_give"
RETURNS_ANEW = NORMALIZE + "a_reset_begins_the_returns_anew_and_keeps_the_statistics"
FROZEN = NORMALIZE + "without_training_the_statistics_stay_as_they_are_and_are_still_used"

# Several actions and their masks
MULTI = "test_multidiscrete.py::test_"
JOINT = MULTI + "log_probability_and_entropy_are_those_of_the_joint_distribution"
IMPOSSIBLE = MULTI + "an_invalid_action_has_probability_zero_whatever_its_logit"
MULTI_ROWS = MULTI + "every_row_is_a_step_that_was_taken[gymnasium]"
VALID = MULTI + "an_environment_of_gymnasium_gets_valid_actions_only_in_its_own_form"
STORED_MASK = (
    MULTI
    + "the_mask_of_each_row_is_that_of_its_own_observation_and_used_again_in_training[cleaner]"
)
GIVEN_MASK = MULTI + "masks_count_where_one_was_given_and_every_step_says_one"
PLACES = MULTI + "components_keep_their_places_in_an_action_of_any_shape"
CLEANER = MULTI + "cleaner_plays_as_envpool_does_with_every_reset_in_the_step_of_the_end"
CLEANER_REPORTS = (
    MULTI + "episodes_are_reported_with_their_true_length_and_return[cleaner unmasked]"
)

# Several processes
MULTIGPU = "test_multigpu.py::test_"
ALONE = MULTIGPU + "one_process_does_what_ppo_atari_envpool_does_to_the_bit"
SAME_WEIGHTS = MULTIGPU + "processes_end_with_the_same_weights_to_the_last_bit"
MEAN_GRADIENT = MULTIGPU + "processes_step_along_the_mean_of_their_gradients"
MEAN_KL = MULTIGPU + "kl_stop_is_decided_by_the_mean_over_all"
SEEDS_ONCE = MULTIGPU + "no_environment_seed_occurs_twice"
OTHER_ACTIONS = MULTIGPU + "processes_sample_different_actions"
ONE_LOG = MULTIGPU + "one_log_has_the_episodes_and_statistics_of_all"
RESTART = MULTIGPU + "a_killed_process_restarts_all_from_the_last_checkpoint"
FOUR = MULTIGPU + "a_checkpoint_goes_on_with_more_or_fewer_processes_and_a_stop_saves_once[15]"
SAID_ONCE = (
    MULTIGPU
    + "bad_input_is_said_once[arguments0---num-envs 3 must be a multiple of the 2 processes]"
)

ALL_END = MULTIGPU + "where_the_first_process_ends_all_end"
SHOWN = MULTIGPU + "an_exception_of_a_silent_process_is_shown"
SHARE = MULTIGPU + "each_process_needs_whole_minibatches"
BROKEN_GRAPH = "test_compile.py::test_compiled_processes_average_outside_of_the_graph"

# Evaluation
EVALUATE = "test_evaluate.py::test_"
ROLLOUT = EVALUATE + "evaluation_does_what_a_rollout_of_training_does"
LIKELIEST = EVALUATE + "deterministic_evaluation_takes_the_likeliest_action[ppo]"
ONE_SEED = EVALUATE + "an_evaluated_agent_is_the_trained_one_and_one_seed_fixes_its_games[ppo]"
DEVIATION = EVALUATE + "the_mean_and_deviation_are_those_of_the_games_and_another_seed_plays_others"
STATISTICS = EVALUATE + "continuous_actions_are_clipped_and_statistics_frozen"
PAYS = EVALUATE + "actions_are_counted_from_the_start_of_the_space[False-ppo-space0]"
WHOLE = EVALUATE + "a_game_of_exactly_max_steps_is_whole"
EDITED = EVALUATE + "a_copied_renamed_edited_script_trains_resumes_and_evaluates"
NEWEST = EVALUATE + "of_several_runs_the_newest_is_played"

# Parts of the names of those that take longer than a few seconds
SLOW = (
    "test_multigpu.py",
    "has_a_seed_of_its_own[ppo_atari",
    "_games_are_reported_with_true_rewards",
    "_reports_whole_games_with_true_rewards",
    "plays_the_games_of_ppo_atari[Breakout",
    "plays_the_games_of_ppo_atari[MsPacman",
    "test_envpool.py::test_a_reset_takes_1_to_30_noops",
    "copied_renamed_edited",
    "newest_is_played",
)

# ---------------------------------------------------------------------------------------------------------------------
# The mutants: what is broken, the text that is replaced, what replaces it, and the tests that should notice

# Kept in one place because several tables name them.
UNIFORM_NOISE = ("-torch.empty_like(logits).exponential_().log()", "torch.rand_like(logits)")
GUMBELS_SIGN = (
    "-torch.empty_like(logits).exponential_().log()",
    "torch.empty_like(logits).exponential_().log()",
)
LOGITS_DOUBLED = ("(logits + gumbel).argmax", "(2 * logits + gumbel).argmax")
PLAIN_EPSILON = ("1e-5 / (1 - 0.999**adam_steps) ** 0.5", "1e-5")
MAX_FOR_MIN = ("-torch.min(advantages * ratio", "-torch.max(advantages * ratio")
SAMPLE_STD = ("advantages.std(correction=0)", "advantages.std()")
NO_VALUE_CLIP = ("if args.clip_vloss:", "if not args.clip_vloss:")
ENTROPY_SIGN = ("policy_loss - args.ent_coef * entropy", "policy_loss + args.ent_coef * entropy")
NO_GRADIENT_CLIP = (
    "agent.parameters(), args.max_grad_norm",
    'agent.parameters(), float("inf")',
)
NO_MASK_IN_CHAIN = ("gae_lambda * continues[t] * advantage", "gae_lambda * advantage")
SHIFTED_DONES = ("[dones[1:], next_done[None]]", "[dones[:1], dones[1:]]")
NO_BOOTSTRAP = (
    "torch.cat([values[1:], next_value[None]])",
    "torch.cat([values[1:], 0 * next_value[None]])",
)
NOT_SHUFFLED = (
    "torch.randperm(batch_size, device=device)",
    "torch.arange(batch_size, device=device)",
)
NEXT_STEP = ("AutoresetMode.SAME_STEP)", "AutoresetMode.NEXT_STEP)")
RESET_OBS = ('infos["final_obs"][cut]', "next_obs[cut]")
END_OF_RATE = ("remaining = 1 - iteration", "remaining = 1 - (iteration + 1)")
STOP_OFF = ("> args.target_kl", "> 1e9")
SEEDS_OF_THE_START = ("run.env_seeds()", "list(range(args.seed, args.seed + args.num_envs))")
SAME_SEEDS = ("SeedSequence([self.args.seed, self.iteration])", "SeedSequence([self.args.seed])")
HALF_THE_FILTERS = (
    "layer_init(nn.Conv2d(32, 64, kernel_size=4, stride=2)),\n"
    "            nn.ReLU(inplace=True),\n"
    "            layer_init(nn.Conv2d(64, 64,",
    "layer_init(nn.Conv2d(32, 32, kernel_size=4, stride=2)),\n"
    "            nn.ReLU(inplace=True),\n"
    "            layer_init(nn.Conv2d(32, 64,",
)
MISSING_RELU = (
    "layer_init(nn.Linear(64 * 7 * 7, 512)),\n            nn.ReLU(inplace=True),",
    "layer_init(nn.Linear(64 * 7 * 7, 512)),",
)
RELU_FOR_TANH = (
    "nn.Tanh(),\n                layer_init(nn.Linear(64, 64)),\n                nn.Tanh(),",
    "nn.ReLU(),\n                layer_init(nn.Linear(64, 64)),\n                nn.ReLU(),",
)

# fmt: off
CHANGES = {
    "ppo": [
        # Environments
        ("Core 1: a step of its own for the reset", *NEXT_STEP, SAME_STEP),
        ("the same seed in all environments", "(self.args.num_envs).tolist()", "(1).tolist() * self.args.num_envs",
         OWN_SEEDS),
        ("environments whose actions do not start at 0", "start + action", "action", PAYS),
        # The agent
        ("Core 2: gain 1 instead of sqrt(2)", "std: float = 2**0.5", "std: float = 1.0", LAYERS),
        ("Core 2: gain 1 for the policy's head", "num_actions), std=0.01", "num_actions), std=1.0", LAYERS),
        ("Core 2: gain sqrt(2) for the value's head", "nn.Linear(64, 1), std=1.0", "nn.Linear(64, 1)", LAYERS),
        ("ReLU for tanh", *RELU_FOR_TANH, LOSS),
        ("half as many units",
         "layer_init(nn.Linear(obs_size, 64)),\n"
         "                nn.Tanh(),\n"
         "                layer_init(nn.Linear(64, 64))",
         "layer_init(nn.Linear(obs_size, 32)),\n"
         "                nn.Tanh(),\n"
         "                layer_init(nn.Linear(32, 64))", OFFICIAL_NETWORK + "[mlp]"),
        ("Core 13: one body for policy and value", "actor_body if shared_network else", "actor_body or", SEPARATE),
        ("sampling: logits doubled", *LOGITS_DOUBLED, SOFTMAX),
        ("sampling: Gumbel's sign", *GUMBELS_SIGN, SOFTMAX),
        ("sampling: uniform noise", *UNIFORM_NOISE, SOFTMAX),
        ("sampling: always the likeliest", "(logits + gumbel).argmax", "logits.argmax", SOFTMAX),
        ("greedy: the unlikeliest", "return logits.argmax", "return logits.argmin", GREEDY),
        ("softmax over the rows", "logits.log_softmax(dim=-1)", "logits.log_softmax(dim=0)", LOSS),
        ("entropy without its minus", "entropy = -(logprobs", "entropy = (logprobs", LOSS),
        # Advantages
        ("Core 5: the chain goes on past an end", *NO_MASK_IN_CHAIN, GAE),
        ("Core 5: values past an end", "gamma * continues * next_values", "gamma * next_values", GAE),
        ("Core 5: flags of the step before", *SHIFTED_DONES, GAE),
        ("Core 5: nothing after the last step", *NO_BOOTSTRAP, GAE),
        ("Core 5: targets of the next step", "advantages, advantages + values", "advantages, advantages + next_values",
         GAE),
        # Loss
        ("log-ratio upside down", "logprobs - mb.logprobs", "mb.logprobs - logprobs", LOSS),
        ("Core 7: sample standard deviation", *SAMPLE_STD, LOSS),
        ("Core 7: the mean stays", "(advantages - advantages.mean()) /", "advantages /", LOSS),
        ("Core 7: over the batch", "gradient_fn(agent, batch.select(rows), clip_coef, args)",
         "gradient_fn(\n"
         "                    agent,\n"
         "                    batch._replace(\n"
         "                        advantages=(batch.advantages - batch.advantages.mean())\n"
         "                        / batch.advantages.std(correction=0)\n"
         "                    ).select(rows),\n"
         "                    clip_coef,\n"
         '                    Args(**asdict(args) | {"norm_adv": False}),\n'
         "                )", PLAIN_FORM),
        ("Core 8: max for min", *MAX_FOR_MIN, LOSS),
        ("Core 8: no clipping", "advantages * clipped_ratio).mean()", "advantages * ratio).mean()", LOSS),
        ("Core 8: clipped from above only", "clamp(1 - clip_coef, 1 + clip_coef)", "clamp(max=1 + clip_coef)", LOSS),
        ("Core 9: no clipping", *NO_VALUE_CLIP, LOSS),
        ("Core 9: min for max", "torch.max(value_losses", "torch.min(value_losses", LOSS),
        ("Core 9: around the return", "mb.values + (values - mb.values)", "mb.returns + (values - mb.returns)", LOSS),
        ("the half of the squared error", "0.5 * value_losses", "value_losses", LOSS),
        ("Core 10: entropy's sign", *ENTROPY_SIGN, LOSS),
        ("Core 10: vf_coef", "args.vf_coef * value_loss", "value_loss", LOSS),
        ("Core 12: sign of old_approx_kl", '"old_approx_kl": -logratio', '"old_approx_kl": logratio', LOSS),
        ("Core 11: no clipping of the gradient", *NO_GRADIENT_CLIP, CLIP),
        ("Core 11: the policy's gradient alone", "clip_grad_norm_(agent.", "clip_grad_norm_(agent.actor.", CLIP),
        # Training
        ("Core 3: PyTorch's epsilon", *PLAIN_EPSILON, EPSILON),
        ("Core 3: epsilon 1e-8", "1e-5 / (1 - 0.999**", "1e-8 / (1 - 0.999**", EPSILON),
        ("Core 3: steps counted anew in every update", "clip_coef = args.clip_coef * remaining",
         "adam_steps = 0\n        clip_coef = args.clip_coef * remaining", EPSILON),
        ("Core 3: steps counted anew after a resume",
         'max((int(state["step"]) for state in optimizer.state.values()), default=0)', "0", RESUMED_STEPS),
        ("Core 4: annealed from the first update on", *END_OF_RATE, RATE),
        ("Core 4: not annealed", "args.learning_rate * remaining if", "args.learning_rate if", RATE),
        ("Aux 1: annealed unasked", "remaining if args.anneal_clip_coef", "remaining if args.anneal_lr", RATE),
        ("flags of the observation before", "dones[step] = next_done", "dones[step - 1] = next_done", PAIRS),
        ("the chain goes on past a time limit", "next_done = terminated | truncated", "next_done = terminated", LIMIT),
        ("bootstrapping from the reset", *RESET_OBS, BOOTSTRAPPED_LIMIT),
        ("bootstrapping at true ends", "cut = truncated & ~terminated", "cut = truncated", BOOTSTRAPPED_LIMIT),
        ("bootstrapping undiscounted", "+= args.gamma * agent.get_value", "+= agent.get_value", BOOTSTRAPPED_LIMIT),
        ("the last value is of the last row", "to_tensor(next_obs))\n\n", "to_tensor(obs[-1]))\n\n", BOOTSTRAP),
        ("Core 6: rows in their order", *NOT_SHUFFLED, ORDER),
        ("Core 6: one order for all epochs", "torch.randperm(batch_size, device=device)",
         "torch.randperm(batch_size, generator=torch.Generator().manual_seed(iteration))", ORDER),
        ("Core 6: rows drawn with replacement", "torch.randperm(batch_size,",
         "torch.randint(batch_size, (batch_size,),", ROWS),
        ("gradients add up", "optimizer.zero_grad()", "pass", CLIP),
        ("Aux 3: never stops", *STOP_OFF, STOP),
        ("Aux 3: looks at one minibatch", "stats[-args.num_minibatches :]", "stats[-1:]", STOP),
        ("Aux 3: looks at all epochs", "stats[-args.num_minibatches :]", "stats", STOP),
        ("Aux 3: 1.5 times the limit", "> args.target_kl", "> 1.5 * args.target_kl", STOP),
        ("explained variance of the values", "(batch.returns - batch.values).var()", "batch.values.var()", EXPLAINED),
        # Defaults
        ("bootstrapped by default", "bootstrap_truncated: bool = False", "bootstrap_truncated: bool = True", DEFAULTS),
        ("gae_lambda 0.9", "gae_lambda: float = 0.95", "gae_lambda: float = 0.9", DEFAULTS),
        ("no entropy bonus", "ent_coef: float = 0.01", "ent_coef: float = 0.0", DEFAULTS),
        ("vf_coef 1", "vf_coef: float = 0.5", "vf_coef: float = 1.0", DEFAULTS),
        ("max_grad_norm 1", "max_grad_norm: float = 0.5", "max_grad_norm: float = 1.0", DEFAULTS),
        # The run
        ("a seed that is not looked at", "torch.manual_seed(args.seed)", "torch.manual_seed(0)", SEED),
        ("seeds of a resumed run", *SAME_SEEDS, RESUMED_SEEDS),
    ],
    "ppo_atari": [
        # Environments
        ("Core 1: a step of its own for the reset", *NEXT_STEP, SAME_STEP),
        ("Atari 1: up to 15 no-ops", "noop_max=30", "noop_max=15", NOOPS),
        ("Atari 2: 3 frames", "frame_skip=4", "frame_skip=3", PREPROCESSING),
        ("Atari 3: a lost life is no end", "if 0 < self.lives < lives_before:", "if False:", LOST_LIFE),
        ("Atari 3: 0 lives are an end", "0 < self.lives < lives_before", "self.lives < lives_before", ZERO_LIVES),
        ("Atari 3: a lost life resets the game", "if self.game_over:", "if True:", LOST_LIFE),
        ("Atari 3: no no-op after a lost life", "self.env.step(0)", "self.env.step(1)", LOST_LIFE),
        ("Atari 3: no reset at a time limit", "self.game_over = terminated or truncated", "self.game_over = terminated",
         GAME_END),
        ("Atari 3: lives of before the reset",
         "        self.lives = self.unwrapped.ale.lives()\n        return obs, info", "        return obs, info",
         LOST_IN_RESET),
        ("Atari 4: no FIRE", "env = FireResetEnv(env)", "pass", FIRE_GAMES),
        ("Atari 4: no action 2", "for action in (1, 2):", "for action in (1,):", FIRE),
        ("Atari 4: no reset at a time limit", "info |= step_info\n            if terminated or truncated:",
         "info |= step_info\n            if terminated:", FIRE),
        ("Atari 6: rewards as they are", "TransformReward(env, np.sign)", "TransformReward(env, float)", PREPROCESSING),
        ("Atari 6: rewards turned", "(env, np.sign)", "(env, lambda reward: -np.sign(reward))", PREPROCESSING),
        ("Atari 7: a stack that starts black", "FrameStackObservation(env, 4)",
         'FrameStackObservation(env, 4, padding_type="zero")', PREPROCESSING),
        ("returns of single lives", "env = gym.wrappers.RecordEpisodeStatistics(",
         "env = EpisodicLifeEnv(env)\n    env = gym.wrappers.RecordEpisodeStatistics(", REPORTS),
        ("returns of clipped rewards", "env = gym.wrappers.RecordEpisodeStatistics(",
         "env = gym.wrappers.TransformReward(env, np.sign)\n    env = gym.wrappers.RecordEpisodeStatistics(", REPORTS),
        # The agent
        ("Atari 8: half the filters", *HALF_THE_FILTERS, OFFICIAL_NETWORK + "[cnn]"),
        ("Atari 8: a missing ReLU", *MISSING_RELU, LOSS),
        ("Atari 9: images from 0 to 255", "x / 255.0", "x / 1.0", LOSS),
        ("Core 2: gain 1 for the policy's head", "single_action_space.n), std=0.01", "single_action_space.n), std=1.0",
         LAYERS),
        ("sampling: logits doubled", *LOGITS_DOUBLED, SOFTMAX),
        ("sampling: Gumbel's sign", *GUMBELS_SIGN, SOFTMAX),
        ("sampling: uniform noise", *UNIFORM_NOISE, SOFTMAX),
        # Loss and training
        ("Core 5: nothing after the last step", *NO_BOOTSTRAP, GAE),
        ("Core 8: max for min", *MAX_FOR_MIN, LOSS),
        ("Core 9: no clipping", *NO_VALUE_CLIP, LOSS),
        ("Core 10: entropy's sign", *ENTROPY_SIGN, LOSS),
        ("Core 11: no clipping of the gradient", *NO_GRADIENT_CLIP, CLIP),
        ("Core 3: PyTorch's epsilon", *PLAIN_EPSILON, EPSILON),
        ("Core 4: annealed from the first update on", *END_OF_RATE, RATE),
        ("Core 6: rows in their order", *NOT_SHUFFLED, ORDER),
        ("Aux 3: never stops", *STOP_OFF, STOP),
        ("bootstrapping from the reset", *RESET_OBS, BOOTSTRAPPED_LIMIT),
        # Defaults
        ("clip_coef 0.2", "clip_coef: float = 0.1", "clip_coef: float = 0.2", DEFAULTS),
        ("gae_lambda 0.9", "gae_lambda: float = 0.95", "gae_lambda: float = 0.9", DEFAULTS),
        ("learning rate not annealed", "anneal_lr: bool = True", "anneal_lr: bool = False", DEFAULTS),
        # The run
        ("seeds of a resumed run", *SEEDS_OF_THE_START, RESUMED_SEEDS),
    ],
    "ppo_atari_envpool": [
        # Environments
        ("Atari 1: up to 15 no-ops", "noop_max=30", "noop_max=15", POOL_NOOPS),
        ("Atari 2: 3 frames", "frame_skip=4", "frame_skip=3", POOL_FREEWAY),
        ("sticky actions", "repeat_action_probability=0.0", "repeat_action_probability=0.25", POOL_FREEWAY),
        ("Atari 3: a lost life is no end", "terminated = terminated | life_lost", "pass", POOL_LOST_LIFE),
        ("Atari 3: 0 lives are an end", "life_lost = (lives > 0) & (", "life_lost = (", POOL_ZERO_LIVES),
        ("Atari 3: EnvPool's ends of lives", "episodic_life=False", "episodic_life=True", POOL_GAMES),
        ("Atari 3: no no-op after a lost life", "self.fire(ended, self.no_op(ended))",
         "self.fire(ended, frames[ended])", POOL_LOST_LIFE),
        ("Atari 3: no reset where the no-op ends the game", "frames[over] = self.no_op(ids[over])", "pass",
         POOL_END_IN_RESET),
        ("Atari 3: lives of before", "self.lives[ids] = lives", "pass", POOL_LOST_LIFE),
        ("Atari 4: no FIRE", "if not self.needs_fire:", "if True:", POOL_FIRE),
        ("Atari 4: EnvPool's FIRE", "use_fire_reset=False", "use_fire_reset=True", POOL_BREAKOUT),
        ("Atari 4: no action 2", "for action in (1, 2):", "for action in (1,):", POOL_FIRE),
        ("Atari 4: no reset where a life is lost", "ended = life_lost | terminated", "ended = terminated", POOL_FIRE),
        ("Atari 6: rewards as they are", "reward_clip=True", "reward_clip=False", POOL_GAMES),
        ("Atari 7: a stack that is not started over", "self.stack[ended] = torch", "self.stack[ended, 3:] = torch",
         POOL_STACK),
        ("Atari 7: the newest frame first", "[self.stack[:, 1:], torch.as_tensor(frames, device=self.device)]",
         "[torch.as_tensor(frames, device=self.device), self.stack[:, :3]]", POOL_STACK),
        ("the reset's stack as the final observation", '{"final_obs": final_obs}', '{"final_obs": self.stack}',
         POOL_STACK),
        ("a time limit is a true end", 'infos["terminated"] == 1', '(infos["terminated"] == 1) | truncated',
         POOL_GAME_END),
        ("returns of clipped rewards", 'self.game_returns[ids] += infos["reward"]', "self.game_returns[ids] += rewards",
         POOL_GAME_END),
        ("returns of all games so far", "self.game_returns[i] = 0", "pass", POOL_REPORTS),
        ("a game is reported in every later step", "self.finished = {}\n        frames, rewards", "frames, rewards",
         POOL_GAMES),
        ("the same seed in all environments", "number % 2**31 for number in seed", "1 for number in seed", OWN_SEEDS),
        # The agent
        ("Atari 8: half the filters", *HALF_THE_FILTERS, NETWORK),
        ("Atari 8: a missing ReLU", *MISSING_RELU, LOSS),
        ("sampling: logits doubled", *LOGITS_DOUBLED, SOFTMAX),
        ("sampling: Gumbel's sign", *GUMBELS_SIGN, SOFTMAX),
        ("sampling: uniform noise", *UNIFORM_NOISE, SOFTMAX),
        # Loss and training
        ("Core 5: the chain goes on past an end", *NO_MASK_IN_CHAIN, GAE),
        ("Core 7: sample standard deviation", *SAMPLE_STD, LOSS),
        ("Core 8: max for min", *MAX_FOR_MIN, LOSS),
        ("Core 10: entropy's sign", *ENTROPY_SIGN, LOSS),
        ("Core 11: no clipping of the gradient", *NO_GRADIENT_CLIP, CLIP),
        ("Core 3: PyTorch's epsilon", *PLAIN_EPSILON, EPSILON),
        ("Core 6: rows in their order", *NOT_SHUFFLED, ORDER),
        ("Aux 3: never stops", *STOP_OFF, STOP),
        ("bootstrapping from the reset", *RESET_OBS, HAND),
        # Defaults
        ("clip_coef 0.2", "clip_coef: float = 0.1", "clip_coef: float = 0.2", DEFAULTS),
        ("16 environments", "num_envs: int = 8", "num_envs: int = 16", DEFAULTS),
        # The run
        ("seeds of a resumed run", *SEEDS_OF_THE_START, RESUMED_SEEDS),
    ],
    "ppo_atari_lstm": [
        # Environments
        ("Core 1: a step of its own for the reset", *NEXT_STEP, SAME_STEP),
        ("Atari 1: up to 15 no-ops", "noop_max=30", "noop_max=15", NOOPS),
        ("Atari 2: 3 frames", "frame_skip=4", "frame_skip=3", PREPROCESSING),
        ("Atari 3: a lost life is no end", "if 0 < self.lives < lives_before:", "if False:", LOST_LIFE),
        ("Atari 4: no FIRE", "env = FireResetEnv(env)", "pass", FIRE_GAMES),
        ("Atari 4: no action 2", "for action in (1, 2):", "for action in (1,):", FIRE),
        ("Atari 6: rewards turned", "(env, np.sign)", "(env, lambda reward: -np.sign(reward))", PREPROCESSING),
        ("returns of clipped rewards", "env = gym.wrappers.RecordEpisodeStatistics(",
         "env = gym.wrappers.TransformReward(env, np.sign)\n    env = gym.wrappers.RecordEpisodeStatistics(", REPORTS),
        # The agent
        ("Atari 8: half the filters", *HALF_THE_FILTERS, OFFICIAL_NETWORK + "[lstm]"),
        ("Atari 8: a missing ReLU", *MISSING_RELU, OFFICIAL_NETWORK + "[lstm]"),
        ("LSTM 1: gain sqrt(2)", "orthogonal_(self.lstm.weight_hh, 1.0)", "orthogonal_(self.lstm.weight_hh, 2**0.5)",
         LSTM_START),
        ("LSTM 1: PyTorch's weights", "nn.init.orthogonal_(self.lstm.weight_ih, 1.0)", "pass", LSTM_START),
        ("LSTM 1: two biases that learn", "bias_hh.requires_grad = False", "bias_hh.requires_grad = True", ONE_BIAS),
        ("LSTM 2: a first state of ones", "torch.zeros((num_envs, 256))", "torch.ones((num_envs, 256))", FIRST_STATE),
        ("LSTM 3: the state outlives an episode", "lstm_state * (1 - done_t[:, None])", "lstm_state", EQUATIONS),
        ("hidden and cell state swapped", "torch.cat([hidden, cell], dim=1)", "torch.cat([cell, hidden], dim=1)",
         EQUATIONS),
        ("the cell state is the output", "outputs.append(hidden)", "outputs.append(cell)", EQUATIONS),
        ("sampling: logits doubled", *LOGITS_DOUBLED, SOFTMAX),
        ("sampling: Gumbel's sign", *GUMBELS_SIGN, SOFTMAX),
        ("sampling: uniform noise", *UNIFORM_NOISE, SOFTMAX),
        # Loss and training
        ("LSTM 3: no ends in training", "mb.dones, mb.actions)", "0 * mb.dones, mb.actions)", RECOMPUTED),
        ("LSTM 3: no ends in the rollout", "to_tensor(dones[step]))", "to_tensor(0 * dones[step]))", RECOMPUTED),
        ("LSTM 4: minibatches environment by environment", ".flatten(0, 1) for field",
         ".swapaxes(0, 1).flatten(0, 1) for field", TIME_FIRST),
        ("LSTM 4: environments in their order", "torch.randperm(args.num_envs,", "torch.arange(args.num_envs,",
         PARTITION),
        ("LSTM 5: training begins at zero", "initial_lstm_state = lstm_state", "initial_lstm_state = 0 * lstm_state",
         RECOMPUTED),
        ("LSTM 5: training begins at the end", "lstm_state=initial_lstm_state[None]", "lstm_state=lstm_state[None]",
         RECOMPUTED),
        ("the last value without a state", "to_tensor(next_obs), lstm_state,", "to_tensor(next_obs), 0 * lstm_state,",
         LSTM_ROLLOUT),
        ("a time limit's value without a state", "final_obs, lstm_state[cut]", "final_obs, 0 * lstm_state[cut]",
         FINAL_STATE),
        ("a rollout that forgets", "initial_lstm_state = lstm_state",
         "lstm_state = initial_lstm_state = 0 * lstm_state", LSTM_ROLLOUT),
        ("Core 5: the chain goes on past an end", *NO_MASK_IN_CHAIN, GAE),
        ("Core 7: sample standard deviation", *SAMPLE_STD, LSTM_LOSS),
        ("Core 8: max for min", *MAX_FOR_MIN, LSTM_LOSS),
        ("Core 9: no clipping", *NO_VALUE_CLIP, LSTM_LOSS),
        ("Core 10: entropy's sign", *ENTROPY_SIGN, LSTM_LOSS),
        ("Core 11: no clipping of the gradient", *NO_GRADIENT_CLIP, CLIP),
        ("Core 3: PyTorch's epsilon", *PLAIN_EPSILON, EPSILON),
        ("Core 4: annealed from the first update on", *END_OF_RATE, RATE),
        ("Aux 3: never stops", *STOP_OFF, STOP),
        # Defaults
        ("clip_coef 0.2", "clip_coef: float = 0.1", "clip_coef: float = 0.2", DEFAULTS),
        # The run
        ("seeds of a resumed run", *SEEDS_OF_THE_START, RESUMED_SEEDS),
    ],
    "ppo_atari_multigpu": [
        ("Aux 2: gradients stay one's own", "    dist.all_reduce(total)\n", "", MEAN_GRADIENT),
        ("Aux 2: the sum of the gradients", "total / dist.get_world_size()", "total", MEAN_GRADIENT),
        ("Aux 2: clipped before the mean", """    average_over_processes(agent, stats)
""", """    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm / 100)
    average_over_processes(agent, stats)
""", MEAN_GRADIENT),
        ("statistics of one process", "    parts.extend(stats.values())\n", "", MEAN_KL),
        ("the environments of the first process in all", 'start["seeds"][rank * args.num_envs :',
         'start["seeds"][0 * args.num_envs :', SEEDS_ONCE),
        ("the actions of the first process in all", "torch.manual_seed(seeds[0])", "pass", OTHER_ACTIONS),
        ("weights of one's own after a restart", '    agent.load_state_dict(start["agent"])\n', "", RESTART),
        ("moments of one's own after a restart", '    optimizer.load_state_dict(start["optimizer"])\n', "", RESTART),
        ("a restart begins anew", '(run_dir / "checkpoint.pt").exists()', "False", RESTART),
        ("a restart begins at the start", 'range(start["iteration"], ', "range(0, ", RESTART),
        ("episodes of the first process alone", "chain(*ended)", "chain(*ended[:1])", ONE_LOG),
        ("explained variance of the first process", "returns=gather_rows(batch.returns)", "returns=batch.returns",
         ONE_LOG),
        ("each process does all the steps", "(batch_size * world_size)", "batch_size", MEAN_GRADIENT),
        ("the first process stops alone", "if exit_code[0] is not None:",
         "if dist.get_rank() == 0 and exit_code[0] is not None:", FOUR),
        ("every process stops at the signal", "signal.signal(signum, signal.SIG_IGN)", "pass", FOUR),
        ("episodes are logged where the others do not wait", """        with stopping_together():
            if rank == 0:
                for ended""", """        if rank == 0:
            run.log_episode(0.0, 1)
        with stopping_together():
            if rank == 0:
                for ended""", ALL_END),
        ("an exception of one process is lost", "        sys.excepthook = show\n", "", SHOWN),
        ("minibatches that do not divide a share", "if share % args.num_minibatches != 0:", "if False:", SHARE),
        ("the message is compiled", "@torch.compiler.disable\n", "", BROKEN_GRAPH),
        ("every process complains", "sys.stdout = sys.stderr = io.StringIO()", "pass", SAID_ONCE),
        ("Core 4 without annealing", "lr = args.learning_rate * remaining if args.anneal_lr else args.learning_rate",
         "lr = args.learning_rate", ALONE),
    ],
    "ppo_continuous_action": [
        # Environments
        ("Core 1: a step of its own for the reset", *NEXT_STEP, SAME_STEP),
        ("Continuous 5: actions taken unclipped", "env = gym.wrappers.ClipAction(env)", "pass", ACTIONS),
        ("Continuous 5: actions stored clipped", "get_action(to_tensor(next_obs)).cpu()",
         "get_action(to_tensor(next_obs)).clamp(-1, 1).cpu()", ACTIONS),
        ("Continuous 6: clipped before they are counted", 'self.count("obs", obs.astype(np.float64))',
         'self.count("obs", obs.astype(np.float64).clip(-10, 10))', EXACT),
        ("Continuous 6: by what was seen before",
         'self.count("obs", obs.astype(np.float64))\n        return self.normalize(obs)',
         "normalised = self.normalize(obs)\n"
         '        self.count("obs", obs.astype(np.float64))\n'
         "        return normalised", SEEN),
        ("Continuous 6: the first environment's statistics", '"obs", obs.astype', '"obs", obs[:1].astype', SEEN),
        ("Continuous 6: final observations as they are", 'self.normalize(infos["final_obs"][i])',
         'infos["final_obs"][i]', WRAPPER),
        ("Continuous 7: clipped at 5", "obs.clip(-10, 10)", "obs.clip(-5, 5)", OBS_CLIP),
        ("Continuous 7: not clipped", "obs.clip(-10, 10)", "obs", OBS_CLIP),
        ("Continuous 8: the return is reset before it counts",
         "self.discounted_returns = self.discounted_returns * self.gamma + rewards",
         "self.discounted_returns = self.discounted_returns * ~done * self.gamma + rewards * ~done", SCALED),
        ("Continuous 8: the return is never reset", "self.discounted_returns[done] = 0", "pass", SCALED),
        ("Continuous 8: the first environment's return", '"return", self.discounted_returns)',
         '"return", self.discounted_returns[:1])', SCALED),
        ("Continuous 8: the rewards' deviation", '"return", self.discounted_returns)', '"return", rewards)', SCALED),
        ("Continuous 8: rewards centred", "rewards = rewards / np",
         'rewards = (rewards - self.moments["return"][0]) / np', REWARD_CLIP),
        ("Continuous 8: returns undiscounted", "self.gamma = gamma", "self.gamma = 1.0", SCALED),
        ("Continuous 8: a reset goes on with the return", "self.discounted_returns[:] = 0", "pass", RETURNS_ANEW),
        ("Continuous 9: not clipped", "return rewards.clip(-10, 10)", "return rewards", REWARD_CLIP),
        ("moments without the distance of the means", " + delta**2 * (size * len(x) / total)", "", EXACT),
        ("moments in float32", "obs.astype(np.float64)", "obs.astype(np.float32)", EXACT),
        ("statistics that never freeze", "if not self.training:", "if False:", FROZEN),
        ("statistics that are not saved", ", normalizer=envs)", ")", RESUMED_STATE),
        # The agent
        ("Continuous 2: an initial deviation of 0.6", "torch.zeros(action_size)", "torch.zeros(action_size) - 0.5",
         LAYERS),
        ("Continuous 4: one body for policy and value", "actor_body if shared_network else", "actor_body or", SEPARATE),
        ("Core 2: gain 1 for the policy's head", "action_size), std=0.01", "action_size), std=1.0", LAYERS),
        ("ReLU for tanh", *RELU_FOR_TANH, LOSS),
        ("sampling: exp(2 logstd)", "mean + self.actor_logstd.exp()", "mean + (2 * self.actor_logstd).exp()", NORMAL),
        ("sampling: uniform noise", "torch.randn_like(mean)", "torch.rand_like(mean)", NORMAL),
        ("sampling: one noise for all components", "torch.randn_like(mean)", "torch.randn_like(mean[:, :1])", NORMAL),
        ("greedy and sampled swapped", "if greedy:", "if not greedy:", GREEDY_MEAN),
        ("Continuous 1: exp(2 logstd)", "self.actor_logstd.exp(), validate", "(2 * self.actor_logstd).exp(), validate",
         LOSS),
        ("Continuous 3: the mean of the components", "normal.log_prob(action).sum", "normal.log_prob(action).mean",
         LOSS),
        ("Continuous 3: the entropy of one component", "normal.entropy().sum", "normal.entropy().mean", LOSS),
        # Loss and training
        ("Core 5: values past an end", "gamma * continues * next_values", "gamma * next_values", GAE),
        ("Core 8: max for min", *MAX_FOR_MIN, LOSS),
        ("Core 9: no clipping", *NO_VALUE_CLIP, LOSS),
        ("Core 11: no clipping of the gradient", *NO_GRADIENT_CLIP, CLIP),
        ("Core 3: PyTorch's epsilon", *PLAIN_EPSILON, EPSILON),
        ("Core 6: rows in their order", *NOT_SHUFFLED, ORDER),
        ("bootstrapping from the reset", *RESET_OBS, BOOTSTRAPPED_LIMIT),
        # Defaults
        ("4 epochs", "update_epochs: int = 10", "update_epochs: int = 4", DEFAULTS),
        ("an entropy bonus", "ent_coef: float = 0.0", "ent_coef: float = 0.01", DEFAULTS),
        ("4 minibatches", "num_minibatches: int = 32", "num_minibatches: int = 4", DEFAULTS),
        ("gae_lambda 0.9", "gae_lambda: float = 0.95", "gae_lambda: float = 0.9", DEFAULTS),
        # The run
        ("seeds of a resumed run", *SEEDS_OF_THE_START, RESUMED_SEEDS),
        ("random state of a resumed run", 'torch.set_rng_state(checkpoint["rng"])', "pass", RESUMED_STATE),
    ],
    "ppo_multidiscrete": [
        # Environments
        ("Core 1: a step of its own for the reset", *NEXT_STEP, MULTI_ROWS),
        ("actions counted from 0", "start + action.reshape", "action.reshape", PLACES),
        ("Cleaner: the reset is a row", "obs[name][ended] = first_obs[name]", "pass", CLEANER),
        ("Cleaner: returns of all episodes so far", "self.episode_returns[done] = 0", "pass", CLEANER_REPORTS),
        ("Cleaner: rows and columns swapped", "@ [10, 1]", "@ [1, 10]", CLEANER),
        ("Cleaner: time not scaled", '["step_count"][:, None] / 100', '["step_count"][:, None] / 1', CLEANER),
        ("Cleaner: a robot walled in has no action", ' | ~obs["action_mask"].any(axis=-1, keepdims=True)', "", CLEANER),
        ("Aux 4: where no mask is given, nothing is valid", 'masks | ~infos["_action_mask"][:, None]', "masks",
         GIVEN_MASK),
        ("Aux 4: masks that are not asked for", "if not self.args.action_mask or ", "if ", GIVEN_MASK),
        # The agent
        ("Aux 4: the mask upside down", "torch.where(action_mask, logits,", "torch.where(~action_mask, logits,", VALID),
        ("Aux 4: invalid actions are only unlikely", "torch.finfo(logits.dtype).min", "-10.0", IMPOSSIBLE),
        ("MultiDiscrete 1: log-probability of the last component", "logprob = logprob + logprobs", "logprob = logprobs",
         JOINT),
        ("MultiDiscrete 1: entropy of the last component", "entropy = entropy - (", "entropy = -(", JOINT),
        ("ReLU for tanh", *RELU_FOR_TANH, NETWORK),
        ("Core 2: gain 1 for the policy's head", "sum(self.nvec)), std=0.01", "sum(self.nvec)), std=1.0", LAYERS),
        ("Core 13: one body for policy and value", "actor_body if shared_network else", "actor_body or", SEPARATE),
        ("sampling: logits doubled", *LOGITS_DOUBLED, SOFTMAX),
        ("sampling: Gumbel's sign", *GUMBELS_SIGN, SOFTMAX),
        ("sampling: uniform noise", *UNIFORM_NOISE, SOFTMAX),
        # Loss and training
        ("Aux 4: no mask in training", "mb.actions, mb.action_masks)", "mb.actions)", STORED_MASK),
        ("Aux 4: no mask in sampling", ", action_mask=mask", "", VALID),
        ("Aux 4: the next row's mask in training", "torch.as_tensor(masks, device=device)",
         "torch.as_tensor(np.roll(masks, -1, axis=0), device=device)", STORED_MASK),
        ("Core 5: values past an end", "gamma * continues * next_values", "gamma * next_values", GAE),
        ("Core 7: sample standard deviation", *SAMPLE_STD, PLAIN_FORM),
        ("Core 8: max for min", *MAX_FOR_MIN, PLAIN_FORM),
        ("Core 9: no clipping", *NO_VALUE_CLIP, PLAIN_FORM),
        ("Core 10: entropy's sign", *ENTROPY_SIGN, PLAIN_FORM),
        ("Core 11: no clipping of the gradient", *NO_GRADIENT_CLIP, CLIP),
        ("Core 3: PyTorch's epsilon", *PLAIN_EPSILON, EPSILON),
        ("Core 6: rows in their order", *NOT_SHUFFLED, ORDER),
        ("Aux 3: never stops", *STOP_OFF, STOP),
        # Defaults
        ("masks off by default", "action_mask: bool = True", "action_mask: bool = False", DEFAULTS),
        ("clip_coef 0.1", "clip_coef: float = 0.2", "clip_coef: float = 0.1", DEFAULTS),
        # The run
        ("seeds of a resumed run", *SEEDS_OF_THE_START, RESUMED_SEEDS),
    ],
    "evaluate": [
        ("greedy and sampled swapped", "greedy=args.det", "greedy=not args.det", LIKELIEST),
        ("always greedy", "greedy=args.deterministic", "greedy=True", ROLLOUT + "[ppo]"),
        ("never greedy", "greedy=args.deterministic", "greedy=False", LIKELIEST),
        ("LSTM 3: never zeroed", "torch.as_tensor(done).float()", "torch.zeros(1)", ROLLOUT + "[ppo_atari_lstm]"),
        ("LSTM 3: always zeroed", "torch.as_tensor(done).float()", "torch.ones(1)", ROLLOUT + "[ppo_atari_lstm]"),
        ("the state stays the first", "action, lstm_state = action", "action, _ = action",
         ROLLOUT + "[ppo_atari_lstm]"),
        ("Aux 4: no mask", 'torch.as_tensor(infos["action_mask"])', 'torch.as_tensor(infos["action_mask"] | True)',
         ROLLOUT + "[ppo_multidiscrete]"),
        ("statistics that go on", "envs.training = False", "envs.training = True", STATISTICS),
        ("statistics that begin anew", 'envs.load_state_dict(checkpoint["normalizer"])', "pass", STATISTICS),
        ("new weights", 'agent.load_state_dict(checkpoint["agent"])', "pass", ONE_SEED),
        ("the default game", 'script.Args(**checkpoint["args"])', "script.Args()", ROLLOUT + "[ppo]"),
        ("the network's arguments dropped", "{name: getattr(args, name) for name in names}", "{}", EDITED),
        ("games counted twice", '(infos.get("final_info", {}), infos)', '(*[infos.get("final_info", {})] * 2, infos)',
         PAYS),
        ("a game's end is not seen", '(infos.get("final_info", {}), infos)', "(infos,)", WHOLE),
        ("lengths for returns", 'float(info["episode"]["r"][0])', 'float(info["episode"]["l"][0])', PAYS),
        ("max_steps for all games", '["l"][0]))\n                steps = 0', '["l"][0]))', WHOLE),
        ("actions that no seed fixes", "torch.manual_seed(args.seed)", "torch.seed()", ONE_SEED),
        ("games that no seed fixes", "seed=[args.seed]", "seed=[time.time_ns() % 2**31]", ONE_SEED),
        ("a seed of training", "seed: int = 1_000_000", "seed: int = 1", EVALUATION_SEED),
        ("sample standard deviation", "np.std(returns)", "np.std(returns, ddof=1)", DEVIATION),
        ("the oldest run", "run_dir = max(", "run_dir = min(", NEWEST),
    ],
}
# fmt: on

MUTANTS = [
    Mutant(script, old, new, breaks, tuple(test.replace("SCRIPT", script) for test in tests))
    for script, changes in CHANGES.items()
    for breaks, old, new, *tests in changes
]


# ---------------------------------------------------------------------------------------------------------------------
# Running


class Outcome(NamedTuple):
    mutant: Mutant
    verdict: str  # "caught", "hangs", "survived", or "no verdict" where the tests did not run
    seconds: float
    output: str  # of pytest

    @property
    def caught(self) -> bool:
        return self.verdict in ("caught", "hangs")

    def __str__(self) -> str:
        return f"{self.verdict:<10} {self.seconds:5.1f} s  {self.mutant}"


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def copy_repository(folder: Path) -> Path:
    """Copy what the tests need into `folder`, and return the copy's root."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "wandb")
    return shutil.copytree(ROOT, folder / "repository", ignore=ignored)


def run_tests(
    root: Path, tests: tuple[str, ...], time_limit: float | None, *options: str
) -> tuple[int | None, str]:
    """Return pytest's exit code, None if the time was up, and its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += ["--basetemp", str(root.parent / "tmp"), *options]
    command += [f"tests/{test}" for test in tests]
    # This may be a test itself, in one of several processes.
    environment = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST")}
    # Bytecode is looked up by size and second of the change, which two mutants may share.
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=time_limit)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            process.communicate()


def run_mutant(mutant: Mutant, root: Path, time_limit: float) -> Outcome:
    """Run a mutant's tests in the copy at `root`, and leave the copy as it was."""
    path = root / f"{mutant.script}.py"
    source = path.read_text()
    started = time.perf_counter()
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        code, output = run_tests(root, mutant.tests, time_limit, "-x")
    finally:
        path.write_text(source)
    verdict = {0: "survived", 1: "caught", None: "hangs"}.get(code, "no verdict")
    return Outcome(mutant, verdict, time.perf_counter() - started, output)


def run_mutants(mutants: list[Mutant], jobs: int, time_limit: float) -> list[Outcome]:
    """Run them in as many copies of the repository as there are jobs; print a line for each."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = queue.SimpleQueue()
        for number in range(jobs):
            copies.put(copy_repository(Path(folder) / str(number)))

        def run_in_a_free_copy(mutant: Mutant) -> Outcome:
            root = copies.get()
            try:
                return run_mutant(mutant, root, time_limit)
            finally:
                copies.put(root)

        outcomes = []
        pool = ThreadPoolExecutor(jobs)
        try:
            futures = [pool.submit(run_in_a_free_copy, mutant) for mutant in mutants]
            for future in as_completed(futures):
                outcomes.append(future.result())
                print(outcomes[-1], flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return outcomes


def check_baseline(mutants: list[Mutant]) -> None:
    """End if the tests do not pass without any change: they would catch everything."""
    tests = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    print(f"first the {len(tests)} tests without any change", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        code, output = run_tests(copy_repository(Path(folder)), tests, None, "--tb=no")
    if code != 0:
        print(output)
        fail("these tests do not pass without any change")


def choose(args: Args) -> list[Mutant]:
    """Return the mutants that the arguments ask for."""
    chosen = []
    for mutant in MUTANTS:
        text = f"{mutant}\n{mutant.old}\n{mutant.new}".lower()
        if args.only.lower() in text and (mutant.quick or not args.quick):
            chosen.append(mutant)
    if args.sample is None:
        return chosen
    return random.Random(args.seed).sample(chosen, min(args.sample, len(chosen)))


def describe(outcome: Outcome) -> str:
    """Return what one needs to know of a mutant that was not caught."""
    mutant = outcome.mutant
    lines = [f"{outcome.verdict}: {mutant}", f"  - {mutant.old!r}", f"  + {mutant.new!r}"]
    lines += [f"  tests/{test}" for test in mutant.tests]
    if outcome.verdict == "no verdict":
        lines.append(outcome.output)
    return "\n".join(lines)


def main(args: Args) -> None:
    for name in ("jobs", "sample", "time_limit"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            fail(f"--{name.replace('_', '-')} must be more than 0, not {value}")
    mutants = choose(args)
    if not mutants:
        fail(f"no mutant has {args.only!r} in its script, detail or text: see --list")
    if args.list:
        print("\n".join(map(str, mutants)))
        return

    if args.baseline:
        check_baseline(mutants)
    outcomes = run_mutants(mutants, args.jobs, args.time_limit)
    missed = [outcome for outcome in outcomes if not outcome.caught]
    for outcome in missed:
        print(f"\n{describe(outcome)}")
    print(f"\n{len(outcomes) - len(missed)} of {len(outcomes)} were caught")
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
