"""The harness: plan -> run -> store. run.py is the only file that imports Hydra."""
