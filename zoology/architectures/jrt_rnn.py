"""JRT-RNN: Based, with a linear attention that reads the context whole before it goes on."""

from typing import Any

from zoology.architectures.base import Architecture, Layer, register_architecture
from zoology.architectures.based import Based


@register_architecture("jrt-rnn")
class JrtRnn(Architecture):
    """A short convolution, then prefix linear attention (recall from afar), then a sliding window (recall from near).

    Source: Just read twice, arXiv:2407.05483

    As Based, whose dials it has, but for the middle layer. The paper's language models repeat this pattern every five
    layers with further convolutions between, and learn to fill in masked tokens of the context beside their own task;
    here there is one layer of each and the task's loss alone.
    """

    Config = Based.Config

    @classmethod
    def layers(cls, config: Any) -> tuple[Layer, ...]:
        return tuple(
            Layer("prefix-linear-attention", layer.settings) if layer.mixer == "linear-attention" else layer
            for layer in Based.layers(config)
        )
