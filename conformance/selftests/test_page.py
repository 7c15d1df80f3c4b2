"""The page of a report, read by Python's own parser and by a real Chromium."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import os
import re
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from mlflow_triton_conformance import page
from mlflow_triton_conformance.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver.chrome.webdriver import WebDriver

    from mlflow_triton_conformance.report import Report

HOSTILE = "</pre></script><script>document.title='owned'</script><img src=http://evil.example/x onerror=alert(1)>{{7*7}}'\""
RESULTS = ["passed", "failed", "skipped", "not run", "expected failure", "unexpected pass"]
PHONE = 360  # CSS pixels
A4 = 718  # CSS pixels, between margins of 1 cm
WORST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3 (AA)


def made(hostile: str = "") -> Report:
    """A report with every result in each of two chapters; `hostile` stands in every text of it."""
    tests: list[dict[str, Any]] = []
    requirements = []
    for number in range(60):
        result, chapter = RESULTS[number % 6], ("control", "errors")[number // 30]
        identifier = f"TRT-{chapter.upper()}-{number:03}"
        name = f"mlflow_triton_conformance.test_{chapter}::test_{number}{hostile}"
        outcome = {"passed": "passed", "unexpected pass": "passed", "skipped": "skipped"}.get(
            result, "failed"
        )
        evidence = outcome == "failed"
        if result != "not run":
            tests.append(
                {
                    "id": name,
                    "outcome": outcome,
                    "seconds": 0.01 * number,
                    "requirements": [identifier],
                    "message": f"AssertionError: {'long' * 90} zebra{number} {hostile}" if evidence else "",
                    "reproduction": f"predict({number}) {hostile}" if evidence else "",
                    "server_log": f"E1122 {hostile}" if evidence else "",
                    "reason": f"needs gpu {hostile}" if outcome == "skipped" else "",
                }
            )
        requirements.append(
            {
                "id": identifier,
                "chapter": chapter,
                "level": ("MUST", "SHOULD")[number % 2],
                "sentence": f"Sentence {number} of the catalogue holds. {hostile}",
                "source": {
                    "title": f"Triton {hostile}",
                    "url": f"javascript:alert('{hostile}')" if hostile else "https://example.org/a",
                },
                "needs": [f"gpu{hostile}"],
                "result": result,
                "reason": f"because {hostile}" if result != "passed" else "",
                "tests": [] if result == "not run" else [name],
            }
        )
    many = [
        {
            **tests[0],
            "id": f"mlflow_triton_conformance.test_many::test_{number}{hostile}",
            "requirements": ["TRT-CONTROL-000"],
        }
        for number in range(40)
    ]
    requirements[0]["tests"] = [*cast("list[str]", requirements[0]["tests"]), *(test["id"] for test in many)]
    report = {
        "schema": 1,
        "suite": {"name": f"mlflow-triton-plugin{hostile}", "version": f"0.1.0{hostile}"},
        "run": {
            "started": f"2026-01-02T03:04:05+00:00{hostile}",
            "seconds": 75.5,
            "arguments": [f"--pyargs{hostile}", "x" * 400],
            "profile": f"default{hostile}",
            "seed": f"0{hostile}",
        },
        "subject": {
            "kind": "plugin",
            "target": f"triton{hostile}",
            "distribution": f"mlflow-triton-plugin{hostile}",
            "version": f"0.1.0{hostile}",
            "lacks": [{"feature": f"grpc{hostile}", "reason": f"not built{hostile}"}],
        },
        "server": {
            "name": f"triton{hostile}",
            "version": f"2.51.0{hostile}",
            "extensions": [f"statistics{hostile}"],
            "launcher": f"embedded{hostile}",
            "url": f"http://127.0.0.1:8000{hostile}",
        },
        "capabilities": {f"gpu{hostile}": {"present": False, "detail": f"none{hostile}"}},
        "platform": dict.fromkeys(("python", "mlflow", "tritonclient", "os"), f"1.2{hostile}"),
        "verdict": "failed",
        "chapters": [
            {"id": "control", "title": f"Model control{hostile}"},
            {"id": "errors", "title": "Errors"},
        ],
        "requirements": requirements,
        "tests": [*tests, *many],
        "latencies": {
            f"predict{hostile}": [0.001 * (1 + number % 17) for number in range(200)],
            "nothing": [],
        },
        "expectations": [
            {"id": f"TRT-CONTROL-004{hostile}", "reason": f"known{hostile}", "result": "failed"}
        ],
    }
    return cast("Report", report)


def other() -> Report:
    """The same report from another server, on which one requirement more failed, and one is not known."""
    report = copy.deepcopy(made())
    report["server"]["version"] = "2.60.0"
    report["requirements"][6]["result"] = "failed"
    del report["requirements"][-1]
    return report


class Shape(HTMLParser):
    """The elements of a page with their attributes, and its text, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.words.append(data)


PAGES: dict[str, Callable[[str], str]] = {
    "report": lambda hostile: page.render(made(hostile)),
    "comparison": lambda hostile: page.compare([made(hostile), made(hostile)]),
}


@pytest.mark.parametrize("kind", PAGES)
def test_injection(kind: str) -> None:
    """Whatever a report's texts are, they stay texts: the page's elements are the same, and no attribute runs or loads."""
    harmless, hostile = Shape(PAGES[kind]("")), Shape(PAGES[kind](HOSTILE))
    assert [tag for tag, _ in harmless.elements if tag != "a"] == [
        tag for tag, _ in hostile.elements if tag != "a"
    ]
    assert "".join(hostile.words).count("owned") > 100
    for _, attributes in hostile.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("href", "src", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))


@pytest.mark.parametrize("kind", PAGES)
def test_ids(kind: str) -> None:
    """Every id is there once, and every link within the page has its target."""
    elements = Shape(PAGES[kind]("")).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    hrefs = [attributes["href"] or "" for tag, attributes in elements if tag == "a"]
    links = {href[1:] for href in hrefs if href.startswith("#")}
    assert links <= set(ids)
    labels = {it for _, attributes in elements for it in (attributes.get("aria-labelledby") or "").split()}
    assert labels <= set(ids)


def test_badge() -> None:
    """The badge is an image that says the verdict, and how many of the requirements that apply have passed."""
    root = ET.fromstring(page.badge(made()))  # noqa: S314 - our own text
    assert root.get("aria-label") == "triton conformance: failed 10/50"
    assert float(root.get("width", 0)) > 150
    assert "owned" not in page.badge(made(HOSTILE))


def test_plots() -> None:
    """A histogram has a bar for each of its values, its quantiles, and an axis that holds all of it."""
    drawn = page.plots([{"a": [0.001, 0.001, 0.01, 0.1], "b": []}, {"a": [10.0]}])
    assert drawn is not None
    first, second = drawn.rows["a"]
    assert first is not None
    assert second is not None
    assert (len(first.bars), first.number, len(second.bars)) == (3, 4, 1)
    assert first.quantiles["median"][0] == pytest.approx(0.0055)
    assert first.quantiles["maximum"][0] == 0.1
    assert "p95" not in first.quantiles
    many = page.plots([{"a": [number / 100 for number in range(1, 101)]}])
    assert many is not None
    assert many.rows["a"][0] is not None
    found = {name: value for name, (value, _) in many.rows["a"][0].quantiles.items()}
    assert found == {"median": 0.505, "p95": 0.95, "p99": 0.99, "maximum": 1.0}
    assert [seconds for seconds, _ in drawn.ticks] == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert all(0 <= x <= 100 and height <= 100 for x, _, height in first.bars + second.bars)
    assert page.plots([{"a": []}]) is None


def test_compare_command(tmp_path: Path) -> None:
    """`compare` writes a page, says where, and refuses what is no report in one line."""
    for name, report in (("a", made()), ("b", other())):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    (tmp_path / "old.json").write_text('{"schema": 7}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "part.json").write_text('{"schema": 1}')
    (tmp_path / "damaged.json").write_text(json.dumps(made() | {"requirements": [{}]}))
    a, b, out = (str(tmp_path / name) for name in ("a.json", "b.json", "c.html"))
    result = CliRunner().invoke(main, ["compare", a, b, "-o", out])
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    words = "".join(Shape((tmp_path / "c.html").read_text()).words)
    assert "2 requirements came to different results." in words
    (tmp_path / "c.html").unlink()
    for arguments, message in (
        ([a], "two reports"),
        ([a, str(tmp_path / "old.json")], "its schema is 7, not 1"),
        ([a, str(tmp_path / "broken.json")], "cannot be read as JSON"),
        ([a, str(tmp_path / "part.json")], "is not a whole report: it has no capabilities, "),
        (
            [a, str(tmp_path / "damaged.json")],
            "damaged.json is damaged: what it holds is not in the form of a report",
        ),
        ([a, b, "-o", str(tmp_path / "no" / "c.html")], "cannot be written"),
    ):
        result = CliRunner().invoke(main, ["compare", "-o", out, *arguments])
        assert result.exit_code != 0
        assert message in result.output.splitlines()[-1]
    assert not (tmp_path / "c.html").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    """A headless Chromium that reaches no network."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if None in found:
        message = "needs Chromium and its driver: apt-get install chromium chromium-driver"
        if os.environ.get("REQUIRE_CHROMIUM"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    from selenium import webdriver  # noqa: PLC0415 - slow to import

    options = webdriver.ChromeOptions()
    options.binary_location = str(found[0])
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(found[1])))
    yield driver
    driver.quit()


class Reader:
    """Someone who reads pages in the browser."""

    def __init__(self, driver: WebDriver, directory: Path) -> None:
        self.driver = driver
        self._directory = directory

    def open(self, text: str, *, width: int = 1200, dark: bool = False, fragment: str = "") -> None:
        """Open a page in a window of a width in CSS pixels."""
        path = self._directory / "page.html"
        path.write_text(text, encoding="utf-8")
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        for log in ("browser", "performance"):
            self.log(log)
        self.driver.get("about:blank")
        self.driver.get(f"{path.as_uri()}{fragment}")

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Take what the browser has logged: its complaints (``browser``), or its events (``performance``)."""
        return cast("list[dict[str, Any]]", self.driver.get_log(kind))  # type: ignore[no-untyped-call]

    def ask(self, script: str) -> Any:
        """Return what a JavaScript expression comes to."""
        return self.driver.execute_script(f"return {script}")

    def shown(self) -> list[str]:
        """The requirements that are not filtered out."""
        visible = "[...document.querySelectorAll('.requirement')].filter(it => it.checkVisibility()).map(it => it.id)"
        return cast("list[str]", self.ask(visible))

    def type(self, words: str) -> None:
        """Replace what stands in the search field."""
        field = self.driver.find_element("id", "search")
        field.clear()
        field.send_keys(words)

    def press(self, selector: str) -> None:
        """Press a button."""
        self.driver.find_element("css selector", selector).send_keys(" ")


@pytest.fixture
def reader(browser: WebDriver, tmp_path: Path) -> Reader:
    """Someone who reads pages in the browser."""
    return Reader(browser, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("hostile", ["", HOSTILE], ids=["harmless", "hostile"])
@pytest.mark.parametrize("kind", PAGES)
def test_quiet(reader: Reader, kind: str, hostile: str) -> None:
    """The browser has nothing to complain of, loads nothing but the page, and runs nothing of a report's texts."""
    reader.open(PAGES[kind](hostile))
    assert reader.log("browser") == []
    assert reader.ask("document.title").startswith({"report": "Failed: ", "comparison": "Comparison: "}[kind])
    requests = [json.loads(entry["message"])["message"] for entry in reader.log("performance")]
    urls = [it["params"]["request"]["url"] for it in requests if it["method"] == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in urls} <= {"file", "about", "data"}
    assert (
        reader.ask(
            "performance.getEntriesByType('resource').filter(it => !it.name.startsWith('data:')).length"
        )
        == 0
    )


@pytest.mark.slow
def test_policy(reader: Reader) -> None:
    """Even a script that got into the page would not run."""
    smuggled = page.render(made()).replace("</main>", "<script>document.title = 'owned'</script></main>")
    reader.open(smuggled)
    assert "owned" not in reader.ask("document.title")
    (complaint,) = reader.log("browser")
    assert "Content Security Policy" in complaint["message"]


@pytest.mark.slow
def test_filter(reader: Reader) -> None:
    """Results, levels and words narrow the requirements; any of one kind, all of different kinds."""
    reader.open(page.render(made()))
    assert len(reader.shown()) == 60
    reader.press("button[data-value='failed']")
    assert len(reader.shown()) == 10
    reader.press("button[data-value='passed']")
    assert len(reader.shown()) == 20
    reader.press("button[data-value='SHOULD']")
    assert reader.shown() == [f"TRT-{'CONTROL' if at < 30 else 'ERRORS'}-{at:03}" for at in range(1, 60, 6)]
    reader.type("Zebra7 long")
    assert reader.shown() == ["TRT-CONTROL-007"]
    assert reader.ask("document.getElementById('found').textContent") == "1 of 60 requirements"
    assert reader.ask("document.getElementById('chapter-errors').checkVisibility()") is False
    reader.type("nowhere at all")
    assert reader.shown() == []
    reader.driver.find_element("id", "search").send_keys("\ue00c")  # Escape
    assert len(reader.shown()) == 60
    assert reader.ask("document.querySelectorAll('button[aria-pressed=true]').length") == 0


@pytest.mark.slow
def test_filter_of_a_comparison(reader: Reader) -> None:
    """A comparison opens with what differs."""
    reader.open(page.compare([made(), other()]))
    assert reader.shown() == ["TRT-CONTROL-006", "TRT-ERRORS-059"]
    reader.press("button[data-value='yes']")
    assert len(reader.shown()) == 60


@pytest.mark.slow
def test_keyboard(reader: Reader) -> None:
    """A slash leads to the search, and everything that can be pressed is reached by the tabulator."""
    reader.open(page.render(made()))
    body = reader.driver.find_element("tag name", "body")
    body.send_keys("/")
    assert reader.ask("document.activeElement.id") == "search"
    reader.open(page.render(made()))
    reader.driver.find_element("tag name", "body").send_keys("\ue004")  # the tabulator
    assert reader.ask("document.activeElement.textContent") == "Skip to the requirements"
    assert reader.ask("document.activeElement.getBoundingClientRect().left") >= 0
    assert (
        reader.ask(
            "[...document.querySelectorAll('button, a, input, summary, pre')].filter(it => it.tabIndex < 0).length"
        )
        == 0
    )


@pytest.mark.slow
def test_link_to_a_requirement(reader: Reader) -> None:
    """A link to a requirement opens it, also when it is filtered out."""
    reader.open(page.render(made()), fragment="#TRT-ERRORS-030")
    assert reader.ask("document.getElementById('TRT-ERRORS-030').open") is True
    reader.press("button[data-value='failed']")
    reader.ask("(location.hash = 'TRT-ERRORS-036') && new Promise(it => setTimeout(it, 50))")
    assert "TRT-ERRORS-036" in reader.shown()
    assert reader.ask("document.getElementById('TRT-ERRORS-036').open") is True
    assert 0 <= reader.ask("document.getElementById('TRT-ERRORS-036').getBoundingClientRect().top") < 800


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", PAGES)
def test_phone(reader: Reader, kind: str, dark: bool) -> None:
    """On a phone the page is no wider than the screen, whatever is unfolded, and nothing sticks out of it."""
    reader.open(PAGES[kind](HOSTILE), width=PHONE, dark=dark)
    assert reader.ask("document.documentElement.clientWidth") == PHONE
    reader.press("#unfold")
    reader.ask("document.querySelectorAll('details').forEach(it => it.open = true)")
    assert reader.ask(OVERFLOW) == 0


CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(it => it / 255)
      .map(it => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (it) => {
    for (; it; it = it.parentElement) {
      const colour = getComputedStyle(it).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    throw new Error("no background");
  };
  const worst = {};
  for (const it of document.querySelectorAll("body *")) {
    const text = [...it.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!text || !it.checkVisibility() || it.closest("svg, script")) continue;
    const [a, b] = [light(getComputedStyle(it).color), light(behind(it))].sort((x, y) => y - x);
    const found = (a + 0.05) / (b + 0.05);
    const name = it.tagName + "." + it.className;
    worst[name] = Math.min(worst[name] ?? 99, found);
  }
  return worst;
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", PAGES)
def test_contrast(reader: Reader, kind: str, dark: bool) -> None:
    """Every text stands out from what is behind it, in the light and in the dark."""
    reader.open(PAGES[kind](""), dark=dark)
    reader.ask("document.querySelectorAll('details').forEach(it => it.open = true)")
    found = reader.ask(CONTRAST)
    assert len(found) > 20
    assert {name: ratio for name, ratio in found.items() if ratio < WORST_CONTRAST} == {}
    background = reader.ask("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background)[:3])) < 64) is dark


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAGES)
def test_headings(reader: Reader, kind: str) -> None:
    """Headings go down one level at a time, from a single first one."""
    reader.open(PAGES[kind](""))
    levels = reader.ask("[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(it => +it.tagName[1])")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


@pytest.mark.slow
def test_print(reader: Reader) -> None:
    """Printed in the dark, the page is black on white, has no controls, and its failures with their evidence."""
    reader.open(page.render(made()), dark=True)
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert reader.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert reader.ask("document.getElementById('filter').checkVisibility()") is False
    assert (
        reader.ask("document.querySelectorAll('.requirement[data-result=failed][open] .evidence').length")
        == 10
    )
    assert reader.ask("getComputedStyle(document.querySelector('pre')).whiteSpace") == "pre-wrap"
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    printed = base64.b64decode(reader.driver.print_page())
    assert printed.startswith(b"%PDF")
    assert io.BytesIO(printed).getbuffer().nbytes > 20_000


@pytest.mark.slow
def test_many_reports(reader: Reader) -> None:
    """A comparison of thirteen reports is no wider than a phone or a sheet of paper, and shows every one's result."""
    text = page.compare([made()] * 13)
    reader.open(text, width=PHONE)
    assert reader.ask(OVERFLOW) == 0
    assert reader.ask("document.querySelector('.requirement').querySelectorAll('.cell').length") == 13
    reader.open(text, width=A4)
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert reader.ask(OVERFLOW) == 0
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
