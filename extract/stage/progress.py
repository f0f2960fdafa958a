"""What one run of stage 1 did: items and bytes by boundary, clips that failed, receipts; told from workers' results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...cache.feature_store import BoundaryWriter
from ...cache.format.int8 import Int8Error
from ...errors import TalikError
from ..executors.receipts import ReceiptFile
from ..executors.tasks import Receipt
from .failures import LeftOut


@dataclass
class Ledger:
    """What was done so far.

    Attributes:
        receipts: where those of other processes are kept; None without such.
        items: computed for each boundary, by "modality/name".
        bytes_written: data files only.
        failures, missing: clips that could not be decoded, and that have no file.
        failed: tasks that could not be done.
        retried: tasks that were begun more than once.
        worker_seconds: of other processes' tasks.
    """

    receipts: ReceiptFile | None = None
    items: dict[str, int] = field(default_factory=dict)
    bytes_written: int = 0
    failures: list[LeftOut] = field(default_factory=list)
    missing: list[LeftOut] = field(default_factory=list)
    failed: list[Receipt] = field(default_factory=list)
    retried: list[Receipt] = field(default_factory=list)
    worker_seconds: float = 0.0

    def taken(
        self, receipts: Iterable[Receipt], names: Sequence[str], writers: Mapping[str, BoundaryWriter]
    ) -> Iterator[Receipt]:
        """Take in receipts as they come and hand those of tasks that were done on.

        Args:
            receipts: from an engine.
            names: of all tasks; what int8 changed is added up in their order, for the sum's last bits depend on it.
            writers: by their boundaries' paths.

        Raises:
            TalikError: at the end, if tasks failed: the first one's error.
        """
        waiting: dict[str, Receipt] = {}
        left = list(names)
        failed_before = len(self.failed)
        try:
            for receipt in receipts:
                waiting[receipt.task] = receipt
                self._count(receipt)
                while left and left[0] in waiting:
                    _add_measured(waiting[left.pop(0)], writers)
                if not receipt.error:
                    yield receipt
        finally:
            for name in left:
                if name in waiting:
                    _add_measured(waiting[name], writers)
        if len(self.failed) > failed_before:
            raise self._error(self.failed[failed_before:], len(names))

    def _count(self, receipt: Receipt) -> None:
        if self.receipts is not None:
            self.receipts.add(receipt)
            self.worker_seconds += receipt.seconds
        if receipt.attempts > 1:
            self.retried.append(receipt)
        if receipt.error:
            self.failed.append(receipt)
        for written in receipt.result.get("written", ()):
            self.items[written["boundary"]] = self.items.get(written["boundary"], 0) + written["items"]
            self.bytes_written += written["size_bytes"]

    @staticmethod
    def _error(failed: Sequence[Receipt], total: int) -> TalikError:
        first = failed[0].exception()
        return type(first)(f"{len(failed)} of {total} units failed, all others are stored; the first: {first}")


def _add_measured(receipt: Receipt, writers: Mapping[str, BoundaryWriter]) -> None:
    for written in receipt.result.get("written", ()):
        error = Int8Error(**written["int8"])
        if error.num_items:
            writers[written["boundary"]].measured(error)
