"""A testbed that compares methods on two cores: a small student, and word problems with a known truth."""
