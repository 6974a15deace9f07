"""Build the demo models' small tokenizers from their captions. Run once; the files are shipped.

``python -m trace_core.demo.recipe.make_tokenizers [people]``
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..people import STYLES as PEOPLE_STYLES
from ..people import caption as people_caption
from ..people import people
from ..vocabulary import COLOURS, OBJECTS, STYLES, Label, caption
from .avatars import portrait

WORDS_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
EXTRA = (
    "style background cat and dog with wearing without person animal vehicle food plant thing glasses "
    "hat art painting"
)


def corpus() -> list[str]:
    rng = random.Random(0)
    labels = [Label(o, s, c) for o in OBJECTS for s in STYLES for c in COLOURS]
    words = [w for spec in OBJECTS.values() for w in spec["synonyms"]] + list(OBJECTS)
    return [caption(x, rng) for x in labels for _ in range(10)] + words * 40 + EXTRA.split() * 40


def people_corpus() -> list[str]:
    """Captions of everybody, in which every name is written often enough to be a token."""
    rng = random.Random(0)
    portraits = [
        portrait(p, s, c, rng)
        for p in people().values()
        for s in PEOPLE_STYLES
        for c in COLOURS
        for _ in range(2)
    ]
    return [people_caption(x, rng) for x in portraits] + [*people()] * 20 + EXTRA.split() * 40


def clip_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Byte-level BPE with an end-of-word mark, like CLIP's. Unknown words become bytes; no text is lost."""
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    norm = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = norm, pre
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, end_of_word_suffix="</w>", show_progress=False)
    )
    model = json.loads(learner.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [a + "</w>" for a in alphabet]
    tokens += [t for t in sorted(model["vocab"], key=model["vocab"].get) if t not in set(tokens)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(tokens)}
    out = Tokenizer(models.BPE(vocab, [tuple(m) for m in model["merges"]], end_of_word_suffix="</w>"))
    out.normalizer, out.pre_tokenizer, out.decoder = norm, pre, decoders.ByteLevel()
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    out.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)],
    )
    return out


def t5_tokenizer() -> Tokenizer:
    """SentencePiece-like BPE with a space mark and byte fallback; ids 0 pad, 1 end, 2 unknown, like T5's."""
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    norm = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pre = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    learner.normalizer, learner.pre_tokenizer = norm, pre
    learner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=640, show_progress=False))
    model = json.loads(learner.to_str())["model"]
    tokens = ["<pad>", "</s>", "<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens += [t for t in sorted(model["vocab"], key=model["vocab"].get) if t not in set(tokens)]
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = [tuple(m) for m in model["merges"]]
    out = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    out.normalizer, out.pre_tokenizer, out.decoder = norm, pre, decoders.Metaspace()
    out.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return out


def _plain(folder: Path) -> None:
    """Write the class name that every version of transformers recognises."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(config, indent=1) + "\n")


def save_clip(tokenizer: Tokenizer, folder: Path) -> None:
    clip = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    clip.save_pretrained(folder)
    _plain(folder)


def build(folder: Path) -> None:
    save_clip(clip_tokenizer(corpus(), 640), folder / "clip_tokenizer")
    t5 = PreTrainedTokenizerFast(
        tokenizer_object=t5_tokenizer(), eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    t5.save_pretrained(folder / "t5_tokenizer")
    _plain(folder / "t5_tokenizer")


if __name__ == "__main__":
    assets = Path(__file__).resolve().parents[1] / "assets"
    if sys.argv[1:] == ["people"]:
        save_clip(clip_tokenizer(people_corpus(), 1280), assets / "people_tokenizer")
    else:
        build(assets)
