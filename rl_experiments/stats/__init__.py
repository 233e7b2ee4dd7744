"""Statistics of evaluations and audits: confidence intervals and rank correlation."""
