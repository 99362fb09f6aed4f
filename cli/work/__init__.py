"""Commands about processes and workflows."""
