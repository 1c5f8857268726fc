"""The page of `stats --html`: all figures, nothing from outside, whatever models are called; and it looks like it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from daemon.cli import exit_codes
from daemon.cli.output.formatting import percent
from daemon.cli.output.memory_parts import memory_parts
from daemon.cli.output.page import render
from daemon.shared.wording import size
from mlx_sidecar import LatencyStats
from tests.unit.cli.cli_fakes import INFO, MIB, MODEL_STATS, STATS, FakeClient, client_fixture, run_cli  # noqa: F401
from tests.unit.server.stats_sample import SAMPLE

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Structure(HTMLParser):
    """
    What a page is made of; fails where an element is not closed.

    Attributes:
        tags: Each element's name and attributes.
        text: All text outside of style.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def having(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element of a name."""
        return [attributes for name, attributes in self.tags if name == tag]


def test_stats_page_loads_nothing_external() -> None:
    """The page has no script, link or address, and its content security policy forbids fetches."""
    page = render(SAMPLE)
    structure = Structure(page)
    assert {tag for tag, _ in structure.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    assert not {name for _, attributes in structure.tags for name in attributes} & {"src", "href", "srcset", "onload"}
    assert not re.search(r"https?://|url\(|@import", page)
    (policy,) = [one["content"] for one in structure.having("meta") if "http-equiv" in one]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_stats_page_shows_models_namespaces_and_spans() -> None:
    """Names are escaped text, whatever characters they have."""
    text = " ".join(Structure(render(SAMPLE)).text.split())
    for model in SAMPLE.models:
        assert model.info.model in text
        assert size(model.info.size_bytes) in text
    for namespace in SAMPLE.prefix_cache.namespaces:
        assert namespace.namespace in text
        assert f"{namespace.blocks:,} blocks" in text
        assert f"{namespace.tokens_reused:,} tokens reused" in text
    assert "salted" in text
    assert "adapter /Users/ada/lora" in text
    assert "and 2 smaller ones" in text
    cache = SAMPLE.prefix_cache
    assert percent(cache.tokens_reused / cache.tokens_looked_up) in text
    assert "1,049,104 of 1,204,332, 210,400 from the disk" in text
    assert "On the disk: 3.0 GiB of 8.0 GiB in 20,400 blocks; 31 requests reused 210,400 tokens from there" in text
    assert "prompt tokens, from the disk" in text
    for title in ("To the first token", "To the last token", "Between tokens", "Waiting for a load"):
        assert title in text


def test_stats_page_bar_shows_the_whole_memory() -> None:
    """The parts sum to the limit, and their widths to the whole bar."""
    parts = memory_parts(SAMPLE)
    assert sum(part.nbytes for part in parts) == SAMPLE.memory.limit_bytes
    widths = re.findall(r'<i class="[a-z0-9]+" style="width: ([\d.]+)%" title', render(SAMPLE))
    assert len(widths) == len(parts)
    assert sum(map(float, widths)) == pytest.approx(100, abs=0.1)


def test_stats_page_renders_memory_above_the_limit() -> None:
    """The page says by how much the limit is exceeded."""
    over = replace(SAMPLE, memory=replace(SAMPLE.memory, limit_bytes=SAMPLE.memory.weights_bytes))
    assert memory_parts(over)[-1].nbytes < 0
    assert "over by" in Structure(render(over)).text


def test_stats_page_charts_leave_gaps_without_samples() -> None:
    """Without lookups the hit rate has a gap, and the speed is zero."""
    reuse, speed = re.findall(r"<svg.*?</svg>", render(SAMPLE), re.DOTALL)
    assert reuse.count("<polyline") >= 4
    assert speed.count("<polyline") == 3


def test_stats_page_of_a_fresh_daemon_renders() -> None:
    """The page says that there are no figures yet."""
    idle = replace(
        STATS, models=(), latency=LatencyStats(), prefix_cache=replace(STATS.prefix_cache, tokens_looked_up=0)
    )
    text = Structure(render(idle)).text
    for sentence in ("No figures yet", "none yet", "No model is in memory.", "Nothing is stored."):
        assert sentence in text


def test_stats_html_writes_the_page_with_history(client: FakeClient, tmp_path: Path) -> None:
    """The command writes one file."""
    client.state = SAMPLE

    result = run_cli(client, "stats", "--html", "page.html")

    assert (result.exit_code, result.stdout) == (0, "Wrote page.html.\n")
    assert client.calls == [("stats", (), {"history": True})]
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--html", "no/such/folder/x.html"], exit_codes.REFUSED),
        (["--html", "x.html", "--json"], exit_codes.USAGE),
        (["--history"], exit_codes.USAGE),
    ],
)
def test_unwritable_stats_page_is_refused(client: FakeClient, args: list[str], code: int) -> None:
    """An unwritable path is refused in one sentence."""
    result = run_cli(client, "stats", *args)
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1].startswith("mlx-sidecar: ")


MANY = replace(
    SAMPLE,
    models=(
        *SAMPLE.models,
        *(
            replace(MODEL_STATS, names=(f"org/a{'nameless' * 9}-{n}",), info=replace(INFO, size_bytes=25 * MIB))
            for n in range(6)
        ),
    ),
)
"""Besides large models small ones, with names that have no place to break."""


def test_stats_page_figures_are_labelled_on_a_phone() -> None:
    """On a phone each row stands alone: its figures carry the words of the header."""
    structure = Structure(render(MANY))
    headers = {one.get("class") for one in structure.having("tr")} - {None}
    labels = [one.get("data-label") for one in structure.having("td") if one.get("class") == "number"]
    assert headers == {"head"}
    assert None not in labels
    assert {"p50", "p90", "p99", "requests", "size", "in use", "asked for", "idle"} == set(labels)
    (viewport,) = [one["content"] for one in structure.having("meta") if one.get("name") == "viewport"]
    assert viewport == "width=device-width, initial-scale=1"


def test_stats_page_counts_have_a_singular() -> None:
    """Every count of one has a singular: 1 block, 1 hit, 1 request."""
    one = replace(
        SAMPLE.prefix_cache.namespaces[0], model="org/one", blocks=1, branches=1, hits=1, tokens_reused=1, namespace="n"
    )
    text = Structure(
        render(replace(SAMPLE, prefix_cache=replace(SAMPLE.prefix_cache, blocks=1, namespaces=(one,))))
    ).text
    for words in ("1 block of", "1 block, 1 beginning", "1 hit, 1 token reused"):
        assert words in " ".join(text.split())
    assert not re.search(r"\b1 (blocks|hits|tokens|beginnings|requests|restarts|engine restarts)\b", text)


@pytest.mark.parametrize("width", [360, 320])
def test_stats_page_fits_the_width_of_a_phone(tmp_path: Path, width: int) -> None:
    """Nothing is wider than the screen, no table hides columns, and each part of the memory bar is seen."""
    program, page, outer = browser(), tmp_path / "page.html", tmp_path / "outer.html"
    page.write_text(render(MANY))
    outer.write_text(
        f"""<iframe id="phone" style="width:{width}px;height:3000px;border:0" srcdoc="{html.escape(page.read_text())}">
        </iframe><p id="found"></p><script>
        addEventListener("load", () => {{
          const page = document.getElementById("phone").contentDocument;
          const wide = [...page.querySelectorAll("html, .scroll, .card, .bar, td")]
            .filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth)
            .map(one => one.className || one.tagName);
          const bar = page.querySelector(".bar").getBoundingClientRect();
          const parts = [...page.querySelectorAll(".bar i")].map(one => one.getBoundingClientRect());
          const seen = parts.every(one => one.width >= 3 && one.right <= bar.right + 1);
          document.getElementById("found").textContent = JSON.stringify([wide, seen, parts.length]);
        }});</script>"""
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([program, *flags, outer.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<p id="found">(.*?)</p>', done.stdout)
    assert found, done.stderr
    assert json.loads(found.group(1)) == [[], True, len([part for part in memory_parts(MANY) if part.nbytes > 0])]


def browser() -> str:
    """Return a browser's path; skip the test where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed; `apt-get install chromium` or Chrome make this test run")
    return found


def test_stats_page_bar_has_its_colours_in_a_browser(tmp_path: Path) -> None:
    """A screenshot has the colour of each part of the memory bar and of each line, in about the bar's proportions."""
    program, page, picture = browser(), tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(render(SAMPLE))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
    flags += [
        "--window-size=1280,2000",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--blink-settings=preferredColorScheme=1",
    ]
    done = subprocess.run(
        [program, *flags, f"--screenshot={picture}", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert picture.exists(), done.stderr
    image = Image.open(picture).convert("RGB")
    counts = {colour: count for count, colour in image.getcolors(maxcolors=1 << 24) or []}
    style = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", page.read_text().partition("@media")[0]))
    seen = {name: counts.get(rgb(value), 0) for name, value in style.items()}
    assert min(seen[name] for name in ("c0", "c1", "c2", "trie", "live", "free", "card", "page", "ink")) > 100
    bar = row_with_most(image, style["c1"])
    runs = [sum(pixel == rgb(style[name]) for pixel in bar) for name in ("c0", "c1", "trie", "live")]
    parts = {part.style: part.share for part in memory_parts(SAMPLE)}
    wanted = [parts[name] / parts["model0"] for name in ("model0", "model1", "trie", "live")]
    assert [run / runs[0] for run in runs] == pytest.approx(wanted, rel=0.05)


def rgb(colour: str) -> tuple[int, ...]:
    """Return the channels of a colour such as "#2563eb"."""
    return tuple(bytes.fromhex(colour[1:]))


def row_with_most(image: Image.Image, colour: str) -> list[tuple[int, ...]]:
    """Return the row of a picture that has most pixels of a colour: one through the memory bar."""
    data, wanted = image.tobytes(), rgb(colour)
    width = 3 * image.width
    rows = [data[start : start + width] for start in range(0, len(data), width)]
    pixels = [[tuple(row[at : at + 3]) for at in range(0, width, 3)] for row in rows if bytes(wanted) in row]
    return max(pixels, key=lambda row: row.count(wanted))
