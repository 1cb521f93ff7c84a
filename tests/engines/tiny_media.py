"""
Models that see and hear with the text of the tiny one.

They come without weights: vLLM draws them itself with ``load_format="dummy"``. Most models of vLLM that see import
torchvision, and what comes along with vLLM's packages for the CPU is its build for CUDA; these do without.
"""

from __future__ import annotations

from pathlib import Path

IMAGE_TOKENS = 4
SOUND_TOKENS = 25
"""In a second."""


def seeing(model: Path, folder: Path) -> Path:
    """A BLIP-2."""
    from transformers import AutoTokenizer, Blip2Config, Blip2Processor, BlipImageProcessor, Qwen2Config

    side = 28
    tokenizer = AutoTokenizer.from_pretrained(model)
    processor = Blip2Processor(BlipImageProcessor(size={"height": side, "width": side}), tokenizer, IMAGE_TOKENS)
    text = Qwen2Config.from_pretrained(model, vocab_size=len(tokenizer), architectures=["Qwen2ForCausalLM"])
    each = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    config = Blip2Config(
        vision_config={**each, "num_hidden_layers": 1, "image_size": side, "patch_size": 14},
        qformer_config={**each, "num_hidden_layers": 2, "encoder_hidden_size": 64, "vocab_size": len(tokenizer)},
        text_config=text.to_dict(),
        num_query_tokens=IMAGE_TOKENS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        architectures=["Blip2ForConditionalGeneration"],
        dtype="float32",
    )
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def hearing(model: Path, folder: Path) -> Path:
    """A Qwen2-Audio."""
    from transformers import AutoTokenizer, Qwen2AudioConfig, Qwen2AudioProcessor, Qwen2Config, WhisperFeatureExtractor

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]})
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=8), tokenizer, tokenizer.chat_template)
    text = Qwen2Config.from_pretrained(model, vocab_size=len(tokenizer), architectures=["Qwen2ForCausalLM"])
    each = {"d_model": 64, "encoder_ffn_dim": 64, "encoder_layers": 1, "encoder_attention_heads": 1}
    config = Qwen2AudioConfig(
        audio_config={**each, "num_mel_bins": 8},
        text_config=text.to_dict(),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        architectures=["Qwen2AudioForConditionalGeneration"],
        dtype="float32",
    )
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
