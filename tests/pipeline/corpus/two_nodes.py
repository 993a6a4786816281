"""A Ray cluster of two nodes on this machine, in a process of its own: prints its address, and ends with its input.

``node`` on its input kills a node's raylet, as a machine is lost, and starts another node; ``worker`` kills an actor that works.
"""

import os
import random
import signal
import subprocess
import sys

from ray.cluster_utils import Cluster


def say(words):
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid


def two_nodes():
    # Ray waits 30 s for a node of its own, which a busy machine may not have ready by then.
    for left in (2, 1, 0):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, num_gpus=0)
            return cluster, cluster.add_node(num_cpus=1, num_gpus=0)
        except Exception:
            cluster.shutdown()
            subprocess.run(
                ["pkill", "-KILL", "-P", str(os.getpid())], check=False
            )  # it forgets those of the node that failed
            if not left:
                raise
    raise AssertionError("unreachable")


def main():
    cluster, node = two_nodes()
    say(cluster.address)
    for line in sys.stdin:
        if line.strip() == "node":
            os.kill(raylet_of(node), signal.SIGKILL)
            node = cluster.add_node(num_cpus=1, num_gpus=0, wait=False)
            say("node")
            continue
        raylets = [str(raylet_of(one)) for one in (cluster.head_node, node)]
        found = subprocess.run(
            ["pgrep", "-P", ",".join(raylets), "-f", "ray::MapWorker"], capture_output=True, text=True, check=False
        ).stdout.split()
        if found:
            os.kill(int(random.choice(found)), signal.SIGKILL)
        say(f"worker, one of {len(found)}")
    cluster.shutdown()


main()
