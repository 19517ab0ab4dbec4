"""The page of a real tiny sweep in a real browser: it opens without a complaint or a request, and shows the numbers."""

import pytest
from browser import Browser

from zoology import cli
from zoology.analysis.frontier import points
from zoology.analysis.records import load_runs
from zoology.analysis.report.interactive import hover_text

pytestmark = pytest.mark.browser

DRAWN = "document.body && document.body.dataset.drawn === 'yes'"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two architectures, trained for twenty steps with two learning rates and two seeds, and their report."""
    folder = tmp_path_factory.mktemp("real")
    recipe = "--d-model 16 --train-examples 640 --test-examples 64 --num-pairs 2,4 --learning-rates 3e-3,1e-2 --seeds 2"
    paths = []
    for arch in ("attention", "sliding-window --window 4"):
        paths.append(folder / arch.split()[0])
        line = f"train --arch {arch} {recipe} --out {folder} --name {paths[-1].name}"
        with pytest.raises(SystemExit, match="0"):
            cli.main(line.split())
    with pytest.raises(SystemExit, match="0"):
        cli.main(["report", *map(str, paths), "--out", str(folder / "report.html")])
    return paths, folder / "report.html"


@pytest.fixture
def browser(runs):
    with Browser() as made:
        made.open(runs[1])
        made.wait_for(DRAWN)
        yield made


def place(browser, x, y):
    """Where a point of the figure is in the window, once it is in view."""
    browser.run("document.getElementById('drawn').scrollIntoView({block: 'center'})")
    return browser.run(
        f"""(() => {{
            const figure = document.getElementById('drawn'), layout = figure._fullLayout;
            const box = figure.querySelector('.nsewdrag').getBoundingClientRect();
            return [box.left + layout.xaxis.d2p({x}), box.top + layout.yaxis.d2p({y})];
        }})()"""
    )


def test_it_opens_without_a_complaint_and_asks_for_nothing(browser, runs):
    assert browser.complaints() == []
    assert browser.requests() == [runs[1].absolute().as_uri()]
    assert browser.run("getComputedStyle(document.getElementById('still')).display") == "none"


def test_hovering_over_a_point_shows_its_numbers(browser, runs):
    table = points(load_runs(runs[0]))
    assert len(table) == 2
    for point in table.to_dict("records"):
        browser.move_to(*place(browser, point["state_bytes"], 100 * point["recall"]))
        said = "document.querySelector('#drawn .hoverlayer')?.textContent || ''"
        browser.wait_for(f"({said}).includes({point['trial']!r})", seconds=10)
        wanted = hover_text(point).replace("<br>", "").replace("<b>", "").replace("</b>", "")
        assert browser.run(said) == wanted
    assert browser.complaints() == []


def test_a_click_on_a_name_hides_its_architecture(browser):
    visible = "document.getElementById('drawn')._fullData.filter(d => d.visible === true).map(d => d.name)"
    assert set(browser.run(visible)) >= {"attention", "sliding-window"}
    browser.run("document.getElementById('drawn').scrollIntoView({block: 'center'})")
    box = browser.run(
        """(() => {
            const names = [...document.querySelectorAll('#drawn .legend .traces')];
            const box = names.find(n => n.textContent.includes('sliding-window')).getBoundingClientRect();
            return [box.left + box.width / 2, box.top + box.height / 2];
        })()"""
    )
    browser.click(*box)
    browser.wait_for(f"!{visible}.includes('sliding-window')", seconds=10)
    assert "attention" in browser.run(visible)


def test_a_narrow_window_scrolls_down_only(runs):
    with Browser(width=360, height=740) as browser:
        browser.open(runs[1])
        browser.wait_for(DRAWN)
        assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert browser.complaints() == []


def test_without_the_script_the_still_picture_stands(runs, tmp_path):
    """As in a browser that cannot unpack the library."""
    page = tmp_path / "old.html"
    page.write_text(runs[1].read_text().replace('"DecompressionStream" in window', "false"))
    with Browser() as browser:
        browser.open(page)
        browser.wait_for("document.readyState === 'complete'")
        assert browser.run("document.querySelector('#still img').naturalWidth") > 0
        assert browser.run("getComputedStyle(document.getElementById('drawn')).display") == "none"
        assert browser.complaints() == []


def test_on_paper_the_still_picture_stands(browser):
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.getElementById('still')).display") == "block"
    assert browser.run("getComputedStyle(document.getElementById('drawn')).display") == "none"
