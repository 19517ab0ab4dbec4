"""What the Triton kernels of linear attention share: where a program is, and how it reads and writes."""

import triton
import triton.language as tl


@triton.jit
def place(T, H, chunk, BLOCK: tl.constexpr):
    """This program's (row of the batch, head, chunk, tokens there, block of the chunk)."""
    blocks = tl.cdiv(tl.minimum(chunk, T), BLOCK)
    chunks = tl.cdiv(T, chunk)
    program = tl.program_id(0)
    n = program // blocks % chunks
    row = program // blocks // chunks
    return (row // H).to(tl.int64), (row % H).to(tl.int64), n, tl.minimum(chunk, T - n * chunk), program % blocks


@triton.jit
def tile(base, rows, stride, length, WIDTH: tl.constexpr, PADDED: tl.constexpr, ALL: tl.constexpr = False):
    """Rows of a matrix whose elements lie dense along them; 0 beyond `length`, unless ALL are within, and `WIDTH`."""
    columns = tl.arange(0, PADDED)
    at = base + rows[:, None] * stride + columns[None, :]
    if ALL and WIDTH == PADDED:
        x = tl.load(at)
    elif ALL:
        x = tl.load(at, mask=(columns < WIDTH)[None, :], other=0.0)
    elif WIDTH == PADDED:
        x = tl.load(at, mask=(rows < length)[:, None], other=0.0)
    else:
        x = tl.load(at, mask=(rows < length)[:, None] & (columns < WIDTH)[None, :], other=0.0)
    return x


@triton.jit
def put(base, x, rows, stride, length, WIDTH: tl.constexpr, PADDED: tl.constexpr, ALL: tl.constexpr = False):
    columns = tl.arange(0, PADDED)
    at = base + rows[:, None] * stride + columns[None, :]
    if ALL and WIDTH == PADDED:
        tl.store(at, x)
    elif ALL:
        tl.store(at, x, mask=(columns < WIDTH)[None, :])
    else:
        tl.store(at, x, mask=(rows < length)[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def numbers(base, rows, length, ALL: tl.constexpr):
    """One for each row; 0 beyond `length`, unless ALL are within."""
    return tl.load(base + rows) if ALL else tl.load(base + rows, mask=rows < length, other=0.0)


@triton.jit
def weight(s, scale, TAYLOR: tl.constexpr):
    """w of the score, which is scaled here."""
    if TAYLOR:
        return s * (s * (0.5 * scale * scale) + scale) + 1.0
    return s


@triton.jit
def slope(s, scale, TAYLOR: tl.constexpr):
    """The derivative of w by the score before it is scaled."""
    if TAYLOR:
        return s * (scale * scale) + scale
    return tl.full(s.shape, 1.0, tl.float32)


@triton.jit
def decay(near, rest, near_past, rest_past):
    """exp2 of G of some tokens less G of earlier ones; 1 where they are not earlier, which is masked elsewhere."""
    return tl.exp2(tl.minimum((near - near_past) + (rest - rest_past), 0.0))
