"""Several discrete actions at once: the joint distribution, invalid actions, whole runs, and EnvPool's Cleaner."""

import copy
from collections import Counter, deque
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import envpool
import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import ppo_multidiscrete as module

CLEANER = "Jumanji/Cleaner-v0"
NVECS = [[2, 3, 4], [3, 1, 2], [5], [4, 4, 4]]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


# The distribution, against all joint actions one by one


def agent_of_logits(nvec: list[int]) -> module.Agent:
    """Return an agent whose logits are the observations."""
    spaces = SimpleNamespace(
        single_observation_space=Box(-1, 1, (sum(nvec),)), single_action_space=MultiDiscrete(nvec)
    )
    agent = module.Agent(spaces)
    agent.actor = nn.Identity()
    return agent


def firsts(nvec: list[int]) -> np.ndarray:
    """Return where the actions of each component begin in a row of logits or of a mask."""
    return np.cumsum(nvec) - nvec


def random_masks(nvec: list[int], rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return (rows, sum of nvec) bool: about half of the actions, at least one of each component."""
    parts = [rng.random((rows, n)) < 0.4 for n in nvec]
    for part in parts:
        part[np.arange(rows), rng.integers(part.shape[1], size=rows)] = True
    return np.concatenate(parts, axis=1)


def component_probabilities(
    logits: np.ndarray, mask: np.ndarray, nvec: list[int]
) -> list[np.ndarray]:
    """Return the softmax over the valid actions of each component, for the logits of one row."""
    ends = np.cumsum(nvec)[:-1]
    parts = zip(np.split(logits.astype(np.float64), ends), np.split(mask, ends), strict=True)
    weights = [
        np.exp(part - part[valid].max(), where=valid, out=np.zeros(len(part)))
        for part, valid in parts
    ]
    return [weight / weight.sum() for weight in weights]


def joint_probabilities(logits: np.ndarray, mask: np.ndarray, nvec: list[int]) -> np.ndarray:
    """Return the probability of each joint action, in the order of itertools.product."""
    parts = component_probabilities(logits, mask, nvec)
    return np.array(
        [
            np.prod([p[a] for p, a in zip(parts, action, strict=True)])
            for action in joint_actions(nvec)
        ]
    )


def joint_actions(nvec: list[int]) -> list[tuple[int, ...]]:
    return list(product(*(range(n) for n in nvec)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("nvec", NVECS)
def test_log_probability_and_entropy_are_those_of_the_joint_distribution(nvec, masked):
    rng = np.random.default_rng(1)
    spaces = SimpleNamespace(
        single_observation_space=Box(-1, 1, (7,)), single_action_space=MultiDiscrete(nvec)
    )
    agent = module.Agent(spaces)
    nn.init.normal_(
        agent.actor[-1].weight, std=0.3
    )  # its own small gain would make all actions about equally likely
    obs = torch.randn(6, 7)
    masks = random_masks(nvec, 6, rng) if masked else np.ones((6, sum(nvec)), dtype=bool)
    actions = torch.tensor(joint_actions(nvec))
    with torch.no_grad():
        logits = agent.actor(obs).numpy()
        for row in range(6):
            expected = joint_probabilities(logits[row], masks[row], nvec)
            assert expected.sum() == pytest.approx(1)
            mask = torch.as_tensor(masks[row]).expand(len(actions), -1) if masked else None
            same, logprob, entropy, value = agent.get_action_and_value(
                obs[row].expand(len(actions), -1), actions, mask
            )
            assert torch.equal(same, actions)
            assert logprob.shape == entropy.shape == value.shape == (len(actions),)
            np.testing.assert_allclose(logprob.double().exp(), expected, rtol=1e-4, atol=0)
            assert logprob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(
                value, agent.get_value(obs[row : row + 1]).expand(len(actions)), atol=1e-6
            )
            joint_entropy = -sum(p * np.log(p) for p in expected if p > 0)
            np.testing.assert_allclose(entropy, joint_entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nvec", NVECS)
def test_samples_follow_the_joint_distribution_and_are_always_valid(nvec):
    mask = random_masks(nvec, 1, np.random.default_rng(2))[0]
    assert not mask.all()
    logits = torch.randn(sum(nvec))
    logits[~torch.as_tensor(mask)] += 5  # without the mask, nearly all would be invalid
    count = 10_000
    action, logprob, _, _ = agent_of_logits(nvec).get_action_and_value(
        logits.expand(count, -1), action_mask=torch.as_tensor(mask).expand(count, -1)
    )
    assert action.shape == (count, len(nvec))
    assert action.dtype == torch.int64
    expected = joint_probabilities(logits.numpy(), mask, nvec)
    seen = Counter(map(tuple, action.tolist()))
    for joint, p in zip(joint_actions(nvec), expected, strict=True):
        assert abs(seen[joint] / count - p) <= 5 * np.sqrt(
            p * (1 - p) / count
        )  # 0 exactly for an invalid one
    by_action = dict(zip(joint_actions(nvec), expected, strict=True))
    np.testing.assert_allclose(
        logprob.exp(), [by_action[tuple(a)] for a in action.tolist()], rtol=1e-5
    )


@pytest.mark.parametrize("nvec", NVECS)
def test_get_action_draws_as_get_action_and_value_does_or_takes_the_likeliest_of_the_valid_actions(
    nvec,
):
    mask = torch.as_tensor(random_masks(nvec, 50, np.random.default_rng(5)))
    logits = torch.randn(50, sum(nvec)) + 5 * ~mask  # without the mask, nearly all would be invalid
    agent = agent_of_logits(nvec)
    for given in (mask, None):
        torch.manual_seed(2)
        expected = agent.get_action_and_value(logits, action_mask=given)[0]
        torch.manual_seed(2)
        assert torch.equal(agent.get_action(logits, action_mask=given), expected)
        valid = mask if given is not None else torch.ones_like(mask)
        parts = logits.masked_fill(~valid, -torch.inf).split(nvec, dim=1)
        likeliest = torch.stack([part.argmax(dim=1) for part in parts], dim=1)
        assert torch.equal(agent.get_action(logits, greedy=True, action_mask=given), likeliest)


@pytest.mark.parametrize("logit", [-3e38, -1e9, 0.0, 50.0, 1e9, 3e38])
def test_an_invalid_action_has_probability_zero_whatever_its_logit(logit):
    nvec = [2, 3, 4]
    rng = np.random.default_rng(3)
    masks = torch.as_tensor(random_masks(nvec, 50, rng))
    logits, agent, joint = (
        torch.randn(50, 9),
        agent_of_logits(nvec),
        torch.tensor(joint_actions(nvec)),
    )
    changed = torch.where(masks, logits, logit)
    for row in range(50):
        mask = masks[row].expand(24, -1)
        _, logprob, entropy, _ = agent.get_action_and_value(
            changed[row].expand(24, -1), joint, mask
        )
        assert logprob.dtype == entropy.dtype == torch.float32
        assert entropy.isfinite().all()
        valid = masks[row][joint + torch.as_tensor(firsts(nvec))].all(dim=1)
        assert (logprob[~valid].exp() == 0).all()
        assert (logprob[valid].exp() > 0).all()
        _, as_before, entropy_before, _ = agent.get_action_and_value(
            logits[row].expand(24, -1), joint, mask
        )
        assert torch.equal(logprob[valid], as_before[valid])
        assert torch.equal(entropy, entropy_before)


def loss_gradient(nvec, logits, actions, masks, advantages, ent_coef) -> torch.Tensor:
    """Return the gradient of the script's own loss with respect to the logits, at a ratio of 1."""
    agent, rows = agent_of_logits(nvec), len(logits)
    logits = logits.clone().requires_grad_()
    with torch.no_grad():
        logprobs = agent.get_action_and_value(logits, actions, masks)[1]
    zeros = torch.zeros(rows)
    mb = module.Batch(logits, actions, logprobs, zeros, advantages, zeros, action_masks=masks)
    args = module.Args(norm_adv=False, vf_coef=0, ent_coef=ent_coef)
    loss, stats = module.ppo_loss(agent, mb, 0.2, args)
    loss.backward()
    assert all(x.isfinite() for x in stats.values())
    assert logits.grad.dtype == torch.float32
    return logits.grad


@pytest.mark.parametrize(
    ("advantage", "ent_coef"), [(1, 0), (0, 1), (1, 0.5)], ids=["policy", "entropy", "both"]
)
@pytest.mark.parametrize("scale", [1, 30], ids=["even", "peaked"])
def test_gradients_are_those_of_the_valid_actions_alone(advantage, ent_coef, scale):
    """For the valid ones against d log p(a) / dz = [a] - p and dH / dz = -p (log p + H); 0 exactly for the others."""
    nvec, rows = [2, 3, 4], 200
    rng = np.random.default_rng(4)
    masks = random_masks(nvec, rows, rng)
    logits = scale * torch.as_tensor(rng.normal(size=(rows, 9)), dtype=torch.float32)
    advantages = advantage * torch.as_tensor(rng.normal(size=rows), dtype=torch.float32)
    actions = agent_of_logits(nvec).get_action_and_value(
        logits, action_mask=torch.as_tensor(masks)
    )[0]
    gradient = loss_gradient(
        nvec, logits, actions, torch.as_tensor(masks), advantages, ent_coef
    ).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[~masks] == 0).all()
    assert np.abs(gradient[masks]).max() > 1e-4
    expected = np.zeros((rows, 9))
    for row in range(rows):
        parts = component_probabilities(logits[row].numpy(), masks[row], nvec)
        for p, action, first in zip(parts, actions[row], firsts(nvec), strict=True):
            log_p = np.log(p, where=p > 0, out=np.zeros(len(p)))
            taken = np.arange(len(p)) == action.item()
            slope = advantages[row].item() * (taken - p) - ent_coef * p * (log_p - p @ log_p)
            expected[row, first : first + len(p)] = -slope / rows
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_one_valid_action_alone_is_certain_and_teaches_nothing():
    nvec, chosen = [2, 3, 4], torch.tensor([[1, 0, 2], [0, 2, 3]])
    masks = torch.cat(
        [nn.functional.one_hot(chosen[:, c], n) for c, n in enumerate(nvec)], dim=1
    ).bool()
    for logits in (torch.randn(2, 9), torch.where(masks, -1e6, 1e6)):
        action, logprob, entropy, _ = agent_of_logits(nvec).get_action_and_value(
            logits, action_mask=masks
        )
        assert torch.equal(action, chosen)
        assert torch.equal(logprob, torch.zeros(2))
        assert torch.equal(entropy, torch.zeros(2))
        gradient = loss_gradient(nvec, logits, chosen, masks, torch.tensor([3.0, -2.0]), ent_coef=1)
        assert torch.equal(gradient, torch.zeros(2, 9))


def test_an_output_that_is_never_valid_is_not_trained():
    spaces = SimpleNamespace(
        single_observation_space=Box(-1, 1, (5,)), single_action_space=MultiDiscrete([2, 3])
    )
    agent = module.Agent(spaces)
    masks = torch.tensor([True, True, True, False, True]).expand(32, -1)
    obs, zeros = torch.randn(32, 5), torch.zeros(32)
    with torch.no_grad():
        actions, logprobs, _, _ = agent.get_action_and_value(obs, action_mask=masks)
    mb = module.Batch(obs, actions, logprobs, zeros, torch.randn(32), zeros, action_masks=masks)
    module.ppo_loss(agent, mb, 0.2, module.Args())[0].backward()
    trained = agent.actor[-1].weight.grad.abs().sum(dim=1) > 0
    assert (
        trained.tolist()
        == agent.actor[-1].bias.grad.bool().tolist()
        == [True, True, True, False, True]
    )


# An environment that keeps its own record


# Lengths and ends of its episodes, over and over.
ENDS = [(4, False, True), (3, True, False), (5, True, True), (2, False, True), (6, True, False)]


def book_mask(
    kind: str, nvec: list[int], number: int, episode: int, clock: int
) -> np.ndarray | None:
    """Return the mask that Book number `number` gives at that time, flat; None where it gives none."""
    if kind == "none" or (kind == "some" and (number + clock) % 2):
        return None
    return random_masks(nvec, 1, np.random.default_rng([number, episode, clock]))[0]


class Book(gym.Env):
    """Writes down the steps that it takes, and takes no action that is not valid.

    A row of a rollout is known by its observation: number of the environment, episode, steps since its beginning.
    """

    made: ClassVar[list[gym.Env]] = []  # those of this test, in order

    def __init__(self, space, kind):
        self.number = len(self.made)
        self.made.append(self)
        self.kind = kind
        self.observation_space = Box(0, 10_000, (4,), np.float32)
        self.action_space = space
        self.start = getattr(space, "start", 0)
        self.nvec = np.ravel(getattr(space, "nvec", np.full(space.shape, 2))).tolist()
        self.episode = -1
        self.steps = {}
        self.episodes = []

    def tell(self, over=False):
        obs = np.array([self.number, self.episode, self.clock, 1], dtype=np.float32)
        infos = {}
        self.mask = book_mask(self.kind, self.nvec, self.number, self.episode, self.clock)
        if self.mask is not None:
            told = (
                np.zeros_like(self.mask) if over else self.mask
            )  # when all is over, nothing is valid
            infos["action_mask"] = (
                told.reshape(len(self.nvec), -1) if self.kind == "matrix" else told.astype(np.int8)
            )
        return obs, infos

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.clock = 0
        self.points = 0.0
        return self.tell()

    def step(self, action):
        assert self.action_space.contains(action)
        choice = np.ravel(action - self.start)
        valid = np.ones(sum(self.nvec), dtype=bool) if self.mask is None else self.mask
        assert valid[firsts(self.nvec) + choice].all(), "an invalid action"
        reward = self.episode / 2 - self.clock / 4 + self.number / 8 + choice[-1] / 16
        self.steps[self.episode, self.clock] = (tuple(choice), valid, reward)
        self.clock += 1
        self.points += reward
        length, terminated, truncated = ENDS[(self.number + self.episode) % len(ENDS)]
        over = self.clock == length
        if over:
            self.episodes.append((self.points, length))
        obs, infos = self.tell(over)
        return obs, reward, over and terminated, over and truncated, infos


@contextmanager
def registered(env: type[gym.Env], **kwargs):
    """Make the environment known to Gymnasium as Own-v0, for a while."""

    def make(render_mode: str | None = None, **make_kwargs) -> gym.Env:
        return env(**make_kwargs)

    gym.register("Own-v0", make, kwargs=kwargs, disable_env_checker=True)
    Book.made.clear()
    try:
        yield
    finally:
        del gym.registry["Own-v0"]


# Runs that are looked at from several sides


def record(patch: pytest.MonkeyPatch, args: module.Args) -> SimpleNamespace:
    """Run main and return what its parts got and gave, in the order in which it happened."""
    run = SimpleNamespace(
        args=args, steps=[], rows=[], rollouts=[], gae=[], agents=[], minibatches=[]
    )
    real_make_envs, real_gae, real_loss = module.make_envs, module.compute_gae, module.ppo_loss

    def make_envs(*make_args):
        run.envs = real_make_envs(*make_args)
        real_reset, real_step = run.envs.reset, run.envs.step

        def reset(**kwargs):
            obs, infos = real_reset(**kwargs)
            run.first = copy.deepcopy((obs, infos))
            return obs, infos

        def step(actions):
            result = real_step(actions)
            run.steps.append(SimpleNamespace(actions=np.array(actions)))
            names = ("obs", "reward", "terminated", "truncated", "infos")
            vars(run.steps[-1]).update(copy.deepcopy(dict(zip(names, result, strict=True))))
            return result

        run.envs.reset, run.envs.step = reset, step
        return run.envs

    class RecordedAgent(module.Agent):
        def __init__(self, *agent_args):
            super().__init__(*agent_args)
            run.agent = self

        def get_action(self, x, greedy=False, action_mask=None):
            action = super().get_action(x, greedy, action_mask)
            run.rows.append([x.clone(), action.clone(), action_mask.clone()])
            return action

        def get_action_and_value(self, x, action=None, action_mask=None):
            result = super().get_action_and_value(x, action, action_mask)
            if torch.is_grad_enabled():
                run.trained = result[1].detach()
            else:
                run.rollouts.append(
                    [field.clone() for field in (x, action, action_mask, result[1], result[3])]
                )
            return result

    def compute_gae(**inputs):
        run.agents.append(copy.deepcopy(run.agent))
        run.gae.append(SimpleNamespace(**copy.deepcopy(inputs)))
        return real_gae(**inputs)

    def ppo_loss(agent, mb, *loss_args):
        loss, stats = real_loss(agent, mb, *loss_args)
        copies = module.Batch(*(field.clone() for field in mb))
        update, ratio = len(run.agents) - 1, (run.trained - mb.logprobs).exp()
        run.minibatches.append(SimpleNamespace(update=update, mb=copies, ratio=ratio, stats=stats))
        return loss, stats

    patch.setattr(module, "make_envs", make_envs)
    patch.setattr(module, "Agent", RecordedAgent)
    patch.setattr(module, "compute_gae", compute_gae)
    patch.setattr(module, "ppo_loss", ppo_loss)
    module.main(args)
    (folder,) = Path("runs").rglob("events.*")
    events = EventAccumulator(str(folder.parent), size_guidance={"scalars": 0}).Reload()
    names = ("charts/episodic_return", "charts/episodic_length")
    returns, lengths = (events.Scalars(name) for name in names)
    assert [event.step for event in returns] == [event.step for event in lengths]
    run.reported = [
        (r.step, r.value, length.value) for r, length in zip(returns, lengths, strict=True)
    ]
    assert len(run.rows) == len(run.steps)
    assert len(run.rollouts) == len(run.gae) == 3
    return run


SIZES = {"num_envs": 5, "num_minibatches": 3, "update_epochs": 2, "device": "cpu"}
RUNS = {
    "cleaner": ("--num-steps 48 --total-timesteps 720", None),
    "cleaner unmasked": ("--num-steps 48 --total-timesteps 720 --no-action-mask", None),
    "gymnasium": ("--num-steps 18 --total-timesteps 270 --env-id Own-v0", "flat"),
    "gymnasium, some masks": (
        "--num-steps 18 --total-timesteps 270 --env-id Own-v0 --shared-network",
        "some",
    ),
    "gymnasium, bootstrapped": (
        "--num-steps 18 --total-timesteps 270 --env-id Own-v0 --bootstrap-truncated",
        "flat",
    ),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """Three updates, with ends of episodes in each or in one of them."""
    torch.set_num_threads(1)
    flags, kind = RUNS[request.param]
    space = MultiDiscrete([2, 3, 4], start=[0, -1, 5])
    with pytest.MonkeyPatch.context() as patch, registered(Book, space=space, kind=kind):
        patch.chdir(tmp_path_factory.mktemp("run"))
        recording = record(
            patch, tyro.cli(module.Args, args=flags.split(), default=module.Args(**SIZES))
        )
        recording.books = list(Book.made)
    recording.name = request.param
    return recording


def segment(run: SimpleNamespace, update: int) -> slice:
    return slice(update * run.args.num_steps, (update + 1) * run.args.num_steps)


def rows_of(run: SimpleNamespace, update: int) -> list[torch.Tensor]:
    """Return obs, actions and masks that the agent acted on in one rollout, each (num_steps, num_envs, ...)."""
    return [torch.stack(column) for column in zip(*run.rows[segment(run, update)], strict=True)]


def keys(obs: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in obs]


def epochs_of(run: SimpleNamespace, update: int) -> list[list[SimpleNamespace]]:
    calls = [call for call in run.minibatches if call.update == update]
    size = run.args.num_minibatches
    return [calls[i : i + size] for i in range(0, len(calls), size)]


def cleaner_maps(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what an observation vector says: the tiles (10, 10), and where the robots are, (3, 2)."""
    tiles = obs[:300].reshape(10, 10, 3).argmax(axis=-1)
    cells = obs[300:600].reshape(3, 100).argmax(axis=-1)
    return tiles, np.stack(np.divmod(cells, 10), axis=-1)


MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left


def cleaner_mask(obs: np.ndarray) -> np.ndarray:
    """Return (12,) bool: which moves lead neither out of the maze nor into a wall; all, for a robot walled in."""
    tiles, robots = cleaner_maps(obs)
    walls = np.pad(tiles == 2, 1, constant_values=True)
    ways = robots[:, None] + MOVES + 1
    free = ~walls[ways[..., 0], ways[..., 1]]
    return np.ravel(free | ~free.any(axis=1, keepdims=True))


def test_the_run_has_what_the_tests_look_for(run):
    ended = np.stack([step.terminated | step.truncated for step in run.steps])
    assert ended.sum() >= 5
    assert any(call.dones[1:].any() for call in run.gae)
    if run.name != "cleaner":
        assert ended[
            [run.args.num_steps - 1, 2 * run.args.num_steps - 1]
        ].any()  # also at the end of a segment
    truncated = np.stack([step.truncated & ~step.terminated for step in run.steps])
    assert truncated.any() == run.name.startswith("gymnasium")


def test_the_agent_acts_on_what_the_environment_shows_and_the_environment_takes_its_action(run):
    obs = run.first[0]
    for (seen, action, _), step in zip(run.rows, run.steps, strict=True):
        assert np.array_equal(seen, obs.astype(np.float32))
        assert np.array_equal(step.actions, action)
        obs = step.obs


def test_every_row_is_a_step_that_was_taken(run):
    """Its action led from its observation to the next one, and after an end that is the first of a new episode."""
    following = torch.stack(
        [*(row[0] for row in run.rows[1:]), torch.as_tensor(run.steps[-1].obs).float()]
    )
    clock = np.zeros(run.args.num_envs)  # steps since the episode began
    for (obs, actions, _), step, next_obs in zip(
        run.rows, run.steps, following.numpy(), strict=True
    ):
        ended = step.terminated | step.truncated
        for i, (now, action, then) in enumerate(
            zip(obs.numpy(), actions.numpy(), next_obs, strict=True)
        ):
            if run.name.startswith("gymnasium"):
                choice, _, reward = run.books[i].steps[int(now[1]), int(now[2])]
                assert now.tolist() == [i, now[1], clock[i], 1]
                assert choice == tuple(action)
                assert reward == step.reward[i]
                assert then.tolist() == (
                    [i, now[1] + 1, 0, 1] if ended[i] else [i, now[1], clock[i] + 1, 1]
                )
            else:
                tiles, robots = cleaner_maps(now)
                next_tiles, next_robots = cleaner_maps(then)
                assert now[600] == pytest.approx(clock[i] / 100)
                if ended[i]:
                    assert then[600] == 0
                    assert not next_robots.any()  # in their corner
                else:
                    assert np.array_equal(next_robots, robots + MOVES[action])
                    cleaned = np.argwhere(tiles != next_tiles)
                    assert {tuple(tile) for tile in cleaned} <= {
                        tuple(robot) for robot in next_robots
                    }
                    assert step.reward[i] == len(cleaned) - 0.5
        clock = np.where(ended, 0, clock + 1)
    taken = [step for book in run.books for step in book.steps]
    assert len(taken) == (
        len(run.rows) * run.args.num_envs if run.books else 0
    )  # and there were no others


def test_every_epoch_has_each_step_once_with_all_that_belongs_to_it(run):
    for update in range(3):
        obs, actions, masks = (field.flatten(0, 1) for field in rows_of(run, update))
        _, _, _, logprobs, values = run.rollouts[update]
        steps = keys(obs)
        assert len(set(steps)) == len(steps)  # or else rows could not be told apart
        place = {key: i for i, key in enumerate(steps)}
        epochs = epochs_of(run, update)
        assert len(epochs) == 2
        orders = []
        for epoch in epochs:
            assert [len(call.mb.obs) for call in epoch] == [len(steps) // 3] * 3
            learned = [key for call in epoch for key in keys(call.mb.obs)]
            assert Counter(learned) == Counter(steps)
            rows = [place[key] for key in learned]
            orders.append(rows)
            names = ("actions", "logprobs", "values", "action_masks")
            for name, field in zip(names, (actions, logprobs, values, masks), strict=True):
                assert torch.equal(
                    torch.cat([getattr(call.mb, name) for call in epoch]), field[rows]
                ), name
        assert orders[0] != orders[1]


def test_log_probabilities_and_values_are_those_of_the_policy_that_acted(run):
    """They are computed after the rollout, all at once; the same comes out step by step, with the same weights."""
    for update in range(3):
        *inputs, logprobs, values = run.rollouts[update]
        for given, acted in zip(inputs, rows_of(run, update), strict=True):
            assert torch.equal(given, acted.flatten(0, 1))
        with torch.no_grad():
            steps = [
                module.Agent.get_action_and_value(run.agents[update], obs, actions, masks)
                for obs, actions, masks in run.rows[segment(run, update)]
            ]
        torch.testing.assert_close(
            logprobs, torch.cat([step[1] for step in steps]), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            values, torch.cat([step[3] for step in steps]), rtol=0, atol=1e-5
        )


def episode_advantages(
    rewards: list[float], values: list[float], following: float, args: module.Args
) -> np.ndarray:
    """Return sum (gamma * lambda)^l * delta_(t+l), of rows of one episode before a given value."""
    deltas = np.array(rewards) + args.gamma * np.array([*values[1:], following]) - np.array(values)
    weights = (args.gamma * args.gae_lambda) ** np.arange(len(deltas))
    return np.array([weights[: len(deltas) - t] @ deltas[t:] for t in range(len(deltas))])


def test_advantages_are_those_of_the_rows_of_each_episode_alone(run):
    """A time limit is an end as any other, unless what would have followed is counted."""
    bootstrapped = 0
    for update in range(3):
        obs = rows_of(run, update)[0]
        values = run.rollouts[update][-1].view(obs.shape[:2])
        steps = run.steps[segment(run, update)]

        def value_of(observation, update=update):
            with torch.no_grad():
                return (
                    run.agents[update].get_value(torch.as_tensor(observation)[None].float()).item()
                )

        expected = {}
        for i in range(run.args.num_envs):
            rows = []  # those of this episode in this segment
            for t in range(run.args.num_steps):
                rows.append(t)
                ends = steps[t].terminated[i] or steps[t].truncated[i]
                if not ends and t + 1 < run.args.num_steps:
                    continue
                following = 0.0
                if not ends:
                    following = value_of(steps[t].obs[i])
                elif run.args.bootstrap_truncated and not steps[t].terminated[i]:
                    following = value_of(steps[t].infos["final_obs"][i])
                    assert (
                        abs(following - value_of(steps[t].obs[i])) > 1e-3
                    )  # the next episode's beginning differs
                    bootstrapped += 1
                rewards, seen = (
                    [steps[k].reward[i] for k in rows],
                    [values[k, i].item() for k in rows],
                )
                advantages = episode_advantages(rewards, seen, following, run.args)
                expected |= dict(
                    zip(
                        keys(obs[rows, i]),
                        zip(advantages, advantages + seen, strict=True),
                        strict=True,
                    )
                )
                rows = []
        for call in (call for epoch in epochs_of(run, update) for call in epoch):
            learned = np.array([expected[key] for key in keys(call.mb.obs)])
            np.testing.assert_allclose(call.mb.advantages, learned[:, 0], rtol=0, atol=2e-5)
            np.testing.assert_allclose(call.mb.returns, learned[:, 1], rtol=0, atol=2e-5)
    assert bootstrapped > 5 or not run.args.bootstrap_truncated


def test_the_mask_of_each_row_is_that_of_its_own_observation_and_used_again_in_training(run):
    """Also where an episode has just begun: its first mask is not the one that the last step of the old one told."""
    kind = RUNS[run.name][1]
    begins = 0
    for update in range(3):
        obs, _, masks = (field.numpy() for field in rows_of(run, update))
        for t, i in np.ndindex(obs.shape[:2]):
            expected = np.ones(masks.shape[2], dtype=bool)
            if run.args.action_mask and kind is None:
                expected = cleaner_mask(obs[t, i])
            elif kind is not None:
                number, episode, clock, _ = obs[t, i].astype(int)
                told = book_mask(kind, [2, 3, 4], number, episode, clock)
                expected = expected if told is None else told
                begins += clock == 0 < episode and told is not None
            assert np.array_equal(masks[t, i], expected)
        first, second = epochs_of(run, update)[0][:2]
        torch.testing.assert_close(first.ratio, torch.ones_like(first.ratio), rtol=0, atol=1e-5)
        assert first.stats["clipfrac"] == 0
        assert (second.ratio - 1).abs().max() > 1e-5  # the first step has moved the policy
        offsets = torch.as_tensor(firsts(run.envs.single_action_space.nvec))
        for call in (call for epoch in epochs_of(run, update) for call in epoch):
            mask = call.mb.action_masks
            assert mask.gather(1, call.mb.actions + offsets).all()
            assert mask.all() == (not run.args.action_mask)
    assert begins > 10 or kind is None


def test_episodes_are_reported_with_their_true_length_and_return(run):
    expected = []
    points, lengths = np.zeros(run.args.num_envs), np.zeros(run.args.num_envs)
    for t, step in enumerate(run.steps):
        points += step.reward
        lengths += 1
        for i in np.flatnonzero(step.terminated | step.truncated):
            expected.append(((t + 1) * run.args.num_envs, points[i], lengths[i]))
            points[i] = 0
            lengths[i] = 0
    assert sorted(run.reported) == sorted(expected)
    books = [episode for book in run.books for episode in book.episodes]
    if run.name.startswith("gymnasium"):
        assert sorted(reported[1:] for reported in run.reported) == sorted(books)


def test_policy_and_value_share_a_body_only_with_shared_network(run):
    shared = [
        p
        for p in run.agent.actor.parameters()
        if any(p is q for q in run.agent.critic.parameters())
    ]
    assert len(shared) == (4 if run.args.shared_network else 0)
    names = dict(run.agent.named_parameters())
    assert len(names) == (8 if run.args.shared_network else 12)


@pytest.mark.parametrize("shared_network", [False, True])
def test_the_value_loss_trains_the_policys_body_only_if_it_is_shared(shared_network):
    spaces = SimpleNamespace(
        single_observation_space=Box(-1, 1, (5,)), single_action_space=MultiDiscrete([2, 3])
    )
    agent = module.Agent(spaces, shared_network)
    agent.get_value(torch.randn(8, 5)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in agent.critic.parameters())
    for layer in (agent.actor[0], agent.actor[2]):
        assert (layer.weight.grad is not None) == shared_network
    assert agent.actor[-1].weight.grad is None


# Environments of Gymnasium


def test_an_environment_needs_no_render_mode_unless_it_is_filmed():
    gym.register(
        "Own-v0", Book, kwargs={"space": MultiBinary(2), "kind": "none"}, disable_env_checker=True
    )
    try:
        env = module.make_env("Own-v0", 0, False, Path("runs"))
    finally:
        del gym.registry["Own-v0"]
    assert env.action_space == MultiDiscrete([2, 2])


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (MultiDiscrete([2, 3, 4]), "none"),
        (MultiDiscrete([2, 3, 4], start=[3, -2, 1]), "none"),
        (MultiDiscrete([3, 3]), "flat"),
        (MultiDiscrete([3, 3], start=[-4, 7]), "matrix"),
        (MultiDiscrete([1, 4, 2], start=[0, 1, 0]), "flat"),
        (MultiDiscrete([5], start=[2]), "some"),
        (MultiDiscrete([4, 4, 4, 4], start=[0, 1, 2, 3]), "matrix"),
        (MultiDiscrete([[2, 3], [4, 5], [1, 2]]), "flat"),
        (MultiDiscrete([[2, 3], [4, 5]], start=[[1, -1], [7, 0]]), "some"),
        (MultiBinary(5), "none"),
        (MultiBinary(4), "matrix"),
        (MultiBinary((2, 3)), "flat"),
    ],
    ids=str,
)
def test_an_environment_of_gymnasium_gets_valid_actions_only_in_its_own_form(space, kind):
    """It asserts so itself, at every step."""
    with registered(Book, space=space, kind=kind):
        sizes = {
            "num_envs": 3,
            "num_steps": 16,
            "total_timesteps": 96,
            "num_minibatches": 2,
            "update_epochs": 2,
        }
        agent = module.main(module.Args(env_id="Own-v0", **sizes))
        assert all(p.isfinite().all() for p in agent.parameters())
        for book in Book.made:
            assert len(book.steps) == 32
            choices = np.array([choice for choice, _, _ in book.steps.values()])
            seen = [len(np.unique(column)) for column in choices.T]
            assert seen == book.nvec


@pytest.mark.parametrize(
    "space", [MultiDiscrete([[2, 3], [4, 5]], start=[[1, -1], [7, 0]]), MultiBinary((2, 2))]
)
def test_components_keep_their_places_in_an_action_of_any_shape(space):
    with registered(Book, space=space, kind="none"):
        env = module.make_env("Own-v0", 0, False, Path("runs"))
        nvec = np.ravel(getattr(space, "nvec", [2, 2, 2, 2]))
        assert env.action_space == MultiDiscrete(nvec)
        for action in product(*(range(n) for n in nvec)):
            env.reset()
            env.step(np.array(action))
            ((choice, _, _),) = [Book.made[0].steps[Book.made[0].episode, 0]]
            assert choice == action


class Told(gym.vector.VectorEnv):
    """Environments that tell what they were given."""

    num_envs = 4
    single_action_space = MultiDiscrete([3, 4])

    def __init__(self, infos: dict):
        self.infos = infos

    def reset(self, *, seed=None, options=None):
        return np.zeros((4, 1)), dict(self.infos)

    def step(self, actions):
        return (
            np.zeros((4, 1)),
            np.zeros(4),
            np.zeros(4, dtype=bool),
            np.zeros(4, dtype=bool),
            dict(self.infos),
        )


@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_masks_count_where_one_was_given_and_every_step_says_one(shape):
    masks = np.zeros((4, *shape), dtype=np.int8)
    masks[:2, [1, 5, 6]] = 1
    infos = {"action_mask": masks, "_action_mask": np.array([True, True, False, False])}
    some = np.ones((4, 7), dtype=bool)
    some[:2] = [0, 1, 0, 0, 0, 1, 1]
    every = np.ones((4, 7), dtype=bool)
    for told, action_mask, expected in (
        (infos, True, some),
        ({}, True, every),
        (infos, False, every),
    ):
        envs = module.ActionMask(Told(told), module.Args(num_envs=4, action_mask=action_mask))
        _, first = envs.reset(seed=[1, 2, 3, 4])
        *_, second = envs.step(np.zeros((4, 2), dtype=np.int64))
        for given in (first["action_mask"], second["action_mask"]):
            assert given.dtype == bool
            assert np.array_equal(given, expected)


def test_no_action_mask_leaves_the_choice_to_the_agent():
    with (
        registered(Book, space=MultiDiscrete([2, 3, 4]), kind="flat"),
        pytest.raises(AssertionError, match="an invalid action"),
    ):
        module.main(
            module.Args(
                env_id="Own-v0", num_envs=3, num_steps=16, total_timesteps=48, action_mask=False
            )
        )


class Safe(gym.Env):
    """Three safes one after the other, of four kinds; a safe pays most for the one code that is right throughout."""

    codes = np.array([[0, 2, 3], [1, 0, 0], [1, 1, 2], [0, 0, 1]])  # from the start of each dial
    start = np.array([1, 0, -2])
    observation_space = Box(0, 1, (4,), np.float32)
    action_space = MultiDiscrete([2, 3, 4], start=start)

    def tell(self):
        self.kind = self.np_random.integers(4)
        self.mask = self.np_random.random(9) < 0.7
        self.mask[self.codes[self.kind] + firsts([2, 3, 4])] = True
        return np.eye(4, dtype=np.float32)[self.kind], {"action_mask": self.mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tried = 0
        return self.tell()

    def step(self, action):
        assert self.mask[action - self.start + firsts([2, 3, 4])].all()
        right = (action - self.start == self.codes[self.kind]).mean()
        self.tried += 1
        obs, infos = self.tell()
        return obs, right**2, self.tried == 3, False, infos


def test_it_finds_the_best_joint_action_of_every_context():
    """A random policy gets about 0.9 of 3 points per episode."""
    with registered(Safe):
        sizes = {"num_envs": 16, "num_steps": 32, "total_timesteps": 10_240}
        agent = module.main(module.Args(env_id="Own-v0", learning_rate=5e-3, **sizes))
    (folder,) = Path("runs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    returns = [event.value for event in events.Scalars("charts/episodic_return")]
    assert np.mean(returns[:50]) < 1.3
    assert np.mean(returns[-100:]) > 2.7
    dials = agent.actor(torch.eye(4)).split([2, 3, 4], dim=1)
    assert (
        torch.stack([dial.argmax(dim=1) for dial in dials], dim=1).tolist() == Safe.codes.tolist()
    )


# Cleaner


def make_cleaner(num_envs: int) -> tuple[gym.vector.VectorEnv, tuple[np.ndarray, dict], list]:
    """Return the script's environments, what their reset gives, and EnvPool's own, one by one, with the same seeds."""
    seeds = list(range(100, 100 + num_envs))
    envs = module.make_envs(module.Args(num_envs=num_envs), Path("runs"))
    first = envs.reset(seed=seeds)
    return (
        envs,
        first,
        [envpool.make(CLEANER, "gymnasium", num_envs=1, seed=seed) for seed in seeds],
    )


def assert_all_is_told(obs: np.ndarray, raw: dict) -> None:
    """Read the observation vector, and compare it with what EnvPool says."""
    tiles, cells = obs[:, :300].reshape(-1, 10, 10, 3), obs[:, 300:600].reshape(-1, 3, 100)
    for one_hot in (tiles, cells):
        assert np.isin(one_hot, (0, 1)).all()
        assert (one_hot.sum(axis=-1) == 1).all()
    assert np.array_equal(tiles.argmax(axis=-1), raw["grid"])
    assert np.array_equal(
        np.stack(divmod(cells.argmax(axis=-1), 10), axis=-1), raw["agents_locations"]
    )
    np.testing.assert_allclose(100 * obs[:, 600], raw["step_count"], rtol=0, atol=1e-4)
    space = module.Cleaner.single_observation_space
    assert all(space.contains(row) for row in obs.astype(space.dtype))


def assert_the_mask_is_told(infos: dict, raw: dict) -> None:
    """Compare the mask with EnvPool's; all is allowed where nothing is valid."""
    valid = infos["action_mask"].reshape(-1, 3, 4)
    assert valid.dtype == bool
    nothing_valid = ~raw["action_mask"].any(axis=2)
    assert valid[nothing_valid].all()
    assert np.array_equal(valid[~nothing_valid], raw["action_mask"][~nothing_valid])


def stack(raw: list[dict]) -> dict:
    """Return the observations of several pools of one environment as those of one pool of several."""
    return {name: np.concatenate([one[name] for one in raw]) for name in raw[0]}


def test_cleaner_plays_as_envpool_does_with_every_reset_in_the_step_of_the_end():
    """All of the observation is there, an invalid action ends the episode, and no environment disturbs another."""
    envs, (obs, infos), pools = make_cleaner(16)
    rng = np.random.default_rng(1)
    raw = stack([pool.reset()[0] for pool in pools])
    outcomes = Counter()
    returns, lengths = np.zeros(16), np.zeros(16)
    for _ in range(300):
        assert_all_is_told(obs, raw)
        assert_the_mask_is_told(infos, raw)
        walled_in = ~raw["action_mask"].any(axis=(1, 2))
        assert np.array_equal(lengths, raw["step_count"])
        allowed = raw["action_mask"] | (
            rng.random((16, 1, 1)) < 0.02
        )  # now and then one walks into a wall
        actions = (allowed * (1 + rng.random(allowed.shape))).argmax(axis=2)
        invalid = ~np.take_along_axis(raw["action_mask"], actions[:, :, None], axis=2).all(
            axis=(1, 2)
        )
        obs, reward, terminated, truncated, infos = envs.step(actions)
        results = [pool.step(actions[i : i + 1].astype(np.int32)) for i, pool in enumerate(pools)]
        last = stack([result[0] for result in results])
        assert np.array_equal(reward, np.concatenate([result[1] for result in results]))
        late = last["step_count"] == 100
        clean = (last["grid"] != 0).all(axis=(1, 2))
        assert np.array_equal(terminated, np.concatenate([result[2] for result in results]))
        assert np.array_equal(terminated, invalid | late | clean)
        assert not truncated.any()
        returns += reward
        lengths += 1
        assert ("episode" in infos) == terminated.any()
        if terminated.any():
            assert_all_is_told(infos["final_obs"], last)
            assert np.array_equal(infos["_episode"], terminated)
            assert np.array_equal(infos["episode"]["r"][terminated], returns[terminated])
            assert np.array_equal(infos["episode"]["l"][terminated], lengths[terminated])
        returns[terminated] = 0
        lengths[terminated] = 0
        observations = [result[0] for result in results]
        for i in np.flatnonzero(terminated):
            observations[i], *_ = pools[i].step(
                rng.integers(4, size=(1, 3), dtype=np.int32)
            )  # it resets, whatever
        raw = stack(observations)
        outcomes += Counter(
            invalid=(invalid & ~walled_in).sum(), late=late.sum(), walled_in=walled_in.sum()
        )
    assert outcomes["invalid"] > 20
    assert outcomes["late"] > 5
    assert outcomes["walled_in"] > 0


def test_every_reset_of_cleaner_begins_with_its_seeds():
    envs = module.make_envs(module.Args(num_envs=3), Path("runs"))
    first, _ = envs.reset(seed=[2, 4, 6])
    envs.step(np.zeros((3, 3), dtype=np.int64))
    again, _ = envs.reset(seed=[2, 4, 6])
    other, _ = envs.reset(seed=[2**32 - 2, 4, 8])
    assert np.array_equal(first, again)
    assert [np.array_equal(x, y) for x, y in zip(first, other, strict=True)] == [False, True, False]


def move_towards_dirt(grid: np.ndarray, start: tuple[int, int], claimed: set) -> int | None:
    """Return the first move of the shortest way to a dirty tile that is not claimed yet, and claim it."""
    queue, seen = deque([(start, None)]), {start}
    while queue:
        (row, column), move = queue.popleft()
        if grid[row, column] == 0 and (row, column) not in claimed:
            claimed.add((row, column))
            return move
        for number, (down, right) in enumerate(MOVES.tolist()):
            tile = row + down, column + right
            if min(tile) >= 0 and max(tile) < 10 and grid[tile] != 2 and tile not in seen:
                seen.add(tile)
                queue.append((tile, number if move is None else move))
    return None


def test_with_masked_actions_an_episode_of_cleaner_ends_late_or_clean_or_walled_in():
    """Most environments walk at random; in some, the robots look for dirt, in what the observation vector shows."""
    envs, (obs, infos), _ = make_cleaner(64)
    rng = np.random.default_rng(1)
    outcomes = Counter()
    for _ in range(203):
        actions = (infos["action_mask"].reshape(64, 3, 4) * (1 + rng.random((64, 3, 4)))).argmax(
            axis=2
        )
        grids = obs[:, :300].reshape(-1, 10, 10, 3).argmax(axis=-1)
        for i in range(8):
            claimed = set()
            for robot, cell in enumerate(obs[i, 300:600].reshape(3, 100).argmax(axis=1)):
                move = move_towards_dirt(grids[i], divmod(int(cell), 10), claimed)
                actions[i, robot] = actions[i, robot] if move is None else move
        obs, _, terminated, truncated, infos = envs.step(actions)
        assert not truncated.any()
        for i in np.flatnonzero(terminated):
            tiles, _ = cleaner_maps(infos["final_obs"][i])
            length = infos["episode"]["l"][i]
            if grids[i, 0, 1] == grids[i, 1, 0] == 2:  # the robots start in the corner
                assert length == 1
                outcomes["walled in"] += 1
            elif (tiles != 0).all():
                outcomes["clean"] += 1
            else:
                assert length == 100
                outcomes["late"] += 1
    assert min(outcomes[reason] for reason in ("late", "clean", "walled in")) > 0
    assert outcomes["late"] > 56


# Bad input


class Spaces(gym.Env):
    """An environment that has spaces and nothing else: it has to be turned down before the first step."""

    def __init__(self, observation_space, action_space):
        self.observation_space = observation_space
        self.action_space = action_space


class Stuck(Book):
    """At the given time, one of the environments has no valid action for its second component."""

    def __init__(self, when, **kwargs):
        self.when = when
        super().__init__(kind="flat", **kwargs)

    def tell(self, over=False):
        obs, infos = super().tell(over)
        if self.number == 1 and self.clock == self.when:
            infos["action_mask"][2:5] = 0
        return obs, infos


class Short(Book):
    """At the given time, its masks lack an entry."""

    def __init__(self, when, **kwargs):
        self.when = when
        super().__init__(kind="flat", **kwargs)

    def tell(self, over=False):
        obs, infos = super().tell(over)
        if self.clock == self.when:
            infos["action_mask"] = infos["action_mask"][:-1]
        return obs, infos


def assert_turned_down(arguments: str, words: list[str], capsys: pytest.CaptureFixture) -> None:
    sizes = {"num_envs": 2, "num_steps": 16, "total_timesteps": 32}
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        module.main(tyro.cli(module.Args, args=arguments.split(), default=module.Args(**sizes)))
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    (line,) = (
        line for line in err.splitlines() if not line.startswith("runs/")
    )  # how the run began may stand there
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize(("env", "words"), [(Stuck, ["component"]), (Short, ["(8,)", "(9,)"])])
def test_a_bad_mask_is_one_line(env, words, when, capsys):
    with registered(env, space=MultiDiscrete([2, 3, 4]), when=when):
        assert_turned_down("--env-id Own-v0", ["Own-v0", "mask", *words], capsys)
        assert all(len(book.steps) == when for book in Book.made)
    assert not list(Path("runs").rglob("events*"))  # nothing was logged yet


def test_a_bad_mask_does_not_matter_without_masking():
    class Careless(Stuck):
        def step(self, action):
            self.mask = None
            return super().step(action)

    with registered(Careless, space=MultiDiscrete([2, 3, 4]), when=2):
        sizes = {"num_envs": 2, "num_steps": 16, "total_timesteps": 32}
        module.main(module.Args(env_id="Own-v0", action_mask=False, **sizes))
        assert all(len(book.steps) == 16 for book in Book.made)


VECTOR, MANY = Box(-1, 1, (3,), np.float32), MultiDiscrete([2, 3])
SPACES = [
    (VECTOR, Discrete(4), ["Discrete(4)", "ppo.py"]),
    (VECTOR, Box(-1, 1, (2,), np.float32), ["continuous", "ppo_continuous_action.py"]),
    (
        VECTOR,
        Dict({"left": Discrete(2), "right": Discrete(3)}),
        ["Dict", "MultiDiscrete", "make_env"],
    ),
    (Box(0, 255, (84, 84, 3), np.uint8), MANY, ["images", "ppo_atari.py"]),
    (Text(5), MANY, ["Text", "FilterObservation"]),
    (Dict({"name": Text(5), "velocity": VECTOR}), MANY, ["Text", "FilterObservation"]),
]


@pytest.mark.parametrize(("observation_space", "action_space", "words"), SPACES)
def test_spaces_that_do_not_suit_are_one_line(observation_space, action_space, words, capsys):
    with registered(Spaces, observation_space=observation_space, action_space=action_space):
        assert_turned_down("--env-id Own-v0", ["Own-v0", *words], capsys)
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (Dict({"position": VECTOR, "velocity": VECTOR}), 6),
        (Discrete(16), 16),
        (MultiDiscrete([3, 4]), 7),
        (Box(-1, 1, (2, 3), np.float32), 6),
    ],
    ids=str,
)
def test_observations_that_are_no_vectors_become_vectors(space, size):
    with registered(Spaces, observation_space=space, action_space=MANY):
        env = module.make_env("Own-v0", 0, False, Path("runs"))
    assert env.observation_space.shape == (size,)


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Jumanji/Cleaner-v1", ["not found"]),
        ("Jumanji/Cleanr-v0", ["not found"]),
        ("Cleaner-v0", ["doesn't exist"]),
        ("CartPole-v1", ["Discrete(2)", "ppo.py"]),
        ("qqqqqq", ["doesn't exist"]),
    ],
)
def test_environment_that_does_not_suit_is_one_line(env_id, words, capsys):
    assert_turned_down(f"--env-id {env_id}", [env_id, *words], capsys)
    assert not list(Path.cwd().iterdir())
