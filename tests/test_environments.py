"""What the learner is given: episode ends, time limits, Atari preprocessing, seeds and the reported returns."""

import copy
import importlib
import inspect
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SCRIPTS, TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

GYMNASIUM_SCRIPTS = ["ppo", "ppo_atari", "ppo_continuous_action"]


# Recording


class Recording:
    """What a run of main saw and did, in the order in which it happened."""

    def __init__(self):
        self.envs = None
        self.first_obs = None
        self.steps = []  # (action, obs, reward, terminated, truncated, infos) of every step of the vector environment
        self.rows = []  # (obs, action, logprob, value) of every step, as the agent saw them
        self.gae = []  # the arguments and the results of every call of compute_gae, by name
        self.agents = []  # the agent at the time of each of these calls
        self.minibatches = []  # (number of the update, Batch)

    def stacked(self, name):
        return torch.cat([call[name] for call in self.gae])


def record(module, monkeypatch, learn=True, force_action=None, at_random=False):
    """Record what main does from here on; it can be kept from learning, or made to play one action or random ones."""
    seen = Recording()
    make_envs, compute_gae, ppo_loss = module.make_envs, module.compute_gae, module.ppo_loss

    def recorded_make_envs(*args):
        seen.envs = make_envs(*args)
        step, reset = seen.envs.step, seen.envs.reset

        def recorded_step(action):
            if force_action is not None:
                action = np.full_like(action, force_action)
            result = step(action)
            seen.steps.append(copy.deepcopy((action, *result)))
            return result

        def recorded_reset(**kwargs):
            obs, infos = reset(**kwargs)
            seen.first_obs = obs.copy()
            return obs, infos

        seen.envs.step, seen.envs.reset = recorded_step, recorded_reset
        return seen.envs

    class RecordedAgent(module.Agent):
        def __init__(self, *args):
            super().__init__(*args)
            seen.agent = self

        def get_action_and_value(self, x, *more):
            if at_random:  # without asking the network, which takes longer than the game
                return torch.randint(seen.envs.single_action_space.n, (len(x),)), *torch.zeros((3, len(x)))
            result = super().get_action_and_value(x, *more)
            if not torch.is_grad_enabled():  # the rollout, and not the loss
                step = tuple(tensor.clone() for tensor in (x, result[0], result[1], result[3]))
                whole_rollout = result[1].ndim == 2  # (num_steps, num_envs)
                seen.rows += zip(*step, strict=True) if whole_rollout else [step]
            return result

    def recorded_gae(*args, **kwargs):
        call = inspect.signature(compute_gae).bind(*args, **kwargs).arguments
        call = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in call.items()}
        result = compute_gae(*args, **kwargs)
        seen.gae.append(call | {"advantages": result[0].clone(), "returns": result[1].clone()})
        seen.agents.append(copy.deepcopy(seen.agent))
        return result

    def recorded_loss(agent, mb, *args):
        seen.minibatches.append((len(seen.gae) - 1, type(mb)(*(field.clone() for field in mb))))
        if learn:
            return ppo_loss(agent, mb, *args)
        return 0 * sum(p.sum() for p in agent.parameters()), {"approx_kl": torch.zeros(())}

    monkeypatch.setattr(module, "make_envs", recorded_make_envs)
    monkeypatch.setattr(module, "Agent", RecordedAgent)
    monkeypatch.setattr(module, "compute_gae", recorded_gae)
    monkeypatch.setattr(module, "ppo_loss", recorded_loss)
    return seen


# Episode ends and time limits, in an environment whose course is known

# Lengths and ends of the episodes, over and over; with segments of 16 steps, one ends where a segment ends.
ENDS = [(4, False, True), (3, True, False), (5, True, True), (2, False, True)]


def clock_reward(number, episode, clock, action):
    return episode / 2 - clock / 4 + number / 8 + np.ravel(action)[0] / 16


class Clock(gym.Env):
    """Its observation tells the number of the environment, of the episode, and of the steps taken in it."""

    def __init__(self, number, image=False, continuous=False):
        self.number, self.image, self.episode = number, image, -1
        self.observation_space = gym.spaces.Box(
            0, 255, (4, 84, 84) if image else (4,), np.uint8 if image else np.float64
        )
        self.action_space = gym.spaces.Box(-0.5, 0.5, (2,)) if continuous else gym.spaces.Discrete(3)

    def observe(self):
        obs = np.array([self.number, self.episode, self.clock, 1], dtype=self.observation_space.dtype)
        return obs[:, None, None].repeat(84, 1).repeat(84, 2) if self.image else obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.clock = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action):
        reward = clock_reward(self.number, self.episode, self.clock, action)
        self.clock += 1
        length, terminated, truncated = ENDS[(self.number + self.episode) % len(ENDS)]
        ends = self.clock == length
        return self.observe(), reward, ends and terminated, ends and truncated, {}


def expected_clock_rows(number, rows):
    """The (episode, clock, terminated, truncated) of each row of a Clock: nothing but steps that were taken."""
    course = []
    for episode in range(rows):
        length, terminated, truncated = ENDS[(number + episode) % len(ENDS)]
        course += [(episode, clock, False, False) for clock in range(length - 1)]
        course.append((episode, length - 1, terminated, truncated))
    return course[:rows]


def run_clock(name, monkeypatch, **changes):
    module = importlib.import_module(name)
    image, continuous = name == "ppo_atari", name == "ppo_continuous_action"
    monkeypatch.setattr(module, "make_env", lambda env_id, idx, *rest: Clock(idx, image, continuous))
    if continuous:  # a normalisation that can be undone
        monkeypatch.setattr(module.VecNormalize, "normalize", lambda self, obs: obs / 2 + 1)
        monkeypatch.setattr(module.VecNormalize, "scale", lambda self, reward, done: 3 * reward)
    seen = record(module, monkeypatch)
    module.main(module.Args(num_envs=2, num_steps=16, total_timesteps=96, num_minibatches=2, **changes))
    return seen


@pytest.mark.parametrize("name", GYMNASIUM_SCRIPTS)
def test_gymnasium_environments_reset_in_the_same_step(name):
    module = importlib.import_module(name)
    envs = module.make_envs(module.Args(num_envs=1), Path("runs"))
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
    envs.close()


@pytest.mark.parametrize("name", GYMNASIUM_SCRIPTS)
def test_every_row_is_a_step_that_was_taken(name, monkeypatch):
    seen = run_clock(name, monkeypatch)
    rewards, dones = seen.stacked("rewards"), seen.stacked("dones")
    undo, factor = (lambda obs: 2 * (obs - 1), 3) if name == "ppo_continuous_action" else (lambda obs: obs, 1)
    for number in range(2):
        course = expected_clock_rows(number, len(rewards))
        for t, (episode, clock, _, _) in enumerate(course):
            obs = undo(seen.rows[t][0][number].double()).reshape(4, -1)[:, 0]
            assert obs.tolist() == pytest.approx([number, episode, clock, 1])
            action = seen.steps[t][0][number]  # as the environment got it
            assert rewards[t, number].item() == pytest.approx(factor * clock_reward(number, episode, clock, action))
            assert dones[t, number] == (clock == 0 and episode > 0)
        # The flag after a segment is that of the row with which the next segment begins.
        for segment, call in enumerate(seen.gae[:-1]):
            assert call["next_done"][number] == seen.gae[segment + 1]["dones"][0, number]


@pytest.mark.parametrize("name", GYMNASIUM_SCRIPTS)
@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_time_limit_is_an_end_unless_it_is_bootstrapped(name, bootstrap, monkeypatch):
    seen = run_clock(name, monkeypatch, bootstrap_truncated=bootstrap, gamma=0.9)
    normalise, factor = (lambda obs: obs / 2 + 1, 3) if name == "ppo_continuous_action" else (lambda obs: obs, 1)
    rewards, dones = seen.stacked("rewards"), torch.cat([seen.stacked("dones"), seen.gae[-1]["next_done"][None]])
    bootstrapped = 0
    for number in range(2):
        clock_env = Clock(number, image=name == "ppo_atari")
        for t, (episode, clock, terminated, truncated) in enumerate(expected_clock_rows(number, len(rewards))):
            expected = factor * clock_reward(number, episode, clock, seen.steps[t][0][number])
            if bootstrap and truncated and not terminated:
                clock_env.episode, clock_env.clock = episode, clock + 1
                final = torch.as_tensor(normalise(clock_env.observe()[None]))
                final = final if name == "ppo_atari" else final.float()
                with torch.no_grad():
                    value = seen.agents[t // 16].get_value(final).item()
                expected += 0.9 * value
                bootstrapped += 1
                assert abs(value) > 1e-3  # otherwise nothing could be told apart
            assert rewards[t, number].item() == pytest.approx(expected, abs=1e-5)
            assert dones[t + 1, number] == (terminated or truncated)  # the lambda-chain is cut in either case
    assert bootstrapped == (13 if bootstrap else 0)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_envpool_time_limits_are_bootstrapped_from_the_row_that_follows(bootstrap, monkeypatch):
    module = importlib.import_module("ppo_atari_envpool")
    monkeypatch.setattr(module.envpool, "make", partial(module.envpool.make, max_episode_steps=6))
    seen = record(module, monkeypatch)
    # Seven rows per episode: the third segment of seven ends with a cut as every other one does, the last with one too.
    module.main(
        module.Args(num_envs=2, num_steps=7, total_timesteps=42, num_minibatches=1, bootstrap_truncated=bootstrap)
    )
    rewards = seen.stacked("rewards")
    for t, (_, obs, reward, terminated, truncated, infos) in enumerate(seen.steps):
        assert (truncated == (t % 7 == 5)).all()
        assert not terminated.any()
        assert not infos["terminated"].any()
        expected = torch.as_tensor(reward)
        if bootstrap and truncated.any():
            with torch.no_grad():
                expected = expected + 0.99 * seen.agents[t // 7].get_value(torch.as_tensor(obs))
        torch.testing.assert_close(rewards[t], expected, atol=1e-5, rtol=0)


def test_envpool_bootstraps_at_the_end_of_a_segment(monkeypatch):
    module = importlib.import_module("ppo_atari_envpool")
    monkeypatch.setattr(module.envpool, "make", partial(module.envpool.make, max_episode_steps=6))
    seen = record(module, monkeypatch)
    module.main(module.Args(num_envs=2, num_steps=6, total_timesteps=12, num_minibatches=1, bootstrap_truncated=True))
    _, obs, reward, _, truncated, _ = seen.steps[-1]
    assert truncated.all()
    with torch.no_grad():
        expected = torch.as_tensor(reward) + 0.99 * seen.agents[0].get_value(torch.as_tensor(obs))
    torch.testing.assert_close(seen.gae[0]["rewards"][-1], expected, atol=1e-5, rtol=0)


def steps_until(module, ends):
    """Steps of the first game of Breakout, without moving, until `ends(infos, lives before)`."""
    envs = module.make_envs(module.Args(num_envs=1), [1])
    lives = envs.reset()[1]["lives"]
    while True:
        infos = envs.step(np.zeros(1, dtype=np.int64))[-1]
        if ends(infos, lives):
            return int(infos["elapsed_step"][0])
        lives = infos["lives"]


@pytest.mark.parametrize(
    "ends",
    [lambda infos, lives: infos["terminated"][0], lambda infos, lives: infos["lives"] < lives],
    ids=["game", "life"],
)
def test_envpool_counts_terminated_and_truncated_as_terminated(ends, monkeypatch):
    module = importlib.import_module("ppo_atari_envpool")
    limit = steps_until(module, ends)
    monkeypatch.setattr(module.envpool, "make", partial(module.envpool.make, max_episode_steps=limit))
    seen = record(module, monkeypatch, learn=False, force_action=0)
    num_steps = limit + 8  # the rows of up to four resets, and some more
    module.main(
        module.Args(
            num_envs=1, num_steps=num_steps, total_timesteps=num_steps, num_minibatches=1, bootstrap_truncated=True
        )
    )
    row = next(t for t, step in enumerate(seen.steps) if step[4][0])
    before, after = seen.steps[row - 1][-1], seen.steps[row][-1]
    assert after["elapsed_step"][0] == limit
    assert after["lives"][0] < before["lives"][0]
    assert seen.gae[0]["rewards"][row, 0].item() == seen.steps[row][2][0]


# Atari wrappers, on games that follow a script


class Frame(NamedTuple):
    """What a step of a scripted game leads to."""

    lives: int = 3
    reward: float = 0.0
    over: bool = False
    cut: bool = False
    grey: int = 0


class ScriptedGame(gym.Env):
    """A stand-in for an Atari game: game number n shows the frames of games[n] one after the other."""

    observation_space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)
    _frameskip = 1  # AtariPreprocessing asks for it

    def __init__(self, games, meanings=("NOOP", "FIRE", "UP"), lives=3, **kwargs):
        self.games, self.meanings, self.full_lives = iter(games), meanings, lives
        self.action_space = gym.spaces.Discrete(len(meanings))
        self.ale = self
        self.log = []  # the actions, and "reset"

    def get_action_meanings(self):
        return list(self.meanings)

    def lives(self):
        return self.frame.lives

    def getScreenGrayscale(self, buffer):
        buffer[:] = self.frame.grey

    def observe(self):
        return np.full((210, 160, 3), self.frame.grey, dtype=np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.log.append("reset")
        self.frames, self.frame = iter(next(self.games)), Frame(lives=self.full_lives)
        return self.observe(), {}

    def step(self, action):
        self.log.append(int(action))
        self.frame = next(self.frames)
        return self.observe(), self.frame.reward, self.frame.over, self.frame.cut, {}


def episodic_life(*games):
    game = ScriptedGame(games)
    env = importlib.import_module("ppo_atari").EpisodicLifeEnv(game)
    env.reset()
    return env, game.log


def test_a_lost_life_ends_the_episode_while_the_game_goes_on():
    env, log = episodic_life([Frame(3), Frame(2, reward=7, grey=10), Frame(2, grey=20), Frame(2), Frame(1)])
    assert env.step(2)[2:4] == (False, False)
    obs, reward, terminated, truncated, _ = env.step(2)
    assert (obs[0, 0, 0], reward, terminated, truncated) == (10, 7, True, False)
    obs, _ = env.reset()
    assert obs[0, 0, 0] == 20
    assert log == ["reset", 2, 2, 0]  # one no-op, and no reset of the game
    assert not env.step(2)[2]
    assert env.step(2)[2]


def test_zero_lives_are_no_end_while_the_game_goes_on():
    env, log = episodic_life([Frame(1), Frame(0), Frame(0), Frame(0, over=True)], [Frame(3)])
    assert env.step(2)[2]
    env.reset()  # its no-op shows 0 lives
    assert not env.step(2)[2]
    assert env.step(2)[2]
    env.reset()
    assert log == ["reset", 2, 0, 2, 2, "reset"]


def test_the_last_life_lost_is_no_end_before_the_game_is_over():
    env, _ = episodic_life([Frame(1), Frame(1), Frame(0), Frame(0), Frame(0, over=True)])
    assert env.step(2)[2]
    env.reset()
    assert [env.step(2)[2] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("end", [Frame(3, over=True), Frame(3, cut=True), Frame(2, cut=True), Frame(0, over=True)])
def test_the_end_of_the_game_resets_it(end):
    env, log = episodic_life([Frame(3), end], [Frame(3), Frame(2)])
    assert env.step(2)[2:4] == (False, False)
    terminated, truncated = env.step(2)[2:4]
    assert terminated == (end.over or end.lives == 2)
    assert truncated == end.cut
    env.reset()
    assert log == ["reset", 2, 2, "reset"]
    assert not env.step(2)[2]
    assert env.step(2)[2]


@pytest.mark.parametrize("end", [Frame(0, over=True), Frame(2, cut=True)])
def test_a_game_that_ends_in_the_noop_of_a_reset_starts_anew(end):
    env, log = episodic_life([Frame(2), end], [Frame(3), Frame(2), Frame(2)])
    assert env.step(2)[2]
    obs, _ = env.reset()
    assert obs[0, 0, 0] == 0
    assert log == ["reset", 2, 0, "reset"]
    assert not env.step(2)[2]  # the three lives of the new game count, not those of the old one
    assert env.step(2)[2]


def test_a_life_lost_in_the_noop_of_a_reset_is_not_counted_twice():
    env, _ = episodic_life([Frame(2), Frame(1), Frame(1)])
    assert env.step(2)[2]
    env.reset()
    assert not env.step(2)[2]


def test_a_bonus_life_is_no_end_and_its_loss_is_one():
    env, _ = episodic_life([Frame(4), Frame(3)])
    assert not env.step(2)[2]
    assert env.step(2)[2]


@pytest.mark.parametrize(
    ("games", "log", "grey"),
    [
        ([[Frame(grey=1), Frame(grey=2)]], [1, 2], 2),
        ([[Frame(over=True)], [Frame(grey=3)]], [1, "reset", 2], 3),
        ([[Frame(cut=True)], [Frame(grey=3)]], [1, "reset", 2], 3),
        ([[Frame(grey=1), Frame(grey=9, over=True)], []], [1, 2, "reset"], 0),
        ([[Frame(grey=1), Frame(grey=9, cut=True)], []], [1, 2, "reset"], 0),
        ([[Frame(over=True)], [Frame(grey=9, over=True)], []], [1, "reset", 2, "reset"], 0),
    ],
)
def test_fire_reset_presses_fire_then_action_2_and_resets_where_one_ends_the_game(games, log, grey):
    game = ScriptedGame(games)
    obs, _ = importlib.import_module("ppo_atari").FireResetEnv(game).reset(seed=1)
    assert game.log == ["reset", *log]
    assert obs[0, 0, 0] == grey


def make_scripted(monkeypatch, **kwargs):
    spec = gym.envs.registration.EnvSpec(
        "Scripted-v0", entry_point=lambda **kwargs: ScriptedGame(**kwargs), kwargs=kwargs, disable_env_checker=True
    )
    monkeypatch.setitem(gym.registry, spec.id, spec)
    return importlib.import_module("ppo_atari").make_env(spec.id, 0, False, Path("runs"))


def has_wrapper(env, cls):
    while isinstance(env, gym.Wrapper):
        if isinstance(env, cls):
            return True
        env = env.env
    return False


@pytest.mark.parametrize(
    ("meanings", "fires"),
    [
        (("NOOP", "FIRE", "UP"), True),
        (("NOOP", "FIRE"), False),
        (("NOOP", "UP", "FIRE"), False),
        (("NOOP", "UPFIRE", "FIRE"), False),
    ],
)
def test_fire_is_pressed_where_action_1_is_fire_and_there_are_three_actions(meanings, fires, monkeypatch):
    env = make_scripted(monkeypatch, games=[[Frame()] * 100], meanings=meanings)
    env.reset(seed=1)
    actions = env.unwrapped.log[1:]
    assert actions[-8:] == ([1] * 4 + [2] * 4 if fires else actions[-8:])
    assert set(actions) == ({0, 1, 2} if fires else {0})


@pytest.mark.parametrize(
    ("game", "fires"), [("Breakout", True), ("Pong", True), ("Qbert", True), ("Freeway", False), ("Skiing", False)]
)
def test_fire_is_pressed_in_the_games_that_know_it(game, fires):
    module = importlib.import_module("ppo_atari")
    env = module.make_env(f"{game}NoFrameskip-v4", 0, False, Path("runs"))
    assert has_wrapper(env, module.FireResetEnv) == fires


def test_preprocessing_of_a_scripted_game(monkeypatch):
    rng = np.random.default_rng(1)
    frames = [Frame(reward=float(r), grey=int(g)) for r, g in rng.integers([-2, 0], [3, 256], (300, 2))]
    env = make_scripted(monkeypatch, games=[frames], meanings=("NOOP", "UP", "DOWN"))
    obs, _ = env.reset(seed=1)
    assert obs.shape == (4, 84, 84)
    assert obs.dtype == np.uint8
    noops = len(env.unwrapped.log) - 1
    assert env.unwrapped.log[1:] == [0] * noops
    expected = [frames[noops - 1].grey] * 4
    assert (obs == np.array(expected)[:, None, None]).all()  # the first frame fills the stack
    signs = set()
    for n in range(noops, noops + 200, 4):
        obs, reward, _, _, _ = env.step(2)
        assert env.unwrapped.log[-4:] == [2] * 4
        expected = [*expected[1:], max(frames[n + 2].grey, frames[n + 3].grey)]
        assert (obs == np.array(expected)[:, None, None]).all()
        total = sum(frame.reward for frame in frames[n : n + 4])
        assert reward == (total > 0) - (total < 0)
        signs.add(float(reward))
    assert signs == {-1.0, 0.0, 1.0}


def test_a_reset_takes_1_to_30_noops(monkeypatch):
    env = make_scripted(monkeypatch, games=[[Frame()] * 35 + [Frame(over=True)]] * 400, meanings=("NOOP", "UP", "DOWN"))
    log, counts = env.unwrapped.log, Counter()
    for _ in range(300):
        del log[:]
        env.reset(seed=1) if not counts else env.reset()
        counts[len(log) - 1] += 1
        assert log == ["reset"] + [0] * (len(log) - 1)
        while not env.step(1)[2]:
            pass
    assert min(counts) == 1
    assert max(counts) == 30
    assert len(counts) > 25


# Atari wrappers, on real games against a replay of the raw emulator


def shrink(screen):
    """Average a 210 x 160 screen by area: 84 pixels of 5 halves each, times 84 pixels of 40 parts of a 21st each."""
    rows = screen.astype(float).repeat(2, axis=0).reshape(84, 5, 160).mean(axis=1)
    return rows.repeat(21, axis=1).reshape(84, 84, 40).mean(axis=2)


class Replay:
    """Plays a raw game by hand as the official wrappers do, written down without any of them."""

    def __init__(self, game, seed, noops):
        self.env = gym.make(f"{game}NoFrameskip-v4", frameskip=1)
        self.env.reset(seed=seed)
        self.ale = self.env.unwrapped.ale
        for _ in range(noops):
            self.env.step(0)

    def now(self):
        return shrink(self.ale.getScreenGrayscale())

    def act(self, action):
        """Return the image and the total reward of four frames, and whether the game is over."""
        screens, total = [], 0
        for _ in range(4):
            _, reward, over, _, _ = self.env.step(action)
            total += reward
            screens.append(self.ale.getScreenGrayscale())
            if over:
                break
        return shrink(np.maximum(screens[-1], screens[-2] if len(screens) > 1 else 0)), total, over


@pytest.mark.parametrize(("game", "steps"), [("Breakout", 250), ("Pong", 100), ("Qbert", 450), ("Freeway", 40)])
def test_real_games_match_a_replay_by_hand(game, steps, monkeypatch):
    """Random steps, to the end of the game if it comes: images, rewards, ends and resets are the emulator's."""
    raw_actions, step = [], ale_py.AtariEnv.step

    def logged_step(self, action):
        raw_actions.append(int(action))
        return step(self, action)

    monkeypatch.setattr(ale_py.AtariEnv, "step", logged_step)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    env = importlib.import_module("ppo_atari").make_env(f"{game}NoFrameskip-v4", 0, False, Path("runs"))
    obs, _ = env.reset(seed=3)
    fire = [1] * 4 + [2] * 4 if game != "Freeway" else []
    noops = len(raw_actions) - len(fire)
    assert 1 <= noops <= 30
    assert raw_actions == [0] * noops + fire

    replay = Replay(game, 3, noops)
    image = replay.now()
    for action in fire[::4]:
        image, _, _ = replay.act(action)
    stack, lives, rewards, lost = [image] * 4, replay.ale.lives(), set(), 0
    rng = np.random.default_rng(1)
    for _ in range(steps):
        assert np.abs(obs - np.stack(stack)).max() <= 1  # one grey level for the rounding
        action = int(rng.integers(env.action_space.n))
        obs, reward, terminated, truncated, _ = env.step(action)
        image, total, over = replay.act(action)
        stack = [*stack[1:], image]
        assert reward == np.sign(total)
        rewards.add(float(reward))
        life_lost, lives = replay.ale.lives() < lives, replay.ale.lives()
        assert (terminated, truncated) == (over or (life_lost and lives > 0), False)
        if over:
            break
        if terminated:
            lost += 1
            obs, _ = env.reset()
            for action in [0, *fire[::4]]:
                image, _, over = replay.act(action)
                assert not over
            stack, lives = [image] * 4, replay.ale.lives()
    # What this game is here for has happened.
    assert {"Breakout": lost == 4, "Pong": -1.0 in rewards, "Qbert": lost == 3, "Freeway": lost == 0}[game]
    assert over == (game in ("Breakout", "Qbert"))
    assert game == "Freeway" or len(rewards) > 1


# The returns that are reported


def reported():
    """The returns and lengths in the run folder, as sorted pairs."""
    events = EventAccumulator(str(next(Path("runs").iterdir()))).Reload()
    returns, lengths = (events.Scalars(f"charts/episodic_{name}") for name in ("return", "length"))
    assert [event.step for event in returns] == [event.step for event in lengths]
    return sorted((r.value, length.value) for r, length in zip(returns, lengths, strict=True))


def long_run(module, monkeypatch, num_steps, **changes):
    """Two updates of `num_steps` random steps in three environments, without learning."""
    seen = record(module, monkeypatch, learn=False, at_random=True)
    sizes = {"num_envs": 3, "num_steps": num_steps, "total_timesteps": 6 * num_steps}
    module.main(module.Args(num_minibatches=1, update_epochs=1, **sizes, **changes))
    return seen


# Points come one by one in the lower rows of Breakout, but by fifty in Asterix, where a clipped return is far smaller.
GAMES = [("Breakout", 150), ("Asterix", 250), ("Breakout with a time limit", 100)]


@pytest.mark.parametrize(("game", "num_steps"), GAMES)
def test_gymnasium_reports_whole_games_with_true_rewards(game, num_steps, monkeypatch):
    games, cut = [], []
    preprocessing = gym.wrappers.AtariPreprocessing
    step, reset = preprocessing.step, preprocessing.reset

    def recorded_reset(self, **kwargs):
        self.game_so_far = []
        return reset(self, **kwargs)

    def recorded_step(self, action):
        result = step(self, action)
        self.game_so_far.append(result[1])
        if result[2] or result[3]:
            games.append((sum(self.game_so_far), len(self.game_so_far)))
            cut.append(result[3])
        return result

    monkeypatch.setattr(preprocessing, "reset", recorded_reset)
    monkeypatch.setattr(preprocessing, "step", recorded_step)
    env_id = f"{game}NoFrameskip-v4"
    if game.endswith("limit"):
        spec = copy.deepcopy(gym.spec("BreakoutNoFrameskip-v4"))
        spec.kwargs["max_num_frames_per_episode"] = 300
        env_id = spec.id = "ShortBreakout-v4"
        monkeypatch.setitem(gym.registry, env_id, spec)
    seen = long_run(importlib.import_module("ppo_atari"), monkeypatch, num_steps, env_id=env_id)
    assert reported() == sorted(games)
    assert len(games) > 2
    assert seen.stacked("dones").sum() > 1.5 * len(games)  # most episodes were single lives
    assert all(cut) == any(cut) == game.endswith("limit")
    if game == "Asterix":
        assert max(games)[0] >= 100


@pytest.mark.parametrize(("game", "num_steps"), GAMES)
def test_envpool_reports_whole_games_with_true_rewards(game, num_steps, monkeypatch):
    module = importlib.import_module("ppo_atari_envpool")
    limited = game.endswith("limit")
    if limited:
        monkeypatch.setattr(module.envpool, "make", partial(module.envpool.make, max_episode_steps=70))
    seen = long_run(module, monkeypatch, num_steps, env_id=f"{game.split()[0]}-v5")
    # A game is over once EnvPool counts its steps anew.
    games = []
    for i in range(3):
        points, elapsed = 0.0, 0
        for t, (_, _, _, _, _, infos) in enumerate(seen.steps):
            if infos["elapsed_step"][i] < elapsed:
                games.append((points, elapsed))
                points = 0.0
            points, elapsed = points + infos["reward"][i], infos["elapsed_step"][i]
            last_step = t == len(seen.steps) - 1
            if last_step and (infos["terminated"][i] or (elapsed == 70 and limited)):
                games.append((points, elapsed))
    assert reported() == sorted(games)
    assert len(games) > 2
    assert seen.stacked("dones").sum() > 1.5 * len(games)
    assert all(length == 70 for _, length in games) == limited
    if game == "Asterix":
        assert max(games)[0] >= 100


# The rows of EnvPool's resets


def test_envpool_spends_the_row_after_an_end_on_the_reset():
    """What the script relies on: that row ignores its action, gives no reward and is no step of the game."""
    module = importlib.import_module("ppo_atari_envpool")
    envs, other = (module.make_envs(module.Args(num_envs=4), [1, 2, 3, 4]) for _ in range(2))
    rng = np.random.default_rng(1)
    before, _ = envs.reset()
    other.reset()
    infos, ended = {"elapsed_step": np.zeros(4)}, np.zeros(4, dtype=bool)
    lost, over = 0, 0
    for _ in range(230):
        action = rng.integers(0, 4, 4)
        last_elapsed = infos["elapsed_step"]
        obs, reward, terminated, truncated, infos = envs.step(action)
        other_obs, other_reward, _, _, other_infos = other.step(np.where(ended, 3 - action, action))
        assert (obs == other_obs).all()
        assert (reward == other_reward).all()
        assert (infos["ram"] == other_infos["ram"]).all()
        for i in range(4):
            if not ended[i]:
                assert infos["elapsed_step"][i] == last_elapsed[i] + 1
                assert (obs[i, :3] == before[i, 1:]).all()
                continue
            assert reward[i] == infos["reward"][i] == 0
            assert not terminated[i]
            assert not truncated[i]
            assert infos["elapsed_step"][i] in (0, last_elapsed[i])
            lost += infos["elapsed_step"][i] > 0
            over += infos["elapsed_step"][i] == 0
        before, ended = obs, terminated | truncated
    assert lost > 4
    assert over > 1


@pytest.fixture(scope="module")
def envpool_run(tmp_path_factory):
    """Three short updates with many ends, some by the time limit and some on the edge of a segment."""
    module = importlib.import_module("ppo_atari_envpool")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("envpool_run"))
        patch.setattr(module.envpool, "make", partial(module.envpool.make, max_episode_steps=31))
        seen = record(module, patch)
        module.main(module.Args(num_envs=3, num_steps=32, total_timesteps=288, num_minibatches=4, update_epochs=2))
    return seen


def row_keys(*fields):
    """One short key per row, which tells rows apart by all that is in them."""
    return [tuple(hash(x.numpy().tobytes()) for x in row) for row in zip(*fields, strict=True)]


def test_envpool_reset_rows_are_flagged_and_no_others(envpool_run):
    dones = torch.cat([envpool_run.stacked("dones"), envpool_run.gae[-1]["next_done"][None]]).bool().numpy()
    assert not dones[0].any()
    elapsed = np.zeros(3)
    for t, (_, _, _, terminated, truncated, infos) in enumerate(envpool_run.steps):
        assert (dones[t + 1] == (terminated | truncated)).all()
        assert (dones[t] == (infos["elapsed_step"] != elapsed + 1)).all()
        elapsed = infos["elapsed_step"]
    assert dones.sum() > 9


def test_envpool_reset_rows_are_in_no_minibatch_and_all_others_in_every_epoch(envpool_run):
    for update, call in enumerate(envpool_run.gae):
        rows = envpool_run.rows[32 * update : 32 * (update + 1)]
        obs, actions, logprobs, values = (torch.stack(column).flatten(0, 1) for column in zip(*rows, strict=True))
        advantages, returns = call["advantages"].flatten(), call["returns"].flatten()
        keys = row_keys(obs, actions, logprobs, values, advantages, returns)
        is_reset = call["dones"].flatten().bool().tolist()
        valid = {key for key, reset in zip(keys, is_reset, strict=True) if not reset}
        reset_images = {key[0] for key, reset in zip(keys, is_reset, strict=True) if reset}
        assert len(reset_images) > 0
        assert len(valid) == 96 - sum(is_reset)
        minibatches = [mb for number, mb in envpool_run.minibatches if number == update]
        assert len(minibatches) == 8
        for epoch in (minibatches[:4], minibatches[4:]):
            learned = [key for mb in epoch for key in row_keys(*mb)]
            assert set(learned) == valid  # with the advantages as they are, normalised by nothing outside the minibatch
            assert not reset_images & {key[0] for key in learned}
            assert max(Counter(learned).values()) <= 2  # free places may show a row again
            assert len(learned) <= 96


def test_envpool_reset_rows_touch_no_other_advantage(envpool_run):
    compute_gae = importlib.import_module("ppo_atari_envpool").compute_gae
    names = ("rewards", "values", "dones", "next_value", "next_done", "gamma", "gae_lambda")
    for call in envpool_run.gae:
        disturbed = {name: call[name] for name in names}
        disturbed["rewards"] = call["rewards"] + 1000 * call["dones"]
        disturbed["values"] = call["values"] - 1000 * call["dones"]
        disturbed["next_value"] = call["next_value"] + 1000 * call["next_done"]
        advantages, returns = compute_gae(**disturbed)
        others = call["dones"] == 0
        assert torch.equal(advantages[others], call["advantages"][others])
        assert torch.equal(returns[others], call["returns"][others])
        assert not torch.equal(advantages, call["advantages"])


def test_no_advantage_crosses_an_envpool_reset(envpool_run):
    """The last row of an episode takes its reward alone, and those before it nothing of the next episode."""
    for call in envpool_run.gae:
        flags = torch.cat([call["dones"], call["next_done"][None]])
        for t, i in torch.nonzero(flags[1:]).tolist():
            expected = call["rewards"][t, i] - call["values"][t, i]
            assert call["advantages"][t, i].item() == pytest.approx(expected.item(), abs=1e-6)


# Seeds and actions


def first_steps(name, seed, monkeypatch):
    """The observations of the first steps of six environments that all get the same action."""
    module = importlib.import_module(name)
    with monkeypatch.context() as patch:
        seen = record(module, patch, learn=False, force_action=0.5 if name == "ppo_continuous_action" else 1)
        sizes = {"num_envs": 6, "num_steps": 8, "total_timesteps": 48, "num_minibatches": 1, "update_epochs": 1}
        # In Freeway the cars drive on from the first frame, so the number of no-ops shows.
        games = {"ppo_atari": {"env_id": "FreewayNoFrameskip-v4"}, "ppo_atari_envpool": {"env_id": "Freeway-v5"}}
        games["ppo_atari_lstm"] = games["ppo_atari"]
        module.main(module.Args(seed=seed, **sizes, **games.get(name, {})))
    return seen.envs, np.stack([seen.first_obs, *(step[1] for step in seen.steps)])


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_environment_has_a_seed_of_its_own(name, monkeypatch):
    envs, obs = first_steps(name, 1, monkeypatch)
    assert (obs == first_steps(name, 1, monkeypatch)[1]).all()
    assert (obs != first_steps(name, 2, monkeypatch)[1]).any()
    courses = len({obs[:, i].tobytes() for i in range(6)})
    # Two of six may take the same number of no-ops by chance.
    assert courses >= 4 if "atari" in name else courses == 6
    if name in GYMNASIUM_SCRIPTS:
        assert len({env.unwrapped.np_random_seed for env in envs.envs}) == 6


def test_continuous_actions_are_stored_unclipped_and_taken_clipped(monkeypatch):
    module = importlib.import_module("ppo_continuous_action")
    seen = record(module, monkeypatch)
    module.main(module.Args(**TINY["ppo_continuous_action"]))
    sampled = torch.stack([action for _, action, _, _ in seen.rows])
    taken = torch.as_tensor(np.stack([step[0] for step in seen.steps]))
    assert sampled.abs().max() > 2
    assert torch.equal(taken, sampled.clamp(-1, 1))
    assert taken.abs().max() == 1
    for update in range(3):
        stored = torch.cat([mb.actions for number, mb in seen.minibatches[:] if number == update][:4])
        expected = sampled[64 * update : 64 * (update + 1)].flatten(0, 1)
        assert torch.equal(stored.sort(0).values, expected.sort(0).values)
