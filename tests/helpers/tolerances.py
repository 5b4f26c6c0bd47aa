"""Every tolerance of the tests, with its reason. Float32 has 1.2e-7 relative resolution."""

PARITY_LOGITS = 1e-4  # transformers' logits of order 1 to 10 after a few blocks, sums in another order
SCORED = 1e-3  # the issue's bound on log-probs of a whole run against transformers' own
TOKEN = 1e-5  # log-probs, KL, masks and losses of order 0.1 to 10: a few roundings
GRADIENT = 1e-4  # relative to the largest entry of a tensor's gradient
SHARDED = 1e-5  # the same sums, cut differently over devices and micro-steps
UPDATE = 1e-6  # the same formula on the same gradient, with factors in another order
# Our bfloat16 error over transformers' (root mean squares against float32): where each rounds differs, how
# often does not.
BFLOAT16 = 1.5
TRAINED = 1e-4  # losses after tens of updates by two optimizers that round differently
