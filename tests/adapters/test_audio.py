"""Sound: what is measured of a clip, what cannot be read, and clips told apart for speakers unheard."""

import io

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile

from recotransfer import Probe, TransferTask, experiments
from recotransfer.adapters import audio
from recotransfer.data import IdMap, Items
from recotransfer.encoders import LogMelAudio, PretrainedAudio, encode_items, encoder_from_spec, encoder_spec
from recotransfer.encoders.audio import mel_bands, waveform
from recotransfer.errors import InputError

RATE = 16_000


def tone(hertz, seconds=0.6, loud=0.3, rate=RATE):
    """A sawtooth of some harmonics, as voices are."""
    time = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * hertz * n * time) / n for n in range(1, 6))
    return (loud * wave / np.abs(wave).max()).astype(np.float32)


def wav(samples, rate=RATE):
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


def vector(clip, **settings):
    items = Items(IdMap([0]), pd.DataFrame({"audio": pd.Series([clip], dtype=object)}))
    encoder = LogMelAudio(**settings)
    return encoder.encode(encoder.values(items))[0]


PITCH, LOUDNESS = 120 + 4, 120


@pytest.mark.parametrize("hertz", [90, 140, 230, 410])
def test_the_pitch_of_a_tone_is_found(hertz):
    assert np.exp(vector({"array": tone(hertz), "rate": RATE})[PITCH]) == pytest.approx(hertz, rel=0.03)


def test_a_tone_ten_times_as_loud_has_a_hundred_times_the_power():
    quiet, loud = (vector({"array": tone(150, loud=level), "rate": RATE})[LOUDNESS] for level in (0.05, 0.5))
    assert loud - quiet == pytest.approx(np.log(100), rel=0.01)


def test_a_rising_tone_has_a_trend_and_noise_has_no_pitch():
    time = np.arange(RATE) / RATE
    rising = np.sin(2 * np.pi * (120 * time + 40 * time**2)).astype(np.float32) * 0.3
    assert vector({"array": rising, "rate": RATE})[PITCH + 3] > 0.2
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.1
    assert vector({"array": noise, "rate": RATE})[-3] < 0.2 < vector({"array": tone(150), "rate": RATE})[-3]


def test_bands_cover_the_spectrum_without_gaps():
    bands = mel_bands(40, 400, RATE)
    assert bands.shape == (201, 40)
    assert (bands.max(axis=0) > 0).sum() >= 36  # the lowest are narrower than the grid of frequencies
    assert (bands[5:180].sum(axis=1) > 0.9).all()


def test_path_bytes_and_array_of_a_clip_are_one(tmp_path):
    wave = tone(150)
    whole = (wave * 32767).astype(np.int16)
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(whole))
    forms = [str(path), wav(whole), {"array": whole, "rate": RATE}, {"bytes": wav(whole)}]
    rows = [vector(form) for form in forms]
    for row in rows[1:]:
        np.testing.assert_allclose(row, rows[0], atol=1e-4)


def test_rates_channels_and_sample_sizes_make_little_difference():
    wave = tone(150, rate=48_000)
    plain = waveform(wav((wave * 32767).astype(np.int16), 48_000), RATE)
    for other in (
        (wave * 127 + 128).astype(np.uint8),
        (wave * 2**31 * 0.999).astype(np.int32),
        np.stack([wave, wave], 1),
    ):
        found = waveform(wav(other, 48_000), RATE)
        assert np.corrcoef(found[500:-500], plain[500:-500])[0, 1] > 0.99


def test_what_cannot_be_read_is_reported_and_the_rest_is_kept(tmp_path):
    clips = [wav(tone(150)), b"RIFF no wave at all", None, wav(tone(150)[:200]), tmp_path / "gone.wav", 17]
    items = Items(IdMap(np.arange(6)), pd.DataFrame({"audio": pd.Series(clips, dtype=object)}))
    encoder = LogMelAudio()
    with pytest.raises(InputError, match="int"):
        encode_items(items, encoder, progress=False)
    items = items.take(np.arange(5))
    done = encode_items(items, encoder, progress=False)
    assert done.embeddings.has_content.tolist() == [True, False, False, False, False]
    told = dict(done.report.unreadable)
    assert "WAV" in told[1]
    assert "0.013 s" in told[3]
    assert "gone.wav" in told[4]
    with pytest.raises(InputError, match="rate"):
        vector({"array": tone(150)})
    with pytest.raises(InputError, match="bare array has no rate"):
        vector((tone(150) * 32767).astype(np.int16))


def test_a_spec_makes_the_same_encoder():
    encoder = LogMelAudio(rate=8000, bands=20)
    again = encoder_from_spec(encoder_spec(encoder))
    assert (again.name, again.dim) == (encoder.name, encoder.dim) == ("LogMelAudio/8000/20/1", 71)
    assert encoder.encode([wav(tone(150))]).shape == (1, 71)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random wav2vec 2.0 of two layers."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    folder = tmp_path_factory.mktemp("wav2vec2")
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_kernel=(10, 8), conv_stride=(5, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, vocab_size=8,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    return folder


def test_a_pretrained_model_reads_each_clip_by_itself(tiny):
    encoder = PretrainedAudio(model=tiny)
    long, short = wav(tone(150)), wav(tone(300, seconds=0.2))
    rows = encoder.encode([long, b"broken", short])
    assert rows.shape == (3, encoder.dim) == (3, 16)
    assert np.isnan(rows[1]).all()
    np.testing.assert_allclose(rows[2], encoder.encode([short])[0], atol=1e-6)
    assert encoder_from_spec(encoder_spec(encoder)).name == encoder.name
    cut = PretrainedAudio(model=tiny, longest=0.2)
    np.testing.assert_allclose(cut.encode([long])[0], encoder.encode([wav(tone(150)[: RATE // 5])])[0], atol=1e-5)


def recordings(speakers=6, clips=6, seed=0):
    """High and low tones of speakers, each of whom has a voice of their own."""
    draw, rows = np.random.default_rng(seed), []
    for speaker in range(speakers):
        own = draw.normal(0, 15)
        for number in range(clips):
            low = number % 2 == 0
            wave = tone((130 if low else 260) + own + draw.normal(0, 5), seconds=0.3)
            noise = 0.01 * draw.normal(size=len(wave)).astype(np.float32)
            rows.append((wav(wave + noise), "low" if low else "high", f"speaker {speaker}"))
    return [list(column) for column in zip(*rows, strict=True)]


def test_labels_of_unheard_speakers_are_told():
    clips, labels, speakers = recordings()
    found = audio.classification(clips, labels, speakers=speakers, folds=3)
    for problem in found:
        of = {name: {speakers[i] for i in np.unique(getattr(problem.split, name).item)} for name in ("train", "test")}
        assert not of["train"] & of["test"]
    outcomes = [
        experiments.run(problem, TransferTask(Probe(), progress=False), settings=[{}], draws=20) for problem in found
    ]
    whole = experiments.combine_outcomes(outcomes, found[0].metrics, draws=50)
    assert len(whole.predictions.queries) == len(clips)
    assert len(np.unique(whole.predictions.groups)) == 6
    assert whole.metrics["accuracy"].value > 0.9


def test_a_speaker_in_two_parts_is_refused():
    clips, labels, speakers = recordings(speakers=2, clips=2)
    with pytest.raises(InputError, match="speaker 0"):
        audio.classification(clips, labels, speakers=speakers, part=["train", "test", "train", "test"])
    with pytest.raises(InputError, match="3 speakers for 4 records"):
        audio.classification(clips, labels, speakers=speakers[:3])
