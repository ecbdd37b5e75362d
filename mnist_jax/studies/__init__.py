"""Many runs: reproduction of published experiments and cross-validation."""
