"""What every capture in a CUDA graph needs when it fails."""

import torch


def leave_capture() -> None:
    """After a capture that failed, the random state still believes to be inside it: go on with a copy that does not."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".strip(": ")
