"""Every kind of page, on models of real size, as a person has it: in Chromium, at the width of a
desk and of a phone, in light and dark, with a pointer and with a keyboard."""

import re

import pytest

from tests.browser.answers import NAMES, answers
from tests.browser.chromium import chromium, path_of_chromium

pytest.importorskip("playwright", reason="needs playwright, of the extra [test]")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="of the extra [test]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        path_of_chromium() is None, reason="needs Chromium, such as Debian's package chromium"
    ),
]

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
OF_DEEPSEEK = ("inspect", "strategy", "to-ms", "edit", "stats", "compare")
PAGES = [("mixtral", name) for name in NAMES] + [("deepseek", name) for name in OF_DEEPSEEK]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return answers(tmp_path_factory.mktemp("answers"))


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


class Opened:
    """A page in the browser, and what its console said."""

    def __init__(self, browser, path, viewport, scheme):
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page, self.said = self.context.new_page(), []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.said.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    @property
    def tip(self):
        return self.page.locator("#tip").inner_text()

    def interactive(self):
        """Milliseconds until a person can use it."""
        timing = "performance.getEntriesByType('navigation')[0].domInteractive"
        return round(self.page.evaluate(timing))

    def findings(self):
        """What axe calls serious or critical."""
        found = axe.Axe().run(self.page).response["violations"]
        return [
            (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]


@pytest.mark.parametrize(("model", "name"), PAGES)
def test_a_page_can_be_read_and_used(made, browser, record_property, model, name):
    if name.startswith("verify"):
        pytest.importorskip("torch", reason="verify needs torch")
        pytest.importorskip("mindspore", reason="verify needs mindspore")
    path = made[model].page(name)
    record_property("page", f"{model} {name}")
    record_property("bytes", path.stat().st_size)
    assert path.stat().st_size < 2_000_000
    with Opened(browser, path, DESK, "light") as opened:
        record_property("interactive", opened.interactive())
        keyboard(opened)
        hover(opened)
        search(opened)
        assert opened.findings() == []
        assert opened.said == [path.as_uri()]
    with Opened(browser, path, PHONE, "dark") as opened:
        width = opened.page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"]
        assert cut_off(opened.page) == []
        assert opened.findings() == []
        assert opened.said == [path.as_uri()]


def cut_off(page):
    """Texts of cells that reach beyond the window of a phone."""
    return page.evaluate(
        """() => [...document.querySelectorAll("th, td:not(.strip), dd, li, p")]
            .filter((one) => one.getClientRects().length && !one.closest("thead, .tree"))
            .filter((one) => one.getBoundingClientRect().right > window.innerWidth + 1)
            .map((one) => one.textContent).slice(0, 3)"""
    )


def keyboard(opened):
    """The first stop of the tab key is the link to the result; a strip is read by arrows."""
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    strips = page.locator("[data-strips] svg")
    if not strips.count():
        return
    strips.first.focus()
    first = opened.tip
    page.keyboard.press("End")
    last = opened.tip
    assert first and last and first != last
    page.keyboard.press("Home")
    assert opened.tip == first
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def hover(opened):
    """What is under the pointer is said."""
    for selector in ("[data-strips] svg", ".tree li", ".chart circle"):
        if (found := opened.page.locator(selector)).count():
            found.first.hover()
            assert len(opened.tip) > 8, selector


def search(opened):
    """A name finds its row, nonsense none, and nothing all."""
    for field in opened.page.locator("input.search").all():
        searched = "xpath=ancestor::*[self::section or @class='searched'][1]"
        section = field.locator(searched)
        rows = section.locator("tbody tr")
        every = rows.count()
        name = re.sub(r" ×\d.*", "", rows.last.locator("th").text_content())
        first = re.sub(r"\{(\d+)[^}]*\}", r"\1", name)  # the first of its kind, by its whole name
        for said in (name, first):
            field.fill(said)
            assert rows.last.is_visible()
        other = re.sub(r"\{(\d+)[^}]*\}", "99999", name)  # of a layer that there isn't
        if other != name:
            field.fill(other)
            assert not rows.last.is_visible()
        field.fill("nothing is called so")
        assert section.locator("tbody tr:visible").count() == 0
        field.fill("")
        assert section.locator("tbody tr:visible").count() == every
