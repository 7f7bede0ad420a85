"""The tests notice mistakes: a dozen of the changes in tests/long/mutants.py are caught.

All of them take minutes, so each time another dozen is run, of those that are quick. All still apply.
"""

import ast
import os

import pytest
from long.mutants import CHANGES, MUTANTS, ROOT, Args, choose, describe, run_mutants


def new_seed() -> int:
    """Return another number in every run of CI, and at random elsewhere."""
    return int(os.environ.get("GITHUB_RUN_ID") or int.from_bytes(os.urandom(3)))


@pytest.mark.parametrize("script", CHANGES)
def test_every_mutant_is_one_change_that_compiles(script):
    source = (ROOT / f"{script}.py").read_text()
    for mutant in MUTANTS:
        if mutant.script == script:
            assert source.count(mutant.old) == 1, (
                f"{mutant}: {mutant.old!r} must occur once in {script}.py"
            )
            assert mutant.new != mutant.old, f"{mutant}: it changes nothing"
            ast.parse(source.replace(mutant.old, mutant.new), filename=str(mutant))


def test_there_are_many_and_no_two_are_alike():
    assert len(MUTANTS) >= 120
    assert all(len(changes) >= 10 for changes in CHANGES.values())
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.script, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_a_dozen_mutants_are_caught():
    seed = new_seed()
    print(f"to repeat: python tests/long/mutants.py --quick --sample 12 --seed {seed}")
    # That these tests pass without any change they show themselves, wherever this one runs.
    outcomes = run_mutants(choose(Args(quick=True, sample=12, seed=seed)), jobs=2, time_limit=60.0)
    assert len(outcomes) == 12
    missed = [describe(outcome) for outcome in outcomes if not outcome.caught]
    assert not missed, "\n\n".join(missed)
