"""Contract tests of a data set and of a source of models of one's own, run with pytest.

    import mine  # registers "doorbell" and "tiny"
    from talik.testing import DatasetTests, ModelSourceTests

    class TestDoorbell(DatasetTests):
        data = {"dataset": "doorbell", "root": "films"}

        def base(self, tmp_path):
            return write_some_films(tmp_path)

    class TestTiny(ModelSourceTests):
        model = "tiny:3"

Letters: B items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ..errors import MissingMediaError, SettingsError
from ..extract.datasets.describe import describe
from ..extract.datasets.load import load_manifest
from ..extract.datasets.types import Manifest
from ..extract.encoders.encoder import Encoder
from ..extract.encoders.load import load_encoder


class DatasetTests(ABC):
    """Contract of a data set's loader; derive from it, set `data` and write `base`.

    Attributes:
        data: the table `[data]`.
    """

    data: ClassVar[Mapping[str, Any]]

    @abstractmethod
    def base(self, tmp_path: Path) -> Path:
        """Return the folder that the table's paths count from, with some clips and their annotations.

        Args:
            tmp_path: an empty folder of this test.
        """

    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Manifest:
        """The data set as an experiment sees it: ids, clips and answers are compared when it is loaded."""
        return load_manifest(self.data, base=self.base(tmp_path))

    def test_every_question_has_a_clip_a_split_and_an_answer(self, manifest: Manifest) -> None:
        """Nothing is empty, and there is something to train on."""
        assert manifest.questions
        assert "train" in manifest.splits
        for question in manifest.questions:
            assert question.clip_id in manifest.clips
            assert question.split
            assert question.type
            assert question.answer or question.labels

    def test_the_clips_files_are_there(self, manifest: Manifest) -> None:
        """Every clip names its file, and says so where it is missing."""
        media = [clip.path for clip in manifest.clips.values() if clip.path is not None]
        assert media
        assert [path for path in media if not path.exists()] == []

    def test_loading_it_again_gives_the_same(self, tmp_path: Path) -> None:
        """The order of questions and classes is a function of the files alone."""
        base = self.base(tmp_path)
        first, second = load_manifest(self.data, base=base), load_manifest(self.data, base=base)
        assert first.questions == second.questions
        assert first.answers == second.answers

    def test_it_can_be_described(self, manifest: Manifest) -> None:
        """`talik data` has something to say about it."""
        assert describe(manifest)

    def test_a_folder_that_is_not_there_is_one_line(self, tmp_path: Path) -> None:
        """A root that does not exist is an error of talik's own."""
        from ..errors import TalikError

        self.base(tmp_path)
        with pytest.raises(TalikError) as raised:
            load_manifest({**self.data, "root": "no-such-folder"}, base=tmp_path)
        assert isinstance(raised.value, SettingsError | MissingMediaError) or "no-such-folder" in str(raised.value)


class ModelSourceTests:
    """Contract of a source of models; derive from it and set `model`.

    Attributes:
        model: what an experiment's `model` says, "prefix:NAME".
        modality: "visual", "audio" or "text".
        options: further arguments of `talik.load_encoder`.
    """

    model: ClassVar[str]
    modality: ClassVar[str] = "visual"
    options: ClassVar[Mapping[str, Any]] = {}

    def load(self) -> Encoder:
        """Return the encoder, cut into units; that it can be cut anywhere is proven when it is opened."""
        return load_encoder(self.model, modality=self.modality, device="cpu", **self.options)

    def raw(self, encoder: Encoder) -> Any:
        """Return raw items for its preprocessing: two frames, two waveforms, or two texts."""
        noise = np.random.default_rng(0)
        if self.modality == "text":
            return ["is it open ?", "how many ?"]
        if self.modality == "audio":
            samples = round((encoder.sample_rate_hz or 16000) * (encoder.window_seconds or 1.0))
            return noise.normal(size=(2, samples)).astype(np.float32)
        frames = 2 * (encoder.num_frames or 1)
        return noise.integers(0, 256, (frames, 60, 80, 3), dtype=np.uint8)

    def test_it_has_units(self) -> None:
        """There is something to cut."""
        encoder = self.load()
        assert encoder.num_units >= 1
        assert len(encoder.channels) == encoder.num_units + 2

    def test_pieces_of_raw_items_equal_the_whole(self) -> None:
        """From raw items, the units below and above any boundary give what all of them give, to the bit."""
        encoder = self.load()
        with torch.no_grad():
            inputs = encoder.preprocess(self.raw(encoder))
            whole = encoder.run(encoder.embed(inputs), 0, encoder.num_units)
            for boundary in range(encoder.num_units + 1):
                state = encoder.run(encoder.embed(inputs), 0, boundary)
                state = encoder.run(state, boundary, encoder.num_units)
                assert torch.equal(state.hidden, whole.hidden), boundary
        assert torch.isfinite(whole.hidden).all()

    def test_opening_it_again_gives_the_same_identity(self) -> None:
        """Otherwise states would be extracted anew at each run; random weights have to be drawn by a seed."""
        first, second = self.load(), self.load()
        assert first.identity(first.num_units) == second.identity(second.num_units)
