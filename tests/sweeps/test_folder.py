"""A run folder: every row whole or not there, one writer, and nothing of anybody else's touched."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import CLI, request, result, rows_of, trials

from zoology.architectures.audit import Verdict
from zoology.record import FORMAT, Plugin, TrialResult
from zoology.registry import InputError
from zoology.sweeps.folder import RunFolder, run_name, write_whole
from zoology.sweeps.space import Request, expand


def opened(path, *windows, resume=True, **fields):
    """The folder of a sweep over these windows."""
    return RunFolder.open(path, request(*windows, **fields), trials(*windows, **fields), "zoology sweep", resume)


@pytest.fixture
def run(tmp_path):
    """A run of three trials that are all on disk."""
    with opened(tmp_path / "run", resume=False) as folder:
        for spec in folder.rest:
            folder.append(result(spec))
    return tmp_path / "run"


def lines(run):
    return (run / "results.jsonl").read_bytes().splitlines(keepends=True)


def test_a_new_folder_holds_all_that_makes_the_sweep_again(tmp_path):
    with opened(tmp_path / "a" / "run", resume=False) as folder:
        assert [spec.dials["window"] for spec in folder.rest] == [2, 4, 8]
        assert folder.notices == []
    kept = json.loads((tmp_path / "a" / "run" / "sweep.json").read_text())
    assert kept["command"] == "zoology sweep"
    assert [spec.id for spec in expand(Request(**kept["request"]))] == kept["trials"]
    environment = json.loads((tmp_path / "a" / "run" / "environment.json").read_text())
    assert {"zoology", "python", "packages", "platform", "cpus", "started"} <= environment.keys()
    assert {"torch", "numpy", "ray"} <= environment["packages"].keys()


def test_the_audit_of_a_later_part_of_a_sweep_joins_that_of_the_earlier_one(tmp_path):
    """Only the mixers of the trials that are left are audited again."""

    def verdict(mixer, *findings):
        table = ((1, {"kv": {"float32": 128}}), (2, {"kv": {"float32": 256}}))
        return Verdict(mixer, 16, {"window": 2}, findings, (), "grows with the context", table, 1000, 0.5)

    def kept():
        return json.loads((tmp_path / "run" / "audit.json").read_text())["verdicts"]

    with opened(tmp_path / "run", resume=False) as folder:
        folder.keep_audit([verdict("short-conv"), verdict("mine", "it sees a later token")])
        assert [each["mixer"] for each in kept()] == ["short-conv", "mine"]
        folder.keep_audit([verdict("mine")])
        assert [(each["mixer"], each["findings"]) for each in kept()] == [("short-conv", []), ("mine", [])]
    assert kept()[0] == json.loads(json.dumps(asdict(verdict("short-conv"))))


def test_rows_are_those_of_the_results_and_each_trial_is_written_once(tmp_path):
    specs = trials()
    ended = [result(specs[0]), result(specs[1], None, status="diverged"), TrialResult.failed(specs[2], "no\nway")]
    with opened(tmp_path / "run", resume=False) as folder:
        for each in (*ended, ended[0], result(specs[1], 0.9)):
            folder.append(each)
        assert folder.rest == []
        states = folder.done
    assert list(states.values()) == ["ok", "diverged", "failed"]
    assert [json.loads(line) for line in lines(tmp_path / "run")] == [row for each in ended for row in each.rows()]
    with opened(tmp_path / "run") as again:
        assert again.done == states


def test_wherever_the_last_trial_is_torn_it_alone_runs_again(run):
    """The file is cut after every byte of the last block. In memory where it can be: it is a thousand runs."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        tear_everywhere(Path(shutil.copytree(run, Path(folder) / "run")))


def tear_everywhere(run):
    whole, path = b"".join(lines(run)), run / "results.jsonl"
    kept = b"".join(lines(run)[:4])
    asked, specs = request(), trials()
    for cut in range(len(kept), len(whole)):
        path.write_bytes(whole[:cut])
        with RunFolder.open(run, asked, specs, "zoology sweep", True) as folder:
            assert folder.rest == [specs[2]]
            assert bool(folder.notices) == (cut > len(kept))
            assert path.read_bytes() == kept
            if cut % 50 == 0:
                folder.append(result(specs[2]))
                assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["missing", "twice", "replaced"])
def test_a_trial_that_lacks_rows_or_has_one_twice_runs_again(run, damage):
    kept = lines(run)
    kept[2:4] = {"missing": kept[2:3], "twice": [*kept[2:4], kept[3]], "replaced": [kept[2], kept[2]]}[damage]
    (run / "results.jsonl").write_bytes(b"".join(kept))
    with opened(run) as folder:
        assert [spec.dials["window"] for spec in folder.rest] == [4]
        assert folder.notices == [f"{run / 'results.jsonl'} was torn: 1 trial that is not whole will run again"]
        for spec in folder.rest:
            folder.append(result(spec))
        folder.finish()
    assert [row["dials"]["window"] for row in rows_of(run)] == [2, 2, 4, 4, 8, 8]


@pytest.mark.parametrize("garbage", [b"{}\n", b"not json\n", b"\xff\xfe\n", b"[1, 2]\n", b"\n"])
def test_a_broken_line_in_the_middle_is_no_work_of_ours_and_is_left_alone(run, garbage):
    kept = lines(run)
    kept[3:3] = [garbage]
    (run / "results.jsonl").write_bytes(b"".join(kept))
    with pytest.raises(InputError, match=r"results.jsonl, line 4: not a row of results; mend or remove it"):
        opened(run)
    assert lines(run) == kept


def test_rows_of_another_sweep_are_not_dropped(run, tmp_path):
    with opened(tmp_path / "other", 16, resume=False) as other:
        other.append(result(other.rest[0]))
    kept = lines(run) + lines(tmp_path / "other")
    (run / "results.jsonl").write_bytes(b"".join(kept))
    with pytest.raises(InputError, match=r"line 7: trial [0-9a-f]{12} is none of this sweep"):
        opened(run)
    assert lines(run) == kept


def test_a_run_that_is_there_wants_resume(run):
    with pytest.raises(InputError, match=r"holds this sweep already \(3 of 3 trials are done\): add --resume"):
        opened(run, resume=False)
    with opened(run) as folder:
        assert folder.rest == []
        assert folder.notices == []


def test_nothing_to_resume_is_said_and_begun(tmp_path):
    with opened(tmp_path / "run") as folder:
        assert len(folder.rest) == 3
        assert "nothing to resume" in folder.notices[0]


def test_a_folder_that_a_driver_left_at_once_can_be_taken_up(tmp_path):
    """Killed while it wrote its first files."""
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", "environment.json", ".writing-sweep.json"):
        (run / name).write_text("4")
    with opened(run) as folder:
        assert len(folder.rest) == 3
    assert not (run / ".writing-sweep.json").exists()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are no run: give another --name or --out"):
        opened(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "sweep.json").exists()


def test_another_sweep_says_what_differs(run):
    before = lines(run)
    with pytest.raises(InputError, match=r"window is \[2, 4, 8\] there and \[2, 4\] here\): 'zoology sweep'; give ano"):
        opened(run, 2, 4)
    with pytest.raises(InputError, match=r"\(epochs is not given there and 2 here\)"):
        opened(run, training={"learning_rates": (1e-2,), "batch_size": 64, "epochs": 2})
    with pytest.raises(InputError, match=r"d_model is \[16\] there and \[32\] here"):
        opened(run, d_model=(32,))
    assert lines(run) == before


def test_a_changed_plugin_is_another_sweep(tmp_path):
    old, new = (Plugin(path="/elsewhere/mine.py", source=f"x = {x}\n") for x in (1, 2))
    opened(tmp_path / "run", plugins=(old,)).close()
    with pytest.raises(InputError, match="another version of the plugin file"):
        opened(tmp_path / "run", plugins=(new,))
    with pytest.raises(InputError, match=r"window is .*; the plugin files differ\)"):
        opened(tmp_path / "run", 2, plugins=(new,))
    opened(tmp_path / "run", plugins=(Plugin(path="/moved/mine.py", source=old.source),)).close()


def test_a_sweep_that_cannot_be_read_or_is_newer_is_refused(run):
    sweep = run / "sweep.json"
    content = json.loads(sweep.read_text())
    sweep.write_text(json.dumps(content | {"format": FORMAT + 1}))
    with pytest.raises(InputError, match=f"newer format {FORMAT + 1}; this version writes {FORMAT}: update zoology"):
        opened(run)
    for text in ("", "{", "[]", "{}", '{"sweep": 1, "format": "x"}'):
        sweep.write_text(text)
        with pytest.raises(InputError, match="no sweep's spec"):
            opened(run)


def test_one_writer_at_a_time_until_it_is_gone_however_it_goes(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from helpers import request, trials\n"
        "from zoology.sweeps.folder import RunFolder\n"
        "folder = RunFolder.open(Path(sys.argv[1]), request(), trials(), 'first', False)\n"
        "print('open', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": f"{CLI.parent}{os.pathsep}{os.path.dirname(__file__)}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout.readline() == "open\n"
        for _ in range(2):  # to be refused does not take the lock
            with pytest.raises(InputError, match=rf"another sweep \(process {first.pid}\) is writing"):
                opened(tmp_path / "run")
        first.send_signal(signal.SIGKILL)
        first.wait()
        with opened(tmp_path / "run") as folder:
            assert len(folder.rest) == 3
    finally:
        first.kill()
        first.stdout.close()
        first.wait()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=r"run folder '.*' cannot be written: "):
            opened(path, resume=False)


@contextmanager
def full_disk(size):
    """No file may grow beyond so many bytes: a write is cut short there, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room", [0, 1, 700, -1])
def test_a_full_disk_takes_no_part_of_a_trial(tmp_path, room):
    specs = trials()
    with opened(tmp_path / "run", resume=False) as folder:
        folder.append(result(specs[0]))
        kept = (tmp_path / "run" / "results.jsonl").read_bytes()
        with (
            full_disk(len(kept) + (room if room >= 0 else len(kept) - 1)),
            pytest.raises(InputError, match=r"results.jsonl cannot be written: .*; mend that, and go on with --resume"),
        ):
            folder.append(result(specs[1]))
        assert (tmp_path / "run" / "results.jsonl").read_bytes() == kept
        assert folder.rest == list(specs[1:])
        folder.append(result(specs[1]))
    assert [row["trial"] for row in rows_of(tmp_path / "run")] == [specs[0].id] * 2 + [specs[1].id] * 2


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "file", "old")
    with full_disk(100), pytest.raises(InputError, match="file cannot be written: "):
        write_whole(tmp_path / "file", "new" * 100)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_the_end_sorts_the_rows_into_the_order_of_the_sweep(tmp_path):
    specs = trials()
    with opened(tmp_path / "run", resume=False) as folder:
        for spec in reversed(specs):
            folder.append(result(spec, seconds=spec.dials["window"]))
        folder.finish()
    rows = [json.loads(line) for line in lines(tmp_path / "run")]
    assert rows == [row for spec in specs for row in result(spec, seconds=spec.dials["window"]).rows()]


def test_failed_trials_can_be_forgotten_and_only_they(tmp_path):
    specs = trials()
    with opened(tmp_path / "run", resume=False) as folder:
        folder.append(result(specs[0], None, status="diverged"))
        folder.append(TrialResult.failed(specs[1], "no"))
        folder.append(result(specs[2]))
    with opened(tmp_path / "run") as folder:
        folder.forget_failed()
        assert folder.rest == [specs[1]]
        folder.append(result(specs[1]))
        folder.finish()
    assert [row["status"] for row in rows_of(tmp_path / "run")] == ["diverged"] * 2 + ["ok"] * 4


def test_a_run_is_named_after_its_sweep():
    names = ("short-conv+attention", "based", "sliding-window", "attention", "linear-attention")
    asked = request(architectures=names[:1], settings={})
    assert run_name(asked, expand(asked)).startswith("short-conv-attention-mqar-")
    many = request(architectures=names, settings={})
    assert run_name(many, expand(many)).startswith("short-conv-attention-based-sliding-window-and-2-more-mqar-")
    assert run_name(request(2, 4), trials(2, 4)) == run_name(request(4, 2), trials(4, 2))
    assert run_name(request(2, 4), trials(2, 4)) != run_name(request(2, 8), trials(2, 8))
