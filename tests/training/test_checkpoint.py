"""A checkpoint is whole, or it is refused."""

import pytest
import torch

from zoology.training.checkpoint import Torn, read, write

TENSORS = {
    "flat": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "count": torch.tensor(7),
    "phase": torch.ones(2, dtype=torch.complex64),
    "strided": torch.arange(12).view(3, 4).t(),
    "none": torch.zeros(0, 3),
}
WORDS = {"step": 3, "accuracy": None, "curve": [[5, 0.25, 1e-12]]}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "folder" / "a.safetensors"
    write(path, TENSORS, WORDS)
    tensors, words = read(path)
    assert words == WORDS
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], t) and tensors[name].dtype == t.dtype for name, t in TENSORS.items())
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_there_is_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a.safetensors")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, TENSORS, WORDS)
    content = path.read_bytes()
    for size in {0, 1, 8, 100, len(content) // 2, len(content) - 1}:
        path.write_bytes(content[:size])
        with pytest.raises(Torn, match="is torn"):
            read(path)


def test_a_changed_number_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, TENSORS, WORDS)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(Torn, match="was altered"):
        read(path)


def test_somebody_elses_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(Torn):
        read(path)
