"""`--compile` changes nothing but the speed, and does not compile again and again."""

import importlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, TINY
from torch._dynamo.utils import counters

compile_with = torch.compile


def train(script: str, monkeypatch, backend: str, **changes) -> dict[str, torch.Tensor]:
    """Train with tiny arguments; return the weights. The backend "aot_eager" traces all, but writes no C++ code."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(
        torch, "compile", lambda *args, **kwargs: compile_with(*args, backend=backend, **kwargs)
    )
    module = importlib.import_module(script)
    return module.main(module.Args(**TINY[script] | {"device": "cpu"} | changes)).state_dict()


@pytest.mark.parametrize(
    ("script", "backend"),
    [("ppo", "inductor"), *((script, "aot_eager") for script in SCRIPTS if script != "ppo")],
)
def test_compiled_training_ends_with_the_same_weights(script, backend, monkeypatch):
    plain = train(script, monkeypatch, backend)
    assert not counters["frames"]
    compiled = train(script, monkeypatch, backend, compile=True)
    assert counters["frames"]["ok"] == counters["frames"]["total"] > 0
    assert not counters["graph_break"]
    for name, weights in plain.items():
        torch.testing.assert_close(compiled[name], weights, rtol=1e-3, atol=1e-5)


def test_compiled_processes_average_outside_of_the_graph(monkeypatch):
    """The only break in ppo_atari_multigpu.py is the message to the other processes."""
    plain = train("ppo_atari_multigpu", monkeypatch, "aot_eager")
    compiled = train("ppo_atari_multigpu", monkeypatch, "aot_eager", compile=True)
    assert len(counters["graph_break"]) == 1
    for name, weights in plain.items():
        torch.testing.assert_close(compiled[name], weights, rtol=1e-3, atol=1e-5)


def count_graphs(script: str, monkeypatch, backend: str, **changes) -> list[int]:
    """Train with --compile; return the number of graphs there are after each update."""
    module, graphs = importlib.import_module(script), []
    end_update = module.Run.end_update

    def counting(*args):
        graphs.append(counters["stats"]["unique_graphs"])
        end_update(*args)

    monkeypatch.setattr(module.Run, "end_update", counting)
    train(script, monkeypatch, backend, compile=True, **changes)
    return graphs


@pytest.mark.parametrize("script", ["ppo_atari_envpool", "ppo_atari_multigpu", "ppo_multidiscrete"])
def test_later_updates_use_the_graphs_of_the_first_ones(script, monkeypatch):
    sizes = {
        "num_envs": 4,
        "num_steps": 32,
        "update_epochs": 1,
        "num_minibatches": 2,
        "total_timesteps": 8 * 128,
    }
    graphs = count_graphs(script, monkeypatch, "aot_eager", **sizes)
    assert len(graphs) == 8
    assert 1 <= graphs[-1] <= 3
    assert graphs[3:] == [graphs[3]] * 5


def test_annealed_clip_coef_does_not_need_a_graph_for_each_of_its_values(monkeypatch):
    """Inductor makes a changing number an input of the graph; "aot_eager" would not."""
    sizes = {
        "num_envs": 2,
        "num_steps": 16,
        "update_epochs": 1,
        "num_minibatches": 2,
        "total_timesteps": 8 * 32,
    }
    graphs = count_graphs("ppo", monkeypatch, "inductor", anneal_clip_coef=True, **sizes)
    assert len(graphs) == 8
    assert 1 <= graphs[-1] <= 3
    assert graphs[3:] == [graphs[3]] * 5


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_compiler_is_one_line(script, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    monkeypatch.delenv("CXX", raising=False)
    assert "CXX" not in os.environ
    module = importlib.import_module(script)
    with pytest.raises(SystemExit) as end:
        module.main(module.Args(**TINY[script], compile=True))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: --compile needs a C++ compiler")
    assert not list(Path.cwd().iterdir())
