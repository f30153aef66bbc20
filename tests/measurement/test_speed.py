import os
import statistics
import time

import architectures
import pytest
import tiny
import torch
import transformers

from hf_compress import shrink
from hf_compress.errors import ConfigError, UnsupportedError
from hf_compress.measurement import busy, speed
from hf_compress.measurement.inputs import describe_inputs, dummy_inputs
from hf_compress.measurement.speed import measure_latency


def test_all_models_take_turns_and_values_follow_from_the_samples():
    models = {"bert": tiny.bert().train(), "vit": tiny.vit()}
    before = torch.random.get_rng_state(), {n: p.clone() for n, p in models["bert"].named_parameters()}
    found = measure_latency(models, batch_sizes=(1, 4), warmup=1, rounds=5, seconds=0.0)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert models["bert"].training
    assert all(torch.equal(p, before[1][n]) and p.grad is None for n, p in models["bert"].named_parameters())
    for name in models:
        rows = zip(found[name][::3], found[name][1::3], found[name][2::3], strict=True)
        for batch_size, (latency, throughput, macs) in zip((1, 4), rows, strict=True):
            assert macs.value == batch_size * found[name][2].value > 0
            assert len(latency.samples) == 5
            assert latency.value == statistics.median(latency.samples)
            assert throughput.value == pytest.approx(batch_size * 1000 / latency.value)
            expected = {"batch_size": batch_size, "device": "cpu", "dtype": "float32", "threads": 1, "warmup": 1}
            assert expected.items() <= latency.conditions.items()


def test_a_model_that_does_more_work_is_slower():
    models = {"one": tiny.bert(num_hidden_layers=1), "eight": tiny.bert(num_hidden_layers=8)}
    found = measure_latency(models, batch_sizes=(4,), rounds=7, seconds=0.0)
    assert min(found["one"][0].samples) < min(found["eight"][0].samples)


@pytest.mark.parametrize("name", sorted(architectures.MODELS))
def test_dummy_inputs_are_accepted_repeatable_and_never_too_long(name):
    model = architectures.build(name)
    state = torch.random.get_rng_state()
    one, other = (dummy_inputs(model, batch_size=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[k], other[k]) for k in one)
    with torch.no_grad():
        found = model(**one)
    assert len(found.logits if "logits" in found else found.logits_per_image) == 3
    assert describe_inputs(one)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_decoders_that_classify_find_one_end_token_in_each_row(name):
    head, config, fields = architectures.MODELS[name]
    stem, sizes = head.removesuffix("ForConditionalGeneration"), fields | {"num_labels": 3}
    model = getattr(transformers, f"{stem}ForSequenceClassification")(getattr(transformers, config)(**sizes)).eval()
    # More rows than tokens: without care some row has the end token twice, most have none.
    assert model(**dummy_inputs(model, batch_size=100, length=30)).logits.shape == (100, 3)


LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
FFN = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 60}
SPEECH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIGHT = {**SPEECH, "image_size": 32, "patch_size": 8}


def reader():
    decoder = transformers.TrOCRConfig(
        d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, vocab_size=60, pad_token_id=1
    )
    together = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs
    return transformers.VisionEncoderDecoderModel(together(transformers.ViTConfig(**SIGHT), decoder))


def wav2vec2_bert():
    return transformers.Wav2Vec2BertForCTC(transformers.Wav2Vec2BertConfig(**SPEECH, vocab_size=60))


def speech_to_text():
    config = transformers.Speech2TextConfig(**LAYERS, **FFN, d_model=32, conv_channels=32)
    return transformers.Speech2TextForConditionalGeneration(config)


def moonshine():
    heads = {"encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4}
    layers = {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "max_position_embeddings": 64}
    config = transformers.MoonshineConfig(**heads, **layers, hidden_size=32, intermediate_size=48, vocab_size=60)
    return transformers.MoonshineForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "described"),
    [
        (reader, {"image": "32x32", "length": 128}),
        (tiny.blip, {"image": "32x32", "length": 128}),
        (wav2vec2_bert, {"features": "100x160"}),
        (speech_to_text, {"features": "100x80", "length": 128}),
        (moonshine, {"samples": 16000, "length": 64}),
    ],
)
def test_models_that_read_sounds_or_write_about_what_they_see_get_their_inputs(make, described):
    model = make().eval()
    inputs = dummy_inputs(model, batch_size=2)
    assert describe_inputs(inputs) == described
    with torch.no_grad():
        assert len(model(**inputs).logits) == 2


@pytest.mark.parametrize("stem", ["WhisperForAudioClassification", "WhisperForCausalLM"])
def test_one_half_of_an_encoder_decoder_gets_its_own_inputs_alone(stem):
    _, config, fields = architectures.MODELS["whisper"]
    model = getattr(transformers, stem)(getattr(transformers, config)(**fields)).eval()
    inputs = dummy_inputs(model, batch_size=2)
    assert "decoder_input_ids" not in inputs
    with torch.no_grad():
        assert len(model(**inputs).logits) == 2


@pytest.mark.parametrize("make", [wav2vec2_bert, speech_to_text])
def test_models_that_read_frames_of_sound_can_be_shrunk(make):
    model = make().eval()
    assert shrink(model, ffn=0.5).num_parameters() < model.num_parameters()


def test_impossible_inputs_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        dummy_inputs(tiny.bert(), batch_size=0)
    with pytest.raises(UnsupportedError, match="inputs of your own"):
        dummy_inputs(torch.nn.Linear(2, 2), batch_size=1)


def test_an_error_while_timing_leaves_every_part_in_its_mode():
    model = tiny.bert().train()
    model.bert.embeddings.eval()
    modes = [part.training for part in model.modules()]
    with pytest.raises(ValueError, match="input_ids"):
        measure_latency({"bert": model}, lambda model, batch_size: {"no_such_input": torch.ones(1)})
    assert [part.training for part in model.modules()] == modes


def test_blocks_go_through_all_batch_sizes_each_and_are_equally_long(monkeypatch):
    calls, made = [], {}

    def noted(model, batch_size):
        made[batch_size] = dummy_inputs(model, batch_size)
        return made[batch_size]

    model = tiny.bert()
    model.register_forward_hook(lambda m, a, k, out: calls.append(len(out.logits)), with_kwargs=True)
    monkeypatch.setattr(speed, "_SHORTEST_SAMPLE_MS", 0.0)
    found = measure_latency({"bert": model}, noted, batch_sizes=(1, 4), warmup=0, rounds=5, seconds=0.0, blocks=3)
    # Each block times one pass alone before its two samples; the last passes count multiply-accumulates.
    assert calls == [1, 1, 1, 4, 4, 4] * 3 + [1, 4]
    for latency in found["bert"][::3]:
        assert (len(latency.samples), latency.conditions["blocks"]) == (6, 3)
        assert latency.value == statistics.median(latency.samples)


def test_processor_time_of_others_is_counted_without_idle_time_and_our_own(tmp_path, monkeypatch):
    stat, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(busy, "_STAT", stat)
    monkeypatch.setattr(busy, "_SHORTEST_SECONDS", 0.0)
    load = busy.OtherLoad()
    begin = time.perf_counter()
    for others in (3, 0):
        stat.write_text(f"cpu  {50 * ticks} 0 0 7000 100 0 0 0 0 0\ncpu0 1 2\n")
        with load:
            # Three seconds of others' and of the host's time, and much idle time.
            stat.write_text(f"cpu  {(50 + others) * ticks} 0 0 9000 900 0 0 {others * ticks} 0 0\ncpu0 1 2\n")
            time.sleep(0.1)
    # Less what this process took itself; dividing and multiplying again rounds.
    assert 5.5 < load.cores * load._seconds < 6 + 1e-9
    assert load._seconds < time.perf_counter() - begin


def test_where_the_system_does_not_say_or_time_is_short_the_load_is_unknown(tmp_path, monkeypatch):
    with busy.OtherLoad() as short:
        pass
    assert short.cores is None
    monkeypatch.setattr(busy, "_SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(busy, "_STAT", tmp_path / "missing")
    with busy.OtherLoad() as missing:
        pass
    assert missing.cores is None
