"""What a rank sets up when it joins its cluster."""

import json
import os

import torch

from clusters.launch import launch
from clusters.session import ClusterSpec
from tests.clusters import rank_programs


def test_no_thread_of_gloo_preempts_another(tmp_path):
    launch(ClusterSpec("gloo", 2), rank_programs.scheduling, str(tmp_path))
    threads = json.loads((tmp_path / "threads.json").read_text())
    named = {"pt_gloo_r"} if torch.__version__ < "2.13" else {"gloo_tcp_", "pt_gloo_r"}
    assert len(threads) >= 4 and {name[:9] for name, _ in threads} >= named
    assert {policy for _, policy in threads} == {os.SCHED_BATCH}
