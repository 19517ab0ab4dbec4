"""What `mixers` prints of every mixer is measured, by nothing but running it."""

import pytest
import torch

from zoology import Mixer, MixerConfig, dial, register_mixer
from zoology.architectures.overview import Overview, overview
from zoology.tables import mixers_table

pytestmark = pytest.mark.usefixtures("own_registries")


@pytest.fixture
def found():
    @register_mixer("breaks")
    class Breaks(Mixer):
        """Source: nowhere, arXiv:0000.00000"""

        class Config(MixerConfig):
            width: int = dial(4, sweep=(4, 8))

        def __init__(self, d_model, config):
            raise RuntimeError("boom")

        def init_state(self, batch_size): ...

        def step(self, x, state): ...

    @register_mixer("builds-only")
    class BuildsOnly(Mixer):
        def __init__(self, d_model, config):
            super().__init__()
            self.w = torch.nn.Linear(d_model, d_model)

        def init_state(self, batch_size):
            return torch.zeros(batch_size, 1)

        def step(self, x, state):
            raise ValueError("boom")

    return {each.name: each for each in overview(d_model=32, lengths=(10, 30))}


def test_state_and_parameters_are_those_of_the_formulas(found):
    d = 32
    attention = found["attention"]
    assert attention.state_bytes == ((10, 4 * 2 * d * 10), (30, 4 * 2 * d * 30))
    assert attention.bytes_per_token == 4 * 2 * d
    assert attention.parameters == 4 * d * d
    linear = found["linear-attention"]
    assert linear.state_bytes == tuple((n, 4 * (d + 1) * 153) for n in (10, 30))
    assert linear.bytes_per_token == 0
    assert linear.dials == {"feature_dim": (4, 8, 16)}
    assert linear.paper.startswith("Based, arXiv:2402.18668")
    assert found["sliding-window"].bytes_per_token == 4 * 2 * d * (16 - 10) / 20  # full at 16


def test_a_mixer_that_raises_is_listed_without_what_it_could_not_give(found):
    broken = found["breaks"]
    assert broken == Overview("breaks", "nowhere, arXiv:0000.00000", {"width": (4, 8)}, None, None)
    assert broken.bytes_per_token is None
    assert found["builds-only"].parameters == 32 * 32 + 32
    assert found["builds-only"].state_bytes is None


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    overview(d_model=16, lengths=(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_table_says_what_stays_what_grows_and_what_failed():
    rows = [
        Overview("stays", "A, arXiv:1; B, arXiv:2", {"some_dial": (1, 2)}, ((8, 2048), (16, 2048)), 77),
        Overview("grows", "", {}, ((8, 1024), (16, 2048)), 5),
        Overview("fails", "", {}, None, None),
    ]
    table = mixers_table(rows, 24)
    cells = list(zip(*(column._cells for column in table.columns), strict=True))
    assert cells == [
        ("stays", "77", "2 KB, constant", "--some-dial 1,2", "A, arXiv:1"),
        ("grows", "5", "1 KB, 2 KB\n+ 128 B a token", "", ""),
        ("fails", "-", "-", "", ""),
    ]
    assert "d_model = 24" in table.title
    assert "8 and 16 tokens" in table.title
