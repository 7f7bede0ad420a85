"""Checks the parts of a PPO against the official code, and names what is wrong in them.

    ppo-check --template > yours.py    # fill in the parts that you have
    ppo-check yours.py

An adapter has a function for each part that is to be checked, in NumPy types. It is called with
the official recordings and with made-up cases that tell the known mistakes apart.
"""

import argparse
import contextlib
import difflib
import importlib.util
import inspect
import sys
import textwrap
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from ppo_check import forms
from ppo_check.forms import WITHOUT, Fault
from ppo_check.parts import HERE, PARTS, AdapterError, Case, Check, Part, Result

SITE = ""  # where the documents are published; pages are named below it
OFFICIAL = (
    "https://github.com/openai/baselines/blob/ea25b9e8b234e6ee1bca43083f8f3cf974143998/baselines/"
)
# How far outputs may be off, as a fraction of the largest official number of an array
RTOL = {"float32": 1e-4, "float64": 1e-7}


# -------------------------------------------------------------------------------------------------
# What the catalogue says


class Removal(msgspec.Struct):
    instead: str


class Variant(msgspec.Struct):
    name: str
    who: str = ""


class Detail(msgspec.Struct):
    label: str
    name: str
    why: str
    official: list[str]
    removal: Removal | None = None
    variants: list[Variant] = msgspec.field(default_factory=list, name="variant")


class Catalogue(msgspec.Struct):
    details: list[Detail] = msgspec.field(name="detail")


@cache
def load_catalogue() -> dict[str, Detail]:
    """Return the details by their labels; the file is in a wheel, or beside this folder."""
    path = next(
        path for path in (HERE / "catalogue.toml", HERE.parent / "catalogue.toml") if path.exists()
    )
    details = msgspec.toml.decode(path.read_text(encoding="utf-8"), type=Catalogue).details
    return {detail.label: detail for detail in details}


def page(label: str) -> str:
    family, number = label.lower().split()
    folder = family.replace("aux", "auxiliary")
    return f"{SITE}details/{folder}/#{family}-{number}"


# -------------------------------------------------------------------------------------------------
# Findings


class Finding(msgspec.Struct, omit_defaults=True):
    """What was found out about one detail in one part."""

    part: str
    detail: str  # the label, "Core 5"; empty for what belongs to none
    verdict: str  # official, sound, variant, differs or error
    variant: str = ""  # "Core 5: without", or with its name
    what: str = ""  # the variant, how it differs, or the error
    deviation: float | None = None  # the largest distance from the official numbers
    official_size: float | None = None  # the largest of the official numbers there
    case: str = ""  # where the deviation is
    who: str = ""  # who else has this variant
    why: str = ""
    page: str = ""
    official_code: list[str] = []

    @property
    def fine(self) -> bool:
        return self.verdict in ("official", "sound")


def finding(part: Part, label: str, details: dict[str, Detail], **more) -> Finding:
    found = Finding(part.name, label, **more)
    if label in details:
        found.page = page(label)
        found.official_code = [
            place if place.startswith("https://") else OFFICIAL + place
            for place in details[label].official
        ]
        if not found.why and found.verdict != "official":
            found.why = details[label].why
    return found


def known(part: Part, fault: Fault, details: dict[str, Detail], **more) -> Finding:
    """Return the finding that a part is wrong in a known way."""
    label, name = fault
    more["variant"] = f"{label}: {name}" if label else name
    more["verdict"] = "sound" if fault in forms.SOUND else "variant"
    more["why"] = forms.SOUND.get(fault) or forms.OTHERS.get(fault, "")
    if name == WITHOUT:
        more["what"] = f"without it: {details[label].removal.instead}"
        if fault in forms.SAME:
            more["what"] += f" (The same: {forms.SAME[fault]}.)"
    else:
        more["what"] = name
        variants = {
            variant.name: variant for variant in getattr(details.get(label), "variants", [])
        }
        if name in variants:
            more["who"] = variants[name].who
    return finding(part, label, details, **more)


# -------------------------------------------------------------------------------------------------
# The adapter's functions


class NotGiven(Exception):
    """The adapter does not have this part."""


def load_adapter(path: str):
    """Return the adapter as a module. Its folder can be imported from, after everything else."""
    path = Path(path).resolve()
    if not path.is_file():
        raise AdapterError(f"there is no file {path}")
    if path.suffix != ".py":
        raise AdapterError(f"{path.name} is not the name of a Python file, which ends with .py")
    sys.path.append(str(path.parent))
    sys.argv = [str(path)]  # what an imported script may read
    spec = importlib.util.spec_from_file_location("adapter", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise AdapterError(f"{path.name}: {one_line(error, path)}") from error
    return module


def one_line(error: BaseException, adapter: Path | None = None) -> str:
    """Return what was raised, and where: in the adapter, if it passed there."""
    what, *_ = f"{type(error).__name__}: {error}".strip(": ").splitlines()
    if isinstance(error, SyntaxError):  # says itself where it is
        return what
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if adapter and place.filename == str(adapter)]
    place = (own or places)[-1]
    return f"{what} ({Path(place.filename).name}, line {place.lineno})"


def cast(x, dtype: np.dtype):
    """Return a copy of an input with its arrays of numbers in the adapter's precision."""
    if isinstance(x, dict):
        return {name: cast(item, dtype) for name, item in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(cast(item, dtype) for item in x)
    if isinstance(x, np.ndarray):
        return x.astype(dtype) if x.dtype.kind == "f" else x.copy()
    return x


def shapes(names: Iterable[str], expected: Iterable) -> str:
    pairs = zip(names, expected, strict=True)
    return ", ".join(f"{name} {shape}" for name, shape in pairs) or "no arrays"


class Adapter:
    """The functions of an adapter, with what they return checked."""

    def __init__(self, module):
        self.module = module
        self.path = getattr(module, "__file__", None)
        dtype = getattr(module, "dtype", "float32")
        try:
            self.dtype = np.dtype(dtype)
        except TypeError as error:
            raise AdapterError(f"dtype is {dtype}, expected np.float32 or np.float64") from error
        if self.dtype.name not in RTOL:
            raise AdapterError(f"dtype is {self.dtype}, expected np.float32 or np.float64")

    def call(self, part: Part, inputs: dict, wanted: str):
        """Return what a function returns; `wanted` says what that should be."""
        function = getattr(self.module, part.name)
        signature = inspect.signature(function)
        try:
            signature.bind(**inputs)
        except TypeError as error:
            message = f"the arguments are {signature}, expected ({part.arguments}), by these names"
            raise AdapterError(message) from error
        try:
            return function(**cast(inputs, self.dtype))
        except (Exception, SystemExit) as error:
            # Not filled in, if the function itself says so, and nothing that it calls
            if (
                isinstance(error, NotImplementedError)
                and error.__traceback__.tb_next.tb_next is None
            ):
                raise NotGiven from error
            given = {name: x.shape for name, x in inputs.items() if isinstance(x, np.ndarray)}
            message = f"{one_line(error, self.path)}; given: {shapes(given, given.values())}"
            raise AdapterError(f"{message}; expected: {wanted}") from error

    def arrays(
        self, part: Part, inputs: dict, expected: list
    ) -> tuple[tuple[np.ndarray, ...], str]:
        """Return a function's outputs as float64 of the expected shapes, and their precision."""
        names = part.returns.split(", ")
        if part.returns == "parameters":
            names = [f"parameters[{i}]" for i in range(len(expected))]
        wanted = shapes(names, expected)
        outputs = self.call(part, inputs, wanted)
        if len(expected) == 1 and part.returns != "parameters":
            outputs = (outputs,)
        if not isinstance(outputs, list | tuple) or len(outputs) != len(expected):
            found = len(outputs) if isinstance(outputs, list | tuple) else type(outputs).__name__
            raise AdapterError(f"returned {found}, expected {len(expected)} arrays: {wanted}")
        dtype = self.dtype
        arrays = []
        for name, x, shape in zip(names, outputs, expected, strict=True):
            try:
                array = np.asarray(x)
                if array.dtype == np.float32:
                    dtype = array.dtype
                arrays.append(array.astype(np.float64))
            except (TypeError, ValueError, RuntimeError) as error:
                message = f"{name} is no array of numbers, expected the shape {shape}: {error}"
                raise AdapterError(" ".join(message.split())) from error
            if array.shape != shape:
                raise AdapterError(f"{name} has the shape {array.shape}, expected {shape}")
        return tuple(arrays), dtype.name


# -------------------------------------------------------------------------------------------------
# Checking


def distance(got: tuple, expected: tuple) -> tuple[float, float]:
    """Return the largest deviation, absolute and as a fraction of the array's largest number."""
    largest = relative = 0.0
    for a, b in zip(got, expected, strict=True):
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return np.inf, np.inf
        with np.errstate(invalid="ignore"):
            deviation = np.where((a == b) | np.isnan(a), 0, np.abs(a - b)).max()
        size = np.abs(b[np.isfinite(b)]).max(initial=0) or 1.0
        largest = max(largest, deviation)
        relative = max(relative, deviation / size)
    return float(largest), float(relative)


@cache
def expected_of(case: Case, function: Callable) -> tuple:
    return function(**case.inputs)


def fits(case: Case, function: Callable, official: bool, got: tuple, dtype: str) -> bool:
    rtol = RTOL[dtype]
    recorded = official and case.recorded is not None
    expected = case.recorded if recorded else expected_of(case, function)
    if case.recorded is not None:
        rtol = RTOL["float32"]  # in which the official code computes
    return distance(got, expected)[1] <= (case.rtol or rtol)


def official_shapes(part: Part, case: Case) -> list[tuple[int, ...]]:
    """Return the shapes of everything that a part returns."""
    if part.returns == "parameters":
        return [x.shape for x in case.inputs["parameters"]]
    if part.name == "gae":
        return [case.inputs["rewards"].shape] * 2
    if part.name == "loss_gradients":
        return [case.inputs["logprobs"].shape] * 3
    if part.name == "gaussian_samples":
        return [(case.inputs["count"], len(case.inputs["means"]))]
    return [np.shape(x) for x in expected_of(case, part.checks[0].forms[0][1])]


def run_check(part: Part, check: Check, adapter: Adapter, details) -> list[Finding]:
    _, official = check.forms[0]
    outputs = []
    deviations = []
    for case in check.cases:
        got, dtype = adapter.arrays(part, case.inputs, official_shapes(part, case))
        if check.transform:
            got = check.transform(case.inputs, got)
        outputs.append((case, got, dtype))
        expected = case.recorded or expected_of(case, official)
        size = max(np.abs(x[np.isfinite(x)]).max(initial=0) for x in expected)
        deviations.append((*distance(got, expected), float(size), case.name))
    deviation, _, size, worst = max(deviations, key=lambda x: x[1])
    off = {"deviation": deviation, "official_size": size, "case": worst}
    bad = [case.name for case, got, dtype in outputs if not fits(case, official, True, got, dtype)]
    if not bad:
        return [
            finding(part, label, details, verdict="official", deviation=deviation)
            for label in check.labels
        ]
    if len(bad) == 1 and bad[0] in check.telling:
        faults = (check.telling[bad[0]],)
        return findings_of(part, check, faults, details, off)
    outputs = [output for output in outputs if output[0].name not in check.telling]
    for faults, function in check.forms[1:]:
        if all(fits(case, function, False, got, dtype) for case, got, dtype in outputs):
            return findings_of(part, check, faults, details, off)
    found = []
    for label in check.labels or check.forms[1][0][0][:1]:
        others = ", ".join(other for other in check.labels if other != label)
        what = "in an unknown way" + (f", here or in {others}" if others else "")
        found.append(finding(part, label, details, verdict="differs", what=what, **off))
    return found


def findings_of(part, check: Check, faults: tuple[Fault, ...], details, off: dict) -> list[Finding]:
    found = [known(part, fault, details, **off) for fault in faults]
    for label in check.labels:
        if label not in [fault[0] for fault in faults]:
            found.append(finding(part, label, details, verdict="official"))
    return found


def run_judge(part: Part, adapter: Adapter, details) -> list[Finding]:
    def call(inputs: dict, expected):
        if isinstance(expected, int):  # so many things of any shape
            outputs = adapter.call(part, inputs, part.returns)
            if not isinstance(outputs, list | tuple) or len(outputs) != expected:
                raise AdapterError(f"expected {expected} things: {part.returns}")
            return outputs
        return [x.astype(np.int64) for x in adapter.arrays(part, inputs, expected)[0]]

    try:
        results: list[Result] = part.judge(call)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AdapterError(f"{one_line(error)}; expected: {part.returns}") from error
    found = []
    for label, fault, deviation, message in results:
        if fault:
            found.append(known(part, (label, fault), details, deviation=deviation))
        elif message:
            found.append(
                finding(part, label, details, verdict="differs", what=message, deviation=deviation)
            )
        else:
            found.append(finding(part, label, details, verdict="official"))
    return found


def run_part(part: Part, adapter: Adapter, details) -> list[Finding]:
    """Return what there is to say of a part, each detail once unless several things are wrong."""
    if not hasattr(adapter.module, part.name):
        raise NotGiven
    if part.judge:
        return run_judge(part, adapter, details)
    found = []
    for check in part.checks:
        # A whole of parts that are wrong says nothing new.
        if check.of_the_whole and not all(x.fine for x in found):
            continue
        found += run_check(part, check, adapter, details)
    wrong = {x.detail for x in found if x.verdict != "official"}
    kept = {}
    for x in found:
        if x.verdict != "official":
            kept[x.detail, x.what] = x
        elif x.detail not in wrong:
            kept.setdefault((x.detail, ""), x)
    return list(kept.values())


def check_adapter(module) -> tuple[list[Finding], list[str]]:
    """Return all findings, and the names of the parts that the adapter does not have."""
    adapter, details = Adapter(module), load_catalogue()
    found = []
    missing = []
    for part in PARTS:
        try:
            found += run_part(part, adapter, details)
        except NotGiven:
            others = set(vars(module)) - {part.name for part in PARTS}
            similar = difflib.get_close_matches(part.name, others, n=1, cutoff=0.85)
            missing += [f"{part.name} (there is {similar[0]})" if similar else part.name]
        except AdapterError as error:
            label = part.details[0] if part.details else ""
            found.append(Finding(part.name, label, "error", what=str(error)))
    return found, missing


# -------------------------------------------------------------------------------------------------
# Reports

VERDICTS = {
    "official": "as the official code",
    "sound": "sound, but not the official form:",
    "variant": "equals a known variant:",
    "differs": "differs:",
    "error": "error in the adapter:",
}


def wrapped(text: str, width: int = 80, indent: str = " " * 18) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def report(found: list[Finding], missing: list[str]) -> str:
    """Return the report as text of 80 columns."""
    lines = []
    explained = set()
    for part in dict.fromkeys(x.part for x in found):
        lines.append(part)
        for x in (x for x in found if x.part == part):
            head, *rest = wrapped(f"{VERDICTS[x.verdict]} {x.what}".strip())
            lines.append(f"  {x.detail:<15} {head.lstrip()}")
            lines += rest
            if x.verdict in ("error", "official"):
                continue
            if x.deviation is not None:
                far = f"Off by up to {x.deviation:.3g}"
                off = far if np.isfinite(x.deviation) else "Not a number, or infinite, in places"
                if x.official_size is not None:
                    off += f"; official numbers are up to {x.official_size:.3g}"
                lines += wrapped(f"{off}{f' ({x.case})' if x.case else ''}.")
            # The reasons of a detail are given once.
            if x.why not in explained:
                lines += wrapped(f"So does: {x.who}.") if x.who else []
                lines += wrapped(x.why)
                places = ", ".join(place.removeprefix(OFFICIAL) for place in x.official_code)
                lines += wrapped(f"{x.page} (official code: {places})" if places else x.page)
            explained.add(x.why)
        lines.append("")
    counts = Counter(x.verdict for x in found)
    names = {
        "official": "as the official code",
        "sound": "sound",
        "variant": "known variants",
        "differs": "different otherwise",
        "error": "errors",
    }
    total = ", ".join(f"{counts[key]} {name}" for key, name in names.items() if key in counts)
    lines += wrapped(f"In all: {total or 'nothing was checked'}.", indent="")
    if missing:
        lines += wrapped(f"Not in the adapter: {', '.join(missing)}.", indent="")
    return "\n".join(lines)


def listing() -> str:
    lines = []
    for part in PARTS:
        lines += wrapped(f"{part.name}({part.arguments})", indent="")
        lines += wrapped(f"-> {part.returns}", indent="    ")
        lines += wrapped(part.text, indent="    ")
        lines += wrapped(f"Details: {', '.join(part.details) or 'none'}", indent="    ")
        lines.append("")
    return "\n".join(lines[:-1])


TEMPLATE = '''"""What ppo-check calls: fill in the parts that your PPO has, and leave or delete the others.

All arrays are NumPy's, of the precision below. Call your own code; do not write it anew. Where it
is a line inside of a loop, repeat that line, with the argument in the place of a constant of yours
(ent_coef, not 0.01). Where yours does not do a step, say no normalisation, return what came in. The
names of functions and arguments must stay.
"""

import numpy as np

dtype = np.float32  # np.float64 if all of your code computes in it
'''


def template() -> str:
    lines = [TEMPLATE]
    for part in PARTS:
        head = f"def {part.name}({part.arguments}):"
        if len(head) > 88:
            names = part.arguments.split(", ")
            head = f"def {part.name}(\n" + "".join(f"    {name},\n" for name in names) + "):"
        text = "\n".join(wrapped(part.text, 88, "    "))
        lines.append(
            f'\n{head}\n    """Return {part.returns}.\n\n{text}\n    """\n'
            "    raise NotImplementedError\n"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ppo-check",
        description="Checks the parts of your PPO against the official code.",
        epilog="Exit code 1: something differs, or the adapter has an error.",
    )
    parser.add_argument("adapter", nargs="?", help="a Python file with functions for your parts")
    parser.add_argument("--list", action="store_true", help="what can be checked")
    parser.add_argument("--template", action="store_true", help="an adapter to fill in")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    args = parser.parse_args(arguments)
    if args.list or args.template:
        print(listing() if args.list else template(), end="\n" if args.list else "")
        return 0
    if args.adapter is None:
        parser.error("an adapter is needed; --template writes one")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever the adapter's code prints
            found, missing = check_adapter(load_adapter(args.adapter))
    except AdapterError as error:
        print(f"ppo-check: {error}", file=sys.stderr)
        return 1
    if args.json:
        text = msgspec.json.encode({"findings": found, "not_in_the_adapter": missing})
        print(msgspec.json.format(text).decode())
    else:
        print(report(found, missing))
    return 0 if found and all(x.fine for x in found) else 1
