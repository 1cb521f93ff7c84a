"""
A random Qwen2 model of about 5 MB with its own tokenizer, made offline in seconds.

It answers nonsense, but a real engine serves it as it serves any model: real
scheduling, real batches, a real KV cache. Nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

SEED: Final = 20
"""Weights are drawn from this seed, so the same versions build the same model."""

CONTEXT: Final = 4096
"""Longest prompt and completion together, tokens."""

_SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT: Final = (
    "A request waits in the queue until the scheduler admits it to a batch.",
    "During prefill the model reads the whole prompt and fills the cache of keys and values.",
    "Then it decodes: one step gives one token to every sequence that is running.",
    "A larger batch gives more tokens per second and a longer time per token.",
    "The time to the first token is what a reader feels, the rest is reading speed.",
    "When memory runs out, a sequence is preempted, and it has to wait for its turn again.",
    "Latency and throughput are two views of the same work, joined by the number in flight.",
)


def build(path: str | os.PathLike[str]) -> Path:
    """
    Build model and tokenizer in the folder ``path`` and return it.

    A folder that holds a model is left as it is. The folder appears complete
    or not at all, also when several processes build it at the same time.
    Needs torch and transformers.
    """
    target = Path(path)
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(draft)
        draft.chmod(0o755)
        draft.rename(target)
    except OSError:
        if not (target / "config.json").exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _write(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    pairs.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=list(_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs, eos_token=_SPECIAL[2], pad_token=_SPECIAL[0])
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,  # 4 heads of 64: a head size that vLLM's CPU attention supports
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,  # tied, a random model would repeat its last token for ever
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen2ForCausalLM(config)
    # A server holds back what is no text yet, half a UTF-8 character or a control token. With a logit of
    # zero such a token is never the greedy choice, so that every token can be sent as it comes.
    silent = [token for token in range(len(tokenizer)) if not _is_text(str(tokenizer.decode([token])))]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0
    model.save_pretrained(folder)


def _is_text(piece: str) -> bool:
    return "\ufffd" not in piece and piece not in _SPECIAL


if __name__ == "__main__":
    print(build(sys.argv[1]))
