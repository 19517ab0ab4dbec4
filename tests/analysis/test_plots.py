"""The picture by what it was given to draw, the table by its words."""

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from zoology.analysis import words
from zoology.analysis.frontier import points
from zoology.analysis.plots import human_bytes, plot_frontier, points_table, save
from zoology.analysis.plots.style import KNOWN, Look, ink, looks
from zoology.registry import InputError


@pytest.fixture
def table(rows, trial):
    """Three architectures, two seeds; one point of `based` lies below its frontier."""

    def at(architecture, state, recall, **more):
        spread = {(lr, seed): (recall, recall + (0.02 if seed else -0.02)) for lr in (1e-3,) for seed in (0, 1)}
        return trial(spread, architecture=architecture, state=state, dials={"state": state}, **more)

    return points(
        rows(
            at("based", 1024, 0.3),
            at("based", 4096, 0.6),
            at("based", 8192, 0.5),
            at("based", 16384, 0.8),
            at("sliding-window", 2048, 0.1),
            at("sliding-window", 16384, 0.3),
            at("attention", 65536, 0.98),
        )
    )


def texts(axes: Axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


def frontier_line(axes: Axes, color: str):
    return next(line for line in axes.lines if to_hex(line.get_color()) == color and line.get_linestyle() != "None")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KB"),
        (1536, "1.5 KB"),
        (4096, "4 KB"),
        (100 * 1024, "100 KB"),
        (2**20 - 1, "1 MB"),
        (2**20 * 2.25, "2.25 MB"),
        (3 * 2**30, "3 GB"),
        (2**50, "1024 TB"),
    ],
)
def test_human_bytes(size, text):
    assert human_bytes(size) == text


@pytest.mark.parametrize("size", [-1, float("nan"), float("inf")])
def test_human_bytes_refuses(size):
    with pytest.raises(ValueError, match="0 or more"):
        human_bytes(size)


def test_line_goes_through_the_frontier_and_every_trial_is_a_mark(table):
    axes = plot_frontier(table).axes[0]
    line = frontier_line(axes, KNOWN["based"].color)
    assert line.get_xdata().tolist() == [1024, 4096, 16384]
    assert line.get_ydata() == pytest.approx([0.3, 0.6, 0.8])
    marks = [xy for m in axes.lines if m.get_linestyle() == "None" for xy in zip(*m.get_data(), strict=True)]
    drawn = sorted((x, round(y, 9)) for x, y in marks)
    assert drawn == sorted((x, round(y, 9)) for x, y in zip(table["state_bytes"], table["recall"], strict=True))


def test_bars_are_the_bootstrap_intervals(table):
    axes = plot_frontier(table).axes[0]
    bars = sorted(tuple(np.round(s, 9).ravel()) for c in axes.collections for s in c.get_segments())
    rows = table[["state_bytes", "ci_low", "ci_high"]].itertuples(index=False)
    assert bars == sorted(tuple(np.round((s, low, s, high), 9)) for s, low, high in rows)


def test_one_seed_draws_no_bars(rows, trial):
    axes = plot_frontier(points(rows(trial({(1e-3, 0): (0.5, 0.4)})))).axes[0]
    assert not any(len(c.get_segments()) for c in axes.collections)


def test_reference_is_dashed_only_beside_others(table):
    axes = plot_frontier(table).axes[0]
    assert frontier_line(axes, KNOWN["attention"].color).is_dashed()
    assert not frontier_line(axes, KNOWN["based"].color).is_dashed()
    alone = plot_frontier(table[table["architecture"] == "attention"]).axes[0]
    assert not frontier_line(alone, KNOWN["attention"].color).is_dashed()


def test_names_stand_beside_the_lines_and_on_no_mark(table):
    for size in ((3.4, 2.6), (5.0, 3.5), (10.0, 5.6)):
        figure = plot_frontier(table, size=size)
        axes = figure.axes[0]
        assert texts(axes) == {"based", "sliding-window", "attention"}
        assert not figure.legends
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        marks = axes.transData.transform(table[["state_bytes", "recall"]].to_numpy())
        assert not any(box.contains(*mark) for box in boxes for mark in marks)
        assert all(axes.bbox.containsx(b.x1) and axes.bbox.containsy(b.y1) for b in boxes)


def test_legend_where_names_would_not_fit(rows, trial):
    made = [
        trial({(1e-3, 0): (0.5, 0.5 + 0.0005 * k)}, architecture=name, state=size, dials={"state": size})
        for k, name in enumerate(sorted(KNOWN))
        for size in (1024, 4096)
    ]
    figure = plot_frontier(points(rows(*made)), size=(3.4, 2.6))
    assert not figure.axes[0].texts
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == set(KNOWN)
    figure.draw_without_rendering()
    assert legend.get_window_extent().width <= figure.bbox.width
    assert figure.axes[0].bbox.height > 100  # of a figure that was 260 high: the legend has not eaten the axes


@pytest.mark.parametrize(
    ("sizes", "first", "last"),
    [((512, 4096), "512 B", "4 KB"), ((256, 2**20), "256 B", "1 MB"), ((16, 2**34), "32 B", "32 GB")],
)
def test_ticks_are_powers_of_two_in_words(rows, trial, sizes, first, last):
    made = [trial({(1e-3, 0): (0.5, 0.5)}, state=size, dials={"state": size}) for size in sizes]
    axes = plot_frontier(points(rows(*made))).axes[0]
    assert axes.get_xscale() == "log"
    low, high = axes.get_xlim()
    assert low < min(sizes) < max(sizes) < high
    places = axes.xaxis.get_majorticklocs()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [human_bytes(place) for place in places]
    assert (labels[0], labels[-1]) == (first, last)
    assert 2 <= len(labels) <= 7
    assert all(float(np.log2(place)).is_integer() for place in places)


def test_a_state_of_nothing_has_its_place(rows, trial):
    made = [
        trial({(1e-3, 0): (0.1, 0.1)}, state=0, architecture="short-conv"),
        trial({(1e-3, 0): (0.5, 0.5)}, state=2048),
    ]
    axes = plot_frontier(points(rows(*made))).axes[0]
    labels = {label.get_text(): x for x, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}
    assert frontier_line(axes, KNOWN["short-conv"].color).get_xdata() == [labels["none"]]
    assert axes.get_xlim()[0] < labels["none"] < 2048
    alone = plot_frontier(points(rows(made[0]))).axes[0]
    assert "none" in [label.get_text() for label in alone.get_xticklabels()]


def test_caption_says_what_was_measured(table):
    (caption,) = [t.get_text() for t in [plot_frontier(table)._supxlabel]]
    flat = " ".join(caption.split())
    assert flat.replace("\u00a0", " ") == (
        "Task mqar, slice T64-N4; 1000 test sequences; 2 seeds, bars: 95 % bootstrap interval of their mean; "
        "hollow: below the frontier."
    )


def test_nothing_to_draw(table):
    with pytest.raises(InputError, match="no point"):
        plot_frontier(table.head(0))


def test_settings_of_the_reader_are_neither_used_nor_changed(table, tmp_path):
    save(plot_frontier(table), tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9, "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        save(plot_frontier(table), tmp_path / "b.svg")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_save_is_whole_and_the_same_each_time(table, tmp_path, suffix, magic):
    path = tmp_path / f"frontier{suffix}"
    contents = []
    for _ in range(2):
        save(plot_frontier(table), path)
        contents.append(path.read_bytes())
    assert contents[0].startswith(magic)
    assert contents[0] == contents[1]
    assert list(tmp_path.iterdir()) == [path]


def test_png_is_300_dpi(table, tmp_path):
    save(plot_frontier(table, size=(3.4, 2.6)), tmp_path / "a.png")
    header = (tmp_path / "a.png").read_bytes()[16:24]
    assert (int.from_bytes(header[:4]), int.from_bytes(header[4:])) == (1020, 780)


@pytest.mark.parametrize("name", ["frontier.jpg", "frontier", "frontier.png.txt"])
def test_unknown_suffix(table, tmp_path, name):
    with pytest.raises(InputError, match=r"must end in \.png, \.svg, \.pdf"):
        save(plot_frontier(table), tmp_path / name)


def test_places_that_cannot_be_written(table, tmp_path):
    figure = plot_frontier(table)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "missing" / "a.png", tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(InputError, match="cannot be written"):
            save(figure, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_listed_looks_are_fixed_and_tellable():
    assert looks(["based", "attention"])["based"] == looks(["based", "mine", "h3"])["based"] == KNOWN["based"]
    assert len({(look.color, look.marker) for look in KNOWN.values()}) == len(KNOWN)
    assert len({(look.marker, look.line) for look in KNOWN.values()}) == len(KNOWN)  # in grey print


def test_own_names_keep_their_look_and_collide_with_nothing():
    assert looks(["mine"])["mine"] == looks(["mine", *KNOWN])["mine"]
    # A constant, because a look that changes between versions or machines is no fixed look.
    assert looks(["mine"])["mine"] == Look("#44aa99", "H")
    names = [f"mixer-{k}" for k in range(30)]
    found = looks([*names, *KNOWN])
    assert len({(look.color, look.marker) for look in found.values()}) == len(names) + len(KNOWN)
    assert not {found[n].color for n in names} & {look.color for look in KNOWN.values()}
    assert len({look.color for look in looks(names[:5]).values()}) == 5  # a colour each while there are enough
    with pytest.raises(InputError, match="31 architectures"):
        looks([*names, "one-more"])


@pytest.mark.parametrize("color", sorted({look.color for look in KNOWN.values()}))
def test_text_is_readable_on_white(color):
    rgb = np.array([int(ink(color)[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) > 4.45  # rounding to #rrggbb takes a little


def test_table_says_it_in_words(rows, trial):
    solved = trial({(1e-3, 0): (1.0, 0.9999), (1e-2, 0): (None, None)}, architecture="attention", state=65536)
    edge = trial(
        {(lr, seed): ((a, a), (a, a - 0.1 * seed)) for lr, a in ((1e-3, 0.2), (1e-2, 0.6)) for seed in (0, 1)},
        dials={"feature_dim": 8, "window": 0},
        slices=("T64-N4", "T64-N8"),
        state=1536,
    )
    (row,) = points_table(points(rows(edge))).to_dict("records")
    assert row == {
        "frontier": "*",
        "architecture": "based",
        "dials": "feature_dim=8 window=0",
        "d_model": "64",
        "state": "1.5 KB",
        "recall %": "57.5",
        "interval": "55.0 to 60.0",
        "T64-N4": "60.0",
        "T64-N8": "55.0",
        "learning rate": ">0.01",
        "notes": "try a larger learning rate",
    }
    (row,) = points_table(points(rows(solved))).to_dict("records")
    assert "T64-N4" not in row  # a single slice is the recall itself
    assert (row["recall %"], row["interval"], row["learning rate"]) == ("99.9", "", "<0.001")  # not quite 100
    assert row["notes"] == "1 of 2 diverged"  # solved: the edge is marked, and needs no advice


def test_table_marks_the_frontier_of_each_architecture(table):
    text = points_table(table)
    assert len(text) == len(table)
    assert text.loc[text["frontier"] == "", "state"].tolist() == ["8 KB"]


def test_percent_never_rounds_up_to_solved():
    assert [words.percent(x) for x in (1.0, 0.9996, 0.99949, 0.0)] == ["100.0", "99.9", "99.9", "0.0"]
