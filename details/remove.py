"""Take the details out of the scripts or bend them, one at a time, and see whether a test notices.

    python details/remove.py
    python details/remove.py --only "Core 7" --workers 2

Each change of the catalogue is made to each of its scripts in a copy of the repository, where the
change's tests then run. Prints a line for each, and at the end those that no test has noticed; if
there are any, exits with 1. A test that hangs has noticed.
"""

import multiprocessing
import os
import queue
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro
from catalogue import ROOT, Change, apply, load

SCRIPTS = {path.stem for path in ROOT.glob("*.py")}

# Every job is a process of its own, forked from one that has already imported the slow packages.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["ale_py", "envpool", "gymnasium", "stable_baselines3", "tensorboard", "torch", "tyro"]
)


@dataclass
class Args:
    only: str = ""  # only changes whose full name or script contains this
    workers: int = 1  # changes tried at the same time
    time_limit: float = 300.0  # seconds after which a change's tests are said to hang


class OwnTests:
    """A pytest plugin: of the tests that are about single scripts, keep those about `script`."""

    def __init__(self, script: str):
        self.script = script

    def pytest_collection_modifyitems(self, items: list) -> None:
        items[:] = filter(self.concerns, items)

    def concerns(self, item: pytest.Item) -> bool:
        # test_lstm.py is about the script whose name ends like this.
        subject = item.path.stem.removeprefix("test_")
        about = {script for script in SCRIPTS if f"_{script}".endswith(f"_{subject}")}
        if not about and hasattr(item, "callspec"):
            values = item.callspec.params.values()
            about = SCRIPTS & {value for value in values if isinstance(value, str)}
        return not about or self.script in about


def copy_repository(folder: Path) -> Path:
    """Copy what tests need into a new folder, and return it."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "wandb", "results")
    return shutil.copytree(ROOT, folder, ignore=ignored)


def run_tests(root: Path, script: str, tests: list[str]) -> None:
    """Run those of the tests in `root` that are about the script; exit with pytest's code."""
    os.setsid()
    os.chdir(root)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    # Python finds cached bytecode by a file's size and second of change, which two edits may share.
    sys.dont_write_bytecode = True
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--basetemp", f"{root}-tmp"]
    command += [f"tests/{test}" for test in tests]
    sys.exit(pytest.main(command, [OwnTests(script)]))


def outcome(change: Change, script: str, root: Path, time_limit: float = 300.0) -> str:
    """Break a script in the copy `root` for as long as the tests of the change run.

    Returns "noticed", "hangs", or what else became of the tests: "not noticed", "no test", or that
    pytest failed.
    """
    path = root / f"{script}.py"
    source = path.read_text(encoding="utf-8")
    path.write_text(apply(change, script, source), encoding="utf-8")
    process = PROCESSES.Process(target=run_tests, args=(root, script, change.tests))
    process.start()
    process.join(time_limit)
    code = process.exitcode
    if code is None:
        os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
        process.join()
    path.write_text(source, encoding="utf-8")
    names = {None: "hangs", 0: "not noticed", 1: "noticed", 5: "no test"}
    return names.get(code, f"pytest failed ({code})")


def main(args: Args) -> list[str]:
    """Print a line for each change and script; return those that no test noticed."""
    jobs = [
        (f"{name} ({script}.py)", change, script)
        for name, change in load().changes().items()
        for script in change.scripts
    ]
    jobs = [job for job in jobs if args.only in job[0]]
    if not jobs:
        sys.exit(f"error: no change has {args.only} in its name")
    survivors = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as pool:
        copies = queue.SimpleQueue()
        for number in range(args.workers):
            copies.put(copy_repository(Path(folder, str(number))))

        def run(job: tuple[str, Change, str]) -> None:
            name, change, script = job
            root = copies.get()
            result = outcome(change, script, root, args.time_limit)
            copies.put(root)
            print(f"{result:12} {name}", flush=True)
            if result not in ("noticed", "hangs"):
                survivors.append(name)

        list(pool.map(run, jobs))
    print(f"{len(survivors)} of {len(jobs)} not noticed", *survivors, sep="\n    ")
    return survivors


if __name__ == "__main__":
    sys.exit(len(main(tyro.cli(Args, description=__doc__))) > 0)
