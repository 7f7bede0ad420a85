"""Try some three thousand bad inputs on the scripts and on evaluate.py, and count how they end.

    python tests/long/attack.py
    python tests/long/attack.py --only checkpoint/ppo/ --json /tmp/answers.json
    python tests/long/attack.py --root ../an-older-checkout

Takes ten to twenty minutes on one core. A bad input should end in one line that begins with `error: `, or in the usage
that tyro prints for an argument it cannot read. The columns of the table:

    one line    refused, with one line
    usage       refused by tyro, in a box of several lines
    fine        accepted, and rightly so; or an error in the user's own `step`, shown with its traceback
    traceback   a traceback
    signal      ended by a signal, such as a segmentation fault
    hang        had to be stopped
    silent      accepted although it should have been refused, or with damage done
    other       refused though it is a good input, or with something else than one line

Do not start it with nohup: the scripts keep its word, so one that is to end with SIGHUP goes on.

Most inputs run in a fork of one process per script that has imported it already. Inputs that have to do with streams
and signals start the script anew. Without the rights to mount a file system, the inputs with a full disk are left out.
"""

import ast
import atexit
import contextlib
import importlib
import io
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType

import torch
import tyro

SCRIPTS = [
    "ppo",
    "ppo_atari",
    "ppo_atari_envpool",
    "ppo_atari_multigpu",
    "ppo_atari_lstm",
    "ppo_continuous_action",
    "ppo_multidiscrete",
]
OUTCOMES = ["one line", "usage", "fine", "traceback", "signal", "hang", "silent", "other"]
BAD = ["traceback", "signal", "hang", "silent", "other"]
SMALL = {"num_envs": 2, "num_steps": 16, "num_minibatches": 2, "update_epochs": 1, "save_every": 1}
STEPS = 2 * 16  # of one update


@dataclass
class Args:
    root: Path = Path(__file__).parent.parent.parent  # folder of the scripts to attack
    only: tuple[str, ...] = ()  # only inputs in whose category/target/name this occurs
    json: Path | None = None  # also write every input and its answer to this file
    list: bool = False  # print the names of the inputs instead of trying them


@dataclass
class Case:
    """One input, and what should come of it."""

    category: str
    name: str
    arguments: list[str] = field(default_factory=list)
    # refuse: one line is due. accept: it should work. either: both are right. traceback: one from the user's own code
    # is due; "traceback, checkpoint": then a line that says how to go on; "traceback, result": of wherever it shows.
    expect: str = "refuse"
    prepare: Callable[[], str | None] | None = (
        None  # runs first, in the case's folder; may return what to expect
    )
    check: Callable[[Path], str | None] | None = (
        None  # runs last; says what damage was done, if any
    )
    words: tuple[str, ...] = ()  # that the line has to have
    forbidden: tuple[str, ...] = ()  # that the output must not have
    command: str | None = (
        None  # a line for bash, where {run} stands for python and script: not in a fork
    )
    disk: str | None = None  # options of a small file system to run on


# ---------------------------------------------------------------------------------------------------------------------
# Running one input


def main_block(module: ModuleType) -> Callable[[], None]:
    """Return what `python script.py` runs after the definitions."""
    tree = ast.parse(Path(module.__file__).read_text())
    blocks = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
    ]
    code = compile(ast.Module(blocks[-1].body, []), module.__file__, "exec")
    return lambda: exec(code, module.__dict__)


def run_as_script(module: ModuleType, case: Case, folder: Path) -> None:
    """In a fork: run the case as the command line would, and end this process as Python would."""
    atexit._clear()  # those of the parent
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder / "here" / "work")
    if case.prepare is not None:
        (folder / "expect").write_text(case.prepare() or case.expect)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600), stream)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), write_through=True)
    sys.argv = [module.__file__, *case.arguments]
    sys.orig_argv = [sys.executable, *sys.argv]
    code = 0
    try:
        main_block(module)()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    os._exit(code)


def run_forked(module: ModuleType, case: Case, folder: Path, limit: float = 30) -> int | None:
    """Return the exit code, negative after a signal, or None if it took too long."""
    child = os.fork()
    if child == 0:
        try:
            run_as_script(module, case, folder)
        except BaseException:
            (folder / "broken").write_text(traceback.format_exc())
        os._exit(99)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code  # it may have ended in the meantime


def run_command(module: ModuleType, case: Case, folder: Path, limit: float = 90) -> int | None:
    """As run_forked, for a line of bash."""
    work = folder / "here" / "work"
    if case.prepare is not None:
        here = Path.cwd()
        os.chdir(work)
        (folder / "expect").write_text(case.prepare() or case.expect)
        os.chdir(here)
    line = case.command.replace("{run}", f"{sys.executable} {module.__file__}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        bash = subprocess.Popen(
            ["bash", "-c", line],
            cwd=work,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
        try:
            code = bash.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(bash.pid, signal.SIGKILL)
            bash.wait()
            return None
    crashes = {128 + number: -number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)}
    return crashes.get(code, code)  # as bash says it


def run_case(module: ModuleType, target: str, case: Case, folder: Path) -> dict:
    """Run one input in a new folder; return how it ended."""
    work = folder / "here" / "work"
    work.mkdir(parents=True)
    if case.disk is not None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", case.disk, "tmpfs", work], check=True)
    started = time.perf_counter()
    try:
        code = (run_forked if case.command is None else run_command)(module, case, folder)
        if (folder / "broken").exists():
            raise RuntimeError(
                f"{case.category}/{target}/{case.name}: {(folder / 'broken').read_text()}"
            )
        out, err = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        expect = case.expect
        if (folder / "expect").exists():
            expect = (folder / "expect").read_text()
        damage = find_damage(case, folder)
        outcome = judge(case, expect, code, out, err, damage)
    finally:
        if case.disk is not None:
            subprocess.run(["umount", work], check=True)
    shutil.rmtree(folder)
    return {
        "category": case.category,
        "target": target,
        "name": case.name,
        "outcome": outcome,
        "expect": expect,
        "code": code,
        "damage": damage,
        "stderr": err[-3000:],
        "stdout": out[-500:],
        "seconds": round(time.perf_counter() - started, 2),
    }


def find_damage(case: Case, folder: Path) -> str | None:
    if list(folder.rglob("trapped")):
        return "foreign code ran"
    if list(folder.rglob("*evil*")):
        return "wrote to a folder that the checkpoint chose"
    if list(folder.rglob("checkpoint.tmp")):
        return "left checkpoint.tmp behind"
    return case.check(folder / "here" / "work") if case.check is not None else None


def error_lines(err: str) -> list[str]:
    """The lines of stderr, but those of a run that is going well, and the warnings of Gymnasium about `step`."""
    lines = [line for line in re.split(r"[\r\n]+", err) if line.strip()]
    lines = [line for line in lines if "Warning: " not in line and not line.startswith("  ")]
    usual = (
        r"\S*: (cpu|cuda|mps).*, torch |.*steps/s|.*(it|games)/s|\s*\d+%\||.* steps, |to go on: "
    )
    return [line for line in lines if not re.match(usual, line)]


def judge(case: Case, expect: str, code: int | None, out: str, err: str, damage: str | None) -> str:
    """Say which column of the table an answer belongs to."""
    if code is None:
        return "hang"
    if "traceback" in expect:  # an error in `step`
        own = "result" in expect or re.search(r'File "[^"]*odd_', err)
        goes_on = "checkpoint" not in expect or re.search(r"\nto go on: .*\n$", err)
        if "Traceback" in err and goes_on and code == 1 and own:
            return "fine"
        return "traceback" if "Traceback" in err else "silent" if code == 0 else "other"
    if code < 0:
        return "signal"
    if "Traceback" in err + out or "Exception ignored" in err:
        return "traceback"
    if damage is not None:
        return "silent"
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", err + out) and "Warning" not in err:
        return "silent"  # a control character reached the terminal
    if any(word in err for word in case.forbidden):
        return "other"
    if code == 0:
        return "silent" if expect == "refuse" else "fine"
    lines = error_lines(err)
    if expect == "accept":
        return "other"
    if (
        len(lines) == 1
        and lines[0].startswith("error: ")
        and all(word in lines[0] for word in case.words)
    ):
        return "one line"
    if code == 2 and "For full helptext" in err:
        return "usage"
    return "other"


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def flags(**values) -> list[str]:
    return [
        text
        for name, value in values.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]


def small(updates: int = 3, **values) -> list[str]:
    return flags(**SMALL | {"total_timesteps": updates * STEPS} | values)


FOLDERS = [  # of no run
    "",
    "nowhere",
    "runs/[",
    "runs/**",
    "x" * 300,
    "a/" * 3000,
    ".",
    "/",
    "/dev/null",
    "~",
    "\n",
]
HUGE = "99999999999999999999"
INTEGERS = ["-1", "0", HUGE, "1.5", "x", "1e3", "nan", "-" + HUGE, "", "0x10", "--", "∞"]
FLOATS = ["-1", "nan", "inf", "1e39", "x", "-0.1", "-inf", "1e400", "1e308", "", "1,5", "0.5.5"]
# What a flag takes though it looks odd: these may work or be refused, but not fail in another way.
HARMLESS = {
    "seed": {"0"},
    "learning_rate": {"1e39", "1e308"},
    "clip_coef": {"1e39", "1e308"},
    "ent_coef": {"1e39", "1e308", "-1", "-0.1"},
    "vf_coef": {"1e39", "1e308"},
    "max_grad_norm": {"1e39", "1e308"},
    "target_kl": {"1e39", "1e308", "inf", "1e400"},
    "save_every": {HUGE},
}


def argument_cases(target: str, module: ModuleType) -> list[Case]:
    cases = []
    for argument in fields(module.Args):
        kinds = {int: INTEGERS, float: FLOATS, float | None: FLOATS}
        for value in kinds.get(argument.type, [])[: 12 if target == "ppo" else 5]:
            if argument.name in ("total_timesteps", "update_epochs") and value == HUGE:
                continue  # a run that takes for ever is what was asked for
            expect = "either" if value in HARMLESS.get(argument.name, ()) else "refuse"
            given = small(**{argument.name: value})
            cases.append(Case("arguments", f"{argument.name}={value}", given, expect))
    for sizes in (
        {"num_steps": 10**9, "total_timesteps": 10**15},
        {"num_steps": 2**62, "total_timesteps": 2**70},
        {"num_steps": 10**30, "total_timesteps": 10**40},
        {"num_envs": 10**6, "total_timesteps": 10**12},
        {"num_minibatches": 3},
        {"num_minibatches": 64},
        {"total_timesteps": 31},
    ):
        cases.append(Case("arguments", str(sizes), small(**sizes)))
    for text in (
        "--device tpu",
        "--device mps",
        "--no-such-flag 1",
        "stray",
        "--env-id",
        "--track=maybe",
    ):
        cases.append(Case("arguments", text, small() + text.split()))
    for env_id in (
        "",
        " ",
        "x",
        "CartPole-v",
        "CartPole-v99",
        "-v1",
        "a/b/c-v1",
        "../x",
        "é-v1",
        "x" * 5000,
    ):
        cases.append(Case("arguments", f"env_id={env_id[:20]}", [*small(), f"--env-id={env_id}"]))
    for env_id in (
        ":",
        ":CartPole-v1",
        "os:CartPole-v77",
        "no_such_module:X-v0",
        "a:b:c",
        "..:X-v0",
        "json.tool:X-v0",
    ):
        cases.append(Case("arguments", f"env_id={env_id}", [*small(), f"--env-id={env_id}"]))
    names = [
        "../../up",
        "/abs",
        "a/b/c",
        "é",
        "a b",
        "..",
        ".",
        "",
        "con",
        "a:b",
        "*",
        "\x1b[31m",
        "\n",
        "-",
    ]
    for name in names:
        given = [*small(1), f"--exp-name={name}"]
        cases.append(
            Case("arguments", f"exp_name={name!r}", given, "either", check=one_plain_folder)
        )
    return cases


def one_plain_folder(work: Path) -> str | None:
    """The run folder is one level deep and its name legal on Windows."""
    outside = [
        path for path in work.parent.rglob("checkpoint.pt") if path.parent.parent != work / "runs"
    ]
    if outside:
        return f"a run folder elsewhere: {outside[0]}"
    for path in work.glob("runs/*"):
        if re.search(r'[<>:"\\|?*\x00-\x1f]', path.name) or path.name[-1] in ". ":
            return f"not legal on Windows: {path.name!r}"
    return None


def evaluate_argument_cases(good: dict[str, Path]) -> list[Case]:
    cases = []
    for name in ("episodes", "max_steps", "seed"):
        for value in INTEGERS:
            if value == HUGE and name != "seed":
                continue  # it is what was asked for, and may take for ever
            expect = "either" if name == "seed" and value == "0" else "refuse"
            cases.append(
                Case(
                    "arguments",
                    f"{name}={value}",
                    [str(good["ppo"]), *flags(**{name: value})],
                    expect,
                )
            )
    for name in FOLDERS:
        cases.append(Case("arguments", f"run={name[:20]!r}", [name]))
    cases.append(Case("arguments", "no run", []))
    cases.append(Case("arguments", "an empty folder", ["empty"], prepare=lambda: os.mkdir("empty")))
    for script in ("nowhere.py", ".", "/dev/null", ""):
        cases.append(
            Case("arguments", f"script={script}", [str(good["ppo"]), f"--script={script}"])
        )
    return cases


# ---------------------------------------------------------------------------------------------------------------------
# Environments

ERRORS = [
    "ValueError",
    "ImportError",
    "KeyError",
    "OSError",
    "RuntimeError",
    "AssertionError",
    "TypeError",
]
ERRORS += [
    "StopIteration",
    "AttributeError",
    "NotImplementedError",
    "MemoryError",
    "RecursionError",
    "SystemExit",
]
ERRORS += ["TwoLines", "Control"]
STEP_ERRORS = [
    "ValueError",
    "RuntimeError",
    "OSError",
    "KeyError",
    "AssertionError",
    "IndexError",
    "SystemExit",
]
RESULTS = {  # of `step`: what is wrong with observation, reward, terminated, truncated, info
    "nan_obs": "(self.obs * np.nan, 1.0, False, False, {})",
    "inf_obs": "(self.obs * 0 + np.inf, 1.0, False, False, {})",
    "nan_reward": "(self.obs, np.nan, False, False, {})",
    "inf_reward": "(self.obs, np.inf, False, False, {})",
    "huge_reward": "(self.obs, 1e300, False, False, {})",
    "four_values": "(self.obs, 1.0, False, {})",
    "none": "None",
    "wrong_shape": "(np.zeros(9, np.float32), 1.0, False, False, {})",
    "text_reward": "(self.obs, 'x', False, False, {})",
    "no_info": "(self.obs, 1.0, False, False, None)",
}
SPACES = [  # of observations, or of actions
    "None",
    "42",
    "gym.Space()",
    "Box(-1, 1, ())",
    "Box(-1, 1, (0,))",
    "Box(-1, 1, (2, 2))",
    "Box(-1, 1, (3,), np.int64)",
    "Box(-np.inf, np.inf, (3,))",
    "Box(0, 255, (84, 84, 3), np.uint8)",
    "Dict({})",
    "Dict({'a': Text(3)})",
    "Discrete(1)",
    "Discrete(3, start=-1)",
    "Graph(Discrete(2), None)",
    "MultiBinary(3)",
    "MultiDiscrete([2, 3])",
    "MultiDiscrete([[2, 3], [2, 2]])",
    "OneOf((Discrete(2), Discrete(3)))",
    "Sequence(Discrete(2))",
    "Text(5)",
    "Tuple(())",
]
KINDS = {
    "ppo": "Discrete(2)",
    "ppo_continuous_action": "Box(-1, 1, (2,))",
    "ppo_multidiscrete": "MultiDiscrete([2, 3])",
}

ODD_ENVS = """
import shutil
import sys

import gymnasium as gym
import numpy as np
from gymnasium.spaces import *


class TwoLines(Exception):
    def __init__(self):
        super().__init__("one line\\nand another one")


class Control(Exception):
    def __init__(self):
        super().__init__("\\x1b[31mred\\x07")


class Odd(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, kind, fault="", late=1, render_mode=None, observations="Box(-10, 10, (3,))"):
        if fault.startswith("init "):
            self.fail()
        self.render_mode, self.fault, self.late, self.count = render_mode, fault, late, 0
        self.observation_space, self.action_space = eval(observations), eval(kind)
        if fault.startswith("init "):
            raise eval(fault.split()[1])
        if fault == "no_render_modes":
            self.metadata = {}
            self.render_mode = None
        if fault == "no_spaces":
            del self.observation_space

    @property
    def obs(self):
        return self.observation_space.sample()

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        kind, _, what = self.fault.partition(" ")
        if kind == "reset":
            raise eval(what)
        if kind == "reset_gives":
            return eval(what)
        return self.obs, {}

    def step(self, action):
        self.count += 1
        kind, _, what = self.fault.partition(" ")
        if self.count >= self.late:
            if kind == "step":
                raise eval(what)
            if kind == "gives":
                return eval(what)
            if kind == "remove":
                shutil.rmtree("runs", ignore_errors=True)
                self.fault = ""
        return self.obs, 1.0, self.count % 7 == 0, False, {}

    def render(self):
        if self.fault == "render_raises":
            raise ValueError("cannot render")
        return None if self.fault == "render_none" else np.zeros((16, 16, 3), np.uint8)


class NoRenderMode(Odd):
    def __init__(self, kind):
        super().__init__(kind)


def no_env(kind, **kwargs):
    return 42


"""
ODD_GAMES = """
import ale_py
import gymnasium as gym
import numpy as np
from ale_py.env import AtariEnv


class Odd(AtariEnv):
    def __init__(self, fault="", late=1, **kwargs):
        self.fault, self.late, self.count = fault, late, 0
        if fault.startswith("init "):
            raise eval(fault.split()[1])
        super().__init__(game="breakout", **kwargs)

    def reset(self, **kwargs):
        if self.fault.startswith("reset "):
            raise eval(self.fault.split()[1])
        return super().reset(**kwargs)

    def step(self, action):
        self.count += 1
        if self.count >= self.late and self.fault.startswith("step "):
            raise eval(self.fault.split()[1])
        obs, reward, terminated, truncated, info = super().step(action)
        if self.count >= self.late and self.fault == "nan_reward":
            reward = np.nan
        return obs, reward, terminated, truncated, info


"""


def write_odd_modules(folder: Path, target: str) -> None:
    """Write the modules with environments that misbehave, and modules whose import fails."""
    for error in ERRORS:
        kinds = {
            "TwoLines": "RuntimeError('one line\\nand another one')",
            "Control": "RuntimeError('\\x1b[31mred\\x07')",
        }
        (folder / f"odd_import_{error}.py").write_text(f"raise {kinds.get(error, error)}\n")
    (folder / "odd_import_SyntaxError.py").write_text("def (:\n")
    (folder / "odd_import_exit.py").write_text("import sys\nsys.exit(0)\n")
    lines = [ODD_GAMES if "atari" in target else ODD_ENVS]
    kind = KINDS.get(target, "Discrete(2)")
    for name, entry, kwargs in odd_environments(target):
        more = kwargs if "atari" in target else {"kind": kind} | kwargs
        lines.append(f"gym.register({name!r}, entry_point={entry!r}, kwargs={more!r})\n")
    (folder / ("odd_ale_py.py" if "atari" in target else "odd_envs.py")).write_text("".join(lines))


def odd_environments(target: str) -> list[tuple[str, str, dict]]:
    """Name, class and keyword arguments of every environment that write_odd_modules registers."""
    if "atari" in target:
        found = [("NoSuchGame-v0", "ale_py.env:AtariEnv", {"game": "no_such_game"})]
        found += [
            ("WrongKwargs-v0", "odd_ale_py:Odd", {"no_such": 1}),
            ("NoClass-v0", "odd_ale_py:Nothing", {}),
        ]
        found += [("Late-v0", "odd_ale_py:Odd", {"fault": "step ValueError", "late": 150})]
        for place, errors in (("init", ERRORS[:-2]), ("reset", ERRORS[:-2]), ("step", STEP_ERRORS)):
            found += [
                (f"{place}{error}-v0", "odd_ale_py:Odd", {"fault": f"{place} {error}"})
                for error in errors
            ]
        return [*found, ("NanReward-v0", "odd_ale_py:Odd", {"fault": "nan_reward", "late": 150})]
    found = [("Good-v0", "odd_envs:Odd", {})]
    for place, errors in (("init", ERRORS), ("reset", ERRORS), ("step", STEP_ERRORS)):
        found += [
            (
                f"{place}{error}-v0",
                "odd_envs:Odd",
                {"fault": f"{place} {error}{'()' * (error in ERRORS[-2:])}"},
            )
            for error in errors
        ]
    found += [
        (f"late{error}-v0", "odd_envs:Odd", {"fault": f"step {error}", "late": 40})
        for error in STEP_ERRORS
    ]
    found += [
        (f"Gives_{name}-v0", "odd_envs:Odd", {"fault": f"gives {what}"})
        for name, what in RESULTS.items()
    ]
    found += [
        (f"Gives_last_{name}-v0", "odd_envs:Odd", {"fault": f"gives {RESULTS[name]}", "late": 16})
        for name in ("nan_obs", "inf_obs", "nan_reward", "inf_reward")
    ]
    for name, what in {
        "nan": "(self.obs * np.nan, {})",
        "inf": "(self.obs * 0 + np.inf, {})",
        "none": "None",
        "only_obs": "self.obs",
        "shape": "(np.zeros(9, np.float32), {})",
        "text": "('x', {})",
    }.items():
        found.append((f"Reset_{name}-v0", "odd_envs:Odd", {"fault": f"reset_gives {what}"}))
    for number, space in enumerate(SPACES):
        found.append((f"Obs{number}-v0", "odd_envs:Odd", {"observations": space}))
        found.append((f"Act{number}-v0", "odd_envs:Odd", {"kind": space}))
    found += [
        (f"{fault}-v0", "odd_envs:Odd", {"fault": fault})
        for fault in ("render_raises", "render_none", "no_spaces")
    ]
    found += [
        ("no_render_mode-v0", "odd_envs:NoRenderMode", {}),
        ("no_render_modes-v0", "odd_envs:Odd", {"fault": "no_render_modes"}),
    ]
    found += [
        ("wrong_kwargs-v0", "odd_envs:Odd", {"no_such": 1}),
        ("no_env-v0", "odd_envs:no_env", {}),
    ]
    found += [("no_class-v0", "odd_envs:Nothing", {}), ("no_module-v0", "odd_nothing:Nothing", {})]
    return [*found, ("remove-v0", "odd_envs:Odd", {"fault": "remove", "late": 40})]


def environment_cases(target: str) -> list[Case]:
    cases = []
    for path in [*ERRORS, "SyntaxError", "exit"]:
        cases.append(
            Case("environments", f"import {path}", [*small(), f"--env-id=odd_import_{path}:X-v0"])
        )
    if target in (
        "ppo_atari_envpool",
        "ppo_atari_multigpu",
    ):  # takes nothing but names of EnvPool's
        return cases
    module = "odd_ale_py" if "atari" in target else "odd_envs"
    for env_id, _, kwargs in odd_environments(target):
        given = [*small(), f"--env-id={module}:{env_id}"]
        name = env_id.removesuffix("-v0")
        case = Case("environments", name, given)
        fault = kwargs.get("fault", "")
        if fault.startswith("step ") and "atari" in target and "late" not in kwargs:
            case.expect = "refuse"  # the first steps are part of the reset
        elif fault.startswith("step "):
            case.expect = "traceback, checkpoint" if "late" in name.lower() else "traceback"
            if "SystemExit" in fault:
                case.expect = "either"  # the environment's wish, and its exit code
        elif fault.startswith("gives ") and not re.search("nan|inf_|huge", name):
            case.expect = "traceback, result"
        elif name.startswith(("Obs", "Act")):
            case.name = f"{name[:3]} {SPACES[int(name[3:])]}"
            case.expect = "either"
            if name.startswith("Act") and SPACES[int(name[3:])] == "Box(-np.inf, np.inf, (3,))":
                case.expect = "accept" if target == "ppo_continuous_action" else "refuse"
        elif name in ("Good", "render_raises", "render_none", "no_render_mode", "no_render_modes"):
            case.expect = "accept"
        elif name == "remove":
            case.category, case.words = "disk", ("cannot write",)
        if re.search("nan_obs|inf_obs|Reset_nan|Reset_inf", name):
            case.words, case.forbidden = (env_id, "observation"), ("learning-rate",)
        if re.search("nan_rew|inf_rew|huge|NanRew", name):
            case.words, case.forbidden = (env_id, "reward"), ("learning-rate",)
        cases.append(case)
        if "render" in name:
            expect = (
                "either" if name == "render_none" else "refuse"
            )  # Gymnasium warns that there is no picture
            cases.append(
                Case("environments", f"{name} with video", [*given, "--capture-video"], expect)
            )
    return cases


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


class Trap:
    """Unpickled by a careless reader, it leaves a file behind."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


def set_in(path: str, value) -> Callable[[dict], None]:
    """Return an edit that sets checkpoint["a"]["b"] for the path a/b; FIRST is whatever key comes first."""

    def edit(checkpoint: dict) -> None:
        *folders, last = path.split("/")
        place = checkpoint
        for name in folders:
            place = place[first_key(place) if name == "FIRST" else name]
        last = first_key(place) if last == "FIRST" else last
        if value is KeyError:
            del place[last]
        else:
            place[last] = value(place.get(last)) if callable(value) else value

    return edit


def first_key(place: dict):
    return next(iter(place))


def rename(checkpoint: dict) -> None:
    agent = checkpoint["agent"]
    agent["renamed"] = agent.pop(first_key(agent))


def with_one(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[0] = number
        return changed

    return change


ALWAYS = (
    "env_id payload:CartPole-v1",
    "weight has a NaN",
    "moment is larger",
    "exp_name '../../evil'",
)  # for all
# Name, edit, and what to expect of --resume and of evaluate.py.
NEEDED = ["agent", "version", "script", "args", "iteration", "global_step"]
WEIGHT, MOMENT, GROUP = "agent/FIRST", "optimizer/state/FIRST/exp_avg", "optimizer/param_groups"
WRONG = {
    "None": None,
    "3": 3,
    "text": "x",
    "list": [],
    "dict": {},
    "tensor": torch.zeros(3),
    "nan": math.nan,
    "bytes": b"x",
}


def edits(target: str, checkpoint: dict) -> list[tuple[str, Callable[[dict], None], str, str]]:
    found = []

    def add(name: str, path: str, value, resume: str = "refuse", evaluate: str = "refuse") -> None:
        found.append((name, set_in(path, value), resume, evaluate))

    for key in checkpoint:
        needed = "refuse" if key in NEEDED or key == "normalizer" else "either"
        unused = "either" if key in ("cuda_rng", "mps_rng") else "refuse"
        add(f"without {key}", key, KeyError, unused, needed)
        for name, value in WRONG.items():
            if value != [] or not key.endswith("_rng"):
                add(f"{key} is {name}", key, value, unused, needed)
    add("with another key", "more", 1, "either", "either")
    for name in ("env_id", "num_envs", "num_steps", "gamma", "seed", "total_timesteps"):
        add(f"args without {name}", f"args/{name}", KeyError)
    for name, value in checkpoint["args"].items():
        if name not in (
            "resume",
            "update_epochs",
        ):  # a number of epochs that takes for ever is a legal one
            wrong = ["x"] if not isinstance(value, str) else [5]
            wrong += (
                [-1, 2**70]
                if type(value) is int
                else [math.nan, -1.0]
                if type(value) is float
                else [[1]]
            )
            harmless = name in {"total_timesteps", "save_every", "ent_coef"}
            for bad in wrong:
                resume = "either" if harmless else "refuse"
                # Evaluation does not look at what only training needs, if its type is right.
                unused = type(bad) is type(value) and name not in {"env_id", "num_envs"}
                evaluate = "either" if harmless or unused else "refuse"
                add(f"args {name} = {bad}", f"args/{name}", bad, resume, evaluate)
    add("args with another flag", "args/no_such", 1)
    add("args with a number as a flag", "args/5", 1)

    for name, value in {
        "has another shape": lambda w: torch.zeros(3, 7),
        "is transposed": lambda w: (
            w.transpose(0, 1).contiguous() if w.shape[0] != w.shape[1] else torch.zeros(2)
        ),
        "has one more dimension": lambda w: w[None],
        "is a number": 1.0,
        "is None": None,
        "is a list": [1.0],
        "is complex": lambda w: w.to(torch.complex64),
        "has a NaN": with_one(math.nan),
        "has an infinity": with_one(math.inf),
        "is empty": torch.zeros(0),
        "is sparse": lambda w: w.to_sparse(),
        "is on no device": lambda w: w.to("meta"),
        "is quantized": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    }.items():
        add(f"weight {name}", WEIGHT, value)
    add("weight is float64", WEIGHT, lambda w: w.double(), "refuse", "either")
    add(
        "weight is a broadcast view",
        WEIGHT,
        lambda w: torch.zeros(1).expand(w.shape),
        "either",
        "either",
    )
    add("weight missing", WEIGHT, KeyError)
    add("weight too many", "agent/more", torch.zeros(3))
    found.append(("weight renamed", rename, "refuse", "refuse"))

    for name, value in {
        "is larger": lambda m: torch.zeros(m.numel() * 2 + 1),
        "is smaller": lambda m: torch.zeros(1),
        "is empty": torch.zeros(0),
        "is one dimension more": lambda m: m[None],
        "is float64": lambda m: m.double(),
        "has a NaN": with_one(math.nan),
        "is a number": 0.0,
        "is sparse": lambda m: m.to_sparse(),
        "is on no device": lambda m: m.to("meta"),
    }.items():
        add(f"moment {name}", MOMENT, value, "refuse", "either")
        add(f"square {name}", f"{MOMENT}_sq", value, "refuse", "either")
    add("square is negative", f"{MOMENT}_sq", lambda m: m * 0 - 1, "refuse", "either")
    step = "optimizer/state/FIRST/step"
    for value in (-1.0, -100.0, -1e9, math.nan, math.inf):
        add(f"step is {value}", step, torch.tensor(value), "refuse", "either")
    for name, value in {
        "text": "x",
        "a vector": torch.zeros(3),
        "a number": 7,
        "None": None,
    }.items():
        add(f"step is {name}", step, value, "refuse", "either")
    add("step missing", step, KeyError, "refuse", "either")
    add("step is huge", step, torch.tensor(1e30), "either", "either")
    add("moment missing", MOMENT, KeyError, "refuse", "either")
    add(
        "moment too many",
        "optimizer/state/FIRST/max_exp_avg_sq",
        torch.zeros(1),
        "refuse",
        "either",
    )
    add("no state", "optimizer/state", {}, "refuse", "either")
    add("state of one parameter missing", "optimizer/state/FIRST", KeyError, "refuse", "either")
    add("no groups", GROUP, [], "either", "either")
    add("groups of a wrong type", GROUP, 5, "either", "either")
    for name, value in {
        "lr": "x",
        "betas": [5, 5],
        "eps": -1,
        "foreach": True,
        "capturable": True,
        "params": [99],
    }.items():
        add(f"group with {name} {value}", GROUP, with_group(name, value), "either", "either")

    for value in (-5, 0, 10**15, 1.0, True, 3):
        add(f"iteration {value}", "iteration", value)
    for value in (-100, 0, 1, 63.0, 2**70, math.inf):
        add(f"global_step {value}", "global_step", value)
    for value in (0, 99, "2", -1, True, math.nan):
        add(f"version {value}", "version", value)
    for value in (
        "evaluate",
        "../ppo",
        "os",
        "\x1b[31mred",
        "",
        "nothing",
        "payload",
        "ppo.py",
        "/tmp/x",
        "a\nb",
        "x" * 5000,
    ):
        add(f"script {value[:10]!r}", "script", value)
    other = "ppo" if target != "ppo" else "ppo_continuous_action"
    add("another script's", "script", other)
    for value in (
        "",
        "x",
        "CartPole-v77",
        "Acrobot-v1",
        "MountainCarContinuous-v0",
        "\x1b[31mred\x07",
        "a\nb-v0",
        "\0",
    ):
        add(f"env_id {value!r}", "args/env_id", value)
    add("env_id of 9,000 characters", "args/env_id", "x" * 9000)
    for value in (
        "payload:CartPole-v1",
        "payload:x",
        "odd_payload.payload:CartPole-v1",
        ":CartPole-v1",
        "payload:",
    ):
        add(f"env_id {value}", "args/env_id", value)
    for value in (
        "../../evil",
        "/tmp/evil",
        "\x1b[31mred\x07",
        "\0",
        "x" * 9000,
        "a\nb",
        "..",
        "a:b",
    ):
        add(f"exp_name {value[:12]!r}", "args/exp_name", value, "either", "either")
    for value in (-1, 2**31, 2**70, 1.5, math.nan, "1"):
        evaluate = "either" if type(value) is int else "refuse"  # it has a seed of its own
        add(f"seed {value}", "args/seed", value, evaluate=evaluate)
    for value in (0, -1, 10**6, 10**12, 1.5):
        add(f"num_envs {value}", "args/num_envs", value)
    for name, value in {
        "short": torch.zeros(5, dtype=torch.uint8),
        "zeros": lambda rng: torch.zeros(5056, dtype=torch.uint8),
        "of floats": lambda rng: torch.zeros(5056),
    }.items():
        add(f"rng {name}", "rng", value, "refuse", "either")
    if "cuda_rng" in checkpoint:
        add("cuda_rng of numbers", "cuda_rng", [5], "either", "either")
    if "normalizer" in checkpoint:
        for name, value in {
            "is short": [[0.0], [1.0], 1.0],
            "has a NaN": lambda old: [[math.nan] * len(old[0]), *old[1:]],
            "has text": lambda old: [["x"] * len(old[0]), *old[1:]],
            "is None": None,
            "is negative": lambda old: [old[0], [-1.0] * len(old[1]), old[2]],
            "counts nothing": lambda old: [old[0], old[1], 0.0],
            "counts less than nothing": lambda old: [old[0], old[1], -5.0],
        }.items():
            harmless = name == "counts nothing"
            add(
                f"normalizer {name}", "normalizer/obs", value, *(["either"] * 2 if harmless else [])
            )
        add("normalizer missing", "normalizer/return", KeyError)
    return found


def with_group(name: str, value) -> Callable[[list], list]:
    return lambda groups: [groups[0] | {name: value}]


def whole_files() -> dict[str, Callable[[Path, bytes], None]]:
    """What can lie in the place of a checkpoint."""

    def saved(thing) -> Callable[[Path, bytes], None]:
        return lambda path, good: torch.save(thing, path)

    def archive(path: Path, good: bytes) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme.txt", "nothing")

    def bomb(path: Path, good: bytes) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("checkpoint/data.pkl", bytes(200_000_000))

    def legacy(path: Path, good: bytes) -> None:
        checkpoint = torch.load(io.BytesIO(good), weights_only=True)
        torch.save(checkpoint, path, _use_new_zipfile_serialization=False)

    def endless_pickle(path: Path, good: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                new.writestr(
                    name, b"\x80\x02" + b"(" * 100_000 if name.endswith("data.pkl") else data
                )

    return {
        "empty": lambda path, good: path.write_bytes(b""),
        "text": lambda path, good: path.write_text("hello"),
        "noise": lambda path, good: path.write_bytes(random.Random(1).randbytes(5000)),
        "PK and noise": lambda path, good: path.write_bytes(
            b"PK\3\4" + random.Random(1).randbytes(5000)
        ),
        "doubled": lambda path, good: path.write_bytes(good[: len(good) // 2] + good),
        "a pickle": lambda path, good: path.write_bytes(pickle.dumps({"agent": {}})),
        "a trap": lambda path, good: path.write_bytes(pickle.dumps(Trap())),
        "a trap saved by torch": saved({"agent": Trap()}),
        "a module": saved(torch.nn.Linear(2, 2)),
        "a list": saved([1, 2]),
        "a tensor": saved(torch.zeros(3)),
        "None": saved(None),
        "an empty dict": saved({}),
        "an agent alone": saved({"agent": {"w": torch.zeros(2)}}),
        "an archive": archive,
        "an archive that swells": bomb,
        "torch's old format": legacy,
        "a damaged pickle": endless_pickle,
        "a folder": lambda path, good: path.mkdir(),
        "nothing": lambda path, good: None,
        "a pipe": lambda path, good: os.mkfifo(path),
        "a link to itself": lambda path, good: path.symlink_to(path),
        "/dev/zero": lambda path, good: path.symlink_to("/dev/zero"),
        "/dev/null": lambda path, good: path.symlink_to("/dev/null"),
        "/proc/self/mem": lambda path, good: path.symlink_to("/proc/self/mem"),
    }


def same(one, other) -> bool:
    """Whether two checkpoints hold the same."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return (
            isinstance(other, list | tuple)
            and len(one) == len(other)
            and all(map(same, one, other))
        )
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        )
    return type(one) is type(other) and one == other


def checkpoint_cases(target: str, good: Path, evaluate: bool, thinning: int) -> list[Case]:
    """The same damages for --resume and for evaluate.py; of the edits, only every `thinning`-th one."""
    data = (good / "checkpoint.pt").read_bytes()
    checkpoint = torch.load(io.BytesIO(data), weights_only=True)
    given = (
        ["runs/it", "--episodes", "1"]
        if evaluate
        else ["--resume", "runs/it", *flags(total_timesteps=3 * STEPS)]
    )
    cases = []

    def add(
        name: str,
        make: Callable[[Path], str | None],
        expect: str = "refuse",
        more: tuple[str, ...] = (),
    ) -> None:
        def prepare() -> str | None:
            folder = Path("runs/it")
            folder.mkdir(parents=True)
            Path("payload.py").write_text("import os\nos.system('touch trapped')\n")
            sys.path.insert(0, os.getcwd())
            return make(folder / "checkpoint.pt")

        cases.append(Case("checkpoint", f"{target}: {name}", [*given, *more], expect, prepare))

    add("untouched", lambda path: path.write_bytes(data) and None, "accept")
    for number, (name, edit, resume, evaluation) in enumerate(edits(target, checkpoint)):
        if (number + len(target)) % thinning and name not in ALWAYS:
            continue

        def make(path: Path, edit=edit) -> None:
            changed = torch.load(io.BytesIO(data), weights_only=True)
            edit(changed)
            torch.save(changed, path)

        add(name, make, evaluation if evaluate else resume)
    for number, (name, make) in enumerate(whole_files().items()):
        if thinning > 2 and number % 3 != len(target) % 3:
            continue
        add(f"is {name}", lambda path, make=make: make(path, data) and None)
    for size in (
        1,
        100,
        len(data) // 3,
        len(data) // 2,
        len(data) - 100,
        len(data) - 22,
        len(data) - 1,
    ):
        add(
            f"cut after {size} bytes",
            lambda path, size=size: path.write_bytes(data[:size]) and None,
        )
    positions = random.Random(len(target) + evaluate)
    flips = 16 if target == "ppo" else 8
    for position in [
        *(positions.randrange(len(data)) for _ in range(flips)),
        len(data) - 30,
        len(data) - 10,
        30,
        1000,
    ]:
        bit = positions.randrange(8)

        def flip(path: Path, position=position, bit=bit) -> str:
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                return (
                    "either" if same(checkpoint, torch.load(path, weights_only=True)) else "refuse"
                )
            except Exception:
                return "refuse"

        add(f"bit {bit} of byte {position} flipped", flip)
    return cases


# ---------------------------------------------------------------------------------------------------------------------
# Disk, streams, signals


def updates_saved(number: int) -> Callable[[Path], str | None]:
    def check(work: Path) -> str | None:
        for path in work.glob("runs/**/checkpoint.pt"):
            if torch.load(path, weights_only=True)["iteration"] == number:
                return None
        return "the checkpoint is not complete"

    return check


def fill_disk() -> None:
    with contextlib.suppress(OSError), open("filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mounted = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True
            ).returncode
            == 0
        )
        if mounted:
            subprocess.run(["umount", folder], check=True)
        return mounted


def disk_cases(target: str) -> list[Case]:
    cases = [
        Case(
            "disk", "runs is a file", small(), prepare=lambda: Path("runs").write_text("") and None
        ),
        Case(
            "disk",
            "runs is a dead link",
            small(),
            "either",
            prepare=lambda: Path("runs").symlink_to("/nowhere/x"),
        ),
        Case("disk", "a name of 300 characters", [*small(), f"--exp-name={'x' * 300}"]),
        Case("disk", "a name of 5,000 characters", [*small(), f"--exp-name={'x' * 5000}"]),
    ]

    def read_only() -> None:
        subprocess.run(["mount", "-o", "remount,ro", os.getcwd()], check=True)

    def not_permitted() -> None:
        os.mkdir("runs", 0o500)

    if os.getuid() != 0:
        cases.append(Case("disk", "runs may not be written", small(), prepare=not_permitted))
    if can_mount():
        cases.append(Case("disk", "read-only", small(), prepare=read_only, disk="size=1m"))
        cases.append(Case("disk", "full at the start", small(), prepare=fill_disk, disk="size=64k"))
        for kilobytes in (4, 8, 12, 20, 40, 60, 100, 200, 400):
            cases.append(
                Case("disk", f"{kilobytes} kB left", small(9), "either", disk=f"size={kilobytes}k")
            )
    return cases


def stream_cases(target: str, good: Path) -> list[Case]:
    train = "{run} " + " ".join(small())
    saved = updates_saved(3)
    cases = []
    endings = {
        "stdout to a full disk": "> /dev/full",
        "stderr to a full disk": "2> /dev/full",
        "both to a full disk": "> /dev/full 2>&1",
        "stdout closed": ">&-",
        "stderr closed": "2>&-",
        "both closed": ">&- 2>&-",
        "all closed": ">&- 2>&- <&-",
        "stderr closed, stdout to a full disk": "> /dev/full 2>&-",
        "head -1": "2>&1 | head -1; exit ${PIPESTATUS[0]}",
        "a reader that is gone": "2>&1 | true; exit ${PIPESTATUS[0]}",
        "stderr alone into a reader that is gone": "2> >(true)",
    }
    for name, ending in endings.items():
        cases.append(
            Case("streams", name, expect="accept", command=f"{train} {ending}", check=saved)
        )
        wrong = f"{train} --num-envs 0 {ending}"
        if name in ("stderr to a full disk", "stderr closed", "head -1"):
            wrong = f"({wrong}); code=$?; [ $code = 2 ] || echo exit code $code"
            cases.append(
                Case(
                    "streams",
                    f"{name}, wrong usage",
                    expect="either",
                    command=wrong,
                    check=says_nothing,
                )
            )
    slow = "{run} " + " ".join(small(10**6))
    for name, seconds in (("SIGINT", 0.2), ("SIGINT", 1), ("SIGINT", 2.5), ("SIGTERM", 1)):
        line = f"timeout -s {name[3:]} {seconds} {slow}; code=$?; [ $code -ge 124 ]"
        cases.append(Case("signals", f"{name} after {seconds} s", expect="accept", command=line))
    for name in ("INT", "TERM", "HUP"):
        line = (
            f"{slow} & pid=$!; until ls runs/*/checkpoint.pt 2> /dev/null > /dev/null; do sleep 0.1; "
            f"kill -0 $pid || exit 7; done; kill -{name} $pid; wait $pid; code=$?; "
            f"[ $code = {128 + getattr(signal, 'SIG' + name)} ]"
        )
        cases.append(Case("signals", f"SIG{name} during training", expect="accept", command=line))
    line = (
        f"nohup {{run}} {' '.join(small(60))} & pid=$!; until ls runs/*/checkpoint.pt 2> /dev/null > /dev/null; "
        "do sleep 0.1; kill -0 $pid || exit 7; done; kill -HUP $pid; wait $pid"
    )
    cases.append(
        Case(
            "signals", "SIGHUP under nohup", expect="accept", command=line, check=updates_saved(60)
        )
    )
    return cases


def says_nothing(work: Path) -> str | None:
    said = (work.parent.parent / "stdout").read_text()
    return f"said {said}" if "exit code" in said else None


def evaluate_stream_cases(good: Path) -> list[Case]:
    run = "{run} " + f"{good} --episodes 2"
    cases = []
    for name, ending in {
        "stdout to a full disk": "> /dev/full",
        "stderr to a full disk": "2> /dev/full",
        "stdout closed": ">&-",
        "stderr closed": "2>&-",
        "head -1": "| head -1",
        "a reader that is gone": "| true",
    }.items():
        cases.append(Case("streams", name, expect="either", command=f"{run} {ending}"))
    for seconds in (0.2, 1, 2.5, 5):
        line = "timeout -s INT " + f"{seconds} {run}00000; code=$?; [ $code -ge 124 ]"
        cases.append(Case("signals", f"SIGINT after {seconds} s", expect="accept", command=line))
    return cases


# ---------------------------------------------------------------------------------------------------------------------
# All together


def cases_of(target: str, module: ModuleType, good: dict[str, Path]) -> list[Case]:
    if target == "evaluate":
        cases = [*evaluate_argument_cases(good), *evaluate_stream_cases(good["ppo"])]
        for script, path in good.items():
            cases += checkpoint_cases(
                script, path, evaluate=True, thinning=1 if script == "ppo" else 6
            )
        return cases
    cases = argument_cases(target, module) + environment_cases(target)
    for name in FOLDERS:
        cases.append(Case("arguments", f"resume={name[:20]!r}", [f"--resume={name}"]))
    cases += checkpoint_cases(
        target, good[target], evaluate=False, thinning=1 if target == "ppo" else 6
    )
    if target == "ppo":
        cases += disk_cases(target) + stream_cases(target, good[target])
    return cases


def make_good_checkpoint(module: ModuleType, target: str, folder: Path) -> None:
    """Train for two updates, and keep the run folder as folder/good/`target`."""
    case = Case("", "a good run", small(2))
    (folder / "here" / "work").mkdir(parents=True)
    code = run_forked(module, case, folder, limit=120)
    if code != 0:
        raise SystemExit(f"{target}: a good run failed: {(folder / 'stderr').read_text()}")
    (checkpoint,) = folder.rglob("checkpoint.pt")
    good = folder.parent / "good" / target
    good.mkdir(parents=True)
    shutil.copy(checkpoint, good)


def attack(target: str, args: Args, folder: Path, answers: Path) -> None:
    """In a process of its own: import the target once, and try every input in a fork."""
    sys.path[0] = str(args.root.resolve())
    sys.argv[0] = ""
    torch.set_num_threads(1)  # threads do not survive a fork
    importlib.import_module("torch._dynamo")  # what the scripts would import later, in every fork
    torch.optim.Adam([torch.zeros(1)])
    module = importlib.import_module(target)
    if target == "evaluate":
        for script in (folder / "good").iterdir():
            importlib.import_module(script.name)
    else:
        make_good_checkpoint(module, target, folder / f"good run of {target}")
        odd = folder / f"odd modules for {target}"
        odd.mkdir()
        write_odd_modules(odd, target)
        sys.path.append(str(odd))
    good = {path.name: path for path in sorted((folder / "good").iterdir())}
    with answers.open("a") as file:
        for number, case in enumerate(cases_of(target, module, good)):
            name = f"{case.category}/{target}/{case.name}"
            if args.only and not any(part in name for part in args.only):
                continue
            if args.list:
                print(name)
                continue
            answer = run_case(module, target, case, folder / f"{target} {number}")
            print(json.dumps(answer), file=file, flush=True)


def table(answers: list[dict]) -> str:
    rows = sorted({(answer["category"], answer["target"]) for answer in answers})
    lines = ["{:38}{:>8}".format("", "inputs") + "".join(f"{name:>11}" for name in OUTCOMES)]

    def row(name: str, chosen: list[dict]) -> str:
        counts = [sum(answer["outcome"] == outcome for answer in chosen) for outcome in OUTCOMES]
        return f"{name:38}{len(chosen):>8}" + "".join(f"{count:>11}" for count in counts)

    for category in sorted({category for category, _ in rows}):
        for _, target in (pair for pair in rows if pair[0] == category):
            chosen = [
                answer
                for answer in answers
                if (answer["category"], answer["target"]) == (category, target)
            ]
            lines.append(row(f"{category}, {target}", chosen))
        lines.append(
            row(
                f"{category}, all", [answer for answer in answers if answer["category"] == category]
            )
        )
        lines.append("")
    lines.append(row("all", answers))
    return "\n".join(lines)


def last_line(answer: dict) -> str:
    lines = [
        line
        for line in answer["stderr"].splitlines()
        if line.strip() and not line.startswith("to go on")
    ]
    return (answer["damage"] or (lines[-1] if lines else "")).strip()[:150]


def main(args: Args) -> list[dict]:
    """Attack all targets, one after the other; return every input with its answer."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name)
        written = folder / "answers.jsonl"
        written.touch()
        for target in [*SCRIPTS, "evaluate"]:
            if not wanted(target, args.only):
                continue
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    attack(target, args, folder, written)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            if status != 0:
                raise SystemExit(f"the attack on {target} broke off")
        return [json.loads(line) for line in written.read_text().splitlines()]


def wanted(target: str, only: tuple[str, ...]) -> bool:
    """Whether a target may have a part in inputs of these names; evaluate.py needs the runs of the scripts."""
    parts = [part.split("/", 2) for part in only]
    if not parts or min(map(len, parts)) < 3:
        return True
    targets = {part[1] for part in parts} | {
        part[2].partition(": ")[0] for part in parts if part[1] == "evaluate"
    }
    return target in targets or (target == "ppo" and "evaluate" in targets)


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    answers = main(args)
    if not args.list:
        for answer in answers:
            if answer["outcome"] in BAD:
                name = f"{answer['category']}/{answer['target']}/{answer['name']}"
                print(f"{answer['outcome']:10}{name}: {last_line(answer)}")
        print(table(answers))
    if args.json is not None:
        args.json.write_text(json.dumps(answers, indent=1))
