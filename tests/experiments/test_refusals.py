"""What Hydra refuses is one sentence of ours."""

import pytest

from experiments.refusals import refusal

CONFIGURATION = {"router": {"alpha": 0.6, "name": "synthetic"}, "batch_size": 3, "experiment": {"name": "single"}}
MISSING = """In 'config': Could not find 'system/moeshar'

Available options in 'system':
\tep
\tmoeshard
\tmoeshard_chunked
Config search path:
\tprovider=hydra, path=pkg://hydra.conf
"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Could not override 'experimnt'.\nTo append to", "there is no key 'experimnt'; did you mean 'experiment'?"),
        ("Could not override 'router.alpa'.", "there is no key 'router.alpa'; did you mean 'router.alpha'?"),
        ("Could not override 'zzz'.", "there is no key 'zzz'; the keys are batch_size, experiment, router"),
        (MISSING, "there is no system 'moeshar'; did you mean 'moeshard'?"),
        (MISSING.replace("moeshar'", "x'"), "there is no system 'x'; there are ep, moeshard, moeshard_chunked"),
        (
            "usage: run.py [--help]\nrun.py: error: unrecognized arguments: tier=smoke",
            "tier=smoke cannot stand there: options such as -m come before the first key=value",
        ),
        ("Error merging x.\n\nValue 'y' of type\nfull_key: x", "Error merging x. Value 'y' of type"),
    ],
)
def test_each_refusal_is_a_sentence(said: str, told: str):
    assert refusal(said, lambda: CONFIGURATION) == told
