"""Files of a split, and the score of what comes back."""

import itertools
import json
import math

import numpy as np
import pytest

from zoology import cli
from zoology.data import load_data
from zoology.registry import InputError
from zoology.sweeps.space import Request, data_plan, expand
from zoology.tasks import export
from zoology.tasks.base import IGNORE, Batch, batch_hash, build_task, draw, tasks
from zoology.tasks.export import FORMAT, Part, draw_split, questions, read_file, write
from zoology.tasks.mqar import Mqar
from zoology.tasks.scoring import key_from, key_of, score
from zoology.tasks.words import join, vocabulary, word

TINY = {"vocab_size": (32,), "seq_len": (24,), "num_pairs": (2, 3)}


def drawn(split="test", task="mqar", params=TINY, n=20, seed=0):
    return draw_split(data_plan(task, params, "small", split, n), split, seed)


@pytest.fixture
def parts():
    return drawn()


@pytest.fixture
def lines(tmp_path):
    """Write records as JSONL; returns the path."""

    def save(records, name="predictions.jsonl"):
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
        return path

    return save


def answers(parts, words=False, change=lambda index, answer: answer):
    """The records of perfect predictions, but for what `change` makes of them."""
    found = key_of(parts, words).expected.items()
    given = ((name, change(index, list(expected.answer))) for index, (name, expected) in enumerate(found))
    return [{"id": name, **({"text": join(a)} if words else {"predictions": a})} for name, a in given]


@pytest.mark.parametrize("params", [{}, TINY])
@pytest.mark.parametrize("task", ["mqar", "set-disjointness"])
def test_the_sequences_are_those_of_a_sweep(task, params):
    params = params if task == "mqar" else {}
    spec = expand(Request(architectures=("attention",), task=task, task_params=params, training={"data_seed": 3}))[0]
    loaded = load_data(spec)
    for split in ("test", "valid", "train"):
        parts = draw_split(data_plan(task, params, "small", split, None), split, 3)
        assert [(p.name, p.hash) for p in parts] == [(p.name, p.hash) for p in getattr(loaded, split)]


def test_n_is_what_a_sweep_with_so_many_examples_has():
    request = Request(architectures=("attention",), task_params=TINY, train_examples=50, test_examples=30)
    loaded = load_data(expand(request)[0])
    assert [p.hash for p in drawn("test", n=30)] == [p.hash for p in loaded.test]
    assert [len(p.batch.tokens) for p in drawn("valid", n=7)] == [7, 7]
    assert sum(len(p.batch.tokens) for p in drawn("train", n=50)) == 50


def test_only_the_test_set_is_frozen():
    same = [[part.hash for part in drawn("test", seed=seed)] for seed in (0, 1)]
    assert same[0] == same[1]
    for split in ("valid", "train"):
        one, two = ([part.hash for part in drawn(split, seed=seed)] for seed in (0, 1))
        assert not set(one) & set(two)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_holds_all_there_is(parts, tmp_path, suffix):
    path = tmp_path / f"test{suffix}"
    written = write(parts, path, split="test")
    head, rows = read_file(path)
    assert head == written
    assert (head["task"], head["split"], head["data_seed"], head["words"]) == ("mqar", "test", None, False)
    rows = [record for _, record in rows]
    for part, held in zip(parts, head["slices"], strict=True):
        mine = [record for record in rows if record["slice"] == part.name]
        labels = np.full_like(part.batch.labels, IGNORE)
        for row, record in enumerate(mine):
            assert record["id"] == f"{part.hash}-{row}"
            labels[row, record["positions"]] = record["targets"]
        again = Batch(np.array([record["tokens"] for record in mine]), labels)
        assert batch_hash(again) == held["hash"] == part.hash
        assert held["sequences"] == held["records"] == len(mine)
        assert build_task(head["task"], held["params"]) == part.task


def test_parquet_is_plain_columns_with_the_header_beside_them(parts, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(parts, tmp_path / "t.parquet", split="valid", data_seed=4)
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.column_names == ["id", "slice", "tokens", "positions", "targets"]
    head = json.loads(table.schema.metadata[FORMAT.encode()])
    assert (head["split"], head["data_seed"]) == ("valid", 4)


def test_words_are_prompts_that_end_where_the_answer_follows(parts, tmp_path):
    head = write(parts, tmp_path / "w.jsonl", split="test", words=True)
    rows = [record for _, record in read_file(tmp_path / "w.jsonl")[1]]
    assert len(rows) == sum(part["records"] for part in head["slices"]) == 20 * 2 + 20 * 3
    for record in rows:
        prompt, answer = record["prompt"].split(), record["answer"].split()
        pairs = 2 if record["slice"].endswith("N2") else 3
        assert dict(zip(prompt[0 : 2 * pairs : 2], prompt[1 : 2 * pairs : 2], strict=True))[prompt[-1]] == answer[0]
        assert len(answer) == 1
    part = parts[0]
    spoken = vocabulary(32)[part.batch.tokens[0]].tolist()
    position = int(rows[0]["id"].split("-")[2])
    assert rows[0]["prompt"].split() == spoken[: position + 1]
    assert rows[0]["answer"] == word(part.batch.labels[0, position])


def test_an_answer_that_is_read_back_is_one_of_several_words():
    tokens = np.array([[1, 2, 9, 5, 6, 7, 9, 3], [1, 2, 9, 4, 4, 4, 9, 8]])
    labels = np.full_like(tokens, IGNORE)
    labels[:, 2:5] = tokens[:, 3:6]
    labels[:, 6] = tokens[:, 7]
    found = [(q.row, q.positions.tolist()) for q in questions(Batch(tokens, labels), merge=False)]
    assert found == [(0, [2, 3, 4]), (0, [6]), (1, [2, 3, 4]), (1, [6])]
    tokens[1, 4] = 0  # no longer what was answered: each label is a question of its own, in every row
    found = [(q.row, q.positions.tolist()) for q in questions(Batch(tokens, labels), merge=False)]
    assert found == [(row, [t]) for row in (0, 1) for t in (2, 3, 4, 6)]


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("name", sorted(tasks))
def test_every_task_makes_the_way_there_and_back(name, words, tmp_path, lines):
    parts = draw_split(data_plan(name, {}, "small", "test", 5), "test")
    write(parts, tmp_path / "t.jsonl", split="test", words=words)
    rows = [record for _, record in read_file(tmp_path / "t.jsonl")[1]]
    given = [
        {"id": r["id"], **({"text": r["answer"]} if words else {"predictions": r["targets"]})} for r in reversed(rows)
    ]
    scores = score(lines(given), key_from(tmp_path / "t.jsonl", name))
    assert scores == score(lines(given), key_of(parts, words))
    assert {s.accuracy for s in scores} == {1}
    assert {s.error for s in scores} == {0}
    assert scores[0].answers == (parts[0].batch.labels != IGNORE).sum()


def test_accuracy_and_error_of_known_counts(lines):
    """Sequences with (2, 2), (1, 2), (0, 2), (1, 2) right: 1/2, and the error of four means of 1, 1/2, 0, 1/2."""
    part = drawn(params=TINY | {"num_pairs": (2,)}, n=4)
    right = [2, 1, 0, 1]
    given = answers(part, change=lambda i, a: [*a[: right[i]], *[0] * (2 - right[i])])  # 0 is never a value
    (only,) = score(lines(given), key_of(part, False))
    assert (only.slice, only.sequences, only.answers, only.accuracy) == ("T24-N2", 4, 8, 0.5)
    assert only.error == pytest.approx(np.std([1, 0.5, 0, 0.5], ddof=1) / 2)


def test_overall_is_the_mean_of_slices_as_a_sweeps_recall_is(parts, lines):
    given = answers(parts, change=lambda i, a: a if i % 4 else [0] * len(a))
    one, two, overall = score(lines(given), key_of(parts, False))
    assert (one.accuracy, two.accuracy, overall.accuracy) == (0.75, 0.75, 0.75)
    assert overall.slice == "all"
    assert (overall.sequences, overall.answers) == (40, 100)
    assert one.error == pytest.approx(math.sqrt(0.75 * 0.25 / 19))
    assert overall.error == pytest.approx(one.error / math.sqrt(2))


def test_the_error_is_that_of_draws(lines):
    """Over many sets of sequences answered by the same noisy rule, accuracies scatter by what is printed."""
    rng, found = np.random.default_rng(0), []
    for index in range(200):
        batch = draw(Mqar(vocab_size=32, seq_len=24, num_pairs=3), 50, seed=("draw", index))
        part = Part("x", Mqar(vocab_size=32, seq_len=24, num_pairs=3), batch, batch_hash(batch))
        failing = rng.random(50) < 0.4  # sequences fail as a whole: three answers are no three draws
        given = answers([part], change=lambda i, a, failing=failing: [0] * 3 if failing[i] else a)
        found += score(lines(given), key_of([part], False))
    assert np.mean([s.error for s in found]) == pytest.approx(np.std([s.accuracy for s in found]), rel=0.12)


def test_one_sequence_has_no_error(lines):
    part = drawn(params=TINY | {"num_pairs": (2,)}, n=1)
    (only,) = score(lines(answers(part)), key_of(part, False))
    assert only.accuracy == 1
    assert math.isnan(only.error)


def test_a_prediction_for_every_position_does_too(parts, lines):
    full = [
        {"id": f"{part.hash}-{row}", "predictions": labels.tolist()}
        for part in parts
        for row, labels in enumerate(part.batch.labels)
    ]
    assert {s.accuracy for s in score(lines(full), key_of(parts, False))} == {1}


def test_an_exported_file_with_predictions_added_is_accepted(parts, tmp_path, lines):
    write(parts, tmp_path / "t.jsonl", split="test")
    head, *rows = map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())
    added = [row | {"predictions": row["targets"]} for row in rows]
    assert score(lines([head, *added]), key_of(parts, False))[-1].accuracy == 1


def test_text_is_judged_by_its_first_words(parts, lines):
    given = answers(parts, words=True)
    for record, (before, after) in zip(given, itertools.cycle([(" ", " and so on"), ("**", "**."), ("\n", ",")])):
        record["text"] = before + record["text"].upper() + after
    assert score(lines(given), key_of(parts, True))[-1].accuracy == 1
    for record in given:
        record["text"] = "the answer is " + record["text"]
    assert score(lines(given), key_of(parts, True))[-1].accuracy == 0


OTHER = "0123456789abcdef"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [], "is empty"),
        (lambda r: ["", " "], "is empty"),
        (lambda r: [{"format": FORMAT}], "is empty: it has a header and no predictions"),
        (lambda r: ["{"], "line 1: not JSON"),
        (lambda r: [*r[:2], "[1, 2]"], "line 3: not a JSON object"),
        (lambda r: r[:-1], r"has 39 predictions, and 40 are asked for: \w+-19 is the first that is missing"),
        (lambda r: [*r, r[4]], r"line 41: \w+-4 is answered a second time"),
        (lambda r: [{"predictions": [1, 2]}], "line 1: no `id`"),
        (lambda r: [{"id": 7, "predictions": [1, 2]}], "line 1: no `id`"),
        (
            lambda r: [r[0], r[1] | {"id": f"{OTHER}-1"}],
            rf"line 2: {OTHER}-1 is of other sequences, with hash {OTHER}: here it is \w+ or \w+; give the flags",
        ),
        (lambda r: [r[0] | {"id": r[0]["id"] + "0000"}], "is no record of the export"),
        (lambda r: [r[0] | {"id": r[0]["id"] + "-10"}], "is of an export with --words: score it in the same way"),
        (lambda r: [{"id": r[0]["id"]}], "`predictions` must be a list of token ids, and is missing"),
        (lambda r: [r[0] | {"predictions": 5}], "must be a list of token ids, and is 5"),
        (lambda r: [r[0] | {"predictions": [1.5, 2]}], r"must be a list of token ids, and is \[1.5, 2\]"),
        (lambda r: [r[0] | {"predictions": [True, 2]}], "must be a list of token ids"),
        (lambda r: [r[0] | {"predictions": ["a", "b"]}], "must be a list of token ids"),
        (
            lambda r: [r[0] | {"predictions": [1]}],
            "line 1: 1 predictions, and the sequence has 2 labelled positions and 24 tokens: give one for each",
        ),
    ],
)
def test_bad_predictions_are_refused_in_one_line(parts, lines, change, message):
    with pytest.raises(InputError, match=message) as error:
        score(lines(change(answers(parts))), key_of(parts, False))
    assert "\n" not in str(error.value)


def test_bad_text_is_refused(parts, lines):
    given = answers(parts, words=True)
    with pytest.raises(InputError, match="`text` must be what the model wrote after the prompt, and is 3"):
        score(lines([given[0] | {"text": 3}]), key_of(parts, True))
    with pytest.raises(InputError, match="is of an export without --words"):
        score(lines(answers(parts)), key_of(parts, True))


def test_files_that_cannot_be_read(parts, tmp_path):
    key = key_of(parts, False)
    binary = tmp_path / "p.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    fake = tmp_path / "p.parquet"
    fake.write_text("no parquet")
    for path, message in (
        (tmp_path / "none.jsonl", "cannot be read: No such file"),
        (tmp_path / "none.parquet", "there is no such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (binary, "is no text in UTF-8"),
        (fake, "is no Parquet file"),
    ):
        with pytest.raises(InputError, match=message) as error:
            score(path, key)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [False, True])
def test_an_exported_file_that_was_changed_is_refused(parts, tmp_path, lines, words):
    path = tmp_path / "t.jsonl"
    write(parts, path, split="test", words=words)
    head, *rows = map(json.loads, path.read_text().splitlines())
    assert len(key_from(path, "mqar").expected) == len(rows)
    field = "answer" if words else "tokens"
    changed = [[head, *rows[:-1]], [head, *rows, rows[0] | {"id": "x"}], [head, {k: rows[0][k] for k in ("id", field)}]]
    if not words:
        changed.append([head, rows[0] | {"targets": [1, 1]}, *rows[1:]])
        changed.append([head, rows[0] | {"tokens": rows[1]["tokens"]}, *rows[1:]])
        changed.append([head, rows[0] | {"tokens": [2**40] * len(rows[0]["tokens"])}, *rows[1:]])
    changed.append([{k: v for k, v in head.items() if k != "slices"}, *rows])
    for content in changed:
        with pytest.raises(InputError, match="is not as it was written: export it again"):
            key_from(lines(content, "t.jsonl"), "mqar")
    with pytest.raises(InputError, match="is no exported file"):
        key_from(lines(rows, "t.jsonl"), "mqar")
    with pytest.raises(InputError, match="is of task mqar, not phonebook"):
        key_from(lines([head, *rows], "t.jsonl"), "phonebook")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_is_written_whole_or_not_at_all(parts, tmp_path, suffix, monkeypatch):
    path = tmp_path / f"t{suffix}"
    path.write_text("what was there")

    def fails(part, words):
        yield from itertools.islice(records(part, words), 3)
        raise KeyboardInterrupt

    records = export.records
    monkeypatch.setattr(export, "records", fails)
    with pytest.raises(KeyboardInterrupt):
        write(parts, path, split="test")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "what was there"


def test_a_place_where_no_file_can_be(parts, tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    for name, message in (
        ("t.csv", r"the suffix says the format, one of \.jsonl, \.parquet"),
        ("none/t.jsonl", "there is no folder"),
        ("d.jsonl", "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            write(parts, tmp_path / name, split="test")


def test_parquet_without_pyarrow_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"Parquet needs pyarrow"):
        export.check_target(tmp_path / "t.parquet")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """run("export", ...) -> (exit code, stdout, stderr), in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, arguments)))
        return end.value.code, *capsys.readouterr()

    return call


SHAPE = ("--vocab-size", "32", "--seq-len", "24", "--num-pairs", "2,3", "--n", "20")


@pytest.mark.parametrize("words", [(), ("--words",)])
def test_the_commands_work_together(run, lines, words, parts, tmp_path):
    code, out, _ = run("export", "--split", "test", "mqar", "--out", "t.jsonl", *SHAPE, *words)
    assert code == 0
    assert all(f"{part.name}  20 sequences" in out and part.hash in out for part in parts)
    lines(answers(parts, words=bool(words)))
    before = sorted(tmp_path.iterdir())
    for flags in ([*SHAPE, *words], ["--against", "t.jsonl"]):
        code, out, err = run("score", "mqar", "predictions.jsonl", *flags)
        assert code == 0, err
        assert [line.split() for line in out.splitlines()[1:]] == [
            ["T24-N2", "20", "40", "100.00", "0.00"],
            ["T24-N3", "20", "60", "100.00", "0.00"],
            ["all", "40", "100", "100.00", "0.00"],
        ]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["export", "mqar", "--out", "t.txt"], "--out t.txt: the suffix says the format"),
        (["export", "mqar", "--out", "t.jsonl", "--split", "tests"], "--split tests: one of test, valid, train"),
        (["export", "mqar", "--out", "t.jsonl", "--n", "0"], "--n 0"),
        (["export", "mqra", "--out", "t.jsonl"], "unknown task 'mqra': did you mean mqar"),
        (["export", "mqar", "--out", "t.jsonl", "--num-pairs", "99"], "num_pairs = 99"),
        (["export", "mqar", "--out", "t.jsonl", "--scale", "huge"], "unknown scale 'huge'"),
        (["score", "mqar", "none.jsonl"], "none.jsonl: cannot be read"),
        (["score", "mqar", "none.jsonl", "--against", "no.jsonl"], "no.jsonl: cannot be read"),
        (["score", "mqar", "x", "--against", "y", "--num-pairs", "4"], "leave out --num-pairs"),
    ],
)
def test_bad_commands_are_refused_and_leave_nothing(run, tmp_path, command, message):
    code, out, err = run(*command)
    assert code == 2
    assert message in err
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
