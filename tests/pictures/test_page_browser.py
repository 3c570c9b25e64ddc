"""A page in a headless Chromium: what it shows is what the arrays hold, and it loads nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Read, small_case

from lowmem_brats.config import MODALITIES
from lowmem_brats.data.case import Case
from lowmem_brats.evaluate.pairs import LabelledVolume
from lowmem_brats.pictures.page import DIFFERENCE, draw_page
from lowmem_brats.pictures.page_html import Table
from lowmem_brats.pictures.preview import TISSUE_COLOURS

pytestmark = pytest.mark.browser

Made = tuple[Case, LabelledVolume, LabelledVolume]
NAMES = {2: "oedema", 4: "enhancing tumour", 1: "necrotic core", 0: "–"}
STRETCHED = np.diag([-1.0, -2, 1, 1])
WIDE, PHONE = (1400, 1000), (390, 800)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


class Viewer:
    """A page in the browser."""

    def __init__(self, driver: Any, path: Path, size: tuple[int, int] = WIDE) -> None:
        self.driver = driver
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get_log("browser")
        driver.get_log("performance")
        driver.get(path.as_uri())
        self.wait("document.getElementById('viewer').getAttribute('aria-busy') === 'false'")
        self.settle()

    def wait(self, condition: str) -> None:
        """Until a condition holds in the page."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60, 0.05).until(lambda driver: driver.execute_script(f"return {condition}"))

    def settle(self) -> None:
        """Until what was asked for is drawn."""
        script = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        self.driver.execute_async_script(script)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()
        self.settle()

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        self.settle()

    def read(self, name: str) -> str:
        """What the viewer wrote into a place of this id."""
        return str(self.run("return document.getElementById(arguments[0]).textContent", name))

    @property
    def voxel(self) -> tuple[int, ...]:
        """The voxel of the file at the crosshair."""
        return tuple(map(int, self.read("voxel").split(", ")))

    def go(self, voxel: Any) -> None:
        """To a voxel of the file, which is in LPS order."""
        first = [axis["first"] for axis in self.run("return facts.file_axes")]
        self.run("state.position = arguments[0]; redraw()", (np.asarray(voxel) - first).tolist())
        self.settle()

    def pixel(self, plane: int) -> list[int]:
        """Red, green and blue in the middle of the crosshair's voxel on a plane."""
        script = """
            const plane = planes[arguments[0]], frame = frameOf(plane);
            const column = state.position[plane.across] + 0.5, row = along(plane, state.position[plane.down]) + 0.5;
            const x = frame.left + column * frame.width / plane.columns;
            const y = frame.top + row * frame.height / plane.rows;
            return [...plane.canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
        """
        return list(self.run(script, plane))


@pytest.fixture(scope="module")
def case() -> Made:
    return small_case(affine=STRETCHED)


@pytest.fixture(scope="module")
def path(case: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "small.html"
    target.write_text(draw_page(case[0], case[1], "test", reference=case[2]), encoding="utf-8")
    return target


@pytest.fixture
def viewer(chromium: Any, path: Path) -> Viewer:
    return Viewer(chromium, path)


def check_readings(viewer: Viewer, case: Made, path: Path) -> None:
    """The values and labels that are shown are those of the arrays at the voxel that is shown."""
    voxel, scales = viewer.voxel, Read(path.read_text(encoding="utf-8")).facts["images"]
    for modality, image_XYZ in zip(MODALITIES, case[0].images_CXYZ, strict=True):
        shown, true = viewer.read(f"value-{modality}"), float(image_XYZ[voxel])
        low, high = scales[modality]["low"], scales[modality]["high"]
        if shown.startswith(("≤", "≥")):
            true, shown = float(np.clip(true, low, high)), shown[2:]
        half_step = 0.5 * (high - low) / 254 + 0.5  # and rounded to a whole number
        assert float(shown) == pytest.approx(true, abs=half_step), (modality, voxel)
    assert viewer.read("label") == NAMES[int(case[1].volume.data[voxel])]
    assert viewer.read("reference") == NAMES[int(case[2].volume.data[voxel])]


def test_it_begins_at_the_largest_tumour_slices_and_shows_their_voxel(viewer: Viewer, case: Made, path: Path) -> None:
    label = case[1].volume.data != 0
    sums = [label.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    assert viewer.voxel == tuple(int(each.argmax()) for each in sums)
    check_readings(viewer, case, path)
    place = viewer.voxel * np.diag(STRETCHED)[:3]
    x, y, z = (f"{abs(mm):.1f}" for mm in place)
    assert viewer.read("position") == f"L {x} · P {y} · S {z} mm"


def test_arrow_keys_wheel_and_bar_scroll(viewer: Viewer, case: Made, path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys

    x, y, z = viewer.voxel
    viewer.press(Keys.ARROW_UP, Keys.ARROW_UP)
    assert viewer.voxel == (x, y, z + 2)
    check_readings(viewer, case, path)
    viewer.press(Keys.ARROW_DOWN)
    assert viewer.voxel == (x, y, z + 1)
    origin = ScrollOrigin.from_element(viewer.find("#sagittal .picture"))
    ActionChains(viewer.driver).scroll_from_origin(origin, 0, -100).perform()
    viewer.settle()
    assert viewer.voxel == (x + 1, y, z + 1)
    viewer.press(Keys.PAGE_DOWN, Keys.PAGE_DOWN, Keys.PAGE_DOWN)  # of the plane that was last used, to its end
    first = viewer.run("return facts.file_axes[0].first")
    assert viewer.voxel == (first, y, z + 1)
    viewer.find("#coronal input").send_keys(Keys.ARROW_RIGHT)
    viewer.settle()
    assert viewer.voxel == (first, y + 1, z + 1)
    check_readings(viewer, case, path)


def test_a_click_moves_the_crosshair_in_all_planes(viewer: Viewer, case: Made, path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    for plane, shares in ((0, (0.3, 0.6)), (1, (0.55, 0.4)), (2, (0.62, 0.45))):
        before = viewer.run("return state.position")
        told = viewer.run(
            "const p = planes[arguments[0]]; return [p.name, p.axis, p.across, p.down, frameOf(p)]", plane
        )
        name, axis, across, down, frame = told
        canvas = viewer.find(f"#{name} .picture")
        x = frame["left"] + shares[0] * frame["width"] - canvas.size["width"] / 2
        y = frame["top"] + shares[1] * frame["height"] - canvas.size["height"] / 2
        ActionChains(viewer.driver).move_to_element_with_offset(canvas, int(x), int(y)).click().perform()
        viewer.settle()
        after, shape = viewer.run("return state.position"), viewer.run("return facts.shape")
        assert after[axis] == before[axis]
        assert abs(after[across] + 0.5 - shares[0] * shape[across]) < 1
        rows = shares[1] if down == 1 else 1 - shares[1]
        assert abs(after[down] + 0.5 - rows * shape[down]) < 1
        check_readings(viewer, case, path)


def test_modalities_by_key_and_click(viewer: Viewer) -> None:
    assert viewer.run("return state.modality") == "flair"
    windows = set()
    for key, modality in enumerate(MODALITIES, 1):
        viewer.press(str(key))
        assert viewer.run("return state.modality") == modality
        windows.add(viewer.read("window"))
    assert len(windows) == 4
    viewer.click("[data-to=t1ce]")
    pressed = viewer.run("return [...document.querySelectorAll('[aria-pressed=true]')].map((b) => b.dataset.to)")
    assert "t1ce" in pressed
    assert "flair" not in pressed


def test_greys_follow_the_window_and_a_drag_changes_it(viewer: Viewer) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    viewer.press("l", "c")  # no labels, no crosshair
    viewer.run("state.windows.flair = [0, 1]; redraw()")
    viewer.settle()
    assert viewer.pixel(0) == [255, 255, 255]
    viewer.run("state.windows.flair = [9998, 9999]; redraw()")
    viewer.settle()
    assert viewer.pixel(0) == [0, 0, 0]
    viewer.press("r")
    before, voxel = viewer.read("window"), viewer.voxel
    canvas = viewer.find("#axial .picture")
    ActionChains(viewer.driver).drag_and_drop_by_offset(canvas, 40, 20).perform()
    viewer.settle()
    assert viewer.read("window") != before
    assert viewer.voxel == voxel
    viewer.press("r")
    assert viewer.read("window") == before
    viewer.click("[data-to=crosshair]")
    ActionChains(viewer.driver).drag_and_drop_by_offset(canvas, 40, 20).perform()
    viewer.settle()
    assert viewer.read("window") == before
    assert viewer.voxel != voxel


def test_labels_are_filled_in_their_colours_and_can_be_hidden(viewer: Viewer, case: Made) -> None:
    viewer.go(np.argwhere(case[1].volume.data == 1)[0])
    viewer.click("[data-to=found]")
    viewer.press("f", "c")
    viewer.run("choose('opacity', 1)")
    viewer.settle()
    assert viewer.read("label") == "necrotic core"
    for plane in range(3):
        assert viewer.pixel(plane) == list(TISSUE_COLOURS["necrotic core"])
    viewer.click("[data-rank='3']")
    for plane in range(3):
        red, green, blue = viewer.pixel(plane)
        assert red == green == blue
    assert viewer.read("label") == "necrotic core", "it is still told"
    viewer.press("l")
    assert viewer.run("return [...document.querySelectorAll('[data-rank]')].map((b) => b.checked)") == [False] * 3
    viewer.press("l")
    assert viewer.pixel(0) == list(TISSUE_COLOURS["necrotic core"])


def test_contours_lie_between_voxels(viewer: Viewer) -> None:
    viewer.click("[data-to=found]")
    viewer.press("c")
    red, green, blue = viewer.pixel(0)
    assert red == green == blue, "nothing is drawn inside"
    script = """
        const {width, height} = planes[0].canvas;
        const bytes = planes[0].canvas.getContext("2d").getImageData(0, 0, width, height).data;
        return bytes.some((red, i) => i % 4 === 0 && Math.abs(red - bytes[i + 2]) > 60);
    """
    assert viewer.run(script)
    viewer.press("l")
    assert not viewer.run(script)


def test_the_reference_is_seen_beside_contours_and_over_filled_labels(viewer: Viewer) -> None:
    count = """
        const {width, height} = planes[0].canvas;
        const bytes = planes[0].canvas.getContext("2d").getImageData(0, 0, width, height).data;
        let sum = 0;
        for (const byte of bytes) sum = (sum * 31 + byte) % 1000003;
        return sum;
    """
    viewer.press("c")
    for style in ("contour", "fill"):
        viewer.click(f"[data-to={style}]")
        seen = set()
        for comparison in ("found", "reference", "both"):
            viewer.click(f"[data-to={comparison}]")
            seen.add(viewer.run(count))
        assert len(seen) == 3, style


def test_the_difference_of_a_region(viewer: Viewer, case: Made) -> None:
    viewer.press("d")
    assert viewer.run("return state.comparison") == "difference"
    viewer.press("f", "c")
    viewer.run("choose('opacity', 1)")
    viewer.click("[data-to=ET]")
    found, reference = (each.volume.data == 4 for each in case[1:])
    colours = dict(zip(((True, True), (True, False), (False, True)), DIFFERENCE.values(), strict=True))
    for kind, colour in colours.items():
        voxel = np.argwhere((found == kind[0]) & (reference == kind[1]))[0]
        viewer.go(voxel)
        assert viewer.voxel == tuple(voxel)
        assert [viewer.pixel(plane) for plane in range(3)] == [list(colour)] * 3


def test_planes_keep_their_proportions(viewer: Viewer) -> None:
    mm = np.array(viewer.run("return facts.shape")) * (1, 2, 1)
    frames = viewer.run("return planes.map((plane) => [plane.across, plane.down, frameOf(plane)])")
    for across, down, frame in frames:
        assert frame["width"] / frame["height"] == pytest.approx(mm[across] / mm[down], rel=1e-6)


def test_a_flat_stack_without_tumour(chromium: Any, tmp_path: Path) -> None:
    case, found, _ = small_case((40, 48, 3), np.diag([-0.5, -0.5, 6.0, 1]))
    found.volume.data[:] = 0
    (tmp_path / "flat.html").write_text(draw_page(case, found, ""), encoding="utf-8")
    viewer = Viewer(chromium, tmp_path / "flat.html")
    assert viewer.run("return state.position") == [n // 2 for n in viewer.run("return facts.shape")]
    assert viewer.read("message") == ""
    for across, down, frame in viewer.run("return planes.map((plane) => [plane.across, plane.down, frameOf(plane)])"):
        mm = np.array(viewer.run("return facts.shape")) * (0.5, 0.5, 6.0)
        assert frame["width"] / frame["height"] == pytest.approx(mm[across] / mm[down], rel=1e-6)
        assert frame["height"] > 20
    assert not severe(viewer)


def test_a_narrow_screen_shows_everything_without_scrolling_sideways(chromium: Any, path: Path) -> None:
    viewer = Viewer(chromium, path, PHONE)
    assert viewer.run("return document.documentElement.scrollWidth") <= PHONE[0]
    assert viewer.find("#axial .picture").size["width"] > 0.85 * PHONE[0]
    viewer.click("#coronal button")
    assert viewer.find("#coronal .picture").size["width"] > 0.85 * PHONE[0]


def severe(viewer: Viewer) -> list[Any]:
    """Errors that the browser told."""
    return [entry for entry in viewer.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_nothing_is_loaded_and_nothing_can_be(viewer: Viewer, path: Path) -> None:
    assert viewer.run("return performance.getEntriesByType('resource').length") == 0
    messages = [json.loads(entry["message"])["message"] for entry in viewer.driver.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert set(sent) == {path.as_uri()}
    assert not severe(viewer)
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/x"
        script = (
            "fetch(arguments[0], {mode: 'no-cors'}).then(() => arguments[1]('loaded'), () => arguments[1]('refused'))"
        )
        assert viewer.driver.execute_async_script(script, url) == "refused"
        script = "const i = new Image(); i.onload = i.onerror = () => arguments[1](1); i.src = arguments[0]"
        viewer.driver.execute_async_script(script, url)
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []


def test_hostile_names_run_nothing(chromium: Any, tmp_path: Path) -> None:
    case, found, reference = small_case()
    name = "</script><script>window.hacked = 1</script>\"'><img src=x onerror='window.hacked = 1'>\u2028$facts"
    case.case_id = name
    content = draw_page(case, found, name, [Table(name, [(name, name)])], [name], reference)
    (tmp_path / "hostile.html").write_text(content, encoding="utf-8")
    viewer = Viewer(chromium, tmp_path / "hostile.html")
    assert viewer.run("return window.hacked === undefined")
    assert viewer.run("return document.querySelector('h1').textContent") == name
    assert viewer.run("return document.images.length") == 0
    assert not severe(viewer)
