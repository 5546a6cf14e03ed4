"""Where the time of a step goes, as ratios within one run."""
