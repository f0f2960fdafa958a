"""A Ray cluster of several nodes on this machine, for tests and benchmarks; nodes are killed and added on command.

    python benchmarks/ray_nodes.py --nodes 2

Prints the cluster's address, then reads commands from its standard input, a line each, and answers each with the number
of nodes: `kill` ends a node's own process by SIGKILL (its workers end when they see that), and `add` begins a new node.
Whoever closes the input ends the cluster. `Nodes` is this script as an object of another process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from typing import Any

# A node that is killed is known to be gone after one or two seconds.
SYSTEM = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}
# No more processes than needed; Ray reads these names as they are.
QUIET = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class Nodes:
    """A cluster that another process holds.

    Args:
        count: nodes beside the head, which does no work.

    Attributes:
        address: of the cluster.
        killed: nodes so far.
    """

    def __init__(self, count: int = 2) -> None:
        command = [sys.executable, os.path.abspath(__file__), "--nodes", str(count)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock = threading.Lock()
        self.killed = 0
        self.address = self._line()

    def replace_one(self) -> None:
        """Kill the oldest node, and have a new one join."""
        with self._lock:
            for command in ("kill", "add"):
                assert self._process.stdin is not None
                self._process.stdin.write(command + "\n")
                self._process.stdin.flush()
                self._line()
            self.killed += 1

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the Ray cluster ended")
        return line

    def end(self) -> None:
        """End the cluster."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2, help="beside the head, which does no work")
    parser.add_argument("--cpus", type=int, default=1, help="of each node")
    args = parser.parse_args()
    os.environ.update(QUIET)
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": SYSTEM, **small}, shutdown_at_exit=True
    )

    def added(tries: int = 5) -> Any:
        try:
            return cluster.add_node(num_cpus=args.cpus, **small)
        except Exception as error:  # Ray gives a node half a minute to begin, which a busy machine may take
            if tries == 1:
                raise
            print(f"a node did not begin: {error}", file=sys.stderr)
            return added(tries - 1)

    nodes: list[Any] = [added() for _ in range(args.nodes)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill" and nodes:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        elif line.strip() == "add":
            nodes.append(added())
        print(len(nodes), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
