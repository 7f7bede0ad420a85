"""Every change in tests/long/mutants.py still applies to its script, once, and breaks it without a syntax error."""

import ast
from collections import Counter

import pytest
from long.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("script", sorted({mutant.script for mutant in MUTANTS}))
def test_every_mutant_is_one_change_that_compiles(script):
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    for mutant in [mutant for mutant in MUTANTS if mutant.script == script]:
        count = source.count(mutant.old)
        assert count == 1, f"{mutant}: {mutant.old!r} must occur once, not {count} times"
        assert mutant.new != mutant.old, f"{mutant}: it changes nothing"
        ast.parse(source.replace(mutant.old, mutant.new), filename=str(mutant))
        assert (ROOT / "tests" / mutant.tests).is_file()


def test_no_two_mutants_are_alike():
    assert len({(mutant.script, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert not [name for name, count in Counter(map(str, MUTANTS)).items() if count > 1]
