"""Locks that hold on one machine only are told, from how the file system is mounted."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from talik.cache import mounts
from talik.cache.file_locks import locked
from talik.cache.mounts import locks_of_one_machine
from talik.errors import RunLockedError

TABLE = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 0:52 / /scratch rw,relatime shared:1 master:2 - lustre 10.0.0.1@tcp:/scratch rw,{options},lazystatfs
41 22 0:53 / /home rw - nfs4 server:/home rw,vers=4.2,local_lock={local}
42 40 0:54 / /scratch/fast\\040disk rw - ext4 /dev/nvme0n1 rw
43 22 0:55 / /old rw - nfs server:/old rw,vers=3,nolock
broken line
44 22 0:56 / /over rw - lustre a@tcp:/x rw,localflock
45 44 0:57 / /over rw - ext4 /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "options", "local", "expected"),
    [
        ("/scratch/me", "localflock", "none", "Lustre mounted at /scratch with localflock; mount it with -o flock"),
        ("/scratch", "user_xattr", "none", "Lustre mounted at /scratch without flock; mount it with -o flock"),
        ("/scratch", "flock", "none", ""),
        ("/scratchy", "localflock", "none", ""),
        ("/scratch/fast disk/x", "localflock", "none", ""),
        ("/home/me", "flock", "none", ""),
        ("/home/me", "flock", "posix", ""),
        ("/home/me", "flock", "all", "NFS mounted at /home with local_lock=all; mount it without"),
        ("/home/me", "flock", "flock", "NFS mounted at /home with local_lock=flock; mount it without"),
        ("/old/x", "flock", "none", "NFS mounted at /old with nolock; mount it without"),
        ("/over/x", "flock", "none", ""),
        ("/var", "localflock", "all", ""),
    ],
)
def test_how_far_locks_reach(path: str, options: str, local: str, expected: str) -> None:
    assert locks_of_one_machine(Path(path), TABLE.format(options=options, local=local)) == expected


def test_whoever_takes_a_lock_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {tmp_path}/shared rw - lustre m:/x rw,localflock\n")
    monkeypatch.setattr(mounts, "MOUNT_INFO", table)
    (tmp_path / "shared").mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with locked(tmp_path / "shared" / ".lock", RunLockedError):
                pass
    (record,) = caplog.records
    told = record.getMessage()
    assert told.startswith(f"{tmp_path}/shared: locks hold on this machine only (Lustre mounted at {tmp_path}/shared")
    assert "\n" not in told
