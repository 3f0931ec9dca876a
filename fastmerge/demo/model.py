"""A small Llama-shaped decoder in plain PyTorch, with the tensor names of Hugging Face checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

ROPE_THETA = 10000.0
EPSILON = 1e-5


@dataclass(frozen=True)
class Size:
    """Shape of the decoder."""

    vocab: int
    hidden: int = 64
    inner: int = 192
    layers: int = 2
    heads: int = 4


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def __init__(self, size: Size):
        super().__init__()
        self.heads = size.heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(size.hidden, size.hidden, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        q, k, v = (
            projection(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(_rotate(q), _rotate(k), v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, hidden))


def _rotate(x: Tensor) -> Tensor:
    """Rotate [batch, heads, length, width] by position; the two halves of the width are the pairs."""
    length, width = x.shape[-2:]
    frequency = ROPE_THETA ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(length)[:, None] * frequency  # [length, width / 2]
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()), dim=-1)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, size: Size):
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden, size.inner, bias=False)
        self.up_proj = nn.Linear(size.hidden, size.inner, bias=False)
        self.down_proj = nn.Linear(size.inner, size.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, size: Size):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(size.hidden, EPSILON)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = nn.RMSNorm(size.hidden, EPSILON)
        self.mlp = FeedForward(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids [batch, length] to logits [batch, length, vocab]."""

    def __init__(self, size: Size):
        super().__init__()
        self.size = size
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(size.vocab, size.hidden),
                "layers": nn.ModuleList(Layer(size) for _ in range(size.layers)),
                "norm": nn.RMSNorm(size.hidden, EPSILON),
            }
        )
        self.lm_head = nn.Linear(size.hidden, size.vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, layers = self.model["embed_tokens"](tokens), self.model["layers"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x)
        return self.lm_head(self.model["norm"](x))


def save(model: Decoder, folder: Path, vocabulary: Sequence[str] = ()) -> None:
    """Write ``model`` in bfloat16 as a checkpoint that ``transformers`` loads as a Llama.

    ``vocabulary`` has the word of every token, for a tokenizer that splits at spaces.
    """
    size = model.size
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "rms_norm_eps": EPSILON,
        "rope_theta": ROPE_THETA,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if vocabulary:
        _save_tokenizer(vocabulary, folder)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    # Not save_file, whose errors of the disk are no OSError.
    (folder / "model.safetensors").write_bytes(to_bytes(tensors, metadata={"format": "pt"}))


def _save_tokenizer(vocabulary: Sequence[str], folder: Path) -> None:
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {word: token for token, word in enumerate(vocabulary)},
            "unk_token": vocabulary[0],
        },
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path, size: Size) -> Decoder:
    """Read a checkpoint that ``save``, or a merge of such checkpoints, wrote."""
    model = Decoder(size)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model
