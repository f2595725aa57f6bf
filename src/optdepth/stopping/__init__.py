"""The mathematics of stopping: traces in, rules and statements out. Knows nothing of networks."""
