"""Which layers of the target an EAGLE3 drafter reads, by the meaning of who wrote its config.

`eagle_aux_hidden_state_layer_ids` is written in three places, with two meanings:

- beside `transformer_layer_config`, by speculators: the layers whose input is read;
- at the top level, by vLLM, AngelSlim and for llama.cpp: the same;
- in `eagle_config`, by SpecForge and ModelOpt, which hook the output of these layers: one less. SGLang agrees, vLLM
  takes them as inputs.

`eagle_config.layer_ids` is vLLM's own name for inputs, `target_layer_ids` DeepSpec's for outputs. Without any
(SafeAILab) the inputs of layers 2, L/2 and L-3 are read.
"""

from __future__ import annotations

from dataclasses import dataclass

from dflash_tools.errors import UserError

from dflash_convert.families.speculators import input_taps
from dflash_convert.jsonfile import Config
from dflash_convert.target import Target

IDS = "eagle_aux_hidden_state_layer_ids"
VLLM_IDS = "layer_ids"
DEEPSPEC_IDS = "target_layer_ids"


@dataclass(frozen=True)
class Taps:
    """`layers`: those whose input is read; `ids`: as the config names them, empty if it names none."""

    layers: tuple[int, ...]
    ids: tuple[int, ...]


def read_taps(config: Config, target: Target, notes: list[str]) -> Taps:
    """The taps of a flat config. Raises UserError if the target's depth must be known and is not."""
    nested = config.section("eagle_config")
    inputs, outputs = tuple(config.integers(IDS)), tuple(nested.integers(IDS, least=-1))
    of_vllm, of_deepspec = tuple(nested.integers(VLLM_IDS)), tuple(config.integers(DEEPSPEC_IDS))
    key = IDS
    if inputs:
        taps = Taps(inputs, inputs)
    elif outputs:
        taps = Taps(tuple(i + 1 for i in outputs), outputs)
        notes.append(
            f"eagle_config names the layers {list(outputs)}; its producers (SpecForge, ModelOpt) mean their outputs, "
            f"so the inputs of layers {list(taps.layers)} are tapped. vLLM takes the ids as inputs: for a drafter "
            "trained so, give --taps inputs"
        )
    elif of_vllm:
        key, taps = VLLM_IDS, Taps(of_vllm, of_vllm)
        notes.append(f"eagle_config.{VLLM_IDS} names the inputs of layers {list(of_vllm)}, as vLLM reads it")
    elif of_deepspec:
        key, taps = DEEPSPEC_IDS, Taps(tuple(i + 1 for i in of_deepspec), of_deepspec)
        if target.n_layers in taps.layers:
            raise UserError(
                f"{config.where(DEEPSPEC_IDS)} names the last layer of {target.path}: DeepSpec takes transformers' "
                "last hidden state for it, after the final norm, which llama.cpp does not hand out"
            )
    else:
        taps = Taps(input_taps(config, target, notes, IDS), ())
        # some published drafters leave their ids out although they were trained on others
        notes.append("if few drafts are accepted, its authors took other layers: --taps gives them")
    others = {
        f"eagle_config.{IDS}": tuple(i + 1 for i in outputs),
        f"eagle_config.{VLLM_IDS}": of_vllm,
        DEEPSPEC_IDS: tuple(i + 1 for i in of_deepspec),
    }
    notes += [
        f"{name} would be the inputs of layers {list(layers)}; {key} {'at the top level' if inputs else 'beside it'} "
        f"holds. --taps {','.join(map(str, layers))} takes the others"
        for name, layers in others.items()
        if layers and layers != taps.layers
    ]
    return taps
