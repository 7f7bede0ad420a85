"""EnvPool's Atari games: the official resets in the same step, exactly the games of ppo_atari.py, and no other rows."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_environments import FIRE_RESETS, GAMES, Frame, has_wrapper, long_run, record, reported

import ppo_atari
import ppo_atari_envpool as script


def tap(pool):
    """Keep what each step of EnvPool's, and its reset, got and gave, in the order of the calls."""
    calls = []
    real_reset = pool.reset
    real_step = pool.step

    def keep(ids, actions, obs, rewards, terminated, truncated, infos):
        infos = {
            name: infos[name].copy()
            for name in ("lives", "reward", "terminated", "elapsed_step", "ram")
        }
        fields = [x.copy() for x in (ids, actions, obs, rewards, terminated, truncated)]
        names = ("ids", "actions", "frames", "rewards", "ended", "truncated")
        calls.append(SimpleNamespace(**dict(zip(names, fields, strict=True)), **infos))

    def reset():
        obs, infos = real_reset()
        nothing = np.zeros(len(obs))
        keep(np.arange(len(obs)), nothing - 1, obs, nothing, nothing, nothing, infos)
        return obs, infos

    def step(actions, ids):
        result = real_step(actions, ids)
        keep(ids, actions, *result)
        return result

    pool.reset = reset
    pool.step = step
    return calls


def tap_every_pool(monkeypatch, **changes):
    """Change some of EnvPool's settings, and return a list of the calls to each pool that is made from now on."""
    make = script.envpool.make
    pools = []

    def tapped_make(*args, **kwargs):
        pool = make(*args, **kwargs | changes)
        pools.append(tap(pool))
        return pool

    monkeypatch.setattr(script.envpool, "make", tapped_make)
    return pools


# Games that follow a script


class ScriptedPool:
    """A stand-in for EnvPool: game number n shows the frames of games[n] one after the other, at one frame a step.

    As in EnvPool, the step after a game's end is spent on the reset, and its action is ignored.
    """

    def __init__(self, games):
        self.games = iter(games)
        self.log = []  # the actions, and "reset"
        self.over = True

    def reset(self):
        frames, _, _, _, infos = self.step(np.zeros(1), np.zeros(1, dtype=int))
        return frames, infos

    def step(self, actions, ids):
        assert ids.tolist() == [0]
        if self.over:
            self.log.append("reset")
            self.frames = iter(next(self.games))
            frame = Frame()
            self.elapsed = 0
        else:
            self.log.append(int(actions[0]))
            frame = next(self.frames)
            self.elapsed += 1
        self.over = frame.over or frame.cut
        infos = {
            "lives": frame.lives,
            "reward": frame.reward,
            "terminated": frame.over,
            "elapsed_step": self.elapsed,
        }
        return (
            np.full((1, 1, 84, 84), frame.grey, dtype=np.uint8),
            np.array([np.sign(frame.reward)]),
            np.array([frame.over and not frame.cut]),
            np.array([frame.cut]),
            {
                name: np.array([x], dtype=np.int32 if name != "reward" else float)
                for name, x in infos.items()
            },
        )


class Scripted:
    """EnvPoolAtari over a scripted pool, seen as a single environment."""

    def __init__(self, monkeypatch, env_id, *games):
        pool = ScriptedPool(games)
        monkeypatch.setattr(script.envpool, "make", lambda *args, **kwargs: pool)
        self.log = pool.log
        self.envs = script.make_envs(script.Args(env_id=env_id, num_envs=1), Path("runs"))
        self.stack, _ = self.envs.reset(seed=[1])

    def step(self, action):
        """Return the last frame that was seen, terminated and truncated."""
        self.stack, self.reward, terminated, truncated, self.infos = self.envs.step(
            np.array([action])
        )
        return greys(self.infos["final_obs"])[-1], terminated[0], truncated[0]


def greys(stack):
    return stack[0, :, 0, 0].tolist()


def test_a_lost_life_ends_the_episode_while_the_game_goes_on(monkeypatch):
    game = [Frame(3), Frame(2, reward=7, grey=10), Frame(2, grey=20), Frame(2), Frame(1), Frame(1)]
    env = Scripted(monkeypatch, "Freeway-v5", game)
    assert env.step(2) == (0, False, False)
    assert env.step(2) == (10, True, False)
    assert env.reward == [1]
    assert greys(env.stack) == [20] * 4
    assert env.log == ["reset", 2, 2, 0]  # one no-op, and no reset of the game
    assert "episode" not in env.infos
    assert [env.step(2)[1] for _ in range(2)] == [False, True]


def test_zero_lives_are_no_end_while_the_game_goes_on(monkeypatch):
    env = Scripted(
        monkeypatch, "Freeway-v5", [Frame(1), Frame(0), Frame(0), Frame(0, over=True)], []
    )
    assert env.step(2)[1]  # its no-op shows 0 lives
    assert [env.step(2)[1] for _ in range(2)] == [False, True]
    assert env.log == ["reset", 2, 0, 2, 2, "reset"]


def test_the_last_life_lost_is_no_end_before_the_game_is_over(monkeypatch):
    game = [Frame(1), Frame(1), Frame(0), Frame(0), Frame(0, over=True)]
    env = Scripted(monkeypatch, "Freeway-v5", game, [])
    assert env.step(2)[1]
    assert [env.step(2)[1] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    "end", [Frame(3, over=True), Frame(3, cut=True), Frame(2, cut=True), Frame(0, over=True)]
)
def test_the_end_of_the_game_resets_it(end, monkeypatch):
    env = Scripted(
        monkeypatch, "Freeway-v5", [Frame(3, reward=4), end], [Frame(3), Frame(2), Frame(2)]
    )
    assert env.step(2)[1:] == (False, False)
    assert env.step(2)[1:] == (end.over or end.lives == 2, end.cut)
    assert env.log == ["reset", 2, 2, "reset"]
    assert (env.infos["episode"]["r"], env.infos["episode"]["l"], env.infos["_episode"]) == (
        4,
        2,
        True,
    )
    assert [env.step(2)[1] for _ in range(2)] == [False, True]


@pytest.mark.parametrize("end", [Frame(0, reward=2, over=True), Frame(2, reward=2, cut=True)])
def test_a_game_that_ends_in_the_noop_of_a_reset_starts_anew_and_is_reported(end, monkeypatch):
    env = Scripted(
        monkeypatch, "Freeway-v5", [Frame(2, reward=3, grey=1), end], [Frame(3), Frame(2), Frame(2)]
    )
    assert env.step(2) == (1, True, False)
    assert env.log == ["reset", 2, 0, "reset"]
    assert greys(env.stack) == [0] * 4
    assert (env.infos["episode"]["r"], env.infos["episode"]["l"], env.infos["_episode"]) == (
        5,
        2,
        True,
    )
    # The three lives of the new game count, not those of the old one.
    assert [env.step(2)[1] for _ in range(2)] == [False, True]


def test_a_life_lost_in_the_noop_of_a_reset_is_not_counted_twice(monkeypatch):
    env = Scripted(monkeypatch, "Freeway-v5", [Frame(2), Frame(1), Frame(1)])
    assert [env.step(2)[1] for _ in range(2)] == [True, False]


def test_a_bonus_life_is_no_end_and_its_loss_is_one(monkeypatch):
    env = Scripted(monkeypatch, "Freeway-v5", [Frame(4), Frame(3), Frame(3)])
    assert [env.step(2)[1] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(("games", "log", "grey"), FIRE_RESETS)
def test_a_reset_presses_fire_then_action_2_and_resets_where_one_ends_the_episode(
    games, log, grey, monkeypatch
):
    env = Scripted(monkeypatch, "Breakout-v5", *games)
    assert env.log == ["reset", *log]
    assert greys(env.stack) == [grey] * 4


def test_fire_is_pressed_after_every_lost_life_and_every_game(monkeypatch):
    first = [Frame()] * 3 + [Frame(2)] * 4 + [Frame(2, grey=4), Frame(2, over=True)]
    env = Scripted(monkeypatch, "Breakout-v5", first, [Frame(), Frame(3, grey=5)])
    assert [env.step(2)[1] for _ in range(2)] == [False, True]
    assert [env.step(0)[1] for _ in range(2)] == [False, True]
    assert env.log == ["reset", 1, 2, 2, 2, 0, 1, 2, 0, 0, "reset", 1, 2]
    assert greys(env.stack) == [5] * 4


def test_the_stack_holds_the_last_four_frames_of_one_episode(monkeypatch):
    game = [Frame(grey=g) for g in (1, 2, 3)] + [
        Frame(2, grey=4),
        Frame(2, grey=5),
        Frame(2, grey=6),
        Frame(2, grey=7),
    ]
    env = Scripted(monkeypatch, "Freeway-v5", game)
    stacks = []
    final = []
    for _ in range(6):
        env.step(1)
        stacks.append(greys(env.stack))
        final.append(greys(env.infos["final_obs"]))
    assert final[:4] == [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]
    assert stacks[:3] == final[:3]
    assert stacks[3:] == [[5, 5, 5, 5], [5, 5, 5, 6], [5, 5, 6, 7]]
    assert final[4:] == stacks[4:]


# Real games against those of ppo_atari.py


def noops_by_ram(game):
    """Return how many no-ops after a reset lead to each content of the emulator's memory."""
    env = gym.make(f"{game}NoFrameskip-v4", frameskip=1)
    env.reset(seed=1)
    noops = {}
    for count in range(31):
        noops[env.unwrapped.ale.getRAM().tobytes()] = count
        env.step(0)
    return noops


class Noops:
    """Stands in for the random numbers of an environment: gives it the numbers of no-ops that EnvPool took."""

    def __init__(self):
        self.waiting = []

    def integers(self, low, high):
        assert (low, high) == (1, 31)
        return self.waiting.pop(0)


class Twin:
    """A game of EnvPool's, played again by the wrappers of ppo_atari.py."""

    def __init__(self, game):
        self.env = ppo_atari.make_env(f"{game}NoFrameskip-v4", 0, False, Path("runs"))
        self.noops = self.env.unwrapped.np_random = Noops()

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        final_obs = obs
        episodes = [info.get("episode")]
        if terminated or truncated:
            obs, info = self.env.reset()
            episodes.append(info.get("episode"))
        episodes = [(episode["r"], episode["l"]) for episode in episodes if episode]
        return obs, reward, terminated, truncated, final_obs, episodes


# The games in which something differs, the number of steps, and the least numbers of lives and games lost in them.
REPLAYS = [
    ("Breakout", 450, 12, 2),  # five lives, FIRE
    ("Pong", 1000, 0, 2),  # no lives, FIRE, points for the other side
    ("MsPacman", 700, 4, 2),  # three lives, no FIRE
    ("Freeway", 300, 0, 0),  # neither lives nor FIRE
    ("Qbert", 500, 5, 1),  # four lives, FIRE
]


@pytest.mark.parametrize(("game", "steps", "lives_lost", "games_over"), REPLAYS)
def test_envpool_plays_the_games_of_ppo_atari(game, steps, lives_lost, games_over, monkeypatch):
    """Same actions and same numbers of no-ops: same rewards, ends, lives, reports and frames, in two environments.

    The frames are equal in all their pixels, but for the last one of a game, where it ends between two frames that
    count: the wrappers take the maximum with what they saw before. That one is seen by nobody.
    """
    pools = tap_every_pool(monkeypatch)
    noops = noops_by_ram(game)
    taken = []
    envs = script.make_envs(script.Args(env_id=f"{game}-v5", num_envs=2), Path("runs"))
    twins = [Twin(game), Twin(game)]

    def tell_noops():
        for call in pools[0]:
            for i, elapsed, ram in zip(call.ids, call.elapsed_step, call.ram, strict=True):
                if elapsed == 0:
                    twins[i].noops.waiting.append(noops[ram.tobytes()])
                    taken.append(noops[ram.tobytes()])
        pools[0].clear()

    stack, _ = envs.reset(seed=[1, 2**32 - 1])
    tell_noops()
    assert envs.single_action_space == twins[0].env.action_space
    for i, twin in enumerate(twins):
        assert (stack[i].numpy() == twin.env.reset()[0]).all()
    rng = np.random.default_rng(1)
    over = 0
    lost = 0
    points = set()
    for _ in range(steps):
        actions = rng.integers(envs.single_action_space.n, size=2)
        stack, rewards, terminated, truncated, infos = envs.step(actions)
        tell_noops()
        for i, twin in enumerate(twins):
            obs, reward, *ends, final_obs, episodes = twin.step(actions[i])
            assert (rewards[i], terminated[i], truncated[i]) == (reward, *ends)
            assert (stack[i].numpy() == obs).all()
            assert envs.lives[i] == twin.env.unwrapped.ale.lives()
            assert twin.noops.waiting == []
            reports = []
            if infos.get("_episode", [False, False])[i]:
                reports.append((infos["episode"]["r"][i], infos["episode"]["l"][i]))
            assert reports == episodes
            frames = slice(0, 3 if reports else 4)
            assert (infos["final_obs"][i, frames].numpy() == final_obs[frames]).all()
            over += len(reports)
            lost += terminated[i] and not reports
            points.add(float(reward))
    assert over >= games_over
    assert lost >= lives_lost
    assert len(taken) == over + 2
    assert points == {"Pong": {-1.0, 0.0, 1.0}, "Freeway": {0.0}}.get(game, {0.0, 1.0})


def test_a_reset_takes_1_to_30_noops(monkeypatch):
    pools = tap_every_pool(monkeypatch, max_episode_steps=1)
    envs = script.make_envs(script.Args(env_id="Asterix-v5", num_envs=1), Path("runs"))
    envs.reset(seed=[3])
    for _ in range(249):
        assert envs.step(np.zeros(1, dtype=int))[3] == [True]
    noops = noops_by_ram("Asterix")
    counts = Counter(noops[call.ram.tobytes()] for call in pools[0] if call.elapsed_step == 0)
    assert counts.total() == 250
    assert min(counts) == 1
    assert max(counts) == 30
    assert len(counts) > 25


@pytest.mark.parametrize(
    "game", ["Breakout", "Pong", "Qbert", "Freeway", "Skiing", "Asterix", "Boxing", "BeamRider"]
)
def test_fire_and_actions_are_those_of_gymnasium(game):
    envs = script.make_envs(script.Args(env_id=f"{game}-v5", num_envs=1), Path("runs"))
    twin = ppo_atari.make_env(f"{game}NoFrameskip-v4", 0, False, Path("runs"))
    assert envs.needs_fire == has_wrapper(twin, ppo_atari.FireResetEnv)
    assert envs.single_action_space == twin.action_space


# What main makes of them


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three short updates with many ends, some by the time limit and some on the edge of a segment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        pools = tap_every_pool(patch, max_episode_steps=37)
        seen = record(script, patch)
        script.main(
            script.Args(
                num_envs=3, num_steps=32, total_timesteps=288, num_minibatches=4, update_epochs=2
            )
        )
    (seen.calls,) = pools
    return seen


def calls_of(calls, i):
    """Yield environment i's part of each call that steps it."""
    for call in calls:
        if i in call.ids:
            place = call.ids.tolist().index(i)
            yield SimpleNamespace(**{name: x[place] for name, x in vars(call).items()})


def test_every_row_is_a_step_of_the_game_and_between_two_rows_are_only_official_steps(run):
    assert run.envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
    rewards = run.stacked("rewards")
    dones = torch.cat([run.stacked("dones"), run.gae[-1]["next_done"][None]])
    assert len(run.rows) == len(run.steps) == len(rewards) == 96
    lost = cut = 0
    for i in range(3):
        calls = calls_of(run.calls, i)
        reset = next(calls)
        fire = next(calls)
        before = next(calls)
        assert reset.elapsed_step == 0
        assert (fire.actions, before.actions) == (1, 2)
        stack = before.frames.repeat(4, axis=0)
        assert dones[0, i] == 0
        for t, (actions, next_obs, reward, terminated, truncated, infos) in enumerate(run.steps):
            assert (run.rows[t].obs[i].numpy() == stack).all()
            call = next(calls)
            assert call.actions == actions[i] == run.rows[t].action[i]
            assert call.elapsed_step == before.elapsed_step + 1  # a step of the game, and no reset
            assert rewards[t, i] == reward[i] == np.sign(call.reward)
            life_lost = 0 < call.lives < before.lives
            assert terminated[i] == (life_lost or call.terminated == 1)
            assert truncated[i] == (call.elapsed_step == 37)
            assert dones[t + 1, i] == (terminated[i] or truncated[i])
            stack = np.concatenate([stack[1:], call.frames])
            assert (infos["final_obs"][i].numpy() == stack).all()
            before = call
            if terminated[i] or truncated[i]:
                noop = next(calls)
                fire = next(calls)
                before = next(calls)
                if truncated[i]:
                    assert noop.elapsed_step == 0
                    cut += not terminated[i]
                else:
                    assert (noop.actions, noop.elapsed_step) == (0, call.elapsed_step + 1)
                    lost += 1
                assert (fire.actions, before.actions) == (1, 2)
                assert before.elapsed_step == noop.elapsed_step + 2
                stack = before.frames.repeat(4, axis=0)
            assert (next_obs[i].numpy() == stack).all()
        assert next(calls, None) is None
    assert lost > 3
    assert cut > 3
    assert dones[[32, 64]].any()


def test_no_advantage_crosses_an_end(run):
    """The last row of an episode takes its reward alone, and those before it nothing of the next episode."""
    for call in run.gae:
        flags = torch.cat([call["dones"], call["next_done"][None]])
        for t, i in torch.nonzero(flags[1:]).tolist():
            expected = call["rewards"][t, i] - call["values"][t, i]
            assert call["advantages"][t, i].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_time_limits_are_bootstrapped_from_the_stack_at_the_end(bootstrap, monkeypatch):
    pools = tap_every_pool(monkeypatch, max_episode_steps=8)
    seen = record(script, monkeypatch)
    # Six rows an episode, after FIRE and action 2: segments of seven end with a cut now and then.
    sizes = {"num_envs": 2, "num_steps": 7, "total_timesteps": 42, "num_minibatches": 1}
    script.main(script.Args(**sizes, bootstrap_truncated=bootstrap))
    rewards = seen.stacked("rewards")
    frames = [call.frames for call in pools[0] if len(call.ids) == 2]
    for t, (_, obs, reward, terminated, truncated, _) in enumerate(seen.steps):
        assert (truncated == (t % 6 == 5)).all()
        assert not terminated.any()
        expected = torch.as_tensor(reward)
        if bootstrap and truncated.any():
            end = 8 + 9 * (t // 6)  # a reset, then eight steps of the game
            stack = torch.as_tensor(np.concatenate(frames[end - 3 : end + 1], axis=1))
            assert not torch.equal(stack, obs)
            with torch.no_grad():
                value = seen.agents[t // 7].get_value(stack)
            assert value.abs().min() > 1e-3
            expected = expected + 0.99 * value
        torch.testing.assert_close(rewards[t], expected, atol=1e-5, rtol=0)


def test_a_time_limit_at_the_end_of_a_segment_is_bootstrapped(monkeypatch):
    tap_every_pool(monkeypatch, max_episode_steps=8)
    seen = record(script, monkeypatch)
    sizes = {"num_envs": 2, "num_steps": 6, "total_timesteps": 12, "num_minibatches": 1}
    script.main(script.Args(**sizes, bootstrap_truncated=True))
    _, _, reward, _, truncated, infos = seen.steps[-1]
    assert truncated.all()
    with torch.no_grad():
        expected = torch.as_tensor(reward) + 0.99 * seen.agents[0].get_value(infos["final_obs"])
    torch.testing.assert_close(seen.gae[0]["rewards"][-1], expected, atol=1e-5, rtol=0)


def steps_until(ends, monkeypatch):
    """EnvPool's steps in its first game of Breakout, without moving, until `ends(call, the one before)`."""
    with monkeypatch.context() as patch:
        pools = tap_every_pool(patch)
        seen = record(script, patch, learn=False, force_action=0, at_random=True)
        sizes = {
            "num_envs": 1,
            "num_steps": 250,
            "total_timesteps": 250,
            "num_minibatches": 1,
            "update_epochs": 1,
        }
        script.main(script.Args(**sizes, exp_name="first"))
    assert len(seen.steps) == 250
    calls = pools[0]
    return next(int(call.elapsed_step[0]) for before, call in pairwise(calls) if ends(call, before))


@pytest.mark.parametrize(
    "ends",
    [
        lambda call, before: call.terminated[0] == 1,
        lambda call, before: call.lives[0] < before.lives[0],
    ],
    ids=["game", "life"],
)
def test_terminated_and_truncated_counts_as_terminated(ends, monkeypatch):
    limit = steps_until(ends, monkeypatch)
    pools = tap_every_pool(monkeypatch, max_episode_steps=limit)
    seen = record(script, monkeypatch, learn=False, force_action=0, at_random=True)
    sizes = {
        "num_envs": 1,
        "num_steps": limit,
        "total_timesteps": limit,
        "num_minibatches": 1,
        "update_epochs": 1,
    }
    script.main(script.Args(**sizes, bootstrap_truncated=True))
    row = next(t for t, step in enumerate(seen.steps) if step[4][0])
    assert seen.steps[row][3][0]
    at_the_limit = [k for k, call in enumerate(pools[0]) if call.elapsed_step[0] == limit]
    assert ends(pools[0][at_the_limit[0]], pools[0][at_the_limit[0] - 1])
    assert pools[0][at_the_limit[0] + 1].elapsed_step[0] == 0  # the next game
    assert seen.gae[0]["rewards"][row, 0] == seen.steps[row][2][0]


# The returns that are reported


@pytest.mark.parametrize(("game", "num_steps"), GAMES)
def test_whole_games_are_reported_with_true_rewards(game, num_steps, monkeypatch):
    limited = game.endswith("limit")
    pools = tap_every_pool(monkeypatch, **{"max_episode_steps": 70} if limited else {})
    seen = long_run(script, monkeypatch, num_steps, env_id=f"{game.split()[0]}-v5")
    games = []
    for i in range(3):
        points = 0.0
        for call in calls_of(pools[0], i):
            points += call.reward
            if call.terminated or call.elapsed_step == (70 if limited else 27_000):
                games.append((points, call.elapsed_step))
                points = 0.0
    assert reported() == sorted(games)
    assert len(games) > 2
    assert seen.stacked("dones").sum() > 1.5 * len(games)
    assert all(length == 70 for _, length in games) == limited
    if game == "Asterix":
        assert max(games)[0] >= 100
