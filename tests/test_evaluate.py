"""A saved agent plays as it was trained: same networks, same environment, whole games, true rewards."""

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import envpool
import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from conftest import SCRIPTS, TINY
from gymnasium.spaces import Box, Discrete, MultiDiscrete

import evaluate
import ppo
import ppo_atari
import ppo_atari_envpool
import ppo_atari_lstm
import ppo_continuous_action
import ppo_multidiscrete

ALL = (ppo, ppo_atari, ppo_atari_envpool, ppo_continuous_action, ppo_atari_lstm, ppo_multidiscrete)
MODULES = {module.__name__: module for module in ALL}
REPOSITORY = Path(evaluate.__file__).parent
# Other environments than the default ones, where that is possible: what is played is said by the checkpoint alone.
ENV_IDS = {
    "ppo": "Acrobot-v1",
    "ppo_continuous_action": "Hopper-v5",
    "ppo_atari_envpool": "SpaceInvaders-v5",
}


@pytest.fixture(autouse=True)
def modules():
    """Forget the copies of scripts that a test has loaded."""
    yield
    sys.modules["ppo"] = ppo
    sys.modules.pop("my_ppo", None)


def train(script: str, **changes) -> Path:
    """Train with tiny arguments and return the run folder."""
    module = MODULES[script]
    module.main(module.Args(**TINY[script] | {"device": "cpu"} | changes))
    newest = max(Path("runs").rglob("checkpoint.pt"), key=lambda path: path.stat().st_mtime_ns)
    return newest.parent


def edit(run: Path, change) -> dict:
    """Change the checkpoint of a run."""
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, run / "checkpoint.pt")
    return checkpoint


def decide(run: Path, factor: float = 100.0) -> dict:
    """Enlarge the policy's head, so that what the agent does depends on what it sees (and remembers)."""

    def enlarge(checkpoint):
        head = [
            name
            for name in checkpoint["agent"]
            if name.startswith("actor") and name.endswith("weight")
        ][-1]
        checkpoint["agent"][head] *= factor

    return edit(run, enlarge)


def copied(x) -> np.ndarray:
    return np.asarray(x).copy()


@contextmanager
def recorded(module: ModuleType, before_reset=None):
    """Write down the steps of the environments that are made meanwhile: what was seen, done, and came of it."""
    record = SimpleNamespace(envs=None, steps=[])
    real = module.make_envs

    def make_envs(*args):
        record.envs = envs = real(*args)
        real_reset, real_step = envs.reset, envs.step

        def reset(**kwargs):
            if before_reset is not None:
                before_reset(envs)
            obs, infos = real_reset(**kwargs)
            record.obs = copied(obs)
            return obs, infos

        def step(actions):
            obs, rewards, terminated, truncated, infos = real_step(actions)
            record.steps.append(
                (record.obs, copied(actions), copied(rewards), terminated[0] | truncated[0])
            )
            record.obs = copied(obs)
            return obs, rewards, terminated, truncated, infos

        envs.reset, envs.step = reset, step
        return envs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_envs", make_envs)
        yield record


# What the agent does


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluation_does_what_a_rollout_of_training_does(script, monkeypatch):
    """With the same weights, seeds and random numbers, main and evaluate.py see and do the same, step by step."""
    module = MODULES[script]
    one = {"num_envs": 1, "num_minibatches": 1, "total_timesteps": 64, "num_steps": 32}
    if script in ENV_IDS:
        one["env_id"] = ENV_IDS[script]
    run = train(script, **one)
    checkpoint = decide(run, factor=1000.0 if script == "ppo_atari_lstm" else 100.0)
    seed = evaluate.Args(()).seed
    with recorded(module) as played:
        evaluate.main(evaluate.Args((run,), episodes=1 if "atari" in script else 3))

    def as_evaluation(envs):
        torch.manual_seed(seed)
        if "normalizer" in checkpoint:
            envs.training = False

    monkeypatch.setattr(module.Run, "env_seeds", lambda self: [seed])
    args = module.Args(**checkpoint["args"])
    args = replace(
        args, resume=run, num_steps=150, total_timesteps=150 * (checkpoint["iteration"] + 1)
    )
    with recorded(module, as_evaluation) as trained:
        module.main(args)

    assert len(trained.steps) == 150
    assert len(played.steps) >= 30
    for mine, theirs in zip(played.steps, trained.steps, strict=False):
        for x, y in zip(mine, theirs, strict=True):
            assert np.array_equal(x, y)
    compared = played.steps[:150]
    assert len(np.unique(np.concatenate([actions for _, actions, _, _ in compared]))) > 1
    if script not in ("ppo", "ppo_atari_envpool"):  # those episodes are longer
        assert any(done for _, _, _, done in compared[:-10])  # the next episode is compared, too


def likeliest(agent, inputs: dict) -> torch.Tensor:
    """Return the action of the highest log-probability, found by trying them all."""
    inputs = {name: value for name, value in inputs.items() if name != "greedy"}
    if hasattr(agent, "nvec"):
        actions = torch.tensor(list(itertools.product(*(range(n) for n in agent.nvec))))
    else:
        actions = torch.arange(list(agent.actor.modules())[-1].out_features)
    logprobs = [
        agent.get_action_and_value(**inputs, action=action[None])[1].item() for action in actions
    ]
    return actions[int(np.argmax(logprobs))][None]


@pytest.mark.parametrize("script", SCRIPTS)
def test_deterministic_evaluation_takes_the_likeliest_action(script):
    run = train(script)
    checkpoint = decide(run)
    acts = []
    with recorded(MODULES[script]) as played:
        agent, envs = evaluate.load_agent(MODULES[script], checkpoint, run)
        real_act = agent.get_action

        @functools.wraps(real_act)
        def get_action(**inputs):
            result = real_act(**inputs)
            acts.append((inputs, result))
            return result

        agent.get_action = get_action
        evaluate.play(
            agent, envs, evaluate.Args((run,), episodes=4, deterministic=True, max_steps=60)
        )
    agent.get_action = real_act
    assert len(acts) == len(played.steps) >= 30
    with torch.no_grad():
        for (inputs, result), (_, actions, _, _) in zip(acts, played.steps, strict=True):
            action = result[0] if script == "ppo_atari_lstm" else result
            continuous = script == "ppo_continuous_action"
            assert torch.equal(
                action, agent.actor_mean(inputs["x"]) if continuous else likeliest(agent, inputs)
            )
            assert np.array_equal(actions, action)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_evaluated_agent_is_the_trained_one_and_one_seed_fixes_its_games(script):
    run = train(script)
    checkpoint = MODULES[script].load_checkpoint(run)
    agent, envs = evaluate.load_agent(MODULES[script], checkpoint, run / "videos")
    envs.close()
    weights = agent.state_dict()
    assert weights.keys() == checkpoint["agent"].keys()
    assert all(torch.equal(checkpoint["agent"][name], value) for name, value in weights.items())
    episodes = 10 if script == "ppo" else 1  # its short games often have the same length by chance
    first, again = (evaluate.main(evaluate.Args((run,), episodes=episodes)) for _ in range(2))
    assert first == again
    assert len(first["returns"]) == len(first["lengths"]) == episodes


def test_the_mean_and_deviation_are_those_of_the_games_and_another_seed_plays_others():
    run = train("ppo")
    first, second = (
        evaluate.main(evaluate.Args((run,), episodes=10, seed=seed)) for seed in (1, 2)
    )
    assert len(first["returns"]) == len(first["lengths"]) == 10
    assert first["mean"] == pytest.approx(np.mean(first["returns"]))
    assert first["std"] == pytest.approx(np.std(first["returns"]))
    assert first["std"] > 0
    assert first["returns"] != second["returns"]


@pytest.mark.parametrize("script", ["ppo_atari_envpool", "ppo_multidiscrete"])
def test_seeds_that_are_neighbours_are_two_seeds_to_envpool(script, monkeypatch):
    given = []
    make = envpool.make

    def noted(*args, seed, **options):
        given.extend(seed)
        return make(*args, seed=seed, **options)

    monkeypatch.setattr(envpool, "make", noted)
    envs = MODULES[script].make_envs(MODULES[script].Args(num_envs=1), Path("runs"))
    for seed in (1_000_000, 1_000_001, 2**31 - 1):
        envs.reset(seed=[seed])
    assert len(set(given)) == 3


def test_atari_games_are_played_to_their_end_with_true_rewards(monkeypatch):
    """Lost lives end episodes, but the return is that of the five lives, and a point is worth more than its sign."""
    run = train("ppo_atari")
    agent, envs = evaluate.load_agent(ppo_atari, ppo_atari.load_checkpoint(run), run)
    game = envs.envs[0].unwrapped
    rewards, lives = [], []
    step = game.step

    def spy(action):
        result = step(action)
        rewards.append(result[1])
        lives.append(game.ale.lives())
        return result

    monkeypatch.setattr(game, "step", spy)
    returns, _ = evaluate.play(agent, envs, evaluate.Args((run,), episodes=2, seed=3))
    games = np.cumsum(
        [0] + [a < b for a, b in itertools.pairwise(lives)]
    )  # a new game has its lives again
    assert games[-1] >= 1
    assert sum(returns) == sum(rewards)
    assert lives.count(0) >= 1


def test_continuous_actions_are_clipped_and_statistics_frozen(monkeypatch):
    run = train("ppo_continuous_action")
    checkpoint = ppo_continuous_action.load_checkpoint(run)
    agent, envs = evaluate.load_agent(ppo_continuous_action, checkpoint, run)
    with torch.no_grad():
        agent.actor_logstd.fill_(5.0)  # samples far outside of the bounds
    body = envs.env.envs[0].unwrapped
    actions = []
    step = body.step
    monkeypatch.setattr(
        body, "step", lambda action: (actions.append(action.copy()), step(action))[1]
    )
    evaluate.play(agent, envs, evaluate.Args((run,), episodes=1, seed=0))
    assert np.abs(actions).max() == 1.0
    assert len(actions) == 1000
    assert envs.state_dict() == checkpoint["normalizer"]
    assert checkpoint["normalizer"]["obs"][2] == pytest.approx(192 + 1 + 1e-4)  # those of training


class Own(gym.Env):
    """It takes nothing but its own actions, and pays what they say; an episode has five steps, or never ends."""

    observation_space = Box(0, 9, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        space: gym.Space,
        length: int = 5,
        last_length: int = 5,
        render_mode: str | None = None,
    ):
        self.action_space = space
        self.lengths = length, last_length
        self.game = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        self.game += 1
        return self.np_random.random(2, dtype=np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.clock += 1
        obs = self.np_random.random(2, dtype=np.float32)
        return obs, float(np.sum(action)), self.clock == self.lengths[self.game > 0], False, {}


@contextmanager
def registered(**kwargs):
    gym.register("Own-v0", Own, kwargs=kwargs, disable_env_checker=True)
    try:
        yield
    finally:
        del gym.registry["Own-v0"]


@pytest.mark.parametrize(
    ("script", "space"),
    [
        ("ppo", Discrete(3, start=5)),
        ("ppo_multidiscrete", MultiDiscrete([[2, 3], [4, 2]], start=[[1, -1], [7, 0]])),
    ],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_actions_are_counted_from_the_start_of_the_space(script, space, deterministic):
    with registered(space=space):
        run = train(script, env_id="Own-v0")
        with recorded(MODULES[script]) as played:
            result = evaluate.main(evaluate.Args((run,), episodes=3, deterministic=deterministic))
    assert result["lengths"] == [5, 5, 5]
    choices = np.array([actions.sum() for _, actions, _, _ in played.steps]).reshape(3, 5)
    assert result["returns"] == (choices.sum(axis=1) + 5 * np.sum(space.start)).tolist()


# Which script


def copy_with_a_width(folder: str, name: str) -> Path:
    """Copy ppo.py and edit it, as a user would: the width of the network becomes an argument."""
    text = (REPOSITORY / "ppo.py").read_text()
    edits = {
        "    shared_network: bool = False  #": "    width: int = 64\n    shared_network: bool = False  #",
        "shared_network: bool = False):": "shared_network: bool = False, width: int = 64):",
        "Agent(envs, args.shared_network)": "Agent(envs, args.shared_network, args.width)",
        "nn.Linear(obs_size, 64)": "nn.Linear(obs_size, width)",
        "nn.Linear(64, 64)": "nn.Linear(width, width)",
        "nn.Linear(64, num_actions)": "nn.Linear(width, num_actions)",
        "nn.Linear(64, 1)": "nn.Linear(width, 1)",
    }
    for old, new in edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    Path(folder).mkdir()
    script = Path(folder) / name
    script.write_text(text)
    return script


def python(*arguments: str, folder: str = ".") -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def assert_one_line(
    args: evaluate.Args, words: list[str], capsys: pytest.CaptureFixture, code: int = 2
) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        evaluate.main(args)
    out, err = capsys.readouterr()
    assert end.value.code == code
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert err.count("\n") == 1 or code == 1
    for word in words:
        assert word in line


def test_a_copied_renamed_edited_script_trains_resumes_and_evaluates(capsys, monkeypatch):
    script = copy_with_a_width("my", "my_ppo.py")
    sizes = ["--num-envs", "2", "--num-steps", "16", "--width", "24"]
    result = python(script, *sizes, "--total-timesteps", "64")
    assert result.returncode == 0, result.stderr
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("CartPole-v1__my_ppo__1__")
    result = python(script, "--resume", "runs/CartPole-v1__my_ppo", "--total-timesteps", "96")
    assert result.returncode == 0, result.stderr
    weights = torch.load(run / "checkpoint.pt", weights_only=True)["agent"]
    assert weights["actor.0.weight"].shape == (24, 4)

    by_path = evaluate.main(evaluate.Args((run,), script=script, episodes=2))
    assert by_path["global_step"] == 96
    result = python(
        REPOSITORY / "evaluate.py", run.resolve(), "--episodes", "2", "--json", folder="my"
    )
    assert result.returncode == 0, result.stderr
    by_name = json.loads(result.stdout)
    assert by_name == by_path | {"run": str(run.resolve())}
    # From here its name leads nowhere, and the script that it was made of is another one.
    assert_one_line(evaluate.Args((run,)), ["my_ppo.py", "--script"], capsys)
    assert_one_line(evaluate.Args((run,), script=REPOSITORY / "ppo.py"), ["--width"], capsys)
    assert_one_line(
        evaluate.Args((run,), script=Path("my/other.py")), ["--script", "other.py"], capsys
    )


IMAGES = """
class Images(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (3, 64, 48), np.uint8)
    action_space = gym.spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.clock += 1
        return self.observation_space.sample(), 1.0, self.clock == 7, False, {}


def make_env(env_id, idx, capture_video, run_dir):
    return gym.wrappers.RecordEpisodeStatistics(Images())


"""


def test_a_copy_trains_on_images_that_are_not_ataris():
    """With no other changes than those that the README names."""
    source = (REPOSITORY / "ppo_atari.py").read_text()
    before, _, rest = source.partition("def make_env(")
    _, _, after = rest.partition("def make_envs(")
    source = before + IMAGES + "def make_envs(" + after
    before, _, rest = source.partition("def check_game(")
    _, line, after = rest.partition("# ----")
    source = before + line + after
    for old, new in (("nn.Conv2d(4, 32", "nn.Conv2d(3, 32"), ("64 * 7 * 7", "64 * 4 * 2")):
        assert source.count(old) == 1
        source = source.replace(old, new)
    Path("images.py").write_text(source)
    sizes = ["--num-envs", "2", "--num-steps", "16", "--total-timesteps", "64"]
    result = python(Path("images.py"), "--env-id", "Images-v0", *sizes)
    assert result.returncode == 0, result.stderr
    (run,) = Path("runs").iterdir()
    played = evaluate.main(evaluate.Args((run,), script=Path("images.py"), episodes=2))
    assert played["lengths"] == [7, 7]


def test_a_copy_of_the_same_name_is_taken_in_its_folder_and_by_its_path_and_nowhere_else(
    monkeypatch,
):
    script = copy_with_a_width("my", "ppo.py").resolve()
    run = train("ppo").resolve()
    assert Path(evaluate.load_script(None, run).__file__) == REPOSITORY / "ppo.py"
    assert Path(evaluate.load_script(script, run).__file__) == script
    assert Path(evaluate.load_script(None, run).__file__) == REPOSITORY / "ppo.py"
    monkeypatch.chdir("my")
    loaded = evaluate.load_script(None, run)
    assert Path(loaded.__file__) == script
    assert loaded.Args().width == 64


@pytest.mark.parametrize("name", ["my_ppo", "ppo"])
@pytest.mark.parametrize("where", ["beside the runs", "in the run"])
def test_a_script_in_the_run_folder_is_never_run(name, where, capsys, monkeypatch):
    """A run may come from a stranger; the weights in it are read in a way that can run no code either."""
    run = train("ppo").resolve()
    edit(run, lambda checkpoint: checkpoint.update(script=name))
    hacked = Path("hacked").resolve()
    (run / f"{name}.py").write_text(f"open({str(hacked)!r}, 'w')\n")
    if where == "in the run":
        monkeypatch.chdir(run)
    for path in {run, Path(os.path.relpath(run)), run / "checkpoint.pt"}:
        if name == "ppo":  # it is found beside evaluate.py
            assert len(evaluate.main(evaluate.Args((path,), episodes=1))["returns"]) == 1
        else:
            assert_one_line(evaluate.Args((path,), episodes=1), ["my_ppo.py", "--script"], capsys)
    assert not hacked.exists()


@pytest.mark.parametrize("name", ["../my_ppo", "my/my_ppo", "{folder}/my_ppo", "", "os", 3])
def test_a_strange_name_in_a_checkpoint_leads_to_no_script(name, capsys):
    run = train("ppo")
    for folder in ("..", ".", "my"):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "my_ppo.py").write_text("open('hacked', 'w')\n")
    strange = name.format(folder=Path.cwd()) if isinstance(name, str) else name
    edit(run, lambda checkpoint: checkpoint.update(script=strange))
    words = ["--script"] if isinstance(name, str) else ["damaged"]
    assert_one_line(evaluate.Args((run,), episodes=1), words, capsys)
    assert not Path("hacked").exists()


def test_weights_that_do_not_fit_are_one_line(capsys):
    run = train("ppo")
    text = (REPOSITORY / "ppo.py").read_text()
    assert text.count("64, 64") == 1
    Path("my_ppo.py").write_text(
        text.replace("64, 64", "64, 32")
        .replace("(64, num_actions)", "(32, num_actions)")
        .replace("(64, 1)", "(32, 1)")
    )
    words = ["weights do not fit", "my_ppo.py"]
    assert_one_line(evaluate.Args((run,), script=Path("my_ppo.py")), words, capsys)


# Which run


def test_of_several_runs_the_newest_is_played():
    runs = [train("ppo", exp_name=name) for name in ("a", "b", "c")]
    for age, run in enumerate(runs):
        os.utime(run / "checkpoint.pt", (1_000_000 - age, 1_000_000 - age))
    os.utime(runs[1] / "checkpoint.pt")
    for paths in itertools.permutations(runs):
        assert evaluate.main(evaluate.Args(paths, episodes=1))["run"] == str(runs[1])
    result = evaluate.main(evaluate.Args((runs[2], Path("runs/CartPole-v1__a")), episodes=1))
    assert result["run"] == str(runs[0])
    assert evaluate.main(evaluate.Args((Path("runs/CartPole-v1"),), episodes=1))["run"] == str(
        runs[1]
    )
    assert evaluate.main(evaluate.Args((runs[2] / "checkpoint.pt",), episodes=1))["run"] == str(
        runs[2]
    )


def test_bad_input_is_one_line(capsys):
    run = train("ppo")
    Path("empty").mkdir()
    Path("damaged").mkdir()
    Path("damaged/checkpoint.pt").write_bytes(b"not a checkpoint")
    Path("other.pt").write_bytes(b"not a checkpoint")
    for path in ("no_run", "empty", "damaged", "other.pt"):
        assert_one_line(evaluate.Args((Path(path),)), ["checkpoint", "runs/..."], capsys)
    assert_one_line(evaluate.Args(()), ["runs/..."], capsys)
    assert_one_line(evaluate.Args((run,), episodes=0), ["--episodes"], capsys)
    assert_one_line(evaluate.Args((run,), max_steps=0), ["--max-steps"], capsys)
    edit(run, lambda checkpoint: checkpoint["args"].update(env_id="CartPole-v7"))
    assert_one_line(evaluate.Args((run,)), ["CartPole-v7"], capsys)


def test_the_command_line_takes_several_runs():
    args = tyro.cli(
        evaluate.Args, args=["runs/a", "runs/b", "--script", "my/ppo.py", "--max-steps", "7"]
    )
    assert args == evaluate.Args(
        (Path("runs/a"), Path("runs/b")), script=Path("my/ppo.py"), max_steps=7
    )


# Ends and output


def test_a_game_that_does_not_end_is_given_up(capsys):
    with registered(space=Discrete(2), length=10**9):
        run = train("ppo", env_id="Own-v0")
        with recorded(ppo) as played:
            assert_one_line(
                evaluate.Args((run,), max_steps=50),
                ["no game ended", "--max-steps"],
                capsys,
                code=1,
            )
    assert len(played.steps) == 50


def test_games_before_one_that_is_given_up_count(capsys):
    with registered(space=Discrete(2), length=30, last_length=10**9):
        run = train("ppo", env_id="Own-v0")
        capsys.readouterr()
        result = evaluate.main(evaluate.Args((run,), episodes=3, max_steps=50, json=True))
    assert result["lengths"] == [30]
    out, err = capsys.readouterr()
    assert json.loads(out) == result
    assert "game 2" in err
    assert "50" in err


def test_a_game_of_exactly_max_steps_is_whole():
    with registered(space=Discrete(2)):
        run = train("ppo", env_id="Own-v0")
        result = evaluate.main(evaluate.Args((run,), episodes=3, max_steps=5))
    assert result["lengths"] == [5, 5, 5]


def test_json_is_one_object_and_text_says_the_same(capsys):
    run = train("ppo")
    capsys.readouterr()
    result = evaluate.main(evaluate.Args((run,), episodes=3, json=True))
    out = capsys.readouterr().out
    assert json.loads(out) == result
    assert out.count("\n") == 1
    assert result["run"] == str(run)
    assert result["env_id"] == "CartPole-v1"
    assert result["global_step"] == 96
    assert result["deterministic"] is False
    evaluate.main(evaluate.Args((run,), episodes=3))
    out = capsys.readouterr().out
    for words in (
        str(run),
        "3 whole games",
        "96 training steps",
        *(f"{value:.1f}" for value in result["returns"]),
    ):
        assert words in out
    assert f"mean {result['mean']:.1f}, standard deviation {result['std']:.1f}" in out
    assert not list(run.glob("evaluation_*"))


def frames_of(video: Path) -> int:
    capture = cv2.VideoCapture(str(video))
    count = 0
    while capture.read()[0]:
        count += 1
    return count


@pytest.mark.parametrize(
    ("script", "episodes"),
    [
        ("ppo", 1),
        ("ppo", 2),
        ("ppo", 3),
        ("ppo_atari", 1),
        ("ppo_atari_envpool", 1),
        ("ppo_multidiscrete", 1),
    ],
)
def test_the_videos_are_those_of_the_games_that_were_played(script, episodes, capsys):
    run = train(script)
    capsys.readouterr()
    result = evaluate.main(evaluate.Args((run,), episodes=episodes, capture_video=True))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("videos: "))
    folder = Path(line.removeprefix("videos: "))
    videos = sorted(folder.iterdir())
    filmed = range(min(episodes, 2))  # games 0, 1, 8, 27, ...
    assert [video.name for video in videos] == [
        f"rl-video-episode-{number}.mp4" for number in filmed
    ]
    assert folder.is_relative_to(run)
    for video, length in zip(videos, result["lengths"], strict=False):
        assert length - 2 <= frames_of(video) <= length + 3
    assert sorted(run.rglob("*.mp4")) == videos


def test_json_films_the_same_games(capsys):
    run = train("ppo")
    capsys.readouterr()
    evaluate.main(evaluate.Args((run,), episodes=1, json=True, capture_video=True))
    json.loads(capsys.readouterr().out)
    (video,) = run.rglob("*.mp4")
    assert video.stat().st_size > 1000


def test_evaluation_leaves_the_run_as_it_was():
    run = train("ppo")
    shutil.copytree(run, "before")
    evaluate.main(evaluate.Args((run,), episodes=1))
    for path in Path("before").iterdir():
        assert (run / path.name).read_bytes() == path.read_bytes()
    assert len(list(run.iterdir())) == len(list(Path("before").iterdir()))
