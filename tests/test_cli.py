"""The command line from outside: what a person may type wrong, and what the commands print.

In this process, as a fresh one costs seconds. Nothing here trains; what gets as far as training fails the test.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from zoology import cli
from zoology.record import ReplicaResult, Score, TrialResult
from zoology.sweeps import launch
from zoology.sweeps.space import Request, expand
from zoology.tables import grouped

pytestmark = pytest.mark.usefixtures("own_registries")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """run("sweep", "--arch", ...) -> (exit code, stdout, stderr), in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return call


@pytest.fixture
def refused(run, monkeypatch, tmp_path):
    """refused("sweep", ...) -> the message. Exit code 2, a line or two, no traceback, and nothing left behind."""

    def trained(*_):
        pytest.fail("it got as far as the audit")

    monkeypatch.setattr(launch, "refuse_cheaters", trained)

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run(*arguments)
        assert code == 2, out + err
        assert err.startswith("error: ")
        assert 1 <= len(err.strip().splitlines()) <= 2
        assert "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before
        return err.removeprefix("error: ").strip()

    return call


SWEEP = [
    ("", "no architecture is chosen: --arch takes attention, base-conv, based, "),
    ("--arch bsed", "unknown architecture 'bsed': did you mean based?"),
    ("--arch based,attenton", "unknown architecture 'attenton': did you mean attention"),
    ("--arch short-conv+linear-atention", "unknown mixer 'linear-atention': did you mean linear-attention"),
    ("--arch based --task mqr", "unknown task 'mqr': did you mean mqar?"),
    ("--arch based --scale papr", "unknown scale 'papr': did you mean paper?"),
    ("--arch based --feture-dim 8", "no such flag or dial: --feture-dim; did you mean --feature-dim? Dials here:"),
    ("--arch based --zzz 8", "no such flag or dial: --zzz; see --help. Dials here: --d-model, --feature-dim, --window"),
    ("--archs based", "no such flag or dial: --archs; did you mean --arch?"),
    ("--arch attention --feature-dim 8", "--feature-dim: attention has no such dial; there are --d-model"),
    ("--arch attention --feature-dim 8", "belongs to based, "),
    ("--arch based --feature-map elu", "--feature-map: based has no such dial"),
    (
        "--arch linear-attention --feature-map tailor",
        "'tailor' is not allowed; one of taylor, elu, ",
    ),
    ("--arch based --feature-dim 0", "--feature-dim 0: '0' is not allowed; whole numbers from 1"),
    ("--arch based --feature-dim -3", "--feature-dim -3: '-3' is not allowed; whole numbers from 1"),
    ("--arch based --feature-dim=-3", "--feature-dim -3: '-3' is not allowed; whole numbers from 1"),
    ("--arch based --feature-dim abc", "--feature-dim abc: 'abc' is not allowed; whole numbers from 1"),
    ("--arch based --feature-dim 8.5", "--feature-dim 8.5: '8.5' is not allowed; whole numbers from 1"),
    ("--arch based --feature-dim 8,,16", "--feature-dim 8,,16: an empty value is not allowed; whole numbers from 1"),
    ("--arch based --feature-dim=", "--feature-dim '': an empty value is not allowed; whole numbers from 1"),
    ("--arch based --feature-dim", "Option '--feature-dim' requires an argument\nSee zoology sweep --help"),
    ("--arch based --feature-dim 8 16", "unexpected extra argument(s) (16); several values are one word"),
    ("based", "an architecture follows its flag, --arch based\nSee zoology sweep --help"),
    ("-x", "No such option: -x\nSee zoology sweep --help"),
    ("--arch based --window -1", "--window -1: '-1' is not allowed; whole numbers from 0"),
    ("--arch sliding-window --window 0", "--window 0: '0' is not allowed; whole numbers from 1"),
    ("--arch based --arch sliding-window --window 0", "sliding-window: window = 0: input should be greater"),
    ("--arch based --num-heads 3", "d_model = 8 is not divisible by num_heads = 3: num_heads must be one of 1, 2, 4"),
    ("--arch attention --rotary maybe", "--rotary maybe: 'maybe' is not allowed; true or false"),
    ("--arch attention --rotary true --d-model 6 --num-heads 2", "d_model / num_heads = 6 / 2 must be even"),
    ("--arch attention --dropout 1", "--dropout 1: '1' is not allowed; numbers from 0 below 1"),
    ("--arch based --d-model 0", "--d-model 0: '0' is not allowed; whole numbers from 1"),
    ("--arch based --d-model 8,16,", "--d-model 8,16,: an empty value is not allowed; whole numbers from 1"),
    ("--arch based --d-model 100000000000", "cannot be built with d_model=100000000000"),
    (
        "--arch based --num-pairs 20",
        "num_pairs = 20: with passes = 1 these need 80 tokens, and seq_len = 64 holds at most",
    ),
    ("--arch based --num-pairs 8 --vocab-size 16", "vocab_size = 16 has 7 different keys"),
    ("--arch based --vocab-size 63", "vocab_size = 63: must be even"),
    ("--arch based --fillers strickt", "one of strict, papers, zero (did you mean strict?)"),
    ("--arch based --num-pairs 1 --vocab-size 4 --seq-len 4", "mqar T4-N1: too few different sequences"),
    (
        "--arch based --task set-disjointness --num-pairs 4",
        "; here there are --vocab-size, --size-a, --size-b",
    ),
    (
        "--arch based --size-a 4",
        "--size-a belongs to the task set-disjointness; here there are --vocab-size, --seq-len",
    ),
    ("--arch based --task set-disjointness --size-a 99", "vocab_size = 36 leaves 32 tokens for the two sets"),
    ("--arch based --learning-rates abc", "--learning-rates abc: 'abc' is not allowed; numbers above 0"),
    ("--arch based --learning-rates 0", "--learning-rates 0: '0' is not allowed; numbers above 0"),
    ("--arch based --learning-rates 1e-3,inf", "--learning-rates 1e-3,inf: 'inf' is not allowed; numbers above 0"),
    ("--arch based --threshold 2", "--threshold 2: '2' is not allowed; numbers above 0 up to 1, or none"),
    ("--arch based --warmup 1", "--warmup 1: '1' is not allowed; numbers from 0 below 1"),
    ("--arch based --weight-decay -1", "--weight-decay -1: '-1' is not allowed; numbers from 0"),
    ("--arch based --epochs 2,3", "--epochs 2,3: takes one value; whole numbers from 1"),
    ("--arch based --init zeros", "--init zeros: 'zeros' is not allowed; one of fan-in, papers"),
    ("--arch based --seeds 0", "--seeds 0: '0' is not allowed; whole numbers from 1"),
    ("--arch based --seeds 1,2", "--seeds 1,2: takes one value; whole numbers from 1"),
    ("--arch based --train-examples 0", "--train-examples 0: '0' is not allowed; whole numbers from 1"),
    ("--arch based --test-examples x", "--test-examples x: 'x' is not allowed; whole numbers from 1"),
    ("--arch based --cpus-per-trial 0", "--cpus-per-trial 0: '0' is not allowed; numbers from 0.01"),
    ("--arch based --cpus-per-trial 1.5", "--cpus-per-trial 1.5: give a whole number, or a part of 1"),
    ("--arch based --gpus-per-trial -1", "--gpus-per-trial -1: '-1' is not allowed; numbers from 0"),
    ("--arch based --max-concurrent 0", "--max-concurrent 0: '0' is not allowed; whole numbers from 1"),
    ("--arch based --name ../x", "--name ../x: must be the name of a folder in runs (see --out)"),
    ("--arch based --name a/b", "--name a/b: must be the name of a folder in runs (see --out)"),
    ("--arch based --name=", "--name '': must be the name of a folder in runs (see --out)"),
    ("--arch based --retry-failed", "--retry-failed: goes with --resume"),
    ("--arch based --plugin gone.py", "gone.py': there is no such file"),
    ("--arch based --plugin .", "is a folder: name the file in it"),
]


@pytest.mark.parametrize(("line", "said"), SWEEP)
def test_sweep_refuses(refused, line, said):
    assert said in refused("sweep", *line.split())


OTHERS = [
    ("swep --arch based", "No such command 'swep'"),
    ("--foo", "No such option: --foo\nSee zoology --help"),
    ("train", "no architecture is chosen"),
    (
        "train --arch based,attention",
        "train takes one point, and these flags make 2: give one value each, or use sweep",
    ),
    ("train --arch based --feature-dim 8,16", "train takes one point, and these flags make 2"),
    ("train --arch based --cpus-per-trial 1", "no such flag or dial: --cpus-per-trial"),
    ("plot", "Missing argument 'RUN'\nSee zoology plot --help"),
    ("plot nowhere", "run 'nowhere': there is no such folder"),
    ("sample", "Missing argument 'TASK'"),
    ("sample mqr", "unknown task 'mqr': did you mean mqar?"),
    ("sample mqar --num-pairs 0", "--num-pairs 0: '0' is not allowed; whole numbers from 1"),
    ("sample mqar --num-pairs 20", "num_pairs = 20: with passes = 1 these need 80 tokens"),
    ("sample mqar --num-pairs 2,4", "--num-pairs 2,4: takes one value"),
    ("sample mqar --size-a 3", "--size-a belongs to the task set-disjointness"),
    ("sample mqar -n 0", "--n 0: '0' is not allowed; whole numbers from 1"),
    ("sample mqar --seed -1", "--seed -1: '-1' is not allowed; whole numbers from 0"),
    ("sample mqar set-disjointness", "unexpected extra argument(s) (set-disjointness)"),
    ("audit bsed", "unknown architecture 'bsed': did you mean based?"),
    ("audit short-conv+bsed", "unknown mixer 'bsed'"),
    ("audit --plugin gone.py", "gone.py': there is no such file"),
    ("mixers --plugin gone.py", "gone.py': there is no such file"),
    ("tasks mqar", "unexpected extra argument(s) (mqar)\nSee zoology tasks --help"),
    ("version --verbose", "No such option: --verbose"),
]


@pytest.mark.parametrize(("line", "said"), OTHERS)
def test_the_other_commands_refuse(refused, line, said):
    assert said in refused(*line.split())


@pytest.mark.parametrize("out", ["a-file", "a-file/below"])
def test_out_on_a_file_is_refused(refused, tmp_path, out):
    (tmp_path / "a-file").write_text("")
    assert "cannot be written: Not a directory" in refused("sweep", "--arch", "based", "--out", out)


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(refused, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "runs" / "mine" / ".lock").touch()
    assert "holds files that are no run" in refused("sweep", "--arch", "based", "--name", "mine")


def plugin(tmp_path, text, name="plugin.py"):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import zoology\ndef (:\n", "plugin plugin.py does not import: line 2: SyntaxError"),
        ("import zoology\n\n1 / 0\n", "plugin plugin.py does not import: line 3: ZeroDivisionError"),
        ("import nowhere_at_all\n", "plugin plugin.py does not import: line 1: ModuleNotFoundError"),
    ],
)
@pytest.mark.parametrize(
    "command", ["sweep --arch based", "train --arch based", "sample mqar", "audit", "mixers", "tasks"]
)
def test_a_plugin_that_does_not_import_is_refused(refused, tmp_path, command, text, said):
    assert said in refused(*command.split(), "--plugin", plugin(tmp_path, text))


MIXER = """
    from zoology import Mixer, MixerConfig, dial, register_mixer

    @register_mixer("{name}")
    class Mine(Mixer):
        class Config(MixerConfig):
            {field}

        def __init__(self, d_model, config):
            super().__init__()
            self.width = d_model

        def init_state(self, batch_size):
            return self.zeros(batch_size, self.width)

        def step(self, x, state):
            return x + state, x

        {more}
"""


def mixer(tmp_path, name="mine", field="my_dial: int = dial(4, sweep=(4, 8), help='how wide it is')", more=""):
    return plugin(tmp_path, MIXER.format(name=name, field=field, more=more))


def test_a_plugin_that_takes_a_taken_name_is_refused(refused, tmp_path):
    said = refused("sweep", "--arch", "based", "--plugin", mixer(tmp_path, name="attention"))
    assert "plugin plugin.py: mixer name 'attention' is taken by Attention in " in said
    said = refused("sweep", "--arch", "based", "--plugin", mixer(tmp_path, name="based"))
    assert "plugin plugin.py: mixer name 'based' is taken by an architecture: choose another" in said


@pytest.mark.parametrize(
    "field",
    ["epochs: int = 3", "num_pairs: int = 3", "d_model: int = 3", "seeds: int = 3", "plugin: int = 3", "name: int = 3"],
)
def test_a_setting_that_has_the_name_of_another_flag_is_refused(refused, tmp_path, field):
    flag = "--" + field.split(":")[0].replace("_", "-")
    said = refused("sweep", "--arch", "mine", "--plugin", mixer(tmp_path, field=field))
    assert f"{flag} is a flag of this command already: rename the field" in said


def test_a_setting_of_a_mixer_that_is_not_chosen_is_in_nobody_s_way(run, tmp_path):
    path = mixer(tmp_path, field="epochs: int = 3")
    code, out, _ = run("sweep", "--arch", "attention", "--plugin", path, "--help")
    assert code == 0
    assert "Passes over the training set" in " ".join(out.split())


FUTURE = "def forward(self, x): return x + x.mean(1, keepdim=True)"


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_mixer_that_fails_the_audit_is_refused_before_training_and_leaves_nothing(
    run, tmp_path, monkeypatch, command
):
    monkeypatch.setattr("zoology.train.run_trial", lambda *_: pytest.fail("it was trained"))
    path = mixer(tmp_path, more=FUTURE)
    code, _, err = run(command, "--arch", "mine", "--plugin", path, "--my-dial", 4, "--d-model", 16)
    assert code == 2
    assert err.startswith("error: mine fails the audit: ")
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == [path]


def test_audit_prints_the_finding_and_exits_with_1(run, tmp_path):
    code, out, _ = run("audit", "mine", "--plugin", mixer(tmp_path, more=FUTURE))
    assert code == 1
    assert "sees the future" in " ".join(out.split())


TASK = """
    import numpy as np
    from zoology import Batch, IGNORE, Task, register_task

    @register_task("my-task")
    class MyTask(Task):
        @property
        def context_length(self):
            return 1

        def sample(self, rng, n):
            tokens = rng.integers(0, 256, (n, self.seq_len))
            return Batch(tokens, {labels})

        def solve(self, tokens):
            return np.where(np.arange(self.seq_len) == 0, IGNORE, tokens[:, :1])
"""


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("self.solve(tokens) * 0", "task my-task T64: its solver gives other answers than its labels"),
        ("self.answer(tokens)", "task my-task cannot be drawn: AttributeError: 'MyTask' object has no attribute"),
        ("np.full_like(tokens, IGNORE)", "my-task T64: none of"),
        ("tokens + 8192", "my-task T64: the label"),
    ],
)
def test_a_task_that_cannot_be_trained_on_is_refused(refused, tmp_path, labels, said):
    path = plugin(tmp_path, TASK.format(labels=labels))
    assert said in refused("sweep", "--arch", "attention", "--task", "my-task", "--plugin", path)


def test_what_goes_wrong_before_the_first_result_leaves_no_folder(run, tmp_path, monkeypatch):
    for error, code in ((launch.InputError("no room"), 2), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(launch, "refuse_cheaters", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert run("sweep", "--arch", "attention", "--out", "a/b")[0] == code
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "runs" / "another").mkdir(parents=True, exist_ok=True)
        assert run("sweep", "--arch", "attention")[0] == code
        assert [p.name for p in (tmp_path / "runs").iterdir()] == ["another"]
        (tmp_path / "runs" / "another").rmdir()
        (tmp_path / "runs").rmdir()


def test_resuming_a_run_that_is_not_there_begins_it_and_says_so(run, monkeypatch):
    monkeypatch.setattr(launch, "refuse_cheaters", lambda *_: (_ for _ in ()).throw(launch.InputError("stop")))
    _, out, _ = run("sweep", "--arch", "attention", "--resume", "--name", "x")
    assert "notice: nothing to resume in runs/x: starting from the beginning" in out


@pytest.mark.slow
def test_more_cores_than_there_are_is_refused(tmp_path):
    """In a process of its own, as it starts Ray."""
    code = "from zoology.sweeps import launch; launch.refuse_impossible = lambda *_: None\n"
    code += "from zoology.cli import main; main()"
    line = "sweep --arch short-conv --d-model 16 --no-reference --cpus-per-trial 9999"
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "error: --cpus-per-trial 9999 is more than there is: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def finished_run(folder):
    """A run folder as a sweep leaves it, with made-up scores."""
    trials = expand(Request(architectures=("linear-attention",), d_model=(16,), training={"learning_rates": (1e-2,)}))
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    rows = []
    for size, spec in enumerate(trials, 1):
        scores = [
            Score(
                split=split,
                slice=part.name,
                accuracy=0.2 * size,
                loss=1.0,
                accuracy_last=0.2 * size,
                loss_last=1.0,
                examples=part.examples,
                test_hash="0" * 16,
                state_elements=100 * size,
                state_bytes=400 * size,
                state_parts={"recurrent": {"float32": 400 * size}},
                limit_bits=None,
            )
            for split in ("valid", "test")
            for part in spec.test
        ]
        replica = ReplicaResult(
            learning_rate=1e-2, seed=0, status="ok", scores=tuple(scores), steps=10, best_step=10, seconds=1.0
        )
        rows += TrialResult(spec=spec, replicas=(replica,), parameters=1).rows()
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_plot_refuses_an_empty_a_foreign_and_an_unfinished_folder(refused, tmp_path):
    for name in ("empty", "foreign", "begun", "torn"):
        (tmp_path / name).mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("hello")
    (tmp_path / "begun" / "sweep.json").write_text("{}")
    (tmp_path / "torn" / "results.jsonl").write_text('{"format": 1, "tri')
    assert "'empty' is no run folder: a run folder holds results.jsonl" in refused("plot", "empty")
    assert "'foreign' is no run folder" in refused("plot", "foreign")
    assert "no trial has finished yet" in refused("plot", "begun")
    assert "holds no whole row" in refused("plot", "torn")
    finished_run(tmp_path / "runs" / "good")
    assert "did you mean runs/good?" in refused("plot", "runs")
    assert "'empty' is no run folder" in refused("plot", "runs/good", "empty")


def test_plot_refuses_what_the_run_does_not_have(refused, tmp_path):
    finished_run(tmp_path / "good")
    assert "mqar" in refused("plot", "good", "--task", "set-disjointness")
    assert "T64-N4" in refused("plot", "good", "--slice", "T64-N5")
    assert ".png, .svg" in refused("plot", "good", "--out", "x.gif")
    assert "nowhere" in refused("plot", "good", "--out", "nowhere/x.png")


def test_plot_draws_and_prints_the_table(run, tmp_path):
    finished_run(tmp_path / "good")
    code, out, _ = run("plot", "good", "--out", "picture.png")
    assert code == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "linear-attention" in out
    assert "picture  picture.png" in out


def test_plot_draws_several_kinds_into_files_of_their_own(run, tmp_path):
    finished_run(tmp_path / "good")
    code, out, _ = run("plot", "good", "--kind", "state,slices", "--out", "a.svg", "--width", "3.3")
    assert code == 0
    assert (tmp_path / "a-state.svg").is_file()
    assert (tmp_path / "a-slices.svg").is_file()
    assert "recall" not in out  # the table belongs to the frontier
    code, out, _ = run("plot", "good", "--kind", "learning-rate")
    assert code == 0
    assert (tmp_path / "learning-rate.png").is_file()


def test_plot_of_all_kinds_says_which_the_rows_do_not_hold(run, tmp_path):
    finished_run(tmp_path / "good")
    code, out, _ = run("plot", "good", "--kind", "all", "--published", "--out", "all.png")
    assert code == 0
    assert "no order: no trial was tested on two sets in both orders" in out
    assert "no training: these runs have recorded no training curve" in out
    drawn = {path.name for path in tmp_path.glob("all-*.png")}
    assert {"all-frontier.png", "all-slices.png", "all-state.png", "all-learning-rate.png"} <= drawn
    assert not drawn & {"all-order.png", "all-training.png"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--kind", "frontir"), "unknown kind 'frontir': did you mean frontier?"),
        (("--kind", "order"), "in both orders"),
        (("--kind", ","), "no kind was given"),
        (("--kind", "slices", "--published"), "not over slices"),
        (("--width", "1"), "width = 1.0: must be from 2 to 30 inches"),
    ],
)
def test_plot_refuses_what_cannot_be_drawn(refused, tmp_path, flags, message):
    finished_run(tmp_path / "good")
    assert message in refused("plot", "good", *flags)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("command", "made", "size"),
    [("plot", "frontier.png", 10_000), ("report", "report.html", 1_000_000), ("table --out t.md", "t.md", 100)],
)
def test_what_reads_runs_needs_no_torch_and_no_ray(tmp_path, command, made, size):
    finished_run(tmp_path / "good")
    code = "import sys; sys.modules['torch'] = sys.modules['ray'] = None; from zoology.cli import main; main()"
    line = [sys.executable, "-c", code, *command.split(), "good"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / made).stat().st_size > size


def test_table_prints_lines_that_nothing_wraps(run, tmp_path):
    finished_run(tmp_path / "good")
    code, out, _ = run("table", "good", "--format", "csv")
    assert code == 0
    assert out.startswith("trial,architecture,dials,")
    assert len(out.splitlines()) == 5
    code, out, _ = run("table", "good", "--kind", "budgets", "--format", "latex", "--out", "t.tex")
    assert (code, out) == (0, "")
    assert "80.0+" in (tmp_path / "t.tex").read_text()


def test_table_and_report_refuse(refused, tmp_path):
    finished_run(tmp_path / "good")
    assert "unknown format 'word': known: csv, latex, markdown" in refused("table", "good", "--format", "word")
    assert "unknown table 'budget': did you mean budgets?" in refused("table", "good", "--kind", "budget")
    assert "'nowhere/t.md' cannot be written" in refused("table", "good", "--out", "nowhere/t.md")
    assert "the name must end in .html" in refused("report", "good", "--out", "x.pdf")
    assert "'nowhere/x.html' cannot be written" in refused("report", "good", "--out", "nowhere/x.html")
    assert "there is no such folder" in refused("report", "absent")


def test_a_real_run_has_a_report_that_tells_how_it_was_made(run, tmp_path, monkeypatch):
    line = "train --arch short-conv --d-model 16 --train-examples 64 --test-examples 64 --learning-rates 1e-2 --name x"
    monkeypatch.setattr(sys, "argv", ["zoology", *line.split()])
    assert run(*line.split())[0] == 0
    monkeypatch.setattr(sys, "argv", ["zoology", "report", "runs/x"])
    code, out, _ = run("report", "runs/x")
    assert (code, out) == (0, "report   report.html\n")
    page = (tmp_path / "report.html").read_text()
    for words in (f"zoology {line}", "What the audit found", "1 of 1 finished", "Environment", "zoology report runs/x"):
        assert words in page, words


def test_a_failed_run_prints_where_the_tracebacks_are_and_exits_with_1(run, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "refuse_cheaters", lambda *_: None)
    monkeypatch.setattr("zoology.train.fit", lambda *_, **__: 1 / 0)
    code, _, err = run("train", "--arch", "attention", "--name", "x")
    assert code == 1
    assert "1 failed; the first with: ZeroDivisionError: division by zero" in err
    assert "Tracebacks: runs/x/results.jsonl" in err


def test_mixers_and_tasks_list_what_is_registered_with_dials_and_sources(run, tmp_path):
    _, out, _ = run("mixers", "--plugin", mixer(tmp_path))
    for word in ("attention", "linear-attention", "short-conv", "sliding-window", "based", "mine"):
        assert word in out
    assert "--feature-dim 4,8,16" in out
    assert "--my-dial 4,8" in out
    assert "arXiv:2402.18668" in out
    assert "512 B a token" in out
    assert "constant" in out
    assert max(map(len, out.splitlines())) <= 120
    _, out, _ = run("tasks", "--plugin", plugin(tmp_path, TASK.format(labels="tokens"), "task.py"))
    for word in ("mqar", "set-disjointness", "my-task", "--num-pairs", "--size-a", "arXiv:2312.04927", "paper"):
        assert word in out


def test_slices_that_differ_in_a_last_number_are_listed_as_one():
    names = ["small", "paper-seq-len-256", "paper-seq-len-512", "paper-frac-noise-0.4", "zoology-T64-N4"]
    assert grouped(names) == ["small", "paper-seq-len-{256, 512}", "paper-frac-noise-0.4", "zoology-T64-N4"]


def test_sample_prints_as_many_as_asked_and_the_same_for_the_same_seed(run):
    command = ("sample", "mqar", "--num-pairs", 2, "--seq-len", 16, "-n", 2)
    code, first, _ = run(*command, "--seed", 1)
    assert code == 0
    assert first.count("→") - 1 == 4  # a label for each query; one arrow more explains itself
    assert run(*command, "--seed", 1)[1] == first
    assert run(*command, "--seed", 2)[1] != first


def test_version(run):
    from zoology import __version__

    for arguments in (("version",), ("--version",)):
        code, out, _ = run(*arguments)
        assert code == 0
        assert out.startswith(f"zoology {__version__}\n")
        assert "torch " in out


def test_the_checkout_and_the_installed_package_have_the_same_command():
    root = Path(cli.__file__).parents[1]
    shown = subprocess.run(
        [sys.executable, root / "cli.py", "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"}
    )
    assert shown.returncode == 0
    for command in cli.COMMANDS:
        assert f" {command} " in shown.stdout
