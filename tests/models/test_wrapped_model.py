"""A class of one's own around a whole language model: it has no part of its own below the output head."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from mstar_engine.models.backbone import backbone_of, output_head


class Wrapper(PreTrainedModel):
    """As many published checkpoints with code are: a tower, and `llm` with its head."""

    config_class = PretrainedConfig
    base_model_prefix = "llm"

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        self.llm = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.llm.get_output_embeddings()


def test_it_scores_no_steps_and_its_logits_are_computed_whole() -> None:
    with pytest.raises(ValueError, match="has no part below its output head"):
        backbone_of(Wrapper())
    assert output_head(Wrapper()) is None
    plain = Wrapper().llm
    assert backbone_of(plain) is plain.model and output_head(plain) is not None
