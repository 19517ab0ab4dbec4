"""Flags made from what is registered, and the help pages that show them, read as a person would."""

import re
import textwrap

import pytest
import typer
from typer.testing import CliRunner

from zoology import cli
from zoology.architectures.base import architectures, mixers
from zoology.architectures.config import dials
from zoology.architectures.feature_maps import FEATURE_MAPS
from zoology.flags import Chosen, Flag, Given, load_plugins, resource_flags, sweep_flags, task_flags, with_flags
from zoology.record import Training
from zoology.registry import InputError
from zoology.sweeps.launch import Resources
from zoology.sweeps.scales import PAPER, SMALL

pytestmark = pytest.mark.usefixtures("own_registries")

PLUGIN = """
    from pydantic import Field
    from zoology import Mixer, MixerConfig, dial, register_mixer

    @register_mixer("mine")
    class Mine(Mixer):
        class Config(MixerConfig):
            my_dial: int = dial(4, sweep=(4, 8), help="how wide it is")
            feature_dim: int = dial(2, sweep=(1, 2), help="another's word")
            leak: float = 0.5

        def init_state(self, batch_size):
            return self.zeros(batch_size, 1)

        def step(self, x, state):
            return x, state
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(PLUGIN))
    return str(path)


@pytest.fixture
def page(monkeypatch, capsys):
    """page("sweep", ...) -> the help page, as it is printed at a width."""

    def show(*arguments, width=120):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.delenv("TERMINAL_WIDTH", raising=False)
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments, "--help"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) == width
        return text

    return show


def panels(text):
    """The panels of a help page by name, each as one line of plain words."""
    found = {}
    for block in re.split(r"(?=╭)", text)[1:]:
        lines = [line.strip("│╭╮╰╯─ ") for line in block.splitlines()]
        found[lines[0].strip("─ ")] = " ".join(" ".join(lines[1:]).split())
    return found


def flags_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def own_flags(config):
    return {"--" + key.replace("_", "-") for key in config.model_fields}


def test_what_a_command_line_chooses_is_read_in_every_spelling():
    line = "sweep --arch a,b --arch=c --arch d+e --plugin x.py --plugin=y.py --task t --scale paper --task=u"
    assert Chosen.read(line.split()) == Chosen(("a", "b", "c", "d+e"), ("x.py", "y.py"), "u", "paper")
    assert Chosen.read(["sweep"]) == Chosen((), (), "mqar", "small")
    assert Chosen.read(["sweep", "--arch"]) == Chosen((), (), "mqar", "small")


@pytest.mark.parametrize("width", [80, 120])
def test_help_without_an_architecture_shows_every_dial_of_every_architecture(page, width):
    found = panels(page("sweep", width=width))
    for registry in (mixers, architectures):
        for name in registry:
            config = registry.get(name).Config
            assert {"--" + key.replace("_", "-") for key in dials(config)} <= flags_in(found["Dials"]), name
            assert own_flags(config) <= flags_in(found["Dials"] + found["Settings"]), name
    # Owners of a grid stand together, in the order of their names; however many there are on the shelf.
    assert re.search(r"Sweep: 4,8,16 \(based, [^)]*linear-attention", found["Dials"])
    assert re.search(r"Sweep: 0,16 \(based[^)]*\); .*Sweep: 8,16,32 \([^)]*sliding-window[^)]*\)", found["Dials"])
    assert re.search(r"Default: 3 \(based[^)]*\); .*Sweep: 3 \(short-conv\)", found["Dials"])


def test_help_of_an_architecture_shows_its_dials_with_their_grids_and_no_others(page):
    found = panels(page("sweep", "--arch", "based"))
    assert flags_in(found["Dials"]) == {"--d-model", "--feature-dim", "--window"}
    assert flags_in(found["Settings"]) == {"--num-heads", "--kernel-size", "--dropout"}
    assert "Width of the linear attention's queries and keys. Sweep: 4,8,16." in found["Dials"]
    assert "0 leaves that layer out. Sweep: 0,16." in found["Dials"]
    assert "Widths of the model. Sweep: 8,16,24,32." in found["Dials"]
    found = panels(page("sweep", "--arch", "attention"))
    assert flags_in(found["Dials"]) == {"--d-model"}
    assert "Rotary positions on queries and keys. One of true, false. Default: false." in found["Settings"]
    found = panels(page("sweep", "--arch", "linear-attention"))
    assert f"One of {', '.join(FEATURE_MAPS)}. Default: taylor." in found["Settings"]


def test_help_of_a_stack_shows_the_dials_of_its_parts(page):
    found = panels(page("sweep", "--arch", "short-conv+sliding-window"))
    assert flags_in(found["Dials"]) == {"--d-model", "--kernel-size", "--window"}


def test_help_of_a_plugin_s_mixer_shows_its_dial(page, plugin):
    found = panels(page("sweep", "--plugin", plugin, "--arch", "mine"))
    assert "--my-dial LIST How wide it is. Sweep: 4,8." in found["Dials"]
    assert "--feature-dim LIST Another's word. Sweep: 1,2." in found["Dials"]
    assert "--leak LIST Default: 0.5." in found["Settings"]
    assert "--my-dial" not in page("sweep", "--plugin", plugin, "--arch", "based")


def test_help_shows_the_parameters_of_the_chosen_task(page):
    assert flags_in(panels(page("sweep"))["Task"]) == own_flags(cli_task("mqar"))
    found = panels(page("sweep", "--task", "set-disjointness"))["Task"]
    assert flags_in(found) == own_flags(cli_task("set-disjointness"))
    assert "One of which, whether." in found
    assert "--num-pairs NUMBER" in panels(page("sample", "mqar"))["Task"]


def cli_task(name):
    from zoology.tasks.base import tasks

    class Config:
        model_fields = tasks.get(name).model_fields

    return Config


@pytest.mark.parametrize("scale", [SMALL, PAPER], ids=lambda scale: scale.name)
def test_help_shows_the_defaults_of_the_chosen_scale(page, scale):
    found = panels(page("train", "--scale", scale.name, width=200))
    training = {"--" + key.replace("_", "-") for key in Training.model_fields}
    assert flags_in(found["Training"]) == training | {"--train-examples", "--test-examples"}
    assert f"Passes over the training set. Default: {scale.training.epochs}." in found["Training"]
    assert f"Steps between validations. Default: {scale.training.validate_every}." in found["Training"]
    assert f"One of fan-in, papers. Default: {scale.training.init}." in found["Training"]
    assert f"Test sequences of each slice. Default: {scale.test}." in found["Training"]
    assert f"Widths of the model. Sweep: {','.join(map(str, scale.d_model))}." in found["Dials"]


def test_a_wrong_scale_or_task_does_not_keep_help_from_being_shown(page):
    assert "--epochs" in page("sweep", "--scale", "smal", "--task", "mqr")


def test_sweep_alone_has_machines(page):
    found = panels(page("sweep"))
    assert flags_in(found["Machines"]) == own_flags(Resources)
    assert list(found) == ["Options", "Dials", "Settings", "Task", "Training", "Machines"]
    assert list(panels(page("train"))) == ["Options", "Dials", "Settings", "Task", "Training"]


@pytest.mark.parametrize("command", [(), *((name,) for name in cli.COMMANDS), ("sample", "mqar")])
def test_help_lines_are_sentences_with_metavars_that_a_person_reads(page, command):
    lines = [line.strip("│ ") for line in page(*command, width=300).splitlines()]
    lines = [line.removeprefix("* ").strip() for line in lines if "Show this message" not in line]
    options = [
        re.sub(r"\[(default: [^\]]*|required)\]", "", line).strip() for line in lines if re.match(r"\*? *--", line)
    ]
    assert options or command in ((), ("version",))
    for line in options:
        assert not re.search(r"<(int|float|str|bool|path)", line), line
        assert line.endswith("."), line
        sentence = re.match(r"(?:-[\w-]+ *)+(?:(?:LIST|NUMBER|NAME|FILE|FOLDER|TEXT)\s+)?(.*)", line).group(1)
        assert sentence[0].isupper() or sentence.startswith("small:"), line


def test_help_of_the_program_names_every_command_and_the_first_one_to_try(page):
    text = page()
    assert "zoology sweep --arch based --feature-dim 16" in text
    assert list(re.findall(r"^│ (\w+) ", text.split("Commands")[1], re.MULTILINE)) == [*cli.COMMANDS, "bench"]
    assert page("-h") == text


def test_no_argument_at_all_shows_the_help(page, monkeypatch, capsys):
    text = page()
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 0
    assert capsys.readouterr().out == text


def parsed(flags, *arguments):
    """What a command with these flags is given for a command line."""
    found = []

    def command(*, given: Given) -> None:
        found.append(given)

    app = typer.Typer()
    app.command()(with_flags(command, flags, arguments))
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def test_flags_arrive_typed_and_by_kind():
    load_plugins(())
    flags = sweep_flags(Chosen(("based",), (), "mqar", "small")) + resource_flags()
    given = parsed(
        flags,
        *("--feature-dim", "8,16", "--window=0", "--num-pairs", "2", "--fillers", "papers", "--epochs", "3"),
        *(
            "--learning-rates",
            "1e-3,3e-3",
            "--threshold",
            "none",
            "--init",
            "papers",
            "--d-model",
            "32",
            "--seeds",
            "2",
        ),
        *("--train-examples", "10", "--gpus-per-trial", "0.25", "--address", "auto"),
    )
    assert given.settings == {"feature_dim": (8, 16), "window": (0,)}
    assert given.task_params == {"num_pairs": (2,), "fillers": ("papers",)}
    assert given.training == {"epochs": 3, "learning_rates": (1e-3, 3e-3), "threshold": None, "init": "papers"}
    assert given.request == {"d_model": (32,), "seeds": 2, "train_examples": 10}
    assert given.resources == {"gpus_per_trial": 0.25, "address": "auto"}


def test_a_flag_that_is_not_given_is_not_there():
    load_plugins(())
    assert parsed(sweep_flags(Chosen((), (), "mqar", "small"))) == Given({}, {}, {}, {}, {})


def test_the_flags_of_other_architectures_are_hidden_but_known():
    """So that the message can say whose dial it is."""
    load_plugins(())
    flags = {flag.key: flag for flag in sweep_flags(Chosen(("attention",), (), "mqar", "small"))}
    assert flags["feature_dim"].hidden
    assert not flags["rotary"].hidden


def test_a_parameter_of_the_task_wins_over_a_hidden_setting(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(PLUGIN.replace("my_dial", "num_pairs")))
    load_plugins([str(path)])
    flags = {flag.key: flag for flag in sweep_flags(Chosen(("based",), (), "mqar", "small"))}
    assert flags["num_pairs"].kind == "task_params"
    with pytest.raises(InputError, match="--num-pairs is a flag of this command already: rename the field 'num_pairs'"):
        sweep_flags(Chosen(("mine",), (), "mqar", "small"))


def test_an_unknown_task_has_no_flags():
    load_plugins(())
    assert task_flags("mqr") == []
    assert [flag.name for flag in task_flags("mqar")][:2] == ["--vocab-size", "--seq-len"]


def test_a_flag_is_spelled_with_dashes():
    assert Flag("feature_dim", Training.model_fields["epochs"], "settings", "Dials").name == "--feature-dim"
