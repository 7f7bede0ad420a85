"""Go on with damaged and malicious checkpoints, evaluate them, and stop runs at random moments.

    python tests/long/attack.py
    python tests/long/attack.py --only "evaluate ppo: moment"

What is promised: no crash by a signal, no hang, nothing silently wrong, nothing lost, no code from a checkpoint. An
error may be any exception. Prints a line for each broken promise and a table; exits with 1 if there is any. Takes some
minutes on one core. Each attempt runs in a fork of a process that has imported all scripts already.
"""

import importlib
import io
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SCRIPTS = sorted(path.stem for path in ROOT.glob("ppo*.py"))
SMALL = {"num_envs": 2, "num_steps": 16, "num_minibatches": 2, "update_epochs": 1, "save_every": 1}
STEPS = 2 * 16  # of one update
LIMIT = 120  # seconds after which an attempt hangs


@dataclass
class Args:
    only: str = ""  # only attempts in whose name this occurs
    flips: int = 20  # bits to flip in each script's checkpoint
    stops: int = 20  # runs to stop at random moments
    seed: int = 1  # of the bits and the moments


# ---------------------------------------------------------------------------------------------------------------------
# Damages


class Trap:
    """Unpickled by a careless reader, it leaves a file behind."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


def first(place: dict):
    return next(iter(place))


def edits() -> Iterator[tuple[str, str, object, bool]]:
    """Yield name, path in the checkpoint (FIRST is whatever key comes first), value, and whether training may go on."""
    for part in ("agent", "optimizer", "args", "global_step", "normalizer"):
        yield f"{part} is missing", part, KeyError, False
        for value in (None, "x", [], {}, math.nan):
            yield f"{part} is {value!r}", part, value, False
    weight = "agent/FIRST"
    yield "weight is missing", weight, KeyError, False
    yield "weight too many", "agent/more", torch.zeros(3), False
    for name, value in {
        "has another shape": lambda x: torch.zeros(3, 7),
        "has an axis more": lambda x: x[None],
        "has a NaN": lambda x: x * math.nan,
        "is a number": 1.0,
        "is empty": torch.zeros(0),
        "is on no device": lambda x: x.to("meta"),
        "is sparse": lambda x: x.to_sparse(),
    }.items():
        yield f"weight {name}", weight, value, False
    yield "weight is a broadcast view", weight, lambda x: torch.zeros(1).expand(x.shape), True
    for moment in ("exp_avg", "exp_avg_sq"):
        path = f"optimizer/state/FIRST/{moment}"
        for name, value in {
            "is larger": lambda x: torch.zeros(x.numel() * 2 + 1),
            "is smaller": lambda x: torch.zeros(1),
            "is empty": torch.zeros(0),
            "is transposed": lambda x: torch.zeros(x.shape[::-1]),
            "has a NaN": lambda x: x * math.nan,
            "is missing": KeyError,
        }.items():
            yield f"{moment} {name}", path, value, name == "is transposed"
        yield f"{moment} is float64", path, lambda x: x.double(), True
        yield f"{moment} is on no device", path, lambda x: x.to("meta"), True
    yield "moments of one parameter are missing", "optimizer/state/FIRST", KeyError, True
    for value in (-100.0, math.nan, 1e30):
        yield f"Adam's step is {value}", "optimizer/state/FIRST/step", torch.tensor(value), True
    yield "no groups", "optimizer/param_groups", [], False
    yield "an argument too many", "args/no_such", 1, False
    yield "another game", "args/env_id", "Acrobot-v1", False
    yield "a module", "args/env_id", "payload:CartPole-v1", False
    for name, value in (("num_envs", 0), ("gamma", math.nan), ("num_steps", "x"), ("seed", -1)):
        yield f"{name} is {value}", f"args/{name}", value, False
    for value in ("../../evil", "/tmp/evil", "\x1b[31m", "x" * 9000):
        yield f"exp_name is {value[:12]!r}", "args/exp_name", value, True
    for value in ("payload", "../payload", "", 3):
        yield f"script is {value!r}", "script", value, True


def edited(good: bytes, path: str, value) -> bytes | None:
    """Return the checkpoint with `value` at `path`, or None where it has no such place."""
    checkpoint = torch.load(io.BytesIO(good), weights_only=True)
    *folders, last = path.split("/")
    place = checkpoint
    for name in folders:
        place = place[first(place) if name == "FIRST" else name]
    last = first(place) if last == "FIRST" else last
    if value is KeyError or last == "normalizer":
        if last not in place:
            return None
        del place[last]
    if value is not KeyError:
        place[last] = value(place[last]) if callable(value) else value
    return saved(checkpoint)


def saved(thing) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def endless_pickle(good: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            nested = b"\x80\x02" + b"(" * 100_000
            new.writestr(name, nested if name.endswith("data.pkl") else old.read(name))
    return file.getvalue()


def damages(good: bytes, flips: int, rng: random.Random) -> Iterator[tuple[str, bytes, bool]]:
    """Yield name, content, and whether training may go on with it."""
    yield "untouched", good, True
    for name, path, value, may_go_on in edits():
        content = edited(good, path, value)
        if content is not None:
            yield name, content, may_go_on
    for name, content in {
        "empty": b"",
        "text": b"hello",
        "noise after PK": b"PK\3\4" + rng.randbytes(5000),
        "code": pickle.dumps(Trap()),
        "code in an archive": saved({"agent": Trap()}),
        "a module": saved(torch.nn.Linear(2, 2)),
        "a list": saved([1, 2]),
        "a pickle that nests": endless_pickle(good),
        "twice": good[: len(good) // 2] + good,
    }.items():
        yield f"file is {name}", content, False
    for size in (1, 100, len(good) // 2, len(good) - 22, len(good) - 1):
        yield f"cut after {size} bytes", good[:size], False
    for _ in range(flips):
        position, bit = rng.randrange(len(good)), rng.randrange(8)
        flipped = bytearray(good)
        flipped[position] ^= 1 << bit
        # A bit of an archive's padding does not matter.
        try:
            same = saved(torch.load(io.BytesIO(flipped), weights_only=True))
            harmless = same == saved(torch.load(io.BytesIO(good), weights_only=True))
        except Exception:
            harmless = False
        yield f"bit {bit} of byte {position} flipped", bytes(flipped), harmless


# ---------------------------------------------------------------------------------------------------------------------
# Attempts


def attempt(folder: Path, action: Callable[[], None]) -> int | None:
    """Do `action` in a fork, in `folder`; return its exit code, negative after a signal, None if it hangs."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            torch.set_num_threads(1)
            resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.chdir(folder)
            sys.path.insert(0, str(folder))  # where payload.py is
            sys.stdout = sys.stderr = (folder / "output").open("w")
            action()
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def go_on(script: str) -> None:
    module = importlib.import_module(script)
    sys.argv = [f"{script}.py", "--run-dir", "run", "--total-timesteps", str(3 * STEPS)]
    module.main(module.parse_args())


def play() -> None:
    evaluate = importlib.import_module("evaluate")
    result = evaluate.main(evaluate.Args(Path("run"), episodes=1))
    assert math.isfinite(result["mean"])


def whole(script: str, path: Path) -> bool:
    checkpoint = importlib.import_module(script).load_checkpoint(path.parent)
    finite = all(value.isfinite().all() for value in checkpoint["agent"].values())
    return finite and checkpoint["global_step"] == 3 * STEPS


def broken_promise(
    folder: Path, target: str, script: str, content: bytes, code: int | None, may_go_on: bool
) -> str | None:
    path = folder / "run" / "checkpoint.pt"
    if code is None:
        return "it hangs"
    if code < 0:
        return f"it died by {signal.Signals(-code).name}"
    if list(folder.rglob("trapped")) or list(folder.rglob("*evil*")):
        return "code of a checkpoint ran, or a folder of its choice was made"
    if target == "evaluate" or code > 0:
        return None if path.read_bytes() == content else "the checkpoint was changed"
    if not may_go_on:
        return "it went on as if nothing were wrong"
    if path.read_bytes() != content and not whole(script, path):
        return "it left a checkpoint that is not whole"
    return None


def attack(script: str, args: Args, folder: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yield target, name and, if there is one, the broken promise of each attempt."""
    module = importlib.import_module(script)
    work = folder / script
    work.mkdir()
    training = module.Args(**SMALL, total_timesteps=2 * STEPS, run_dir=Path("run"))
    if attempt(work, lambda: module.main(training)) != 0:
        raise SystemExit(f"{script} does not train: {(work / 'output').read_text()}")
    good = (work / "run" / "checkpoint.pt").read_bytes()
    rng = random.Random(args.seed)
    for number, (name, content, may_go_on) in enumerate(damages(good, args.flips, rng)):
        if script != "ppo" and number % 4 != len(script) % 4:
            continue  # the code is the same
        for target, action in (("go on", lambda: go_on(script)), ("evaluate", play)):
            if args.only not in f"{target} {script}: {name}":
                continue
            shutil.rmtree(work)
            (work / "run").mkdir(parents=True)
            (work / "payload.py").write_text("import os\nos.system('touch trapped')\n")
            (work / "run" / "checkpoint.pt").write_bytes(content)
            code = attempt(work, action)
            fault = broken_promise(work, target, script, content, code, may_go_on)
            if name == "untouched" and code != 0:
                fault = (work / "output").read_text()
            yield target, f"{target} {script}: {name}", fault


def stop(number: signal.Signals, seconds: float, folder: Path) -> str | None:
    """Stop a run at a random moment, also while it imports or saves; return the broken promise."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    command = [sys.executable, str(ROOT / "ppo.py"), *flags, "--total-timesteps=100000000"]
    with (folder / "output").open("w") as output:
        run = subprocess.Popen(
            [*command, "--run-dir=run"], cwd=folder, stdout=output, stderr=output
        )
    time.sleep(seconds)
    run.send_signal(number)
    try:
        code = run.wait(LIMIT)
    except subprocess.TimeoutExpired:
        run.kill()
        return "it hangs"
    path = folder / "run" / "checkpoint.pt"
    if path.exists():
        importlib.import_module("ppo").load_checkpoint(path.parent)
    before_training = (-number, 1)  # Python's own ways to end
    if code not in (128 + number, *before_training) or (code != 128 + number and path.exists()):
        return f"exit code {code} after {seconds:.2f} s"
    return None


def main(args: Args) -> int:
    """Print the broken promises; return how many there are."""
    torch.set_num_threads(1)  # threads do not survive a fork
    torch.optim.Adam([torch.zeros(1)])  # imports for seconds: once here, and not in every fork
    importlib.import_module("evaluate")
    tried, broken = Counter(), Counter()
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        for script in SCRIPTS:
            for target, attempted, fault in attack(script, args, Path(name)):
                tried[target] += 1
                broken[target] += fault is not None
                if fault is not None:
                    print(f"{attempted}: {fault}", flush=True)
        rng = random.Random(args.seed)
        for number in range(args.stops if not args.only else 0):
            folder = Path(name, f"stop {number}")
            folder.mkdir()
            signum = rng.choice([signal.SIGINT, signal.SIGTERM])
            fault = stop(signum, rng.uniform(0.1, 10), folder)
            tried["stop"] += 1
            broken["stop"] += fault is not None
            if fault is not None:
                print(f"stop by {signum.name}: {fault}", flush=True)
    for target, count in tried.items():
        print(f"{target:10} {count:5} attempts, {broken[target]:3} broken promises")
    return broken.total()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)) > 0)
