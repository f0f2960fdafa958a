"""States: tokens and back in every layout, split and joined along the batch."""

from __future__ import annotations

import pytest
import torch

from talik.errors import SettingsError, TrunkError
from talik.extract.encoders.load import load_encoder
from talik.extract.trunk.state import Context, State


def _context(inputs, batch_size):
    def rebuild(small, size, signature, device):
        return _context(dict(small), size)

    return Context(inputs=inputs, batch_size=batch_size, calls=(), signature=(), rebuild=rebuild)


def _state(shape, layout, **more):
    return State(hidden=torch.randn(shape), layout=layout, boundary=3, context=_context({}, shape[0]), **more)


@pytest.mark.parametrize(
    ("shape", "layout", "tokens"),
    [((2, 7, 5), "NLC", (2, 7, 5)), ((2, 3, 4, 5), "NHWC", (2, 12, 5)), ((2, 5, 3, 4), "NCHW", (2, 12, 5))],
)
def test_tokens_go_both_ways_exactly(shape, layout, tokens):
    state = _state(shape, layout)
    assert state.tokens().shape == tokens
    back = state.from_tokens(state.tokens().clone())
    assert torch.equal(back.hidden, state.hidden)
    assert (back.layout, back.boundary) == (layout, 3)
    fresh = torch.randn(tokens)
    assert torch.equal(state.from_tokens(fresh).tokens(), fresh)


def test_tokens_of_feature_maps_run_row_by_row():
    hidden = torch.arange(6.0).view(1, 1, 2, 3)
    state = State(hidden=hidden, layout="NCHW", boundary=0, context=_context({}, 1))
    assert state.tokens()[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert state.grid == (2, 3)


def test_grid_of_channels_last():
    assert _state((2, 3, 4, 5), "NHWC").grid == (3, 4)
    assert _state((2, 3, 4), "NLC").grid is None


def test_other_tokens_are_refused():
    with pytest.raises(TrunkError, match="tokens have shape"):
        _state((2, 7, 5), "NLC").from_tokens(torch.zeros(2, 6, 5))


def test_a_layout_of_another_rank_is_refused():
    with pytest.raises(TrunkError, match="expected 4 axes"):
        _state((2, 7, 5), "NCHW")


@pytest.mark.parametrize("sizes", [1, 2, [1, 2]])
def test_split_then_concat_is_the_same(sizes):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    state = State(
        hidden=torch.randn(3, 4, 5),
        layout="NLC",
        boundary=1,
        context=_context({"attention_mask": mask}, 3),
        lengths=mask.sum(1),
    )
    parts = state.split(sizes)
    assert [part.batch_size for part in parts] == [part.context.batch_size for part in parts]
    joined = State.concat(parts)
    assert torch.equal(joined.hidden, state.hidden)
    assert joined.lengths.tolist() == [3, 4, 2]
    assert torch.equal(joined.context.inputs["attention_mask"], mask)


def test_concat_pads_shorter_texts_with_zeros():
    def text(length):
        inputs = {"attention_mask": torch.ones(1, length, dtype=torch.long)}
        hidden = torch.ones(1, length, 2)
        lengths = torch.tensor([length])
        return State(hidden=hidden, layout="NLC", boundary=0, context=_context(inputs, 1), lengths=lengths)

    joined = State.concat([text(2), text(4)])
    assert joined.hidden[0, :, 0].tolist() == [1, 1, 0, 0]
    assert joined.context.inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert joined.lengths.tolist() == [2, 4]


def test_states_of_different_boundaries_do_not_join():
    one = _state((1, 2, 3), "NLC")
    with pytest.raises(SettingsError, match="one boundary"):
        State.concat([one, one.replace(boundary=2)])
    with pytest.raises(SettingsError, match="at least one"):
        State.concat([])


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("test_mambaout", 64, "NHWC"), ("test_convnext", 96, "NCHW"), ("test_convnext", (96, 192), "NCHW")],
)
def test_the_layout_is_told_where_height_width_and_channels_do_not_tell_it(name, size, expected):
    encoder = load_encoder(f"timm:{name}", modality="visual", weights="random", image_size=size)
    state = encoder.embed(encoder.probe())
    ambiguous = 0
    for k in range(encoder.num_units + 1):
        state = encoder.run(state, state.boundary, k)
        shape = state.hidden.shape
        ambiguous += shape[1] == shape[2] == shape[3] or len(set(shape[1:])) == 3
        assert state.layout == expected, k
        assert state.tokens().shape[-1] == shape[1 if expected == "NCHW" else 3]
    assert ambiguous > 0
