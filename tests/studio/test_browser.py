"""The studio in a real browser: pictures dropped, a morph made and scrubbed through, the server killed on the way."""

import io
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.project import DOTS, HEIGHT, WIDTH, make_clone, paint, tiny_params
from tests.studio.browser import Context, check_keys, drop, expect, job_of, order, sync_api, tab
from tests.studio.conftest import until
from tests.studio.served import Served
from tests.warm import warm_morphline

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
PATIENCE = 900  # seconds: pages answer at once, jobs take as long as the machine does
CAPTIONS = {"hill.png": "a red hill", "lake.png": "a blue lake", "meadow.png": "a hill & a <lake>"}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=f"needs Chromium: none of {', '.join(NAMES)} is in PATH"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path], database: str) -> Iterator[Served]:
    """The studio over a clone of this repository with a tiny base, in which nothing is made yet."""
    place = tmp_path_factory.mktemp("studio")
    values = {
        "morph.without_adapters": "false", "tracking.uri": database, "tracking.required": "false",
        "machine.checkpoint_every": 20,
    }  # fmt: skip
    sets = "  dots: {adapter: set, prepare: {}, train: {steps: 4}, sample: {captions: 1}}\n"
    morphs = "  dots: {set: dots, style: none, keyframes: [d3.png, d1.png], morph: {frames: 4}}\n"
    params = tiny_params(values, sets=sets, morphs=morphs)
    make_clone(place / "project", tiny_folders["epsilon"], params, {"dots": DOTS})
    subprocess.run(["git", "init", "-q", place / "project"], check=True)
    with warm_morphline(place / "warm", hash_seed=1) as warm:
        studio = Served(place / "project", warm, place)
        studio.start()
        yield studio
        studio.stop()
    shutil.rmtree(place / "project")


@pytest.fixture(scope="module")
def context(served: Served) -> Iterator[Context]:
    """The browser, patient with a busy machine. At its end, no script of the studio's may have had an error."""
    expect.set_options(timeout=1000 * PATIENCE)
    errors = list[str]()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        context = browser.new_context(viewport={"width": 1100, "height": 900}, accept_downloads=True)
        context.set_default_timeout(1000 * PATIENCE)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        yield context
        browser.close()
    assert not errors


def test_a_film_of_three_pictures_by_a_server_that_is_killed_on_the_way(
    served: Served, context: Context, tmp_path: Path
) -> None:
    for number, name in enumerate(CAPTIONS):
        paint(tmp_path / name, 20 + number, (120, 90))
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    page = tab(context, served.address)
    page.locator("#nav-new").click()
    page.wait_for_url("**/new/*")
    draft = page.url

    # Dropped, and the one that is no picture refused beside the others.
    drop(page, [tmp_path / name for name in ("meadow.png", "drawing.svg", "hill.png", "lake.png")])
    expect(page.locator(".picture")).to_have_count(3)
    expect(page.locator("#uploads .problem")).to_contain_text("drawing.svg")
    assert order(page) == ["meadow.png", "hill.png", "lake.png"]

    # Put in order by the keyboard, then by the mouse.
    page.get_by_role("button", name="Picture 1 later").focus()
    page.keyboard.press("Enter")
    assert order(page) == ["hill.png", "meadow.png", "lake.png"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Picture 2 later"
    corner = {"x": 4, "y": 4}
    last, middle = page.locator(".picture").nth(2), page.locator(".picture").nth(1)
    last.drag_to(middle, source_position=corner, target_position=corner)
    assert order(page) == list(CAPTIONS)

    # A caption each; the crop moved by keys and by a click; all of it still there when the page is opened anew.
    for number, caption in enumerate(CAPTIONS.values()):
        page.get_by_label(f"Caption of picture {number + 1}").fill(caption)
    page.get_by_label("Crop of picture 1").press("ArrowLeft")
    page.locator(".crop").nth(1).click(position={"x": 2, "y": 30})
    page.get_by_label("Name", exact=True).fill("Three painted")
    page.get_by_label("Frames from one picture to the next").fill("5")
    page.get_by_text("Advanced").click()
    page.locator("[data-setting='train.steps']").fill("0")
    expect(page.locator("#saved")).to_have_text("Saved as a draft.")
    until(lambda: json.loads(next(served.project.glob(".work/studio/drafts/*/form.json")).read_text())["settings"])
    page.reload()
    assert order(page) == list(CAPTIONS)
    values = page.locator(".caption").evaluate_all("fields => fields.map(field => field.value)")
    assert values == list(CAPTIONS.values())
    assert page.locator(".picture").nth(0).get_attribute("data-focus") == "[0.48,0.5]"
    assert json.loads(page.locator(".picture").nth(1).get_attribute("data-focus"))[0] < 0.05

    check_keys(page)

    # What is wrong stands beside its field.
    page.locator("#make").click()
    expect(page.locator(".problem[data-for='train.steps']")).to_contain_text("1")
    page.locator("[data-setting='train.steps']").fill("40")
    page.locator("#make").click()
    key = job_of(page)
    expect(page.locator("#previews img").first).to_be_visible()
    assert not served.progress(key).stage.startswith(("morph@", "evaluate@")), "a look that comes with the film is late"

    # Killed, the server's job runs on; the next server takes it over, and trains nothing twice.
    expect(page.locator("#stages [aria-current]")).to_have_text("train@three-painted")
    expect(page.locator("#now")).to_contain_text(re.compile(r"\d+ of 40"))
    first = served.processes(key)[0]
    served.kill()
    step = served.progress(key).step
    expect(page.locator("#lost")).to_contain_text("does not answer")
    until(lambda: served.progress(key).step > step or not served.progress(key).stage.startswith("train@"), PATIENCE)
    assert first.is_running()
    served.start()
    expect(page.locator("#lost")).to_contain_text("open the address that it printed")
    page.goto(served.address)
    page.goto(f"{served.origin}/jobs/{key}")
    expect(page.locator("#status")).to_have_attribute("data-status", "done")
    # How it ended, no server saw: the same command again, which found the training done.
    assert "Running stage 'train@three-painted'" not in served.log(key).read_text()

    check_keys(page)

    # Scrubbed by keys: nine frames, of which one is seen at a time.
    page.get_by_role("link", name="See the morph").click()
    check_keys(page)
    slider, shown = page.locator("#scrubber input"), page.locator("#scrubber .stack").first.locator("img:visible")
    for press, frame in (("Home", 0), ("ArrowRight", 1), ("End", 8)):
        slider.press(press)
        expect(shown).to_have_count(1)
        expect(shown).to_have_attribute("src", re.compile(rf"/frames/{frame}\.webp"))
        until(lambda: shown.evaluate("picture => picture.complete && picture.naturalWidth") == 64)
    assert slider.get_attribute("aria-valuetext").endswith(CAPTIONS["meadow.png"])

    # Downloaded and decoded.
    folder = served.project / "data/morphs/three-painted"
    with page.expect_download() as download:
        page.locator("#download-mp4").click()
    assert download.value.suggested_filename == "three-painted.mp4"
    with av.open(str(download.value.path())) as clip:
        decoded = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    larger = decoded[0].shape[0] // HEIGHT  # clips of small frames are magnified
    assert len(decoded) >= 9 and decoded[0].shape == (HEIGHT * larger, WIDTH * larger, 3)
    start = np.asarray(Image.open(folder / "frames/0000.png").convert("RGB"), dtype=float)
    start = start.repeat(larger, axis=0).repeat(larger, axis=1)
    assert np.abs(decoded[0] - start).mean() < np.abs(decoded[-1] - start).mean()
    with page.expect_download() as download:
        page.locator("#download-gif").click()
    with Image.open(download.value.path()) as gif:
        assert gif.format == "GIF" and gif.n_frames >= 9
    with page.expect_download() as download:
        page.locator("#download-frames").click()
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as frames:
        assert len(frames.namelist()) == 9
        assert frames.read("three-painted/0000.png") == (folder / "frames/0000.png").read_bytes()
    assert draft.rpartition("/")[2] == served.job(key)["draft"]

    # To the run in MLflow, and from its description back.
    page.goto(f"{served.origin}/runs/train/three-painted")
    assert not page.url.startswith(served.origin) and "/runs/" in page.url
    with context.expect_page() as opened:
        page.get_by_role("link", name=f"{served.origin}/sets/three-painted").click()
    expect(opened.value.locator("h1")).to_contain_text("three-painted")
    opened.value.close()
    page.close()


def test_pictures_chosen_before_the_script_of_a_page_has_come_are_taken(
    served: Served, context: Context, tmp_path: Path
) -> None:
    page = tab(context, served.address)
    held, chosen = list[sync_api.Route](), list[bool]()
    page.route("**/static/new.js", lambda route: route.continue_() if chosen else held.append(route))
    page.goto(f"{served.origin}/new", wait_until="commit")
    paint(tmp_path / "early.png", 40)
    page.locator("#files").set_input_files([tmp_path / "early.png"])
    chosen.append(True)  # a request that comes after this goes through
    for route in held:
        route.continue_()
    expect(page.locator(".picture")).to_have_count(1)
    assert order(page) == ["early.png"]
    page.close()


def test_a_style_is_laid_over_a_set(served: Served, context: Context) -> None:
    page = tab(context, served.address)
    page.goto(f"{served.origin}/style")
    page.locator("#style").select_option("dots")
    page.locator("#over").select_option("dots")
    page.locator("#strength").fill("0.5")
    page.locator("#make").click()
    key = job_of(page)
    expect(page.locator("#status")).to_have_attribute("data-status", "done")
    page.get_by_role("link", name="See the edit").click()
    pictures = page.locator("main img")
    expect(pictures.first).to_be_visible()
    until(lambda: all(pictures.evaluate_all("all => all.map(one => one.complete && one.naturalWidth > 0)")))
    assert (served.project / "data/edits" / served.job(key)["key"] / "edit.json").is_file()
    page.close()


def test_a_job_cancelled_in_one_tab_is_so_in_the_other_and_leaves_nothing_half_made(
    served: Served, context: Context, tmp_path: Path
) -> None:
    page = tab(context, served.address)
    page.locator("#nav-new").click()
    for number, name in enumerate(("one.png", "two.png")):
        paint(tmp_path / name, 30 + number)
    page.locator("#files").set_input_files([tmp_path / "one.png", tmp_path / "two.png"])
    expect(page.locator(".picture")).to_have_count(2)
    page.get_by_text("Advanced").click()
    page.locator("[data-setting='train.steps']").fill("100000")
    page.locator("#make").click()
    key = job_of(page)
    other, gallery = tab(context, page.url), tab(context, f"{served.origin}/")
    served.wait_for_training(key, PATIENCE)
    for one in (page, other):
        expect(one.locator("#now")).to_contain_text(re.compile(r"\d+ of 100000"))
    expect(gallery.locator(f"[data-job='{key}']")).to_contain_text("train@one-two")
    at_work = served.processes(key)
    assert len(at_work) > 2, "the command, DVC and the training"

    other.get_by_role("button", name="Cancel").click()
    for one in (page, other):
        expect(one.locator("#status")).to_have_attribute("data-status", "cancelled")
        expect(one.get_by_role("button", name="Try again")).to_be_visible()
    expect(gallery.locator(f"[data-job='{key}']")).to_have_count(0)
    expect(gallery.locator("#morph-one-two")).to_contain_text("not made yet")
    until(lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in at_work))
    made = [path.relative_to(served.project).as_posix() for path in served.project.rglob("*one-two*")]
    assert sorted(path for path in made if not path.startswith((".work/", ".dvc/", "mlartifacts/"))) == [
        "data/prepared/one-two",
        "data/raw/one-two",
    ]
    assert not list(served.project.rglob("*.partial")) and not (served.log(key).parent / "clip.mp4").exists()
    for one in (page, other, gallery):
        one.close()


@pytest.mark.parametrize("path", ["/", "/style", "/jobs", "/morphs/dots"])
def test_keys_reach_everything_on_the_other_pages(served: Served, context: Context, path: str) -> None:
    page = tab(context, served.address)
    page.goto(f"{served.origin}{path}")
    check_keys(page)
    page.close()
