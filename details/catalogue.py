"""The 37 details as data: reads details/catalogue.toml, and writes docs/details.md from it.

    python details/catalogue.py

Other programs import it: `load` returns the catalogue, `apply` makes one of its changes.
"""

from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "details.md"
MARKERS = ("<!-- From here on by details/catalogue.py -->", "<!-- Up to here -->")
OFFICIAL = (
    "https://github.com/openai/baselines/blob/ea25b9e8b234e6ee1bca43083f8f3cf974143998/baselines/"
)


class Edit(msgspec.Struct, forbid_unknown_fields=True):
    """Put `new` in the place of `old`, which occurs exactly once in each of the scripts."""

    old: str
    new: str
    scripts: list[str] = []  # names without .py; of a detail's change, by default all that have it


class Change(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Edits that break a script, and the tests that notice: files or node ids in tests/."""

    edits: list[Edit]
    tests: list[str]

    @property
    def scripts(self) -> list[str]:
        """Names of the scripts that the change applies to."""
        return sorted({script for edit in self.edits for script in edit.scripts})


class Removal(Change):
    instead: str  # a sentence: what there is without the detail


class Variant(Change):
    name: str  # a clause: what is wrong
    who: str = ""  # who makes it so, where that is public


class Detail(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One detail: what it is, where it is, and how to do without it or to get it wrong."""

    label: str  # as in the scripts' comments
    name: str
    why: str
    equation: str = ""  # LaTeX
    official: list[str]  # ppo2/model.py#L139 in openai/baselines, or a URL
    scripts: list[str]  # that have it, without .py
    deviation: str = ""  # how ours differs from the official code
    # One of these three
    removal: Removal | None = None
    kept: str = ""  # why it cannot be removed
    added_by: str = ""  # the flags that add it
    variants: list[Variant] = msgspec.field(default_factory=list, name="variant")

    def __post_init__(self):
        if [self.removal is not None, self.kept != "", self.added_by != ""].count(True) != 1:
            raise ValueError(f"{self.label} needs one of removal, kept and added_by")
        for change in self.changes().values():
            for edit in change.edits:
                edit.scripts = edit.scripts or self.scripts

    def changes(self) -> dict[str, Change]:
        """Return the removal, if there is one, and the variants, by their full names."""
        removal = {} if self.removal is None else {f"{self.label}: without": self.removal}
        return removal | {f"{self.label}: {change.name}": change for change in self.variants}


class Catalogue(msgspec.Struct, forbid_unknown_fields=True):
    """All details in their order, and the faults that belong to none of them."""

    details: list[Detail] = msgspec.field(name="detail")
    faults: list[Variant] = msgspec.field(name="fault")

    def changes(self) -> dict[str, Change]:
        """Return everything that can be done to the scripts, by full names."""
        pairs = [pair for detail in self.details for pair in detail.changes().items()]
        pairs += [(fault.name, fault) for fault in self.faults]
        if len(dict(pairs)) < len(pairs):
            raise ValueError("two changes have the same name")
        return dict(pairs)


def load() -> Catalogue:
    """Read the catalogue; msgspec.ValidationError says what in it is wrong."""
    text = (ROOT / "details" / "catalogue.toml").read_text(encoding="utf-8")
    return msgspec.toml.decode(text, type=Catalogue)


def apply(change: Change, script: str, source: str) -> str:
    """Return a script's source with the change in it.

    Raises ValueError if an old text does not occur exactly once.
    """
    for edit in change.edits:
        if script in edit.scripts:
            if source.count(edit.old) != 1:
                raise ValueError(f"{script}.py has {source.count(edit.old)} times: {edit.old}")
            source = source.replace(edit.old, edit.new)
    return source


def link(place: str) -> str:
    """Return a line of the official code as a link in Markdown."""
    path, _, lines = place.partition("#")
    if path.startswith("https://"):
        _, _, _, owner, name, *_, file = path.split("/")
        return f"[{owner}/{name}, {file} {lines}]({place})"
    return f"[{path} {lines}]({OFFICIAL}{place})"


def page(catalogue: Catalogue, text: str) -> str:
    """Return the text of docs/details.md with what is between its markers made anew."""
    lines = ["| label | detail | official code |", "|---|---|---|"]
    for detail in catalogue.details:
        links = ", ".join(map(link, detail.official))
        lines.append(f"| {detail.label} | {detail.name} | {links} |")
    lines += ["", "## Where ours differ from the official code", ""]
    for detail in catalogue.details:
        if detail.deviation:
            lines.append(f"- **{detail.label}.** {detail.deviation}")
    head, _, rest = text.partition(MARKERS[0])
    _, _, tail = rest.partition(MARKERS[1])
    return head + "\n".join([MARKERS[0], "", *lines, "", MARKERS[1]]) + tail


if __name__ == "__main__":
    PAGE.write_text(page(load(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
