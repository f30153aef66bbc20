"""Models and tokenizers with fewer tokens read known text as before, whatever kind the tokenizer is."""

import pytest
import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hf_compress import shrink_vocabulary
from hf_compress.errors import ArchitectureError

WORDS = "the cat sat on a mat while seventeen unhappy dogs were running quickly towards unbelievable happiness".split()
CORPUS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 3
KNOWN = ["the cat sat on the mat", "unhappy dogs were running"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PARTS = {"layers": 2, "ffn_dim": 32, "attention_heads": 2}


def wordpiece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return t.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    made.train_from_iterator(CORPUS, trainer)
    return t.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def unigram():
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return t.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def bert(size):
    return t.BertForSequenceClassification(t.BertConfig(vocab_size=size, pad_token_id=0, **SIZES))


def gpt2(size):
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, **ids))


def llama(size):
    # Its vocabulary is padded beyond the tokenizer's.
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return t.LlamaForCausalLM(t.LlamaConfig(vocab_size=size + 9, **SIZES, **ids))


def t5(size):
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return t.T5ForConditionalGeneration(
        t.T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **ids)
    )


def padded_at_the_end():
    made = wordpiece()
    made.add_special_tokens({"pad_token": "<|pad|>"})
    return made


def modernbert(size):
    # The number of its padding is beyond the vocabulary that is left.
    ids = {"pad_token_id": size - 1, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return t.ModernBertForSequenceClassification(
        t.ModernBertConfig(vocab_size=size, max_position_embeddings=40, **SIZES, **ids)
    )


def marian(size):
    sizes = {f"{part}_{field}": n for part in ("encoder", "decoder") for field, n in PARTS.items()}
    last = {"pad_token_id": size - 1, "decoder_start_token_id": size - 1, "eos_token_id": 3, "forced_eos_token_id": 3}
    made = t.MarianMTModel(t.MarianConfig(vocab_size=size, d_model=16, max_position_embeddings=40, **sizes, **last))
    made.final_logits_bias.normal_()
    return made


CASES = {
    "wordpiece": (wordpiece, bert),
    "byte-level bpe, tied": (byte_level, gpt2),
    "byte-level bpe, padded": (byte_level, llama),
    "unigram": (unigram, t5),
    "padding at the end": (padded_at_the_end, modernbert),
    "padding at the end, biased": (padded_at_the_end, marian),
}


def build(name):
    torch.manual_seed(0)
    make_tokenizer, make_model = CASES[name]
    tokenizer = make_tokenizer()
    return make_model(len(tokenizer)).eval(), tokenizer


def logits(model, ids):
    ids = torch.tensor([ids])
    with torch.no_grad():
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids, **more).logits


@pytest.mark.parametrize("name", CASES)
def test_known_text_has_the_same_tokens_and_outputs_after_saving(name, tmp_path):
    model, tokenizer = build(name)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    found = shrink_vocabulary(model, tokenizer, KNOWN)
    assert len(found.kept) < len(tokenizer)
    found.model.save_pretrained(tmp_path)
    found.tokenizer.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert found.model.get_input_embeddings().padding_idx == again.get_input_embeddings().padding_idx
    fresh = t.AutoTokenizer.from_pretrained(tmp_path)
    assert len(fresh) == again.config.vocab_size == len(found.kept)
    for text in KNOWN:
        old, new = tokenizer(text)["input_ids"], fresh(text)["input_ids"]
        assert [found.kept[i] for i in new] == old
        assert fresh.decode(new) == tokenizer.decode(old)
        expected, small = logits(model, old), logits(again.eval(), new)
        expected = expected if expected.shape == small.shape else expected[..., found.kept]
        torch.testing.assert_close(small, expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_any_other_text_is_still_read(name):
    model, tokenizer = build(name)
    found = shrink_vocabulary(model, tokenizer, KNOWN)
    for text in ("towards happiness quickly", "zyzzyva 日本 🤗", ""):
        ids = found.tokenizer(text)["input_ids"]
        assert all(0 <= i < len(found.kept) for i in ids)
        if "bpe" in name:
            assert found.tokenizer.decode(ids) == text


def test_numbers_of_special_tokens_follow_in_both_configs():
    model, tokenizer = build("unigram")
    model.config.decoder_start_token_id = len(tokenizer) - 1
    model.generation_config.suppress_tokens = [1, len(tokenizer) - 2]
    found = shrink_vocabulary(model, tokenizer, KNOWN)
    last = len(found.kept) - 1
    assert found.model.config.decoder_start_token_id == last
    assert found.model.generation_config.suppress_tokens == [1, last - 1]
    assert model.config.decoder_start_token_id == len(tokenizer) - 1
    assert found.tokenizer.pad_token_id == found.model.config.pad_token_id
    written = found.model.generate(torch.tensor([[3, 4]]), max_new_tokens=3)
    assert int(written.max()) <= last


def test_a_size_keeps_the_most_frequent_and_what_they_are_made_of():
    model, tokenizer = build("byte-level bpe, tied")
    found = shrink_vocabulary(model, tokenizer, [*["happiness"] * 3, "unbelievable"], size=1)
    words = set(found.tokenizer.get_vocab())
    assert "happiness" in words
    assert "unbelievable" not in words
    assert found.tokenizer.tokenize("happiness") == ["happiness"]
    assert found.tokenizer.decode(found.tokenizer("unbelievable")["input_ids"]) == "unbelievable"


def test_what_cannot_be_cut_is_refused():
    model, tokenizer = build("wordpiece")
    with pytest.raises(ArchitectureError, match="no token"):
        shrink_vocabulary(model, tokenizer, [])
    with pytest.raises(ArchitectureError, match="size must be"):
        shrink_vocabulary(model, tokenizer, KNOWN, size=0)
    with pytest.raises(ArchitectureError, match="one config field for the vocabulary"):
        shrink_vocabulary(t.ResNetForImageClassification(t.ResNetConfig()), tokenizer, KNOWN)
