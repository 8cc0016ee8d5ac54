"""All that knows Hydra or argparse: composing a config, sweeps, commands."""
