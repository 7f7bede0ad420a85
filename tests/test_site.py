"""The site: it builds without a warning, and a browser shows all that it should."""

import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest
from conftest import ALL_SCRIPTS

pytest.importorskip("material", reason="requirements-docs.txt is not installed")
api = pytest.importorskip("playwright.sync_api", reason="requirements-docs.txt is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
PHONE = {"width": 390, "height": 844}
LABEL = r"(?:Core|Atari|Continuous|LSTM|MultiDiscrete|Aux) \d+"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; return its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def url(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page(url):
    """Open a page of the browser, on a phone; in the end, nothing was wrong and nothing from elsewhere."""
    problems = []
    foreign = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        permissions = ["clipboard-read", "clipboard-write"]
        page = browser.new_page(viewport=PHONE, reduced_motion="reduce", permissions=permissions)
        page.on("request", lambda request: foreign.append(request.url))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        yield page
        browser.close()
    assert [problem for problem in problems if problem.startswith("error")] == []
    assert [address for address in foreign if not address.startswith(url)] == []


def visit(page, address: str) -> None:
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], address


def addresses(site: Path) -> list[str]:
    paths = sorted(path.parent.relative_to(site).as_posix() for path in site.rglob("index.html"))
    return ["" if path == "." else f"{path}/" for path in paths]


def labels_of(script: str) -> list[str]:
    """Return the labels in a script, in their order."""
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    return re.findall(rf"{LABEL}(?=(?:, {LABEL})*:)", source)


def test_its_requirements_are_pinned_as_they_are_installed_here():
    lines = (ROOT / "requirements-docs.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("-c "))
    assert {name: version(name) for name in pins} == pins


def test_no_page_is_wider_than_a_phone(site, url, page):
    for address in addresses(site):
        if not address.startswith("scripts/"):  # those are visited below
            visit(page, url + address)


def test_every_link_within_the_site_leads_somewhere(site):
    pages = {address: (site / address / "index.html").read_text() for address in addresses(site)}
    names = {
        address: set(re.findall(r'\b(?:id|name)="([^"]+)"', text))
        for address, text in pages.items()
    }
    links = 0
    for address, text in pages.items():
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            target, fragment = urldefrag(urljoin(f"http://site/{address}", link))
            if target.startswith("http://site/"):
                target = target.removeprefix("http://site/")
                assert (site / target).exists(), f"{address}: {link}"
                assert fragment in ("", *names.get(target, ())), f"{address}: {link}"
                links += 1
    assert links > 1000


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_each_label_of_a_script_has_its_annotation(script, site, url, page):
    labels = labels_of(script)
    text = (site / "scripts" / script / "index.html").read_text(encoding="utf-8")
    assert re.findall(rf"<li>\s*<p><strong><a [^>]*>({LABEL})</a>", text) == labels
    visit(page, f"{url}scripts/{script}/")
    page.locator(".md-annotation").nth(len(labels) - 1).wait_for(state="attached")
    before = page.locator(".md-annotation").evaluate_all(
        "notes => notes.map(note => note.previousSibling.textContent)"
    )
    assert [re.findall(LABEL, words)[-1] for words in before] == labels


def test_an_annotation_opens_with_reason_equation_official_line_and_tests(url, page):
    visit(page, f"{url}scripts/ppo/")
    note = page.locator(".md-annotation").nth(labels_of("ppo").index("Core 7"))
    note.locator(".md-annotation__index").click()
    tooltip = note.locator(".md-tooltip")
    tooltip.locator("math").wait_for(state="visible")
    text = tooltip.inner_text()
    assert "Advantage normalisation, in each minibatch" in text
    assert "test_" in text
    assert tooltip.get_by_role("link", name="ppo2/model.py L139").is_visible()


def test_the_copy_button_copies_the_script_without_its_annotations(url, page):
    visit(page, f"{url}scripts/ppo/")
    page.locator("#advantages-and-loss ~ .highlight button").first.click()
    page.get_by_text("Copied to clipboard").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    assert "# Core 7: per minibatch" in text
    assert text in (ROOT / "ppo.py").read_text(encoding="utf-8")


PRICE = """
| CartPole-v1 | change of the final return (95 % interval) | change of the area under the curve | seeds |
| --- | --- | --- | --- |
| without Core 7: Advantage normalisation, in each minibatch | -0.12 (-0.20 to -0.05) | -0.10 | 10 |
| Core 7: the advantages are normalised over the whole batch | +0.01 (-0.02 to +0.04) | +0.00 | 10 |
| Aux 3: early stopping at 0.01 | +0.03 (-0.01 to +0.07) | +0.02 | 10 |

| Acrobot-v1 | change of the final return (95 % interval) | change of the area under the curve | seeds |
| --- | --- | --- | --- |
| without Core 7: Advantage normalisation, in each minibatch | -0.22 (-0.30 to -0.15) | -0.20 | 10 |
"""


def test_prices_stand_with_their_details(monkeypatch):
    import pages

    monkeypatch.setattr(pages, "PRICES", pages.read_prices(PRICE))
    core_7 = pages.DETAILS["Core 7"]
    both = "CartPole-v1 -0.12 (-0.20 to -0.05), Acrobot-v1 -0.22 (-0.30 to -0.15)"
    assert both in pages.describe(core_7)
    assert "whole batch" not in pages.describe(core_7)
    (batch_wide,) = [x for x in core_7.variants if x.name.endswith("over the whole batch")]
    assert "CartPole-v1 +0.01 (-0.02 to +0.04)" in pages.mistake(batch_wide, "Core 7: ")
    assert "at 0.01. Change" in pages.describe(pages.DETAILS["Aux 3"])
    table = pages.index((ROOT / "docs" / "details.md").read_text(encoding="utf-8")).splitlines()
    (row,) = [line for line in table if line.startswith("| [Core 7]")]
    assert row.endswith(f"| {both.replace('), ', ')<br>')} |")
    (row,) = [line for line in table if line.startswith("| [Aux 3]")]
    assert row.endswith("| early stopping at 0.01: CartPole-v1 +0.03 (-0.01 to +0.07) |")
    assert len({line.count(" |") for line in table if line.startswith("| ")}) == 1


def test_a_search_finds_value_clipping(url, page):
    visit(page, url)
    page.locator("label[for=__search]").first.click()
    page.get_by_placeholder("Search").press_sequentially("value clipping")
    first = page.locator(".md-search-result__item").first
    first.wait_for()
    assert first.get_by_text("Core 9: Value clipping").count() == 1


def test_every_part_of_a_diff_has_two_sides(site):
    diffs = sorted(site.glob("diffs/*/index.html"))
    assert len(diffs) == len(ALL_SCRIPTS) - 1
    for path in diffs:
        text = path.read_text(encoding="utf-8")
        parts = re.findall(r'<div class="diff">(.*?)</div>\s*</div>', text, re.DOTALL)
        assert parts
        assert all(part.count('<div class="language-') == 2 for part in parts), path


def test_diffs_are_side_by_side_on_a_desktop_and_stacked_on_a_phone(url, page):
    visit(page, f"{url}diffs/ppo_atari/")
    left, right = (page.locator(".diff").first.locator(".highlight").nth(i) for i in (0, 1))
    assert left.bounding_box()["y"] < right.bounding_box()["y"]
    page.set_viewport_size({"width": 1400, "height": 900})
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    page.set_viewport_size(PHONE)


def test_the_checker_names_pages_that_exist(site):
    import pages
    from ppo_check import page

    for label in pages.DETAILS:
        folder, _, anchor = page(label).partition("#")
        assert f'id="{anchor}"' in (site / folder / "index.html").read_text(encoding="utf-8")
