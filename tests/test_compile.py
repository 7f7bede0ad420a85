"""`--compile` changes nothing but the speed, and does not compile again and again."""

import importlib
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, TINY, spaces_of
from torch._dynamo.utils import counters

import ppo

# The scripts for EnvPool's Atari have the network and the loss of ppo_atari.
NAMES = [name for name in SCRIPTS if name != "ppo_atari_envpool"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def agent_and_rows() -> tuple[ppo.Agent, ppo.Batch]:
    """Return a new agent, and sixteen random rows for it to learn from."""
    torch.manual_seed(1)
    agent = ppo.Agent(spaces_of("ppo"))
    fields = {field: torch.randn(16) for field in ("values", "advantages", "returns")}
    obs, actions = torch.randn(16, 5), torch.randint(6, (16,))
    return agent, ppo.Batch(obs=obs, actions=actions, logprobs=-1 - torch.rand(16), **fields)


def gradients_of(loss_fn, agent, rows, clip_coef: float, args) -> dict[str, torch.Tensor]:
    agent.zero_grad()
    loss, stats = loss_fn(agent, rows, clip_coef, args)
    loss.backward()
    gradients = {name: x.grad.clone() for name, x in agent.named_parameters()}
    return gradients | stats | {"loss": loss.detach()}


def test_the_compiled_loss_has_the_gradients_of_the_eager_one():
    """For each of ten clip ranges, as annealed, and without a graph for each of them."""
    agent, rows = agent_and_rows()
    args = ppo.Args()
    compiled = torch.compile(ppo.ppo_loss, fullgraph=True)
    for clip_coef in np.linspace(0.3, 0.03, 10).tolist():
        expected = gradients_of(ppo.ppo_loss, agent, rows, clip_coef, args)
        got = gradients_of(compiled, agent, rows, torch.tensor(clip_coef), args)
        for key, x in expected.items():
            torch.testing.assert_close(got[key], x, rtol=1e-3, atol=1e-5, msg=key)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_training_compiles_in_its_first_update_and_ends_with_the_same_weights(name, monkeypatch):
    """The backend "aot_eager" traces everything, but writes no C++ code."""
    script = importlib.import_module(name)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    graphs = []
    end_update = script.Run.end_update

    def counting(*args):
        graphs.append(counters["stats"]["unique_graphs"])
        end_update(*args)

    monkeypatch.setattr(script.Run, "end_update", counting)
    args = TINY[name] | {"anneal_clip_coef": True}
    plain, compiled = (
        script.main(script.Args(**args, device="cpu", compile=flag)) for flag in (False, True)
    )
    assert graphs[:3] == [0, 0, 0]
    assert graphs[3:] == [graphs[3]] * 3
    assert graphs[3] > 0
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ppo_atari_lstm"])
def test_the_compiled_loss_gets_the_clip_range_as_a_tensor(name, monkeypatch):
    """Of floats, the compiled gradient would keep the second that any run in this process has had."""
    script = importlib.import_module(name)
    seen = []

    def compile(loss_fn):
        def recorded(agent, mb, clip_coef, args):
            seen.append(clip_coef)
            return loss_fn(agent, mb, clip_coef, args)

        return recorded

    monkeypatch.setattr(torch, "compile", compile)
    script.main(script.Args(**TINY[name], device="cpu", compile=True, clip_coef=0.3))
    assert seen
    for clip_coef in seen:
        torch.testing.assert_close(clip_coef, torch.tensor(0.3))
