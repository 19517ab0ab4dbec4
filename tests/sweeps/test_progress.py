"""What a sweep shows: plain lines in a file, one live display on a terminal, and a time left that means something."""

import io
import itertools

import pytest
from helpers import result, trials
from rich.console import Console

from zoology.record import TrialResult
from zoology.sweeps import progress
from zoology.sweeps.progress import SweepProgress, best_recall, busy, clock, cost, describe


class Clock:
    """A `time` whose seconds pass by hand."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    monkeypatch.setattr(progress, "time", Clock())
    return progress.time


def screen(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False, color_system=None)


def test_plain_lines_for_a_file(time):
    console, specs = screen(), trials(2, 4, 8)
    with SweepProgress(specs, 2, 1, console) as shown:
        for spec in specs:
            shown.started(spec)
        time.now += 1.5
        shown.finished(result(specs[0], 0.5))
        shown.died(specs[1])
        shown.started(specs[1])
        shown.finished(TrialResult.failed(specs[1], "Traceback:\n  line\nValueError: [no] way"))
        shown.finished(result(specs[2], None, status="diverged"))
    assert console.file.getvalue().splitlines() == [
        "[3/5]   50.00% sliding-window d_model=16 window=2  1.5 s",
        "[3/5] worker died sliding-window d_model=16 window=4  runs again",
        "[4/5]   failed sliding-window d_model=16 window=4  ValueError: [no] way  0.0 s",
        "[5/5] diverged sliding-window d_model=16 window=8  (1 of 1 replicas diverged)  1.5 s",
    ]


def test_a_terminal_has_one_live_display_that_goes_away(time):
    console, display, specs = screen(terminal=True), screen(), trials(2, 4, 8, 16)

    def sweep():
        with SweepProgress(specs, 0, 2, console) as shown:
            for spec in specs[:3]:
                shown.started(spec)
            time.now += 10
            shown.finished(result(specs[0], 0.25, seconds=10))
            shown.finished(TrialResult.failed(specs[1], "ValueError: no"))
            display.print(shown.render())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep()
    text = display.file.getvalue()
    for words in ("2/4 done", "1 running", "1 failed", "0:10 elapsed", "about 0:10 left", "best so far  25.00%"):
        assert words in text
    assert "running      sliding-window d_model=16 window=8  0:10" in text
    drawn = console.file.getvalue()
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1, "the cursor comes back"
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


@pytest.mark.parametrize("gpu", [True, False])
def test_the_time_left_weighs_trials_by_what_they_cost(time, gpu):
    """At a constant pace the estimate is the truth, though the long trials come first."""
    specs = sorted(trials(2, 4, d_model=(16, 32, 64)), key=lambda spec: cost(spec, gpu), reverse=True)
    costs = [cost(spec, gpu) for spec in specs]
    shown = SweepProgress(specs, 0, 1, screen(), gpu)
    assert shown.seconds_left is None
    left = sum(costs)
    for spec, seconds in zip(specs, costs, strict=True):
        shown.started(spec)
        time.now += seconds
        shown.finished(result(spec, seconds=seconds))
        left -= seconds
        assert shown.seconds_left == pytest.approx(left, abs=1e-9)


def test_the_time_left_counts_what_is_running_and_how_many_run_at_a_time(time):
    specs = trials(2, 4, 8, 16)
    shown = SweepProgress(specs, 0, 2, screen())
    for spec in specs[:2]:
        shown.started(spec)
    time.now += 30  # of which 20 went to the start of the worker
    shown.finished(result(specs[0], seconds=10))
    shown.started(specs[2])
    assert shown.seconds_left == pytest.approx((0 + 10 + 10) / 2), "the second is overdue"
    time.now += 4
    assert shown.seconds_left == pytest.approx(10), "no less than the longest that is left"
    shown.started(specs[3])
    time.now += 4
    assert shown.seconds_left == pytest.approx(6)


def test_the_time_left_knows_slow_architectures_and_ignores_failures(time):
    specs = trials(2, 4, architectures=("sliding-window", "attention"))
    windows, attention = specs[:2], specs[2]
    shown = SweepProgress(specs, 0, 1, screen())
    shown.finished(TrialResult.failed(windows[0], "at once"))
    assert shown.seconds_left is None
    shown.finished(result(windows[1], seconds=10))
    assert shown.seconds_left == pytest.approx(10)
    more = SweepProgress((*specs, *trials(8)), 0, 1, screen())
    more.finished(result(attention, seconds=100))
    more.finished(result(windows[0], seconds=10))
    assert more.seconds_left == pytest.approx(20)


@pytest.mark.parametrize("gpu", [True, False])
def test_cost_grows_with_all_that_makes_a_trial_longer(gpu):
    def cost_of(spec):
        return cost(spec, gpu)

    (base,) = trials(2, training={"threshold": None})
    (wide,) = trials(2, d_model=(64,), training={"threshold": None})
    (seeds,) = trials(2, training={"learning_rates": (1e-3, 1e-2), "seeds": (0, 1)})
    (deep,) = trials(2, architectures=("short-conv+sliding-window+sliding-window",))
    assert cost_of(base) < cost_of(wide)
    (base,) = trials(2)
    assert cost_of(base) < min(cost_of(seeds), cost_of(deep))
    assert cost_of(seeds) == pytest.approx(4 * cost_of(base))


def test_where_replicas_stop_at_a_threshold_narrow_ones_take_longer_than_wide_ones():
    """As measured: they never reach it. On a GPU all replicas of a trial go on until the last is done."""
    narrow, wide = trials(2, d_model=(8, 32))
    assert cost(narrow, gpu=False) > cost(wide, gpu=False)
    assert cost(narrow, gpu=True) < cost(wide, gpu=True)


def test_the_best_so_far_is_chosen_on_validation():
    (spec,) = trials(2, training={"learning_rates": (1e-3, 1e-2, 1e-1)})
    replicas = [result(spec, test, valid=valid).replicas[0] for valid, test in ((0.6, 0.9), (0.8, 0.7), (None, None))]
    assert best_recall(TrialResult(spec=spec, replicas=tuple(replicas))) == pytest.approx(0.7)
    assert best_recall(TrialResult(spec=spec, replicas=tuple(replicas[2:]))) is None
    assert best_recall(TrialResult.failed(spec, "no")) is None


def test_words():
    (spec,) = trials(2)
    assert describe(spec) == "sliding-window d_model=16 window=2"
    assert [clock(s) for s in (0, 59.4, 59.6, 65, 3599, 3600, 7390)] == [
        *("0:00", "0:59", "1:00", "1:05", "59:59", "1:00:00", "2:03:10")
    ]


def test_busy_says_what_it_does():
    plain, terminal = screen(), screen(terminal=True)
    for console in (plain, terminal):
        with busy(console, "starting"):
            pass
    assert plain.file.getvalue() == "starting ...\n"
    drawn = terminal.file.getvalue()
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h")
    assert all(a <= b for a, b in itertools.pairwise([drawn.find("\x1b[?25l"), drawn.rfind("\x1b[?25h")]))
