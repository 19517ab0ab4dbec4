"""How far a tensor is from what it should be."""


def error(got, want):
    """Their distance in float64, relative to the size of what is wanted."""
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm())


def no_worse(ours, theirs, exact, ratio, floor, name=""):
    """An error that may be `ratio` times that of theirs, or as large as `floor`, that of a rounding or two."""
    found, other = error(ours, exact), error(theirs, exact)
    assert found <= max(ratio * other, floor), f"{name}: {found:.3g}, reference {other:.3g}"


def near(got, want, bound=2e-6):
    """The same, held to a bound; of float32, if nothing else is said. Where nothing but 0 is wanted, 0 it must be."""
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    distance, size = float((got - want).norm()), float(want.norm())
    assert distance <= bound * size + 1e-12, f"{distance:.3g} from what is {size:.3g} large"
