"""Every kind of picture by the data it was given to draw, and one image of each against its baseline.

`WRITE_BASELINE=1 pytest tests/analysis/test_pictures.py` makes the baselines anew, for pictures that were changed on
purpose. Look at them before they are committed.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread, imsave
from matplotlib.testing.compare import compare_images

from zoology.analysis.frontier import points
from zoology.analysis.learning import curves, rate_table
from zoology.analysis.limits import task_limit
from zoology.analysis.plots import COLUMN, KINDS, PAGE, draw, size_of
from zoology.analysis.plots.extrapolation import plot_extrapolation
from zoology.analysis.plots.frontier import plot_frontier
from zoology.analysis.plots.learning_rate import plot_learning_rate
from zoology.analysis.plots.order import plot_order
from zoology.analysis.plots.slices import plot_slices
from zoology.analysis.plots.state import plot_state
from zoology.analysis.plots.style import KNOWN
from zoology.analysis.plots.training import mean_curve, plot_training
from zoology.analysis.published import published
from zoology.analysis.slices import by_order, by_slice
from zoology.registry import InputError

BASELINE = Path(__file__).parent / "baseline"
BLOCK, TOLERANCE = 8, 5.0
"""Images are compared by blocks of 8 x 8 pixels, a tenth of an inch: the root mean square of mean colours, of 255.
Text that another version sets a little otherwise stays below it; lines that are lower do not."""

MQAR = {f"T{t}-N{n}": {"vocab_size": 64, "seq_len": t, "num_pairs": n} for t, n in ((64, 4), (64, 8), (128, 8))}
SETS = {f"A{a}-B{b}": {"size_a": a, "size_b": b} for a, b in ((4, 16), (16, 4))}
LIMITS = dict.fromkeys(MQAR, ((0.25, 320.0), (0.5, 800.0), (0.75, 1600.0), (1.0, 4000.0)))


@pytest.fixture
def mqar(rows, trial):
    """Three architectures, two seeds, three rates; 128 tokens lie beyond training. With curves and limits."""

    def at(architecture, state, recall, best):
        accuracies = {}
        for k, rate in enumerate((1e-3, 3e-3, 1e-2)):
            for seed in (0, 1):
                a = max(0.0, recall - 0.2 * abs(k - best) + 0.02 * seed)
                test = (a, a * 0.9, a * 0.5)
                lost = architecture == "mamba" and rate == 1e-2 and seed == 1
                accuracies[rate, seed] = (None, None) if lost else (test, test)
        return trial(
            accuracies,
            architecture=architecture,
            state=(state, state, 2 * state),
            dials={"state": state},
            slices=tuple(MQAR),
            params=MQAR,
            train=(MQAR["T64-N4"], MQAR["T64-N8"]),
            limits=LIMITS,
        )

    table = rows(
        at("based", 1024, 0.4, 1),
        at("based", 4096, 0.8, 1),
        at("mamba", 2048, 0.5, 0),
        at("mamba", 8192, 0.9, 1),
        at("attention", 16_384, 0.95, 2),
    )
    speed = {"based": 300, "mamba": 200, "attention": 100}
    table["curve"] = [
        [[step, 1.0, a * (1 - np.exp(-step / speed[name]))] for step in range(100, 1001, 100)]
        if split == "valid" and a == a
        else None
        for split, name, a in zip(table["split"], table["architecture"], table["accuracy"].astype(float), strict=True)
    ]
    return table


@pytest.fixture
def sets(rows, trial):
    def at(architecture, small_first, large_first):
        return trial(
            {(1e-3, seed): (0.5, (small_first, large_first - 0.1 * seed)) for seed in (0, 1)},
            architecture=architecture,
            task="set-disjointness",
            slices=tuple(SETS),
            params=SETS,
        )

    return rows(at("based", 0.9, 0.5), at("mamba", 0.7, 0.65), at("attention", 1.0, 1.0))


def line_of(axes, name):
    """(x, y) of the line of an architecture."""
    color = KNOWN[name].color
    line = next(found for found in axes.lines if to_hex(found.get_color()) == color and found.get_linestyle() != "None")
    return line.get_xdata().tolist(), pytest.approx(line.get_ydata().tolist())


def words(figure):
    return " ".join(" ".join(t.get_text() for t in figure.findobj(lambda o: hasattr(o, "get_text"))).split())


@pytest.mark.parametrize("kind", KINDS)
def test_image(kind, mqar, sets, tmp_path):
    figure = draw(kind, sets if kind == "order" else mqar, published=kind == "frontier", size=COLUMN)
    actual, expected = tmp_path / f"{kind}.png", BASELINE / f"{kind}.png"
    figure.savefig(actual, dpi=80, metadata={"Software": None})
    if os.environ.get("WRITE_BASELINE"):
        expected.parent.mkdir(exist_ok=True)
        expected.write_bytes(actual.read_bytes())
    assert compared(expected, actual, tmp_path) is None


def compared(expected, actual, folder):
    """What differs between two images, in words, or None."""
    coarse = []
    for name, path in (("expected", expected), ("actual", actual)):
        pixels = imread(path)[..., :3]
        rows, columns = (n // BLOCK for n in pixels.shape[:2])
        blocks = pixels[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK, 3)
        coarse.append(str(folder / f"{name}-in-blocks.png"))
        imsave(coarse[-1], np.clip(blocks.mean(axis=(1, 3)), 0, 1))
    return compare_images(*coarse, tol=TOLERANCE)


@pytest.mark.parametrize("kind", ["frontier", "extrapolation", "slices", "learning-rate"])
def test_the_tolerance_tells_lower_recall(kind, mqar, tmp_path):
    lower = mqar.assign(accuracy=mqar["accuracy"].astype(float) * 0.85)
    for rows, name in ((mqar, "right"), (lower, "wrong")):
        draw(kind, rows, size=COLUMN).savefig(tmp_path / f"{name}.png", dpi=80)
    assert compared(tmp_path / "right.png", tmp_path / "wrong.png", tmp_path) is not None


def test_limit_is_shaded_up_to_its_last_step(mqar):
    found, limit = points(mqar), task_limit(mqar)
    axes = plot_frontier(found, limit=limit).axes[0]
    assert limit.to_numpy().tolist() == [[40, 0.25], [100, 0.5], [200, 0.75], [500, 1.0]]
    (shade,) = [c for c in axes.collections if c.get_hatch()]
    corners = shade.get_paths()[0].vertices
    assert corners[:, 0].max() == 500
    assert {0.25, 0.5, 0.75} <= set(np.round(corners[:, 1], 6))
    assert axes.get_xlim()[0] < 500
    assert "no model can be here" in words(axes.figure)


def test_a_limit_far_to_the_left_is_told_and_not_drawn(mqar):
    limit = pd.DataFrame({"state_bytes": [1, 2], "recall": [0.5, 1.0]})
    figure = plot_frontier(points(mqar), limit=limit)
    assert not [c for c in figure.axes[0].collections if c.get_hatch()]
    assert figure.axes[0].get_xlim()[0] > 256
    assert "ends at 2 B, left of what is drawn" in words(figure)


def test_published_points_are_told_apart_and_said_to_be_what_they_are(mqar):
    others = published("mqar")
    figure = plot_frontier(points(mqar), published=others, comparable=False)
    drawn = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white" and line.is_dashed()]
    assert len(drawn) == others["architecture"].nunique()
    gla = next(line for line in drawn if to_hex(line.get_color()) == KNOWN["gla"].color)
    own = others[others["architecture"] == "gla"].sort_values("state_bytes")
    assert gla.get_xdata().tolist() == own["state_bytes"].tolist()
    assert gla.get_ydata().tolist() == own["accuracy"].tolist()
    assert "published (Based figure 2)" in words(figure)
    assert "not comparable" in words(figure)
    assert "not comparable" not in words(plot_frontier(points(mqar), published=others))


def test_a_crowd_is_drawn_without_what_lies_below(rows, trial):
    made = [
        trial({(1e-3, 0): (0.5, recall)}, architecture=name, state=size, dials={"size": size})
        for name in KNOWN
        for size, recall in ((1024, 0.3), (2048, 0.2))
    ]
    figure = plot_frontier(points(rows(*made)))
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_linestyle() == "None") == len(KNOWN)
    assert "below the frontier are left out" in words(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().height <= figure.bbox.height
    assert figure.axes[0].bbox.width > 0.45 * figure.bbox.width


def test_slices_are_a_table_with_what_lies_beyond_at_the_right(mqar):
    table = by_slice(mqar, [points(mqar).iloc[0]["trial"]]).iloc[::-1]  # beyond first
    figure = plot_slices(table)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["T64-N8", "T64-N4", "T128-N8"]
    assert [text.get_text() for text in axes.texts][:3] == ["86", "96", "48"]  # 0.9, 1 and 0.5 of 96 %
    (edge,) = axes.lines
    assert edge.get_xdata() == [2, 2]
    assert "beyond training" in words(figure)
    within = plot_slices(table[table["beyond"] == ""])
    assert not within.axes[0].lines


def test_slices_put_the_best_first_and_round_nothing_up_to_solved():
    table = pd.DataFrame(
        [
            {"architecture": name, "slice": "T8", "recall": recall, "beyond": "", "state_bytes": 64}
            for name, recall in (("based", 0.2), ("mamba", 0.9999), ("attention", 1.0))
        ]
    )
    axes = plot_slices(table).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["attention", "mamba", "based"]
    assert [text.get_text() for text in axes.texts] == ["100", "99", "20"]


def test_learning_rates_have_a_panel_each_and_show_the_chosen_the_edge_and_the_lost(mqar):
    figure = plot_learning_rate(rate_table(mqar))
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["based", "mamba", "attention"]
    lines = [line for line in panels["based"].lines if len(line.get_xdata()) == 3]
    assert len(lines) == 2
    assert lines[0].get_xdata().tolist() == [1e-3, 3e-3, 1e-2]
    markers = {name: {line.get_marker() for line in axes.lines} for name, axes in panels.items()}
    assert markers["based"] == {"None", "o", "x"}
    assert {"<", "o"} <= markers["mamba"]
    assert ">" in markers["attention"]
    lost = [line for line in panels["mamba"].lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in lost] == [[1e-2], [1e-2]]
    assert "cross: a replica diverged" in words(figure)


def test_rate_table_by_hand(mqar):
    table = rate_table(mqar)
    own = table[(table["architecture"] == "mamba") & (table["state_bytes"] == 16_384)]
    assert own["learning_rate"].tolist() == [1e-3, 3e-3, 1e-2]
    assert own["accuracy"].tolist() == pytest.approx([0.71 * 0.8, 0.91 * 0.8, 0.35 * 0.8])  # mean of 1, 0.9, 0.5
    assert (own["low"].iloc[2], own["high"].iloc[2]) == pytest.approx((0, 0.7 * 0.8))
    assert own["n_diverged"].tolist() == [0, 0, 1]
    assert own["chosen"].tolist() == [False, True, False]
    assert table[table["architecture"] == "attention"]["edge"].tolist() == [None, None, "high"]


def test_training_draws_the_mean_of_seeds_and_keeps_the_last_accuracy():
    part = pd.DataFrame([(0, 10, 0.2), (0, 20, 0.6), (1, 10, 0.4)], columns=["seed", "step", "accuracy"])
    curve = mean_curve(part)
    assert curve["x"].tolist() == [10, 20]
    assert curve["y"].tolist() == pytest.approx([0.3, 0.5])  # seed 1 stopped at 0.4
    assert (curve["low"].tolist(), curve["high"].tolist()) == ([0.2, 0.4], [0.4, 0.6])
    alone = mean_curve(part[part["seed"] == 1])
    assert alone["low"].isna().all()


def test_training_is_of_the_chosen_rate(mqar):
    best = points(mqar).groupby("architecture").tail(1)
    table = curves(mqar, best["trial"].tolist())
    assert table.groupby("trial")["seed"].nunique().tolist() == [2, 2, 2]
    x, y = line_of(plot_training(table).axes[0], "attention")
    accuracy = np.mean([[0.95 * k, 0.97 * k] for k in (1, 0.9, 0.5)], axis=1)[0]  # the curve of the first slice's row
    assert x == list(range(100, 1001, 100))
    assert y == [accuracy * (1 - np.exp(-step / 100)) for step in x]
    with pytest.raises(InputError, match="based has 2 trials"):
        plot_training(curves(mqar))


def test_extrapolation_by_hand(mqar):
    found = points(mqar)
    best = found.loc[found.groupby("architecture")["valid"].idxmax(), "trial"].tolist()
    axes = plot_extrapolation(by_slice(mqar, best)).axes[0]
    x, y = line_of(axes, "based")
    assert x == [64, 128]
    assert y == [0.81 * 0.95, 0.81 * 0.5]  # over N = 4 and 8; over seeds
    (shade,) = axes.patches
    assert 64 < shade.get_x() < 128
    assert "beyond training" in words(axes.figure)


def test_extrapolation_needs_sizes(rows, trial):
    with pytest.raises(InputError, match="do not differ in a size"):
        draw("extrapolation", rows(trial({(1e-3, 0): (0.5, 0.4)})))


def test_order_shows_both_orders_and_the_gain(sets):
    figure = plot_order(by_order(by_slice(sets)))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["based", "mamba", "attention"]
    ends = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    assert [tuple(end) for end in ends] == [pytest.approx(pair) for pair in ((0.9, 0.45), (0.7, 0.6), (1.0, 0.95))]
    assert "+45 (+40 to +50)" in words(figure)


def test_state_is_told_by_part(mqar):
    found = points(mqar).head(2)
    found["state_parts"] = [{"recurrent": 300, "convolution": 100}, {"kv": 600, "recurrent": 200}]
    found["state_bytes"] = [400, 800]
    axes = plot_state(found).axes[0]
    widths = [[round(bar.get_width(), 3) for bar in part] for part in axes.containers]
    assert widths == [[0.75, 0.25], [0, 0.75], [0.25, 0]]  # recurrent, kv, convolution
    assert {"400 B", "800 B"} <= {text.get_text() for text in axes.texts}
    with pytest.raises(InputError, match="tells the parts"):
        plot_state(found.assign(state_parts=[{}, {}]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "order"])
def test_twenty_architectures_at_every_width(kind, mqar):
    one = mqar[mqar["trial"] == mqar["trial"].iloc[0]]
    many = pd.concat(
        [one.assign(architecture=name, trial=f"t{k}", state_bytes=1024 * (k + 1)) for k, name in enumerate(KNOWN)],
        ignore_index=True,
    )
    for width in (3.3, 10.0):
        figure = draw(kind, many, size=size_of(width))
        assert figure.get_figwidth() == width
        assert set(KNOWN) <= set(words(figure).split())
        box = figure.bbox.padded(1)
        for axes in figure.axes:
            if axes.get_visible():
                extent = axes.get_tightbbox()
                assert box.x0 <= extent.x0 <= extent.x1 <= box.x1
                assert box.y0 <= extent.y0 <= extent.y1 <= box.y1


def test_what_rows_do_not_hold_is_said(rows, trial, mqar):
    plain = rows(trial({(1e-3, 0): (0.5, 0.4)}))
    with pytest.raises(InputError, match="no training curve"):
        draw("training", plain)
    with pytest.raises(InputError, match="in both orders"):
        draw("order", mqar)
    with pytest.raises(InputError, match="unknown kind 'frontir': did you mean frontier"):
        draw("frontir", mqar)
    with pytest.raises(InputError, match="not over slices"):
        draw("slices", mqar, published=True)
    with pytest.raises(InputError, match="no point of parity was published"):
        draw("frontier", rows(trial({(1e-3, 0): (0.5, 0.4)}, task="parity")), published=True)


def test_slices_that_are_chosen_are_all_that_is_shown(mqar):
    figure = draw("slices", mqar, slices=["T64-N4"])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["T64-N4"]


@pytest.mark.parametrize("width", [1.0, 31.0, float("nan")])
def test_widths_that_are_no_page(width):
    with pytest.raises(InputError, match="must be from 2 to 30 inches"):
        size_of(width)


def test_known_widths():
    assert size_of(3.3) == pytest.approx(COLUMN)
    assert size_of(5.0) == pytest.approx(PAGE)
