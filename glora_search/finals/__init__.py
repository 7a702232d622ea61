"""Finals: the best subnets and the uniform methods race as real trainings; half are dropped at each rung."""
