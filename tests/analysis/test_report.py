"""The page by what is in it: the numbers of the points, all that lies beside them, nothing from elsewhere."""

import gzip
import json
import math
import re
from base64 import b64decode
from html.parser import HTMLParser

import pandas as pd
import pytest

from zoology.analysis.frontier import points
from zoology.analysis.plots.kinds import KINDS
from zoology.analysis.plots.style import KNOWN
from zoology.analysis.records import load_runs
from zoology.analysis.report import gather, lay_out, write_report
from zoology.analysis.report.contents import HEADINGS
from zoology.analysis.report.interactive import _SYMBOLS, Frame, hover_text, interactive
from zoology.registry import InputError

LIMIT = 6_000_000
VERDICT = {
    "mixer": "based",
    "d_model": 64,
    "settings": {"feature_dim": 16},
    "findings": [],
    "notes": ["slow"],
    "growth": "constant",
    "state_bytes": [[16, {"recurrent": {"float32": 1024}}], [128, {"recurrent": {"float32": 1024}}]],
    "parameters": 10,
}


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts, self._in = [], "", {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self._in and self._in.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, attributes = self._in[-1] if self._in else ("", {})
        if tag == "script":
            self.scripts[attributes.get("id")] = data
        elif tag != "style":
            self.text += data + "\n"

    @property
    def figure(self):
        return json.loads(self.scripts["frontier-data"])


def spread(recall):
    return {(lr, seed): (recall, recall + (0.02 if seed else -0.02)) for lr in (1e-3, 2e-3) for seed in (0, 1)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory, trial, write):
    """The run of `folder`, for those who only read it, and its page."""
    made = make(lambda *trials: write(tmp_path_factory.mktemp("runs") / "mine", *trials), trial)
    contents = gather([made], command="zoology report mine")
    return made, lay_out(contents)


@pytest.fixture
def folder(run, trial):
    """A run of its own for each test."""
    return make(lambda *trials: run("mine", *trials), trial)


def make(write, trial):
    """A run of two architectures, two learning rates and two seeds, with all that lies beside its rows."""
    trials = (
        trial(spread(0.3), state=1024, dials={"feature_dim": 8}),
        trial(spread(0.6), state=4096),
        trial(spread(0.5), state=8192, dials={"feature_dim": 32}),
        trial(spread(0.97), architecture="attention", state=65536),
    )
    made = write(*trials)
    sweep = {
        "format": 1,
        "command": "zoology sweep --arch based",
        "request": {},
        "trials": [one.spec.id for one in trials],
    }
    (made / "sweep.json").write_text(json.dumps(sweep))
    (made / "environment.json").write_text(json.dumps({"zoology": "0.1.0", "packages": {"torch": "2.13.0"}}))
    (made / "audit.json").write_text(json.dumps({"format": 1, "verdicts": [VERDICT]}))
    return made


def read(*paths, **options):
    return Page(lay_out(gather(paths, **options)))


def test_the_interactive_figure_holds_the_numbers_of_the_points(kept):
    table = points(load_runs([kept[0]]))
    drawn = {}
    for trace in Page(kept[1]).figure["data"]:
        for x, y, up, text in zip(trace["x"], trace["y"], trace["error_y"]["array"], trace["text"], strict=True):
            drawn[text] = (trace["legendgroup"], x, y, y + up)
    assert len(drawn) == len(table) == 4
    for point in table.to_dict("records"):
        name, x, y, high = drawn[hover_text(point)]
        assert (name, x) == (point["architecture"], point["state_bytes"])
        assert (y, high) == pytest.approx((100 * point["recall"], 100 * point["ci_high"]))


def test_what_hovering_tells(kept):
    point = points(load_runs([kept[0]])).to_dict("records")[2]
    assert hover_text(point).split("<br>") == [
        "<b>based</b> feature_dim=16 d_model=64",
        "recall 60.0 % (58.0 to 62.0)",
        "state 4 KB, 1024 elements",
        "learning rate 0.001, the lowest of its grid",
        "recall % by seed: 0: 58.0, 1: 62.0",
        f"trial {point['trial']}",
    ]


def test_an_architecture_is_one_name_to_click(kept):
    traces = Page(kept[1]).figure["data"]
    named = [trace["legendgroup"] for trace in traces if trace["showlegend"]]
    assert named == ["based", "attention"]
    assert {trace["legendgroup"] for trace in traces} == set(named)
    below = [trace for trace in traces if not trace["showlegend"]]
    assert [trace["x"] for trace in below] == [[8192.0]]


def test_what_no_model_can_do_and_a_state_of_nothing(rows, trial):
    found = points(rows(trial(spread(0.3), state=0, dials={"feature_dim": 8}), trial(spread(0.6), state=4096)))
    frame = Frame(512.0, 8192.0, ((1024.0, "none"), (4096.0, "4 KB")))
    limit = pd.DataFrame({"state_bytes": [700, 900], "recall": [0.5, 0.8]})
    drawn = json.loads(interactive(found, frame, limit=limit))
    top, stairs, based = drawn["data"]
    assert (stairs["x"], stairs["y"], stairs["line"]["shape"]) == ([512, 700, 900], [50, 80, 100], "hv")
    assert (stairs["fill"], top["x"], top["y"]) == ("tonexty", [512, 900], [106, 106])
    assert based["x"] == [1024, 4096]  # a quarter of the smallest size stands for none
    axis = drawn["layout"]["xaxis"]
    assert (axis["tickvals"], axis["ticktext"]) == ([1024, 4096], ["none", "4 KB"])
    assert axis["range"] == pytest.approx([math.log10(512), math.log10(8192)])
    assert interactive(found, frame._replace(low=1000.0), limit=limit).count("no model can be here") == 0


def test_every_marker_has_its_like():
    assert {look.marker for look in KNOWN.values()} <= set(_SYMBOLS)


def test_every_part_is_on_the_page(kept):
    page = Page(kept[1])
    for words in (
        "4 of 4 finished",
        "Recall against state",
        "Who leads where",
        "Recall at a budget",
        "State needed",
        "Every trial",
        "What the audit found",
        "passed",
        "slow",
        "hash-T64-N4",
        "2.13.0",
        "zoology sweep --arch based",
        "zoology report mine",
    ):
        assert words in page.text, words
    assert "these runs have recorded no training curve" in page.text  # a figure that cannot be there says why
    assert set(HEADINGS) == set(KINDS)


def test_rows_alone_make_a_page_too(folder):
    for name in ("sweep.json", "environment.json", "audit.json"):
        (folder / name).unlink()
    page = read(folder / "results.jsonl")
    assert "Every trial" in page.text
    assert "Environment" not in page.text


def test_several_runs_are_told_apart(folder, run, trial):
    other = run("theirs", trial(spread(0.4), architecture="sliding-window", state=2048, dials={"window": 4}))
    (other / "environment.json").write_text(json.dumps({"zoology": "0.2.0"}))
    contents = gather([folder, other])
    assert list(contents.asked) == ["mine", "theirs"]
    assert dict(contents.asked["theirs"])["architectures"] == "sliding-window"
    environment = next(section.table for section in contents.ends if section.heading == "Environment")
    assert environment.to_dict("list") == {
        "": ["zoology", "torch"],
        "mine": ["0.1.0", "2.13.0"],
        "theirs": ["0.2.0", ""],
    }


def test_what_failed_and_what_was_noted_is_told(folder):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    failed = dict.fromkeys(rows[0]) | {
        "format": 1, "trial": "lost", "architecture": "based", "dials": {"feature_dim": 999}, "d_model": 64,
        "task": "mqar", "status": "failed", "error": "Traceback\nMemoryError: too wide",
    }  # fmt: skip
    rows = [{**row, "notes": ["answers differ by 1e-7"] if row["architecture"] == "attention" else []} for row in rows]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, failed]))
    sections = {section.heading: section.table for section in gather([folder]).ends}
    assert sections["Trials that failed"].to_dict("records") == [
        {"architecture": "based", "dials": "feature_dim=999", "d_model": "64", "error": "MemoryError: too wide"}
    ]
    assert sections["Notes of the trials"].to_dict("records") == [
        {"note": "answers differ by 1e-7", "trials": "attention feature_dim=16 d_model=64"}
    ]


def test_the_page_holds_all_it_needs_and_is_small(kept):
    text = kept[1]
    assert len(text.encode()) < LIMIT
    page = Page(text)
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(key) or "data:").startswith("data:"), (tag, attributes)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    library = gzip.decompress(b64decode(page.scripts["library"])).decode()
    assert "plotly" in library[:500]


def test_a_crowded_sweep_stays_small(run, trial):
    """Twenty architectures, each with a figure of its own for the learning rates."""
    names = sorted(KNOWN)[:20]
    trials = [
        trial({(lr, 0): (k / 20, k / 20) for lr in (1e-3, 2e-3, 4e-3)}, architecture=name, state=1024 * k,
              dials={"size": k}) for name in names for k in (1, 2)
    ]  # fmt: skip
    assert len(lay_out(gather([run("crowd", *trials)])).encode()) < LIMIT


def test_the_same_runs_give_the_same_bytes(kept, tmp_path):
    write_report([kept[0]], tmp_path / "again.html", command="zoology report mine")
    assert (tmp_path / "again.html").read_text("utf-8") == kept[1]


def test_nothing_that_a_run_holds_becomes_markup(run, trial):
    """A run folder may come from anybody."""
    evil = "</script><img src=x onerror=alert(1)>"
    made = run(
        evil.replace("/", ""),
        trial(spread(0.3), architecture=evil, dials={evil: evil}, slices=(evil,)),
        trial(spread(0.4), architecture="based", dials={}, slices=(evil,)),
    )
    (made / "sweep.json").write_text(json.dumps({"command": evil, "request": {"scale": evil}, "trials": []}))
    (made / "environment.json").write_text(json.dumps({evil: evil}))
    verdict = VERDICT | {"mixer": evil, "findings": [evil], "notes": [evil], "growth": evil}
    (made / "audit.json").write_text(json.dumps({"verdicts": [verdict]}))
    page = read(made, title=evil, command=evil)
    assert [a for t, a in page.tags if t == "img" and not a.get("src", "").startswith("data:image/")] == []
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    traces = page.figure["data"]
    assert any(trace["legendgroup"] == evil for trace in traces)
    for trace in traces:  # plotly makes markup of names and texts
        assert "<img" not in trace["name"]
        assert not any("<img" in text for text in trace["text"])


def test_others_points_are_laid_over_and_named_as_such(run, trial):
    page = read(run("mine", trial(spread(0.3), state=1024)), published=True)
    traces = page.figure["data"]
    others = [trace for trace in traces if trace["name"].endswith("(published)")]
    assert others
    assert all("published" in trace["text"][0] for trace in others)
    assert "of other slices, so not comparable" in page.text


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("page.pdf", "report 'page.pdf': the name must end in .html"),
        ("nowhere/page.html", "cannot be written: there is no folder"),
        ("folder.html", "cannot be written: it is a folder"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused(folder, tmp_path, out, said):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match=said):
        write_report([folder], tmp_path / out)


def test_runs_that_cannot_share_a_frontier_are_refused_with_what_to_choose(folder, run, trial):
    theirs = run("theirs", trial(spread(0.4), task="copying"))
    with pytest.raises(InputError, match=r"several tasks cannot share a frontier: .*choose one with --task"):
        gather([folder, theirs])
    assert "copying" in gather([folder, theirs], task="copying").title
