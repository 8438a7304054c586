"""Shapes of known models, for files of llama.cpp's (`random_gguf`)."""

from dataclasses import replace

from tests.random_gguf import Shape

LLAMA_8B = Shape(
    architecture="llama",
    quantisation="Q4_K",
    layers=32,
    hidden=4096,
    feed_forward=14_336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocabulary=128_256,
    context=131_072,
    tied=False,
)
LLAMA_3B = replace(LLAMA_8B, quantisation="F16", layers=28, hidden=3072, feed_forward=8192, heads=24, tied=True)
QWEN2_7B = Shape(
    architecture="qwen2",
    quantisation="Q4_K",
    layers=28,
    hidden=3584,
    feed_forward=18_944,
    heads=28,
    kv_heads=4,
    head_dim=128,
    vocabulary=152_064,
    context=32_768,
    tied=False,
)
QWEN2_EMBEDDING = replace(
    QWEN2_7B, quantisation="Q8_0", hidden=1536, feed_forward=8960, heads=12, kv_heads=2, tied=True, pooled=True
)
GEMMA3_4B = Shape(
    architecture="gemma3",
    quantisation="Q8_0",
    layers=34,
    hidden=2560,
    feed_forward=10_240,
    heads=8,
    kv_heads=4,
    head_dim=256,
    vocabulary=262_144,
    context=131_072,
    window=1024,
)
# Of Qwen3 30B A3B, 12 of its 48 layers.
QWEN3_MOE = Shape(
    architecture="qwen3moe",
    quantisation="Q4_K",
    layers=12,
    hidden=2048,
    feed_forward=768,
    heads=32,
    kv_heads=4,
    head_dim=128,
    vocabulary=151_936,
    context=40_960,
    tied=False,
    experts=128,
    chosen=8,
)
