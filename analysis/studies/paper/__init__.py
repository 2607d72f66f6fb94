"""What the paper that the harness began with says, and whether it holds: its points and claims beside ours."""
