"""The `zoology` command: a subcommand parses, calls one library function, and prints. Heavy imports are inside them."""

import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from zoology.cli_bench import kernels
from zoology.cli_models import evaluate
from zoology.cli_runs import plot, report, table
from zoology.cli_tasks import PluginFiles, ScaleName, Slices, TaskArgument, export, score
from zoology.registry import InputError

if TYPE_CHECKING:
    from zoology.flags import Given
    from zoology.record import Plugin
    from zoology.sweeps.space import Request

APP_HELP = """How much can a sequence mixer recall for each byte of state that it keeps?

Start with:  [bold]zoology sweep --arch based --feature-dim 16[/bold]"""

PLAIN_WIDTH = 120
"""Columns of output that goes to a file or a pipe, where Rich would take 80."""

stdout = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
stderr = Console(stderr=True, highlight=False)

Arch = Annotated[
    list[str] | None,
    typer.Option("--arch", metavar="NAME", help="Architecture, mixer, or a stack spelled a+b+c. Repeat for several."),
]
TaskName = Annotated[str, typer.Option("--task", metavar="NAME", help="What to recall: see `zoology tasks`.")]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder that holds the runs.")]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="The run's own folder in it. Default: made from the sweep.")
]
Resume = Annotated[
    bool, typer.Option("--resume", metavar="", help="Go on with a run that was cut short: only the rest is run.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", metavar="", help="With --resume: run failed trials again.")
]

UsageError: type[Exception] = typer.BadParameter.__base__  # type: ignore[assignment]
"""What Typer raises for a command line that it cannot read; it exports this subclass only."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script and of `python cli.py`. Bad input ends with exit code 2 and a line or two."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if arguments == ["--version"]:
        arguments = ["version"]
    try:
        code = build_app(arguments)(arguments, prog_name="zoology", standalone_mode=False)
    except InputError as error:
        complain(error)
        code = 2
    except UsageError as error:
        word = command_word(arguments)
        complain(usage(error, word if word in (*COMMANDS, BENCH) else ""))
        code = 2
    except KeyboardInterrupt:  # before there was a command
        code = 130
    sys.exit(code or 0)


def usage(error: Any, command: str) -> str:
    """What Typer says of a command line that it cannot read, and where there is more."""
    text = error.format_message().rstrip(".")
    if "extra argument" in text and command in ("sweep", "train"):
        text += "; several values are one word, --feature-dim 8,16, and an architecture follows its flag, --arch based"
    return f"{text}\nSee {f'zoology {command}'.strip()} --help"


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The Typer app for a command line: the flags of `sweep` and `train` depend on what it chooses.

    Raises:
        InputError: a plugin cannot be loaded, or a flag is unknown.
    """
    app = typer.Typer(
        add_completion=False,
        help=APP_HELP,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    wanted = command_word(arguments)
    for function in COMMANDS.values():
        if function not in (sweep, train, sample, export, score, evaluate):
            app.command()(catching(function))
            continue
        command: Callable[..., Any] = without_flags(function)
        if wanted == function.__name__:
            from zoology.flags import Chosen, load_plugins, resource_flags, sweep_flags, task_flags, with_flags

            chosen = Chosen.read(arguments)
            load_plugins(chosen.plugins)
            if function in (sample, export, score):
                flags = task_flags(_task_of(arguments), many=function is not sample)
            elif function is evaluate:
                flags = task_flags(_task_of_run(arguments))
            else:
                flags = sweep_flags(chosen) + (resource_flags() if function is sweep else [])
            command = with_flags(function, flags, arguments)
        app.command()(catching(command))
    bench = typer.Typer(help="Measure this machine: how fast the kernels are.")
    bench.command()(catching(kernels))
    app.add_typer(bench, name=BENCH)
    return app


def command_word(arguments: Sequence[str]) -> str:
    """The first argument that is no flag."""
    return next((word for word in arguments if not word.startswith("-")), "")


def _task_of(arguments: Sequence[str]) -> str:
    """The task that a command is given as its first argument, wherever flags and their values stand."""
    from zoology.tasks.base import tasks

    return next((word for word in arguments[1:] if word in tasks), "")


def _task_of_run(arguments: Sequence[str]) -> str:
    """The task of the run that a command is given, its plugins loaded; mqar where there is none, for the help."""
    from zoology.record import SWEEP
    from zoology.registry import load_plugin
    from zoology.sweeps.evaluate import request_of

    run = next((Path(word) for word in arguments[1:] if (Path(word) / SWEEP).exists()), None)
    if run is None:
        return "mqar"
    request = request_of(run)
    for plugin in request.plugins:
        load_plugin(plugin.path, plugin.source)
    return request.task


def without_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in with a command's name and help, for a command line that calls another one."""

    def command() -> None: ...

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def catching(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that turns Ctrl-C into a message and exit code 130, SIGTERM (in a sweep) into 143."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt as stop:
            kept = "; what was finished is on disk, and --resume goes on from there"
            complain("interrupted" + (kept if function.__name__ in ("sweep", "train") else ""))
            code = getattr(stop, "exit_code", None)
            if code is None:
                raise typer.Exit(130) from None
            # A sweep through Ray was stopped, and all is put away. Ray's own threads, cut short, can crash the
            # interpreter when it ends in the usual way.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    return command


def complain(error: Exception | str) -> None:
    """One message on standard error."""
    stderr.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)


def sweep(
    arch: Arch = None,
    task: TaskName = "mqar",
    scale: ScaleName = "small",
    slices: Slices = None,
    plugin: PluginFiles = None,
    reference: Annotated[
        bool, typer.Option("--reference/--no-reference", metavar="", help="Also train attention, for comparison.")
    ] = True,
    out: Out = Path("runs"),
    name: Name = None,
    resume: Resume = False,
    retry_failed: RetryFailed = False,
    *,
    given: "Given",
) -> None:
    """Sweep architectures over their dials and draw the frontier: recall against state.

    Every dial takes a list, --feature-dim 8,16,32. One that is not given is swept over a default grid.
    """
    from zoology.sweeps.launch import Place, Resources, launch_sweep
    from zoology.train import best_device

    request = make_request(arch, task, scale, plugin, given, slices=slices, reference=reference)
    resources = Resources(**({"gpus_per_trial": 1 if best_device() == "cuda" else 0} | given.resources))
    place = Place(out=out, name=name, resume=resume, retry_failed=retry_failed)
    show_run(launch_sweep(request, place, resources, typed(), stdout))


def train(
    arch: Arch = None,
    task: TaskName = "mqar",
    scale: ScaleName = "small",
    slices: Slices = None,
    plugin: PluginFiles = None,
    out: Out = Path("runs"),
    name: Name = None,
    resume: Resume = False,
    retry_failed: RetryFailed = False,
    *,
    given: "Given",
) -> None:
    """Train one point of an architecture in this process, over its learning rates and seeds."""
    from zoology.sweeps.launch import Place, launch_trial

    request = make_request(arch, task, scale, plugin, given, slices=slices, reference=False, grid=False)
    place = Place(out=out, name=name, resume=resume, retry_failed=retry_failed)
    show_run(launch_trial(request, place, typed(), stdout))


def make_request(
    arch: list[str] | None,
    task: str,
    scale: str,
    plugin: list[str] | None,
    given: "Given",
    **options: bool | str | None,
) -> "Request":
    """What `sweep` and `train` were asked, from their flags."""
    from zoology.flags import split_names
    from zoology.sweeps.space import Request

    sizes = dict(given.request)
    seeds = range(sizes.pop("seeds", 1))
    return Request(
        architectures=tuple(part for value in arch or () for part in split_names(value)),
        settings=given.settings,
        task=task,
        task_params=given.task_params,
        scale=scale,
        training={"seeds": tuple(seeds), **given.training},
        plugins=read_plugins(plugin),
        **sizes,
        **options,
    )


def read_plugins(paths: list[str] | None) -> tuple["Plugin", ...]:
    """Plugin files with their text, as a trial carries them."""
    from zoology.record import Plugin
    from zoology.registry import read_plugin

    return tuple(Plugin(path=os.path.abspath(path), source=read_plugin(path)) for path in paths or ())


def typed() -> str:
    """The command line, to be kept with what it made."""
    return shlex.join(["zoology", *sys.argv[1:]])


def show_run(run: Path) -> None:
    """What a finished run prints: the table, what went wrong, and where everything lies. Exit code 1 if all failed."""
    from zoology.analysis.frontier import points
    from zoology.analysis.plots import plot_frontier, points_table, save
    from zoology.analysis.records import failures, load_runs, notes
    from zoology.record import RESULTS
    from zoology.tables import results_table

    results = run / RESULTS
    try:
        rows = load_runs([run])
    except InputError as error:
        complain(f"{error}\nTracebacks: {results}")
        raise typer.Exit(1) from None
    found = points(rows)
    stdout.print(results_table(points_table(found), stdout.width))
    lost = failures(rows)
    for note in notes(rows):
        stdout.print(f"note: {note}", style="yellow", soft_wrap=True)
    for _, row in lost.iterrows():
        stdout.print(
            f"failed: {row['architecture']} {row['dials']} d_model={row['d_model']}: {row['error']}", style="red"
        )
    picture = run / "frontier.png"
    save(plot_frontier(found), picture)
    stdout.print(f"rows     {results}", f"picture  {picture}", sep="\n", soft_wrap=True)


def mixers(plugin: PluginFiles = None) -> None:
    """List the mixers and architectures: measured state and how it grows, parameters, dials, source."""
    from zoology.architectures.overview import D_MODEL, overview
    from zoology.flags import load_plugins
    from zoology.tables import architectures_table, mixers_table

    load_plugins(plugin or ())
    stdout.print(mixers_table(overview(), D_MODEL), "")
    stdout.print(architectures_table(), "")


def tasks(plugin: PluginFiles = None) -> None:
    """List the recall tasks: parameters and source."""
    from zoology.flags import load_plugins
    from zoology.tables import tasks_table

    load_plugins(plugin or ())
    stdout.print(tasks_table())


def sample(
    task: TaskArgument,
    n: Annotated[str, typer.Option("--n", "-n", metavar="NUMBER", help="How many sequences.")] = "3",
    seed: Annotated[str, typer.Option("--seed", metavar="NUMBER", help="Seed of the generator.")] = "0",
    plugin: PluginFiles = None,
    *,
    given: "Given",
) -> None:
    """Print a few sequences of a task: keys, values, queries and labels.

    The parameters of the task are flags too: see `zoology sample mqar --help`.
    """
    from zoology.flags import COUNT, SEED
    from zoology.sweeps.space import one_slice, parse_value
    from zoology.tasks.base import draw
    from zoology.tasks.display import render

    chosen = one_slice(task, given.task_params)
    count, word = parse_value("n", n, COUNT), parse_value("seed", seed, SEED)
    stdout.print(render(chosen, draw(chosen, count, seed=("sample", word))))


def audit(
    arch: Annotated[
        list[str] | None, typer.Argument(metavar="MIXER", help="Mixers, architectures or stacks. Default: all.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Prove that mixers see no later token and keep nothing but their state. Exit code 1 if one does not."""
    from zoology.architectures.audit import audit_many
    from zoology.architectures.base import mixers_of
    from zoology.flags import load_plugins
    from zoology.sweeps.progress import busy
    from zoology.tables import audit_table

    load_plugins(plugin or ())
    jobs = mixers_of(arch or ())
    with busy(stdout, "auditing"):
        verdicts = audit_many(jobs, plugins=read_plugins(plugin))
    stdout.print(audit_table(verdicts))
    if any(verdict.findings for verdict in verdicts):
        raise typer.Exit(1)


def version() -> None:
    """Print the version of Zoology and of what it stands on."""
    import importlib.metadata
    import platform

    from zoology import __version__

    stdout.print(f"zoology {__version__}")
    stdout.print(f"python {platform.python_version()}", style="dim")
    for package in ("torch", "ray", "numpy", "pydantic", "pandas", "matplotlib", "plotly", "typer"):
        try:
            stdout.print(f"{package} {importlib.metadata.version(package)}", style="dim")
        except importlib.metadata.PackageNotFoundError:
            stdout.print(f"{package} is not installed", style="dim")


COMMANDS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (sweep, train, plot, table, report, evaluate, sample, export, score, tasks, mixers, audit, version)
}
"""In the order in which `--help` shows them."""
BENCH = "bench"
"""The one command with commands of its own."""
