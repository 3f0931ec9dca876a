"""Configuration that ``hydra.searchpath=[pkg://fastmerge.integrations.fusion_bench.config]`` adds to FusionBench's."""
