"""The screenshots of docs/pages.md, anew: `python -m tests.browser.screenshots [NAME…]`. Needs the
extras [test,torch,mindspore] and Chromium."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.browser.answers import answers
from tests.browser.chromium import chromium

DOCS = Path(__file__).parents[2] / "docs"
# the picture → whose answer, the page, the section that is at the top, width, height, the scheme
SHOTS = {
    "page-inspect": ("deepseek", "strategy", "The model, by rank", 1280, 640, "light"),
    "page-reshard": ("mixtral", "reshard", "From and to", 1280, 960, "light"),
    "page-compare": ("mixtral", "compare", None, 1280, 950, "light"),
    "page-stats": ("mixtral", "stats", "Histograms by kind", 1280, 850, "dark"),
    "page-verify": ("mixtral", "verify", "Error by layer", 1280, 1000, "light"),
    "page-phone": ("mixtral", "to-ms", "What is written, by rank", 390, 844, "dark"),
}
MOST = 150_000  # bytes of a picture


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ckptforge-pages-") as work, chromium() as browser:
        made = answers(Path(work))
        for name in sys.argv[1:] or SHOTS:
            model, page, heading, width, height, scheme = SHOTS[name]
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            shown = context.new_page()
            shown.goto(made[model].page(page).as_uri())
            title = made[model].work.name  # for a directory that is gone
            shown.evaluate(
                "text => { document.querySelector('header p').textContent = text; }", title
            )
            if heading is not None:
                found = shown.locator("h2, h3", has_text=heading).first
                found.evaluate("one => one.scrollIntoView()")
            path = DOCS / f"{name}.png"
            shown.screenshot(path=path)
            assert path.stat().st_size <= MOST, f"{path}: {path.stat().st_size:,} bytes"
            context.close()


if __name__ == "__main__":
    main()
