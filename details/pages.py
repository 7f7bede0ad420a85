"""Make the site's pages, as a hook of MkDocs, which calls `on_config` and `on_files`.

    mkdocs serve

Nothing is written for the site alone. The README and the documents are taken as they are, with
their links made those of the site. The scripts and the catalogue give a page for each script, in
which every label has an annotation; a page for each diff that the README names; and the pages of
the details. All is read once: after a change to a script or the catalogue, start anew.
"""

import posixpath
import re
from difflib import SequenceMatcher
from textwrap import indent

from catalogue import ROOT, Change, Detail, Variant, link, load
from latex2mathml.converter import convert
from mkdocs.structure.files import File

CATALOGUE = load()
DETAILS = {detail.label: detail for detail in CATALOGUE.details}
# `Core 7: ...`, and both labels of `Core 13, Continuous 4: ...`
LABEL = re.compile(rf"\b({'|'.join(DETAILS)})\b(?=(?:, \w+ \d+)*:)")
# Files of the repository that are pages of the site
DOCUMENTS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "agents/README.md": "agents.md",
} | {f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


SCRIPTS = re.findall(r"^\| \[(\w+)\.py\]", read("README.md"), re.MULTILINE)
# For each script but the first: the one that it adds to, in the last column of the same table.
ROW = re.compile(r"^(\| \[(\w+)\.py\].*\| )`(\w+)\.py` \|$", re.MULTILINE)
DIFFS = [(old, new) for _, new, old in ROW.findall(read("README.md"))]


def join(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def bullets(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


# -------------------------------------------------------------------------------------------------
# The README and the documents


def relink(text: str, folder: str, linked: set[str]) -> str:
    """Make links to files links of the site, and add those that are no pages to `linked`."""

    def new(match: re.Match) -> str:
        before, path = match.groups()
        path = posixpath.normpath(posixpath.join(folder, path))
        if path in DOCUMENTS:
            return before + DOCUMENTS[path]
        if path.removesuffix(".py") in SCRIPTS:
            return f"{before}scripts/{path.removesuffix('.py')}.md"
        if not path.startswith("docs/"):
            linked.add(path)
        return before + path.removeprefix("docs/")

    text = re.sub(r'(\]\(|src=")([\w./-]+)(?=[)#"])', new, text)
    # A detail's own section says more than the table.
    return re.sub(r"\[(\w+ \d+)\]\(details\.md\)", lambda m: f"[{m[1]}]({place(m[1])})", text)


def home(readme: str) -> str:
    """Return the README as the first page, whose table links to the diffs."""
    text = ROW.sub(r"\1[`\3.py`](diffs/\2.md) |", readme)
    return f"---\nhide: [navigation]\n---\n\n{text}"


# -------------------------------------------------------------------------------------------------
# The scripts


def algorithm(script: str) -> str:
    """Return the upper half of a script, without the line that closes it."""
    upper, _, _ = read(f"{script}.py").partition("# The algorithm ends here")
    return upper.rstrip("\n#- ")


def sections(script: str) -> list[tuple[str, int, list[str]]]:
    """Return the title, the number of the first line, and the lines of each section."""
    found = [("Arguments", 1, [])]
    lines = algorithm(script).splitlines()
    for number, line in enumerate(lines, start=1):
        if line.startswith("# ---"):  # the next line is the title, and then two are empty
            found.append((lines[number].removeprefix("# "), number + 4, []))
        elif number >= found[-1][1]:
            found[-1][2].append(line)
    return found


def places(script: str) -> dict[str, tuple[str, str]]:
    """Return where each detail of a script happens first: the line's anchor, and the line."""
    found = {}
    for block, (_, first, lines) in enumerate(sections(script)):
        for number, line in enumerate(lines, start=first):
            for label in LABEL.findall(line):
                found.setdefault(label, (f"__codelineno-{block}-{number}", line.strip(' "')))
    return found


PLACES = {script: places(script) for script in SCRIPTS}


def script_page(script: str) -> str:
    also = [
        f"what it changes in [{old}.py](../diffs/{new}.md)" for old, new in DIFFS if new == script
    ]
    also.append(f"[the whole file](../{script}.py)")
    parts = [
        f"# {script}.py",
        "The algorithm, to the end of `main`. Behind each label, :material-plus-circle: says why. "
        f"See also {', '.join(also)}.",
    ]
    for heading, first, lines in sections(script):
        notes = []

        def annotate(match: re.Match, notes=notes) -> str:
            detail = DETAILS[match[1]]
            noticed = tests(*detail.changes().values())
            noticed = f"**Tests that notice.** {noticed}" if noticed else ""
            notes.append(join([f"**{title(detail)}**", describe(detail), noticed]))
            return f"{match[1]}({len(notes)})"

        code = LABEL.sub(annotate, "\n".join(lines).rstrip())
        parts += [f"## {heading}", f'```python linenums="{first}"\n{code}\n```']
        parts += [f"{n}.  {indent(note, '    ').strip()}" for n, note in enumerate(notes, start=1)]
    return join(parts)


def diff_page(old: str, new: str) -> str:
    parts = [
        # The search has the scripts.
        f"---\nhide: [navigation, toc]\nsearch: {{exclude: true}}\n---\n\n# {old}.py → {new}.py",
        f"What differs in their algorithms. On the left, or above: [{old}.py](../scripts/{old}.md); "
        f"on the right, or below: [{new}.py](../scripts/{new}.md).",
    ]
    if gone := [label for label in DETAILS if label in PLACES[old] and label not in PLACES[new]]:
        parts.append(f"No longer there: {', '.join(gone)}.")
    named = set(PLACES[old])
    sides = algorithm(old).splitlines(), algorithm(new).splitlines()
    for group in SequenceMatcher(None, *sides, autojunk=False).get_grouped_opcodes():
        blocks = []
        for lines, start, end in (sides[0], 1, 2), (sides[1], 3, 4):  # an opcode's fields
            first, last = group[0][start], group[-1][end]
            changed = [n for op in group if op[0] != "equal" for n in range(op[start], op[end])]
            marks = " ".join(str(n - first + 1) for n in changed)
            options = f'linenums="{first + 1}"' + (f' hl_lines="{marks}"' if marks else "")
            code = "\n".join(lines[first:last])
            language = "text" if code.count('"""') % 2 else "python"  # half a docstring
            blocks.append(f"```{language} {options}\n{code}\n```")
        fresh = set(LABEL.findall(code)) - named  # in the code on the right
        named |= fresh
        parts.append(bullets([title(DETAILS[label]) for label in DETAILS if label in fresh]))
        parts += ['<div class="diff" markdown>', *blocks, "</div>"]
    return join(parts)


# -------------------------------------------------------------------------------------------------
# The details


def read_prices(text: str) -> dict[str, dict[str, str]]:
    """Return the changes of the final return in docs/price.md, by environment and row."""
    prices = {}
    for row, change in re.findall(r"^\| (.+?) \| (.+?) \|", text, re.MULTILINE):
        if change.startswith("change of the final return"):
            column = prices.setdefault(row, {})
        elif row != "---":
            column[row] = change
    return prices


PRICES = read_prices(read("docs/price.md"))


def family(label: str) -> str:
    """Return what Core 7 belongs to: Core."""
    return label.split()[0].replace("Aux", "Auxiliary")


def anchor(label: str) -> str:
    return label.lower().replace(" ", "-")


def place(label: str) -> str:
    """Return where a detail is described."""
    return f"details/{family(label).lower()}.md#{anchor(label)}"


def title(detail: Detail) -> str:
    """Return a detail's label and name, linked from a page that is one folder deep."""
    return f"[{detail.label}](../{place(detail.label)}): {detail.name}"


def returns(row: str) -> list[str]:
    """Return what a row of docs/price.md says, for each environment."""
    return [f"{environment} {rows[row]}" for environment, rows in PRICES.items() if row in rows]


def price(row: str) -> str:
    found = ", ".join(returns(row))
    return f" Change of the [normalised final return](../price.md): {found}." if found else ""


def settings(detail: Detail) -> list[str]:
    """Return the rows of a detail that is off by default, one for each setting of its flag."""
    rows = dict.fromkeys(row for column in PRICES.values() for row in column)
    others = {f"{detail.label}: {variant.name}" for variant in detail.variants}
    return [row for row in rows if row.startswith(f"{detail.label}: ") and row not in others]


def tests(*changes: Change) -> str:
    names = dict.fromkeys(test for change in changes for test in change.tests)
    return ", ".join(f"`{name}`" for name in names)


def mistake(variant: Variant, prefix: str = "") -> str:
    name = variant.name[0].upper() + variant.name[1:]
    who = f" ({variant.who})" if variant.who else ""
    return f"{name}{who}.{price(prefix + variant.name)} {tests(variant)}"


def describe(detail: Detail) -> str:
    """Return what an annotation says of a detail, and what its section begins with."""
    parts = [detail.why]
    if detail.equation:
        parts.append(f"```math\n{detail.equation}\n```")
    if detail.official:
        parts.append(f"**Official code.** {', '.join(map(link, detail.official))}")
    if detail.deviation:
        # Its links are those of docs/details.md.
        text = re.sub(r"\]\((?=\w+\.md)", "](../", detail.deviation)
        parts.append(f"**Ours differs.** {text}")
    if detail.removal:
        without = price(f"without {detail.label}: {detail.name}")
        parts.append(f"**Without it.** {detail.removal.instead}{without}")
    elif detail.kept:
        parts.append(f"**Not removed.** {detail.kept}")
    else:
        found = "".join(
            f" {row.partition(': ')[2].capitalize()}.{price(row)}" for row in settings(detail)
        )
        parts.append(f"**Off by default.** `{detail.added_by}` turns it on.{found}")
    return join(parts)


def section(detail: Detail) -> str:
    """Return all that the catalogue says of a detail."""
    label = detail.label
    parts = [f"## {label}: {detail.name} {{#{anchor(label)}}}", describe(detail)]
    _, line = PLACES[detail.scripts[0]][label]
    links = [f"[{s}.py](../scripts/{s}.md#{PLACES[s][label][0]})" for s in detail.scripts]
    parts.append(f"**Where.** ``{line}`` in {', '.join(links)}")
    if detail.removal:
        parts.append(f"**Tests that notice its absence.** {tests(detail.removal)}")
    if detail.variants:
        parts.append(
            "**Known variants.** Each was planted in the scripts; the tests named behind it failed."
        )
        parts.append(bullets([mistake(variant, f"{label}: ") for variant in detail.variants]))
    return join(parts)


def detail_pages() -> dict[str, str]:
    pages = {}
    for label, detail in DETAILS.items():
        path, _, _ = place(label).partition("#")
        # A search should find them before the scripts, whose annotations say the same.
        head = f"---\nsearch: {{boost: 4}}\n---\n\n# {family(label)} details"
        pages[path] = join([pages.get(path, head), section(detail)])
    faults = bullets([mistake(fault) for fault in CATALOGUE.faults])
    head = "# Mistakes that belong to no detail\n\nEach was planted in the scripts; the tests named behind it failed."
    return pages | {"details/faults.md": join([head, faults])}


def index(text: str) -> str:
    """Link the table of docs/details.md to what is said of each detail, and add the prices."""
    for label, detail in DETAILS.items():
        found = returns(f"without {label}: {detail.name}")
        if detail.added_by:
            found = [
                f"{row.partition(': ')[2]}: {', '.join(returns(row))}" for row in settings(detail)
            ]
        cell = f" {'<br>'.join(found)} |"
        row = rf"^\| {label} (\|.*)$"
        text = re.sub(row, rf"| [{label}]({place(label)}) \1{cell}", text, flags=re.MULTILINE)
    head = "official code |\n|---|---|---|"
    return text.replace(
        head, head.replace("\n", " [change of the return](price.md) without it |\n") + "---|"
    )


# -------------------------------------------------------------------------------------------------
# What MkDocs calls


def math(source: str, *_, **__) -> str:
    """Return equations as browsers draw them, one below the other."""
    equations = [convert(equation, display="block") for equation in source.split(r", \qquad")]
    return f'<div class="math">{"".join(equations)}</div>'


def on_config(config):
    fence = {"name": "math", "class": "math", "format": math}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    config.nav[1:1] = [
        {"Scripts": [f"scripts/{script}.md" for script in SCRIPTS]},
        {"Diffs": [f"diffs/{new}.md" for _, new in DIFFS]},
        {"Details": ["details.md", "price.md", *detail_pages()]},
    ]


def on_files(files, config):
    linked = {"details/pages.css", *(f"{script}.py" for script in SCRIPTS)}
    pages = {
        page: relink(read(source), posixpath.dirname(source), linked)
        for source, page in DOCUMENTS.items()
    }
    pages["index.md"] = home(pages["index.md"])
    pages["details.md"] = index(pages["details.md"])
    pages["results.md"] = f"---\nhide: [toc]\n---\n\n{pages['results.md']}"  # its tables are wide
    pages |= detail_pages()
    pages |= {f"scripts/{script}.md": script_page(script) for script in SCRIPTS}
    pages |= {f"diffs/{new}.md": diff_page(old, new) for old, new in DIFFS}
    for path, text in pages.items():
        if path in files.src_uris:
            files.remove(files.src_uris[path])
        files.append(File.generated(config, path, content=text))
    for path in linked:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
