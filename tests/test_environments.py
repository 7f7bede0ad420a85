"""What the learner is given: episode ends, time limits, Atari preprocessing, seeds and the reported returns.

EnvPool's own part is in test_envpool.py.
"""

import copy
import importlib
import inspect
import itertools
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SCRIPTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

GYMNASIUM_SCRIPTS = ["ppo", "ppo_atari", "ppo_atari_lstm", "ppo_continuous_action"]
# That are stacked, in the scripts with Gymnasium's Atari
FRAMES = {"ppo_atari": 4, "ppo_atari_lstm": 1}


# Recording


class RandomPolicy(NamedTuple):
    """Draws an action for each of `rows`, without asking a network, which takes longer than a game."""

    rows: int
    actions: int

    def sample(self):
        return torch.randint(self.actions, (self.rows,))

    def log_prob(self, action):
        return torch.zeros(len(action))


class Recording:
    """What a run of main saw and did, in the order in which it happened."""

    def __init__(self):
        self.envs = None
        self.first_obs = None
        self.steps = []  # (action, obs, reward, terminated, truncated, infos) of every step of the vector environment
        self.rows = []  # the observations that the agent acted on in every step
        self.lstm_states = []  # after every step
        self.gae = []  # the arguments and the results of every call of compute_gae, by name
        self.agents = []  # the agent at the time of each of these calls

    def stacked(self, name):
        return torch.cat([call[name] for call in self.gae])


def record(module, monkeypatch, learn=True, force_action=None, at_random=False):
    """Record what main does from here on; it can be kept from learning, or made to play one action or random ones."""
    seen = Recording()
    make_envs = module.make_envs
    compute_gae = module.compute_gae
    ppo_loss = module.ppo_loss

    def recorded_make_envs(*args, **kwargs):
        seen.envs = make_envs(*args, **kwargs)
        step = seen.envs.step
        reset = seen.envs.reset

        def recorded_step(action):
            if force_action is not None:
                action = np.full_like(action, force_action)
            seen.rows.append(seen.agent.last[0].clone())
            seen.lstm_states += [state.clone() for state in seen.agent.last[1:]]
            result = step(action)
            seen.steps.append(copy.deepcopy((action, *result)))
            return result

        def recorded_reset(**kwargs):
            obs, infos = reset(**kwargs)
            seen.first_obs = copy.deepcopy(obs)
            return obs, infos

        seen.envs.step = recorded_step
        seen.envs.reset = recorded_reset
        return seen.envs

    class RecordedAgent(module.Agent):
        def __init__(self, *args):
            super().__init__(*args)
            seen.agent = self

        def forward(self, x, *more):
            if at_random:
                actions = seen.envs.single_action_space.n
                result = (RandomPolicy(len(x), actions), torch.zeros(len(x)), *more[:1])
            else:
                result = super().forward(x, *more)
            self.last = (x.detach(), *result[2:])
            return result

    def recorded_gae(*args, **kwargs):
        call = inspect.signature(compute_gae).bind(*args, **kwargs).arguments
        call = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in call.items()}
        result = compute_gae(*args, **kwargs)
        seen.gae.append(call | {"advantages": result[0].clone(), "returns": result[1].clone()})
        seen.agents.append(copy.deepcopy(seen.agent))
        return result

    def recorded_loss(agent, mb, *args):
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
    """Its observation tells the number of the environment, of the episode, and of the steps taken in it.

    As an image of `frames` equal channels, it shows each number as a band of 21 rows.
    """

    def __init__(self, number, frames=0, continuous=False):
        self.number = number
        self.frames = frames
        self.episode = -1
        self.observation_space = (
            gym.spaces.Box(0, 255, (frames, 84, 84), np.uint8)
            if frames
            else gym.spaces.Box(0, 255, (4,), np.float64)
        )
        self.action_space = (
            gym.spaces.Box(-0.5, 0.5, (2,)) if continuous else gym.spaces.Discrete(3)
        )

    def observe(self):
        obs = np.array(
            [self.number, self.episode, self.clock, 1], dtype=self.observation_space.dtype
        )
        if not self.frames:
            return obs
        return np.tile(10 * obs.repeat(21)[:, None], (self.frames, 1, 84))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode = self.episode + 1
        self.clock = 0
        return self.observe(), {}

    def step(self, action):
        reward = clock_reward(self.number, self.episode, self.clock, action)
        self.clock += 1
        length, terminated, truncated = ENDS[(self.number + self.episode) % len(ENDS)]
        ends = self.clock == length
        return self.observe(), reward, ends and terminated, ends and truncated, {}


def read_clock(name, obs):
    """Return the four numbers that an observation tells, as the learner got it."""
    if name in FRAMES:
        assert obs.shape == (FRAMES[name], 84, 84)
        return (obs[0, ::21, 0] / 10).tolist()
    return (2 * (obs - 1)).tolist() if name == "ppo_continuous_action" else obs.tolist()


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
    continuous = name == "ppo_continuous_action"
    numbers = itertools.count()
    monkeypatch.setattr(
        module,
        "make_env",
        lambda *_: Clock(next(numbers), FRAMES.get(name, 0), continuous),
    )
    if continuous:  # a normalisation that can be undone
        monkeypatch.setattr(module.VecNormalize, "normalize", lambda self, obs: obs / 2 + 1)
        monkeypatch.setattr(module.VecNormalize, "scale", lambda self, reward, done: 3 * reward)
    seen = record(module, monkeypatch)
    module.main(
        module.Args(num_envs=2, num_steps=16, total_timesteps=96, num_minibatches=2, **changes)
    )
    return seen


@pytest.mark.parametrize("name", [*GYMNASIUM_SCRIPTS, "ppo_multidiscrete"])
def test_gymnasium_environments_reset_in_the_same_step(name):
    module = importlib.import_module(name)
    envs = module.make_envs(module.Args(num_envs=1))
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
    envs.close()


@pytest.mark.parametrize("name", GYMNASIUM_SCRIPTS)
def test_every_row_is_a_step_that_was_taken(name, monkeypatch):
    seen = run_clock(name, monkeypatch)
    rewards = seen.stacked("rewards")
    dones = seen.stacked("dones")
    factor = 3 if name == "ppo_continuous_action" else 1
    assert len(seen.rows) == len(rewards) == 48
    for number in range(2):
        course = expected_clock_rows(number, len(rewards))
        for t, (episode, clock, terminated, truncated) in enumerate(course):
            numbers = read_clock(name, seen.rows[t][number])
            assert numbers == pytest.approx([number, episode, clock, 1])
            action = seen.steps[t][0][number]
            assert rewards[t, number].item() == pytest.approx(
                factor * clock_reward(number, episode, clock, action)
            )
            assert dones[t, number] == (terminated or truncated)


def value_of(seen, name, t, number, obs):
    """Return the agent's value of an observation that would have followed step t."""
    agent = seen.agents[t // 16]
    with torch.no_grad():
        if name != "ppo_atari_lstm":
            return agent(obs[None])[1].item()
        state = seen.lstm_states[t][number, None]
        value = agent(obs[None], state, torch.zeros(1))[1].item()
        # Another state would show.
        assert (
            abs(agent(obs[None], torch.zeros_like(state), torch.zeros(1))[1].item() - value) > 1e-4
        )
        if t % 16 > 0 and seen.stacked("dones")[t - 1, number] == 0:
            before = seen.lstm_states[t - 1][number, None]
            assert abs(agent(obs[None], before, torch.zeros(1))[1].item() - value) > 1e-4
        return value


@pytest.mark.parametrize("name", GYMNASIUM_SCRIPTS)
@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_time_limit_is_an_end_unless_it_is_bootstrapped(name, bootstrap, monkeypatch):
    seen = run_clock(name, monkeypatch, bootstrap_truncated=bootstrap, gamma=0.9)
    factor = 3 if name == "ppo_continuous_action" else 1
    rewards = seen.stacked("rewards")
    dones = seen.stacked("dones")
    bootstrapped = 0
    for number in range(2):
        clock_env = Clock(number, FRAMES.get(name, 0))
        for t, (episode, clock, terminated, truncated) in enumerate(
            expected_clock_rows(number, len(rewards))
        ):
            expected = factor * clock_reward(number, episode, clock, seen.steps[t][0][number])
            if bootstrap and truncated and not terminated:
                clock_env.episode = episode
                clock_env.clock = clock + 1
                final = torch.as_tensor(clock_env.observe())
                final = final if name in FRAMES else final.float()
                final = final / 2 + 1 if name == "ppo_continuous_action" else final
                value = value_of(seen, name, t, number, final)
                expected += 0.9 * value
                bootstrapped += 1
                assert abs(value) > 1e-3  # otherwise nothing could be told apart
            assert rewards[t, number].item() == pytest.approx(expected, abs=1e-5)
            assert dones[t, number] == (
                terminated or truncated
            )  # the lambda-chain is cut in either case
    assert bootstrapped == (13 if bootstrap else 0)


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
        self.games = iter(games)
        self.meanings = meanings
        self.full_lives = lives
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
        self.frames = iter(next(self.games))
        self.frame = Frame(lives=self.full_lives)
        return self.observe(), {}

    def step(self, action):
        self.log.append(int(action))
        self.frame = next(self.frames)
        return self.observe(), self.frame.reward, self.frame.over, self.frame.cut, {}


def episodic_life(name, *games):
    game = ScriptedGame(games)
    env = importlib.import_module(name).EpisodicLifeEnv(game)
    env.reset()
    return env, game.log


def fire_reset(name, *games):
    game = ScriptedGame(games)
    module = importlib.import_module(name)
    return module.FireResetEnv(module.EpisodicLifeEnv(game)), game.log


@pytest.mark.parametrize("name", FRAMES)
def test_a_lost_life_ends_the_episode_while_the_game_goes_on(name):
    env, log = episodic_life(
        name, [Frame(3), Frame(2, reward=7, grey=10), Frame(2, grey=20), Frame(2), Frame(1)]
    )
    assert env.step(2)[2:4] == (False, False)
    obs, reward, terminated, truncated, _ = env.step(2)
    assert (obs[0, 0, 0], reward, terminated, truncated) == (10, 7, True, False)
    obs, _ = env.reset()
    assert obs[0, 0, 0] == 20
    assert log == ["reset", 2, 2, 0]  # one no-op, and no reset of the game
    assert not env.step(2)[2]
    assert env.step(2)[2]


@pytest.mark.parametrize("name", FRAMES)
def test_zero_lives_are_no_end_while_the_game_goes_on(name):
    env, log = episodic_life(name, [Frame(1), Frame(0), Frame(0), Frame(0, over=True)], [Frame(3)])
    assert env.step(2)[2]
    env.reset()  # its no-op shows 0 lives
    assert not env.step(2)[2]
    assert env.step(2)[2]
    env.reset()
    assert log == ["reset", 2, 0, 2, 2, "reset"]


@pytest.mark.parametrize("name", FRAMES)
def test_the_last_life_lost_is_no_end_before_the_game_is_over(name):
    env, _ = episodic_life(name, [Frame(1), Frame(1), Frame(0), Frame(0), Frame(0, over=True)])
    assert env.step(2)[2]
    env.reset()
    assert [env.step(2)[2] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    "end", [Frame(3, over=True), Frame(3, cut=True), Frame(2, cut=True), Frame(0, over=True)]
)
@pytest.mark.parametrize("name", FRAMES)
def test_the_end_of_the_game_resets_it(name, end):
    env, log = episodic_life(name, [Frame(3), end], [Frame(3), Frame(2)])
    assert env.step(2)[2:4] == (False, False)
    terminated, truncated = env.step(2)[2:4]
    assert terminated == (end.over or end.lives == 2)
    assert truncated == end.cut
    env.reset()
    assert log == ["reset", 2, 2, "reset"]
    assert not env.step(2)[2]
    assert env.step(2)[2]


@pytest.mark.parametrize("end", [Frame(0, over=True), Frame(2, cut=True)])
@pytest.mark.parametrize("name", FRAMES)
def test_a_game_that_ends_in_the_noop_of_a_reset_starts_anew(name, end):
    env, log = episodic_life(name, [Frame(2), end], [Frame(3), Frame(2), Frame(2)])
    assert env.step(2)[2]
    obs, _ = env.reset()
    assert obs[0, 0, 0] == 0
    assert log == ["reset", 2, 0, "reset"]
    assert not env.step(2)[2]  # the three lives of the new game count, not those of the old one
    assert env.step(2)[2]


@pytest.mark.parametrize("name", FRAMES)
def test_a_life_lost_in_the_noop_of_a_reset_is_not_counted_twice(name):
    env, _ = episodic_life(name, [Frame(2), Frame(1), Frame(1)])
    assert env.step(2)[2]
    env.reset()
    assert not env.step(2)[2]


@pytest.mark.parametrize("name", FRAMES)
def test_a_bonus_life_is_no_end_and_its_loss_is_one(name):
    env, _ = episodic_life(name, [Frame(4), Frame(3)])
    assert not env.step(2)[2]
    assert env.step(2)[2]


# Each with what is done after the game's first frame, and the frame with which the learner begins.
FIRE_RESETS = [
    ([[Frame(grey=1), Frame(grey=2)]], [1, 2], 2),
    ([[Frame(over=True)], [Frame(grey=3)]], [1, "reset", 2], 3),
    ([[Frame(cut=True)], [Frame(grey=3)]], [1, "reset", 2], 3),
    ([[Frame(grey=1), Frame(grey=9, over=True)], []], [1, 2, "reset"], 0),
    ([[Frame(grey=1), Frame(grey=9, cut=True)], []], [1, 2, "reset"], 0),
    ([[Frame(over=True)], [Frame(grey=9, over=True)], []], [1, "reset", 2, "reset"], 0),
    # A lost life is an end here, too.
    ([[Frame(2), Frame(2, grey=4), Frame(2, grey=5)]], [1, 0, 2], 5),
    ([[Frame(3), Frame(2), Frame(2, grey=6)]], [1, 2, 0], 6),
    ([[Frame(2), Frame(2, over=True)], [Frame(3, grey=7)]], [1, 0, "reset", 2], 7),
]


@pytest.mark.parametrize(("games", "log", "grey"), FIRE_RESETS)
@pytest.mark.parametrize("name", FRAMES)
def test_fire_reset_presses_fire_then_action_2_and_resets_where_one_ends_the_episode(
    name, games, log, grey
):
    env, actions = fire_reset(name, *games)
    obs, _ = env.reset(seed=1)
    assert actions == ["reset", *log]
    assert obs[0, 0, 0] == grey


@pytest.mark.parametrize("name", FRAMES)
def test_fire_is_pressed_after_every_lost_life(name):
    env, log = fire_reset(
        name,
        [Frame()] * 3 + [Frame(2)] * 5 + [Frame(1), Frame(1), Frame(1, grey=3), Frame(1, grey=4)],
    )
    env.reset(seed=1)
    assert [env.step(2)[2] for _ in range(2)] == [False, True]
    env.reset()
    assert [env.step(0)[2] for _ in range(2)] == [False, True]
    obs, _ = env.reset()
    assert log == ["reset", 1, 2, 2, 2, 0, 1, 2, 0, 0, 0, 1, 2]
    assert obs[0, 0, 0] == 4


def make_scripted(name, monkeypatch, **kwargs):
    spec = gym.envs.registration.EnvSpec(
        "Scripted-v0",
        entry_point=lambda **kwargs: ScriptedGame(**kwargs),
        kwargs=kwargs,
        disable_env_checker=True,
    )
    monkeypatch.setitem(gym.registry, spec.id, spec)
    module = importlib.import_module(name)
    return module.make_env(f"tests:{spec.id}")


@pytest.mark.parametrize(
    ("meanings", "fires"),
    [
        (("NOOP", "FIRE", "UP"), True),
        (("NOOP", "FIRE"), False),
        (("NOOP", "UP", "FIRE"), False),
        (("NOOP", "UPFIRE", "FIRE"), False),
    ],
)
@pytest.mark.parametrize("name", FRAMES)
def test_fire_is_pressed_where_action_1_is_fire_and_there_are_three_actions(
    name, meanings, fires, monkeypatch
):
    env = make_scripted(name, monkeypatch, games=[[Frame()] * 100], meanings=meanings)
    env.reset(seed=1)
    actions = env.unwrapped.log[1:]
    assert actions[-8:] == ([1] * 4 + [2] * 4 if fires else actions[-8:])
    assert set(actions) == ({0, 1, 2} if fires else {0})


@pytest.mark.parametrize(
    ("game", "fires"),
    [("Breakout", True), ("Pong", True), ("Qbert", True), ("Freeway", False), ("Skiing", False)],
)
@pytest.mark.parametrize("name", FRAMES)
def test_fire_is_pressed_in_the_games_that_know_it(name, game, fires):
    env = importlib.import_module(name).make_env(f"{game}NoFrameskip-v4")
    assert ("<FireResetEnv" in str(env)) == fires


@pytest.mark.parametrize("name", FRAMES)
def test_preprocessing_of_a_scripted_game(name, monkeypatch):
    rng = np.random.default_rng(1)
    frames = [
        Frame(reward=float(r), grey=int(g)) for r, g in rng.integers([-2, 0], [3, 256], (300, 2))
    ]
    env = make_scripted(name, monkeypatch, games=[frames], meanings=("NOOP", "UP", "DOWN"))
    obs, _ = env.reset(seed=1)
    assert obs.shape == (FRAMES[name], 84, 84)
    assert obs.dtype == np.uint8
    noops = len(env.unwrapped.log) - 1
    assert env.unwrapped.log[1:] == [0] * noops
    expected = [frames[noops - 1].grey] * FRAMES[name]
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


@pytest.mark.parametrize("name", FRAMES)
def test_a_reset_takes_1_to_30_noops(name, monkeypatch):
    games = [[Frame()] * 35 + [Frame(over=True)]] * 400
    env = make_scripted(name, monkeypatch, games=games, meanings=("NOOP", "UP", "DOWN"))
    log = env.unwrapped.log
    counts = Counter()
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
        screens = []
        total = 0
        for _ in range(4):
            _, reward, over, _, _ = self.env.step(action)
            total += reward
            screens.append(self.ale.getScreenGrayscale())
            if over:
                break
        return shrink(np.maximum(screens[-1], screens[-2] if len(screens) > 1 else 0)), total, over


@pytest.mark.parametrize(
    ("game", "steps"), [("Breakout", 250), ("Pong", 100), ("Qbert", 450), ("Freeway", 40)]
)
@pytest.mark.parametrize("name", FRAMES)
def test_real_games_match_a_replay_by_hand(name, game, steps, monkeypatch):
    """Random steps, to the end of the game if it comes: images, rewards, ends and resets are the emulator's."""
    raw_actions = []
    step = ale_py.AtariEnv.step

    def logged_step(self, action):
        raw_actions.append(int(action))
        return step(self, action)

    monkeypatch.setattr(ale_py.AtariEnv, "step", logged_step)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    env = importlib.import_module(name).make_env(f"{game}NoFrameskip-v4")
    obs, _ = env.reset(seed=3)
    fire = [1] * 4 + [2] * 4 if game != "Freeway" else []
    noops = len(raw_actions) - len(fire)
    assert 1 <= noops <= 30
    assert raw_actions == [0] * noops + fire

    replay = Replay(game, 3, noops)
    image = replay.now()
    for action in fire[::4]:
        image, _, _ = replay.act(action)
    stack = [image] * FRAMES[name]
    lives = replay.ale.lives()
    rewards = set()
    lost = 0
    rng = np.random.default_rng(1)
    for _ in range(steps):
        assert np.abs(obs - np.stack(stack)).max() <= 1  # one grey level for the rounding
        action = int(rng.integers(env.action_space.n))
        obs, reward, terminated, truncated, _ = env.step(action)
        image, total, over = replay.act(action)
        stack = [*stack[1:], image]
        assert reward == np.sign(total)
        rewards.add(float(reward))
        life_lost = replay.ale.lives() < lives
        lives = replay.ale.lives()
        assert (terminated, truncated) == (over or (life_lost and lives > 0), False)
        if over:
            break
        if terminated:
            lost += 1
            obs, _ = env.reset()
            for action in [0, *fire[::4]]:
                image, _, over = replay.act(action)
                assert not over
            stack = [image] * FRAMES[name]
            lives = replay.ale.lives()
    # What this game is here for has happened.
    assert {
        "Breakout": lost == 4,
        "Pong": -1.0 in rewards,
        "Qbert": lost == 3,
        "Freeway": lost == 0,
    }[game]
    assert over == (game in ("Breakout", "Qbert"))
    assert game == "Freeway" or len(rewards) > 1


# The returns that are reported


def reported():
    """The returns and lengths in the run folder, as sorted pairs."""
    events = EventAccumulator(str(next(Path("runs").iterdir()))).Reload()
    returns, lengths = (events.Scalars(f"charts/episodic_{what}") for what in ("return", "length"))
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


@pytest.mark.parametrize(
    ("name", "game", "num_steps"),
    [*(("ppo_atari", *game) for game in GAMES), ("ppo_atari_lstm", *GAMES[1])],
)
def test_gymnasium_reports_whole_games_with_true_rewards(name, game, num_steps, monkeypatch):
    games = []
    cut = []
    preprocessing = gym.wrappers.AtariPreprocessing
    step = preprocessing.step
    reset = preprocessing.reset

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
    seen = long_run(importlib.import_module(name), monkeypatch, num_steps, env_id=env_id)
    assert reported() == sorted(games)
    assert len(games) > 2
    assert seen.stacked("dones").sum() > 1.5 * len(games)  # most episodes were single lives
    assert all(cut) == any(cut) == game.endswith("limit")
    if game == "Asterix":
        assert max(games)[0] >= 100


# Seeds and actions


def first_steps(name, seed, monkeypatch):
    """The observations of the first steps of six environments that all get the same action."""
    module = importlib.import_module(name)
    with monkeypatch.context() as patch:
        seen = record(
            module, patch, learn=False, force_action=0.5 if name == "ppo_continuous_action" else 1
        )
        sizes = {"num_envs": 6, "num_steps": 8, "total_timesteps": 48}
        sizes |= {"num_minibatches": 1, "update_epochs": 1}
        # In Freeway the cars drive on from the first frame, so the number of no-ops shows.
        games = {
            "ppo_atari": {"env_id": "FreewayNoFrameskip-v4"},
            "ppo_atari_envpool": {"env_id": "Freeway-v5"},
        }
        games["ppo_atari_lstm"] = games["ppo_atari"]
        # In the other tasks nothing is left to chance.
        games["ppo_multidiscrete"] = {"env_id": "microrts:MicrortsRandomEnemyShapedReward3-v1"}
        module.main(module.Args(seed=seed, **sizes, **games.get(name, {})))
    return seen.envs, np.stack([seen.first_obs, *(step[1] for step in seen.steps)])


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_environment_has_a_seed_of_its_own(name, monkeypatch):
    envs, obs = first_steps(name, 1, monkeypatch)
    assert (obs != first_steps(name, 2, monkeypatch)[1]).any()
    courses = len({obs[:, i].tobytes() for i in range(6)})
    # Two of six may take the same number of no-ops, or meet the same orders, by chance.
    by_chance = "atari" in name or name == "ppo_multidiscrete"
    assert courses >= 4 if by_chance else courses == 6
    if name in GYMNASIUM_SCRIPTS:
        assert len({env.unwrapped.np_random_seed for env in envs.unwrapped.envs}) == 6


class Lever(gym.Env):
    """Takes a vector of actions with bounds of their own, and notes what it got."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    low = np.array([-0.5, -1, -np.inf, 0.1, -0.2, -2], dtype=np.float32)
    high = np.array([0.5, 0.3, np.inf, 1.5, 0, 2], dtype=np.float32)
    action_space = gym.spaces.Box(low, high)

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.taken.append(action.copy())
        return self.observation_space.sample(), 0.0, False, False, {}


def test_continuous_actions_are_stored_unclipped_and_taken_clipped(monkeypatch):
    module = importlib.import_module("ppo_continuous_action")
    monkeypatch.setattr(Lever, "taken", [], raising=False)
    spec = gym.envs.registration.EnvSpec("Lever-v0", entry_point=Lever, disable_env_checker=True)
    monkeypatch.setitem(gym.registry, spec.id, spec)
    seen = record(module, monkeypatch)
    ppo_loss = module.ppo_loss
    stored = []

    def recorded_loss(agent, mb, *args):
        stored.extend(mb.actions.tolist())
        return ppo_loss(agent, mb, *args)

    monkeypatch.setattr(module, "ppo_loss", recorded_loss)
    sizes = {"num_envs": 1, "num_steps": 64, "total_timesteps": 64}
    sizes |= {"num_minibatches": 4, "update_epochs": 1}
    module.main(module.Args(env_id="Lever-v0", **sizes))
    sampled = torch.as_tensor(np.concatenate([step[0] for step in seen.steps]))  # (64, 6)
    below = (sampled < torch.as_tensor(Lever.low)).any(dim=0)
    assert below.tolist() == [True, True, False, True, True, True]
    expected = sampled.clamp(torch.as_tensor(Lever.low), torch.as_tensor(Lever.high))
    assert torch.equal(torch.as_tensor(np.stack(Lever.taken)), expected)
    assert sorted(stored) == sorted(sampled.tolist())
