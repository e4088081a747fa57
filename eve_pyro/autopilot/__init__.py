"""The search: sampled configurations, trained a little, the best of them further, those that break a rule last."""
