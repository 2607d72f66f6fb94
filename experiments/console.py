"""`moe-harness COMMAND ...`: the commands of this project under one name, wherever it is installed."""

import importlib
import sys
from collections.abc import Sequence

# By command: the module whose `main` it is, and what it does.
COMMANDS = {
    "run": ("experiments.run", "measure or simulate: experiment=fig3, or any key=value; -m for a sweep"),
    "status": ("experiments.status", "where a campaign stands; --resume goes on with it"),
    "report": ("analysis.__main__", "make tables, figures and report.html of stored campaigns again"),
    "judge": ("experiments.judge", "does a system compute what the dense model computes?"),
    "score": ("experiments.score", "what a planner is worth on real models' loads, in seconds"),
    "timeline": ("experiments.timeline", "a stored cell as a trace that Perfetto opens"),
}
BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand over to a command; 2, with the list of them, for one that there is not."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}; it must be one of {', '.join(COMMANDS)}", file=sys.stderr)
        return BAD_INPUT
    sys.argv = [f"moe-harness {name}", *rest]
    return importlib.import_module(COMMANDS[name][0]).main() or 0


def usage() -> str:
    """What stands on the screen without a command."""
    lines = (f"  {name:<9} {what}" for name, (_, what) in COMMANDS.items())
    return "\n".join(
        [
            "moe-harness COMMAND ...: compare systems for Mixture-of-Experts inference on equal terms",
            "",
            *lines,
            "",
            "moe-harness COMMAND --help says what a command takes. To begin with:",
            "  moe-harness run experiment=fig3a tier=smoke",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
