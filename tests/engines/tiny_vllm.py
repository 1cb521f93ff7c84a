"""What the tiny model lacks: a LoRA adapter, a classifier, and a connector that brings keys and values late."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def lora(model: Path, folder: Path) -> Path:
    """An adapter of rank 8 with random weights for the attention of every layer."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    sizes = {"q_proj": hidden, "v_proj": hidden // heads * config["num_key_value_heads"]}
    weights = {}
    generator = torch.Generator().manual_seed(1)
    for layer in range(config["num_hidden_layers"]):
        for name, out in sizes.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(8, hidden, generator=generator)
            weights[f"{key}.lora_B.weight"] = torch.randn(out, 8, generator=generator)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    about = {"r": 8, "lora_alpha": 16, "target_modules": list(sizes), "peft_type": "LORA", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**about, "task_type": "CAUSAL_LM"}))
    return folder


def classifier(model: Path, folder: Path) -> Path:
    """The same model with two classes instead of a vocabulary."""
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    shutil.copytree(model, folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    config = Qwen2Config.from_pretrained(model, num_labels=2, dtype="float32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        Qwen2ForSequenceClassification(config).save_pretrained(folder)
    return folder
