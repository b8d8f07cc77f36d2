"""The target by transformers, float32, CPU: one uncached forward over a whole text, with the output of every layer.

One forward per text on purpose. A loop that drafts, verifies and then *crops* its cache is wrong on targets with
recurrent layers (the cropped cache keeps the state of rejected tokens); here nothing is ever rolled back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

Tensor = torch.Tensor


@dataclass
class Run:
    """layers[i] [n, Ht] is the output of decoder layer i before any final norm; logits [n, V]."""

    layers: list[Tensor]
    logits: Tensor

    def features(self, taps: list[int]) -> Tensor:
        """Outputs of the given layers side by side, [n, len(taps) * Ht]."""
        return torch.cat([self.layers[i] for i in taps], -1)


class Target:
    """A causal language model of a Hugging Face directory."""

    def __init__(self, directory: Path) -> None:
        logging.disable_progress_bar()
        # eager attention: one plain softmax, no fused kernel whose order of sums depends on the machine
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
        self.model = model.eval()
        self._outputs: list[Tensor] = []
        for layer in model.model.layers:
            layer.register_forward_hook(self._keep_output)

    def _keep_output(self, _layer: torch.nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self._outputs.append((output[0] if isinstance(output, tuple) else output)[0])

    @property
    def embeddings(self) -> Tensor:
        return self.model.get_input_embeddings().weight.detach()

    @property
    def head(self) -> Tensor:
        return self.model.get_output_embeddings().weight.detach()

    @property
    def layer_count(self) -> int:
        return len(self.model.model.layers)

    @torch.inference_mode()
    def run(self, tokens: list[int]) -> Run:
        self._outputs = []
        logits = self.model(torch.tensor([tokens]), use_cache=False).logits[0]
        return Run(self._outputs, logits)
