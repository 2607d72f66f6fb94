"""Where ranks run: process launch, the emulated backend, network models and clocks."""
