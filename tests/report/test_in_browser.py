"""The report as people open it: in a browser, at both widths, light and dark, by mouse and keys."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import FloatRect, Page, expect

from disagg_train.report.page import write_report
from tests.report.conftest import WIDTHS, OpenPage
from tests.report.runs import job_of, write_run

pytestmark = pytest.mark.slow

_LONGEST_MS = 3000
_MOST_OPENINGS = 3  # machines are shared; the quickest opening counts

AT_WORK = """(which) => {
  const [step] = JSON.parse(document.querySelector("#data").textContent).steps;
  const busy = step.ranks.map((times) => times[0] + times[1] + times[2] + times[3]);
  return step.rows[busy.indexOf(Math[which](...busy))];
}"""
"""The rank of the first step that is at work longest (`max`) or shortest (`min`)."""

STYLED = """(name) => {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
  probe.remove();
  return found;
}"""
"""A colour of the style sheet, as red, green and blue."""


def _drawn(page: Page, name: str) -> int:
    """Return how many pixels of the timeline have a colour of the style sheet."""
    image = Image.open(BytesIO(page.locator("#rows").screenshot())).convert("RGB")
    return int((np.asarray(image) == page.evaluate(STYLED, name)).all(axis=2).sum())


def _view(page: Page) -> tuple[int, int]:
    """Return the part of the step that the timeline shows, in microseconds, once it is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    box = page.locator("#rows")
    begin, end = box.get_attribute("data-from"), box.get_attribute("data-to")
    assert begin is not None and end is not None
    return int(begin), int(end)


def _place(page: Page) -> FloatRect:
    """Return where the timeline is in the window, after scrolling to it."""
    box = page.locator("#rows")
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    assert place is not None
    return place


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole_at_every_width_and_in_both_schemes(
    opened: OpenPage, width: str, scheme: str
) -> None:
    page = opened(width, scheme)
    room = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(room), "the page is wider than the window"
    image = Image.open(BytesIO(page.screenshot(full_page=True)))
    assert image.width == WIDTHS[width]
    darkness = sum(image.convert("L").resize((1, 1)).tobytes())
    assert darkness < 90 if scheme == "dark" else darkness > 190
    for name in ("forward", "forward-alt", "backward", "boundary", "sync", "idle"):
        assert _drawn(page, name) > 20, f"the timeline has nothing in {name}"
    found = Axe().run(page).response
    assert len(found["passes"]) > 20
    faults = [
        (fault["id"], fault["impact"], [node["html"] for node in fault["nodes"]])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert faults == []


def test_a_run_without_recorded_steps_has_a_sound_page(opened: OpenPage, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", job_of(tmp_path / "run", steps=8))
    for name in ("trace.json", "plans.jsonl", "metrics.jsonl"):
        (run / name).unlink()
        page = opened(path=write_report(run, tmp_path / f"{name}.html"))
        expect(page.locator("#timeline")).to_contain_text("No step was recorded")
        expect(page.locator("#theme")).to_have_text("Dark colours")


def test_keys_zoom_move_and_show_the_whole_step(opened: OpenPage) -> None:
    page = opened()
    begin, end = _view(page)
    page.locator("#rows").focus()
    page.keyboard.press("+")
    closer = _view(page)
    assert begin < closer[0] < closer[1] < end
    page.keyboard.press("d")
    later = _view(page)
    assert later[0] > closer[0]
    assert later[1] - later[0] == pytest.approx(closer[1] - closer[0], abs=2)
    page.keyboard.press("0")
    assert _view(page) == (begin, end)


def test_buttons_zoom_and_move(opened: OpenPage) -> None:
    page = opened("phone")
    begin, end = _view(page)
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Earlier").click()
    closer = _view(page)
    assert closer[1] - closer[0] == pytest.approx((end - begin) / 1.5, rel=0.01)
    assert closer[0] < (end - begin) / 6
    page.get_by_role("button", name="Whole step").click()
    assert _view(page) == (begin, end)


def test_the_wheel_zooms_where_the_mouse_is_and_a_drag_moves(opened: OpenPage) -> None:
    page = opened()
    begin, end = _view(page)
    box = page.locator("#rows")
    place = _place(page)
    middle = place["y"] + place["height"] / 2
    page.mouse.move(place["x"] + place["width"] - 20, middle)
    page.mouse.wheel(0, -200)
    assert _view(page) == (begin, end), "a page that is scrolled by must not zoom"
    box.focus()
    place = _place(page)
    middle = place["y"] + place["height"] / 2
    page.mouse.move(place["x"] + place["width"] - 20, middle)
    page.mouse.wheel(0, -200)
    box.focus()
    page.wait_for_function("Number(document.querySelector('#rows').dataset.from) > 0")
    closer = _view(page)
    assert closer[0] - begin > 5 * (end - closer[1])
    page.mouse.move(place["x"] + 300, middle)
    page.mouse.down()
    page.mouse.move(place["x"] + 400, middle, steps=4)
    page.mouse.up()
    earlier = _view(page)
    assert earlier[0] < closer[0]
    assert earlier[1] - earlier[0] == pytest.approx(closer[1] - closer[0], abs=2)


def test_a_drag_along_the_ruler_zooms_to_the_stretch(opened: OpenPage) -> None:
    page = opened()
    begin, end = _view(page)
    place = _place(page)
    page.mouse.move(place["x"] + 400, place["y"] + 10)
    page.mouse.down()
    page.mouse.move(place["x"] + 600, place["y"] + 10, steps=4)
    page.mouse.up()
    closer = _view(page)
    assert begin < closer[0] < closer[1] < end
    assert closer[1] - closer[0] == pytest.approx(
        200 / (place["width"] - 150) * (end - begin), rel=0.03
    )


def test_kinds_and_modules_can_be_hidden(opened: OpenPage) -> None:
    page = opened()
    shown = _drawn(page, "forward"), _drawn(page, "backward-alt")
    assert min(shown) > 0
    page.get_by_role("button", name="forward (LLM, encoder)").click()
    _view(page)
    assert _drawn(page, "forward") == 0
    assert _drawn(page, "backward-alt") > 0
    page.get_by_role("button", name="vision", exact=True).press("Enter")
    _view(page)
    assert _drawn(page, "backward-alt") == 0
    assert _drawn(page, "backward") > 0


def test_ranks_can_be_chosen_and_sorted(opened: OpenPage) -> None:
    page = opened()
    box = page.locator("#rows")
    expect(box).to_have_attribute("data-rows", "6")
    page.get_by_label("Ranks", exact=True).fill("encoders, language/3")
    expect(box).to_have_attribute("data-rows", "3")
    page.get_by_label("Ranks", exact=True).fill("nobody")
    expect(box).to_have_attribute("data-rows", "0")
    page.get_by_label("Ranks", exact=True).fill("")
    expect(box).to_have_attribute("data-first", "encoders/0")
    page.get_by_label("Order").select_option("busiest first")
    expect(box).to_have_attribute("data-first", page.evaluate(AT_WORK, "max"))
    page.get_by_label("Order").select_option("most idle first")
    expect(box).to_have_attribute("data-first", page.evaluate(AT_WORK, "min"))
    assert page.evaluate(AT_WORK, "max") != page.evaluate(AT_WORK, "min")


def test_arrow_keys_tell_each_op_with_its_wait(opened: OpenPage) -> None:
    page = opened()
    page.locator("#rows").focus()
    said = page.locator("#selected")
    page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("start step on encoders/0")
    page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("forward vision 0 on encoders/0")
    page.keyboard.press("ArrowRight")
    expect(said).to_have_text(re.compile(r"^send_forward .* on encoders/0: [1-9][\d,]* tokens, "))
    page.keyboard.press("ArrowDown")
    expect(said).to_contain_text("on encoders/1")
    page.keyboard.press("Escape")
    expect(page.locator("#rows")).not_to_be_focused()


def test_a_long_wait_leads_to_its_place_in_the_timeline(opened: OpenPage) -> None:
    page = opened()
    before = _view(page)
    page.locator("#waits button").first.click()
    after = _view(page)
    assert after[1] - after[0] < before[1] - before[0]
    expect(page.locator("#selected")).to_contain_text("waited for")


def test_every_control_is_reached_by_the_tab_key_and_shows_its_focus(opened: OpenPage) -> None:
    page = opened()
    reached = set()
    look = "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        name, outline = page.evaluate(look)
        assert outline != "none", f"{name} does not show that it is in focus"
        reached.add(name)
    wanted = {"theme", "step", "next", "zoom-in", "fit", "rank-filter", "order", "rows"}
    assert wanted <= reached


def test_another_step_can_be_chosen(opened: OpenPage) -> None:
    page = opened()
    expect(page.locator("#sentence")).to_contain_text("Step 1 took")
    page.get_by_role("button", name="Next step").click()
    expect(page.locator("#sentence")).to_contain_text("Step 2 took")
    page.get_by_label("Step", exact=True).select_option(index=2)
    expect(page.locator("#sentence")).to_contain_text("Step 3 took")
    expect(page.get_by_role("button", name="Next step")).to_be_disabled()


def test_the_colours_can_be_switched_and_stay_so(opened: OpenPage) -> None:
    page = opened()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark colours").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    assert _drawn(page, "forward") > 20


def test_curves_tell_their_values_by_keys(opened: OpenPage) -> None:
    page = opened()
    curve = page.get_by_role("slider", name="Loss, step")
    curve.focus()
    page.keyboard.press("Home")
    expect(curve).to_have_attribute("aria-valuetext", "step 0: training 5")
    page.keyboard.press("ArrowRight")
    expect(curve).to_have_attribute("aria-valuetext", "step 1: training 3.5")


def test_a_run_of_64_ranks_and_50_steps_opens_in_under_3_s(
    opened: OpenPage, tmp_path: Path
) -> None:
    train = {"global_batch": 128, "microbatches": 8, "trace_steps": 50, "balance": "none"}
    job = job_of(tmp_path / "run", 32, {"pp": 4, "dp": 4}, **train)
    path = write_report(write_run(tmp_path / "run", job, traced=50))
    assert job.num_ranks == 64
    page = opened(path=path)
    assert page.locator("#step option").count() == 50
    drawn_ms = []
    while min(drawn_ms, default=_LONGEST_MS) >= _LONGEST_MS and len(drawn_ms) < _MOST_OPENINGS:
        page.reload()
        page.wait_for_function("performance.getEntriesByName('drawn').length")
        drawn_ms.append(page.evaluate("performance.getEntriesByName('drawn')[0].startTime"))
    assert min(drawn_ms) < _LONGEST_MS, drawn_ms
    assert _drawn(page, "forward-alt") > 1000
