"""Audits: whether an environment's reward, or a judge, can be trusted with training."""
