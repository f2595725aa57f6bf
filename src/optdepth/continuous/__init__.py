"""Depth in continuous time: free boundaries on grids, neural ODEs that stop sample by sample (theory, section 8)."""
