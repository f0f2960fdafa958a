"""One encoder used by several threads: each gets the numbers that it gets alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

import talik
from talik.extract.encoders.encoder import Encoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quick_switches() -> Iterator[None]:
    """Let Python change threads often, so that what could be seen half done is seen."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(first: Callable[[], torch.Tensor], others: list[Callable[[], torch.Tensor]], times: int) -> None:
    """Run `first` so many times while threads run the others over and over; each gives what it gave alone."""
    calls = [first, *others]
    with torch.no_grad():
        alone = [call().clone() for call in calls]
    stop, wrong, num_done = threading.Event(), [], [0] * len(calls)

    def work(index: int) -> None:
        with torch.no_grad():
            while not stop.is_set() and not wrong and (index or num_done[0] < times):
                try:
                    if not torch.equal(calls[index](), alone[index]):
                        wrong.append(f"call {index} gave other numbers")
                except Exception as error:
                    wrong.append(f"call {index} raised {error!r}")
                num_done[index] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, len(calls))]
    for thread in threads:
        thread.start()
    work(0)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert min(num_done) > 0


def picture_encoder(name: str = "timm:test_vit") -> Encoder:
    return talik.load_encoder(name, modality="visual", weights="random", image_size=32)


def frames(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)


def test_units_run_while_others_embed_finish_and_restore() -> None:
    encoder = picture_encoder()
    inputs, other, last = encoder.preprocess(frames(0)), encoder.preprocess(frames(1)), encoder.num_units
    with torch.no_grad():
        state = encoder.embed(inputs)
        end = encoder.run(state, 0, last)
    together(
        lambda: encoder.run(state, 0, last).hidden,
        [
            lambda: encoder.embed(other).hidden,
            lambda: encoder.features(encoder.finish(end)),
            lambda: encoder.features(encoder(other)),
        ],
        times=60,
    )
    assert not any("forward" in module.__dict__ for module in encoder.model.modules())


def test_texts_of_several_lengths_are_tokenized_and_restored_by_several_threads(tiny_encoders: dict[str, Path]) -> None:
    encoder = talik.load_encoder(f"hf:{tiny_encoders['text']}", modality="text")
    short, long = ["is the violin sounding ?"], ["how many instruments are in the video ?", "piano"]

    def through(texts: list[str]) -> torch.Tensor:
        inputs = encoder.preprocess(texts)
        state = encoder.embed(inputs)
        middle = encoder.run(state, 0, 1)
        again = encoder.restore(middle.hidden, 1, encoder.context_inputs(inputs), lengths=middle.lengths)
        return encoder.features(encoder.finish(encoder.run(again, 1, encoder.num_units)))

    together(lambda: through(short), [lambda: through(long), lambda: through([*long, *short])], times=40)


def test_two_encoders_of_one_model_pass_it_at_once() -> None:
    model = picture_encoder().model
    first, second = (
        talik.load_encoder("timm:test_vit", modality="visual", model=model, image_size=32) for _ in range(2)
    )
    inputs = first.preprocess(frames(0))
    together(lambda: first.embed(inputs).hidden, [lambda: second.embed(inputs).hidden] * 2, times=60)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_units_copied_while_another_thread_embeds_are_whole() -> None:
    encoder = picture_encoder()
    inputs = encoder.preprocess(frames(0))
    with torch.no_grad():
        state = encoder.embed(inputs)

    def copied() -> torch.Tensor:
        copies = encoder.copy_units([4, 5])
        for parameter in copies.tree.parameters():
            parameter.zero_()
        return copies.in_place().run(encoder.run(state, 0, 4), 4, 6).hidden

    together(copied, [lambda: encoder.embed(inputs).hidden, lambda: encoder.run(state, 0, 6).hidden], times=20)


def test_an_encoder_is_opened_on_modules_that_other_threads_use() -> None:
    encoder = picture_encoder()
    inputs = encoder.preprocess(frames(0))
    with torch.no_grad():
        state = encoder.embed(inputs)

    def opened() -> torch.Tensor:
        again = talik.load_encoder("timm:test_vit", modality="visual", model=encoder.model, image_size=32)
        return again.run(again.embed(inputs), 0, again.num_units).hidden

    others: list[Callable[[], torch.Tensor]] = [
        lambda: encoder.run(state, 0, 6).hidden,
        lambda: encoder.embed(inputs).hidden,
        lambda: encoder.features(encoder(inputs)),
    ]
    together(opened, others, times=4)
    assert not any("forward" in module.__dict__ for module in encoder.model.modules())


@pytest.mark.parametrize("name", ["timm:test_convnext", "timm:test_efficientnet"])
def test_two_encoders_of_one_convolutional_model_do_everything_at_once(name: str) -> None:
    first = talik.load_encoder(name, modality="visual", weights="random", image_size=64)
    second = talik.load_encoder(name, modality="visual", model=first.model, image_size=64)
    raw = np.random.default_rng(2).integers(0, 255, (2, 64, 80, 3), dtype=np.uint8)
    inputs, last = first.preprocess(raw), first.num_units
    with torch.no_grad():
        state = first.embed(inputs)
        middle, end = first.run(state, 0, 1), first.run(state, 0, last)
    together(
        lambda: first.run(state, 0, last).hidden,
        [
            lambda: second.features(second.finish(end)),
            lambda: second.embed(second.preprocess(raw[:1])).hidden,
            lambda: second.run(first.restore(middle.hidden, 1, {}), 1, last).hidden,
            lambda: first.preprocess(raw)["pixel_values"],
        ],
        times=15,
    )


def test_a_decoder_of_texts_is_asked_for_states_and_names_of_tokens_at_once(tmp_path: Path) -> None:
    words = ["[UNK]", "</s>", "is", "the", "piano", "left", "of", "violin", "?"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", model_max_length=9).save_pretrained(tmp_path)
    hf.GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=3, n_head=2, n_positions=30, bos_token_id=1, eos_token_id=1
    ).save_pretrained(tmp_path)
    encoder = talik.load_encoder(f"hf:{tmp_path}", modality="text", weights="random")
    long = "is the piano left of the violin ? " * 3

    def through(texts: list[str]) -> torch.Tensor:
        return encoder.features(encoder.finish(encoder.run(encoder.embed(encoder.preprocess(texts)), 0, 3)))

    def names() -> torch.Tensor:
        return torch.tensor([len(encoder.token_names(long)), len(encoder.token_names("piano"))])

    together(lambda: through(["piano", long]), [lambda: through(["violin ?"]), names], times=30)
