"""MoE inference systems: one file each, reading like the paper's figure."""
