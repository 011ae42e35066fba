"""Models that other libraries have wrapped: adapters of peft, weights quantised by torchao."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig, LlamaForCausalLM

from odd import Block, X, odd, rows


class Plain(Block):
    def forward(self, x):
        return self.mlp(x)


@odd(rows(4, width=32), others=[rows(3, width=32)])
def quantised_by_torchao():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    quantize_(model, Int8WeightOnlyConfig())
    return model


class UsesWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x):
        return F.linear(x, self.linear.weight, self.linear.bias).relu()


@odd(rows(4, width=32), others=[rows(3, width=32)])
def torchao_weight_read_by_the_parent():
    model = UsesWeight()
    quantize_(model, Int8WeightOnlyConfig())
    return model


@odd(X, others=[rows(3)])
def lora():
    model = get_peft_model(Plain(), LoraConfig(r=2, target_modules=["up", "down"], lora_dropout=0.1))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    return model


@odd(X, others=[rows(3)], train=True)
def lora_in_training():
    return lora()


@odd(torch.arange(6).view(2, 3), others=[torch.arange(4).view(1, 4)])
def lora_llama():
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, use_cache=False
    )
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
