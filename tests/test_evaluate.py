"""A saved agent plays as it was trained: same networks, same environment, whole games, true rewards."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SCRIPTS, TINY

import evaluate

MODULES = {script: importlib.import_module(script) for script in SCRIPTS}
ROOT = Path(evaluate.__file__).parent
# Other environments than the default ones, where that is possible: the checkpoint alone says what is played.
ENV_IDS = {
    "ppo": "Acrobot-v1",
    "ppo_continuous_action": "Hopper-v5",
    "ppo_atari_envpool": "SpaceInvaders-v5",
}


@pytest.fixture(autouse=True)
def the_imported_scripts(monkeypatch):
    """evaluate.py imports a script anew: here it gets the one that a test can watch, and its path stays its own."""
    real = evaluate.import_script

    def import_script(path: Path) -> ModuleType:
        known = MODULES.get(path.stem)
        return known if known and path.samefile(known.__file__) else real(path)

    monkeypatch.setattr(evaluate, "import_script", import_script)
    monkeypatch.setattr(sys, "path", [*sys.path])


def train(script: str = "ppo", **changes) -> Path:
    """Train with tiny arguments and return the run folder."""
    module = MODULES[script]
    args = module.Args(**{"run_dir": Path(f"{script} run")} | TINY[script] | changes)
    module.main(args)
    return args.run_dir


def play(run: Path, **changes) -> dict:
    return evaluate.main(evaluate.Args(run, **changes))


def decide(run: Path, factor: float) -> dict:
    """Enlarge the policy's head, so that what the agent does depends on what it sees (and remembers)."""
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    names = checkpoint["agent"]
    head = [name for name in names if name.startswith("actor") and name.endswith("weight")][-1]
    checkpoint["agent"][head] *= factor
    torch.save(checkpoint, run / "checkpoint.pt")
    return checkpoint


def copied(x) -> np.ndarray:
    return np.asarray(x).copy()


class Enough(Exception):
    """Ends a game that goes on for longer than a test needs."""


@contextmanager
def recorded(module: ModuleType, seed: int, limit: int = 10_000):
    """Write down the steps of the environments that are made meanwhile, which begin with `seed` and frozen statistics.

    What the agent draws begins with `seed` too.
    """
    record = SimpleNamespace(envs=None, steps=[])
    real = module.make_envs

    def make_envs(*args, **more):
        record.envs = envs = real(*args, **more)
        real_reset, real_step = envs.reset, envs.step

        def reset(**kwargs):
            envs.training = False
            torch.manual_seed(seed)
            obs, infos = real_reset(seed=[seed])
            record.obs = copied(obs)
            return obs, infos

        def step(actions):
            if len(record.steps) == limit:
                raise Enough
            obs, rewards, terminated, truncated, infos = real_step(actions)
            done = terminated[0] | truncated[0]
            record.steps.append((record.obs, copied(actions), copied(rewards), done))
            record.obs = copied(obs)
            return obs, rewards, terminated, truncated, infos

        envs.reset, envs.step = reset, step
        return envs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_envs", make_envs)
        with suppress(Enough):
            yield record


# What the agent does


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluation_does_what_a_rollout_of_training_does(script):
    """With the same weights, seeds and random numbers, main and evaluate.py see and do the same, step by step."""
    module = MODULES[script]
    one = {"num_envs": 1, "num_minibatches": 1, "total_timesteps": 64, "num_steps": 32}
    if script in ENV_IDS:
        one["env_id"] = ENV_IDS[script]
    run = train(script, **one)
    decide(run, factor=1000.0 if script == "ppo_atari_lstm" else 100.0)
    before = (run / "checkpoint.pt").read_bytes()
    with recorded(module, seed=5, limit=150) as played:
        play(run, episodes=1 if "atari" in script else 3)
    assert (run / "checkpoint.pt").read_bytes() == before
    args = replace(module.saved_args(run), num_steps=150, total_timesteps=64 + 150)
    with recorded(module, seed=5) as trained:
        module.main(args)

    assert len(trained.steps) == 150
    assert len(played.steps) >= 30
    for mine, theirs in zip(played.steps, trained.steps, strict=False):
        for x, y in zip(mine, theirs, strict=True):
            assert np.array_equal(x, y)
    compared = played.steps
    assert len(np.unique(np.concatenate([actions for _, actions, _, _ in compared]))) > 1
    if script not in ("ppo", "ppo_atari_envpool", "ppo_multidiscrete"):  # those episodes are longer
        assert any(done for _, _, _, done in compared[:-10])  # the next episode is compared, too


def likeliest(policy) -> torch.Tensor:
    """Return the action of the highest probability, found by trying them all, component by component."""
    if hasattr(policy, "mean"):
        return policy.mean
    if hasattr(policy, "components"):
        return torch.stack([likeliest(component) for component in policy.components], dim=-1)
    actions = torch.arange(policy.logits.shape[-1])
    logprobs = [policy.log_prob(action[None]).item() for action in actions]
    return actions[[int(np.argmax(logprobs))]]


@pytest.mark.parametrize("script", SCRIPTS)
def test_deterministic_evaluation_takes_the_likeliest_action(script, monkeypatch):
    run = train(script)
    decide(run, factor=100.0)
    module = MODULES[script]
    policies = []
    forward = module.Agent.forward

    def spy(self, *args):
        result = forward(self, *args)
        policies.append(result[0])
        return result

    spy.__signature__ = evaluate.inspect.signature(forward)
    monkeypatch.setattr(module.Agent, "forward", spy)
    with recorded(module, seed=3, limit=100) as played:
        play(run, episodes=1, deterministic=True)
    assert len(policies) >= len(played.steps) > 0
    for policy, (_, actions, _, _) in zip(policies, played.steps, strict=False):
        assert np.array_equal(actions, likeliest(policy))


def test_a_recurrent_agent_hears_where_episodes_begin(monkeypatch):
    run = train("ppo_atari_lstm")
    module = MODULES["ppo_atari_lstm"]
    heard = []
    forward = module.Agent.forward

    def spy(self, x, state, starts):
        heard.append(starts.item())
        return forward(self, x, state, starts)

    monkeypatch.setattr(module.Agent, "forward", spy)
    with recorded(module, seed=3, limit=150) as played:
        play(run, episodes=1)
    dones = [done for *_, done in played.steps]
    assert any(dones[:-1])  # a life was lost
    assert heard[: len(dones)] == [True, *dones[:-1]]


def test_one_seed_fixes_the_games_and_another_plays_others():
    run = train()
    with pytest.raises(evaluate.UsageError, match="CartPole-v1 has no levels"):
        play(run, num_levels=0)
    first, again, other = (play(run, episodes=10, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["returns"] != other["returns"]
    assert len(first["returns"]) == len(first["lengths"]) == 10
    assert first["mean"] == pytest.approx(np.mean(first["returns"]))
    assert first["std"] == pytest.approx(np.std(first["returns"]))
    assert first["std"] > 0


def test_atari_games_are_played_to_their_end_with_true_rewards(monkeypatch):
    """Lost lives end episodes, but the return is that of the five lives, and a point is worth more than its sign."""
    module = MODULES["ppo_atari"]
    run = train("ppo_atari")
    agent, envs = evaluate.load_agent(module, module.load_checkpoint(run))
    game = envs.envs[0].unwrapped
    rewards, lives = [], []
    step = game.step

    def spy(action):
        result = step(action)
        # As if each point were worth seven
        result = (result[0], 7 * result[1], *result[2:])
        rewards.append(result[1])
        lives.append(game.ale.lives())
        return result

    monkeypatch.setattr(game, "step", spy)
    returns, _ = evaluate.play(agent, envs, evaluate.Args(run, episodes=1, seed=3), run)
    assert sum(returns) == sum(rewards) > 0
    assert lives.count(0) >= 1


def test_continuous_actions_are_clipped_and_statistics_frozen(monkeypatch):
    module = MODULES["ppo_continuous_action"]
    run = train("ppo_continuous_action")
    checkpoint = module.load_checkpoint(run)
    agent, envs = evaluate.load_agent(module, checkpoint)
    with torch.no_grad():
        agent.actor_logstd.fill_(5.0)  # samples far outside of the bounds
    body = envs.env.envs[0].unwrapped
    actions = []
    step = body.step
    monkeypatch.setattr(
        body, "step", lambda action: (actions.append(action.copy()), step(action))[1]
    )
    evaluate.play(agent, envs, evaluate.Args(run, episodes=1, seed=0), run)
    assert np.abs(actions).max() == 1.0
    assert len(actions) == 1000
    assert envs.state_dict() == checkpoint["normalizer"]
    # Those of training: the first observation of the reset is counted besides those of the steps.
    assert checkpoint["normalizer"]["obs"][2] == pytest.approx(192 + 1 + 1e-4)


# Which script


def python(*arguments, folder: str = ".") -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def copy_of_ppo() -> Path:
    """Copy ppo.py into another folder and edit it: layers from a module beside it, their width an argument."""
    text = (ROOT / "ppo.py").read_text()
    edits = {
        "import gymnasium as gym": "import gymnasium as gym\nimport my_nets",
        "    shared_network: bool = False  #": "    width: int = 64\n    shared_network: bool = False  #",
        "shared_network: bool = False):": "shared_network: bool = False, width: int = 64):",
        "Agent(envs, args.shared_network)": "Agent(envs, args.shared_network, args.width)",
        "nn.Linear(obs_size, 64)": "my_nets.Layer(obs_size, width)",
        "nn.Linear(64, 64)": "my_nets.Layer(width, width)",
        "nn.Linear(64, num_actions)": "nn.Linear(width, num_actions)",
        "nn.Linear(64, 1)": "nn.Linear(width, 1)",
    }
    for old, new in edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    script = Path("my", "my_ppo.py")
    script.parent.mkdir()
    script.write_text(text)
    script.with_name("my_nets.py").write_text("from torch.nn import Linear as Layer\n")
    return script


def test_a_copied_edited_script_trains_stops_goes_on_and_is_evaluated(run_program, capsys):
    script = copy_of_ppo()
    sizes = ["--num-envs=2", "--num-steps=16", "--save-every=1", "--width=24"]
    command = [sys.executable, script, *sizes, "--total-timesteps=100000000"]
    training = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(Path("runs").glob("*/checkpoint.pt")):
        assert training.poll() is None, training.communicate()
        time.sleep(0.05)
    os.killpg(training.pid, signal.SIGINT)  # to all its processes, as a terminal does it
    _, err = training.communicate()
    assert training.returncode == 130, err
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("CartPole-v1__my_ppo__1__")
    hint = f"to resume, add --run-dir {run} to the command"
    assert err.splitlines()[-1] == hint
    assert "Traceback" not in err

    steps = evaluate.load_checkpoint(run)["global_step"] + 32
    result = python(script, "--run-dir", run, "--total-timesteps", steps)
    assert result.returncode == 0, result.stderr
    checkpoint = evaluate.load_checkpoint(run)
    assert checkpoint["global_step"] == steps
    assert checkpoint["agent"]["actor.0.weight"].shape == (24, 4)

    # By its path, and by its name in its folder
    games = [run.resolve(), "--episodes", "2", "--json"]
    by_name = python(ROOT / "evaluate.py", *games, folder="my")
    assert by_name.returncode == 0, by_name.stderr
    capsys.readouterr()
    assert run_program(ROOT / "evaluate.py", *games, "--script", script) == 0
    by_path = capsys.readouterr().out
    assert by_path == by_name.stdout
    result = json.loads(by_path)
    assert result["global_step"] == steps
    assert len(result["returns"]) == 2
    # From here its name leads nowhere.
    with pytest.raises(evaluate.UsageError, match="--script"):
        play(run)


def test_a_script_in_the_run_folder_is_never_run():
    """A run may come from a stranger; the weights in it are read in a way that can run no code either."""
    run = train()
    for name in ("ppo", "../ppo run/ppo", "my_ppo", f"{run.resolve()}/my_ppo", ""):
        checkpoint = torch.load(run / "checkpoint.pt", weights_only=True) | {"script": name}
        torch.save(checkpoint, run / "checkpoint.pt")
        (run / "ppo.py").write_text("open('trapped', 'w')\n# class Agent(\n")
        (run / "my_ppo.py").write_text("open('trapped', 'w')\n# class Agent(\n")
        if name.endswith("ppo") and "my" not in name:
            assert len(play(run, episodes=1)["returns"]) == 1  # with the one beside evaluate.py
        else:
            with pytest.raises(evaluate.UsageError, match="--script"):
                play(run)
    assert not list(Path().rglob("trapped"))


def test_a_module_in_a_checkpoint_is_imported_only_if_the_command_line_repeats_it(monkeypatch):
    run = train()
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    checkpoint["args"]["env_id"] = "payload:CartPole-v1"
    torch.save(checkpoint, run / "checkpoint.pt")
    Path("payload.py").write_text("open('trapped', 'w')\n")
    monkeypatch.syspath_prepend(Path.cwd())
    for other in (None, "CartPole-v1"):
        with pytest.raises(evaluate.UsageError, match="--env-id payload:CartPole-v1"):
            play(run, env_id=other)
    assert not Path("trapped").exists()
    assert len(play(run, env_id="payload:CartPole-v1", episodes=1)["returns"]) == 1


# Output


def test_json_is_one_object_and_text_says_the_same(capsys):
    run = train()
    shutil.copytree(run, "before")
    capsys.readouterr()
    result = play(run, episodes=3, json=True)
    out = capsys.readouterr().out
    assert json.loads(out) == result
    assert out.count("\n") == 1
    expected = {"run": str(run), "env_id": "CartPole-v1", "global_step": 96, "seed": 1_000_000}
    assert result | expected | {"deterministic": False} == result
    assert play(run / "checkpoint.pt", episodes=3) == result
    out = capsys.readouterr().out
    returns = [f"{value:.1f}" for value in result["returns"]]
    for words in (str(run), "3 whole games", "96 training steps", *returns):
        assert words in out
    assert f"mean {result['mean']:.1f}, standard deviation {result['std']:.1f}" in out
    assert sorted(path.name for path in run.iterdir()) == sorted(os.listdir("before"))
    assert (run / "checkpoint.pt").read_bytes() == Path("before/checkpoint.pt").read_bytes()


@pytest.mark.parametrize("script", ["ppo", "ppo_atari", "ppo_atari_envpool", "ppo_multidiscrete"])
def test_each_game_has_a_film_of_its_frames(script, monkeypatch, capsys):
    run = train(script)
    pictures = []
    save_film = evaluate.save_film

    def spy(frames, path, metadata):
        pictures.append([frame.copy() for frame in frames])
        save_film(frames, path, metadata)

    monkeypatch.setattr(evaluate, "save_film", spy)
    capsys.readouterr()
    with recorded(MODULES[script], seed=1) as played:
        play(run, episodes=2, capture_video=True)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("videos: "))
    folder = Path(line.removeprefix("videos: "))
    assert folder.is_relative_to(run)
    films = sorted(folder.iterdir())
    assert [film.name for film in films] == ["game-1.mp4", "game-2.mp4"]
    assert sum(map(len, pictures)) == len(played.steps)  # one for each choice of the agent
    for film, frames in zip(films, pictures, strict=True):
        assert any((frame != frames[0]).any() for frame in frames), "nothing moves"
        video = cv2.VideoCapture(str(film))
        if "atari" in script:  # a step of the agent is four frames of the 60 in a second
            assert video.get(cv2.CAP_PROP_FPS) == 15
        filmed = []
        while (read := video.read())[0]:
            filmed.append(read[1][..., ::-1])  # from BGR
        assert abs(len(filmed) - len(frames)) <= 1
        height, width, _ = filmed[0].shape
        for position in (0, len(filmed) // 2):
            difference = filmed[position] - frames[position][:height, :width].astype(float)
            assert np.abs(difference).mean() < 20, "another picture"


@pytest.mark.parametrize("script", ["ppo", "ppo_multidiscrete"])
def test_8_bit_observations_that_are_no_images_are_played(script, monkeypatch):
    class Board(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (5, 5, 2), np.uint8)
        action_space = {
            "ppo": gym.spaces.Discrete(2),
            "ppo_multidiscrete": gym.spaces.MultiDiscrete([2, 3]),
        }[script]

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 1.0, True, False, {}

    spec = gym.envs.registration.EnvSpec("Board-v0", Board, disable_env_checker=True)
    monkeypatch.setitem(gym.registry, "Board-v0", spec)
    assert play(train(script, env_id="Board-v0"), episodes=3)["returns"] == [1.0] * 3


def test_an_environment_without_pictures_is_still_played(monkeypatch):
    class Own(gym.Env):
        """As many environments that users write, it takes no `render_mode`; it pays what the action says."""

        observation_space = gym.spaces.Box(0, 9, (2,), np.float32)
        action_space = gym.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.clock = 0
            return self.np_random.random(2, dtype=np.float32), {}

        def step(self, action):
            self.clock += 1
            obs = self.np_random.random(2, dtype=np.float32)
            return obs, float(action), self.clock == 5, False, {}

    spec = gym.envs.registration.EnvSpec("Own-v0", Own, disable_env_checker=True)
    monkeypatch.setitem(gym.registry, "Own-v0", spec)
    run = train(env_id="Own-v0")
    with recorded(MODULES["ppo"], seed=1) as played:
        result = play(run, episodes=3)
    assert result["lengths"] == [5, 5, 5]
    paid = np.array([actions[0] for _, actions, _, _ in played.steps]).reshape(3, 5)
    assert result["returns"] == paid.sum(axis=1).tolist()
