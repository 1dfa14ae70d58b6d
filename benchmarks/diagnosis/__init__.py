"""What is discord good for? Label noise, fault location, shifted inputs, against fair baselines."""
