"""What the tests of the studio in a browser do with its pages."""

import re
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
expect, Page, Context = sync_api.expect, sync_api.Page, sync_api.BrowserContext


def tab(context: Context, address: str) -> Page:
    page = context.new_page()
    page.goto(address)
    return page


def drop(page: Page, paths: list[Path]) -> None:
    """Drop files on the page, as from a folder's window."""
    files = [[path.name, list(path.read_bytes())] for path in paths]
    carried = page.evaluate_handle(
        """files => {
            const carried = new DataTransfer();
            for (const [name, bytes] of files) carried.items.add(new File([new Uint8Array(bytes)], name));
            return carried;
        }""",
        files,
    )
    page.locator("#drop").dispatch_event("dragover", {"dataTransfer": carried})
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": carried})


def order(page: Page) -> list[str]:
    return page.locator(".picture").evaluate_all("items => items.map(item => item.dataset.name)")


def job_of(page: Page) -> str:
    page.wait_for_url("**/jobs/*")
    return page.url.rpartition("/")[2]


def check_keys(page: Page) -> None:
    """The Tab key alone reaches every control of a page, each is outlined then, and none lacks a name."""
    nameless = r"(?m)^\s*- (?:button|link|textbox|combobox|checkbox|slider)(?: \[[^\]]*\])*:?$"
    assert not re.findall(nameless, page.locator("body").aria_snapshot())
    everything = page.evaluate(
        """() => [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
            .filter(one => one.checkVisibility() && !one.disabled)
            .map((one, index) => one.dataset.reached = String(index))"""
    )
    page.locator("#main").focus()
    outlines = {}
    for _ in range(2 * len(everything)):
        page.keyboard.press("Tab")
        found, outline = page.evaluate(
            """() => {
                const one = document.activeElement, box = one.closest(".drop:has(input:focus)") ?? one;
                return [one.dataset.reached ?? "", getComputedStyle(box).outlineStyle];
            }"""
        )
        outlines[found] = outline
        if len(outlines.keys() - {""}) == len(everything):
            break
    assert {name: outline for name, outline in outlines.items() if name} == dict.fromkeys(everything, "solid")
