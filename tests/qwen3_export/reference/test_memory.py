"""The reference holds one half layer, whatever the model's depth, vocabulary and context."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A model of 1.0 GB in fp32, 0.6 GB of it the embedding, of weights made up when read.  What must be held is a
# half layer of 38 MB, hidden and inner states of 4 to 12 MB each, and blocks of scores and of the head of 16 MB.
PROGRAM = """
import torch
from dataclasses import dataclass
from types import MappingProxyType
import numpy as np
from qwen3_export.config import Qwen3Config
from qwen3_export.graph import ALL_ROWS, Graph, Role, expected_weights, module_name
from qwen3_export.reference.model import forward, head_logits

@dataclass(frozen=True)
class MadeUp:
    role: Role
    shape: tuple
    format: str = "F32"
    @property
    def name(self):
        return module_name(self.role)
    def read(self, rows=ALL_ROWS):
        count = len(range(*rows.indices(self.shape[0])))
        return np.full((count, *self.shape[1:]), 0.01, dtype=np.float32)

def peak_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

config = Qwen3Config(
    model_type="qwen3", vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=6,
    num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
    rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True,
)
weights = {module_name(role): MadeUp(role, shape) for role, shape in expected_weights(config).items()}
tiny = Graph(name="tiny", config=config, weights=MappingProxyType(weights)).truncated(0, 1)
head_logits(tiny, forward(tiny, [torch.arange(4)])[0])
before = peak_bytes()
graph = Graph(name="made up", config=config, weights=MappingProxyType(weights))
(hidden,) = forward(graph, [torch.arange(1024) * 140])
head_logits(graph, hidden[-16:])
print((peak_bytes() - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak from /proc")
def test_peak_is_that_of_one_half_layer() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200  # MB
