"""Running a network by a rule, so that the layers a sample does not need are not run."""
