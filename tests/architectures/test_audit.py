"""The audit passes what is honest, however odd, and refuses each cheater for the right reason."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoology.architectures
from zoology import InputError, Mixer, MixerConfig, register_mixer
from zoology.architectures.audit import LENGTHS, FreshProcess, audit, audit_many
from zoology.architectures.audit_checks import splits
from zoology.architectures.audit_process import pack, unpack
from zoology.architectures.base import mixers
from zoology.record import Plugin
from zoology.registry import load_plugin

HERE = Path(__file__).parent
BEFORE = dict(mixers._entries)
CHEATERS: dict[str, str] = load_plugin(HERE / "cheaters.py").CHEATERS
ODD: dict[str, str] = load_plugin(HERE / "odd_mixers.py").GROWTH
ADDED = {name: mixers.get(name) for name in (*CHEATERS, *ODD)}
for added in ADDED:  # the other tests shall not see them
    del mixers._entries[added]
OURS = [name for name, cls in BEFORE.items() if cls.__module__.startswith("zoology.")]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The cheaters and odd mixers are registered while a test of this file runs; what a test adds goes with it."""
    monkeypatch.setattr(mixers, "_entries", {**mixers._entries, **ADDED})
    environment = dict(os.environ)
    yield
    for key in os.environ.keys() - environment.keys():
        del os.environ[key]


@pytest.fixture(scope="module")
def process():
    """One fresh process for all tests."""
    with FreshProcess() as context:
        yield context


def test_there_are_mixers_to_audit():
    assert {"attention", "linear-attention", "sliding-window", "short-conv"} <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_every_mixer_of_the_package_passes(name, process):
    verdict = audit(name, context=process)
    assert verdict.findings == ()
    assert verdict.notes == ()  # it ran in float64 and in the fresh process, and trains every parameter
    assert verdict.passed
    assert verdict.parameters > 0


@pytest.mark.parametrize("name", ODD)
def test_odd_but_honest_mixers_pass(name, process):
    verdict = audit(name, context=process)
    assert verdict.findings == ()
    assert verdict.growth == ODD[name]


@pytest.mark.parametrize("name", CHEATERS)
def test_cheaters_are_refused_for_the_right_reason(name, process):
    verdict = audit(name, context=process)
    assert not verdict.passed
    assert any(re.search(CHEATERS[name], finding) for finding in verdict.findings), verdict.findings
    assert all("\n" not in finding for finding in verdict.findings)


def test_cheaters_start_from_an_honest_mixer(process):
    """Else a cheater could be refused for what it inherits."""
    module = sys.modules[ADDED["cheat-zero-gate"].__module__]
    for honest in (module.Honest, module.Reads):
        mixers._entries["honest"] = honest
        assert audit("honest", fresh_process=False).findings == ()


def test_a_finding_says_where_and_by_how_much(process):
    (finding, *_) = audit("cheat-one-position", context=process).findings
    found = re.match(r"the output at position 44 changes by (\S+) when the token at 50 changes \(of 64", finding)
    assert found is not None, finding
    assert float(found.group(1)) > 0.1


def test_one_mixer_that_dies_is_not_the_next_ones_fault():
    verdicts = audit_many([("odd-scan", 16, {}), ("cheat-dies-elsewhere", 16, {}), ("odd-delta", 8, {})])
    assert [v.passed for v in verdicts] == [True, False, True]
    assert [v.mixer for v in verdicts] == ["odd-scan", "cheat-dies-elsewhere", "odd-delta"]


def test_a_process_that_hangs_is_given_up(tmp_path):
    plugin = tmp_path / "sleeper.py"
    plugin.write_text((HERE / "odd_mixers.py").read_text().split("@odd(")[0] + SLEEPER)
    load_plugin(plugin)
    with FreshProcess() as context:
        assert audit("odd-scan", context=context).passed  # it has started
        context.timeout = 1.0
        verdict = audit("sleeper", context=context)
        context.timeout = 120.0
        assert verdict.findings == ("it cannot be continued in a fresh process: it did not answer within 1 s",)
        assert audit("odd-scan", context=context).passed


SLEEPER = """
import os, time

@register_mixer("sleeper")
class Sleeper(Mixer):
    def __init__(self, d_model, config):
        super().__init__()
        if "zoology-audit-" in os.getcwd():
            time.sleep(300)

    def init_state(self, batch_size):
        return torch.zeros(batch_size, 1)

    def step(self, x, state):
        state = state + x.mean(1, keepdim=True).to(state.dtype)
        return x + state, state
"""


def test_audit_many_answers_in_order_and_audits_equal_jobs_once():
    jobs = [("odd-scan", 8, {"gamma": 0.5}), ("odd-ring", 8, {}), ("odd-scan", 8, {"gamma": 0.5})]
    first, second, third = audit_many(jobs)
    assert first is third
    assert (first.mixer, first.d_model, first.settings) == jobs[0]
    assert second.mixer == "odd-ring"
    assert audit_many([]) == []


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    audit("cheat-random-state", fresh_process=False)
    audit("odd-gru", fresh_process=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_gives_the_same_verdict():
    one, two = (audit("cheat-neighbour", fresh_process=False, seed=3) for _ in range(2))
    assert one.findings == two.findings
    assert one.state_bytes == two.state_bytes


def test_state_bytes_are_those_of_float32(process):
    verdict = audit("odd-ring", d_model=8, context=process)
    sizes = {length: parts["convolution"]["float32"] for length, parts in verdict.state_bytes}
    assert sizes[1] == 8 * 4
    assert all(size == min(length, 5) * 8 * 4 for length, size in sizes.items())


def test_a_class_that_cannot_be_imported_is_audited_here_only():
    @register_mixer("local-decay")
    class Local(Mixer):
        Config = MixerConfig

        def __init__(self, d_model, config):
            super().__init__()
            self.d_model = d_model

        def init_state(self, batch_size):
            return torch.zeros(batch_size, self.d_model)

        def step(self, x, state):
            state = 0.5 * state + x
            return state, state

    verdict = audit("local-decay")
    assert verdict.findings == ()
    assert any("not continued in a fresh process" in note for note in verdict.notes)


def test_a_plugin_travels_without_its_file(tmp_path):
    file = tmp_path / "traveller.py"
    file.write_text(TRAVELLER)
    plugin = Plugin(path=str(file), source=TRAVELLER)
    load_plugin(file)
    file.unlink()
    (verdict,) = audit_many([("traveller", 8, {})], plugins=[plugin])
    assert verdict.findings == ()
    assert verdict.notes == ()
    left = audit("traveller", d_model=8)
    assert left.findings == ()
    assert any("not continued in a fresh process" in note for note in left.notes)


TRAVELLER = """
from zoology import Mixer, register_mixer

@register_mixer("traveller")
class Traveller(Mixer):
    def __init__(self, d_model, config):
        super().__init__()
        self.d_model = d_model

    def init_state(self, batch_size):
        import torch
        return torch.zeros(batch_size, self.d_model)

    def step(self, x, state):
        return state + x, 0.5 * state + x
"""


def test_what_grows_shall_be_called_so(process):
    notes = audit("odd-long-convolution", context=process).notes
    assert notes == ("its convolution state grows with the context: call what grows keys or values",)
    assert audit("odd-rotary-cache", context=process).notes == ()


def test_unknown_names_and_settings_are_the_users_errors():
    with pytest.raises(InputError, match="did you mean odd-scan"):
        audit("odd-scam")
    with pytest.raises(InputError, match="gamma"):
        audit("odd-scan", settings={"gamma": 3.0}, fresh_process=False)
    with pytest.raises(InputError, match="batch_size 2"):
        audit("odd-scan", batch_size=2)
    with pytest.raises(InputError, match="lengths"):
        audit("odd-scan", lengths=())


def test_short_and_odd_lengths_alone_are_enough():
    assert audit("odd-delta", lengths=(1,), fresh_process=False).passed
    assert audit("odd-delta", lengths=(5,), fresh_process=False).passed


def test_the_process_needs_no_working_directory(tmp_path):
    code = (
        "from zoology.registry import load_plugin; from zoology.architectures.audit import audit; "
        f"load_plugin({str(HERE / 'cheaters.py')!r}); print(audit('cheat-keyed-global').findings)"
    )
    root = str(Path(zoology.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "fresh process" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", LENGTHS)
def test_splits_cover_the_sequence(length):
    for pieces in splits(length):
        assert sum(max(piece, 1) for piece in pieces) == length
        assert min(pieces) >= 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
def test_states_travel_as_bytes(dtype, shape):
    tensor = (torch.arange(6).reshape(2, 3) if shape == (2, 3) else torch.ones(shape)).to(dtype)
    state = {"a": (tensor, [tensor[..., None].transpose(0, -1)]), "b": []}
    parts: list[torch.Tensor] = []
    copied = unpack(pack(state, parts), iter(parts), {})
    assert all(part.dtype == torch.uint8 for part in parts)
    assert type(copied["a"]) is tuple
    assert copied["b"] == []
    for got, want in ((copied["a"][0], tensor), (copied["a"][1][0], state["a"][1][0])):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
        assert got._base is None
