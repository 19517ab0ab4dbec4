"""From a request to trials: grids, the reference, ids, slices."""

import itertools
import textwrap

import pytest
from pydantic import Field

from zoology import registry
from zoology.architectures.base import mixers
from zoology.architectures.config import MixerConfig, dial
from zoology.architectures.feature_maps import FEATURE_MAPS
from zoology.record import Plugin, TrialSpec
from zoology.registry import InputError
from zoology.sweeps.scales import SMALL
from zoology.sweeps.space import Request, allowed, choices, expand, one_slice, parse_value, parse_values

pytestmark = pytest.mark.usefixtures("own_registries")


def request(*names, **fields):
    return Request(**({"architectures": names or ("linear-attention",), "reference": False} | fields))


def names_of(spec):
    return [layer.mixer for layer in spec.layers]


def test_a_sweep_is_the_product_of_its_grids():
    trials = expand(request("based", settings={"feature_dim": (4, 8), "num_heads": (1, 2)}, d_model=(16, 32)))
    found = [(t.d_model, t.dials["feature_dim"], t.dials["window"], t.dials["num_heads"]) for t in trials]
    assert sorted(found) == sorted(itertools.product((16, 32), (4, 8), (0, 16), (1, 2)))
    assert len({t.id for t in trials}) == len(trials) == 16


def test_what_is_not_given_is_swept_over_its_default_grid_and_plain_settings_are_not():
    trials = expand(request("linear-attention"))
    assert {t.d_model for t in trials} == set(SMALL.d_model)
    assert {t.dials["feature_dim"] for t in trials} == {4, 8, 16}
    assert len(trials) == 3 * len(SMALL.d_model)
    assert all(t.dials.keys() == {"feature_dim"} for t in trials)


def test_without_a_grid_there_is_one_point_at_the_defaults():
    (trial,) = expand(request("based", grid=False))
    assert trial.d_model == 32
    assert trial.dials == {"feature_dim": 16, "window": 16}


def test_a_dial_applies_to_the_architectures_that_have_it():
    trials = expand(
        request("attention", "linear-attention", "sliding-window", d_model=(16,), settings={"window": (8, 9)})
    )
    dials = {(t.architecture, *t.dials.items()) for t in trials}
    assert dials == {
        ("attention",),
        *(("linear-attention", ("feature_dim", f)) for f in (4, 8, 16)),
        *(("sliding-window", ("window", w)) for w in (8, 9)),
    }


def test_a_dial_that_no_architecture_has_names_those_there_are_and_whose_it_is():
    with pytest.raises(InputError) as error:
        expand(request("attention", settings={"feature_dim": (8,)}))
    assert str(error.value).startswith("--feature-dim: attention has no such dial; there are --d-model, --num-heads")
    owners = str(error.value).partition("--feature-dim belongs to ")[2].split(", ")
    assert {"based", "linear-attention"} <= set(owners)


def test_the_reference_is_added_once_at_the_largest_width_and_comes_last():
    trials = expand(request("based", d_model=(32, 64, 16), reference=True))
    assert [t.architecture for t in trials].count("attention") == 1
    assert (trials[-1].architecture, trials[-1].d_model) == ("attention", 64)
    assert trials[:-1] == expand(request("based", d_model=(32, 64, 16)))


def test_there_is_no_reference_where_attention_is_chosen():
    trials = expand(request("attention", "based", d_model=(16,), reference=True))
    assert [t.architecture for t in trials] == ["attention", *["based"] * 6]


def test_duplicates_are_merged():
    twice = expand(request("based", "based", d_model=(16, 16), settings={"feature_dim": (8, 8, 4)}))
    assert twice == expand(request("based", d_model=(16,), settings={"feature_dim": (8, 4)}))


def test_a_window_of_0_leaves_the_layer_out():
    without, with_one = expand(request("based", d_model=(16,), settings={"feature_dim": (8,), "window": (0, 8)}))
    assert names_of(without) == ["short-conv", "linear-attention"]
    assert names_of(with_one) == ["short-conv", "linear-attention", "sliding-window"]
    assert with_one.layers[2].settings["window"] == 8


def test_a_mixer_gets_the_recipe_of_the_papers():
    for name in ("attention", "linear-attention", "short-conv", "sliding-window"):
        (trial,) = expand(request(name, grid=False))
        assert names_of(trial) == ["short-conv", name]


def test_a_stack_is_spelled_out_and_takes_the_settings_of_its_parts():
    name = "short-conv+linear-attention+sliding-window"
    settings = {"feature_dim": (4,), "window": (8,), "num_heads": (2,), "kernel_size": (4,)}
    (trial,) = expand(request(name, d_model=(16,), settings=settings))
    assert trial.architecture == name
    conv, linear, local = (layer.settings for layer in trial.layers)
    assert conv == {"kernel_size": 4}
    assert (linear["feature_dim"], linear["num_heads"]) == (4, 2)
    assert (local["window"], local["num_heads"]) == (8, 2)
    (based,) = expand(request("based", d_model=(16,), settings=settings))
    assert based.layers == trial.layers


@pytest.mark.parametrize("name", ["short-conv+", "+", "short-conv+linear-atention"])
def test_a_stack_with_an_unknown_part_is_refused(name):
    with pytest.raises(InputError, match="unknown mixer"):
        expand(request(name))


def test_every_layer_has_all_of_its_settings():
    """So that a later default does not change what an old id meant."""
    for trial in expand(request(*mixers, grid=False)):
        for layer in trial.layers:
            assert layer.settings.keys() == mixers.get(layer.mixer).Config.model_fields.keys()


CHANGES = [
    {"d_model": (64,)},
    {"settings": {"feature_dim": (4,)}},
    {"settings": {"num_heads": (2,)}},
    {"settings": {"feature_map": ("elu",)}},
    {"task": "set-disjointness"},
    {"task_params": {"num_pairs": (2,)}},
    {"task_params": {"fillers": ("papers",)}},
    {"task_params": {"power": (0.5,)}},
    {"scale": "paper"},
    {"train_examples": 100},
    {"test_examples": 100},
    {"plugins": (Plugin(path="a.py", source="x = 1"),)},
    {"training": {"epochs": 2}},
    {"training": {"batch_size": 48}},
    {"training": {"learning_rates": (1e-3,)}},
    {"training": {"seeds": (0, 1)}},
    {"training": {"data_seed": 1}},
    {"training": {"weight_decay": 0.0}},
    {"training": {"warmup": 0.2}},
    {"training": {"embedding_dropout": 0.1}},
    {"training": {"precision": "fp32"}},
    {"training": {"init": "papers"}},
    {"training": {"validate_every": 10}},
    {"training": {"threshold": None}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_an_id_changes_with_all_that_decides_the_numbers(change):
    (before,), (after,) = expand(request(grid=False)), expand(request(grid=False, **change))
    assert before.id != after.id


def test_the_changes_above_cover_the_whole_recipe():
    assert {key for change in CHANGES for key in change.get("training", {})} == set(
        TrialSpec.model_fields["training"].annotation.model_fields
    )


def test_an_id_does_not_depend_on_where_a_plugin_lies_or_on_the_rest_of_the_sweep():
    here, there = (
        expand(request(grid=False, plugins=(Plugin(path=path, source="x = 1"),)))[0].id for path in ("a.py", "/b/c.py")
    )
    assert here == there
    (alone,) = expand(request(grid=False))
    among = expand(request("based", "linear-attention", d_model=(32, 16), reference=True))
    assert alone.id in {t.id for t in among}


def test_an_id_survives_json():
    (trial,) = expand(request("based", grid=False, training={"learning_rates": (10**-2.5, 1e-3)}))
    assert TrialSpec.model_validate_json(trial.model_dump_json()).id == trial.id


def test_task_parameters_replace_those_of_the_slices_and_keep_the_number_of_examples():
    before = expand(request(grid=False))[0]
    total = sum(part.examples for part in before.train)
    for params in ({"num_pairs": (4,)}, {"num_pairs": (2, 4)}, {"num_pairs": (1, 2, 3), "seq_len": (32, 64)}):
        after = expand(request(grid=False, task_params=params))[0]
        given = list(itertools.product(*params.values()))
        assert sum(part.examples for part in after.train) == total
        for split in (after.train, after.valid, after.test):
            assert [tuple(part.params[key] for key in params) for part in split] == given
            assert {part.params["vocab_size"] for part in split} == {64}


def test_what_slices_share_is_not_asked_twice():
    (trial,) = expand(request(grid=False, task_params={"passes": (1,)}))
    assert trial == expand(request(grid=False))[0]


def test_train_and_test_examples_are_scaled_slice_by_slice():
    (trial,) = expand(request(grid=False, train_examples=300, test_examples=7))
    assert [part.examples for part in trial.train] == [100, 100, 100]
    assert {part.examples for part in trial.test} == {7}
    (least,) = expand(request(grid=False, train_examples=1))
    assert {part.examples for part in least.train} == {1}


def test_slices_have_different_names_whatever_they_differ_in():
    (trial,) = expand(request(grid=False, task_params={"vocab_size": (64, 128), "num_pairs": (2,)}))
    assert [part.name for part in trial.test] == ["T64-N2-vocab_size=64", "T64-N2-vocab_size=128"]
    (trial,) = expand(request(grid=False, task_params={"vocab_size": (64, 128), "num_pairs": (2, 4)}))
    assert len({part.name for part in trial.test}) == len(trial.test) == 4
    (trial,) = expand(request(grid=False, task_params={"vocab_size": (64,)}))
    assert [part.name for part in trial.test] == ["T64-N4", "T64-N8", "T64-N16"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architectures": ()}, "no architecture is chosen: --arch takes attention, base-conv, based"),
        ({"architectures": ("bsed",)}, r"unknown architecture 'bsed': did you mean based\?"),
        ({"scale": "papr"}, r"unknown scale 'papr': did you mean paper\?"),
        ({"task": "mqr"}, r"unknown task 'mqr': did you mean mqar\?"),
        ({"task_params": {"size_a": (3,)}}, "task mqar has no parameter --size-a: it has vocab_size, seq_len"),
        ({"task_params": {"num_pairs": (20,)}}, "num_pairs = 20.*seq_len = 64 holds at most 16 pairs"),
        ({"task_params": {"vocab_size": (8,)}}, "num_pairs = 4: vocab_size = 8 has 3 different keys"),
        ({"settings": {"num_heads": (3,)}}, "linear-attention: d_model = 8 is not divisible by num_heads = 3"),
        ({"settings": {"feature_dim": (0,)}}, "linear-attention: feature_dim = 0: input should be greater than"),
        ({"settings": {"feature_map": ("gelu",)}}, "linear-attention: feature_map = 'gelu'.*'taylor', 'elu'"),
        ({"training": {"epochs": 0}}, "--epochs 0.*whole numbers from 1"),
        ({"training": {"warmup": 1.0}}, "--warmup 1.0.*numbers from 0 below 1"),
        ({"d_model": (10**11,)}, "cannot be built with d_model=100000000000"),
    ],
    ids=str,
)
def test_what_is_impossible_is_refused_in_one_line(fields, said):
    with pytest.raises(InputError, match=said) as error:
        expand(request(**fields))
    assert "\n" not in str(error.value)


def test_a_mixer_that_cannot_be_made_says_why(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""
            from zoology import Mixer, register_mixer

            @register_mixer("mine")
            class Mine(Mixer):
                def __init__(self, d_model, config):
                    super().__init__()
                    self.width = config.widht

                def init_state(self, batch_size): ...
                def step(self, x, state): ...
        """)
    )
    registry.load_plugin(path)
    with pytest.raises(InputError, match=r"mine cannot be built with d_model=32: AttributeError.*widht"):
        expand(request("mine", grid=False))


class Config(MixerConfig):
    """Fields of every kind that a flag may have."""

    width: int = dial(4, sweep=(4,))
    share: float = Field(0.5, ge=0, lt=1)
    rate: float = Field(0.5, gt=0)
    name: str = "a"
    on: bool = False
    limit: int | None = Field(3, ge=1)
    kind: Plugin | None = None


@pytest.mark.parametrize(
    ("key", "text", "values"),
    [
        ("width", "8,16,32", (8, 16, 32)),
        ("width", " 8 , 16 ", (8, 16)),
        ("width", "8,8,4,8", (8, 4)),
        ("share", "0,.5,1e-3", (0.0, 0.5, 1e-3)),
        ("name", "a,B", ("a", "B")),
        ("on", "true,no", (True, False)),
        ("limit", "2,none,None", (2, None)),
    ],
)
def test_values_are_parsed_by_their_field(key, text, values):
    found = parse_values(key, text, Config.model_fields[key])
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("key", "text", "bad", "what"),
    [
        ("width", "0", "'0'", "whole numbers from 1"),
        ("width", "8,-3", "'-3'", "whole numbers from 1"),
        ("width", "abc", "'abc'", "whole numbers from 1"),
        ("width", "8.5", "'8.5'", "whole numbers from 1"),
        ("width", "8,,16", "an empty value", "whole numbers from 1"),
        ("width", "8,16,", "an empty value", "whole numbers from 1"),
        ("width", "", "an empty value", "whole numbers from 1"),
        ("width", "none", "'none'", "whole numbers from 1"),
        ("share", "1", "'1'", "numbers from 0 below 1"),
        ("share", "nan", "'nan'", "numbers from 0 below 1"),
        ("rate", "inf", "'inf'", "numbers above 0"),
        ("rate", "1e999", "'1e999'", "numbers above 0"),
        ("on", "maybe", "'maybe'", "true or false"),
        ("limit", "0", "'0'", "whole numbers from 1, or none"),
    ],
)
def test_a_wrong_value_names_the_flag_the_value_and_what_is_allowed(key, text, bad, what):
    with pytest.raises(InputError) as error:
        parse_values(key, text, Config.model_fields[key])
    assert str(error.value) == f"--{key} {text or repr('')}: {bad} is not allowed; {what}"


def test_one_of_a_few_words_is_answered_with_the_nearest():
    field = mixers.get("linear-attention").Config.model_fields["feature_map"]
    assert choices(field) == tuple(FEATURE_MAPS)
    words = ", ".join(FEATURE_MAPS)
    assert allowed(field) == f"one of {words}"
    with pytest.raises(InputError, match=rf"'tailor' is not allowed; one of {words} \(did you mean taylor\?\)$"):
        parse_values("feature_map", "tailor", field)
    with pytest.raises(InputError, match=f"'xyz' is not allowed; one of {words}"):
        parse_values("feature_map", "xyz", field)


def test_a_flag_for_one_value_refuses_several():
    assert parse_value("width", "8", Config.model_fields["width"]) == 8
    with pytest.raises(InputError, match="--width 8,16: takes one value; whole numbers from 1"):
        parse_value("width", "8,16", Config.model_fields["width"])


def test_one_slice_for_a_look():
    assert one_slice("mqar", {"num_pairs": 2}).slice_name == "T64-N2"
    with pytest.raises(InputError, match="holds at most 16 pairs"):
        one_slice("mqar", {"num_pairs": 20})


def test_named_slices_stand_in_for_those_of_the_scale():
    """MAD's grids, say: harder variants of a task, trained as the scale has it."""
    (trial,) = expand(request(grid=False, task="in-context-recall", slices="paper-vocab-size-32"))
    assert {part.params["vocab_size"] for part in (*trial.train, *trial.test)} == {32}
    with pytest.raises(InputError, match=r"no slices named 'paper-vocab-size-3': did you mean paper-vocab-size-32"):
        expand(request(task="in-context-recall", slices="paper-vocab-size-3"))
