"""The chain of units and its proof, on small models of our own, each with one difficulty."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from talik.errors import TrunkError
from talik.extract.trunk.forward_patching import signature_of
from talik.extract.trunk.verification import find_trunk

D = 8
KEPT: list[torch.Tensor] = []


class Block(nn.Module):
    """A residual block."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D))
        self.scale = scale

    def forward(self, x, mask=None):
        y = x + self.mlp(self.norm(x)) * self.scale
        return y if mask is None else y * mask


class Writing(Block):
    """A block that writes into its input."""

    def forward(self, x, mask=None):
        x += self.mlp(self.norm(x))
        return x


class Plain(nn.Module):
    """Embedding, blocks, norm, classifier."""

    def __init__(self, make=Block, num=4):
        super().__init__()
        self.stem = nn.Linear(3, D)
        self.blocks = nn.ModuleList(make() for _ in range(num))
        self.norm = nn.LayerNorm(D)
        self.head = nn.Sequential(Block(), Block(), nn.Linear(D, 5))

    def units(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, pixels):
        return self.head(self.norm(self.units(self.stem(pixels))))


def cut(model, batch=None, **options):
    torch.manual_seed(0)
    model.eval().requires_grad_(False)

    def noise(seed):
        return {"pixels": torch.randn(2 + (seed == 2), 6, 3, generator=torch.Generator().manual_seed(seed))}

    def forward(inputs):
        return model(**inputs)

    excluded = options.pop("excluded", ())
    return find_trunk(model, forward, batch or noise, excluded)


def replay(trunk, inputs, k):
    hidden, context = trunk.embed(inputs)
    at_k = trunk.run(hidden, context, 0, k)
    fresh = trunk.context(
        {n: inputs[n] for n in trunk.context_names}, hidden.shape[0], signature_of(inputs), hidden.device
    )
    return trunk.finish(trunk.run(at_k, fresh, k, trunk.num_units), fresh)


@pytest.mark.parametrize("make", [Block, Writing])
def test_blocks_are_units_and_replay_is_exact_at_every_boundary(make):
    model = Plain(make)
    trunk, proof = cut(model, excluded=(model.head,))
    assert [link.name for link in trunk.links] == [f"blocks.{i}" for i in range(4)]
    assert proof.num_boundaries == 5
    inputs = {"pixels": torch.randn(3, 6, 3)}
    for k in range(5):
        assert torch.equal(replay(trunk, inputs, k), model(inputs["pixels"]))


def test_a_unit_that_writes_leaves_the_given_state_alone():
    model = Plain(Writing)
    trunk, _ = cut(model, excluded=(model.head,))
    hidden, context = trunk.embed({"pixels": torch.randn(2, 6, 3)})
    before = hidden.clone()
    trunk.run(hidden, context, 0, 4)
    assert torch.equal(hidden, before)


class Staged(Plain):
    """Stages with a down-sampling module ahead of their blocks."""

    class Stage(nn.Module):
        def __init__(self, down):
            super().__init__()
            self.down = nn.AvgPool1d(2) if down else nn.Identity()
            self.blocks = nn.Sequential(Block(), Block())

        def forward(self, x):
            if isinstance(self.down, nn.AvgPool1d):
                x = self.down(x.transpose(1, 2)).transpose(1, 2)
            return self.blocks(x)

    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.reduce = nn.Linear(2 * D, D)

        def forward(self, x):
            return self.reduce(x.reshape(x.shape[0], -1, 2 * D))

    class Open(nn.Module):
        def __init__(self, down):
            super().__init__()
            self.down = Staged.Folding() if down else nn.Identity()
            self.blocks = nn.Sequential(Block(), Block())

        def forward(self, x):
            return self.blocks(self.down(x))

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Staged.Open(False), Staged.Open(True), Staged.Open(True)])


def test_stages_are_opened_and_downsampling_joins_the_next_unit():
    model = Staged()

    def batch(seed):
        return {"pixels": torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(seed))}

    trunk, _ = cut(model, batch, excluded=(model.head,))
    assert trunk.num_units == 6
    assert [link.name for link in trunk.links[trunk.bounds[2] : trunk.bounds[3]]] == [
        "blocks.1.down",
        "blocks.1.blocks.0",
    ]
    assert [shape[1] for shape in trunk.hidden_shapes] == [8, 8, 8, 4, 4, 2, 2]
    inputs = {"pixels": torch.randn(2, 16, 3)}  # another length than the probe's
    for k in range(7):
        assert torch.equal(replay(trunk, inputs, k), model(inputs["pixels"]))


class Shared(Plain):
    """One block, run four times."""

    def units(self, x):
        for _ in range(4):
            x = self.blocks[0](x)
        return x


def test_a_block_that_runs_several_times_is_several_units():
    model = Shared(num=1)
    trunk, _ = cut(model, excluded=(model.head,))
    assert [(link.name, link.ordinal) for link in trunk.links] == [("blocks.0", i) for i in range(4)]


class Biased(nn.Module):
    """A block that makes a bias from the length, and hands it on with what it was given."""

    def __init__(self, first, leaky):
        super().__init__()
        self.inner = Block()
        self.table = nn.Embedding(32, 1) if first else None
        self.leaky = leaky

    def forward(self, x, bias=None):
        if bias is None:
            assert self.table is not None
            bias = self.table.weight[: x.shape[1]]
            if self.leaky:
                bias = bias + x.mean()
        return self.inner(x) + bias, bias


class Handing(Plain):
    """Later blocks take what the first one made."""

    def __init__(self, leaky=False):
        super().__init__()
        self.blocks = nn.ModuleList(Biased(i == 0, leaky) for i in range(4))

    def units(self, x):
        bias = None
        for block in self.blocks:
            x, bias = block(x, bias)
        return x


def test_what_the_first_unit_makes_for_later_ones_is_rebuilt():
    model = Handing()
    trunk, _ = cut(model, excluded=(model.head,))
    assert trunk.passes.rebuilt == {0}
    inputs = {"pixels": torch.randn(2, 9, 3)}
    for k in range(5):
        assert torch.equal(replay(trunk, inputs, k), model(inputs["pixels"]))


def test_what_depends_on_the_state_is_refused():
    model = Handing(leaky=True)
    with pytest.raises(TrunkError, match="differs from the model's own forward"):
        cut(model, excluded=(model.head,))


class Remembering(Plain):
    """Later blocks use what the first block kept on itself."""

    class Keeper(Block):
        kept = KEPT

        def forward(self, x, mask=None):
            if not self.kept:
                self.kept.append(x.mean())
            return super().forward(x) + self.kept[0]

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Remembering.Keeper() for _ in range(4))

    def units(self, x):
        Remembering.Keeper.kept.clear()
        return super().units(x)


def test_what_a_unit_keeps_for_later_ones_is_refused():
    model = Remembering()
    with pytest.raises(TrunkError):
        cut(model, excluded=(model.head,))


class Skipping(Plain):
    """The end takes the result of the first block again."""

    def units(self, x):
        first = self.blocks[0](x)
        x = first
        for block in list(self.blocks)[1:]:
            x = block(x)
        return x + first


def test_a_path_around_the_units_is_refused():
    model = Skipping()
    with pytest.raises(TrunkError, match="more than the last unit's result"):
        cut(model, excluded=(model.head,))


class Around(Plain):
    """The end takes again what the first block took; with the raw input at hand it could be made anew."""

    def forward(self, pixels):
        first = self.stem(pixels)
        return self.norm(self.units(first) + first)


def test_a_path_around_all_units_is_refused():
    model = Around()
    with pytest.raises(TrunkError, match="more than the last unit's result"):
        cut(model, excluded=(model.head,))


class Branching(Plain):
    """Two parallel chains."""

    def __init__(self):
        super().__init__()
        self.others = nn.ModuleList(Block() for _ in range(4))

    def units(self, x):
        y = x
        for block in self.others:
            y = block(y)
        return super().units(x) + y


def test_a_chain_in_a_parallel_branch_is_refused():
    model = Branching()
    with pytest.raises(TrunkError):
        cut(model, excluded=(model.head,))


class Resetting(Plain):
    """A tensor computed between two blocks breaks the chain."""

    def units(self, x):
        for block in self.blocks:
            x = block(x) * 1.5
        return x


def test_a_computation_between_units_is_refused_with_the_widest_chain():
    model = Resetting()
    with pytest.raises(TrunkError, match=r"no chain .* holds 80%"):
        cut(model, excluded=(model.head,))


class Masked(Plain):
    """Blocks take a mask made from lengths."""

    def forward(self, pixels, lengths):
        x = self.stem(pixels)
        mask = (torch.arange(x.shape[1]) < lengths[:, None])[..., None].to(x.dtype)
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)


def test_a_mask_is_rebuilt_for_the_batch_at_hand():
    model = Masked()

    def batch(seed):
        noise = torch.Generator().manual_seed(seed)
        return {"pixels": torch.randn(2, 6, 3, generator=noise), "lengths": torch.tensor([4 + seed % 2, 6])}

    trunk, _ = cut(model, batch, excluded=(model.head,))
    assert trunk.context_names == ("lengths",)
    inputs = {"pixels": torch.randn(3, 6, 3), "lengths": torch.tensor([1, 6, 3])}
    for k in range(5):
        assert torch.equal(replay(trunk, inputs, k), model(**inputs))


class Conditioned(Plain):
    """Every block takes a value of the raw input itself."""

    def forward(self, pixels):
        x = self.stem(pixels)
        for block in self.blocks:
            x = block(x, mask=pixels.mean(dim=(1, 2), keepdim=True))
        return self.norm(x)


def test_a_context_made_of_the_raw_input_needs_the_raw_input():
    model = Conditioned()
    trunk, _ = cut(model, excluded=(model.head,))
    assert trunk.context_names == ("pixels",)


class Aside(Plain):
    """The output has a part that the embedding alone decides."""

    def forward(self, pixels):
        x = self.stem(pixels)
        return {"last": self.norm(self.units(x)), "embedded": x * 2}


def test_a_part_of_the_output_from_the_embedding_is_known_to_live_states_only():
    model = Aside()
    trunk, proof = cut(model, excluded=(model.head,))
    assert proof.aside == ("embedded",)
    inputs = {"pixels": torch.randn(2, 6, 3)}
    hidden, context = trunk.embed(inputs)
    last = trunk.run(hidden, context, 0, 4)
    whole, live = model(**inputs), trunk.finish(last, context)
    assert torch.equal(live["embedded"], whole["embedded"])
    restored = trunk.finish(last, trunk.context({}, 2, signature_of(inputs), hidden.device))
    assert restored["embedded"] is None
    assert torch.equal(restored["last"], whole["last"])


def test_models_are_left_as_they_were():
    model = Plain()
    cut(model, excluded=(model.head,))
    assert not any("forward" in m.__dict__ or m._forward_hooks for m in model.modules())


def test_finish_skips_the_modules_ahead_of_the_units():
    model = Plain()
    trunk, _ = cut(model, excluded=(model.head,))
    assert [call.module for call in trunk.passes.ahead] == [model.stem]
