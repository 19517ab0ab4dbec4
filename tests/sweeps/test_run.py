"""Sweeps through Ray Tune, for real: killed in every way, continued, and compared row by row with what `fit` gives.

One sweep goes through it all, as each start of Ray takes seconds: `story` runs it, the tests look at its chapters.
"""

import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from helpers import Driver, request, result, rows_of, still_alive, trials

from zoology.record import TrialResult
from zoology.registry import InputError, load_plugin
from zoology.sweeps import run as run_module
from zoology.sweeps.folder import RunFolder
from zoology.sweeps.launch import Resources
from zoology.sweeps.run import WORKER_DEATHS, run_sweep
from zoology.sweeps.space import Request, expand
from zoology.sweeps.stopping import Stopped, Stopping
from zoology.train import run_trial

PLUGIN = Path(__file__).parent / "plugins" / "mischief.py"

OURS = re.compile(r"(notice: |drawing |auditing |starting Ray|\[\d/\d\] |error: interrupted; .* --resume goes on)")
"""What a driver may print before its table."""

COMMAND = ["--arch", "sliding-window,mischief", "--window", "2,4,8", "--no-reference", "--name", "story", "--resume"]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A sweep of eight trials: begun and killed, continued and interrupted, mended in part and continued to its end.

    The plugin lies elsewhere, and is gone from the disk before any worker has read it.
    """
    home, elsewhere = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("elsewhere")
    plugin = elsewhere / "mischief.py"
    run = home / "runs" / "story"
    drivers = []

    def driver(*arguments, **env):
        shutil.copy(PLUGIN, plugin)
        env["ZOOLOGY_TEST_MARK"] = str(home / "mark")
        drivers.append(Driver(*COMMAND, "--plugin", str(plugin), *arguments, cwd=home, **env))
        drivers[-1].until("starting Ray")
        plugin.unlink()
        return drivers[-1]

    try:
        killed = driver().until(r"^\[1/8\]").kill(signal.SIGKILL)
        killed.code = killed.wait()
        killed.rows = rows_of(run)
        stopped = driver().until("failed mischief d_model=16 fate=raise").kill(signal.SIGINT, group=True)
        time.sleep(0.1)
        stopped.kill(signal.SIGINT, group=True)
        begin = time.monotonic()
        stopped.code = stopped.wait()
        stopped.seconds = time.monotonic() - begin
        stopped.rows = rows_of(run)
        more = ("--retry-failed", "--cpus-per-trial", "0.5", "--max-concurrent", "2")
        ended = driver(*more, ZOOLOGY_TEST_MENDED="raise")
        ended.code = ended.wait()
        ended.rows = rows_of(run)
        yield SimpleNamespace(killed=killed, stopped=stopped, ended=ended, run=run)
    finally:
        for each in drivers:
            each.end()


def by_trial(rows):
    """(architecture, its one dial) -> rows."""
    table = {}
    for row in rows:
        table.setdefault((row["architecture"], *row["dials"].values()), []).append(row)
    return table


def statuses(rows):
    return {key: block[0]["status"] for key, block in by_trial(rows).items()}


@pytest.fixture
def undisturbed(story, own_registries, monkeypatch):
    """The rows of each trial as `fit` gives them in this process, where nothing is killed."""
    monkeypatch.setenv("ZOOLOGY_TEST_MENDED", "raise diverge die-once die-always")
    load_plugin(PLUGIN)
    kept = json.loads((story.run / "sweep.json").read_text())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for spec in expand(Request(**kept["request"])):
            ended = run_trial(spec)
            assert ended.status == "ok", ended.error
            rows += json.loads(json.dumps(ended.rows()))
    finally:
        torch.set_num_threads(threads)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_what_was_finished_outlives_every_death(story):
    """And is not run again: each later sweep begins where the one before it ended."""
    assert story.killed.code == -signal.SIGKILL
    assert len(story.killed.rows) >= 6, "the first trial's rows"
    assert story.stopped.rows[: len(story.killed.rows)] == story.killed.rows
    before, after = by_trial(story.stopped.rows), by_trial(story.ended.rows)
    # One that was put on disk may not have been printed any more.
    assert len(before) - len(by_trial(story.killed.rows)) - len(story.stopped.finished) in (0, 1)
    del before["mischief", "raise"]  # which is to be retried
    assert all(after[key] == block for key, block in before.items())
    assert len(after) == 8 == len(before) + len(story.ended.finished)


def test_the_rows_in_the_end_are_those_of_an_undisturbed_sweep(story, undisturbed):
    """In its order, none lost, none twice; also of the trial whose worker died, and of the one that was mended."""
    expected, found = by_trial(undisturbed), by_trial(story.ended.rows)
    assert [row["trial"] for row in story.ended.rows[:18]] == [row["trial"] for row in undisturbed[:18]]
    assert list(found) == list(expected)
    for key in expected:
        if key not in (("mischief", "diverge"), ("mischief", "die-always")):
            assert found[key] == expected[key]


def test_a_trial_that_raises_and_one_whose_workers_die_are_failures_and_the_sweep_goes_on(story):
    (raised,) = by_trial(story.stopped.rows)["mischief", "raise"]
    assert raised["status"] == "failed"
    assert raised["error"].startswith("Traceback")
    assert raised["error"].endswith("ArithmeticError: a mixer that gives up\n")
    assert statuses(story.ended.rows) == {
        ("sliding-window", 2): "ok",
        ("sliding-window", 4): "ok",
        ("sliding-window", 8): "ok",
        ("mischief", "none"): "ok",
        ("mischief", "raise"): "ok",
        ("mischief", "diverge"): "diverged",
        ("mischief", "die-once"): "ok",
        ("mischief", "die-always"): "failed",
    }
    (dead,) = by_trial(story.ended.rows)["mischief", "die-always"]
    assert f"WorkerDied: its worker died {WORKER_DEATHS + 1} times" in dead["error"].splitlines()[-1]
    assert story.ended.code == 0
    table = story.ended.text.partition("   architecture")[2]
    assert "WorkerDied: " in table


def test_a_replica_that_diverges_is_a_result(story):
    for row in by_trial(story.ended.rows)["mischief", "diverge"]:
        assert row["status"] == "diverged"
        assert row["accuracy"] is None
        assert row["state_bytes"] > 0


def test_ctrl_c_ends_in_seconds_and_says_how_to_go_on(story):
    """Twice, and to the whole process group, as from a terminal."""
    assert story.stopped.code == 130
    assert story.stopped.seconds < 20
    assert story.stopped.lines[-1] == (
        "error: interrupted; what was finished is on disk, and --resume goes on from there\n"
    )


def test_nothing_is_printed_but_ours(story):
    """No traceback, no warning, none of Ray's chatter, at deaths least of all."""
    for driver in (story.killed, story.stopped):
        assert [line for line in driver.lines if not OURS.match(line)] == []
    shown = story.ended.text.partition("   architecture")[0]
    assert [line for line in shown.splitlines() if not OURS.match(line)] == []
    assert "\x1b" not in story.ended.text
    assert shown.count("worker died mischief d_model=16 fate=die-always  runs again") == WORKER_DEATHS


def test_no_process_is_left(story):
    """Ray's own agents see the death of a killed driver within a minute; they are not waited for here."""
    assert len(story.stopped.children) >= 5, "there were some"
    assert still_alive(story.stopped.children, 10) == {}
    working = {pid: words for pid, words in story.killed.children.items() if "agent" not in words.lower()}
    assert len(working) >= 5
    assert still_alive(working, 10) == {}


def test_no_file_is_left_in_the_run(story):
    assert sorted(path.name for path in story.run.iterdir()) == [
        *(".lock", "audit.json", "environment.json", "frontier.png", "results.jsonl", "sweep.json", "weights")
    ]
    assert {path.stem for path in (story.run / "weights").iterdir()} == {
        row["trial"] for row in story.ended.rows if row["status"] != "failed"
    }


def test_what_the_audit_found_lies_beside_the_rows(story):
    kept = json.loads((story.run / "audit.json").read_text())["verdicts"]
    assert {verdict["mixer"] for verdict in kept} == {"short-conv", "sliding-window", "mischief"}
    assert not any(verdict["findings"] for verdict in kept)


def test_a_sweep_of_failures_ends_with_exit_code_1_and_needs_no_ray(tmp_path):
    specs, asked = trials(2), request(2)
    with RunFolder.open(tmp_path / "runs" / "lost", asked, specs, "zoology sweep", False) as folder:
        folder.append(TrialResult.failed(specs[0], "Traceback\nValueError: no"))
    arguments = ["--arch", "sliding-window", "--window", "2", "--num-pairs", "4", "--no-reference"]
    driver = Driver(*arguments, "--name", "lost", "--resume", cwd=tmp_path)
    try:
        assert driver.wait() == 1
        assert "ValueError: no" in driver.text
        assert "Ray" not in driver.text
    finally:
        driver.end()


@pytest.mark.parametrize("address", ["nonsense", "host:", ":1", "host:port", "host:70000", "ray://"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(InputError, match=f"--address {address}: is not allowed; auto, or host:port"):
        run_module._knock(address)


def test_a_cluster_that_does_not_answer_is_not_waited_for(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        run_module._knock(f"127.0.0.1:{port}")
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray would wait for minutes"))
    begin = time.monotonic()
    for address in (f"127.0.0.1:{port}", "no-such-host.invalid:6379"):
        with (
            pytest.raises(InputError, match=f"--address {address}: no Ray cluster answers there"),
            run_module.cluster(Resources(address=address)),
        ):
            pass
    assert time.monotonic() - begin < 15


@pytest.fixture
def no_ray(monkeypatch):
    """Ray that starts at once, on four cores and a GPU. Holds what it was asked."""
    calls = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    return calls


@pytest.mark.parametrize(
    ("asked", "slots"),
    [
        ({}, 4),
        ({"cpus_per_trial": 0.5}, 8),
        ({"cpus_per_trial": 3}, 1),
        ({"max_concurrent": 2}, 2),
        ({"gpus_per_trial": 1}, 1),
        ({"gpus_per_trial": 0.25}, 4),
        ({"gpus_per_trial": 0.5, "max_concurrent": 1}, 1),
    ],
)
def test_how_many_trials_run_at_a_time(no_ray, asked, slots):
    with run_module.cluster(Resources(**asked)) as ready:
        assert ready.slots == slots
    assert no_ray[-1] == "shutdown"


@pytest.mark.parametrize(("flag", "have"), [("cpus", 4), ("gpus", 1)])
def test_a_trial_that_fits_nowhere_is_refused(no_ray, flag, have):
    with (
        pytest.raises(InputError, match=f"--{flag}-per-trial 99 is more than there is: {have} {flag[:-1].upper()}s"),
        run_module.cluster(Resources(**{f"{flag}_per_trial": 99})),
    ):
        pass
    assert no_ray[-1] == "shutdown"


def test_ray_starts_here_unless_an_address_is_given(no_ray, monkeypatch):
    with run_module.cluster(Resources()) as ready:
        assert no_ray[0]["address"] == "local"
        assert no_ray[0]["_temp_dir"].startswith(str(ready.scratch))
    with run_module.cluster(Resources(address="auto")):
        assert "_temp_dir" not in no_ray[2]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with run_module.cluster(Resources()):
        assert no_ray[4]["address"] == "auto"


def test_the_signal_of_ray_itself_is_ours(monkeypatch, no_ray):
    """Ray puts a handler in place that exits, and keeps it while it starts."""

    def init(**options):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(Stopped) as stopped, run_module.cluster(Resources()):
        pass
    assert stopped.value.exit_code == 143
    assert no_ray == ["shutdown"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_scratch_is_taken_away_with_that_of_the_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.tempfile, "gettempdir", lambda: "/tmp")
    dead, young, held = (Path(run_module.tempfile.mkdtemp(prefix=run_module.SCRATCH)) for _ in range(3))
    try:
        with run_module._hold(held):
            for folder in (dead, held):
                (folder / "sweep").mkdir()
                os.utime(folder, (0, 0))
            with run_module._scratch() as scratch:
                assert scratch.is_dir()
                assert (dead.exists(), young.exists(), held.exists()) == (False, True, True)
            assert not scratch.exists()
    finally:
        for folder in (young, held):
            shutil.rmtree(folder)


class Rounds:
    """Stands for Tune: calls the driver as Tune does, one scripted round after the other."""

    def __init__(self, *rounds):
        self.rounds = list(rounds)

    def __call__(self, rest, driver, resources, scratch):
        script = self.rounds.pop(0)
        try:
            for spec in rest:
                self.play(spec, script(spec), driver)
        except InputError:  # Tune hands on the text of what a callback raised
            raise ray.tune.TuneError("Traceback (most recent call last) ...") from None

    def play(self, spec, events, driver):
        trial = SimpleNamespace(config={"spec": spec.model_dump_json()}, error_file=None)
        driver.on_trial_start(0, [], trial)
        for event in events:
            if event == "ok":
                driver.on_trial_result(0, [], trial, {"result": result(spec).model_dump_json(exclude={"spec"})})
            else:
                getattr(driver, f"on_trial_{event}")(0, [], trial)
        driver.on_step_end(0, [])


class Seen(list):
    """A watcher that keeps what it is told."""

    def started(self, spec):
        self.append(("started", spec.dials["window"]))

    def died(self, spec):
        self.append(("died", spec.dials["window"]))

    def finished(self, ended):
        self.append((ended.status, ended.spec.dials["window"]))


@pytest.fixture
def rounds(monkeypatch, tmp_path):
    """A function that runs three trials through scripted rounds; returns what was seen, and the folder's rows."""

    def go(*scripts):
        seen, tune = Seen(), Rounds(*scripts)
        monkeypatch.setattr(run_module, "_tune", tune)
        place = run_module.Cluster(1, tmp_path, Stopping())
        with RunFolder.open(tmp_path / "run", request(), trials(), "x", False) as folder:
            run_sweep(folder, Resources(), place, seen)
        assert tune.rounds == []
        return seen, rows_of(tmp_path / "run")

    return go


def test_a_worker_that_dies_between_two_trials_costs_neither(rounds):
    """Tune gives the trial that was about to begin up at once; a further round runs it."""
    seen, rows = rounds(lambda spec: ["error"] if spec.dials["window"] == 4 else ["ok"], lambda spec: ["ok"])
    assert seen[2:4] == [("started", 4), ("died", 4)]
    assert seen[-2:] == [("started", 4), ("ok", 4)]
    assert [row["status"] for row in rows] == ["ok"] * 6


def test_deaths_are_counted_over_all_rounds(rounds):
    seen, rows = rounds(
        lambda spec: ["ok"] if spec.dials["window"] != 4 else ["recover", "recover", "error"],
        lambda spec: ["error"],
    )
    assert seen.count(("died", 4)) == WORKER_DEATHS
    assert seen[-1] == ("failed", 4)
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["error"].splitlines()[-1].startswith(f"WorkerDied: its worker died {WORKER_DEATHS + 1} times")


def test_a_tune_that_leaves_trials_is_no_endless_loop(rounds):
    with pytest.raises(RuntimeError, match="ended with 3 trials that did not run and did not fail"):
        rounds(lambda spec: [])


def test_a_full_disk_ends_the_sweep_in_plain_words(rounds, monkeypatch):
    def append(self, ended):
        raise InputError("results.jsonl cannot be written: no space")

    monkeypatch.setattr(RunFolder, "append", append)
    with pytest.raises(InputError, match="cannot be written: no space"):
        rounds(lambda spec: ["ok"])
