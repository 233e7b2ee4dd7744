"""The settings of an experiment: their types, conditions and resolvers, and Hydra's messages."""
